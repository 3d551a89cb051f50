"""Cells that hold customers and their money, in one vector a customer: how it is laid out, and how a total is read.

A customer is counted in one cell. Money in a cell lies between two public ends, so only the way from their middle,
-1 to 1, is added beside it: the noise of a sum of money is that of half the width, not of the largest amount.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.combinations import Combinations
from sfumato.common.analyses.estimates import Number, Ties

COUNTED, VALUED, ABOVE = sqrt(0.45), sqrt(0.45), sqrt(0.1)  # of a vector's norm

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ValuedCells:
    """`middle` and `half` width of each cell's money, float64 [cells]. One more cell is of customers without money.

    A vector: [cells and the one without | the ways | whether the money lies above the highest end].
    """

    middle: Floats
    half: Floats

    @property
    def size(self) -> int:
        return len(self.middle)

    @property
    def length(self) -> int:
        return 2 * self.size + 2

    def rows(self, cell: Ints, money: Floats) -> Floats:
        """Each customer's vector, float64 [n, length], of norm 1 at most; cell `size` is the one without money."""
        everyone, rows = np.arange(len(cell)), np.zeros((len(cell), self.length))
        rows[everyone, cell] = COUNTED
        some = cell < self.size
        at, half = cell[some], self.half[cell[some]]
        way = np.divide(money[some] - self.middle[at], half, out=np.zeros(len(at)), where=half > 0)
        rows[everyone[some], self.size + 1 + at] = VALUED * np.clip(way, -1, 1)
        rows[some, -1] = ABOVE * (money[some] > (self.middle + self.half).max())
        return rows


@dataclass(frozen=True)
class ValuedTotal:
    """A total over such cells. No two cells hold the same customers, so nothing is tied."""

    cells: ValuedCells
    total: NoisySum

    @cached_property
    def _found(self) -> Combinations:
        sizes = [self.cells.size + 1, self.cells.size, 1]
        weights = np.repeat([COUNTED, VALUED, ABOVE], sizes)
        return Combinations(self.total, weights, Ties(np.zeros((1, self.cells.length))))

    def count(self, cells: Sequence[int]) -> Number:
        """Customers of these cells."""
        return self._found.count(self._counting(cells))

    def share(self, cells: Sequence[int]) -> Number:
        """Of all customers, those without money too."""
        return self._found.ratio(self._counting(cells), self._counting(range(self.cells.size + 1)))

    def above(self) -> Number:
        """How many customers' money lies above the highest end."""
        return self._found.count(self._counting([self.cells.length - 1]))

    def measures(self, cells: Sequence[int]) -> dict[str, Number]:
        """Customers, their share, value, its share, and the mean, which lies between the ends of these cells."""
        count, value, found = self._counting(cells), self._valuing(cells), self._found
        middle, half = self.cells.middle[list(cells)], self.cells.half[list(cells)]
        return {
            "customers": found.count(count),
            "share": self.share(cells),
            "value": found.count(value),
            "value_share": found.ratio(value, self._valuing(range(self.cells.size))),
            "mean": found.ratio(value, count, float((middle - half).min()), float((middle + half).max())),
        }

    def _counting(self, places: Sequence[int]) -> Floats:
        """The combination that adds up these numbers."""
        of = np.zeros(self.cells.length)
        of[list(places)] = 1
        return of

    def _valuing(self, cells: Sequence[int]) -> Floats:
        of, places = np.zeros(self.cells.length), np.asarray(cells)
        of[places] = self.cells.middle[places]
        of[self.cells.size + 1 + places] = self.cells.half[places]
        return of
