"""`sfumato demo`: a whole run leaves a summary, a page and no process; an interrupted one leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "sfumato.common.cli", "demo", "--customers-per-branch", "500"]


def processes_of(path: Path) -> list[str]:
    """Command lines that name this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(path) in line:
                found.append(line)
    return found


def test_it_runs_and_again_in_the_same_place_interrupted_it_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run([*COMMAND, "--out", str(out)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["ledger_verified"] is True
    assert summary["branches"] == 4 and summary["rounds"] > 0 and summary["seconds"] > 0
    assert 0 <= summary["auc_low"] <= summary["auc"] <= summary["auc_high"] <= 1
    assert 1.9 < summary["epsilon"] <= 2.0 and summary["delta"] == 1e-5
    assert 1400 < summary["customers"] < 2600
    portrait = summary["portrait"]
    assert 0.9 < portrait["epsilon"] <= 1.0 and portrait["sums"] == 1
    counted = portrait["answer"]["customers"]
    assert abs(counted["value"] - 2000) < 3 * (
        counted["high"] - counted["low"]
    )  # some 12 standard deviations
    assert "Ledgers verified: yes" in done.stdout and "Never sent" in done.stdout
    assert "<svg" in (out / "report.html").read_text()
    assert not (out / "federation").exists()
    assert processes_of(out) == []

    process = subprocess.Popen(
        [*COMMAND, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("federation/branch-2/start.log")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    assert any("superlink" in line for line in processes_of(out))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    time.sleep(1)
    assert processes_of(out) == []
    assert not (out / "summary.json").exists() and not (out / "federation").exists()
