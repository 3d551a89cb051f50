"""What crosses the wire between coordinator and vault, by way of the courier. Versioned; no pickle.

Questions go to the vault, answers come back. Nothing but these types is ever sent; numbers travel in the
frame's body (see `sfumato.common.codec`), never as text.
"""

from datetime import date
from typing import Annotated, Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

from sfumato.common.enrolment import BranchName, Hash
from sfumato.common.errors import RefusalCode
from sfumato.common.job import SignedJob
from sfumato.common.learners.bins import Schema
from sfumato.common.notes import Checkpoint, branch_origin, verify_checkpoint

JobId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
What = Literal["size", "weights", "score-histogram", "share", "sum"]


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


class KeyShare(_Message):
    """A branch's fresh X25519 key for one job, signed with its enrolled Ed25519 key (see privacy.secure_sum)."""

    type: Literal["key-share"] = "key-share"
    branch: BranchName
    x25519: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{43}=$")]  # 32 bytes, base64
    signature: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")]  # 64 bytes, base64


class Roster(_Message):
    """Every participant's key for this job, its own among them. Answer: RosterAccepted or Refused."""

    type: Literal["roster"] = "roster"
    job_id: JobId
    members: Annotated[tuple[KeyShare, ...], Field(min_length=2, max_length=10_000)]


class Sum(_Message):
    """One bounded, noisy sum over customers; what it asks for stands in the job. Body: what the round needs.

    `members` is the exact set whose masks cancel, sorted; with none of them, the branch answers alone with all
    the noise. `bins` is the schema of a learner's rounds, once it is known. Answer: Released with int64, a masked
    share modulo 2^64 or the branch's own noisy sum.
    """

    type: Literal["sum"] = "sum"
    job_id: JobId
    round: int = Field(ge=0)
    members: Annotated[tuple[BranchName, ...], Field(max_length=10_000)] = ()
    roster: Hash | None = None
    bins: Schema | None = None


class Cosign(_Message):
    """The coordinator's checkpoint (a signed note), with the RFC 9162 consistency proof from the size that this
    branch co-signed last. Answer: Cosigned or Refused(equivocation)."""

    type: Literal["cosign"] = "cosign"
    checkpoint: Annotated[str, Field(max_length=10_000)]
    old_size: int = Field(ge=0)
    proof: Annotated[tuple[Hash, ...], Field(max_length=64)] = ()


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
    """Where a branch's ledger stood: the coordinator keeps it, so that history cannot be rewritten later.

    `note` is a checkpoint (see `sfumato.common.notes`), signed by the branch's enrolled key.
    """

    type: Literal["ledger-head"] = "ledger-head"
    note: Annotated[str, Field(max_length=1000)]

    @field_validator("note")
    @classmethod
    def _a_checkpoint(cls, note: str) -> str:
        Checkpoint.parse(note)
        return note

    @property
    def size(self) -> int:
        return Checkpoint.parse(self.note).size

    @property
    def root(self) -> str:
        return Checkpoint.parse(self.note).root

    def verify(self, branch: str, key: Ed25519PublicKey) -> None:
        """Raise LedgerBroken unless this branch's key signed this head."""
        verify_checkpoint(self.note, branch_origin(branch), key)


class JobOpened(_Message):
    """The branch takes part. `planned` is the job's reserved event by population; epsilon is the larger one. Of a
    standing question `reaches` is the day to which the branch's data reach."""

    type: Literal["job-opened"] = "job-opened"
    job_id: JobId
    branch: str
    planned: dict[str, Any]
    epsilon: float
    delta: float
    noise_multiplier: float
    key: KeyShare | None = None
    reaches: date | None = None
    ledger: LedgerHead


class RosterAccepted(_Message):
    type: Literal["roster-accepted"] = "roster-accepted"
    job_id: JobId
    branch: str
    roster: Hash


class Cosigned(_Message):
    """The branch's signature line for the checkpoint it was shown, and where its own ledger stands now."""

    type: Literal["cosigned"] = "cosigned"
    branch: str
    signature: Annotated[str, Field(max_length=1000)]
    ledger: LedgerHead


class ReleasedAnswer(_Message):
    """A released vector (in the body) with its cost. The only answer that carries numbers from customers."""

    type: Literal["released"] = "released"
    job_id: JobId
    branch: str
    round: int
    what: What
    cost: Cost
    ledger: LedgerHead
    members: Hash | None = None  # of a share: the set that it was masked for


class JobClosed(_Message):
    """`canaries`: the coins of the job's phantom customers, packed bits, hex; nobody's data (see privacy.audit)."""

    type: Literal["job-closed"] = "job-closed"
    job_id: JobId
    branch: str
    epsilon_spent: float
    epsilon_remaining: float
    ledger: LedgerHead
    canaries: Annotated[str, Field(pattern=r"^[0-9a-f]*$", max_length=4096)] = ""


class Refused(_Message):
    type: Literal["refused"] = "refused"
    code: RefusalCode
    requested: float | None = None
    remaining: float | None = None


Question = Annotated[
    Ping | OpenJob | Roster | Count | Train | Evaluate | Sum | Cosign | CloseJob, Field(discriminator="type")
]
Answer = Annotated[
    Pong | JobOpened | RosterAccepted | ReleasedAnswer | Cosigned | JobClosed | Refused,
    Field(discriminator="type"),
]
QUESTION: TypeAdapter[Question] = TypeAdapter(Question)
ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
