"""The quality of the sample bank's data, of the same with faults put in, and of cell2cell where it is at hand."""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from analytics_harness import DATA, Case, Columns, Pairs, bank_columns, pooled, split

from sfumato.common.analyses import quality
from sfumato.common.analyses.domains import domain
from sfumato.common.contract import ColumnType, Contract, OutOfDomain, load_contract
from sfumato.lab.samplebank import generate

CELL2CELL = DATA / "cell2cell" / "cell2cell.parquet"
EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
BRANCHES = 16


def cases() -> Iterator[Case]:
    question = {"by": ["area", "channel"], "stale_days": 90}
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank")
        contract = load_contract(bank.contract)
        columns = _reads(contract, question)
        branches = bank_columns(bank, columns, Path(directory))
    yield Case(
        "sample bank", contract, "quality", question, branches, Truth(contract, question, branches).pairs
    )
    faulty = tuple(map(_faulty, branches))
    contract = _lenient(contract)
    yield Case(
        "sample bank, faults", contract, "quality", question, faulty, Truth(contract, question, faulty).pairs
    )
    if not CELL2CELL.exists():
        print("SKIPPED cell2cell: the data file is not beside the project")
        return
    contract = load_contract(EXAMPLES / "cell2cell" / "contract.toml")
    question = {"by": ["CreditRating"]}
    table = pq.read_table(CELL2CELL, columns=list(_reads(contract, question)))
    branches = split({name: _loaded(contract, name, table[name]) for name in table.column_names}, BRANCHES)
    yield Case(
        "cell2cell", contract, "quality", question, branches, Truth(contract, question, branches).pairs
    )


def _reads(contract: Contract, question: Mapping[str, Any]) -> tuple[str, ...]:
    return quality.build(quality.Question.model_validate(question), contract).columns


def _loaded(contract: Contract, name: str, values: pa.ChunkedArray) -> pa.Array:
    """As loading would clip it."""
    column, array = contract.customer_table.column(name), values.combine_chunks()
    if column.bounds is None or column.out_of_domain is not OutOfDomain.CLIP:
        return array
    number = np.clip(np.asarray(array.cast(pa.float64()).fill_null(np.nan)), *column.bounds)
    return pa.array(number, from_pandas=True)


# --- faults --------------------------------------------------------------------------------------------------


def _lenient(contract: Contract) -> Contract:
    """The same contract where areas may be missing, severities are clipped, and channels become other."""
    data = contract.model_dump(mode="json")
    for table in data["tables"]:
        for column in table["columns"]:
            if column["name"] in ("area", "balance"):
                column["nullable"] = True
            if column["name"] in ("severity", "channel"):
                column["out_of_domain"] = "clip"
    return Contract.model_validate(data)


def _faulty(columns: Columns) -> dict[str, Any]:
    """Some values gone, some others, some rows twice; which ones, by a fixed hash."""
    found = dict(columns)
    rows = len(found["area"])
    luck = np.array([int.from_bytes(hashlib.sha256(b"%d" % i).digest()[:4]) / 2**32 for i in range(rows)])
    found["area"] = pc.if_else(pa.array(luck < 0.07), None, found["area"].combine_chunks())
    found["channel"] = pc.if_else(
        pa.array((luck > 0.4) & (luck < 0.46)), "other", found["channel"].combine_chunks()
    )
    lists = found["accounts.balance"].to_pylist()
    for i in np.flatnonzero(luck > 0.9).tolist():
        lists[i] = [None, *lists[i][1:]]
    found["accounts.balance"] = pa.array(lists, found["accounts.balance"].type)
    twice = np.flatnonzero((luck > 0.5) & (luck < 0.6)).tolist()
    for name in [n for n in found if n.startswith("surveys.")]:
        lists = found[name].to_pylist()
        for i in twice:
            lists[i] = [v for v in lists[i] for _ in range(2)]
        found[name] = pa.array(lists, found[name].type)
    return found


# --- the truth -----------------------------------------------------------------------------------------------


