"""Satisfaction: would our customers recommend us, how content are they, where not, and what goes with it?

Question       The columns with the answers, of the customers table or of another one; what to group by and what may
               drive the score; and how much of the budget each of these gets.
Contribution   A customer has one voice: their latest answer, or the mean of their latest few. They count in the whole
               and in one group of every table: that they answered, how content they are from -1 to 1, and which
               answer it was. The squares of the weights add up to 1, and so do those of the longest vector.
Reading        All parts count the same voices: least squares makes them agree. Scores are ratios, with Fieller's
               intervals; what goes with a score is a regression (see learners.drivers).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.domains import domain
from sfumato.common.analyses.estimates import LEVEL
from sfumato.common.analyses.satisfaction_answer import ScoreParts
from sfumato.common.analyses.voice_sums import VoiceSums
from sfumato.common.analyses.voices import SCALES, Answers, Groups
from sfumato.common.contract import Contract
from sfumato.common.contributions import Rows
from sfumato.common.errors import BadInput
from sfumato.common.learners.consistent import Consistent
from sfumato.common.learners.driver_moments import Driver, Moments
from sfumato.common.learners.drivers import MOST_DRIVERS, MOST_INPUTS, driven

MOST_CELLS = 400


class Question(BaseModel):
    """Where the answers are, the latest how many of a customer count, and what is asked of them. The shares are of
    the budget (as mu squared); what is not asked gets none, and the overall scores have the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nps: str | None = None
    csat: str | None = None
    latest: int = Field(default=1, ge=1, le=20)
    days: int | None = Field(default=None, ge=1)
    by: tuple[str, ...] = Field(default=(), max_length=20)
    drivers: tuple[str, ...] = Field(default=(), max_length=MOST_DRIVERS)
    bins: int = Field(default=5, ge=2, le=64)
    groups_share: float = Field(default=0.3, gt=0, lt=1)
    drivers_share: float = Field(default=0.3, gt=0, lt=1)
    moves_share: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _possible(self) -> "Question":
        if self.nps is None and self.csat is None:
            raise ValueError("name a column with answers: nps or csat")
        if self.groups_share + self.drivers_share + self.moves_share >= 1:
            raise ValueError("groups_share, drivers_share and moves_share leave nothing for the scores")
        for names in (self.by, self.drivers):
            if len(set(names)) < len(names):
                raise ValueError("a column is named twice")
        return self


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on columns that hold no answers, no public cells, or too many of these."""
    asked = {"nps": question.nps, "csat": question.csat}
    scores = tuple(
        Answers.of(contract, SCALES[scale], name, question.days)
        for scale, name in asked.items()
        if name is not None
    )
    tables = tuple(Groups.of(contract, name, question.bins) for name in question.by)
    homes = {s.table for s in scores}
    for table in tables:
        if table.by_answer and homes != {table.name.partition(".")[0]}:
            raise BadInput(
                f"question.by: {table.name!r} stands in another table than the answers",
                hint="Group by columns of the customers, or of the table that has the answers.",
            )
    if sum(len(t.cells.cells) for t in tables) > MOST_CELLS:
        raise BadInput(
            f"question.by: more than {MOST_CELLS} groups", hint="Fewer columns, or with fewer values."
        )
    if question.moves_share and scores[0].table is None:
        raise BadInput(
            f"question.moves_share: {scores[0].name!r} holds one answer a customer",
            hint="Moves take a column of another table.",
        )
    drivers = tuple(Driver(domain(contract, name, question.bins)) for name in question.drivers)
    if sum(d.size for d in drivers) > MOST_INPUTS:
        raise BadInput(
            f"question.drivers: they are {sum(d.size for d in drivers)} numbers in all; {MOST_INPUTS} is the most"
        )
    grouped, driven = question.groups_share * bool(tables), question.drivers_share * bool(drivers)
    whole = 1 - grouped - driven - question.moves_share
    sums = VoiceSums(scores, tables, question.latest, whole, grouped, question.moves_share)
    return Satisfaction(question, sums, Moments(drivers) if drivers else None)


@dataclass(frozen=True)
class Satisfaction:
    """Scores, by groups, and what drives the first of them."""

    question: Question
    sums: VoiceSums
    moments: Moments | None
    shares: tuple[float, ...] = (1.0,)

    @property
    def columns(self) -> tuple[str, ...]:
        names = [c for s in self.sums.scores for c in s.columns] + [t.name for t in self.sums.tables]
        drivers = self.moments.drivers if self.moments else ()
        return tuple(dict.fromkeys([*names, *(d.domain.name for d in drivers)]))

    def max_norm(self, round_: int) -> float:
        return 1.0

    def length(self, round_: int) -> int:
        return len(self.sums.weights) + (self.moments.length if self.moments else 0)

    def ask(self, round_: int, totals: list[NoisySum]) -> None:
        return None

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: object) -> Rows:
        """The vectors of these customers; nothing needs to be cut."""
        if asked is not None:
            raise ValueError("satisfaction is asked without numbers")
        rows = self.sums.rows(columns)
        if self.moments is None:
            return Rows(rows)
        first = self.sums.scores[0]
        voices = first.voices(columns, self.question.latest)
        score = np.where(voices.heard, voices.mean(first.scale.place), np.nan)
        root = sqrt(self.question.drivers_share)
        return Rows(np.hstack([rows, self.moments.rows(score, columns) * root]))

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """{"level", "customers", "notes", "parts": nps, csat, answers, by group, moves, fit, drivers, effects}, as
        far as they were asked; a regression's `ridge` stands beside them."""
        total, sums, size = totals[0], self.sums, len(self.sums.weights)
        found = Consistent.of(total.values[:size] / sums.weights, total.std / sums.weights, sums.ties)
        parts = ScoreParts(sums, found).parts()
        latest, days = self.question.latest, self.question.days
        said = "the latest answer" if latest == 1 else f"the mean of the latest {latest} answers"
        notes = [f"Every customer has one voice: {said}" + (f" of {days} days." if days else ".")]
        answer: dict[str, Any] = {"level": LEVEL, "customers": found.count(sums.form(("everyone",)))}
        if self.moments:
            root = sqrt(self.question.drivers_share)
            moments = NoisySum(total.values[size:] / root, total.std / root)
            more, said_of_them, ridge = driven(self.moments, moments, sums.scores[0].scale.name)
            parts, notes = parts + more, notes + said_of_them
            answer["ridge"] = ridge
        return answer | {"notes": notes, "parts": parts}
