"""k-means over few weighted points, and what goes with it: free, since it sees noisy totals alone.

Nothing here protects anything or needs protection: it reads what was released.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BINS = 32  # of a number's histogram, of equal width over [-1, 1]
MOST_INTERVALS = 8  # of one number
RESTARTS = 32
SETTLED = 100  # steps of weighted k-means, at most
DISTINCT = 0.85  # below this score a number of segments is worth having


@dataclass(frozen=True)
class Choice:
    """What each number of segments would leave unexplained, and which was taken."""

    inertia: dict[int, float]
    score: dict[int, float]
    segments: int


def assign(values: npt.ArrayLike, centres: npt.ArrayLike) -> Ints:
    """Each customer's segment, int64 [n]: the nearest centre, of two equally near the first."""
    x, c = np.asarray(values, dtype=np.float64), np.asarray(centres, dtype=np.float64)
    nearness = x @ c.T - 0.5 * (c**2).sum(axis=1)
    return np.asarray(nearness.argmax(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class Cuts:
    """The best cuts of one number's histogram: `spread[k - 1]` is the variance that k intervals leave."""

    spread: Floats
    mass: Floats
    ends: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, mass: Floats) -> Self:
        """By dynamic programming over the bins (Jenks; Wang & Song 2011); mass adds up to 1."""
        middles = _middles()
        sums = [np.concatenate([[0.0], np.cumsum(mass * middles**p)]) for p in range(3)]
        low, high = np.meshgrid(np.arange(BINS + 1), np.arange(BINS + 1), indexing="ij")
        m, s, q = (x[high] - x[low] for x in sums)
        within: Floats = np.where(low < high, q - s**2 / np.maximum(m, 1e-300), np.inf)
        best, back = within[0], [np.zeros(BINS + 1, dtype=np.int64)]
        spread = [best[-1]]
        for _ in range(1, MOST_INTERVALS):
            through = best[:, None] + within
            back.append(through.argmin(axis=0))
            best = through.min(axis=0)
            spread.append(best[-1])
        cuts: list[tuple[int, ...]] = []
        for k in range(MOST_INTERVALS):
            ends, end = list[int](), BINS
            for level in range(k, 0, -1):
                end = int(back[level][end])
                ends.append(end)
            cuts.append(tuple(reversed(ends)))
        return cls(np.maximum(np.array(spread, dtype=np.float64), 0.0), mass, tuple(cuts))

    def intervals(self, count: int) -> tuple[Ints, Floats]:
        """Of every bin, its interval and the average of that."""
        interval = np.searchsorted(self.ends[count - 1], np.arange(BINS), side="right").astype(np.int64)
        mass = self.mass + 1e-9
        mean = np.bincount(interval, mass * _middles()) / np.bincount(interval, mass)
        return interval, np.asarray(mean[interval], dtype=np.float64)


def _middles() -> Floats:
    return np.asarray((np.arange(BINS) + 0.5) * (2 / BINS) - 1, dtype=np.float64)


def kmeans(points: Floats, weights: Floats, k: int, seed: int) -> tuple[Floats, float]:
    """Weighted k-means++ (Arthur & Vassilvitskii 2007) and Lloyd's steps: the best of RESTARTS and its inertia.

    At most as many centres as points. The same arguments give the same centres.
    """
    rng = np.random.default_rng(seed)  # noqa: TID251 - it starts k-means; it protects nothing
    k = min(k, len(points))
    # All draws at once, so that what follows needs no source: one first point and k - 1 more a restart.
    draws = rng.random((RESTARTS, k))
    found = [_settled(points, weights, _scattered(points, weights, d)) for d in draws]
    return min(found, key=lambda f: f[1])


def _scattered(points: Floats, weights: Floats, draws: Floats) -> Floats:
    """One centre a draw (uniform in [0, 1)), the farther from those before it the likelier."""
    chosen: list[int] = []
    for draw in draws.tolist():
        near = _distances(points, points[chosen]).min(axis=1) * weights if chosen else weights
        steps = np.cumsum(near if near.sum() > 0 else weights)
        chosen.append(int(np.searchsorted(steps, draw * steps[-1], side="right")))
    return points[np.minimum(chosen, len(points) - 1)]


def _settled(points: Floats, weights: Floats, centres: Floats) -> tuple[Floats, float]:
    group = assign(points, centres)
    for _ in range(SETTLED):
        own = (np.arange(len(centres))[:, None] == group) * weights
        mass = own.sum(axis=1)
        centres = np.where(mass[:, None] > 0, own @ points / np.maximum(mass, 1e-300)[:, None], centres)
        before, group = group, assign(points, centres)
        if (group == before).all():
            break
    return centres, float((_distances(points, centres).min(axis=1) * weights).sum())


def _distances(points: Floats, centres: Floats) -> Floats:
    return np.asarray(((points[:, None, :] - centres) ** 2).sum(axis=2))


def choose(inertia: dict[int, float], dimensions: int) -> Choice:
    """The number of segments that lowers the inertia most against what it would do to uniform points (the f(K) of
    Pham, Dimov & Nguyen 2005); one segment unless some number scores below 0.85, as they advise."""
    if len(inertia) == 1:
        return Choice(inertia, {}, next(iter(inertia)))
    score, alpha = {}, 1 - 3 / (4 * max(dimensions, 2))
    for before, k in pairwise(sorted(inertia)):
        score[k] = inertia[k] / max(alpha * inertia[before], 1e-12)
        alpha += (1 - alpha) / 6
    best = min(score, key=lambda k: score[k])
    return Choice(inertia, score, best if score[best] < DISTINCT else 1)
