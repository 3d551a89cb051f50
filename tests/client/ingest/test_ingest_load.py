"""A load is whole or nothing; the quarantine is private, complete and never half-written."""

import csv
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sfumato.client.ingest import sources
from sfumato.client.ingest.csv_source import CsvSource
from sfumato.client.ingest.findings import FaultKind, LoadRefused
from sfumato.client.ingest.formula import is_formula, neutralise
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.ingest.parquet_source import ParquetSource
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput

HEADER = "id,name,iban,age,visits,balance,rate,city,product,member,since,seen,note,churned"


def row(
    id_: str,
    *,
    age: str = "41",
    balance: str = "1",
    product: str = "loan",
    note: str = "fine",
    city: str = "Basel",
    member: str = "1",
    since: str = "2024-01-02",
    seen: str = "2024-01-02",
) -> str:
    return f"{id_},Ada,CH93,{age},3,{balance},0.5,{city},{product},{member},{since},{seen},{note},1"


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return path


def quarantined(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))[1:]


def test_good_file_is_loaded_typed_and_without_dropped_columns(
    tmp_path: Path, contract: Contract, store: Any
) -> None:
    path = write(
        tmp_path / "f.csv", row("a", seen="2024-01-02T03:04:05.678901+01:00"), row("b", since="", member="NO")
    )
    heard: list[int] = []
    report = ingest(CsvSource(path), "customers", contract, store, progress=heard.append)
    assert (report.rows_read, report.rows_loaded, report.rows_quarantined, report.findings) == (2, 2, 0, ())
    assert heard == [2]
    table = store.tables["customers"]
    assert "iban" not in table.column_names
    assert table.schema.field("age").type == pa.int64()
    assert table.schema.field("balance").type == pa.float64()
    assert table.column("since").to_pylist() == [date(2024, 1, 2), None]
    assert table.column("seen")[0].as_py() == datetime(2024, 1, 2, 2, 4, 5, 678901)
    assert table.column("member").to_pylist() == [True, False]


def test_bom_column_order_line_ends_and_many_line_cells(
    tmp_path: Path, contract: Contract, store: Any
) -> None:
    path = tmp_path / "f.csv"
    lines = ["minutes,id", '1,"two\r\nlines"', "", '2,"with "" quote"', "x,c"]
    path.write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    report = ingest(CsvSource(path), "visits", contract, store, quarantine=tmp_path / "q.csv")
    assert store.tables["visits"].column("id").to_pylist() == ["two\r\nlines", 'with " quote']
    assert report.findings[0].rows == (3,)  # the data row, not the line


def test_a_column_to_drop_may_be_absent(tmp_path: Path, contract: Contract, store: Any) -> None:
    path = tmp_path / "f.csv"
    header, line = HEADER.replace(",iban", ""), row("a").replace(",CH93", "")
    path.write_text(f"{header}\n{line}\n")
    assert ingest(CsvSource(path), "customers", contract, store).rows_loaded == 1


def test_clip_moves_numbers_and_categories_and_says_so(
    tmp_path: Path, contract: Contract, store: Any
) -> None:
    path = write(
        tmp_path / "f.csv",
        row("a", balance="-7", product="boat"),
        row("b", balance="5000"),
        row("c", balance="", product=""),
    )
    report = ingest(CsvSource(path), "customers", contract, store)
    table = store.tables["customers"]
    assert table.column("balance").to_pylist() == [0.0, 1000.5, None]
    assert table.column("product").to_pylist() == ["other", "loan", None]
    assert report.clipped == {"balance": 2, "product": 1}
    assert "column 'balance': 2 cells moved into their domain" in str(report)
    assert "column 'product': 1 cell moved into" in str(report)


