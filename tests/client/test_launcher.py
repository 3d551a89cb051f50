"""The launcher: what it starts does not outlive it, however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sfumato.client.policy import Policy
from sfumato.client.setup import init_branch
from sfumato.common.processes import free_ports
from sfumato.server.home import CoordinatorHome

pytestmark = pytest.mark.slow
CONTRACT = Path(__file__).resolve().parents[2] / "examples" / "telco_ibm" / "contract.toml"


def until(true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().split(") ")[1][0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_it(tmp_path: Path, number: signal.Signals) -> None:
    port, session = free_ports(2)
    coordinator = CoordinatorHome.init(tmp_path / "c", host="127.0.0.1", port=port, session_port=session)
    home = init_branch(
        tmp_path / "north",
        name="north",
        invitation=coordinator.path / "invitation.json",
        contract=CONTRACT,
        passphrase="four words of nonsense",
        budget_epsilon=4.0,
        budget_delta=1e-5,
        policy=Policy(),
    )
    passphrase = tmp_path / "passphrase"
    passphrase.touch(0o600)
    passphrase.write_text("four words of nonsense")
    command = [sys.executable, "-m", "sfumato.common.cli", "branch", "start", str(home.path)]
    launcher = subprocess.Popen([*command, "--passphrase-file", str(passphrase)], stdout=subprocess.DEVNULL)
    state = home.path / "run" / "state.json"
    assert until(state.exists, 60)
    pids = json.loads(state.read_text())
    assert until(lambda: alive(pids["vault"]) and alive(pids["courier"]), 10)
    time.sleep(2)  # the courier has begun
    os.kill(launcher.pid, number)
    launcher.wait(40)
    assert until(lambda: not alive(pids["vault"]) and not alive(pids["courier"]), 20)
