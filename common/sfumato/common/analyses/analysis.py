"""What an analysis is: see the package's own words. The types here know no analysis."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from sfumato.common.contract import Contract
from sfumato.common.contributions import Contributions

# A column that no contract has, for analyses that learn: true for customers who are never trained on. Booleans.
HELD_OUT = "(held out)"


@dataclass(frozen=True)
class NoisySum:
    """A total that came out: float64 [d] in the contributions' unit, and the standard deviation of its noise,
    the same on every coordinate. `members` are the branches in it, where the coordinator says so."""

    values: npt.NDArray[np.float64]
    std: float
    members: tuple[str, ...] = ()


class Analysis(Protocol):
    """One question over one contract. Public: it knows no data. Rounds are numbered from 0."""

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the job's budget (as mu squared), one a round; they add up to 1."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Of the analyses' customer frame, that `contribute` reads."""

    def max_norm(self, round_: int) -> float:
        """The l2 bound of one customer's vector in this round."""

    def length(self, round_: int) -> int:
        """How many numbers the round's total has."""

    def ask(self, round_: int, totals: list[NoisySum]) -> npt.NDArray[np.float32] | None:
        """What the coordinator sends along, made of earlier totals; None if nothing."""

    def contribute(
        self, round_: int, columns: Mapping[str, Any], asked: npt.NDArray[np.float32] | None
    ) -> Contributions:
        """Each customer's vector, from columns of equal length. Raises ValueError on an `asked` of another form."""

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """The answer, JSON: every number as {"value", "low", "high"}."""


@runtime_checkable
class SavesModel(Protocol):
    """An analysis whose answer is a model, too: see learners.models."""

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        """Tensors and parameters of the model file."""


class AnalysisModule(Protocol):
    """What a file of the catalogue offers."""

    @property
    def Question(self) -> type[BaseModel]:  # noqa: N802 - a class of the module
        """The job file's [question], typed."""

    def build(self, question: Any, contract: Contract) -> Analysis:
        """Raises BadInput where the question names what the contract does not declare."""
