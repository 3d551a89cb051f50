"""The vault as one system user, the courier as another, as the production units run them.

Hostile code is then run by force with all that the courier has, and gets nothing but enumerated refusals.
"""

import base64
import csv
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

import sfumato
from sfumato.client.home import BranchHome
from sfumato.common.codec import encode
from sfumato.common.errors import Insecure, RefusalCode
from sfumato.common.job import SignedJob, load_job, sign_job
from sfumato.common.messages import Ping
from sfumato.common.processes import python, quiet_environment
from sfumato.lab.federation import Federation
from sfumato.lab.samplebank import SampleBank, planted_pii
from sfumato.privacy.ledger import Ledger
from sfumato.server.run_files import run_directory

pytestmark = [pytest.mark.slow, pytest.mark.root, pytest.mark.usefixtures("need_root")]

HOSTILE = Path(__file__).with_name("hostile_courier.py")
REFUSED = {"EACCES", "EPERM"}
Pids = Callable[[Path], dict[str, list[int]]]


@dataclass(frozen=True)
class Users:
    """Three system users without privileges; `other` has no business with the branch."""

    courier: pwd.struct_passwd
    vault: pwd.struct_passwd
    other: pwd.struct_passwd


@dataclass
class Running:
    federation: Federation
    home: BranchHome
    users: Users
    signed: SignedJob
    parameters: int
    seen_of_courier: list[str]  # what its processes had open or mapped while a job ran
    seen_of_vault: list[str]

    @property
    def charges(self) -> int:
        return len(Ledger.read(self.home.ledger).entries("charge"))


def as_user(user: pwd.struct_passwd) -> dict[str, Any]:
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@pytest.fixture(scope="module")
def users(need_root: None) -> Users:
    found = []
    for name in ("nobody", "daemon", "games", "bin", "mail", "news"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            found.append(entry)
    if len(found) < 3:
        pytest.skip("NOT TESTED: needs three system users such as nobody, daemon, games")
    return Users(*found[:3])


@pytest.fixture(scope="module")
def interpreter(users: Users) -> Iterator[str]:
    """A Python that other users may run, made ours (sys.executable, PYTHONPATH) while the module's tests run."""
    minor = f"python{sys.version_info.major}.{sys.version_info.minor}"
    path = [sysconfig.get_paths()["purelib"], *(str(Path(p).parent) for p in sfumato.__path__)]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}
    program = "import sys, duckdb, torch, flwr, sfumato.common.errors; print(sys.version_info[:2])"
    candidates = [sys.executable, *(f"{d}/{minor}" for d in ("/usr/bin", "/usr/local/bin", "/opt/bin"))]
    for candidate in candidates:
        try:
            done = subprocess.run(
                [candidate, "-P", "-c", program],
                env=environment,
                cwd="/",
                capture_output=True,
                text=True,
                **as_user(users.vault),
            )
        except OSError:
            continue
        if done.stdout.strip() == str(sys.version_info[:2]):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "executable", candidate)
                patch.setenv("PYTHONPATH", environment["PYTHONPATH"])
                yield candidate
            return
    pytest.skip(
        f"NOT TESTED: no {minor} that other users may run with this installation (tried {candidates}): "
        "install one for all users, or the tests' Python outside a private home"
    )


@pytest.fixture(scope="module")
def running(interpreter: str, users: Users, bank: SampleBank, pids_of: Pids) -> Iterator[Running]:
    root = Path(tempfile.mkdtemp(prefix="sfumato-"))
    root.chmod(0o755)  # on the way to the branch; pytest's own folders let nobody through
    try:
        with Federation(root / "fed", bank.contract) as federation:
            home = federation.add_branch(
                "branch-1",
                bank.branches["branch-1"],
                vault_user=users.vault.pw_name,
                courier_user=users.courier.pw_name,
            )
            federation.await_branches()
            signed = a_job(federation, bank)
            run_id = federation.control.submit(signed)
            running = Running(federation, home, users, signed, 0, [], [])
            while not federation.control.run(run_id).finished:
                look_at(pids_of(home.path), running)
                time.sleep(0.2)
            result = federation.result(run_id)
            assert result["state"] == "finished", result
            weights = load_file(run_directory(federation.home, run_id) / "model.safetensors")["weights"]
            running.parameters = weights.size
            yield running
    finally:
        shutil.rmtree(root, ignore_errors=True)


