"""Anomaly: which customers are unlike all others, and from which score on is a customer flagged?

Question       Which columns (all of the model's, if none is named), in how many dimensions the autoencoder holds
               them, and which share of the customers is to be flagged.
Contribution   First the second moments of a customer's inputs (learners.components), then one cell of a histogram of
               scores on a public grid: an l2 norm of 1 each.
Reading        The threshold that the wanted share lies above, with an interval for the noise, how many lie above it
               and between other scores. The autoencoder with its threshold is a model: each branch finds its own
               customers' scores, flags and the columns that stand out with it (learners.anomalies).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.estimates import LEVEL, REACH, Number, number, quotient
from sfumato.common.analyses.parts import part
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells, Contributions
from sfumato.common.errors import BadInput
from sfumato.common.learners.anomalies import STEPS, Autoencoder, Tail, edges, moments_count
from sfumato.common.learners.components import Inputs, Moments
from sfumato.common.learners.encoding import chosen_features

MOST_INPUTS = 400  # their moments are 80,000 numbers
SHOWN = range(2 * STEPS, 8 * STEPS + 1, STEPS)  # cut points of the table: 1/2, 1, 2 ... 32

Asked = npt.NDArray[np.float32] | None


class Question(BaseModel):
    """`columns` of role feature or amount, or roll-ups. `flag` is the share of customers to be flagged; the histogram
    of scores takes `threshold_share` of the budget."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: tuple[str, ...] = Field(default=(), max_length=100)
    dimensions: int = Field(default=10, ge=1, le=32)
    flag: float = Field(default=0.01, gt=0, le=0.2)
    threshold_share: float = Field(default=0.3, gt=0, lt=1)


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on a column that cannot be used, one named twice, and too many or too few inputs."""
    inputs = Inputs(chosen_features(contract, question.columns))
    if not question.dimensions < inputs.size <= MOST_INPUTS:
        raise BadInput(
            f"question: the columns make {inputs.size} inputs, it takes more than {question.dimensions} and at most "
            f"{MOST_INPUTS}",
            hint="A category makes one for each of its values. Name fewer columns, or fewer dimensions.",
        )
    return Anomaly(Moments(inputs), question)


@dataclass(frozen=True)
class Anomaly:
    """The autoencoder, then the scores that it gives."""

    moments: Moments
    question: Question

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.moments.inputs.specs)

    @property
    def shares(self) -> tuple[float, ...]:
        return (1 - self.question.threshold_share, self.question.threshold_share)

    def max_norm(self, round_: int) -> float:
        return 1.0

    def length(self, round_: int) -> int:
        return len(self._edges) + 1 if round_ else self.moments.length

    @cached_property
    def _edges(self) -> npt.NDArray[np.float64]:
        return edges()

    def ask(self, round_: int, totals: list[NoisySum]) -> Asked:
        """The autoencoder, `Autoencoder.flat`."""
        if round_ == 0:
            return None
        return Autoencoder.read(self.moments, totals[0], self.question.dimensions).flat()

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: Asked) -> Contributions:
        if round_ == 0:
            if asked is not None:
                raise ValueError("Moments are asked without numbers.")
            return self.moments.contribute(columns)
        if asked is None:
            raise ValueError("Expected the autoencoder.")
        inputs = self.moments.inputs
        model = Autoencoder.of(asked, inputs.size, self.question.dimensions)
        scores = model.errors(inputs.matrix(columns)).sum(axis=1)
        cells = np.searchsorted(self._edges, scores, side="left")
        return Cells(cells.astype(np.int64)[:, None], np.ones(1), self.length(1))

    def _tail(self, totals: list[NoisySum]) -> Tail:
        return Tail.of(totals[1], *moments_count(self.moments, totals[0]))

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """Parts: the threshold; customers by score. `model` is the autoencoder that the branches were asked with."""
        tail, asked = self._tail(totals), self.ask(1, totals)
        assert asked is not None
        everybody = self._count(tail.everybody, tail.everybody_std)
        place, low, high = tail.threshold(self.question.flag, REACH)
        threshold = number(float(self._edges[place]), low, high)
        flagged = {"of": [], "threshold": threshold, **self._share(tail.above[place], tail.std[place], tail)}
        rows = [{"of": [name], **self._share(n, std, tail)} for name, n, std in self._bands(totals[1])]
        return {
            "level": LEVEL,
            "customers": everybody,
            "notes": [
                "score: 1 is usual. Unlike the others is not the same as dishonest: it says where to look first."
            ],
            "parts": [
                part(
                    "flagged",
                    [],
                    {"threshold": "number", "customers": "customers", "share": "share"},
                    [flagged],
                ),
                part("scores", ["score"], {"customers": "customers", "share": "share"}, rows),
            ],
            "model": [float(x) for x in asked],
        }

    def _bands(self, total: NoisySum) -> Iterator[tuple[str, float, float]]:
        """Of scores: the name, how many customers, and the noise's standard deviation."""
        cuts = [f"{self._edges[p]:g}" for p in SHOWN]
        names = [f"under {cuts[0]}", *(f"{a} to {b}" for a, b in pairwise(cuts)), f"over {cuts[-1]}"]
        ends = [0, *(p + 1 for p in SHOWN), self.length(1)]
        for name, (start, end) in zip(names, pairwise(ends), strict=True):
            yield name, float(total.values[start:end].sum()), total.std * sqrt(end - start)

    def _share(self, n: float, std: float, tail: Tail) -> dict[str, Number]:
        share = quotient(float(n), tail.everybody, float(std) ** 2, tail.everybody_std**2, 0.0)
        return {"customers": self._count(float(n), float(std)), "share": share}

    def _count(self, n: float, std: float) -> Number:
        return number(n, n - REACH * std, n + REACH * std)

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        """Tensor `autoencoder` (`Autoencoder.flat`), and the threshold as a score."""
        asked = self.ask(1, totals)
        assert asked is not None
        place, _, _ = self._tail(totals).threshold(self.question.flag, REACH)
        parameters = {
            "names": list(self.columns),
            "dimensions": self.question.dimensions,
            "threshold": float(self._edges[place]),
        }
        return {"autoencoder": asked}, parameters
