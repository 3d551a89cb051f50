"""How much better than another arm: from noisy counts and sums, for these customers and for others of their kind.

For these customers the noise is all that is unknown: Fieller's interval (1954) of each arm's mean. For others the
sampling error comes on top: Wilson's interval (1927) of a rate, the normal one of a number. The parts are put
together as squares (Newcombe 1998; Zou & Donner 2008), so that no end leaves what is possible.
"""

from dataclasses import dataclass
from math import hypot, sqrt

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.estimates import REACH, Number, number, quotient

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """Customers of one arm (and group): how many, and for each outcome its sum and the sum of y (1 - y), scaled.
    `n_var` and the rest are the noise's variances, the same for all outcomes."""

    n: float
    sums: Floats
    spreads: Floats
    n_var: float
    sum_var: float
    covariance: float

    @property
    def customers(self) -> Number:
        reach = REACH * sqrt(self.n_var)
        return number(self.n, self.n - reach, self.n + reach)

    def mean(self, outcome: int) -> Number:
        """Of y, in [0, 1], with Fieller's interval for the noise."""
        return quotient(float(self.sums[outcome]), self.n, self.sum_var, self.n_var, self.covariance)

    def noise(self, outcome: int) -> float:
        """The noise's standard deviation in that mean, by the delta method."""
        r = self.mean(outcome)["value"]
        variance = self.sum_var - 2 * r * self.covariance + r * r * self.n_var
        return sqrt(max(variance, 0.0)) / max(self.n, 1.0)

    def sampling(self, outcome: int, happens: bool, reach: float = REACH) -> tuple[float, float]:
        """How far the mean of other customers of the kind may lie below and above this one's, within so many
        standard deviations: Wilson's interval of a rate, the normal one of a number."""
        n, r = max(self.n, 1.0), self.mean(outcome)["value"]
        if not happens:
            spread = max(float(self.spreads[outcome]) / n, 0.0)
            variance = min(max(r - spread - r * r, 0.0), r * (1 - r))
            return (reach * sqrt(variance / n),) * 2
        middle, side = r + reach**2 / (2 * n), reach * sqrt(r * (1 - r) / n + (reach / (2 * n)) ** 2)
        over = 1 + reach**2 / n
        return r - (middle - side) / over, (middle + side) / over - r


@dataclass(frozen=True)
class Difference:
    """One arm's mean over another's, in [-1, 1]: with the interval for the noise, and the one for sampling, too."""

    value: float
    noise: tuple[float, float]  # how far below and above
    both: tuple[float, float]

    @property
    def low(self) -> float:
        return max(self.value - self.both[0], -1.0)

    @property
    def high(self) -> float:
        return min(self.value + self.both[1], 1.0)


def difference(treated: Cell, control: Cell, outcome: int, happens: bool, reach: float = REACH) -> Difference:
    """Of their means, with intervals of so many standard deviations."""
    one, other = treated.mean(outcome), control.mean(outcome)
    ones, others = (c.sampling(outcome, happens, reach) for c in (treated, control))
    wider = reach / REACH
    down = wider * (one["value"] - one["low"]), wider * (other["high"] - other["value"])
    up = wider * (one["high"] - one["value"]), wider * (other["value"] - other["low"])
    return Difference(
        one["value"] - other["value"],
        (hypot(*down), hypot(*up)),
        (hypot(*down, ones[0], others[1]), hypot(*up, ones[1], others[0])),
    )
