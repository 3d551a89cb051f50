"""The registry: an entry is verified only if every file is what the ledger states, and is read from those bytes."""

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common.errors import BadInput, LedgerBroken
from sfumato.common.learners.models import SavedModel
from sfumato.common.notes import branch_origin, cosignature
from sfumato.privacy.ledger import Ledger
from sfumato.server.home import CoordinatorHome
from sfumato.server.ledger import record_end
from sfumato.server.registry import Registry
from sfumato.server.run_files import note_closed, read_result, store_state

Finish = Callable[..., Path]


def states(home: CoordinatorHome) -> dict[str, str]:
    return {e.run: e.state for e in Registry.of(home).entries()}


def test_every_finished_model_is_there_in_the_ledgers_order(full_home: CoordinatorHome) -> None:
    entries = Registry.of(full_home).entries()
    assert [(e.run, e.name) for e in entries] == [
        ("10", "bank-churn-net"),
        ("11", "bank-boosted-trees"),
        ("12", "bank-scorecard"),
        ("13", "bank-segments"),
    ]
    for entry in entries:
        assert entry.state == "verified" and entry.problems == () and entry.require() is entry.model
        assert entry.signed is not None and entry.signed.contract.name == "small-bank"
        assert entry.end is not None and entry.end.body["files"]["model.safetensors"] == entry.sha256
        assert entry.witnessed is not None
        assert set(entry.witnessed.cosigned) == {"harbour", "market-square", "north"}
    assert entries[3].answer is not None and entries[2].answer is None


def test_no_run_no_entry(tmp_path: Path) -> None:
    home = CoordinatorHome.init(tmp_path / "c", host="127.0.0.1", port=9092, session_port=9093)
    registry = Registry.of(home)
    assert registry.entries() == []
    with pytest.raises(BadInput, match="there is no run 7"):
        registry.entry("7")


@pytest.mark.parametrize("run", ["", "..", "../12", "12/", "99", "١٢", "-1", "latest"])
def test_what_is_no_run_is_refused(run: str, full_home: CoordinatorHome) -> None:
    with pytest.raises(BadInput, match="there is no run"):
        Registry.of(full_home).entry(run)


def test_a_run_without_a_model_says_so(home_copy: CoordinatorHome) -> None:
    store_state(home_copy.path / "runs" / "20", {"state": "running", "job": "x"})
    assert "20" not in states(home_copy)
    with pytest.raises(BadInput, match="run 20 left no model"):
        Registry.of(home_copy).entry("20")


