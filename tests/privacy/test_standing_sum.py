"""Periods of a standing question at the door: each costs what it adds to the longest path, a repeat a whole sum."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common.analyses.standing import StandingPaths
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.fixed_point import GRID
from sfumato.privacy import accounting
from sfumato.privacy.clipping import BoundedSum
from sfumato.privacy.door import Door, Released
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.mechanisms import StandingSum, SumNoise
from sfumato.privacy.noise import SecureRandom

KEY = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
JOB = "a" * 32
PATHS = StandingPaths(3, 5, 1)
SIGMA = 10.0  # of the noise, in the vectors' own unit
ADDED = np.diff(PATHS.bounds, prepend=0.0)
CHARGED = tuple(float(SIGMA / math.sqrt(a)) for a in ADDED)
FULL, SMALL = ("east", "north", "south", "west"), ("east", "north", "south")


def period(t: int, told: str | None = None) -> StandingSum:
    norm = math.sqrt(PATHS.longest(t))
    return StandingSum(
        lambda: BoundedSum(np.zeros(4, np.int64), GRID, norm),
        SumNoise(SIGMA / norm),
        GRID,
        SecureRandom(),
        period=t,
        charged=CHARGED,
        told=f"{t:064x}" if told is None else told,
    )


@pytest.fixture
def door(tmp_path: Path) -> Door:
    genesis = {"budget_epsilon": 3.0, "budget_delta": 1e-5}
    made = Door(Ledger.create(tmp_path / "ledger.sqlite", branch="north", signer=KEY, genesis=genesis))
    events = [accounting.gaussian(z) for z in CHARGED]
    again = accounting.gaussian(SIGMA / math.sqrt(PATHS.longest(1)))  # one repeat
    made.reserve(
        JOB,
        {"all": accounting.compose([*events, again])},
        expires_at=datetime.now(UTC) + timedelta(hours=1),
        details={"job": {"name": "t"}},
    )
    return made


def release(door: Door, t: int, members: tuple[str, ...] = FULL, question: bytes = b"q") -> Released:
    return door.release(
        period(t), job_id=JOB, round_=t, what="share", population="all", question=question, members=members
    )


def spent(door: Door) -> float:
    """As a sum of squared norms over the noise."""
    entries = door._ledger.entries("charge", job_id=JOB)
    total = 0.0
    for entry in entries:
        event = accounting.decode_event(entry.body["event"])
        total += sum(1 / e.noise_multiplier**2 for e in getattr(event, "events", [event]))
    return total * SIGMA**2


def test_what_the_ledger_adds_up_to_is_the_longest_path_at_every_time(door: Door) -> None:
    for t in range(5):
        release(door, t)
        assert spent(door) == pytest.approx(PATHS.bounds[t])
    assert door.told(JOB) == {t: f"{t:064x}" for t in range(5)}
    assert PATHS.bounds[-1] < 5 * PATHS.longest(1) and PATHS.bounds[-1] < 5


def test_who_was_away_pays_for_the_periods_between(door: Door) -> None:
    release(door, 0)
    release(door, 3)
    assert spent(door) == pytest.approx(PATHS.bounds[3])


def test_who_comes_late_pays_for_the_longest_path_until_then(door: Door) -> None:
    release(door, 2)
    assert spent(door) == pytest.approx(PATHS.bounds[2])


def test_the_same_period_for_a_smaller_set_costs_a_sum_by_itself_and_only_as_often_as_was_reserved(
    door: Door,
) -> None:
    release(door, 0)
    first = release(door, 1)
    assert release(door, 1).frame == first.frame  # the very question again: its answer, and no charge
    assert spent(door) == pytest.approx(PATHS.bounds[1])
    release(door, 1, SMALL, b"again")
    assert spent(door) == pytest.approx(PATHS.bounds[1] + PATHS.longest(1))
    release(door, 2, SMALL)
    for t in (3, 4):
        release(door, t, SMALL)
    with pytest.raises(Refusal) as refusal:
        release(door, 4, SMALL, b"another")
    assert refusal.value.code is RefusalCode.ROUND_ALREADY_ANSWERED
    with pytest.raises(Refusal) as refusal:
        release(door, 4, ("east", "north"))
    assert refusal.value.code is RefusalCode.OVER_JOB_PLAN
    assert door.spending().reported < 3.0


def test_a_period_that_is_none_or_has_no_memory_is_no_mechanism() -> None:
    with pytest.raises(ValueError, match="remembered"):
        period(5)
    with pytest.raises(ValueError, match="remembered"):
        period(0, told="")
    with pytest.raises(ValueError, match="not behind"):
        period(1).event_after(2)
