"""The courier's end of a session: dial the coordinator's port, prove the node key, then pump frames.

It dials only the address in its own configuration, trusts only the pinned CA, and signs only claims of the
session domain: nothing the other side sends can make it sign or reach anything else.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from sfumato.common.enrolment import load_node_key, session_claim, sign_claim
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

log = logging.getLogger("sfumato.courier")

CLOSED = b"closed"
BROKEN = b"broken"
UNREACHABLE = b"unreachable"

PROOF_SECONDS = 5.0
DIAL_SECONDS = 6.0  # all attempts together; a session's opening waits longer than this for stragglers
PAUSE_SECONDS = 0.5
WORTH_ANOTHER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ALREADY_EXISTS,  # our last stream died, and the server has not noticed yet
)


class Session:
    """Dials `address` (host:port) with the CA's PEM and the node's OpenSSH key."""

    def __init__(self, address: str, ca: bytes, node_key: bytes) -> None:
        self._address = address
        self._ca = ca
        self._key = load_node_key(node_key)

    def pump(self, run_id: int, node_id: int, session: str, ask: Callable[[bytes], bytes]) -> bytes:
        """Answer questions with `ask` until the server ends the session. Returns how it ended:
        CLOSED (by the server), BROKEN (after it had opened) or UNREACHABLE (never opened)."""
        hello = Hello(run_id, node_id, session)
        deadline = time.monotonic() + DIAL_SECONDS
        while True:
            outcome, again = self._dial(hello, ask, max(0.5, deadline - time.monotonic()))
            if not again or time.monotonic() + PAUSE_SECONDS >= deadline:
                return outcome
            time.sleep(PAUSE_SECONDS)

    def _dial(self, hello: Hello, ask: Callable[[bytes], bytes], patience: float) -> tuple[bytes, bool]:
        credentials = grpc.ssl_channel_credentials(root_certificates=self._ca)
        # No proxy from the environment and no name service but the system's: only the configured address.
        options = [*KEEPALIVE, ("grpc.enable_http_proxy", 0), ("grpc.service_config_disable_resolution", 1)]
        opened = False
        with grpc.secure_channel(self._address, credentials, options=options) as channel:
            outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
            try:
                grpc.channel_ready_future(channel).result(timeout=patience)
                call = channel.stream_stream(METHOD)(iter(outbox.get, None))
                outbox.put(hello.pack())
                self._prove(call, hello, outbox)
                opened = True
                log.info("session open")
                for packet in call:
                    number, frame = unnumber(packet, QUESTION)
                    outbox.put(numbered(ANSWER, number, ask(frame)))
                return CLOSED, False
            except grpc.FutureTimeoutError:
                return UNREACHABLE, True
            except grpc.RpcError as e:
                code = e.code() if isinstance(e, grpc.Call) else None
                log.warning("session %s (%s)", "broke" if opened else "refused", code)
                return (BROKEN, False) if opened else (UNREACHABLE, code in WORTH_ANOTHER)
            except (WireError, StopIteration):
                log.warning("the session port speaks another protocol")
                return (BROKEN if opened else UNREACHABLE), False
            finally:
                outbox.put(None)

    def _prove(self, call: Iterator[Any], hello: Hello, outbox: "queue.SimpleQueue[bytes | None]") -> None:
        watchdog = threading.Timer(PROOF_SECONDS, call.cancel)  # type: ignore[attr-defined]
        watchdog.daemon = True
        watchdog.start()
        try:
            nonce = strip(next(call), CHALLENGE, at_most=1 + NONCE_BYTES)
            if len(nonce) != NONCE_BYTES:
                raise WireError("short challenge")
            claim = session_claim(
                nonce=nonce, run_id=hello.run_id, node_id=hello.node_id, session=hello.session
            )
            outbox.put(PROOF + sign_claim(self._key, claim))
            strip(next(call), WELCOME, at_most=1)
        finally:
            watchdog.cancel()
