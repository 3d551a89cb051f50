"""A job: the risk team's typed question, its canonical bytes and its signature.

The branch approves a job by its parameters, never by code: what runs is installed at the branch.
Signature: Ed25519 (RFC 8032) over a domain-separated canonical JSON of everything but the signature.
"""

import base64
import secrets
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from sfumato.common.analyses import catalogue as analyses
from sfumato.common.analyses.analysis import Analysis
from sfumato.common.analyses.grouped_scores import GroupedScores
from sfumato.common.canonical import canonical_bytes, content_hash
from sfumato.common.contract import Contract, read_toml, validation_lines
from sfumato.common.errors import BadInput, Refusal, RefusalCode
from sfumato.common.learners import catalogue
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.encoding import MOST_MONTHS, monthly_specs
from sfumato.common.learners.models import SavedModel

SIGNATURE_DOMAIN = b"sfumato-job-v1\x00"
SMALLEST_SET = 3  # of a secure sum: with two, each could subtract itself


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Privacy(_Strict):
    """What the whole job may cost any one customer, and who adds the noise.

    `local`: each branch adds all of it, and trusts nobody. `secure-sum`: the branches add shares of it to masked
    sums that only cancel in the total; the guarantee holds against the coordinator and `colluders` branches.
    """

    target_epsilon: float = Field(gt=0, le=20)
    delta: float = Field(default=1e-6, gt=0, le=1e-3)
    mode: Literal["local", "secure-sum"] = "local"
    colluders: int = Field(default=1, ge=0, le=9999)


class LearningPrivacy(Privacy):
    """Customers are either trained on or held out, for good (`Contract.holdout_fraction`): of the latter,
    `evaluation_share` of epsilon pays for the score histogram, and nothing else is asked."""

    evaluation_share: float = Field(default=0.5, gt=0, le=1)


class TrainingPrivacy(LearningPrivacy):
    """Of those trained on, `size_share` pays for the noisy count that scales the gradient mean, the rest for
    training."""

    size_share: float = Field(default=0.02, gt=0, le=0.5)


class Model(_Strict):
    """The churn net: bin or category embeddings, normalised numerics, an MLP. `recurrent` reads `sequence` too,
    roll-ups of the contract by month over the last `months`, oldest first, into a `state` of so many numbers."""

    architecture: Literal["wide-deep", "recurrent"] = "wide-deep"
    hidden: tuple[Annotated[int, Field(gt=0, le=512)], ...] = Field(default=(16,), max_length=4)
    embedding_dim: int = Field(default=2, ge=1, le=64)
    bins: int = Field(default=16, ge=2, le=64)
    sequence: tuple[str, ...] = Field(default=(), max_length=16)
    months: int = Field(default=12, ge=2, le=MOST_MONTHS)
    state: int = Field(default=4, ge=1, le=64)

    @model_validator(mode="after")
    def _a_sequence_to_read(self) -> Self:
        if self.architecture == "recurrent" and not self.sequence:
            raise ValueError(
                "a recurrent net needs model.sequence: roll-ups of the contract to be read by month"
            )
        if len(set(self.sequence)) < len(self.sequence):
            raise ValueError("model.sequence names a roll-up twice")
        for name in ("sequence", "months", "state"):
            idle = (
                self.architecture != "recurrent"
                and getattr(self, name) != type(self).model_fields[name].default
            )
            if idle:
                raise ValueError(f'{name} goes with architecture = "recurrent", and does nothing else')
        return self


# Keys of [training] that begin so say something only where another key has this value.
_WAYS = (
    ("proximal_", "strategy", "fedprox"),
    ("server_", "strategy", "fedadam"),
    ("clipping_", "clipping", "adaptive"),
)


