"""The ledger in a real PostgreSQL, thrown away afterwards: exclusive, append-only by grants, no password shown."""

import getpass
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from sfumato.client.home import BranchHome
from sfumato.common.cli import _attach, app
from sfumato.common.errors import BadInput, Insecure, LedgerBroken, Unavailable
from sfumato.common.processes import free_ports
from sfumato.privacy.export import verify_export
from sfumato.privacy.ledger import Database, Ledger
from sfumato.server.home import CoordinatorHome

KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
GENESIS = {"budget_epsilon": 3.0, "budget_delta": 1e-5}
PASSWORD = "S3cret-Wort"


class Server:
    """`url(user)` is what an operator types; passwords are in a file."""

    def __init__(self, port: int, passfile: Path) -> None:
        self.port, self.passfile = port, passfile

    def url(self, user: str = "bank") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/postgres"

    def place(self, branch: str, user: str = "bank") -> Database:
        return Database.of(self.url(user), f"sfumato/branch/{branch}", passfile=str(self.passfile))

    def run(self, *statements: str) -> list[Any]:
        import psycopg

        with psycopg.connect(self.url(), passfile=str(self.passfile), autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []


def binaries() -> Path | None:
    given = [Path(os.environ["PG_BINDIR"])] if "PG_BINDIR" in os.environ else []
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name), reverse=True
    )
    return next((p for p in given + found if (p / "initdb").exists() and (p / "postgres").exists()), None)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="needs the extra `postgres`: pip install 'sfumato[postgres]'")
    bin_ = binaries()
    if bin_ is None:
        pytest.skip(
            "no PostgreSQL server here: install it with `apt-get install postgresql` (or set PG_BINDIR)"
        )
    root = os.geteuid() == 0  # PostgreSQL refuses to run as root
    user = ("postgres" if _has_user("postgres") else "nobody") if root else getpass.getuser()
    drop: dict[str, Any] = {"user": user} if root else {}
    folder, private = Path(tempfile.mkdtemp(prefix="sfpg")), Path(tempfile.mkdtemp(prefix="sfpg"))
    process: subprocess.Popen[bytes] | None = None
    try:
        (folder / "word").write_text(PASSWORD)
        for path in (folder, folder / "word") if root else ():
            shutil.chown(path, user)
        init = [bin_ / "initdb", "-D", folder / "data", "-U", "bank", "-A", "scram-sha-256", "--no-sync"]
        init += ["--pwfile", folder / "word", "-E", "UTF8", "--locale", "C"]
        subprocess.run(init, check=True, capture_output=True, cwd="/", timeout=60, **drop)
        (port,) = free_ports(1)
        start = [bin_ / "postgres", "-D", folder / "data", "-p", str(port), "-k", folder]
        start += ["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "synchronous_commit=off"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(start, stdout=log, stderr=log, cwd="/", **drop)
        passfile = private / "pgpass"
        passfile.touch(mode=0o600)
        passfile.write_text(f"127.0.0.1:*:*:*:{PASSWORD}\n")
        made = Server(port, passfile)
        _await(made)
        yield made
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(private, ignore_errors=True)


def _has_user(name: str) -> bool:
    return any(entry.pw_name == name for entry in pwd.getpwall())


def _await(server: Server) -> None:
    import psycopg

    deadline = time.monotonic() + 30
    while True:
        try:
            server.run("SELECT 1")
            return
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.fixture
def name() -> str:
    return f"north-{secrets.token_hex(6)}"


@pytest.fixture
def ledger(server: Server, name: str) -> Iterator[Ledger]:
    made = Ledger.create(server.place(name), branch=name, signer=KEY, genesis=GENESIS)
    yield made
    made.close()


def test_it_is_the_same_ledger_as_in_a_file(
    ledger: Ledger, server: Server, name: str, tmp_path: Path
) -> None:
    local = Ledger.create(tmp_path / "l.sqlite", branch=name, signer=KEY, genesis=GENESIS)
    for made in (ledger, local):
        for i in range(20):
            made.append("refuse", {"code": "expired", "n": i}, job_id=f"{i:032x}")
        with made.exclusive() as transaction:
            transaction.store_answer("a" * 32, 1, "size", "q", b"\x00answer", "m")
            assert transaction.answered("a" * 32, 1, "size", "m") == ("q", b"\x00answer")
            assert [e.seq for e in transaction.entries("refuse", after=18)] == [19, 20]
            last = transaction.latest("refuse")
            assert last is not None and last.body["n"] == 19
    reader = Ledger.read(server.place(name))
    assert reader.branch == name and reader.verify(ledger.signed_head()) == 21
    again = Ledger.open(server.place(name), branch=name, signer=KEY)
    again.append("ingest", {"table": "t", "mode": "create"})
    assert len(ledger.consistency(7, 22)) == len(local.consistency(7, 21)) > 0
    lines = [f"{line}\n".encode() for line in reader.export()]
    assert verify_export(lines, "x", key=KEY.public_key()).entries == 22
    for opened in (reader, again):
        opened.close()


def test_every_transaction_is_exclusive_and_durable(ledger: Ledger, server: Server, name: str) -> None:
    """Six writers that read, wait and write: none of them decides on what another has changed meanwhile."""

    def work() -> None:
        mine = Ledger.open(server.place(name), branch=name, signer=KEY)
        for _ in range(5):
            with mine.exclusive() as transaction:
                count = len(transaction.entries("charge"))
                time.sleep(0.002)
                transaction.append("charge", {"n": count})
        mine.close()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [e.body["n"] for e in ledger.entries("charge")] == list(range(30))
    assert ledger.verify() == 31
    with ledger._engine.begin() as connection:  # this server's own default is off
        assert connection.execute(sa.text("SHOW synchronous_commit")).scalar() == "on"


def test_ledgers_of_one_database_do_not_mix(ledger: Ledger, server: Server, name: str) -> None:
    other = f"{name}-{'x' * 40}"  # a name longer than a schema's may be
    twin = f"{name}-{'x' * 41}"
    for branch in (other, twin):
        made = Ledger.create(server.place(branch), branch=branch, signer=KEY, genesis=GENESIS)
        made.append("ingest", {"table": branch, "mode": "create"})
        assert made.verify() == 2
        made.close()
    assert len(ledger.entries()) == 1
    with pytest.raises(BadInput, match="there already"):
        Ledger.create(server.place(name), branch=name, signer=KEY, genesis=GENESIS)
    with pytest.raises(BadInput, match="no ledger here"):
        Ledger.read(server.place("nobody"))
    with pytest.raises(LedgerBroken, match="another branch or key"):
        Ledger.open(server.place(name), branch=name, signer=Ed25519PrivateKey.generate())
    assert ledger.verify() == 1


def test_a_role_that_may_only_insert_is_enough(ledger: Ledger, server: Server, name: str) -> None:
    import psycopg

    role, schema = f"r{secrets.token_hex(4)}", server.place(name).schema
    server.run(
        f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA {schema} TO {role}",
    )
    mine = Ledger.open(server.place(name, role), branch=name, signer=KEY)
    mine.append("ingest", {"table": "t", "mode": "create"})
    assert mine.verify() == 2
    mine.close()
    for statement in ("UPDATE {}.entries SET kind = 'x'", "DELETE FROM {}.entries", "TRUNCATE {}.nodes"):
        with (
            psycopg.connect(server.url(role), passfile=str(server.passfile)) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(statement.format(schema))


def test_an_alteration_in_the_database_is_named(ledger: Ledger, server: Server, name: str) -> None:
    for i in range(5):
        ledger.append("refuse", {"n": i})
    schema = server.place(name).schema
    server.run(f"UPDATE {schema}.entries SET entry = overlay(entry placing 'x' from 20) WHERE seq = 3")
    with pytest.raises(LedgerBroken, match="entry 3 was altered"):
        ledger.verify()


def test_an_exception_rolls_back(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError), ledger.exclusive() as transaction:
        transaction.append("refuse", {"code": "expired"})
        raise RuntimeError
    assert ledger.verify() == 1


def test_no_password_is_in_a_url_a_file_or_a_message(server: Server, tmp_path: Path) -> None:
    with pytest.raises(Insecure):
        Database.of(f"postgresql://bank:{PASSWORD}@127.0.0.1/x", "o")
    place = server.place("north")
    place.write(tmp_path / "ledger.toml")
    assert Database.load(tmp_path / "ledger.toml") == place
    assert PASSWORD not in (tmp_path / "ledger.toml").read_text()
    assert (tmp_path / "ledger.toml").stat().st_mode & 0o777 == 0o600
    for place in (Database.of(server.url(), "o"), Database.of("postgresql://127.0.0.1:1/x", "o")):
        with pytest.raises(Unavailable, match="cannot connect") as raised:
            Ledger.read(place)
        assert PASSWORD not in str(raised.value)
    (tmp_path / "broken.toml").write_text("url = 3")
    with pytest.raises(BadInput, match="does not say where"):
        Database.load(tmp_path / "broken.toml")


def test_both_homes_are_set_up_with_it_and_their_commands_find_it(
    server: Server, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(server.passfile))
    (tmp_path / "word").touch(mode=0o600)
    (tmp_path / "word").write_text("a passphrase of some length")

    def sfumato(*arguments: object) -> str:
        run = CliRunner().invoke(app, [str(a) for a in arguments])
        assert run.exit_code == 0, (run.output, run.exception)
        return run.output

    _attach()
    sfumato("coordinator", "init", tmp_path / "c", "--ledger-url", server.url())
    contract = Path(__file__).parents[2] / "examples" / "bank_branch_churn" / "contract.toml"
    init: list[object] = ["branch", "init", tmp_path / "b", "--name", name, "--contract", contract]
    init += ["--invitation", tmp_path / "c" / "invitation.json", "--passphrase-file", tmp_path / "word"]
    sfumato(*init, "--ledger-url", server.url())
    monkeypatch.delenv("PGPASSFILE")  # noted at init
    assert not (tmp_path / "b" / "vault" / "ledger.sqlite").exists()
    assert "spent" in sfumato("branch", "status", tmp_path / "b")
    for role, home in (("branch", tmp_path / "b"), ("coordinator", tmp_path / "c")):
        assert "genesis" in sfumato(role, "ledger", home)
        assert "1 entries" in sfumato(role, "ledger", home, "--verify")
        sfumato(role, "ledger", home, "--export", tmp_path / f"{role}.jsonl")
    key = tmp_path / "b" / "enrolment.json"
    assert "the key that you gave" in sfumato("audit", "verify", tmp_path / "branch.jsonl", "--key", key)
    branch, coordinator = BranchHome(tmp_path / "b"), CoordinatorHome.load(tmp_path / "c")
    branch.check_private()
    assert branch.coordinator_ledger_key() == coordinator.open_ledger().public_key
    refused = CliRunner().invoke(app, [*map(str, init), "--ledger-url", f"postgresql://a:{PASSWORD}@x/y"])
    assert refused.exit_code != 0 and PASSWORD not in refused.output
