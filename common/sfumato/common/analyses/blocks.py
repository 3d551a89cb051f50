"""What the customers of each group add to one long sum: blocks of numbers side by side, each with its weight.

A customer adds to their own group's numbers alone, and no block can be longer than its weight; the squares of the
weights add up to 1. A block's squared weight goes with the root of what its noise costs: so the costs' sum is least.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.quantities import Presence, Quantity
from sfumato.common.contributions import Cells, Contributions, Rows

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
What = Literal["count", "present", "sum", "levels"]
Source: TypeAlias = Quantity | Presence | None  # None: everybody


@dataclass(frozen=True)
class Block:
    """Numbers of one sort, group after group: how many customers there are (with a value), their sum, or their
    histogram of two levels."""

    what: What
    source: Source
    weight: float
    start: int
    width: int

    def entries(self, columns: Mapping[str, Any], group: Ints) -> Iterator[tuple[Ints, float | Floats]]:
        """What each customer adds, and where; -1 is nowhere."""
        first = np.where(group >= 0, self.start + group * self.width, -1)
        match self.source:
            case None:
                yield first, self.weight
            case Presence():
                yield np.where(self.source.there(columns[self.source.column]), first, -1), self.weight
            case Quantity() as of:
                values = of.values(columns[of.column])
                first, values = np.where(np.isnan(values), -1, first), np.nan_to_num(values)
                if self.what == "sum":
                    yield first, self.weight * np.clip((values - of.middle) / of.half, -1.0, 1.0)
                    return
                for place in of.grid.places(values):
                    yield np.where(first >= 0, first + place, -1), self._unit

    @property
    def _unit(self) -> float:
        """What counts as one: a histogram's weight is shared by its two levels."""
        return self.weight / sqrt(2) if self.what == "levels" else self.weight

    def numbers(self, values: Floats, group: int) -> Floats:
        """This group's numbers of a total, float64 [width], in customers."""
        start = self.start + group * self.width
        return values[start : start + self.width] / self._unit

    def noise(self, std: float) -> float:
        """The noise of each of them, of a total with noise of `std`."""
        return std / self._unit


Key: TypeAlias = tuple[What, Source]


@dataclass(frozen=True)
class Blocks:
    """All blocks of a sum over so many groups."""

    groups: int
    each: Mapping[Key, Block]

    @classmethod
    def of(cls, costs: Mapping[Key, float], groups: int) -> "Blocks":
        """One block for each cost above 0: by how much the variance of its numbers hurts."""
        asked = {key: cost for key, cost in costs.items() if cost > 0}
        total, start = sum(sqrt(c) for c in asked.values()), 0
        each = {}
        for (what, of), cost in asked.items():
            width = of.grid.length if what == "levels" and isinstance(of, Quantity) else 1
            each[what, of] = Block(what, of, sqrt(sqrt(cost) / total), start, width)
            start += groups * width
        return cls(groups, each)

    @property
    def length(self) -> int:
        return sum(self.groups * b.width for b in self.each.values())

    def contribute(self, columns: Mapping[str, Any], group: Ints) -> Contributions:
        """Of customers in these groups, int64 [n]; -1: in none. Their l2 norm is at most 1."""
        entries = [e for block in self.each.values() for e in block.entries(columns, group)]
        places = np.stack([place for place, _ in entries], axis=1)
        weights = [weight for _, weight in entries]
        if all(isinstance(w, float) for w in weights):
            return Cells(places, np.array(weights, dtype=np.float64), self.length)
        rows = np.zeros((len(group), self.length))
        for place, weight in entries:
            there = np.flatnonzero(place >= 0)
            rows[there, place[there]] = weight[there] if isinstance(weight, np.ndarray) else weight
        return Rows(rows)
