"""Lifecycle: prospect, new, active, sleeping, churned, won back: how many are where, and who goes where?

Question       Whose rows say that a customer was there, after how many months of quiet they sleep and have churned,
               and over how many months.
Contribution   One customer adds one transition a month, from state to state, and one cell of the survival table:
               how long they were seen, and whether they churned then. Together an l2 norm of 1.
Reading        Only transitions that the rules allow have a cell, and who is in a state at a month's end leaves it in
               the next month: least squares makes the months agree. Transitions are pooled over all months. Survival
               by product limit (Kaplan & Meier 1958), interval by the delta method on its logarithm.

A month has 30 days, and the last one ends on the contract's as_of. A pooled rate weighs all customers' months alike.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sfumato.common.analyses.active_months import OLDEST, ActiveMonths
from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.combinations import Combinations
from sfumato.common.analyses.estimates import LEVEL, Ties
from sfumato.common.analyses.life_states import CHURNED, PROSPECT, STATES, Rules
from sfumato.common.analyses.parts import part
from sfumato.common.analyses.survival import SurvivalTable
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FLOWS = 0.7  # of a customer's squared norm: for the transitions; survival has the rest


class Question(BaseModel):
    """The table whose rows are activity; windows and how far to look back, in months."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: str
    months: int = Field(default=12, ge=2, le=36)
    new: int = Field(default=3, ge=1, le=12)
    sleep: int = Field(default=3, ge=1, le=24)
    churn: int = Field(default=6, ge=2, le=36)
    survival: int = Field(default=18, ge=3, le=60)

    @model_validator(mode="after")
    def _windows(self) -> Self:
        if not self.sleep < self.churn < self.survival:
            raise ValueError("it takes sleep < churn < survival")
        return self


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on a table that cannot be read by month."""
    return Lifecycle(ActiveMonths.of(contract, question.table), question)


@dataclass(frozen=True)
class Lifecycle:
    """Layout of the sum: transitions of each month but the first, oldest first; then the survival table."""

    activity: ActiveMonths
    question: Question
    shares: tuple[float, ...] = (1.0,)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.activity.column.name,)

    @cached_property
    def rules(self) -> Rules:
        return Rules(self.question.new, self.question.sleep, self.question.churn)

    @cached_property
    def survival(self) -> SurvivalTable:
        return SurvivalTable(self.question.survival, self.question.churn)

    @property
    def _steps(self) -> int:
        return self.question.months - 1

    @property
    def _flows(self) -> int:
        return self._steps * len(self.rules.transitions)

    def max_norm(self, round_: int) -> float:
        return 1.0

    def length(self, round_: int) -> int:
        return self._flows + self.survival.size

    def ask(self, round_: int, totals: list[NoisySum]) -> None:
        return None

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: object) -> Cells:
        if asked is not None:
            raise ValueError("a lifecycle is asked without numbers")
        states = self.rules.states(self.activity.read(columns[self.activity.column.name]))
        place = np.full((len(STATES), len(STATES)), -1)
        for i, (before, after) in enumerate(self.rules.transitions):
            place[before, after] = i
        shown = states[:, -self.question.months :]
        steps = np.arange(self._steps) * len(self.rules.transitions)
        flows = place[shown[:, :-1], shown[:, 1:]] + steps
        seen = self.survival.cell(*_lives(states))
        cells = np.column_stack([flows, np.where(seen < 0, -1, self._flows + seen)])
        return Cells(
            cells, np.append(np.full(self._steps, self._flow_weight), sqrt(1 - FLOWS)), self.length(0)
        )

    @property
    def _flow_weight(self) -> float:
        return sqrt(FLOWS / self._steps)

    # --- reading ---------------------------------------------------------------------------------------

    @cached_property
    def _weights(self) -> Floats:
        flows = np.full(self._flows, self._flow_weight)
        return np.append(flows, np.full(self.survival.size, sqrt(1 - FLOWS)))

    def _moves(self, step: int, before: int | None = None, after: int | None = None) -> Floats:
        """Which numbers add up to this month's transitions from and to these states; None: any."""
        of = np.zeros(self.length(0))
        start = step * len(self.rules.transitions)
        for i, (a, b) in enumerate(self.rules.transitions):
            of[start + i] = before in (None, a) and after in (None, b)
        return of

    @cached_property
    def _ties(self) -> Ties:
        """Who is in a state after a month is in it before the next."""
        contrasts = [
            self._moves(step, after=state) - self._moves(step + 1, before=state)
            for step in range(self._steps - 1)
            for state in range(len(STATES))
        ]
        return Combinations.tied(np.array([np.zeros(self.length(0)), *contrasts]), self._weights)

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """Parts: states (by month), transitions (all months together), survival (by months since the first)."""
        found = Combinations(totals[0], self._weights, self._ties)
        states = part(
            "states", ["until", "state"], {"customers": "customers", "share": "share"}, self._states(found)
        )
        transitions = part(
            "transitions",
            ["from", "to"],
            {"rate": "share", "customers": "customers"},
            self._transitions(found),
        )
        survival = part(
            "survival",
            ["months since the first"],
            {"still there": "share", "seen so long": "customers"},
            self.survival.rows(found, self._flows),
        )
        return {
            "level": LEVEL,
            "customers": found.count(self._moves(0)),
            "notes": list(self._notes()),
            "parts": [states, transitions, survival],
        }

    def _states(self, found: Combinations) -> Iterator[dict[str, Any]]:
        for month in range(self.question.months):
            last = month == self._steps
            whole = self._moves(month - last)
            for state, name in enumerate(STATES):
                of = self._moves(month - 1, after=state) if last else self._moves(month, before=state)
                until = self.activity.until(self._steps - month)
                yield {"of": [until, name], "customers": found.count(of), "share": found.ratio(of, whole)}

    def _transitions(self, found: Combinations) -> Iterator[dict[str, Any]]:
        """The chance a month to go from one state to another, and how many do in a month of these, on average."""
        for before, after in self.rules.transitions:
            steps = range(self._steps)
            move = np.sum([self._moves(s, before, after) for s in steps], axis=0)
            whole = np.sum([self._moves(s, before) for s in steps], axis=0)
            yield {
                "of": [STATES[before], STATES[after]],
                "rate": found.ratio(move, whole),
                "customers": found.count(move / self._steps),
            }

    def _notes(self) -> Iterator[str]:
        q = self.question
        yield f"A month has 30 days; the last one ends on {self.activity.until(0)}."
        yield f"New: began less than {q.new} months ago. Won back: came back so lately, after having churned."
        yield f"Quiet for {q.sleep} or more months: sleeping; for {q.churn} or more: churned."
        yield f"Survival: of those who began in the last {q.survival} months, who had not churned yet."


def _lives(states: Ints) -> tuple[Ints, Ints]:
    """Months since the first activity until the latest month, -1 for none; and from the first to churn, -1."""
    begun, churned = states != PROSPECT, states == CHURNED
    first, lost = begun.argmax(axis=1), churned.argmax(axis=1)
    seen = np.where(begun.any(axis=1), OLDEST - 1 - first, -1)
    return seen, np.where(churned.any(axis=1), lost - first, -1)
