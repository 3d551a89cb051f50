"""Segments: which kinds of customers are there, by their numbers?

Question       Which numbers (all of the model's, if none is named), how many segments or up to how many.
Contribution   See learners.segments: histograms, micro-cells, Lloyd's steps; an l2 bound each.
Reading        The segments, largest first: how many customers, and where their middle lies in each number's own unit.

The centres are a model, too: with them each branch finds its own customers' segments.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.contract import Contract
from sfumato.common.contributions import Contributions
from sfumato.common.errors import BadInput
from sfumato.common.learners import segments
from sfumato.common.learners.encoding import FeatureSpec, model_features, number_codes, unscaled

__all__ = ["Question", "Segments", "build"]

_NO_EDGES = np.zeros(0)


class Question(segments.Question):
    """The k-means', and by which numbers: `columns` of role feature or amount, or roll-ups."""

    columns: tuple[str, ...] = Field(default=(), max_length=100)


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on a column that is no number of the model's, one named twice, and a contract without any."""
    numbers = {f.name: f for f in model_features(contract) if f.numeric}
    names = question.columns or tuple(numbers)
    for name in names:
        if name not in numbers:
            raise BadInput(
                f"question.columns: {name!r} is no number of role feature or amount",
                hint=f"Contract {contract.name!r} has: {', '.join(numbers) or 'none'}.",
            )
    if len(set(names)) < len(names) or not names:
        raise BadInput("question.columns: segments need numbers, each named once")
    return Segments(tuple(numbers[n] for n in names), segments.Segmentation(names, question))


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
