"""The coordinator's own ledger: made with its home, pinned by its invitation, co-signed, exported, checked."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from sfumato.common.contract import load_contract
from sfumato.common.enrolment import Enrolment, ed25519_text, new_node_key
from sfumato.common.errors import BadInput, Insecure, LedgerBroken
from sfumato.common.job import load_job, sign_job
from sfumato.common.notes import SignedNote, branch_origin, coordinator_origin
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.ledger_report import read_key, verify_file
from sfumato.privacy.witness import Witness
from sfumato.server.cli import coordinator
from sfumato.server.home import CoordinatorHome
from sfumato.server.ledger import describe_entry, record_branch, record_end, record_start

EXAMPLE = Path(__file__).parents[2] / "examples" / "bank_branch_churn"
NORTH = Ed25519PrivateKey.from_private_bytes(b"\x03" * 32)


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return CoordinatorHome.init(tmp_path / "c", host="127.0.0.1", port=9092, session_port=9093)


@pytest.fixture
def branch(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "north.sqlite", branch="north", signer=NORTH, genesis={})


def test_it_is_made_with_the_home_and_pinned_by_the_invitation(home: CoordinatorHome) -> None:
    key = read_key(str(home.path / "invitation.json"))
    ledger = home.open_ledger()
    assert ledger.public_key == key and ledger.origin == coordinator_origin(key)
    assert [e.kind for e in ledger.entries()] == ["genesis"] and ledger.verify() == 1
    for name in ("ledger.key", "ledger.sqlite"):
        assert (home.path / name).stat().st_mode & 0o777 == 0o600
    assert key != home.job_key().public_key()


def test_a_lost_or_open_key_stops_the_start(home: CoordinatorHome) -> None:
    (home.path / "ledger.key").chmod(0o640)
    with pytest.raises(Insecure, match=r"ledger\.key"):
        CoordinatorHome.load(home.path)
    (home.path / "ledger.key").unlink()
    with pytest.raises(Insecure, match="ledger signing key is missing"):
        CoordinatorHome.load(home.path)


def run(home: CoordinatorHome, branch: Ledger, number: int) -> str:
    """What one run leaves in the ledger. Returns the job's id."""
    signed = sign_job(
        load_job(EXAMPLE / "job.toml"),
        load_contract(EXAMPLE / "contract.toml"),
        home.job_key(),
        valid_for=timedelta(hours=1),
    )
    model = home.path / "runs" / "model.safetensors"
    model.write_bytes(b"weights %d" % number)
    ledger = home.open_ledger()
    record_start(ledger, signed, str(number))
    record_branch(ledger, "north", branch.signed_head(), job_id=signed.job_id)
    record_end(ledger, signed.job_id, run=str(number), state="finished", files=[model], audit="consistent")
    return signed.job_id


def test_a_run_stands_in_it(home: CoordinatorHome, branch: Ledger) -> None:
    job_id = run(home, branch, 1)
    start, kept, end = home.open_ledger().entries(job_id=job_id)
    assert start.body["signer"] and len(start.body["job_hash"]) == 64
    assert kept.body["checkpoint"] == branch.checkpoint()
    assert end.body["files"].keys() == {"model.safetensors"} and end.body["audit"] == "consistent"
    assert "finished, 1 files, audit consistent" in describe_entry(end)
    assert describe_entry(kept) == "north at 1 entries"


def test_branches_cosign_it_and_an_export_proves_it(
    home: CoordinatorHome, branch: Ledger, tmp_path: Path
) -> None:
    ledger = home.open_ledger()
    witness = Witness(branch, ledger.public_key)
    for number in (1, 2):
        run(home, branch, number)
        note = ledger.checkpoint()
        size = len(ledger.entries())
        line = witness.cosign(note, witness.size, ledger.consistency(witness.size, size))
        assert home.cosigned.add(note, [line]) == home.cosigned.note
        assert home.cosigned.add(note, [line]) == home.cosigned.note  # twice is once
        assert len(SignedNote.parse(str(home.cosigned.note)).signatures) == 2
    run(home, branch, 3)
    export = tmp_path / "c.jsonl"
    said = CliRunner().invoke(coordinator, ["ledger", str(home.path), "--export", str(export)])
    assert said.exit_code == 0 and "10 entries" in said.output
    enrolment = Enrolment(
        name="north",
        node_public_key=new_node_key()[1].decode(),
        ledger_public_key=ed25519_text(NORTH.public_key()),
    )
    (tmp_path / "north.json").write_bytes(enrolment.dump())
    found = verify_file(
        export, key=str(home.path / "invitation.json"), cosigners=[tmp_path / "north.json"], since=[export]
    )
    assert [(c.size, c.name) for c in found.cosigned] == [(7, branch_origin("north"))] * len(found.cosigned)
    assert found.key_given and found.entries == 10 and found.account.budget is None
    with pytest.raises(LedgerBroken, match="another key"):
        verify_file(export, key=str(tmp_path / "north.json"))


def test_an_older_checkpoint_never_replaces_a_newer(home: CoordinatorHome, branch: Ledger) -> None:
    ledger = home.open_ledger()
    old = ledger.checkpoint()
    run(home, branch, 1)
    kept = home.cosigned.add(ledger.checkpoint(), [])
    home.cosigned.add(old, [])
    assert home.cosigned.note == kept
    home.cosigned.path.write_text("x")
    with pytest.raises(LedgerBroken, match="no checkpoint any more"):
        _ = home.cosigned.note


def test_the_command_shows_and_verifies(home: CoordinatorHome, branch: Ledger) -> None:
    run(home, branch, 1)
    shown = CliRunner().invoke(coordinator, ["ledger", str(home.path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert all(word in shown.output for word in ("genesis", "start", "branch", "end", "north at 1 entries"))
    checked = CliRunner().invoke(coordinator, ["ledger", str(home.path), "--verify"])
    assert "The ledger verifies: 4 entries" in checked.output


def test_a_url_with_a_password_makes_no_home(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    for url, error in (
        ("postgresql://bank:Geheim-1@db/ledger", Insecure),
        ("postgresql://db/ledger?password=Geheim-1", Insecure),
        ("mysql://db/ledger", BadInput),
        ("postgresql://db/ledger?nonsense=Geheim-1", BadInput),
    ):
        with pytest.raises(error) as raised:
            CoordinatorHome.init(
                tmp_path / "c", host="127.0.0.1", port=9092, session_port=9093, ledger_url=url
            )
        assert "Geheim" not in str(raised.value)
        assert not (tmp_path / "c").exists()


def test_an_invitation_without_the_ledgers_key_is_refused(home: CoordinatorHome) -> None:
    path = home.path / "invitation.json"
    data = json.loads(path.read_text())
    del data["ledger_public_key"]
    path.write_text(json.dumps(data))
    with pytest.raises(BadInput, match="ledger_public_key"):
        _ = CoordinatorHome.load(home.path).invitation
