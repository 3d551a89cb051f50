"""Drift: are the customers still those that a model was made of?

Question       The schema that the model was trained over: its bins, with the noisy counts of that time.
Contribution   One customer adds one to the bin of every column: over F columns the l2 norm is sqrt(F).
Reading        For each column both distributions over the bins, and the population stability index between them
               (Siddiqi 2017, chapter 14), bias of the noise taken off, with an interval. Below 0.1 a column is
               stable, from 0.25 on it has shifted; a verdict needs the whole interval on its side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.estimates import LEVEL, REACH, number
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells
from sfumato.common.learners.bins import Column, Schema
from sfumato.common.learners.curves import of_schema
from sfumato.common.learners.scorecard import FEWEST, information

STABLE, SHIFTED = 0.1, 0.25

Floats = npt.NDArray[np.float64]


class Question(BaseModel):
    """Against which schema: in a job file the path of a run's schema.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    known: Schema


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on the schema of another contract."""
    question.known.require(contract)
    return Drift(question.known)


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
        total = totals[0]
        parts = np.split(total.values, self._starts[1:-1])
        # Every column counts the same customers: their mean, each weighed by its noise.
        weights = np.array([1 / len(p) for p in parts])
        customers = float(np.dot(weights, [p.sum() for p in parts]) / weights.sum())
        reach = REACH * total.std / sqrt(weights.sum())
        found = [
            _drift(column, words.bins, now, total.std)
            for column, words, now in zip(self.schema.columns, of_schema(self.schema), parts, strict=True)
        ]
        return {
            "level": LEVEL,
            "customers": number(customers, customers - reach, customers + reach),
            "drift": sorted(found, key=lambda d: -d["psi"]["value"]),
        }


def _drift(column: Column, words: tuple[str, ...], now: Floats, std: float) -> dict[str, Any]:
    then, then_std = np.array(column.counts), np.array(column.stds)
    shares = [_shares(then, then_std), _shares(now, np.full(len(now), std))]
    psi = information(*(s for s, _ in shares), *(e for _, e in shares))
    verdict = "stable" if psi.high < STABLE else "shifted" if psi.low >= SHIFTED else "cannot tell"
    if psi.low >= STABLE and psi.high < SHIFTED:
        verdict = "moved"
    bins = [
        {
            "bin": word,
            **{
                when: number(s[b], s[b] - REACH * e[b], s[b] + REACH * e[b], 1.0)
                for when, (s, e) in zip(("then", "now"), shares, strict=True)
            },
        }
        for b, word in enumerate(words)
    ]
    psi_number = number(psi.value, psi.low, psi.high)
    return {"column": column.name, "psi": psi_number, "verdict": verdict, "bins": bins}


def _shares(counts: Floats, std: Floats) -> tuple[Floats, Floats]:
    """Of the whole, none of them nothing, and their noise."""
    kept = np.maximum(counts, FEWEST)
    return kept / kept.sum(), std / kept.sum()
