"""Any valid table comes back the same from CSV and from Parquet; one flipped cell is found by its row."""

import contextlib
import csv
import math
import tempfile
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfumato.client.column_types import ARROW_TYPE
from sfumato.client.ingest.checks import stored_columns
from sfumato.client.ingest.csv_source import CsvSource
from sfumato.client.ingest.findings import LoadRefused
from sfumato.client.ingest.formula import formula_cells, is_formula
from sfumato.client.ingest.load import ingest
from sfumato.client.ingest.parquet_source import ParquetSource
from sfumato.common.contract import Column, ColumnType, Contract, OutOfDomain

CALM = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda s: not is_formula(s)
)


def cells(column: Column) -> st.SearchStrategy[Any]:
    """Valid values of a column, as Python objects."""
    low, high = column.bounds or (-1e12, 1e12)
    kinds: dict[ColumnType, st.SearchStrategy[Any]] = {
        ColumnType.STRING: TEXT,
        ColumnType.CATEGORY: st.sampled_from(column.categories or ("",)),
        ColumnType.INTEGER: st.integers(math.ceil(low), math.floor(high))
        if column.bounds
        else st.integers(-(2**63), 2**63 - 1),
        ColumnType.NUMBER: st.floats(low, high, allow_nan=False),
        ColumnType.BOOLEAN: st.booleans(),
        ColumnType.DATE: st.dates(),
        ColumnType.DATETIME: st.datetimes(),
    }
    strategy = st.integers(0, 1) if column.role == "label" else kinds[column.type]
    return st.one_of(st.none(), strategy) if column.nullable else strategy


@st.composite
def tables(draw: st.DrawFn, contract: Contract) -> dict[str, list[Any]]:
    columns = contract.customer_table.columns
    size = draw(st.integers(1, 12))
    whole = {c.name: draw(st.lists(cells(c), min_size=size, max_size=size)) for c in columns}
    key = contract.customer_table.customer_id.name
    whole[key] = draw(st.lists(TEXT, min_size=size, max_size=size, unique=True))
    return whole


def cell_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "FALSE"
    if isinstance(value, date):
        return value.isoformat()
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)


def write_csv(path: Path, table: dict[str, list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        writer.writerows([cell_text(v) for v in row] for row in zip(*table.values(), strict=True))


def write_parquet(path: Path, table: dict[str, list[Any]], contract: Contract) -> None:
    columns = contract.customer_table.columns
    arrays = [pa.array(table[c.name], ARROW_TYPE[c.type]) for c in columns]
    pq.write_table(pa.table(arrays, names=[c.name for c in columns]), path)


@pytest.fixture
def fresh(contract: Contract, store: Any) -> Any:
    @contextlib.contextmanager
    def make() -> Iterator[tuple[Path, Any]]:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder), type(store)(contract)

    return make


@CALM
@given(data=st.data())
def test_csv_and_parquet_load_the_same_rows(data: st.DataObject, contract: Contract, fresh: Any) -> None:
    table = data.draw(tables(contract))
    with fresh() as (folder, store):
        write_csv(folder / "t.csv", table)
        write_parquet(folder / "t.parquet", table, contract)
        columns = stored_columns(contract.customer_table)
        schema = pa.schema([(c.name, ARROW_TYPE[c.type]) for c in columns])
        expected = pa.table([pa.array(table[c.name], ARROW_TYPE[c.type]) for c in columns], schema=schema)
        for source in (CsvSource(folder / "t.csv"), ParquetSource(folder / "t.parquet")):
            report = ingest(source, "customers", contract, store, mode="replace")
            assert report.rows_loaded == expected.num_rows
            assert store.tables["customers"].equals(expected)


def spoilt(column: Column) -> list[str]:
    """Cells that are bad in this column, whatever else the row holds."""
    if column.type in (ColumnType.STRING, ColumnType.CATEGORY):
        bad = ["=ZQ!()", "@ZQ!"]
        reject = column.out_of_domain is OutOfDomain.REJECT
        return [*bad, "ZQ!"] if column.categories and reject else bad
    return ["ZQ!", "12ZQ!", "\0"] + ([] if column.nullable else [""])


@CALM
@given(data=st.data())
def test_a_flipped_cell_is_found_by_its_row(data: st.DataObject, contract: Contract, fresh: Any) -> None:
    table = data.draw(tables(contract))
    column = data.draw(st.sampled_from(stored_columns(contract.customer_table)))
    place = data.draw(st.integers(0, len(table["id"]) - 1))
    table[column.name][place] = data.draw(st.sampled_from(spoilt(column)))
    with fresh() as (folder, store):
        write_csv(folder / "t.csv", table)
        with pytest.raises(LoadRefused) as caught:
            ingest(CsvSource(folder / "t.csv"), "customers", contract, store)
        (finding,) = caught.value.report.findings
        assert (finding.column, finding.count, finding.rows) == (column.name, 1, (place + 1,))
        assert "ZQ!" not in str(caught.value)
        assert store.tables == {}


@CALM
@given(
    st.lists(st.text(st.sampled_from(" \t\r\n\u00a0\u3000=+-@＝＋19.,eE%()/Ax\0"), max_size=8), max_size=30)
)
def test_arrow_and_python_agree_on_formula_cells(cells: list[str]) -> None:
    mask = formula_cells(pa.array(cells, pa.string()))
    assert mask.to_pylist() == [is_formula(c) for c in cells]


@CALM
@given(
    st.lists(
        st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(str)
        | st.from_regex(
            r"\A[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9](:[0-6][0-9])?(Z|\+0[0-9]:00)?\Z"
        ),
        max_size=8,
    )
)
def test_datetimes_are_those_of_the_standard_library(texts: list[str]) -> None:
    """One text at a time in Python; a whole column at once in ours."""
    from datetime import UTC

    from sfumato.client.ingest.convert import convert

    def read(text: str) -> datetime | None:
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            return None
        try:
            return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found
        except OverflowError:
            return None

    converted = convert(ColumnType.DATETIME, pa.array(texts, pa.string()))
    try:
        values = converted.values.to_pylist()
    except OverflowError:  # a zone shifted the instant before the year 1, which Python cannot show
        return
    assert values == [read(t) for t in texts]
    bad = np.zeros(len(texts), np.bool_)
    for fault in converted.faults:
        bad |= fault.mask
    assert bad.tolist() == pc.is_null(converted.values).to_pylist()
