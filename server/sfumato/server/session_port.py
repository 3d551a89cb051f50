"""The coordinator's session port: where couriers dial in, prove who they are, and stay for a job.

A TLS gRPC server with one generic bytes stream. Whoever connects knows our CA, we know nothing of him: he must
sign a fresh nonce, this run, his node id and this session with the node key that the SuperLink holds for that
node. One stream a node; a signature is good for one nonce, so there is nothing to replay.
"""

import logging
import queue
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from cryptography.exceptions import InvalidSignature

from sfumato.common.enrolment import node_public_key, session_claim, verify_claim
from sfumato.common.errors import Unavailable
from sfumato.common.session_wire import (
    ANSWER,
    CHALLENGE,
    KEEPALIVE,
    METHOD,
    NONCE_BYTES,
    PROOF,
    QUESTION,
    WELCOME,
    Hello,
    WireError,
    numbered,
    strip,
    unnumber,
)

log = logging.getLogger("sfumato.session")

PROOF_SECONDS = 10.0


class _Stream:
    """One courier's open stream: questions wait in `outbox`; None ends it."""

    def __init__(self) -> None:
        self.outbox: queue.SimpleQueue[tuple[int, bytes] | None] = queue.SimpleQueue()


class SessionPort:
    """Listens on `address` (host:port) for the couriers of one session. `keys` gives a node's key, PEM, or None.

    Raises Unavailable if the port cannot be had.
    """

    def __init__(
        self,
        address: str,
        certificate: tuple[bytes, bytes],
        *,
        run_id: int,
        session: str,
        keys: Callable[[int], bytes | None],
        capacity: int,
    ) -> None:
        self._run_id = run_id
        self._session = session
        self._keys = keys
        self._changed = threading.Condition()
        self._streams: dict[int, _Stream] = {}
        self._answers: dict[int, tuple[int, bytes]] = {}
        workers = 2 * capacity + 8  # a stream holds a worker; the rest is for those still proving themselves
        self._server = grpc.server(
            ThreadPoolExecutor(workers, thread_name_prefix="session"),
            options=[*KEEPALIVE, ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=workers,
        )
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        service, method = METHOD.strip("/").split("/")
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        chain, key = certificate
        try:
            self._server.add_secure_port(address, grpc.ssl_server_credentials([(key, chain)]))
        except RuntimeError:
            raise Unavailable(
                f"the session port {address} is taken", hint="Is another coordinator running?"
            ) from None
        self._server.start()

    def joined(self) -> tuple[int, ...]:
        """The nodes whose stream is open."""
        with self._changed:
            return tuple(sorted(self._streams))

    def send(self, node: int, number: int, frame: bytes) -> bool:
        """Queue a question; False if the node has no stream."""
        with self._changed:
            stream = self._streams.get(node)
            if stream is not None:
                stream.outbox.put((number, frame))
            return stream is not None

    def wait(self, nodes: set[int], number: int, timeout: float) -> tuple[dict[int, bytes], set[int]]:
        """Answers to question `number` so far, and the nodes that are gone; returns early when all are in."""
        with self._changed:
            self._changed.wait_for(lambda: not self._missing(nodes, number), timeout)
            answers = {n: self._answers[n][1] for n in nodes if self._answered(n, number)}
            return answers, {n for n in nodes if n not in answers and n not in self._streams}

    def close(self) -> None:
        """End every stream and the server."""
        with self._changed:
            for stream in self._streams.values():
                stream.outbox.put(None)
        self._server.stop(grace=1.0).wait(3.0)

    def _answered(self, node: int, number: int) -> bool:
        return node in self._answers and self._answers[node][0] == number

    def _missing(self, nodes: set[int], number: int) -> bool:
        return any(n in self._streams and not self._answered(n, number) for n in nodes)

    def _serve(self, packets: Iterator[bytes], context: Any) -> Iterator[bytes]:
        # Somebody who connects and stays silent would hold a worker for ever.
        watchdog = threading.Timer(PROOF_SECONDS, context.cancel)
        watchdog.daemon = True
        watchdog.start()
        try:
            hello = Hello.unpack(next(packets))
            nonce = secrets.token_bytes(NONCE_BYTES)
            yield CHALLENGE + nonce
            proof = strip(next(packets), PROOF, at_most=512)
        except (WireError, StopIteration, grpc.RpcError):
            _refuse(context, grpc.StatusCode.INVALID_ARGUMENT)
        finally:
            watchdog.cancel()
        self._authenticate(context, hello, nonce, proof)
        stream = self._admit(context, hello.node_id)
        try:
            yield WELCOME
            yield from self._pump(packets, stream, hello.node_id)
        finally:
            self._leave(hello.node_id, stream)

    def _authenticate(self, context: Any, hello: Hello, nonce: bytes, proof: bytes) -> None:
        pem = self._keys(hello.node_id)
        claim = session_claim(nonce=nonce, run_id=hello.run_id, node_id=hello.node_id, session=hello.session)
        expected = (self._run_id, self._session)
        try:
            if pem is None or (hello.run_id, hello.session) != expected:
                raise InvalidSignature
            verify_claim(node_public_key(pem), claim, proof)
        except (InvalidSignature, ValueError):
            log.warning("refused a stream: it could not prove to be node %d", hello.node_id)
            _refuse(context, grpc.StatusCode.UNAUTHENTICATED)

    def _admit(self, context: Any, node: int) -> _Stream:
        stream = _Stream()
        with self._changed:
            taken = node in self._streams
            if not taken:
                self._streams[node] = stream
                self._answers.pop(node, None)
                self._changed.notify_all()
        if taken:
            log.warning("refused a second stream of node %d", node)
            _refuse(context, grpc.StatusCode.ALREADY_EXISTS)
        # Runs also when the connection breaks while this worker waits for the next question.
        if not context.add_callback(lambda: self._leave(node, stream)):
            self._leave(node, stream)
        return stream

    def _pump(self, packets: Iterator[bytes], stream: _Stream, node: int) -> Iterator[bytes]:
        while (item := stream.outbox.get()) is not None:
            number, frame = item
            yield numbered(QUESTION, number, frame)
            try:
                answered, answer = unnumber(next(packets), ANSWER)
            except grpc.RpcError:
                return  # the connection broke; `_leave` has told whoever waits
            except (WireError, StopIteration):
                log.warning("node %d broke the protocol; its stream is closed", node)
                return
            if answered != number:
                log.warning("node %d answered another question; its stream is closed", node)
                return
            with self._changed:
                self._answers[node] = (number, answer)
                self._changed.notify_all()

    def _leave(self, node: int, stream: _Stream) -> None:
        stream.outbox.put(None)
        with self._changed:
            if self._streams.get(node) is stream:
                del self._streams[node]
                self._changed.notify_all()


def _refuse(context: Any, code: grpc.StatusCode) -> NoReturn:
    context.abort(code, "refused")
    raise AssertionError("abort raises")
