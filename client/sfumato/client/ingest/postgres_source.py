"""A PostgreSQL query as text columns, streamed through a server-side cursor in a read-only transaction.

Needs the extra `postgres` (psycopg). The password never stands on a command line: it comes from a file that
only its owner can read, or from libpq's own places (PGPASSFILE, ~/.pgpass, a service file).
"""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from sfumato.client.ingest.sources import BATCH_CHARACTERS, BATCH_ROWS, Batch, refuse_repeated
from sfumato.common.errors import BadInput, Insecure, Unavailable

BOOL_OID = 16
FETCH_ROWS = 1024
_BOOLEANS = {"t": "true", "f": "false"}


def read_dsn(path: Path) -> str:
    """The connection string in a file. Raises Insecure if others may read it, BadInput if it is not there."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise BadInput(f"{path}: cannot be read as a connection string") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise Insecure(f"{path}: others may read this file", hint=f"chmod 600 {path}")
    if not text or "\n" in text:
        raise BadInput(f"{path}: expected one line with a connection string")
    return text


def public_dsn(text: str) -> str:
    """A connection string from a command line, unchanged. Raises Insecure if it holds a password."""
    if _parsed(text).get("password") is not None:
        raise Insecure(
            "the connection string holds a password, and a command line is seen by every user",
            hint="Put it in a file with mode 0600, or use PGPASSFILE or a libpq service.",
        )
    return text


def _psycopg() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError:
        raise BadInput(
            "PostgreSQL needs the package psycopg", hint="Install it: pip install 'sfumato[postgres]'"
        ) from None
    return psycopg


def _parsed(dsn: str) -> dict[str, Any]:
    psycopg = _psycopg()
    try:
        return dict(psycopg.conninfo.conninfo_to_dict(dsn))
    except psycopg.Error:  # its text quotes the string, and with it perhaps the password
        raise BadInput("not a PostgreSQL connection string") from None


@dataclass(frozen=True)
class PostgresSource:
    """One SELECT. `dsn` is a libpq connection string or URI; it is never shown."""

    dsn: str = field(repr=False)
    query: str = field(repr=False)

    @property
    def name(self) -> str:
        parts = _parsed(self.dsn)
        place = parts.get("dbname") or parts.get("service") or "default database"
        return f"PostgreSQL query ({place})"

    @contextmanager
    def open(self) -> Iterator["PostgresReader"]:
        """Raises Unavailable if the server does not let us in, BadInput if the query fails."""
        psycopg = _psycopg()
        parts = _parsed(self.dsn)
        options = f"{parts.pop('options', '')} -c default_transaction_read_only=on -c DateStyle=ISO"
        extra = {"client_encoding": "UTF8", "connect_timeout": parts.pop("connect_timeout", 10)}
        try:
            connection = psycopg.connect(**parts, **extra, options=options.strip())
        except psycopg.Error as e:
            raise Unavailable(f"{self.name}: cannot connect ({type(e).__name__})") from None
        with connection:
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            _everything_as_text(psycopg, connection)
            with connection.cursor(name="sfumato_ingest", scrollable=True) as cursor:
                try:
                    cursor.execute(self.query)
                except psycopg.Error as e:
                    # a server's message may quote a value: its class and SQLSTATE do not
                    raise BadInput(f"{self.name}: {_failure(e)}", hint="Try the query in psql.") from None
                yield PostgresReader(self.name, cursor, psycopg)


def _failure(error: Any) -> str:
    return f"the query failed ({type(error).__name__}, SQLSTATE {error.sqlstate or 'none'})"


def _everything_as_text(psycopg: Any, connection: Any) -> None:
    """Load every type as the server writes it: one parser for CSV and PostgreSQL, and exact decimals."""
    from psycopg.types.string import TextLoader

    for info in psycopg.postgres.types:
        connection.adapters.register_loader(info.oid, TextLoader)


class PostgresReader:
    """An open query. Iterating again scrolls the same cursor back: same snapshot, same order."""

    def __init__(self, name: str, cursor: Any, psycopg: Any) -> None:
        self._name = name
        self._cursor = cursor
        self._psycopg = psycopg
        self._started = False
        self.columns: tuple[str, ...] = tuple(c.name for c in cursor.description)
        self._boolean = [c.type_code == BOOL_OID for c in cursor.description]
        refuse_repeated(name, self.columns)

    def __iter__(self) -> Iterator[Batch]:
        if self._started:
            self._cursor.scroll(0, mode="absolute")
        self._started = True
        first = 1
        while rows := self._take():
            yield Batch(self._table(rows), first)
            first += len(rows)

    def _take(self) -> list[tuple[str | None, ...]]:
        rows: list[tuple[str | None, ...]] = []
        size = 0
        try:
            while len(rows) < BATCH_ROWS and size < BATCH_CHARACTERS:
                fetched = self._cursor.fetchmany(FETCH_ROWS)
                if not fetched:
                    break
                rows += fetched
                size += sum(len(c) for row in fetched for c in row if c is not None)
        except UnicodeDecodeError:
            hint = "The database's own encoding is not declared rightly (SQL_ASCII?)."
            raise BadInput(f"{self._name}: a text that is not UTF-8", hint=hint) from None
        except self._psycopg.Error as e:
            raise BadInput(f"{self._name}: {_failure(e)}") from None
        return rows

    def _table(self, rows: list[tuple[str | None, ...]]) -> pa.Table:
        arrays = []
        for boolean, cells in zip(self._boolean, zip(*rows, strict=True), strict=True):
            texts = [_BOOLEANS.get(c or "", c) for c in cells] if boolean else cells
            arrays.append(pa.array(texts, pa.string()))
        return pa.table(arrays, names=list(self.columns))
