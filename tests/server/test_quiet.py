"""Nothing that we start looks up or reaches anything beyond loopback, and none of it runs `uv`.

An audit hook, put into every process of the federation by a `sitecustomize` on PYTHONPATH, writes down each
look-up, connection and program start.
"""

import json
import os
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


def test_only_loopback_and_no_uv(
    make_federation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "audit.jsonl"
    (tmp_path / "sitecustomize.py").write_text(HOOK.format(out=str(out)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # What an operator's shell may hold, and what must not get through.
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
    federation = make_federation(couriers=1, start_executor=True)
    home = federation.home
    control = federation.control()
    run_id = control.start_run(build_bundle(), {"job": "x"})
    list(control.logs(run_id))
    assert control.run(run_id).finished
    control.close()

    events = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({pid for pid, *_ in events}) >= 3, "the hook was not in SuperLink, executor and courier"
    connections = [args for _, event, args in events if event == "socket.connect"]
    assert any(str(home.port) in args[1] for args in connections), "the hook saw no connection at all"
    for _, event, args in events:
        text = " ".join(args)
        if event in ("socket.connect", "socket.sendto"):
            assert "127.0.0.1" in text or "::1" in text or str(federation.root) in text, (event, args)
        elif event.startswith("socket."):
            assert args[0].strip("b'") in ("127.0.0.1", "::1", "localhost", "None"), (event, args)
        else:
            program = Path(args[0]).name
            assert program not in ("uv", "pip") and "uv sync" not in text, (event, args)


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
