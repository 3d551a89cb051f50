"""Sets of a secure sum at the door: one round, ever smaller sets, each charged; nothing that could be set off."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dp_accounting.dp_event import DpEvent
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfumato.common import codec
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.privacy import accounting
from sfumato.privacy.door import Door, Released
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.secure_sum import set_hash

KEY = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
JOB = "a" * 32
LATER = datetime.now(UTC) + timedelta(hours=1)
ALL = ("east", "north", "south", "west")


@dataclass
class Share:
    """Stands in for a masked share: counts how often noise was drawn."""

    noise_multiplier: float = 20.0
    drawn: list[int] = field(default_factory=list)

    @property
    def event(self) -> DpEvent:
        return accounting.gaussian(self.noise_multiplier)

    def run(self) -> np.ndarray:
        self.drawn.append(1)
        return np.array([len(self.drawn)], dtype=np.int64)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    genesis = {"budget_epsilon": 4.0, "budget_delta": 1e-5}
    return Ledger.create(tmp_path / "ledger.sqlite", branch="north", signer=KEY, genesis=genesis)


def opened(ledger: Ledger, releases: int = 20) -> Door:
    door = Door(ledger)
    whole = accounting.compose([Share().event] * releases)
    door.reserve(JOB, {"all": whole}, expires_at=LATER, details={"job": {"name": "t"}})
    return door


def ask(
    door: Door, members: Sequence[str], share: Share | None = None, *, round_: int = 1, question: bytes = b"q"
) -> Released:
    return door.release(
        share or Share(),
        job_id=JOB,
        round_=round_,
        what="share",
        population="all",
        question=question,
        members=members,
    )


def refused(door: Door, members: Sequence[str], **more: object) -> RefusalCode:
    with pytest.raises(Refusal) as refusal:
        ask(door, members, **more)  # type: ignore[arg-type]
    return refusal.value.code


def test_the_charge_names_the_set_and_the_answer_its_hash(ledger: Ledger) -> None:
    released = ask(opened(ledger), ("west", "north", "east"))
    (charge,) = ledger.entries("charge")
    assert charge.body["members"] == ["east", "north", "west"]
    answer, _ = codec.decode(released.frame, "answer")
    assert answer.members == set_hash(["east", "north", "west"])


def test_a_replay_gets_the_same_bytes_without_a_draw_or_a_charge(ledger: Ledger) -> None:
    door, share = opened(ledger), Share()
    first = ask(door, ALL, share)
    assert ask(door, ALL, share).frame == first.frame
    smaller = ask(door, ALL[:3], share)
    assert ask(Door(ledger), ALL, share).frame == first.frame, "an older set of the round is still a replay"
    assert ask(Door(ledger), ALL[:3], share).frame == smaller.frame
    assert len(share.drawn) == len(ledger.entries("charge")) == 2


def test_what_was_answered_can_be_asked_for_beforehand_also_when_the_job_is_closed(ledger: Ledger) -> None:
    door = opened(ledger)

    def answered(members: Sequence[str], question: bytes = b"q", round_: int = 1) -> Released | None:
        return Door(ledger).answered(
            job_id=JOB, round_=round_, what="share", question=question, members=members
        )

    assert answered(ALL) is None
    first = ask(door, ALL)
    entries = len(ledger.entries())
    again = answered(tuple(reversed(ALL)))
    assert again is not None and again.frame == first.frame
    assert answered(ALL[:3]) is None, "would be a new release"
    for members, question, code in (
        (ALL, b"another", RefusalCode.ROUND_ALREADY_ANSWERED),
        ((*ALL, "zenith"), b"q", RefusalCode.SET_NOT_SMALLER),
    ):
        with pytest.raises(Refusal) as refusal:
            answered(members, question)
        assert refusal.value.code is code
    assert len(ledger.entries()) == entries
    door.close(JOB)
    again = answered(ALL)
    assert again is not None and again.frame == first.frame
    with pytest.raises(Refusal) as refusal:
        answered(ALL, round_=2)
    assert refusal.value.code is RefusalCode.JOB_CLOSED


@pytest.mark.parametrize(
    "other",
    [
        (*ALL, "zenith"),
        ("alpha", "beta", "gamma"),
        ("east", "north", "south", "zenith"),
        ("zenith",),
        (),
    ],
    ids=["superset", "disjoint", "one exchanged", "a stranger", "no set at all"],
)
def test_another_set_that_is_not_a_smaller_part_is_refused(ledger: Ledger, other: tuple[str, ...]) -> None:
    door, share = opened(ledger), Share()
    ask(door, ALL, share)
    for one in (door, Door(ledger)):
        assert refused(one, other, share=share) is RefusalCode.SET_NOT_SMALLER
    assert len(share.drawn) == len(ledger.entries("charge")) == 1


def test_two_smaller_parts_must_lie_in_each_other(ledger: Ledger) -> None:
    door = opened(ledger)
    ask(door, ALL)
    ask(door, ("east", "north", "south"))
    assert refused(door, ("east", "north", "west")) is RefusalCode.SET_NOT_SMALLER
    ask(door, ("east", "north"))
    ask(door, ALL, round_=2)


def test_the_same_set_with_another_question_is_refused(ledger: Ledger) -> None:
    door = opened(ledger)
    ask(door, ALL)
    assert refused(door, ALL, question=b"another") is RefusalCode.ROUND_ALREADY_ANSWERED
    ask(door, ALL[:3], question=b"another roster")


def test_no_set_first_and_then_one_is_refused(ledger: Ledger) -> None:
    door = opened(ledger)
    ask(door, ())
    assert refused(door, ALL) is RefusalCode.SET_NOT_SMALLER


def test_a_name_twice_is_no_set(ledger: Ledger) -> None:
    door = opened(ledger)
    with pytest.raises(ValueError, match="once"):
        ask(door, ("east", "east", "north"))
    assert not ledger.entries("charge")


def test_each_repeat_is_charged_until_the_plan_is_spent(ledger: Ledger) -> None:
    door = opened(ledger, releases=2)
    ask(door, ALL)
    ask(door, ALL[:3])
    assert refused(door, ALL[:2]) is RefusalCode.OVER_JOB_PLAN
    assert refused(door, ALL, round_=2) is RefusalCode.OVER_JOB_PLAN
    assert len(ledger.entries("charge")) == 2


class Crashes(Share):
    def run(self) -> np.ndarray:
        raise MemoryError


def test_after_a_crash_the_same_set_is_charged_again_and_others_stay_out(ledger: Ledger) -> None:
    door = opened(ledger)
    with pytest.raises(MemoryError):
        ask(door, ALL, Crashes())
    assert refused(Door(ledger), (*ALL, "zenith")) is RefusalCode.SET_NOT_SMALLER
    ask(Door(ledger), ALL)
    assert len(ledger.entries("charge")) == 2


class AsksMeanwhile(Share):
    """While this share is computed, the coordinator asks the same round through another door."""

    def __init__(self, path: Path, members: Sequence[str], question: bytes) -> None:
        super().__init__()
        self.path, self.members, self.question = path, members, question
        self.meanwhile: Released | RefusalCode | None = None

    def run(self) -> np.ndarray:
        door = Door(Ledger.open(self.path, branch="north", signer=KEY))
        try:
            self.meanwhile = ask(door, self.members, Share(drawn=[0] * 7), question=self.question)
        except Refusal as refusal:
            self.meanwhile = refusal.code
        return super().run()


def test_asked_twice_at_once_only_one_answer_ever_leaves(ledger: Ledger) -> None:
    share = AsksMeanwhile(ledger.path, ALL, b"q")
    released = ask(opened(ledger), ALL, share)
    assert isinstance(share.meanwhile, Released)
    assert released.frame == share.meanwhile.frame, "the first that was stored"
    assert len(ledger.entries("charge")) == 2, "both drew noise, and both are charged"


def test_another_question_meanwhile_leaves_one_answer(ledger: Ledger) -> None:
    share = AsksMeanwhile(ledger.path, ALL, b"another")
    assert refused(opened(ledger), ALL, share=share) is RefusalCode.ROUND_ALREADY_ANSWERED
    assert isinstance(share.meanwhile, Released)


def test_another_set_meanwhile_is_refused_before_the_first_is_answered(ledger: Ledger) -> None:
    share = AsksMeanwhile(ledger.path, (*ALL[:3], "zenith"), b"q")
    ask(opened(ledger), ALL, share)
    assert share.meanwhile is RefusalCode.SET_NOT_SMALLER


@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.integers(1, 2), st.sets(st.sampled_from("abcde"), min_size=1), st.booleans()), max_size=8
    )
)
def test_whatever_is_asked_the_answered_sets_of_a_round_are_a_chain(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[int, set[str], bool]]
) -> None:
    path = tmp_path_factory.mktemp("chain") / "ledger.sqlite"
    ledger = Ledger.create(
        path, branch="north", signer=KEY, genesis={"budget_epsilon": 4.0, "budget_delta": 1e-5}
    )
    door, answered = opened(ledger), dict[int, list[set[str]]]()
    for round_, members, restart in asked:
        door = Door(ledger) if restart else door
        try:
            ask(door, sorted(members), round_=round_)
        except Refusal:
            continue
        if members not in answered.setdefault(round_, []):
            answered[round_].append(members)
    for sets in answered.values():
        assert all(later < earlier for earlier, later in pairwise(sets))
    assert len(ledger.entries("charge")) == sum(map(len, answered.values()))