class Truth:
    """Who has which problem, by pandas over rows put side by side."""

    def __init__(
        self, contract: Contract, question: Mapping[str, Any], branches: tuple[Columns, ...]
    ) -> None:
        self.contract, self.question = contract, question
        self.columns = pooled(branches)
        self.customers = len(next(iter(self.columns.values())))
        self.rows = {
            t.name: self._table(t.name)
            for t in contract.tables
            if any(n.startswith(f"{t.name}.") for n in self.columns)
        }
        self.groups = {"all customers": np.ones(self.customers, dtype=np.bool_)}
        for name in question["by"]:
            cells = domain(contract, name, 5)
            values = ["(none)" if v is None else str(v) for v in self.columns[name].to_pylist()]
            known = [v if v in cells.cells else "(other)" for v in values]
            self.groups |= {f"{name} {c}": np.array([v == c for v in known]) for c in cells.cells}
        self.found: dict[tuple[str, str], npt.NDArray[np.bool_]] = {}

    def _table(self, table: str) -> pd.DataFrame:
        names = [n for n in self.columns if n.startswith(f"{table}.")]
        frame = pd.DataFrame({n.partition(".")[2]: self.columns[n].to_pylist() for n in names})
        whole = frame.explode(list(frame.columns)).rename_axis("customer")
        empty = [not rows for rows in self.columns[names[0]].to_pylist()]
        return whole[~np.array(empty)[whole.index]].reset_index()

    def pairs(self, answer: Mapping[str, Any]) -> Pairs:
        yield "customers", answer["customers"], self.customers
        for part in answer["parts"]:
            for row in part["rows"]:
                column, problem, among = (*row["of"], "all customers")[:3]
                group = self.groups[among]
                count = int((self._flags(column, problem) & group).sum())
                yield f"{part['name']} customers", row["customers"], count
                yield f"{part['name']} share", row["share"], count / max(int(group.sum()), 1)

    def _flags(self, name: str, problem: str) -> npt.NDArray[np.bool_]:
        if (name, problem) not in self.found:
            self.found[name, problem] = self._look(*name.split(".", 1), problem)
        return self.found[name, problem]

    def _look(self, table: str, column: str, problem: str) -> npt.NDArray[np.bool_]:
        if table == self.contract.customers:
            values = pd.Series(self.columns[column].to_pylist(), dtype=object)
            return np.asarray(self._wrong(table, column, values, problem))
        rows = self.rows[table]
        flags = np.zeros(self.customers, dtype=np.bool_)
        if problem == "no rows":
            flags[rows["customer"]] = True
            return ~flags
        if problem == "repeated rows":
            flags[rows["customer"][rows.duplicated()]] = True
        elif problem == "stale":
            (time,) = (c.name for c in self.contract.table(table).columns if c.role == "time")
            newest = rows.groupby("customer")[time].max()
            assert self.contract.as_of is not None
            old = self.contract.as_of - timedelta(days=self.question["stale_days"])
            flags[newest.index[[d <= old for d in newest]]] = True
        else:
            flags[rows["customer"][self._wrong(table, column, rows[column], problem)]] = True
        return flags

    def _wrong(
        self, table: str, column: str, values: "pd.Series[Any]", problem: str
    ) -> npt.NDArray[np.bool_]:
        if problem == "missing":
            return np.asarray(values.isna())
        if problem == "after as_of":
            return np.array([v is not None and v > self.contract.as_of for v in values])
        declared = self.contract.table(table)
        if problem == "other":
            return np.array(
                [v is not None and v not in (declared.column(column).categories or ()) for v in values]
            )
        if declared.has(column):
            low, high = declared.column(column).bounds or (0.0, 0.0)
            assert declared.column(column).type in (ColumnType.INTEGER, ColumnType.NUMBER)
        else:
            (low, high) = next(f.bounds for f in self.contract.features if f.name == column)
        bound = low if problem == "at its lower bound" else high
        return np.array([v == bound for v in values])
