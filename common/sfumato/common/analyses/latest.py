"""Columns with one value a customer, whatever they are: of the customers table, a roll-up, or of another table.

Of another table ("loans.score", see listed.py) it is the value in the customer's newest row; who has no row there has
none. Columns of one table are of one row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sfumato.common.analyses.domains import Domain, column_domain, domain
from sfumato.common.analyses.listed import is_listed, listed
from sfumato.common.contract import NUMERIC, ZERO_WITHOUT_ROWS, ColumnType, Contract, Role
from sfumato.common.errors import BadInput

Floats = npt.NDArray[np.float64]


def latest(values: Any) -> pa.Array:
    """The column itself, or the first of each customer's list (null of an empty one)."""
    column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if not isinstance(column, pa.Array):
        column = pa.array(column, from_pandas=True)
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return column
    full = pc.fill_null(pc.greater(pc.list_value_length(column), 0), False)
    lists = pc.if_else(full, column, pa.scalar([None], column.type))
    return pc.list_element(lists, 0)


@dataclass(frozen=True)
class Groups:
    """A column's public cells, and each customer's among them."""

    cells: Domain

    @staticmethod
    def of(contract: Contract, name: str, bins: int) -> "Groups":
        """Raises BadInput on a column without public cells."""
        if is_listed(contract, name):
            return Groups(replace(column_domain(listed(contract, name).column, bins), name=name))
        return Groups(domain(contract, name, bins))

    @property
    def name(self) -> str:
        return self.cells.name

    def codes(self, columns: Mapping[str, Any]) -> npt.NDArray[np.int64]:
        """Int64 [n]; -1 for who is in none of the cells."""
        return self.cells.codes(latest(columns[self.name]))


@dataclass(frozen=True)
class Measure:
    """What a customer did, as a number in [low, high]; of what happens or not, 1 or 0."""

    name: str
    happens: bool
    low: float = 0.0
    high: float = 1.0
    whole: bool = False
    positive: str | None = None  # of a label that is a category

    @staticmethod
    def of(contract: Contract, name: str, key: str) -> "Measure":
        """Raises BadInput on what is neither yes or no nor a bounded number, and on what may be missing."""
        for f in contract.features:
            if f.name == name:
                if f.aggregate not in ZERO_WITHOUT_ROWS:
                    raise BadInput(
                        f"{key}: {name!r} is missing for customers without rows",
                        hint="Use a roll-up that is 0 for them: count, sum or distinct.",
                    )
                return Measure(name, False, *f.bounds, whole=f.aggregate.value != "sum")
        if is_listed(contract, name):
            column = listed(contract, name).column
        else:
            domain(contract, name, 2)  # says what is wrong with the name
            column = contract.customer_table.column(name)
        if column.nullable:
            raise BadInput(f"{key}: {name!r} may be missing", hint="It takes a column that is not nullable.")
        if column.type is ColumnType.BOOLEAN or column.role is Role.LABEL:
            return Measure(name, True, positive=column.positive)
        if column.type in NUMERIC and column.bounds is not None:
            return Measure(name, False, *column.bounds, whole=column.type is ColumnType.INTEGER)
        raise BadInput(
            f"{key}: {name!r} is neither yes or no nor a number with bounds",
            hint="Name a boolean, the label, a bounded number or a roll-up.",
        )

    def values(self, columns: Mapping[str, Any]) -> Floats:
        """Float64 [n] in [low, high]; NaN for who has none."""
        found = latest(columns[self.name])
        if self.positive is not None:
            found = pc.equal(found.cast(pa.string()), self.positive)
        if pa.types.is_boolean(found.type):
            found = found.cast(pa.int8())
        numbers = np.asarray(found.cast(pa.float64(), safe=False).fill_null(np.nan), dtype=np.float64)
        return np.asarray(np.clip(numbers, self.low, self.high))
