"""Linear combinations of a noisy total's numbers, with intervals: where customers add by different weights, and where
what they count is known to agree (see estimates.Ties)."""

from dataclasses import dataclass
from functools import cached_property
from math import sqrt

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.estimates import REACH, Number, Ties, number, quotient

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Combinations:
    """`weights`, above 0, are what a customer adds to each number; `ties` are of numbers times weights. A combination
    is float64 [d], over what the numbers would be with weights of 1."""

    total: NoisySum
    weights: Floats
    ties: Ties

    @staticmethod
    def tied(contrasts: Floats, weights: Floats) -> Ties:
        """Ties that contrasts [k, d] of the numbers make. They cost an eigendecomposition: keep them."""
        return Ties(contrasts / weights)

    @cached_property
    def numbers(self) -> Floats:
        """The estimates, least squares."""
        return np.asarray(self.ties.project(self.total.values) / self.weights)

    def value(self, of: Floats) -> float:
        return float(of @ self.numbers)

    def covariance(self, some: Floats, others: Floats) -> float:
        """Of the two combinations' noise, exact."""
        a, b = some / self.weights, others / self.weights
        return float(self.total.std**2 * (a @ self.ties.project(b)))

    def std(self, of: Floats) -> float:
        return sqrt(max(self.covariance(of, of), 0.0))

    def count(self, of: Floats) -> Number:
        """What is never below zero."""
        value, reach = self.value(of), REACH * self.std(of)
        return number(value, value - reach, value + reach)

    def change(self, of: Floats) -> Number:
        """What may lie below zero."""
        value, reach = self.value(of), REACH * self.std(of)
        return {"value": value, "low": value - reach, "high": value + reach}

    def ratio(self, part: Floats, whole: Floats, least: float = 0.0, most: float = 1.0) -> Number:
        """Fieller's interval, within [least, most]."""
        variances = self.covariance(part, part), self.covariance(whole, whole)
        shared = self.covariance(part, whole)
        return quotient(self.value(part), self.value(whole), *variances, shared, least, most)
