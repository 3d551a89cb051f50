"""`sfumato branch start`: the vault and the courier as two processes, watched, restarted, ended together.

The launcher binds the vault's socket (0600, owned by the courier's user), hands it down, and gives the
passphrase over a socket pair: it is in no argument, no environment and no file of ours.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from sfumato.client.home import BranchHome, require_user
from sfumato.client.vault.listener import READY, bind
from sfumato.common.errors import Insecure, Unavailable
from sfumato.common.private_files import replace
from sfumato.common.processes import python, quiet_environment, stop_group

LONGEST_PAUSE = 30.0
READY_SECONDS = 60.0


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
        """Start it if it is down and its pause is over. Returns whether anything changed."""
        if self.process is not None and self.process.poll() is None:
            return False
        now = time.monotonic()
        if self.process is not None:
            status = self.process.returncode
            self.process = None
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
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        if self._home.user("vault") is not None and self._courier_uid in (0, _uid(self._home.user("vault"))):
            raise Insecure(
                "the vault has its own user, and so must the courier", hint="Set up with --courier-user."
            )
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
        command = python("-m", "sfumato.client.courier", "--config", str(config))
        return self._popen(command, "courier", self._home.courier / "courier.log", ())

    def _popen(
        self, command: list[str], role: str, log: Path, handed_down: tuple[int, ...]
    ) -> "subprocess.Popen[bytes]":
        user = self._home.user("vault" if role == "vault" else "courier")
        entry = require_user(user) if user else None
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            if entry is not None:
                os.fchown(descriptor, entry.pw_uid, entry.pw_gid)
            return subprocess.Popen(
                command,
                env=quiet_environment(os.environ, self._home.courier / "flwr"),
                cwd=self._home.vault if role == "vault" else self._home.courier,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=subprocess.STDOUT,
                pass_fds=handed_down,
                start_new_session=True,
                user=entry.pw_uid if entry else None,
                group=entry.pw_gid if entry else None,
                extra_groups=[] if entry else None,
            )
        finally:
            os.close(descriptor)

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


def _uid(user: str | None) -> int:
    return require_user(user).pw_uid if user else os.geteuid()
