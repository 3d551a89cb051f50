"""Nothing that we start looks up or reaches anything beyond loopback, and none of it runs `uv`.

An audit hook, put into every process of the federation by a `sitecustomize` on PYTHONPATH, writes down each
look-up, connection and program start.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sfumato.common.bundle import build_bundle
from sfumato.common.processes import quiet_environment

pytestmark = pytest.mark.slow

HOOK = """
import json, os, sys
_OUT = os.open({out!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
_WATCHED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
            "subprocess.Popen", "os.exec", "os.posix_spawn", "os.system")
def _note(event, args):
    if event in _WATCHED:
        os.write(_OUT, (json.dumps([os.getpid(), event, [str(a) for a in args]]) + "\\n").encode())
sys.addaudithook(_note)
_note("os.exec", ["hook installed", sys.argv[:1]])
"""


def read(out: Path) -> list[tuple[int, str, list[str]]]:
    return [tuple(json.loads(line)) for line in out.read_text().splitlines()]


def beyond(events: list[tuple[int, str, list[str]]], root: Path) -> list[tuple[str, list[str]]]:
    """What reached, or looked, beyond loopback and the federation's own sockets; and installers."""
    found = []
    for _, event, args in events:
        text = " ".join(args)
        if event in ("socket.connect", "socket.sendto"):
            inside = "'127.0.0.1'" in text or "'::1'" in text or str(root) in text
        elif event.startswith("socket."):
            inside = args[0].strip("b'") in ("127.0.0.1", "::1", "localhost", "None")
        else:
            inside = Path(args[0]).name not in ("uv", "pip") and "uv sync" not in text
        if not inside:
            found.append((event, args))
    return found


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hook, in every Python that is started from here on; returns the file it writes."""
    out = tmp_path / "audit.jsonl"
    (tmp_path / "sitecustomize.py").write_text(HOOK.format(out=str(out)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return out


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.getaddrinfo('outside.invalid', 80)",
        "import socket; socket.socket().connect_ex(('192.0.2.1', 9))",
        "import subprocess; subprocess.Popen(['uv', 'sync'])",
    ],
)
def test_the_hook_would_have_seen_it(audit: Path, tmp_path: Path, code: str) -> None:
    lines = f"import socket; socket.setdefaulttimeout(0.2)\n{code}"
    subprocess.run([sys.executable, "-c", lines], capture_output=True, check=False)
    assert len(beyond(read(audit), tmp_path)) == 1


def test_only_loopback_and_no_uv(make_federation: Any, audit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What an operator's shell may hold, and what must not get through.
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
    federation = make_federation(couriers=1, start_executor=True)
    control = federation.control()
    run_id = control.start_run(build_bundle(), {"job": "x"})
    list(control.logs(run_id))
    assert control.run(run_id).finished
    deadline = time.monotonic() + 20
    while control.nodes()[0].status != "online":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    control.close()

    events = read(audit)
    assert len({pid for pid, *_ in events}) >= 4, "not in SuperLink, executor, courier and SuperNode"
    to_superlink = [a for _, e, a in events if e == "socket.connect" and str(federation.home.port) in a[1]]
    assert len(to_superlink) >= 2, "neither executor nor SuperNode was seen to connect"
    assert beyond(events, federation.root) == []


def test_a_quiet_environment_keeps_no_secret_and_no_foreign_switch(tmp_path: Path) -> None:
    base = {
        "PATH": "/usr/bin",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "PIP_INDEX_TOKEN": "t",
        "DB_PASSWORD": "p",
        "AWS_SESSION": "s",
        "PGPASSFILE": "f",
        "SSLKEYLOGFILE": "/x",
        "HTTPS_PROXY": "http://proxy",
        "https_proxy": "http://proxy",
        "FLWR_TELEMETRY_ENABLED": "1",
        "FLWR_INTERNAL_GRPC_CONTROL_API": "1",
        "FLWR_OIDC_ENABLED": "1",
        "RAY_ADDRESS": "elsewhere",
        "PYTHONSTARTUP": "x.py",
    }
    quiet = quiet_environment(base, tmp_path)
    assert {k: v for k, v in quiet.items() if k in base} == {
        "PATH": "/usr/bin",
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
    }
    assert quiet["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert quiet["RAY_USAGE_STATS_ENABLED"] == "0"
    assert quiet["FLWR_HOME"] == str(tmp_path)
    assert os.environ.get("FLWR_HOME") != str(tmp_path), "it must not touch our own"
