"""An exported ledger, checked offline: any byte that was changed is noticed, and the entry is named."""

import bisect
import json
import secrets
from functools import cache
from io import BytesIO
from itertools import accumulate
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dp_accounting import dp_event
from typer.testing import CliRunner

from sfumato.common.enrolment import Enrolment, ed25519_text, new_node_key
from sfumato.common.errors import BadInput, LedgerBroken
from sfumato.common.notes import Checkpoint, SignedNote, branch_origin, cosignature, sign_checkpoint
from sfumato.privacy import accounting
from sfumato.privacy.cli import audit
from sfumato.privacy.export import ExportCheck, checkpoint_line, verify_export
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.ledger_report import read_key, verify_file

KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
OTHER = Ed25519PrivateKey.from_private_bytes(b"\x02" * 32)
GENESIS = {"budget_epsilon": 3.0, "budget_delta": 1e-5}
ENTRIES, TRIALS, EVERY = 10_000, 1_000, 40
GAUSSIAN = accounting.encode_event(accounting.gaussian_training(3.0, 0.1, 20))


def made(path: Path, entries: int, key: Ed25519PrivateKey = KEY, first: int = 0) -> Ledger:
    ledger = Ledger.create(path, branch="north", signer=key, genesis=GENESIS)
    add(ledger, first, first + entries - 1)
    return ledger


def add(ledger: Ledger, begin: int, end: int) -> None:
    with ledger.exclusive() as transaction:
        for n in range(begin, end):
            transaction.append("reveal", {"reason": f'Nº {n}: "ü"\n', "customers": n}, job_id=f"{n:032x}")


