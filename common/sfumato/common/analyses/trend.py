"""Trend: how many customers were in each state, month by month, and how does that move?

Question       What to follow: a roll-up read by month, in its public bins, or a table's rows (active or quiet in a
               month). Over how many months, at most how many changes a customer, by which column. How many of the
               months are still to come: then the question stands, and is asked month by month (standing_trend.py).
Contribution   One customer adds their path in one vector (paths.py): the less they change, the shorter it is.
               The bound is that of `changes` changes; without it, that of one number a month.
Reading        Counts, shares and changes with the exact covariance; every month has all customers: least squares.

Which layout has the least noise follows from months and changes alone, so it is chosen before anything is asked. Of
who changes more often only the latest changes count, and before these the state does not move: the latest month is
right for everybody. How many they are is counted, too. (decisions/0021: layouts, and what each costs.)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sfumato.common.analyses.active_months import last_day
from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.domains import Domain, domain
from sfumato.common.analyses.estimates import LEVEL
from sfumato.common.analyses.followed import Followed, follow
from sfumato.common.analyses.month_parts import everyone, month_parts, restless_part
from sfumato.common.analyses.paths import PathCounts, Paths, best_alike, settled, variance
from sfumato.common.analyses.standing import RESTLESS
from sfumato.common.analyses.standing_trend import StandingTrend
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells
from sfumato.common.errors import BadInput
from sfumato.common.learners.encoding import MOST_MONTHS

Ints = npt.NDArray[np.int64]

MOST_CELLS = 10_000


class Question(BaseModel):
    """A roll-up or a table to follow; months, and how many of them lie `ahead`; the most changes a customer, if there
    is a bound; by which column, if any; after how many months without a row a customer is quiet; `bins` of numbers
    without public edges."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    follow: str
    months: int = Field(default=12, ge=2, le=MOST_MONTHS)
    ahead: int | None = Field(default=None, ge=1, lt=MOST_MONTHS)
    changes: int | None = Field(default=None, ge=1)
    group: str | None = None
    quiet: int = Field(default=1, ge=1, le=36)
    bins: int = Field(default=5, ge=2, le=64)

    @model_validator(mode="after")
    def _begins_now(self) -> Self:
        if self.ahead is not None and self.ahead >= self.months:
            raise ValueError("ahead: the first of the months must be over, so at most months - 1 lie ahead")
        return self


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on what cannot be followed by month, a group without public cells, and too many cells."""
    ahead, q = question.ahead or 0, question
    group = domain(contract, q.group, q.bins) if q.group else None
    followed = follow(contract, q.follow, 1 if ahead else q.months, q.quiet, q.bins)
    assert contract.as_of is not None
    days = tuple(last_day(contract.as_of, m) for m in reversed(range(-ahead, q.months - ahead)))
    if not ahead:
        found = Trend(followed, group, q, tuple(day.isoformat() for day in days))
        _few_enough(found.length(0))
        return found
    changes = q.changes if q.changes is not None and q.changes < q.months - 1 else None
    each = tuple(follow(contract.on(day), q.follow, 1, q.quiet, q.bins) for day in days)
    standing = StandingTrend(q.follow, each, group, changes, days)
    _few_enough(q.months * standing.length(0))
    return standing


def _few_enough(cells: int) -> None:
    if cells > MOST_CELLS:
        raise BadInput(
            f"question: {cells:,} cells in all, and at most {MOST_CELLS:,} can be read",
            hint="Follow fewer months, or a number with fewer bins, or take a group with fewer values.",
        )


@dataclass(frozen=True)
class Trend:
    """Paths of customers through the states of what is followed. `until` are the months' last days, oldest first."""

    followed: Followed
    group: Domain | None
    question: Question
    until: tuple[str, ...]
    shares: tuple[float, ...] = (1.0,)

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.followed.columns, *([self.group.name] if self.group else ()))

    @property
    def _changes(self) -> int:
        most = self.question.months - 1
        return most if self.question.changes is None else min(self.question.changes, most)

    @property
    def bounded(self) -> bool:
        """Whether some customers may change more often than counts."""
        return self._changes < self.question.months - 1

    @cached_property
    def paths(self) -> Paths:
        months = self.question.months
        groups = len(self.group.cells) if self.group else 1
        return Paths(groups, months, len(self.followed.states), best_alike(months, self._changes))

    def max_norm(self, round_: int) -> float:
        longest = variance(self.question.months, self._changes, self.paths.alike)
        return sqrt(longest + RESTLESS**2 * self.bounded)

    def length(self, round_: int) -> int:
        return self.paths.size + self.bounded

    def ask(self, round_: int, totals: list[NoisySum]) -> None:
        return None

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: object) -> Cells:
        if asked is not None:
            raise ValueError("a trend is asked without numbers")
        states, restless = settled(self.followed.read(columns), self._changes)
        group = np.zeros(len(states), dtype=np.int64)
        if self.group:
            group = self.group.codes(columns[self.group.name])
        group = np.where((states < 0).any(axis=1), -1, group)
        cells, weights = self.paths.cells(states, group), self.paths.weights
        if self.bounded:
            more = np.where(restless & (group >= 0), self.paths.size, -1)
            cells, weights = np.column_stack([cells, more]), np.append(weights, RESTLESS)
        return Cells(cells, weights, self.length(0))

    # --- reading ---------------------------------------------------------------------------------------

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """Parts: months (all customers), groups if asked for, restless if changes are bounded."""
        total = totals[0]
        found = PathCounts.of(self.paths, NoisySum(total.values[: self.paths.size], total.std))
        parts = month_parts(found, self.until, self.question.follow, self.followed.states, self.group)
        if self.bounded:
            parts.append(restless_part(float(total.values[-1]) / RESTLESS, total.std / RESTLESS, found))
        return {
            "level": LEVEL,
            "customers": everyone(found, 0),
            "notes": list(self._notes()),
            "parts": parts,
        }

    def _notes(self) -> Iterator[str]:
        months, alike = self.question.months, self.paths.alike
        yield f"A month has 30 days; the last one ends on {self.until[-1]}. A change is against the month before."
        if self.bounded:
            gain = sqrt(months / self.max_norm(0) ** 2)
            yield f"Noise is alike in neighbouring months (correlation {alike:.2f}), and {gain:.2f} times smaller."
            yield f"Of the restless, who change more than {self._changes} times, only the latest changes count."
            yield "The latest month is right for them, too; no other count is off by more than there are of them."
