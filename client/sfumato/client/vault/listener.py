"""The vault's unix socket: 0600, owned by the courier's user, and the kernel's word on who is at the other end.

When the vault runs as another system user, the launcher (root) binds the socket and hands it down. Light to
import: the launcher uses it, and has no use for torch.
"""

import os
import socket
import struct
from pathlib import Path

from sfumato.common.processes import short_socket_path

READY = b"ready\n"


def bind(path: Path, owner: int | None = None) -> socket.socket:
    """A listening unix socket, 0600 from its first moment, owned by `owner` (a uid) if given."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old = os.umask(0o177)
    try:
        with short_socket_path(path) as short:
            listener.bind(short)
    finally:
        os.umask(old)
    if owner is not None:
        os.chown(path, owner, -1)
    listener.listen(4)
    return listener


def peer_uid(connection: socket.socket) -> int:
    """The user id of the process at the other end, as the kernel knows it."""
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)
