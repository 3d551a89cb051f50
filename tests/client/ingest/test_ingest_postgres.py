"""A real PostgreSQL, thrown away afterwards: types, snapshot, read-only, and no password anywhere."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from sfumato.client.ingest.findings import LoadRefused
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.ingest.postgres_source import PostgresSource, public_dsn, read_dsn
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput, Insecure, Unavailable

PASSWORD = "S3cret-Wort"
INSTALL = "no PostgreSQL server here: install it with `apt-get install postgresql` (or set PG_BINDIR)"


def binaries() -> Path | None:
    """The folder with `postgres` and `initdb`, of the newest version found."""
    found = [Path(os.environ["PG_BINDIR"])] if "PG_BINDIR" in os.environ else []
    for name in ("postgres", "pg_config"):
        if (at := shutil.which(name)) is not None:
            found.append(Path(at).parent)
    found += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name), reverse=True
    )
    return next((p for p in found if (p / "initdb").exists() and (p / "postgres").exists()), None)


@dataclass(frozen=True)
class Cluster:
    port: int

    def dsn(self, *, password: str | None = PASSWORD, **extra: str) -> str:
        parts = {"host": "127.0.0.1", "port": str(self.port), "dbname": "postgres", "user": "bank", **extra}
        if password is not None:
            parts["password"] = password
        return " ".join(f"{k}={v}" for k, v in parts.items())

    def run(self, *statements: str) -> list[Any]:
        import psycopg

        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("psycopg", reason="needs the extra `postgres`: pip install 'sfumato[postgres]'")
    bin_ = binaries()
    if bin_ is None:
        pytest.skip(INSTALL)
    # PostgreSQL refuses to run as root
    user = ("postgres" if _has_user("postgres") else "nobody") if os.geteuid() == 0 else getpass.getuser()
    drop: dict[str, Any] = {"user": user} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="sfpg"))
    server: subprocess.Popen[bytes] | None = None
    try:
        (folder / "word").write_text(PASSWORD)
        if drop:
            for path in (folder, folder / "word"):
                shutil.chown(path, user)
        data = folder / "data"
        init = [bin_ / "initdb", "-D", data, "-U", "bank", "-A", "scram-sha-256", "--pwfile", folder / "word"]
        init += ["-E", "UTF8", "--locale", "C", "--no-sync"]
        subprocess.run(init, check=True, capture_output=True, cwd="/", timeout=60, **drop)
        port = free_port()
        start = [bin_ / "postgres", "-D", data, "-p", str(port), "-k", folder]
        start += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "TimeZone=Europe/Zurich"]
        start += ["-c", "DateStyle=German, DMY"]  # ours must not depend on the server's taste
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(start, stdout=log, stderr=log, cwd="/", **drop)
        cluster = Cluster(port)
        _wait_until_up(cluster, server, folder / "log")
        yield cluster
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # fast shutdown
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _has_user(name: str) -> bool:
    import pwd

    return any(entry.pw_name == name for entry in pwd.getpwall())


def _wait_until_up(cluster: Cluster, server: "subprocess.Popen[bytes]", log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 30
    while True:
        try:
            cluster.run("select 1")
        except psycopg.OperationalError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        else:
            return


COLUMNS = (
    "id text, name varchar(40), iban char(4), age smallint, visits bigint, balance numeric(12,2), rate real,"
    " city text, product text, member boolean, since date, seen timestamptz, note text, churned int"
)


@pytest.fixture
def customers(cluster: Cluster) -> Cluster:
    cluster.run(
        "drop table if exists customers",
        f"create table customers ({COLUMNS})",
        "create or replace function wipe() returns boolean language plpgsql volatile as"
        " 'begin delete from customers; return true; end'",
        "insert into customers values"
        " ('a', 'Ada', 'CH93', 41, 9007199254740993, 10.50, 0.25, 'Basel', 'loan', true, '2024-02-29',"
        "  '2024-02-29 10:11:12.5+01', 'two'||chr(10)||'lines', 0),"
        " ('b', '张伟', null, 20, null, null, 'NaN', null, null, false, null, null, '', 1)",
    )
    return cluster


def test_every_type_arrives(customers: Cluster, contract: Contract, store: Any) -> None:
    source = PostgresSource(customers.dsn(), "select * from customers order by id")
    report = ingest(source, "customers", contract, store)
    assert str(report).startswith("PostgreSQL query (postgres) → table 'customers': 2 rows read, 2 loaded")
    loaded = store.tables["customers"].to_pydict()
    assert loaded["name"] == ["Ada", "张伟"]
    assert loaded["visits"] == [2**53 + 1, None]
    assert loaded["balance"] == [10.5, None]
    assert loaded["rate"] == [0.25, None]
    assert loaded["member"] == [True, False]
    assert loaded["since"] == [date(2024, 2, 29), None]
    assert loaded["seen"] == [datetime(2024, 2, 29, 9, 11, 12, 500000), None]
    assert loaded["note"] == ["two\nlines", None]


def test_bad_rows_and_duplicates_of_a_long_query(
    customers: Cluster, contract: Contract, store: Any, tmp_path: Path
) -> None:
    customers.run(
        "truncate customers",
        "insert into customers select case when i = 39999 then 'c-7' else 'c-' || i end, 'Ada', 'CH93',"
        " case when i in (3, 20000) then 5 else 30 end, i, 1, 1, 'Basel', 'loan', true, '2024-01-01', now(),"
        " 'fine', 0 from generate_series(1, 40000) i",
    )
    heard: list[int] = []
    held = tmp_path / "held.csv"
    source = PostgresSource(customers.dsn(), "select * from customers order by visits")
    report = ingest(source, "customers", contract, store, quarantine=held, progress=heard.append)
    assert len(heard) > 2  # in batches, not at once
    assert heard[-1] == report.rows_read == 40000
    assert [(f.column, f.kind.value, f.rows) for f in report.findings] == [
        ("age", "out-of-domain", (3, 20000)),
        ("id", "duplicate-customer", (39999,)),
    ]
    lines = held.read_text().splitlines()
    assert len(lines) == 4
    assert lines[3].startswith('"39999","id","duplicate-customer","each customer once","c-7","Ada"')
    assert store.tables["customers"].num_rows == 39997


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("select nonsense", "SQLSTATE 42703"),
        ("select 'zq-secret'::int", "SQLSTATE 22P02"),
        ("selec", "SQLSTATE 42601"),
        ("delete from customers", "SQLSTATE 42601"),
        ("with gone as (delete from customers returning *) select * from gone", "SQLSTATE"),
        ("select 1; drop table customers", "SQLSTATE 42601"),
        ("select * from customers where wipe()", "SQLSTATE 25006"),
        ("select id, 1 as id from customers", "columns 1 and 2 of the header have the same name"),
        ("select id, name from customers", "it has 2 of the 14 declared columns"),
        ("select * from customers where false", "a header and no row"),
    ],
)
def test_bad_query_changes_nothing_and_quotes_nothing(
    query: str, expected: str, customers: Cluster, contract: Contract, store: Any
) -> None:
    with pytest.raises(BadInput) as caught:
        ingest(PostgresSource(customers.dsn(), query), "customers", contract, store)
    assert expected in str(caught.value)
    assert "zq-secret" not in str(caught.value)
    assert store.tables == {}
    assert customers.run("select count(*) from customers") == [(2,)]


def test_infinite_and_bc_dates_are_bad_cells(customers: Cluster, contract: Contract, store: Any) -> None:
    customers.run("update customers set since = 'infinity' where id = 'a'")
    customers.run("update customers set since = '0044-03-15 BC' where id = 'b'")
    with pytest.raises(LoadRefused, match=r"column 'since', wrong-type: 2 rows \(rows 1, 2\)"):
        ingest(PostgresSource(customers.dsn(), "table customers"), "customers", contract, store)


def test_the_password_shows_nowhere(
    customers: Cluster, contract: Contract, store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match=r"PostgreSQL query \(postgres\): cannot connect") as caught:
        ingest(
            PostgresSource(customers.dsn(password="Wr0ng-Wort"), "table customers"),
            "customers",
            contract,
            store,
        )
    assert "Wr0ng" not in str(caught.value)
    source = PostgresSource(customers.dsn(), "table customers")
    assert PASSWORD not in repr(source)
    assert PASSWORD not in source.name
    with pytest.raises(BadInput, match="not a PostgreSQL connection string") as bad:
        ingest(PostgresSource(f"passwort={PASSWORD}", "select 1"), "customers", contract, store)
    assert PASSWORD not in str(bad.value)

    wallet = tmp_path / "pgpass"
    wallet.write_text(f"127.0.0.1:{customers.port}:*:bank:{PASSWORD}\n")
    wallet.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(wallet))
    source = PostgresSource(public_dsn(customers.dsn(password=None)), "table customers")
    assert ingest(source, "customers", contract, store).rows_loaded == 2


def test_connection_string_from_a_file(
    customers: Cluster, contract: Contract, store: Any, tmp_path: Path
) -> None:
    file = tmp_path / "dsn"
    file.write_text(customers.dsn() + "\n")
    file.chmod(0o640)
    with pytest.raises(Insecure, match="others may read this file"):
        open_source(None, query="table customers", dsn_file=file)
    file.chmod(0o600)
    source = open_source(None, query="table customers", dsn_file=file)
    assert ingest(source, "customers", contract, store).rows_loaded == 2
    with pytest.raises(BadInput, match="cannot be read"):
        read_dsn(tmp_path / "none")
    with pytest.raises(Insecure, match="a command line is seen by every user"):
        public_dsn(customers.dsn())
    with pytest.raises(Insecure, match="a command line is seen"):
        public_dsn(f"postgresql://bank:{PASSWORD}@127.0.0.1/postgres")


def test_interrupted_query_leaves_nothing(customers: Cluster, contract: Contract, store: Any) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(
            PostgresSource(customers.dsn(), "table customers"), "customers", contract, store, progress=stop
        )
    assert store.tables == {}
    waiting = "select count(*) from pg_stat_activity where state like 'idle in%'"
    deadline = time.monotonic() + 5
    while customers.run(waiting) != [(0,)]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_nobody_at_the_port(contract: Contract, store: Any) -> None:
    pytest.importorskip("psycopg")
    source = PostgresSource(f"host=127.0.0.1 port={free_port()} dbname=x", "select 1")
    with pytest.raises(Unavailable, match="cannot connect"):
        ingest(source, "customers", contract, store)
