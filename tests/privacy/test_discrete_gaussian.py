"""The discrete Gaussian against its mass function, and its exactness where floats cannot decide.

Fixed seeds; the stated rate is that of a false alarm per new seed.
"""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from sfumato.privacy import discrete_gaussian
from sfumato.privacy.discrete_gaussian import Uniform
from sfumato.privacy.noise import SecureRandom

SEED = bytes(range(32))
ALARM = 1e-4
DRAWS = 200_000


def pvalue(x: np.ndarray, variance: float) -> float:
    """Chi-squared against exp(-x^2 / (2 V)), tails in one bin each."""
    reach = int(np.ceil(5 * variance**0.5)) + 1
    values = np.arange(-8 * reach, 8 * reach + 1)
    mass = np.exp(-(values**2) / (2 * variance))
    expected = x.size * mass / mass.sum()
    observed = np.bincount(np.clip(x, values[0], values[-1]) - values[0], minlength=values.size)
    keep = expected > 10
    inner = values[keep]
    merge = [
        (a[values < inner[0]].sum(), *a[keep], a[values > inner[-1]].sum()) for a in (observed, expected)
    ]
    merge = [(np.array(m)[np.array(merge[1]) > 1]) for m in merge]
    return float(stats.chisquare(merge[0], merge[1] * merge[0].sum() / merge[1].sum()).pvalue)


@pytest.mark.statistical
@pytest.mark.parametrize("variance", [1, 2, 3, 4, 10, 25, 1000])
def test_it_has_its_mass_function(variance: int) -> None:
    """Chi-squared on 200,000 draws, and both signs alike by binomial test. False alarm 1e-4 each."""
    x = SecureRandom(SEED).discrete_gaussian(DRAWS, variance)
    assert x.dtype == np.int64 and x.size == DRAWS
    assert pvalue(x, variance) > ALARM
    assert stats.binomtest(int((x > 0).sum()), int((x != 0).sum())).pvalue > ALARM


@pytest.mark.statistical
@pytest.mark.parametrize("variance", [10**12, 3 << 60, 1 << 100])
def test_with_a_large_variance_it_is_normal(variance: int) -> None:
    """KS and variance by chi-squared; lowest bits by binomial test. False alarm 1e-4 each."""
    x = SecureRandom(SEED).discrete_gaussian(DRAWS, variance)
    scaled = x / float(variance) ** 0.5
    assert stats.kstest(scaled, "norm").pvalue > ALARM
    low, high = stats.chi2.ppf([ALARM / 2, 1 - ALARM / 2], x.size)
    assert low < (scaled**2).sum() < high
    assert stats.binomtest(int((x & 1).sum()), x.size).pvalue > ALARM
    assert abs(np.corrcoef(x[:-1], x[1:])[0, 1]) * np.sqrt(x.size) < 4.4


def test_wrong_ones_would_be_seen() -> None:
    """A rounded normal at variance 1 (the usual mistake), and a variance off by 3%."""
    rounded = np.rint(np.random.default_rng(0).normal(0, 1, DRAWS)).astype(np.int64)
    assert pvalue(rounded, 1) < ALARM
    assert pvalue(SecureRandom(SEED).discrete_gaussian(DRAWS, 10), 10.3) < ALARM


def test_the_batches_do_what_one_trial_at_a_time_does() -> None:
    """The same words through the paper's arithmetic in fractions: the same decisions."""
    words = np.frombuffer(SecureRandom(SEED).keystream(8 * 3 * 300), dtype="<u8").reshape(3, 300)
    variance, source = 37, iter(words)
    law = discrete_gaussian._Law(variance)
    got = law.accepted(lambda n: next(source)[:n], 300)
    t, expected = 7, []
    with localcontext() as context:
        context.prec = 60

        def below_exp(word: int, exponent: Fraction) -> bool:
            power = (-Decimal(exponent.numerator) / exponent.denominator).exp()
            return Decimal(word) / 2**64 < power

        for first, second, third in words.T.tolist():
            u, negative = first % (2 * t) // 2, first % 2
            k = next(k for k in range(64) if not below_exp(second, Fraction(k + 1)))
            x = u + t * k
            bias = (Fraction(x) - Fraction(variance, t)) ** 2 / (2 * variance)
            if below_exp(third, Fraction(u, t) + bias) and not (negative and x == 0):
                expected.append(-x if negative else x)
    assert got.tolist() == expected and len(expected) > 100


class Scripted:
    """A source of the words that a test wants, and how many were asked for."""

    def __init__(self, *words: int) -> None:
        self.words = list(words)

    def __call__(self, count: int) -> np.ndarray:
        given, self.words = self.words[:count], self.words[count:]
        assert len(given) == count
        return np.array(given, dtype=np.uint64)


def bits_of_exp(numerator: int, denominator: int, bits: int) -> int:
    with localcontext() as context:
        context.prec = 200
        return int((-Decimal(numerator) / denominator).exp() * 2**bits)


@pytest.mark.parametrize(("numerator", "denominator"), [(1, 1), (1, 3), (7, 2), (2**90, 2**91 + 1)])
def test_a_tie_in_the_first_words_is_decided_by_further_ones(numerator: int, denominator: int) -> None:
    """U agrees with exp(-x) in 128 bits, then is just below or just above it."""
    cell = bits_of_exp(numerator, denominator, 192)
    first, second, third = cell >> 128, cell >> 64 & (2**64 - 1), cell & (2**64 - 1)
    for last, expected in ((third - 1, True), (third + 1, False)):
        source = Scripted(second, last)
        assert Uniform(first, source).below_exp(numerator, denominator) is expected
        assert not source.words


def test_a_clear_word_asks_for_no_more() -> None:
    cell = bits_of_exp(1, 1, 64)
    assert Uniform(cell - 1, Scripted()).below_exp(1, 1)
    assert not Uniform(cell + 1, Scripted()).below_exp(1, 1)
    assert Uniform(2**64 - 1, Scripted()).below_exp(0, 5)


def test_the_geometric_part_at_its_thresholds() -> None:
    """Next to exp(-k) a float cannot tell; the answer is right on both sides, and for the word 0."""
    for k in (1, 2, 20, 40):
        cell = bits_of_exp(k, 1, 64)
        assert discrete_gaussian._geometric(Scripted(cell - 1), 1)[0] >= k
        assert discrete_gaussian._geometric(Scripted(cell + 1), 1)[0] == k - 1
    assert discrete_gaussian._geometric(Scripted(0, 1 << 63), 1)[0] == 45


@pytest.mark.statistical
def test_it_draws_the_same_law_where_every_decision_is_the_exact_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a margin so wide that floats decide nothing: mass function again, false alarm 1e-4."""
    monkeypatch.setattr(discrete_gaussian, "MARGIN", 2.0)
    assert pvalue(SecureRandom(SEED).discrete_gaussian(4000, 5), 5) > ALARM


def test_without_variance_there_is_no_noise() -> None:
    assert SecureRandom(SEED).discrete_gaussian(5, 0).tolist() == [0] * 5
    assert SecureRandom(SEED).discrete_gaussian(0, 7).size == 0


@pytest.mark.parametrize(("size", "variance"), [(-1, 1), (1, -1), (1, (1 << 100) + 1)])
def test_it_refuses_what_it_was_not_made_for(size: int, variance: int) -> None:
    with pytest.raises(ValueError, match="variance"):
        SecureRandom(SEED).discrete_gaussian(size, variance)
