"""Which share of each group gets which offer: a linear programme under limits, on noisy counts.

The unknowns are fractions f in [0, 1] of the customers of a group who do not hold a product. A group's fractions add
up to at most n, so that each customer can be given at most n offers with exactly these probabilities (`drawn`). The
limits on offers and on money hold for the noisy number of customers plus a margin for its noise.
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

Floats = npt.NDArray[np.float64]
ROUNDINGS = 4  # of the margin, which depends on the plan, which depends on the margin


@dataclass(frozen=True)
class Market:
    """Of G groups and P products. `group` [G] counts customers, `holds` and `took` [G, P] those who held a product
    before the window, and who took it up in it; `variance` is that of each count's noise, which is independent."""

    group: Floats
    holds: Floats
    took: Floats
    variance: float

    @property
    def before(self) -> Floats:
        """Who could take it up: [G, P]."""
        return np.asarray(self.group[:, None] - self.holds)

    @property
    def now(self) -> Floats:
        """Who still could: [G, P]."""
        return self.before - self.took

    @property
    def rate(self) -> Floats:
        """Of those who could, which share took it up: [G, P]."""
        return np.asarray(self.took / np.maximum(self.before, 1.0))

    def likely(self, caution: float = 0.0) -> Floats:
        """The rates, each drawn to its product's middle by as much as its noise outweighs how far the groups lie
        apart: expected rates, by empirical Bayes (Morris 1983; DerSimonian & Laird 1986 for how far), less `caution`
        times what is left of the noise. For choosing, not for showing."""
        noise = self.variance * (1 + 2 * self.rate**2) / np.maximum(self.before, 1.0) ** 2
        weight = 1 / noise
        whole = weight.sum(axis=0)
        middle = (weight * self.rate).sum(axis=0) / whole
        beyond = (weight * (self.rate - middle) ** 2).sum(axis=0) - (len(noise) - 1)
        apart = np.maximum(beyond, 0.0) / np.maximum(whole - (weight**2).sum(axis=0) / whole, 1e-12)
        both = noise + apart
        middle = (self.rate / both).sum(axis=0) / (1 / both).sum(axis=0)
        expected = middle + apart / both * (self.rate - middle)
        left = np.sqrt(apart * noise / both + (noise / both) ** 2 / (1 / both).sum(axis=0))
        return np.asarray(np.clip(expected - caution * left, 0.0, 1.0))

    def offers(self, weights: Floats) -> tuple[float, float]:
        """How many customers who do not hold a product, each cell with its weight [G, P]; and the noise's std."""
        return float((weights * self.now).sum()), self._std(weights, weights)

    def gain(self, weights: Floats, value: Floats, cost: Floats) -> tuple[float, float]:
        """What offers to these fractions [G, P] bring if they are taken up as in the window: value [P] times who
        takes it up, less cost [P] times who is asked; and the noise's std.

        What the noise adds to a square is taken off; the rest is linear but for rate^2, whose noise is small.
        """
        possible = np.maximum(self.before, 1.0)
        taken = self.took - (self.took**2 - self.variance) / possible
        by_took = weights * (value * (1 - 2 * self.rate) + cost)
        by_before = weights * (value * self.rate**2 - cost)
        return float((weights * (value * taken - cost * self.now)).sum()), self._std(by_before, by_took)

    def _std(self, before: Floats, took: Floats) -> float:
        """Of a sum with these weights [G, P] of `before` and `took`: a group's count is in all of its row."""
        squares = (before.sum(axis=1) ** 2).sum() + (before**2).sum() + (took**2).sum()
        return sqrt(self.variance * float(squares))


@dataclass(frozen=True)
class Limits:
    """At most so many offers, so much money, so many offers a customer. The first two may be infinite."""

    offers: float
    money: float
    each: int


def allocate(
    market: Market, rates: Floats, value: Floats, cost: Floats, limits: Limits, *, reach: float
) -> Floats:
    """The fractions [G, P] of the plan that gains most where offers are taken up at these `rates` [G, P].

    The limits hold with a margin of `reach` standard deviations of the noise in what the plan needs. `rates` should
    not come from the market's own noise: a rate that is too high because there seem to be too few customers would
    pick just the cells that need more than it seems. Raises RuntimeError if the programme cannot be solved.
    """
    groups, products = rates.shape
    customers = np.maximum(market.now, 0.0)
    gain = customers * (value * rates - cost)
    of_group = np.repeat(np.eye(groups), products, axis=1)
    each = ((limits.offers, np.ones(products)), (limits.money, cost))
    bounded = [(limit, price) for limit, price in each if np.isfinite(limit)]
    rows = np.vstack([of_group, *((customers * price).reshape(1, -1) for _, price in bounded)])
    fractions = np.zeros((groups, products))
    for _ in range(ROUNDINGS):
        margins = [reach * market.offers(fractions * price)[1] for _, price in bounded]
        left = [max(limit - margin, 0.0) for (limit, _), margin in zip(bounded, margins, strict=True)]
        most = [float(limits.each)] * groups + left
        solved = linprog(-gain.ravel(), A_ub=rows, b_ub=most, bounds=(0, 1), method="highs")
        if solved.status != 0:
            raise RuntimeError(f"the plan's linear programme: {solved.message}")
        fractions = np.where(gain > 0, np.clip(solved.x.reshape(groups, products), 0.0, 1.0), 0.0)
    return fractions


def drawn(fractions: Floats, uniform: Floats) -> npt.NDArray[np.bool_]:
    """Which offers each customer gets, bool [n, P], from the fractions of their group [n, P] and a number in [0, 1).

    Systematic sampling (Madow 1949): the fractions lie end to end on a line, and a customer gets those that hold a
    point of uniform, uniform + 1, ...: each with exactly its probability, and no more than the fractions' sum
    rounded up.
    """
    most = np.ceil(np.round(fractions.sum(axis=1), 5))[:, None]
    ends = np.minimum(np.cumsum(fractions, axis=1), most)
    points = np.ceil(ends - uniform[:, None])
    return np.asarray(np.diff(points, axis=1, prepend=0.0) > 0)
