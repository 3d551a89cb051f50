"""Gini and KS of a table of grades, from noisy counts of customers and of bad ones (Siddiqi 2017, chapter 12)."""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.estimates import REACH, Number, quotient
from sfumato.common.learners.uplift import Cell

Floats = npt.NDArray[np.float64]
BAD = 0  # which of a cell's outcomes


@dataclass(frozen=True)
class GradeCounts:
    """Bad and good customers by grade, the riskiest first; both noises' variances and their covariance a grade."""

    bad: Floats
    good: Floats
    bad_var: float
    good_var: float
    covariance: float

    @staticmethod
    def of(cells: list[Cell]) -> "GradeCounts":
        """Cells come with the riskiest grade first."""
        bad = np.array([c.sums[BAD] for c in cells])
        n = np.array([c.n for c in cells])
        n_var, bad_var, both = cells[0].n_var, cells[0].sum_var, cells[0].covariance
        return GradeCounts(bad, n - bad, bad_var, n_var + bad_var - 2 * both, both - bad_var)

    def _variance(self, by_bad: Floats, by_good: Floats) -> float:
        """Of a number with these slopes."""
        return float(self._covariance(by_bad, by_good, by_bad, by_good))

    def _covariance(self, b1: Floats, g1: Floats, b2: Floats, g2: Floats) -> float:
        return float(
            self.bad_var * (b1 @ b2) + self.good_var * (g1 @ g2) + self.covariance * (b1 @ g2 + g1 @ b2)
        )

    def gini(self) -> Number:
        """2 AUC - 1, ties counted as half; [-1, 1] where noise drowns the bad or the good."""
        k, bad, good = len(self.bad), float(self.bad.sum()), float(self.good.sum())
        safer = np.triu(np.ones((k, k)), 1) - np.tril(np.ones((k, k)), -1)  # +1 for who is in a safer grade
        won = float(self.bad @ safer @ self.good)  # pairs ranked right less pairs ranked wrong
        slopes = safer @ self.good, self.bad @ safer
        pairs = np.full(k, good), np.full(k, bad)
        # The noises' own product, which the slopes do not see.
        bent = k * (k - 1) * self.bad_var * self.good_var
        product = k * k * self.bad_var * self.good_var
        return quotient(
            won,
            bad * good - k * self.covariance,
            self._variance(*slopes) + bent,
            self._variance(*pairs) + product,
            self._covariance(*slopes, *pairs),
            least=-1.0,
            most=1.0,
        )

    def gaps(self) -> list[tuple[float, float]]:
        """After each grade but the last: share of the bad less share of the good so far, and its noise."""
        k, bad, good = len(self.bad), float(self.bad.sum()), float(self.good.sum())
        found = []
        for cut in range(1, k):
            if min(bad, good) <= REACH * sqrt(k * max(self.bad_var, self.good_var)):
                found.append((0.0, 1.0))
                continue
            so_far = (np.arange(k) < cut).astype(np.float64)
            f, g = float(so_far @ self.bad) / bad, float(so_far @ self.good) / good
            slopes = (so_far - f) / bad, -(so_far - g) / good
            found.append((f - g, sqrt(self._variance(*slopes))))
        return found


def kolmogorov_smirnov(coarse: GradeCounts, fine: GradeCounts) -> Number:
    """The largest gap. Where it is, an independent copy says; no gap may lie above the upper end."""
    place = int(np.argmax([gap for gap, _ in coarse.gaps()]))
    gaps = fine.gaps()
    value, std = gaps[place]
    low, high = value - REACH * std, max(gap + REACH * s for gap, s in gaps)
    value, low, high = (min(max(x, 0.0), 1.0) for x in (value, low, high))
    return {"value": value, "low": low, "high": high}
