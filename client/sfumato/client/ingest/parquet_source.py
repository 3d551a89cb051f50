"""Parquet as plain Arrow columns, streamed by batches of rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sfumato.client.ingest.findings import FaultKind
from sfumato.client.ingest.sources import BATCH_ROWS, Batch, RowFault, fingerprint, refuse_repeated
from sfumato.common.errors import BadInput


@dataclass(frozen=True)
class ParquetSource:
    """A Parquet file with flat columns; dictionary-encoded columns (pandas categoricals) are unpacked."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @contextmanager
    def open(self) -> Iterator["ParquetReader"]:
        """Raises BadInput: no file, empty, not Parquet, encrypted, nested columns, repeated names."""
        before = fingerprint(self.path)
        try:
            # no pre-buffering: it would hold whole row groups
            file = pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20)
        except (pa.ArrowException, OSError):
            raise BadInput(
                f"{self.path}: not a whole, readable Parquet file",
                hint="Is it cut short, encrypted, or another format?",
            ) from None
        with file:
            yield ParquetReader(self.path, file, before)


class ParquetReader:
    """An open Parquet file; it must not change while it is read."""

    def __init__(self, path: Path, file: Any, before: tuple[int, int, int, int]) -> None:
        self._path = path
        self._file = file
        self._before = before
        self.columns: tuple[str, ...] = tuple(file.schema_arrow.names)
        refuse_repeated(str(path), self.columns)
        for place, stored in enumerate(file.schema_arrow, start=1):
            if not _is_plain(stored.type):
                raise BadInput(
                    f"{path}: column {place} has a nested or unusual Parquet type",
                    hint="Flat columns only: text, boolean, integer, float, decimal, date or timestamp.",
                )

    def __iter__(self) -> Iterator[Batch]:
        first = 1
        try:
            for records in self._file.iter_batches(batch_size=BATCH_ROWS):
                if records.num_rows:
                    yield self._batch(records, first)
                    first += records.num_rows
        except (pa.ArrowException, OSError):
            raise BadInput(f"{self._path}: damaged after row {first - 1}") from None
        if fingerprint(self._path) != self._before:
            raise BadInput(f"{self._path}: the file changed while it was being read")

    def _batch(self, records: Any, first: int) -> Batch:
        columns, faults = [], []
        for name, array in zip(self.columns, records.columns, strict=True):
            plain, bad = _plain(array)
            columns.append(plain)
            faults += [(index, name) for index in bad]
        table = pa.table(columns, names=list(self.columns))
        return Batch(table, first, tuple(self._bad_encoding(records, i, name) for i, name in faults))

    def _bad_encoding(self, records: Any, index: int, name: str) -> RowFault:
        cells = tuple(_cell_text(array, index) for array in records.columns)
        found = "bytes that are not UTF-8"
        return RowFault(index, name, FaultKind.ENCODING, "UTF-8 text", found, cells)


def _is_plain(kind: pa.DataType) -> bool:
    t = pa.types
    if t.is_dictionary(kind):
        return _is_plain(kind.value_type)
    tests = (t.is_boolean, t.is_integer, t.is_floating, t.is_decimal, t.is_date, t.is_timestamp, t.is_null)
    return _is_textual(kind) or any(test(kind) for test in tests)


def _is_textual(kind: pa.DataType) -> bool:
    t = pa.types
    tests = (t.is_string, t.is_large_string, t.is_string_view, t.is_binary, t.is_large_binary)
    return any(test(kind) for test in tests)


def _plain(array: pa.Array) -> tuple[pa.Array, list[int]]:
    """The column unpacked, text as pa.string(); and the places whose bytes are not UTF-8 (null there)."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), pa.string()), []
    if pa.types.is_float16(array.type):
        return array.cast(pa.float32()), []
    if not _is_textual(array.type):
        return array, []
    try:
        text = array.cast(pa.string())
        text.validate(full=True)
    except pa.ArrowInvalid:
        return _decoded_one_by_one(array)
    return text, []


def _decoded_one_by_one(array: pa.Array) -> tuple[pa.Array, list[int]]:
    cells: list[str | None] = []
    bad = []
    for index, raw in enumerate(array.cast(pa.binary()).to_pylist()):
        try:
            cells.append(None if raw is None else raw.decode())
        except UnicodeDecodeError:
            bad.append(index)
            cells.append(None)
    return pa.array(cells, pa.string()), bad


def _cell_text(array: pa.Array, index: int) -> str:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if not _is_textual(array.type):
        value = array[index].as_py()
        return "" if value is None else str(value)
    raw = array.slice(index, 1).cast(pa.binary())[0].as_py()
    return "" if raw is None else str(raw.decode("utf-8", "backslashreplace"))
