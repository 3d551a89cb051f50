"""Mechanisms: a bounded private contribution, and the noise that its bound asks for.

Two verbs, clip then noise. The bound travels with the value: a mechanism can only be made from something
whose sensitivity is known, states its `event` beforehand, and computes nothing until the door calls `run`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from dp_accounting.dp_event import DpEvent

from sfumato.common.codec import Vector
from sfumato.privacy import accounting
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