@pytest.mark.parametrize(
    ("label", "cell"),
    [
        ({"type": "category", "categories": ["stays", "goes"], "positive": "goes"}, "perhaps"),
        ({"type": "integer", "bounds": [0, 1]}, "2"),
        ({"type": "integer", "bounds": [0, 5]}, "2"),
    ],
)
def test_a_label_is_never_clipped(label: dict[str, Any], cell: str, tmp_path: Path, store: Any) -> None:
    columns = [
        {"name": "id", "type": "string", "role": "customer_id"},
        {"name": "y", "role": "label", "out_of_domain": "clip", **label},
    ]
    contract = Contract.model_validate(
        {
            "version": 1,
            "name": "c",
            "purpose": "labels stay",
            "tables": [{"name": "customers", "columns": columns}],
        }
    )
    path = tmp_path / "f.csv"
    path.write_text(f"id,y\na,{cell}\n")
    with pytest.raises(LoadRefused, match="column 'y', bad-label: 1 row"):
        ingest(CsvSource(path), "customers", contract, type(store)(contract))


def test_findings_are_counted_with_the_first_ten_rows(
    tmp_path: Path, contract: Contract, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfumato.client.ingest.csv_source.BATCH_ROWS", 7)
    path = write(tmp_path / "f.csv", *(row(f"c{i}", age="x" if i % 2 else "20") for i in range(100)))
    with pytest.raises(LoadRefused) as caught:
        ingest(CsvSource(path), "customers", contract, store)
    (finding,) = caught.value.report.findings
    assert (finding.kind, finding.count) == (FaultKind.WRONG_TYPE, 50)
    assert finding.rows == tuple(range(2, 21, 2))
    assert "50 of 100 rows are bad" in str(caught.value)
    assert "50 rows (rows 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, …)" in str(caught.value)


@pytest.mark.usefixtures("file_system")
def test_quarantine_has_the_original_cells_and_only_its_owner_reads_it(
    tmp_path: Path, contract: Contract, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfumato.client.ingest.csv_source.BATCH_ROWS", 2)
    bad = row("b", age="seven", note="=cmd()", city="Atlantis")
    path = write(tmp_path / "f.csv", row("a"), bad, row("a", note="again"), "short,row", row("c"), row("a"))
    held = tmp_path / "held.csv"
    old = os.umask(0)
    try:
        report = ingest(CsvSource(path), "customers", contract, store, quarantine=held)
    finally:
        os.umask(old)
    assert stat.S_IMODE(held.stat().st_mode) == 0o600
    assert (report.rows_loaded, report.rows_quarantined) == (2, 4)
    assert store.tables["customers"].column("id").to_pylist() == ["a", "c"]
    by_row = {int(line[0]): line for line in quarantined(held)}
    assert sorted(by_row) == [2, 3, 4, 6]
    assert by_row[2][1:4] == [
        "age; city; note",
        "wrong-type; out-of-domain; formula",
        "a whole number within 64 bits; one of the contract's 3 categories; text that does not begin with = + - @",
    ]
    assert by_row[2][4:] == bad.replace("=cmd()", "'=cmd()").split(",")
    assert by_row[3][1:3] == ["id", "duplicate-customer"]
    assert by_row[3][4:] == row("a", note="again").split(",")
    assert by_row[4][1:3] == ["", "ragged-row"]
    assert by_row[4][4:] == ["short", "row"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.csv", "held.csv"]


def test_no_quarantine_file_without_a_bad_row(tmp_path: Path, contract: Contract, store: Any) -> None:
    path = write(tmp_path / "f.csv", row("a"))
    report = ingest(CsvSource(path), "customers", contract, store, quarantine=tmp_path / "q.csv")
    assert report.quarantine is None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("file_system")
def test_quarantine_never_overwrites(tmp_path: Path, contract: Contract, store: Any) -> None:
    path, held = write(tmp_path / "f.csv", row("a"), row("b", age="x")), tmp_path / "q.csv"
    held.write_text("mine")
    with pytest.raises(BadInput, match="a quarantine never overwrites a file"):
        ingest(CsvSource(path), "customers", contract, store, quarantine=held)
    assert held.read_text() == "mine"
    held.unlink()
    held.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="never overwrites"):
        ingest(CsvSource(path), "customers", contract, store, quarantine=held)
    assert store.opened == 0
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("file_system")
def test_quarantine_loses_a_race_for_its_name(tmp_path: Path, contract: Contract, store: Any) -> None:
    path, held = write(tmp_path / "f.csv", row("a"), row("b", age="x")), tmp_path / "q.csv"

    def intrude(_: int) -> None:
        held.write_text("mine")

    with pytest.raises(BadInput, match="never overwrites"):
        ingest(CsvSource(path), "customers", contract, store, quarantine=held, progress=intrude)
    assert held.read_text() == "mine"
    assert store.tables == {}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f.csv", "q.csv"]


def test_quarantine_in_no_directory(tmp_path: Path, contract: Contract, store: Any) -> None:
    path = write(tmp_path / "f.csv", row("a"))
    with pytest.raises(BadInput, match="the quarantine cannot be written"):
        ingest(CsvSource(path), "customers", contract, store, quarantine=tmp_path / "no" / "q.csv")


def test_no_good_row_is_refused_even_with_quarantine(tmp_path: Path, contract: Contract, store: Any) -> None:
    path = write(tmp_path / "f.csv", row("a", age="x"), row("b", age="y"))
    with pytest.raises(LoadRefused, match="No row is good"):
        ingest(CsvSource(path), "customers", contract, store, quarantine=tmp_path / "q.csv")
    assert store.tables == {}
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(params=["nameless", "hidden", "hidden-no-links"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with nameless files, one without, and one without hard links as well."""
    if request.param != "nameless":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    if request.param == "hidden-no-links":

        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
@pytest.mark.usefixtures("file_system")
def test_interrupted_load_leaves_nothing(
    error: type[BaseException],
    tmp_path: Path,
    contract: Contract,
    store: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sfumato.client.ingest.csv_source.BATCH_ROWS", 2)
    path = write(tmp_path / "f.csv", *(row(f"c{i}", age="x" if i % 3 else "20") for i in range(9)))

    def stop(rows: int) -> None:
        if rows >= 4:
            raise error

    with pytest.raises(error):
        ingest(CsvSource(path), "customers", contract, store, quarantine=tmp_path / "q.csv", progress=stop)
    assert store.opened == 1
    assert store.tables == {}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("file_system")
def test_failed_commit_takes_the_quarantine_back(tmp_path: Path, contract: Contract, store: Any) -> None:
    path = write(tmp_path / "f.csv", row("a"), row("b", age="x"))
    held = tmp_path / "q.csv"
    seen: list[bool] = []

    class Failing(type(store)):  # type: ignore[misc]
        @contextmanager
        def load(self, table: str, *, mode: str) -> Iterator[Any]:
            with super().load(table, mode=mode) as loader:
                yield loader
            seen.append(held.exists())
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        ingest(CsvSource(path), "customers", contract, Failing(contract), quarantine=held)
    assert seen == [True]
    assert list(tmp_path.iterdir()) == [path]


def test_file_that_changes_between_the_passes(tmp_path: Path, contract: Contract, store: Any) -> None:
    path = write(tmp_path / "f.csv", row("a"), row("a"))

    def change(_: int) -> None:
        write(path, row("z"), row("y"))
        os.utime(path, (1, 1))

    with pytest.raises(BadInput, match="changed while it was being read"):
        ingest(CsvSource(path), "customers", contract, store, quarantine=tmp_path / "q.csv", progress=change)
    assert store.tables == {}


def test_append_finds_customers_already_stored(tmp_path: Path, contract: Contract, store: Any) -> None:
    ingest(CsvSource(write(tmp_path / "1.csv", row("a"), row("b"))), "customers", contract, store)
    more = write(tmp_path / "2.csv", row("c"), row("b"))
    with pytest.raises(LoadRefused, match="duplicate-customer: 1 row \\(row 2\\)"):
        ingest(CsvSource(more), "customers", contract, store, mode="append")
    ingest(CsvSource(more), "customers", contract, store, mode="append", quarantine=tmp_path / "q.csv")
    assert store.tables["customers"].column("id").to_pylist() == ["a", "b", "c"]


def test_other_tables_may_repeat_a_customer(tmp_path: Path, contract: Contract, store: Any) -> None:
    path = tmp_path / "visits.tsv"
    path.write_text("id\tminutes\na\t1\na\t2.0\n")
    assert ingest(open_source(path), "visits", contract, store).rows_loaded == 2
    assert store.tables["visits"].column("minutes").to_pylist() == [1, 2]


def test_parquet_types_of_the_field(tmp_path: Path, contract: Contract, store: Any) -> None:
    frame = pd.DataFrame({"id": [7.0, 8.0], "name": pd.Categorical(["Ada", "Bob"])})
    table = pa.Table.from_pandas(frame, preserve_index=False)
    extra = {
        "age": pa.array([Decimal("20.00"), Decimal("30.00")], pa.decimal128(6, 2)),
        "visits": pa.array([3.0, None], pa.float64()),
        "balance": pa.array([Decimal("1.25"), None], pa.decimal256(50, 2)),
        "rate": pa.array([1.5, float("nan")], pa.float32()),
        "city": pa.array(["Zürich", None]).dictionary_encode(),
        "product": pa.array(["loan", "card"], pa.large_string()),
        "member": pa.array([1, 0], pa.int8()),
        "since": pa.array([datetime(2024, 1, 2, 23, 30), None], pa.timestamp("ns")),
        "seen": pa.array([datetime(2024, 1, 2, 23, 30), None], pa.timestamp("ms", "Europe/Zurich")),
        "note": pa.nulls(2),
        "churned": pa.array([True, False]),
    }
    for name, values in extra.items():
        table = table.append_column(name, values)
    pq.write_table(table, tmp_path / "f.parquet")
    ingest(ParquetSource(tmp_path / "f.parquet"), "customers", contract, store)
    loaded = store.tables["customers"].to_pydict()
    assert loaded["id"] == ["7", "8"]
    assert loaded["name"] == ["Ada", "Bob"]
    assert loaded["age"] == [20, 30]
    assert loaded["visits"] == [3, None]
    assert loaded["balance"] == [1.25, None]
    assert loaded["rate"] == [1.5, None]
    assert loaded["city"] == ["Zürich", None]
    assert loaded["member"] == [True, False]
    assert loaded["since"] == [date(2024, 1, 2), None]
    assert loaded["seen"] == [datetime(2024, 1, 2, 23, 30), None]  # the instant in UTC
    assert loaded["note"] == [None, None]
    assert loaded["churned"] == [1, 0]


def test_large_integers_keep_every_digit(tmp_path: Path, contract: Contract, store: Any) -> None:
    path = tmp_path / "visits.csv"
    numbers = [2**63 - 1, -(2**63), 2**53 + 1, 10**18]
    path.write_text(
        "id,minutes\n" + "".join(f"a,{n}\n" for n in numbers) + "a,000000000000000000000000000007\n"
    )
    ingest(CsvSource(path), "visits", contract, store)
    assert store.tables["visits"].column("minutes").to_pylist() == [*numbers, 7]


@pytest.mark.parametrize(
    "cell",
    [
        "-5",
        "+5",
        "-3.2e4",
        "-12%",
        "+41 79 123 45 67",
        "+41 (0)79/123-45.67",
        "-",
        "--",
        "",
        "a=b",
        "1-2",
        "'=1",
    ],
)
def test_not_a_formula(cell: str) -> None:
    assert not is_formula(cell)
    assert neutralise(cell) == cell


@pytest.mark.parametrize(
    "cell",
    [
        "=1",
        " =1",
        "\u00a0=1",
        "+A1",
        "-A1",
        "@x",
        "+41 79 x",
        "-2+3",
        "\tx",
        " \rx",
        "\nx",
        "＋1",
        "+1\n",
        "-5\n=1",
    ],
)
def test_formula(cell: str) -> None:
    assert is_formula(cell)
    assert neutralise(cell) == "'" + cell


def test_open_source_wants_one_thing(tmp_path: Path) -> None:
    for path, query in ((None, None), (tmp_path / "a.csv", "select 1")):
        with pytest.raises(BadInput, match="either a file or a PostgreSQL query"):
            open_source(path, query=query)
    assert sources.characters(1) == "1 character"
