"""Conditions on a customer: a small typed tree over declared columns, in SQL's logic of three values.

A leaf compares one column with public values: categories of the contract, or numbers. A null makes a leaf neither
true nor false, and so can what stands above it be; only customers for whom the whole is true count (ISO/IEC 9075-2,
8.2 to 8.8). Dates are numbers of days since 1970-01-01.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.domains import Domain, domain
from sfumato.common.contract import Column, ColumnType, Contract, Role
from sfumato.common.errors import BadInput

MOST_LEAVES, MOST_DEEP, MOST_VALUES = 200, 40, 1000
PLAIN_NUMBERS = (ColumnType.INTEGER, ColumnType.NUMBER)
READABLE = (Role.FEATURE, Role.LABEL, Role.TIME, Role.AMOUNT, Role.BRANCH, Role.ATTRIBUTE)
DAYS = (ColumnType.DATE, ColumnType.DATETIME)
DAY_IN_MICROSECONDS = 86_400_000_000

Mask = npt.NDArray[np.bool_]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Among(_Node):
    """The value is one of these cells of the column's domain."""

    kind: Literal["among"] = "among"
    column: str
    values: tuple[str, ...] = Field(min_length=1, max_length=MOST_VALUES)


class Between(_Node):
    """The number lies between these ends, each of them inside unless said to be open; None is no end."""

    kind: Literal["between"] = "between"
    column: str
    low: Finite | None = None
    high: Finite | None = None
    low_open: bool = False
    high_open: bool = False


class Missing(_Node):
    """The value is null."""

    kind: Literal["missing"] = "missing"
    column: str


class Not(_Node):
    kind: Literal["not"] = "not"
    of: "Condition"


class Every(_Node):
    kind: Literal["every"] = "every"
    of: tuple["Condition", ...] = Field(min_length=1, max_length=MOST_LEAVES)


class Some(_Node):
    kind: Literal["some"] = "some"
    of: tuple["Condition", ...] = Field(min_length=1, max_length=MOST_LEAVES)


Leaf: TypeAlias = Among | Between | Missing
Condition = Annotated[Among | Between | Missing | Not | Every | Some, Field(discriminator="kind")]
Tree: TypeAlias = Among | Between | Missing | Not | Every | Some
for _node in (Not, Every, Some):
    _node.model_rebuild()


@dataclass(frozen=True)
class Decided:
    """Of whom it is true, and of whom false: neither where a null decides. Over what may be: of whom it can be."""

    true: Mask
    false: Mask


def decide(tree: Tree, leaf: Callable[[Leaf], Decided]) -> Decided:
    """The whole, from its leaves."""
    match tree:
        case Not():
            found = decide(tree.of, leaf)
            return Decided(found.false, found.true)
        case Every() | Some():
            parts = [decide(part, leaf) for part in tree.of]
            trues, falses = [p.true for p in parts], [p.false for p in parts]
            every = isinstance(tree, Every)
            return Decided(
                np.logical_and.reduce(trues) if every else np.logical_or.reduce(trues),
                np.logical_or.reduce(falses) if every else np.logical_and.reduce(falses),
            )
    return leaf(tree)


def leaves(tree: Tree, deep: int = 0) -> Iterator[Leaf]:
    """Raises BadInput on a tree that is deeper than MOST_DEEP."""
    if deep > MOST_DEEP:
        raise BadInput(f"question.where: more than {MOST_DEEP} conditions inside each other")
    match tree:
        case Not():
            yield from leaves(tree.of, deep + 1)
        case Every() | Some():
            for part in tree.of:
                yield from leaves(part, deep + 1)
        case _:
            yield tree


