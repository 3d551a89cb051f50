"""A statement as a job: signed and submitted as any other, with the question that it was compiled to."""

import hashlib
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal

from pydantic import ValidationError
from rich.console import Console

from sfumato.common.canonical import canonical_bytes
from sfumato.common.contract import Contract, validation_lines
from sfumato.common.errors import BadInput
from sfumato.common.job import SMALLEST_SET, AnalysisJob, SignedJob, sign_job
from sfumato.server.control import ControlClient
from sfumato.server.home import CoordinatorHome
from sfumato.server.query.compile import compiled
from sfumato.server.reading import Reading
from sfumato.server.run_files import SIGNED, results
from sfumato.server.watching import watch_run

Mode = Literal["secure-sum", "local"]
MODES: dict[str, Mode] = {"secure-sum": "secure-sum", "local": "local"}
VALID_FOR = timedelta(hours=24)


@dataclass(frozen=True)
class Asking:
    """How to ask: what it may cost, and of whom."""

    epsilon: float = 0.5
    delta: float = 1e-6
    mode: Mode = "secure-sum"
    colluders: int = 1
    repeats: int | None = None
    purpose: str = "Answer one question of the risk team."
    as_of: date | None = None

    @classmethod
    def of(
        cls,
        epsilon: float,
        delta: float,
        mode: str,
        colluders: int,
        repeats: int | None,
        purpose: str,
        as_of: date | None = None,
    ) -> "Asking":
        """From what was typed. Raises BadInput on another mode; `job` checks the rest."""
        if mode not in MODES:
            raise BadInput(f"--mode is one of {', '.join(MODES)}")
        return cls(epsilon, delta, MODES[mode], colluders, repeats, purpose, as_of)

    def job(self, sql: str, contract: Contract) -> AnalysisJob:
        """Raises BadInput with the reason why it is not answered."""
        question = compiled(sql, contract.on(self.as_of)).model_dump(mode="json")
        secure = self.mode == "secure-sum"
        made: dict[str, Any] = {
            "name": f"query-{hashlib.sha256(canonical_bytes(question)).hexdigest()[:8]}",
            "kind": "query",
            "purpose": self.purpose,
            "contract": contract.name,
            "as_of": self.as_of,
            "question": question,
            "privacy": {
                "target_epsilon": self.epsilon,
                "delta": self.delta,
                "mode": self.mode,
                "colluders": self.colluders,
            },
            "federation": {
                "min_branches": max(SMALLEST_SET, self.colluders + 2) if secure else 1,
                "repeats": self.repeats,
            },
        }
        try:
            return AnalysisJob.model_validate(made)
        except ValidationError as e:
            raise BadInput(f"not a valid job\n  {validation_lines(e)}") from None


def known_contract(home: CoordinatorHome) -> Contract:
    """The contract of the runs that this coordinator has had. Raises BadInput if there is none, or several."""
    found: dict[str, Contract] = {}
    for directory, _ in results(home.directory("runs")):
        if (directory / SIGNED).is_file():
            contract = SignedJob.model_validate_json((directory / SIGNED).read_bytes()).contract
            found[contract.hash] = contract
    if len(found) != 1:
        raise BadInput(
            "no run here says which contract the branches keep"
            if not found
            else "runs here are of several contracts",
            hint="Name it: --contract FILE.",
        )
    return next(iter(found.values()))


def ask_branches(home: CoordinatorHome, job: AnalysisJob, contract: Contract, console: Console) -> Reading:
    """Sign and submit, follow the run, and read its answer. Raises BadInput, Unavailable, or JobFailed."""
    signed = sign_job(job, contract, home.job_key(), valid_for=VALID_FOR)
    control = ControlClient.of(home)
    try:
        run_id = control.submit(signed)
        console.print(f"Submitted as run {run_id} (job {signed.job_id}).")
        watch_run(control, run_id, console)
    finally:
        control.close()
    return Reading.of_run(home, run_id)


def left_at(home: CoordinatorHome) -> dict[str, float]:
    """The epsilon that each branch had left after the latest run that it answered in, by its name."""
    left: dict[str, float] = {}
    for _, result in sorted(
        results(home.directory("runs")), key=lambda r: (r[0] / "result.json").stat().st_mtime
    ):
        for branch in result.get("per_branch", ()):
            if branch.get("epsilon_remaining") is not None:
                left[str(branch["name"])] = float(branch["epsilon_remaining"])
    return left
