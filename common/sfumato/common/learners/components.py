"""Principal components: a few coordinates that say most of what a customer's columns say, from one sum.

Question       How many coordinates.
Contribution   With x the customer's inputs over F columns, |x|^2 <= F, and a = [x, sqrt(F)] / sqrt(2 F): the upper
               triangle of a a^T, entries off the diagonal times sqrt(2). Its l2 norm is |a|^2 <= 1.
Reading        Mean and covariance, and the directions of largest variance (after Dwork et al. 2014, Analyze Gauss).

They are the best that a linear autoencoder can learn (Baldi & Hornik 1989), without its many steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contributions import Rows
from sfumato.common.learners.encoding import FeatureSpec, category_codes, number_codes

SPREAD = 3.0  # standard deviations of the first component that lie within [-1, 1]
LEAST_SPREAD = 1e-3

Floats = npt.NDArray[np.float64]
_NO_EDGES = np.zeros(0)


@dataclass(frozen=True)
class Inputs:
    """Columns as numbers: a number as the contract scales it, a category as one number a value (other and null are
    values, too), 1 where it is that one."""

    specs: tuple[FeatureSpec, ...]

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each column's inputs begin, and how many there are in all."""
        widths = [1 if s.numeric else len(s.categories or ()) + 2 for s in self.specs]
        return np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)

    @property
    def size(self) -> int:
        return int(self.starts[-1])

    def matrix(self, columns: Mapping[str, Any]) -> Floats:
        """float64 [n, size], no row longer than sqrt(F). Raises BadInput on a category that holds fractions."""
        found = np.zeros((len(columns[self.specs[0].name]), self.size))
        everyone = np.arange(len(found))
        for spec, start in zip(self.specs, self.starts[:-1].tolist(), strict=True):
            values = columns[spec.name]
            if spec.numeric:
                found[:, start] = number_codes(values, spec, _NO_EDGES)[1]
            else:
                found[everyone, start + category_codes(values, spec.categories or ())] = 1.0
        return found


@dataclass(frozen=True)
class Components:
    """mean [D], directions [D, E] with orthonormal columns, and one scale that brings customers into [-1, 1]."""

    mean: Floats
    directions: Floats
    scale: float

    def places(self, inputs: Floats) -> Floats:
        """Each customer's coordinates, float64 [n, E]: those far out are put on the edge."""
        return np.clip((inputs - self.mean) @ self.directions / self.scale, -1.0, 1.0)

    def inputs(self, places: Floats) -> Floats:
        """The inputs that these places stand for, float64 [n, D]."""
        return np.asarray(self.mean + places * self.scale @ self.directions.T)

    def flat(self) -> npt.NDArray[np.float32]:
        """[scale | mean | directions row by row]."""
        return np.concatenate([[self.scale], self.mean, self.directions.ravel()]).astype(np.float32)

    @staticmethod
    def of(vector: npt.NDArray[np.floating], inputs: int, dimensions: int) -> "Components":
        """Of a `flat` vector. Raises ValueError on another length, a scale of nothing, or what is not finite."""
        length = 1 + inputs * (1 + dimensions)
        if vector.shape != (length,) or not np.isfinite(vector).all() or vector[0] <= 0:
            raise ValueError(f"Expected {length} finite numbers, the first above zero.")
        numbers = vector.astype(np.float64)
        mean, directions = np.split(numbers[1:], [inputs])
        return Components(mean, directions.reshape(inputs, dimensions), float(numbers[0]))


@dataclass(frozen=True)
class Moments:
    """The sum that components are read from."""

    inputs: Inputs

    @property
    def length(self) -> int:
        return (self.inputs.size + 1) * (self.inputs.size + 2) // 2

    @cached_property
    def _triangle(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
        row, column = np.triu_indices(self.inputs.size + 1)
        return row, column, np.where(row == column, 1.0, sqrt(2))

    def contribute(self, columns: Mapping[str, Any]) -> Rows:
        inputs, features = self.inputs.matrix(columns), len(self.inputs.specs)
        whole = np.hstack([inputs, np.full((len(inputs), 1), sqrt(features))]) / sqrt(2 * features)
        row, column, weight = self._triangle
        return Rows(whole[:, row] * whole[:, column] * weight)

    def covariance(self, total: NoisySum) -> tuple[Floats, Floats, float]:
        """Mean [D], covariance [D, D], and the noise's standard deviation in a variance but for the mean's part."""
        row, column, weight = self._triangle
        size, features = self.inputs.size, len(self.inputs.specs)
        second = np.zeros((size + 1, size + 1))
        second[row, column] = second[column, row] = total.values / weight
        customers = max(2 * float(second[-1, -1]), 1.0)
        mean = second[-1, :-1] * 2 * sqrt(features) / customers
        covariance = second[:-1, :-1] * 2 * features / customers - np.outer(mean, mean)
        return mean, covariance, total.std * 2 * features / customers

    def components(self, total: NoisySum, dimensions: int) -> Components:
        """The same total gives the same components: a direction's largest entry is positive."""
        mean, covariance, _ = self.covariance(total)
        values, vectors = np.linalg.eigh(covariance)
        directions = vectors[:, ::-1][:, :dimensions]
        largest = directions[np.abs(directions).argmax(axis=0), np.arange(dimensions)]
        spread = sqrt(max(float(values[-1]), LEAST_SPREAD))
        return Components(mean, directions * np.sign(largest), SPREAD * spread)
