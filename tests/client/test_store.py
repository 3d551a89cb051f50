"""The sealed store: what is kept, what is refused, and what can be read back. See test_store_disk.py too."""

import base64
import subprocess
import sys
import textwrap
from datetime import date, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfumato.client.vault import database
from sfumato.client.vault.store import Store
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput, Insecure
from sfumato.privacy.fields import Tokenizer
from sfumato.privacy.keys import Keyring, PassphraseKeyProvider

PASSPHRASE = "correct horse battery staple"


PII = {"type": "string", "role": "pii", "nullable": True}


def contract(**changes: object) -> Contract:
    customers = [
        {"name": "id", "type": "string", "role": "customer_id"},
        {"name": "full name", "protection": "encrypt", **PII},
        {"name": "email", "protection": "encrypt", **PII},
        {"name": "iban", "protection": "token", **PII},
        {"name": "phone", "protection": "drop", **PII},
        {"name": "age", "type": "integer", "role": "feature", "bounds": [18, 100]},
        {"name": "churned", "type": "boolean", "role": "label"},
    ]
    orders = [
        {"name": "id", "type": "integer", "role": "customer_id"},
        {"name": "when", "type": "datetime", "role": "time"},
        {"name": "day", "type": "date", "nullable": True},
        {"name": "amount", "type": "number", "role": "amount", "bounds": [0, 10000]},
        {"name": "note", "type": "string", "role": "pii", "protection": "encrypt"},
    ]
    tables = [{"name": "customers", "columns": customers}, {"name": "order", "columns": orders}]
    return Contract.model_validate(
        {"version": 1, "name": "small-bank", "purpose": "tests of the store", "tables": tables, **changes}
    )


def people(n: int, *, first: int = 0) -> pa.Table:
    return pa.table(
        {
            "id": [f"C{i}" for i in range(first, first + n)],
            "full name": [None if i % 5 == 4 else f"name of {i} 名" for i in range(first, first + n)],
            "email": [f"{i}@example.com" for i in range(first, first + n)],
            "iban": [f"DE{i}" for i in range(first, first + n)],
            "phone": [f"+49 {i}" for i in range(first, first + n)],
            "age": pa.array([18 + i % 60 for i in range(first, first + n)], type=pa.int64()),
            "churned": [i % 3 == 0 for i in range(first, first + n)],
        }
    )


def numbers(n: int, first: int = 0) -> np.ndarray:
    return np.arange(first, first + n, dtype=np.int64)


def quiet(table: str, column: str, count: int) -> None:
    pass


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
    store = Store.create(vault / "store.duckdb", contract(), keyring)
    yield store
    store.close()


def load(store: Store, rows: pa.Table, mode: str = "create") -> None:
    with store.load("customers", mode=mode) as loader:
        loader.append(rows, numbers(rows.num_rows))


