"""A running coordinator: SuperLink and executor, started together, watched, and ended together."""

import contextlib
import logging
import subprocess
import time
from types import TracebackType
from typing import Self

from sfumato.common.errors import BadInput, Unavailable
from sfumato.common.processes import stop_group, wait_for_port
from sfumato.server import executor, superlink
from sfumato.server.control import ControlClient, register_branches
from sfumato.server.home import CoordinatorHome
from sfumato.server.interrupted import find_interrupted

log = logging.getLogger("sfumato.coordinator")

MOST_RESTARTS = 5
RESTARTS_WITHIN = 60.0  # seconds


class Coordinator:
    """Starts both processes in a `with` block, registers the enrolled branches, ends both at its end.

    Start it from the main thread: its processes end with the thread that started them.
    """

    def __init__(self, home: CoordinatorHome, *, start_executor: bool = True) -> None:
        self.home = home
        self._start_executor = start_executor
        self._superlink: subprocess.Popen[bytes] | None = None
        self._executor: subprocess.Popen[bytes] | None = None
        self._restarts: list[float] = []
        self.waiting: list[int] = []  # runs that a dead executor left to be resumed

    def __enter__(self) -> Self:
        try:
            self._superlink = self._start_superlink()
            control = ControlClient.of(self.home)
            self.waiting = end_orphans(self.home, control)
            register_branches(self.home, control)
            control.close()
            if self._start_executor:
                self._executor = executor.start(self.home)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def tend(self) -> list[str]:
        """Start again what has ended, and say what. A run goes on over a restart of the SuperLink; one whose
        executor died is stopped. Raises Unavailable for what does not stay up."""
        restarted: list[str] = []
        if all(p is None or p.poll() is None for p in (self._superlink, self._executor)):
            return restarted
        now = time.monotonic()
        self._restarts = [t for t in self._restarts if now - t < RESTARTS_WITHIN] + [now]
        if len(self._restarts) > MOST_RESTARTS:
            self.require_alive()
        if self._superlink is not None and self._superlink.poll() is not None:
            self._superlink = self._start_superlink()
            restarted.append("SuperLink")
        if self._executor is not None and self._executor.poll() is not None:
            control = ControlClient.of(self.home)
            self.waiting = end_orphans(self.home, control)
            control.close()
            self._executor = executor.start(self.home)
            restarted.append("executor")
        return restarted

    def require_alive(self) -> None:
        """Raise Unavailable if one of the processes has ended."""
        for process, name in ((self._superlink, "SuperLink"), (self._executor, "executor")):
            if process is not None and (status := process.poll()) is not None:
                logs = self.home.path / "logs"
                raise Unavailable(f"the {name} ended with status {status}", hint=f"See {logs}.")

    @property
    def pids(self) -> dict[str, int]:
        running = {"superlink": self._superlink, "executor": self._executor}
        return {name: p.pid for name, p in running.items() if p is not None}

    def stop(self) -> None:
        """End both; a second call does nothing. The executor goes first, so that it can say good-bye."""
        if self._executor is not None:
            stop_group(self._executor, grace=4.0)
        if self._superlink is not None:
            superlink.stop(self._superlink)
        self._executor = self._superlink = None

    def _start_superlink(self) -> "subprocess.Popen[bytes]":
        process = superlink.start(self.home)
        try:
            wait_for_port(self.home.local_host, self.home.port, timeout=60.0, process=process)
        except BaseException:
            superlink.stop(process)
            raise
        return process


def end_orphans(home: CoordinatorHome, control: ControlClient) -> list[int]:
    """Stop the runs that a dead executor left behind, which Flower would call running for another minute, and
    say so in their results. Returns the runs that wait to be resumed.

    Only for a coordinator without a living executor.
    """
    with contextlib.closing(home.open_ledger()) as ledger:
        waiting = find_interrupted(home.directory("runs"), ledger)
    for run_id in waiting:
        log.warning("run %d was cut short; resume it, or give it up (stop)", run_id)
    for run in control.list_runs():
        if run.status in ("starting", "running"):
            log.warning("run %d had lost its executor; it is stopped", run.run_id)
            try:
                control.stop(run.run_id)
            except BadInput:
                log.info("run %d had ended by itself", run.run_id)
    return waiting
