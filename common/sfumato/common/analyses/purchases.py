"""What customers bought, from the rows of one table: days with a purchase, and what was spent on each.

A purchase is a day with a row that counts (several on one day are one). Amounts count without their sign. All that
lifetime models look at is in four numbers a customer: repeat purchases x, days from the first to the last t_x, days
from the first to today T, and m, the mean of the repeat purchases' amounts (Fader, Hardie & Lee 2005).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.listed import Listed, listed
from sfumato.common.contract import NUMERIC, Column, ColumnType, Contract, Role
from sfumato.common.errors import BadInput
from sfumato.common.learners.lifetime import Histories

BOOLEANS = ("false", "true")

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Source(BaseModel):
    """Where purchases are found: the column of their dates, `amount` and `where` in the same table; rows older than
    `history` days are passed over."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    purchases: Annotated[str, Field(min_length=3)]
    amount: str | None = None
    where: dict[str, str] = Field(default_factory=dict, max_length=8)
    history: int = Field(default=730, ge=30, le=7300)


@dataclass(frozen=True)
class Purchases:
    """A source, checked against a contract."""

    source: Source
    dates: Listed
    amounts: Listed | None
    conditions: tuple[tuple[Listed, str], ...]
    today: date

    @staticmethod
    def of(source: Source, contract: Contract) -> "Purchases":
        """Raises BadInput on what is not declared, columns of several tables, and a contract without as_of."""
        if contract.as_of is None:
            raise BadInput(
                f"contract {contract.name!r} has no as_of",
                hint="Lifetime is reckoned from a day: give the contract one.",
            )
        dates = listed(contract, source.purchases)
        first = [c.name for c in dates.table.with_role(Role.TIME)[:1]]
        if dates.column.type not in (ColumnType.DATE, ColumnType.DATETIME) or dates.column.name not in first:
            raise BadInput(
                f"question.purchases: {dates.name!r} is not the time of its table",
                hint="Name a date or datetime of role time, such as transactions.date.",
            )
        amounts = listed(contract, source.amount) if source.amount else None
        if amounts and (amounts.column.type not in NUMERIC or amounts.column.bounds is None):
            raise BadInput(f"question.amount: {amounts.name!r} is no number with bounds")
        conditions = tuple(
            _condition(contract, dates.table.name, name, value) for name, value in source.where.items()
        )
        if amounts and amounts.table.name != dates.table.name:
            raise BadInput(f"question.amount: {amounts.name!r} is of another table than {dates.name!r}")
        return Purchases(source, dates, amounts, conditions, contract.as_of)

    @property
    def columns(self) -> tuple[str, ...]:
        others = [self.amounts] if self.amounts else []
        return tuple(dict.fromkeys(c.name for c in [self.dates, *others, *(w for w, _ in self.conditions)]))

    @property
    def most(self) -> float:
        """No row's amount is above this."""
        assert self.amounts is not None and self.amounts.column.bounds is not None
        return float(max(map(abs, self.amounts.column.bounds)))

    def read(self, columns: Mapping[str, Any]) -> tuple[Ints, Histories]:
        """The rows of those who bought, int64 [n], and their histories. Raises ValueError on lists that do not run
        side by side."""
        lists = {name: _lists(columns[name]) for name in self.columns}
        lengths = {name: np.asarray(pc.list_value_length(v).fill_null(0)) for name, v in lists.items()}
        size = lengths[self.dates.name]
        if any(not np.array_equal(size, other) for other in lengths.values()):
            raise ValueError("Expected lists of one length a customer.")
        customer = np.repeat(np.arange(len(size)), size)
        ago = _days_ago(lists[self.dates.name].flatten(), self.today)
        counts = (ago >= 0) & (ago <= self.source.history)
        for column, value in self.conditions:
            counts &= _equal(lists[column.name].flatten(), column.column, value)
        spent = np.zeros(len(ago))
        if self.amounts:
            spent = np.abs(_floats(lists[self.amounts.name].flatten()))
            spent = np.minimum(np.nan_to_num(spent), self.most)
        return _histories(customer[counts], ago[counts].astype(np.int64), spent[counts], self.source.history)


def _condition(contract: Contract, table: str, name: str, value: str) -> tuple[Listed, str]:
    found = listed(contract, f"{table}.{name}")
    known = BOOLEANS if found.column.type is ColumnType.BOOLEAN else found.column.categories or ()
    if value not in known:
        raise BadInput(
            f"question.where: {found.name!r} is never {value!r}",
            hint=f"It is one of: {', '.join(known)}." if known else "Name a category or a boolean.",
        )
    return found, value


def _histories(customer: Ints, ago: Ints, spent: Floats, history: int) -> tuple[Ints, Histories]:
    """Of these rows, day by day and then customer by customer."""
    days, day = np.unique(customer * (history + 1) + ago, return_inverse=True)
    by_day = np.bincount(day, spent, minlength=len(days))
    who, of, times = np.unique(days // (history + 1), return_inverse=True, return_counts=True)
    ends = np.cumsum(times) - 1  # the longest ago comes last
    first, last = (days % (history + 1))[ends], (days % (history + 1))[ends - times + 1]
    value = np.bincount(of, by_day, minlength=len(who)).astype(np.float64)
    x = (times - 1).astype(np.float64)
    m = np.divide(value - by_day[ends], x, out=np.zeros(len(who)), where=x > 0)
    return who, Histories(x, (first - last).astype(np.float64), first.astype(np.float64), m, value)


def _lists(values: Any) -> pa.Array:
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(array, pa.ChunkedArray):  # of no chunk at all
        array = pa.array([], array.type)
    return array


def _days_ago(values: pa.Array, today: date) -> Floats:
    """NaN where there is no date."""
    days = values.cast(pa.timestamp("s"), safe=False).cast(pa.date32()).cast(pa.int32())
    return (today - date(1970, 1, 1)).days - _floats(days)


def _floats(values: pa.Array) -> Floats:
    return np.asarray(values.cast(pa.float64()).fill_null(np.nan), dtype=np.float64)


def _equal(values: pa.Array, column: Column, value: str) -> npt.NDArray[np.bool_]:
    wanted = pa.scalar(value == "true") if column.type is ColumnType.BOOLEAN else pa.scalar(value)
    if pa.types.is_dictionary(values.type):
        values = values.cast(pa.string())
    return np.asarray(pc.equal(values, wanted).fill_null(False))
