"""A branch without any coordinator: its socket, its files, and where the passphrase is not."""

import os
import secrets
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sfumato.client.home import BranchHome
from sfumato.client.launch import open_log
from sfumato.client.policy import Policy
from sfumato.client.setup import init_branch
from sfumato.client.vault.listener import bind, peer_uid
from sfumato.common.codec import PREFIX, decode, encode, frame_length
from sfumato.common.errors import Insecure
from sfumato.common.messages import Ping, Pong
from sfumato.common.processes import free_ports, python, quiet_environment, start_child, stop_group
from sfumato.lab.samplebank import SampleBank
from sfumato.server.home import CoordinatorHome

pytestmark = pytest.mark.slow

Pids = Callable[[Path], dict[str, list[int]]]


class Branch:
    """A branch's home with its passphrase, and `sfumato branch start` on it."""

    def __init__(self, root: Path, bank: SampleBank) -> None:
        port, session_port = free_ports(2)
        CoordinatorHome.init(root / "hq", host="127.0.0.1", port=port, session_port=session_port)
        self.passphrase = secrets.token_urlsafe(24)
        self.home: BranchHome = init_branch(
            root / "b",
            name="branch-1",
            invitation=root / "hq" / "invitation.json",
            contract=bank.contract,
            passphrase=self.passphrase,
            budget_epsilon=4.0,
            budget_delta=1e-5,
            policy=Policy(),
        )
        self.passphrase_file = root / "passphrase"
        self.passphrase_file.write_text(self.passphrase)
        self.passphrase_file.chmod(0o600)
        self.log = root / "start.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> "subprocess.Popen[bytes]":
        command = ["-m", "sfumato.common.cli", "branch", "start", str(self.home.path)]
        return start_child(
            python(*command, "--passphrase-file", str(self.passphrase_file)),
            environment=quiet_environment(os.environ, self.home.courier / "flwr"),
            log=self.log,
        )

    def await_start(self, process: "subprocess.Popen[bytes]") -> None:
        deadline = time.monotonic() + 60
        while not (self.home.path / "run" / "state.json").exists():
            assert process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def ask(self, frame: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(20)
            link.connect(str(self.home.socket))
            link.sendall(frame)
            prefix = link.recv(PREFIX.size, socket.MSG_WAITALL)
            return prefix + link.recv(frame_length(prefix) - len(prefix), socket.MSG_WAITALL)


@pytest.fixture(scope="module")
def branch(bank: SampleBank, tmp_path_factory: pytest.TempPathFactory) -> Branch:
    return Branch(tmp_path_factory.mktemp("s"), bank)


@pytest.fixture(scope="module")
def running(branch: Branch) -> Iterator[Branch]:
    branch.process = branch.start()
    try:
        branch.await_start(branch.process)
        yield branch
    finally:
        stop_group(branch.process, grace=15)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_socket_is_its_owners_alone(running: Branch) -> None:
    status = running.home.socket.stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, os.geteuid())
    assert decode(running.ask(encode(Ping())), "answer")[0] == Pong(branch="branch-1")


def test_every_file_of_the_vault_is_its_owners_alone(running: Branch) -> None:
    assert mode(running.home.vault) == 0o700
    paths = list(running.home.vault.rglob("*"))
    assert len([p for p in paths if p.is_file()]) >= 6
    for path in paths:
        assert mode(path) == (0o700 if path.is_dir() else 0o600), path
    assert mode(running.home.courier) == 0o700


def test_the_passphrase_is_in_no_argument_environment_or_file(running: Branch, pids_of: Pids) -> None:
    secret = running.passphrase.encode()
    pids = pids_of(running.home.path)
    assert set(pids) == {"launcher", "vault", "courier"}
    seen = 0
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                content = (process / name).read_bytes()
            except OSError:  # ended meanwhile, or another user's and we are not root
                continue
            seen += any(process == Path(f"/proc/{p}") for role in pids.values() for p in role)
            assert secret not in content, (process, name)
    assert seen >= 6, "the branch's own processes were not looked at"
    holders = [p for p in running.home.path.rglob("*") if p.is_file() and secret in p.read_bytes()]
    assert holders == []
    assert secret not in running.log.read_bytes()


def test_the_courier_has_no_file_of_the_vault(running: Branch, pids_of: Pids) -> None:
    """Open files, mapped files, working directories of every process of the courier; the socket is no file."""
    vault = str(running.home.vault.resolve())
    pids = pids_of(running.home.path)
    assert len(pids["courier"]) >= 1
    for pid in pids["courier"]:
        process = Path(f"/proc/{pid}")
        opened = [str(fd.readlink()) for fd in (process / "fd").iterdir() if fd.is_symlink()]
        assert opened and not any(name.startswith(vault) for name in opened)
        assert str((process / "cwd").readlink()) != vault
        maps = (process / "maps").read_text()
        assert vault not in maps
        for library in ("torch", "duckdb", "opacus"):
            assert f"/{library}/" not in maps, library
    held = [str(fd.readlink()) for fd in Path(f"/proc/{pids['vault'][0]}/fd").iterdir()]
    assert any(name.startswith(vault) for name in held), (
        "the control failed: the vault itself holds its store"
    )


