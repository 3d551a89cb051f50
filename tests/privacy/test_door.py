"""The door: charge first, then run; ask twice, pay once; over the budget, nothing."""

import copy
import multiprocessing
import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common import codec, messages
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.privacy import accounting
from sfumato.privacy.door import Door, Released
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.mechanisms import DiscreteLaplaceHistogram, DpSgdTraining, OneCellCounts
from sfumato.privacy.noise import SecureRandom

KEY = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
JOB, OTHER = "a" * 32, "b" * 32
LATER = datetime.now(UTC) + timedelta(hours=1)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    genesis = {"budget_epsilon": 2.0, "budget_delta": 1e-5}
    return Ledger.create(tmp_path / "ledger.sqlite", branch="north", signer=KEY, genesis=genesis)


def histogram(scale: float = 2.0) -> DiscreteLaplaceHistogram:
    counts = OneCellCounts.of(np.arange(100, dtype=np.int64) % 4, 4)
    return DiscreteLaplaceHistogram(counts, scale, SecureRandom())


def reserve(door: Door, job: str = JOB, scale: float = 2.0, expires_at: datetime = LATER) -> None:
    door.reserve(
        job,
        {"holdout": accounting.discrete_laplace(scale)},
        expires_at=expires_at,
        details={"job": {"name": "t"}},
    )


def release(
    door: Door,
    mechanism: object | None = None,
    *,
    job: str = JOB,
    round_: int = 1,
    question: bytes = b"q",
    population: str = "holdout",
):
    return door.release(
        mechanism or histogram(),
        job_id=job,
        round_=round_,
        what="score-histogram",
        population=population,
        question=question,
    )


def test_a_release_is_charged_and_carries_its_cost(ledger: Ledger) -> None:
    door = Door(ledger)
    reserve(door)
    released = release(door)
    answer, vector = codec.decode(released.frame, "answer")
    assert isinstance(answer, messages.ReleasedAnswer)
    assert vector is not None and np.array_equal(vector, released.vector)
    assert answer.cost.event == {"discrete_laplace": {"noise_parameter": 0.5, "sensitivity": 1}}
    assert answer.cost.epsilon_spent == pytest.approx(0.5, rel=0.01)
    assert [e.kind for e in ledger.entries()] == ["genesis", "reserve", "charge"]
    answer.ledger.verify("north", KEY.public_key())


def test_the_charge_is_written_before_anything_is_computed(ledger: Ledger) -> None:
    door = Door(ledger)
    reserve(door)

    def train() -> np.ndarray:
        assert [e.kind for e in Ledger.read(ledger.path).entries()][-1] == "charge"
        raise MemoryError

    with pytest.raises(MemoryError):
        release(door, DpSgdTraining(20.0, 0.1, 1, train))
    assert len(ledger.entries("charge")) == 1, "a crash wastes budget and hides nothing"


def test_asked_again_it_gives_the_same_bytes_and_no_second_charge(ledger: Ledger) -> None:
    door = Door(ledger)
    reserve(door)
    first = release(door)
    again = release(Door(Ledger.open(ledger.path, branch="north", signer=KEY)))
    assert again.frame == first.frame
    assert len(ledger.entries("charge")) == 1


def test_another_question_for_an_answered_round_is_refused(ledger: Ledger) -> None:
    door = Door(ledger)
    reserve(door)
    release(door)
    with pytest.raises(Refusal) as refusal:
        release(door, question=b"another")
    assert refusal.value.code is RefusalCode.ROUND_ALREADY_ANSWERED
    assert len(ledger.entries("charge")) == 1


def test_a_job_over_the_budget_is_refused_with_numbers(ledger: Ledger) -> None:
    door = Door(ledger)
    with pytest.raises(Refusal) as refusal:
        reserve(door, scale=0.4)
    assert refusal.value.code is RefusalCode.OVER_BUDGET
    assert refusal.value.requested == pytest.approx(2.5, rel=0.01)
    assert refusal.value.remaining == pytest.approx(2.0)
    assert [e.kind for e in ledger.entries()] == ["genesis"]


def test_the_budget_outlives_a_restart(ledger: Ledger) -> None:
    door = Door(ledger)
    reserve(door, scale=0.7)
    release(door, histogram(0.7))
    again = Door(Ledger.open(ledger.path, branch="north", signer=KEY))
    with pytest.raises(Refusal, match="budget"):
        reserve(again, OTHER, scale=0.7)
    assert again.spending().spent == pytest.approx(1 / 0.7, rel=0.01)


