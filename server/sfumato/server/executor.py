"""Our executor at the SuperLink: takes ServerApp tasks and runs the installed ServerApp in this process.

    python -m sfumato.server.executor --home HOME

It stays up, so a run starts warm. Like the courier's it hashes the bundle, refuses all but the approved one and
unpacks nothing: a stolen control token can submit jobs, but no code. One run at a time; a failing one ends with
a status, and the next is taken.
"""

import argparse
import contextlib
import io
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfumato.common.errors import SfumatoError
from sfumato.common.processes import python, quiet_environment, start_child
from sfumato.server.home import HOME_VARIABLE, CoordinatorHome

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid

    from sfumato.common.flower_tasks import Runtime, Task
    from sfumato.server.run_grid import RunGrid

log = logging.getLogger("sfumato.executor")

POLL = 0.2
PATIENCE = 60.0  # a SuperLink that restarts is back within seconds, and the run goes on
LOG_SECONDS = 0.2
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class Stopping(BaseException):
    """SIGTERM came while a run was under way."""


ServerMain = Callable[["Grid", "Context"], None]


def start(home: CoordinatorHome) -> "subprocess.Popen[bytes]":
    """Start the executor as a child of this thread; its log goes to logs/executor.log."""
    return start_child(
        python("-m", "sfumato.server.executor", "--home", str(home.path)),
        environment=quiet_environment(os.environ, home.directory("flwr")),
        log=home.directory("logs") / "executor.log",
        cwd=home.path,
    )


def run_tasks(home: CoordinatorHome, server_main: ServerMain, stop: threading.Event) -> None:
    """Serve ServerApp tasks, one at a time, until `stop`."""
    from flwr.supercore.constant import TaskType

    from sfumato.common.flower_tasks import RunEnded, Runtime, TaskSource, http_reason

    runtime = Runtime(home.local_address, home.ca, "flwr-serverapp")
    source = TaskSource(runtime, home.superexec_secret, (str(TaskType.SERVER_APP),))
    try:
        for task in source.tasks(stop, POLL):
            try:
                run_task(runtime, task, server_main)
            except RunEnded as e:
                log.warning("run %d ended early: %s", task.run_id, e)
            except Exception as e:
                log.exception("run %d was lost (%s)", task.run_id, http_reason(e))
    finally:
        source.close()


def run_task(runtime: "Runtime", task: "Task", server_main: ServerMain) -> None:
    """Run one task to its end and report how it ended."""
    from flwr.common.constant import SubStatus
    from flwr.common.serde import context_from_proto, run_from_proto
    from flwr.proto.runtime_pb2 import PullTaskInputRequest
    from flwr.supercore.task_identity import TaskIdentity

    from sfumato.common.bundle import approved_hash, bundle_hash
    from sfumato.common.flower_tasks import Heartbeat, finish_task
    from sfumato.server.run_grid import RunGrid

    grid = RunGrid(runtime, task.token, patience=PATIENCE)
    with contextlib.closing(grid), Heartbeat(grid.runtime_client, grid.stopped):
        given = grid.runtime_client.PullTaskInput(PullTaskInputRequest())
        run = run_from_proto(given.run)
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, run.run_id
        TaskIdentity.node_id = given.context.node_id
        grid.set_run(run)
        context = context_from_proto(given.context)
        context.run_config = {"job": str(run.override_config.get("job", ""))}
        with run_log(grid):
            if bundle_hash(given.fab.content) != approved_hash():
                log.error("run %d refused: its bundle is not the approved one", run.run_id)
                status, details = SubStatus.FAILED, "foreign-bundle: the app bundle is not the approved one"
            else:
                status, details = _execute(grid, context, server_main)
        finish_task(grid.runtime_client, status, details)
        log.info("run %d: %s %s", run.run_id, status, details)


def _execute(grid: "Grid", context: "Context", server_main: ServerMain) -> tuple[str, str]:
    from flwr.common.constant import SubStatus

    from sfumato.common.flower_tasks import RunEnded

    try:
        server_main(grid, context)
    except RunEnded as e:
        return SubStatus.STOPPED, e.message
    except Stopping:
        return SubStatus.FAILED, "the coordinator was stopped"
    except SfumatoError as e:
        log.error("%s", e)
        return SubStatus.FAILED, e.message
    except Exception as e:
        # The text of an unforeseen exception may hold anything; it stays in this process's own log.
        _local_only().error("the run failed", exc_info=e)
        return SubStatus.FAILED, f"internal: {type(e).__name__}; the coordinator's executor.log says more"
    return SubStatus.COMPLETED, ""


def _local_only() -> logging.Logger:
    """A logger whose records go to this process's log and never up with the run's."""
    return logging.getLogger("sfumato-local")


@contextlib.contextmanager
def run_log(grid: "RunGrid") -> Iterator[None]:
    """While it lasts, what is printed or logged also goes to the SuperLink, where `logs` follows it."""
    from flwr.proto.log_pb2 import PushLogsRequest
    from flwr.proto.node_pb2 import Node

    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    done = threading.Event()

    def upload() -> None:
        while True:
            last = done.wait(LOG_SECONDS)
            batch = []
            with contextlib.suppress(queue.Empty):
                while True:
                    batch.append(lines.get_nowait())
            if batch:
                request = PushLogsRequest(node=Node(node_id=0), run_id=grid.run.run_id, logs=batch)
                with contextlib.suppress(Exception):  # a log line that is lost must not end a run
                    grid.runtime_client.PushLogs(request)
            if last:
                return

    handler = logging.StreamHandler(_Lines(lines, None))
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    uploader = threading.Thread(target=upload, name="log-upload", daemon=True)
    uploader.start()
    ours = logging.getLogger("sfumato")
    ours.addHandler(handler)
    try:
        with contextlib.redirect_stdout(_Lines(lines, sys.stdout)):
            yield
    finally:
        ours.removeHandler(handler)
        done.set()
        uploader.join(timeout=5.0)


class _Lines(io.TextIOBase):
    """A text stream that copies what is written to a queue, and on to another stream if there is one."""

    def __init__(self, lines: "queue.SimpleQueue[str]", onward: "io.TextIOBase | object | None") -> None:
        self._lines = lines
        self._onward = onward

    def write(self, text: str) -> int:
        if text:
            self._lines.put(text)
            if self._onward is not None:
                self._onward.write(text)  # type: ignore[attr-defined]
        return len(text)

    def flush(self) -> None:
        if self._onward is not None:
            self._onward.flush()  # type: ignore[attr-defined]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the executor until SIGTERM or SIGINT. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="sfumato.server.executor", description="Run submitted jobs.")
    parser.add_argument("--home", type=Path, required=True)
    options = parser.parse_args(argv)
    try:
        home = CoordinatorHome.load(options.home)
        # Flower reads its switches while it is imported, so they are set before the first import of it.
        quiet = quiet_environment(os.environ, home.directory("flwr")) | {HOME_VARIABLE: str(home.path)}
        os.environ.clear()
        os.environ.update(quiet)
        os.umask(0o077)
        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
        logging.getLogger("httpx").setLevel(logging.WARNING)
        _serve(home)
    except SfumatoError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    return 0


def _serve(home: CoordinatorHome) -> None:
    from sfumato.server.app import app

    stop = threading.Event()

    def end(*_: object) -> None:
        if not stop.is_set():  # a dying parent's signal may come more than once
            stop.set()
            raise Stopping

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    with contextlib.suppress(Stopping):
        run_tasks(home, app, stop)


if __name__ == "__main__":
    raise SystemExit(main())
