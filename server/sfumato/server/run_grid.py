"""Flower's HTTP grid for one run, without the parts that end the process."""

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

import httpx
from flwr.app import Message
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from sfumato.common.errors import Unavailable
from sfumato.common.flower_tasks import Runtime, http_reason, patient_retry

T = TypeVar("T")


class RunGrid(HttpGrid):
    """An HttpGrid that waits `patience` s for a restarting SuperLink, then raises Unavailable; RunEnded when
    its run is over.

    `stopped` is set once the heartbeat learns that the run was stopped. Flower's own retry would send SIGINT
    to this process instead, and wait for ever for a SuperLink that is gone.
    """

    def __init__(self, runtime: Runtime, token: str, *, patience: float) -> None:
        super().__init__(
            runtime_api_address=runtime.address,
            insecure=runtime.ca is None,
            root_certificates=runtime.ca,
            token=token,
        )
        self._retry_invoker = patient_retry(patience)
        self.stopped = threading.Event()

    @property
    def runtime_client(self) -> RuntimeHttpClient:
        return self._runtime_client

    def get_nodes(self) -> Iterable[NodeInfo]:
        return _or_unavailable(super().get_nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        push = super().push_messages
        return _or_unavailable(lambda: push(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        pull = super().pull_messages
        return _or_unavailable(lambda: pull(message_ids))


def _or_unavailable(call: Callable[[], T]) -> T:
    try:
        return call()
    except httpx.HTTPError as e:
        raise Unavailable(f"the SuperLink does not answer ({http_reason(e)})") from None
