"""What a hostile bundle would try if it ran in the courier's process: its user, environment, directory, files.

Reads what it may know from standard input (JSON); prints what came of each attempt (JSON). Without a signed
job among it, it only looks into the vault's process. Not a test itself:
`test_other_user` runs it as the courier's user, and looks at what it got.
"""

import base64
import contextlib
import ctypes
import errno
import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common import codec, messages
from sfumato.common.codec import MAGIC, PREFIX
from sfumato.common.job import SignedJob, sign_job

PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
SYS_PIDFD_OPEN, SYS_PIDFD_GETFD = 434, 438
LIBC = ctypes.CDLL(None, use_errno=True)


def outcome(act: Callable[[], Any]) -> str:
    """The name of the error, or what was got."""
    try:
        return f"GOT {act()!r}"[:400]
    except OSError as e:
        return errno.errorcode.get(e.errno or 0, str(e))


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def files(home: Path, vault_files: list[str]) -> Iterator[tuple[str, str]]:
    vault = home / "vault"
    yield "list vault", outcome(lambda: list(vault.iterdir()))
    yield "enter vault", outcome(lambda: os.chdir(vault))
    yield "write in vault", outcome(lambda: (vault / "job-keys" / "mine.pem").write_text("x"))
    yield "loosen vault", outcome(lambda: vault.chmod(0o777))
    yield "move vault", outcome(lambda: vault.rename(home / "elsewhere"))
    yield "replace branch.toml", outcome(lambda: (home / "branch.toml").write_text("x"))
    yield "replace socket", outcome(lambda: (home / "run" / "vault.sock").unlink())
    yield "write in run", outcome(lambda: (home / "run" / "state.json").write_text("{}"))
    for name in vault_files:
        path = vault / name
        yield f"read {name}", outcome(lambda p=path: p.read_bytes())
        yield f"stat {name}", outcome(lambda p=path: p.stat())
        yield f"link {name}", outcome(lambda p=path: os.link(p, "stolen"))


def process(who: str, pid: int) -> Iterator[tuple[str, str]]:
    """Look into a process, take hold of it."""
    at = Path(f"/proc/{pid}")
    for name in ("mem", "environ", "maps", "smaps", "auxv", "pagemap", "syscall", "stack", "io"):
        yield f"{who} {name}", outcome(lambda p=at / name: p.open("rb").read(64))
    for name in ("fd", "map_files", "fdinfo"):
        yield f"{who} {name}", outcome(lambda p=at / name: list(p.iterdir()))
    for name in ("cwd", "root", "exe"):
        yield f"{who} {name}", outcome(lambda p=at / name: p.readlink())
    for number in range(12):
        yield f"{who} fd {number}", outcome(lambda p=at / "fd" / str(number): p.open("rb").read(64))
    yield f"{who} ptrace", outcome(lambda: checked(LIBC.ptrace(PTRACE_ATTACH, pid, 0, 0)))
    yield f"{who} ptrace seize", outcome(lambda: checked(LIBC.ptrace(PTRACE_SEIZE, pid, 0, 0)))
    yield f"{who} pidfd_getfd", outcome(lambda: steal_descriptor(pid, 3))
    yield f"{who} vm_readv", outcome(lambda: read_memory(pid))


def harm(who: str, pid: int) -> Iterator[tuple[str, str]]:
    """Stop a process, end it, starve it."""
    for number in (signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL):
        yield f"{who} {number.name}", outcome(lambda n=number: os.kill(pid, n))
    yield f"{who} priority", outcome(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))


def steal_descriptor(pid: int, number: int) -> int:
    pidfd = checked(LIBC.syscall(SYS_PIDFD_OPEN, pid, 0))
    return checked(LIBC.syscall(SYS_PIDFD_GETFD, pidfd, number, 0))


def read_memory(pid: int) -> bytes:
    class Span(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    buffer = ctypes.create_string_buffer(64)
    here = Span(ctypes.addressof(buffer), 64)
    there = Span(0x400000, 64)
    checked(LIBC.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0))
    return buffer.raw


def ask(path: Path, frame: bytes) -> dict[str, Any]:
    """Send bytes to the vault and take whatever comes back, until it closes or has said one whole frame."""
    got = bytearray()
    with socket.socket(socket.AF_UNIX) as link, contextlib.suppress(OSError):
        link.settimeout(20)
        link.connect(str(path))
        with contextlib.suppress(BrokenPipeError):
            link.sendall(frame)
            link.shutdown(socket.SHUT_WR)
        while part := link.recv(1 << 16):
            got += part
    raw = bytes(got)
    try:
        answer, body = codec.decode(raw, "answer")
    except codec.FrameError:
        return {"raw": base64.b64encode(raw).decode(), "type": None if not raw else "garbage"}
    return {
        "raw": base64.b64encode(raw).decode(),
        "type": answer.type,
        "code": getattr(answer, "code", None),
        "body": body is not None,
    }


