"""Expected and observed loss of grades and of all of them together, with intervals for the noise.

Expected loss is PD x LGD x EAD; without a foretold PD it is the bad rate, a noisy ratio, times a noisy sum: the
variance is the delta method's, to second order.
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any

from sfumato.common.analyses.estimates import REACH, Number, number, quotient
from sfumato.common.learners.grade_metrics import BAD
from sfumato.common.learners.uplift import Cell

OWED, LOST = 1, 2  # outcomes beside BAD: what is owed, and what the bad owed


@dataclass(frozen=True)
class Losses:
    """Of one grade. `pd` is what was foretold, None for the bad rate."""

    cell: Cell
    pd: float | None
    lgd: float
    bound: float

    @property
    def exposure(self) -> tuple[float, float]:
        """Its sum and the noise's variance, in units of the bound."""
        return float(self.cell.sums[OWED]), self.cell.sum_var

    @property
    def expected(self) -> tuple[float, float]:
        """PD x EAD and the variance of its noise (to second order), in units of the bound."""
        owed, var = self.exposure
        if self.pd is not None:
            return self.pd * owed, self.pd**2 * var
        c, n = self.cell, max(self.cell.n, 1.0)
        rate = min(
            max(float(c.sums[BAD]) / n, -1.0), 2.0
        )  # not cut to what is possible: the total stays unbiased
        rate_var, between = c.noise(BAD) ** 2, (c.n_var / 4 - rate * c.covariance) / n
        spread = rate_var * owed**2 + rate**2 * var + 2 * rate * owed * between + rate_var * var
        return rate * owed, spread

    @property
    def observed(self) -> tuple[float, float]:
        return float(self.cell.sums[LOST]), self.cell.sum_var

    def row(self) -> dict[str, Any]:
        rate, owed = self.cell.mean(BAD), _amount(*self.exposure, self.bound)
        expected = _amount(*self.expected, self.lgd * self.bound)
        row: dict[str, Any] = {
            "customers": self.cell.customers,
            "bad rate": rate,
            "exposure": owed,
            "expected loss": {k: min(v, self.lgd * owed["high"]) for k, v in expected.items()},
            "observed loss": _amount(*self.observed, self.lgd * self.bound),
        }
        if self.pd is None:
            return row
        below, above = self.cell.sampling(BAD, True)
        low = rate["value"] - sqrt((rate["value"] - rate["low"]) ** 2 + below**2)
        high = rate["value"] + sqrt((rate["high"] - rate["value"]) ** 2 + above**2)
        found = "more" if low > self.pd else "less" if high < self.pd else "as"
        return row | {"verdict": "as foretold" if found == "as" else f"{found} than foretold"}


def _amount(value: float, variance: float, unit: float) -> Number:
    reach = REACH * sqrt(max(variance, 0.0))
    return number(unit * value, unit * (value - reach), unit * (value + reach))


def share(cell: Cell, everybody: float, variance: float) -> Number:
    return quotient(cell.n, everybody, cell.n_var, variance, cell.n_var)


def total(losses: list[Losses]) -> dict[str, Any]:
    """The sums over all grades."""
    cells, unit, lgd = [x.cell for x in losses], losses[0].bound, losses[0].lgd
    n, n_var = sum(c.n for c in cells), sum(c.n_var for c in cells)
    bad, bad_var = sum(float(c.sums[BAD]) for c in cells), sum(c.sum_var for c in cells)
    reach = REACH * sqrt(n_var)

    def added(pairs: list[tuple[float, float]], scale: float) -> Number:
        return _amount(sum(v for v, _ in pairs), sum(v for _, v in pairs), scale)

    return {
        "customers": number(n, n - reach, n + reach),
        "bad rate": quotient(bad, n, bad_var, n_var, sum(c.covariance for c in cells)),
        "exposure": added([x.exposure for x in losses], unit),
        "expected loss": added([x.expected for x in losses], unit * lgd),
        "observed loss": added([x.observed for x in losses], unit * lgd),
    }
