"""A question that stands: asked again every period, and charged as one path a customer, not as a sum a period.

A vault that remembers where it told each customer to be can tell what is new: where they are, less `alike`^j times
where they were told to be j periods ago, over sqrt(1 - alike^2). For who stays that is short. Added up again
(count = alike * last count + sqrt(1 - alike^2) * told) every period's count has noise of one size, with the
correlation alike^|t - s|: the layout of paths.py, one period at a time.

Why one charge holds: each customer's vectors, over all periods that were told so far, have a squared norm of at
most `bounds`, whatever they do and whichever periods their branch missed: the vault sees to it. And Gaussian
releases, adaptively chosen, compose by each customer's own norms (Feldman & Zrnic 2021; Smith & Thakurta 2022). The
bound counts who comes late, who leaves, and `changes` changes; who has had so many stays where they were told to be.
"""

from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import Analysis
from sfumato.common.contributions import Cells

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

STEPS = 100  # of the search for `alike`
RESTLESS = 0.5  # what a customer adds once who would change more often: of one number's weight
NEVER, HERE, GONE = 0, 1, 2  # where a path may be, for the bound
NOWHERE = -1


@dataclass(frozen=True, repr=False)
class Told:
    """What a vault has told of its customers, one row each: the cell (int64, -1: none), how many changes they have
    left (int64), whether any was ever told of them, and whether they would have changed more often (bool)."""

    cell: Ints
    left: Ints
    known: Bools
    restless: Bools

    def __getitem__(self, rows: slice) -> "Told":
        return Told(self.cell[rows], self.left[rows], self.known[rows], self.restless[rows])

    @staticmethod
    def nothing(customers: int, changes: int) -> "Told":
        return Told(
            np.full(customers, NOWHERE, dtype=np.int64),
            np.full(customers, changes, dtype=np.int64),
            np.zeros(customers, dtype=np.bool_),
            np.zeros(customers, dtype=np.bool_),
        )


@dataclass(frozen=True)
class StandingPaths:
    """Layout and arithmetic: `cells` states over `periods`, at most `changes` changes a customer; None: any number,
    and then `alike` is 0, each period stands by itself and nobody is restless."""

    cells: int
    periods: int
    changes: int | None

    @property
    def alike(self) -> float:
        return 0.0 if self.changes is None else best_alike(self.periods, self.changes)

    @property
    def length(self) -> int:
        """Of one period's vector: the cells, and how many have become restless."""
        return self.cells + (self.changes is not None)

    @property
    def bounds(self) -> Floats:
        """The longest squared norm of a customer's vectors until each period, float64 [periods]; it only grows."""
        if self.changes is None:
            return np.arange(1.0, self.periods + 1)
        return _bounds(self.periods, self.changes, (self.alike,))[:, 0]

    def longest(self, period: int) -> float:
        """The squared norm of the longest vector that a customer may have in one period."""
        if self.changes is None or period == 0:
            return 1.0
        far = 1 / (1 - self.alike**2)
        return max((1 + self.alike**2) * far, far + RESTLESS**2)

    def nothing(self, customers: int) -> Told:
        return Told.nothing(customers, 0 if self.changes is None else self.changes)

    def tell(self, before: Told, states: Ints) -> Told:
        """What is told now, from where the customers are now (int64 [n], -1: nowhere). The rows are those of
        `before`. Who leaves is let go; who would change once too often stays where they were told to be."""
        wants = states != before.cell
        leaves, comes = states == NOWHERE, ~before.known & (states != NOWHERE)
        free = comes | leaves | (self.changes is None)
        moves = wants & (free | (before.left > 0))
        paid = moves & ~free
        return replace(
            before,
            cell=np.where(moves, states, before.cell),
            left=before.left - paid,
            known=before.known | comes,
            restless=before.restless | (wants & ~moves),
        )

    def contribution(self, period: int, apart: int | None, before: Told, now: Told) -> Cells:
        """Each customer's vector. `apart`: since how many periods nothing was told; None: nothing ever was."""
        far = 1.0 if period == 0 else 1 / float(np.sqrt(1 - self.alike**2))
        fades = 0.0 if apart is None else self.alike**apart
        stays = before.cell == now.cell
        columns = [
            np.where(stays, now.cell, NOWHERE),
            np.where(stays, NOWHERE, now.cell),
            np.where(stays, NOWHERE, before.cell),
        ]
        weights = [(1 - fades) * far, far, -fades * far]
        if self.changes is not None:
            columns.append(np.where(now.restless & ~before.restless, self.cells, NOWHERE))
            weights.append(RESTLESS)
        return Cells(np.column_stack(columns), np.array(weights), self.length)


@runtime_checkable
class Standing(Analysis, Protocol):
    """An analysis whose rounds are periods. Its contributions depend on what the vault told before."""

    @property
    def paths(self) -> StandingPaths: ...

    @property
    def days(self) -> tuple[date, ...]:
        """The last day of each period: a vault whose data do not reach it does not answer."""

    def states(self, round_: int, columns: Any) -> Ints:
        """Where each customer is, int64 [n], -1: nowhere; columns as of the period's day."""


@lru_cache(maxsize=64)
def best_alike(periods: int, changes: int) -> float:
    """The correlation, from 0, with the least bound; a public number, fixed before anything is asked."""
    alike = tuple(i / STEPS for i in range(STEPS))
    return alike[int(_bounds(periods, changes, alike)[-1].argmin())]


@lru_cache(maxsize=64)
def _bounds(periods: int, changes: int, alike: tuple[float, ...]) -> Floats:
    """The longest path until each period, float64 [periods, len(alike)], over all that a customer may do and all sets
    of periods in which their branch may have answered: by dynamic programming over the last one that it did."""
    a = np.array(alike)
    far = 1 / (1 - a**2)
    most = min(changes, periods)
    # Of paths that end with this told period: where they are, changes left, restless or not.
    ends = np.full((periods, 3, most + 1, 2, len(a)), -np.inf)
    found = np.zeros((periods, len(a)))
    for u in range(periods):
        ends[u, NEVER, most, 0] = 0.0
        ends[u, HERE, most, 0] = 1.0 if u == 0 else far
        for t in range(u):
            fades = a ** (u - t)
            stay, move, leave = (1 - fades) ** 2 * far, (1 + fades**2) * far, fades**2 * far
            was, now = ends[t], ends[u]
            np.maximum(now[HERE], was[HERE] + stay, out=now[HERE])
            np.maximum(now[GONE], was[HERE] + leave, out=now[GONE])
            np.maximum(now[GONE], was[GONE], out=now[GONE])
            if most:
                np.maximum(now[HERE, :-1], was[HERE, 1:] + move, out=now[HERE, :-1])
                np.maximum(now[HERE, :-1], was[GONE, 1:] + far, out=now[HERE, :-1])
            for where, cost in ((HERE, stay), (GONE, 0.0)):
                restless = was[where, 0, 0] + cost + RESTLESS**2
                np.maximum(now[where, 0, 1], restless, out=now[where, 0, 1])
        found[u] = ends[u].max(axis=(0, 1, 2))
    return np.maximum.accumulate(found, axis=0)
