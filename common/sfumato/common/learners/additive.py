"""The additive model: one curve a column, added up to log-odds. What an explainable score is made of.

Question       For a customer in these bins, the log-odds of the label as an intercept plus one number a column.
Contribution   Round 0, unless the counts are known (from a schema round): one cell a column of (bin, label), l2
               norm sqrt(F). Then each round groups every column's
               bins into a few leaves, and a customer with residual g = y - p and curvature h = p (1 - p) adds
               w_f (g, 3 h) to one leaf of every column f, where the squares of the public weights w add up to 1:
               g^2 + 9 h^2 <= 1, so the norm is at most 1 and the curvature costs nothing.
Reading        Curves with noise bands, centred over the customers; the counts are kept for WOE and IV.

Boosted in small full-batch steps, all columns at once (generalised additive models by cyclic boosting: Lou et al.
2012; under DP: Nori et al. 2021). Full batch and a number of rounds fixed beforehand: there is no sampling or
stopping rule to pay for. Which columns get the larger weights is read off the counts, so it costs nothing more.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from math import sqrt
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contributions import Cells, Contributions, Rows
from sfumato.common.errors import BadInput
from sfumato.common.learners.curves import BinnedColumn, Counts, Curve, Model, pooled

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Asked = npt.NDArray[np.float32]
Direction = Literal["increasing", "decreasing"]

CURVATURE = 3.0  # how much larger than the residual the curvature is sent; see the contribution
MOST_LOGIT = 30.0
FEWEST_LEAVES = 3  # of a column in a step, if it has so many bins
LEAST_SPREAD = 0.01  # variance of a column's curve, expected of one that seems to say nothing


class Steps(BaseModel):
    """How to fit. `monotone` names columns whose curve may only rise or fall, by the label's log-odds.

    `rate` is the first step, `leaves` the most groups of bins a column has in a round, `uniform` the part of the
    attention that all columns get alike; the rest goes by their gains to the power `focus`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(default=40, ge=1, le=400)
    rate: float = Field(default=0.2, gt=0, le=1)
    leaves: int = Field(default=6, ge=2, le=64)
    uniform: float = Field(default=0.3, gt=0, le=1)
    focus: float = Field(default=0.55, ge=0, le=2)
    monotone: dict[str, Direction] = Field(default_factory=dict)


class Question(Steps):
    """The same, and the part of the budget for the counts of round 0."""

    count_share: float = Field(default=0.15, gt=0, lt=1)


def build(question: Question, columns: Sequence[BinnedColumn], known: Counts | None = None) -> "Additive":
    """With `known` counts of these very bins there is no round for them. Raises BadInput on a monotone column that
    is not there or has no order, and on counts of other bins."""
    by_name = {c.name: c for c in columns}
    if not columns or len(by_name) < len(columns):
        raise BadInput("an additive model needs columns of different names")
    for name in question.monotone:
        if name not in by_name:
            raise BadInput(f"question.monotone: there is no column {name!r}")
        if by_name[name].ordered < 2:
            raise BadInput(f"question.monotone: the bins of {name!r} have no order")
    bins = sum(len(c.bins) for c in columns)
    if known is not None and (known.values.shape != (2, bins) or known.std.shape != (bins,)):
        raise BadInput(f"the counts are not those of the {bins} bins of the columns")
    return Additive(tuple(columns), question, known)


@dataclass(frozen=True)
class Fit:
    """What the totals so far say: bins of all columns side by side, float64 [B]."""

    intercept: float
    shapes: Floats
    counts: Floats  # [2, B]: label 0, label 1, with one size for all columns
    attention: Floats  # [F]: squares of the columns' weights
    gain: Floats  # [F]: what the counts say that a column tells, by itself


@dataclass(frozen=True)
class Step:
    """One round's totals, read: per leaf [L] the step of its bins, and what the noise band needs."""

    leaf: Ints  # [B]
    gradient: Floats
    response: Floats  # the step is `response` times the gradient
    curvature: Floats
    noise: Floats  # standard deviation of the gradient
    intercept: float


