"""The score histogram: how good is a model on customers that it has not seen?

Question       Of the held-out customers, how many with and without the label have their log-odds in each bin?
Contribution   One customer adds one to one cell of [label 0 bins | label 1 bins]: l1 norm 1 under add/remove.
Reading        The noisy total becomes two smooth score distributions, and those become AUC, F1, recall, precision,
               calibration, lift, base rate and size, each with an interval for noise *and* finite sample.

Bins cut the log-odds in [-6, 6]; the first and last are open. The counts come with noise of a known variance and
may be negative; cutting them at zero would turn noise into customers, most of them where nobody is. So
the reading is Bayesian: for each label, log-counts theta a bin with a prior that lets go of a normal
distribution of scores only as far as the counts insist (Silverman 1982), and the noise in the likelihood.
Estimates are posterior medians, intervals posterior quantiles, widened for the prior's own error. Where noise
outweighs the counts the reading leans towards smooth scores; narrow peaks within a bin or two are blurred.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LOW, HIGH = -6.0, 6.0
DRAWS, WALK = 600, 150  # random walks, and their length
# How far the fit may leave the best normal distribution: curvature and roughness in units of that one's own,
# and any log-count by LOOSENESS (which only keeps bins without any evidence from wandering off).
CURVATURE_SD, ROUGHNESS, LOOSENESS = 3.0, 4.0, 5.0
# The prior shrinks, and a posterior quantile does not count that: in simulations over unlike populations the
# plain 95% intervals held the population's AUC in 80-92% of draws, these in 92% or more (see the tests).
WIDEN = 1.4
DROWNED = 3.5  # standard deviations

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Counts = Ints | Floats


@dataclass(frozen=True)
class Interval:
    """An estimate, and an interval that holds the true value with the stated probability."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ScoreMetrics:
    """What a risk team reads. Rates are fractions; `cutoff` is a log-odds, an estimate, not a metric.

    At the cut-off that flags as many customers as leave, F1, recall and precision are one number; their
    intervals differ, because the cut-off stays when the customers are other ones.
    """

    auc: Interval
    f1: Interval
    recall: Interval
    precision: Interval
    calibration_error: Interval  # mean |observed rate - predicted|, weighted by customers (ECE)
    brier: Interval
    lift_at_10: Interval
    base_rate: Interval
    customers: Interval
    cutoff: float
    level: float


@dataclass(frozen=True)
class Curves:
    """Points to draw. ROC: falling cut-off. Calibration: predicted and observed rate and customers a bin."""

    false_positive_rate: Floats
    true_positive_rate: Floats
    predicted: Floats
    observed: Floats
    customers: Floats


def edges(bins: int) -> Floats:
    """The bins' inner cut points, bins - 1 of them."""
    return np.linspace(LOW, HIGH, bins + 1)[1:-1]


def cells(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.generic], bins: int) -> Ints:
    """Each customer's cell, int64 [n] in [0, 2 * bins). A score that is not a number counts as 0.

    Raises ValueError on unequal lengths or a label other than 0 and 1.
    """
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError("scores and labels must be one-dimensional and of equal length")
    positive = labels.astype(np.float64)
    if not np.isin(positive, (0.0, 1.0)).all():
        raise ValueError("labels must be 0 or 1")
    logit = np.where(np.isnan(scores), 0.0, scores)
    return (np.searchsorted(edges(bins), logit, side="right") + bins * positive).astype(np.int64)


def contribution(scores: npt.NDArray[np.floating], labels: npt.NDArray[np.generic], bins: int) -> Ints:
    """The sum of these customers' contributions, int64 [2 * bins]; raises as `cells`."""
    return np.bincount(cells(scores, labels, bins), minlength=2 * bins).astype(np.int64)