def header(text: str, body: bytes = b"") -> bytes:
    return PREFIX.pack(MAGIC, len(text), len(body)) + text.encode() + body


def questions(genuine: SignedJob, parameters: int) -> Iterator[tuple[str, bytes]]:
    yield "ping", codec.encode(messages.Ping())
    for i in range(8):
        yield f"random {i}", secrets.token_bytes(1 << (2 * i))
    yield "header of 10^9", PREFIX.pack(MAGIC, 10**9, 0) + bytes(64)
    yield "body of 10^9", PREFIX.pack(MAGIC, 2, 10**9) + b"{}"
    yield "body of 2^64-1", PREFIX.pack(MAGIC, 2, 2**64 - 1) + b"{}"
    yield "cut off", codec.encode(messages.Ping())[:-3]
    yield "no JSON", header("x" * 100)
    yield "deep JSON", header('{"message":' * 90_000)
    yield "long number", header('{"message":{"type":"ping","version":' + "9" * 100_000 + "}}")
    yield "pickle", header("c", b"cos\nsystem\n(S'id'\ntR.")
    for made_up in ("reveal", "query", "shell", "released", "pong"):
        yield f"made-up {made_up}", header(json.dumps({"message": {"type": made_up, "version": 1}}))
    for name, signed in forgeries(genuine):
        yield name, codec.encode(messages.OpenJob(signed_job=signed))
    for name, job_id in (("unknown", secrets.token_hex(16)), ("closed", genuine.job_id)):
        for label, vector in vectors(parameters):
            yield f"train {name} {label}", codec.encode(messages.Train(job_id=job_id, round=2), vector)
            yield f"evaluate {name} {label}", codec.encode(messages.Evaluate(job_id=job_id, round=2), vector)
        yield f"train {name} beyond", codec.encode(messages.Train(job_id=job_id, round=10**6), None)
        not_a_number = np.full(parameters, np.nan, dtype=np.float32).tobytes()
        head = {"type": "train", "version": 1, "job_id": job_id, "round": 2}
        text = json.dumps({"message": head, "dtype": "float32", "length": parameters})
        yield f"train {name} NaN", header(text, not_a_number)
    yield "close unknown", codec.encode(messages.CloseJob(job_id=secrets.token_hex(16)))


def forgeries(genuine: SignedJob) -> Iterator[tuple[str, SignedJob]]:
    own = Ed25519PrivateKey.generate()
    mine = sign_job(genuine.job, genuine.contract, own, valid_for=timedelta(hours=1))
    greedy = genuine.job.privacy.model_copy(update={"target_epsilon": 2.5})
    yield "unsigned", genuine.model_copy(update={"signature": ""})
    yield "signed by me", mine
    yield "signed by me, under the pinned name", mine.model_copy(update={"key_id": genuine.key_id})
    yield "another's signature", mine.model_copy(update={"signature": genuine.signature})
    yield (
        "more epsilon",
        genuine.model_copy(update={"job": genuine.job.model_copy(update={"privacy": greedy})}),
    )
    yield "another job id", genuine.model_copy(update={"job_id": secrets.token_hex(16)})
    yield (
        "a longer life",
        genuine.model_copy(update={"expires_at": genuine.expires_at + timedelta(days=99)}),
    )


def vectors(parameters: int) -> Iterator[tuple[str, Any]]:
    yield "nothing", None
    yield "own weights", np.ones(parameters, dtype=np.float32)
    yield "short", np.ones(3, dtype=np.float32)
    yield "integers", np.ones(parameters, dtype=np.int64)


def main() -> None:
    known = json.loads(sys.stdin.read())
    home = Path(known["home"])
    got: dict[str, Any] = {"uid": os.getuid(), "cwd": str(Path.cwd())}
    got["processes"] = dict(process("vault", known["vault"]))
    if "signed_job" in known:
        genuine = SignedJob.model_validate_json(known["signed_job"])
        path = home / "run" / "vault.sock"
        got["files"] = dict(files(home, known["vault_files"]))
        got["processes"] |= dict(process("launcher", known["launcher"]))
        got["processes"] |= dict(harm("vault", known["vault"])) | dict(harm("launcher", known["launcher"]))
        got["answers"] = {
            f"{name} #{i}": ask(path, frame)
            for name, frame in questions(genuine, known["parameters"])
            for i in range(2)
        }
        got["at the end"] = ask(path, codec.encode(messages.Ping()))
    print(json.dumps(got))


if __name__ == "__main__":
    main()
