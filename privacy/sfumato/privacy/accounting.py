"""What happened, and what it costs: events, a Rényi filter for admission, a PLD figure for reports.

Costs are described with dp_accounting's events, add/remove one customer; there is no second vocabulary.
Admission is a Rényi privacy filter on a fixed grid of orders, sound when jobs are chosen adaptively (Feldman
and Zrnic 2021, Lécuyer 2021). Reports give the tighter privacy-loss-distribution figure of the recorded
sequence. Epsilons are in nats.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from dp_accounting import dp_event
from dp_accounting.dp_event import DpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from dp_accounting.rdp import RdpAccountant

from sfumato.common.canonical import canonical_bytes

Curve = npt.NDArray[np.float64]
# Whose cost: customers are in one of the first two for good.
Population = Literal["training", "holdout", "all"]
POPULATIONS: tuple[Literal["training", "holdout"], ...] = ("training", "holdout")

ORDERS: tuple[float, ...] = (
    *(1 + x / 10 for x in range(1, 100)),
    *range(11, 64),
    *(64, 80, 96, 128, 192, 256, 512, 1024),
)
PLD_INTERVAL = 1e-3
SLACK = 1e-9  # relative; the sum of many small curves against one large curve

_orders = np.asarray(ORDERS)
_at_order = np.log1p(-1 / _orders) - np.log(_orders) / (_orders - 1)
_per_log_delta = 1 / (_orders - 1)


# --- events: building and writing down -------------------------------------------------------------------


def gaussian_training(noise_multiplier: float, sample_rate: float, steps: int) -> DpEvent:
    """`steps` of DP-SGD with Poisson sampling (Abadi et al. 2016)."""
    return dp_event.SelfComposedDpEvent(gaussian(noise_multiplier, sample_rate), steps)


def gaussian(noise_multiplier: float, sample_rate: float = 1.0) -> DpEvent:
    """A sum with Gaussian noise of noise_multiplier l2 bounds, over all customers or a Poisson sample of them."""
    whole = dp_event.GaussianDpEvent(noise_multiplier)
    return whole if sample_rate >= 1 else dp_event.PoissonSampledDpEvent(sample_rate, whole)


def in_any_branch(sample_rate: float, max_branches_per_customer: int) -> float:
    """The rate at which a customer is in the sample of any of their branches, which draw one by one.

    A secure sum's noise is scaled for all their vectors at once; to count them all whenever one of them is in
    costs more than what happens (docs/protocol.md).
    """
    if max_branches_per_customer == 1 or sample_rate >= 1:
        return sample_rate
    return -math.expm1(max_branches_per_customer * math.log1p(-sample_rate))


def discrete_laplace(scale: float, l1_sensitivity: int = 1) -> DpEvent:
    """A vector of integers with discrete Laplace noise of this scale: epsilon = l1_sensitivity / scale."""
    return dp_event.DiscreteLaplaceDpEvent(1 / scale, l1_sensitivity)


def approximate(epsilon: float, delta: float = 0.0) -> DpEvent:
    """Whatever is (epsilon, delta)-DP: no worse than randomised response at epsilon (discrete Laplace noise on a
    count), beside something that tells all with probability delta (Kairouz, Oh & Viswanath 2015, theorem 3.3)."""
    response = discrete_laplace(1 / epsilon)
    if delta == 0:
        return response
    return compose([response, dp_event.PoissonSampledDpEvent(delta, dp_event.NonPrivateDpEvent())])


def _failure(event: DpEvent) -> float:
    """The probability with which this event tells all; 0 for every event but that of `approximate`."""
    if isinstance(event, dp_event.PoissonSampledDpEvent) and isinstance(
        event.event, dp_event.NonPrivateDpEvent
    ):
        return float(event.sampling_probability)
    return 0.0


def compose(events: Sequence[DpEvent]) -> DpEvent:
    return dp_event.ComposedDpEvent(list(events))


def in_every_branch(event: DpEvent, max_branches_per_customer: int) -> DpEvent:
    """The same release in each branch that may hold this customer: the unit is the customer, not the row."""
    return (
        event
        if max_branches_per_customer == 1
        else dp_event.SelfComposedDpEvent(event, max_branches_per_customer)
    )


def encode_event(event: DpEvent) -> dict[str, Any]:
    """An event as JSON, for the ledger. Raises TypeError for an event that has no place there."""
    match event:
        case dp_event.GaussianDpEvent():
            return {"gaussian": {"noise_multiplier": float(event.noise_multiplier)}}
        case dp_event.DiscreteLaplaceDpEvent():
            return {
                "discrete_laplace": {
                    "noise_parameter": float(event.noise_parameter),
                    "sensitivity": int(event.sensitivity),
                }
            }
        case dp_event.PoissonSampledDpEvent() if _failure(event):
            return {"non_private": {"sampling_probability": _failure(event)}}
        case dp_event.PoissonSampledDpEvent():
            return {
                "poisson_sampled": {
                    "sampling_probability": float(event.sampling_probability),
                    "event": encode_event(event.event),
                }
            }
        case dp_event.SelfComposedDpEvent():
            return {"self_composed": {"count": int(event.count), "event": encode_event(event.event)}}
        case dp_event.ComposedDpEvent():
            return {"composed": [encode_event(e) for e in event.events]}
    raise TypeError(f"{type(event).__name__} cannot stand in a ledger")


def decode_event(encoded: dict[str, Any]) -> DpEvent:
    """The inverse of `encode_event`. Raises ValueError on anything else."""
    match encoded:
        case {"gaussian": {"noise_multiplier": z}} if z > 0:
            return dp_event.GaussianDpEvent(z)
        case {"discrete_laplace": {"noise_parameter": a, "sensitivity": s}} if a > 0 and s >= 1:
            return dp_event.DiscreteLaplaceDpEvent(a, s)
        case {"non_private": {"sampling_probability": q}} if 0 < q < 1:
            return dp_event.PoissonSampledDpEvent(q, dp_event.NonPrivateDpEvent())
        case {"poisson_sampled": {"sampling_probability": q, "event": inner}} if 0 < q <= 1:
            return dp_event.PoissonSampledDpEvent(q, decode_event(inner))
        case {"self_composed": {"count": n, "event": inner}} if n >= 1:
            return dp_event.SelfComposedDpEvent(decode_event(inner), n)
        case {"composed": [*inner]}:
            return dp_event.ComposedDpEvent([decode_event(e) for e in inner])
    raise ValueError("not an event that a ledger may hold")


# --- Rényi curves: what a filter adds up -----------------------------------------------------------------


def rdp_curve(event: DpEvent) -> Curve:
    """Rényi divergence of the event at each order of ORDERS; infinite where it is not bounded.

    The last number is no divergence: it is the probability (delta) with which the others do not hold, 0 for most
    events. Both add up under composition, so a filter on curves needs no second account for it.
    """
    return _curve_of(event).copy()


def _curve_of(event: DpEvent) -> Curve:
    return _cached_curve(canonical_bytes(encode_event(event)))


@lru_cache(maxsize=4096)
def _cached_curve(encoded: bytes) -> Curve:
    event = decode_event(json.loads(encoded))
    match event:
        case dp_event.ComposedDpEvent():
            return np.sum([rdp_curve(e) for e in event.events], axis=0) if event.events else zero_curve()
        case dp_event.SelfComposedDpEvent():
            return np.asarray(rdp_curve(event.event) * event.count, dtype=np.float64)
        case dp_event.DiscreteLaplaceDpEvent():
            return _discrete_laplace_curve(event.noise_parameter, event.sensitivity)
        case dp_event.PoissonSampledDpEvent() if _failure(event):
            return np.append(np.zeros(len(ORDERS)), _failure(event))
    accountant = RdpAccountant(ORDERS, NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(event)
    # The accountant offers epsilon only; the filter needs the curve. constraints.txt pins the release.
    return np.append(np.asarray(accountant._rdp, dtype=np.float64), 0.0)


def _discrete_laplace_curve(noise_parameter: float, sensitivity: int) -> Curve:
    """Closed form: the log-ratio at x is a*s left of 0, -a*s right of s, a*(s - 2x) between."""
    a, s = noise_parameter, sensitivity
    alpha = np.asarray(ORDERS)[:, None] - 1.0
    x = np.arange(1, s)
    ratio = np.concatenate(([a * s], a * (s - 2.0 * x), [-a * s]))
    log_mass = np.concatenate(([0.0], np.log(-np.expm1(-a)) - a * x, [-a * s])) - np.log1p(np.exp(-a))
    return np.append(np.logaddexp.reduce(log_mass + alpha * ratio, axis=1) / alpha[:, 0], 0.0)


def zero_curve() -> Curve:
    return np.zeros(len(ORDERS) + 1)


def left_of(planned: Curve, charged: Curve) -> Curve:
    """What a plan may still cost, never below 0. Where it has no bound, what is left of it has none either."""
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(planned), np.inf, (planned - charged).clip(min=0))


def within(planned: Curve, charged: Curve) -> bool:
    """Whether what was charged is part of what was planned, at every order at which the plan has a bound.

    Then the charges cost at most what the plan was admitted for: that epsilon came from one of those orders. A
    plan without a bound at any order permits nothing. Curves, or arrays of them [..., order].
    """
    bounded = np.isfinite(planned)
    return bool(
        np.all(np.any(bounded[..., :-1], axis=-1))
        and np.all(charged[bounded] <= planned[bounded] * (1 + SLACK))
    )


def filter_epsilon(curve: Curve, delta: float) -> float:
    """The epsilon that a Rényi filter charges for a total curve (Canonne, Kamath, Steinke 2020, prop. 12).

    Raises ValueError for what is no curve, and for a delta outside (0, 1).
    """
    if not (0 < delta < 1 and curve.shape == (len(ORDERS) + 1,) and np.all(curve >= 0)):
        raise ValueError("Expected a Rényi curve of numbers >= 0, and a delta in (0, 1).")
    if not np.any(curve):
        return 0.0
    left = delta - curve[-1]  # what fails outright is paid from delta (Bun & Steinke 2016, sec. 8)
    if left <= 0:
        return math.inf
    divergence = curve[:-1]
    if np.any(left**2 + np.expm1(-divergence) > 0):  # delta <= sqrt(1 - exp(-KL))
        return 0.0
    return max(0.0, float(np.min(divergence + _at_order - math.log(left) * _per_log_delta)))


class Account:
    """What a filter has added up: appending an event and asking for its epsilon take microseconds each."""

    def __init__(self) -> None:
        self.curve = zero_curve()

    def copy(self) -> "Account":
        other = Account()
        other.curve = self.curve.copy()
        return other

    def add(self, event: DpEvent) -> None:
        self.curve += _curve_of(event)

    def epsilon(self, delta: float) -> float:
        """See `filter_epsilon`."""
        return filter_epsilon(self.curve, delta)


# --- PLD: what a report states ---------------------------------------------------------------------------


def pld_epsilon(events: Sequence[DpEvent], delta: float) -> float:
    """Epsilon of a fixed sequence by privacy-loss distributions, pessimistic discretisation."""
    return _pld_epsilon(tuple(sorted(_tally(events).items())), delta)


@lru_cache(maxsize=256)
def _pld_epsilon(counts: tuple[tuple[bytes, int], ...], delta: float) -> float:
    accountant = PLDAccountant(
        NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=PLD_INTERVAL
    )
    left = delta
    for event, count in _merged(dict(counts)):
        left -= count * _failure(event)
        if not _failure(event):
            accountant.compose(event, count)
    return max(0.0, float(accountant.get_epsilon(left))) if left > 0 else math.inf


def _merged(counts: dict[bytes, int]) -> Iterator[tuple[DpEvent, int]]:
    """All Gaussians as the one that they compose to, exactly; every other event with its count."""
    mu_squared = 0.0
    for encoded, count in counts.items():
        event = decode_event(json.loads(encoded))
        if isinstance(event, dp_event.GaussianDpEvent):
            mu_squared += count / event.noise_multiplier**2
        else:
            yield event, count
    if mu_squared:
        yield dp_event.GaussianDpEvent(1 / math.sqrt(mu_squared)), 1


def repeated(counts: Mapping[bytes, int]) -> list[DpEvent]:
    """Encoded events with how often each happened, as events."""
    return [dp_event.SelfComposedDpEvent(decode_event(json.loads(e)), n) for e, n in counts.items()]


def _tally(events: Sequence[DpEvent]) -> dict[bytes, int]:
    """Equal events counted together: composing n equal ones is one convolution power."""
    counts: dict[bytes, int] = {}
    for event in events:
        match event:
            case dp_event.ComposedDpEvent():
                for encoded, n in _tally(event.events).items():
                    counts[encoded] = counts.get(encoded, 0) + n
            case dp_event.SelfComposedDpEvent():
                for encoded, n in _tally([event.event]).items():
                    counts[encoded] = counts.get(encoded, 0) + n * event.count
            case _:
                encoded = canonical_bytes(encode_event(event))
                counts[encoded] = counts.get(encoded, 0) + 1
    return counts


def round_up(noise_multiplier: float) -> float:
    """To four significant digits, upwards: two machines whose mathematics differ in a last bit agree on it."""
    step = 10.0 ** (math.floor(math.log10(noise_multiplier)) - 3)
    return float(f"{math.ceil(noise_multiplier / step * (1 - 1e-12)) * step:.4g}")


@lru_cache(maxsize=256)
def calibrate_gaussian(target_epsilon: float, delta: float) -> float:
    """Smallest noise multiplier (within .1%) of one Gaussian that costs at most target_epsilon at delta.

    Gaussians compose by adding 1 / z^2 (Dong, Roth & Su 2022, cor. 3.3): one of these may be split into many.
    """
    low, high = 1e-3, 1e9
    while high - low > 1e-6 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if gaussian_delta(middle, target_epsilon) > delta else (low, middle)
    # The report discretises, pessimistically: what it states must hold too.
    while pld_epsilon([gaussian(high := round_up(high))], delta) > target_epsilon:
        high *= 1.0005
    return high


def gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    """The delta of one Gaussian at epsilon, exactly (Balle & Wang 2018, theorem 8)."""
    mu = 1 / noise_multiplier

    def below(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    return below(mu / 2 - epsilon / mu) - math.exp(epsilon) * below(-mu / 2 - epsilon / mu)


@lru_cache(maxsize=64)
def _calibrated(
    target_epsilon: float, delta: float, sample_rate: float, steps: int, others: tuple[bytes, ...], times: int
) -> float:
    fixed = [decode_event(json.loads(e)) for e in others]

    def epsilon(noise_multiplier: float) -> float:
        whole = compose([gaussian_training(noise_multiplier, sample_rate, steps), *fixed])
        return pld_epsilon([in_every_branch(whole, times)], delta)

    low, high = 0.3, 0.6
    while epsilon(high) > target_epsilon:
        low, high = high, high * 1.6
        if high > 1e4:
            raise ValueError(f"Expected target_epsilon={target_epsilon} above what the other releases cost.")
    while high - low > 2e-3 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon(middle) > target_epsilon else (low, middle)
    return high


def calibrate_noise_multiplier(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    others: Sequence[DpEvent] = (),
    *,
    max_branches_per_customer: int = 1,
) -> float:
    """Smallest noise multiplier (within .2%) at which all steps and `others` cost at most target_epsilon.

    Raises ValueError when the others alone cost more.
    """
    encoded = tuple(canonical_bytes(encode_event(e)) for e in others)
    return _calibrated(target_epsilon, delta, sample_rate, steps, encoded, max_branches_per_customer)
