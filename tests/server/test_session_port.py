"""Who may enter a session: the enrolled node with its key, once, for this run, and nobody else."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from sfumato.client.courier.session import CLOSED, UNREACHABLE, Session
from sfumato.common.enrolment import load_node_key, new_node_key, session_claim, sign_claim
from sfumato.common.errors import Unavailable
from sfumato.common.processes import free_ports
from sfumato.common.session_wire import CHALLENGE, METHOD, PROOF, WELCOME, Hello
from sfumato.server import session_port
from sfumato.server.certificates import new_authority, new_server_certificate
from sfumato.server.session_port import SessionPort

RUN, NODE, SESSION = 2**63 + 5, 77, "ab" * 16
AUTHORITY = new_authority("test")
SERVER = new_server_certificate(AUTHORITY, ("127.0.0.1",))
PRIVATE, PUBLIC = new_node_key()


class Port:
    def __init__(self) -> None:
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self.port = SessionPort(
            self.address,
            (SERVER.certificate, SERVER.key),
            run_id=RUN,
            session=SESSION,
            keys={NODE: PUBLIC}.get,
            capacity=2,
        )

    def courier(self, *, key: bytes = PRIVATE, ca: bytes = AUTHORITY.certificate, **hello: Any) -> bytes:
        """Dial as a courier would, echoing; returns how it ended."""
        claims = {"run_id": RUN, "node_id": NODE, "session": SESSION} | hello
        return Session(self.address, ca, key).pump(
            claims["run_id"], claims["node_id"], claims["session"], lambda frame: frame
        )

    def handshake(self, first: bytes, proof: Any) -> grpc.StatusCode | None:
        """Speak by hand: `first`, then what `proof` makes of the challenge. None if welcomed."""
        credentials = grpc.ssl_channel_credentials(AUTHORITY.certificate)
        with grpc.secure_channel(self.address, credentials) as channel:
            challenge = threading.Event()
            seen: list[bytes] = []

            def packets() -> Iterator[bytes]:
                yield first
                if challenge.wait(5):
                    yield proof(seen[0])
                    time.sleep(0.5)

            call = channel.stream_stream(METHOD)(packets(), timeout=10)
            try:
                seen.append(next(call))
                challenge.set()
                return None if next(call) == WELCOME else grpc.StatusCode.UNKNOWN
            except grpc.RpcError as e:
                challenge.set()
                return e.code()


@pytest.fixture
def port() -> Iterator[Port]:
    made = Port()
    yield made
    made.port.close()


def honest(challenge: bytes) -> bytes:
    claim = session_claim(nonce=challenge[1:], run_id=RUN, node_id=NODE, session=SESSION)
    return PROOF + sign_claim(load_node_key(PRIVATE), claim)


HELLO = Hello(RUN, NODE, SESSION).pack()


def test_an_enrolled_courier_enters_and_answers(port: Port) -> None:
    ended: list[bytes] = []
    thread = threading.Thread(target=lambda: ended.append(port.courier()))
    thread.start()
    _until(lambda: port.port.joined() == (NODE,))
    assert port.port.send(NODE, 1, b"question")
    assert port.port.wait({NODE}, 1, 5.0) == ({NODE: b"question"}, set())
    port.port.close()
    thread.join(5)
    assert ended == [CLOSED]


def test_the_hand_made_handshake_is_right(port: Port) -> None:
    """Otherwise the refusals below would prove nothing."""
    assert port.handshake(HELLO, honest) is None


def test_another_key_is_refused(port: Port) -> None:
    assert port.courier(key=new_node_key()[0]) == UNREACHABLE
    assert port.port.joined() == ()


@pytest.mark.parametrize("hello", [{"node_id": 78}, {"run_id": RUN + 1}, {"session": "cd" * 16}])
def test_another_node_run_or_session_is_refused(port: Port, hello: dict[str, Any]) -> None:
    assert port.courier(**hello) == UNREACHABLE
    assert port.port.joined() == ()


def test_a_replayed_proof_is_refused(port: Port) -> None:
    recorded: list[bytes] = []

    def record(challenge: bytes) -> bytes:
        recorded.append(honest(challenge))
        return recorded[0]

    assert port.handshake(HELLO, record) is None
    _until(lambda: port.port.joined() == ())
    assert port.handshake(HELLO, lambda _: recorded[0]) == grpc.StatusCode.UNAUTHENTICATED


def test_a_signature_of_another_domain_is_refused(port: Port) -> None:
    """What the same key signs for Flower (a time stamp) or would sign raw must not open a session."""
    key = load_node_key(PRIVATE)
    for signed in (lambda c: c[1:], lambda c: b"2026-01-01T00:00:00+00:00"):
        answer = port.handshake(HELLO, lambda c, s=signed: PROOF + sign_claim(key, s(c)))
        assert answer == grpc.StatusCode.UNAUTHENTICATED


def test_a_second_stream_of_a_node_is_refused(port: Port) -> None:
    thread = threading.Thread(target=port.courier)
    thread.start()
    _until(lambda: port.port.joined() == (NODE,))
    assert port.handshake(HELLO, honest) == grpc.StatusCode.ALREADY_EXISTS
    assert port.port.joined() == (NODE,)
    port.port.close()
    thread.join(5)


@pytest.mark.parametrize(
    "first", [b"", b"H", b"H[]", b"H{}", b"H" + b"{" * 900, b"H" + b"x" * 5000, b"P" + HELLO[1:], b"Q"]
)
def test_nonsense_is_refused(port: Port, first: bytes) -> None:
    assert port.handshake(first, honest) == grpc.StatusCode.INVALID_ARGUMENT


def test_nonsense_as_proof_is_refused(port: Port) -> None:
    for proof in (b"", PROOF, PROOF + b"\x30" * 100, CHALLENGE, PROOF + b"x" * 600):
        code = port.handshake(HELLO, lambda _, p=proof: p)
        assert code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.INVALID_ARGUMENT)
    assert port.port.joined() == ()


def test_who_stays_silent_is_cut(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_port, "PROOF_SECONDS", 0.3)
    start = time.monotonic()

    def silent(_: bytes) -> bytes:
        time.sleep(3)
        return PROOF

    assert port.handshake(HELLO, silent) == grpc.StatusCode.CANCELLED
    assert time.monotonic() - start < 2.5


def test_a_server_of_another_ca_is_not_dialled(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.client.courier.session.DIAL_SECONDS", 1.0)
    assert port.courier(ca=new_authority("other").certificate) == UNREACHABLE


def test_plain_text_is_not_spoken(port: Port) -> None:
    with grpc.insecure_channel(port.address) as channel, pytest.raises(grpc.RpcError):
        next(channel.stream_stream(METHOD)(iter([HELLO]), timeout=2))


def test_the_port_is_not_shared(port: Port) -> None:
    with pytest.raises(Unavailable, match="is taken"):
        SessionPort(
            port.address, (SERVER.certificate, SERVER.key), run_id=1, session="x", keys={}.get, capacity=1
        )


def _until(condition: Any, timeout: float = 5.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
