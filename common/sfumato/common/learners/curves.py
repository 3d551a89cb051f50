"""Curves over bins: what an additive model is once it is fitted. Public; it knows no rounds and no noise source."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.estimates import LEVEL, REACH
from sfumato.common.contract import Contract
from sfumato.common.learners.bins import Column, Schema
from sfumato.common.learners.encoding import bin_edges, model_features

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BinnedColumn:
    """A column's bins in words. The first `ordered` of them lie in order; the others stand for themselves."""

    name: str
    bins: tuple[str, ...]
    ordered: int = 0

    def __post_init__(self) -> None:
        if not self.bins or not 0 <= self.ordered <= len(self.bins):
            raise ValueError(f"Column {self.name!r} needs bins, and no more in order than it has.")


@dataclass(frozen=True)
class Counts:
    """Noisy counts of bins, all columns side by side: float64 [2, B] (label 0, label 1), and each one's noise [B]."""

    values: Floats
    std: Floats


def of_contract(contract: Contract, bins: int) -> tuple[BinnedColumn, ...]:
    """The columns as `encoding.Encoder(contract, bins)` codes them."""
    found = []
    for spec in model_features(contract):
        if spec.categories is not None:
            found.append(BinnedColumn(spec.name, (*spec.categories, "(other)", "(none)")))
        else:
            words = _between(bin_edges(spec, bins).tolist())
            found.append(BinnedColumn(spec.name, (*words, "(none)"), ordered=len(words)))
    return tuple(found)


def of_schema(schema: Schema) -> tuple[BinnedColumn, ...]:
    """The columns as `schema.codes` codes them. Its categories lie in the order of their log-odds at that time."""
    return tuple(_of_column(c) for c in schema.columns)


def counts_of(schema: Schema) -> Counts:
    """Its counts by label. Raises ValueError where it has no label."""
    if schema.label is None:
        raise ValueError("Expected a schema with a label.")
    both = np.concatenate([c.counts for c in schema.columns])
    bad = np.concatenate([c.positives or () for c in schema.columns])
    # A count of everyone is the sum of both labels' counts, and these have independent noise of one size.
    std = np.concatenate([c.stds for c in schema.columns]) / np.sqrt(2)
    return Counts(np.stack([both - bad, bad]), std)


def _of_column(column: Column) -> BinnedColumn:
    size = len(column.counts)
    if column.cuts is not None:
        words = _between(column.cuts)
        return BinnedColumn(column.name, (*words, "(none)")[:size], ordered=len(words))
    values: list[list[str]] = [[] for _ in range(size)]
    for value, code in (column.categories or {}).items():
        values[code].append(value)
    if column.other is not None:
        values[column.other].append("(other)")
    values[column.null].append("(none)")
    return BinnedColumn(column.name, tuple(" or ".join(v) for v in values), ordered=size)


def _between(cuts: Iterable[float]) -> tuple[str, ...]:
    words = [f"{c:g}" for c in cuts]
    if not words:
        return ("any",)
    return (f"below {words[0]}", *(f"{a} to {b}" for a, b in pairwise(words)), f"{words[-1]} and more")


@dataclass(frozen=True)
class Curve:
    """A column's part of the log-odds, float64 [bins], and its noise; the noisy counts by label [2, bins]."""

    column: BinnedColumn
    values: Floats
    std: Floats
    counts: Floats
    counts_std: Floats

    @property
    def people(self) -> Floats:
        """How many customers a bin has, for weighing: never less than nobody."""
        return np.asarray(np.maximum(self.counts.sum(axis=0), 0.0))


@dataclass(frozen=True)
class Model:
    """A fitted additive model. Curves are centred: the intercept is the average customer's log-odds."""

    intercept: float
    curves: tuple[Curve, ...]

    def logits(self, codes: Ints) -> Floats:
        """The log-odds of each customer, float64 [n]. Inside a vault only: one of these is one customer's."""
        total = np.full(len(codes), self.intercept)
        for f, curve in enumerate(self.curves):
            total += curve.values[codes[:, f]]
        return total

    def as_dict(self) -> dict[str, Any]:
        """{"intercept", "level", "curves": [{"column", "ordered", "bins": [{"bin", "log_odds": {"value", "low",
        "high"}}]}]}: the bands hold the noise alone, not what another sample of customers would change."""
        return {
            "intercept": self.intercept,
            "level": LEVEL,
            "curves": [
                {
                    "column": c.column.name,
                    "ordered": c.column.ordered,
                    "bins": [
                        {"bin": b, "log_odds": {"value": v, "low": v - REACH * s, "high": v + REACH * s}}
                        for b, v, s in zip(c.column.bins, c.values.tolist(), c.std.tolist(), strict=True)
                    ],
                }
                for c in self.curves
            ],
        }


def pooled(values: Floats, weights: Floats) -> Floats:
    """The nearest values that never fall, by weighted least squares: pool adjacent violators (Ayer et al. 1955)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] > block[0]:
            mean, heavy, many = blocks.pop()
            both = heavy + block[1]
            block = ((mean * heavy + block[0] * block[1]) / both, both, many + block[2])
        blocks.append(block)
    return np.repeat([b[0] for b in blocks], [b[2] for b in blocks])
