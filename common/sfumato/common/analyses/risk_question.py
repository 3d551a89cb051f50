"""What `risk` may be asked: a score and its grades, what is bad and what is owed, and what is known of each grade."""

from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from sfumato.common.errors import BadInput
from sfumato.common.learners.models import ModelHeader


class Question(BaseModel):
    """`known_model`, in a job file the path of a scorecard's model.safetensors, or the column `score`; `cuts` part it
    into grades, named from the lowest score up. `bad` is the contract's label if it is not set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    known_model: ModelHeader | None = None
    score: str | None = None
    safer: Literal["high", "low"] = "high"
    held_out: bool = False
    cuts: tuple[FiniteFloat, ...] = Field(min_length=1, max_length=29)
    names: tuple[str, ...] = Field(default=(), max_length=30)
    bad: str | None = None
    exposure: str
    exposure_bound: FiniteFloat | None = None
    bound_share: float = Field(default=0.1, gt=0, lt=0.5)
    lgd: float = Field(default=0.45, gt=0, le=1)
    pd: tuple[float, ...] = Field(default=(), max_length=30)
    reference: tuple[float, ...] = Field(default=(), max_length=30)


def check_grades(question: Question) -> None:
    """Raises BadInput on cut points that do not rise, and lists that do not fit the grades."""
    grades = len(question.cuts) + 1
    if any(a >= b for a, b in pairwise(question.cuts)):
        raise BadInput("question.cuts: must be strictly increasing")
    for key in ("names", "pd", "reference"):
        if getattr(question, key) and len(getattr(question, key)) != grades:
            raise BadInput(f"question.{key}: {len(question.cuts)} cuts make {grades} grades")
    if len(set(question.names)) < len(question.names):
        raise BadInput("question.names: a grade is named twice")
    if question.reference and (min(question.reference) <= 0 or abs(sum(question.reference) - 1) > 0.01):
        raise BadInput("question.reference: shares must be above 0 and add up to 1")
    if any(not 0 <= p <= 1 for p in question.pd):
        raise BadInput("question.pd: default rates lie between 0 and 1")