def test_open_jobs_hold_their_reservation_and_closing_gives_it_back(ledger: Ledger) -> None:
    door = Door(ledger)
    reserve(door, scale=0.8)
    with pytest.raises(Refusal, match="budget"):
        reserve(door, OTHER, scale=0.8)
    door.close(JOB)
    door.close(JOB)
    assert len(ledger.entries("close")) == 1
    reserve(door, OTHER, scale=0.8)


def test_an_expired_reservation_is_free_again_and_answers_nothing(ledger: Ledger) -> None:
    clock = [datetime.now(UTC)]
    door = Door(ledger, now=lambda: clock[0])
    reserve(door, scale=0.8, expires_at=clock[0] + timedelta(minutes=1))
    clock[0] += timedelta(minutes=2)
    with pytest.raises(Refusal) as refusal:
        release(door, histogram(0.8))
    assert refusal.value.code is RefusalCode.EXPIRED
    reserve(door, OTHER, scale=0.8, expires_at=clock[0] + timedelta(minutes=1))


def test_unknown_and_closed_jobs_are_refused(ledger: Ledger) -> None:
    door = Door(ledger)
    with pytest.raises(Refusal) as unknown:
        release(door)
    assert unknown.value.code is RefusalCode.UNKNOWN_JOB
    reserve(door)
    door.close(JOB)
    with pytest.raises(Refusal) as closed:
        release(door)
    assert closed.value.code is RefusalCode.JOB_CLOSED
    assert not ledger.entries("charge")


def test_a_job_never_spends_more_than_it_reserved(ledger: Ledger) -> None:
    door = Door(ledger)
    reserve(door, scale=1.0)
    with pytest.raises(Refusal) as too_dear:
        release(door, histogram(0.99))
    assert too_dear.value.code is RefusalCode.OVER_JOB_PLAN
    assert too_dear.value.requested == pytest.approx(1 / 0.99, rel=0.01)
    release(door, histogram(2.0), round_=1)
    release(door, histogram(4.0), round_=2)
    with pytest.raises(Refusal) as too_many:
        release(Door(ledger), histogram(2.0), round_=3)
    assert too_many.value.code is RefusalCode.OVER_JOB_PLAN, "whatever the budget has left"
    assert len(ledger.entries("charge")) == 2
    assert door.spending().reserved == pytest.approx(1.0, rel=0.01)


def test_what_is_charged_and_crashed_counts_against_the_jobs_plan(ledger: Ledger) -> None:
    door = Door(ledger)
    reserve(door, scale=1.0)
    broken = histogram(2.0)
    object.__setattr__(broken, "rng", None)
    for _ in range(2):
        with pytest.raises(AttributeError):
            release(door, broken)
    with pytest.raises(Refusal) as refusal:
        release(door, histogram(2.0))
    assert refusal.value.code is RefusalCode.OVER_JOB_PLAN
    assert len(ledger.entries("charge")) == 2


def test_the_plans_of_one_population_pay_nothing_for_another(ledger: Ledger) -> None:
    door = Door(ledger)
    reserve(door, scale=1.0)
    for population in ("training", "all"):
        with pytest.raises(Refusal) as refusal:
            release(door, histogram(2.0), population=population)
        assert refusal.value.code is RefusalCode.OVER_JOB_PLAN
    assert not ledger.entries("charge")


def test_a_clock_that_is_set_back_brings_no_second_budget(ledger: Ledger) -> None:
    clock = [datetime.now(UTC)]
    door = Door(ledger, now=lambda: clock[0])
    reserve(door, scale=0.8, expires_at=clock[0] + timedelta(minutes=1))
    clock[0] += timedelta(minutes=2)
    reserve(door, OTHER, scale=0.8, expires_at=clock[0] + timedelta(minutes=1))
    clock[0] -= timedelta(minutes=2)
    with pytest.raises(Refusal) as refusal:
        release(door, histogram(0.8))
    assert refusal.value.code is RefusalCode.OVER_BUDGET


