"""A comparison of arms in rounds: where amounts are cut, if the question leaves that to the data, and the tables.

What campaign and loyalty have in common; they differ in how they read the tables.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.arms import Arms
from sfumato.common.analyses.estimates import REACH, number
from sfumato.common.analyses.latest import Measure
from sfumato.common.analyses.parts import Unit, part
from sfumato.common.contributions import Contributions
from sfumato.common.errors import BadInput
from sfumato.common.learners.winsor import Sizes

Asked = npt.NDArray[np.float32] | None
Range = tuple[float, float]

# Of what is cut off, over a relative uplift u of the rest: u is as likely to be anything up to 1, and the uplift of
# what is cut off anything up to 2 u. Differences are raised as if it were u: squared, that errs by u^2 / 3, or 1/9.
UNLIKE = 1 / 3


def bounds(outcomes: tuple[Measure, ...], stated: Mapping[str, float]) -> tuple[float | None, ...]:
    """Of each outcome the bound on its size; None where it is still to be found. Raises BadInput."""
    numbers = {o.name: max(abs(o.low), abs(o.high)) for o in outcomes if not o.happens}
    for name, bound in stated.items():
        if name not in numbers or not 0 < bound <= numbers[name]:
            raise BadInput(
                f"question.outcome_bound: {name!r} takes no bound of {bound:g}",
                hint="It is for outcomes that are numbers, above 0 and within the contract's bounds.",
            )
    return tuple(1.0 if o.happens else stated.get(o.name) for o in outcomes)


@dataclass(frozen=True)
class Trial:
    """The rounds of a comparison of arms: sizes, where a bound is to be found, and the tables."""

    arms: Arms
    stated: tuple[float | None, ...]
    bound_share: float

    @cached_property
    def sought(self) -> tuple[Measure, ...]:
        """Outcomes whose bound is to be found."""
        return tuple(o for o, b in zip(self.arms.outcomes, self.stated, strict=True) if b is None)

    @cached_property
    def sizes(self) -> Sizes:
        return Sizes(tuple(max(abs(o.low), abs(o.high)) for o in self.sought))

    @property
    def columns(self) -> tuple[str, ...]:
        return self.arms.columns

    @property
    def shares(self) -> tuple[float, ...]:
        return (self.bound_share, 1 - self.bound_share) if self.sought else (1.0,)

    def max_norm(self, round_: int) -> float:
        return self.sizes.max_norm if round_ < len(self.shares) - 1 else 1.0

    def length(self, round_: int) -> int:
        return self.sizes.length if round_ < len(self.shares) - 1 else self.arms.length

    def ask(self, round_: int, totals: list[NoisySum]) -> Asked:
        """The bounds that were sought."""
        if round_ == 0:
            return None
        noise = totals[0].std / self.sizes.max_norm * sqrt(self.shares[0] / self.shares[1])
        return self.sizes.bounds(
            totals[0], sqrt(2) * len(self.arms.names) * self.arms.sum_noise(noise) / UNLIKE
        )

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: Asked) -> Contributions:
        """Sizes of those in an arm; then the tables. Raises ValueError."""
        if round_ < len(self.shares) - 1:
            if asked is not None:
                raise ValueError("Sizes are asked without numbers.")
            inside = self.arms.inside(columns)
            return self.sizes.contribute(
                np.stack([np.where(inside, o.values(columns), np.nan) for o in self.sought], axis=1)
            )
        return self.arms.contribute(columns, self.ranges(asked))

    def ranges(self, asked: Asked) -> tuple[Range, ...]:
        """Where each outcome is cut. Raises ValueError on bounds of another form."""
        found = np.zeros(0, np.float32) if asked is None else asked
        most = self.sizes.most
        if found.shape != (len(most),) or not all(
            0 < b <= m for b, m in zip(found.tolist(), most, strict=True)
        ):
            raise ValueError(f"Expected {len(most)} bounds, within the contract's.")
        left = iter(found.tolist())
        sizes = [next(left) if b is None else b for b in self.stated]
        return tuple((max(o.low, -b), min(o.high, b)) for o, b in zip(self.arms.outcomes, sizes, strict=True))

    def read_ranges(self, totals: list[NoisySum]) -> tuple[Range, ...]:
        return self.ranges(self.ask(len(totals) - 1, totals[:-1]))

    def raised(self, totals: list[NoisySum]) -> tuple[float, ...]:
        """Of each outcome, how many times as large a difference of arms is where nothing is cut off, if the largest
        amounts differ as much as the rest; 1 where no bound was sought."""
        asked = self.ask(len(totals) - 1, totals[:-1])
        kept = iter(() if asked is None else self.sizes.kept(totals[0], asked))
        return tuple(1 / next(kept) if b is None else 1.0 for b in self.stated)

    def clipping(self, totals: list[NoisySum]) -> list[dict[str, Any]]:
        """The part that says where amounts were cut and how many lie above, and nothing where none was sought."""
        asked = self.ask(len(totals) - 1, totals[:-1])
        if asked is None:
            return []
        rows = [
            {
                "of": [o.name],
                "bound": number(float(b), float(b), float(b)),
                "customers above": number(n, n - REACH * std, n + REACH * std),
            }
            for o, b, (n, std) in zip(self.sought, asked, self.sizes.above(totals[0], asked), strict=True)
        ]
        units: dict[str, Unit] = {"bound": "amount", "customers above": "customers"}
        return [part("where amounts were cut", ["outcome"], units, rows)]

    def notes(self, ranges: tuple[Range, ...], raised: tuple[float, ...], what: str) -> list[str]:
        """Where amounts were cut, and by how much `what` was raised for it."""
        found = zip(self.arms.outcomes, ranges, raised, strict=True)
        return [
            note
            for o, (low, high), by in found
            if not o.happens and (low > o.low or high < o.high)
            for note in (
                f"{o.name}: what is below {low:g} counts as {low:g}, what is above {high:g} as {high:g}.",
                *([f"{o.name}: {what} is raised by {by - 1:.1%} for what was cut off."] if by > 1 else []),
            )
        ]
