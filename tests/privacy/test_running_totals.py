"""Running totals of a ledger: equal to adding everything up again, for every reader, and nothing is read twice."""

import multiprocessing
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dp_accounting.dp_event import DpEvent

from sfumato.common.errors import LedgerBroken, Refusal, RefusalCode
from sfumato.privacy import accounting as a
from sfumato.privacy.accounting import POPULATIONS
from sfumato.privacy.door import Door
from sfumato.privacy.ledger import Ledger, Transaction
from sfumato.privacy.running_totals import Curves, Standing

KEY = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
DELTA = 1e-5
EVENTS = [a.discrete_laplace(40.0), a.gaussian(25.0), a.gaussian(6.0, 0.05)]


class One:
    """Releases a zero at the cost of this event."""

    def __init__(self, event: DpEvent) -> None:
        self.event = event

    def run(self) -> np.ndarray:
        return np.zeros(1, dtype=np.int64)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    genesis = {"budget_epsilon": 3.0, "budget_delta": DELTA}
    return Ledger.create(tmp_path / "ledger.sqlite", branch="north", signer=KEY, genesis=genesis)


def job_id(n: int) -> str:
    return f"{n:032x}"


def release(door: Door, job: int, round_: int, event: DpEvent, population: str) -> None:
    door.release(
        One(event),
        job_id=job_id(job),
        round_=round_,
        what="sum",
        population=population,  # type: ignore[arg-type]
        question=b"q",
    )


def naive(ledger: Ledger, now: datetime) -> tuple[Curves, Curves]:
    """Spent and committed, from every entry again, one event at a time."""
    entries = ledger.entries()
    closed = {e.job_id for e in entries if e.kind == "close"}
    spent, committed = [], []
    for population in POPULATIONS:

        def cost(events: list[DpEvent]) -> np.ndarray:
            return a.rdp_curve(a.compose(events)) if events else a.zero_curve()

        mine = [e for e in entries if e.kind == "charge" and e.body["population"] in (population, "all")]
        total = cost([a.decode_event(e.body["event"]) for e in mine])
        spent.append(total)
        for reserve in (e for e in entries if e.kind == "reserve"):
            if reserve.job_id in closed or datetime.fromisoformat(reserve.body["expires_at"]) < now:
                continue
            planned = [v for k, v in reserve.body["planned"].items() if k in (population, "all")]
            paid = cost([a.decode_event(e.body["event"]) for e in mine if e.job_id == reserve.job_id])
            total = total + np.maximum(cost([a.decode_event(p) for p in planned]) - paid, 0)
        committed.append(total)
    return np.stack(spent), np.stack(committed)


def test_totals_equal_adding_everything_up_again_for_every_reader(ledger: Ledger) -> None:
    """Two doors take turns at random (two processes on one file), jobs open, pay, close and expire."""
    rng = np.random.default_rng(3)
    clock = [datetime(2026, 1, 1, tzinfo=UTC)]
    doors = [Door(ledger, now=lambda: clock[0]) for _ in range(2)]
    refusals = set()
    for n in range(150):
        door, job = doors[rng.integers(2)], int(rng.integers(12))
        try:
            if rng.random() < 0.2:
                plan = {"training": a.compose(EVENTS * 3), "all": EVENTS[1], "holdout": EVENTS[0]}
                minutes = timedelta(minutes=int(rng.integers(1, 60)))
                door.reserve(job_id(job), plan, expires_at=clock[0] + minutes, details={})
            elif rng.random() < 0.1:
                door.close(job_id(job))
            else:
                event = EVENTS[rng.integers(3)]
                release(door, job, n, event, ("training", "holdout", "all")[rng.choice(3, p=(0.8, 0.1, 0.1))])
        except Refusal as refusal:
            refusals.add(refusal.code)
        clock[0] += timedelta(minutes=1)
    assert {RefusalCode.OVER_JOB_PLAN, RefusalCode.EXPIRED, RefusalCode.UNKNOWN_JOB} <= refusals
    spent, committed = naive(ledger, clock[0])
    fresh = Door(Ledger.open(ledger.path, branch="north", signer=KEY), now=lambda: clock[0])
    for door in (*doors, fresh):
        spending = door.spending()
        assert spending.spent == pytest.approx(max(a.filter_epsilon(c, DELTA) for c in spent), rel=1e-12)
        assert spending.reserved == pytest.approx(
            max(a.filter_epsilon(c, DELTA) for c in committed), rel=1e-12
        )
        assert 0 < spending.reported <= spending.spent <= spending.reserved <= 3.0
        assert spending == fresh.spending(), "to the last bit, however it was read"
    charges = [e for e in ledger.entries("charge") if e.body["population"] in ("training", "all")]
    events = [a.decode_event(e.body["event"]) for e in charges]
    assert fresh.spending().reported == pytest.approx(a.pld_epsilon(events, DELTA), rel=1e-9)


