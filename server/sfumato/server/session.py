"""The fast way: one Flower message a node opens the job, then rounds travel on a stream the courier dials.

Flower keeps enrolment, life cycle and logs; a round costs one exchange on an open TLS stream. A node that
cannot dial is asked by Flower messages instead. A node whose stream breaks is dropped from the round it broke
in, and invited again: when it comes back, the next round finds it.
"""

import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flwr.serverapp import Grid

from sfumato.common.errors import Unavailable
from sfumato.common.flower_tasks import OPEN_SESSION, RunEnded
from sfumato.server.exchange import (
    GONE,
    TIMED_OUT,
    Gathered,
    MessageExchange,
    frame_of,
    gather_nodes,
    push,
    question,
    stopped_event,
)
from sfumato.server.session_port import SessionPort

log = logging.getLogger("sfumato.session")

SESSION_HOURS = 12.0
UNREACHABLE = b"unreachable"  # a courier's reply to an invitation: it could not dial
REPLY_POLL = 0.3
INVITE_PAUSE = 3.0  # between a reply that came to nothing and the next try, while the session opens
INVITE_AGAIN = 30.0  # for an invitation that was never replied to


@contextmanager
def suppress_absence() -> Iterator[None]:
    """Streams go on while the SuperLink is away; what needs it is tried again with the next question."""
    try:
        yield
    except RunEnded:
        raise
    except Unavailable as e:
        log.warning("%s; the open streams go on", e.message)


class SessionExchange:
    """Asks over session streams; falls back to messages for nodes that cannot dial.

    `address` is the host:port to listen on, `certificate` the server's chain and key (PEM), `expected` how many
    nodes there should be. Raises Unavailable if the port is taken.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        address: str,
        certificate: tuple[bytes, bytes],
        expected: int = 0,
        settle: float = 12.0,  # a courier that cannot dial says so after about ten
    ) -> None:
        self._grid = grid
        self._expected = expected
        self._settle = settle
        self._stopped = stopped_event(grid)
        self._session = secrets.token_hex(16)
        self._keys: dict[int, bytes] = {}
        self._invited: dict[str, int] = {}  # message id to node, until the node replies to it
        self._awaited: dict[int, float] = {}  # invited nodes that have not joined yet, and since when
        self._invited_at: dict[int, float] = {}
        self._by_message: set[int] = set()
        self._number = 0
        self._polled = 0.0
        self._messages = MessageExchange(grid)
        self._port: SessionPort | None = SessionPort(
            address,
            certificate,
            run_id=grid.run.run_id,
            session=self._session,
            keys=self._keys.get,
            capacity=max(expected, 32),
        )

    @property
    def session(self) -> str:
        return self._session

    def open(self, *, at_least: int, timeout: float) -> tuple[int, ...]:
        return gather_nodes(
            self._there,
            at_least=at_least,
            timeout=timeout,
            expected=self._expected,
            settle=self._settle,
        )

    def ask(self, frames: Mapping[int, bytes], *, timeout: float) -> Gathered:
        port = self._require_open()
        deadline = time.monotonic() + timeout
        self._number += 1
        streamed = {n for n, f in frames.items() if port.send(n, self._number, f)}
        for node in streamed:
            self._awaited.pop(node, None)
        if len(streamed) < len(frames):
            with suppress_absence():
                self._read_replies()
        by_message = {n: f for n, f in frames.items() if n in self._by_message and n not in streamed}
        lost = set(frames) - streamed - set(by_message)
        gathered = Gathered(dropped=dict.fromkeys(lost, GONE))
        if by_message:
            slow = self._messages.ask(by_message, timeout=timeout)
            gathered.answers.update(slow.answers)
            gathered.dropped.update(slow.dropped)
        self._collect(port, streamed, deadline, gathered)
        if GONE in gathered.dropped.values():
            with suppress_absence():
                self._invite_again({n for n, why in gathered.dropped.items() if why == GONE})
        return gathered

    def close(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            port.close()
            self._messages.close()

    def _require_open(self) -> SessionPort:
        if self._port is None:
            raise Unavailable("the exchange is closed")
        return self._port

    def _collect(self, port: SessionPort, nodes: set[int], deadline: float, gathered: Gathered) -> None:
        waiting = set(nodes)
        while waiting:
            if self._stopped.is_set():
                raise RunEnded("the run was stopped")
            left = deadline - time.monotonic()
            answers, gone = port.wait(waiting, self._number, max(0.0, min(left, 0.5)))
            gathered.answers.update(answers)
            gathered.dropped.update(dict.fromkeys(gone, GONE))
            waiting -= set(answers) | gone
            if waiting and time.monotonic() >= deadline:
                gathered.dropped.update(dict.fromkeys(waiting, TIMED_OUT))
                return

    def _there(self) -> tuple[int, ...]:
        """Invite whoever came online since; who has joined, or asked for messages."""
        port = self._require_open()
        if self._stopped.is_set():
            raise RunEnded("the run was stopped")
        if time.monotonic() - self._polled >= REPLY_POLL:
            self._polled = time.monotonic()
            found = {n.node_id: n.public_key for n in self._grid.get_nodes()}
            self._keys.update(found)
            self._read_replies()
            settled = {*port.joined(), *self._by_message, *self._awaited}
            recent = {n for n, t in self._invited_at.items() if time.monotonic() - t < INVITE_PAUSE}
            self._invite(set(found) - settled - recent)
        return tuple(sorted({*port.joined(), *self._by_message}))

    def _invite(self, nodes: set[int]) -> None:
        invitation = self._session.encode()
        ttl = SESSION_HOURS * 3600
        messages = {n: question(invitation, n, kind=OPEN_SESSION, ttl=ttl) for n in nodes}
        self._invited.update(push(self._grid, messages))
        now = time.monotonic()
        self._awaited.update(dict.fromkeys(nodes, now))
        self._invited_at.update(dict.fromkeys(nodes, now))

    def _invite_again(self, nodes: set[int]) -> None:
        """A fresh invitation to each lost node, unless one is on its way to it."""
        self._by_message -= nodes
        recent = time.monotonic() - INVITE_AGAIN
        joined = set(self._require_open().joined())
        self._awaited = {n: t for n, t in self._awaited.items() if t > recent and n not in joined}
        due = nodes - joined - set(self._awaited)
        self._invited = {m: n for m, n in self._invited.items() if n not in due}
        self._invite(due & set(self._grid.get_node_ids()))

    def _read_replies(self) -> None:
        """A reply to an invitation means that the courier is done with it: it could not dial, or was cut off."""
        for reply in self._grid.pull_messages(list(self._invited)) if self._invited else ():
            node = self._invited.pop(reply.metadata.reply_to_message_id, None)
            if node is None:
                continue
            self._awaited.pop(node, None)
            if frame_of(reply) == UNREACHABLE:
                log.warning("node %d cannot dial the session port; its rounds travel as messages", node)
                self._by_message.add(node)
