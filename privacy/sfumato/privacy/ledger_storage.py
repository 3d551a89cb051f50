"""Where a ledger's tables lie: one SQLite file (0600), or a schema of its own in a PostgreSQL database.

A transaction is exclusive in both: SQLite takes the write lock before it reads, PostgreSQL a lock named after
the schema. Both sync to disk before a commit returns. On PostgreSQL, rows are only ever inserted, so the
ledger's role needs no more than USAGE, SELECT and INSERT once the ledger is made.
"""

import hashlib
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import sqlalchemy as sa
import tomli_w

from sfumato.common.errors import BadInput, Insecure, Unavailable
from sfumato.common.private_files import write_new

metadata = sa.MetaData()
entries = sa.Table(
    "entries",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(32), nullable=False, index=True),
    sa.Column("job_id", sa.String(32), nullable=True, index=True),
    sa.Column("entry", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("root", sa.String(64), nullable=False),  # of the tree that ends with this entry
    sa.Column("signature", sa.LargeBinary, nullable=True),  # of the checkpoint with this root
)
nodes = sa.Table(  # complete subtrees above the leaves, which are the entries' hashes
    "nodes",
    metadata,
    sa.Column("place", sa.BigInteger, primary_key=True, autoincrement=False),  # see `place_number`
    sa.Column("hash", sa.LargeBinary, nullable=False),
)
answers = sa.Table(
    "answers",
    metadata,
    sa.Column("job_id", sa.String(32), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("what", sa.String(32), primary_key=True),
    sa.Column("members", sa.String(64), primary_key=True),  # hash of the set of a secure sum, else empty
    sa.Column("question", sa.String(64), nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
)


def place_number(place: tuple[int, int]) -> int:
    """A node's (level, position) as one number, so that all nodes of a root are one look-up."""
    level, position = place
    return position << 6 | level


@dataclass(frozen=True)
class Database:
    """A ledger's place in PostgreSQL: a libpq URL, which holds no password, and the log's origin.

    The password comes from where libpq looks: a password file (`passfile=` in the URL, or ~/.pgpass) or a
    service of ~/.pg_service.conf.
    """

    url: str
    origin: str

    @classmethod
    def of(cls, url: str, origin: str, *, passfile: str | None = None) -> Self:
        """Checks the URL. Raises BadInput; Insecure if it holds a password.

        `passfile` (what PGPASSFILE names) is noted in the URL: a vault's environment does not carry it.
        """
        if not re.match(r"postgres(ql)?://", url):
            raise BadInput("a ledger's URL begins with postgresql://")
        parts = _parsed(url)
        if parts.get("password") is not None or parts.get("sslpassword") is not None:
            raise Insecure(
                "the ledger's URL holds a password, and a command line is seen by every user",
                hint="Put it in a password file and name that with PGPASSFILE, or use a libpq service.",
            )
        if passfile and "passfile" not in parts:
            url += f"{'&' if '?' in url else '?'}passfile={quote(str(Path(passfile).resolve()), safe='')}"
        return cls(url, origin)

    @property
    def schema(self) -> str:
        """Short enough for PostgreSQL, and another for every origin."""
        name = re.sub(r"[^a-z0-9]", "_", self.origin.rsplit("/", 1)[-1].lower())[:30]
        return f"sfumato_{name}_{hashlib.sha256(self.origin.encode()).hexdigest()[:16]}"

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read `ledger.toml`. Raises BadInput."""
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
            return cls.of(str(settings["url"]), str(settings["origin"]))
        except (OSError, KeyError, ValueError):
            raise BadInput(f"{path}: does not say where the ledger lies") from None

    def write(self, path: Path) -> None:
        write_new(path, tomli_w.dumps({"url": self.url, "origin": self.origin}).encode())

    def __str__(self) -> str:
        return f"PostgreSQL schema {self.schema}"


def claim(place: Path | Database) -> None:
    """Make the private file of a ledger that is to be. Raises BadInput if it is there."""
    if isinstance(place, Path):
        try:
            place.touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            raise _taken(place) from None


def create_tables(connection: sa.Connection, place: Path | Database) -> None:
    """Raises BadInput if the schema is there."""
    if isinstance(place, Database):
        if sa.inspect(connection).has_schema(place.schema):
            raise _taken(place)
        connection.execute(sa.schema.CreateSchema(place.schema))
    metadata.create_all(connection, checkfirst=False)


def _taken(place: Path | Database) -> BadInput:
    return BadInput(f"{place}: a ledger is there already", hint="A ledger is never started over.")


def engine(place: Path | Database) -> sa.Engine:
    """An engine whose transactions are exclusive and durable."""
    return _sqlite(place) if isinstance(place, Path) else _postgres(place)


def _sqlite(path: Path) -> sa.Engine:
    made = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30}, poolclass=sa.pool.NullPool)

    # The driver's own transaction handling delays BEGIN until the first write, so a reader could decide on
    # stale spending: take the write lock first.
    @sa.event.listens_for(made, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=FULL")

    @sa.event.listens_for(made, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return made


def _postgres(place: Database) -> sa.Engine:
    made = sa.create_engine(
        "postgresql+psycopg://",
        creator=_connector(place),
        isolation_level="READ COMMITTED",
        pool_size=1,
        max_overflow=4,
        pool_pre_ping=True,
    )
    lock = int.from_bytes(hashlib.sha256(place.schema.encode()).digest()[:8], signed=True)

    # An advisory lock, and not LOCK TABLE: that would need a privilege to change rows, and no row ever changes.
    # In READ COMMITTED, each statement after the lock sees what the transaction before it committed.
    @sa.event.listens_for(made, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(
            "SELECT set_config('synchronous_commit', 'on', true), pg_advisory_xact_lock(%s)", (lock,)
        )

    return made.execution_options(schema_translate_map={None: place.schema})


def _connector(place: Database) -> Callable[[], Any]:
    psycopg, parts = _psycopg(), _parsed(place.url)
    parts = {"connect_timeout": "10", "application_name": "sfumato", **parts, "client_encoding": "UTF8"}

    def connect() -> Any:
        try:
            return psycopg.connect(**parts)
        except psycopg.Error as e:
            raise Unavailable(
                f"{place}: cannot connect ({type(e).__name__})",
                hint="Is the server up, and does a password file or service of this user let us in?",
            ) from None

    return connect


def _psycopg() -> Any:
    try:
        import psycopg
        import psycopg.conninfo
    except ImportError:
        raise BadInput(
            "a ledger in PostgreSQL needs the package psycopg",
            hint="Install it: pip install 'sfumato[postgres]'",
        ) from None
    return psycopg


def _parsed(url: str) -> dict[str, Any]:
    psycopg = _psycopg()
    try:
        return dict(psycopg.conninfo.conninfo_to_dict(url))
    except psycopg.Error:  # its text quotes the URL, and with it perhaps a password
        raise BadInput("not a PostgreSQL URL") from None
