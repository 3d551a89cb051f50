"""What noisy counts say together: consistent by least squares, with intervals of sums and of ratios.

Noise is Gaussian and equal on every number of a total, so the estimator's whole covariance is known and intervals
hold it exactly. The truth they aim at is the sum itself, on these very customers: there is no sampling error.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum

LEVEL = 0.95
REACH = NormalDist().inv_cdf((1 + LEVEL) / 2)
SHARPNESS = 3.0  # more: narrower intervals, but a choice by more noise

Floats = npt.NDArray[np.float64]
Places = Sequence[int]  # of the numbers of a total that are added up
Number = dict[str, float]


def number(value: float, low: float, high: float, most: float = float("inf")) -> Number:
    """An estimate with its interval, cut to [0, most]: where the truth lies there, that spoils no coverage."""
    value, low, high = (min(max(x, 0.0), most) for x in (value, low, high))
    return {"value": value, "low": low, "high": high}


def quotient(
    x: float, n: float, vx: float, vn: float, c: float, least: float = 0.0, most: float = 1.0
) -> Number:
    """x / n with Fieller's interval (1954), from both variances and their covariance, where the truth is known to
    lie in [least, most]: that is the interval where noise drowns n."""
    a, b, d = n * n - REACH**2 * vn, x * n - REACH**2 * c, x * x - REACH**2 * vx
    value, low, high = (x / n if n > 0 else least), least, most
    if a > 0 and n > 0:
        reach = sqrt(max(b * b - a * d, 0.0))
        low, high = (b - reach) / a, (b + reach) / a
    value, low, high = (min(max(y, least), most) for y in (value, low, high))
    return {"value": value, "low": low, "high": high}


def independent_copies(total: NoisySum, sharpness: float = SHARPNESS) -> tuple[NoisySum, NoisySum]:
    """Two totals with independent noise made of one: with s for the sharpness std * sqrt(1 + s^2), as it stands
    std * sqrt(10), and std * sqrt(1 + 1 / s^2), std * sqrt(10 / 9). They repeat.

    Whoever picks by the first what to show of the second shows numbers that the picking did not bend (data
    fission: Leiner et al. 2023, arXiv 2112.11079, for a Gaussian of known variance).
    """
    seed = int.from_bytes(hashlib.sha256(total.values.tobytes()).digest())
    rng = np.random.default_rng(seed)  # noqa: TID251 - it reads a public result; it protects nothing
    extra = rng.standard_normal(total.values.size) * total.std
    coarse = NoisySum(total.values + sharpness * extra, total.std * sqrt(1 + sharpness**2))
    fine = NoisySum(total.values - extra / sharpness, total.std * sqrt(1 + 1 / sharpness**2))
    return coarse, fine


class Ties:
    """Contrasts of a total's numbers that are known to be zero without noise, float64 [k, d]; may repeat."""

    def __init__(self, contrasts: Floats) -> None:
        values, vectors = np.linalg.eigh(contrasts @ contrasts.T)
        kept = values > 1e-9 * max(1.0, values.max(initial=0.0))
        directions = vectors[:, kept] / np.sqrt(values[kept])
        self._basis: Floats = contrasts.T @ directions  # orthonormal columns; a row for each number

    def project(self, values: Floats) -> Floats:
        """The nearest total that keeps the ties: least squares, and best linear unbiased (Hay et al. 2010)."""
        return np.asarray(values - self._basis @ (values @ self._basis))

    def along(self, places: Places) -> Floats:
        """How far adding up these numbers reaches into the ties."""
        return np.asarray(self._basis[places].sum(axis=0))


@dataclass(frozen=True)
class Estimates:
    """A total made to keep its ties. Sums over distinct places, and ratios of them, with intervals."""

    total: NoisySum
    ties: Ties

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", NoisySum(self.ties.project(self.total.values), self.total.std))

    def sum(self, places: Places) -> float:
        return float(self.total.values[list(places)].sum())

    def covariance(self, some: Places, others: Places) -> float:
        """Of the two sums' noise, exact."""
        shared = len(set(some) & set(others)) - self.ties.along(some) @ self.ties.along(others)
        return float(self.total.std**2 * shared)

    def std(self, places: Places) -> float:
        return sqrt(max(self.covariance(places, places), 0.0))

    def count(self, places: Places) -> Number:
        """How many customers: an estimate and its 95 % interval."""
        value, reach = self.sum(places), REACH * self.std(places)
        return number(value, value - reach, value + reach)

    def ratio(self, part: Places, whole: Places) -> Number:
        """The share of `part` in `whole`, with Fieller's interval (1954): [0, 1] where noise drowns `whole`."""
        variances = (self.covariance(part, part), self.covariance(whole, whole))
        return quotient(self.sum(part), self.sum(whole), *variances, self.covariance(part, whole))
