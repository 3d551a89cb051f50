"""Our executor at the SuperLink: warm, one run after the other, a clear end to each, no text from the inside."""

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.supercore.run import Run

from sfumato.common.bundle import build_bundle
from sfumato.common.contract import Contract
from sfumato.common.errors import Unavailable
from sfumato.common.flower_tasks import Runtime
from sfumato.common.job import ChurnNetJob, TrainingPrivacy, sign_job
from sfumato.common.job import Federation as JobFederation
from sfumato.common.processes import free_ports
from sfumato.server.exchange import MessageExchange
from sfumato.server.executor import run_tasks
from sfumato.server.run_grid import RunGrid

pytestmark = pytest.mark.slow

JOB = ChurnNetJob(
    name="waits",
    kind="churn-net",
    purpose="a job for the tests",
    contract="small",
    privacy=TrainingPrivacy(target_epsilon=1.0),
    federation=JobFederation(min_branches=2),
)
CONTRACT = Contract.model_validate(
    {
        "version": 1,
        "name": "small",
        "purpose": "a contract for the tests",
        "tables": [
            {
                "name": "customers",
                "columns": [
                    {"name": "id", "type": "string", "role": "customer_id"},
                    {"name": "age", "type": "number", "role": "feature", "bounds": [0, 100]},
                    {"name": "left", "type": "boolean", "role": "label"},
                ],
            }
        ],
    }
)
SECRET = "account 4711 of Ms Example"


@pytest.fixture(scope="module")
def federation(make_federation: Any) -> Any:
    return make_federation(couriers=1)