@dataclass(frozen=True)
class Filter:
    """A condition, checked against a contract; None lets everybody through."""

    tree: Tree | None
    domains: Mapping[str, Domain | None]  # None: compared as numbers

    @classmethod
    def of(cls, contract: Contract, tree: Tree | None) -> "Filter":
        """Raises BadInput on a column that is not declared or not to be used, on a value that the contract does not
        name, and on too large a tree."""
        asked = [] if tree is None else list(leaves(tree))
        if len(asked) > MOST_LEAVES:
            raise BadInput(f"question.where: more than {MOST_LEAVES} comparisons")
        domains = {leaf.column: comparable(contract, leaf.column) for leaf in asked}
        for leaf in asked:
            known = domains[leaf.column]
            if isinstance(leaf, Among) and (known is None or not set(leaf.values) <= set(names(known))):
                raise BadInput(
                    f"question.where: column {leaf.column!r} has no such value in the contract",
                    hint=f"It has: {', '.join(names(known))}." if known else "It is compared as a number.",
                )
            if isinstance(leaf, Between) and known is not None:
                raise BadInput(
                    f"question.where: column {leaf.column!r} has names, which have no order",
                    hint=f"Compare by = or IN with: {', '.join(names(known))}.",
                )
        return cls(tree, domains)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.domains)

    def mask(self, columns: Mapping[str, Any], rows: int) -> Mask:
        """Of which customers it is true, bool [rows]."""
        if self.tree is None:
            return np.ones(rows, dtype=np.bool_)
        return decide(self.tree, lambda leaf: self._leaf(leaf, columns[leaf.column])).true

    def _leaf(self, leaf: Leaf, values: Any) -> Decided:
        known = self.domains[leaf.column]
        if known is not None:
            return _of_cells(leaf, known, known.codes(values))
        numbers = plain_numbers(values)
        null = np.isnan(numbers)
        if isinstance(leaf, Missing):
            return Decided(null, ~null)
        assert isinstance(leaf, Between)
        true = ~null
        if leaf.low is not None:
            true &= numbers > leaf.low if leaf.low_open else numbers >= leaf.low
        if leaf.high is not None:
            true &= numbers < leaf.high if leaf.high_open else numbers <= leaf.high
        return Decided(true, ~true & ~null)

    def cells(self, column: Domain) -> Mask:
        """Which cells of this column a customer of whom it is true can be in, bool [cells]: all, as far as the
        condition says nothing of names."""
        everywhere = np.ones(len(column.cells), dtype=np.bool_)
        if self.tree is None or column.spec.numeric:
            return everywhere

        def leaf(asked: Leaf) -> Decided:
            if asked.column != column.name:
                return Decided(everywhere, everywhere)
            return _of_cells(asked, column, np.arange(len(column.cells)))

        return decide(self.tree, leaf).true


def _of_cells(leaf: Leaf, known: Domain, codes: npt.NDArray[np.int64]) -> Decided:
    null = codes == len(names(known))
    if isinstance(leaf, Missing):
        return Decided(null, ~null)
    assert isinstance(leaf, Among)
    true = np.isin(codes, [known.cells.index(v) for v in leaf.values])
    return Decided(true, ~true & ~null & (codes >= 0))


def names(column: Domain) -> tuple[str, ...]:
    """Its cells but the one for null."""
    return column.cells[: len(column.cells) - column.nullable]


def comparable(contract: Contract, name: str) -> Domain | None:
    """The names that a column can have, or None if it is compared as a number (a date by its day).

    Raises BadInput on personal data, the customer id, an undeclared name, and text without a public list.
    """
    table = contract.customer_table
    column = table.column(name) if table.has(name) else None
    if column is not None and _compared_as_number(column):
        return None
    found = domain(contract, name, 2)
    return None if found.spec.numeric else found


def _compared_as_number(column: Column) -> bool:
    if column.role not in READABLE:
        return False
    return column.type in DAYS or (column.type in PLAIN_NUMBERS and column.role is not Role.LABEL)


def plain_numbers(values: Any) -> npt.NDArray[np.float64]:
    """float64 [n], null as NaN; of dates and times the days since 1970-01-01."""
    column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if not isinstance(column, pa.Array):
        column = pa.array(column, from_pandas=True)
    days = 1.0
    if pa.types.is_temporal(column.type):
        column, days = column.cast(pa.timestamp("us")).cast(pa.int64()), float(DAY_IN_MICROSECONDS)
    found = column.cast(pa.float64(), safe=False).fill_null(np.nan)
    return np.asarray(found, dtype=np.float64) / days