def test_a_plan_without_a_bound_at_some_orders_still_counts_after_its_first_charge(ledger: Ledger) -> None:
    """dp_accounting cannot bound this event at small orders; infinity less infinity must not make it free."""
    door = Door(ledger)
    noise = 1.2
    planned = accounting.gaussian_training(noise, 0.1, 4)
    curve = accounting.rdp_curve(planned)
    assert np.isinf(curve).any() and np.isfinite(curve).any()
    door.reserve(JOB, {"training": planned}, expires_at=LATER, details={"job": {"name": "t"}})
    held = door.spending().reserved
    weights = DpSgdTraining(noise, 0.1, 1, lambda: np.zeros(3, dtype=np.float32))
    door.release(weights, job_id=JOB, round_=1, what="weights", population="training", question=b"q")
    assert door.spending().reserved == pytest.approx(held, rel=1e-9)
    with pytest.raises(Refusal) as refusal:
        door.reserve(OTHER, {"training": planned}, expires_at=LATER, details={"job": {"name": "t"}})
    assert refusal.value.code is RefusalCode.OVER_BUDGET


def test_each_population_has_its_own_account_under_one_budget(ledger: Ledger) -> None:
    door = Door(ledger)
    both = {"training": accounting.discrete_laplace(0.7), "holdout": accounting.discrete_laplace(0.7)}
    door.reserve(JOB, both, expires_at=LATER, details={"job": {"name": "t"}})
    release(door, histogram(0.7), round_=1, population="training")
    release(door, histogram(0.7), round_=2, population="holdout")
    spending = door.spending()
    assert spending.spent == pytest.approx(1 / 0.7, rel=0.01), "nobody is in both"
    assert spending.reported == pytest.approx(1 / 0.7, rel=0.01)


def test_what_is_asked_of_all_is_charged_to_both(ledger: Ledger) -> None:
    door = Door(ledger)
    planned = {
        "all": accounting.discrete_laplace(1.0),
        "training": accounting.discrete_laplace(2.0),
        "holdout": accounting.discrete_laplace(4.0),
    }
    door.reserve(JOB, planned, expires_at=LATER, details={"job": {"name": "t"}})
    release(door, histogram(1.0), round_=1, population="all")
    release(door, histogram(2.0), round_=2, population="training")
    assert door.spending().reported == pytest.approx(1.5, rel=0.01)
    release(door, histogram(4.0), round_=3, population="holdout")
    assert door.spending().reported == pytest.approx(1.5, rel=0.01)


def test_a_population_that_is_none_is_refused_before_anything_is_charged(ledger: Ledger) -> None:
    door = Door(ledger)
    reserve(door)
    with pytest.raises(ValueError, match="population"):
        release(door, population="nobody")
    assert not ledger.entries("charge")


def _spend(path: str, job: str) -> bool:
    door = Door(Ledger.open(Path(path), branch="north", signer=KEY))
    try:
        reserve(door, job, scale=0.7)
    except Refusal:
        return False
    return True


def test_two_processes_cannot_both_take_the_last_of_the_budget(ledger: Ledger) -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        jobs = [(str(ledger.path), f"{i:032x}") for i in range(6)]
        assert sum(pool.starmap(_spend, jobs)) == 1
    assert ledger.verify() == 2


def test_a_released_cannot_be_forged_copied_or_pickled(ledger: Ledger) -> None:
    with pytest.raises(TypeError):
        Released(np.zeros(1, dtype=np.int64), b"")
    door = Door(ledger)
    reserve(door)
    released = release(door)
    for smuggle in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            smuggle(released)


def test_private_values_hide_from_repr() -> None:
    counts = OneCellCounts.of(np.full(12345, 3), 4)
    assert "12345" not in repr(counts) + repr(DiscreteLaplaceHistogram(counts, 1.0, SecureRandom()))


def test_a_cell_outside_the_domain_is_no_contribution() -> None:
    with pytest.raises(ValueError, match="cell"):
        OneCellCounts.of(np.array([0, 4]), 4)
    with pytest.raises(ValueError, match="cell"):
        OneCellCounts.of(np.array([-1, 2]), 4)


def test_diverged_training_is_charged_and_not_released(ledger: Ledger) -> None:
    door = Door(ledger)
    reserve(door)
    with pytest.raises(FloatingPointError):
        release(door, DpSgdTraining(20.0, 0.1, 1, lambda: np.array([np.nan], dtype=np.float32)))
    assert len(ledger.entries("charge")) == 1
