"""Files that nobody else may read: written 0600 in one step, and refused when someone loosened them.

A key that its group can read is a key that leaked: every reader checks before it uses one, and stops with
`Insecure`. Writers leave the whole file or none (temporary file, fsync, link or rename).
"""

import os
import secrets
import stat
from pathlib import Path

from sfumato.common.errors import BadInput, Insecure


def private_directory(path: Path) -> Path:
    """Make the directory (0700), or check the one that is there. Raises Insecure if others may enter it."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        _require_private(path, directory=True)
    return path


def write_new(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file that must not exist yet, whole or not at all. Raises BadInput if it is there."""
    temporary = _write_beside(path, data, mode)
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise BadInput(f"{path}: is there already", hint="Nothing was overwritten; move it away.") from None
    finally:
        temporary.unlink()
    _sync_directory(path.parent)


def replace(path: Path, data: bytes, *, mode: int = 0o600, owner: os.stat_result | None = None) -> None:
    """Write a file, whole or not at all, in place of the one that may be there; for `owner` if root writes it."""
    temporary = _write_beside(path, data, mode, owner)
    try:
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def read_private(path: Path, what: str) -> bytes:
    """The bytes of a secret file. Raises Insecure if it is missing, empty, not ours, or open to others."""
    require_private(path, what)
    data = path.read_bytes()
    if not data:
        raise Insecure(f"{path}: the {what} is empty")
    return data


def require_private(path: Path, what: str) -> None:
    """Raise Insecure unless this is a regular file of ours that group and others cannot touch."""
    try:
        _require_private(path, directory=False)
    except FileNotFoundError:
        raise Insecure(f"{path}: the {what} is missing") from None


def _require_private(path: Path, *, directory: bool) -> None:
    status = path.lstat()
    expected = stat.S_ISDIR if directory else stat.S_ISREG
    if not expected(status.st_mode):
        raise Insecure(f"{path}: is not a plain {'directory' if directory else 'file'}")
    if status.st_uid != os.geteuid():
        raise Insecure(f"{path}: belongs to another user")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise Insecure(
            f"{path}: others may use it (mode {mode:o})",
            hint=f"chmod {'700' if directory else '600'} it, and replace the key if it may have been read.",
        )


def _write_beside(path: Path, data: bytes, mode: int, owner: os.stat_result | None = None) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as out:
            os.fchmod(descriptor, mode)  # whatever the umask takes away: a public file must be readable
            if owner is not None and os.geteuid() == 0:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
    except OSError:  # a full disk, say: no half-written file stays behind
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
