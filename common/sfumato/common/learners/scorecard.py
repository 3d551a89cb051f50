"""The scorecard: an additive model in whole points, as risk departments read it.

Points are the model. Every bin has a whole number of points and so has the base; a customer's score is their sum,
and `log_odds` is defined from the score alone. So every place that knows the table gives the same score and the same
log-odds to the last bit, and what rounding the curves to points costs is paid once, in the table.

More points are better: `base_score` stands for odds of `base_odds` good customers (label 0) to one bad, and
`double` points more double them (Siddiqi 2017, chapter 10). A reason is a column that cost points against its
neutral level, which is what the average customer has there.

WOE and IV come from the noisy counts by label (Siddiqi 2017, chapter 8): WOE = ln(share of the good / share of the
bad), and IV adds up (share of the good - share of the bad) WOE.
"""

from dataclasses import dataclass
from math import log, sqrt

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from sfumato.common.analyses.estimates import LEVEL, REACH
from sfumato.common.learners.curves import Curve, Model

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FEWEST = 0.5  # customers: no count is taken for less, so that its logarithm is one
MOST_POINTS = 1_000_000


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Scaling(_Frozen):
    """`base_score` points are odds of `base_odds` to one; `double` points more double them."""

    base_score: int = Field(default=600, ge=-100_000, le=100_000)
    base_odds: float = Field(default=50.0, ge=1e-6, le=1e6)
    double: int = Field(default=20, ge=1, le=10_000)

    @property
    def factor(self) -> float:
        """Points that one unit of log-odds makes."""
        return self.double / log(2)

    def score(self, log_odds: float) -> float:
        """The points, not yet whole, of these log-odds of the label."""
        return self.base_score - self.factor * (log_odds + log(self.base_odds))

    def log_odds(self, score: Ints) -> Floats:
        """Of the label (bad), float64: what these scores mean."""
        return np.asarray((self.base_score - score) / self.factor - log(self.base_odds), dtype=np.float64)


class Estimate(_Frozen):
    """A number with its 95 % interval, for the noise alone."""

    value: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat


class Bin(_Frozen):
    """One line of the card. `noise` is how many points the noise may have moved it, either way."""

    bin: str
    points: int = Field(ge=-MOST_POINTS, le=MOST_POINTS)
    noise: float = Field(ge=0)
    share: float = Field(ge=0, le=1)
    bad_rate: Estimate
    woe: Estimate


