"""The tree of errors, and the codes that may leave a branch.

    SfumatoError            everything we raise for a user; has an exit code and a hint
    ├── BadInput            a file, contract or job is not what was declared
    ├── Insecure            a step that must secure itself could not; the start stops
    ├── LedgerBroken        the record of spending does not verify
    ├── Unavailable         the other side is not there, or went away
    └── Refusal             the vault says no; carries a RefusalCode, never free text

An exception's text is a second door out of a branch: only a `Refusal`'s code and public numbers ever
cross the vault's socket (see `sfumato.common.messages.Refused`).
"""

from enum import StrEnum


class SfumatoError(Exception):
    """Base of every error that is meant for a person. `hint` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class BadInput(SfumatoError):
    """What the user handed in is not what was declared."""

    exit_code = 2


class Insecure(SfumatoError):
    """A step could not secure itself (permissions, keys, TLS); nothing was started."""

    exit_code = 3


class LedgerBroken(SfumatoError):
    """The ledger does not verify: an entry is altered, missing or out of order."""

    exit_code = 4


class Unavailable(SfumatoError):
    """The other side does not answer."""

    exit_code = 5


class RefusalCode(StrEnum):
    """Every way a vault can say no. The set is closed: nothing else leaves as a reason."""

    BAD_FRAME = "bad-frame"
    BAD_SIGNATURE = "bad-signature"
    EXPIRED = "expired"
    UNKNOWN_JOB = "unknown-job"
    NOT_APPROVED = "not-approved"
    WRONG_CONTRACT = "wrong-contract"
    OVER_BUDGET = "over-budget"
    OVER_JOB_LIMIT = "over-job-limit"
    ROUND_OUT_OF_ORDER = "round-out-of-order"
    ROUND_ALREADY_ANSWERED = "round-already-answered"
    BAD_VECTOR = "bad-vector"
    BAD_ROSTER = "bad-roster"
    UNKNOWN_ROSTER = "unknown-roster"
    SET_TOO_SMALL = "set-too-small"
    SET_NOT_SMALLER = "set-not-smaller"
    OVER_JOB_PLAN = "over-job-plan"
    UNKNOWN_CHECKPOINT = "unknown-checkpoint"
    EQUIVOCATION = "equivocation"
    NO_DATA = "no-data"
    NOT_YET = "not-yet"
    MEMORY_LOST = "memory-lost"
    JOB_CLOSED = "job-closed"
    FOREIGN_BUNDLE = "foreign-bundle"
    VAULT_UNREACHABLE = "vault-unreachable"
    INTERNAL = "internal"


REFUSAL_TEXT: dict[RefusalCode, str] = {
    RefusalCode.BAD_FRAME: "the question was not understood",
    RefusalCode.BAD_SIGNATURE: "the job is not signed by a key this branch has pinned",
    RefusalCode.EXPIRED: "the job's validity has ended",
    RefusalCode.UNKNOWN_JOB: "this job was never opened at this branch",
    RefusalCode.NOT_APPROVED: "the branch's policy does not approve this job; an operator must",
    RefusalCode.WRONG_CONTRACT: "the job was written for another data contract",
    RefusalCode.OVER_BUDGET: "the branch's privacy budget would be exceeded",
    RefusalCode.OVER_JOB_LIMIT: "the job asks for more epsilon than the branch allows one job",
    RefusalCode.ROUND_OUT_OF_ORDER: "the round lies behind the last answered one, or beyond the job's plan",
    RefusalCode.ROUND_ALREADY_ANSWERED: "this round was answered already, for another question",
    RefusalCode.BAD_VECTOR: "the vector has the wrong type, length or values",
    RefusalCode.BAD_ROSTER: "the roster holds a key that is not signed by a branch this one has pinned",
    RefusalCode.UNKNOWN_ROSTER: "this branch holds no keys for that roster; open the job again",
    RefusalCode.SET_TOO_SMALL: "a secure sum over so few branches would protect nobody",
    RefusalCode.SET_NOT_SMALLER: "this round was answered for another set; only a smaller part of it may ask again",
    RefusalCode.OVER_JOB_PLAN: "the job has spent what was set aside for it",
    RefusalCode.UNKNOWN_CHECKPOINT: "the proof does not start where this branch co-signed last",
    RefusalCode.EQUIVOCATION: "the coordinator's ledger contradicts a checkpoint that this branch co-signed",
    RefusalCode.NO_DATA: "nothing has been ingested at this branch",
    RefusalCode.NOT_YET: "this branch's data do not reach that day yet",
    RefusalCode.MEMORY_LOST: "what this branch told before in this question is not as it was written",
    RefusalCode.JOB_CLOSED: "the job is closed",
    RefusalCode.FOREIGN_BUNDLE: "the app bundle is not the approved one",
    RefusalCode.VAULT_UNREACHABLE: "the branch's vault does not answer",
    RefusalCode.INTERNAL: "the branch could not answer; its own log says why",
}


class Refusal(SfumatoError):
    """The vault says no. `requested` and `remaining` are epsilons, public by policy.

    Of UNKNOWN_CHECKPOINT they are sizes of the coordinator's ledger: the one asked from, and the one to ask from.
    """

    exit_code = 6

    def __init__(
        self, code: RefusalCode, *, requested: float | None = None, remaining: float | None = None
    ) -> None:
        super().__init__(f"{code.value}: {REFUSAL_TEXT[code]}")
        self.code = code
        self.requested = requested
        self.remaining = remaining
