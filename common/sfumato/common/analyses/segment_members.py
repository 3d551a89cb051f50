"""Who is in each segment: one sum over the finished centres, so that all that is said of a segment is of exactly
the customers whom the saved model puts there.

Contribution   In the segment whose centre is nearest: one, and the customer's inputs, which over F columns are no
               longer than sqrt(F). Weighted, a row is of norm 1 at most: nothing is cut.
Reading        How many customers, the largest segment first; where the mean of each number lies, in its own unit;
               which share has which category. Ratios with Fieller's interval (1954).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.estimates import LEVEL, REACH, Number, number, quotient
from sfumato.common.contributions import Rows
from sfumato.common.learners.components import Inputs
from sfumato.common.learners.encoding import FeatureSpec, unscaled
from sfumato.common.learners.kmeans import assign

COUNTED = 0.6  # of a row's norm: for being counted; the inputs have the rest

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Members:
    """Of at most so many segments, over coordinates in [-1, 1]."""

    inputs: Inputs
    most: int

    @property
    def length(self) -> int:
        return self.most * (1 + self.inputs.size)

    @property
    def _weight(self) -> float:
        return sqrt((1 - COUNTED**2) / len(self.inputs.specs))

    def ask(self, centres: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The centres, [most x coordinates]: padded with the last, which nobody can be nearer to than to itself."""
        return np.concatenate([centres, np.repeat(centres[-1:], self.most - len(centres), axis=0)]).ravel()

    def contribute(self, places: Floats, inputs: Floats, asked: npt.NDArray[np.float32] | None) -> Rows:
        """[counts | inputs, segment after segment]. Raises ValueError on an `asked` of another form."""
        dimensions = places.shape[1]
        if asked is None or asked.shape != (self.most * dimensions,) or not np.isfinite(asked).all():
            raise ValueError(f"Expected {self.most} centres.")
        group = assign(places, asked.reshape(self.most, dimensions))
        size, everyone = self.inputs.size, np.arange(len(group))
        rows = np.zeros((len(group), self.length))
        rows[everyone, group] = COUNTED
        at = self.most + group[:, None] * size + np.arange(size)
        rows[everyone[:, None], at] = inputs * self._weight
        return Rows(rows)

    def order(self, total: NoisySum, segments: int) -> Ints:
        """The segments, largest first."""
        return np.argsort(-total.values[:segments], kind="stable")

    def answer(self, chosen: Mapping[str, Any], total: NoisySum) -> dict[str, Any]:
        """{"names", "level", "chosen", "segments": as `read`}; `chosen` says how many segments there are."""
        return {
            "names": [s.name for s in self.inputs.specs if s.numeric],
            "level": LEVEL,
            "chosen": chosen,
            "segments": self.read(total, chosen["segments"]),
        }

    def read(self, total: NoisySum, segments: int) -> list[dict[str, Any]]:
        """{"customers", "share", "centre": {number: ...}, "mix": {category: {value: ...}}}, in that order."""
        counts, std = total.values[:segments] / COUNTED, total.std / COUNTED
        sums = total.values[self.most :].reshape(self.most, self.inputs.size) / self._weight
        everyone = float(counts.sum())
        return [
            {
                "customers": number(n, n - REACH * std, n + REACH * std),
                "share": quotient(n, everyone, std**2, segments * std**2, std**2),
                **self._described(sums[j], n, (total.std / self._weight) ** 2, std**2),
            }
            for j in self.order(total, segments).tolist()
            for n in [float(counts[j])]
        ]

    def _described(self, sums: Floats, n: float, variance: float, of_n: float) -> dict[str, Any]:
        centre, mix = dict[str, Number](), dict[str, dict[str, Number]]()
        starts = self.inputs.starts.tolist()
        for spec, start, end in zip(self.inputs.specs, starts[:-1], starts[1:], strict=True):
            own = sums[start:end].tolist()
            if spec.numeric:
                centre[spec.name] = _in_own_unit(quotient(own[0], n, variance, of_n, 0.0, least=-1.0), spec)
                continue
            cells = (*(spec.categories or ()), "(other)", "(none)")
            mix[spec.name] = {
                cell: quotient(x, n, variance, of_n, 0.0) for cell, x in zip(cells, own, strict=True)
            }
        return {"centre": centre} | ({"mix": mix} if mix else {})


def _in_own_unit(mean: Number, spec: FeatureSpec) -> Number:
    return {end: float(unscaled(np.array(unit), spec)) for end, unit in mean.items()}
