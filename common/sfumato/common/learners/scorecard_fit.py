"""The learner `scorecard`: an additive model over a schema (learners.additive), then a card of whole points.

The schema's counts by label are the additive model's first round, so they are asked once. What is evaluated and
saved is the card: its points are the model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract
from sfumato.common.contributions import Contributions
from sfumato.common.errors import BadInput
from sfumato.common.learners import additive
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.curves import counts_of, of_schema
from sfumato.common.learners.learner import Asked, Coded
from sfumato.common.learners.scorecard import MOST_POINTS, Scaling, Scorecard, scorecard

__all__ = ["Question", "ScorecardFit", "build", "max_norm"]


class Question(additive.Steps):
    """The additive model's steps, and how the card is scaled."""

    scaling: Scaling = Field(default_factory=Scaling)


def max_norm(question: Question) -> float:
    return 1.0


def build(question: Question, schema: Schema, contract: Contract) -> "ScorecardFit":
    schema.require(contract)
    if schema.label is None:
        raise BadInput(f"contract {contract.name!r} has no label to learn")
    steps = additive.Question(**question.model_dump(exclude={"scaling"}))
    return ScorecardFit(additive.build(steps, of_schema(schema), counts_of(schema)), question.scaling)


@dataclass(frozen=True)
class ScorecardFit:
    """See learners.learner."""

    fit: additive.Additive
    scaling: Scaling

    @cached_property
    def _bins(self) -> int:
        return int(self.fit.offsets[-1])

    def length(self, round_: int) -> int:
        return self.fit.length(round_)

    def ask(self, round_: int, totals: list[NoisySum]) -> Asked:
        asked = self.fit.ask(round_, totals)
        assert asked is not None  # only counts are asked without numbers, and these are known
        return asked

    def contribute(self, round_: int, customers: Coded, asked: Asked | None) -> Contributions:
        known = customers[customers.labels >= 0]
        return self.fit.contribute(round_, {"codes": known.codes, "label": known.labels}, asked)

    def card(self, totals: list[NoisySum]) -> Scorecard:
        return scorecard(self.fit.model(totals), self.scaling)

    def finished(self, totals: list[NoisySum]) -> Asked:
        """[base | points of every bin]: whole numbers, which float32 holds exactly."""
        card = self.card(totals)
        return np.array([card.base, *_points(card)], dtype=np.float32)

    def logits(self, codes: npt.NDArray[np.int64], finished: Asked | None) -> npt.NDArray[np.float64]:
        if (
            finished is None
            or finished.shape != (1 + self._bins,)
            or not (np.abs(finished) <= MOST_POINTS).all()
            or (finished != np.rint(finished)).any()
        ):
            raise ValueError(f"Expected {1 + self._bins} whole points.")
        base, points = int(finished[0]), finished[1:].astype(np.int64)
        return self.scaling.log_odds(base + points[codes + self.fit.offsets[:-1]].sum(axis=1))

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        card = self.card(totals)
        return {"points": _points(card)}, {"card": card.model_dump(mode="json")}


def _points(card: Scorecard) -> npt.NDArray[np.int64]:
    return np.array([b.points for a in card.attributes for b in a.bins], dtype=np.int64)
