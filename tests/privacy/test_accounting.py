"""Costs: against dp_accounting itself, a numerical divergence, and a naive ledger."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from dp_accounting.rdp import RdpAccountant, compute_epsilon

from sfumato.privacy import accounting as a


def numeric_renyi(noise_parameter: float, sensitivity: int, alpha: float) -> float:
    """Rényi divergence of two shifted discrete Laplace laws, summed term by term in logarithms."""
    x = np.arange(-3000, 3001)
    log_norm = math.log((1 - math.exp(-noise_parameter)) / (1 + math.exp(-noise_parameter)))
    p = log_norm - noise_parameter * np.abs(x)
    q = log_norm - noise_parameter * np.abs(x - sensitivity)
    return float(np.logaddexp.reduce(alpha * p + (1 - alpha) * q) / (alpha - 1))


@pytest.mark.parametrize("sensitivity", [1, 2, 5])
@pytest.mark.parametrize("noise_parameter", [0.05, 0.5, 2.0])
def test_discrete_laplace_curve_is_the_divergence(noise_parameter: float, sensitivity: int) -> None:
    curve = a.rdp_curve(dp_event.DiscreteLaplaceDpEvent(noise_parameter, sensitivity))
    for i in (0, 5, 20, 80, 110, 150):
        assert curve[i] == pytest.approx(
            numeric_renyi(noise_parameter, sensitivity, a.ORDERS[i]), rel=1e-9, abs=1e-12
        )


def test_discrete_laplace_curve_never_exceeds_pure_epsilon() -> None:
    for epsilon in (0.1, 1.0, 3.0):
        assert a.rdp_curve(a.discrete_laplace(1 / epsilon)).max() <= epsilon + 1e-12


def test_gaussian_curve_is_dp_accountings() -> None:
    event = a.gaussian_training(1.7, 0.05, 300)
    accountant = RdpAccountant(a.ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(event)
    assert a.filter_epsilon(a.rdp_curve(event), 1e-6) == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-9)


def test_pld_epsilon_equals_dp_accountings_own() -> None:
    events = [a.gaussian_training(2.0, 0.1, 100), a.discrete_laplace(4.0), a.gaussian_training(2.0, 0.1, 20)]
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4)
    for event in events:
        accountant.compose(event)
    assert a.pld_epsilon(events, 1e-6) == pytest.approx(accountant.get_epsilon(1e-6), rel=2e-3)


def test_filter_is_never_below_the_report() -> None:
    for events in (
        [a.gaussian_training(1.0, 1.0, 1)],
        [a.gaussian_training(3.0, 0.1, 200), a.discrete_laplace(5.0)],
        [a.discrete_laplace(10.0)] * 20,
    ):
        curve = a.rdp_curve(a.compose(events))
        assert a.filter_epsilon(curve, 1e-5) >= a.pld_epsilon(events, 1e-5) * 0.999


def test_calibration_meets_its_target_and_not_by_far() -> None:
    others = [a.discrete_laplace(5.0), a.discrete_laplace(25.0)]
    z = a.calibrate_noise_multiplier(2.0, 1e-5, 0.1, 200, others)
    epsilon = a.pld_epsilon([a.gaussian_training(z, 0.1, 200), *others], 1e-5)
    assert 1.98 < epsilon <= 2.0


def test_calibration_for_a_customer_in_three_branches_holds_for_the_composition() -> None:
    others = [a.discrete_laplace(15.0)]
    z = a.calibrate_noise_multiplier(2.0, 1e-5, 0.1, 100, others, max_branches_per_customer=3)
    whole = a.compose([a.gaussian_training(z, 0.1, 100), *others])
    assert a.pld_epsilon([whole] * 3, 1e-5) <= 2.0
    assert a.pld_epsilon([a.in_every_branch(whole, 3)], 1e-5) == pytest.approx(
        a.pld_epsilon([whole] * 3, 1e-5), rel=1e-6
    )


def test_calibration_refuses_when_the_others_cost_more_than_the_target() -> None:
    with pytest.raises(ValueError, match="target_epsilon"):
        a.calibrate_noise_multiplier(0.5, 1e-5, 0.1, 10, [a.discrete_laplace(1.0)])


@pytest.mark.parametrize(
    "event",
    [
        a.gaussian_training(1.3, 0.2, 10),
        a.gaussian_training(1.3, 1.0, 10),
        a.discrete_laplace(3.0, 2),
        a.compose([a.discrete_laplace(3.0), a.gaussian_training(1.0, 0.1, 5)]),
        a.in_every_branch(a.discrete_laplace(3.0), 4),
    ],
)
def test_events_survive_the_ledger(event: dp_event.DpEvent) -> None:
    assert a.decode_event(a.encode_event(event)) == event


@pytest.mark.parametrize(
    "encoded",
    [
        {},
        {"gaussian": {"noise_multiplier": 0}},
        {"gaussian": {"noise_multiplier": -1.0}},
        {"poisson_sampled": {"sampling_probability": 1.5, "event": {"gaussian": {"noise_multiplier": 1.0}}}},
        {"self_composed": {"count": 0, "event": {"gaussian": {"noise_multiplier": 1.0}}}},
        {"no_op": {}},
        {"discrete_laplace": {"noise_parameter": 1.0, "sensitivity": 0}},
    ],
)
def test_a_ledger_holds_no_event_without_cost(encoded: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not an event"):
        a.decode_event(encoded)


@pytest.mark.parametrize(
    "event", [dp_event.NoOpDpEvent(), dp_event.NonPrivateDpEvent(), dp_event.UnsupportedDpEvent()]
)
def test_free_and_unbounded_events_cannot_be_written(event: dp_event.DpEvent) -> None:
    with pytest.raises(TypeError):
        a.encode_event(event)


@pytest.mark.parametrize("wrong", [math.nan, -1e-3])
def test_what_is_no_curve_is_not_called_free(wrong: float) -> None:
    curve = a.rdp_curve(a.discrete_laplace(1.0))
    curve[3] = wrong
    with pytest.raises(ValueError, match="curve"):
        a.filter_epsilon(curve, 1e-6)


MIXED = [
    a.gaussian_training(1.1, 0.05, 7),
    a.gaussian(12.0),
    a.gaussian(9.0, 0.2),
    a.discrete_laplace(30.0),
    a.discrete_laplace(50.0, 3),
    a.in_every_branch(a.discrete_laplace(80.0), 3),
    a.compose([a.gaussian(40.0), a.gaussian(3.0, 0.01)]),
]


def test_the_conversion_is_dp_accountings_at_every_size_and_delta() -> None:
    rng = np.random.default_rng(1)
    curves = [a.rdp_curve(e) * f for e in MIXED for f in (1e-9, 1e-4, 0.1, 1, 30, 1e4)]
    curves += [np.append(rng.exponential(s, len(a.ORDERS)), 0.0) for s in (1e-12, 1e-6, 1e-2, 1, 10, 1e3)]
    holes = a.rdp_curve(MIXED[0])
    holes[:150] = np.inf
    for curve in [*curves, holes, np.append(np.full(len(a.ORDERS), np.inf), 0.0)]:
        for delta in (1e-12, 1e-6, 1e-3, 0.1, 0.9):
            theirs, _ = compute_epsilon(a.ORDERS, curve[:-1], delta)
            assert a.filter_epsilon(curve, delta) == pytest.approx(theirs, rel=1e-12, abs=1e-12)


def test_an_account_is_the_naive_sum_of_its_events() -> None:
    account = a.Account()
    assert account.epsilon(1e-6) == 0
    for n in range(40):
        account.add(MIXED[n % len(MIXED)])
        events = [MIXED[k % len(MIXED)] for k in range(n + 1)]
        if n % 13 == 0:
            naive = a.filter_epsilon(a.rdp_curve(a.compose(events)), 1e-6)
            assert account.epsilon(1e-6) == pytest.approx(naive, rel=1e-12)
    assert account.epsilon(1e-6) >= a.pld_epsilon(events, 1e-6)


def test_adding_to_an_account_changes_no_other() -> None:
    first, second = a.Account(), a.Account()
    first.add(MIXED[1])
    first.add(MIXED[1])
    second.add(MIXED[1])
    assert np.array_equal(second.curve, a.rdp_curve(MIXED[1]))
    assert np.array_equal(first.curve, 2 * second.curve)


@pytest.mark.parametrize("delta", [0.0, -1e-6, 1.0, math.nan])
def test_a_filter_needs_a_delta(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        a.filter_epsilon(a.rdp_curve(MIXED[0]), delta)


def test_gaussians_are_reported_as_the_one_that_they_compose_to() -> None:
    """Against a PLD that convolves them one by one, and the closed form."""
    noise = [20.0, 25.0, 30.0, 22.0]
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4)
    for z in noise:
        accountant.compose(a.gaussian(z))
    ours = a.pld_epsilon([a.gaussian(z) for z in noise], 1e-6)
    assert ours == pytest.approx(accountant.get_epsilon(1e-6), rel=1e-3)

    mu = math.sqrt(sum(z**-2 for z in noise))
    delta = a.gaussian_delta(1 / mu, ours)
    assert 0.98e-6 < delta <= 1e-6, "pessimistic, and not by far"


@pytest.mark.parametrize("epsilon", [0.02, 1.0, 8.0])
def test_a_calibrated_gaussian_meets_its_target_and_not_by_far(epsilon: float) -> None:
    z = a.calibrate_gaussian(epsilon, 1e-6)
    assert 0.997 * epsilon < a.pld_epsilon([a.gaussian(z)], 1e-6) <= epsilon
    assert z == a.round_up(z) == float(f"{z:.4g}")
    assert a.gaussian_delta(z, epsilon) <= 1e-6 < a.gaussian_delta(0.997 * z, epsilon)


def test_the_closed_form_of_a_gaussian_is_its_hockey_stick_divergence() -> None:
    x = np.linspace(-12, 12, 2_000_001)
    for z, epsilon in ((1.0, 0.5), (3.0, 1.0), (0.7, 2.0)):
        p, q = (np.exp(-((x - shift) ** 2) / 2) / math.sqrt(2 * math.pi) for shift in (1 / z, 0))
        numeric = np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), x)
        assert a.gaussian_delta(z, epsilon) == pytest.approx(numeric, rel=1e-6)


def test_rounding_up_never_goes_down() -> None:
    for x in np.random.default_rng(2).lognormal(0, 5, 1000):
        assert x * (1 - 1e-11) <= a.round_up(float(x)) < x * 1.0011


def test_a_customer_in_several_branches_is_sampled_in_any_of_them() -> None:
    assert a.in_any_branch(0.1, 1) == 0.1
    assert a.in_any_branch(0.1, 3) == pytest.approx(1 - 0.9**3, rel=1e-14)
    assert a.in_any_branch(1.0, 3) == 1.0
    assert a.in_any_branch(1e-12, 100) == pytest.approx(1e-10, rel=1e-9)


def test_a_plan_without_any_bound_permits_nothing() -> None:
    event = a.rdp_curve(a.gaussian(5.0))
    nowhere = np.append(np.full(len(a.ORDERS), np.inf), 0.0)
    assert a.within(event, event)
    assert a.within(event, a.zero_curve())
    assert not a.within(event, event * (1 + 1e-6))
    assert not a.within(event, nowhere)
    assert not a.within(nowhere, event)
    assert not a.within(a.zero_curve(), event)
    partly = event.copy()
    partly[40:] = np.inf
    assert a.within(partly, event)
    assert not a.within(partly, 2 * event)
    assert not a.within(np.stack([event, nowhere]), np.stack([event, a.zero_curve()]))
