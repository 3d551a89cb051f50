"""Costs: against dp_accounting itself, a numerical divergence, and a naive ledger."""

import math

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from dp_accounting.rdp import RdpAccountant

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
