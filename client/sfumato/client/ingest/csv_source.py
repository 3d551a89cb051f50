"""CSV (RFC 4180) as text columns, streamed, with every row's number kept.

The standard library's reader is used rather than Arrow's: it keeps the row count exact through ragged rows
and cells of several lines, and a byte that is not UTF-8 costs its cell and not the file.
"""

import codecs
import csv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa

from sfumato.client.ingest.findings import FaultKind
from sfumato.client.ingest.sources import (
    BATCH_CHARACTERS,
    BATCH_ROWS,
    Batch,
    RowFault,
    fingerprint,
    refuse_repeated,
)
from sfumato.common.errors import BadInput

MAX_LINE = 16 << 20
SAVE_AS_UTF8 = "Save the file as UTF-8 (in a spreadsheet: “CSV UTF-8”)."

# A file that is something else says so in its first bytes.
_FOREIGN = (
    (b"PAR1", "a Parquet file", "Name it .parquet."),
    (b"PK\x03\x04", "a zip archive or a spreadsheet (.xlsx)", "Export it as CSV."),
    (b"\x1f\x8b", "gzip-compressed", "Unpack it first."),
    (codecs.BOM_UTF16_LE, "UTF-16", SAVE_AS_UTF8),
    (codecs.BOM_UTF16_BE, "UTF-16", SAVE_AS_UTF8),
)


@dataclass(frozen=True)
class CsvSource:
    """A CSV file: UTF-8 (a byte-order mark is tolerated), a header line, cells quoted with `"`.

    Quoted cells may hold line breaks. Blank lines are skipped and not counted.
    """

    path: Path
    delimiter: str = ","

    @property
    def name(self) -> str:
        return str(self.path)

    @contextmanager
    def open(self) -> Iterator["CsvReader"]:
        """Raises BadInput: no file, empty, not text, no header, repeated names."""
        yield CsvReader(self.path, self.delimiter)


class CsvReader:
    """An open CSV. The file is opened anew by each iteration, and must not have changed in between."""

    def __init__(self, path: Path, delimiter: str) -> None:
        self._path = path
        self._delimiter = delimiter
        self._fingerprint = fingerprint(path)
        self._bad_byte: int | None = None
        self._refuse_foreign()
        with self._open() as file:
            self.columns: tuple[str, ...] = self._header(_Rows(file, delimiter, path))

    def _open(self) -> IO[str]:
        # surrogateescape: a bad byte becomes a lone surrogate, which Arrow refuses and we then look for
        return self._path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _refuse_foreign(self) -> None:
        with self._path.open("rb") as file:
            head = file.read(4)
        for magic, what, hint in _FOREIGN:
            if head.startswith(magic):
                raise BadInput(f"{self._path}: not a CSV in UTF-8 but {what}", hint=hint)

    def _header(self, rows: "_Rows") -> tuple[str, ...]:
        header = next(rows, None)
        if header is None:
            raise BadInput(f"{self._path}: the file has no header line, only blank lines")
        try:
            "".join(header).encode()
        except UnicodeEncodeError:
            at = self._first_bad_byte()
            raise BadInput(f"{self._path}: the header is not UTF-8 (byte {at})", hint=SAVE_AS_UTF8) from None
        if len(header) == 1 and (found := [c for c in ";\t|" if c in header[0]]):
            raise BadInput(
                f"{self._path}: the header is one single cell, and contains {found[0]!r}",
                hint="Is that the delimiter? Say so, or save the file with commas.",
            )
        refuse_repeated(str(self._path), tuple(header))
        return tuple(header)

    def _first_bad_byte(self) -> int:
        """Offset of the first byte of the file that is not UTF-8. Read again: only for the message."""
        if self._bad_byte is None:
            decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
            with self._path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    pending = len(decoder.getstate()[0])
                    try:
                        decoder.decode(chunk)
                    except UnicodeDecodeError as e:
                        offset += e.start - pending
                        break
                    offset += len(chunk)
            self._bad_byte = offset
        return self._bad_byte

    def __iter__(self) -> Iterator[Batch]:
        if fingerprint(self._path) != self._fingerprint:
            raise BadInput(f"{self._path}: the file changed while it was being read")
        with self._open() as file:
            rows = _Rows(file, self._delimiter, self._path)
            next(rows)
            first = 1
            while batch := rows.take():
                yield self._batch(batch, first)
                first += len(batch)

    def _batch(self, rows: list[list[str]], first: int) -> Batch:
        width = len(self.columns)
        faults: list[RowFault] = []
        cells: list[list[str] | list[None]] = list(rows)
        if set(map(len, rows)) != {width}:
            for index, row in enumerate(rows):
                if len(row) != width:
                    faults.append(self._ragged(index, row))
                    cells[index] = [None] * width
        arrays = []
        for name, column in zip(self.columns, zip(*cells, strict=True), strict=True):
            try:
                arrays.append(pa.array(column, pa.string()))
            except UnicodeEncodeError:
                clean, bad = self._bad_encoding(name, column, rows)
                faults += bad
                arrays.append(pa.array(clean, pa.string()))
        return Batch(pa.table(arrays, names=list(self.columns)), first, tuple(faults))

    def _ragged(self, index: int, row: list[str]) -> RowFault:
        found = f"{len(row)} cell{'' if len(row) == 1 else 's'}"
        expected = f"{len(self.columns)} cells, as in the header"
        return RowFault(index, "", FaultKind.RAGGED, expected, found, _printable(row))

    def _bad_encoding(
        self, name: str, column: tuple[str | None, ...], rows: list[list[str]]
    ) -> tuple[list[str | None], list[RowFault]]:
        clean: list[str | None] = list(column)
        faults = []
        for index, cell in enumerate(column):
            if cell is not None and not _encodes(cell):
                clean[index] = None
                found = f"a byte that is not UTF-8 (the file's first is byte {self._first_bad_byte()})"
                cells = _printable(rows[index])
                faults.append(RowFault(index, name, FaultKind.ENCODING, "UTF-8 text", found, cells))
        return clean, faults


