"""How unlike the others a customer is: what a linear autoencoder cannot give back, column by column.

Principal components are the linear autoencoder (Baldi & Hornik 1989); they come from one noisy sum of second moments
(learners.components). What they leave of an input is measured by how much they leave of it usually, as in factor
analysis: a small slip where all others fit is worse than a large one where nobody does. 1 is usual for the mean
over all inputs.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.learners.components import Components, Inputs, Moments

LEAST_SPREAD = 1e-3  # of an input's variance: what nobody differs in tells nobody apart
NOISES = 2.0  # standard deviations of the noise, below which a variance is not believed
LOWEST, HIGHEST, STEPS = -3, 6, 4  # the grid of scores: powers of two, and cells an octave

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Autoencoder:
    """Components, and what they usually leave of each input: its variance, float64 [D]."""

    components: Components
    spread: Floats

    @staticmethod
    def read(moments: Moments, total: NoisySum, dimensions: int) -> "Autoencoder":
        """Of a noisy sum of moments."""
        components = moments.components(total, dimensions)
        _, covariance, noise = moments.covariance(total)
        kept = components.directions.T @ covariance @ components.directions
        left = np.diag(covariance) - np.einsum(
            "je,ef,jf->j", components.directions, kept, components.directions
        )
        return Autoencoder(components, np.maximum(left, max(LEAST_SPREAD, NOISES * noise)))

    def flat(self) -> npt.NDArray[np.float32]:
        """[the components | the spread]."""
        return np.concatenate([self.components.flat(), self.spread]).astype(np.float32)

    @staticmethod
    def of(vector: npt.NDArray[np.floating], inputs: int, dimensions: int) -> "Autoencoder":
        """Of a `flat` vector. Raises ValueError on another length, what is not finite, or a spread of nothing."""
        length = 1 + inputs * (2 + dimensions)
        if vector.shape != (length,) or not np.isfinite(vector).all() or (vector[-inputs:] <= 0).any():
            raise ValueError(f"Expected {length} finite numbers, the spread above zero.")
        return Autoencoder(
            Components.of(vector[:-inputs], inputs, dimensions), vector[-inputs:].astype(np.float64)
        )

    def errors(self, inputs: Floats) -> Floats:
        """What is left of each input, squared and by its spread, over the number of inputs: float64 [n, D]."""
        off = inputs - self.components.mean
        left = off - off @ self.components.directions @ self.components.directions.T
        return np.asarray(left**2 / self.spread / len(self.spread))

    def by_column(self, inputs: Inputs, errors: Floats) -> Floats:
        """The errors of each column's inputs together, float64 [n, F]; a customer's add up to their score."""
        return np.add.reduceat(errors, inputs.starts[:-1], axis=1)


def edges() -> Floats:
    """Cut points of the grid of scores; its first and last cell are open."""
    return np.asarray(2.0 ** (np.arange(LOWEST * STEPS, HIGHEST * STEPS + 1) / STEPS))


@dataclass(frozen=True)
class Tail:
    """How many customers score above each cut point, float64 [cuts], falling; `std` of the noise in each."""

    above: Floats
    std: Floats
    everybody: float
    everybody_std: float

    @staticmethod
    def of(total: NoisySum, everybody: float, everybody_std: float) -> "Tail":
        """From noisy counts of the grid's cells, lowest scores first."""
        above = np.cumsum(total.values[::-1])[::-1][1:]
        cells = np.arange(len(above), 0, -1)
        return Tail(above, total.std * np.sqrt(cells), everybody, everybody_std)

    def threshold(self, share: float, reach: float) -> tuple[int, float, float]:
        """The cut point that comes nearest to having this share above it, and an interval for the score that has it
        exactly: between cut points that surely have more, and fewer."""
        cuts, gap = edges(), self.above - share * self.everybody
        std = np.hypot(self.std, share * self.everybody_std)
        surely_above, surely_below = gap > reach * std, gap < -reach * std
        first = int(np.argmin(surely_above)) if not surely_above.all() else len(cuts)
        last = len(cuts) - int(np.argmin(surely_below[::-1])) if not surely_below.all() else 0
        # Halfway between the two falling curves that touch the noisy one from below and from above.
        falling = np.minimum.accumulate(self.above) + np.maximum.accumulate(self.above[::-1])[::-1]
        place = int(np.argmin(np.abs(falling / 2 - share * self.everybody)))
        low, high = max(first - 1, 0), min(last, len(cuts) - 1)
        place = min(max(place, low), high)
        return place, float(cuts[low]) if first else 0.0, float(cuts[high])


def moments_count(moments: Moments, total: NoisySum) -> tuple[float, float]:
    """How many customers a sum of moments holds, and the noise's standard deviation: the last entry is half."""
    return 2 * float(total.values[-1]), 2 * total.std
