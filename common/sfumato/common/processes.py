"""Starting and ending the processes of a federation: a quiet environment, and no orphans.

Flower calls home unless it is told not to (telemetry, update check), reads dozens of FLWR_* variables that
switch parts of it on, and inherits whatever secrets its parent's environment holds. So nothing we start
inherits an environment as it is: all of it passes through `quiet_environment`.
"""

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sfumato.common.errors import Unavailable

_SECRET = re.compile(
    r"TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|API_?KEY|PRIVATE_?KEY|ACCESS_?KEY|AUTH|DATABASE_URL|DSN"
    r"|^(AWS|AZURE|GOOGLE|GCP|PG)[A-Z_]*|SSLKEYLOGFILE|(^|_)PROXY$",
    re.IGNORECASE,
)
_FOREIGN = re.compile(r"^(FLWR_|RAY_|PYTHONSTARTUP$|PYTHONINSPECT$|PYTHONBREAKPOINT$)")

# Runs in the child before the real program: PR_SET_PDEATHSIG (1) survives exec, and unlike `preexec_fn` this
# is safe in a parent that has threads. The parent may have died before the call, hence the second look.
_DIE_WITH_PARENT = """
import os, sys
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl(1, 15)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def quiet_environment(base: Mapping[str, str], flwr_home: Path) -> dict[str, str]:
    """The environment for a process that we start: no secrets, no proxies, no inherited Flower switches.

    Telemetry, update checks and run-time installation are off; `flwr_home` keeps the processes apart.
    """
    kept = {k: v for k, v in base.items() if not _SECRET.search(k) and not _FOREIGN.match(k)}
    return kept | {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "FLWR_HOME": str(flwr_home),
    }


def python(*arguments: str) -> list[str]:
    """A command line of this very interpreter that never imports from the current directory."""
    return [sys.executable, "-P", *arguments]


def start_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    log: Path | None = None,
    cwd: Path | None = None,
    lifeline: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start a process in a group of its own, which gets SIGTERM when the calling *thread* ends.

    So call it from the main thread, or from one that lives as long. Output is appended to `log` (0600).
    With `lifeline` the child is told by the end of its standard input instead, and must call
    `end_with_parent`: for programs that a second SIGTERM cuts short. The kernel sends one for each thread of a
    dying parent that the child is handed to, and Flower's SuperNode then dies before it has signed off.
    """
    wrapped = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
    output: int | None = None
    if log is not None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            command if lifeline else wrapped,
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.PIPE if lifeline else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output is not None else None,
            start_new_session=True,
        )
    finally:
        if output is not None:
            os.close(output)


def end_with_parent() -> None:
    """Send ourselves one SIGTERM when standard input ends, that is when the parent is gone."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def stop_group(process: "subprocess.Popen[bytes]", *, grace: float = 8.0) -> int:
    """End the process and its group: SIGTERM, `grace` seconds, SIGKILL. Returns the exit status."""
    _signal_group(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    _signal_group(process, signal.SIGKILL)  # also what the process may have left behind in its group
    return process.wait()


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def wait_for_port(
    host: str, port: int, *, timeout: float, process: "subprocess.Popen[bytes] | None" = None
) -> None:
    """Wait until something listens there. Raises Unavailable when `process` ends first, or in `timeout` s."""
    deadline = time.monotonic() + timeout
    while True:
        if process is not None and (status := process.poll()) is not None:
            raise Unavailable(f"the process for port {port} ended with status {status}", hint="See its log.")
        try:
            with socket.create_connection((host, port), timeout=1.0):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise Unavailable(f"nothing listens on {host}:{port} after {timeout:.0f} s") from None
        time.sleep(0.05)


@contextlib.contextmanager
def short_socket_path(path: Path) -> Iterator[str]:
    """Another name of a unix socket's path, while the block lasts: the kernel takes 107 bytes, homes may be deep."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def free_ports(count: int) -> list[int]:
    """Loopback TCP ports that were free a moment ago, all different.

    Below the range from which systems take the ports of outgoing connections (RFC 6335; Linux from 32768):
    one of those may be taken by any connection at any time before the port is used, or used again.
    """
    found: list[int] = []
    while len(found) < count:
        port = 15000 + secrets.randbelow(17000)
        with socket.socket() as probe:
            # As servers do: a port that only lingers from an earlier connection is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