class TestRoundTrip:
    def test_rows_types_and_tokens(self, store: Store, keyring: Keyring) -> None:
        load(store, people(10))
        assert store.tables() == {"customers": 10}
        rows = store.query("SELECT * FROM customers")
        assert rows.column_names == ["id", "iban", "age", "churned"]  # neither sealed nor dropped
        assert rows.schema.field("age").type == pa.int64()
        assert rows.schema.field("churned").type == pa.bool_()
        expected = [Tokenizer(keyring).token(f"C{i}", purpose="customer-id") for i in range(10)]
        assert rows["id"].to_pylist() == expected
        assert store.token("customers", "iban", "DE3") == rows["iban"][3].as_py()
        assert store.token("customers", "age", "18") is None

    def test_every_type_and_one_customer_across_tables(self, store: Store) -> None:
        when = datetime(2026, 3, 4, 5, 6, 7, 89)
        rows = pa.table(
            {
                "id": pa.array([7, 7, 8], type=pa.int64()),
                "when": pa.array([when] * 3, type=pa.timestamp("us")),
                "day": pa.array([date(2026, 1, 2), None, date(1900, 1, 1)], type=pa.date32()),
                "amount": [0.1, 2.0, 3.5],
                "note": ["", "長い" * 1000, "x"],
            }
        )
        with store.load("order") as loader:
            loader.append(rows, numbers(3))
        got = store.query('SELECT * FROM "order"')
        for name in ("when", "day", "amount"):
            assert got[name].combine_chunks().equals(rows[name].combine_chunks())
            assert got.schema.field(name).type == rows.schema.field(name).type
        assert got["id"].to_pylist()[0] == store.token("customers", "id", "7")
        assert store.reveal("order", "note", ["7"], audit=quiet) == {"7": ["", "長い" * 1000]}

    def test_survives_reopening_and_read_only(self, vault: Path, keyring: Keyring, store: Store) -> None:
        load(store, people(3))
        store.close()
        store.close()
        again = Store.open(
            vault / "store.duckdb",
            contract(),
            Keyring.open(vault / "keyring.json", PASSPHRASE),
            read_only=True,
        )
        assert again.reveal("customers", "email", ["C2", "nobody"], audit=quiet) == {
            "C2": ["2@example.com"],
            "nobody": [],
        }
        with pytest.raises(duckdb.Error):
            again.query("DELETE FROM raw.customers")
        again.close()

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        values=st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), max_size=40),
        data=st.data(),
    )
    def test_any_text_any_discard(self, store: Store, values: list[str | None], data: st.DataObject) -> None:
        n = len(values)
        unwanted = data.draw(st.sets(st.integers(0, n - 1)) if n else st.just(set()))
        rows = people(n).set_column(1, "full name", pa.array(values, type=pa.string()))
        with store.load("customers", mode="replace") as loader:
            cut = n // 2
            loader.append(rows.slice(0, cut), numbers(cut))
            loader.append(rows.slice(cut), numbers(n - cut, cut))
            loader.discard(sorted(unwanted))
        everyone = [f"C{i}" for i in range(n)]
        got = store.reveal("customers", "full name", everyone, audit=quiet)
        assert got == {f"C{i}": [] if i in unwanted else [values[i]] for i in range(n)}

    def test_many_chunks_discard_and_append(self, store: Store) -> None:
        n = 20_000
        with store.load("customers") as loader:
            for start in range(0, n, 3000):
                size = min(3000, n - start)
                loader.append(people(size, first=start), numbers(size, start))
            loader.discard(list(range(8000, 8400)))
        with store.load("customers", mode="append") as loader:
            loader.append(people(100, first=n), numbers(100))
        assert store.tables() == {"customers": n - 400 + 100}
        asked = [f"C{i}" for i in (0, 4, 7999, 8000, 8191, 8192, 8399, 8400, 16384, 19_999, 20_000, 20_099)]
        got = store.reveal("customers", "email", asked, audit=quiet)
        for customer, values in got.items():
            i = int(customer[1:])
            assert values == ([] if 8000 <= i < 8400 else [f"{i}@example.com"])
        everything = store.reveal("customers", "email", None, audit=quiet)
        assert sum(map(len, everything.values())) == n - 300


