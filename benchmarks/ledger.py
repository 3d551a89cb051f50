"""What admission costs: the running filter, the whole durable door, and the PLD that they stand in for.

    python benchmarks/ledger.py

500 mixed events: DP-SGD rounds, secure sums of gradients and of histograms, discrete Laplace counts. Medians.
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dp_accounting.dp_event import DpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation

from sfumato.privacy import accounting
from sfumato.privacy.accounting import Account
from sfumato.privacy.door import Door
from sfumato.privacy.ledger import Ledger

EVENTS, LONG, DELTA = 500, 10_000, 1e-6
MIX: list[DpEvent] = [
    accounting.gaussian_training(9.0, 0.05, 20),
    accounting.gaussian(14.0, 0.1),
    accounting.gaussian(60.0),
    accounting.gaussian(45.0, 0.02),
    accounting.discrete_laplace(400.0),
]


class Nothing:
    """A release whose computation takes no time, so that the door is what is measured."""

    def __init__(self, event: DpEvent) -> None:
        self.event = event

    def run(self) -> np.ndarray:
        return np.zeros(16, dtype=np.int64)


def median_ms(act: Callable[[int], object], times: int) -> float:
    taken = []
    for n in range(times):
        start = time.perf_counter()
        act(n)
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken)


def events() -> list[DpEvent]:
    return [MIX[n % len(MIX)] for n in range(EVENTS)]


def running_filter() -> tuple[float, float]:
    """Append and query at the end of 500 events: of kinds seen before, and of a kind never seen."""
    account = Account()
    for event in events():
        account.add(event)

    def known(n: int) -> None:
        account.add(MIX[n % len(MIX)])
        account.epsilon(DELTA)

    def new(n: int) -> None:
        account.add(accounting.gaussian(30.0 + n, 0.03))
        account.epsilon(DELTA)

    return median_ms(known, 500), median_ms(new, 15)


def naive_pld() -> float:
    """dp_accounting's PLD of the whole sequence, event by event: what a reader would write down first."""

    def recompute(_: int) -> None:
        accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
        for event in events():
            accountant.compose(event)
        accountant.get_epsilon(DELTA)

    return median_ms(recompute, 1)


def tallied_pld() -> float:
    """Ours for reports: equal events counted together, Gaussians as one."""
    return median_ms(lambda _: accounting.pld_epsilon(events(), DELTA), 5)


def durable_door(folder: Path, before: int) -> tuple[float, float]:
    """A release (charge, fsync, run, store, fsync) and the spending without PLD, after `before` charges."""
    ledger = Ledger.create(
        folder / f"{before}.sqlite",
        branch="north",
        signer=Ed25519PrivateKey.generate(),
        genesis={"budget_epsilon": 1e6, "budget_delta": DELTA},
    )
    door, job = Door(ledger), "a" * 32
    plan = accounting.compose([accounting.gaussian_training(1.0, 1.0, LONG)])
    door.reserve(job, {"all": plan}, expires_at=datetime.now(UTC) + timedelta(days=1), details={})
    with ledger.exclusive() as transaction:
        for n in range(before):
            body = {"event": accounting.encode_event(MIX[n % len(MIX)]), "population": "all"}
            transaction.append("charge", {**body, "what": "sum", "round": n}, job_id=job)

    def release(n: int) -> None:
        door.release(
            Nothing(MIX[n % len(MIX)]),
            job_id=job,
            round_=before + n,
            what="sum",
            population="all",
            question=b"q",
        )

    first = median_ms(release, 1)
    return first, median_ms(lambda n: release(n + 1), 60)


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}; medians\n")
    known, new = running_filter()
    naive, tallied = naive_pld(), tallied_pld()
    with tempfile.TemporaryDirectory() as folder:
        (_, short), (first, long) = (durable_door(Path(folder), n) for n in (EVENTS, LONG))
    print(f"{'what, in a ledger of 500 mixed events':<62}{'ms':>10}{'of naive PLD':>16}")
    for name, ms in (
        ("PLD again, event by event", naive),
        ("PLD again, as our reports do it", tallied),
        ("filter in memory: append and query", known),
        ("filter in memory: the first event of a new kind", new),
        ("the door: charge, fsync, run, store, fsync", short),
        (f"the door, in a ledger of {LONG} entries", long),
        (f"the door's first release after a start, {LONG} entries", first),
    ):
        print(f"{name:<62}{ms:>10.3f}{f'1/{naive / ms:,.0f}':>16}")


if __name__ == "__main__":
    main()
