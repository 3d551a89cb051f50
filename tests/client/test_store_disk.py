"""What a thief of the vault's disk sees, what a killed load leaves, and what SQL inside the vault can reach."""

import base64
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from sfumato.client.vault import database
from sfumato.client.vault.store import Store
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput, Insecure
from sfumato.privacy.keys import Keyring, PassphraseKeyProvider

PASSPHRASE = "correct horse battery staple"
PLANTED = [
    "PLANTED-Li-Xiaoming-7391",
    "王小明種植名字七三九一",
    "planted.7391@example.com",
    "DE44500105175407324931",
]
PII = {"type": "string", "role": "pii"}
CONTRACT = Contract.model_validate(
    {
        "version": 1,
        "name": "small-bank",
        "purpose": "tests of the sealed store on disk",
        "tables": [
            {
                "name": "customers",
                "columns": [
                    {"name": "id", "type": "string", "role": "customer_id"},
                    {"name": "full name", "protection": "encrypt", "nullable": True, **PII},
                    {"name": "email", "protection": "encrypt", **PII},
                    {"name": "iban", "protection": "token", **PII},
                    {"name": "phone", "protection": "drop", **PII},
                    {"name": "age", "type": "integer", "role": "feature", "bounds": [18, 100]},
                ],
            }
        ],
    }
)


def people(n: int, *, first: int = 0) -> pa.Table:
    which = range(first, first + n)
    return pa.table(
        {
            "id": [f"C{i}" for i in which],
            "full name": [None if i % 5 == 4 else f"name of {i} 名" for i in which],
            "email": [f"{i}@example.com" for i in which],
            "iban": [f"DE{i}" for i in which],
            "phone": [f"+49 {i}" for i in which],
            "age": pa.array([18 + i % 60 for i in which], type=pa.int64()),
        }
    )


def numbers(n: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + n, dtype=np.int64)


def quiet(table: str, column: str, count: int) -> None:
    pass


def load(store: Store, rows: pa.Table) -> None:
    with store.load("customers") as loader:
        loader.append(rows, numbers(rows.num_rows))


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    folder = tmp_path / "vault"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def keyring(vault: Path) -> Keyring:
    provider = PassphraseKeyProvider(PASSPHRASE, iterations=1, lanes=1, memory_kib=8192)
    return Keyring.create(vault / "keyring.json", provider)


@pytest.fixture
def store(vault: Path, keyring: Keyring):
    store = Store.create(vault / "store.duckdb", CONTRACT, keyring)
    yield store
    store.close()


def forms(text: str) -> list[bytes]:
    """A text as it could lie on a disk: raw (UTF-8, UTF-16), hexadecimal, base64 at each of the three offsets."""
    raw = text.encode()
    found = [raw, text.encode("utf-16-le"), raw.hex().encode(), raw.hex().upper().encode()]
    for pad in range(3):
        coded = base64.b64encode(b"\0" * pad + raw)
        found.append(coded[4 if pad else 0 : len(coded) - 4])
    return found


def traces(folder: Path, texts: list[str]) -> list[str]:
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    # nameless files (unlinked, still open) are on the disk as well
    for fd in Path("/proc/self/fd").iterdir():
        try:
            target = fd.readlink()
            if str(target).startswith(str(folder)) and "(deleted)" in str(target):
                files[fd] = fd.read_bytes()
        except OSError:
            continue
    return [f"{path}: {t}" for path, data in files.items() for t in texts for f in forms(t) if f in data]


def planted_people(n: int) -> pa.Table:
    rows = people(n)
    for i, name in enumerate(["full name", "full name", "email", "iban"]):
        column = rows[name].to_pylist()
        column[:: len(PLANTED)] = [PLANTED[i]] * len(column[:: len(PLANTED)])
        if i == 1:
            column[1::4] = [PLANTED[0]] * len(column[1::4])
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(column))
    ids = rows["id"].to_pylist()
    ids[0] = "PLANTED-ID-99812"
    phones = rows["phone"].to_pylist()
    phones[0] = "PLANTED-PHONE-99812"
    return rows.set_column(0, "id", pa.array(ids)).set_column(4, "phone", pa.array(phones))