def read(
    total: Counts, noise_variance: float, level: float = 0.95, seed: int = 0, draws: int = DRAWS
) -> ScoreMetrics:
    """Metrics of a noisy total [2 * bins]. `noise_variance`: of the whole noise in each count, whoever added it
    (see `laplace_variance`; a secure sum knows its own).

    `seed` drives the intervals' Monte Carlo alone. Raises ValueError on an odd length, a bad level or variance.
    """
    if not 0 < level < 1:
        raise ValueError("level must lie between 0 and 1")
    negative, positive = _draws(total, noise_variance, seed, draws)
    cutoff = _cutoff(np.exp(negative), np.exp(positive))
    drawn = _metrics(negative, positive, cutoff)
    tail = (1 - level) / 2
    intervals = {name: _interval(values, tail, _TOP.get(name, 1.0)) for name, values in drawn.items()}
    if _drowned(total, noise_variance):
        for name in set(intervals) - {"base_rate", "customers"}:
            intervals[name] = Interval(intervals[name].value, 0.0, _TOP.get(name, 1.0))
    return ScoreMetrics(**intervals, cutoff=LOW + cutoff * (HIGH - LOW) / (total.size // 2), level=level)


def _drowned(total: Counts, noise_variance: float) -> bool:
    """Is a label's total not clearly above its noise? Then the fit's shape is the noise's, and says nothing.

    Where the total of the leavers is 1 to 2 standard deviations of its noise, intervals held the truth in 43 to
    88 % of simulated cases; from 3.5 on in 97 % or more. So below that they are the whole range.
    """
    halves = _halves(total)
    deviation = np.sqrt(halves.shape[1] * noise_variance)
    return bool((halves.sum(axis=1) < DROWNED * deviation).any())


def _draws(total: Counts, noise_variance: float, seed: int, draws: int) -> list[Floats]:
    rng = np.random.default_rng(seed)  # noqa: TID251 - it reads a public result; it protects nothing
    return [p.draw(rng, draws) for p in _posteriors(total, noise_variance)]


def _posteriors(total: Counts, noise_variance: float) -> list["_Posterior"]:
    if not 0 <= noise_variance < np.inf:
        raise ValueError("the noise's variance must be finite and not negative")
    return [_Posterior(half, noise_variance) for half in _halves(total)]


def curves(total: Counts, noise_variance: float) -> Curves:
    """ROC and calibration points of the smooth fit that `read` draws about (its mode: some milliseconds)."""
    negative, positive = (np.exp(p.mode()) for p in _posteriors(total, noise_variance))
    fall = [np.concatenate([[0.0], np.cumsum(c[::-1]) / c.sum()]) for c in (negative, positive)]
    customers = negative + positive
    return Curves(fall[0], fall[1], _predicted(len(negative)), positive / customers, customers)


# --- the smooth fit ----------------------------------------------------------------------------------------


def laplace_variance(scales: Iterable[float]) -> float:
    """Variance of the sum of discrete Laplace draws, P(x) proportional to exp(-|x| / scale) on the integers."""
    return float(sum(0.5 / np.sinh(0.5 / scale) ** 2 for scale in scales))


def _halves(total: Counts) -> Floats:
    """[2, bins]: the counts of label 0 and of label 1."""
    if total.ndim != 1 or total.size % 2 or total.size < 8:
        raise ValueError("expected a vector of 2 * bins counts, bins >= 4")
    return total.reshape(2, -1).astype(np.float64)


class _Posterior:
    """Log-counts theta [bins] of one noisy histogram: prior, likelihood, mode, draws."""

    def __init__(self, counts: Floats, noise: float) -> None:
        self._counts, self._noise = counts, noise
        self._normal, spread = _normal_fit(counts, noise)
        bins = counts.size
        second, third = np.diff(np.eye(bins), 2, axis=0), np.diff(np.eye(bins), 3, axis=0)
        curvature, soft = 1.0 / spread**2, CURVATURE_SD / spread**2
        # The prior is |rows @ theta - aim|^2: curvature as the normal's, smooth, and not off to nowhere.
        rows = np.vstack([second / soft, third * spread**2.5 / ROUGHNESS, np.eye(bins) / LOOSENESS])
        aim = np.concatenate(
            [np.full(bins - 2, -curvature / soft), np.zeros(bins - 3), self._normal / LOOSENESS]
        )
        self._penalty, self._pull = rows.T @ rows, rows.T @ aim

    def log_density(self, theta: Floats) -> Floats:
        """Up to a constant, [k] for theta [k, bins]."""
        mu = np.exp(np.minimum(theta, 20.0))
        variance = self._noise + mu + 0.5
        likelihood = ((self._counts - mu) ** 2 / variance + np.log(variance)).sum(axis=1)
        prior = ((theta @ self._penalty) * theta).sum(axis=1) - 2.0 * (theta @ self._pull)
        return np.asarray(-0.5 * (likelihood + prior))

    def mode(self) -> Floats:
        """Near the top of the density: Levenberg-Marquardt from the normal fit."""
        theta, damping = self._normal, 1.0
        now = self.log_density(theta[None])[0]
        for _ in range(100):
            hessian = self._curvature(theta)
            mu = np.exp(theta)
            gradient = mu * (self._counts - mu) / (self._noise + mu + 0.5)
            gradient += self._pull - self._penalty @ theta
            trial = theta + np.linalg.solve(hessian + damping * np.eye(theta.size), gradient)
            then = self.log_density(trial[None])[0]
            if then > now:
                gain, theta, now, damping = then - now, trial, then, damping / 4
                if gain < 1e-6:
                    break
            else:
                damping *= 6
        return theta

    def _curvature(self, theta: Floats) -> Floats:
        mu = np.exp(theta)
        return np.asarray(self._penalty + np.diag(mu**2 / (self._noise + mu + 0.5)))

    def draw(self, rng: np.random.Generator, chains: int) -> Floats:  # noqa: TID251
        """`chains` draws, [chains, bins]: as many random walks (Metropolis 1953), each one's last place."""
        theta = self.mode()
        values, vectors = np.linalg.eigh(self._curvature(theta))
        root = vectors / np.sqrt(values)
        at = theta + 0.5 * rng.standard_normal((chains, theta.size)) @ root.T
        density = self.log_density(at)
        reach = 2.0 / np.sqrt(theta.size)
        for _ in range(WALK):
            trial = at + reach * rng.standard_normal(at.shape) @ root.T
            then = self.log_density(trial)
            taken = np.log(rng.random(chains)) < then - density
            at[taken], density[taken] = trial[taken], then[taken]
            reach *= float(np.exp(0.1 * (taken.mean() - 0.3)))
        return np.asarray(at)


def _normal_fit(counts: Floats, noise: float) -> tuple[Floats, float]:
    """The best normal distribution of scores on a grid: its log-counts [bins] and its spread in bins."""
    bins = counts.size
    at = np.arange(bins, dtype=np.float64)
    centre, spread = np.meshgrid(np.arange(0, bins, 0.5), np.geomspace(0.6, bins / 3, 12), indexing="ij")
    shape = np.exp(-0.5 * ((at - centre.reshape(-1, 1)) / spread.reshape(-1, 1)) ** 2)
    shape /= shape.sum(axis=1, keepdims=True)
    weight = 1.0 / (noise + np.maximum(counts, 1.0))
    power = shape**2 @ weight
    size = np.maximum(shape @ (weight * counts), 0.0) / power
    best = int(np.argmax(size**2 * power))  # the largest fall in the weighted sum of squares
    log_counts = np.log(np.maximum(shape[best], 1e-12)) + np.log(max(float(size[best]), 1.0))
    return np.maximum(log_counts, -8.0), float(spread.reshape(-1)[best])


# --- metrics of two distributions, [draws, bins] each --------------------------------------------------------


def _predicted(bins: int) -> Floats:
    centres = LOW + (np.arange(bins) + 0.5) * (HIGH - LOW) / bins
    return np.asarray(1.0 / (1.0 + np.exp(-centres)))


def _above(counts: Floats, cutoff: Floats | float) -> Floats:
    """Mass above a cut-off given in bins from the left; the bin it falls in counts in proportion."""
    at = np.arange(counts.shape[-1])
    share = np.clip(at + 1 - np.asarray(cutoff)[..., None], 0.0, 1.0)
    return np.asarray((counts * share).sum(axis=-1))


def _quantile_from_top(counts: Floats, wanted: Floats) -> Floats:
    """The cut-off in bins, [draws], above which `wanted` mass lies (linear inside a bin)."""
    below = np.concatenate([np.zeros((len(counts), 1)), np.cumsum(counts, axis=1)], axis=1)
    aim = below[:, -1] - wanted
    return np.array([np.interp(a, b, np.arange(len(b))) for a, b in zip(aim, below, strict=True)])


def _cutoff(negative: Floats, positive: Floats) -> float:
    leavers = positive.sum(axis=1)
    return float(np.median(_quantile_from_top(negative + positive, leavers)))


_TOP = {"lift_at_10": 10.0, "customers": float("inf")}  # every other metric is a fraction


def _metrics(log_negative: Floats, log_positive: Floats, cutoff: float) -> dict[str, Floats]:
    negative, positive = np.exp(log_negative), np.exp(log_positive)
    n0, n1 = negative.sum(axis=1), positive.sum(axis=1)
    everyone = negative + positive
    hits, flagged = _above(positive, cutoff), _above(everyone, cutoff)
    top = _quantile_from_top(everyone, 0.1 * (n0 + n1))
    predicted = _predicted(negative.shape[1])
    return {
        "auc": _auc(log_negative, log_positive),
        "f1": 2 * hits / (flagged + n1),
        "recall": hits / n1,
        "precision": hits / flagged,
        "calibration_error": np.abs(positive - everyone * predicted).sum(axis=1) / (n0 + n1),
        "brier": (positive @ (1 - predicted) ** 2 + negative @ predicted**2) / (n0 + n1),
        "lift_at_10": _above(positive, top) / (0.1 * n1),
        "base_rate": n1 / (n0 + n1),
        "customers": n0 + n1,
    }


def _auc(log_negative: Floats, log_positive: Floats) -> Floats:
    """P(score of a leaver > score of a stayer), and for two in one bin by the slopes of the log-densities.

    For densities proportional to exp(a u) on a bin, P(win) = 1/2 + (a1 - a0) / 12 to second order.
    """
    negative, positive = np.exp(log_negative), np.exp(log_positive)
    p0 = negative / negative.sum(axis=1, keepdims=True)
    p1 = positive / positive.sum(axis=1, keepdims=True)
    slope = np.gradient(log_positive - log_negative, axis=1)
    tie = np.clip(0.5 + slope / 12, 0.0, 1.0)
    below = np.cumsum(p0, axis=1) - p0
    return np.asarray((p1 * (below + tie * p0)).sum(axis=1))


def _interval(drawn: Floats, tail: float, top: float) -> Interval:
    low, value, high = (float(q) for q in np.quantile(drawn, [tail, 0.5, 1 - tail]))
    low, high = max(0.0, value - WIDEN * (value - low)), value + WIDEN * (high - value)
    return Interval(value, low, min(high, top))
