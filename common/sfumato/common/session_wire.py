"""The session stream's own small vocabulary: what precedes a frame on it. Both ends share this file.

    courier -> server   HELLO + JSON {run, node, session}
    server  -> courier  CHALLENGE + 32 fresh random bytes
    courier -> server   PROOF + ECDSA signature over `enrolment.session_claim`
    server  -> courier  WELCOME
    then, over and over:
    server  -> courier  QUESTION + u64 number + frame
    courier -> server   ANSWER + the same number + frame

One gRPC message is one such packet. A late answer is known by its number. The server ends the stream.
"""

import json
import struct
from dataclasses import dataclass

from sfumato.common.codec import MAX_BODY, MAX_HEADER

METHOD = "/sfumato.Session/Open"
HELLO, CHALLENGE, PROOF, WELCOME, QUESTION, ANSWER = b"H", b"C", b"P", b"W", b"Q", b"A"
NONCE_BYTES = 32
MAX_PACKET = MAX_BODY + MAX_HEADER + 64
_NUMBER = struct.Struct(">Q")

# A peer whose machine vanished is noticed within about four seconds; a killed process at once, by its socket.
KEEPALIVE = [
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_send_message_length", MAX_PACKET),
    ("grpc.max_receive_message_length", MAX_PACKET),
]


class WireError(ValueError):
    """The other end does not speak this protocol."""


@dataclass(frozen=True)
class Hello:
    run_id: int
    node_id: int
    session: str

    def pack(self) -> bytes:
        body = {"run": str(self.run_id), "node": str(self.node_id), "session": self.session}
        return HELLO + json.dumps(body).encode()

    @classmethod
    def unpack(cls, packet: bytes) -> "Hello":
        """Raises WireError."""
        body = strip(packet, HELLO, at_most=1024)
        try:
            fields = json.loads(body)
            return cls(int(fields["run"]), int(fields["node"]), str(fields["session"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise WireError("not a hello") from None


def strip(packet: object, kind: bytes, *, at_most: int = MAX_PACKET) -> bytes:
    """The packet without its first byte. Raises WireError if it is of another kind or too long."""
    if not isinstance(packet, bytes) or packet[:1] != kind or len(packet) > at_most:
        raise WireError(f"expected a packet of kind {kind.decode()}")
    return packet[1:]


def numbered(kind: bytes, number: int, frame: bytes) -> bytes:
    return kind + _NUMBER.pack(number) + frame


def unnumber(packet: object, kind: bytes) -> tuple[int, bytes]:
    """The number and the frame of a QUESTION or ANSWER. Raises WireError."""
    body = strip(packet, kind)
    if len(body) < _NUMBER.size:
        raise WireError("truncated packet")
    return int(_NUMBER.unpack(body[: _NUMBER.size])[0]), body[_NUMBER.size :]
