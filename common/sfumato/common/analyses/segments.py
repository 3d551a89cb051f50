"""Segments: which kinds of customers are there?

Question       Which columns (all of the model's, if none is named), how many segments or up to how many. Numbers are
               taken as they are, or with `dimensions` numbers and categories as their principal components.
Contribution   See learners.components and learners.segments: an l2 bound each. With components, at the end each
               customer adds their inputs to their segment's.
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
from sfumato.common.analyses.estimates import REACH, number
from sfumato.common.contract import Contract
from sfumato.common.contributions import Contributions, Rows
from sfumato.common.errors import BadInput
from sfumato.common.learners import segments
from sfumato.common.learners.components import Components, Inputs, Moments
from sfumato.common.learners.encoding import FeatureSpec, chosen_features, number_codes, unscaled
from sfumato.common.learners.kmeans import assign

__all__ = ["ComponentSegments", "Question", "Segments", "build"]

_NO_EDGES = np.zeros(0)


class Question(segments.Question):
    """The k-means', and by what: `columns` of role feature or amount, or roll-ups, as they are (numbers only) or in
    so many `dimensions`. Of the budget, the components take `components_share`, the last sum `inputs_share`."""

    columns: tuple[str, ...] = Field(default=(), max_length=100)
    dimensions: int | None = Field(default=None, ge=1, le=16)
    components_share: float = Field(default=0.3, gt=0, lt=0.5)
    inputs_share: float = Field(default=0.15, gt=0, lt=0.5)


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on a column that cannot be used, one named twice, and a contract without any."""
    specs = chosen_features(contract, question.columns, numbers=question.dimensions is None)
    if question.dimensions is None:
        return Segments(specs, segments.Segmentation(tuple(s.name for s in specs), question))
    inputs = Inputs(specs)
    if question.dimensions > inputs.size:
        raise BadInput(f"question.dimensions: there are {inputs.size} inputs in all")
    axes = tuple(f"component {i}" for i in range(1, question.dimensions + 1))
    return ComponentSegments(Moments(inputs), segments.Segmentation(axes, question), question)


@dataclass(frozen=True)
class Segments:
    """k-means over these numbers, each scaled to [-1, 1] by the contract's bounds; a null lies in the middle."""

    specs: tuple[FeatureSpec, ...]
    fit: segments.Segmentation

    @property
    def columns(self) -> tuple[str, ...]:
        return self.fit.names

    @property
    def shares(self) -> tuple[float, ...]:
        return self.fit.shares

    def max_norm(self, round_: int) -> float:
        return self.fit.max_norm(round_)

    def length(self, round_: int) -> int:
        return self.fit.length(round_)

    def ask(self, round_: int, totals: list[NoisySum]) -> npt.NDArray[np.float32] | None:
        return self.fit.ask(round_, totals)

    def contribute(
        self, round_: int, columns: Mapping[str, Any], asked: npt.NDArray[np.float32] | None
    ) -> Contributions:
        numeric = np.stack([number_codes(columns[s.name], s, _NO_EDGES)[1] for s in self.specs], axis=1)
        return self.fit.contribute(round_, {"numeric": numeric}, asked)

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """As learners.segments reads it, with the centres in each number's own unit."""
        answer = self.fit.read(totals)
        for segment in answer["segments"]:
            for spec in self.specs:
                centre = segment["centre"][spec.name]
                segment["centre"][spec.name] = {
                    end: float(unscaled(np.array(unit), spec)) for end, unit in centre.items()
                }
        return answer

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        """Tensors and parameters of the model file (see learners.models); centres in [-1, 1], largest first."""
        return {"centres": self.fit.centres(totals)}, {"names": list(self.fit.names)}


COUNTED = 0.6  # of the last sum's norm: for being counted; the inputs have the rest


