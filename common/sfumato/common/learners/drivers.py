"""Key drivers: what goes with a score, by a linear regression on columns, from one sum of second moments.

Contribution   With z_j a customer's inputs of driver j, |z_j| <= 1, and y their score in [-1, 1]: 1, y, y^2, each
               z_j and y z_j, and z_j z_k of every two drivers (of a number also its square). Nothing has to be cut.
Reading        b = (S + ridge I)^-1 r of the noisy covariances S of the inputs, and r of these with the score. What a
               driver explains is its Shapley value over all subsets of the drivers (Lindeman, Merenda & Gold 1980;
               Groemping 2007, The American Statistician 61(2)).

The truth is the same regression, with the same ridge, on the sums without noise. It is smooth in the sums, whose
noise is known: intervals are by the delta method, for what is explained to the second order. The ridge is nothing
where the noise of S is small beside its smallest eigenvalue, and else just as much as keeps S above nothing.
"""

from functools import cached_property
from itertools import combinations
from math import comb, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.estimates import REACH, Number, number
from sfumato.common.analyses.parts import part
from sfumato.common.learners.driver_moments import Moments

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_DRIVERS, MOST_INPUTS = 10, 60  # all subsets of the drivers are fitted
CLEAR = 0.4  # how far above nothing the ridge keeps the smallest eigenvalue of S, in norms of its noise


class Fit:
    """The regression over one noisy total; with a `ridge` that is known, or the least that the noise demands.

    Gradients are by the numbers of the sum, float64 [length]. Raises ValueError where noise drowns the count of
    answers or the spread of the scores.
    """

    def __init__(self, moments: Moments, total: NoisySum, ridge: float | None = None) -> None:
        self.moments, size = moments, moments.inputs
        self._variance = (total.std / moments.weights) ** 2
        sums = total.values / moments.weights
        self.n = float(sums[0])
        if self.n <= 2 * REACH * sqrt(self._variance[0]):
            raise ValueError("too few answers for a regression under this noise")
        self._mean, self._z = float(sums[1]) / self.n, sums[3 : 3 + size] / self.n
        self._spread = float(sums[2]) / self.n - self._mean**2
        by_spread = np.zeros(moments.length)
        by_spread[:3] = self._mean**2 - self._spread, -2 * self._mean, 1
        self._by_spread = by_spread / self.n
        if self._spread <= 2 * REACH * self._std(self._by_spread):
            raise ValueError("under this noise, nobody can tell the scores apart")
        self._r = sums[3 + size : 3 + 2 * size] / self.n - self._z * self._mean
        a, b, place, factor = moments.second
        self._s = -np.outer(self._z, self._z)
        np.add.at(self._s, (a, b), factor * sums[place] / self.n)
        if ridge is None:
            noise = np.zeros((size, size))
            np.add.at(noise, (a, b), (factor / self.n) ** 2 * self._variance[place])
            # The norm of a symmetric matrix of noise: twice the root of its rows' variance (Wigner's semicircle).
            norm = 2 * sqrt(float(noise.sum(axis=1).max()))
            ridge = max(0.0, CLEAR * norm - float(np.linalg.eigvalsh(self._s)[0]))
        self.ridge = ridge
        self._b = self._solved(np.arange(size))[0]

    def _std(self, gradient: Floats) -> float:
        return sqrt(float(gradient**2 @ self._variance))

    def _solved(self, inside: Ints) -> tuple[Floats, Floats]:
        """The coefficients of these inputs alone [inputs], and the inverse they came by; 0 elsewhere."""
        size = self.moments.inputs
        inverse, place = np.zeros((size, size)), np.ix_(inside, inside)
        inverse[place] = np.linalg.inv(self._s[place] + self.ridge * np.eye(len(inside)))
        return inverse @ self._r, inverse

    @cached_property
    def _by_gap(self) -> Floats:
        """Of r - S b, for the b found: gradients [inputs, length]."""
        size, n, z, b = self.moments.inputs, self.n, self._z, self._b
        found, each = np.zeros((size, self.moments.length)), np.arange(size)
        rows, columns, place, factor = self.moments.second
        np.add.at(found, (rows, place), -factor * b[columns])
        found[each, 3 + size + each] += 1
        found[each, 3 + each] -= self._mean - z @ b
        found[:, 3 : 3 + size] += np.outer(z, b)
        found[:, 1] -= z
        found[:, 0] += z * self._mean - self._r - z * (z @ b) + self._s @ b
        return found / n

    def _by_explained(self, b: Floats) -> Floats:
        """Of 2 b r - b S b: what the coefficients b explain, where b solves its equations."""
        size, z = self.moments.inputs, self._z
        rows, columns, place, factor = self.moments.second
        found: Floats = np.zeros(self.moments.length)
        np.add.at(found, place, -factor * b[rows] * b[columns])
        zb = float(z @ b)
        found[3 + size : 3 + 2 * size] += 2 * b
        found[3 : 3 + size] += 2 * (zb - self._mean) * b
        found[1] -= 2 * zb
        found[0] += 2 * (zb * self._mean - float(b @ self._r)) + float(b @ self._s @ b) - zb**2
        return found / self.n

    def explained(self) -> tuple[list[Number], Number]:
        """Of the score's variance: the share of each driver, and of all of them."""
        count, size = len(self.moments.drivers), self.moments.inputs
        values, gradients = np.zeros(count + 1), np.zeros((count + 1, self.moments.length))
        inverses = np.zeros((count + 1, size, size))
        for some in (s for k in range(1, count + 1) for s in combinations(range(count), k)):
            inside = np.concatenate([np.arange(size)[self.moments.of(j)] for j in some])
            b, inverse = self._solved(inside)
            value, gradient = float(b @ self._r), self._by_explained(b)
            for j in range(count):
                before = len(some) - (j in some)  # how many drivers came before this one
                part = (1 if j in some else -1) / (count * comb(count - 1, before)) if before < count else 0.0
                values[j] += part * value
                gradients[j] += part * gradient
                inverses[j] += part * inverse
        values[count], gradients[count] = values[:count].sum(), gradients[:count].sum(axis=0)
        inverses[count] = inverses[:count].sum(axis=0)
        gap = (self._by_gap * self._variance) @ self._by_gap.T
        return self._shares(values, gradients, inverses @ gap)

    def _shares(self, values: Floats, gradients: Floats, second: Floats) -> tuple[list[Number], Number]:
        """Noise adds the trace of `second` to what is explained, and 2 tr(second^2) to its variance."""
        found = []
        for value, gradient, more in zip(values, gradients, second, strict=True):
            share = float(value - np.trace(more)) / self._spread
            std = self._std((gradient - share * self._by_spread) / self._spread)
            reach = REACH * sqrt(std**2 + 2 * float(np.sum(more * more.T)) / self._spread**2)
            found.append(number(share, share - reach, share + reach, 1.0))
        return found[:-1], found[-1]

    def effect(self, driver: int) -> Number | None:
        """Of a number: in standard deviations of the score, for one of its own. None where noise drowns those."""
        at = int(self.moments.starts[driver])
        spread, by_spread = float(self._s[at, at]), self._by_s(at)
        if spread <= REACH * self._std(by_spread):
            return None
        unit = sqrt(spread / self._spread)
        by_b = np.linalg.solve(self._s + self.ridge * np.eye(len(self._s)), self._by_gap)[at]
        by_unit = unit / 2 * (by_spread / spread - self._by_spread / self._spread)
        return self._signed(self._b[at] * unit, by_b * unit + self._b[at] * by_unit)

    def effects(self, driver: int) -> list[Number]:
        """Of a category's values: standard deviations of the score above the customers' average."""
        found, inside = self.moments.drivers[driver], self.moments.of(driver)
        c = found.contrasts
        back = c * (1 - 1 / len(c))
        people = 1 / len(c) + back @ self._z[inside]
        by_people = np.zeros((len(c), self.moments.length))
        by_people[:, 3 + inside.start : 3 + inside.stop] = back / self.n
        by_people[:, 0] = -(back @ self._z[inside]) / self.n
        by_b = np.linalg.solve(self._s + self.ridge * np.eye(len(self._s)), self._by_gap)[inside]
        raw, by_raw = c @ self._b[inside], c @ by_b
        above = raw - people @ raw
        by_above = by_raw - people @ by_raw - raw @ by_people
        unit = sqrt(self._spread)
        gradients = (by_above - above[:, None] / 2 * self._by_spread / self._spread) / unit
        return [self._signed(a / unit, g) for a, g in zip(above, gradients, strict=True)]

    def _by_s(self, at: int) -> Floats:
        """Of one input's variance."""
        rows, columns, place, factor = self.moments.second
        here = (rows == at) & (columns == at)
        found = np.bincount(place[here], factor[here], self.moments.length).astype(np.float64)
        found[3 + at] -= 2 * self._z[at]
        found[0] += self._z[at] ** 2 - self._s[at, at]
        return np.asarray(found / self.n)

    def _signed(self, value: float, gradient: Floats) -> Number:
        reach = REACH * self._std(gradient)
        return {"value": float(value), "low": float(value - reach), "high": float(value + reach)}


