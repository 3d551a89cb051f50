"""The courier's end of the unix socket to the vault: a question frame out, an answer frame back."""

import socket
import time
from pathlib import Path

from sfumato.common.codec import PREFIX, FrameError, encode, frame_length
from sfumato.common.errors import RefusalCode
from sfumato.common.messages import Refused
from sfumato.common.processes import short_socket_path

CONNECT_SECONDS = 2.0


def refusal(code: RefusalCode) -> bytes:
    """A refusal in the courier's own name."""
    return encode(Refused(code=code))


class VaultLink:
    """Asks the vault behind `path`. `timeout` bounds one whole question, in seconds.

    A connection a question: a restarted vault is found again, and a vault that hangs on one question does not
    garble the next.
    """

    def __init__(self, path: Path, *, timeout: float = 3600.0) -> None:
        self._path = path
        self._timeout = timeout

    def ask(self, frame: bytes) -> bytes:
        """The vault's answer; a VAULT_UNREACHABLE refusal if there is no whole answer in time."""
        deadline = time.monotonic() + self._timeout
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.settimeout(min(CONNECT_SECONDS, self._timeout))
                with short_socket_path(self._path) as path:
                    link.connect(path)
                link.settimeout(self._timeout)
                link.sendall(frame)
                prefix = _receive(link, PREFIX.size, deadline)
                return prefix + _receive(link, frame_length(prefix) - PREFIX.size, deadline)
        except (OSError, EOFError, FrameError):
            return refusal(RefusalCode.VAULT_UNREACHABLE)


def _receive(link: socket.socket, count: int, deadline: float) -> bytes:
    buffer = bytearray()
    while len(buffer) < count:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        link.settimeout(left)
        part = link.recv(min(1 << 20, count - len(buffer)))
        if not part:
            raise EOFError
        buffer += part
    return bytes(buffer)
