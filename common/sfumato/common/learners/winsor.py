"""Where to winsorise amounts, by one noisy histogram of their sizes on a public grid.

A sum of amounts cut at b has noise in proportion to b; what is cut off grows as b falls. The bound is where both
together are expected to be least, as a root of squares (after Amin et al. 2019, Bounding user contributions). What
is cut off lies with few customers, fewer than the noise of a cell. So it is not read from the cells alone: sizes
thin out towards the top, and a posterior over how they do says what the noise leaves open.
"""

from dataclasses import dataclass
from math import log, log2, pi, sqrt

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contributions import Cells

Floats = npt.NDArray[np.float64]

STEPS = 24  # halves of an octave below the contract's bound
PLACES = np.arange(STEPS) + 0.5  # of the cells' middles, in steps below the contract's bound
GRID: Floats = 2.0 ** (-np.arange(STEPS + 1) / 2)  # the bounds to choose from, over the contract's
# What each bound, and 0, cuts off from one customer of each cell; [STEPS, STEPS + 2].
CUT = np.maximum(2.0 ** (-PLACES[:, None] / 2) - np.append(GRID, 0), 0)

# How sizes may thin out: bells on the logarithmic scale, their middles and widths in steps; [shapes, STEPS].
MIDDLES, WIDTHS = np.arange(-4.0, STEPS), np.geomspace(1.5, 8, 6)
BELLS: Floats = np.exp(-np.square((PLACES - MIDDLES[:, None, None]) / WIDTHS[:, None]) / 2).reshape(-1, STEPS)
LENGTHS = np.sqrt(np.cumsum(BELLS**2, axis=1))
BELLS_CUT: Floats = np.cumsum(BELLS[..., None] * CUT, axis=1)  # from the customers of a bell's first k cells


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

    def bounds(self, total: NoisySum, noise: float) -> npt.NDArray[np.float32]:
        """A bound for each column: the one of the grid with the least error to be expected, float32. `noise` is the
        standard deviation that a sum of amounts will have, in customers at the bound."""
        found = np.ones(len(self.most))
        for i, (chances, cut) in enumerate(self._cut_off(total)):
            errors = np.einsum("sk,skb->b", chances, np.hypot(noise * GRID, cut[..., :-1]))
            found[i] = GRID[errors.argmin()]
        exact = np.array(self.most) * found
        rounded = exact.astype(np.float32)
        return np.asarray(np.where(rounded > exact, np.nextafter(rounded, np.float32(0)), rounded))

    def kept(self, total: NoisySum, bounds: npt.NDArray[np.float32]) -> list[float]:
        """Which part of each column's sizes, added up, these bounds of the grid are expected to leave, in (0, 1]."""
        return [
            1 - float((chances * cut[..., step] / cut[..., -1]).sum())
            for (chances, cut), step in zip(self._cut_off(total), self._steps(bounds), strict=True)
        ]

    def _cut_off(self, total: NoisySum) -> list[tuple[Floats, Floats]]:
        return [cut_off(counts, total.std) for counts in total.values.reshape(len(self.most), STEPS)]

    def _steps(self, bounds: npt.NDArray[np.float32]) -> list[int]:
        return [round(2 * log2(m / b)) for m, b in zip(self.most, bounds.tolist(), strict=True)]

    def above(self, total: NoisySum, bounds: npt.NDArray[np.float32]) -> list[tuple[float, float]]:
        """How many customers lie above these bounds of the grid, and the noise's standard deviation."""
        counts = total.values.reshape(len(self.most), STEPS)
        return [
            (float(c[:step].sum()), total.std * sqrt(step))
            for c, step in zip(counts, self._steps(bounds), strict=True)
        ]


def cut_off(counts: Floats, std: float) -> tuple[Floats, Floats]:
    """What each bound of the grid, and 0, would cut off in all, over the contract's bound, for noisy counts float64
    [STEPS]: chances [shapes, STEPS] of its possible amounts [shapes, STEPS, STEPS + 2].

    The k cells of the largest sizes follow some part of a bell, of a height that is 0 or more; each cell below holds
    anything up to what the fullest does, and what it says is taken as it stands. Both have a closed form, as the
    noise is Gaussian; every k and bell has the same chance beforehand.
    """
    x = counts / std
    anything = log(max(x.max(), 3.0)) - log(2 * pi) / 2
    height = np.cumsum(BELLS * x, axis=1) / LENGTHS
    positive = log_ndtr(height)
    chances = height**2 / 2 + positive + np.cumsum(anything - x**2 / 2)
    chances = np.exp(chances - chances.max())
    height += np.exp(-(height**2) / 2 - positive) / sqrt(2 * pi)  # the mean of what is positive
    height = np.maximum(height, 1e-9)  # which rounding may have lost
    below = np.cumsum(np.maximum(x, 0)[:, None] * CUT, axis=0)
    cut = (height / LENGTHS)[..., None] * BELLS_CUT + below[-1] - below
    return chances / chances.sum(), std * cut
