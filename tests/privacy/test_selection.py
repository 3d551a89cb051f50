"""Selection: exact probabilities by enumeration, distributions, and the delta that no accountant may forget."""

import math
from itertools import permutations, product

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.common import DifferentialPrivacyParameters
from scipy import stats

from sfumato.privacy import accounting as a
from sfumato.privacy.noise import SecureRandom
from sfumato.privacy.selection import BestOf, KeyCounts, ThresholdedHistogram

SEED = b"\x07" * 32


def exact_permute_and_flip(scores: tuple[int, ...], epsilon: float) -> np.ndarray:
    """Every order of the candidates, every first head: the law of the algorithm in floating point."""
    taken = [math.exp(-epsilon / 2 * (max(scores) - s)) for s in scores]
    law = np.zeros(len(scores))
    orders = list(permutations(range(len(scores))))
    for order in orders:
        reached = 1.0 / len(orders)
        for candidate in order:
            law[candidate] += reached * taken[candidate]
            reached *= 1 - taken[candidate]
    return law


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_best_of_is_private_at_its_epsilon_whichever_scores_change(epsilon: float) -> None:
    worst = 0.0
    for scores in product(range(3), repeat=3):
        for change in product((-1, 0, 1), repeat=3):
            other = tuple(s + c for s, c in zip(scores, change, strict=True))
            ratio = exact_permute_and_flip(scores, epsilon) / exact_permute_and_flip(other, epsilon)
            worst = max(worst, float(np.abs(np.log(ratio)).max()))
    assert 0.8 * epsilon < worst <= epsilon + 1e-12


@pytest.mark.parametrize(("scores", "sensitivity"), [((9, 7, 8, 2), 1), ((900, 880, 860, 0), 20)])
def test_the_best_of_follows_its_law(scores: tuple[int, ...], sensitivity: int) -> None:
    """Chi-squared; fixed seed, so it never fails by chance twice. False alarm at another seed: 0.1%."""
    rng, draws = SecureRandom(SEED), 4000
    best = BestOf(np.array(scores), 1.3, rng, sensitivity)
    seen = np.bincount([int(best.run()[0]) for _ in range(draws)], minlength=4)
    law = exact_permute_and_flip(tuple(s / sensitivity for s in scores), 1.3)  # type: ignore[arg-type]
    keep = law * draws > 5
    seen, law = (np.append(v[keep], v[~keep].sum()) for v in (seen, law * draws))
    assert stats.chisquare(seen[law > 0], law[law > 0] * seen.sum() / law.sum()).pvalue > 1e-3


def test_a_single_candidate_and_distant_scores() -> None:
    assert BestOf(np.array([5]), 1.0, SecureRandom()).run().tolist() == [0]
    assert BestOf(np.array([0, 10**9, 0]), 1.0, SecureRandom()).run().tolist() == [1]


@pytest.mark.parametrize(("scores", "epsilon", "sensitivity"), [([], 1, 1), ([1], 0, 1), ([1], 1, 0)])
def test_the_best_of_nothing_is_refused(scores: list[int], epsilon: float, sensitivity: int) -> None:
    with pytest.raises(ValueError, match="candidate"):
        BestOf(np.array(scores, dtype=np.int64), epsilon, SecureRandom(), sensitivity)


@pytest.mark.parametrize("scale", [0.3, 1.0, 7.0, 50.0])
@pytest.mark.parametrize("delta", [1e-9, 1e-6, 0.01, 0.4])
def test_a_threshold_hides_one_customer_with_all_but_delta_and_is_the_least(
    scale: float, delta: float
) -> None:
    t = ThresholdedHistogram(KeyCounts({}), scale, delta, SecureRandom()).threshold
    law = stats.dlaplace(1 / scale)
    assert law.sf(t - 2) <= delta * (1 + 1e-9), "P(1 + noise >= T)"
    assert t == 2 or law.sf(t - 3) > delta * (1 - 1e-9)


