"""Where to winsorise amounts, by one noisy histogram of their sizes on a public grid.

A sum of amounts cut at b has noise in proportion to b; what is cut off grows as b falls. Both together are least
where about as many customers lie above b as the noise of the sum counts, in customers (after Amin et al. 2019,
Bounding user contributions). A comparison of arms minds what is cut off less, as it is cut from both.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contributions import Cells

STEPS = 24  # halves of an octave below the contract's bound
TO_COMPARE = 2.0  # of the noise: as many may lie above

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sizes:
    """Histograms of the sizes of several columns; `most` is each one's largest by the contract, in size."""

    most: tuple[float, ...]

    @property
    def max_norm(self) -> float:
        return sqrt(len(self.most))

    @property
    def length(self) -> int:
        return STEPS * len(self.most)

    def contribute(self, values: Floats) -> Cells:
        """One cell a column for each customer, largest sizes first; float64 [n, columns], NaN counts nowhere."""
        with np.errstate(divide="ignore"):
            step = np.floor(2 * np.log2(np.array(self.most) / np.abs(values)))
        inside = np.isfinite(step) & (step < STEPS)
        place = np.maximum(np.where(inside, step, 0), 0) + STEPS * np.arange(len(self.most))
        return Cells(np.where(inside, place, -1).astype(np.int64), np.ones(len(self.most)), self.length)

    def bounds(self, total: NoisySum, above: float) -> npt.NDArray[np.float32]:
        """A bound for each column: the largest of the grid with so many customers above it, float32."""
        counts = np.cumsum(total.values.reshape(len(self.most), STEPS), axis=1)
        enough = counts >= above
        first = np.where(enough.any(axis=1), enough.argmax(axis=1) + 1, STEPS)
        return (np.array(self.most) * 2.0 ** (-first / 2)).astype(np.float32)

    def above(self, total: NoisySum, bounds: npt.NDArray[np.float32]) -> list[tuple[float, float]]:
        """How many customers lie above these bounds of the grid, and the noise's standard deviation."""
        counts = np.cumsum(total.values.reshape(len(self.most), STEPS), axis=1)
        first = np.rint(2 * np.log2(np.array(self.most) / bounds)).astype(int)
        return [(float(c[f - 1]), total.std * sqrt(f)) for c, f in zip(counts, first.tolist(), strict=True)]
