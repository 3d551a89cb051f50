"""A branch that co-signs the coordinator's ledger, and a coordinator that would show two branches two histories."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.notes import Checkpoint, SignedNote, sign_checkpoint
from sfumato.privacy import witness as module
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.witness import Witness

BRANCH = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
COORDINATOR = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
NOW = datetime(2026, 3, 14, 9, 26, 53, tzinfo=UTC)


@pytest.fixture
def branch(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "branch.sqlite", branch="north", signer=BRANCH, genesis={})


@pytest.fixture
def honest(tmp_path: Path) -> Ledger:
    ledger = Ledger.create(tmp_path / "honest.sqlite", signer=COORDINATOR, genesis={})
    grow(ledger, 6)
    return ledger


@pytest.fixture
def witness(branch: Ledger) -> Witness:
    return Witness(branch, COORDINATOR.public_key(), now=lambda: NOW)


def grow(ledger: Ledger, entries: int, word: str = "a job") -> None:
    for n in range(entries):
        ledger.append("start", {"name": word, "n": n})


def fork(honest: Ledger, path: Path, at: int, entries: int) -> Ledger:
    """The same coordinator's second ledger: as the first up to `at`, then others; as an attacker could write it."""
    import sqlite3

    other = Ledger.create(path, signer=COORDINATOR, genesis={})
    with sqlite3.connect(honest.path) as source, sqlite3.connect(path) as target:
        target.execute("DELETE FROM entries")
        for row in source.execute("SELECT * FROM entries WHERE seq < ?", (at,)):
            target.execute(f"INSERT INTO entries VALUES ({','.join('?' * len(row))})", row)
        whole = [r for r in source.execute("SELECT * FROM nodes") if (r[0] >> 6) + 1 << (r[0] & 63) <= at]
        target.executemany("INSERT INTO nodes VALUES (?, ?)", whole)
    grow(other, entries, "another job")
    assert other.verify() == at + entries
    return other


def show(witness: Witness, ledger: Ledger, old: int, size: int | None = None) -> str:
    note = ledger.checkpoint(size)
    new = Checkpoint.parse(note).size
    proof = ledger.consistency(*sorted((old, new)))
    return witness.cosign(note, old, proof)


def refused(witness: Witness, ledger: Ledger, old: int, size: int | None = None) -> Refusal:
    with pytest.raises(Refusal) as raised:
        show(witness, ledger, old, size)
    return raised.value


def test_a_ledger_that_grows_is_cosigned_each_time(witness: Witness, honest: Ledger, branch: Ledger) -> None:
    assert witness.size == 0
    old = 0
    for _ in range(4):
        line = show(witness, honest, old)
        note = SignedNote.parse(honest.checkpoint()).with_signatures([line])
        assert note.cosigned_at("sfumato/branch/north", BRANCH.public_key()) == NOW
        old = witness.size
        assert old == Checkpoint.parse(honest.checkpoint()).size
        grow(honest, 3)
    assert [e.kind for e in branch.entries()] == ["genesis"] + ["cosign"] * 4
    assert branch.verify() == 5


def test_what_was_cosigned_before_gets_the_same_line_and_no_entry(
    witness: Witness, honest: Ledger, branch: Ledger
) -> None:
    first = show(witness, honest, 0)
    grow(honest, 5)
    second = show(witness, honest, 7)
    later = Witness(branch, COORDINATOR.public_key(), now=lambda: NOW + timedelta(days=1))
    assert later.cosign(honest.checkpoint(), 12, []) == second
    assert later.cosign(honest.checkpoint(7), 7, []) == first
    assert len(branch.entries()) == 3


def test_a_checkpoint_from_elsewhere_than_the_last_is_asked_again(
    witness: Witness, honest: Ledger, branch: Ledger
) -> None:
    assert refused(witness, honest, 3).code is RefusalCode.UNKNOWN_CHECKPOINT
    show(witness, honest, 0)
    grow(honest, 5)
    late = refused(witness, honest, 5)
    assert (late.code, late.remaining) == (RefusalCode.UNKNOWN_CHECKPOINT, 7.0)
    show(witness, honest, 7)
    # An older one, consistent but never co-signed: a cosignature says "the largest that I saw", so none is given.
    assert refused(witness, honest, 12, size=9).code is RefusalCode.UNKNOWN_CHECKPOINT
    assert [e.kind for e in branch.entries()] == ["genesis", "cosign", "cosign"]


