"""The portrait: how many customers there are of each kind (being written)."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.analysis import Analysis
from sfumato.common.contract import Contract


class Question(BaseModel):
    """Which columns to draw, which pairs of them to cross, and the smallest group that is shown by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: tuple[str, ...] = Field(min_length=1, max_length=200)
    cross: tuple[tuple[str, str], ...] = Field(default=(), max_length=100)
    min_group: int = Field(default=20, ge=1)


def build(question: Any, contract: Contract) -> Analysis:
    raise NotImplementedError
