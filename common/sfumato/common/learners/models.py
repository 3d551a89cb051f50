"""A trained model as one file: its numbers as safetensors, and in the same file's header all that scoring needs.

Public, like everything that left the branches. Written by the coordinator, read by whoever scores: a branch for its
own customers, an export to another format. The header says which job made it and under which contract; whoever scores
checks that contract against their own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.encoding import inputs_hash
from sfumato.common.learners.lifetime import Outlook

ModelKind = Literal[
    "churn-net", "boosted-trees", "scorecard", "segments", "clv", "sentiment", "offer", "anomaly"
]
HEADER = "sfumato"
Tensors = Mapping[str, npt.NDArray[np.generic]]


class ModelHeader(BaseModel):
    """`contract` is the hash, `inputs` that of what the model looks at (`encoding.inputs_hash`).

    `parameters` are what the kind needs beside its tensors, `schema_` the bins of kinds that have them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    kind: ModelKind
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9\-]{0,62}$")]
    purpose: str
    job_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    job_hash: str
    contract: str
    contract_name: str
    inputs: str
    label: str | None
    epsilon: float
    delta: float
    made: datetime
    schema_: Schema | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class Reason:
    """A column that moved one customer's score: its bin in words, and by how much (log-odds; a card's in points)."""

    column: str
    bin: str
    amount: float


@dataclass(frozen=True)
class Scores:
    """Of n customers; what the model's kind does not give is None. Inside a vault only: each is one customer's.

    `probability` float64 [n] of the label, `points` int64 [n], `segment` int64 [n] from 0, `anomaly` float64 [n]
    (1 is usual) and `flagged` bool [n] whether it lies above the threshold, `offers` the products that
    each is offered, None where there are no more, `reasons` the columns that moved each score most toward the
    label, largest first.
    """

    probability: npt.NDArray[np.float64] | None = None
    points: npt.NDArray[np.int64] | None = None
    segment: npt.NDArray[np.int64] | None = None
    offers: tuple[tuple[str | None, ...], ...] | None = None
    anomaly: npt.NDArray[np.float64] | None = None
    flagged: npt.NDArray[np.bool_] | None = None
    reasons: tuple[tuple[Reason, ...], ...] | None = None
    outlook: Outlook | None = None


class Scorer(Protocol):
    """A model, ready to score customers of one contract."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the model features that `score` reads (see encoding.model_features)."""

    def score(self, columns: Mapping[str, Any], *, reasons: int = 0) -> Scores:
        """From columns of equal length, with up to so many reasons for each. Raises BadInput."""


@dataclass(frozen=True)
class SavedModel:
    """A model file in memory."""

    header: ModelHeader
    tensors: Tensors

    def to_bytes(self) -> bytes:
        """The file. The same model gives the same bytes."""
        tensors = {name: np.ascontiguousarray(value) for name, value in sorted(self.tensors.items())}
        return save(tensors, metadata={HEADER: self.header.model_dump_json()})

    @staticmethod
    def read(path: Path) -> "SavedModel":
        """Raises BadInput on a file that is not there or is no model of ours."""
        try:
            return SavedModel.of_bytes(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise BadInput(f"{path}: no such file") from None
        except OSError as e:
            raise BadInput(f"{path}: cannot be read ({e.strerror})") from None

    @staticmethod
    def of_bytes(data: bytes, name: str) -> "SavedModel":
        """The content of a file of that name. Raises BadInput if it is no model of ours."""
        try:
            tensors = load(data)
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])["__metadata__"][HEADER]
            return SavedModel(ModelHeader.model_validate_json(header), tensors)
        # The last two: a type of number that numpy does not have.
        except (SafetensorError, ValueError, KeyError, RecursionError, TypeError, AttributeError) as e:
            raise BadInput(
                f"{name}: not a model file ({type(e).__name__})",
                hint="Take the model.safetensors of a finished run, or what `sfumato model export` wrote.",
            ) from None

    def require(self, contract: Contract) -> None:
        """Raises BadInput unless the model was trained under this contract, or one that differs in nothing that the
        model looks at: in `as_of`, or in having the label."""
        if contract.hash != self.header.contract and inputs_hash(contract) != self.header.inputs:
            raise BadInput(
                f"model {self.header.name!r} was trained under another version of contract "
                f"{self.header.contract_name!r}",
                hint="Score with the contract of the job (another day, or no label, is no matter), or train again.",
            )
