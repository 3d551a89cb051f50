"""From a customer's columns to a model's inputs, by the contract alone.

Every number here comes from public bounds, edges, scales and category lists: no statistic of the data is
used, so encoding costs no epsilon. A null and an unknown category each have a code of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sfumato.common.canonical import content_hash
from sfumato.common.contract import DAYS_SINCE, Column, ColumnType, Contract, Feature, Role, Scale
from sfumato.common.errors import BadInput

Values: TypeAlias = Any  # a numpy array, pa.Array or pa.ChunkedArray; pyarrow brings no types
BOOLEAN_CATEGORIES = ("false", "true")
MOST_MONTHS = 60


@dataclass(frozen=True)
class FeatureSpec:
    """One model input: a category list, or a bounded number with its scale and (maybe) its public edges."""

    name: str
    categories: tuple[str, ...] | None = None
    bounds: tuple[float, float] | None = None
    scale: Scale = Scale.LINEAR
    edges: tuple[float, ...] | None = None
    integer: bool = False
    derived: bool = False

    @property
    def numeric(self) -> bool:
        return self.bounds is not None


@dataclass(frozen=True)
class Encoded:
    """Model inputs of n customers: int64 codes [n, F] and float32 numerics [n, G] in [-1, 1]; of a recurrent net also
    a float32 sequence [n, months, S] in [-1, 1], oldest month first."""

    codes: npt.NDArray[np.int64]
    numeric: npt.NDArray[np.float32]
    cardinalities: tuple[int, ...]
    sequence: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def inputs(self) -> tuple[npt.NDArray[Any], ...]:
        """What the net is called with, in order."""
        both = (self.codes, self.numeric)
        return both if self.sequence is None else (*both, self.sequence)

    def take(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "Encoded":
        """The same inputs for some of the customers (indices or a mask)."""
        sequence = None if self.sequence is None else self.sequence[rows]
        return Encoded(self.codes[rows], self.numeric[rows], self.cardinalities, sequence)


def model_features(contract: Contract) -> tuple[FeatureSpec, ...]:
    """The model's inputs in a fixed order: the customers' feature and amount columns, then the roll-ups."""
    columns = [c for c in contract.customer_table.columns if c.role in (Role.FEATURE, Role.AMOUNT)]
    return (*map(column_spec, columns), *map(rollup_spec, contract.features))


def chosen_features(
    contract: Contract, names: Sequence[str], *, numbers: bool = False
) -> tuple[FeatureSpec, ...]:
    """Those of a question's `columns`, in its order; all of the model's, or all of its `numbers`, if none is named.

    Raises BadInput on a column that is none of these, one named twice, and a contract without any.
    """
    known = {f.name: f for f in model_features(contract) if f.numeric or not numbers}
    wanted = tuple(names) or tuple(known)
    for name in wanted:
        if name not in known:
            raise BadInput(
                f"question.columns: {name!r} is no {'number' if numbers else 'model column'} that can be used",
                hint=f"Contract {contract.name!r} has: {', '.join(known) or 'none'}.",
            )
    if len(set(wanted)) < len(wanted) or not wanted:
        raise BadInput("question.columns: it takes columns, each named once")
    return tuple(known[n] for n in wanted)


def inputs_hash(contract: Contract) -> str:
    """Names what a model of this contract looks at, and what for: its columns and roll-ups as declared, name and
    purpose. Not the day (`as_of`), the label and the rest: another month's customers are the same sort of input."""
    columns = [c for c in contract.customer_table.columns if c.role in (Role.FEATURE, Role.AMOUNT)]
    return content_hash(
        {
            "name": contract.name,
            "purpose": contract.purpose,
            "columns": [c.model_dump(mode="json") for c in columns],
            "features": [f.model_dump(mode="json") for f in contract.features],
        }
    )


def column_spec(c: Column) -> FeatureSpec:
    """Of a column that is a category, a boolean or a bounded number."""
    if c.type is ColumnType.BOOLEAN:
        return FeatureSpec(c.name, categories=BOOLEAN_CATEGORIES)
    if c.type is ColumnType.CATEGORY:
        return FeatureSpec(c.name, categories=c.categories)
    return FeatureSpec(
        c.name, bounds=c.bounds, scale=c.scale, edges=c.edges, integer=c.type is ColumnType.INTEGER
    )


