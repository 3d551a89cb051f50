"""Drift: are the customers still those that a model was made of?

Question       The schema that the model was trained over: its bins, with the noisy counts of that time.
Contribution   One customer adds one to the bin of every column: over F columns the l2 norm is sqrt(F).
Reading        For each column both distributions over the bins, and the population stability index between them
               (Siddiqi 2017, chapter 14), bias of the noise taken off, with an interval. Below 0.1 a column is
               stable, from 0.25 on it has shifted; a verdict needs the whole interval on its side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.estimates import LEVEL, REACH, Number, number, quotient
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells
from sfumato.common.learners.bins import Column, Schema
from sfumato.common.learners.curves import of_schema
from sfumato.common.learners.encoding import inputs_hash
from sfumato.common.learners.scorecard import FEWEST, information

STABLE, SHIFTED = 0.1, 0.25

Floats = npt.NDArray[np.float64]


class Question(BaseModel):
    """Against which schema: in a job file the path of a run's schema.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    known: Schema


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on the schema of another contract; another day's has the same columns and will do."""
    known = question.known
    if known.inputs == inputs_hash(contract):
        known = known.model_copy(update={"contract": contract.hash})
    known.require(contract)
    return Drift(known)


@dataclass(frozen=True)
class Drift:
    """Counts by the bins of a schema."""

    schema: Schema
    shares: tuple[float, ...] = (1.0,)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.schema.columns)

    @property
    def _starts(self) -> npt.NDArray[np.int64]:
        return np.concatenate([[0], np.cumsum(self.schema.cardinalities)]).astype(np.int64)

    def max_norm(self, round_: int) -> float:
        return sqrt(len(self.schema.columns))

    def length(self, round_: int) -> int:
        return int(self._starts[-1])

    def ask(self, round_: int, totals: list[NoisySum]) -> None:
        return None

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: object) -> Cells:
        if asked is not None:
            raise ValueError("drift is asked without numbers")
        cells = self.schema.codes(columns) + self._starts[:-1]
        return Cells(cells, np.ones(len(self.schema.columns)), self.length(0))

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """{"level", "customers", "drift": [{"column", "psi", "verdict", "bins": [{"bin", "then", "now"}]}]}, the
        column that moved most first; shares of customers then and now."""
        total, sizes = totals[0], self.schema.cardinalities
        parts = np.split(total.values, self._starts[1:-1])
        now = _Counted.of(parts, [np.full(n, total.std) for n in sizes])
        columns = self.schema.columns
        then = _Counted.of([np.array(c.counts) for c in columns], [np.array(c.stds) for c in columns])
        found = [
            _drift(column, words.bins, then.column(f), now.column(f))
            for f, (column, words) in enumerate(zip(columns, of_schema(self.schema), strict=True))
        ]
        reach = REACH * sqrt(now.variance)
        return {
            "level": LEVEL,
            "customers": number(now.customers, now.customers - reach, now.customers + reach),
            "drift": sorted(found, key=lambda d: -d["psi"]["value"]),
        }


@dataclass(frozen=True)
class _Bins:
    """A column's counts that add up to the customers: each one's noise by itself, and its part of the sum's."""

    counts: Floats
    std: Floats
    part: Floats
    customers: float
    variance: float

    def share(self, b: int) -> Number:
        """Of all customers, with Fieller's interval (1954)."""
        shared = float(self.part[b]) * self.variance
        own = float(self.std[b] ** 2 * (1 - self.part[b]) + self.part[b] * shared)
        return quotient(float(self.counts[b]), self.customers, own, self.variance, shared)

    @property
    def distribution(self) -> tuple[Floats, Floats]:
        """Shares, none of them nothing, and the noise of each by itself."""
        kept = np.maximum(self.counts, FEWEST)
        return kept / kept.sum(), self.std / kept.sum()


@dataclass(frozen=True)
class _Counted:
    """Counts of the same customers by several columns, made to agree on how many there are: least squares."""

    counts: Sequence[Floats]
    stds: Sequence[Floats]
    customers: float
    variance: float

    @staticmethod
    def of(counts: Sequence[Floats], stds: Sequence[Floats]) -> "_Counted":
        weights = np.array([1 / max(float((s**2).sum()), 1e-300) for s in stds])
        customers = float(np.dot(weights, [c.sum() for c in counts]) / weights.sum())
        return _Counted(counts, stds, customers, 1 / float(weights.sum()))

    def column(self, f: int) -> _Bins:
        counts, std = self.counts[f], self.stds[f]
        part = std**2 / max(float((std**2).sum()), 1e-300)
        return _Bins(
            counts + part * (self.customers - counts.sum()), std, part, self.customers, self.variance
        )


def _drift(column: Column, words: tuple[str, ...], then: _Bins, now: _Bins) -> dict[str, Any]:
    (p, p_std), (q, q_std) = then.distribution, now.distribution
    psi = information(p, q, p_std, q_std, (then.part, now.part))
    rise = _if_empty(then, q) ** 2 + _if_empty(now, p) ** 2
    high = psi.value + sqrt((psi.high - psi.value) ** 2 + rise)
    verdict = "stable" if high < STABLE else "shifted" if psi.low >= SHIFTED else "cannot tell"
    if psi.low >= STABLE and high < SHIFTED:
        verdict = "moved"
    bins = [{"bin": word, "then": then.share(b), "now": now.share(b)} for b, word in enumerate(words)]
    psi_number = number(psi.value, psi.low, high)
    return {"column": column.name, "psi": psi_number, "verdict": verdict, "bins": bins}


def _if_empty(bins: _Bins, other: Floats) -> float:
    """By how much the index were higher if the bins that noise drowns had nobody, which no slope of its logarithm
    would say: root of the squares."""
    shares, std = bins.distribution
    drowned = (shares < REACH * std) & (shares < other)
    x, y = shares[drowned], other[drowned]
    nobody = np.minimum(x, FEWEST / max(bins.customers, 1.0))
    return float(np.linalg.norm((nobody - y) * np.log(nobody / y) - (x - y) * np.log(x / y)))