def a_job(federation: Federation, bank: SampleBank) -> SignedJob:
    job = load_job(bank.job)
    job = job.model_copy(
        update={
            "training": job.training.model_copy(update={"rounds": 2, "local_steps": 2}),
            "federation": job.federation.model_copy(update={"min_branches": 1}),
        }
    )
    return sign_job(job, federation.contract, federation.home.job_key(), valid_for=timedelta(hours=1))


def look_at(pids: dict[str, list[int]], running: Running) -> None:
    for role, seen in (("courier", running.seen_of_courier), ("vault", running.seen_of_vault)):
        for pid in pids.get(role, ()):
            try:
                process = Path(f"/proc/{pid}")
                seen += [str(fd.readlink()) for fd in (process / "fd").iterdir() if fd.is_symlink()]
                seen += [line.split(maxsplit=5)[-1] for line in (process / "maps").read_text().splitlines()]
            except OSError:  # it has just ended
                continue


def hostile(
    running: Running, user: pwd.struct_passwd, pids: dict[str, list[int]], **more: Any
) -> dict[str, Any]:
    """Run it with the environment and in the directory of the living courier."""
    environ = Path(f"/proc/{pids['courier'][0]}/environ").read_bytes().decode()
    known = {
        "home": str(running.home.path),
        "vault_files": [
            str(p.relative_to(running.home.vault)) for p in running.home.vault.rglob("*") if p.is_file()
        ],
        "vault": pids["vault"][0],
        "launcher": pids["launcher"][0],
        **more,
    }
    assert len(known["vault_files"]) >= 7
    done = subprocess.run(
        python("-c", HOSTILE.read_text()),
        input=json.dumps(known),
        env=dict(line.split("=", 1) for line in environ.split("\0") if "=" in line),
        cwd=Path(f"/proc/{pids['courier'][0]}/cwd").readlink() if user == running.users.courier else "/",
        capture_output=True,
        text=True,
        timeout=240,
        **as_user(user),
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def loot(running: Running, pids_of: Pids) -> dict[str, Any]:
    before = running.charges
    got = hostile(
        running,
        running.users.courier,
        pids_of(running.home.path),
        signed_job=running.signed.model_dump_json(),
        parameters=running.parameters,
    )
    got["charges"] = running.charges - before
    return got


def test_two_users_run_the_branch(running: Running, pids_of: Pids) -> None:
    pids = pids_of(running.home.path)
    for role, user in (("vault", running.users.vault), ("courier", running.users.courier)):
        for pid in pids[role]:
            status = Path(f"/proc/{pid}/status").read_text()
            ids = {f.split()[0]: f.split()[1:] for f in status.splitlines() if f.startswith(("Uid", "Gid"))}
            assert ids == {"Uid:": [str(user.pw_uid)] * 4, "Gid:": [str(user.pw_gid)] * 4}, (role, pid)
            assert int(status.split("CapEff:")[1].split()[0], 16) == 0
    socket_status = running.home.socket.stat()
    assert (socket_status.st_uid, socket_status.st_mode & 0o777) == (running.users.courier.pw_uid, 0o600)
    for path in running.home.vault.rglob("*"):
        assert path.stat().st_uid == running.users.vault.pw_uid, path


def test_the_courier_has_nothing_of_the_vault_open_during_a_run(running: Running) -> None:
    vault = str(running.home.vault)
    assert len(running.seen_of_courier) > 100
    assert any(name.endswith("courier.log") for name in running.seen_of_courier)
    assert not [name for name in running.seen_of_courier if name.startswith(vault)]
    for library in ("torch", "duckdb", "opacus"):
        assert not [name for name in running.seen_of_courier if f"/{library}/" in name]
    assert any(name.startswith(vault) for name in running.seen_of_vault), "the control failed"
    assert any("/torch/" in name for name in running.seen_of_vault), "the control failed"


def test_hostile_code_reads_and_changes_no_file(running: Running, loot: dict[str, Any]) -> None:
    assert loot["uid"] == running.users.courier.pw_uid
    assert loot["cwd"] == str(running.home.courier)
    assert {k: v for k, v in loot["files"].items() if v not in REFUSED} == {}
    assert len(loot["files"]) >= 8 + 3 * 7


def test_hostile_code_cannot_look_into_hold_or_end_a_process(loot: dict[str, Any]) -> None:
    assert {k: v for k, v in loot["processes"].items() if v not in REFUSED} == {}
    assert len(loot["processes"]) >= 2 * 30


def test_hostile_code_is_told_nothing_but_codes(
    running: Running, loot: dict[str, Any], bank: SampleBank
) -> None:
    answers = loot["answers"]
    codes = {name: a["code"] for name, a in answers.items() if a["type"] == "refused"}
    assert {a["type"] for a in answers.values()} == {"pong", "refused", None}, "None: hung up without a word"
    assert {name for name, a in answers.items() if a["type"] == "pong"} == {"ping #0", "ping #1"}
    assert not any(a.get("body") for a in answers.values())
    assert set(codes.values()) <= {str(c) for c in RefusalCode}
    expected = {
        "unsigned": RefusalCode.BAD_SIGNATURE,
        "signed by me": RefusalCode.BAD_SIGNATURE,
        "signed by me, under the pinned name": RefusalCode.BAD_SIGNATURE,
        "another's signature": RefusalCode.BAD_SIGNATURE,
        "more epsilon": RefusalCode.BAD_SIGNATURE,
        "another job id": RefusalCode.BAD_SIGNATURE,
        "a longer life": RefusalCode.BAD_SIGNATURE,
        "train unknown own weights": RefusalCode.UNKNOWN_JOB,
        "evaluate unknown own weights": RefusalCode.UNKNOWN_JOB,
        "close unknown": RefusalCode.UNKNOWN_JOB,
        "train closed own weights": RefusalCode.ROUND_ALREADY_ANSWERED,
        "train closed short": RefusalCode.BAD_VECTOR,
        "train closed beyond": RefusalCode.ROUND_OUT_OF_ORDER,
        "made-up reveal": RefusalCode.BAD_FRAME,
        "deep JSON": RefusalCode.BAD_FRAME,
        "long number": RefusalCode.BAD_FRAME,
        "train closed NaN": RefusalCode.BAD_FRAME,
    }
    for name, code in expected.items():
        assert codes[f"{name} #0"] == codes[f"{name} #1"] == code, name
    for name in ("random 4", "header of 10^9", "body of 10^9", "body of 2^64-1", "cut off"):
        assert answers[f"{name} #0"]["raw"] == "", name
    assert loot["charges"] == 0, "something was released"
    assert loot["at the end"]["type"] == "pong", "the vault did not live through it"
    said = b"\n".join(base64.b64decode(a["raw"]) for a in answers.values())
    for text in planted_pii(bank.contract.parent)["branch-1"]:
        assert text.encode() not in said


CONNECT = """
import socket, sys
link = socket.socket(socket.AF_UNIX)
link.settimeout(10)
try:
    link.connect(sys.argv[1])
    link.sendall(bytes.fromhex(sys.argv[2]))
    print("answer", link.recv(100))
except (PermissionError, BrokenPipeError, ConnectionResetError) as e:
    print(type(e).__name__)
"""


def knock(running: Running, user: pwd.struct_passwd) -> str:
    command = python("-c", CONNECT, str(running.home.socket), encode(Ping()).hex())
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, **as_user(user))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_third_user_cannot_connect(running: Running) -> None:
    assert knock(running, running.users.other) == "PermissionError"
    assert knock(running, running.users.vault) == "PermissionError"
    assert knock(running, running.users.courier).startswith("answer b'SFM1"), "the control failed"


