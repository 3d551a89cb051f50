"""How many customers have a problem, and which share: read from the sums of quality."""

from dataclasses import dataclass
from math import sqrt

from sfumato.common.analyses.estimates import REACH, Number, number, quotient
from sfumato.common.learners.consistent import Consistent

STANDS_OUT = 2.0  # standard deviations of the noisier copy: below that, a problem may well be nobody's


@dataclass(frozen=True)
class Counts:
    """Of each group how many customers there are; of each problem the sum of their halves."""

    customers: Consistent
    problems: list[Consistent]

    def people(self, group: int) -> Number:
        value, reach = (
            float(self.customers.values[group]),
            REACH * sqrt(self._variance(self.customers, group)),
        )
        return number(value, value - reach, value + reach)

    def problem(self, group: int, problem: int) -> dict[str, Number]:
        """How many have it, and which share of the group."""
        x, n, vx, vn = self._moments(group, problem)
        reach = REACH * sqrt(vx)
        return {"customers": number(x, x - reach, x + reach), "share": quotient(x, n, vx, vn, vn / 2)}

    def share(self, group: int, problem: int) -> tuple[float, float]:
        """The share, and roughly its standard deviation; nothing of nobody."""
        x, n, vx, vn = self._moments(group, problem)
        if n <= STANDS_OUT * sqrt(vn):
            return 0.0, 1.0
        share = min(max(x / n, 0.0), 1.0)
        return share, sqrt(max(vx - share * (1 - share) * vn, 0.0)) / n

    def _moments(self, group: int, problem: int) -> tuple[float, float, float, float]:
        halves, n = float(self.problems[problem].values[group]), float(self.customers.values[group])
        vn = self._variance(self.customers, group)
        return halves + n / 2, n, self._variance(self.problems[problem], group) + vn / 4, vn

    @staticmethod
    def _variance(of: Consistent, group: int) -> float:
        return max(float(of.covariance[group, group]), 0.0)
