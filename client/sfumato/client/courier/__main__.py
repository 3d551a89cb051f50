"""python -m sfumato.client.courier --config courier.toml: a stock SuperNode and our executor, until SIGTERM."""

import argparse
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from sfumato.client.courier_config import CourierConfig
from sfumato.common.errors import SfumatoError
from sfumato.common.private_files import private_directory
from sfumato.common.processes import end_with_parent, python, quiet_environment, start_child, stop_group

log = logging.getLogger("sfumato.courier")

SUPERNODE = """
from sfumato.common.processes import end_with_parent
end_with_parent()
from flwr.supernode.cli import flower_supernode
flower_supernode()
"""
FIRST_WAIT, LONGEST_WAIT = 1.0, 10.0
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def supernode_command(config: CourierConfig) -> list[str]:
    """The stock SuperNode, which hands its tasks to whoever knows the secret, and runs nothing itself."""
    line = python("-c", SUPERNODE, "--superlink", config.superlink)
    line += ["--root-certificates", str(config.ca_file)]
    line += ["--auth-supernode-private-key", str(config.node_key_file)]
    line += ["--isolation", "process", "--superexec-auth-secret-file", str(config.superexec_secret_file)]
    return [*line, "--host", "127.0.0.1", "--port", str(config.runtime_port)]


def keep_supernode(config: CourierConfig, stop: threading.Event) -> None:
    """Start the SuperNode, and again whenever it ends, with growing pauses, until `stop`.

    A last SuperNode that was killed is signed off first (see `sign_off`).
    """
    from sfumato.client.courier.sign_off import sign_off

    wait = FIRST_WAIT
    while not stop.is_set():
        sign_off(config)
        process = start_child(
            supernode_command(config),
            environment=quiet_environment(os.environ, config.flwr_home),
            log=config.log_file,
            cwd=config.flwr_home,
            lifeline=True,
        )
        try:
            lasted = _watch(process, stop)
        finally:
            stop_group(process)
        if not stop.is_set():
            wait = FIRST_WAIT if lasted else min(LONGEST_WAIT, wait * 2)
            log.warning("the SuperNode ended; starting it again in %.0f s", wait)
            stop.wait(wait)


def _watch(process: "subprocess.Popen[bytes]", stop: threading.Event) -> bool:
    """Until the process ends or `stop` is set. Whether it lasted long enough to have been connected."""
    beats = 0
    while process.poll() is None and not stop.wait(0.25):
        beats += 1
    return beats * 0.25 > 30.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a courier until SIGTERM or SIGINT. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="sfumato.client.courier", description="Run a branch's courier.")
    parser.add_argument("--config", type=Path, required=True, help="courier.toml")
    parser.add_argument("--lifeline", action="store_true", help="end when standard input ends")
    options = parser.parse_args(argv)
    if options.lifeline:
        end_with_parent()
    try:
        config = CourierConfig.load(options.config)
        secret = config.superexec_secret
        private_directory(config.flwr_home)
        # Flower reads its switches while it is imported, so they are set before the first import of it.
        quiet = quiet_environment(os.environ, config.flwr_home)
        os.environ.clear()
        os.environ.update(quiet)
        os.umask(0o077)
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, filename=config.log_file)
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a poll, five a second
        _serve(config, secret)
    except SfumatoError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0


def _serve(config: CourierConfig, secret: bytes) -> None:
    from sfumato.client.courier.app import app_of
    from sfumato.client.courier.executor import run_tasks
    from sfumato.common.flower_tasks import Runtime

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    runtime = Runtime(f"127.0.0.1:{config.runtime_port}", None, "flwr-clientapp")
    # A daemon: a session or a question to the vault under way must not hold up the end.
    threading.Thread(
        target=run_tasks, args=(runtime, secret, app_of(config), stop), name="executor", daemon=True
    ).start()
    keep_supernode(config, stop)


if __name__ == "__main__":
    raise SystemExit(main())
