"""A journal: what is read is what was written, or is refused; a crash between two writes leaves one of them."""

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common.contract import load_contract
from sfumato.common.errors import BadInput, Unavailable
from sfumato.common.job import SignedJob, load_job, sign_job
from sfumato.common.messages import What
from sfumato.server.journal import Journal, Standing, discard, read_job

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "churn_modelling"
CONTRACT, JOB = load_contract(EXAMPLE / "contract.toml"), load_job(EXAMPLE / "job.toml")
KEY = Ed25519PrivateKey.generate()
WORDS = np.array([2**62, -1, 0], dtype=np.int64)
WEIGHTS = np.array([0.1, np.pi], dtype=np.float32)
BRANCH = {"name": "a", "node_id": 2**63 + 1}


def signed() -> SignedJob:
    return sign_job(JOB, CONTRACT, KEY, valid_for=timedelta(hours=1))


SIGNED = signed()


def written(directory: Path, job: SignedJob = SIGNED) -> Journal:
    """Opened, a total, two branches' weights, and a question that is out."""
    made = Journal.begin(directory, job)
    made.opened(Standing(branches=(BRANCH,)))
    assert made.kept("share", 0, b"1") is None
    made.ask("share", 0, b"first", Standing())
    made.keep("share", 0, {("a", "b"): WORDS}, Standing(1, 0, (BRANCH,)))
    made.kept("weights", 1, b"2")
    made.ask("weights", 1, b"second", Standing(1, 0))
    made.keep("weights", 1, {("b",): WEIGHTS, ("a",): -WEIGHTS}, Standing(2, 1, (BRANCH,)))
    made.kept("weights", 2, b"3")
    made.ask("weights", 2, b"third", Standing(2, 1, (BRANCH,)))
    return made


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written(tmp_path / "j")
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o700
    assert sorted(p.name for p in (tmp_path / "j").iterdir()) == [
        "000001",
        "000002",
        "000003",
        "000004.asked",
        "job.json",
    ]
    found = Journal.resume(tmp_path / "j", SIGNED)
    assert (found.entries, found.standing) == (3, Standing(2, 1, (BRANCH,)))
    total = found.kept("share", 0, b"1")
    assert total is not None and list(total) == [("a", "b")]
    assert total["a", "b"].tobytes() == WORDS.tobytes() and total["a", "b"].dtype == np.int64
    weights = found.kept("weights", 1, b"2")
    assert weights is not None and list(weights) == [("b",), ("a",)], (
        "in the order in which they were averaged"
    )
    assert weights["b",].tobytes() == WEIGHTS.tobytes() and weights["b",].dtype == np.float32
    assert found.kept("weights", 2, b"3") is None and found.kept("sum", 0, b"1") is None
    assert (found.asked("weights", 2), found.asked("weights", 1)) == (b"third", None)


def test_it_goes_on_where_it_ended(tmp_path: Path) -> None:
    written(tmp_path / "j")
    (tmp_path / "run").mkdir()
    again = Journal.resume(tmp_path / "j", SIGNED)
    again.move(tmp_path / "run" / "j")
    assert not (tmp_path / "j").exists()
    assert again.kept("weights", 2, b"3") is None
    again.keep("weights", 2, {("a",): WEIGHTS}, Standing(3, 1))
    assert again.kept("weights", 3, b"4") is None
    again.ask("weights", 3, b"fourth", Standing(3, 2))
    found = Journal.resume(tmp_path / "run" / "j", SIGNED)
    assert found.kept("weights", 2, b"3") is not None and found.kept("share", 0, b"1") is not None
    assert (found.asked("weights", 3), found.standing.repeats) == (b"fourth", 2)
    discard(tmp_path / "run" / "j")
    discard(tmp_path / "run" / "j")
    with pytest.raises(BadInput, match="no journal here"):
        read_job(tmp_path / "run" / "j")