class _Rows:
    """The rows of a CSV, blank ones left out; a fault that makes row borders uncertain is a BadInput."""

    def __init__(self, file: IO[str], delimiter: str, path: Path) -> None:
        self._path = path
        self._file = file
        self._row = -1  # the header is row 0
        self._characters = 0
        self._reader = csv.reader(self._lines(), delimiter=delimiter, strict=True)

    def __iter__(self) -> "_Rows":
        return self

    def __next__(self) -> list[str]:
        try:
            while not (row := next(self._reader)):
                pass
        except csv.Error as e:
            raise BadInput(
                f"{self._path}: {self._where()}: {_quoting_fault(e)}",
                hint="Row borders are uncertain from there on: mend the quoting.",
            ) from None
        self._row += 1
        return row

    def take(self) -> list[list[str]]:
        """The next batch: a bounded number of rows and of characters. Empty at the end."""
        rows: list[list[str]] = []
        self._characters = 0
        for row in self:
            rows.append(row)
            if len(rows) >= BATCH_ROWS or self._characters >= BATCH_CHARACTERS:
                break
        return rows

    def _lines(self) -> Iterator[str]:
        while line := self._file.readline(MAX_LINE):
            if len(line) == MAX_LINE and line[-1] not in "\r\n":
                raise BadInput(f"{self._path}: {self._where()}: a line of more than {MAX_LINE:,} characters")
            self._characters += len(line)
            yield line

    def _where(self) -> str:
        return f"row {self._row + 1}" if self._row >= 0 else "header"


def _quoting_fault(error: csv.Error) -> str:
    text = str(error)
    if "field larger" in text:
        return f"a cell of more than {csv.field_size_limit():,} characters, or a quote that is never closed"
    if "end of data" in text:
        return "a quote is opened and never closed"
    return "text follows a closing quote (a quote inside a quoted cell is written twice)"


def _encodes(cell: str) -> bool:
    try:
        cell.encode()
    except UnicodeEncodeError:
        return False
    return True


def _printable(row: list[str]) -> tuple[str, ...]:
    r"""Cells with a bad byte as text: the byte 0xE9 is shown as \xe9."""
    return tuple(c.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for c in row)