@dataclass(frozen=True)
class ComponentSegments:
    """k-means over principal components. Rounds: the components; the k-means'; the inputs of each segment."""

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
    def _most(self) -> int:
        return self.question.segments or self.question.most

    def max_norm(self, round_: int) -> float:
        return self.fit.max_norm(round_ - 1) if 0 < round_ < self._last else 1.0

    def length(self, round_: int) -> int:
        if round_ == 0:
            return self.moments.length
        return (
            self.fit.length(round_ - 1)
            if round_ < self._last
            else self._most * (1 + self.moments.inputs.size)
        )

    def ask(self, round_: int, totals: list[NoisySum]) -> npt.NDArray[np.float32] | None:
        """[components | what the k-means asks]; in the last round [components | centres, padded with the last]."""
        if round_ == 0:
            return None
        components = self._components(totals).flat()
        if round_ < self._last:
            asked = self.fit.ask(round_ - 1, totals[1:])
            return components if asked is None else np.concatenate([components, asked])
        centres = self.fit.centres(totals[1 : self._last])
        centres = np.concatenate([centres, np.repeat(centres[-1:], self._most - len(centres), axis=0)])
        return np.concatenate([components, centres.ravel()])

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
        if rest.shape != (self._most * self._dimensions,) or not np.isfinite(rest).all():
            raise ValueError(f"Expected {self._most} centres.")
        group = assign(places, rest.reshape(self._most, self._dimensions))
        return Rows(self._inputs_of(group, inputs))

    def _inputs_of(
        self, group: npt.NDArray[np.int64], inputs: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """[counts | inputs, segment after segment], of norm 1 at most: nobody's inputs are longer than sqrt(F)."""
        size, everyone = self.moments.inputs.size, np.arange(len(group))
        rows = np.zeros((len(group), self._most * (1 + size)))
        rows[everyone, group] = COUNTED
        places = self._most + group[:, None] * size + np.arange(size)
        rows[everyone[:, None], places] = inputs * self._input_weight
        return rows

    @property
    def _input_weight(self) -> float:
        return float(np.sqrt((1 - COUNTED**2) / len(self.moments.inputs.specs)))

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """As learners.segments reads it; but sizes, centres and `mix` (of categories) from the last sum, and
        `components`: by how much each input moves along them."""
        answer = self.fit.read(totals[1 : self._last])
        components, total = self._components(totals), totals[-1]
        k, size = len(answer["segments"]), self.moments.inputs.size
        counts = total.values[: self._most] / COUNTED
        sums = total.values[self._most :].reshape(self._most, size) / self._input_weight
        count_std, input_std = total.std / COUNTED, total.std / self._input_weight
        everyone = max(float(counts[:k].sum()), 1.0)
        for j, segment in enumerate(answer["segments"]):
            n, reach = float(counts[j]), REACH * count_std
            segment["customers"] = number(n, n - reach, n + reach)
            segment["share"] = number(n / everyone, (n - reach) / everyone, (n + reach) / everyone, 1.0)
            means = sums[j] / max(n, 1.0)
            errors = REACH * np.hypot(input_std, means * count_std) / max(n, 1.0)
            segment["centre"], segment["mix"] = self._described(means, errors)
        answer["names"] = [s.name for s in self.moments.inputs.specs if s.numeric]
        answer["components"] = components.directions.T.tolist()
        return answer

    def _described(
        self, means: npt.NDArray[np.float64], errors: npt.NDArray[np.float64]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        centre, mix = dict[str, Any](), dict[str, Any]()
        inputs = self.moments.inputs
        for spec, start in zip(inputs.specs, inputs.starts[:-1].tolist(), strict=True):
            if spec.numeric:
                ends = {"value": 0.0, "low": -errors[start], "high": errors[start]}
                centre[spec.name] = {
                    end: float(unscaled(np.clip(np.array(means[start] + e), -1, 1), spec))
                    for end, e in ends.items()
                }
                continue
            cells = (*(spec.categories or ()), "(other)", "(none)")
            mix[spec.name] = {
                cell: number(m, m - e, m + e, 1.0)
                for cell, m, e in zip(cells, means[start:].tolist(), errors[start:].tolist(), strict=False)
            }
        return centre, mix

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        """Centres among the components, largest first, and the components (`Components.flat`)."""
        tensors = {
            "centres": self.fit.centres(totals[1 : self._last]),
            "components": self._components(totals).flat(),
        }
        return tensors, {"names": list(self.columns)}
