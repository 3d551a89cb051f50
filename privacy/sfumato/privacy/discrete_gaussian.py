"""Discrete Gaussian draws, exact and vectorised: P(x) proportional to exp(-x^2 / (2 V)) over all integers.

Canonne, Kamath & Steinke 2020 (arXiv 2004.00010), algorithms 2 and 3, with their two coins thrown as one: the
product of two independent Bernoulli draws is a Bernoulli draw of the product.

Why floating point does no harm. Every decision is one comparison of a uniform real number U with exp(-a/b) for
integers a and b. U is a stream of bits, of which the first 64 are drawn; a float64 value of exp(-a/b) decides
only where it lies further than MARGIN from them. MARGIN is thousands of times the float error (below 2^-45, with
numpy's exp and log within 4 units in the last place). What lies nearer, about one draw in 10^9, is decided by
integers and decimals of proven accuracy, with as many more bits of U as that takes. So each draw has the law of
the paper's rational arithmetic, exactly.
"""

from collections.abc import Callable
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from fractions import Fraction
from math import isqrt

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
Source = Callable[[int], Words]

LARGEST_VARIANCE = 1 << 100
MARGIN = 2.0**-32
_TRIALS = 1 << 14  # a batch's arrays stay in the cache
_LOG_UNIT = 64 * float(np.log(2))


def sample(words: Source, size: int, variance: int) -> npt.NDArray[np.int64]:
    """`size` integers with variance parameter `variance`; `words(n)` gives n fresh uniform 64-bit words.

    Raises ValueError unless 0 <= variance <= 2^100 and size >= 0.
    """
    if size < 0 or not 0 <= variance <= LARGEST_VARIANCE:
        raise ValueError("Expected size >= 0 and variance in [0, 2^100].")
    draws = np.zeros(size, dtype=np.int64)
    if variance == 0:
        return draws
    law = _Law(variance)
    filled = 0
    while filled < size:
        # 2.1 trials a draw (up to 2.9 where the variance is small).
        batch = law.accepted(words, min(_TRIALS, int(2.2 * (size - filled)) + 16))[: size - filled]
        draws[filled : filled + batch.size] = batch
        filled += batch.size
    return draws


class _Law:
    """One variance: its proposal (a discrete Laplace of scale t), and the probability to keep a proposal."""

    def __init__(self, variance: int) -> None:
        self.variance = variance
        self.t = isqrt(variance) + 1
        self._sides = 2 * self.t  # a word gives a remainder in [0, t) and a sign
        self._limit = (1 << 64) // self._sides * self._sides
        self._center = float(Fraction(variance, self.t**2))
        self._width = float(Fraction(self.t**2, 2 * variance))

    def accepted(self, words: Source, trials: int) -> npt.NDArray[np.int64]:
        """The proposals that are kept, in order."""
        first = words(trials)
        if self._limit < 1 << 64:
            first = first[first < np.uint64(self._limit)]
        remainder = first - first // np.uint64(self._sides) * np.uint64(self._sides)
        negative = (remainder & np.uint64(1)).astype(np.int64)
        u = (remainder >> np.uint64(1)).astype(np.int64)
        k = _geometric(words, u.size)
        magnitude = u + k * self.t
        keep = self._kept(words, u, k, magnitude)
        keep &= (magnitude != 0) | (negative == 0)  # else zero would count twice
        return ((magnitude ^ -negative) + negative)[keep]

    def _kept(
        self,
        words: Source,
        u: npt.NDArray[np.int64],
        k: npt.NDArray[np.int64],
        magnitude: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.bool_]:
        """Bernoulli(exp(-u/t - (x - V/t)^2 / (2 V))) for each proposal x = u + t k."""
        scale = 1.0 / self.t
        exponent = magnitude * scale
        exponent -= self._center
        exponent *= exponent
        exponent *= self._width
        exponent += u * scale
        first = words(u.size)
        gap = np.exp(-exponent)
        gap -= first * 2.0**-64
        keep = np.asarray(gap > 0)
        for i in np.flatnonzero(np.abs(gap) < MARGIN):
            keep[i] = Uniform(int(first[i]), words).below_exp(*self._exponent(int(magnitude[i]), int(k[i])))
        return keep

    def _exponent(self, x: int, k: int) -> tuple[int, int]:
        """u/t + (x - V/t)^2 / (2 V) = (x^2 t^2 + V^2 - 2 V t^2 k) / (2 V t^2), in integers."""
        v, t2 = self.variance, self.t**2
        return x * x * t2 + v * v - 2 * v * t2 * k, 2 * v * t2


def _geometric(words: Source, size: int) -> npt.NDArray[np.int64]:
    """How often Bernoulli(1/e) succeeds before it fails: the largest k with U < exp(-k)."""
    first = words(size)
    with np.errstate(divide="ignore", invalid="ignore"):
        depth = np.log(first.astype(np.float64))
        np.subtract(_LOG_UNIT, depth, out=depth)  # -ln U; infinite, and so doubtful, for the word 0
        doubtful = np.flatnonzero(~(np.abs(depth - np.rint(depth)) >= MARGIN))
    depth[doubtful] = 0
    k = depth.astype(np.int64)
    for i in doubtful:
        draw = Uniform(int(first[i]), words)
        while draw.below_exp(int(k[i]) + 1, 1):
            k[i] += 1
    return k


class Uniform:
    """A uniform real number in [0, 1) of which as many bits are drawn as its comparisons need."""

    def __init__(self, word: int, words: Source) -> None:
        self._value, self._bits, self._words = word, 64, words

    def below_exp(self, numerator: int, denominator: int) -> bool:
        """Is U < exp(-numerator / denominator)? Exact, for 0 <= numerator and 0 < denominator.

        Ends with probability 1: exp of a rational other than 0 is irrational. Decimal's division and exp are
        correctly rounded: with p digits and x e^-x < 1, both together err by less than 10^(1-p).
        """
        if numerator == 0:
            return True
        while True:
            digits = self._bits // 3 + 8
            context = Context(prec=digits, Emin=MIN_EMIN, Emax=MAX_EMAX)
            power = context.exp(context.divide(Decimal(numerator), Decimal(denominator)).copy_negate())
            middle, error = Fraction(power), Fraction(1, 10 ** (digits - 2))
            if Fraction(self._value + 1, 1 << self._bits) <= middle - error:
                return True
            if Fraction(self._value, 1 << self._bits) >= middle + error:
                return False
            self._value = self._value << 64 | int(self._words(1)[0])
            self._bits += 64
