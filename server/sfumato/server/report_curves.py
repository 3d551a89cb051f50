"""Curves of a noisy score histogram with pointwise 95% bands, for the report's figures.

Bands are percentiles of a parametric bootstrap (Efron & Tibshirani 1993, ch. 6): histograms as they might have
come, with other customers and other noise, read again by `analyses.score_histogram.curves`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses import score_histogram

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Counts = Ints | Floats
DRAWS = 200
TAIL = 0.025


@dataclass(frozen=True)
class Band:
    """y over x with a pointwise interval; all float64 [points]."""

    x: Floats
    y: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class Distribution:
    """One label's customers a bin: the released noisy count, and the smooth count read from it."""

    noisy: Counts
    smooth: Floats


@dataclass(frozen=True)
class ScoreCurves:
    """Everything drawn from one histogram. `centres` are the bins' middles, in log-odds."""

    roc: Band
    gains: Band
    calibration: Band
    top_tenth: tuple[float, float, float]  # share of positives there: estimate, low, high
    customers: Floats
    centres: Floats
    negative: Distribution
    positive: Distribution


def score_curves(total: Counts, noise_variance: float, *, draws: int = DRAWS, seed: int = 0) -> ScoreCurves:
    """Read a histogram [2 * bins] once for all figures. `noise_variance`: of the whole noise in each count.

    `seed` drives the bootstrap alone. Raises ValueError on a vector that is no histogram.
    """
    point = score_histogram.curves(total, noise_variance)
    positive, negative = point.customers * point.observed, point.customers * (1 - point.observed)
    again = [
        score_histogram.curves(other, noise_variance)
        for other in _others(np.concatenate([negative, positive]), noise_variance, draws, seed)
    ]
    contacted = _contacted(point)
    bins = point.customers.size
    return ScoreCurves(
        roc=_band(
            point.false_positive_rate,
            point.true_positive_rate,
            [
                np.interp(point.false_positive_rate, c.false_positive_rate, c.true_positive_rate)
                for c in again
            ],
        ),
        gains=_band(
            contacted,
            point.true_positive_rate,
            [np.interp(contacted, _contacted(c), c.true_positive_rate) for c in again],
        ),
        calibration=_band(point.predicted, point.observed, [c.observed for c in again]),
        top_tenth=_interval(_top_tenth(point), [_top_tenth(c) for c in again]),
        customers=point.customers,
        centres=np.log(point.predicted / (1 - point.predicted)),
        negative=Distribution(total[:bins], negative),
        positive=Distribution(total[bins:], positive),
    )


def _others(expected: Floats, noise_variance: float, draws: int, seed: int) -> Ints:
    """[draws, 2 * bins]: Poisson counts about the expected ones, normal noise of that variance on top."""
    rng = np.random.default_rng(seed)  # noqa: TID251 - it reads a public result; it protects nothing
    counts = rng.poisson(expected, (draws, expected.size))
    noise = np.sqrt(noise_variance) * rng.standard_normal(counts.shape)
    return np.asarray(counts + np.rint(noise), dtype=np.int64)


def _contacted(curves: score_histogram.Curves) -> Floats:
    """Share of all customers at or above each cut-off, from 0 to 1, as the ROC's points go."""
    return np.concatenate([[0.0], np.cumsum(curves.customers[::-1]) / curves.customers.sum()])


def _top_tenth(curves: score_histogram.Curves) -> float:
    """Share of positives among the tenth of customers with the highest scores."""
    reached = np.interp(0.1, _contacted(curves), curves.true_positive_rate)
    return float(reached * (curves.customers @ curves.observed) / (0.1 * curves.customers.sum()))


def _interval(value: float, drawn: Sequence[float]) -> tuple[float, float, float]:
    low, high = (float(q) for q in np.quantile(drawn, [TAIL, 1 - TAIL]))
    return value, max(0.0, min(low, value)), min(1.0, max(high, value))


def _band(x: Floats, y: Floats, drawn: Sequence[Floats]) -> Band:
    low, high = np.quantile(np.stack(drawn), [TAIL, 1 - TAIL], axis=0)
    y = np.clip(y, 0.0, 1.0)  # a sum of shares may end a rounding error above 1
    return Band(x, y, np.clip(low, 0.0, y), np.clip(high, y, 1.0))
