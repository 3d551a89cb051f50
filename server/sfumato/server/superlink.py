"""The stock SuperLink in its own process, with the doors shut that the open-source build leaves open.

    python -m sfumato.server.superlink --home HOME

TLS, node authentication, process isolation with a shared secret, SQLite state, no run-time installation, no
calls home, a bearer token in front of the Control API, and for other machines the fleet routes alone. If any
of this cannot be had, it does not start.
"""

import argparse
import contextlib
import importlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sfumato.common.errors import Insecure, SfumatoError
from sfumato.common.processes import python, quiet_environment, start_child, stop_group
from sfumato.server.home import CoordinatorHome

FLOWER = "1.41."


def start(home: CoordinatorHome) -> "subprocess.Popen[bytes]":
    """Start the SuperLink as a child of this thread; its log goes to logs/superlink.log."""
    home.require_secure()
    return start_child(
        python("-m", "sfumato.server.superlink", "--home", str(home.path)),
        environment=quiet_environment(os.environ, home.directory("flwr")),
        log=home.directory("logs") / "superlink.log",
        cwd=home.path,
    )


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End it. Flower's server would wait for idle connections; a SIGINT after the SIGTERM tells it not to."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
    stop_group(process, grace=3.0)  # its state is in SQLite: it may be cut short


def arguments(home: CoordinatorHome) -> list[str]:
    """Flower's own command line. Raises Insecure if it would start without one of its locks."""
    at = {name: str(home.path / name) for name in ("ca.crt", "server.crt", "server.key", "superexec.secret")}
    line = ["--host", home.host, "--port", str(home.port)]
    line += ["--ssl-ca-certfile", at["ca.crt"], "--ssl-certfile", at["server.crt"]]
    line += ["--ssl-keyfile", at["server.key"], "--enable-supernode-auth"]
    line += ["--isolation", "process", "--superexec-auth-secret-file", at["superexec.secret"]]
    line += ["--database", str(home.path / "superlink.db"), "--disable-runtime-dependency-installation"]
    return line


def require_locks(line: Sequence[str]) -> None:
    """Raise Insecure unless a command line has every lock and no key left in it."""
    for flag in (
        "--ssl-certfile",
        "--ssl-keyfile",
        "--enable-supernode-auth",
        "--superexec-auth-secret-file",
    ):
        if flag not in line:
            raise Insecure(f"the SuperLink would start without {flag}")
    if "--insecure" in line or "subprocess" in line:
        raise Insecure("the SuperLink would start with an insecure flag")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the SuperLink until SIGTERM. Returns an exit status when it could not start."""
    parser = argparse.ArgumentParser(prog="sfumato.server.superlink", description="Start the SuperLink.")
    parser.add_argument("--home", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        home = CoordinatorHome.load(options.home)
        # Flower reads its switches while it is imported, so they are set before the first import of it.
        quiet = quiet_environment(os.environ, home.directory("flwr"))
        os.environ.clear()
        os.environ.update(quiet)
        os.umask(0o077)
        sys.argv = ["flower-superlink", *arguments(home)]
        require_locks(sys.argv)
        run = _guarded_superlink(home.control_token)
    except SfumatoError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    run()
    return 0


def _guarded_superlink(token: str) -> Any:
    """Flower's entry point, with our plug-in where it would load the one that admits everybody.

    The open-source build can only be told by code: it loads `NoOpControlAuthnPlugin` unless an OIDC plug-in of
    the commercial edition is installed. So the loader is replaced, in the module that calls it, before the
    call. Should a later Flower move it, we notice here and refuse to start.
    """
    from flwr.supercore.version import package_version

    from sfumato.server.control_auth import TokenPlugin
    from sfumato.server.fleet_only import FleetOnly

    if not package_version.startswith(FLOWER):
        raise Insecure(f"Flower {package_version} is not the {FLOWER}x whose Control API we know how to lock")
    plugin = TokenPlugin(token)
    for name in (
        "flwr.superlink.cli.flower_superlink",
        "flwr.superlink.main",
        "flwr.superlink.config_loader",
    ):
        _replace(importlib.import_module(name), "load_control_authn_plugin", lambda _: lambda: plugin)
    main_module = importlib.import_module("flwr.superlink.main")
    _replace(main_module, "create_app", lambda create: lambda *given: FleetOnly(create(*given)))
    logging.getLogger("uvicorn.access").addFilter(_worth_a_line)
    return importlib.import_module("flwr.superlink.cli.flower_superlink").flower_superlink


def _replace(module: Any, name: str, by: Callable[[Any], Any]) -> None:
    original = getattr(module, name, None)
    if not callable(original):
        raise Insecure(f"Flower's SuperLink cannot be locked: {name} is not where it was")
    setattr(module, name, by(original))


def _worth_a_line(record: logging.LogRecord) -> bool:
    """Only failed requests: nodes and executor poll, and five lines a second would fill the disk."""
    args = record.args
    return not (isinstance(args, tuple) and len(args) == 5 and isinstance(args[4], int) and args[4] < 400)


if __name__ == "__main__":
    raise SystemExit(main())
