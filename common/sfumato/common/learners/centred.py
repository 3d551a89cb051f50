"""Counts and sums of outcomes in cells, each outcome sent around its middle; see analyses.arms for why.

A customer of a cell adds [c, w (2 y - 1) for each of k outcomes y in [0, 1]] to it, of l2 norm 1 at most.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contributions import Rows
from sfumato.common.learners.uplift import Cell

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class CentredCells:
    """So many cells with so many outcomes."""

    cells: int
    outcomes: int

    @property
    def length(self) -> int:
        return self.cells * (1 + self.outcomes)

    @property
    def weights(self) -> tuple[float, float]:
        """Of the count and of an outcome: those with the least noise in a sum."""
        w = 1 / sqrt(sqrt(self.outcomes) + self.outcomes)
        return w * self.outcomes**0.25, w

    def contribute(self, cells: npt.NDArray[np.int64], y: Floats) -> Rows:
        """From each customer's cell [n], -1 for none, and outcomes [n, k]."""
        c, w = self.weights
        rows = np.zeros((len(cells), self.cells, 1 + self.outcomes))
        who = np.flatnonzero(cells >= 0)
        rows[who, cells[who], 0] = c
        rows[who, cells[who], 1:] = w * (2 * y[who] - 1)
        return Rows(rows.reshape(len(cells), self.length))

    def sum_noise(self, std: float) -> float:
        """The noise's standard deviation in an outcome's sum over one cell, where it is `std` on the total."""
        return std * sqrt(sum(w**-2 for w in self.weights)) / 2

    def read(self, total: NoisySum) -> list[Cell]:
        """Sums of two outcomes of a cell have the covariance n_var / 4."""
        c, w = self.weights
        raw = total.values.reshape(self.cells, -1)
        n_var, var = (total.std / c) ** 2, (total.std / w) ** 2
        return [
            Cell(
                float(r[0]) / c,
                (r[1:] / w + r[0] / c) / 2,
                np.zeros(self.outcomes),
                n_var=n_var,
                sum_var=(n_var + var) / 4,
                covariance=n_var / 2,
            )
            for r in raw
        ]