def test_common_keys_show_and_rare_ones_do_not() -> None:
    keys = np.repeat(np.array([-5, 7, 2**40, 9]), [400, 300, 500, 1])
    shown = ThresholdedHistogram(KeyCounts.of(keys), 2.0, 1e-6, SecureRandom(SEED)).run().reshape(-1, 2)
    assert shown[:, 0].tolist() == [-5, 7, 2**40]
    assert np.abs(shown[:, 1] - [400, 300, 500]).max() < 40
    assert ThresholdedHistogram(KeyCounts.of(keys[:0]), 2.0, 1e-6, SecureRandom()).run().shape == (0,)


def test_a_lone_customer_shows_as_often_as_delta_says() -> None:
    """Binomial; fixed seed. False alarm at another seed: 0.1%."""
    rng, draws = SecureRandom(SEED), 3000
    histogram = ThresholdedHistogram(KeyCounts.of(np.arange(draws)), 1.0, 0.1, rng)
    chance = stats.dlaplace(1.0).sf(histogram.threshold - 2)
    assert stats.binomtest(histogram.run().size // 2, draws, chance).pvalue > 1e-3
    assert 0.03 < chance <= 0.1


@pytest.mark.parametrize(("scale", "delta"), [(1.0, 0.0), (1.0, 1.0), (0.0, 0.1)])
def test_a_threshold_needs_a_delta_and_a_scale(scale: float, delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        ThresholdedHistogram(KeyCounts({}), scale, delta, SecureRandom())


def test_delta_is_taken_off_before_epsilon_is_asked() -> None:
    event = a.approximate(0.1, 4e-7)
    curve = a.rdp_curve(event)
    assert a.decode_event(a.encode_event(event)) == event
    assert a.filter_epsilon(2 * curve, 1e-6) > a.filter_epsilon(2 * a.rdp_curve(a.approximate(0.1)), 1e-6)
    assert a.filter_epsilon(3 * curve, 1e-6) == math.inf
    assert a.pld_epsilon([event] * 3, 1e-6) == math.inf
    assert a.pld_epsilon([event], 4e-7) == math.inf, "nothing is left of delta"
    assert not a.within(a.rdp_curve(a.approximate(0.1, 1e-7)), curve), "a plan bounds delta too"


def test_the_report_of_an_approximate_event_is_dp_accountings_dominating_pair() -> None:
    ours = a.pld_epsilon([a.approximate(0.3, 1e-7), a.approximate(0.3, 1e-7), a.gaussian(8.0)], 1e-6)
    one = pld.from_privacy_parameters(
        DifferentialPrivacyParameters(0.3, 1e-7), value_discretization_interval=1e-3
    )
    gaussian = pld.from_gaussian_mechanism(8.0, value_discretization_interval=1e-3)
    theirs = one.self_compose(2).compose(gaussian).get_epsilon_for_delta(1e-6)
    assert ours == pytest.approx(theirs, rel=2e-3)
    whole = [a.rdp_curve(a.approximate(0.3, 1e-7))] * 2 + [a.rdp_curve(a.gaussian(8.0))]
    assert a.filter_epsilon(np.sum(whole, axis=0), 1e-6) >= ours


def test_an_approximate_curve_never_exceeds_pure_epsilon() -> None:
    curve = a.rdp_curve(a.approximate(0.7, 1e-8))
    assert curve[:-1].max() <= 0.7 and curve[-1] == 1e-8
    assert curve[10] <= a.ORDERS[10] * 0.7**2 / 2, "alpha epsilon^2 / 2 (Bun & Steinke 2016, prop. 3.3)"


@pytest.mark.parametrize("probability", [0, 1, -0.1, 2])
def test_a_ledger_holds_no_event_that_always_or_never_fails(probability: float) -> None:
    with pytest.raises(ValueError, match="not an event"):
        a.decode_event({"non_private": {"sampling_probability": probability}})
