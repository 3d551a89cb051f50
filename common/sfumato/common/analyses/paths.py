"""Counts of customers by state over periods, from one vector each, whose noise is alike in neighbouring periods.

A customer who stays where they are tells little that is new. So of every period but the first the vector holds where
the customer is, less `alike` times where they were before: for who stays that is short, for who changes it is long.
The total, added up again, is the count in every period, and its noise is a stationary first-order autoregression: of
one size, with the correlation alike^|t - s| (the matrix mechanism, Li et al. 2010, with that factor).

Over P periods and at most k changes a customer, the squared norm is V = 1 + (P - 1) (1 - a) / (1 + a) + 2 k a /
(1 - a^2) with a = alike. That is the variance of every count, in units of what one single count would have; a change
between neighbours has 2 (1 - a) V. With a = 0 it is P: one number a period.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

STEPS = 200  # of the search for `alike`


def variance(periods: int, changes: int, alike: float) -> float:
    """V, see the module."""
    stays, moves = (1 - alike) / (1 + alike), 2 * alike / (1 - alike**2)
    return 1 + (periods - 1) * stays + min(changes, periods - 1) * moves


@lru_cache(maxsize=64)
def best_alike(periods: int, changes: int) -> float:
    """The correlation, from 0, with the least V; a public number, fixed before anything is asked."""
    return min((i / STEPS for i in range(STEPS)), key=lambda a: variance(periods, changes, a))


def settled(states: Ints, changes: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Paths [n, P] with their latest `changes` changes alone, before which nothing moves; and who had more."""
    moved = states[:, 1:] != states[:, :-1]
    later = np.cumsum(moved[:, ::-1], axis=1)[:, ::-1]  # changes from this one on
    keep = np.where(moved & (later <= changes), np.arange(1, states.shape[1]), states.shape[1])
    first = np.minimum(keep.min(axis=1, initial=states.shape[1]), states.shape[1])
    more = later[:, :1].ravel() > changes if moved.shape[1] else np.zeros(len(states), dtype=np.bool_)
    # Before the first kept change: where the customer was just before it.
    before = states[np.arange(len(states)), np.minimum(first, states.shape[1]) - 1]
    early = np.arange(states.shape[1]) < first[:, None]
    return np.where(more[:, None] & early, before[:, None], states), more


@dataclass(frozen=True)
class Paths:
    """Layout: groups x periods x states, the last fastest."""

    groups: int
    periods: int
    states: int
    alike: float

    @property
    def size(self) -> int:
        return self.groups * self.periods * self.states

    @property
    def weights(self) -> Floats:
        """Of the columns of `cells`: being there in the first period; then staying, coming and leaving."""
        far = 1 / np.sqrt(1 - self.alike**2)
        steps = self.periods - 1
        return np.repeat([1.0, (1 - self.alike) * far, far, -self.alike * far], [1, steps, steps, steps])

    def cells(self, states: Ints, group: Ints) -> Ints:
        """Each customer's cells, int64 [n, 1 + 3 (P - 1)], from states [n, P]; -1: none, as for a group of -1."""
        at = (group[:, None] * self.periods + np.arange(self.periods)) * self.states
        now, last = at[:, 1:] + states[:, 1:], at[:, 1:] + states[:, :-1]
        stays = states[:, 1:] == states[:, :-1]
        first = at[:, :1] + states[:, :1]
        found = [first, np.where(stays, now, -1), np.where(stays, -1, now), np.where(stays, -1, last)]
        return np.where(group[:, None] < 0, -1, np.concatenate(found, axis=1))


@dataclass(frozen=True)
class PathCounts:
    """Counts by group, period and state, float64 [G, P, S]; each period has all of a group's customers."""

    paths: Paths
    counts: Floats
    std: float

    @staticmethod
    def of(paths: Paths, total: NoisySum) -> "PathCounts":
        """The estimates from a total of such vectors, by least squares over what must add up."""
        near = np.sqrt(1 - paths.alike**2)
        told = total.values.reshape(paths.groups, paths.periods, paths.states)
        counts = np.empty_like(told)
        counts[:, 0] = told[:, 0]
        for t in range(1, paths.periods):
            counts[:, t] = paths.alike * counts[:, t - 1] + near * told[:, t]
        weights = PathCounts._told(paths)
        sums = counts.sum(axis=2)
        everyone = sums @ weights / weights.sum()
        return PathCounts(paths, counts + (everyone[:, None] - sums)[:, :, None] / paths.states, total.std)

    @staticmethod
    def _told(paths: Paths) -> Floats:
        """How much each period says of a number that does not change."""
        inner = (1 - paths.alike) / (1 + paths.alike)
        ends = np.full(paths.periods, inner)
        ends[[0, -1]] = 1 / (1 + paths.alike)
        return ends if paths.periods > 1 else np.ones(1)

    def covariance(self, t: int, s: int, u: int, v: int) -> float:
        """Of the counts' noise in one group: of state s in period t and of v in u."""
        apart = self.paths.alike ** abs(t - u)
        common = 1 / float(self._told(self.paths).sum())
        return float(self.std**2 * (apart * (s == v) - (apart - common) / self.paths.states))

    @property
    def everyone(self) -> Floats:
        """A group's customers in each period [G, P], the same in all; variance and covariance: see `whole`."""
        return np.asarray(self.counts.sum(axis=2))

    def whole(self, t: int) -> tuple[float, float]:
        """Variance of `everyone` of one group in period t, and its covariance with each of its counts then."""
        common = self.std**2 / float(self._told(self.paths).sum())
        return common * self.paths.states, common
