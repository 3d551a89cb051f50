"""How a question reaches the branches: one interface, two ways (the other is `session.py`).

Frames are opaque here. A node either answers or is dropped, always within the timeout; why a node was dropped
is one of a few public words, never a text that came from a node.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from sfumato.common.errors import Unavailable
from sfumato.common.flower_tasks import FRAME_RECORD, QUERY, RunEnded

log = logging.getLogger("sfumato.exchange")

TIMED_OUT = "timed-out"
GONE = "gone"
FAILED = "failed"

# SuperLink and executor read the same clock, nodes may not; an instruction outlives its round by this much.
TTL_SLACK = 30.0


@dataclass(frozen=True)
class Gathered:
    """What came back of one question: node id to answer frame, node id to why it is missing."""

    answers: dict[int, bytes] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)


class Exchange(Protocol):
    """Ask the set, gather the answers, say who dropped."""

    def open(self, *, at_least: int, timeout: float) -> tuple[int, ...]:
        """The node ids that are there. Waits at most `timeout` s, then raises Unavailable with what missed."""

    def ask(self, frames: Mapping[int, bytes], *, timeout: float) -> Gathered:
        """Send each node its frame; within `timeout` s every node has answered or is dropped."""

    def close(self) -> None:
        """End it; a second call does nothing."""


def stopped_event(grid: Grid) -> threading.Event:
    """Set when the run was stopped (our executor's grid has one; a simulation's is never set)."""
    event = getattr(grid, "stopped", None)
    return event if isinstance(event, threading.Event) else threading.Event()


def gather_nodes(
    count_there: "Counter", *, at_least: int, timeout: float, expected: int, settle: float
) -> tuple[int, ...]:
    """Wait until all `expected` nodes are there, or `settle` s have passed since `at_least` were.

    So a run neither starts with the first two of four branches that come up together, nor waits for ever for
    one that is switched off. Raises Unavailable.
    """
    start = time.monotonic()
    enough_since: float | None = None
    while True:
        there = count_there()
        now = time.monotonic()
        if len(there) < at_least:
            enough_since = None
        elif enough_since is None:
            enough_since = now
        if len(there) >= max(at_least, expected):
            return there
        if enough_since is not None and (now - enough_since >= settle or now - start >= timeout):
            return there
        if now - start >= timeout:
            raise Unavailable(
                f"{len(there)} of at least {at_least} branches are there after {timeout:.0f} s",
                hint="Start the missing branches, or lower min_branches in the job.",
            )
        time.sleep(0.1)


class Counter(Protocol):
    def __call__(self) -> tuple[int, ...]: ...


def question(frame: bytes, node: int, *, kind: str, ttl: float) -> Message:
    """A Flower message that carries one frame. All bytes in one record: one object on the wire, not many."""
    record = RecordDict({FRAME_RECORD: ConfigRecord({"frame": frame})})
    return Message(record, node, kind, ttl=ttl)


def frame_of(message: Message) -> bytes | None:
    """The frame in a reply; None if it carries none."""
    if not message.has_content():
        return None
    record = message.content.config_records.get(FRAME_RECORD)
    frame = record.get("frame") if record is not None else None
    return frame if isinstance(frame, bytes) else None


def push(grid: Grid, messages: Mapping[int, Message]) -> dict[str, int]:
    """Hand the messages to the grid: message id to node. A node whose message was not taken is left out."""
    # Flower's two grids disagree on what stands for a message that was not taken: nothing, or an empty id.
    taken = set(grid.push_messages(list(messages.values()))) if messages else set()
    return {m.metadata.message_id: n for n, m in messages.items() if m.metadata.message_id in taken}


class MessageExchange:
    """Every question is a Flower message. Works through any Flower; some seconds a round.

    `expected` is how many nodes there should be, `settle` how long to wait for the last of them.
    """

    def __init__(self, grid: Grid, *, expected: int = 0, settle: float = 5.0, poll: float = 0.1) -> None:
        self._grid = grid
        self._expected = expected
        self._settle = settle
        self._poll = poll
        self._stopped = stopped_event(grid)
        self._closed = False

    def open(self, *, at_least: int, timeout: float) -> tuple[int, ...]:
        return gather_nodes(
            lambda: tuple(sorted(self._grid.get_node_ids())),
            at_least=at_least,
            timeout=timeout,
            expected=self._expected,
            settle=self._settle,
        )

    def ask(self, frames: Mapping[int, bytes], *, timeout: float) -> Gathered:
        if self._closed:
            raise Unavailable("the exchange is closed")
        deadline = time.monotonic() + timeout
        ttl = timeout + TTL_SLACK
        waiting = push(self._grid, {n: question(f, n, kind=QUERY, ttl=ttl) for n, f in frames.items()})
        gathered = Gathered(dropped=dict.fromkeys(set(frames) - set(waiting.values()), GONE))
        while waiting:
            if self._stopped.is_set():
                raise RunEnded("the run was stopped")
            for reply in self._grid.pull_messages(list(waiting)):
                # An error of the SuperLink's own making has src_node_id = 1: only the question's id tells whose.
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None:
                    _sort_in(gathered, node, reply)
            left = deadline - time.monotonic()
            if waiting and left <= 0:
                gathered.dropped.update(dict.fromkeys(waiting.values(), TIMED_OUT))
                break
            if waiting:
                time.sleep(min(self._poll, left))
        return gathered

    def close(self) -> None:
        self._closed = True


def _sort_in(gathered: Gathered, node: int, reply: Message) -> None:
    frame = frame_of(reply)
    if frame is not None:
        gathered.answers[node] = frame
        return
    code = reply.error.code if reply.has_error() else None
    log.info("node %d gave no answer (Flower error code %s)", node, code)
    gathered.dropped[node] = GONE if code in _AWAY else FAILED


_AWAY = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