class Training(_Strict):
    """Local DP-SGD inside a round, and over rounds FedAvg, FedProx (a pull of `proximal_mu` toward the round's first
    weights) or FedAdam (a step at the coordinator). `sample_rate` is the Poisson rate of one step. `clipping`:
    adaptive starts from `max_grad_norm` (see privacy.adaptive_clipping)."""

    rounds: int = Field(default=10, ge=1, le=1000)
    local_steps: int = Field(default=20, ge=1, le=10000)
    sample_rate: float = Field(default=0.1, gt=0, le=1)
    max_grad_norm: float = Field(default=1.0, gt=0, le=100)
    learning_rate: float = Field(default=0.03, gt=0, le=10)
    optimizer: Literal["adam", "sgd"] = "adam"
    strategy: Literal["fedavg", "fedprox", "fedadam"] = "fedavg"
    proximal_mu: float = Field(default=0.02, gt=0, le=100)
    server_learning_rate: float = Field(default=0.1, gt=0, le=10)
    server_beta_1: float = Field(default=0.9, ge=0, lt=1)
    server_beta_2: float = Field(default=0.99, ge=0, lt=1)
    server_tau: float = Field(default=1e-3, gt=0, le=1)
    clipping: Literal["fixed", "adaptive"] = "fixed"
    clipping_quantile: float = Field(default=0.7, gt=0, lt=1)
    clipping_rate: float = Field(default=0.2, gt=0, le=2)
    clipping_share: float = Field(default=0.01, ge=1e-4, le=0.5)
    seed: int = Field(default=0, ge=0, lt=2**32)  # initial weights only, never noise

    @model_validator(mode="after")
    def _no_key_without_its_way(self) -> Self:
        for name, field in type(self).model_fields.items():
            for prefix, way, needed in _WAYS:
                idle = name.startswith(prefix) and getattr(self, way) != needed
                if idle and getattr(self, name) != field.default:
                    raise ValueError(f'{name} goes with {way} = "{needed}", and does nothing else')
        return self


class Evaluation(_Strict):
    """The score-by-label histogram of the held-out customers: `bins` on the log-odds, for each label. The same for
    each cell of the columns in `groups`: is the model as good for everybody?"""

    bins: int = Field(default=16, ge=4, le=256)
    groups: tuple[str, ...] = Field(default=(), max_length=8)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.groups)) < len(self.groups):
            raise ValueError("evaluation.groups names a column twice")
        return self


class Binning(_Strict):
    """The schema round: at most so many `bins` a number, and which share of the budget (as mu squared) it takes.
    With `known`, a schema that an earlier job paid for, there is no such round, and both say nothing."""

    bins: int = Field(default=24, ge=2, le=64)
    share: float = Field(default=0.2, gt=0, lt=1)
    known: Schema | None = None


class Federation(_Strict):
    """Who must take part, how rounds travel, and public FedAvg weights by branch name
    (if absent: the branches' noisy sizes, which the job pays for). `repeats` is how many sums may be asked again
    of a smaller set after a branch dropped: the job pays for them beforehand (if absent: one for every twenty)."""

    travel: Literal["session", "messages"] = "session"
    min_branches: int = Field(default=2, ge=1, le=10000)
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    round_timeout_seconds: float = Field(default=120, gt=0, le=3600)
    repeats: int | None = Field(default=None, ge=0, le=1000)


class Audit(_Strict):
    """Phantom slots beside the answer of every sum, in which no customer counts: `empty_slots` show the noise,
    `canaries` show what a phantom customer that the branch took in by a coin flip could add. 0 of both: none."""

    empty_slots: int = Field(default=32, ge=0, le=65536)
    canaries: int = Field(default=32, ge=0, le=4096)


class AnalysisAudit(Audit):
    """An analysis takes few rounds: to see one silent branch in one, it needs more slots of noise alone."""

    empty_slots: int = Field(default=1024, ge=0, le=65536)


