"""Noisy numbers of different noise, made to agree by what is known of them: sums that are the same without noise.

The best linear unbiased estimate (Aitken 1935): with noise of covariance V and ties C x = 0 it is
x - V C' (C V C')^-1 C x. Its covariance is known, and so are the intervals of sums and of ratios.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.estimates import REACH, Number, number, quotient

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Consistent:
    """Estimates [d] and the covariance [d, d] of their noise. Forms are float64 [d]: what is added up, how often."""

    values: Floats
    covariance: Floats

    @staticmethod
    def of(values: Floats, stds: Floats, ties: Floats) -> "Consistent":
        """Of independent noise with these standard deviations [d]; `ties` [k, d] may repeat one another."""
        scaled = ties * stds
        gain = np.linalg.pinv(scaled, rcond=1e-9) @ scaled  # what the ties say of the noise, in its own unit
        kept = np.eye(len(values)) - gain
        return Consistent(stds * (kept @ (values / stds)), stds[:, None] * kept * stds)

    def count(self, form: Floats) -> Number:
        """A number of customers, and its 95 % interval."""
        value = float(form @ self.values)
        reach = REACH * max(float(form @ self.covariance @ form), 0.0) ** 0.5
        return number(value, value - reach, value + reach)

    def ratio(self, part: Floats, whole: Floats, least: float = 0.0, most: float = 1.0) -> Number:
        """Of two forms, with Fieller's interval, cut to where the truth lies."""
        x, n = float(part @ self.values), float(whole @ self.values)
        vx, vn, c = (float(a @ self.covariance @ b) for a, b in ((part, part), (whole, whole), (part, whole)))
        return quotient(x, n, max(vx, 0.0), max(vn, 0.0), c, least, most)
