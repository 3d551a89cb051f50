"""Where amounts are cut: the posterior against a sum over a fine grid, the bound against the best there is."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.learners.winsor import BELLS, GRID, STEPS, Sizes, cut_off

Draw = Callable[[np.random.Generator, int], npt.NDArray[np.float64]]
NOISE = 30.0  # customers at the bound
STD = 14.0


def histogram(sizes: npt.NDArray[np.float64], most: float) -> npt.NDArray[np.float64]:
    made = Sizes((most,)).contribute(sizes[:, None])
    return np.bincount(made.cells[made.cells >= 0], minlength=STEPS).astype(float)


def error(sizes: npt.NDArray[np.float64], bound: float) -> float:
    return float(np.hypot(NOISE * bound, np.maximum(sizes - bound, 0).sum()))


def counted(counts: npt.NDArray[np.float64], above: float) -> float:
    """The rule that was here before: the largest bound with so many above it."""
    enough = np.cumsum(counts) >= above
    return float(GRID[enough.argmax() + 1 if enough.any() else STEPS])


def test_the_posterior_is_the_one_of_a_sum_over_many_heights() -> None:
    rng = np.random.default_rng(1)
    counts = np.round(60 * BELLS[80]) + STD * rng.standard_normal(STEPS)
    chances, cut = cut_off(counts, STD)
    assert chances.sum() == pytest.approx(1) and chances.shape == (len(BELLS), STEPS)
    heights = np.linspace(0, 400, 400_001)
    found = []
    for bell, k in ((80, 24), (80, 9), (75, 24), (110, 15)):
        part = BELLS[bell, :k] / np.linalg.norm(BELLS[bell, :k])
        misfit = (
            (counts[:k] ** 2).sum() - 2 * heights * (counts[:k] @ part) + heights**2
        )  # of every height of the bell
        weights = np.exp(-misfit / STD**2 / 2) / (2 * np.pi * STD**2) ** (k / 2)
        anything = counts.max() ** (k - STEPS)  # each other cell's chance, spread evenly up to the fullest
        found.append(weights.sum() * anything / chances[bell, k - 1])
        mean = (weights * heights).sum() / weights.sum()
        tail = np.append(mean * part, np.maximum(counts[k:], 0)) @ (2.0 ** (-(np.arange(STEPS) + 0.5) / 2))
        assert cut[bell, k - 1, -1] == pytest.approx(tail, rel=1e-4)
    assert found == pytest.approx([found[0]] * 4, rel=1e-4)


TAILS: dict[str, Draw] = {
    "lognormal": lambda rng, n: np.exp(rng.standard_normal(n)),
    "narrow": lambda rng, n: np.exp(0.5 * rng.standard_normal(n)),
    "exponential": lambda rng, n: rng.exponential(1, n),
    "Pareto": lambda rng, n: rng.pareto(2.5, n) + 1,
    "two sorts": lambda rng, n: (
        np.where(rng.random(n) < 0.1, 20.0, 1.0) * np.exp(0.4 * rng.standard_normal(n))
    ),
}


@pytest.mark.parametrize("far", [1.0, 10.0])  # the contract's bound: about the largest amount, or far above
@pytest.mark.parametrize("tail", TAILS)
def test_the_bound_errs_little_more_than_the_best_one_or_one_by_counting(tail: str, far: float) -> None:
    rng = np.random.default_rng(2)
    amounts = TAILS[tail](rng, 4000)
    sizes = amounts / (np.quantile(amounts, 0.9995) * far)
    sizes = np.minimum(sizes, 1.0)
    exact = histogram(sizes, 1.0)
    best = min(error(sizes, b) for b in GRID)
    found, by_counting = [], []
    for _ in range(40):
        total = NoisySum(exact + STD * rng.standard_normal(STEPS), STD)
        found.append(error(sizes, float(Sizes((1.0,)).bounds(total, NOISE)[0])))
        by_counting.append(error(sizes, counted(total.values, NOISE)))
    assert np.mean(found) <= 1.5 * best
    assert np.mean(found) <= 1.05 * np.mean(by_counting)
    assert far == 1.0 or np.quantile(found, 0.9) < 0.8 * np.quantile(by_counting, 0.9)


def test_what_is_kept_is_the_share_of_the_amounts() -> None:
    rng = np.random.default_rng(3)
    sizes = np.minimum(40 * np.exp(rng.standard_normal(30_000)), 2000)
    total = NoisySum(histogram(sizes, 2000.0) + 5 * rng.standard_normal(STEPS), 5.0)
    for step in (2, 5, 8):
        bound = np.float32(2000 * GRID[step])
        (kept,) = Sizes((2000.0,)).kept(total, np.array([bound]))
        assert kept == pytest.approx(np.minimum(sizes, bound).sum() / sizes.sum(), abs=0.01)
    assert Sizes((2000.0,)).kept(total, np.array([2000], np.float32)) == [1.0]


def test_several_columns_have_a_bound_each_and_none_lies_above_the_contracts() -> None:
    rng = np.random.default_rng(4)
    sizes = Sizes((0.1, 1000.0))
    first, second = rng.random(5000) * 0.1, np.minimum(5 * np.exp(rng.standard_normal(5000)), 1000)
    made = sizes.contribute(np.stack([first, second], axis=1))
    counts = np.bincount(made.cells[made.cells >= 0], minlength=sizes.length).astype(float)
    bounds = sizes.bounds(NoisySum(counts, 5.0), NOISE)
    assert bounds.dtype == np.float32
    assert 0.1 * (1 - 1e-6) < bounds[0] <= 0.1  # nothing is to be cut: the amounts end there
    assert 20 < bounds[1] < 200
    (none, std), (some, _) = sizes.above(NoisySum(counts, 5.0), bounds)
    assert (none, std) == (0.0, 0.0)
    assert some == (second >= bounds[1]).sum()


@pytest.mark.parametrize("counts", [np.zeros(STEPS), np.full(STEPS, -50.0), np.full(STEPS, 1e7)])
def test_whatever_comes_out_there_is_a_bound(counts: npt.NDArray[np.float64]) -> None:
    for std in (1e-6, 14.0):
        total = NoisySum(counts, std)
        bounds = Sizes((500.0,)).bounds(total, NOISE)
        assert 0 < bounds[0] <= 500
        (kept,) = Sizes((500.0,)).kept(total, bounds)
        assert 0 < kept <= 1
