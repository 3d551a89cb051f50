"""What a regression on customers' columns needs of them: second moments of bounded inputs and a score, in one sum.

Nothing has to be cut: bounds and categories are the contract's, and the weights make the longest vector one of 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.domains import Domain
from sfumato.common.learners.encoding import number_codes

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Of a vector's squared length: for 1, y, y^2, the inputs, y times the inputs, and products of inputs.
PORTIONS = (0.02, 0.1, 0.06, 0.22, 0.3, 0.3)
_NO_EDGES = np.zeros(0)


@dataclass(frozen=True)
class Driver:
    """A column as inputs of length at most 1. A category with K values is K - 1 contrasts. A number is its place
    among the contract's edges, else on the contract's scale, in [-1, 1]; where it may be missing, it lies in the
    middle then, and a second input says so."""

    domain: Domain

    @property
    def numeric(self) -> bool:
        return self.domain.spec.numeric

    @property
    def size(self) -> int:
        return 1 + self.domain.nullable if self.numeric else len(self.domain.cells) - 1

    @cached_property
    def contrasts(self) -> Floats:
        """Of a category: a row of length 1 a value, [K, K - 1]; columns are orthogonal and add up to 0 (Helmert)."""
        values = len(self.domain.cells)
        found = np.zeros((values, values - 1))
        for j in range(1, values):
            found[:j, j - 1], found[j, j - 1] = 1.0, -j
            found[:, j - 1] /= sqrt(j * (j + 1))
        return found * sqrt(values / (values - 1))

    def inputs(self, values: Any) -> Floats:
        """float64 [n, size]; nothing for what the contract rules out."""
        codes = self.domain.codes(values)
        if not self.numeric:
            return np.where(codes[:, None] >= 0, self.contrasts[codes], 0.0)
        spec = self.domain.spec
        unit = number_codes(values, spec, _NO_EDGES)[1].astype(np.float64)
        if spec.edges:
            knots = number_codes(np.array(spec.edges), spec, _NO_EDGES)[1].astype(np.float64)
            unit = np.interp(unit, [-1.0, *knots, 1.0], np.linspace(-1.0, 1.0, len(knots) + 2))
        missing = codes == len(self.domain.edges) + 1
        return np.stack([np.where(missing, 0.0, unit), missing], axis=1)[:, : self.size]


@dataclass(frozen=True)
class Moments:
    """The sum a regression is read from: [1 | y | y^2 | z | y z | products of inputs], each with its weight."""

    drivers: tuple[Driver, ...]

    @cached_property
    def starts(self) -> Ints:
        """Where each driver's inputs begin, and how many there are in all."""
        return np.concatenate([[0], np.cumsum([d.size for d in self.drivers])]).astype(np.int64)

    @property
    def inputs(self) -> int:
        return int(self.starts[-1])

    def of(self, driver: int) -> slice:
        """A driver's inputs."""
        return slice(int(self.starts[driver]), int(self.starts[driver + 1]))

    @cached_property
    def _products(self) -> list[tuple[Ints, Ints]]:
        """Of every two drivers, and of a number with itself, the places of the inputs multiplied."""
        found = []
        for j, driver in enumerate(self.drivers):
            one = np.arange(self.inputs)[self.of(j)]
            if driver.numeric:
                found.append((one[:1], one[:1]))
            for k in range(j + 1, len(self.drivers)):
                other = np.arange(self.inputs)[self.of(k)]
                found.append((np.repeat(one, len(other)), np.tile(other, len(one))))
        return found

    @cached_property
    def weights(self) -> Floats:
        """Of each coordinate; a customer's whole vector has length 1 at most."""
        counts = (1, 1, 1, len(self.drivers), len(self.drivers), len(self._products))
        sizes = (1, 1, 1, self.inputs, self.inputs, sum(len(a) for a, _ in self._products))
        each = [sqrt(p / c) if c else 0.0 for p, c in zip(PORTIONS, counts, strict=True)]
        return np.repeat(each, sizes)

    @property
    def length(self) -> int:
        return len(self.weights)

    def rows(self, score: Floats, columns: Mapping[str, Any]) -> Floats:
        """Each customer's vector, float64 [n, length]; nothing for a score of NaN."""
        z = np.hstack([d.inputs(columns[d.domain.name]) for d in self.drivers])
        y = np.nan_to_num(score)[:, None]
        products = [z[:, a] * z[:, b] for a, b in self._products]
        rows = np.hstack([np.ones_like(y), y, y**2, z, y * z, *products]) * self.weights
        return np.where(np.isnan(score)[:, None], 0.0, rows)

    @cached_property
    def second(self) -> tuple[Ints, Ints, Ints, Floats]:
        """How the sums make the matrix of second moments: to entry [a, b] adds `factor` times number `place`."""
        first = 3 + 2 * self.inputs
        parts = []
        for a, b in self._products:
            place = first + np.arange(len(a))
            parts.append((a, b, place, np.ones(len(a))))
            if (a != b).any():
                parts.append((b, a, place, np.ones(len(a))))
            first += len(a)
        for j, driver in enumerate(self.drivers):
            parts += self._alone(driver, int(self.starts[j]))
        a, b, place, factor = (np.concatenate(p) for p in zip(*parts, strict=True))
        return a, b, place, factor

    def _alone(self, driver: Driver, start: int) -> list[tuple[Ints, Ints, Ints, Floats]]:
        """What the inputs of one driver say of their own products: a value is one of K, and missing is 0 or 1."""
        if driver.numeric:
            at = np.array([start + 1])
            return [(at, at, 3 + at, np.ones(1))] if driver.size == 2 else []
        c = driver.contrasts
        # Customers of each value, from how many there are in all and from the sum of the inputs.
        values, size = c.shape
        people = np.hstack([np.full((values, 1), 1 / values), c * (1 - 1 / values)])
        place = np.concatenate([[0], 3 + start + np.arange(size)])
        factor = np.einsum("ka,kb,kp->abp", c, c, people)
        a, b, p = np.meshgrid(np.arange(size), np.arange(size), place, indexing="ij")
        return [(start + a.ravel(), start + b.ravel(), p.ravel(), factor.ravel())]