class Job(_Strict):
    """What every job file has. `contract` is the contract's name; its hash is pinned when the job is signed."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9\-]{0,62}$")]
    kind: str
    purpose: Annotated[str, Field(min_length=8, max_length=500)]
    contract: str
    privacy: Privacy
    federation: Federation = Federation()
    audit: Audit = Audit()

    @model_validator(mode="after")
    def _enough_branches(self) -> Self:
        needed = max(SMALLEST_SET, self.privacy.colluders + 2)
        if self.privacy.mode == "secure-sum" and self.federation.min_branches < needed:
            raise ValueError(
                f"a secure sum that withstands {self.privacy.colluders} colluding branches needs "
                f"federation.min_branches of at least {needed}, got {self.federation.min_branches}"
            )
        return self


class ChurnNetJob(Job):
    """Train and evaluate a churn net. In mode secure-sum a round is one step: `local_steps` must be 1."""

    kind: Literal["churn-net"]
    privacy: TrainingPrivacy
    model: Model = Model()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _one_step_a_sum(self) -> Self:
        if self.privacy.mode == "secure-sum" and self.training.local_steps != 1:
            raise ValueError("mode secure-sum takes one step a round: set training.local_steps = 1")
        if self.privacy.mode == "local" and self.evaluation.groups:
            raise ValueError("evaluation.groups needs mode secure-sum")
        if self.privacy.mode == "secure-sum" and self.training.strategy != "fedavg":
            raise ValueError("training.strategy is for mode local: a secure sum has nothing to average")
        if self.privacy.mode == "local" and self.training.clipping != "fixed":
            raise ValueError(
                "training.clipping is for mode secure-sum: a branch by itself clips as it is told"
            )
        return self


class LearnerJob(Job):
    """Fit a learner of the catalogue (`sfumato.common.learners.catalogue`): a schema round, the learner's sums, and
    an evaluation. `learner` is checked by the learner."""

    kind: catalogue.Kind
    privacy: LearningPrivacy
    binning: Binning = Binning()
    learner: dict[str, Any] = Field(default_factory=dict)
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _learner_is_understood(self) -> Self:
        catalogue.LEARNERS[self.kind].Question.model_validate(self.learner)
        return self


class AnalysisJob(Job):
    """Ask one question of the catalogue (`sfumato.common.analyses`); `question` is checked by the analysis. `as_of`:
    as of another day than the contract's, to which the branches' data must reach."""

    kind: analyses.Kind
    as_of: date | None = None
    audit: AnalysisAudit = AnalysisAudit()
    question: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _question_is_understood(self) -> Self:
        analyses.CATALOGUE[self.kind].Question.model_validate(self.question)
        return self

    def analysis(self, contract: Contract) -> Analysis:
        """What is asked. Raises BadInput where it names what the contract does not declare."""
        return analyses.build(self.kind, self.question, contract.on(self.as_of))


AnyJob = ChurnNetJob | LearnerJob | AnalysisJob
_ByKind = Annotated[AnyJob, Field(discriminator="kind")]
ANY_JOB: TypeAdapter[AnyJob] = TypeAdapter(_ByKind)
KINDS: dict[str, type[AnyJob]] = {
    "churn-net": ChurnNetJob,
    **dict.fromkeys(catalogue.LEARNERS, LearnerJob),
    **dict.fromkeys(analyses.CATALOGUE, AnalysisJob),
}


class SignedJob(_Strict):
    """A job as it reaches a branch, with the contract it was written for. Verify before reading more of it."""

    job: _ByKind
    contract: Contract
    job_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    issued_at: datetime
    expires_at: datetime
    key_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    signature: str

    @property
    def signed_bytes(self) -> bytes:
        return SIGNATURE_DOMAIN + canonical_bytes(self.model_dump(mode="json", exclude={"signature"}))

    @property
    def contract_hash(self) -> str:
        return self.contract.hash

    @property
    def job_hash(self) -> str:
        """Names the question itself, whoever signed it and whenever: what an operator approves."""
        return content_hash({"job": self.job.model_dump(mode="json"), "contract": self.contract_hash})

    def verify(self, pinned: dict[str, Ed25519PublicKey], now: datetime) -> None:
        """Raise Refusal unless a pinned key signed these bytes and `now` lies inside the validity."""
        key = pinned.get(self.key_id)
        try:
            if key is None:
                raise InvalidSignature
            key.verify(base64.b64decode(self.signature, validate=True), self.signed_bytes)
        except (InvalidSignature, ValueError):
            raise Refusal(RefusalCode.BAD_SIGNATURE) from None
        if not self.issued_at - timedelta(minutes=5) <= now <= self.expires_at:
            raise Refusal(RefusalCode.EXPIRED)


def key_id(key: Ed25519PublicKey) -> str:
    """The first 16 hex digits of the SHA-256 of the raw public key."""
    return content_hash(base64.b64encode(key.public_bytes_raw()).decode())[:16]


def sign_job(
    job: AnyJob,
    contract: Contract,
    key: Ed25519PrivateKey,
    *,
    valid_for: timedelta,
    now: datetime | None = None,
) -> SignedJob:
    """Give the job an id and a validity, and sign it.

    Raises BadInput if it names another contract, or asks for what that contract does not declare.
    """
    if job.contract != contract.name:
        raise BadInput(f"the job is written for contract {job.contract!r}, not for {contract.name!r}")
    if isinstance(job, AnalysisJob):
        job.analysis(contract)
    elif contract.label is None:
        raise BadInput(f"contract {contract.name!r} has no label to learn")
    else:
        if isinstance(job, LearnerJob) and job.binning.known is not None:
            catalogue.build(job.kind, job.learner, job.binning.known, contract)
        GroupedScores.of(contract, job.evaluation.groups, job.evaluation.bins)
    if isinstance(job, ChurnNetJob):
        monthly_specs(contract, job.model.sequence)
    issued = (now or datetime.now(UTC)).replace(microsecond=0)
    unsigned = SignedJob(
        job=job,
        contract=contract,
        job_id=secrets.token_hex(16),
        issued_at=issued,
        expires_at=issued + valid_for,
        key_id=key_id(key.public_key()),
        signature="",
    )
    signature = base64.b64encode(key.sign(unsigned.signed_bytes)).decode()
    return unsigned.model_copy(update={"signature": signature})


def load_job(path: Path) -> AnyJob:
    """Read and check a job file. Raises BadInput naming the file and each fault."""
    data = read_toml(path, "job file")
    head = data.pop("job", None)
    if not isinstance(head, dict):
        raise BadInput(f"{path}: has no [job] table", hint="See examples/*/job.toml.")
    kind = head.get("kind")
    if kind not in KINDS:
        raise BadInput(
            f"{path}: not a valid job\n  kind: Input should be one of {', '.join(KINDS)}",
            hint="See docs/jobs.md for every key.",
        )
    for name in ("binning", "question"):
        table = data.get(name)
        for key, read in _OF_A_RUN.items():
            if isinstance(table, dict) and isinstance(table.get(key), str):
                data[name] = table = {**table, key: read(path.parent / table[key])}
    try:
        return KINDS[kind].model_validate({**head, **data})
    except ValidationError as e:
        raise BadInput(
            f"{path}: not a valid job\n  {validation_lines(e)}", hint="See docs/jobs.md for every key."
        ) from None


def _schema(path: Path) -> dict[str, Any]:
    """The schema.json of a finished run. Raises BadInput."""
    try:
        return Schema.model_validate_json(path.read_bytes()).model_dump(mode="json")
    except OSError as e:
        raise BadInput(
            f"{path}: {e.strerror or 'cannot be read'}", hint="`known` names the schema.json of a run."
        ) from None
    except ValidationError as e:
        raise BadInput(f"{path}: not a schema\n  {validation_lines(e)}") from None


def _model(path: Path) -> dict[str, Any]:
    """The header of a finished run's model.safetensors, which is all of a scorecard. Raises BadInput."""
    return SavedModel.read(path).header.model_dump(mode="json")


# Keys whose value in a job file is the path of what a run left; in the job it is the thing itself, and signed.
_OF_A_RUN: dict[str, Callable[[Path], dict[str, Any]]] = {"known": _schema, "known_model": _model}