def test_a_crash_after_an_entry_leaves_a_question_that_counts_no_more(tmp_path: Path) -> None:
    asked = tmp_path / "j" / "000004.asked"
    made = written(tmp_path / "j")
    stale = asked.read_bytes()
    made.keep("weights", 2, {("a",): WEIGHTS}, Standing(3, 1))
    assert not asked.exists()
    asked.write_bytes(stale)
    (tmp_path / "j" / ".000005.77.part").write_bytes(b"half of it")
    found = Journal.resume(tmp_path / "j", SIGNED)
    assert (found.entries, found.asked("weights", 2), found.standing.sums) == (4, None, 3)


def test_without_a_directory_nothing_is_kept() -> None:
    nothing = Journal()
    nothing.opened(Standing())
    nothing.ask("share", 0, b"?", Standing())
    nothing.keep("share", 0, {("a",): WORDS}, Standing(1))
    assert (nothing.entries, nothing.kept("share", 0, b"1"), nothing.asked("share", 0)) == (0, None, None)


@pytest.mark.parametrize(("what", "round_"), [("share", 0), ("weights", 1), ("weights", 2)])
def test_an_answer_to_another_question_is_none_to_this(tmp_path: Path, what: What, round_: int) -> None:
    """A new version that computes the next question otherwise must not read an old answer as one to it."""
    written(tmp_path / "j")
    found = Journal.resume(tmp_path / "j", SIGNED)
    with pytest.raises(BadInput, match=f"round {round_} was asked another question"):
        found.kept(what, round_, b"another")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def from_another(directory: Path, name: str, job: SignedJob) -> None:
    written(directory.with_name("other"), job)
    shutil.copy(directory.with_name("other") / name, directory / name)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "an entry altered": (lambda d: flip(d / "000002"), r"000002: the journal is damaged \(its bytes"),
    "the question altered": (lambda d: flip(d / "000004.asked"), r"damaged \(its bytes"),
    "an entry cut off": (lambda d: (d / "000003").write_bytes(b"SFM"), r"damaged \(its bytes"),
    "an entry empty": (lambda d: (d / "000003").write_bytes(b""), r"damaged \(its bytes"),
    "an entry gone": (lambda d: (d / "000002").unlink(), r"000003: the journal is damaged \(an entry before"),
    "the first entry gone": (lambda d: (d / "000001").unlink(), r"damaged \(an entry before"),
    "entries swapped": (lambda d: (d / "000002").rename(d / "000009"), r"damaged \(an entry before"),
    "an entry of another job": (lambda d: from_another(d, "000002", signed()), "000002: is of another job"),
    "the journal of another job": (lambda d: from_another(d, "job.json", signed()), "journal of another job"),
    "no signed job": (lambda d: (d / "job.json").write_text("{}"), r"damaged \(it is no signed job"),
    "no job": (lambda d: (d / "job.json").unlink(), "no journal here"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_refused(tmp_path: Path, what: str) -> None:
    damage, why = DAMAGE[what]
    written(tmp_path / "j")
    damage(tmp_path / "j")
    with pytest.raises(BadInput, match=why):
        Journal.resume(tmp_path / "j", SIGNED)


def test_an_entry_of_the_same_job_but_another_run_does_not_fit(tmp_path: Path) -> None:
    """Another run of the job had other totals: what follows from the first would not follow from these."""
    written(tmp_path / "j")
    other = Journal.begin(tmp_path / "other", SIGNED)
    other.opened(Standing(branches=(BRANCH,)))
    other.keep("share", 0, {("a", "b"): WORDS + 1}, Standing(1, 0, (BRANCH,)))
    shutil.copy(tmp_path / "other" / "000002", tmp_path / "j" / "000002")
    with pytest.raises(BadInput, match="an entry before it is missing"):
        Journal.resume(tmp_path / "j", SIGNED)


def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    made = written(tmp_path / "j")
    shutil.rmtree(tmp_path / "j")
    with pytest.raises(Unavailable, match="cannot be written"):
        made.keep("weights", 2, {("a",): WEIGHTS}, Standing())