class TestLoading:
    def test_create_refuses_a_loaded_table(self, store: Store) -> None:
        load(store, people(2))
        with pytest.raises(BadInput, match="loaded already"):
            load(store, people(2))
        load(store, people(3, first=50), mode="replace")
        assert store.tables() == {"customers": 3}
        assert store.query("SELECT count(DISTINCT chunk) AS n FROM internal.chunks")["n"].to_pylist() == [1]

    def test_an_exception_rolls_everything_back(self, store: Store, vault: Path) -> None:
        load(store, people(2))
        for mode in ("append", "replace"):
            with pytest.raises(RuntimeError), store.load("customers", mode=mode) as loader:
                loader.append(people(9000, first=10), numbers(9000))
                raise RuntimeError
        assert store.tables() == {"customers": 2}
        assert store.reveal("customers", "email", ["C1", "C10"], audit=quiet) == {
            "C1": ["1@example.com"],
            "C10": [],
        }
        with pytest.raises(ValueError, match="ended"):
            loader.append(people(1), numbers(1))

    def test_duplicates_within_and_across_loads(self, store: Store) -> None:
        load(store, people(5))
        repeated = pa.concat_tables([people(2, first=3), people(2, first=100), people(1, first=100)])
        with store.load("customers", mode="append") as loader:
            loader.append(repeated.slice(0, 3), np.array([70, 71, 72], dtype=np.int64))
            loader.append(repeated.slice(3), np.array([73, 74], dtype=np.int64))
            assert loader.duplicate_rows() == [70, 71, 74]
            loader.discard(loader.duplicate_rows())
            assert loader.duplicate_rows() == []
        assert store.tables() == {"customers": 7}

    def test_undiscarded_duplicates_never_commit(self, store: Store) -> None:
        with pytest.raises(BadInput, match="1 rows repeat a customer"):
            load(store, pa.concat_tables([people(2), people(1)]))
        assert store.tables() == {}

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.drop_columns(["age"]), "'age' is missing"),
            (lambda t: t.append_column("x", t["age"]), "'x' is not in the contract"),
            (lambda t: t.append_column("age", t["age"]), "'age' is there twice"),
            (lambda t: t.set_column(5, "age", pa.array(["SECRET"] * 2)), "not of type integer"),
            (lambda t: t.set_column(0, "id", pa.array(["a", None])), "customers.id: 1 rows have no value"),
            (
                lambda t: t.set_column(6, "churned", pa.array([True, None])),
                "churned: 1 rows have no value",
            ),
        ],
    )
    def test_bad_batches(self, store: Store, change, message: str) -> None:
        with pytest.raises(BadInput, match=message) as caught:
            load(store, change(people(2)))
        assert "SECRET" not in str(caught.value)
        assert store.tables() == {}

    def test_numbers_are_finite(self, store: Store) -> None:
        rows = pa.table(
            {
                "id": [1],
                "when": pa.array([datetime(2026, 1, 1)], type=pa.timestamp("us")),
                "day": pa.array([None], type=pa.date32()),
                "amount": [float("nan")],
                "note": ["x"],
            }
        )
        with pytest.raises(BadInput, match="not finite"), store.load("order") as loader:
            loader.append(rows, numbers(1))

    def test_drop_columns_may_be_absent(self, store: Store) -> None:
        load(store, people(2).drop_columns(["phone"]))
        assert store.tables() == {"customers": 2}

    def test_unknown_table(self, store: Store) -> None:
        with pytest.raises(BadInput, match="no table 'nothing'"), store.load("nothing"):
            pass


