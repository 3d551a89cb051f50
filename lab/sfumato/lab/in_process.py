"""An exchange without any network: every branch is a function from a question's frame to an answer's.

The vaults are real; nothing travels. For benchmarks, and for tests that let branches drop, lie and die.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.client.home import BranchHome
from sfumato.client.vault.service import open_vault
from sfumato.common.contract import Contract
from sfumato.common.errors import Unavailable
from sfumato.common.job import AnyJob, sign_job
from sfumato.server.conversation import Report
from sfumato.server.exchange import GONE, Gathered
from sfumato.server.job_run import JobOutcome, JobRun
from sfumato.server.rounds import Rounds

Answerer = Callable[[bytes], bytes | None]


class InProcessExchange:
    """Asks the branches one after the other. One that answers None, now, has dropped."""

    def __init__(self, branches: Mapping[int, Answerer]) -> None:
        self.branches = dict(branches)

    def open(self, *, at_least: int, timeout: float) -> tuple[int, ...]:
        if len(self.branches) < at_least:
            raise Unavailable(f"{len(self.branches)} of at least {at_least} branches are there")
        return tuple(sorted(self.branches))

    def ask(self, frames: Mapping[int, bytes], *, timeout: float) -> Gathered:
        gathered = Gathered()
        for node, frame in frames.items():
            answer = self.branches[node](frame)
            if answer is None:
                gathered.dropped[node] = GONE
            else:
                gathered.answers[node] = answer
        return gathered

    def close(self) -> None:
        """Nothing is held."""


def open_vaults(homes: Sequence[BranchHome]) -> dict[int, Answerer]:
    """The vaults of `simulated_branches`, by a number that stands for a node."""
    return {
        n: open_vault(home, (home.path / "passphrase").read_text()).answer for n, home in enumerate(homes, 1)
    }


def run_in_process(
    branches: Mapping[int, Answerer],
    job: AnyJob,
    contract: Contract,
    key: Ed25519PrivateKey,
    report: Report = lambda _: None,
) -> JobOutcome:
    """One job over these branches. Raises JobFailed."""
    signed = sign_job(job, contract, key, valid_for=timedelta(hours=24))
    return JobRun(Rounds(InProcessExchange(branches), signed, report)).run()
