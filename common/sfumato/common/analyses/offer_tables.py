"""How an offer's counts and its plan are shown: the parts of the answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.estimates import REACH, Number, number, quotient
from sfumato.common.analyses.parts import Unit, part
from sfumato.common.analyses.tables import Table
from sfumato.common.learners.allocation import Market

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shown:
    """By these groups and products."""

    groups: Table
    products: tuple[str, ...]

    def take_up(self, market: Market) -> dict[str, Any]:
        """Who holds each product, and who of those that did not hold it took it up."""
        v = market.variance
        rows = (
            {
                "of": of,
                "holders": _count(float(market.holds[g, p] + market.took[g, p]), 2 * v),
                "holding": quotient(market.holds[g, p] + market.took[g, p], market.group[g], 2 * v, v, 0.0),
                "taken": _count(float(market.took[g, p]), v),
                "take_up": quotient(market.took[g, p], market.before[g, p], v, 2 * v, 0.0),
            }
            for (g, p), of in self._cells()
        )
        units: dict[str, Unit] = {
            "holders": "customers",
            "holding": "share",
            "taken": "customers",
            "take_up": "share",
        }
        return part("take-up", self._by, units, rows)

    def plan(
        self, fractions: Floats, market: Market, value: Floats, cost: Floats
    ) -> Iterator[dict[str, Any]]:
        """The whole plan, and each group's share of it: offers, what they cost, and what they gain."""
        units: dict[str, Unit] = {"offers": "customers", "cost": "amount", "gain": "amount"}

        def worth(weights: Floats) -> dict[str, Number]:
            return {
                "offers": _between(*market.offers(weights), 0.0),
                "cost": _between(*market.offers(weights * cost), 0.0),
                "gain": _between(*market.gain(weights, value, cost)),
            }

        yield part("plan in all", (), units, [{"of": [], **worth(fractions)}])
        rows = []
        for place, of in self._cells():
            if fractions[place] > 0:
                alone = np.zeros_like(fractions)
                alone[place] = fractions[place]
                rows.append({"of": of, "offered_to": f"{fractions[place]:.1%}", **worth(alone)})
        yield part("plan", self._by, units, rows)

    @property
    def _by(self) -> tuple[str, ...]:
        return (*(d.name for d in self.groups.columns), "product")

    def _cells(self) -> Iterator[tuple[tuple[int, int], list[str]]]:
        for g, group in enumerate(self.groups.names(self.groups.places)):
            for p, product in enumerate(self.products):
                yield (g, p), [*group, product]


def moment_part(name: str, bands: Sequence[str], counts: Floats, variance: float) -> dict[str, Any]:
    """Of those in each band, how many took something up; counts [bands, 2] of those who did not and who did."""
    rows = (
        {
            "of": [band],
            "customers": _count(float(stayed + took), 2 * variance),
            "take_up": quotient(took, stayed + took, variance, 2 * variance, variance),
        }
        for band, (stayed, took) in zip(bands, counts, strict=True)
    )
    return part("moment", (name,), {"customers": "customers", "take_up": "share"}, rows)


def _count(value: float, variance: float) -> Number:
    reach = REACH * sqrt(variance)
    return number(value, value - reach, value + reach)


def _between(value: float, std: float, least: float = -np.inf) -> Number:
    low, value, high = (float(max(x, least)) for x in (value - REACH * std, value, value + REACH * std))
    return {"value": value, "low": low, "high": high}