class TestDisk:
    TEXTS = [*PLANTED, "PLANTED-ID-99812", "PLANTED-PHONE-99812"]  # noqa: RUF012

    def test_the_scan_finds_what_an_unsealed_file_shows(self, vault: Path) -> None:
        rows = planted_people(40)
        connection = duckdb.connect(str(vault / "open.duckdb"))
        connection.register("rows", rows)
        connection.execute("CREATE TABLE t AS SELECT * FROM rows")
        connection.close()
        found = traces(vault, self.TEXTS)
        assert {t for t in self.TEXTS if any(t in f for f in found)} == set(self.TEXTS)

    def test_nothing_planted_on_disk_at_any_moment(self, store: Store, vault: Path) -> None:
        rows = planted_people(30_000)
        with store.load("customers") as loader:
            loader.append(rows.slice(0, 20_000), numbers(20_000))
            assert traces(vault, self.TEXTS) == []
            loader.append(rows.slice(20_000), numbers(10_000, 20_000))
            loader.discard([0, 4, 8])
            assert any(p.suffix == ".wal" for p in vault.iterdir()) or store.tables()
            assert traces(vault, self.TEXTS) == []
        assert traces(vault, self.TEXTS) == []
        with pytest.raises(RuntimeError), store.load("customers", mode="append") as loader:
            loader.append(rows, numbers(30_000))
            raise RuntimeError
        assert traces(vault, self.TEXTS) == []
        store.close()
        assert traces(vault, self.TEXTS) == []

    def test_plain_columns_too_and_the_log(self, vault: Path, keyring: Keyring) -> None:
        """An attribute that is no PII lies in the encrypted file and its write-ahead log: neither shows it."""
        path = vault / "store.duckdb"
        store = Store.create(path, CONTRACT, keyring)
        store.query("CREATE TABLE raw.plain (a VARCHAR)")
        store.query("INSERT INTO raw.plain SELECT 'PLANTED-PLAIN-5512' || range FROM range(500)")
        log = path.with_name(path.name + ".wal")
        assert log.stat().st_size > 500
        assert traces(vault, ["PLANTED-PLAIN-5512"]) == []
        store.close()

    def test_spilled_data_is_encrypted(self, vault: Path, keyring: Keyring) -> None:
        path = vault / "store.duckdb"
        Store.create(path, CONTRACT, keyring).close()
        connection = database.connect(path, keyring.data_key("store"), memory_mib=64)
        connection.execute(
            "CREATE TABLE raw.t AS SELECT 'PLANTED-SPILL-77' || range AS a FROM range(1500000)"
        )
        result = connection.execute("SELECT a, md5(a) AS h FROM raw.t ORDER BY h")
        result.fetchmany(10)  # the sorted runs lie on the disk now
        spilled = [p for p in (vault / "spill").rglob("*") if p.is_file() and p.stat().st_size]
        assert spilled, "the test must spill to show anything"
        assert traces(vault, ["PLANTED-SPILL-77"]) == []
        database.disconnect(connection, path)
        assert list((vault / "spill").iterdir()) == []

    def test_modes(self, store: Store, vault: Path) -> None:
        previous = os.umask(0o022)
        try:
            with store.load("customers") as loader:
                loader.append(people(5), numbers(5))
                self._all_private(vault)
            self._all_private(vault)
        finally:
            os.umask(previous)

    @staticmethod
    def _all_private(folder: Path) -> None:
        for path in folder.rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path

    def test_flipping_bytes_is_noticed(self, vault: Path, keyring: Keyring, store: Store) -> None:
        load(store, people(3000))
        store.close()
        path = vault / "store.duckdb"
        good = path.read_bytes()
        silent = 0
        positions = [8, 100, 5000, *np.random.default_rng(5).integers(12288, len(good), 20)]
        for position in positions:
            bad = bytearray(good)
            bad[position] ^= 0xFF
            path.write_bytes(bad)
            silent += _reads(path, keyring)
        path.write_bytes(good)
        assert _reads(path, keyring)
        assert silent <= 10  # bytes that no block in use holds; what is read is the truth or an error

    def test_discarded_pii_is_in_no_sealed_chunk(self, store: Store, keyring: Keyring) -> None:
        with store.load("customers") as loader:
            loader.append(people(9000), numbers(9000))
            loader.discard([0, 5, 8500])
        from sfumato.privacy.fields import FieldCipher

        chunks = store.query("SELECT chunk, data FROM internal.chunks WHERE col = 'email' ORDER BY chunk")
        opened = [
            FieldCipher(keyring).open(row["data"], table="customers", column="email", chunk=row["chunk"])
            for row in chunks.to_pylist()
        ]
        values = [v for chunk in opened for v in chunk]
        assert [i for i, v in enumerate(values) if v is None] == [0, 5, 8500] and len(values) == 9000

    def test_rotation_leaves_the_data_alone(self, store: Store, vault: Path, keyring: Keyring) -> None:
        load(store, people(100))
        store.close()
        path = vault / "store.duckdb"
        before = hashlib.sha256(path.read_bytes()).digest()
        keyring.rotate(PassphraseKeyProvider("another passphrase", iterations=1, lanes=1, memory_kib=8192))
        assert hashlib.sha256(path.read_bytes()).digest() == before
        with pytest.raises(BadInput):
            Keyring.open(vault / "keyring.json", PASSPHRASE)
        again = Store.open(path, CONTRACT, Keyring.open(vault / "keyring.json", "another passphrase"))
        assert again.reveal("customers", "email", ["C7"], audit=quiet) == {"C7": ["7@example.com"]}
        again.close()

    def test_folder_open_to_others(self, vault: Path, keyring: Keyring) -> None:
        vault.chmod(0o750)
        with pytest.raises(Insecure, match="0750"):
            Store.create(vault / "s.duckdb", CONTRACT, keyring)


