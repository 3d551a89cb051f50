"""A clipping bound that follows a quantile of the customers' gradients, and is charged (Andrew et al. 2021).

Beside the clipped gradient g each customer says whether it was within the bound C: s = 1, else -1. Both stand in
one vector [sqrt(1 - share) g / C, sqrt(share) s], whose norm is at most 1 for every C: the event stays one Gaussian.
With noise of multiplier z on the whole, the gradient has z_delta = z / sqrt(1 - share), and the fraction within the
bound sigma_b = z / (2 sqrt(share)) over the customers: the paper's theorem 1, z^-2 = z_delta^-2 + (2 sigma_b)^-2.
A round's bound is computed from earlier noisy totals, so it is public.
"""

from dataclasses import dataclass
from math import exp, sqrt

import numpy as np

SMALLEST, LARGEST = 1e-4, 1e4  # that a vault clips to
_ROOM = 1 - 2.0**-48  # for the roundings of root, quotient and product: the vector never is longer than 1


@dataclass(frozen=True, slots=True)
class AdaptiveBound:
    """One round's bound, and the share of a customer's squared length that says whether it was within it.

    Raises ValueError on a bound outside [SMALLEST, LARGEST], or a share outside (0, 1).
    """

    bound: float
    share: float

    def __post_init__(self) -> None:
        if not (SMALLEST <= self.bound <= LARGEST and 0 < self.share < 1):
            raise ValueError(f"Expected a bound in [{SMALLEST}, {LARGEST}] and a share in (0, 1).")

    @classmethod
    def near(cls, bound: float, share: float) -> "AdaptiveBound":
        """The nearest that a vault accepts, as a float32: so it crosses the wire."""
        lowest, highest = np.nextafter(np.float32(SMALLEST), np.float32(1)), np.float32(LARGEST)
        return cls(float(np.clip(np.float32(bound), lowest, highest)), share)

    @property
    def gradient(self) -> float:
        """How long a customer's part of the gradient is at most."""
        return sqrt(1 - self.share) * _ROOM

    @property
    def sign(self) -> float:
        """How long the part is that says within (positive) or not."""
        return sqrt(self.share) * _ROOM

    def after(self, within: float, *, quantile: float, rate: float) -> "AdaptiveBound":
        """The next round's, given the noisy fraction within this one: C exp(-rate (within - quantile)).

        A fraction beyond 0 or 1 is noise, and taken as 0 or 1.
        """
        moved = self.bound * exp(-rate * (min(max(within, 0.0), 1.0) - quantile))
        return AdaptiveBound.near(moved, self.share)
