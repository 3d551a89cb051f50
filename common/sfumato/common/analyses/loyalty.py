"""Loyalty: who reacts to which reward?

Question       The column with the reward that chance gave a customer, what they did, and groups to look at. `control`
               is the value that stands for no reward, if there is one.
Contribution   That of a campaign with one outcome (arms.py, trial.py): an l2 norm of 1.
Reading        By group, each reward's mean with an interval for the noise; and which reward wins there. All rewards
               are compared with each other in all groups at once: with a probability of 95 % all these statements
               are right about customers of the kind, noise and sampling error counted (Sidak 1967). `lead` is over
               the best of the others (multiple comparisons with the best: Hsu 1996, chapter 4), raised for what was
               cut off.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.arms import Arms, ArmTable
from sfumato.common.analyses.estimates import LEVEL
from sfumato.common.analyses.parts import Unit, part
from sfumato.common.analyses.trial import Range, Trial, bounds
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.learners.uplift import difference

EVERYBODY = "everybody"

Ends = tuple[float, float, float]


class Question(BaseModel):
    """`reward` is a category. An `outcome` that is a number is cut at `outcome_bound`, or at a bound that takes
    `bound_share` of the budget. `groups_share` is what groups have of a customer's norm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reward: str
    outcome: str
    control: str | None = None
    outcome_bound: float | None = Field(default=None, allow_inf_nan=False)
    bound_share: float = Field(default=0.15, gt=0, lt=0.5)
    groups: tuple[str, ...] = Field(min_length=1, max_length=4)
    groups_share: float = Field(default=0.8, gt=0, lt=1)
    bins: int = Field(default=5, ge=2, le=20)


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on columns that cannot be used so, and on a control that is no value of the reward."""
    arms = Arms.of(
        contract,
        ("reward", question.reward),
        (question.outcome,),
        question.groups,
        question.groups_share,
        question.bins,
    )
    if question.control is not None and question.control not in arms.names:
        raise BadInput(
            f"question.control: {question.control!r} is no value of {question.reward!r}",
            hint=f"It has: {', '.join(arms.names)}.",
        )
    stated = {} if question.outcome_bound is None else {question.outcome: question.outcome_bound}
    return Loyalty(arms, bounds(arms.outcomes, stated), question.bound_share, question.control)


@dataclass(frozen=True)
class Loyalty(Trial):
    """Every reward against every other."""

    control: str | None

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """Parts: which reward wins, by group; and each reward's mean and lead there."""
        ranges, raised = self.read_ranges(totals), self.raised(totals)
        table = self.arms.read(totals[-1])
        groupings = [(g.name, table.groups(i)) for i, g in enumerate(self.arms.groupings)]
        places = [
            ("", 0, EVERYBODY),
            *((by, place, name) for by, found in groupings for place, name in found),
        ]
        reach = self._reach(len(places))
        duels = {p: Duels(table, p, self.arms, ranges[0], raised[0], reach) for _, p, _ in places}
        winners = [
            {"of": [by or "-", name], **duels[place].words(self.control)} for by, place, name in places
        ]
        details = [
            {"of": [by or "-", name, self.arms.names[arm]], **row}
            for by, place, name in places
            for arm, row in enumerate(duels[place].rows())
        ]
        outcome = self.arms.outcomes[0]
        unit: Unit = "share" if outcome.happens else "number" if outcome.whole else "amount"
        units: dict[str, Unit] = {"customers": "customers", duels[0].mean: unit, "lead": unit}
        return {
            "level": LEVEL,
            "customers": table.customers(),
            "notes": [
                f"who wins, may win, is beaten and reacts, and all leads, hold together with a probability of "
                f"{LEVEL:.0%}, for other customers of the kind: noise and sampling error are counted.",
                *self.notes(ranges, raised, "lead"),
            ],
            "parts": [
                part("which reward wins", ["groups of", "group"], {}, winners),
                part(outcome.name, ["groups of", "group", "reward"], units, details),
                *self.clipping(totals),
            ],
        }

    def _reach(self, places: int) -> float:
        """Standard deviations either way, for every pair of rewards in every place at once."""
        arms = len(self.arms.names)
        pairs = places * arms * (arms - 1) // 2
        return NormalDist().inv_cdf((1 + LEVEL ** (1 / pairs)) / 2)


@dataclass(frozen=True)
class Duels:
    """All rewards against each other in one place, within `reach` standard deviations."""

    table: ArmTable
    place: int
    arms: Arms
    range: Range
    raised: float  # leads, for what was cut off
    reach: float

    @property
    def mean(self) -> str:
        return "rate" if self.arms.outcomes[0].happens else "mean"

    @cached_property
    def _ends(self) -> dict[tuple[int, int], Ends]:
        happens, arms = self.arms.outcomes[0].happens, range(len(self.arms.names))
        cells = [self.table.cell(self.place, a) for a in arms]
        found = {(a, o): difference(cells[a], cells[o], 0, happens, self.reach) for a in arms for o in arms}
        return {pair: (d.value, d.low, d.high) for pair, d in found.items()}

    def ends(self, arm: int, other: int) -> Ends:
        """Value, low and high of one reward's mean over another's, scaled."""
        return self._ends[arm, other]

    def others(self, arm: int) -> list[int]:
        return [a for a in range(len(self.arms.names)) if a != arm]

    def verdict(self, arm: int) -> str:
        found = [self.ends(arm, o) for o in self.others(arm)]
        if all(low > 0 for _, low, _ in found):
            return "wins"
        return "beaten" if any(high < 0 for _, _, high in found) else "may win"

    def words(self, control: str | None) -> dict[str, str]:
        """Who wins, who may, who is beaten; and with a control which rewards do anything."""
        said = {"wins": list[str](), "may win": list[str](), "beaten": list[str]()}
        for arm, name in enumerate(self.arms.names):
            said[self.verdict(arm)].append(name)
        if control is not None:
            none = self.arms.names.index(control)
            said["reacts to"] = [self.arms.names[a] for a in self.others(none) if self.ends(a, none)[1] > 0]
        return {word: ", ".join(names) or "-" for word, names in said.items()}

    def rows(self) -> Iterator[dict[str, Any]]:
        """Of each reward."""
        low, width = self.range[0], self.range[1] - self.range[0]
        for arm in range(len(self.arms.names)):
            cell = self.table.cell(self.place, arm)
            found = zip(*(self.ends(arm, o) for o in self.others(arm)), strict=True)
            scale = width * self.raised
            lead = dict(zip(("value", "low", "high"), (scale * min(ends) for ends in found), strict=True))
            yield {
                "customers": cell.customers,
                self.mean: {k: low + width * v for k, v in cell.mean(0).items()},
                "lead": lead,
                "verdict": self.verdict(arm),
            }
