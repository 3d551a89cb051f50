"""The bounds that docs/protocol.md states, computed where they are large enough to be seen."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special, stats

from sfumato.common.fixed_point import GRID
from sfumato.privacy import accounting

Floats = npt.NDArray[np.float64]


def discrete_gaussian(sigma: float, reach: int) -> Floats:
    """The mass function on -reach .. reach."""
    x = np.arange(-reach, reach + 1)
    mass = np.exp(-0.5 * (x / sigma) ** 2)
    return np.asarray(mass / mass.sum())


def rounded_gaussian(sigma: float, reach: int) -> Floats:
    x = np.arange(-reach, reach + 1)
    return np.asarray(special.ndtr((x + 0.5) / sigma) - special.ndtr((x - 0.5) / sigma))


# --- a discrete Gaussian and a rounded one ------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, 1.3, 2.0, 3.0, 5.0, 8.0, 16.0, 40.0])
def test_the_distance_to_a_rounded_gaussian(sigma: float) -> None:
    reach = math.ceil(12 * sigma)
    distance = 0.5 * np.abs(discrete_gaussian(sigma, reach) - rounded_gaussian(sigma, reach)).sum()
    assert distance <= 1 / (16 * sigma**2), "the bound"
    if sigma >= 3:  # and the estimate: 4 phi(1) / 48 = 0.0202
        assert distance == pytest.approx(4 * stats.norm.pdf(1) / 48 / sigma**2, rel=0.03)


def test_the_delta_that_is_left_out() -> None:
    """d = 10,000 coordinates, 300 rounds, epsilon 2."""

    def left_out(noise_multiplier: float) -> float:
        return (1 + math.e**2) * 300 * 10_000 / (16 * (noise_multiplier * GRID) ** 2)

    assert 5e-9 < left_out(1.0) < 6e-9
    assert 2e-8 < left_out(0.5) < 2.3e-8


# --- the sum of discrete Gaussians, and one ------------------------------------------------------------------


def tau(sigma: float, shares: int) -> float:
    return 10 * sum(math.exp(-2 * math.pi**2 * sigma**2 * k / (k + 1)) for k in range(1, shares))


@pytest.mark.parametrize("shares", [2, 3, 5, 9])
@pytest.mark.parametrize("sigma", [0.5, 0.6, 0.8, 1.0, 1.2])
def test_a_sum_of_shares_is_nearly_one_discrete_gaussian(sigma: float, shares: int) -> None:
    reach = 40
    one = discrete_gaussian(sigma, reach)
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    middle = total.size // 2
    whole = discrete_gaussian(sigma * math.sqrt(shares), 60)
    here = slice(60 - 15, 60 + 16)  # beyond, float64 has no digits left
    ratio = np.log(total[middle - 15 : middle + 16] / whole[here])
    assert np.abs(ratio).max() <= tau(sigma, shares) + 1e-12
    if sigma == 0.5:
        assert np.abs(ratio).max() > tau(sigma, shares) / 1000, "there is something to bound"


def test_with_ten_grid_steps_it_is_below_2_to_the_1000() -> None:
    """exp(-pi^2 sigma^2) is the largest term, of fewer than 10,000."""
    assert (math.log(10 * 10_000) - math.pi**2 * 10**2) / math.log(2) < -1000
    smallest = 0.25 * GRID / math.sqrt(10_000)
    assert smallest > 10, "noise multiplier 1/4 over ten thousand branches"


@pytest.mark.parametrize("sigma", [0.4, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("shift", [1, 2, 5])
def test_renyi_divergence_of_shifted_discrete_gaussians(sigma: float, shift: int) -> None:
    """Canonne, Kamath & Steinke 2020, proposition 5: at most alpha shift^2 / (2 sigma^2), at every order."""
    x = np.arange(-400, 401).astype(np.float64)
    log_p, log_q = -0.5 * ((x - shift) / sigma) ** 2, -0.5 * (x / sigma) ** 2
    normal = special.logsumexp(log_q)
    for order in (1.1, 1.5, 2.0, 3.7, 8.0, 20.0):
        divergence = (special.logsumexp(order * log_p + (1 - order) * log_q) - normal) / (order - 1)
        assert divergence <= order * shift**2 / (2 * sigma**2) * (1 + 1e-12)


# --- a customer in several branches, sampled -----------------------------------------------------------------


def hockey_stick(p: Floats, q: Floats, epsilon: float, step: float) -> float:
    return float(np.clip(p - math.exp(epsilon) * q, 0, None).sum() * step)


@pytest.mark.parametrize("branches", [1, 2, 3, 5])
@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("noise_multiplier", [0.6, 1.5])
def test_what_is_charged_dominates_what_happens(branches: int, rate: float, noise_multiplier: float) -> None:
    """Noise 1; a customer moves the total by k / (z m), k ~ Bin(m, q). Charged: by 1 / z, with 1 - (1 - q)^m."""
    x = np.linspace(-12, 14, 40_001)
    step = float(x[1] - x[0])
    null = stats.norm.pdf(x)
    shifts = np.arange(branches + 1) / (noise_multiplier * branches)
    weights = stats.binom.pmf(np.arange(branches + 1), branches, rate)
    happens = (weights[:, None] * stats.norm.pdf(x - shifts[:, None])).sum(axis=0)
    once = accounting.in_any_branch(rate, branches)
    charged = once * stats.norm.pdf(x - 1 / noise_multiplier) + (1 - once) * null
    for epsilon in (0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 4.0):
        assert hockey_stick(happens, null, epsilon, step) <= hockey_stick(charged, null, epsilon, step) + 1e-9
        assert hockey_stick(null, happens, epsilon, step) <= hockey_stick(null, charged, epsilon, step) + 1e-9


def renyi(rate: float, noise_multiplier: float, order: float) -> float:
    """Of the sampled Gaussian, add direction: log E_Q[((1 - q) + q L)^order] / (order - 1), integrated."""
    x = np.linspace(-15, 15 + order / noise_multiplier, 40_001)
    shifted = x / noise_multiplier - 0.5 / noise_multiplier**2
    mixed = shifted if rate == 1 else np.logaddexp(math.log1p(-rate), math.log(rate) + shifted)
    terms = order * mixed + stats.norm.logpdf(x) + math.log(x[1] - x[0])
    return float(special.logsumexp(terms)) / (order - 1)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("noise_multiplier", [0.5, 1.0, 4.0])
def test_some_of_the_branches_cost_no_more_than_their_part(rate: float, noise_multiplier: float) -> None:
    """j of m branches answered: at most j / m of what each of the m would charge."""
    for order in (1.1, 1.5, 2.0, 2.5, 5.0, 16.0, 64.0):
        for branches in (2, 5):
            sampled = accounting.in_any_branch(rate, branches)
            charged = renyi(sampled, noise_multiplier, order)
            for j in range(1, branches):
                part = renyi(accounting.in_any_branch(rate, j), noise_multiplier * branches / j, order)
                assert part <= j / branches * charged
                alike = renyi(sampled, noise_multiplier * branches / j, order)
                assert alike <= (j / branches) ** 2 * charged * (1 + 1e-9), "log-convex in the shift squared"
