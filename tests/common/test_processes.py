"""No orphans, no inherited secrets, no files that others can read."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sfumato.common.errors import BadInput, Insecure, Unavailable
from sfumato.common.private_files import private_directory, read_private, replace, require_private, write_new
from sfumato.common.processes import (
    free_ports,
    python,
    short_socket_path,
    start_child,
    stop_group,
    wait_for_port,
)

PARENT = """
import os, sys, threading, time
from pathlib import Path
from sfumato.common.processes import python, start_child
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
lifeline = sys.argv[2] == "lifeline"
start_child(python("-c", {child!r}, sys.argv[1], sys.argv[2]), environment=dict(os.environ), lifeline=lifeline)
time.sleep(60)
"""

# Writes its pid, then one line a SIGTERM. It takes a moment to sign off, as a SuperNode does.
CHILD = """
import os, signal, sys, time
if sys.argv[2] == "lifeline":
    from sfumato.common.processes import end_with_parent
    end_with_parent()
out = open(sys.argv[1], "a", buffering=1)
def end(*_):
    out.write("term\\n")
    time.sleep(0.3)
    out.write("bye\\n")
    os._exit(0)
signal.signal(signal.SIGTERM, end)
out.write(f"{os.getpid()}\\n")
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("how", ["signal", "lifeline"])
def test_a_child_ends_with_a_killed_parent(tmp_path: Path, how: str) -> None:
    out = tmp_path / "out"
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(child=CHILD), str(out), how])
    pid = int(_line(out, 0))
    parent.kill()
    parent.wait()
    assert _line(out, 1) == "term"
    if how == "lifeline":
        # Told once: what the child does on SIGTERM is not cut short by another.
        assert _line(out, 2) == "bye"
        assert out.read_text().count("term") == 1
    _gone(pid)


def test_stopping_takes_the_whole_group_and_kills_what_does_not_listen(tmp_path: Path) -> None:
    deaf = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"
    spawn = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {deaf!r}]); p.wait()"
    child = start_child(python("-c", spawn), environment=dict(os.environ), log=log)
    pid = int(_line(log, 0))
    start = time.monotonic()
    assert stop_group(child, grace=0.5) == -signal.SIGTERM
    assert time.monotonic() - start < 3
    assert log.stat().st_mode & 0o077 == 0
    _gone(pid)
    stop_group(child)  # a second time does nothing


def test_waiting_for_a_port_is_bounded_and_sees_a_dead_process() -> None:
    (port,) = free_ports(1)
    with pytest.raises(Unavailable, match="nothing listens"):
        wait_for_port("127.0.0.1", port, timeout=0.3)
    dead = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(Unavailable, match="ended with status 3"):
        wait_for_port("127.0.0.1", port, timeout=20, process=dead)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))
        threading.Timer(0.3, listener.listen).start()
        wait_for_port("127.0.0.1", port, timeout=5)


def test_free_ports_are_all_different() -> None:
    assert len(set(free_ports(20))) == 20


def test_python_never_imports_from_the_current_directory(tmp_path: Path) -> None:
    (tmp_path / "sfumato.py").write_text("raise SystemExit('shadowed')")
    command = python("-c", "import sfumato.common.errors")
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0


def test_private_files_are_whole_private_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_new(path, b"one")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(BadInput, match="there already"):
        write_new(path, b"two")
    assert path.read_bytes() == b"one"
    replace(path, b"three")
    assert read_private(path, "key") == b"three" and path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["key"], "a temporary file was left behind"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    write_new(path, b"x")
    path.chmod(mode)
    with pytest.raises(Insecure, match="others may use it"):
        read_private(path, "key")


def test_a_link_an_empty_file_and_no_file_are_refused(tmp_path: Path) -> None:
    write_new(tmp_path / "key", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "key")
    with pytest.raises(Insecure, match="not a plain file"):
        require_private(tmp_path / "link", "key")
    write_new(tmp_path / "empty", b"")
    with pytest.raises(Insecure, match="is empty"):
        read_private(tmp_path / "empty", "key")
    with pytest.raises(Insecure, match="the node key is missing"):
        read_private(tmp_path / "none", "node key")


def test_an_open_directory_is_refused(tmp_path: Path) -> None:
    made = private_directory(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700
    assert private_directory(made) == made
    made.chmod(0o750)
    with pytest.raises(Insecure):
        private_directory(made)


def _line(path: Path, number: int, timeout: float = 10.0) -> str:
    deadline = time.monotonic() + timeout
    while True:
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) > number and lines[number]:
            return lines[number]
        assert time.monotonic() < deadline, f"only {lines}"
        time.sleep(0.02)


def _gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and "Z (zombie)" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline, "an orphan"
        time.sleep(0.02)


def test_a_unix_socket_may_lie_deeper_than_its_name_is_long(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["directory-of-thirty-characters"] * 5)
    deep.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        with short_socket_path(deep / "s.sock") as path:
            server.bind(path)
        server.listen(1)
        with short_socket_path(deep / "s.sock") as path:
            client.connect(path)
        assert (deep / "s.sock").is_socket()
