"""The quarantine file: bad rows as the branch's operator handed them in, with what is wrong.

It holds personal data in the clear, whatever the contract protects: mode 0600, never written over another
file, and to be deleted once the rows are mended. One line a row, columns `row,column,kind,expected` (several
faults of a row joined by "; "), then the row's original cells. Formula cells get a leading apostrophe.
"""

import contextlib
import csv
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from sfumato.client.ingest.formula import neutralise
from sfumato.common.errors import BadInput

HEAD = ("row", "column", "kind", "expected")


class Quarantine:
    """Written to a file without a name, which dies with the process; `publish` gives it its name.

    Where the file system has no nameless files it is a hidden one, removed on leaving. Leaving by an error
    takes a published file back. Raises BadInput if the file exists or its directory cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.rows = 0
        self._columns = columns
        self._partial: Path | None = None
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if os.path.lexists(self.path):
            raise self._exists()
        try:
            descriptor = self._open()
        except OSError as e:
            raise BadInput(f"{self.path}: the quarantine cannot be written ({e.strerror})") from None
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, quoting=csv.QUOTE_ALL)
        self._writer.writerow([*HEAD, *map(neutralise, self._columns)])
        return self

    def _open(self) -> int:
        try:
            return os.open(self.path.parent, os.O_TMPFILE | os.O_WRONLY, 0o600)
        except (AttributeError, OSError):  # not Linux, or not on this file system
            self._partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}.partial")
            return os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)

    def _exists(self) -> BadInput:
        return BadInput(
            f"{self.path}: exists, and a quarantine never overwrites a file",
            hint="Move it away or give another name.",
        )

    def add(self, row: int, faults: Iterable[tuple[str, str, str]], cells: Sequence[str]) -> None:
        """One bad row: its faults as (column, kind, expected), and its original cells."""
        columns, kinds, expected = zip(*faults, strict=True)
        what = ("; ".join(columns), "; ".join(kinds), "; ".join(expected))
        self._writer.writerow([row, *what, *map(neutralise, cells)])
        self.rows += 1

    def publish(self) -> None:
        """Make the file durable under its name, if it holds a row. Raises BadInput if the name was taken."""
        assert self._file is not None  # entered
        self._file.flush()
        os.fsync(self._file.fileno())
        if not self.rows:
            return
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            self._name(directory)
            os.fsync(directory)
        finally:
            os.close(directory)

    def _name(self, directory: int) -> None:
        assert self._file is not None  # entered
        source = self._partial or Path(f"/proc/self/fd/{self._file.fileno()}")
        try:
            # Unlike a rename, a link never replaces a file. The directory is given so that CPython
            # calls linkat(2) with AT_SYMLINK_FOLLOW, which alone can name a nameless file.
            os.link(source, self.path.name, dst_dir_fd=directory, follow_symlinks=True)
        except FileExistsError:
            raise self._exists() from None
        except OSError as e:
            if self._partial is None:
                raise BadInput(f"{self.path}: the quarantine cannot be named ({e.strerror})") from None
            if os.path.lexists(self.path):
                raise self._exists() from None
            self._partial.rename(self.path)  # a file system without links

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            if kind is not None and self._is_named():
                self.path.unlink()
            with contextlib.suppress(OSError):
                self._file.close()
        if self._partial is not None:
            self._partial.unlink(missing_ok=True)

    def _is_named(self) -> bool:
        """Whether the name is there and is ours: asked of the file system, since Ctrl-C falls anywhere."""
        assert self._file is not None  # entered
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), self.path.lstat())
        except FileNotFoundError:
            return False
