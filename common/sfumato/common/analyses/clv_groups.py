"""The last sum of lifetime value: customers in groups, what each adds, and what their stand-ins add up to."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import sqrt

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.likelihood_sums import Fit
from sfumato.common.learners.bgnbd import BgNbdLikelihood
from sfumato.common.learners.lifetime import Histories, Lifetime, Outlook

BINS = (0.2, 0.4, 0.6, 0.8)  # of P(alive)
BIN_WEIGHT = 0.25
WEIGHTS = {"customers": 0.5, "alive": 0.35, "purchases": 0.5, "value": 0.4, "lifetime": 0.4}
# Of all customers together: the sums over groups would bear the noise of all of them.
ALL = {"customers": 0.25, "alive": 0.25, "purchases": 0.3}
TIMES = 4  # parameters of BG/NBD

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Groups:
    """Customers by repeat purchases and by days since the last purchase: lower ends of all groups but the first."""

    frequency: tuple[int, ...]
    recency: tuple[int, ...]
    amounts: bool

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(WEIGHTS)[: 5 if self.amounts else 3]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.frequency) + 1, len(self.recency) + 1

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def ceilings(self) -> int:
        """How many there are: one a group by repeat purchases of each measure that is a sum."""
        return (len(self.measures) - 2) * self.shape[0]

    @property
    def length(self) -> int:
        return len(self.measures) * self.size + len(BINS) + 1 + len(ALL)

    @property
    def norm(self) -> float:
        """Of a customer at all ceilings."""
        of_groups = sum(WEIGHTS[m] ** 2 for m in self.measures)
        return sqrt(of_groups + BIN_WEIGHT**2 + sum(w**2 for w in ALL.values()))

    def by_frequency(self, x: Floats) -> Ints:
        return np.searchsorted(self.frequency, x, side="right")

    def of(self, x: Floats, since: Floats) -> Ints:
        """Each customer's group, the recency's fastest."""
        return self.by_frequency(x) * self.shape[1] + np.searchsorted(self.recency, since, side="right")

    def rows(self, h: Histories, outlook: Outlook, ceilings: Floats, rest: Floats) -> Floats:
        """[measure after measure, their groups | bins of P(alive) | of all], [n, length]; `rest` is what `Level`
        leaves of the purchases."""
        rows, everyone = np.zeros((len(h), self.length)), np.arange(len(h))
        found = [np.ones(len(h)), outlook.alive, outlook.purchases]
        if outlook.lifetime is not None:
            found += [h.value, outlook.lifetime]
        group, above = (
            self.of(h.x, h.t - h.t_x),
            ceilings.reshape(-1, self.shape[0])[:, self.by_frequency(h.x)],
        )
        for i, (name, values) in enumerate(zip(self.measures, found, strict=True)):
            over = values if i < 2 else np.clip(values / above[i - 2], 0, 1)
            rows[everyone, i * self.size + group] = WEIGHTS[name] * over
        bin_ = np.searchsorted(BINS, outlook.alive, side="right")
        rows[everyone, len(self.measures) * self.size + bin_] = BIN_WEIGHT
        whole = np.stack([np.ones(len(h)), outlook.alive, np.clip(rest, -1, 1)], axis=1)
        rows[:, -len(ALL) :] = whole * list(ALL.values())
        return rows

    def words(self) -> Iterator[tuple[str, str]]:
        """Each group's frequency and recency."""
        for often in _ranges(self.frequency):
            for since in _ranges(self.recency):
                yield often, since


@dataclass(frozen=True)
class Level:
    """Expected purchases are all but linear in the score, and scores add up to nothing at the top of the likelihood.
    So what a customer's expectation is beyond `centre` and `slopes` times the score, which is little, adds up to
    what expectations do; it counts up to `reach`. The last parameter's score has no part: its top is often a limit.
    """

    slopes: Floats
    centre: float
    reach: float

    @staticmethod
    def parse(numbers: Floats) -> "Level":
        """From `flat`. Raises ValueError on a reach that is none."""
        if numbers[-1] <= 0:
            raise ValueError("Expected a reach above 0.")
        return Level(numbers[: TIMES - 1], float(numbers[-2]), float(numbers[-1]))

    @property
    def flat(self) -> Floats:
        return np.concatenate([self.slopes, [self.centre, self.reach]])

    def rest(self, u: Floats, times: Floats, purchases: Floats) -> Floats:
        """Of customers with these times and expectations, in units of the reach."""
        scores = BgNbdLikelihood().score(u, times)[:, : TIMES - 1]
        return np.asarray((purchases - scores @ self.slopes - self.centre) / self.reach)


LEVEL_SIZE = TIMES + 1