def driven(
    moments: Moments, total: NoisySum, score: str
) -> tuple[list[dict[str, Any]], list[str], float | None]:
    """The parts of an answer that a regression makes, what is to be said of them, and its ridge."""
    try:
        fit = Fit(moments, total)
    except ValueError as e:
        return [], [f"No drivers: {e}."], None
    each, whole = fit.explained()
    rows, effects = list[dict[str, Any]](), list[dict[str, Any]]()
    for j, (driver, share) in enumerate(zip(moments.drivers, each, strict=True)):
        name = driver.domain.name
        row: dict[str, Any] = {"of": [name], "explained": share}
        if not driver.numeric:
            values = zip(driver.domain.cells, fit.effects(j), strict=True)
            effects += [{"of": [name, value], "effect": e} for value, e in values]
        elif (effect := fit.effect(j)) is not None:
            row["effect"] = effect
        else:
            row["note"] = "the noise is larger than its spread"
        rows.append(row)
    rows.sort(key=lambda r: -r["explained"]["value"])
    notes = [f"Drivers of {score}, all in one regression: effects in standard deviations of the score."]
    if fit.ridge:
        notes.append(
            f"A ridge of {fit.ridge:.2g} holds the regression against the noise: effects are drawn to 0."
        )
    parts = [
        part("fit", ("score",), {"explained": "share"}, [{"of": [score], "explained": whole}]),
        part("drivers", ("driver",), {"explained": "share", "effect": "number"}, rows),
    ]
    if effects:
        parts.append(part("effects", ("driver", "value"), {"effect": "number"}, effects))
    return parts, notes, fit.ridge
