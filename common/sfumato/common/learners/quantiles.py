"""Quantiles from noisy counts over public bins of two levels, 16 coarse ones of 16 fine ones each.

How many lie below a fine bin is then a sum of some coarse and some fine counts and not of up to 256 fine ones, with
half the noise; least squares makes the levels agree (Hay et al. 2010, section 4). The interval is an inverted test:
it spans every bin that may hold the quantile, at both of whose ends the counts do not contradict that (as order
statistics are inverted without noise: David & Nagaraja 2003, section 7.1).
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil, floor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sfumato.common.contract import Scale
from sfumato.common.learners.encoding import scaled

WIDTH = 16
MOST_BINS = WIDTH * WIDTH
BETWEEN_TWO = 1.0  # a quantile may lie between two customers, who are in different bins

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Interval(NamedTuple):
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Grid:
    """The bins between two public bounds: one a whole number where they are few, else of equal width when scaled."""

    low: float
    high: float
    scale: Scale = Scale.LINEAR
    integer: bool = False

    @cached_property
    def each_number(self) -> bool:
        return self.integer and floor(self.high) - ceil(self.low) < MOST_BINS

    @cached_property
    def bins(self) -> int:
        return floor(self.high) - ceil(self.low) + 1 if self.each_number else MOST_BINS

    @cached_property
    def parents(self) -> int:
        return -(-self.bins // WIDTH)

    @property
    def length(self) -> int:
        """Counts in all: the coarse ones, then the fine ones, of which the last may stand for nothing."""
        return self.parents * (1 + WIDTH)

    @cached_property
    def ends(self) -> Floats:
        """float64 [bins + 1]: where each bin begins, and the end; a bin of one whole number is that number's."""
        if self.each_number:
            return np.append(np.arange(self.bins) + ceil(self.low), floor(self.high)).astype(np.float64)
        a, b = scaled(np.array([self.low, self.high]), self.scale)
        cuts = np.linspace(a, b, self.bins + 1)
        ends = np.sign(cuts) * np.expm1(np.abs(cuts)) if self.scale is Scale.LOG else cuts
        return np.clip(ends, self.low, self.high)

    def codes(self, values: Floats) -> Ints:
        """Each number's fine bin, int64 [n]; a bin's lower end belongs to it."""
        return np.clip(np.searchsorted(self.ends[1:-1], values, side="right"), 0, self.bins - 1)

    def places(self, values: Floats) -> tuple[Ints, Ints]:
        """Where each number counts among the `length`: coarse and fine."""
        codes = self.codes(values)
        return codes // WIDTH, self.parents + codes

    def read(self, counts: Floats, std: float, at: float, reach: float) -> Interval:
        """The quantile of rank `at` from counts [length] with noise of `std` each, and the interval that holds it
        if no number is off by more than `reach` standard deviations; both bounds where the counts cannot tell."""
        coarse, fine = counts[: self.parents], counts[self.parents :].reshape(self.parents, WIDTH)
        sums = fine.sum(axis=1)
        parents = (WIDTH * coarse + sums) / (WIDTH + 1)
        fine = (fine + ((parents - sums) / WIDTH)[:, None]).ravel()[: self.bins]
        below = np.cumsum(fine)
        # Of each bin's upper end: how much more than `at` lies below it; negative left of the quantile.
        excess = below - at * parents.sum()
        slack = reach * std * _spread(self.parents, at)[: self.bins] + BETWEEN_TWO
        left = np.append(-np.inf, excess[:-1] - slack[:-1])  # surely above the quantile if positive
        right = np.append(excess[:-1] + slack[:-1], np.inf)  # surely below it if negative
        may = np.flatnonzero((left <= 0) & (right >= 0))
        low, high = (may[0], may[-1]) if may.size else (0, self.bins - 1)
        ends = (self.ends[:-1], self.ends[:-1] if self.each_number else self.ends[1:])
        bounds = float(ends[0][low]), float(ends[1][high])
        return Interval(float(np.clip(self._crossing(excess), *bounds)), *bounds)

    def _crossing(self, excess: Floats) -> float:
        """Where the excess, made monotone, is zero; within a bin numbers are taken to lie evenly when scaled."""
        rising = (np.maximum.accumulate(excess) + np.minimum.accumulate(excess[::-1])[::-1]) / 2
        j = min(int(np.searchsorted(rising, 0.0)), self.bins - 1)
        if self.each_number:
            return float(self.ends[j])
        a, b = scaled(self.ends[j : j + 2], self.scale)
        before = rising[j - 1] if j else -abs(rising[0])
        gain = rising[j] - before
        at = a + (b - a) * (min(max(-before / gain, 0.0), 1.0) if gain > 0 else 0.5)
        return float(np.sign(at) * np.expm1(abs(at)) if self.scale is Scale.LOG else at)

    def rank_noise(self, at: float) -> float:
        """The noise of the count of those below the noisiest bin, in standard deviations of one count."""
        return float(_spread(self.parents, at).max())


@lru_cache(maxsize=64)
def _spread(parents: int, at: float) -> Floats:
    """Noise of each bin's excess after least squares, in standard deviations of one count: float64 [bins].

    A fine bin's upper end weighs whole coarse bins by 1 - at or -at, and its own, of which `inside` fine ones lie
    below, by their mean and by what they differ from it: the two are independent.
    """
    block, inside = np.divmod(np.arange(parents * WIDTH), WIDTH)
    inside = inside + 1
    coarse = block * (1 - at) ** 2 + (inside / WIDTH - at) ** 2 + (parents - block - 1) * at**2
    return np.asarray(np.sqrt(coarse * WIDTH / (WIDTH + 1) + inside * (1 - inside / WIDTH)))
