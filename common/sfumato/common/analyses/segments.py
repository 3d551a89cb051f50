"""Segments: which kinds of customers are there?

Question       Which columns (all of the model's, if none is named), how many segments or up to how many. Numbers are
               taken as they are, or with `dimensions` numbers and categories as their principal components.
Contribution   See learners.components and learners.segments: an l2 bound each. At the end each customer adds one and
               their columns to the segment whose centre is nearest: see segment_members.
Reading        The segments, largest first: how many customers, where their middle lies in each number's own unit,
               and which share of them has each category.

The centres are a model, too: with them each branch finds its own customers' segments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.segment_members import Members
from sfumato.common.contract import Contract
from sfumato.common.contributions import Contributions
from sfumato.common.errors import BadInput
from sfumato.common.learners import segments
from sfumato.common.learners.components import Components, Inputs, Moments
from sfumato.common.learners.encoding import chosen_features

__all__ = ["ComponentSegments", "Question", "Segments", "build"]


class Question(segments.Question):
    """The k-means', and by what: `columns` of role feature or amount, or roll-ups, as they are (numbers only) or in
    so many `dimensions`. Of the budget, the components take `components_share`, the last sum `inputs_share`: it says
    who is in each segment."""

    columns: tuple[str, ...] = Field(default=(), max_length=100)
    dimensions: int | None = Field(default=None, ge=1, le=16)
    components_share: float = Field(default=0.3, gt=0, lt=0.5)
    inputs_share: float = Field(default=0.15, gt=0, lt=0.5)


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on a column that cannot be used, one named twice, and a contract without any."""
    inputs = Inputs(chosen_features(contract, question.columns, numbers=question.dimensions is None))
    if question.dimensions is None:
        return Segments(
            inputs, segments.Segmentation(tuple(s.name for s in inputs.specs), question), question
        )
    if question.dimensions > inputs.size:
        raise BadInput(f"question.dimensions: there are {inputs.size} inputs in all")
    axes = tuple(f"component {i}" for i in range(1, question.dimensions + 1))
    return ComponentSegments(Moments(inputs), segments.Segmentation(axes, question), question)


@dataclass(frozen=True)
class Segments:
    """k-means over these numbers, each scaled to [-1, 1] by the contract's bounds; a null lies in the middle.
    Rounds: the k-means'; who is in each segment."""

    inputs: Inputs
    fit: segments.Segmentation
    question: Question

    @property
    def columns(self) -> tuple[str, ...]:
        return self.fit.names

    @property
    def shares(self) -> tuple[float, ...]:
        last = self.question.inputs_share
        return (*((1 - last) * s for s in self.fit.shares), last)

    @property
    def _last(self) -> int:
        return len(self.fit.shares)

    @property
    def _members(self) -> Members:
        return Members(self.inputs, self.fit.most)

    def max_norm(self, round_: int) -> float:
        return self.fit.max_norm(round_) if round_ < self._last else 1.0

    def length(self, round_: int) -> int:
        return self.fit.length(round_) if round_ < self._last else self._members.length

    def ask(self, round_: int, totals: list[NoisySum]) -> npt.NDArray[np.float32] | None:
        """What the k-means asks; in the last round the finished centres."""
        if round_ < self._last:
            return self.fit.ask(round_, totals)
        return self._members.ask(self.fit.centres(totals[: self._last]))

    def contribute(
        self, round_: int, columns: Mapping[str, Any], asked: npt.NDArray[np.float32] | None
    ) -> Contributions:
        places = self.inputs.matrix(columns)
        if round_ < self._last:
            return self.fit.contribute(round_, {"numeric": places}, asked)
        return self._members.contribute(places, places, asked)

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """{"names", "level", "chosen": {"segments", "of": [{"segments", "inertia", "score"}]}, "segments":
        [{"customers", "share", "centre": {name: number}}]}, largest first."""
        return self._members.answer(self.fit.chosen(totals), totals[-1])

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        """Tensors and parameters of the model file (see learners.models); centres in [-1, 1], as in the answer."""
        centres = self.fit.centres(totals[: self._last])
        return {"centres": centres[self._members.order(totals[-1], len(centres))]}, {
            "names": list(self.fit.names)
        }


@dataclass(frozen=True)
class ComponentSegments:
    """k-means over principal components. Rounds: the components; the k-means'; who is in each segment."""

    moments: Moments
    fit: segments.Segmentation
    question: Question

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(s.name for s in self.moments.inputs.specs)

    @property
    def shares(self) -> tuple[float, ...]:
        first, last = self.question.components_share, self.question.inputs_share
        return (first, *((1 - first - last) * s for s in self.fit.shares), last)

    @property
    def _last(self) -> int:
        return len(self.fit.shares) + 1

    @property
    def _members(self) -> Members:
        return Members(self.moments.inputs, self.fit.most)

    def max_norm(self, round_: int) -> float:
        return self.fit.max_norm(round_ - 1) if 0 < round_ < self._last else 1.0

    def length(self, round_: int) -> int:
        if round_ == 0:
            return self.moments.length
        return self.fit.length(round_ - 1) if round_ < self._last else self._members.length

    def ask(self, round_: int, totals: list[NoisySum]) -> npt.NDArray[np.float32] | None:
        """[components | what the k-means asks]; in the last round [components | the finished centres]."""
        if round_ == 0:
            return None
        components = self._components(totals).flat()
        if round_ < self._last:
            asked = self.fit.ask(round_ - 1, totals[1:])
        else:
            asked = self._members.ask(self.fit.centres(totals[1 : self._last]))
        return components if asked is None else np.concatenate([components, asked])

    def _components(self, totals: list[NoisySum]) -> Components:
        return self.moments.components(totals[0], self._dimensions)

    @property
    def _dimensions(self) -> int:
        return len(self.fit.names)

    def contribute(
        self, round_: int, columns: Mapping[str, Any], asked: npt.NDArray[np.float32] | None
    ) -> Contributions:
        if round_ == 0:
            if asked is not None:
                raise ValueError("Components are asked without numbers.")
            return self.moments.contribute(columns)
        if asked is None:
            raise ValueError("Expected the components.")
        size = self.moments.inputs.size
        length = 1 + size * (1 + self._dimensions)
        components = Components.of(asked[:length], size, self._dimensions)
        inputs = self.moments.inputs.matrix(columns)
        places, rest = components.places(inputs), asked[length:]
        if round_ < self._last:
            return self.fit.contribute(round_ - 1, {"numeric": places}, rest if rest.size else None)
        return self._members.contribute(places, inputs, rest)

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """As `Segments` reads it; a segment has a `mix` of categories, too, and `components` say by how much each
        input moves along them."""
        choice, directions = self.fit.chosen(totals[1:]), self._components(totals).directions
        return {**self._members.answer(choice, totals[-1]), "components": directions.T.tolist()}

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        """Centres among the components, as in the answer, and the components (`Components.flat`)."""
        centres = self.fit.centres(totals[1 : self._last])
        tensors = {
            "centres": centres[self._members.order(totals[-1], len(centres))],
            "components": self._components(totals).flat(),
        }
        return tensors, {"names": list(self.columns)}
