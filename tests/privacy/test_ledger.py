"""The ledger: what an attacker with the file can do, and what the reader then sees."""

import json
import secrets
import sqlite3
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from sfumato.common.errors import BadInput, LedgerBroken
from sfumato.common.messages import LedgerHead
from sfumato.common.notes import Checkpoint
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.merkle import check_consistency, check_inclusion

KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
GENESIS = {"budget_epsilon": 3.0, "budget_delta": 1e-5}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger.create(tmp_path / "ledger.sqlite", branch="north", signer=KEY, genesis=GENESIS)
    for i in range(9):
        made.append("refuse", {"code": "expired", "n": i}, job_id=f"{i:032x}")
    return made


def rewrite(ledger: Ledger, sql: str, *parameters: object) -> None:
    with sqlite3.connect(ledger.path) as connection:
        connection.execute(sql, parameters)


def test_a_whole_ledger_verifies_and_reads_back(ledger: Ledger) -> None:
    assert ledger.verify() == 10
    assert [e.body["n"] for e in ledger.entries("refuse")] == list(range(9))
    assert Ledger.read(ledger.path).verify(ledger.signed_head()) == 10


def test_it_is_private_and_never_started_over(ledger: Ledger) -> None:
    assert ledger.path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BadInput, match="there already"):
        Ledger.create(ledger.path, branch="north", signer=KEY, genesis=GENESIS)


def test_every_flipped_byte_is_named(ledger: Ledger) -> None:
    with sqlite3.connect(ledger.path) as connection:
        rows = dict(connection.execute("SELECT seq, entry FROM entries").fetchall())
    for _ in range(60):
        seq = secrets.randbelow(len(rows))
        original = rows[seq]
        place = secrets.randbelow(len(original))
        altered = bytearray(original)
        altered[place] ^= 1 + secrets.randbelow(255)
        rewrite(ledger, "UPDATE entries SET entry = ? WHERE seq = ?", bytes(altered), seq)
        with pytest.raises(LedgerBroken, match=f"entry {seq} "):
            ledger.verify()
        rewrite(ledger, "UPDATE entries SET entry = ? WHERE seq = ?", original, seq)
    assert ledger.verify() == 10


def test_a_removed_entry_is_named(ledger: Ledger) -> None:
    rewrite(ledger, "DELETE FROM entries WHERE seq = 4")
    with pytest.raises(LedgerBroken, match="entry 4 does not follow entry 3"):
        ledger.verify()


def test_a_cut_off_end_shows_against_a_kept_head(ledger: Ledger) -> None:
    kept = ledger.signed_head()
    rewrite(ledger, "DELETE FROM entries WHERE seq >= 7")
    with pytest.raises(LedgerBroken, match="entry 7 and more are gone"):
        ledger.verify()
    rewrite(ledger, "DELETE FROM nodes WHERE place IN (3 << 6 | 1, 1 << 6 | 2, 0 << 6 | 3, 4 << 6 | 1)")
    assert ledger.verify() == 7  # a shorter chain is a valid chain: only a kept head tells
    with pytest.raises(LedgerBroken, match="history differs"):
        ledger.verify(kept)


def test_a_rewritten_history_shows_against_a_kept_head(ledger: Ledger, tmp_path: Path) -> None:
    kept = ledger.signed_head()
    other = Ledger.create(tmp_path / "other.sqlite", branch="north", signer=KEY, genesis=GENESIS)
    for i in range(9):
        other.append("refuse", {"code": "expired", "n": i + 1}, job_id=f"{i:032x}")
    assert other.verify() == 10
    with pytest.raises(LedgerBroken, match="history differs"):
        other.verify(kept)


def test_a_head_of_another_key_or_branch_is_refused(ledger: Ledger) -> None:
    head = ledger.signed_head()
    with pytest.raises(LedgerBroken, match="not signed"):
        head.verify("north", Ed25519PrivateKey.generate().public_key())
    with pytest.raises(LedgerBroken, match="not one of sfumato/branch/south"):
        head.verify("south", KEY.public_key())
    shorter = Checkpoint("sfumato/branch/north", head.size - 1, head.root).text
    forged = head.note.replace(Checkpoint.parse(head.note).text, shorter)
    with pytest.raises(LedgerBroken, match="signature is wrong"):
        LedgerHead(note=forged).verify("north", KEY.public_key())
    with pytest.raises(ValidationError, match="not a signed note"):
        LedgerHead(note="sfumato/branch/north\n1\n")


def test_refiled_kind_is_found(ledger: Ledger) -> None:
    rewrite(ledger, "UPDATE entries SET kind = 'close' WHERE seq = 3")
    with pytest.raises(LedgerBroken, match="entry 3 is filed"):
        ledger.verify()