def exported(ledger: Ledger, *kept: str) -> list[bytes]:
    return [f"{line}\n".encode() for line in ledger.export(*kept)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return made(tmp_path / "ledger.sqlite", 12)


def charge(ledger: Ledger, round_: int, population: str = "training", event: object = GAUSSIAN) -> None:
    body = {
        "what": "weights",
        "round": round_,
        "population": population,
        "event": event,
        "question": "0" * 64,
    }
    ledger.append("charge", body, job_id="a" * 32)


# --- one flipped byte --------------------------------------------------------------------------------------


class Flips:
    """A whole export whose lines are right; each flip goes on from the state before its line, as a reader would."""

    def __init__(self, lines: list[bytes]) -> None:
        self.lines = lines
        self.ends = list(accumulate(map(len, lines)))
        self.states = {}
        check = ExportCheck("x")
        for number, line in enumerate(lines):
            if number % EVERY == 0:
                self.states[number] = check.copy()
            check.take(line)
        check.finish()

    @cache  # noqa: B019
    def before(self, number: int) -> ExportCheck:
        check = self.states[number - number % EVERY].copy()
        for line in self.lines[number - number % EVERY : number]:
            check.take(line)
        return check

    def outcome(self, at: int, mask: int) -> tuple[int, str]:
        """The line that holds this byte, and what a reader says once it is changed."""
        number = bisect.bisect_right(self.ends, at)
        data = bytearray(b"".join(self.lines[number : number + 2]))
        data[at - (self.ends[number] - len(self.lines[number]))] ^= mask
        check = self.before(number).copy()
        try:
            for line in BytesIO(data):
                check.take(line)
            for line in self.lines[number + 2 :]:
                check.take(line)
            check.finish()
        except LedgerBroken as e:
            return number, e.message
        return number, "nothing"


def named(number: int, entries: int, says: str) -> bool:
    if number < entries:
        return f"entry {number} " in says
    return f"line {number + 1} " in says or "checkpoint" in says


@pytest.mark.timeout(120)
def test_a_thousand_flips_in_ten_thousand_entries_are_named(tmp_path: Path) -> None:
    flips = Flips(exported(made(tmp_path / "ledger.sqlite", ENTRIES)))
    assert len(flips.lines) == ENTRIES + 1
    unnamed = []
    for _ in range(TRIALS):
        at, mask = secrets.randbelow(flips.ends[-1]), 1 + secrets.randbelow(255)
        number, says = flips.outcome(at, mask)
        if not named(number, ENTRIES, says):
            unnamed.append((at, mask, says))
    assert unnamed == []


def test_every_bit_of_two_entries_and_the_checkpoint(ledger: Ledger) -> None:
    line = cosignature(ledger.checkpoint(), branch_origin("south"), OTHER, ledger.entries()[0].time)
    cosigned = str(SignedNote.parse(ledger.checkpoint()).with_signatures([line]))
    flips = Flips(exported(ledger, cosigned))
    begins = [0, *flips.ends]
    for at in [*range(begins[1]), *range(begins[11], begins[14])]:
        for bit in range(8):
            number, says = flips.outcome(at, 1 << bit)
            assert named(number, 12, says), (at, bit, says)


def test_flips_in_a_file_end_the_command_with_code_4(ledger: Ledger, tmp_path: Path) -> None:
    whole, file = b"".join(exported(ledger)), tmp_path / "x.jsonl"
    for _ in range(20):
        data = bytearray(whole)
        data[secrets.randbelow(len(data))] ^= 1 + secrets.randbelow(255)
        file.write_bytes(data)
        run = CliRunner().invoke(audit, ["verify", str(file)])
        assert isinstance(run.exception, LedgerBroken) and run.exception.exit_code == 4


# --- what else was done to it ------------------------------------------------------------------------------


def test_what_was_left_out_put_in_or_moved_is_named(ledger: Ledger) -> None:
    lines = exported(ledger)
    for altered, says in (
        ([*lines[:5], *lines[6:]], "entry 5 does not follow entry 4"),
        ([*lines[:5], lines[6], lines[5], *lines[7:]], "entry 5 does not follow"),
        ([*lines[:5], lines[4], *lines[5:]], "entry 5 does not follow"),
        (lines[:-1], "no checkpoint at its end"),
        (lines[-1:], "no entry 0"),
        ([], "no entry 0"),
        ([*lines, lines[3]], "line 14 is not a checkpoint"),
        ([lines[0], b"\n", *lines[1:]], "line 2 is neither entry 1"),
        ([lines[0], lines[1].replace(b'{"entry"', b'{ "entry"'), *lines[2:]], "line 2 is neither entry 1"),
        ([*lines[:-2], lines[-1]], "history differs from the signed checkpoint of size 12"),
        ([lines[0][:-1] + b"\r\n", *lines[1:]], "line 1 is neither entry 0"),
        ([b"[" * 100_000 + b"\n"], "line 1"),
    ):
        with pytest.raises(LedgerBroken, match=says):
            verify_export(altered, "x")


def test_a_forged_history_needs_the_key_and_is_seen_against_a_kept_checkpoint(
    ledger: Ledger, tmp_path: Path
) -> None:
    kept = ledger.checkpoint(7)
    add(ledger, 11, 40)
    today = exported(ledger)
    assert verify_export(today, "x", since=[kept], key=KEY.public_key()).since == (7,)
    forged = made(tmp_path / "forged.sqlite", 40, first=1)  # by somebody who has the key
    assert verify_export(exported(forged), "x", key=KEY.public_key()).entries == 40
    with pytest.raises(LedgerBroken, match="history differs from the kept checkpoint of size 7"):
        verify_export(exported(forged), "x", since=[kept])
    cut = made(tmp_path / "cut.sqlite", 3)
    with pytest.raises(LedgerBroken, match="first 3 entries are not"):
        verify_export(exported(cut), "x", since=[kept])
    stranger = exported(made(tmp_path / "stranger.sqlite", 12, key=OTHER))
    assert not verify_export(stranger, "x").key_given
    with pytest.raises(LedgerBroken, match="another key than the one that was given"):
        verify_export(stranger, "x", key=KEY.public_key())
    # The right entries under a checkpoint that somebody else signed, and a kept one that nobody signed.
    note = sign_checkpoint(Checkpoint.parse(ledger.checkpoint()), OTHER)
    with pytest.raises(LedgerBroken, match="not signed by"):
        verify_export([*today[:-1], f"{checkpoint_line(note)}\n".encode()], "x")
    with pytest.raises(LedgerBroken, match="not signed by"):
        verify_export(today, "x", since=[note])


def test_entries_that_no_key_signed_yet_are_counted(ledger: Ledger) -> None:
    reader = Ledger.read(ledger.path)
    reader.append("pin", {"added": {}})
    verified = verify_export(exported(reader), "x")
    assert (verified.entries, verified.unsigned) == (13, 1)
    assert verify_export(exported(ledger), "x").unsigned == 0


# --- the sums ----------------------------------------------------------------------------------------------


def test_spending_is_recomputed(ledger: Ledger) -> None:
    size = accounting.encode_event(accounting.discrete_laplace(4.0))
    charge(ledger, 0, "all", size)
    charge(ledger, 1)
    charge(ledger, 2)
    spent = verify_export(exported(ledger), "x").account.spent()
    training, laplace = accounting.decode_event(GAUSSIAN), accounting.decode_event(size)
    curve = 2 * accounting.rdp_curve(training) + accounting.rdp_curve(laplace)
    assert spent["training"] == (
        pytest.approx(accounting.filter_epsilon(curve, 1e-5)),
        pytest.approx(accounting.pld_epsilon([laplace, training, training], 1e-5)),
    )
    assert spent["holdout"][1] == pytest.approx(accounting.pld_epsilon([laplace], 1e-5))


def test_the_charge_beyond_the_budget_is_named(ledger: Ledger) -> None:
    for round_ in range(3):
        charge(ledger, round_)
    verify_export(exported(ledger), "x")
    charge(ledger, 3, event=accounting.encode_event(dp_event.GaussianDpEvent(0.5)))
    with pytest.raises(LedgerBroken, match="entry 15 spends beyond the budget"):
        verify_export(exported(ledger), "x")


@pytest.mark.parametrize(
    ("population", "event"), [("everybody", GAUSSIAN), ("all", {"free": {}}), ("all", 1)]
)
def test_a_charge_without_a_cost_is_named(ledger: Ledger, population: str, event: object) -> None:
    charge(ledger, 1, population, event)
    with pytest.raises(LedgerBroken, match="entry 12 says nothing that could be added up"):
        verify_export(exported(ledger), "x")


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def files(ledger: Ledger, tmp_path: Path) -> Path:
    """Last month's checkpoint, export and result; today's export; enrolments of two branches."""
    (tmp_path / "old.note").write_text(ledger.checkpoint())
    (tmp_path / "old.jsonl").write_bytes(b"".join(exported(ledger)))
    head = ledger.signed_head().model_dump(mode="json")
    result = {"per_branch": [{"name": "south", "ledger_head": None}, {"name": "north", "ledger_head": head}]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    add(ledger, 11, 30)
    charge(ledger, 1)
    note = ledger.checkpoint()
    line = cosignature(note, branch_origin("south"), OTHER, ledger.entries()[-1].time)
    cosigned = str(SignedNote.parse(note).with_signatures([line]))
    add(ledger, 31, 33)
    (tmp_path / "today.jsonl").write_bytes(b"".join(exported(ledger, cosigned)))
    for name, key in (("north", KEY), ("south", OTHER)):
        enrolment = Enrolment(
            name=name,
            node_public_key=new_node_key()[1].decode(),
            ledger_public_key=ed25519_text(key.public_key()),
        )
        (tmp_path / f"{name}.json").write_bytes(enrolment.dump())
    return tmp_path


def test_last_months_checkpoint_in_every_form_is_continued_today(files: Path) -> None:
    kept = [files / name for name in ("old.note", "old.jsonl", "result.json")]
    found = verify_file(files / "today.jsonl", since=kept, key=str(files / "north.json"))
    assert found.since == (12, 12, 12) and found.key_given and found.not_checked == 1
    assert found.entries == 34
    with pytest.raises(BadInput, match="holds no checkpoint of sfumato/branch/north"):
        verify_file(files / "today.jsonl", since=[files / "north.json"])
    with pytest.raises(LedgerBroken, match="history differs from the kept checkpoint of size 32"):
        verify_file(files / "old.jsonl", since=[files / "today.jsonl"])


def test_a_cosignature_counts_if_its_key_is_given(files: Path) -> None:
    found = verify_file(files / "today.jsonl", cosigners=[files / "south.json"])
    assert [(c.size, c.name) for c in found.cosigned] == [(32, "sfumato/branch/south")]
    assert found.not_checked == 0


def test_the_report_is_plain_and_says_what_was_not_pinned(files: Path) -> None:
    arguments = ["verify", str(files / "today.jsonl"), "--since", str(files / "old.note")]
    bare = CliRunner().invoke(audit, arguments)
    assert bare.exit_code == 0 and "NOT PINNED" in bare.output and "34 entries" in bare.output
    assert "continues the checkpoint of 12 entries that you kept" in bare.output
    assert "1 more signatures are of keys that were not given" in bare.output
    assert "training: epsilon 0." in bare.output
    pinned = CliRunner().invoke(audit, [*arguments, "--key", str(files / "north.json"), "--json"])
    said = json.loads(pinned.output)
    assert said["key_given"] is True and said["since"] == [12] and said["spent"]["training"]["pld"] > 0


def test_a_key_is_read_from_what_people_hold(files: Path) -> None:
    text = ed25519_text(KEY.public_key())
    (files / "key").write_text(f"{text}\n")
    for given in (text, str(files / "key"), str(files / "north.json")):
        assert read_key(given) == KEY.public_key()
    for bad in ("", "AAAA", str(files / "today.jsonl"), str(files / "nowhere"), str(files)):
        with pytest.raises(BadInput, match="not a ledger's key"):
            read_key(bad)