def test_the_kernels_word_counts_when_the_mode_is_loosened(running: Running) -> None:
    """SO_PEERCRED: neither a third user nor root himself gets a word through an open door."""
    running.home.socket.chmod(0o666)
    try:
        dropped = {"answer b''", "BrokenPipeError", "ConnectionResetError"}
        assert knock(running, running.users.other) in dropped
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(10)
            link.connect(str(running.home.socket))
            try:
                link.sendall(encode(Ping()))
                assert link.recv(100) == b""
            except (BrokenPipeError, ConnectionResetError):
                pass
    finally:
        running.home.socket.chmod(0o600)
    log = (running.home.vault / "vault.log").read_text()
    assert log.count("a process of another user tried the vault's socket") == 2
    assert knock(running, running.users.courier).startswith("answer b'SFM1")


def test_not_even_the_vaults_own_user_sees_its_memory(running: Running, pids_of: Pids) -> None:
    """PR_SET_DUMPABLE = 0: /proc entries belong to root, and equals cannot trace."""
    pids = pids_of(running.home.path)
    assert Path(f"/proc/{pids['vault'][0]}/environ").stat().st_uid == 0
    assert Path(f"/proc/{pids['courier'][0]}/environ").stat().st_uid == running.users.courier.pw_uid, (
        "control"
    )
    got = hostile(running, running.users.vault, pids)
    assert {k: v for k, v in got["processes"].items() if v not in REFUSED} == {}
    assert {"vault mem", "vault environ", "vault ptrace", "vault vm_readv"} <= set(got["processes"])


