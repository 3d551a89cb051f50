"""From a source into the sealed store: all good rows or none, in memory that does not grow with the file.

Without a quarantine one bad row refuses the load. With one, the bad rows go there and the others are loaded.
Whatever ends the load early (an error, Ctrl-C) leaves nothing in the store and no quarantine file.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sfumato.client.ingest.checks import Checked, check_batch, check_header
from sfumato.client.ingest.csv_source import CsvSource
from sfumato.client.ingest.findings import EXAMPLES, FaultKind, IngestReport, LoadRefused, Tally
from sfumato.client.ingest.parquet_source import ParquetSource
from sfumato.client.ingest.postgres_source import PostgresSource, read_dsn
from sfumato.client.ingest.quarantine import Quarantine
from sfumato.client.ingest.sources import Batch, Reader, Source
from sfumato.common.contract import Contract, Table
from sfumato.common.errors import BadInput

Mode = Literal["create", "replace", "append"]
Fault = tuple[str, str, str]  # column, kind, expected
SEEN_BEFORE = "a customer id seen before"
EACH_ONCE = "each customer once"


class TableLoader(Protocol):
    """One table being loaded. `append` takes typed, valid rows (see `column_types.ARROW_TYPE`) and their numbers.

    `duplicate_rows`: for the customers table, the row numbers of second and later occurrences of a customer
    id, within this load or already stored when appending; for other tables empty.
    """

    def append(self, rows: pa.Table, row_numbers: npt.NDArray[np.int64]) -> None: ...

    def duplicate_rows(self) -> list[int]: ...

    def discard(self, row_numbers: Sequence[int]) -> None: ...


class Store(Protocol):
    """Commits a load on a clean exit, rolls back all of it on an exception."""

    def load(self, table: str, *, mode: Mode) -> AbstractContextManager[TableLoader]: ...


def open_source(
    path: Path | None, *, query: str | None = None, dsn_file: Path | None = None, delimiter: str = ","
) -> Source:
    """A file by its suffix (.csv, .txt, .tsv, .parquet, .pq), or a PostgreSQL query.

    Without `dsn_file` libpq's own settings say where the database is (PGSERVICE, PGHOST, PGPASSFILE …).
    Raises BadInput on both, neither or an unknown suffix, Insecure if others may read `dsn_file`.
    """
    if (path is None) == (query is None):
        raise BadInput("give either a file or a PostgreSQL query")
    if query is not None:
        return PostgresSource(read_dsn(dsn_file) if dsn_file is not None else "", query)
    assert path is not None  # one of the two was given
    if dsn_file is not None:
        raise BadInput("a file with a connection string goes with a query, not with a file of rows")
    match path.suffix.lower():
        case ".parquet" | ".pq":
            return ParquetSource(path)
        case ".csv" | ".txt":
            return CsvSource(path, delimiter)
        case ".tsv":
            return CsvSource(path, "\t")
        case _:
            raise BadInput(f"{path}: not a .csv, .tsv or .parquet file", hint="Name the file by its format.")


def ingest(
    source: Source,
    table: str,
    contract: Contract,
    store: Store,
    *,
    mode: Mode = "create",
    quarantine: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> IngestReport:
    """Load one table of the contract from a source. `progress` hears the number of rows read so far.

    `quarantine` receives the bad rows, in the clear: see `quarantine.py`; it is not written if there are
    none. Raises BadInput if the source as a whole cannot be read (no such file, no header, missing or extra
    column, broken quoting), LoadRefused (a BadInput with the report) if rows are bad and there is no
    quarantine, or if no row is good.
    """
    declared = _declared(contract, table)
    with ExitStack() as stack:
        reader = stack.enter_context(source.open())
        check_header(source.name, reader.columns, declared)
        held = stack.enter_context(Quarantine(quarantine, reader.columns)) if quarantine else None
        loader = stack.enter_context(store.load(table, mode=mode))
        load = _Load(source.name, declared, reader, loader, held)
        load.rows(progress)
        if declared.name == contract.customers:
            load.duplicates()
        report = load.verdict()
        if held is not None:
            # before the commit: an unneeded quarantine is harmless, rows lost from both would not be
            held.publish()
    return report


def _declared(contract: Contract, table: str) -> Table:
    try:
        return contract.table(table)
    except KeyError:
        known = ", ".join(t.name for t in contract.tables)
        raise BadInput(f"the contract has no table {table!r}", hint=f"It has: {known}.") from None


class _Load:
    """The state of one load: rows read, bad rows, findings."""

    def __init__(
        self, name: str, table: Table, reader: Reader, loader: TableLoader, held: Quarantine | None
    ) -> None:
        self._name = name
        self._table = table
        self._reader = reader
        self._loader = loader
        self._held = held
        self._tally = Tally()
        self._clipped: dict[str, int] = {}
        self._read = 0
        self._bad = 0

    def rows(self, progress: Callable[[int], None] | None) -> None:
        """Check every batch; good rows to the store, bad ones to the quarantine."""
        for batch in self._reader:
            checked = check_batch(batch, self._table)
            self._count(batch, checked)
            good = ~checked.bad
            if good.any():
                numbers = batch.first_row + np.flatnonzero(good).astype(np.int64)
                rows = checked.values if good.all() else checked.values.filter(pa.array(good))
                self._loader.append(rows, numbers)
            if self._held is not None and checked.bad.any():
                self._hold(batch, checked)
            if progress is not None:
                progress(self._read)

    def _count(self, batch: Batch, checked: Checked) -> None:
        self._read += batch.table.num_rows
        self._bad += int(checked.bad.sum())
        for f in checked.faults:
            numbers = (batch.first_row + f.indices[:EXAMPLES]).tolist()
            examples = list(zip(numbers, f.value_classes, strict=False))
            self._tally.add(f.column, f.kind, f.expected, len(f.indices), examples)
        for column, cells in checked.clipped.items():
            self._clipped[column] = self._clipped.get(column, 0) + cells

    def _hold(self, batch: Batch, checked: Checked) -> None:
        faults: dict[int, list[Fault]] = {}
        for f in checked.faults:
            for index in f.indices.tolist():
                faults.setdefault(index, []).append((f.column, f.kind.value, f.expected))
        for index, cells in _original_cells(batch, sorted(faults)):
            self._keep(batch.first_row + index, faults[index], cells)

    def _keep(self, row: int, faults: list[Fault], cells: Sequence[str]) -> None:
        if self._held is not None:
            self._held.add(row, faults, cells)

    def duplicates(self) -> None:
        """Find second occurrences of a customer. Their cells are read again: only the end shows them."""
        rows = sorted(self._loader.duplicate_rows())
        if not rows:
            return
        column, kind = self._table.customer_id.name, FaultKind.DUPLICATE
        self._bad += len(rows)
        self._tally.add(column, kind, EACH_ONCE, len(rows), [(r, SEEN_BEFORE) for r in rows[:EXAMPLES]])
        if self._held is None:
            return
        self._loader.discard(rows)
        wanted = np.array(rows, np.int64)
        for batch in self._reader:
            first, last = np.searchsorted(wanted, [batch.first_row, batch.first_row + batch.table.num_rows])
            indices = (wanted[first:last] - batch.first_row).tolist()
            for index, cells in _original_cells(batch, indices):
                self._keep(batch.first_row + index, [(column, kind.value, EACH_ONCE)], cells)

    def verdict(self) -> IngestReport:
        """The report of a load that may be committed. Raises LoadRefused or BadInput if it may not."""
        if self._read == 0:
            raise BadInput(f"{self._name}: a header and no row", hint="Was the export cut short?")
        allowed = self._held is not None and self._bad < self._read
        report = IngestReport(
            source=self._name,
            table=self._table.name,
            rows_read=self._read,
            rows_loaded=self._read - self._bad if allowed or not self._bad else 0,
            rows_quarantined=self._bad if allowed else 0,
            findings=self._tally.findings(),
            clipped=self._clipped,
            quarantine=self._held.path if self._held is not None and self._bad else None,
        )
        if self._bad and not allowed:
            hint = "Mend these rows, or set them aside with --quarantine FILE."
            if self._held is not None:
                hint = "No row is good: is this the right file, table and contract?"
            raise LoadRefused(report, self._bad, hint=hint)
        return report


def _original_cells(batch: Batch, indices: list[int]) -> Iterator[tuple[int, Sequence[str]]]:
    """The rows at these places as text, as they stood in the source."""
    if not indices:
        return
    stated = {f.index: f.cells for f in batch.faults}
    columns = [column.to_pylist() for column in batch.table.take(indices).columns]
    for place, index in enumerate(indices):
        yield index, stated.get(index) or tuple(_as_text(column[place]) for column in columns)


def _as_text(value: object) -> str:
    return "" if value is None else str(value)
