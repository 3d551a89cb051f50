"""`sfumato branch start`: the vault and the courier as two processes, watched, restarted, ended together.

The launcher binds the vault's socket (0600, owned by the courier's user), hands it down, and gives the
passphrase over a socket pair: it is in no argument, no environment and no file of ours.
"""

import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from sfumato.client.hardening import protect_memory
from sfumato.client.home import BranchHome, require_user
from sfumato.client.vault.listener import READY, bind
from sfumato.common.errors import Insecure, Unavailable
from sfumato.common.private_files import replace
from sfumato.common.processes import python, quiet_environment, stop_group

LONGEST_PAUSE = 30.0
READY_SECONDS = 60.0
Role = Literal["vault", "courier"]


@dataclass
class Watched:
    """One of the two processes, and how it was doing."""

    name: str
    start: Callable[[], "subprocess.Popen[bytes]"]
    process: "subprocess.Popen[bytes] | None" = None
    restarts: int = 0
    not_before: float = 0.0
    started_at: float = field(default=0.0)

    def tick(self, say: Callable[[str], None]) -> bool:
        """Start it if it is down and its pause is over. Returns whether anything changed. Raises Insecure."""
        if self.process is not None and self.process.poll() is None:
            return False
        now = time.monotonic()
        if self.process is not None:
            status = self.process.returncode
            self.process = None
            if status == Insecure.exit_code:
                raise Insecure(f"the {self.name} refuses to run", hint="Its log says what is insecure.")
            self.restarts = 0 if now - self.started_at > 120 else self.restarts + 1
            pause = min(LONGEST_PAUSE, 0.5 * 2**self.restarts)
            self.not_before = now + pause
            say(f"{self.name} ended (status {status}); starting it again in {pause:.0f} s")
            return True
        if now < self.not_before:
            return False
        self.process, self.started_at = self.start(), now
        return True


