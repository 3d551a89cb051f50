"""The quarantine file: bad rows as the branch's operator handed them in, with what is wrong.

It holds personal data in the clear, whatever the contract protects: mode 0600, never written over another
file, and to be deleted once the rows are mended. One line a row, columns `row,column,kind,expected` (several
faults of a row joined by "; "), then the row's original cells. Formula cells get a leading apostrophe.
"""

import contextlib
import csv
import errno
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from sfumato.client.ingest.formula import neutralise
from sfumato.common.errors import BadInput

HEAD = ("row", "column", "kind", "expected")
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


class Quarantine:
    """Written aside in the same directory; `publish` gives it its name, and leaving by an error removes it.

    Raises BadInput if the file exists or its directory cannot be written.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.rows = 0
        self._columns = columns
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        self._published = False
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if os.path.lexists(self.path):
            raise self._exists()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            descriptor = os.open(self._partial, flags, 0o600)
        except OSError as e:
            raise BadInput(f"{self.path}: the quarantine cannot be written ({e.strerror})") from None
        self._file = os.fdopen(descriptor, "w", encoding="utf-8", newline="")
        self._writer = csv.writer(self._file, quoting=csv.QUOTE_ALL)
        self._writer.writerow([*HEAD, *map(neutralise, self._columns)])
        return self

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
        self._file.close()
        if not self.rows:
            return
        try:
            os.link(self._partial, self.path)  # unlike a rename, never replaces a file
            self._published = True
        except FileExistsError:
            raise self._exists() from None
        except OSError as e:
            if e.errno not in _NO_LINKS:
                raise
            if os.path.lexists(self.path):
                raise self._exists() from None
            self._partial.rename(self.path)
            self._published = True
        self._sync_directory()

    def _sync_directory(self) -> None:
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._partial.unlink(missing_ok=True)
        if kind is not None and self._published:
            self.path.unlink(missing_ok=True)