@dataclass(frozen=True)
class Additive:
    """A fit over `customers' columns` {"codes": int64 [n, F], "label": 0/1 [n]}."""

    inputs: tuple[BinnedColumn, ...]
    question: Question
    known: Counts | None = None
    columns: tuple[str, ...] = field(default=("codes", "label"), init=False)

    @cached_property
    def shares(self) -> tuple[float, ...]:
        q = self.question
        counting = (q.count_share,) * self._first
        return (*counting, *[(1 - sum(counting)) / q.rounds] * q.rounds)

    @property
    def _first(self) -> int:
        """The first round that is a step."""
        return 0 if self.known is not None else 1

    @cached_property
    def offsets(self) -> Ints:
        """Where each column's bins start; the last is how many there are in all. int64 [F + 1]"""
        return np.concatenate([[0], np.cumsum([len(c.bins) for c in self.inputs])]).astype(np.int64)

    @cached_property
    def owner(self) -> Ints:
        """Each bin's column, int64 [B]."""
        return np.repeat(np.arange(len(self.inputs)), np.diff(self.offsets))

    @cached_property
    def _leaf_owner(self) -> Ints:
        most = [min(self.question.leaves, len(c.bins)) for c in self.inputs]
        return np.repeat(np.arange(len(self.inputs)), most)

    def places(self, column: int) -> slice:
        """Where this column's bins lie."""
        return slice(int(self.offsets[column]), int(self.offsets[column + 1]))

    def max_norm(self, round_: int) -> float:
        return sqrt(len(self.inputs)) if round_ < self._first else 1.0

    def length(self, round_: int) -> int:
        return 2 * (int(self.offsets[-1]) if round_ < self._first else len(self._leaf_owner))

    # --- one customer ----------------------------------------------------------------------------------

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: Asked | None) -> Contributions:
        """Raises ValueError on an `asked` of another form, or codes and labels that are none."""
        places, label = self._rows(columns["codes"]), np.asarray(columns["label"], dtype=np.float64)
        if label.shape != (len(places),) or not np.isin(label, (0.0, 1.0)).all():
            raise ValueError("Expected one label, 0 or 1, for each customer.")
        if round_ < self._first:
            if asked is not None:
                raise ValueError("The counts are asked without numbers.")
            cells = places + label.astype(np.int64)[:, None] * self.offsets[-1]
            return Cells(cells, np.ones(len(self.inputs)), self.length(0))
        intercept, shapes, weights, leaf = self._understood(asked)
        logit = np.clip(intercept + shapes[places].sum(axis=1), -MOST_LOGIT, MOST_LOGIT)
        p = 1 / (1 + np.exp(-logit))
        rows = np.zeros((len(places), self.length(round_)))
        everyone = np.arange(len(places))
        for f, weight in enumerate(weights):
            cell = leaf[places[:, f]]
            rows[everyone, cell] = weight * (label - p)
            rows[everyone, cell + len(self._leaf_owner)] = weight * CURVATURE * p * (1 - p)
        return Rows(rows)

    def _rows(self, codes: Ints) -> Ints:
        if codes.ndim != 2 or codes.shape[1] != len(self.inputs) or codes.dtype != np.int64:
            raise ValueError(f"Expected int64 codes for {len(self.inputs)} columns.")
        if ((codes < 0) | (codes >= np.diff(self.offsets))).any():
            raise ValueError("Expected every code to be a bin of its column.")
        return codes + self.offsets[:-1]

    def _understood(self, asked: Asked | None) -> tuple[float, Floats, Floats, Ints]:
        bins, count = int(self.offsets[-1]), len(self.inputs)
        if asked is None or asked.shape != (1 + bins + count + bins,) or not np.isfinite(asked).all():
            raise ValueError(f"Expected {1 + 2 * bins + count} finite numbers.")
        numbers = asked.astype(np.float64)
        shapes, weights, leaf = np.split(numbers[1:], [bins, bins + count])
        if (weights <= 0).any() or float(weights @ weights) > 1:
            raise ValueError("Expected positive weights whose squares add up to 1 at most.")
        places = leaf.astype(np.int64)
        inside = (places == leaf) & (places >= 0) & (places < len(self._leaf_owner))
        if not inside.all() or (self._leaf_owner[places] != self.owner).any():
            raise ValueError("Expected every bin in a leaf of its own column.")
        return float(numbers[0]), shapes, weights, places

    # --- the coordinator -------------------------------------------------------------------------------

    def ask(self, round_: int, totals: list[NoisySum]) -> Asked | None:
        """[intercept | curves B | weights F | leaf of each bin B]."""
        if round_ < self._first:
            return None
        fit = self.fit(totals[:round_])
        weights = np.sqrt(fit.attention) * (1 - 1e-6)
        return np.concatenate(
            [[fit.intercept], fit.shapes, weights, self._leaves(fit, round_ - self._first)]
        ).astype(np.float32)

    def _leaves(self, fit: Fit, number: int) -> Ints:
        """Every bin's leaf in this step, int64 [B]; a column that tells more gets more of its leaves.

        The grouping is public and another in every step: bins in order are cut, the others dealt out.
        """
        fair = self.question.leaves / 2 * fit.attention * len(self.inputs)
        leaf = np.empty(int(self.offsets[-1]), dtype=np.int64)
        start = 0
        for f, column in enumerate(self.inputs):
            size = len(column.bins)
            most = min(self.question.leaves, size)
            groups = min(max(round(float(fair[f])), FEWEST_LEAVES), most)
            rank = _shuffled(f"{number}/{f}/rank", size).copy()
            if column.ordered > groups:
                cuts = 1 + np.sort(_shuffled(f"{number}/{f}/cuts", column.ordered - 1)[: groups - 1])
                rank[: column.ordered] = np.searchsorted(cuts, np.arange(column.ordered), side="right")
            leaf[self.places(f)] = start + rank % groups
            start += most
        return leaf

    def fit(self, totals: Sequence[NoisySum]) -> Fit:
        """The model after these totals."""
        fit = self._start(totals)
        for number, total in enumerate(totals[self._first :]):
            step = self._step(fit, number, total)
            raw = fit.shapes + (step.response * step.gradient)[step.leaf]
            shapes = self._constrained(self._centred(raw, fit.counts.sum(axis=0)), fit.counts.sum(axis=0))
            fit = replace(fit, intercept=fit.intercept + step.intercept, shapes=shapes)
        return fit

    def _counts(self, totals: Sequence[NoisySum]) -> Counts:
        if self.known is not None:
            return self.known
        bins = int(self.offsets[-1])
        return Counts(totals[0].values.reshape(2, bins), np.full(bins, totals[0].std))

    def _start(self, totals: Sequence[NoisySum]) -> Fit:
        found = self._counts(totals)
        # Every column counts the same customers: the best common total, and least squares within a column.
        variance = found.std**2 + 1e-12
        of_sum = np.bincount(self.owner, variance)
        sums = np.add.reduceat(found.values, self.offsets[:-1], axis=1)
        common = (sums / of_sum).sum(axis=1) / (1 / of_sum).sum()
        counts = found.values + (common[:, None] - sums)[:, self.owner] * variance / of_sum[self.owner]
        common = np.maximum(common, 1.0)
        rate = common[1] / common.sum()
        # Each bin's residuals under the base rate, and what of their squares is not noise.
        residual = (1 - rate) * counts[1] - rate * counts[0]
        noise = found.std**2 * (rate**2 + (1 - rate) ** 2)
        curvature = rate * (1 - rate) * np.maximum(counts.sum(axis=0), 0) + np.sqrt(noise) + 1
        gain = np.asarray(np.bincount(self.owner, (residual**2 - noise) / curvature), dtype=np.float64)
        liking = np.maximum(gain, 1e-9) ** self.question.focus
        uniform = self.question.uniform
        attention = uniform / len(self.inputs) + (1 - uniform) * liking / liking.sum()
        return Fit(float(np.log(rate / (1 - rate))), np.zeros(len(self.owner)), counts, attention, gain)

    def _step(self, fit: Fit, number: int, total: NoisySum) -> Step:
        """Newton's step of every leaf, made smaller where noise could have made it."""
        leaf, owner, q = self._leaves(fit, number), self._leaf_owner, self.question
        weight = np.sqrt(fit.attention)[owner]
        gradient, curvature = total.values.reshape(2, len(owner)) / weight
        curvature, noise = curvature / CURVATURE, total.std / weight
        # All columns add up to the same totals; the mean step of all is the intercept's, not the curves'.
        used = np.isin(np.arange(len(owner)), leaf)
        each = np.bincount(owner, used)
        precision, whole = used * weight**2 / each[owner], (fit.attention / each).sum()
        slope, bend = (float((x * precision).sum() / whole) for x in (gradient, curvature))
        bend = max(bend, 1.0)
        people = np.maximum(fit.counts.sum(axis=0), 1.0)
        share = np.bincount(leaf, people, minlength=len(owner)) / np.bincount(self.owner, people)[owner]
        curvature = np.maximum(curvature, np.maximum(0.25 * share * bend, 1.0))
        mean = slope / bend
        # Steps shrink to a tenth, so that the last ones average the noise of the first.
        rate = q.rate * (1 - 0.9 * number / max(1, q.rounds - 1))
        # What noise all the steps leave in a leaf, against how far the column's curve is expected to go.
        doubt = q.rate * noise**2 / curvature / np.maximum(fit.gain / bend, LEAST_SPREAD)[owner]
        response = rate / (curvature + 2 + doubt)
        return Step(leaf, gradient - mean * curvature, response, curvature, noise, 0.3 * mean)

    def _centred(self, curves: Floats, people: Floats) -> Floats:
        """Every column's curve is zero on average over the customers."""
        people = np.maximum(people, 0.0) + 1e-6
        mean = np.bincount(self.owner, curves * people) / np.bincount(self.owner, people)
        return np.asarray(curves - mean[self.owner])

    def _constrained(self, curves: Floats, people: Floats) -> Floats:
        """The nearest curves that are monotone where that was asked, by least squares over the customers."""
        for f, column in enumerate(self.inputs):
            direction = self.question.monotone.get(column.name)
            if direction is not None:
                sign = 1.0 if direction == "increasing" else -1.0
                start = self.offsets[f]
                part = slice(start, start + column.ordered)
                curves[part] = sign * pooled(sign * curves[part], np.maximum(people[part], 1.0))
        return curves

    def model(self, totals: Sequence[NoisySum]) -> Model:
        """The fitted model, with the standard deviation that the noise gave every number of it."""
        fit = self.fit(totals)
        deviations, counted = self._deviations(totals), self._counts(totals)
        curves = [
            Curve(
                column=column,
                values=fit.shapes[self.places(f)],
                std=deviations[self.places(f)],
                counts=fit.counts[:, self.places(f)],
                counts_std=counted.std[self.places(f)],
            )
            for f, column in enumerate(self.inputs)
        ]
        return Model(fit.intercept, tuple(curves))

    def _deviations(self, totals: Sequence[NoisySum]) -> Floats:
        """Of the curves' noise, [B]: carried through the steps as a covariance over each column's bins.

        A step of a leaf is linear in its gradient, and the gradient falls by curvature times what the curve has
        moved already: so later rounds take part of the earlier noise back. Columns are taken one by one.
        """
        fit = self._start(totals)
        people = np.maximum(fit.counts.sum(axis=0), 1.0)
        covariances = [np.zeros((len(c.bins), len(c.bins))) for c in self.inputs]
        for number, total in enumerate(totals[self._first :]):
            step = self._step(fit, number, total)
            inside = np.bincount(step.leaf, people, minlength=len(self._leaf_owner))
            part = people / inside[step.leaf]
            for f, before in enumerate(covariances):
                mine = self.places(f)
                leaf, weights = step.leaf[mine], people[mine] / people[mine].sum()
                same = leaf[:, None] == leaf
                response = step.response[leaf]
                kept = np.eye(len(leaf)) - same * (response * step.curvature[leaf])[:, None] * part[mine]
                centre = np.eye(len(leaf)) - weights
                fresh = same * np.outer(response * step.noise[leaf], response * step.noise[leaf])
                covariances[f] = centre @ (kept @ before @ kept.T + fresh) @ centre.T
        return np.asarray(np.sqrt(np.concatenate([np.diag(c) for c in covariances])))

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """See `Model.as_dict`."""
        return self.model(totals).as_dict()


@lru_cache(maxsize=1 << 14)
def _shuffled(name: str, size: int) -> Ints:
    """A public permutation of 0 to size - 1, the same on every machine."""
    keys = [hashlib.sha256(f"sfumato-leaves/{name}/{i}".encode()).digest() for i in range(size)]
    return np.asarray(sorted(range(size), key=keys.__getitem__), dtype=np.int64)
