"""Outcomes by arm of an experiment, and by arm and group: the sum that campaign and loyalty are read from.

Contribution   A customer stands in one cell of a table of arms, and for each grouping in one of a table of arms and
               groups. To such a cell they add [c, w (2 y - 1) for each outcome, s (8 y (1 - y) - 1) for each that
               is a number], outcomes y scaled to [0, 1]. No entry is larger than its weight c, w or s; these and
               the tables' weights are such that the l2 norm of it all is 1.
Reading        Counts n, sums of y and of y (1 - y). A table of groups adds up to the table of arms: least squares.

Why around the middle: an outcome sent as 0 or 1 has the whole norm 1, sent as -1/2 or 1/2 only half of it, and the
count that this takes back is there anyway. With k outcomes the variance of a sum is (1 + sqrt(k))^2 / 4, not k + 1.
A number's spread takes y (1 - y), which is at most 1/4, and not the square: four times less noise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import hypot, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.domains import NONE, OTHER
from sfumato.common.analyses.estimates import REACH, Number, Ties, number
from sfumato.common.analyses.latest import Groups, Measure
from sfumato.common.contract import Contract
from sfumato.common.contributions import Rows
from sfumato.common.errors import BadInput
from sfumato.common.learners.uplift import Cell

MOST_CELLS = 2_000
SPREAD_WEIGHT = 0.35  # of an outcome's own

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Arms:
    """The tables: of arms, and for each grouping of arms and groups. `groups_share` is of the squared norm."""

    arms: Groups
    outcomes: tuple[Measure, ...]
    groupings: tuple[Groups, ...]
    groups_share: float

    @staticmethod
    def of(
        contract: Contract,
        arms: tuple[str, str],
        outcomes: tuple[str, ...],
        groups: tuple[str, ...],
        groups_share: float,
        bins: int,
    ) -> "Arms":
        """`arms` are the question's key and the column. Raises BadInput."""
        key, name = arms
        named = [name, *outcomes, *groups]
        if len(set(named)) < len(named):
            raise BadInput("question: a column is named twice")
        found = Groups.of(contract, name, 2)
        if found.cells.spec.numeric or len(found.cells.spec.categories or ()) < 2:
            raise BadInput(f"question.{key}: {name!r} is no category of two arms or more")
        table = Arms(
            found,
            tuple(Measure.of(contract, o, "question.outcomes") for o in outcomes),
            tuple(Groups.of(contract, g, bins) for g in groups),
            groups_share,
        )
        if table.places * len(table.names) > MOST_CELLS:
            raise BadInput(
                f"question: more than {MOST_CELLS:,} arms and groups",
                hint="Name fewer groups, or groups with fewer values.",
            )
        return table

    @property
    def names(self) -> tuple[str, ...]:
        """The arms: the column's values, but not those for missing and unknown."""
        cells = self.arms.cells.cells
        return tuple(c for c in cells if c not in (NONE, OTHER))

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.arms.name, *(o.name for o in self.outcomes), *(g.name for g in self.groupings))

    @cached_property
    def _starts(self) -> list[int]:
        """Where each grouping's groups begin; place 0 is everybody."""
        sizes = [len(g.cells.cells) for g in self.groupings]
        return [int(start) for start in np.cumsum([1, *sizes])]

    @property
    def places(self) -> int:
        """Everybody, and all groups."""
        return int(self._starts[-1])

    @property
    def channels(self) -> int:
        return 1 + len(self.outcomes) + sum(not o.happens for o in self.outcomes)

    @property
    def length(self) -> int:
        return self.places * len(self.names) * self.channels

    @cached_property
    def _weights(self) -> tuple[Floats, Floats]:
        """Of the places, float64 [places]; of the channels, float64 [channels]."""
        k, m = len(self.outcomes), sum(not o.happens for o in self.outcomes)
        w = 1 / sqrt(sqrt(k) + k + m * SPREAD_WEIGHT**2)
        channels = np.array([w * k**0.25, *[w] * k, *[w * SPREAD_WEIGHT] * m])
        share = self.groups_share if self.groupings else 0.0
        places = np.full(self.places, sqrt(share / max(len(self.groupings), 1)))
        places[0] = sqrt(1 - share)
        return places, channels

    def sum_noise(self, std: float) -> float:
        """The noise's standard deviation in an outcome's sum over one arm, where it is `std` on the total."""
        places, channels = self._weights
        return std / float(places[0]) * hypot(1 / channels[0], 1 / channels[1]) / 2

    def inside(self, columns: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
        """Who is in an arm."""
        arm = self.arms.codes(columns)
        return (arm >= 0) & (arm < len(self.names))

    def contribute(self, columns: Mapping[str, Any], bounds: tuple[tuple[float, float], ...]) -> Rows:
        """Each customer's vector, with outcomes winsorised at these bounds; nothing of who is in no arm."""
        arm = self.arms.codes(columns)
        values = [o.values(columns) for o in self.outcomes]
        y = np.stack(
            [(np.clip(v, *b) - b[0]) / (b[1] - b[0]) for v, b in zip(values, bounds, strict=True)], 1
        )
        inside = (arm >= 0) & (arm < len(self.names)) & ~np.isnan(y).any(axis=1)
        y = np.where(inside[:, None], y, 0.0)
        numbers = y[:, [not o.happens for o in self.outcomes]]
        place_weights, channel_weights = self._weights
        own = np.hstack([np.ones((len(y), 1)), 2 * y - 1, 8 * numbers * (1 - numbers) - 1]) * channel_weights
        rows = np.zeros((len(y), self.places, len(self.names), self.channels))
        who = np.flatnonzero(inside)
        rows[who, 0, arm[who]] = own[who] * place_weights[0]
        for grouping, start in zip(self.groupings, self._starts[:-1], strict=True):
            group = grouping.codes(columns)
            of = who[group[who] >= 0]
            rows[of, start + group[of], arm[of]] = own[of] * place_weights[start]
        return Rows(rows.reshape(len(y), self.length))

    @cached_property
    def _ties(self) -> Ties:
        """The groups of each grouping add up to everybody: over places, the same for every arm and channel."""
        weights, contrasts = self._weights[0], np.zeros((len(self.groupings), self.places))
        for row, (start, end) in enumerate(zip(self._starts[:-1], self._starts[1:], strict=True)):
            contrasts[row, 0] = 1 / weights[0]
            contrasts[row, start:end] = -1 / weights[start:end]
        return Ties(contrasts)

    def read(self, total: NoisySum) -> "ArmTable":
        """The cells of a noisy total."""
        shape = (self.places, len(self.names) * self.channels)
        raw = np.stack([self._ties.project(column) for column in total.values.reshape(shape).T], axis=1)
        weights, channels = self._weights
        raw = (raw / weights[:, None]).reshape(self.places, len(self.names), self.channels) / channels
        left = np.array([1 - np.square(self._ties.along([p])).sum() for p in range(self.places)])
        variances = np.outer(left * (total.std / weights) ** 2, channels**-2.0)
        return ArmTable(self, raw, variances)


@dataclass(frozen=True)
class ArmTable:
    """Sums by place (everybody, then groups), arm and channel, and their noise's variance by place and channel."""

    of: Arms
    sums: Floats
    variances: Floats

    def cell(self, place: int, arm: int) -> Cell:
        raw, var, k = self.sums[place, arm], self.variances[place], len(self.of.outcomes)
        n = float(raw[0])
        spreads = np.zeros(k)
        spreads[[not o.happens for o in self.of.outcomes]] = (raw[1 + k :] + n) / 8
        return Cell(
            n,
            (raw[1 : 1 + k] + n) / 2,
            spreads,
            n_var=float(var[0]),
            sum_var=float(var[0] + var[1]) / 4,
            covariance=float(var[0]) / 2,
        )

    def groups(self, grouping: int) -> list[tuple[int, str]]:
        """The places of a grouping's groups, and their names."""
        names = self.of.groupings[grouping].cells.cells
        return list(enumerate(names, self.of._starts[grouping]))

    def customers(self) -> Number:
        """In all arms together."""
        n = float(self.sums[0, :, 0].sum())
        reach = REACH * sqrt(float(self.variances[0, 0]) * len(self.of.names))
        return number(n, n - reach, n + reach)