def test_a_release_reads_only_what_is_new(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = Door(ledger), Door(ledger)
    later = datetime.now(UTC) + timedelta(hours=1)
    mine.reserve(job_id(1), {"all": a.compose([EVENTS[0]] * 30)}, expires_at=later, details={})
    for n in range(20):
        release(mine, 1, n, EVENTS[0], "all")
    read: list[int] = []
    entries = Transaction.entries

    def counted(self: Transaction, *kinds: str, **more: object) -> object:
        found = entries(self, *kinds, **more)  # type: ignore[arg-type]
        read.append(len(found))
        return found

    monkeypatch.setattr(Transaction, "entries", counted)
    release(mine, 1, 20, EVENTS[0], "all")
    assert sum(read) == 1, "its own last charge"
    read.clear()
    release(other, 1, 21, EVENTS[0], "all")
    assert sum(read) == 22, "all of them, once"
    read.clear()
    release(mine, 1, 22, EVENTS[0], "all")
    assert sum(read) == 2, "its own and the other's"
    mine.spending()
    read.clear()
    mine.spending()
    assert sum(read) == 0


def _release(path: str, rounds: list[int]) -> int:
    door, done = Door(Ledger.open(Path(path), branch="north", signer=KEY)), 0
    for round_ in rounds:
        try:
            release(door, 1, round_, EVENTS[1], "training")
            done += 1
        except Refusal as refusal:
            assert refusal.code is RefusalCode.OVER_JOB_PLAN
    return done


def test_two_processes_cannot_overspend_one_plan(ledger: Ledger) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    plan = a.gaussian_training(25.0, 1.0, 9)
    Door(ledger).reserve(job_id(1), {"training": plan}, expires_at=later, details={})
    with multiprocessing.get_context("fork").Pool(2) as pool:
        rounds = [list(range(0, 12, 2)), list(range(1, 12, 2))]
        assert sum(pool.starmap(_release, [(str(ledger.path), r) for r in rounds])) == 9
    assert len(ledger.entries("charge")) == 9
    assert ledger.verify() == 11


@pytest.mark.parametrize(
    "event",
    [
        {"no_op": {}},
        {
            "poisson_sampled": {
                "sampling_probability": 0.5,
                "event": {"non_private": {"sampling_probability": 0.5}},
            }
        },
    ],
)
def test_a_charge_that_says_nothing_stops_the_door_for_good(ledger: Ledger, event: dict[str, object]) -> None:
    door = Door(ledger)
    door.spending()
    ledger.append("charge", {"event": event, "population": "all"}, job_id=job_id(1))
    for _ in range(2):
        with pytest.raises(LedgerBroken, match="entry 1"):
            door.spending()


def test_an_older_copy_of_the_ledger_does_not_give_the_budget_back(ledger: Ledger, tmp_path: Path) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    door = Door(ledger)
    door.reserve(job_id(1), {"all": EVENTS[0]}, expires_at=later, details={})
    ledger.close()
    shutil.copy(ledger.path, tmp_path / "kept")
    release(door, 1, 1, EVENTS[0], "all")
    door.spending()
    ledger.close()
    shutil.copy(tmp_path / "kept", ledger.path)
    with pytest.raises(LedgerBroken, match="had 3 entries"):
        release(door, 1, 2, EVENTS[0], "all")


def test_a_standing_begins_with_nothing() -> None:
    standing = Standing()
    assert not standing.spent.any() and not standing.committed(datetime.now(UTC)).any()
    assert not any(standing.charges())
