"""The ledger: what an attacker with the file can do, and what the reader then sees."""

import json
import secrets
import sqlite3
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common.errors import BadInput, LedgerBroken
from sfumato.privacy.ledger import Ledger

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
    with pytest.raises(LedgerBroken, match="not signed"):
        head.verify("south", KEY.public_key())
    with pytest.raises(LedgerBroken, match="not signed"):
        head.model_copy(update={"size": head.size - 1}).verify("north", KEY.public_key())


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


def test_export_is_the_whole_chain(ledger: Ledger) -> None:
    lines = [json.loads(line) for line in ledger.export()]
    assert [json.loads(line["entry"])["seq"] for line in lines] == list(range(10))
    assert lines[-1]["hash"] == ledger.signed_head().head
