"""Where customers' purchases are counted coarsely, and points that stand for a cell: for likelihood_sums.

Times: how many repeat purchases, how long the history is (the model takes that as given), and how overdue the next
one is: (1 + x) log((c + T) / (c + t_x)), which is all that says whether a customer has left. Values: how many, and
powers of two of the mean amount.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.likelihood_sums import Points
from sfumato.common.learners.bgnbd import BgNbd, GammaGamma

# Repeat purchases: the least number of each group, and numbers of it with how many each stands for.
REPEATS = (1, 2, 3, 5, 8, 15, 31)
OF_REPEATS = (
    ((1, 1),),
    ((2, 1),),
    ((3, 1), (4, 1)),
    ((5, 1.5), (7, 1.5)),
    ((8, 2), (10, 2), (13, 3)),
    ((16, 4), (20, 5), (26, 7)),
    ((35, 9), (48, 17), (70, 30), (110, 60), (190, 120), (350, 240)),
)
OVERDUE = (0.5, 1.0, 2.0, 3.5, 6.0)
LENGTHS, IN_A_LENGTH = 2, 3
SOME, HALVES = (1, 2, 4, 8, 16), 24
OF_SOME = ((1,), (2, 3), (4, 6), (8, 12), (18, 32))
_AT, _WEIGHT = np.polynomial.legendre.leggauss(2)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TimesGrid:
    """Of x, t_x and T up to `history` days."""

    history: float

    @property
    def _in_a_length(self) -> int:
        return 1 + len(REPEATS) * (len(OVERDUE) + 1)

    @property
    def size(self) -> int:
        return LENGTHS * self._in_a_length

    @property
    def start(self) -> Floats:
        """A guess of the parameters before anything is known."""
        return BgNbd(r=1.0, alpha=self.history / 6, a=0.3, b=2.0).u

    @property
    def _soon(self) -> float:
        return self.history / 12

    def cells(self, data: Floats) -> Ints:
        """Of customers [n, 3]."""
        x, t_x, t = data.T
        group = np.searchsorted(REPEATS, x, side="right")
        overdue = (1 + x) * np.log((self._soon + t) / (self._soon + t_x))
        inside = (group - 1) * (len(OVERDUE) + 1) + np.searchsorted(OVERDUE, overdue, side="right")
        return np.asarray(self._lengths(t) * self._in_a_length + np.where(group > 0, 1 + inside, 0), np.int64)

    def _lengths(self, t: Floats) -> Ints:
        return np.clip((t * LENGTHS / (self.history + 1)).astype(np.int64), 0, LENGTHS - 1)

    @cached_property
    def points(self) -> Points:
        """Their volume makes the likelihood a density of x and t_x: there are t_x ** (x - 1) / (x - 1)! ways to
        place the purchases between the first and the last."""
        rows = np.array(list(self._points()))
        data, log_measure = rows[:, :3], rows[:, 3]
        x, t_x, t = data.T
        ways = np.where(x > 0, (x - 1) * np.log(np.where(x > 0, t_x, 1.0)) - gammaln(np.maximum(x, 1)), 0.0)
        return Points(data, self.cells(data), self._lengths(t), log_measure + ways)

    def _points(self) -> Iterator[tuple[float, ...]]:
        """x, t_x, T and the logarithm of how much of x and t_x a point stands for."""
        soon, steps = self._soon, LENGTHS * IN_A_LENGTH
        for t in (np.arange(steps) + 0.5) * self.history / steps:
            yield 0.0, 0.0, t, 0.0
            for x, weight in (pair for group in OF_REPEATS for pair in group):
                most = (1 + x) * np.log((soon + t) / soon)
                ends = np.minimum([0.0, *OVERDUE, np.inf], most)
                for low, high in pairwise(ends):
                    for at, part in zip(low + (high - low) * (_AT + 1) / 2, _WEIGHT / 2, strict=True):
                        t_x = (soon + t) * np.exp(-at / (1 + x)) - soon
                        if high - low > 1e-9 and t_x > 0:
                            yield x, t_x, t, np.log(weight * part * (high - low) * (soon + t_x) / (1 + x))


@dataclass(frozen=True)
class ValuesGrid:
    """Of x and m, where no purchase's amount is above `most`."""

    most: float

    @property
    def size(self) -> int:
        return len(SOME) * HALVES

    def start(self, counts: NoisySum) -> Floats:
        """A guess of the parameters: of their scale, by the counts."""
        by_half = np.maximum(counts.values, 0.0).reshape(len(SOME), HALVES).sum(axis=0)
        by_half = np.where(by_half > 2 * counts.std * np.sqrt(len(SOME)), by_half, 0.0)
        middle = np.average(np.arange(HALVES), weights=by_half) if by_half.any() else HALVES / 2
        scale = self.most * 2.0 ** (middle + 0.5 - HALVES)
        return GammaGamma(p=2.0, q=3.5, v=scale * 3.5 / 2.0).u

    def cells(self, data: Floats) -> Ints:
        """Of customers [n, 2], both numbers above 0."""
        x, m = data.T
        half = np.clip(np.floor(np.log2(m / self.most)).astype(np.int64) + HALVES, 0, HALVES - 1)
        return np.asarray((np.searchsorted(SOME, x, side="right") - 1) * HALVES + half, np.int64)

    @cached_property
    def points(self) -> Points:
        """The numbers of purchases of one group share its customers alike; their density is of m."""
        rows = [
            (x, self.most * 2.0 ** (half + at - HALVES), group)
            for group, numbers in enumerate(OF_SOME)
            for x in numbers
            for half in range(HALVES)
            for at in (1 / 6, 1 / 2, 5 / 6)
        ]
        array = np.array(rows)
        data = array[:, :2]
        return Points(data, self.cells(data), array[:, 2].astype(np.int64), np.log(data[:, 1]))
