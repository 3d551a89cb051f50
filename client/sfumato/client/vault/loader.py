"""Loading one table in one transaction: tokens, sealed chunks, and rows that may still be discarded.

PII that is to be encrypted must not outlive a discarded row, nor a load that fails. Until the load commits it is
therefore sealed under keys that exist in this process alone, in a file that has no name; only at the commit are
the surviving values sealed under the field's own key. What was discarded dies with the keys.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sfumato.client.column_types import ARROW_TYPE
from sfumato.client.vault.database import quoted
from sfumato.common.contract import Column, ColumnType, Contract, Protection, Role, Table
from sfumato.common.errors import BadInput
from sfumato.privacy.fields import CHUNK_VALUES, FieldCipher, Tokenizer
from sfumato.privacy.keys import EphemeralKeys, KeySource

SLOT = "$slot"  # position in the table: chunk * 8192 + place in the chunk. No contract name holds a "$"
ROW = "$row"  # the row's number in the source that it was loaded from
ID_PURPOSE = "customer-id"
INSERT_CHUNKS = 64


def is_sealed(column: Column) -> bool:
    return column.role is Role.PII and column.protection is Protection.ENCRYPT


def is_dropped(column: Column) -> bool:
    return column.role is Role.PII and column.protection is Protection.DROP


def token_purpose(table: Table, column: Column) -> str | None:
    """The token domain of a column that is kept as a token, else None. Customer ids share one over all tables."""
    if column.role is Role.CUSTOMER_ID:
        return ID_PURPOSE
    if column.role is Role.PII and column.protection is Protection.TOKEN:
        return f"pii:{table.name}.{column.name}"
    return None


def stored_columns(table: Table) -> tuple[Column, ...]:
    """The columns that can be queried: neither dropped nor sealed. Customer id and token PII hold tokens."""
    return tuple(c for c in table.columns if not is_sealed(c) and not is_dropped(c))


@dataclass
class _Staged:
    """One sealed column on its way: values not yet in a whole chunk, and where the staged chunks lie."""

    column: Column
    pending: list[pa.Array] = field(default_factory=list)
    waiting: int = 0
    places: list[tuple[int, int]] = field(default_factory=list)  # offset, length in the nameless file


class TableLoader:
    """Takes a table's valid rows batch by batch; made by `Store.load`, which commits or rolls back."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        contract: Contract,
        table: Table,
        keyring: KeySource,
        folder: Path,
        first_slot: int,
    ) -> None:
        self._connection: duckdb.DuckDBPyConnection | None = connection
        self._contract, self._table = contract, table
        self._tokenizer = Tokenizer(keyring)
        self._cipher = FieldCipher(keyring)
        self._staging = FieldCipher(EphemeralKeys())
        self._first = self._next = first_slot
        self._sealed = [_Staged(c) for c in table.columns if is_sealed(c)]
        self._discarded: list[npt.NDArray[np.int64]] = []
        self._file: Any = tempfile.TemporaryFile(dir=folder) if self._sealed else None  # noqa: SIM115

    def append(self, rows: pa.Table, row_numbers: npt.NDArray[np.int64]) -> None:
        """Add valid rows: the contract's columns in the contract's types; `row_numbers` are int64, one a row.

        Columns with protection "drop" may be absent and are not kept. Raises BadInput on a missing, unknown or
        wrongly typed column, a non-finite number, or a null where the contract has none.
        """
        connection = self._open()
        self._check_columns(rows)
        if len(row_numbers) != rows.num_rows:
            raise ValueError(f"{rows.num_rows} rows, {len(row_numbers)} row numbers")
        if rows.num_rows == 0:
            return
        slots = np.arange(self._next, self._next + rows.num_rows, dtype=np.int64)
        batch = {SLOT: pa.array(slots), ROW: pa.array(row_numbers, type=pa.int64())}
        for column in stored_columns(self._table):
            batch[column.name] = self._stored(column, rows.column(column.name))
        values = {s.column.name: self._text(s.column, rows.column(s.column.name)) for s in self._sealed}
        _insert(connection, f"raw.{quoted(self._table.name)}", pa.table(batch))
        for staged in self._sealed:
            staged.pending.append(values[staged.column.name])
            staged.waiting += rows.num_rows
            self._stage(staged, whole_only=True)
        self._next += rows.num_rows

    def duplicate_rows(self) -> list[int]:
        """Customers table only: the row numbers of second and later rows of a customer, ascending.

        An earlier row is one of this load, or one stored before. Other tables have none.
        """
        if self._table.name != self._contract.customers:
            return []
        name, customer = quoted(self._table.name), quoted(self._table.customer_id.name)
        found = self._open().execute(
            f'SELECT "{ROW}" FROM raw.{name} AS r JOIN (SELECT {customer} AS id, min("{SLOT}") AS first'  # noqa: S608
            f" FROM raw.{name} GROUP BY {customer} HAVING count(*) > 1) AS d ON r.{customer} = d.id"
            f' WHERE r."{SLOT}" > d.first AND r."{SLOT}" >= ? ORDER BY 1',
            [self._first],
        )
        return [int(row) for (row,) in found.fetchall()]

    def discard(self, row_numbers: Sequence[int]) -> None:
        """Take back rows of this load. Their PII is never sealed under a key that lives on."""
        connection = self._open()
        if len(row_numbers) == 0:
            return
        connection.register("$unwanted", pa.table({"row": pa.array(row_numbers, type=pa.int64())}))
        try:
            gone = connection.execute(
                f'DELETE FROM raw.{quoted(self._table.name)} WHERE "{SLOT}" >= ?'  # noqa: S608
                f' AND "{ROW}" IN (SELECT row FROM "$unwanted") RETURNING "{SLOT}"',
                [self._first],
            ).to_arrow_table()
        finally:
            connection.unregister("$unwanted")
        self._discarded.append(gone.column(0).to_numpy())

    def finish(self) -> int:
        """Seal what survives under the fields' keys; the next free slot. Raises BadInput on duplicate customers."""
        connection = self._open()
        repeated = len(self.duplicate_rows())
        if repeated:
            raise BadInput(
                f"{self._table.name}: {repeated} rows repeat a customer", hint="One row a customer."
            )
        gone = np.sort(np.concatenate([*self._discarded, np.empty(0, np.int64)]))
        for staged in self._sealed:
            self._stage(staged, whole_only=False)
            chunks = list(range(len(staged.places)))
            for start in range(0, len(chunks), INSERT_CHUNKS):
                part = chunks[start : start + INSERT_CHUNKS]
                _insert(connection, "internal.chunks", self._seal(staged, part, gone))
        return -(-self._next // CHUNK_VALUES) * CHUNK_VALUES

    def close(self) -> None:
        """Forget the staging keys and file. Later calls raise ValueError."""
        self._connection = None
        self._staging = FieldCipher(EphemeralKeys())
        for staged in self._sealed:
            staged.pending.clear()
        if self._file is not None:
            self._file.close()

    def _open(self) -> duckdb.DuckDBPyConnection:
        if self._connection is None:
            raise ValueError("this load has ended")
        return self._connection

    def _check_columns(self, rows: pa.Table) -> None:
        known = {c.name for c in self._table.columns}
        wanted = {c.name for c in self._table.columns if not is_dropped(c)}
        given = list(rows.column_names)
        faults = [f"column {name!r} is missing" for name in sorted(wanted - set(given))]
        faults += [f"column {name!r} is not in the contract" for name in sorted(set(given) - known)]
        faults += [f"column {name!r} is there twice" for name in sorted(known) if given.count(name) > 1]
        if faults:
            raise BadInput(f"{self._table.name}: {'; '.join(faults)}")

    def _stored(self, column: Column, values: pa.ChunkedArray) -> pa.Array:
        purpose = token_purpose(self._table, column)
        if purpose is not None:
            return self._tokenizer.tokens(self._text(column, values), purpose=purpose)
        array = self._cast(column, values, ARROW_TYPE[column.type])
        if column.type is ColumnType.NUMBER and not pc.all(pc.is_finite(array), min_count=0).as_py():
            raise BadInput(f"{self._table.name}.{column.name}: holds a number that is not finite")
        return array

    def _text(self, column: Column, values: pa.ChunkedArray) -> pa.Array:
        """The values as text, by way of the contract's type, so that 7 and "7" are the same customer."""
        return self._cast(column, values, ARROW_TYPE[column.type]).cast(pa.string())

    def _cast(self, column: Column, values: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
        try:
            array = values.combine_chunks().cast(kind)
        except pa.ArrowException:  # its text may hold a value
            raise BadInput(f"{self._table.name}.{column.name}: not of type {column.type.value}") from None
        if isinstance(array, pa.ChunkedArray):
            array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type=kind)
        if array.null_count and not column.nullable:
            raise BadInput(f"{self._table.name}.{column.name}: {array.null_count} rows have no value")
        return array

    def _stage(self, staged: _Staged, *, whole_only: bool) -> None:
        """Seal pending values into the nameless file, 8192 at a time; at the end also the last, shorter chunk."""
        if staged.waiting == 0 or (whole_only and staged.waiting < CHUNK_VALUES):
            return
        values = pa.concat_arrays(staged.pending)
        end = len(values) - (len(values) % CHUNK_VALUES if whole_only else 0)
        for start in range(0, end, CHUNK_VALUES):
            part = values.slice(start, min(CHUNK_VALUES, end - start))
            sealed = self._staging.seal(
                part, table=self._table.name, column=staged.column.name, chunk=len(staged.places)
            )
            staged.places.append((self._file.seek(0, 2), len(sealed)))
            self._file.write(sealed)
        staged.pending, staged.waiting = [values.slice(end)], len(values) - end

    def _seal(self, staged: _Staged, chunks: list[int], gone: npt.NDArray[np.int64]) -> pa.Table:
        """These staged chunks, without discarded values, under the field's own key."""
        table, column = self._table.name, staged.column.name
        first = self._first // CHUNK_VALUES
        sealed = [
            self._cipher.seal(values, table=table, column=column, chunk=first + number)
            for number, values in self._survivors(staged, chunks, gone)
        ]
        return pa.table(
            {
                "tbl": pa.array([table] * len(chunks)),
                "col": pa.array([column] * len(chunks)),
                "chunk": pa.array([first + number for number in chunks], type=pa.int64()),
                "data": pa.array(sealed, type=pa.binary()),
            }
        )

    def _survivors(
        self, staged: _Staged, chunks: list[int], gone: npt.NDArray[np.int64]
    ) -> Iterator[tuple[int, pa.Array]]:
        for number in chunks:
            offset, length = staged.places[number]
            self._file.seek(offset)
            values = self._staging.open_array(
                self._file.read(length), table=self._table.name, column=staged.column.name, chunk=number
            )
            start = self._first + number * CHUNK_VALUES
            low, high = np.searchsorted(gone, [start, start + len(values)])
            if high > low:
                keep = np.ones(len(values), dtype=bool)
                keep[gone[low:high] - start] = False
                values = pc.if_else(pa.array(keep), values, pa.scalar(None, pa.string()))
            yield number, values


def _insert(connection: duckdb.DuckDBPyConnection, target: str, rows: pa.Table) -> None:
    connection.register("$batch", rows)
    try:
        names = ", ".join(quoted(n) for n in rows.column_names)
        connection.execute(f'INSERT INTO {target} ({names}) SELECT {names} FROM "$batch"')  # noqa: S608
    finally:
        connection.unregister("$batch")
