"""A running coordinator: SuperLink and executor, started together and ended together."""

import logging
import subprocess
from types import TracebackType
from typing import Self

from sfumato.common.errors import Unavailable
from sfumato.common.processes import stop_group, wait_for_port
from sfumato.server import executor, superlink
from sfumato.server.control import ControlClient, register_branches
from sfumato.server.home import CoordinatorHome

log = logging.getLogger("sfumato.coordinator")


class Coordinator:
    """Starts both processes in a `with` block, registers the enrolled branches, ends both at its end.

    Start it from the main thread: its processes end with the thread that started them.
    """

    def __init__(self, home: CoordinatorHome, *, start_executor: bool = True) -> None:
        self.home = home
        self._start_executor = start_executor
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        try:
            self._processes.append(superlink.start(self.home))
            wait_for_port(self.home.local_host, self.home.port, timeout=60.0, process=self._processes[0])
            control = ControlClient.of(self.home)
            register_branches(self.home, control)
            control.close()
            if self._start_executor:
                self._processes.append(executor.start(self.home))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def require_alive(self) -> None:
        """Raise Unavailable if one of the processes has ended."""
        for process, name in zip(self._processes, ("SuperLink", "executor"), strict=False):
            if (status := process.poll()) is not None:
                logs = self.home.path / "logs"
                raise Unavailable(f"the {name} ended with status {status}", hint=f"See {logs}.")

    @property
    def pids(self) -> list[int]:
        return [p.pid for p in self._processes]

    def stop(self) -> None:
        """End both; a second call does nothing. The executor goes first, so that it can say good-bye."""
        while self._processes:
            # Flower's server waits for idle connections; its state is in SQLite, so it may be cut short.
            stop_group(self._processes.pop(), grace=4.0)