@contextlib.contextmanager
def executing(federation: Any, server_main: Callable[[Any, Any], None]) -> Iterator[Any]:
    """The executor's loop in a thread, with a ServerApp of the test's own."""
    stop = threading.Event()
    thread = threading.Thread(target=run_tasks, args=(federation.home, server_main, stop))
    thread.start()
    control = federation.control()
    try:
        yield control
    finally:
        control.close()
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def finished(control: Any, run_id: int, timeout: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout
    while not (state := control.run(run_id)).finished:
        assert time.monotonic() < deadline, state
        time.sleep(0.05)
    return state


def test_it_outlives_what_fails_and_says_no_more_than_it_may(federation: Any) -> None:
    def server_main(grid: Any, context: Any) -> None:
        behaviour = context.run_config["job"]
        print(f"printing in {behaviour}", flush=True)
        logging.getLogger("sfumato.run").warning("logging in %s", behaviour)
        if behaviour == "crash":
            raise ValueError(SECRET)
        if behaviour == "known":
            raise Unavailable("two of three branches are there")

    with executing(federation, server_main) as control:
        started = time.monotonic()
        states, logs = {}, {}
        for behaviour in ("crash", "known", "fine"):
            run_id = control.start_run(build_bundle(), {"job": behaviour})
            logs[behaviour] = "".join(control.logs(run_id))
            states[behaviour] = finished(control, run_id)
        print(f"three runs in {time.monotonic() - started:.1f} s")
    ends = {b: (s.sub_status, s.details) for b, s in states.items()}
    assert ends["fine"] == ("completed", "")
    assert ends["known"] == ("failed", "two of three branches are there")
    assert ends["crash"][0] == "failed" and ends["crash"][1].startswith("internal: ValueError;")
    for behaviour, text in logs.items():
        assert f"printing in {behaviour}" in text and f"logging in {behaviour}" in text
        assert SECRET not in text and SECRET not in states[behaviour].details
        assert "Traceback" not in text


def test_a_stopped_run_ends_and_the_next_one_runs(federation: Any) -> None:
    reached = threading.Event()
    node = federation.couriers[0]

    def server_main(grid: Any, context: Any) -> None:
        if context.run_config["job"] == "long":
            reached.set()
            exchange = MessageExchange(grid, expected=1)
            while True:
                exchange.ask({node.node_id: b"x"}, timeout=1.0)

    with executing(federation, server_main) as control:
        long = control.start_run(build_bundle(), {"job": "long"})
        assert reached.wait(20)
        control.stop(long)
        state = finished(control, control.start_run(build_bundle(), {"job": "short"}))
        assert state.sub_status == "completed"
        assert control.run(long).sub_status == "stopped"


def test_a_run_goes_on_over_a_killed_superlink(federation: Any) -> None:
    """kill -9 of the SuperLink in mid-run; `tend` brings it back, the executor waits, the run completes."""
    reached, go_on = threading.Event(), threading.Event()
    seen: list[tuple[int, ...]] = []

    def server_main(grid: Any, context: Any) -> None:
        reached.set()
        assert go_on.wait(60)
        seen.append(MessageExchange(grid).open(at_least=1, timeout=60.0))

    coordinator = federation.coordinator
    with executing(federation, server_main) as control:
        run_id = control.start_run(build_bundle(), {"job": "x"})
        assert reached.wait(20)
        os.kill(coordinator.pids["superlink"], signal.SIGKILL)
        go_on.set()  # while it is down
        time.sleep(1.0)
        with pytest.raises(Unavailable, match="does not answer"):
            control.list_runs()
        with pytest.raises(Unavailable, match="SuperLink ended with status -9"):
            coordinator.require_alive()
        assert coordinator.tend() == ["SuperLink"]
        assert coordinator.tend() == []
        assert finished(control, run_id, timeout=60.0).sub_status == "completed"
    assert seen == [(federation.couriers[0].node_id,)]


def test_the_installed_executor_refuses_what_is_not_a_signed_job(make_federation: Any, tmp_path: Any) -> None:
    federation = make_federation(couriers=0, start_executor=True)
    control = federation.control()
    for job, why in {"": "no signed job", "{}": "no signed job", "[1]": "no signed job"}.items():
        state = finished(control, control.start_run(build_bundle(), {"job": job}))
        assert state.sub_status == "failed" and why in state.details

    # A signature by another key, and a good one that waits for branches until the coordinator is stopped.
    forged = sign_job(JOB, CONTRACT, Ed25519PrivateKey.generate(), valid_for=timedelta(hours=1))
    assert "bad-signature" in finished(control, control.submit(forged)).details
    signed = sign_job(JOB, CONTRACT, federation.home.job_key(), valid_for=timedelta(hours=1))
    waiting = control.submit(signed)
    deadline = time.monotonic() + 20
    while control.run(waiting).status != "running":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1.0)
    coordinator = federation.coordinator
    os.kill(coordinator.pids["executor"], signal.SIGTERM)
    state = finished(control, waiting)
    assert (state.sub_status, state.details) == ("failed", "the coordinator was stopped")
    assert json.loads(state.job)["job"]["name"] == JOB.name

    # kill -9 of the next one: a run it had is not left standing, and the next executor takes a new one.
    while not coordinator.tend():
        time.sleep(0.05)
    waiting = control.submit(signed)
    while control.run(waiting).status != "running":
        time.sleep(0.05)
    os.kill(coordinator.pids["executor"], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not (restarted := coordinator.tend()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert restarted == ["executor"]
    assert control.run(waiting).sub_status == "stopped"
    assert "no signed job" in finished(control, control.start_run(build_bundle(), {"job": "{}"})).details
    control.close()


def test_a_superlink_that_stays_away_is_unavailable_not_for_ever() -> None:
    runtime = Runtime(f"127.0.0.1:{free_ports(1)[0]}", None, "flwr-serverapp")
    grid = RunGrid(runtime, "token", patience=0.5)
    grid.set_run(Run.create_empty(1))
    start = time.monotonic()
    with pytest.raises(Unavailable, match="does not answer"):
        MessageExchange(grid).open(at_least=1, timeout=5.0)
    assert time.monotonic() - start < 3
