"""Mechanisms: a bounded private contribution, and the noise that its bound asks for.

Two verbs, clip then noise. The bound travels with the value: a mechanism can only be made from something
whose sensitivity is known, states its `event` beforehand, and computes nothing until the door calls `run`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, sqrt
from typing import Protocol

import numpy as np
import numpy.typing as npt
from dp_accounting.dp_event import DpEvent

from sfumato.common.codec import Vector
from sfumato.common.fixed_point import GRID
from sfumato.privacy import accounting
from sfumato.privacy.clipping import BoundedSum
from sfumato.privacy.noise import SecureRandom


class Mechanism(Protocol):
    """What the door can release. `run` is called once, after the charge for `event` is durable."""

    @property
    def event(self) -> DpEvent: ...

    def run(self) -> Vector: ...


@dataclass(frozen=True, slots=True, repr=False)
class OneCellCounts:
    """A histogram to which every customer adds one, in one cell: l1 sensitivity 1 under add/remove.

    Made from each customer's cell (int array, [customers], values in [0, cells)), so that the bound holds by
    construction. Raises ValueError on a cell outside the domain.
    """

    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, cell_of_customer: npt.NDArray[np.int64], cells: int) -> "OneCellCounts":
        if cell_of_customer.size and not (
            int(cell_of_customer.min()) >= 0 and int(cell_of_customer.max()) < cells
        ):
            raise ValueError(f"Expected every cell in [0, {cells}).")
        return cls(np.bincount(cell_of_customer, minlength=cells).astype(np.int64))

    def __repr__(self) -> str:
        return f"OneCellCounts(<{self.counts.size} private counts>)"


@dataclass(frozen=True, slots=True, repr=False)
class DiscreteLaplaceHistogram:
    """Counts plus discrete Laplace noise of `scale` (Ghosh et al. 2009): epsilon 1 / scale, pure."""

    counts: OneCellCounts
    scale: float
    rng: SecureRandom

    @property
    def event(self) -> DpEvent:
        return accounting.discrete_laplace(self.scale)

    def run(self) -> Vector:
        values = self.counts.counts
        return (values + self.rng.discrete_laplace(values.size, self.scale)).astype(np.int64)

    def __repr__(self) -> str:
        return f"DiscreteLaplaceHistogram(scale={self.scale})"


@dataclass(frozen=True, slots=True, repr=False)
class DpSgdTraining:
    """Some steps of DP-SGD: the weights that come out are private by training (see privacy.dpsgd)."""

    noise_multiplier: float
    sample_rate: float
    steps: int
    train: Callable[[], npt.NDArray[np.float32]]

    @property
    def event(self) -> DpEvent:
        return accounting.gaussian_training(self.noise_multiplier, self.sample_rate, self.steps)

    def run(self) -> Vector:
        weights = self.train()
        if not np.isfinite(weights).all():
            raise FloatingPointError("training diverged")
        return weights

    def __repr__(self) -> str:
        return f"DpSgdTraining(noise_multiplier={self.noise_multiplier}, steps={self.steps})"


@dataclass(frozen=True, slots=True)
class SumNoise:
    """How much noise a sum needs, and what it then costs.

    `noise_multiplier` is relative to all that one customer can move the total by: `times` vectors, one in each
    branch that may hold them. Each branch takes customers in with probability `sample_rate`. Of `members` branches
    up to `colluders` may leave out their share, so any members - colluders of them add all the noise that is claimed.
    Raises ValueError unless the numbers are possible.
    """

    noise_multiplier: float
    times: int = 1
    sample_rate: float = 1.0
    members: int = 1
    colluders: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.noise_multiplier < float("inf") and 0 < self.sample_rate <= 1 and self.times >= 1):
            raise ValueError("Expected noise_multiplier > 0, sample_rate in (0, 1] and times >= 1.")
        if not 0 <= self.colluders < self.members:
            raise ValueError("Expected at least one member that does not collude.")

    @property
    def event(self) -> DpEvent:
        """Gaussian; sampled, a customer is in the sum at all with probability 1 - (1 - q)^times, and then adds
        at most the `times` vectors that are counted."""
        rate = accounting.in_any_branch(self.sample_rate, self.times)
        return accounting.gaussian(self.noise_multiplier, rate)

    def share_variance(self, l2_sensitivity: int) -> int:
        """Of one branch's noise, in grid steps squared, rounded up. `l2_sensitivity`: of one vector, grid steps."""
        whole = (Fraction(self.noise_multiplier) * self.times * l2_sensitivity) ** 2
        return ceil(Fraction(ceil(whole), self.members - self.colluders))

    def total_std(self, l2_sensitivity: int, max_norm: float) -> float:
        """Of the noise in the whole total, in the contributions' own unit."""
        return sqrt(self.members * self.share_variance(l2_sensitivity)) * (max_norm / GRID)


@dataclass(frozen=True, slots=True, repr=False)
class GaussianSum:
    """A bounded sum plus this branch's share of discrete Gaussian noise, masked where `mask` is given.

    `l2_sensitivity` is declared beforehand, in grid steps: it fixes the noise before a customer is looked at.
    `mask` changes a uint64 vector in place (`secure_sum.Pairing.mask`). `run` gives int64 modulo 2^64, and raises
    ValueError, having released nothing, if the sum turns out to be more sensitive than declared.
    """

    contribution: Callable[[], BoundedSum]
    noise: SumNoise
    l2_sensitivity: int
    rng: SecureRandom
    mask: Callable[[npt.NDArray[np.uint64]], None] | None = None

    @property
    def event(self) -> DpEvent:
        return self.noise.event

    def run(self) -> Vector:
        bounded = self.contribution()
        if bounded.l2_sensitivity > self.l2_sensitivity:
            raise ValueError("Expected a sum no more sensitive than declared.")
        variance = self.noise.share_variance(self.l2_sensitivity)
        share = bounded.total.view(np.uint64) + self.rng.discrete_gaussian(bounded.total.size, variance).view(
            np.uint64
        )
        if self.mask is not None:
            self.mask(share)
        return share.view(np.int64)

    def __repr__(self) -> str:
        return (
            f"GaussianSum({self.noise}, l2_sensitivity={self.l2_sensitivity}, masked={self.mask is not None})"
        )


@dataclass(frozen=True, slots=True, repr=False)
class StandingSum(GaussianSum):
    """A sum of one period of a standing question (analyses.standing).

    `charged` holds a noise multiplier for each period: what it adds to the longest path. It is enough only if every
    customer's vector follows from what this branch told before, `told`: the SHA-256 of what it remembers after this
    period, hex, goes into the charge, and the next period begins with it. Raises ValueError on no such period.
    """

    period: int = 0
    charged: tuple[float, ...] = ()
    told: str = ""

    def __post_init__(self) -> None:
        if not (0 <= self.period < len(self.charged) and self.told):
            raise ValueError("Expected one of the periods, and what is remembered after it.")

    def event_after(self, last: int | None) -> DpEvent:
        """What this costs, `last` being the latest period that was charged, None for none: all that came since, for a
        branch that was away has its paths go on from there. The same period again costs a sum by itself.

        Raises ValueError on a period that lies behind.
        """
        if last == self.period:
            return self.noise.event
        since = 0 if last is None else last + 1
        if since > self.period:
            raise ValueError("Expected a period that is not behind.")
        events = [accounting.gaussian(z) for z in self.charged[since : self.period + 1]]
        return events[0] if len(events) == 1 else accounting.compose(events)
