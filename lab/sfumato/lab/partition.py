"""One file, several branches: checked once as a whole, then split as a job would find it at real branches."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sfumato.client.ingest.sources import Batch, Reader, Source
from sfumato.common.errors import BadInput

REST = "rest"


@dataclass(frozen=True)
class NumberedSource:
    """A source with one more column: the row's number, for data that has no customer id of its own."""

    inner: Source
    column: str

    @property
    def name(self) -> str:
        return self.inner.name

    @contextmanager
    def open(self) -> Iterator[Reader]:
        with self.inner.open() as reader:
            if self.column in reader.columns:
                raise BadInput(
                    f"{self.name}: has a column {self.column!r} already", hint="Leave --row-number-as out."
                )
            yield _Numbered(reader, self.column)


@dataclass(frozen=True)
class _Numbered:
    inner: Reader
    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.inner.columns, self.column)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.inner:
            numbers = np.arange(batch.first_row, batch.first_row + batch.table.num_rows)
            column = pa.array(numbers.astype(str), pa.string())
            yield Batch(batch.table.append_column(self.column, column), batch.first_row, batch.faults)


def split(
    source: Source, into: Path, *, column: str | None, branches: int, min_branch_size: int
) -> dict[str, Path]:
    """Write one Parquet file a branch, by a column or by a fixed hash of the row number. Raises BadInput.

    Values of `column` with fewer than `min_branch_size` rows become one branch named "rest". The keys are names
    as a branch may have them (a-z, 0-9, -), made from the values.
    """
    into.mkdir(mode=0o700, parents=True, exist_ok=True)
    sizes = _sizes(source, column) if column is not None else {}
    if column is not None and len(sizes) < 2:
        raise BadInput(
            f"{source.name}: column {column!r} has one value only", hint="Use --branches N instead."
        )
    kept = {value for value, rows in sizes.items() if rows >= min_branch_size}
    files: dict[str, Path] = {}
    with ExitStack() as stack, source.open() as reader:
        writers: dict[str, pq.ParquetWriter] = {}
        for batch in reader:
            for name, rows in _assign(batch, column, branches, kept):
                part = batch.table.filter(pa.array(rows))
                if name not in writers:
                    files[name] = into / f"{len(writers):04d}.parquet"
                    writers[name] = stack.enter_context(pq.ParquetWriter(files[name], part.schema))
                writers[name].write_table(part)
    return dict(sorted(zip(branch_names(list(files)), files.values(), strict=True)))


def branch_names(values: list[str]) -> list[str]:
    """Names as branches may have them (a-z, 0-9, -), made from these values, all different."""
    names: list[str] = []
    for value in values:
        ascii_only = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode().lower()
        name = re.sub(r"[^a-z0-9]+", "-", ascii_only).strip("-")[:50] or "branch"
        tries = (name if n == 1 else f"{name}-{n}" for n in count(1))
        names.append(next(t for t in tries if t not in names))
    return names


def _sizes(source: Source, column: str) -> Counter[str]:
    sizes: Counter[str] = Counter()
    with source.open() as reader:
        if column not in reader.columns:
            raise BadInput(f"{source.name}: has no column {column!r} to split by")
        for batch in reader:
            sizes.update(_values(batch, column))
    return sizes


def _values(batch: Batch, column: str) -> list[str]:
    return ["(none)" if v is None else str(v) for v in batch.table.column(column).to_pylist()]


def _assign(
    batch: Batch, column: str | None, branches: int, kept: set[str]
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    if column is not None:
        names = np.array([v if v in kept else REST for v in _values(batch, column)])
        for name in np.unique(names):
            yield str(name), names == name
        return
    numbers = np.arange(batch.first_row, batch.first_row + batch.table.num_rows)
    place = np.array([int.from_bytes(hashlib.sha256(b"%d" % n).digest()[:8]) % branches for n in numbers])
    for b in np.unique(place):
        yield f"branch-{b + 1}", place == b