def rollup_spec(f: Feature) -> FeatureSpec:
    """Of a roll-up: always a bounded number."""
    whole = f.aggregate in ("count", "distinct", "days_since_last", "days_since_first")
    return FeatureSpec(f.name, bounds=f.bounds, scale=f.scale, edges=f.edges, integer=whole, derived=True)


@dataclass(frozen=True)
class Monthly:
    """A roll-up's values in the days (as_of - 30 (month + 1), as_of - 30 month], whatever its own `days` are; `month`
    counts from 0, the latest. As a column it is called "roll-up@month", which no column of a contract can be."""

    feature: str
    month: int

    DAYS: ClassVar[int] = 30

    @property
    def column(self) -> str:
        return f"{self.feature}@{self.month}"

    @staticmethod
    def parse(column: str) -> "Monthly | None":
        """The other way round; None for a column of another sort, or a month beyond MOST_MONTHS."""
        feature, at, month = column.rpartition("@")
        if not at or month not in map(str, range(MOST_MONTHS)):
            return None
        return Monthly(feature, int(month))


def monthly_specs(
    contract: Contract, names: Sequence[str], key: str = "model.sequence"
) -> tuple[FeatureSpec, ...]:
    """Of roll-ups to be read by month, as `key` of a job names them. Raises BadInput on one that cannot be: it needs
    an as_of, a time, and another aggregate than the days since a row."""
    rollups = {f.name: f for f in contract.features}
    for name in names:
        if name not in rollups:
            raise BadInput(
                f"{key}: {name!r} is no roll-up of contract {contract.name!r}",
                hint="Name some of its [[features]].",
            )
        feature = rollups[name]
        timed = contract.as_of is not None and contract.table(feature.table).with_role(Role.TIME)
        if not timed or feature.aggregate in DAYS_SINCE:
            raise BadInput(
                f"{key}: {name!r} cannot be read by month",
                hint="It takes the contract's as_of, a column of role time, and no days since a row.",
            )
    return tuple(rollup_spec(rollups[name]) for name in names)


def scaled(values: npt.NDArray[np.float64], scale: Scale) -> npt.NDArray[np.float64]:
    """The contract's scale: as it is, or sign(x) * log(1 + |x|)."""
    return np.sign(values) * np.log1p(np.abs(values)) if scale is Scale.LOG else values


def unscaled(unit: npt.NDArray[np.float64], spec: FeatureSpec) -> npt.NDArray[np.float64]:
    """From [-1, 1], as `number_codes` gives it, back to the number's own unit."""
    assert spec.bounds is not None
    low, high = scaled(np.array(spec.bounds), spec.scale)
    at = low + (unit + 1) / 2 * (high - low)
    return np.asarray(np.sign(at) * np.expm1(np.abs(at)) if spec.scale is Scale.LOG else at)


def bin_edges(spec: FeatureSpec, bins: int) -> npt.NDArray[np.float64]:
    """Inner cut points in the raw unit: the contract's edges, else `bins` bins of equal width when scaled.

    A whole number with no more values than `2 * bins` gets one bin a value. Raises ValueError on a category.
    """
    if spec.bounds is None:
        raise ValueError(f"{spec.name!r} is a category and has no bins")
    if spec.edges is not None:
        return np.array(spec.edges, dtype=np.float64)
    low, high = spec.bounds
    if spec.integer and high - low < 2 * bins:
        return np.arange(np.floor(low) + 0.5, high, 1.0)
    a, b = scaled(np.array([low, high], dtype=np.float64), spec.scale)
    cuts = np.linspace(a, b, bins + 1)[1:-1]
    return np.sign(cuts) * np.expm1(np.abs(cuts)) if spec.scale is Scale.LOG else cuts


