"""A customer's numbers between public bounds, and whether they are there: what can be added up and ordered."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.conditions import READABLE, comparable, names, plain_numbers
from sfumato.common.analyses.domains import Domain, domain
from sfumato.common.analyses.parts import Unit
from sfumato.common.contract import ZERO_WITHOUT_ROWS, Aggregate, ColumnType, Contract, Role
from sfumato.common.errors import BadInput
from sfumato.common.learners.quantiles import Grid

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Presence:
    """Whether a customer has a value in a column."""

    column: str
    known: Domain | None  # None: a number, or a day
    nullable: bool

    @classmethod
    def of(cls, contract: Contract, name: str) -> "Presence":
        """Raises BadInput on what cannot be analysed."""
        return cls(name, comparable(contract, name), _nullable(contract, name))

    def there(self, column: Any) -> npt.NDArray[np.bool_]:
        if self.known is None:
            return ~np.isnan(plain_numbers(column))
        codes = self.known.codes(column)
        return (codes >= 0) & (codes < len(names(self.known)))


@dataclass(frozen=True)
class Quantity:
    """A number of each customer between two public bounds; may be null. Of yes and no it is 1 and 0."""

    presence: Presence
    low: float
    high: float
    unit: Unit
    grid: Grid

    @property
    def column(self) -> str:
        return self.presence.column

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    def values(self, column: Any) -> Floats:
        """float64 [n] inside the bounds, null as NaN."""
        if self.presence.known is not None:
            codes = self.presence.known.codes(column).astype(np.float64)
            return np.where(self.presence.there(column), codes, np.nan)
        return np.clip(plain_numbers(column), self.low, self.high)

    @classmethod
    def of(cls, contract: Contract, name: str, low: float | None, high: float | None) -> "Quantity":
        """A column of the customers or a roll-up, brought between the contract's bounds and these.

        Raises BadInput on what is no bounded number, and on ends that leave nothing between them.
        """
        presence, found = Presence.of(contract, name), domain(contract, name, 2)
        if presence.known is not None:
            column = contract.customer_table.column(name)
            whole = column.role is Role.LABEL and column.type is ColumnType.INTEGER
            if not whole and column.type is not ColumnType.BOOLEAN:
                raise BadInput(
                    f"column {name!r} is no number: there is nothing to add up or to order",
                    hint="Group by it, and count.",
                )
            if low is not None or high is not None:
                raise BadInput(f"column {name!r} is yes or no: it has no ends to be cut at")
            return cls(presence, 0.0, 1.0, "share", Grid(0.0, 1.0, integer=True))
        assert found.spec.bounds is not None
        a, b = found.spec.bounds
        ends = max(a, a if low is None else low), min(b, b if high is None else high)
        if not ends[0] < ends[1]:
            raise BadInput(
                f"column {name!r} lies between {a:g} and {b:g}: nothing is left between those ends"
            )
        whole = found.spec.integer and all(e == int(e) for e in ends)
        return cls(presence, *ends, _unit(contract, name), Grid(*ends, found.spec.scale, whole))


def _unit(contract: Contract, name: str) -> Unit:
    for feature in contract.features:
        if feature.name == name:
            if feature.aggregate.value.startswith("days_since"):
                return "days"
            source = contract.table(feature.table)
            of_rows = feature.aggregate in (Aggregate.COUNT, Aggregate.DISTINCT) or feature.column is None
            amount = not of_rows and source.column(feature.column or "").role is Role.AMOUNT
            return "amount" if amount else "number"
    return "amount" if contract.customer_table.column(name).role is Role.AMOUNT else "number"


def _nullable(contract: Contract, name: str) -> bool:
    for feature in contract.features:
        if feature.name == name:
            return feature.aggregate not in ZERO_WITHOUT_ROWS
    return contract.customer_table.column(name).nullable


def any_column(contract: Contract) -> str:
    """One that can be read, so that customers can be counted where nothing else is asked. Raises BadInput."""
    for column in contract.customer_table.columns:
        if column.role in READABLE:
            return column.name
    if contract.features:
        return contract.features[0].name
    raise BadInput(f"contract {contract.name!r} has no column that can be analysed")
