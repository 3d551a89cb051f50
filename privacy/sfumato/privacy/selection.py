"""Which, and not how much: the common keys of an open domain, and the best of some candidates. Exact sampling."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from dp_accounting.dp_event import DpEvent

from sfumato.common.codec import Vector
from sfumato.privacy import accounting
from sfumato.privacy.noise import SecureRandom


@dataclass(frozen=True, slots=True, repr=False)
class KeyCounts:
    """Counts by key, to which every customer adds one, at one key: made from each customer's key, int64 [n]."""

    counts: Mapping[int, int]

    @classmethod
    def of(cls, key_of_customer: npt.NDArray[np.int64]) -> "KeyCounts":
        keys, counts = np.unique(key_of_customer, return_counts=True)
        return cls(dict(zip(keys.tolist(), counts.tolist(), strict=True)))

    def __repr__(self) -> str:
        return "KeyCounts(<private>)"


@dataclass(frozen=True, slots=True, repr=False)
class ThresholdedHistogram:
    """The keys whose noisy count reaches a threshold, with it: int64 [key, count, key, count, …], by key.

    For keys that nobody could list beforehand. Discrete Laplace noise of `scale` on every count that is not zero;
    a key that one customer alone has shows with probability at most `delta`, and that is charged as such
    (Korolova et al. 2009; Vadhan 2017, theorem 3.5). Raises ValueError unless 0 < delta < 1 and scale > 0.
    """

    counts: KeyCounts
    scale: float
    delta: float
    rng: SecureRandom

    def __post_init__(self) -> None:
        if not (0 < self.delta < 1 and self.scale > 0):
            raise ValueError("Expected delta in (0, 1) and scale > 0.")

    @property
    def threshold(self) -> int:
        """The smallest T >= 2 with P(1 + noise >= T) <= delta, which is exp(-(T-1)/scale) / (1 + exp(-1/scale))."""
        least = self.scale * -(math.log(self.delta) + math.log1p(math.exp(-1 / self.scale)))
        return max(2, 1 + math.ceil(least * (1 + 1e-12)))

    @property
    def event(self) -> DpEvent:
        return accounting.approximate(1 / self.scale, self.delta)

    def run(self) -> Vector:
        keys = sorted(self.counts.counts)
        true = np.array([self.counts.counts[k] for k in keys], dtype=np.int64)
        noisy = true + self.rng.discrete_laplace(len(keys), self.scale)
        shown = np.stack([np.array(keys, dtype=np.int64), noisy], axis=1)[noisy >= self.threshold]
        return shown.astype(np.int64).ravel()

    def __repr__(self) -> str:
        return f"ThresholdedHistogram(scale={self.scale}, delta={self.delta})"


@dataclass(frozen=True, slots=True, repr=False)
class BestOf:
    """The number of a candidate with a high score, int64 [1]: permute-and-flip (McKenna & Sheldon 2020, alg. 1).

    `scores` are whole numbers [candidates], of which a customer changes each by at most `sensitivity`. Never worse
    in expectation than the exponential mechanism at the same epsilon; every probability is exact. Raises ValueError
    on no candidate, or an epsilon or sensitivity that is not positive.
    """

    scores: npt.NDArray[np.int64]
    epsilon: float
    rng: SecureRandom
    sensitivity: int = 1

    def __post_init__(self) -> None:
        if self.scores.size == 0 or not (0 < self.epsilon < math.inf and self.sensitivity >= 1):
            raise ValueError("Expected a candidate, epsilon > 0 and sensitivity >= 1.")

    @property
    def event(self) -> DpEvent:
        return accounting.approximate(self.epsilon)

    def run(self) -> Vector:
        per_point = Fraction(self.epsilon) / (2 * self.sensitivity)
        best = int(self.scores.max())
        for candidate in self.rng.permutation(self.scores.size):
            if self._flip(per_point * (best - int(self.scores[candidate]))):
                return np.array([candidate], dtype=np.int64)
        raise AssertionError("the best candidate is always taken")

    def _flip(self, exponent: Fraction) -> bool:
        """True with probability exp(-exponent), exactly."""
        whole, part = divmod(exponent, 1)
        if any(not self.rng.bernoulli_exp(1, 1) for _ in range(whole)):
            return False
        return self.rng.bernoulli_exp(part.numerator, part.denominator)

    def __repr__(self) -> str:
        return f"BestOf(<{self.scores.size} private scores>, epsilon={self.epsilon})"
