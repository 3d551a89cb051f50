"""A frozen schema: the bins of every feature with their noisy counts, as a public artefact.

It is what the schema round answered (learners.schema), in JSON. Whoever holds it can turn columns into codes, the
same at every branch; it knows no data and no contract but by its hash.
"""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, FiniteFloat, model_validator

from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.learners.encoding import category_codes, model_features

MOST_BINS = 10_000


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Column(_Frozen):
    """One feature: its bins with noisy counts, of all and of the positives, and the noise's std a bin.

    A number has `cuts` (each belongs to the bin above it), a category the bin of each value. `other` and `null` say
    where an unknown category and a null fall; null may have a bin of its own, after the others of a number.
    """

    name: str
    cuts: tuple[FiniteFloat, ...] | None = None
    categories: dict[str, int] | None = None
    other: int | None = None
    null: int
    counts: tuple[FiniteFloat, ...]
    positives: tuple[FiniteFloat, ...] | None = None
    stds: tuple[FiniteFloat, ...]

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        bins = len(self.counts)
        if not 1 <= bins <= MOST_BINS or len(self.stds) != bins:
            raise ValueError(f"column {self.name!r}: as many stds as counts, and at least one")
        if self.positives is not None and len(self.positives) != bins:
            raise ValueError(f"column {self.name!r}: as many positives as counts")
        if (self.cuts is None) == (self.categories is None):
            raise ValueError(f"column {self.name!r}: cuts or categories, and not both")
        codes = [self.null]
        if self.categories is not None:
            if self.other is None:
                raise ValueError(f"column {self.name!r}: categories need the bin of any other")
            codes += [self.other, *self.categories.values()]
        if self.cuts is not None:
            if list(self.cuts) != sorted(set(self.cuts)):
                raise ValueError(f"column {self.name!r}: cuts must be strictly increasing")
            codes.append(len(self.cuts))
        if not all(0 <= c < bins for c in codes):
            raise ValueError(f"column {self.name!r}: a bin that is not there")
        return self

    def codes(self, values: Any) -> npt.NDArray[np.int64]:
        """Each customer's bin, int64 [n]. Raises BadInput on a category column that holds fractions."""
        if self.categories is not None:
            assert self.other is not None
            table = np.array([*self.categories.values(), self.other, self.null])
            return table[category_codes(values, tuple(self.categories))].astype(np.int64)
        values = (
            values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, from_pandas=True)
        )
        number = np.asarray(values.cast(pa.float64(), safe=False).fill_null(np.nan), dtype=np.float64)
        found = np.searchsorted(np.array(self.cuts), number, side="right")
        return np.where(np.isnan(number), self.null, found).astype(np.int64)


class Schema(_Frozen):
    """Every feature's bins, in the order of `encoding.model_features`. `contract` is the contract's hash, `inputs`
    that of its columns alone (`encoding.inputs_hash`), which another day's contract shares; None in older files."""

    contract: str
    inputs: str | None = None
    label: str | None
    customers: FiniteFloat
    positives: FiniteFloat | None
    columns: tuple[Column, ...]

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        names = [c.name for c in self.columns]
        if not names or len(set(names)) != len(names):
            raise ValueError("a schema needs columns, each once")
        if any((c.positives is None) != (self.label is None) for c in self.columns):
            raise ValueError("positives are counted where there is a label, in every column")
        return self

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """How many codes each column has."""
        return tuple(len(c.counts) for c in self.columns)

    def codes(self, columns: Mapping[str, Any]) -> npt.NDArray[np.int64]:
        """Columns of equal length n to bins, int64 [n, F]. Raises BadInput on a missing or a ragged column."""
        missing = [c.name for c in self.columns if c.name not in columns]
        if missing:
            raise BadInput(f"no column {missing[0]!r} to encode", hint="The schema names it as a feature.")
        if len({len(columns[c.name]) for c in self.columns}) != 1:
            raise BadInput("the columns to encode differ in length")
        return np.stack([c.codes(columns[c.name]) for c in self.columns], axis=1)

    def require(self, contract: Contract) -> None:
        """Raises BadInput unless this is a schema of that contract."""
        names = tuple(f.name for f in model_features(contract))
        if self.contract != contract.hash or tuple(c.name for c in self.columns) != names:
            raise BadInput(
                f"the schema is not one of contract {contract.name!r}",
                hint="Run the schema round again under this contract.",
            )
