"""A column's public cells: where each of its values is counted, by the contract alone.

A category has one cell a value, a boolean and a label two or more, a bounded number its bins (the contract's edges,
else bins of equal width on the contract's scale, with cut points rounded for reading). `(other)` and `(none)`
have cells of their own wherever the contract lets them occur: every customer falls in exactly one cell.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sfumato.common.contract import (
    CLIPPED_CATEGORY,
    NUMERIC,
    ZERO_WITHOUT_ROWS,
    Column,
    ColumnType,
    Contract,
    OutOfDomain,
    Role,
)
from sfumato.common.errors import BadInput
from sfumato.common.learners.encoding import (
    FeatureSpec,
    Values,
    bin_edges,
    category_codes,
    column_spec,
    number_codes,
    rollup_spec,
)

OTHER, NONE = "(other)", "(none)"
BINARY = ("0", "1")
_UNCOUNTED = {
    Role.PII: "personal data",
    Role.CUSTOMER_ID: "the customer id",
    Role.TEXT: "free text, which only text analyses read",
}


@dataclass(frozen=True)
class Domain:
    """The cells of one column, in the order of their codes."""

    name: str
    cells: tuple[str, ...]
    spec: FeatureSpec
    edges: tuple[float, ...] = ()
    other: bool = False
    nullable: bool = False

    def codes(self, values: Values) -> npt.NDArray[np.int64]:
        """Each customer's cell, int64 [n]; -1 for what the contract rules out, so it counts nowhere.

        Raises BadInput on a category column that holds fractions.
        """
        if self.spec.numeric:
            known = len(self.edges) + 1
            codes, _ = number_codes(values, self.spec, np.array(self.edges))
        else:
            categories = self.spec.categories or ()
            known = len(categories) + self.other
            codes = category_codes(values, categories)
            codes = np.where(codes == len(categories) + 1, known, np.where(codes < known, codes, -1))
        return np.where(codes < known, codes, known if self.nullable else -1)


def domain(contract: Contract, name: str, bins: int) -> Domain:
    """The cells of a column of the customers table or of a roll-up; `bins` for a number without edges.

    Raises BadInput on personal data, the customer id, an undeclared name, and a column without public cells.
    """
    for feature in contract.features:
        if feature.name == name:
            return _numeric(rollup_spec(feature), bins, feature.aggregate not in ZERO_WITHOUT_ROWS)
    table = contract.customer_table
    if not table.has(name):
        raise BadInput(
            f"column {name!r} is not declared in table {table.name!r}, nor is it a roll-up",
            hint=f"Contract {contract.name!r} has: {', '.join(_analysable(contract)) or 'nothing to analyse'}.",
        )
    column = table.column(name)
    if column.role in _UNCOUNTED:
        raise BadInput(
            f"column {name!r} is {_UNCOUNTED[column.role]}",
            hint="No analysis can use it; choose features, amounts, the label or attributes.",
        )
    return column_domain(column, bins)


def column_domain(column: Column, bins: int) -> Domain:
    """The cells of a column, whose table ever it is of. Raises BadInput on one without public cells."""
    name = column.name
    if column.role is Role.LABEL and column.type is ColumnType.INTEGER:
        return Domain(name, BINARY, FeatureSpec(name, categories=BINARY))
    if column.type is ColumnType.BOOLEAN or column.categories is not None:
        return _categorical(column)
    if column.type in NUMERIC and column.bounds is not None:
        return _numeric(column_spec(column), bins, column.nullable)
    raise BadInput(
        f"column {name!r} has no public cells to count in ({column.type.value})",
        hint="Give it categories, or bounds if it is a number, in the contract.",
    )


def _analysable(contract: Contract) -> list[str]:
    columns = [c.name for c in contract.customer_table.columns if c.role not in _UNCOUNTED]
    return columns + [f.name for f in contract.features]


def _categorical(column: Column) -> Domain:
    spec = column_spec(column)
    categories = spec.categories or ()
    clipped = column.out_of_domain is OutOfDomain.CLIP and column.type is ColumnType.CATEGORY
    other = clipped and CLIPPED_CATEGORY not in categories
    cells = (*categories, *[OTHER] * other, *[NONE] * column.nullable)
    return Domain(column.name, cells, spec, other=other, nullable=column.nullable)


def _numeric(spec: FeatureSpec, bins: int, nullable: bool) -> Domain:
    assert spec.bounds is not None
    low, high = spec.bounds
    cuts = bin_edges(spec, bins).tolist()
    if spec.edges is None and not (spec.integer and high - low < 2 * bins):
        cuts = sorted({r for c in cuts if low < (r := _rounded(c, spec.integer)) < high})
    ends = [low, *cuts, high]
    cells = [_range(a, b, b == high, spec.integer) for a, b in pairwise(ends)]
    return Domain(spec.name, (*cells, *[NONE] * nullable), spec, tuple(cuts), nullable=nullable)


def _rounded(cut: float, integer: bool) -> float:
    """To three digits, so that a person can read it."""
    digits = 2 - math.floor(math.log10(abs(cut))) if cut else 0
    return float(round(cut, min(digits, 0) if integer else digits))


def _range(low: float, high: float, last: bool, integer: bool) -> str:
    """The lower end belongs to the bin; the upper one only to the last, or as the whole number before it."""
    if integer:
        low, high = math.ceil(low), math.floor(high) if last else math.ceil(high) - 1
    return _plain(low) if low == high else f"{_plain(low)} to {_plain(high)}"


def _plain(value: float) -> str:
    """At most ten digits, no exponent."""
    return f"{value:.0f}" if value == int(value) else np.format_float_positional(value, 10, trim="-")
