"""The coordinator for notebooks: submit a job, watch it, take its result as frames. See `sfumato.server.connect`.

It is what `sfumato job` and `sfumato model` do, by the same functions and with the same rights: whoever may read the
coordinator's directory.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from rich.console import Console

from sfumato.common import analyses_listing
from sfumato.common.contract import Contract, load_contract, validation_lines
from sfumato.common.errors import BadInput
from sfumato.common.job import ANY_JOB, AnyJob, load_job, sign_job
from sfumato.server import standing
from sfumato.server.control import ControlClient, RunState
from sfumato.server.home import CoordinatorHome
from sfumato.server.interrupted import job_to_resume
from sfumato.server.query.asking import Asking, known_contract
from sfumato.server.query.estimate import Estimate
from sfumato.server.result import Result, require_pandas
from sfumato.server.watching import Event, watch_run

if TYPE_CHECKING:
    import pandas as pd

JobLike = AnyJob | Mapping[str, Any] | Path | str
ContractLike = Contract | Path | str


@dataclass(frozen=True)
class Connection:
    """A coordinator. `contract` is what jobs are written for; if it is not given, that of the runs it has had."""

    home: CoordinatorHome
    contract: Contract | None = None

    def submit(
        self,
        job: JobLike,
        contract: ContractLike | None = None,
        *,
        valid_for: timedelta | None = None,
    ) -> "Run":
        """Sign a job and start it. `job`: a file, a job, or a mapping with the tables of a job file. `valid_for`: if
        absent a day, or of a standing question until three months after its last month.

        Raises BadInput on a job that is none, or that the contract does not fit; Unavailable if nobody answers.
        """
        known, read = self._contract(contract), read_job(job)
        validity = standing.valid_for(read, known) if valid_for is None else valid_for
        signed = sign_job(read, known, self.home.job_key(), valid_for=validity)
        with closing(ControlClient.of(self.home)) as control:
            return Run(self.home, control.submit(signed))

    def query(
        self,
        sql: str,
        *,
        epsilon: float = 0.5,
        on_event: Callable[[Event], None] | None = None,
        show: bool = True,
        **asking: Any,
    ) -> Result:
        """Answer one SELECT, as `sfumato query` does; `asking` has the other fields of `query.asking.Asking`.

        Raises BadInput with the reason why it is not answered, or JobFailed.
        """
        job = Asking(epsilon, **asking).job(sql, self._contract(None))
        return self.submit(job).watch(on_event, show=show)

    def estimate(self, sql: str, *, epsilon: float = 0.5, **asking: Any) -> Estimate:
        """What `query` would cost, and how well each number would be known; asks nobody. Raises BadInput."""
        contract = self._contract(None)
        return Estimate.of(Asking(epsilon, **asking).job(sql, contract), contract, len(self.home.branches()))

    def _contract(self, given: ContractLike | None) -> Contract:
        return read_contract(given) if given is not None else self.contract or known_contract(self.home)

    def run(self, run_id: int) -> "Run":
        """A run by its number."""
        return Run(self.home, run_id)

    def runs(self) -> "pd.DataFrame":
        """The latest hundred, newest first: run, job, kind, epsilon, state, submitted, why."""
        with closing(ControlClient.of(self.home)) as control:
            found = [_line(state) for state in control.list_runs()]
        columns = ["run", "job", "kind", "epsilon", "state", "submitted", "why"]
        return require_pandas().DataFrame(found, columns=columns)

    def models(self) -> "pd.DataFrame":
        """Every model that a run left, held against the coordinator's ledger. Raises LedgerBroken."""
        from sfumato.server.model_card import summary
        from sfumato.server.registry import Registry

        return require_pandas().DataFrame([summary(entry) for entry in Registry.of(self.home).entries()])

    def analyses(self) -> "pd.DataFrame":
        """What a job can ask for: kind, question, page of the docs."""
        found = [
            (k, analyses_listing.question_of(k), analyses_listing.page_of(k))
            for k in analyses_listing.kinds()
        ]
        return require_pandas().DataFrame(found, columns=["kind", "question", "page"])

    def __repr__(self) -> str:
        return f"<Connection to the coordinator in {self.home.path}>"


@dataclass(frozen=True)
class Run:
    """A run of a job, by its number."""

    home: CoordinatorHome
    id: int

    @property
    def state(self) -> RunState:
        """As Flower sees it. Raises Unavailable if the coordinator does not answer."""
        with closing(ControlClient.of(self.home)) as control:
            return control.run(self.id)

    def watch(self, on_event: Callable[[Event], None] | None = None, *, show: bool = True) -> Result:
        """Follow it until it ends, with bars in a terminal or a notebook; `on_event` hears every step.

        Returns its result. Raises JobFailed with the reason.
        """
        with closing(ControlClient.of(self.home)) as control:
            watch_run(control, self.id, Console(quiet=not show), on_event)
        return self.result()

    def result(self) -> Result:
        """What it left. Raises BadInput if it has not ended, or failed, with the reason."""
        return Result.of_run(self.home, self.id)

    def resume(self) -> "Run":
        """Go on with it where it was cut short, or ask a standing question for its next months: `sfumato job resume`.

        Raises BadInput, with the reason, if there is nothing to go on with.
        """
        signed = job_to_resume(self.home.directory("runs"), self.id)
        with closing(ControlClient.of(self.home)) as control:
            return Run(self.home, control.submit(signed))

    def stop(self) -> None:
        """What was released stays released, and charged. Raises BadInput if it has ended."""
        with closing(ControlClient.of(self.home)) as control:
            control.stop(self.id)

    def __repr__(self) -> str:
        return f"<Run {self.id}>"


def read_job(job: JobLike) -> AnyJob:
    """From whatever a notebook holds. Raises BadInput."""
    if isinstance(job, Path | str):
        return load_job(Path(job))
    if not isinstance(job, Mapping):
        return job
    head = job.get("job")
    if not isinstance(head, Mapping):
        raise BadInput("the job has no 'job' table", hint="Use the tables of a job file: docs/jobs.md.")
    try:
        return ANY_JOB.validate_python({**head, **{k: v for k, v in job.items() if k != "job"}})
    except ValidationError as e:
        raise BadInput(
            f"not a valid job\n  {validation_lines(e)}", hint="See docs/jobs.md for every key."
        ) from None


def read_contract(contract: ContractLike) -> Contract:
    """Raises BadInput."""
    return load_contract(Path(contract)) if isinstance(contract, Path | str) else contract


def _line(state: RunState) -> dict[str, Any]:
    try:
        job = dict(json.loads(state.job)["job"])
    except (ValueError, KeyError, TypeError):
        job = {}  # a run of another bundle: branches refuse it, and it is listed all the same
    return {
        "run": state.run_id,
        "job": job.get("name"),
        "kind": job.get("kind"),
        "epsilon": (job.get("privacy") or {}).get("target_epsilon"),
        "state": state.sub_status if state.finished else state.status,
        "submitted": state.submitted_at,
        "why": state.details,
    }
