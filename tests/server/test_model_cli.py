"""`sfumato model`: what it prints, what it writes, and what it refuses."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
from click.testing import Result
from typer.testing import CliRunner

from sfumato.common.errors import BadInput
from sfumato.common.learners.models import SavedModel
from sfumato.common.learners.scorecard import Scorecard
from sfumato.privacy.ledger_report import verify_file
from sfumato.server.cli import coordinator
from sfumato.server.home import CoordinatorHome
from sfumato.server.model_cli import console, model
from sfumato.server.model_export import write_bundle

EXAMPLE = Path(__file__).parents[2] / "examples" / "bank_branch_churn"


def run(home: CoordinatorHome, *arguments: object) -> Result:
    given = [*map(str, arguments), "--coordinator", str(home.path)]
    console.width = 200  # of a terminal that is wide enough for a table's rows
    return CliRunner().invoke(model, given)


def said(home: CoordinatorHome, *arguments: object) -> str:
    found = run(home, *arguments)
    assert found.exit_code == 0, found.exception
    return found.output


def refused(home: CoordinatorHome, *arguments: object) -> BadInput:
    found = run(home, *arguments)
    assert isinstance(found.exception, BadInput), found.output
    return found.exception


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_list_shows_every_model_with_its_state(home_copy: CoordinatorHome) -> None:
    (home_copy.path / "runs" / "11" / "schema.json").write_text("{}")
    lines = said(home_copy, "list").splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["10", "11", "12", "13"]
    assert "scorecard" in lines[3] and "2026-03-14 09:26" in lines[3] and "verified" in lines[3]
    assert "altered" in lines[2] and "schema.json is not the file" in lines[5]
    found = json.loads(said(home_copy, "list", "--json"))
    assert [f["state"] for f in found] == ["verified", "altered", "verified", "verified"]
    assert found[2]["auc"]["low"] < found[2]["auc"]["value"] and found[3]["auc"] is None


def test_a_coordinator_without_models_says_so(tmp_path: Path) -> None:
    home = CoordinatorHome.init(tmp_path / "c", host="127.0.0.1", port=9092, session_port=9093)
    assert "No run has left a model yet." in said(home, "list")
    assert json.loads(said(home, "list", "--json")) == []
    found = CliRunner().invoke(model, ["list", "--home", str(tmp_path)])
    assert isinstance(found.exception, BadInput) and "no coordinator's home" in str(found.exception)


@pytest.mark.parametrize("number", ["10", "11", "12", "13"])
def test_show_says_all_and_writes_nothing(number: str, home_copy: CoordinatorHome) -> None:
    before = content(home_copy.path)
    shown = said(home_copy, "show", number)
    made = json.loads(said(home_copy, "show", number, "--json"))
    assert content(home_copy.path) == before
    for word in (
        made["sha256"],
        made["contract"]["hash"],
        made["job"]["id"],
        "harbour, market-square, north",
    ):
        assert word in shown
    assert all(limit in shown for limit in made["limits"])
    inside = {"10": "verified", "11": "48 trees", "12": "Größe <b>", "13": "5 segments"}
    assert inside[number] in shown


def test_compare_puts_them_side_by_side(full_home: CoordinatorHome) -> None:
    shown = said(full_home, "compare", "10", "12", "13")
    auc = next(line for line in shown.splitlines() if line.strip().startswith("auc"))
    assert auc.count("(") == 2 and auc.rstrip().endswith("intervals overlap")
    assert "Beware: They foretell different labels." in shown
    assert json.loads(said(full_home, "compare", "10", "12", "--json"))["warnings"] == []
    assert "two or more" in str(refused(full_home, "compare", "10"))
    assert "there is no run 99" in str(refused(full_home, "compare", "10", "99"))


def test_a_scorecard_is_exported_whole(
    full_home: CoordinatorHome, tmp_path: Path, customers_of: Callable[..., dict[str, pa.Array]]
) -> None:
    out = tmp_path / "new" / "card"
    said(full_home, "export", 12, "--out", out)
    original = full_home.path / "runs" / "12"
    assert {p.name for p in out.iterdir()} == {
        "model.safetensors", "model.onnx", "card.html", "card.json", "schema.json", "checkpoint",
    }  # fmt: skip
    for name in ("model.safetensors", "schema.json", "checkpoint"):
        assert (out / name).read_bytes() == (original / name).read_bytes()
    made = json.loads((out / "card.json").read_text("utf-8"))
    assert made["sha256"] == hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert [p.name for p in out.parent.iterdir()] == ["card"]

    saved, columns = SavedModel.read(out / "model.safetensors"), customers_of(50)
    assert saved.header.schema_ is not None
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    given = {
        i.name: np.array([v or "" for v in columns[i.name].to_pylist()], dtype=object)
        if i.type == "tensor(string)"
        else np.asarray(columns[i.name].fill_null(np.nan), dtype=np.float64)
        for i in session.get_inputs()
    }
    (points,) = session.run(["points_"], given)
    card = Scorecard.model_validate(saved.header.parameters["card"])
    np.testing.assert_array_equal(points, card.scores(saved.header.schema_.codes(columns)))


def test_the_cards_own_steps_verify_it(full_home: CoordinatorHome, tmp_path: Path) -> None:
    out, ledger = tmp_path / "out", tmp_path / "coordinator.jsonl"
    said(full_home, "export", 11, "--out", out)
    assert (
        CliRunner().invoke(coordinator, ["ledger", str(full_home.path), "--export", str(ledger)]).exit_code
        == 0
    )
    found = verify_file(
        ledger, key=str(full_home.path / "invitation.json"), since=[out / "checkpoint"], cosigners=[]
    )
    made = json.loads((out / "card.json").read_text("utf-8"))
    line = json.loads(ledger.read_text().splitlines()[made["ledger"]["entry"]])
    end = json.loads(line["entry"])
    assert line["hash"] == made["ledger"]["entry_hash"] and found.entries > made["ledger"]["entry"]
    assert end["body"]["files"]["model.safetensors"] == made["sha256"]


@pytest.mark.parametrize("number", ["10", "13"])
def test_what_encodes_by_its_contract_takes_it_from_the_run(
    number: str, full_home: CoordinatorHome, tmp_path: Path
) -> None:
    said(full_home, "export", number, "--out", tmp_path / "out")
    onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    assert not (tmp_path / "out" / "schema.json").exists()
    other = EXAMPLE / "contract.toml"
    error = refused(full_home, "export", number, "--out", tmp_path / "b", "--contract", other)
    assert "another version of contract" in str(error) and not (tmp_path / "b").exists()


def test_an_altered_model_is_not_exported(home_copy: CoordinatorHome, tmp_path: Path) -> None:
    path = home_copy.path / "runs" / "12" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    error = refused(home_copy, "export", 12, "--out", tmp_path / "out")
    assert "run 12 is altered: model.safetensors is not the file" in str(error)
    assert not (tmp_path / "out").exists()
    assert "altered" in said(home_copy, "show", 12)


def test_nothing_is_overwritten_unless_asked(full_home: CoordinatorHome, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "card.json").write_text("mine")
    (out / "notes.txt").write_text("mine too")
    error = refused(full_home, "export", 10, "--out", out)
    assert "holds card.json already" in str(error) and content(out).keys() == {"card.json", "notes.txt"}
    said(full_home, "export", 10, "--out", out, "--force")
    assert json.loads((out / "card.json").read_text("utf-8"))["run"] == "10"
    assert (out / "notes.txt").read_text() == "mine too" and len(list(out.iterdir())) == 6
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_file_in_the_way_is_refused(full_home: CoordinatorHome, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for out in (tmp_path / "out", "/"):
        assert "is not a directory to" in str(refused(full_home, "export", 10, "--out", out))


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.server import model_export

    def full(path: Path, _: bytes) -> None:
        if path.name == "b":
            raise OSError("no space left on device")
        path.write_bytes(b"")

    monkeypatch.setattr(model_export, "write_whole", full)
    files: dict[str, Any] = {"a": b"1", "b": b"2"}
    with pytest.raises(BadInput, match=r"cannot be written \(no space"):
        write_bundle(tmp_path / "out", files)
    assert list(tmp_path.iterdir()) == []


def test_the_directory_one_is_in_can_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_bundle(Path(), {"a": b"1"})
    write_bundle(Path(".."), {"b": b"2"})
    assert content(tmp_path) == {"here/a": b"1", "b": b"2"}
    with pytest.raises(BadInput, match="holds a already"):
        write_bundle(Path(), {"a": b"3", "c": b"4"})
    assert content(tmp_path) == {"here/a": b"1", "b": b"2"}
