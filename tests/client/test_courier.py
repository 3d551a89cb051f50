"""The courier by itself: what it says when the vault is away, when the app fails, when it is badly set up."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from sfumato.client.courier.__main__ import main, supernode_command
from sfumato.client.courier.app import make_app
from sfumato.client.courier.executor import _answer
from sfumato.client.courier.session import UNREACHABLE
from sfumato.client.courier.vault_link import VaultLink, refusal
from sfumato.client.courier_config import CourierConfig, init_courier
from sfumato.common.bundle import approved_hash
from sfumato.common.codec import PREFIX, decode, encode
from sfumato.common.enrolment import Invitation, ed25519_text, new_node_key
from sfumato.common.errors import BadInput, Insecure, RefusalCode
from sfumato.common.flower_tasks import FRAME_RECORD, OPEN_SESSION, QUERY, Runtime
from sfumato.common.messages import Ping, Refused
from sfumato.server.certificates import new_authority

GONE = Refused(code=RefusalCode.VAULT_UNREACHABLE)
QUESTION = encode(Ping())
SECRET = "account 4711 of Ms Example"


class Vault:
    """A socket on which a test decides what is said."""

    def __init__(self, path: Path, answer: Any) -> None:
        self.path = path
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(4)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            with link, contextlib.suppress(BrokenPipeError):
                link.recv(1 << 20)
                self._answer(link)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def vault(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Vault]:
    made = Vault(tmp_path / "v.sock", request.param)
    yield made
    made.close()


def answer_to(vault_path: Path, timeout: float = 1.0) -> Any:
    return decode(VaultLink(vault_path, timeout=timeout).ask(QUESTION), "answer")[0]


def test_no_vault(tmp_path: Path) -> None:
    assert answer_to(tmp_path / "none.sock") == GONE
    (tmp_path / "file").write_text("not a socket")
    assert answer_to(tmp_path / "file") == GONE
    assert answer_to(tmp_path / ("x" * 200)) == GONE, "longer than a socket's path may be"


BAD = {
    "closes": lambda link: None,
    "stops in the prefix": lambda link: link.sendall(QUESTION[:7]),
    "stops in the frame": lambda link: link.sendall(QUESTION[:-1]),
    "speaks another protocol": lambda link: link.sendall(b"HTTP/1.1 200 OK\r\n\r\n"),
    "promises too much": lambda link: link.sendall(PREFIX.pack(b"SFM1", 1 << 30, 1 << 60)),
    "hangs": lambda link: time.sleep(3),
    "drips": lambda link: [(link.sendall(QUESTION[i : i + 1]), time.sleep(0.3)) for i in range(8)],
}


@pytest.mark.parametrize("vault", BAD.values(), indirect=True, ids=BAD.keys())
def test_a_vault_that_does_not_answer_is_a_refusal_in_time(vault: Vault) -> None:
    start = time.monotonic()
    assert answer_to(vault.path, timeout=0.5) == GONE
    assert time.monotonic() - start < 1.5


@pytest.mark.parametrize("vault", [lambda link: link.sendall(QUESTION)], indirect=True)
def test_an_answer_passes_as_it_is(vault: Vault) -> None:
    assert VaultLink(vault.path).ask(QUESTION) == QUESTION
    assert VaultLink(vault.path).ask(QUESTION) == QUESTION


def message(kind: str, content: RecordDict) -> Message:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 2, 1
    made = Message(content, 99, kind)
    made.metadata.__dict__["_message_id"] = "m"
    return made


def with_frame(frame: bytes) -> RecordDict:
    return RecordDict({FRAME_RECORD: ConfigRecord({"frame": frame})})


CONTEXT = Context(2, 99, {}, RecordDict(), {})


def test_an_exception_leaves_as_a_code_alone() -> None:
    def ask(frame: bytes, context: Context) -> bytes:
        raise ValueError(SECRET)

    reply = _answer(make_app(ask), message(QUERY, with_frame(QUESTION)), CONTEXT)
    assert reply.error.reason == "internal"
    unknown = _answer(make_app(ask), message("train", with_frame(QUESTION)), CONTEXT)
    assert unknown.error.reason == "internal", "Flower would have named the function that is missing"


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({FRAME_RECORD: ConfigRecord({"frame": "text"})}),
        RecordDict({FRAME_RECORD: ConfigRecord({})}),
        RecordDict({"other": ConfigRecord({"frame": QUESTION})}),
    ],
)
def test_a_message_without_a_frame_is_refused(content: RecordDict) -> None:
    def ask(frame: bytes, context: Context) -> bytes:
        raise AssertionError("it reached the vault")

    reply = make_app(ask)(message(QUERY, content), CONTEXT)
    assert reply.content[FRAME_RECORD]["frame"] == refusal(RefusalCode.BAD_FRAME)
    reply = make_app(ask)(message(OPEN_SESSION, content), CONTEXT)
    assert reply.content[FRAME_RECORD]["frame"] == UNREACHABLE


def invitation(**change: str) -> Invitation:
    good = {
        "superlink": "127.0.0.1:9092",
        "session": "127.0.0.1:9093",
        "ca": new_authority("test").certificate.decode(),
        "job_public_key": ed25519_text(Ed25519PrivateKey.generate().public_key()),
        "ledger_public_key": ed25519_text(Ed25519PrivateKey.generate().public_key()),
        "bundle_hash": approved_hash(),
    }
    return Invitation.model_validate(good | change)


def fresh(path: Path) -> CourierConfig:
    return init_courier(path, invitation(), runtime_port=9094, vault_socket=Path("../v.sock"))


def test_a_couriers_directory_is_private_and_made_once(tmp_path: Path) -> None:
    config = fresh(tmp_path / "c")
    for path in [tmp_path / "c", *(tmp_path / "c").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
    assert "BEGIN PUBLIC KEY" in config.node_public_key()
    before = config.node_key
    with pytest.raises(BadInput, match="there already"):
        fresh(tmp_path / "c")
    assert CourierConfig.load(tmp_path / "c" / "courier.toml").node_key == before


def test_an_invitation_of_another_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="another bundle"):
        init_courier(tmp_path / "c", invitation(bundle_hash="0" * 64), runtime_port=1, vault_socket=Path("v"))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ca": "x"}, "not a valid invitation"),
        ({"superlink": "http://evil/"}, "superlink"),
        ({"session": "host"}, "session"),
        ({"job_public_key": "AAAA"}, "not a valid invitation"),
        ({"ledger_public_key": "AAAA"}, "not a valid invitation"),
        ({"format": 2}, "format"),
        ({"more": 1}, "more"),
    ],
)
def test_bad_invitations(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "invitation.json"
    file.write_text(json.dumps(json.loads(invitation().dump()) | change))
    with pytest.raises(BadInput, match=message):
        Invitation.load(file)


@pytest.mark.parametrize("name", ["node.key", "superexec.secret"])
def test_a_loose_secret_stops_the_start(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh(tmp_path / "c")
    (tmp_path / "c" / name).chmod(0o644)
    assert main(["--config", str(tmp_path / "c" / "courier.toml")]) == Insecure.exit_code
    assert "others may use it" in capsys.readouterr().err
    (tmp_path / "c" / name).unlink()
    assert main(["--config", str(tmp_path / "c" / "courier.toml")]) == Insecure.exit_code


def test_bad_configurations(tmp_path: Path) -> None:
    fresh(tmp_path / "c")
    file = tmp_path / "c" / "courier.toml"
    import tomllib

    good = tomllib.loads(file.read_text())
    for bad, what in (
        ({"runtime_port": 0}, "runtime_port"),
        ({"superlink": "no port"}, "superlink"),
        ({"unknown": 1}, "unknown"),
    ):
        file.write_text(tomli_w.dumps(good | bad))
        with pytest.raises(BadInput, match=what):
            CourierConfig.load(file)
    (tmp_path / "c" / "ca.crt").unlink()
    file.write_text(tomli_w.dumps(good))
    with pytest.raises(Insecure, match="CA certificate is missing"):
        CourierConfig.load(file)


def test_the_supernode_is_started_with_its_locks(tmp_path: Path) -> None:
    line = supernode_command(fresh(tmp_path / "c"))
    for flag in ("--root-certificates", "--auth-supernode-private-key", "--superexec-auth-secret-file"):
        assert flag in line
    assert line[line.index("--isolation") + 1] == "process"
    assert line[line.index("--host") + 1] == "127.0.0.1"
    assert "--insecure" not in line and "--allow-runtime-dependency-installation" not in line
    private, _ = new_node_key()
    assert not any(private.decode() in word for word in line)


def test_plain_http_is_for_loopback_only() -> None:
    Runtime("127.0.0.1:1", None, "x")
    for address in ("10.0.0.1:1", "example.org:1", "0.0.0.0:1"):
        with pytest.raises(ValueError, match="loopback"):
            Runtime(address, None, "x")


def test_the_couriers_process_loads_nothing_of_the_vault() -> None:
    """import-linter reads the source; this looks at what a process really loads."""
    code = (
        "import sys, sfumato.client.courier.app, sfumato.client.courier.executor, sfumato.client.courier.__main__;"
        "bad = [m for m in sys.modules if m.startswith(('sfumato.client.vault', 'sfumato.client.ingest',"
        " 'sfumato.privacy', 'sfumato.server', 'torch', 'opacus', 'duckdb'))]; print(bad); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