class TestReveal:
    def test_audit_comes_first_and_can_refuse(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        load(store, people(4))
        calls = []
        store.reveal("customers", "email", ["C1", "C2"], audit=lambda *a: calls.append(a))
        assert calls == [("customers", "email", 2)]

        def refuse(*_: object) -> None:
            raise PermissionError

        def never(*_: object, **__: object) -> None:
            pytest.fail("opened before the audit")

        monkeypatch.setattr("sfumato.privacy.fields.FieldCipher.open", never)
        with pytest.raises(PermissionError):
            store.reveal("customers", "email", None, audit=refuse)

    @pytest.mark.parametrize("column", ["id", "iban", "phone", "age", "nothing"])
    def test_only_sealed_columns(self, store: Store, column: str) -> None:
        with pytest.raises(BadInput):
            store.reveal("customers", column, None, audit=quiet)

    def test_a_destroyed_key_ends_it(self, store: Store, keyring: Keyring) -> None:
        load(store, people(4))
        keyring.destroy("field:customers.email")
        with pytest.raises(BadInput, match="destroyed"):
            store.reveal("customers", "email", ["C1"], audit=quiet)
        assert store.reveal("customers", "full name", ["C1"], audit=quiet) == {"C1": ["name of 1 名"]}

    def test_swapped_chunks_do_not_open(self, store: Store) -> None:
        load(store, people(4))
        store.query(
            "UPDATE internal.chunks SET col = CASE col WHEN 'email' THEN 'full name' ELSE 'email' END"
        )
        with pytest.raises(BadInput, match="altered, moved"):
            store.reveal("customers", "email", ["C1"], audit=quiet)


class TestOpening:
    def test_in_use_by_this_process(self, store: Store, vault: Path, keyring: Keyring) -> None:
        for read_only in (False, True):
            with pytest.raises(BadInput, match="Stop the branch first"):
                Store.open(vault / "store.duckdb", contract(), keyring, read_only=read_only)

    def test_in_use_by_another_process(self, store: Store, vault: Path) -> None:
        program = textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from sfumato.client.vault import database
            from sfumato.common.errors import BadInput
            try:
                database.connect(Path(sys.argv[1]), bytes.fromhex(sys.stdin.read()))
            except BadInput as e:
                print(e)
            """
        )
        answer = subprocess.run(
            [sys.executable, "-c", program, str(vault / "store.duckdb")],
            input="00" * 32,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "in use" in answer.stdout and "Stop the branch first" in answer.stdout, answer.stderr

    def test_readers_share_and_keep_a_loader_out(self, store: Store, vault: Path, keyring: Keyring) -> None:
        load(store, people(2))
        store.close()
        path = vault / "store.duckdb"
        reader = Store.open(path, contract(), keyring, read_only=True)
        program = textwrap.dedent(
            """
            import sys
            from pathlib import Path
            from sfumato.client.vault import database
            from sfumato.common.errors import BadInput
            key = bytes.fromhex(sys.stdin.read())
            c = database.connect(Path(sys.argv[1]), key, read_only=True)
            print(c.execute("SELECT count(*) FROM customers").fetchall())
            c.close()
            try:
                database.connect(Path(sys.argv[1]), key)
            except BadInput as e:
                print(e)
            """
        )
        answer = subprocess.run(
            [sys.executable, "-c", program, str(path)],
            input=keyring.data_key("store").hex(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "[(2,)]" in answer.stdout and "Stop the branch first" in answer.stdout, answer.stderr
        assert reader.tables() == {"customers": 2}
        reader.close()

    def test_another_contract(self, store: Store, vault: Path, keyring: Keyring) -> None:
        store.close()
        with pytest.raises(BadInput, match="another data contract"):
            Store.open(vault / "store.duckdb", contract(name="another"), keyring)

    def test_another_keyring(self, store: Store, vault: Path) -> None:
        store.close()
        provider = PassphraseKeyProvider(PASSPHRASE, iterations=1, lanes=1, memory_kib=8192)
        other = Keyring.create(vault / "other.json", provider)
        with pytest.raises(BadInput, match="does not open") as caught:
            Store.open(vault / "store.duckdb", contract(), other)
        assert caught.value.__cause__ is None
        key = base64.b64encode(other.data_key("store")).decode()
        assert key not in str(caught.value)

    def test_absent_existing_garbage(self, store: Store, vault: Path, keyring: Keyring) -> None:
        with pytest.raises(BadInput, match="no such store"):
            Store.open(vault / "nothing", contract(), keyring)
        with pytest.raises(BadInput, match="exists already"):
            Store.create(vault / "store.duckdb", contract(), keyring)
        (vault / "garbage").write_bytes(b"\0" * 5000)
        with pytest.raises(BadInput, match="not a store"):
            Store.open(vault / "garbage", contract(), keyring)
        duckdb.connect(str(vault / "plain.duckdb")).close()
        with pytest.raises(BadInput):
            Store.open(vault / "plain.duckdb", contract(), keyring)
        assert not [p for p in vault.iterdir() if p.name.endswith(".new")]

    def test_names_that_differ_in_case(self, vault: Path, keyring: Keyring) -> None:
        columns = [
            {"name": "id", "type": "string", "role": "customer_id"},
            {"name": "ID", "type": "string"},
        ]
        bad = contract(tables=[{"name": "customers", "columns": columns}])
        with pytest.raises(BadInput, match="only in case"):
            Store.create(vault / "s.duckdb", bad, keyring)
        assert not (vault / "s.duckdb").exists()

    def test_extension_missing_or_of_another_version(
        self, store: Store, vault: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.close()
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "duckdb_extension_httpfs", None)
            with pytest.raises(Insecure, match="not installed"):
                Store.open(vault / "store.duckdb", contract(), keyring)
        monkeypatch.setattr(database.importlib.metadata, "version", lambda _: "1.5.4")
        with pytest.raises(Insecure, match="must be the same"):
            Store.open(vault / "store.duckdb", contract(), keyring)

    def test_a_false_extension_does_not_load(
        self, store: Store, vault: Path, keyring: Keyring, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        store.close()
        false = tmp_path / "httpfs.duckdb_extension"
        data = bytearray(database.crypto_extension().read_bytes())
        data[len(data) // 2] ^= 1
        false.write_bytes(data)
        monkeypatch.setattr(database, "crypto_extension", lambda: false)
        with pytest.raises(Insecure, match="does not load"):
            Store.open(vault / "store.duckdb", contract(), keyring)
