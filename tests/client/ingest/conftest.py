"""A contract with a column of every type and protection, and a store in memory that keeps its promises."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from sfumato.common.contract import Contract


class MemoryLoader:
    def __init__(self, key: str | None, known: set[object]) -> None:
        self.key = key
        self.known = known
        self.parts: list[pa.Table] = []
        self.numbers: list[int] = []
        self.discarded: list[int] = []

    def append(self, rows: pa.Table, row_numbers: npt.NDArray[np.int64]) -> None:
        assert row_numbers.dtype == np.int64
        assert rows.num_rows == len(row_numbers) > 0
        self.parts.append(rows)
        self.numbers += row_numbers.tolist()

    def duplicate_rows(self) -> list[int]:
        if self.key is None or not self.parts:
            return []
        seen, repeated = set(self.known), []
        keys = pa.concat_tables(self.parts).column(self.key).to_pylist()
        for number, key in zip(self.numbers, keys, strict=True):
            if key in seen:
                repeated.append(number)
            seen.add(key)
        return repeated

    def discard(self, row_numbers: Sequence[int]) -> None:
        self.discarded += row_numbers

    def table(self) -> pa.Table:
        whole = pa.concat_tables(self.parts)
        return whole.filter(pa.array(~np.isin(self.numbers, self.discarded)))


class MemoryStore:
    """`tables` holds what was committed; a load that ends in an exception leaves it as it was."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.tables: dict[str, pa.Table] = {}
        self.opened = 0

    @contextmanager
    def load(self, table: str, *, mode: str) -> Iterator[MemoryLoader]:
        self.opened += 1
        key = self.contract.table(table).customer_id.name if table == self.contract.customers else None
        stored = self.tables.get(table) if mode == "append" else None
        known = set(stored.column(key).to_pylist()) if stored is not None and key else set()
        loader = MemoryLoader(key, known)
        yield loader
        fresh = loader.table()
        self.tables[table] = fresh if stored is None else pa.concat_tables([stored, fresh])


COLUMNS: list[dict[str, Any]] = [
    {"name": "id", "type": "string", "role": "customer_id"},
    {"name": "name", "type": "string", "role": "pii", "protection": "encrypt"},
    {"name": "iban", "type": "string", "role": "pii", "protection": "drop"},
    {"name": "age", "type": "integer", "role": "feature", "bounds": (18, 100)},
    {"name": "visits", "type": "integer", "nullable": True},
    {
        "name": "balance",
        "type": "number",
        "role": "amount",
        "bounds": (0, 1000.5),
        "nullable": True,
        "out_of_domain": "clip",
    },
    {"name": "rate", "type": "number", "nullable": True},
    {
        "name": "city",
        "type": "category",
        "role": "feature",
        "categories": ("Basel", "Zürich", "other"),
        "nullable": True,
    },
    {
        "name": "product",
        "type": "category",
        "role": "feature",
        "categories": ("loan", "card"),
        "out_of_domain": "clip",
        "nullable": True,
    },
    {"name": "member", "type": "boolean", "nullable": True},
    {"name": "since", "type": "date", "role": "time", "nullable": True},
    {"name": "seen", "type": "datetime", "nullable": True},
    {"name": "note", "type": "string", "nullable": True},
    {"name": "churned", "type": "integer", "role": "label"},
]


@pytest.fixture(scope="session")
def contract() -> Contract:
    visits = {
        "name": "visits",
        "columns": [
            {"name": "id", "type": "string", "role": "customer_id"},
            {"name": "minutes", "type": "integer", "nullable": True},
        ],
    }
    customers = {"name": "customers", "columns": COLUMNS}
    return Contract.model_validate(
        {"version": 1, "name": "test", "purpose": "tests of ingest", "tables": [customers, visits]}
    )


@pytest.fixture
def store(contract: Contract) -> MemoryStore:
    return MemoryStore(contract)
