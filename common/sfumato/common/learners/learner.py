"""What a learner is: so many sums over customers in the bins of one schema. The types here know no learner."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract
from sfumato.common.contributions import Contributions
from sfumato.common.learners.bins import Schema

Asked = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, repr=False)
class Coded:
    """Customers in bins: codes int64 [n, F] of a schema, labels int64 [n], 1 or 0 (-1 adds nothing)."""

    codes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice | npt.NDArray[np.bool_]) -> "Coded":
        """Some of them."""
        return Coded(self.codes[rows], self.labels[rows])


class Learner(Protocol):
    """One fit over one schema. Public: it knows no data. Its rounds are numbered from 0."""

    def length(self, round_: int) -> int:
        """How many numbers the round's total has."""

    def ask(self, round_: int, totals: list[NoisySum]) -> Asked:
        """What the coordinator sends along: the model so far, and what else the round needs."""

    def contribute(self, round_: int, customers: Coded, asked: Asked | None) -> Contributions:
        """Each customer's vector. Raises ValueError on an `asked` of another form."""

    def finished(self, totals: list[NoisySum]) -> Asked:
        """The model after its last round, as the branches evaluate it."""

    def logits(self, codes: npt.NDArray[np.int64], finished: Asked | None) -> npt.NDArray[np.float64]:
        """The log-odds of each customer, float64 [n]. Inside a vault only. Raises ValueError as `contribute`."""

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        """Tensors and parameters of the model file (see learners.models)."""


class LearnerQuestion(Protocol):
    """The job file's [learner], typed: how many sums, all alike."""

    @property
    def rounds(self) -> int:
        """How many sums the learner takes after the schema."""


class LearnerModule(Protocol):
    """What a file of the catalogue offers."""

    @property
    def Question(self) -> type[BaseModel]:  # noqa: N802 - a class of the module
        """The job file's [learner], typed: a `LearnerQuestion`."""

    def max_norm(self, question: Any) -> float:
        """The l2 bound of one customer's vector, in every round."""

    def build(self, question: Any, schema: Schema, contract: Contract) -> Learner:
        """Raises BadInput where schema, contract and question do not fit."""