@dataclass(frozen=True)
class Sums:
    """What stand-ins add up to, at some parameters."""

    groups: Groups
    model: Callable[[Floats], Lifetime]
    fits: Sequence[Fit]

    @cached_property
    def u(self) -> Floats:
        return np.concatenate([fit.top for fit in self.fits])

    @cached_property
    def _times(self) -> Histories:
        x, t_x, t = self.fits[0].stand_ins.points.data.T
        return Histories(x, t_x, t, np.zeros(len(x)), np.zeros(len(x)))

    def of_times(self, u: Floats) -> tuple[Floats, Floats, Floats]:
        """P(alive) and purchases of each group, and how many are in each bin of P(alive)."""
        h, weights = self._times, self.fits[0].stand_ins.weights
        model = self.model(np.concatenate([u, self.u[TIMES:]]))
        alive = model.times.alive(h.x, h.t_x, h.t)
        purchases = model.times.expected([model.days], h.x, h.t_x, h.t)[:, 0]
        group = self.groups.of(h.x, h.t - h.t_x)
        sums = [
            np.bincount(group, weights * v, self.groups.size).astype(np.float64) for v in (alive, purchases)
        ]
        bins = np.bincount(np.searchsorted(BINS, alive, side="right"), weights, len(BINS) + 1)
        return sums[0], sums[1], bins.astype(np.float64)

    def level(self, noise: float) -> Level:
        """By least squares over the stand-ins; about half as many lie beyond its reach as the noise of a number."""
        model, h, u = self.model(self.u), self._times, self.u[:TIMES]
        weights = self.fits[0].stand_ins.weights
        purchases = model.times.expected([model.days], h.x, h.t_x, h.t)[:, 0]
        scores = BgNbdLikelihood().score(u, h.times)[:, : TIMES - 1]
        by = np.column_stack([scores, np.ones(len(scores))]) * np.sqrt(weights)[:, None]
        *slopes, centre = np.linalg.lstsq(by, purchases * np.sqrt(weights), rcond=1e-9)[0].tolist()
        rest = Level(np.array(slopes), centre, 1.0).rest(u, h.times, purchases)
        return Level(np.array(slopes), centre, max(_upper(np.abs(rest), weights, noise / 2), 1e-3))

    def all_purchases(self, u: Floats, level: Level) -> float:
        """Of all stand-ins, as `Level` adds them up."""
        model, h = self.model(np.concatenate([u, self.u[TIMES:]])), self._times
        purchases = model.times.expected([model.days], h.x, h.t_x, h.t)[:, 0]
        scores = self.fits[0].stand_ins.gradient(u)[: TIMES - 1]
        return float(self.fits[0].stand_ins.weights @ purchases - scores @ level.slopes)

    def of_values(self, u: Floats) -> Floats:
        """The mean value of a purchase in each group."""
        values = self.model(np.concatenate([self.u[:TIMES], u])).values
        assert values is not None
        x, m = self.fits[1].stand_ins.points.data.T
        weights, place = self.fits[1].stand_ins.weights, self.groups.by_frequency(x)
        often = self.groups.shape[0]
        size = np.bincount(place, weights, often)
        sums = np.bincount(place, weights * values.expected(x, m), often)
        means = np.where(size > 0, np.divide(sums, size, out=np.zeros(often), where=size > 0), values.mean)
        return np.repeat(means, self.groups.shape[1])

    def ceilings_of(self, noise: float) -> Floats:
        """So that about as many customers lie above as the noise of one number (of values, twice as many), in each
        group by repeat purchases: [purchases | value | lifetime]."""
        model, h = self.model(self.u), self._times
        weights, place = self.fits[0].stand_ins.weights, self.groups.by_frequency(h.x)
        outlook = model.times.expected([model.days], h.x, h.t_x, h.t)[:, 0]
        often = range(self.groups.shape[0])
        found = [[_upper(outlook, weights * (place == g), noise) for g in often]]
        if model.values is not None:
            x, m = self.fits[1].stand_ins.points.data.T
            weights, place = self.fits[1].stand_ins.weights, self.groups.by_frequency(x)
            place_of = [np.where(place == max(g, 1), weights, 0.0) for g in often]
            bought = [
                (x + 1) if g else np.ones(len(x)) for g in often
            ]  # of one purchase the values are as of two
            found.append([_upper(m * n, w, 2 * noise) for w, n in zip(place_of, bought, strict=True)])
            mean = model.values.expected(x, m)
            each = [_upper(mean, w, 2 * noise) for w in place_of]
            found.append([a * b for a, b in zip(found[0], each, strict=True)])
        return np.maximum(np.concatenate(found), 1e-6)


def _upper(values: Floats, weights: Floats, above: float) -> float:
    """The value that stand-ins of this weight, and at most a fifth of all, lie above; of nobody, the largest."""
    weights = weights if weights.any() else np.ones(len(values))
    order = np.argsort(-values)
    place = int(np.searchsorted(np.cumsum(weights[order]), min(above, weights.sum() / 5)))
    return float(values[order][min(place, len(order) - 1)])


def _ranges(ends: tuple[int, ...]) -> Iterator[str]:
    """In words: 0 to 30, 31 to 90, 91 and more."""
    for low, high in pairwise((0, *ends)):
        yield str(low) if high == low + 1 else f"{low} to {high - 1}"
    yield f"{ends[-1] if ends else 0} and more"