def test_another_branchs_ledger_does_not_open(ledger: Ledger) -> None:
    with pytest.raises(LedgerBroken, match="another branch or key"):
        Ledger.open(ledger.path, branch="south", signer=KEY)
    with pytest.raises(LedgerBroken, match="another branch or key"):
        Ledger.open(ledger.path, branch="north", signer=Ed25519PrivateKey.generate())


def test_an_exception_rolls_back(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError), ledger.exclusive() as transaction:
        transaction.append("refuse", {"code": "expired"})
        raise RuntimeError
    assert ledger.verify() == 10


def test_export_is_the_whole_ledger(ledger: Ledger) -> None:
    *entries, last = [json.loads(line) for line in ledger.export()]
    assert [json.loads(line["entry"])["seq"] for line in entries] == list(range(10))
    assert last["checkpoint"] == ledger.signed_head().note
    assert entries[-1]["root"] == ledger.signed_head().root


def test_every_stored_root_is_that_of_the_naive_tree(ledger: Ledger) -> None:
    with sqlite3.connect(ledger.path) as connection:
        rows = connection.execute("SELECT entry, root FROM entries ORDER BY seq").fetchall()
    for size, (_, root) in enumerate(rows, start=1):
        assert naive_root([raw for raw, _ in rows[:size]]).hex() == root
        assert LedgerHead(note=ledger.checkpoint(size)).root == root


def naive_root(entries: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.1, as it is written."""
    if len(entries) == 1:
        return sha256(b"\x00" + entries[0]).digest()
    k = max(2**i for i in range(20) if 2**i < len(entries))
    return sha256(b"\x01" + naive_root(entries[:k]) + naive_root(entries[k:])).digest()


def test_its_proofs_are_those_of_its_checkpoints(ledger: Ledger) -> None:
    heads = {size: LedgerHead(note=ledger.checkpoint(size)) for size in range(1, 11)}
    for entry in ledger.entries():
        for size in range(entry.seq + 1, 11):
            proof = [bytes.fromhex(h) for h in ledger.inclusion(entry.seq, size)]
            root = bytes.fromhex(heads[size].root)
            check_inclusion(bytes.fromhex(entry.hash), entry.seq, size, proof, root)
    for first in range(1, 11):
        for second in range(first, 11):
            proof = [bytes.fromhex(h) for h in ledger.consistency(first, second)]
            roots = [bytes.fromhex(heads[n].root) for n in (first, second)]
            check_consistency(first, second, *roots, proof)
    with pytest.raises(ValueError, match="size=11"):
        ledger.inclusion(3, 11)
    with pytest.raises(ValueError, match="got 11"):
        ledger.checkpoint(11)


@pytest.mark.parametrize("place", [0 << 6 | 1, 1 << 6 | 2])
def test_an_altered_or_lost_node_is_named(ledger: Ledger, place: int) -> None:
    rewrite(ledger, "UPDATE nodes SET hash = zeroblob(32) WHERE place = ?", place)
    with pytest.raises(LedgerBroken, match=r"entry (1|7) does not fit the stored tree"):
        ledger.verify()
    rewrite(ledger, "DELETE FROM nodes WHERE place = ?", place)
    with pytest.raises(LedgerBroken, match="does not fit the stored tree"):
        ledger.verify()


def test_a_substituted_entry_with_its_hash_is_named(ledger: Ledger) -> None:
    with sqlite3.connect(ledger.path) as connection:
        (raw,) = connection.execute("SELECT entry FROM entries WHERE seq = 4").fetchone()
    forged = raw.replace(b'"n":3', b'"n":7')
    rewrite(
        ledger,
        "UPDATE entries SET entry = ?, hash = ? WHERE seq = 4",
        forged,
        sha256(b"\x00" + forged).hexdigest(),
    )
    with pytest.raises(LedgerBroken, match="entry 4 is not the one that was written"):
        ledger.verify()


def test_a_command_without_the_key_writes_and_the_vault_signs_for_it(ledger: Ledger) -> None:
    reader = Ledger.read(ledger.path)
    reader.append("pin", {"added": {}})
    assert reader.verify() == 11 and reader.signed_head().size == 10
    with pytest.raises(ValueError, match="cannot sign"):
        _ = reader.signer
    assert ledger.signed_head().size == 11  # the vault holds the key
    ledger.append("ingest", {"table": "t", "mode": "create"})
    assert reader.signed_head().size == 12 and reader.verify(reader.signed_head()) == 12


def test_what_is_no_ledger_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no database at all" * 100)
    with pytest.raises(LedgerBroken, match="not a ledger's file"):
        Ledger.read(tmp_path / "x")
    with pytest.raises(BadInput, match="no ledger here"):
        Ledger.read(tmp_path / "y")
    with sqlite3.connect(tmp_path / "z") as connection:
        connection.execute("CREATE TABLE entries (seq INTEGER, kind TEXT, entry BLOB, hash TEXT)")
    with pytest.raises(BadInput, match="no ledger of this release"):
        Ledger.read(tmp_path / "z")
