"""Cells that hold customers and their money, in one vector a customer: how it is laid out, and how a total is read.

A customer is counted in one cell. Money in a cell lies between two public ends, so only the way from their middle,
-1 to 1, is added beside it: the noise of a sum of money is that of half the width, not of the largest amount.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.estimates import REACH, Number, number, quotient

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
    """A total over such cells. Noise is equal and independent from place to place, so every covariance is exact."""

    cells: ValuedCells
    total: NoisySum

    def count(self, cells: Sequence[int]) -> Number:
        """Customers of these cells."""
        return self._sum(self._counting(cells))

    def share(self, cells: Sequence[int]) -> Number:
        """Of all customers, those without money too."""
        return self._ratio(self._counting(cells), self._counting(range(self.cells.size + 1)))

    def above(self) -> Number:
        """How many customers' money lies above the highest end."""
        weights = np.zeros(self.cells.length)
        weights[-1] = 1 / ABOVE
        return self._sum(weights)

    def measures(self, cells: Sequence[int]) -> dict[str, Number]:
        """Customers, their share, value, its share, and the mean, which lies between the ends of these cells."""
        count, value = self._counting(cells), self._valuing(cells)
        middle, half = self.cells.middle[list(cells)], self.cells.half[list(cells)]
        return {
            "customers": self._sum(count),
            "share": self.share(cells),
            "value": self._sum(value),
            "value_share": self._ratio(value, self._valuing(range(self.cells.size))),
            "mean": self._ratio(value, count, float((middle - half).min()), float((middle + half).max())),
        }

    def _counting(self, cells: Sequence[int]) -> Floats:
        """By which weights the total's numbers add up to these cells' customers."""
        weights = np.zeros(self.cells.length)
        weights[list(cells)] = 1 / COUNTED
        return weights

    def _valuing(self, cells: Sequence[int]) -> Floats:
        weights, places = np.zeros(self.cells.length), np.asarray(cells)
        weights[places] = self.cells.middle[places] / COUNTED
        weights[self.cells.size + 1 + places] = self.cells.half[places] / VALUED
        return weights

    def _sum(self, weights: Floats) -> Number:
        value, reach = float(weights @ self.total.values), REACH * self.total.std * sqrt(weights @ weights)
        return number(value, value - reach, value + reach)

    def _ratio(self, x: Floats, n: Floats, least: float = 0.0, most: float = 1.0) -> Number:
        values, variance = self.total.values, self.total.std**2
        xx, nn, xn = (float(variance * (a @ b)) for a, b in ((x, x), (n, n), (x, n)))
        return quotient(float(x @ values), float(n @ values), xx, nn, xn, least, most)
