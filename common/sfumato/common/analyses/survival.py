"""Survival from noisy counts: how long customers stay, by those who have not been seen for longer, too.

The product limit (Kaplan & Meier 1958) over months d: S(d) is the product of 1 - e_j / r_j for j up to d, with e_j
customers who churned in month j of their life and r_j who were seen so long. Both are sums of cells with known noise;
so log S is, nearly, a linear combination of them (delta method). Where noise comes near to r_j, nothing more is said.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.combinations import Combinations
from sfumato.common.analyses.estimates import REACH, Number

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CLEAR = 5.0  # standard deviations that those still there must stand out of the noise


@dataclass(frozen=True)
class SurvivalTable:
    """Cells of one customer each: seen for d months since their first, d from 0 to `months` - 1, and still there;
    or churned in month d, which takes `churn` months of quiet, so d is that at least."""

    months: int
    churn: int

    @property
    def size(self) -> int:
        return 2 * self.months - self.churn

    def cell(self, seen: Ints, churned: Ints) -> Ints:
        """Each customer's cell, int64 [n], from months since the first and month of churn; -1 means none. Who began
        earlier, and who has not begun, have no cell."""
        cells = np.where(churned < 0, seen, self.months + churned - self.churn)
        return np.where((seen < 0) | (seen >= self.months), -1, cells)

    def _risk(self, month: int, start: int, length: int) -> tuple[Floats, Floats]:
        """Combinations that count who was seen so long, and who churned then."""
        seen, churned = np.zeros(length), np.zeros(length)
        seen[start + month : start + self.months] = 1
        first = start + self.months
        seen[first + max(month - self.churn, 0) : start + self.size] = 1
        if month >= self.churn:
            churned[first + month - self.churn] = 1
        return seen, churned

    def rows(self, found: Combinations, start: int) -> Iterator[dict[str, Any]]:
        """A row a month of life; the table's cells lie from `start` on."""
        length = len(found.weights)
        curve, gradient, told = 0.0, np.zeros(length), True
        last: Number = {"value": 1.0, "low": 1.0, "high": 1.0}
        for month in range(self.months):
            seen, churned = self._risk(month, start, length)
            left = seen - churned
            if month >= self.churn:
                told = told and found.value(left) > CLEAR * found.std(left)
                if told:
                    stay = found.value(left)
                    at_risk = max(found.value(seen), 1.0)
                    curve += log(stay / at_risk)
                    gradient += left / stay - seen / at_risk
                    reach = REACH * found.std(gradient)
                    last = _share(min(exp(curve), last["value"]), exp(curve - reach), exp(curve + reach))
                else:
                    last = {"value": last["value"], "low": 0.0, "high": last["high"]}
            yield {"of": [str(month)], "still there": last, "seen so long": found.count(seen)}


def _share(value: float, low: float, high: float) -> Number:
    low, high = min(low, 1.0), min(high, 1.0)
    return {"value": min(max(value, low), high), "low": low, "high": high}
