"""The learner `boosted-trees`: random trees (see learners.random_trees) over a schema."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract
from sfumato.common.contributions import Contributions
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.learner import Asked, Coded
from sfumato.common.learners.random_trees import Question, RandomTrees, encode

__all__ = ["BoostedTrees", "Question", "build", "max_norm"]


def max_norm(question: Question) -> float:
    return sqrt(question.trees)


def build(question: Question, schema: Schema, contract: Contract) -> "BoostedTrees":
    return BoostedTrees(RandomTrees(schema, contract, question))


@dataclass(frozen=True)
class BoostedTrees:
    """See learners.learner."""

    trees: RandomTrees

    def length(self, round_: int) -> int:
        return self.trees.length(round_)

    def ask(self, round_: int, totals: list[NoisySum]) -> Asked:
        return self.trees.ask(round_, totals)

    def contribute(self, round_: int, customers: Coded, asked: Asked | None) -> Contributions:
        return self.trees.contribute_coded(round_, customers.codes, customers.labels, asked)

    def finished(self, totals: list[NoisySum]) -> Asked:
        return encode(self.trees.forest(totals), ())

    def logits(self, codes: npt.NDArray[np.int64], finished: Asked | None) -> npt.NDArray[np.float64]:
        return self.trees.finished_forest(finished).logits(codes)

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        question = self.trees.question
        return {"forest": self.finished(totals)}, {"rounds": question.rounds, "trees": question.trees}