class Attribute(_Frozen):
    """A column's lines, in the order of its codes; `neutral` is what the average customer has of it."""

    column: str
    neutral: int
    iv: Estimate
    bins: tuple[Bin, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Reason:
    """A column that cost a customer points against its neutral level, and the bin that did it."""

    column: str
    bin: str
    points_lost: int


class Scorecard(_Frozen):
    """The table: JSON by `model_dump(mode="json")`, and back by `model_validate`."""

    scaling: Scaling
    base: int
    level: float = LEVEL
    attributes: tuple[Attribute, ...] = Field(min_length=1)

    @field_validator("attributes")
    @classmethod
    def _each_once(cls, attributes: tuple[Attribute, ...]) -> tuple[Attribute, ...]:
        if len({a.column for a in attributes}) < len(attributes):
            raise ValueError("a column is there twice")
        return attributes

    @model_validator(mode="after")
    def _in_range(self) -> "Scorecard":
        if abs(self.base) > MOST_POINTS:
            raise ValueError(f"the base must be within {MOST_POINTS:,} points")
        return self

    def points(self, codes: Ints) -> Ints:
        """Of each customer and column, int64 [n, F]. Raises ValueError on codes that are no bins."""
        sizes = np.array([len(a.bins) for a in self.attributes])
        if codes.ndim != 2 or codes.shape[1] != len(sizes) or codes.dtype != np.int64:
            raise ValueError(f"Expected int64 codes for {len(sizes)} columns.")
        if ((codes < 0) | (codes >= sizes)).any():
            raise ValueError("Expected every code to be a bin of its column.")
        tables = [np.array([b.points for b in a.bins], dtype=np.int64) for a in self.attributes]
        return np.stack([t[codes[:, f]] for f, t in enumerate(tables)], axis=1)

    def scores(self, codes: Ints) -> Ints:
        """Each customer's points, int64 [n]. Inside a vault only: one of these is one customer's."""
        return np.asarray(self.base + self.points(codes).sum(axis=1), dtype=np.int64)

    def log_odds(self, codes: Ints) -> Floats:
        """Each customer's log-odds of the label: exactly those of their points."""
        return self.scaling.log_odds(self.scores(codes))

    def reasons(self, codes: Ints, most: int = 4) -> list[tuple[Reason, ...]]:
        """For each customer the columns that cost most points against neutral, dearest first; only those that cost
        any, and of equal cost the one that is first in the card."""
        points = self.points(codes)
        lost = np.array([a.neutral for a in self.attributes]) - points
        order = np.argsort(-lost, axis=1, kind="stable")[:, :most]
        found = []
        for row, columns in enumerate(order.tolist()):
            costly = [f for f in columns if lost[row, f] > 0]
            found.append(
                tuple(
                    Reason(a.column, a.bins[int(codes[row, f])].bin, int(lost[row, f]))
                    for f, a in ((f, self.attributes[f]) for f in costly)
                )
            )
        return found


def scorecard(model: Model, scaling: Scaling | None = None) -> Scorecard:
    """The model's card. Public: it needs no data."""
    scaling = scaling or Scaling()
    return Scorecard(
        scaling=scaling,
        base=_whole(scaling.score(model.intercept)),
        attributes=tuple(_attribute(curve, scaling) for curve in model.curves),
    )


def _whole(points: float) -> int:
    return int(np.clip(np.rint(points), -MOST_POINTS, MOST_POINTS))


def _attribute(curve: Curve, scaling: Scaling) -> Attribute:
    points = [_whole(-scaling.factor * v) for v in curve.values.tolist()]
    people = curve.people
    everyone = float(people.sum()) or 1.0
    woes, iv = evidence(curve.counts, curve.counts_std)
    bins = [
        Bin(
            bin=word,
            points=points[b],
            noise=float(REACH * curve.std[b] * scaling.factor),
            share=float(people[b]) / everyone,
            bad_rate=_rate(curve.counts[:, b], float(curve.counts_std[b])),
            woe=woes[b],
        )
        for b, word in enumerate(curve.column.bins)
    ]
    return Attribute(
        column=curve.column.name,
        neutral=_whole(float(np.dot(points, people)) / everyone),
        iv=iv,
        bins=tuple(bins),
    )


def evidence(counts: Floats, std: Floats) -> tuple[list[Estimate], Estimate]:
    """WOE of every bin and IV of the column, from counts [2, bins] (good, bad) with independent noise `std` [bins].

    WOE: an interval for each logarithm, put together by the method of variance estimates recovery (Zou & Donner
    2008), which stays right where a count is near nothing. IV: the bias that the noise alone makes is taken off,
    and the interval is the delta method's.
    """
    good, bad = np.maximum(counts, FEWEST)
    all_good, all_bad = float(good.sum()), float(bad.sum())
    woe = np.log(good / all_good) - np.log(bad / all_bad)
    lower = [np.log(x / np.maximum(x - REACH * std, np.minimum(x, FEWEST))) for x in (good, bad)]
    upper = [np.log((x + REACH * std) / x) for x in (good, bad)]
    of_totals = REACH**2 * float((std**2).sum()) * (all_good**-2 + all_bad**-2)
    down = np.sqrt(lower[0] ** 2 + upper[1] ** 2 + of_totals)
    rise = np.sqrt(upper[0] ** 2 + lower[1] ** 2 + of_totals)
    woes = [
        Estimate(value=v, low=v - d, high=v + u)
        for v, d, u in zip(woe.tolist(), down.tolist(), rise.tolist(), strict=True)
    ]
    return woes, information(good / all_good, bad / all_bad, std / all_good, std / all_bad)


def information(
    p: Floats, q: Floats, p_std: Floats, q_std: Floats, spread: tuple[Floats, Floats] | None = None
) -> Estimate:
    """IV of two distributions over bins, whose entries carry noise of these standard deviations.

    All entries add up to 1: `spread` says of both which part of the others' noise each entry took for that. Where
    counts were divided by their sum it is the entry itself; of counts that least squares made add up to a better
    known sum it is the entry's part of the variance.
    """
    value = float(((p - q) * np.log(p / q)).sum())
    # A bin of less than its noise bends by the noise's own size, not by its own.
    p_floor, q_floor = np.maximum(p, p_std), np.maximum(q, q_std)
    bend_p, bend_q = 1 / p_floor + q_floor / p_floor**2, 1 / q_floor + p_floor / q_floor**2
    p_part, q_part = spread or (p, q)
    left_p, left_q = (s**2 * (1 - 2 * x) + (s**2).sum() * x**2 for x, s in ((p_part, p_std), (q_part, q_std)))
    bias = 0.5 * float((bend_p * left_p + bend_q * left_q).sum())
    ratio = np.log(p_floor / q_floor)
    slope_p, slope_q = ratio + 1 - q_floor / p_floor, 1 - ratio - p_floor / q_floor
    slope_p, slope_q = slope_p - (p_part * slope_p).sum(), slope_q - (q_part * slope_q).sum()
    linear = float(((p_std * slope_p) ** 2 + (q_std * slope_q) ** 2).sum())
    bent = 0.5 * float((p_std**4 * bend_p**2 + q_std**4 * bend_q**2).sum())
    reach = REACH * sqrt(linear + bent)
    best = max(value - bias, 0.0)
    return Estimate(value=best, low=max(value - bias - reach, 0.0), high=best + reach)


def _rate(counts: Floats, std: float) -> Estimate:
    """The share of the bad, with Fieller's interval (1954); [0, 1] where noise drowns the bin."""
    n, x = float(counts.sum()), float(counts[1])
    vn, vx = 2 * std**2, std**2
    a, b, d = n * n - REACH**2 * vn, x * n - REACH**2 * vx, x * x - REACH**2 * vx
    if a <= 0 or n <= 0:
        value = min(max(x / n, 0.0), 1.0) if n > 0 else 0.0
        return Estimate(value=value, low=0.0, high=1.0)
    reach = sqrt(max(b * b - a * d, 0.0))
    value, low, high = (min(max(r, 0.0), 1.0) for r in (x / n, (b - reach) / a, (b + reach) / a))
    return Estimate(value=value, low=low, high=high)
