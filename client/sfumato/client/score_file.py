"""The file that `branch score` leaves: CSV or Parquet by its suffix, whole or not at all, for its owner alone."""

import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from sfumato.client.ingest.formula import formula_cells
from sfumato.common.errors import BadInput

SUFFIXES = (".csv", ".parquet")


class Sheet(Protocol):
    """Takes the rows, part by part."""

    def write(self, part: pa.Table) -> None:
        """Rows of the schema that the file was opened with."""


def check_place(path: Path, *, force: bool) -> None:
    """Raises BadInput where no such file could be left, before any work is done for it."""
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"{path}: not a .csv or .parquet file", hint="Name the file by its format.")
    if path.is_dir() or not path.parent.is_dir():
        raise BadInput(f"{path}: {'is a directory' if path.is_dir() else 'its directory is not there'}")
    if os.path.lexists(path) and not force:
        raise _exists(path)


@contextmanager
def score_file(path: Path, schema: pa.Schema, *, force: bool) -> Iterator[Sheet]:
    """The file appears under its name on a clean exit; on any exception nothing stays. `force` may replace a file.

    Cells of a CSV that a spreadsheet would run get a leading apostrophe (see ingest.formula). Raises BadInput.
    """
    check_place(path, force=force)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            with closing(_sheet(path, file, schema)) as sheet:
                yield sheet
            file.flush()
            os.fsync(file.fileno())
        if force:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # unlike a rename it never takes another file's place
        _sync(path.parent)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as e:
        raise BadInput(f"{path}: cannot be written ({e.strerror or type(e).__name__})") from None
    finally:
        temporary.unlink(missing_ok=True)


class _CsvSheet:
    def __init__(self, file: Any, schema: pa.Schema) -> None:
        options = pa.csv.WriteOptions(quoting_style="needed")
        self._writer = pa.csv.CSVWriter(file, schema, write_options=options)

    def write(self, part: pa.Table) -> None:
        columns = [_neutral(c) if pa.types.is_string(c.type) else c for c in part.columns]
        self._writer.write_table(pa.table(columns, schema=part.schema))

    def close(self) -> None:
        self._writer.close()


class _ParquetSheet:
    def __init__(self, file: Any, schema: pa.Schema) -> None:
        self._writer = pa.parquet.ParquetWriter(file, schema, compression="zstd")

    def write(self, part: pa.Table) -> None:
        self._writer.write_table(part)

    def close(self) -> None:
        self._writer.close()


def _sheet(path: Path, file: Any, schema: pa.Schema) -> _CsvSheet | _ParquetSheet:
    return _CsvSheet(file, schema) if path.suffix.lower() == ".csv" else _ParquetSheet(file, schema)


def _neutral(column: pa.ChunkedArray) -> pa.Array:
    cells = column.combine_chunks()
    return pc.if_else(formula_cells(cells), pc.binary_join_element_wise("'", cells, ""), cells)


def _exists(path: Path) -> BadInput:
    return BadInput(f"{path}: is there already", hint="Give another name, or --force to write over it.")


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
