"""Taking tasks from a Flower Runtime API: what our two executors (coordinator, courier) have in common.

Flower's own helpers are not used where they would end the process: its retry sends SIGINT to itself on a 401,
its heartbeat does when a run was stopped. Ours stay up and serve the next task.
"""

import logging
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker
from flwr.supercore.runtime import RuntimeHttpClient

from sfumato.common.errors import Unavailable

log = logging.getLogger("sfumato.flower")

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
HEARTBEAT_SECONDS = 3.0  # how late a running job learns that it was stopped
FRAME_RECORD = "sfumato"
QUERY = "query"
OPEN_SESSION = "query.session"


class RunEnded(Unavailable):
    """The run was stopped, or its task given to somebody else; nothing more can be done in its name."""


@dataclass(frozen=True)
class Task:
    """A claimed task. The token is a secret: it authorises everything done in the task's name."""

    type: str
    run_id: int
    token: str


@dataclass(frozen=True)
class Runtime:
    """Where a Runtime API is. `ca` is PEM, or None for plain HTTP (loopback to one's own SuperNode only)."""

    address: str
    ca: bytes | None
    component: str  # the name Flower's version check knows us by

    def __post_init__(self) -> None:
        host = self.address.rsplit(":", 1)[0]
        if self.ca is None and host not in ("127.0.0.1", "[::1]", "localhost"):
            raise ValueError("plain HTTP is for loopback only")

    def for_task(self, token: str, *, patience: float) -> RuntimeHttpClient:
        """A client that speaks in a task's name and rides out `patience` seconds of absence."""
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=self.ca is None,
            root_certificates=self.ca,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name=self.component),
                RuntimeTokenHttpInterceptor(token),
            ],
            retry_invoker=patient_retry(patience),
        )


class TaskSource:
    """Claims tasks of the given types with the shared secret. Raises httpx.HTTPError as it comes."""

    def __init__(self, runtime: Runtime, secret: bytes, types: tuple[str, ...]) -> None:
        self._types = types
        self._client = RuntimeHttpClient.from_server_address(
            server_address=runtime.address,
            insecure=runtime.ca is None,
            root_certificates=runtime.ca,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name=runtime.component),
                SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[ACQUIRE]),
            ],
        )

    def acquire(self) -> Task | None:
        """The oldest pending task, now ours; None if there is none."""
        response = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=self._types))
        if not (response.HasField("task") and response.token):
            return None
        return Task(type=response.task.type, run_id=response.task.run_id, token=response.token)

    def tasks(self, stop: threading.Event, poll: float) -> Iterator[Task]:
        """Every task as it comes, until `stop`. An absent or refusing API is waited for, and said once."""
        complained = False
        while not stop.is_set():
            try:
                task = self.acquire()
            except httpx.HTTPError as e:
                if not complained:
                    log.warning("no tasks to be had (%s); waiting", http_reason(e))
                complained = True
                stop.wait(max(poll, 1.0))
                continue
            if complained:
                log.info("tasks can be had again")
            complained = False
            if task is None:
                stop.wait(poll)
            else:
                yield task

    def close(self) -> None:
        self._client.close()


class Heartbeat:
    """Keeps a task ours while a `with` block runs; `lost` is set once the run was stopped or given away."""

    def __init__(self, client: RuntimeHttpClient, lost: threading.Event) -> None:
        self._client = client
        self.lost = lost
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="task-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=2.0)

    def _beat(self) -> None:
        while True:
            try:
                if not self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                    self.lost.set()
            except RunEnded:
                self.lost.set()
            except (httpx.HTTPError, ValueError):
                pass  # the API is away for a moment; the next beat tells
            if self.lost.is_set() or self._done.wait(HEARTBEAT_SECONDS):
                return


def finish_task(client: RuntimeHttpClient, sub_status: str, details: str) -> None:
    """Tell the API how the task ended; a run that was stopped meanwhile needs no telling."""
    try:
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=sub_status, details=details))
    except (httpx.HTTPError, RunEnded) as e:
        log.warning("the task's end could not be reported (%s)", http_reason(e))


def patient_retry(patience: float) -> RetryInvoker:
    """Retry what a restart of the other side causes, for `patience` seconds; anything else at once."""
    return RetryInvoker(
        wait_gen_factory=_waits,
        recoverable_exceptions=(httpx.TransportError, httpx.HTTPStatusError),
        max_tries=None,
        max_time=patience,
        jitter=None,
        should_giveup=_hopeless,
    )


def _waits() -> Generator[float, None, None]:
    wait = 0.1
    while True:
        yield wait
        wait = min(2.0, wait * 2)


def _hopeless(error: Exception) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        if error.response.status_code in (401, 403):
            raise RunEnded("the run was stopped")
        return error.response.status_code not in (502, 503, 504)
    return "CERTIFICATE" in str(error).upper()


def http_reason(error: BaseException) -> str:
    """What went wrong with a request, without addresses, headers or bodies."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}"
    return type(error).__name__
