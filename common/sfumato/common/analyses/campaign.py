"""Campaign: what did a randomised campaign change, for whom, and whom to target next time?

Question       The column that says which arm a customer was drawn into and which of its values is control; outcomes
               that happen or not, or are bounded numbers; groups to look at separately.
Contribution   See arms.py: an l2 norm of 1. Before it, where an amount's bound is left to the data, one cell of a
               histogram of sizes for each such amount (learners.winsor).
Reading        For each outcome and arm the mean, and over control the uplift, absolute and relative, with intervals
               for the noise alone; `effect` is the uplift with an interval for noise and sampling error together,
               raised for what was cut off, `chance` the one-sided probability that it helps. Groups come ranked by
               the lower end of their effect in an independent copy of the total, so that the numbers shown are not
               those ranked by.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.arms import Arms, ArmTable
from sfumato.common.analyses.estimates import LEVEL, REACH, Number, independent_copies, number, quotient
from sfumato.common.analyses.latest import Measure
from sfumato.common.analyses.parts import Unit, part
from sfumato.common.analyses.trial import Range, Trial, bounds
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.learners.uplift import Difference, difference


class Question(BaseModel):
    """`treatment` is a category, `control` one of its values. Numbers among `outcomes` are cut at `outcome_bound`, or
    at a bound that takes `bound_share` of the budget. `groups_share` is what groups have of a customer's norm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    treatment: str
    control: str
    outcomes: tuple[str, ...] = Field(min_length=1, max_length=8)
    outcome_bound: dict[str, FiniteFloat] = Field(default_factory=dict)
    bound_share: float = Field(default=0.15, gt=0, lt=0.5)
    groups: tuple[str, ...] = Field(default=(), max_length=4)
    groups_share: float = Field(default=0.5, gt=0, lt=1)
    bins: int = Field(default=5, ge=2, le=20)


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on columns that cannot be used so, and on a control that is no arm."""
    arms = Arms.of(
        contract,
        ("treatment", question.treatment),
        question.outcomes,
        question.groups,
        question.groups_share,
        question.bins,
    )
    if question.control not in arms.names:
        raise BadInput(
            f"question.control: {question.control!r} is no value of {question.treatment!r}",
            hint=f"It has: {', '.join(arms.names)}.",
        )
    stated = bounds(arms.outcomes, question.outcome_bound)
    return Campaign(arms, stated, question.bound_share, question.control)


@dataclass(frozen=True)
class Campaign(Trial):
    """Uplift over control."""

    control: str

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """Parts: an outcome by arm; an outcome by arm and group, best group first; whom to target."""
        coarse, fine = (self.arms.read(copy) for copy in independent_copies(totals[-1]))
        ranges, raised = self.read_ranges(totals), self.raised(totals)
        views = [
            View(fine, coarse, j, o, ranges[j], raised[j], self.arms.names.index(self.control))
            for j, o in enumerate(self.arms.outcomes)
        ]
        parts = [v.whole() for v in views]
        for grouping in range(len(self.arms.groupings)):
            parts += [v.by_group(grouping) for v in views]
        if self.arms.groupings:
            rows = [r for v in views for g in range(len(self.arms.groupings)) for r in v.targets(g)]
            parts.append(part("whom to target", ["outcome", "arm", "groups of"], {}, rows))
        return {
            "level": LEVEL,
            "customers": fine.customers(),
            "notes": [
                "uplift: these customers, the interval is for the noise; effect: others of their kind, noise and "
                "sampling error.",
                *self.notes(ranges, raised, "effect"),
            ],
            "parts": [*parts, *self.clipping(totals)],
        }


@dataclass(frozen=True)
class View:
    """One outcome, in its own unit."""

    fine: ArmTable
    coarse: ArmTable
    place: int  # among the outcomes
    outcome: Measure
    range: Range
    raised: float  # the effect, for what was cut off
    control: int

    @property
    def units(self) -> dict[str, Unit]:
        unit: Unit = "share" if self.outcome.happens else "number" if self.outcome.whole else "amount"
        return {
            "customers": "customers",
            self.mean: unit,
            "uplift": unit,
            "relative uplift": "share",
            "effect": unit,
            "chance": "share",
        }

    @property
    def mean(self) -> str:
        return "rate" if self.outcome.happens else "mean"

    @property
    def _treated(self) -> list[int]:
        return [a for a in range(len(self.fine.of.names)) if a != self.control]

    def _row(self, of: list[str], place: int, arm: int) -> dict[str, Any]:
        low, width = self.range[0], self.range[1] - self.range[0]
        cell = self.fine.cell(place, arm)
        mean = {k: low + width * v for k, v in cell.mean(self.place).items()}
        row = {"of": of, "customers": cell.customers, self.mean: mean}
        if arm == self.control:
            return row
        over = self._over_control(self.fine, place, arm)
        row["uplift"] = _scaled(over.value, *over.noise, width)
        relative = self._relative(place, arm)
        if relative is not None:
            row["relative uplift"] = relative
        row["effect"] = _scaled(over.value, *over.both, width * self.raised)
        row["chance"] = _chance(over)
        return row | {"verdict": verdict(over.low, over.high)}

    def _over_control(self, table: ArmTable, place: int, arm: int) -> Difference:
        cells = table.cell(place, arm), table.cell(place, self.control)
        return difference(*cells, self.place, self.outcome.happens)

    def _relative(self, place: int, arm: int) -> Number | None:
        """Over control's mean; nothing where that is not told from 0, or may be negative."""
        if self.range[0] != 0:
            return None
        x, n = (self.fine.cell(place, a) for a in (arm, self.control))
        ends = (x.mean(self.place)["value"], n.mean(self.place)["value"])
        noise = (x.noise(self.place) ** 2, n.noise(self.place) ** 2)
        found = quotient(*ends, *noise, 0.0, least=0.0, most=float("inf"))
        return None if found["high"] == float("inf") else {k: v - 1 for k, v in found.items()}

    def whole(self) -> dict[str, Any]:
        names = self.fine.of.names
        rows = [self._row([names[a]], 0, a) for a in (*self._treated, self.control)]
        return part(self.outcome.name, ["arm"], self.units, rows)

    def _ranked(self, grouping: int, arm: int) -> list[tuple[int, str]]:
        groups = self.fine.groups(grouping)
        return sorted(groups, key=lambda g: -self._over_control(self.coarse, g[0], arm).low)

    def by_group(self, grouping: int) -> dict[str, Any]:
        """Each arm's groups, those first that it is most surely good for; control at the end."""
        by, names = self.fine.of.groupings[grouping].name, self.fine.of.names
        order = [(a, g) for a in self._treated for g in self._ranked(grouping, a)]
        order += [(self.control, g) for g in self.fine.groups(grouping)]
        rows = [self._row([names[arm], name], place, arm) for arm, (place, name) in order]
        return part(f"{self.outcome.name} by {by}", ["arm", by], self.units, rows)

    def targets(self, grouping: int) -> Iterator[dict[str, Any]]:
        """For each arm, which groups it helps or harms."""
        for arm in self._treated:
            said: dict[str, list[str]] = {"helps": [], "harms": [], "cannot tell": []}
            ranked = self._ranked(grouping, arm)
            for place, name in ranked:
                over = self._over_control(self.fine, place, arm)
                said[verdict(over.low, over.high)].append(name)
            of = [self.outcome.name, self.fine.of.names[arm], self.fine.of.groupings[grouping].name]
            words = {word: ", ".join(names) or "-" for word, names in said.items()}
            yield {"of": of, "first": ranked[0][1]} | words


def verdict(low: float, high: float) -> str:
    """Of an effect."""
    return "helps" if low > 0 else "harms" if high < 0 else "cannot tell"


def _scaled(value: float, down: float, up: float, width: float) -> Number:
    ends = (value, max(value - down, -1.0), min(value + up, 1.0))
    return dict(zip(("value", "low", "high"), (width * e for e in ends), strict=True))


def _chance(over: Difference) -> Number:
    """That the effect on others is above 0, with the interval for the noise: of the chance without noise."""
    sampling = max(sqrt(max(over.both[0] ** 2 - over.noise[0] ** 2, 0.0)) / REACH, 1e-12)
    normal = NormalDist()
    low, high = (
        normal.cdf((over.value + sign * side) / sampling)
        for sign, side in zip((-1, 1), over.noise, strict=True)
    )
    value = normal.cdf(over.value / max(over.both[0] / REACH, 1e-12))
    return number(min(max(value, low), high), low, high, 1.0)