def test_a_link_in_place_of_the_log_gives_no_file_away(running: Running, pids_of: Pids) -> None:
    """The courier ends itself, having put a link to root's file where the launcher, as root, opens its log."""
    treasure = running.federation.path / "treasure"
    treasure.write_text("root's")
    treasure.chmod(0o600)
    program = "import os, sys, signal; os.unlink('courier.log'); os.symlink(sys.argv[1], 'courier.log')"
    program += "; os.kill(int(sys.argv[2]), signal.SIGKILL)"
    command = python("-c", program, str(treasure), str(pids_of(running.home.path)["courier"][0]))
    subprocess.run(command, cwd=running.home.courier, check=True, **as_user(running.users.courier))
    launcher = running.federation.processes["branch-1"]
    assert launcher.wait(30) == Insecure.exit_code
    assert "courier.log: is not a log" in (running.home.path / "start.log").read_text()
    assert (treasure.read_text(), treasure.stat().st_uid) == ("root's", 0)
    (running.home.courier / "courier.log").unlink()


def test_what_root_writes_in_the_vault_stays_the_vaults(running: Running, bank: SampleBank) -> None:
    """The branch is down by now. Its operator is root: commands that write there hand their files back."""
    passphrase = str(running.home.path / "passphrase")
    home = str(running.home.path)
    with (bank.branches["branch-1"] / "customers.csv").open() as file:
        customer = next(csv.DictReader(file))
    field = ("--table", "customers", "--column", "full_name", "--customer-id", customer["customer_id"])
    shown = cli("reveal", home, *field, "--reason", "test", "--passphrase-file", passphrase)
    assert customer["full_name"] in shown
    surveys = str(bank.branches["branch-1"] / "surveys.csv")
    cli("ingest", home, surveys, "--table", "surveys", "--mode", "replace", "--passphrase-file", passphrase)
    cli("rotate-key", home, "--passphrase-file", passphrase, "--new-passphrase-file", passphrase)
    running.home.check_private(running.users.vault.pw_uid)
    for path in running.home.vault.rglob("*"):
        assert path.stat().st_uid == running.users.vault.pw_uid, path


def cli(*arguments: str) -> str:
    command = python("-m", "sfumato.common.cli", "branch", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_python_that_others_cannot_run_is_said_to_be_one(running: Running, interpreter: str) -> None:
    """The branch is down by now. Its start names the user and the interpreter, and what to do."""
    closed = running.federation.path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "python").symlink_to(interpreter)
    passphrase = running.home.path / "passphrase"
    command = [str(closed / "python"), "-P", "-m", "sfumato.common.cli", "branch", "start"]
    done = subprocess.run(
        [*command, str(running.home.path), "--passphrase-file", str(passphrase)],
        env=quiet_environment(os.environ, running.home.courier / "flwr"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == Insecure.exit_code
    told = " ".join(done.stderr.split())
    assert f"user {running.users.vault.pw_name} may not execute" in told
    assert "where every user may run them" in told
