"""What crosses the wire between coordinator and vault, by way of the courier. Versioned; no pickle.

Questions go to the vault, answers come back. Nothing but these types is ever sent; numbers travel in the
frame's body (see `sfumato.common.codec`), never as text.
"""

import base64
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from sfumato.common.canonical import canonical_bytes
from sfumato.common.errors import LedgerBroken, RefusalCode
from sfumato.common.job import SignedJob

JobId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    version: Literal[1] = 1


class Ping(_Message):
    type: Literal["ping"] = "ping"


class OpenJob(_Message):
    """Ask the branch to take part. Answer: JobOpened or Refused."""

    type: Literal["open-job"] = "open-job"
    signed_job: SignedJob


class Count(_Message):
    """How many customers are trained on? Answer: Released with one int64, the noisy count. Once a job."""

    type: Literal["count"] = "count"
    job_id: JobId


class Train(_Message):
    """One round of local DP training. Body: float32 global weights. Answer: Released with float32 weights."""

    type: Literal["train"] = "train"
    job_id: JobId
    round: int = Field(ge=1)


class Evaluate(_Message):
    """Score the held-out customers. Body: float32 weights. Answer: Released with an int64 histogram."""

    type: Literal["evaluate"] = "evaluate"
    job_id: JobId
    round: int = Field(ge=1)


class CloseJob(_Message):
    type: Literal["close-job"] = "close-job"
    job_id: JobId


class Pong(_Message):
    type: Literal["pong"] = "pong"
    branch: str


class Cost(_Message):
    """What one release cost: the event, whose it was, and the branch's total after it (see privacy.door)."""

    type: Literal["cost"] = "cost"
    event: dict[str, Any]
    population: Literal["training", "holdout", "all"]
    epsilon_spent: float
    epsilon_budget: float
    delta: float


class LedgerHead(_Message):
    """Where a branch's ledger stood: the coordinator keeps it, so that history cannot be rewritten later."""

    type: Literal["ledger-head"] = "ledger-head"
    size: int
    head: Hash
    signature: str  # Ed25519 by the branch's enrolled key, base64

    @staticmethod
    def signed_bytes(branch: str, size: int, head: str) -> bytes:
        return b"sfumato-ledger-head-v1\x00" + canonical_bytes({"branch": branch, "size": size, "head": head})

    def verify(self, branch: str, key: Ed25519PublicKey) -> None:
        """Raise LedgerBroken unless this branch's key signed this head."""
        try:
            key.verify(
                base64.b64decode(self.signature, validate=True),
                self.signed_bytes(branch, self.size, self.head),
            )
        except (InvalidSignature, ValueError):
            raise LedgerBroken(
                f"the ledger head of {branch} at size {self.size} is not signed by it"
            ) from None


class JobOpened(_Message):
    """The branch takes part. `planned` is the job's reserved event by population; epsilon is the larger one."""

    type: Literal["job-opened"] = "job-opened"
    job_id: JobId
    branch: str
    planned: dict[str, Any]
    epsilon: float
    delta: float
    noise_multiplier: float
    ledger: LedgerHead


class ReleasedAnswer(_Message):
    """A released vector (in the body) with its cost. The only answer that carries numbers from customers."""

    type: Literal["released"] = "released"
    job_id: JobId
    branch: str
    round: int
    what: Literal["size", "weights", "score-histogram"]
    cost: Cost
    ledger: LedgerHead


class JobClosed(_Message):
    type: Literal["job-closed"] = "job-closed"
    job_id: JobId
    branch: str
    epsilon_spent: float
    epsilon_remaining: float
    ledger: LedgerHead


class Refused(_Message):
    type: Literal["refused"] = "refused"
    code: RefusalCode
    requested: float | None = None
    remaining: float | None = None


Question = Annotated[Ping | OpenJob | Count | Train | Evaluate | CloseJob, Field(discriminator="type")]
Answer = Annotated[Pong | JobOpened | ReleasedAnswer | JobClosed | Refused, Field(discriminator="type")]
QUESTION: TypeAdapter[Question] = TypeAdapter(Question)
ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
