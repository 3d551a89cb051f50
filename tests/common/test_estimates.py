"""Least squares over ties, its covariance, ratios of noisy sums, and the two independent copies."""

import numpy as np
import pytest
from scipy import stats

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.estimates import Estimates, Ties, independent_copies, number

# A column of 3, a column of 2, and their cross-tab of 6, the last column fastest.
MARGINS = np.zeros((6, 11))
MARGINS[0, 0:3], MARGINS[0, 3:5] = 1, -1
for i in range(3):
    MARGINS[1 + i, 5 + 2 * i : 7 + 2 * i], MARGINS[1 + i, i] = 1, -1
for j in range(2):
    MARGINS[4 + j, 5 + j :: 2], MARGINS[4 + j, 3 + j] = 1, -1


def test_least_squares_is_the_textbook_one_and_its_covariance_too() -> None:
    rng = np.random.default_rng(0)
    y, std = rng.normal(100, 30, 11), 3.0
    # All totals that keep the ties, by the six counts of the cross-tab; ordinary least squares on those.
    cross = np.eye(6)
    design = np.vstack([cross[0:6].reshape(3, 2, 6).sum(1), cross.reshape(3, 2, 6).sum(0), cross])
    fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    hat = design @ np.linalg.inv(design.T @ design) @ design.T
    ours = Estimates(NoisySum(y, std), Ties(MARGINS))
    assert ours.total.values == pytest.approx(fitted)
    for some, others in [([0], [0]), ([0, 1], [5]), ([0, 1, 2], [5, 6, 10]), (range(5, 11), range(3))]:
        a, b = np.zeros(11), np.zeros(11)
        a[list(some)], b[list(others)] = 1, 1
        assert ours.covariance(some, others) == pytest.approx(std**2 * a @ hat @ b)
    assert ours.sum(range(3)) == pytest.approx(ours.sum([3, 4]))


def test_ties_may_repeat_or_be_none() -> None:
    y = np.random.default_rng(1).normal(size=11)
    assert Ties(np.vstack([MARGINS, MARGINS])).project(y) == pytest.approx(Ties(MARGINS).project(y))
    free = Estimates(NoisySum(y, 2.0), Ties(np.zeros((0, 11))))
    assert free.total.values == pytest.approx(y)
    assert free.std([0, 1, 2, 3]) == pytest.approx(4.0)


@pytest.mark.statistical
@pytest.mark.parametrize(("part", "whole"), [(300.0, 1000.0), (5.0, 60.0), (0.0, 50.0), (40.0, 40.0)])
def test_fieller_intervals_hold_the_ratio_where_the_delta_method_would_not(part: float, whole: float) -> None:
    """4,000 draws of (part, rest) at std 10; at least 95 %, to a false alarm of 1e-4 a case."""
    rng, ties, held = np.random.default_rng(2), Ties(np.zeros((0, 2))), 0
    for draw in rng.normal([part, whole - part], 10.0, (4000, 2)):
        r = Estimates(NoisySum(draw, 10.0), ties).ratio([0], [0, 1])
        assert 0 <= r["low"] <= r["high"] <= 1
        held += r["low"] <= part / whole <= r["high"]
    assert held >= stats.binom.ppf(1e-4, 4000, 0.95)
    if 0 < part < whole and whole > 100:
        assert held <= stats.binom.ppf(1 - 1e-4, 4000, 0.95)


def test_where_noise_drowns_the_whole_a_ratio_says_nothing() -> None:
    drowned = Estimates(NoisySum(np.array([-3.0, 1.0]), 10.0), Ties(np.zeros((0, 2))))
    assert drowned.ratio([0], [0, 1]) == {"value": 0.0, "low": 0.0, "high": 1.0}


def test_numbers_are_cut_to_what_is_possible() -> None:
    assert number(-3.0, -9.0, 3.0) == {"value": 0.0, "low": 0.0, "high": 3.0}
    assert number(1.2, 0.9, 1.5, 1.0) == {"value": 1.0, "low": 0.9, "high": 1.0}


@pytest.mark.statistical
def test_the_copies_are_as_noisy_as_said_and_independent() -> None:
    """One draw of 40,000 numbers; variances by chi-squared, correlation by Fisher's z, two-sided 1e-4 each."""
    n = 40_000
    total = NoisySum(np.random.default_rng(3).normal(0, 7.0, n), 7.0)
    coarse, fine = independent_copies(total)
    assert (coarse.std, fine.std) == pytest.approx((7.0 * np.sqrt(10), 7.0 * np.sqrt(10 / 9)))
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], n)
    for copy in (coarse, fine):
        assert low <= (copy.values**2).sum() / copy.std**2 <= high
    r = np.corrcoef(coarse.values, fine.values)[0, 1]
    assert abs(np.arctanh(r)) * np.sqrt(n - 3) < stats.norm.ppf(1 - 5e-5)
    again, _ = independent_copies(total)
    assert (again.values == coarse.values).all()


def test_without_noise_the_copies_are_the_total() -> None:
    total = NoisySum(np.arange(5.0), 0.0)
    for copy in independent_copies(total):
        assert (copy.values == total.values).all()
        assert copy.std == 0.0
