"""A coordinator that keeps its processes up, and gives up on one that does not stay."""

import subprocess
import sys
from pathlib import Path

import pytest

from sfumato.common.errors import Unavailable
from sfumato.common.processes import free_ports
from sfumato.server import coordinator
from sfumato.server.coordinator import Coordinator
from sfumato.server.home import CoordinatorHome


def process(status: int | None) -> "subprocess.Popen[bytes]":
    """One that has ended with `status`, or one that goes on until its input ends."""
    program = "import sys; sys.stdin.read()" if status is None else f"raise SystemExit({status})"
    made = subprocess.Popen([sys.executable, "-I", "-S", "-c", program], stdin=subprocess.PIPE)
    if status is not None:
        made.wait()
    return made


def test_what_does_not_stay_up_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port, session_port = free_ports(2)
    home = CoordinatorHome.init(tmp_path / "c", host="127.0.0.1", port=port, session_port=session_port)
    watched = Coordinator(home, start_executor=False)
    monkeypatch.setattr(watched, "_start_superlink", lambda: process(7))
    watched._superlink = process(7)
    for _ in range(coordinator.MOST_RESTARTS):
        assert watched.tend() == ["SuperLink"]
    with pytest.raises(Unavailable, match="SuperLink ended with status 7"):
        watched.tend()

    monkeypatch.setattr(coordinator, "RESTARTS_WITHIN", 0.0)
    monkeypatch.setattr(watched, "_start_superlink", lambda: process(None))
    assert watched.tend() == ["SuperLink"], "the failures are long ago"
    assert watched.tend() == []
    assert watched._superlink is not None and watched._superlink.stdin is not None
    watched._superlink.stdin.close()
    assert watched._superlink.wait(10) == 0