@pytest.mark.parametrize(("at", "more"), [(5, 2), (5, 1), (5, 9), (1, 6), (6, 1)])
def test_a_second_history_is_refused_and_both_notes_are_kept(
    witness: Witness, honest: Ledger, branch: Ledger, tmp_path: Path, at: int, more: int
) -> None:
    show(witness, honest, 0)
    other = fork(honest, tmp_path / "fork.sqlite", at, more)
    note, proof = other.checkpoint(), other.consistency(*sorted((min(7, at + more), at + more)))
    for _ in range(2):  # asked again, refused again, written once
        with pytest.raises(Refusal, match="equivocation"):
            witness.cosign(note, 7, proof)
    (entry,) = branch.entries("equivocation")
    assert entry.body["shown"] == note and entry.body["cosigned"] == honest.checkpoint()
    for evidence in (entry.body["shown"], entry.body["cosigned"]):  # anybody can check who signed both
        SignedNote.parse(evidence).verify(honest.origin, COORDINATOR.public_key())
    why = "one size, two roots" if at + more == 7 else "no proof that one continues the other"
    assert entry.body["why"] == why
    grow(honest, 2)
    show(witness, honest, 7)  # the history that it knows is co-signed as ever
    assert branch.verify() == len(branch.entries())


def test_two_branches_find_the_fork_by_their_cosigned_checkpoints(
    witness: Witness, honest: Ledger, tmp_path: Path
) -> None:
    """Each was shown one history only; a checkpoint that one co-signed is refused by the other."""
    south = Ledger.create(tmp_path / "south.sqlite", branch="south", signer=COORDINATOR, genesis={})
    second = Witness(south, COORDINATOR.public_key())
    show(witness, honest, 0)
    show(second, fork(honest, tmp_path / "fork.sqlite", 4, 3), 0)
    assert refused(second, honest, 7).code is RefusalCode.EQUIVOCATION


def test_a_fork_at_an_older_size_is_evidence_of_one_size(
    witness: Witness, honest: Ledger, branch: Ledger, tmp_path: Path
) -> None:
    show(witness, honest, 0)
    grow(honest, 5)
    show(witness, honest, 7)
    other = fork(honest, tmp_path / "fork.sqlite", 5, 2)
    assert refused(witness, other, 7).code is RefusalCode.EQUIVOCATION
    (entry,) = branch.entries("equivocation")
    assert entry.body["why"] == "one size, two roots" and entry.body["cosigned"] == honest.checkpoint(7)


@pytest.mark.parametrize(
    "proof",
    [[], ["00" * 32], ["zz"], ["00" * 32] * 64, ["00"]],
    ids=["none", "one", "no hex", "long", "short"],
)
def test_a_bad_proof_is_never_cosigned(witness: Witness, honest: Ledger, proof: list[str]) -> None:
    show(witness, honest, 0)
    grow(honest, 4)
    with pytest.raises(Refusal, match="equivocation"):
        witness.cosign(honest.checkpoint(), 7, proof)
    assert witness.size == 7


def test_what_the_coordinator_did_not_sign_is_refused_and_no_evidence(
    witness: Witness, honest: Ledger, branch: Ledger
) -> None:
    note = honest.checkpoint()
    stranger = Checkpoint(Checkpoint.parse(note).origin, 9, "ab" * 32)
    for bad in ("", "x\n\ny", note[:-9], note.replace("\n7\n", "\n8\n"), sign_checkpoint(stranger, BRANCH)):
        with pytest.raises(Refusal, match="bad-signature"):
            witness.cosign(bad, 0, [])
    other = Ledger.create(branch.path.with_name("s.sqlite"), branch="x", signer=COORDINATOR, genesis={})  # type: ignore[union-attr]
    with pytest.raises(Refusal, match="bad-signature"):
        witness.cosign(other.checkpoint(), 0, [])
    assert [e.kind for e in branch.entries()] == ["genesis"]


def test_accusations_fill_a_ledger_only_so_far(
    witness: Witness, honest: Ledger, branch: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_EVIDENCE", 2)
    show(witness, honest, 0)
    for n in range(4):
        note = sign_checkpoint(Checkpoint(honest.origin, 7, f"{n:064x}"), COORDINATOR)
        with pytest.raises(Refusal, match="equivocation"):
            witness.cosign(note, 7, [])
    assert len(branch.entries("equivocation")) == 2


def test_a_cosignature_is_in_the_witness_before_it_leaves(
    witness: Witness, honest: Ledger, branch: Ledger
) -> None:
    """A crash must not lose what was co-signed: the line is returned only once it is durable."""
    line = show(witness, honest, 0)
    (entry,) = Ledger.read(branch.path).entries("cosign")
    assert entry.body == {"checkpoint": honest.checkpoint(), "signature": line}
