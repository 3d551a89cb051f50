"""Maximum likelihood of a model with few parameters, from noisy sums over customers.

First a noisy grid: counts of customers in public cells. A first fit compares them with the cells' probabilities, and
stand-ins (points with a weight, the model's within a cell; between cells the counts', as far as they stand out of
the noise) give the likelihood a shape. Then sums of customers' scores, the gradients of their log-likelihoods, each
with a length of at most a bound, say how far the shape's top lies from the customers' own: the stand-ins'
log-likelihood plus a linear term whose gradient is right where the scores were asked. That is a Newton step whose
curvature may change on the way. Its error is the noise of the last sum, and what the clipping took off the few
longest scores; the noise, drawn again and again, gives other tops: the intervals.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares, minimize

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.estimates import REACH

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WEAKLY_HELD = 4.0  # in u, how far from the guess the first fit goes without a reason
# Intervals are this much wider than the noise alone makes them: the shape between where scores were asked and the top
# is the stand-ins', and long scores were cut. With 1, nominal 95 % held in 88 to 90 % of what was measured.
WIDEN = 1.15
DROWNED = 0.15  # standard deviations of a whitened score's mean


class Likelihood(Protocol):
    """Public limits of the parameters u [k], and of customers [n, d] the log-likelihood [n] and score [n, k]. Scores
    are asked between the `inner` limits, away from corners where they say little."""

    @property
    def low(self) -> Floats: ...

    @property
    def high(self) -> Floats: ...

    @property
    def inner(self) -> tuple[Floats, Floats]: ...

    def log_likelihood(self, u: Floats, data: Floats) -> Floats: ...

    def score(self, u: Floats, data: Floats) -> Floats: ...


@dataclass(frozen=True)
class Points:
    """Points [n, d] that could be customers, each in a cell of the grid; `slab` is the part of the grid that the
    model takes as given (as a history's length), `volume` the logarithm of what a point's density is weighed by."""

    data: Floats
    cell: Ints
    slab: Ints
    volume: Floats

    def sums(self, values: Floats, by: Ints) -> Floats:
        return np.bincount(by, values).astype(np.float64)


@dataclass(frozen=True)
class StandIns:
    """Points with weights [n] that add up to about the customers. A linear term `tilt` [k] may be added to their
    log-likelihood."""

    model: Likelihood
    points: Points
    weights: Floats
    start: Floats
    tilt: Floats | float = 0.0

    @staticmethod
    def of(model: Likelihood, points: Points, counts: NoisySum, start: Floats) -> "StandIns":
        """From noisy counts in the points' cells; `start` is a guess of the parameters."""
        slab_of = np.zeros(counts.values.size, np.int64)
        slab_of[points.cell] = points.slab
        size = np.maximum(np.bincount(slab_of, counts.values), 1.0)

        def masses(u: Floats) -> Floats:
            log = model.log_likelihood(u, points.data) + points.volume
            log = np.exp(log - log.max())
            return np.asarray(log / points.sums(log, points.slab)[points.slab] * size[points.slab])

        def residuals(u: Floats) -> Floats:
            expected = points.sums(masses(u), points.cell)
            off = (expected - counts.values) / np.sqrt(counts.std**2 + expected)
            return np.concatenate([off, (u - start) / WEAKLY_HELD])

        fitted = least_squares(residuals, start, bounds=(model.low, model.high), x_scale=1.0).x
        mass = masses(fitted)
        expected = points.sums(mass, points.cell)
        shown = _shrunken(counts, expected)
        weights = mass * np.divide(shown, expected, out=np.ones_like(shown), where=expected > 0)[points.cell]
        return StandIns(model, points, weights, fitted)

    @property
    def customers(self) -> float:
        return float(self.weights.sum())

    def gradient(self, u: Floats) -> Floats:
        return np.asarray(self.weights @ self.model.score(u, self.points.data))

    def top(
        self,
        start: Floats | None = None,
        push: Floats | float = 0.0,
        held: float = 0.0,
        to: Floats | float = 0.0,
    ) -> Floats:
        """Where the log-likelihood with its tilt, and one more, is largest within the limits; `held` is the strength
        of a pull `to` a guess."""
        low, high = self.model.low, self.model.high
        tilt, n = self.tilt + push, max(self.customers, 1.0)

        def falling(u: Floats) -> tuple[float, Floats]:
            value = self.weights @ self.model.log_likelihood(u, self.points.data) + np.sum(tilt * u)
            off = u - to
            return float(-(value - held * (off @ off) / 2) / n), -(self.gradient(u) + tilt - held * off) / n

        first = np.clip(self.start if start is None else start, low, high)
        options = {"maxiter": 200, "ftol": 1e-11, "gtol": 1e-7}
        found = minimize(
            falling,
            first,
            jac=True,
            method="L-BFGS-B",
            bounds=list(zip(low, high, strict=True)),
            options=options,
        )
        return np.asarray(found.x)

    def tilted(self, asked: "Scores", total: NoisySum) -> "StandIns":
        """With the gradient that the customers have where they were asked."""
        return replace(self, tilt=asked.gradient(total) - self.gradient(asked.at), start=asked.at)


@dataclass(frozen=True)
class Fit:
    """The state of a fit after some sums. `held` is how strongly the next place to ask is held to the `guess`: more,
    the weaker the latest sum's evidence is (ridge regression with a variance of 1 in u)."""

    stand_ins: StandIns
    guess: Floats
    held: float
    bound: float = 1.0
    asked: "tuple[Scores, NoisySum] | None" = None

    @staticmethod
    def of(model: Likelihood, points: Points, counts: NoisySum, guess: Floats) -> "Fit":
        """From noisy counts in the points' cells and a public guess of the parameters."""
        stand_ins = StandIns.of(model, points, counts, guess)
        return Fit(stand_ins, guess, counts.std**2 * counts.values.size / max(stand_ins.customers, 1.0))

    def with_bound(self, length: float, noise: float, shortest: float, longest: float) -> "Fit":
        """Scores are cut to `length` times the root of (customers / noise a customer), between two ends."""
        bound = length * np.sqrt(max(self.stand_ins.customers, 1.0) / noise)
        return replace(self, bound=float(np.clip(bound, shortest, longest)))

    def next_scores(self) -> "Scores":
        """Where the next sum is asked, and in which unit."""
        at = np.clip(self.stand_ins.top(held=self.held, to=self.guess), *self.stand_ins.model.inner)
        return Scores.where(self.stand_ins, at, self.bound)

    def moved(self, total: NoisySum) -> "Fit":
        """With the sum of the scores that were asked."""
        scores = self.next_scores()
        held = (total.std * self.bound) ** 2 / max(self.stand_ins.customers, 1.0)
        return replace(self, stand_ins=self.stand_ins.tilted(scores, total), held=held, asked=(scores, total))

    @cached_property
    def top(self) -> Floats:
        """The parameters u."""
        return self.stand_ins.top()

    @cached_property
    def others(self) -> tuple[tuple[Floats, Floats], ...]:
        """Where the top would be with other noise: along each axis of the noise, as far as an interval's ends, to
        either side. What a number does there, squared and added up, is how far its interval reaches."""
        if self.asked is None:
            raise ValueError("No scores were asked.")
        scores, total = self.asked
        pushes = np.linalg.inv(scores.whitening) * (WIDEN * REACH * total.std * scores.bound)
        return tuple(
            (self.stand_ins.top(self.top, push), self.stand_ins.top(self.top, -push)) for push in pushes
        )

    @property
    def drowned(self) -> bool:
        """Is the noise too much for the shape of the likelihood to hold?"""
        if self.asked is None:
            return True
        scores, total = self.asked
        return bool(total.std * scores.bound > DROWNED * max(self.stand_ins.customers, 1.0))


def _shrunken(counts: NoisySum, expected: Floats) -> Floats:
    """Counts drawn toward the expected ones, the more, the less they stand out of noise (empirical Bayes: the cells'
    relative departure from the model is one variance, by moments); never below 0."""
    off = (counts.values - expected) ** 2 - counts.std**2 - expected
    spread = max(off.sum() / max((expected**2).sum(), 1e-9), 0.0)
    own = spread * expected**2 + expected
    share = np.divide(own, own + counts.std**2, out=np.zeros_like(own), where=own > 0)
    return np.asarray(np.maximum(expected + share * (counts.values - expected), 0.0))


@dataclass(frozen=True)
class Scores:
    """A sum of scores at `at` [k], each times `whitening` [k, k] and then no longer than `bound`; in units of it."""

    at: Floats
    whitening: Floats
    bound: float

    @staticmethod
    def where(stand_ins: StandIns, at: Floats, bound: float) -> "Scores":
        """Whitened so that all directions of a typical customer's score are alike long."""
        scores = stand_ins.model.score(at, stand_ins.points.data)
        second = scores.T @ (scores * stand_ins.weights[:, None]) / max(stand_ins.customers, 1.0)
        values, vectors = np.linalg.eigh(second)
        whitening = vectors / np.sqrt(np.maximum(values, 1e-9 * max(values.max(), 1e-9)))
        single = np.concatenate([at, whitening.ravel(), [bound]]).astype(np.float32)
        return Scores.parse(single, len(at))

    @staticmethod
    def parse(asked: npt.NDArray[np.float32], size: int) -> "Scores":
        """From `flat`. Raises ValueError on another length, what is not finite, and a bound that is none."""
        if asked.shape != (size + size * size + 1,) or not np.isfinite(asked).all() or asked[-1] <= 0:
            raise ValueError(f"Expected {size + size * size + 1} finite numbers, the last above 0.")
        values = asked.astype(np.float64)
        return Scores(values[:size], values[size:-1].reshape(size, size), float(values[-1]))

    def flat(self) -> npt.NDArray[np.float32]:
        return np.concatenate([self.at, self.whitening.ravel(), [self.bound]]).astype(np.float32)

    def rows(self, model: Likelihood, data: Floats) -> Floats:
        """Each customer's part, [n, k], of norm 1 at most."""
        at = np.clip(self.at, model.low, model.high)
        rows = model.score(at, data) @ self.whitening / self.bound
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0))

    def gradient(self, total: NoisySum) -> Floats:
        """Of the customers' log-likelihood, [k]."""
        return np.asarray(np.linalg.solve(self.whitening.T, total.values * self.bound), np.float64)