def _reads(path: Path, keyring: Keyring) -> bool:
    """Whether the store still reads; if it does, it must read the truth."""
    try:
        store = Store.open(path, CONTRACT, keyring)
    except BadInput:
        return False
    try:
        ages = store.query("SELECT age FROM customers")["age"].to_pylist()
        names = store.reveal("customers", "email", ["C0", "C2999"], audit=quiet)
    except (duckdb.Error, BadInput):
        return False
    finally:
        store.close()
    assert ages == [18 + i % 60 for i in range(3000)]
    assert names == {"C0": ["0@example.com"], "C2999": ["2999@example.com"]}
    return True


KILLED_LOAD = textwrap.dedent(
    """
    import os, signal, sys
    from pathlib import Path
    import numpy as np, pyarrow as pa
    from sfumato.client.vault.store import Store
    from sfumato.common.contract import Contract
    from sfumato.privacy.keys import Keyring
    vault, passphrase, agreed = Path(sys.argv[1]), sys.argv[2], Contract.model_validate_json(sys.argv[3])
    store = Store.open(vault / "store.duckdb", agreed, Keyring.open(vault / "keyring.json", passphrase))
    n = 150_000
    with store.load("customers", mode="replace") as loader:
        loader.append(pa.table({
            "id": [f"N{i}" for i in range(n)], "full name": ["PLANTED-Li-Xiaoming-7391"] * n,
            "email": [f"planted.7391@example.com{i}" for i in range(n)], "iban": ["x"] * n,
            "age": pa.array([20] * n, type=pa.int64()),
        }), np.arange(n))
        if sys.argv[4] == "during":
            os.kill(os.getpid(), signal.SIGKILL)
        original = loader.finish
        def finish():
            original()
            os.kill(os.getpid(), signal.SIGKILL)
        loader.finish = finish
    """
)


@pytest.mark.parametrize("moment", ["during", "before the commit"])
@pytest.mark.parametrize("read_only", [True, False])
def test_a_killed_load_leaves_what_was_there(
    store: Store, vault: Path, keyring: Keyring, moment: str, read_only: bool
) -> None:
    load(store, people(3000))
    store.close()
    ended = subprocess.run(
        [sys.executable, "-c", KILLED_LOAD, str(vault), PASSPHRASE, CONTRACT.model_dump_json(), moment],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert traces(vault, PLANTED) == []
    again = Store.open(vault / "store.duckdb", CONTRACT, keyring, read_only=read_only)
    assert again.tables() == {"customers": 3000}
    assert again.reveal("customers", "email", ["C2999"], audit=quiet) == {"C2999": ["2999@example.com"]}
    again.close()
    if not read_only:
        assert sorted(p.name for p in vault.rglob("*")) == ["keyring.json", "spill", "store.duckdb"]


def test_a_killed_store_keeps_a_committed_load(store: Store, vault: Path, keyring: Keyring) -> None:
    """The files as they lie the moment a load has returned, without any closing: a copy of them opens whole."""
    load(store, people(3000))
    copy = vault.parent / "copy"
    copy.mkdir(mode=0o700)
    for path in vault.glob("store.duckdb*"):
        shutil.copy(path, copy / path.name)
    again = Store.open(copy / "store.duckdb", CONTRACT, keyring)
    assert again.tables() == {"customers": 3000}
    again.close()


def test_without_the_extension_nothing_is_written_with_weaker_means(
    vault: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The premise: were the extension not to load after all, DuckDB refuses, and no store comes into being."""
    monkeypatch.setattr(database, "_load", lambda connection, extension: None)
    with pytest.raises(Insecure, match="no OpenSSL"):
        Store.create(vault / "store.duckdb", CONTRACT, keyring)
    assert [p.name for p in vault.iterdir() if p.is_file()] == ["keyring.json"]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_blob('http://127.0.0.1:9/x')",
        "SELECT * FROM 'https://127.0.0.1:9/x.parquet'",
        "SELECT * FROM 's3://bucket/x.parquet'",
        "SELECT * FROM glob('/etc/*')",
        "COPY raw.customers TO '{folder}/never.csv'",
        "COPY raw.customers TO 'http://127.0.0.1:9/x.csv'",
        "EXPORT DATABASE '{folder}/never'",
        "ATTACH '{folder}/never.duckdb'",
        "ATTACH 'https://127.0.0.1:9/x.duckdb'",
        "INSTALL spatial",
        "LOAD spatial",
        "CREATE PERSISTENT SECRET (TYPE s3, KEY_ID 'a', SECRET 'b')",
        "SET enable_external_access = true",
        "SET threads = 8",
        "SET lock_configuration = false",
        "SET force_mbedtls_unsafe = true",
        "SELECT * FROM python_variable",
    ],
)
def test_locked_down(store: Store, sql: str, tmp_path: Path) -> None:
    python_variable = pa.table({"a": [1]})
    assert python_variable.num_rows == 1
    with pytest.raises(duckdb.Error):
        store.query(sql.format(folder=tmp_path))
    assert not list(tmp_path.glob("never*"))
