"""Where rows come from: one shape for CSV, Parquet and PostgreSQL.

A source is opened once and read in batches of bounded size; a reader can be iterated again and then yields
the same rows (the duplicates of a load are only known at its end). Rows are *data rows counted from 1*: the
header and blank lines do not count, and a row whose cell spans several lines is still one row.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from sfumato.client.ingest.findings import FaultKind
from sfumato.common.errors import BadInput

BATCH_ROWS = 16_384
BATCH_CHARACTERS = 8 << 20


@dataclass(frozen=True, slots=True)
class RowFault:
    """A row that the reader itself could not take apart. `index` is the row's place in its batch.

    `cells` are the row's original cells as text (for the quarantine). `column` is empty for the whole row.
    """

    index: int
    column: str
    kind: FaultKind
    expected: str
    value_class: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Raw columns under the file's names, the data row number of the first row, and rows already bad.

    A column is text (CSV, PostgreSQL) or one of the plain Arrow types (Parquet): text, bool, integer,
    float, decimal, date or timestamp.
    """

    table: pa.Table
    first_row: int
    faults: tuple[RowFault, ...] = ()


class Reader(Protocol):
    """An open source. `columns` is known before any row is read; iterating again starts at row 1."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    def __iter__(self) -> Iterator[Batch]: ...


class Source(Protocol):
    """Something to ingest. `name` stands in messages and holds no secret."""

    @property
    def name(self) -> str: ...

    def open(self) -> AbstractContextManager[Reader]: ...


def characters(count: int) -> str:
    """'1 character', '12 characters'."""
    return f"{count:,} character{'' if count == 1 else 's'}"


def fingerprint(path: Path) -> tuple[int, int, int, int]:
    """Identity, size and time of a file, to notice that it changed while it was read.

    Raises BadInput if there is no such regular file, or if it is empty.
    """
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except OSError as e:
        raise BadInput(f"{path}: cannot be read ({e.strerror})") from None
    if not path.is_file():
        raise BadInput(f"{path}: not a regular file", hint="Give the path of a CSV or Parquet file.")
    if stat.st_size == 0:
        raise BadInput(f"{path}: the file is empty (0 bytes)")
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def refuse_repeated(name: str, columns: tuple[str, ...]) -> None:
    """Raise BadInput if two columns have one name. Names them by place: the header might be a data row."""
    seen: dict[str, int] = {}
    for place, column in enumerate(columns, start=1):
        if column in seen:
            raise BadInput(
                f"{name}: columns {seen[column]} and {place} of the header have the same name",
                hint="Give every column its own name.",
            )
        seen[column] = place
