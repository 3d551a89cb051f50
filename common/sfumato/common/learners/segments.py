"""Segments: which kinds of customers are there, by their numbers?

Question       How many segments (or: up to how many, the best number chosen), over numbers scaled to [-1, 1].
Contribution   Round 0: one bin a number, l2 norm sqrt(G). Round 1: one public micro-cell a customer, and there a
               count, how far the customer lies from the cell's middle, and the square of that; cut to norm 1.
               Then Lloyd's steps: count and way against the nearest centre, cut to norm 1.
Reading        Centres, and what number of segments was chosen and why. Who is in a segment, another sum says
               (analyses.segment_members): the last step's own counts are of the centres before it.

Micro-cells follow the noisy histograms of round 0, which know no joint value: they are products of intervals, more of
them where a number varies more. Weighted k-means over the cells is free, and so are its restarts and every number of
segments; only the last steps look at customers again (after Su et al. 2016, Differentially Private K-Means).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import sqrt
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contributions import Cells, Contributions, Rows
from sfumato.common.learners.kmeans import BINS, MOST_INTERVALS, Choice, Cuts, assign, choose, kmeans

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Asked = npt.NDArray[np.float32]

CELL_PARTS = (0.6, 0.78, 0.17)  # of a row's norm: for the count, for the way from the middle, for its square
STEP_PARTS = (0.6, 0.8)  # for the count and the way from the centre
REACHES = 2.0  # how many root mean squares around its centre a customer is listened to


class Question(BaseModel):
    """`segments` fixed, or None: the best number from 2 to `most`. `cells` is how many micro-cells there are at
    most, `steps` how many of Lloyd's steps look at the customers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    segments: int | None = Field(default=None, ge=1, le=32)
    most: int = Field(default=8, ge=2, le=32)
    cells: int = Field(default=64, ge=4, le=4096)
    steps: int = Field(default=3, ge=1, le=20)
    histogram_share: float = Field(default=0.15, gt=0, lt=1)
    cells_share: float = Field(default=0.35, gt=0, lt=1)

    @model_validator(mode="after")
    def _something_is_left(self) -> Self:
        if self.histogram_share + self.cells_share >= 1:
            raise ValueError("histogram_share and cells_share leave nothing for Lloyd's steps")
        if self.cells < (self.segments or self.most):
            raise ValueError("there must be at least as many cells as segments")
        return self


@dataclass(frozen=True)
class Moments:
    """Per group: noisy count [k], sum of what lies between customers and the group's middle [k, G]. With the standard
    deviations of their noise."""

    counts: Floats
    ways: Floats
    count_std: float
    way_std: float


@dataclass(frozen=True)
class Portions:
    """Micro-cells: of every number's bins [G, BINS], in which interval they lie and where its middle is."""

    interval: Ints
    middle: Floats
    radius: float

    @property
    def strides(self) -> Ints:
        """A customer's cell is the sum of interval times stride; the last is how many cells there are."""
        return np.concatenate([[1], np.cumprod(self.interval.max(axis=1) + 1)]).astype(np.int64)


@dataclass(frozen=True)
class Centres:
    """Of k segments: where they are [k, G], and how far around them a customer is listened to."""

    places: Floats
    radius: float


