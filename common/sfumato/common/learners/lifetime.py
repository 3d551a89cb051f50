"""What customers will be worth: purchases to come times the value of one, months ahead at a discount."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from sfumato.common.learners.bgnbd import BgNbd, GammaGamma

MONTH = 365 / 12  # days

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Histories:
    """Of n customers who bought at least once, float64 [n] each: repeat purchases, days from the first to the last,
    days from the first to today, the mean value of the repeat purchases (0 without one), and the value of all."""

    x: Floats
    t_x: Floats
    t: Floats
    m: Floats
    value: Floats

    def __len__(self) -> int:
        return len(self.x)

    @property
    def times(self) -> Floats:
        """[n, 3]: x, t_x, T."""
        return np.stack([self.x, self.t_x, self.t], axis=1)

    @property
    def repeats(self) -> npt.NDArray[np.bool_]:
        """Who has spent something on a repeat purchase."""
        return (self.x > 0) & (self.m > 0)

    @property
    def values(self) -> Floats:
        """[those, 2]: x and m."""
        return np.stack([self.x, self.m], axis=1)[self.repeats]


@dataclass(frozen=True)
class Outlook:
    """Of n customers, float64 [n] each: P(alive), purchases to be expected and, where amounts are known, the mean
    value of one and the discounted value of all of them."""

    alive: Floats
    purchases: Floats
    mean: Floats | None = None
    lifetime: Floats | None = None


@dataclass(frozen=True)
class Lifetime:
    """Both models, so many months ahead; `discount` is a year's rate. A month's purchases count as at its end."""

    times: BgNbd
    values: GammaGamma | None
    months: int
    discount: float

    @classmethod
    def of_numbers(cls, numbers: Floats, months: int, discount: float) -> Self:
        """From `numbers`. Raises ValueError where they are no parameters."""
        if numbers.shape not in ((4,), (7,)) or not np.isfinite(numbers).all() or (numbers <= 0).any():
            raise ValueError("expected 4 or 7 positive parameters")
        if len(numbers) == 7 and numbers[5] <= 1:
            raise ValueError("expected q above 1")
        values = GammaGamma(*map(float, numbers[4:])) if len(numbers) == 7 else None
        return cls(BgNbd(*map(float, numbers[:4])), values, months, discount)

    @property
    def numbers(self) -> Floats:
        """r, alpha, a, b, and p, q, v where amounts are known."""
        t, v = self.times, self.values
        return np.array([t.r, t.alpha, t.a, t.b, *([v.p, v.q, v.v] if v else [])])

    @property
    def days(self) -> float:
        return self.months * MONTH

    @property
    def _ends(self) -> list[float]:
        """Of the months."""
        return [MONTH * month for month in range(1, self.months + 1)]

    def discounted(self, purchases: Floats) -> Floats:
        """Purchases up to the end of each month [n, months], as those of today [n]."""
        months = np.arange(1, purchases.shape[1] + 1)
        return np.asarray(np.diff(purchases, axis=1, prepend=0.0) @ (1 + self.discount) ** (-months / 12))

    def outlook(self, h: Histories) -> Outlook:
        """Of these customers."""
        alive = self.times.alive(h.x, h.t_x, h.t)
        purchases = self.times.expected(self._ends, h.x, h.t_x, h.t)
        if self.values is None:
            return Outlook(alive, purchases[:, -1])
        mean = self.values.expected(np.where(h.repeats, h.x, 0.0), h.m)
        return Outlook(alive, purchases[:, -1], mean, self.discounted(purchases) * mean)

    @property
    def new(self) -> tuple[float, float, float]:
        """Of a customer after the first purchase: purchases to come, the value of one, and of all."""
        none = np.zeros(1)
        purchases = self.times.expected(self._ends, none, none, none)
        mean = self.values.mean if self.values else 0.0
        return float(purchases[0, -1]), mean, float(self.discounted(purchases)[0]) * mean
