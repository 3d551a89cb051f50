"""What can be wrong with data that has been loaded: yes or no for each customer, by the contract alone.

Loading refuses what does not parse, a missing value where the contract has none, and what lies outside its domain
unless the contract clips; a customer stands once in the customers table. What is left to find is here: a value that
the contract lets be missing, one that was cut to its bound or became "other", a date after the contract's day, rows
that repeat one another, customers without rows, and customers whose last row is old.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sfumato.common.contract import (
    CLIPPED_CATEGORY,
    NUMERIC,
    ZERO_WITHOUT_ROWS,
    Aggregate,
    Column,
    ColumnType,
    Contract,
    Feature,
    OutOfDomain,
    Role,
    Table,
)

Mask = npt.NDArray[np.bool_]
Problem = Literal[
    "missing",
    "at its lower bound",
    "at its upper bound",
    "other",
    "after as_of",
    "no rows",
    "stale",
    "repeated rows",
]
UNREAD = (Role.PII, Role.CUSTOMER_ID, Role.TEXT)
ROWS = "(rows)"  # what a problem of a whole table is of
DATES = (ColumnType.DATE, ColumnType.DATETIME)


@dataclass(frozen=True)
class Check:
    """One problem of one column. `reads` are the columns of the customer frame that tell; `listed`: of another table,
    where one row of a customer is enough. `limit` is the bound, the day, or the categories."""

    table: str
    column: str
    problem: Problem
    reads: tuple[str, ...]
    listed: bool = False
    limit: Any = None

    @property
    def name(self) -> str:
        return f"{self.table}.{self.column}"

    @property
    def meaning(self) -> str:
        """What it is that these customers have."""
        row = "a row with " if self.listed else ""
        match self.problem:
            case "no rows":
                return "no row at all"
            case "stale":
                return f"no row from {self.limit} on, but older ones"
            case "repeated rows":
                return "rows that are the same in all that can be read"
            case "missing":
                return f"{row}no value"
            case "other":
                return f"{row}a value that is not on the contract's list"
            case "after as_of":
                return f"{row}a day after {self.limit}"
        return f"{row}{self.limit:g}, where values are cut"

    def found(self, columns: Mapping[str, Any]) -> Mask:
        """Whose data have the problem, [n]."""
        customers = len(columns[self.reads[0]])
        if not self.listed:
            return self._values(_array(columns[self.reads[0]]))
        lists = [_array(columns[name]) for name in self.reads]
        if self.problem == "no rows":
            return np.asarray(pc.equal(pc.list_value_length(lists[0]), 0))
        whose = np.asarray(pc.list_parent_indices(lists[0])).astype(np.int64)
        rows = [pc.list_flatten(values) for values in lists]
        if self.problem == "repeated rows":
            return _marked(_repeated(whose, rows), customers)
        if self.problem == "stale":
            fresh = _marked(whose[~_older(rows[0], self.limit)], customers)
            return _marked(whose, customers) & ~fresh
        return _marked(whose[self._values(rows[0])], customers)

    def _values(self, values: pa.Array) -> Mask:
        match self.problem:
            case "missing":
                return np.asarray(values.is_null())
            case "other":
                known = pc.is_in(values.cast(pa.string()), value_set=pa.array(self.limit, pa.string()))
                return np.asarray(pc.and_(pc.invert(known), values.is_valid()))
            case "after as_of":
                late = ~_older(values, self.limit + timedelta(days=1))
                return np.asarray(late & np.asarray(values.is_valid()))
        number = np.asarray(values.cast(pa.float64(), safe=False).fill_null(np.nan), dtype=np.float64)
        beyond = number <= self.limit if self.problem == "at its lower bound" else number >= self.limit
        return np.asarray(beyond)


def checks(contract: Contract, table: str, stale_days: int) -> Iterator[Check]:
    """All that can be found in one table; with the customers also in the roll-ups."""
    declared = contract.table(table)
    readable = [c for c in declared.columns if c.role not in UNREAD]
    if table == contract.customers:
        for column in readable:
            yield from _of_column(contract, declared, column, column.name)
        for feature in contract.features:
            yield from _of_rollup(contract, feature)
        return
    if not readable:
        return
    names = tuple(f"{table}.{c.name}" for c in readable)
    times = [f"{table}.{c.name}" for c in declared.with_role(Role.TIME)[:1]]
    yield Check(table, ROWS, "no rows", names[:1], True)
    if times and contract.as_of is not None:
        since = contract.as_of - timedelta(days=stale_days - 1)
        yield Check(table, ROWS, "stale", tuple(times), True, since)
    yield Check(table, ROWS, "repeated rows", names, True)
    for column, name in zip(readable, names, strict=True):
        if (
            name not in times or contract.as_of is None
        ):  # rows without a time, or of a later one, are not used at all
            yield from _of_column(contract, declared, column, name)


def _of_column(contract: Contract, table: Table, column: Column, name: str) -> Iterator[Check]:
    listed = table.name != contract.customers

    def check(problem: Problem, limit: Any = None) -> Check:
        return Check(table.name, column.name, problem, (name,), listed, limit)

    if column.nullable:
        yield check("missing")
    if column.type in DATES and contract.as_of is not None:
        yield check("after as_of", contract.as_of)
    if column.out_of_domain is not OutOfDomain.CLIP or column.role is Role.LABEL:
        return
    if column.categories is not None and CLIPPED_CATEGORY not in column.categories:
        yield check("other", column.categories)
    if column.bounds is not None and column.type in NUMERIC:
        low, high = column.bounds
        if column.type is ColumnType.INTEGER:
            low, high = math.ceil(low), math.floor(high)
        yield from _bounds(check, low, high)


def _bounds(check: Callable[[Problem, Any], Check], low: float, high: float) -> Iterator[Check]:
    """A bound of 0 is where the numbers end by themselves: nobody could tell a real 0 from a cut one."""
    if low:
        yield check("at its lower bound", low)
    if high:
        yield check("at its upper bound", high)


def _of_rollup(contract: Contract, feature: Feature) -> Iterator[Check]:
    """A roll-up is cut to its bounds by each branch; not where what it is made of cannot reach them."""

    def check(problem: Problem, limit: Any = None) -> Check:
        return Check(contract.customers, feature.name, problem, (feature.name,), False, limit)

    if feature.aggregate not in ZERO_WITHOUT_ROWS:
        yield check("missing")
    low, high = feature.bounds
    source = contract.table(feature.table).column(feature.column) if feature.column else None
    if feature.aggregate in (Aggregate.MEAN, Aggregate.MIN, Aggregate.MAX) and source and source.bounds:
        low = 0.0 if source.bounds[0] >= low else low
        high = 0.0 if source.bounds[1] <= high else high
    if feature.aggregate is Aggregate.DISTINCT and source and source.categories:
        clipped = source.out_of_domain is OutOfDomain.CLIP
        high = 0.0 if len(source.categories) + clipped <= high else high
    yield from _bounds(check, low, high)


def _array(values: Any) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    return values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)


def _older(values: pa.Array, day: date) -> Mask:
    """Before that day; a missing day is older than any."""
    days = values.cast(pa.date32()).cast(pa.int32()).fill_null(-(2**31))
    return np.asarray(days) < (day - date(1970, 1, 1)).days


def _marked(whose: npt.NDArray[np.int64], customers: int) -> Mask:
    return np.asarray(np.bincount(whose, minlength=customers) > 0)


def _repeated(whose: npt.NDArray[np.int64], rows: list[pa.Array]) -> npt.NDArray[np.int64]:
    """Customers, once for every row that equals another of theirs in all columns."""
    codes = [np.asarray(r.dictionary_encode().indices.fill_null(-1), dtype=np.int64) for r in rows]
    order = np.lexsort((*codes, whose))
    same = np.ones(max(len(order) - 1, 0), dtype=np.bool_)
    for code in (*codes, whose):
        same &= code[order][1:] == code[order][:-1]
    return whose[order][1:][same]
