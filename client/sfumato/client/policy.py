"""What a branch lets the risk team ask. The budget itself stands in the ledger, not here: no silent raise."""

from pathlib import Path
from typing import Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sfumato.common.contract import read_toml, validation_lines
from sfumato.common.errors import BadInput, Refusal, RefusalCode
from sfumato.common.job import KINDS, SMALLEST_SET, SignedJob


class Policy(BaseModel):
    """policy.toml of a vault."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kinds: tuple[str, ...] = tuple(KINDS)
    max_epsilon_per_job: float = Field(default=3.0, gt=0)
    approval: Literal["automatic", "operator"] = "automatic"
    min_secure_set: int = Field(default=SMALLEST_SET, ge=SMALLEST_SET)
    min_colluders: int = Field(default=1, ge=0)  # a secure sum must withstand at least so many

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        for kind in kinds:
            if kind not in KINDS:
                raise ValueError(f"there is no kind of job {kind!r}; there are {', '.join(KINDS)}")
        return kinds

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises BadInput naming each fault."""
        try:
            return cls.model_validate(read_toml(path, "branch policy"))
        except ValidationError as e:
            raise BadInput(f"{path}: not a valid policy\n  {validation_lines(e)}") from None

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="json"))

    def admit(self, signed: SignedJob, approved: frozenset[str]) -> None:
        """Raise Refusal unless this policy lets the job through. `approved` holds job hashes."""
        if signed.job.kind not in self.kinds:
            raise Refusal(RefusalCode.NOT_APPROVED)
        if signed.job.privacy.target_epsilon > self.max_epsilon_per_job:
            raise Refusal(
                RefusalCode.OVER_JOB_LIMIT,
                requested=signed.job.privacy.target_epsilon,
                remaining=self.max_epsilon_per_job,
            )
        if self.approval == "operator" and signed.job_hash not in approved:
            raise Refusal(RefusalCode.NOT_APPROVED)