def flip(path: Path) -> None:
    """One bit of the last byte, which is one of the model's numbers."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "result.json", "job.json", "histogram.json", "schema.json"]
)
def test_one_altered_bit_is_seen(name: str, home_copy: CoordinatorHome) -> None:
    flip(home_copy.path / "runs" / "12" / name)
    assert states(home_copy) == {"10": "verified", "11": "verified", "12": "altered", "13": "verified"}
    entry = Registry.of(home_copy).entry("12")
    assert entry.problems == (f"{name} is not the file whose hash the ledger states",)
    with pytest.raises(BadInput, match=f"run 12 is altered: {name} is not"):
        entry.require()


def test_a_missing_file_or_run_is_seen(home_copy: CoordinatorHome) -> None:
    runs = home_copy.path / "runs"
    (runs / "10" / "model.safetensors").unlink()
    shutil.rmtree(runs / "11")
    found = {e.run: e for e in Registry.of(home_copy).entries()}
    assert (found["10"].state, found["10"].problems) == ("altered", ("model.safetensors is missing",))
    assert found["11"].state == "altered" and found["11"].name == "bank-boosted-trees"
    assert found["11"].sha256 is None


def test_a_model_put_into_another_run_is_seen(home_copy: CoordinatorHome) -> None:
    """Even by somebody who may write in the ledger: the header names its job."""
    runs = home_copy.path / "runs"
    shutil.copyfile(runs / "10" / "model.safetensors", runs / "11" / "model.safetensors")
    assert states(home_copy)["11"] == "altered"
    job_id = read_result(runs / "11")["job_id"]
    files = [f for f in (runs / "11").iterdir() if f.name != "checkpoint"]
    record_end(home_copy.open_ledger(), job_id, run="11", state="finished", files=files)
    (runs / "11" / "checkpoint").unlink()
    entry = Registry.of(home_copy).entry("11")
    assert entry.state == "altered" and "names another job" in entry.problems[0]


def test_a_run_that_the_ledger_does_not_know_is_unlisted(
    home_copy: CoordinatorHome, model_of: Callable[..., SavedModel]
) -> None:
    directory = home_copy.path / "runs" / "30"
    store_state(directory, {"state": "finished", "job": "planted"})
    (directory / "model.safetensors").write_bytes(model_of("scorecard").to_bytes())
    entry = Registry.of(home_copy).entry("30")
    assert entry.state == "unlisted" and entry.end is None and entry.name == "bank-scorecard"
    with pytest.raises(BadInput, match="unlisted"):
        entry.require()
    job_id = "ef" * 16
    record_end(home_copy.open_ledger(), job_id, run="30", state="failed", files=list(directory.iterdir()))
    assert Registry.of(home_copy).entry("30").state == "unlisted"


def test_a_file_that_is_no_model_is_unreadable(home_copy: CoordinatorHome) -> None:
    directory = home_copy.path / "runs" / "31"
    store_state(directory, {"state": "finished", "job": "old", "kind": "churn-net"})
    (directory / "model.safetensors").write_bytes(b"of another release")
    record_end(
        home_copy.open_ledger(), "ef" * 16, run="31", state="finished", files=list(directory.iterdir())
    )
    entry = Registry.of(home_copy).entry("31")
    assert entry.state == "unreadable" and entry.model is None and "not a model file" in entry.problems[0]


def test_a_file_that_the_ledger_does_not_name_is_not_read(home_copy: CoordinatorHome) -> None:
    (home_copy.path / "runs" / "12" / "answer.json").write_text(json.dumps({"segments": []}))
    entry = Registry.of(home_copy).entry("12")
    assert entry.state == "verified" and entry.answer is None and "answer.json" not in entry.files


def test_branches_that_closed_later_alter_nothing(home_copy: CoordinatorHome, finish: Finish) -> None:
    directory = finish(home_copy, 40, "scorecard", open_at=["harbour", "north"])
    note_closed(directory, {"harbour"})
    assert read_result(directory)["open_at"] == ["north"]
    note_closed(directory, {"north"})
    assert read_result(directory)["open_at"] == []
    assert Registry.of(home_copy).entry("40").state == "verified"


# --- the ledger itself -----------------------------------------------------------------------------------------


def test_an_altered_ledger_verifies_no_model(home_copy: CoordinatorHome) -> None:
    data = (home_copy.path / "ledger.sqlite").read_bytes()
    sha256 = Registry.of(home_copy).entry("12").sha256
    assert sha256 is not None
    (home_copy.path / "ledger.sqlite").write_bytes(data.replace(sha256.encode(), b"0" * 64))
    with pytest.raises(LedgerBroken, match="entry"):
        Registry.of(home_copy)


def test_another_ledger_in_its_place_is_refused(home_copy: CoordinatorHome) -> None:
    (home_copy.path / "ledger.sqlite").unlink()
    Ledger.create(home_copy.path / "ledger.sqlite", signer=Ed25519PrivateKey.generate(), genesis={})
    with pytest.raises(LedgerBroken, match="another key than its invitation"):
        Registry.of(home_copy)


def test_a_ledger_without_what_branches_signed_for_is_refused(
    home_copy: CoordinatorHome, tmp_path: Path, finish: Finish
) -> None:
    """Rolled back to an earlier day, while a branch has signed for more."""
    shutil.copyfile(home_copy.path / "ledger.sqlite", tmp_path / "earlier")
    finish(home_copy, 50, "scorecard")
    shutil.copyfile(tmp_path / "earlier", home_copy.path / "ledger.sqlite")
    with pytest.raises(LedgerBroken, match="history differs"):
        Registry.of(home_copy)


def spoil_note(directory: Path, how: str, ledger: Ledger) -> None:
    path = directory / "checkpoint"
    note = path.read_text()
    if how == "nonsense":
        path.write_bytes(b"\xff\xfe")
    elif how == "before the run":
        path.write_text(ledger.checkpoint(1))
    elif how == "a cosignature by another key":
        first = note.split("\n\n")[0] + "\n\n" + note.split("\n\n")[1].split("\n")[0] + "\n"
        stranger = Ed25519PrivateKey.generate()
        path.write_text(first + cosignature(note, branch_origin("north"), stranger, datetime.now(UTC)))
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("how", "state"),
    [
        ("nonsense", "altered"),
        ("before the run", "altered"),
        ("a cosignature by another key", "altered"),
        ("missing", "verified"),
    ],
)
def test_a_checkpoint_counts_only_if_it_has_the_run_in_it(
    how: str, state: str, home_copy: CoordinatorHome
) -> None:
    spoil_note(home_copy.path / "runs" / "12", how, home_copy.open_ledger())
    entry = Registry.of(home_copy).entry("12")
    assert (entry.state, entry.witnessed) == (state, None)
    assert all(p.startswith("checkpoint: ") for p in entry.problems)


def test_looking_writes_nothing(home_copy: CoordinatorHome) -> None:
    def content() -> dict[str, Any]:
        return {
            str(p.relative_to(home_copy.path)): (
                p.read_bytes() if p.is_file() else None,
                p.stat().st_mtime_ns,
            )
            for p in sorted(home_copy.path.rglob("*"))
        }

    before = content()
    Registry.of(home_copy).entries()
    assert content() == before