class Launcher:
    """Runs one branch until it is told to stop."""

    def __init__(self, home: BranchHome, passphrase: str, say: Callable[[str], None]) -> None:
        self._home = BranchHome(home.path.resolve())  # the children run elsewhere
        self._passphrase = passphrase
        self._say = say
        self._stop = False
        self._listener: socket.socket | None = None
        self._control: socket.socket | None = None
        self._courier_uid = _uid(home.user("courier"))

    def run(self) -> None:
        """Blocks until SIGINT or SIGTERM. Raises Insecure or Unavailable when the vault does not come up."""
        protect_memory()  # the passphrase is in it, as long as the vault may have to be started again
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if self._home.user("vault") is not None and self._courier_uid in (0, _uid(self._home.user("vault"))):
            raise Insecure(
                "the vault has its own user, and so must the courier", hint="Set up with --courier-user."
            )
        self._home.check_private(_uid(self._home.user("vault")))
        for role in ("vault", "courier"):
            self._require_runnable(role)
        self._listener = bind(self._home.socket, self._courier_uid if os.geteuid() == 0 else None)
        watched = [Watched("vault", self._start_vault), Watched("courier", self._start_courier)]
        try:
            watched[0].tick(self._say)
            self._await_vault()
            self._say(f"vault of {self._home.name} is ready")
            while not self._stop:
                changed = [w.tick(self._say) for w in watched]
                if any(changed):
                    self._write_state(watched)
                time.sleep(0.1)
        finally:
            for w in reversed(watched):
                if w.process is not None:
                    stop_group(w.process)
            self._listener.close()
            self._home.socket.unlink(missing_ok=True)
            state_file(self._home).unlink(missing_ok=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def _start_vault(self) -> "subprocess.Popen[bytes]":
        assert self._listener is not None
        ours, theirs = socket.socketpair()
        # Handed down by number: the bound socket, and a channel for the passphrase in and one word back.
        command = python("-m", "sfumato.client.vault.service", "--home", str(self._home.path))
        command += ["--socket-fd", str(self._listener.fileno()), "--control-fd", str(theirs.fileno())]
        command += ["--courier-uid", str(self._courier_uid)]
        with theirs:
            handed_down = (self._listener.fileno(), theirs.fileno())
            process = self._popen(command, "vault", self._home.vault / "vault.log", handed_down)
        ours.sendall(self._passphrase.encode())
        ours.shutdown(socket.SHUT_WR)
        self._control = ours
        return process

    def _start_courier(self) -> "subprocess.Popen[bytes]":
        config = self._home.courier / "courier.toml"
        command = python("-m", "sfumato.client.courier", "--config", str(config), "--lifeline")
        return self._popen(command, "courier", self._home.courier / "courier.log", ())

    def _popen(
        self, command: list[str], role: Role, log: Path, handed_down: tuple[int, ...]
    ) -> "subprocess.Popen[bytes]":
        entry = self._entry(role)
        descriptor = open_log(log, entry.pw_uid if entry else os.geteuid())
        try:
            return subprocess.Popen(
                command,
                env=self._environment(),
                cwd=self._directory(role),
                stdin=subprocess.PIPE if role == "courier" else subprocess.DEVNULL,  # its end tells a courier
                stdout=descriptor,
                stderr=subprocess.STDOUT,
                pass_fds=handed_down,
                start_new_session=True,
                **_identity(entry),
            )
        finally:
            os.close(descriptor)

    def _require_runnable(self, role: Role) -> None:
        """Raise Insecure when the role's own user cannot run this installation, or not reach its directory."""
        entry = self._entry(role)
        if entry is None:
            return
        program = "import os, sys, sfumato.common.errors; os.listdir(sys.argv[1])"
        command = python("-c", program, str(self._directory(role)))
        hint = "Install Python and Sfumato where every user may run them, such as under /opt."
        try:
            tried = subprocess.run(
                command, env=self._environment(), cwd="/", capture_output=True, **_identity(entry)
            )
        except PermissionError:
            raise Insecure(f"user {entry.pw_name} may not execute {sys.executable}", hint=hint) from None
        if tried.returncode != 0:
            reason = (tried.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
            raise Insecure(f"user {entry.pw_name} cannot run Sfumato from here: {reason}", hint=hint)

    def _entry(self, role: Role) -> pwd.struct_passwd | None:
        user = self._home.user(role)
        return require_user(user) if user else None

    def _directory(self, role: Role) -> Path:
        return self._home.vault if role == "vault" else self._home.courier

    def _environment(self) -> dict[str, str]:
        return quiet_environment(os.environ, self._home.courier / "flwr")

    def _await_vault(self) -> None:
        """The vault says that it is ready, or the start stops."""
        assert self._control is not None
        self._control.settimeout(READY_SECONDS)
        try:
            word = self._control.recv(16)
        except OSError:
            word = b""
        if word != READY and not self._stop:
            raise Unavailable("the vault did not start", hint=f"See {self._home.vault / 'vault.log'}.")

    def _write_state(self, watched: list[Watched]) -> None:
        state = {w.name: w.process.pid if w.process is not None else None for w in watched}
        replace(state_file(self._home), json.dumps({"launcher": os.getpid(), **state}).encode(), mode=0o644)


def state_file(home: BranchHome) -> Path:
    return home.socket.parent / "state.json"


def open_log(path: Path, owner: int) -> int:
    """A descriptor that appends to `path` (0600, owned by the uid `owner`). Raises Insecure if it is a link.

    The directory is the owner's, we may be root: a link put there would give it any file of the machine.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as e:
        raise Insecure(f"{path}: is not a log that can be written ({e.strerror})") from None
    status = os.fstat(descriptor)
    ours = status.st_uid in (owner, os.geteuid())
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or not ours:
        os.close(descriptor)
        raise Insecure(f"{path}: is not a plain file of its user's", hint="Ask who put it there.")
    if status.st_uid != owner:
        os.fchown(descriptor, owner, -1)
    return descriptor


def _identity(entry: pwd.struct_passwd | None) -> dict[str, Any]:
    if entry is None:
        return {}
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _uid(user: str | None) -> int:
    return require_user(user).pw_uid if user else os.geteuid()
