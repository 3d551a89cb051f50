"""One contract, three ways: every node answers or is dropped, in time, and nobody's answer is mixed up."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from sfumato.client.courier.app import make_app
from sfumato.common.codec import encode
from sfumato.common.errors import Unavailable
from sfumato.common.messages import Ping
from sfumato.server.exchange import FAILED, GONE, TIMED_OUT, Exchange, MessageExchange
from sfumato.server.session import SessionExchange

pytestmark = pytest.mark.slow


@dataclass
class Way:
    name: str
    exchange: Exchange
    nodes: tuple[int, ...]
    slow_down: Callable[[int, float], None]
    patience: float  # seconds in which a node that is there has surely answered
    extra: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def in_memory() -> Iterator[Way]:
    """Flower's in-memory grid as in its simulation, with one thread that plays three nodes."""
    factory = LinkStateFactory(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory())
    state = factory.state()
    nodes = []
    for i in range(3):
        node = state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, bytes([i]) * 32, heartbeat_interval=1e9)
        state.acknowledge_node_heartbeat(node_id=node, heartbeat_interval=1e9)
        nodes.append(node)
    run_id = state.create_run(
        "a/b", "1.0.0", "hash", {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
    )
    run = state.get_run_info(run_ids=[run_id])[0]
    claimed = state.claim_task(run.primary_task_id)
    assert claimed and state.activate_task(run.primary_task_id)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = run.primary_task_id, run_id, 1
    grid = InMemoryGrid(factory)
    grid.set_run(run)
    delays: dict[int, float] = {}
    stop = threading.Event()

    def play(node: int) -> None:
        context = Context(run_id, node, {}, RecordDict(), {})

        def ask(frame: bytes, _: Context) -> bytes:
            time.sleep(delays.get(node, 0.0))
            return frame

        app = make_app(ask)
        while not stop.wait(0.02):
            for message in state.get_message_ins(node_id=node, limit=1):
                reply = app(message, context)
                reply.metadata.__dict__["_message_id"] = str(uuid4())
                state.store_message_res(reply)

    players = [threading.Thread(target=play, args=(n,), daemon=True) for n in nodes]
    for player in players:
        player.start()
    exchange = MessageExchange(grid, expected=3)
    there = exchange.open(at_least=3, timeout=10.0)
    assert there == tuple(sorted(nodes))
    try:
        yield Way("memory", exchange, there, delays.__setitem__, 2.0)
    finally:
        stop.set()
        for player in players:
            player.join()


@pytest.fixture(scope="module")
def federation(make_federation: Any) -> Any:
    return make_federation(couriers=3)


@pytest.fixture(scope="module", params=["memory", "messages", "session"])
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    if request.param == "memory":
        with in_memory() as found:
            yield found
        return
    federation = request.getfixturevalue("federation")
    vaults = {c.node_id: c.vault for c in federation.couriers}

    def slow_down(node: int, delay: float) -> None:
        vaults[node].delay = delay

    with federation.drive() as grid:
        exchange: Exchange
        if request.param == "messages":
            exchange, patience = MessageExchange(grid, expected=3), 12.0
        else:
            home = federation.home
            exchange, patience = (
                SessionExchange(
                    grid,
                    address=f"127.0.0.1:{home.session_port}",
                    certificate=home.server_certificate,
                    expected=3,
                ),
                3.0,
            )
        try:
            start = time.monotonic()
            there = exchange.open(at_least=3, timeout=60.0)
            print(f"{request.param}: three nodes there after {time.monotonic() - start:.1f} s")
            assert set(there) == set(vaults)
            extra = {"federation": federation}
            yield Way(request.param, exchange, there, slow_down, patience, extra)
        finally:
            exchange.close()


def frame(seed: int, floats: int = 100) -> bytes:
    return encode(Ping(), np.full(floats, seed, dtype=np.float32))


def test_every_node_answers_its_own_question(way: Way) -> None:
    frames = {n: frame(i) for i, n in enumerate(way.nodes)}
    start = time.monotonic()
    gathered = way.exchange.ask(frames, timeout=way.patience)
    print(f"{way.name}: a round took {time.monotonic() - start:.3f} s")
    assert gathered.answers == frames
    assert gathered.dropped == {}


def test_frames_are_binary_safe_and_large(way: Way) -> None:
    """8 MB with every byte value, NUL first."""
    body = np.frombuffer(bytes(range(256)) * (8 * 4096), dtype="<i8").copy()
    big = encode(Ping(), body)
    assert len(big) > 8 << 20
    gathered = way.exchange.ask(dict.fromkeys(way.nodes, big), timeout=way.patience + 10)
    assert gathered.dropped == {}
    assert all(answer == big for answer in gathered.answers.values())


def test_a_subset_can_be_asked_and_an_unknown_node_is_dropped(way: Way) -> None:
    gathered = way.exchange.ask({12345: frame(1), way.nodes[0]: frame(2)}, timeout=way.patience)
    assert gathered.answers == {way.nodes[0]: frame(2)}
    assert set(gathered.dropped) == {12345}
    assert gathered.dropped[12345] in (GONE, FAILED)


def test_a_slow_node_is_dropped_in_time_and_its_late_answer_is_not_the_next_one(way: Way) -> None:
    slow = way.nodes[2]
    timeout = {"memory": 1.0, "messages": 8.0, "session": 1.0}[way.name]
    way.slow_down(slow, timeout + 1.5)
    start = time.monotonic()
    gathered = way.exchange.ask(dict.fromkeys(way.nodes, frame(1)), timeout=timeout)
    took = time.monotonic() - start
    way.slow_down(slow, 0.0)
    assert gathered.dropped == {slow: TIMED_OUT}
    assert set(gathered.answers) == set(way.nodes) - {slow}
    assert took < timeout + 1.0
    after = way.exchange.ask(dict.fromkeys(way.nodes, frame(2)), timeout=way.patience + 5)
    assert after.answers == dict.fromkeys(way.nodes, frame(2))


def test_open_gives_up_in_time(way: Way) -> None:
    start = time.monotonic()
    with pytest.raises(Unavailable, match="3 of at least 99"):
        way.exchange.open(at_least=99, timeout=1.0)
    assert time.monotonic() - start < 2.5


def test_a_killed_node_is_dropped_in_time_and_found_again(way: Way) -> None:
    if way.name == "memory":
        pytest.skip("a thread cannot be killed")
    federation = way.extra["federation"]
    victim = next(c for c in federation.couriers if c.node_id == way.nodes[0])
    way.slow_down(victim.node_id, 60.0)  # so that it dies in mid-question
    threading.Timer(0.5 if way.name == "session" else 4.0, victim.kill).start()
    start = time.monotonic()
    gathered = way.exchange.ask(dict.fromkeys(way.nodes, frame(3)), timeout=12.0)
    took = time.monotonic() - start
    way.slow_down(victim.node_id, 0.0)
    print(f"{way.name}: dropped after {took:.2f} s")
    assert set(gathered.dropped) == {victim.node_id}
    assert set(gathered.answers) == set(way.nodes) - {victim.node_id}
    if way.name == "session":
        assert gathered.dropped == {victim.node_id: GONE}
        assert took < 5.0  # and not the timeout
    victim.start()
    start = time.monotonic()
    while victim.node_id not in way.exchange.ask({victim.node_id: frame(4)}, timeout=10.0).answers:
        assert time.monotonic() - start < 60, "the node never came back"
        time.sleep(0.2)
    print(f"{way.name}: back after {time.monotonic() - start:.1f} s")


def test_close_is_idempotent_and_final(way: Way) -> None:
    way.exchange.close()
    way.exchange.close()
    with pytest.raises(Unavailable, match="closed"):
        way.exchange.ask({way.nodes[0]: frame(1)}, timeout=1.0)