class Encoder:
    """Encodes columns for the churn net. `bins` is the number of bins of a number without public edges; `sequence`
    are roll-ups to be read by month over the last `months`.

    Codes of a category: its place in the contract's list, then "other", then null. Of a number: its bin (a cut
    point belongs to the bin above it), then null. Numbers outside their bounds are clipped to them.
    """

    def __init__(
        self, contract: Contract, bins: int = 16, *, sequence: Sequence[str] = (), months: int = 0
    ) -> None:
        self.features = model_features(contract)
        self._monthly = [
            (spec, [Monthly(spec.name, m).column for m in reversed(range(months))])
            for spec in monthly_specs(contract, sequence)
        ]
        if not self.features:
            raise BadInput(
                f"contract {contract.name!r} has no column with role feature or amount",
                hint="A model needs at least one input: give the customers table a feature.",
            )
        self._edges = [bin_edges(f, bins) if f.numeric else None for f in self.features]
        self.cardinalities = tuple(
            len(f.categories or ()) + 2 if e is None else len(e) + 2
            for f, e in zip(self.features, self._edges, strict=True)
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """All that `transform` reads: the features, and `Monthly` columns."""
        return (*(f.name for f in self.features), *self.monthly)

    @property
    def monthly(self) -> tuple[str, ...]:
        """The `Monthly` columns among them."""
        return tuple(c for _, columns in self._monthly for c in columns)

    @property
    def numeric_count(self) -> int:
        """G: how many inputs are numbers."""
        return sum(f.numeric for f in self.features)

    def transform(self, columns: Mapping[str, Values]) -> Encoded:
        """Encode columns of equal length n, by name. Raises BadInput on a missing column or unequal lengths."""
        missing = [name for name in self.columns if name not in columns]
        if missing:
            raise BadInput(f"no column {missing[0]!r} to encode", hint="The contract names it as a feature.")
        lengths = {len(columns[name]) for name in self.columns}
        if len(lengths) != 1:
            raise BadInput("the columns to encode differ in length")
        n = lengths.pop()
        codes = np.empty((n, len(self.features)), dtype=np.int64)
        numeric = np.empty((n, self.numeric_count), dtype=np.float32)
        g = 0
        for i, (spec, edges) in enumerate(zip(self.features, self._edges, strict=True)):
            if edges is None:
                codes[:, i] = category_codes(columns[spec.name], spec.categories or ())
            else:
                codes[:, i], numeric[:, g] = number_codes(columns[spec.name], spec, edges)
                g += 1
        return Encoded(codes, numeric, self.cardinalities, self._sequence(n, columns))

    def _sequence(self, n: int, columns: Mapping[str, Values]) -> npt.NDArray[np.float32] | None:
        if not self._monthly:
            return None
        sequence = np.empty((n, len(self._monthly[0][1]), len(self._monthly)), dtype=np.float32)
        for s, (spec, names) in enumerate(self._monthly):
            for m, name in enumerate(names):
                sequence[:, m, s] = number_codes(columns[name], spec, np.zeros(0))[1]
        return sequence


def category_codes(values: Values, categories: Sequence[str]) -> npt.NDArray[np.int64]:
    """Each value's place in the list, then one code for any other, then one for null. Raises BadInput."""
    column = _arrow(values)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        raise BadInput("a category column holds fractions", hint="Ingest the data again under this contract.")
    column = column.cast(pa.string())
    code = {c: i for i, c in enumerate(categories)}
    distinct = column.dictionary_encode()
    table = np.array([code.get(v, len(categories)) for v in distinct.dictionary.to_pylist()] or [0])
    indices = distinct.indices
    null = np.asarray(indices.is_null())
    found = table[np.asarray(indices.fill_null(0), dtype=np.int64)]
    return np.where(null, len(categories) + 1, found).astype(np.int64)


def number_codes(
    values: Values, spec: FeatureSpec, edges: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Each number's bin, null after the last, and the number itself in [-1, 1] (0 for null)."""
    assert spec.bounds is not None
    number = np.asarray(_arrow(values).cast(pa.float64(), safe=False).fill_null(np.nan), dtype=np.float64)
    null = np.isnan(number)
    clipped = np.clip(np.where(null, spec.bounds[0], number), *spec.bounds)
    codes = np.where(null, len(edges) + 1, np.searchsorted(edges, clipped, side="right"))
    low, high = scaled(np.array(spec.bounds), spec.scale)
    unit = 2.0 * (scaled(clipped, spec.scale) - low) / (high - low) - 1.0
    return codes.astype(np.int64), np.where(null, 0.0, unit).astype(np.float32)


def _arrow(values: Values) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    if isinstance(values, pa.Array):
        return values
    return pa.array(values, from_pandas=True)
