"""The check of an exported ledger against kept heads, as docs/guide-compliance.md prints it, does what it says."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common.enrolment import Enrolment, ed25519_text, new_node_key
from sfumato.privacy.ledger import Ledger

PAGE = Path(__file__).parents[2] / "docs" / "guide-compliance.md"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """An export, the branch's enrolment, and a result with the head of the whole ledger."""
    signer = Ed25519PrivateKey.generate()
    ledger = Ledger.create(tmp_path / "ledger.sqlite", branch="basel", signer=signer, genesis={})
    for number in range(4):
        ledger.append("ingest", {"table": f"t{number}", "mode": "create"})
    enrolment = Enrolment(
        name="basel",
        node_public_key=new_node_key()[1].decode(),
        ledger_public_key=ed25519_text(signer.public_key()),
    )
    head = ledger.signed_head().model_dump(mode="json")
    result = {"per_branch": [{"name": "basel", "ledger_head": head}, {"name": "bern", "ledger_head": None}]}
    (tmp_path / "export.jsonl").write_text("".join(f"{line}\n" for line in ledger.export()))
    (tmp_path / "enrolment.json").write_bytes(enrolment.dump())
    (tmp_path / "result.json").write_text(json.dumps(result))
    return tmp_path / "export.jsonl", tmp_path / "enrolment.json", tmp_path / "result.json"


def check(files: tuple[Path, Path, Path]) -> "subprocess.CompletedProcess[str]":
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, files)], capture_output=True, text=True, check=False
    )


def test_a_whole_export_agrees(files: tuple[Path, Path, Path]) -> None:
    assert check(files).stdout == "5 entries; 1 kept heads agree\n"


def test_a_cut_export_does_not(files: tuple[Path, Path, Path]) -> None:
    export = files[0]
    export.write_text("".join(export.read_text().splitlines(keepends=True)[:-1]))
    done = check(files)
    assert done.returncode == 1
    assert "history differs from the head kept at size 5" in done.stderr


def test_an_altered_entry_is_named(files: tuple[Path, Path, Path]) -> None:
    export = files[0]
    export.write_text(export.read_text().replace("t1", "t9"))
    assert "entry 2 was altered" in check(files).stderr