@dataclass(frozen=True)
class Segmentation:
    """k-means over `names`: customers' columns {"numeric": float [n, G] in [-1, 1]} (see learners.encoding)."""

    names: tuple[str, ...]
    question: Question
    columns: tuple[str, ...] = field(default=("numeric",), init=False)

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError("Segments need numbers, of different names.")

    @cached_property
    def shares(self) -> tuple[float, ...]:
        q = self.question
        step = (1 - q.histogram_share - q.cells_share) / q.steps
        return (q.histogram_share, q.cells_share, *[step] * q.steps)

    @property
    def most(self) -> int:
        return self.question.segments or self.question.most

    def max_norm(self, round_: int) -> float:
        return sqrt(len(self.names)) if round_ == 0 else 1.0

    def length(self, round_: int) -> int:
        if round_ == 0:
            return len(self.names) * BINS
        if round_ == 1:
            return self.question.cells * (1 + len(self.names)) + 1
        return self.most * (1 + len(self.names))

    # --- one customer ----------------------------------------------------------------------------------

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: Asked | None) -> Contributions:
        """Raises ValueError on an `asked` of another form, or numbers that are not in [-1, 1]."""
        values = np.asarray(columns["numeric"], dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.names) or not (np.abs(values) <= 1).all():
            raise ValueError(f"Expected {len(self.names)} numbers in [-1, 1] for each customer.")
        if round_ == 0:
            if asked is not None:
                raise ValueError("The histograms are asked without numbers.")
            cells = _bin(values) + np.arange(len(self.names)) * BINS
            return Cells(cells, np.ones(len(self.names)), self.length(0))
        if round_ == 1:
            portions = self._portions_of(asked)
            bins, each = _bin(values), np.arange(len(self.names))
            group = portions.interval[each, bins] @ portions.strides[:-1]
            way = _shortened((values - portions.middle[each, bins]) / portions.radius)
            count, far, square = CELL_PARTS
            squares = square * (way**2).sum(axis=1, keepdims=True)
            return Rows(np.hstack([_rows(group, way, self.question.cells, (count, far)), squares]))
        centres = self._centres_of(asked)
        group = assign(values, centres.places)
        way = _shortened((values - centres.places[group]) / centres.radius)
        return Rows(_rows(group, way, self.most, STEP_PARTS))

    def _portions_of(self, asked: Asked | None) -> Portions:
        size = len(self.names) * BINS
        if asked is None or asked.shape != (1 + 2 * size,) or not np.isfinite(asked).all() or asked[0] <= 0:
            raise ValueError(f"Expected {1 + 2 * size} finite numbers, and a radius above zero.")
        numbers = asked.astype(np.float64)
        interval, middle = numbers[1:].reshape(2, len(self.names), BINS)
        whole = interval.astype(np.int64)
        if (
            (whole != interval).any()
            or not ((whole >= 0) & (whole < BINS)).all()
            or (np.abs(middle) > 1).any()
        ):
            raise ValueError("Expected an interval for every bin, with a middle in [-1, 1].")
        count = 1
        for most in (whole.max(axis=1) + 1).tolist():
            count *= most
            if count > self.question.cells:
                raise ValueError(f"Expected at most {self.question.cells} cells.")
        return Portions(whole, middle, float(numbers[0]))

    def _centres_of(self, asked: Asked | None) -> Centres:
        size = 2 + self.most * len(self.names)
        if asked is None or asked.shape != (size,) or not np.isfinite(asked).all() or asked[1] <= 0:
            raise ValueError(f"Expected {size} finite numbers, and a radius above zero.")
        if asked[0] not in range(1, self.most + 1) or (np.abs(asked[2:]) > 1).any():
            raise ValueError(f"Expected 1 to {self.most} centres in [-1, 1].")
        numbers = asked.astype(np.float64)
        places = numbers[2:].reshape(self.most, len(self.names))[: int(asked[0])]
        return Centres(places, float(numbers[1]))

    # --- the coordinator -------------------------------------------------------------------------------

    def ask(self, round_: int, totals: list[NoisySum]) -> Asked | None:
        """Round 1: [radius | intervals G x BINS | middles]. Then: [k | radius | centres, padded]."""
        if round_ == 0:
            return None
        if round_ == 1:
            portions = self._portions(totals[0])
            parts = [[portions.radius], portions.interval.ravel(), portions.middle.ravel()]
        else:
            centres = self._centres(totals[:round_])
            padding = np.zeros((self.most - len(centres.places)) * len(self.names))
            parts = [[len(centres.places), centres.radius], centres.places.ravel(), padding]
        return np.concatenate([np.asarray(p, dtype=np.float32) for p in parts])

    def _portions(self, total: NoisySum) -> Portions:
        """Cells where they save most: one interval more where that lowers the spread most for its price in cells."""
        counts = total.values.reshape(len(self.names), BINS)
        counts = np.where(counts >= 2 * total.std, np.maximum(counts, 0.0), 0.0)
        counts = np.where(counts.sum(axis=1, keepdims=True) > 0, counts, 1.0)
        plans = [Cuts.of(c / c.sum()) for c in counts]
        taken = [1] * len(plans)
        while True:
            free = self.question.cells / np.prod(taken)
            gains = {
                f: (plan.spread[k - 1] - plan.spread[k]) / np.log((k + 1) / k)
                for f, (plan, k) in enumerate(zip(plans, taken, strict=True))
                if k < MOST_INTERVALS and (k + 1) / k <= free
            }
            best = max(gains, key=lambda f: gains[f], default=None)
            if best is None or gains[best] <= 1e-12:
                break
            taken[best] += 1
        cut = [plan.intervals(k) for plan, k in zip(plans, taken, strict=True)]
        spread = sum(plan.spread[k - 1] for plan, k in zip(plans, taken, strict=True))
        return Portions(
            np.stack([i for i, _ in cut]), np.stack([m for _, m in cut]), REACHES * sqrt(spread + 1e-6)
        )

    def _moments(self, total: NoisySum, groups: int, radius: float, parts: tuple[float, float]) -> Moments:
        count, way = parts
        counts, ways = np.split(total.values[: groups * (1 + len(self.names))], [groups])
        return Moments(
            counts / count,
            ways.reshape(groups, -1) * (radius / way),
            total.std / count,
            total.std * radius / way,
        )

    def _points(self, totals: Sequence[NoisySum]) -> tuple[Floats, Floats, float]:
        """The micro-cells that stand out of the noise: where their customers are on average [c, G], how many they
        are [c], and the squares inside the cells, of everyone."""
        portions = self._portions(totals[0])
        strides = portions.strides
        moments = self._moments(totals[1], self.question.cells, portions.radius, CELL_PARTS[:2])
        squares = max(float(totals[1].values[-1]) * portions.radius**2 / CELL_PARTS[2], 0.0)
        cell = np.arange(strides[-1])
        interval = cell[:, None] // strides[:-1] % (portions.interval.max(axis=1) + 1)
        middles = np.stack(
            [
                _first(portions.interval[f], portions.middle[f])[interval[:, f]]
                for f in range(len(self.names))
            ],
            1,
        )
        counts, ways = moments.counts[cell], moments.ways[cell]
        # Averages of few customers are mostly noise: they are drawn to the middle as far as that is so.
        expected = counts**2 * portions.radius**2 / (REACHES**2 * len(self.names))
        drawn = expected / (expected + moments.way_std**2 + 1e-12)
        places = middles + ways / np.maximum(counts, 1.0)[:, None] * drawn[:, None]
        kept = counts >= max(2 * moments.count_std, 0.5)
        if not kept.any():
            kept = counts >= counts.max()
        people = np.maximum(counts[kept], 1.0)
        inside = max(squares - float((people * ((places - middles)[kept] ** 2).sum(axis=1)).sum()), 0.0)
        return np.clip(places[kept], -1, 1), people, inside

    @cached_property
    def _drawn(self) -> dict[bytes, tuple[Choice, Centres]]:
        return {}

    def _start(self, totals: Sequence[NoisySum]) -> tuple[Choice, Centres]:
        """Weighted k-means over the micro-cells; the same totals give the same centres."""
        key = hashlib.sha256(totals[0].values.tobytes() + totals[1].values.tobytes()).digest()
        if key not in self._drawn:
            points, people, inside = self._points(totals)
            fixed = self.question.segments
            wanted = range(1, self.question.most + 1) if fixed is None else (fixed,)
            seed = int.from_bytes(key)
            found = {k: kmeans(points, people, k, seed) for k in wanted}
            choice = choose({k: inside + left for k, (_, left) in found.items()}, len(self.names))
            radius = REACHES * sqrt(max(choice.inertia[choice.segments] / people.sum(), 1e-4))
            self._drawn[key] = choice, Centres(found[choice.segments][0], radius)
        return self._drawn[key]

    def _centres(self, totals: Sequence[NoisySum]) -> Centres:
        centres = self._start(totals)[1]
        for total in totals[2:]:
            centres = self._moved(centres, total)
        return centres

    def _moved(self, centres: Centres, total: NoisySum) -> Centres:
        """Each centre goes to its customers' average, if it has more of them than noise."""
        moments = self._moments(total, self.most, centres.radius, STEP_PARTS)
        k = len(centres.places)
        enough = moments.counts[:k] >= max(3 * moments.count_std, 0.5)
        move = moments.ways[:k] / np.where(enough, moments.counts[:k], 1.0)[:, None]
        return replace(centres, places=np.clip(centres.places + np.where(enough[:, None], move, 0.0), -1, 1))

    # --- reading ---------------------------------------------------------------------------------------

    def centres(self, totals: Sequence[NoisySum]) -> Asked:
        """The finished centres, float32 [k, G], largest segment first: what `assign` needs at a branch."""
        places = self._centres(totals).places
        return places[self._by_size(totals, len(places))].astype(np.float32)

    def _by_size(self, totals: Sequence[NoisySum], k: int) -> Ints:
        """The segments, largest first by the counts of the last step; before the first step, as they came."""
        if len(totals) < 3:
            return np.arange(k)
        counts = self._moments(totals[-1], self.most, 1.0, STEP_PARTS).counts[:k]
        return np.argsort(-counts, kind="stable")

    def chosen(self, totals: Sequence[NoisySum]) -> dict[str, Any]:
        """{"segments", "of": [{"segments", "inertia", "score"}]}: how many, and by what. Both are read from the
        micro-cells, to choose by; lower is better."""
        choice, centres = self._start(totals)
        tried = [
            {"segments": n, "inertia": i, "score": choice.score.get(n)} for n, i in choice.inertia.items()
        ]
        return {"segments": len(centres.places), "of": tried}


def _bin(values: Floats) -> Ints:
    return np.minimum(((values + 1) * (BINS / 2)).astype(np.int64), BINS - 1)


def _shortened(way: Floats) -> Floats:
    """Of length 1 at most."""
    return np.asarray(way / np.maximum(np.sqrt((way**2).sum(axis=1)), 1.0)[:, None])


def _rows(group: Ints, way: Floats, groups: int, parts: tuple[float, float]) -> Floats:
    """[counts | ways, group after group]."""
    count, far = parts
    n, dims = way.shape
    rows = np.zeros((n, groups * (1 + dims)))
    everyone = np.arange(n)
    rows[everyone, group] = count
    rows[everyone[:, None], groups + group[:, None] * dims + np.arange(dims)] = far * way
    return rows


def _first(interval: Ints, middle: Floats) -> Floats:
    """The middle of each interval, from the bins."""
    return np.asarray(middle[np.unique(interval, return_index=True)[1]])
