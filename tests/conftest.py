"""A real federation for tests: SuperLink and SuperNodes as processes, TLS, loopback, and vaults that echo."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.task_identity import TaskIdentity

from sfumato.client.courier_config import CourierConfig, init_courier
from sfumato.common.bundle import build_bundle
from sfumato.common.codec import PREFIX, frame_length
from sfumato.common.enrolment import Enrolment, ed25519_text
from sfumato.common.flower_tasks import Heartbeat, Runtime, TaskSource, finish_task
from sfumato.common.processes import free_ports, python, quiet_environment, start_child, stop_group
from sfumato.server.control import ControlClient
from sfumato.server.coordinator import Coordinator
from sfumato.server.home import CoordinatorHome
from sfumato.server.run_grid import RunGrid

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in its background deaf to Ctrl-C, and processes inherit that; tests press it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole files go to one worker. Those with slow tests first: a long one must not be the last to start. But those
    of `faults` last: their federation lives, and works, until the session's end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: 2 if "faults" in item.path.parts else int(item.path not in slow))


class EchoVault:
    """Stands in for a vault on its socket: answers every frame with itself, after `delay` seconds."""

    def __init__(self, path: Path) -> None:
        self.delay = 0.0
        self.asked = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._echo, args=(link,), daemon=True).start()

    def _echo(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError):
            frame = link.recv(PREFIX.size, socket.MSG_WAITALL)
            while len(frame) < frame_length(frame[: PREFIX.size]):
                frame += link.recv(1 << 22)
            self.asked += 1
            time.sleep(self.delay)
            link.sendall(frame)

    def close(self) -> None:
        self._listener.close()


@dataclass
class Courier:
    directory: Path
    config: CourierConfig
    vault: EchoVault
    node_id: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    def start(self, **extra: str) -> None:
        self.process = start_child(
            python("-m", "sfumato.client.courier", "--config", str(self.directory / "courier.toml")),
            environment=quiet_environment(os.environ, self.config.flwr_home) | extra,
            log=self.directory / "out.log",
        )

    def kill(self) -> None:
        """kill -9, as the kernel's OOM killer would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def cannot_dial(self) -> None:
        """Before its start: as behind a firewall that lets only the SuperLink's port through."""
        file = self.directory / "courier.toml"
        settings = tomllib.loads(file.read_text()) | {"session": f"127.0.0.1:{free_ports(1)[0]}"}
        file.write_text(tomli_w.dumps(settings))

    def stop(self) -> None:
        if self.process is not None:
            stop_group(self.process)
        self.vault.close()


class Federation:
    """A coordinator with its SuperLink, and couriers. Use `drive` to be the ServerApp of a run."""

    def __init__(self, root: Path, couriers: int) -> None:
        port, session_port, *runtime_ports = free_ports(2 + couriers)
        self.root = root
        self.home = CoordinatorHome.init(
            root / "home", host="127.0.0.1", port=port, session_port=session_port
        )
        self.couriers = [self._enrol(i, p) for i, p in enumerate(runtime_ports)]
        self.coordinator: Coordinator | None = None

    def _enrol(self, index: int, runtime_port: int) -> Courier:
        directory = self.root / f"c{index}"
        vault_socket = self.root / f"v{index}.sock"
        config = init_courier(
            directory, self.home.invitation, runtime_port=runtime_port, vault_socket=vault_socket
        )
        enrolment = Enrolment(
            name=f"branch-{index}",
            node_public_key=config.node_public_key(),
            ledger_public_key=ed25519_text(Ed25519PrivateKey.generate().public_key()),
        )
        file = self.root / f"enrolment-{index}.json"
        file.write_bytes(enrolment.dump())
        self.home.enrol(file)
        return Courier(directory, config, EchoVault(vault_socket))

    def control(self) -> ControlClient:
        return ControlClient.of(self.home)

    @contextlib.contextmanager
    def running(self, *, start_executor: bool, **extra: str) -> "Iterator[Federation]":
        with contextlib.ExitStack() as stack:
            self.coordinator = stack.enter_context(Coordinator(self.home, start_executor=start_executor))
            ids = {b.name: b.node_id for b in self.home.branches()}
            for i, courier in enumerate(self.couriers):
                stack.callback(courier.stop)
                courier.node_id = ids[f"branch-{i}"] or 0
                courier.start(**extra)
            yield self

    @contextlib.contextmanager
    def drive(self, bundle: bytes | None = None) -> Iterator[RunGrid]:
        """Start a run, and be its ServerApp: the grid our executor would hand over."""
        control = self.control()
        run_id = control.start_run(bundle or build_bundle(), {"job": "{}"})
        control.close()
        runtime = Runtime(self.home.local_address, self.home.ca, "flwr-serverapp")
        source = TaskSource(runtime, self.home.superexec_secret, (str(TaskType.SERVER_APP),))
        task = source.acquire()
        source.close()
        assert task is not None and task.run_id == run_id
        grid = RunGrid(runtime, task.token, patience=10.0)
        with contextlib.closing(grid), Heartbeat(grid.runtime_client, grid.stopped):
            given = grid.runtime_client.PullTaskInput(PullTaskInputRequest())
            grid.set_run(run_from_proto(given.run))
            TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, run_id
            TaskIdentity.node_id = given.context.node_id
            yield grid
            finish_task(grid.runtime_client, "completed", "")


@pytest.fixture(scope="module")
def make_federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Federation]]:
    """make_federation(couriers=3, start_executor=False): running until the module's tests are done."""
    with contextlib.ExitStack() as stack:

        def make(
            *, couriers: int, start_executor: bool = False, cannot_dial: int = 0, **extra: str
        ) -> Federation:
            federation = Federation(tmp_path_factory.mktemp("fed"), couriers)
            for courier in federation.couriers[:cannot_dial]:
                courier.cannot_dial()
            return stack.enter_context(federation.running(start_executor=start_executor, **extra))

        yield make