def test_modules_of_the_courier() -> None:
    """In a fresh interpreter: all that a courier imports, ours and Flower's, brings nothing of the vault."""
    program = """
import importlib, pkgutil, sys
import sfumato.client.courier as package
for module in pkgutil.iter_modules(package.__path__):
    importlib.import_module(f"sfumato.client.courier.{module.name}")
import flwr.supernode.cli
forbidden = ("sfumato.privacy", "sfumato.client.vault", "sfumato.client.ingest", "sfumato.server",
             "torch", "opacus", "duckdb")
print(len([m for m in sys.modules if m.startswith("sfumato.client.courier.")]))
print([m for m in sys.modules if m.startswith(forbidden)])
"""
    done = subprocess.run(python("-c", program), capture_output=True, text=True, check=True)
    count, found = done.stdout.splitlines()
    assert int(count) >= 4
    assert found == "[]"


def test_the_socket_goes_with_the_launcher(running: Branch, pids_of: Pids) -> None:
    """The last test of the running branch: it ends it."""
    pids = [p for role in pids_of(running.home.path).values() for p in role]
    assert running.process is not None
    assert all(_runs(p) for p in pids)
    stop_group(running.process, grace=15)
    assert not running.home.socket.exists()
    assert not (running.home.path / "run" / "state.json").exists()
    deadline = time.monotonic() + 5
    while alive := [p for p in pids if _runs(p)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize(
    "name", ["ledger.sqlite", "keyring.json", "store.duckdb", ".", "job-keys/coordinator.pem"]
)
def test_a_loosened_file_stops_the_start(bank: SampleBank, tmp_path: Path, name: str) -> None:
    branch = Branch(tmp_path, bank)
    path = branch.home.vault / name
    path.chmod(mode(path) | 0o020)
    with pytest.raises(Insecure, match="can be read by others"):
        branch.home.check_private()
    if name != "ledger.sqlite":
        return  # the start itself, once: it costs some seconds
    process = branch.start()
    assert process.wait(60) == Insecure.exit_code
    assert f"{path}: can be read by others" in branch.log.read_text()
    assert not branch.home.socket.exists()
    assert not (branch.home.vault / "vault.log").exists(), "the vault was started"


@pytest.mark.root
@pytest.mark.usefixtures("need_root")
def test_a_file_of_another_user_stops_the_start(bank: SampleBank, tmp_path: Path) -> None:
    branch = Branch(tmp_path, bank)
    os.chown(branch.home.keyring, 65534, 65534)
    with pytest.raises(Insecure, match="belongs to another user"):
        branch.home.check_private()
    branch.home.restore_owner()
    branch.home.check_private()


def test_a_protected_process_is_not_dumpable() -> None:
    """What vault and launcher call first; PR_GET_DUMPABLE is 3. The effect is shown in `test_other_user`."""
    program = """
import ctypes
from sfumato.client.hardening import protect_memory
before = ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)
protect_memory()
print(before, ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
"""
    done = subprocess.run(python("-c", program), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


def test_a_socket_is_private_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even under a loose umask, and before it is owned: looked at in the very call that follows `bind`."""
    seen = []
    before = os.umask(0)
    try:
        monkeypatch.setattr(os, "chown", lambda path, uid, gid: seen.append(mode(Path(path))))
        listener = bind(tmp_path / "s", owner=os.geteuid())
        assert os.umask(0) == 0, "the umask was not put back"
    finally:
        os.umask(before)
    with listener, socket.socket(socket.AF_UNIX) as link:
        assert seen == [0o600] == [mode(tmp_path / "s")]
        link.connect(str(tmp_path / "s"))
        accepted, _ = listener.accept()
        with accepted:
            assert peer_uid(accepted) == os.geteuid()


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "directory"])
def test_a_log_is_no_way_to_another_file(tmp_path: Path, kind: str) -> None:
    """The launcher may be root, and the courier owns the directory that its log lies in."""
    treasure, log = tmp_path / "treasure", tmp_path / "courier.log"
    treasure.write_text("mine")
    make: dict[str, Any] = {
        "symlink": lambda: log.symlink_to(treasure),
        "hard link": lambda: os.link(treasure, log),
        "fifo": lambda: os.mkfifo(log),
        "directory": log.mkdir,
    }
    make[kind]()
    with pytest.raises(Insecure, match=r"courier\.log"):
        open_log(log, 65534)
    assert treasure.read_text() == "mine" and treasure.stat().st_uid == os.geteuid()
    plain = tmp_path / "plain.log"
    os.close(open_log(plain, os.geteuid()))
    assert mode(plain) == 0o600
