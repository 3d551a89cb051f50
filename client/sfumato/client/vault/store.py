"""The sealed store: one encrypted DuckDB file that holds a branch's tables.

    main.{table}       views: what can be asked for by SQL. Customer ids are tokens, sealed PII is not there
    raw.{table}        the same rows with their slot (place in the sealed chunks) and source row number
    internal.chunks    sealed PII: one AES-256-GCM chunk of 8192 values a row (see privacy.fields)
    internal.meta      the contract's hash, the layout's version, the next free slot of each table

The file's key is the keyring's `store`; each sealed field has its own. One process holds the file at a time, or
several read it.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import duckdb
import pyarrow as pa

from sfumato.client.vault import database
from sfumato.client.vault.database import private_files, quoted
from sfumato.client.vault.loader import (
    ID_PURPOSE,
    ROW,
    SLOT,
    TableLoader,
    is_sealed,
    stored_columns,
    token_purpose,
)
from sfumato.common.contract import Column, ColumnType, Contract, Table
from sfumato.common.errors import BadInput
from sfumato.privacy.fields import CHUNK_VALUES, FieldCipher, Tokenizer
from sfumato.privacy.keys import KeySource

LAYOUT = "1"
STORE_KEY = "store"

_SQL_TYPES: dict[ColumnType, str] = {
    ColumnType.STRING: "VARCHAR",
    ColumnType.CATEGORY: "VARCHAR",
    ColumnType.INTEGER: "BIGINT",
    ColumnType.NUMBER: "DOUBLE",
    ColumnType.BOOLEAN: "BOOLEAN",
    ColumnType.DATE: "DATE",
    ColumnType.DATETIME: "TIMESTAMP",
}


class Store:
    """A branch's data at rest. Safe across threads: one statement at a time."""

    def __init__(
        self, path: Path, contract: Contract, keyring: KeySource, connection: duckdb.DuckDBPyConnection
    ) -> None:
        self._path, self._contract, self._keyring = path, contract, keyring
        self._connection = connection
        self._mutex = threading.RLock()

    @classmethod
    def create(cls, path: Path, contract: Contract, keyring: KeySource) -> "Store":
        """Make an empty store for this contract and open it, in a folder that is 0700.

        Raises BadInput (exists; names that differ only in case) or Insecure (no encryption; folder not private).
        """
        database.create(path, keyring.data_key(STORE_KEY), _schema(contract))
        return cls.open(path, contract, keyring)

    @classmethod
    def open(cls, path: Path, contract: Contract, keyring: KeySource, *, read_only: bool = False) -> "Store":
        """Open a store. Raises BadInput (absent, in use, wrong keyring, another contract) or Insecure."""
        if not path.is_file():
            raise BadInput(f"{path}: no such store", hint="Make one with `sfumato branch init`.")
        database.private_folder(path.parent)
        connection = database.connect(path, keyring.data_key(STORE_KEY), read_only=read_only)
        try:
            _check_meta(path, connection, contract)
        except BaseException:
            connection.close()
            raise
        return cls(path, contract, keyring, connection)

    @contextmanager
    def load(
        self, table: str, *, mode: Literal["create", "replace", "append"] = "create"
    ) -> Iterator[TableLoader]:
        """Load a table in one transaction: committed on a clean exit, rolled back whole on any exception.

        Raises BadInput for an unknown table, and for "create" when the table has rows already.
        """
        declared = self._declared(table)
        with self._mutex, private_files():
            if mode == "create" and self._count(table):
                raise BadInput(f"table {table!r} is loaded already", hint="Append to it, or replace it.")
            self._connection.execute("BEGIN TRANSACTION")
            loader = None
            try:
                if mode == "replace":
                    self._connection.execute(f"DELETE FROM raw.{quoted(table)}")  # noqa: S608
                    self._connection.execute("DELETE FROM internal.chunks WHERE tbl = ?", [table])
                loader = TableLoader(
                    self._connection,
                    self._contract,
                    declared,
                    self._keyring,
                    self._path.parent,
                    self._next_slot(table),
                )
                yield loader
                self._set_next_slot(table, loader.finish())
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(duckdb.TransactionException):  # a commit that failed has rolled back
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                if loader is not None:
                    loader.close()
            self._connection.execute("CHECKPOINT store")

    def tables(self) -> dict[str, int]:
        """The tables that hold rows, with their exact counts: for use inside the vault alone."""
        counts = {t.name: self._count(t.name) for t in self._contract.tables}
        return {name: rows for name, rows in counts.items() if rows}

    def query(self, sql: str, parameters: Sequence[object] = ()) -> pa.Table:
        """Run SQL over the views; for use inside the vault alone. Raises duckdb.Error."""
        with self._mutex:
            result: pa.Table = self._connection.execute(sql, list(parameters)).to_arrow_table()
        return result

    def token(self, table: str, column: str, value: str) -> str | None:
        """What stands in a token column for this value; None when the column is not kept as a token."""
        declared = self._declared(table)
        purpose = token_purpose(declared, _column(declared, column))
        return Tokenizer(self._keyring).token(value, purpose=purpose) if purpose else None

    def reveal(
        self,
        table: str,
        column: str,
        customer_ids: Sequence[str] | None,
        *,
        audit: Callable[[str, str, int], None],
    ) -> dict[str, list[str | None]]:
        """Open sealed PII of these customers (None: all), as text, one entry a row of the table.

        `audit(table, column, count of values)` is called before anything is opened; if it raises, nothing is.
        Keys are the given ids (an unknown one has an empty list), or tokens when all are asked for.
        Raises BadInput when the column is not sealed, or does not open.
        """
        declared = self._declared(table)
        if not is_sealed(_column(declared, column)):
            raise BadInput(f"{table}.{column} is not a sealed column", hint="Only protection = encrypt is.")
        with self._mutex:
            tokens, found = self._slots(declared, customer_ids)
            audit(table, column, len(found))
            opened = self._opened(table, column, sorted({slot // CHUNK_VALUES for _, slot in found}))
        result: dict[str, list[str | None]] = {customer: [] for customer in tokens.values()}
        for token, slot in found:
            chunk, place = divmod(slot, CHUNK_VALUES)
            result.setdefault(tokens.get(token, token), []).append(opened[chunk][place])
        return result

    def close(self) -> None:
        """Close the file. Harmless when closed already."""
        with self._mutex:
            database.disconnect(self._connection, self._path)

    def __repr__(self) -> str:
        return f"Store({str(self._path)!r})"

    def _declared(self, table: str) -> Table:
        try:
            return self._contract.table(table)
        except KeyError:
            raise BadInput(f"the contract has no table {table!r}") from None

    def _count(self, table: str) -> int:
        with self._mutex:
            row = self._connection.execute(f"SELECT count(*) FROM raw.{quoted(table)}").fetchone()  # noqa: S608
        assert row is not None
        return int(row[0])

    def _next_slot(self, table: str) -> int:
        row = self._connection.execute(
            "SELECT value FROM internal.meta WHERE key = ?", [f"next-slot:{table}"]
        ).fetchone()
        return int(row[0]) if row else 0

    def _set_next_slot(self, table: str, slot: int) -> None:
        """Slots are never used twice, even after a replace: a chunk's number names it for good."""
        self._connection.execute("DELETE FROM internal.meta WHERE key = ?", [f"next-slot:{table}"])
        self._connection.execute("INSERT INTO internal.meta VALUES (?, ?)", [f"next-slot:{table}", str(slot)])

    def _slots(
        self, table: Table, customer_ids: Sequence[str] | None
    ) -> tuple[dict[str, str], list[tuple[str, int]]]:
        """Token → given id, and (token, slot) of every row of these customers, in slot order."""
        name, customer = quoted(table.name), quoted(table.customer_id.name)
        sql = f'SELECT {customer}, "{SLOT}" FROM raw.{name}'  # noqa: S608
        if customer_ids is None:
            return {}, self._connection.execute(f'{sql} ORDER BY "{SLOT}"').fetchall()
        tokenizer = Tokenizer(self._keyring)
        tokens = {tokenizer.token(c, purpose=ID_PURPOSE): c for c in customer_ids}
        found = self._connection.execute(
            f'{sql} WHERE list_contains(?::VARCHAR[], {customer}) ORDER BY "{SLOT}"', [list(tokens)]
        )
        return tokens, found.fetchall()

    def _opened(self, table: str, column: str, chunks: list[int]) -> dict[int, list[str | None]]:
        cipher = FieldCipher(self._keyring)
        opened = {}
        for chunk in chunks:
            row = self._connection.execute(
                "SELECT data FROM internal.chunks WHERE tbl = ? AND col = ? AND chunk = ?",
                [table, column, chunk],
            ).fetchone()
            if row is None:
                raise BadInput(f"{table}.{column}: sealed chunk {chunk} is missing")
            opened[chunk] = cipher.open(bytes(row[0]), table=table, column=column, chunk=chunk)
        return opened


def _column(table: Table, name: str) -> Column:
    try:
        return table.column(name)
    except KeyError:
        raise BadInput(f"table {table.name!r} has no column {name!r}") from None


def _schema(contract: Contract) -> list[tuple[str, list[object]]]:
    """The statements that make an empty store. Raises BadInput for names that SQL cannot tell apart."""
    statements: list[tuple[str, list[object]]] = [
        ("CREATE SCHEMA raw", []),
        ("CREATE SCHEMA internal", []),
        ("CREATE TABLE internal.meta (key VARCHAR NOT NULL, value VARCHAR NOT NULL)", []),
        ("CREATE TABLE internal.chunks (tbl VARCHAR, col VARCHAR, chunk BIGINT, data BLOB)", []),
        ("INSERT INTO internal.meta VALUES ('layout', ?), ('contract', ?)", [LAYOUT, contract.hash]),
    ]
    for table in contract.tables:
        folded: set[str] = set()
        for column in table.columns:
            if column.name.lower() in folded:
                raise BadInput(
                    f"table {table.name!r}: column {column.name!r} differs from another only in case",
                    hint="Names in SQL know no case: rename one.",
                )
            folded.add(column.name.lower())
        kept = stored_columns(table)
        sql_types = ["VARCHAR" if token_purpose(table, c) else _SQL_TYPES[c.type] for c in kept]
        body = ", ".join(f"{quoted(c.name)} {t}" for c, t in zip(kept, sql_types, strict=True))
        names = ", ".join(quoted(c.name) for c in kept)
        name = quoted(table.name)
        statements += [
            (f'CREATE TABLE raw.{name} ("{SLOT}" BIGINT NOT NULL, "{ROW}" BIGINT NOT NULL, {body})', []),
            (f"CREATE VIEW main.{name} AS SELECT {names} FROM raw.{name}", []),  # noqa: S608
        ]
    return statements


def _check_meta(path: Path, connection: duckdb.DuckDBPyConnection, contract: Contract) -> None:
    try:
        meta = dict(connection.execute("SELECT key, value FROM internal.meta").fetchall())
    except duckdb.Error:
        raise BadInput(f"{path}: not a store of ours, or damaged") from None
    if meta.get("layout") != LAYOUT:
        raise BadInput(f"{path}: a store of another version", hint="Ingest again into a new store.")
    if meta.get("contract") != contract.hash:
        raise BadInput(
            f"{path}: was made for another data contract",
            hint="Use the contract it was made for, or ingest into a new store.",
        )
