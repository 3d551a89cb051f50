"""The learners that a job can name. A new one is a new file, and a line here."""

from collections.abc import Mapping
from typing import Any, Literal, cast

from sfumato.common.contract import Contract
from sfumato.common.learners import boosted_trees, scorecard_fit
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.learner import Learner, LearnerModule, LearnerQuestion

Kind = Literal["boosted-trees", "scorecard"]
LEARNERS: dict[Kind, LearnerModule] = {"boosted-trees": boosted_trees, "scorecard": scorecard_fit}


def rounds(kind: Kind, question: Mapping[str, Any]) -> int:
    """How many sums the learner takes after the schema."""
    return cast(LearnerQuestion, LEARNERS[kind].Question.model_validate(question)).rounds


def max_norm(kind: Kind, question: Mapping[str, Any]) -> float:
    """The l2 bound of one customer's vector in each of them."""
    module = LEARNERS[kind]
    return module.max_norm(module.Question.model_validate(question))


def build(kind: Kind, question: Mapping[str, Any], schema: Schema, contract: Contract) -> Learner:
    """Raises BadInput where schema, contract and question do not fit."""
    module = LEARNERS[kind]
    return module.build(module.Question.model_validate(question), schema, contract)
