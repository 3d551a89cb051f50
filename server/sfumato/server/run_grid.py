"""Flower's HTTP grid for one run, without the parts that end the process."""

import threading

from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from sfumato.common.flower_tasks import Runtime, patient_retry


class RunGrid(HttpGrid):
    """An HttpGrid that waits `patience` s for a restarting SuperLink and raises RunEnded when its run is over.

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
