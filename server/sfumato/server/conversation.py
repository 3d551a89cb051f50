"""Asking the branches of one job: which answers are theirs, which are refusals, and who is missing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sfumato.common import codec, messages
from sfumato.common.codec import FrameError
from sfumato.common.errors import REFUSAL_TEXT, LedgerBroken, SfumatoError
from sfumato.common.job import SignedJob
from sfumato.common.notes import SignedNote, branch_origin
from sfumato.server.exchange import Exchange

Weights = npt.NDArray[np.float32]
Report = Callable[[dict[str, Any]], None]
OWN_FIELDS = (messages.JobOpened, messages.ReleasedAnswer, messages.JobClosed, messages.RosterAccepted)


class JobFailed(SfumatoError):
    """The job ended without a result; the message says why, in words for the risk team."""

    exit_code = 7
    final = False  # no later run may go on after this


@dataclass
class BranchRecord:
    """What the coordinator knows of one branch in one job: all of it released or public."""

    name: str
    node_id: int
    customers: int = 0  # trained on; noisy, charged; 0 in a job of secure sums, where only the total is known
    epsilon: float = 0.0
    noise_multiplier: float = 0.0
    epsilon_spent: float = 0.0
    epsilon_budget: float = 0.0
    epsilon_remaining: float | None = None
    rounds_answered: int = 0
    rounds_missed: int = 0
    bytes_sent: int = 0
    key: messages.KeyShare | None = None
    canaries: str = ""
    reaches: date | None = None  # the day to which its data reach; of a standing question, since it opened it
    heads: list[messages.LedgerHead] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        head = self.heads[-1].model_dump(mode="json") if self.heads else None
        return {
            "name": self.name,
            "customers": self.customers,
            "epsilon": self.epsilon,
            "noise_multiplier": self.noise_multiplier,
            "epsilon_spent": self.epsilon_spent,
            "epsilon_budget": self.epsilon_budget,
            "epsilon_remaining": self.epsilon_remaining,
            "rounds_answered": self.rounds_answered,
            "rounds_missed": self.rounds_missed,
            "bytes_sent": self.bytes_sent,
            "ledger_head": head,
        }

    @classmethod
    def of_dict(cls, known: Mapping[str, Any]) -> Self:
        """The inverse of `as_dict`, with `node_id` beside it; of the heads the last."""
        head = known["ledger_head"]
        heads = [messages.LedgerHead.model_validate(head)] if head else []
        return cls(**{k: v for k, v in known.items() if k != "ledger_head"}, heads=heads)


@dataclass(frozen=True)
class Enrolled:
    """What was pinned of a branch at enrolment: its name, and the key that signs its ledger's heads."""

    name: str
    ledger_key: Ed25519PublicKey


class Conversation:
    """Questions to the branches of one signed job. `report` gets a small public dict for each event.

    With `enrolled` (by node id), an answer under another name or with a badly signed ledger head is dropped.
    """

    def __init__(
        self,
        exchange: Exchange,
        signed: SignedJob,
        report: Report,
        enrolled: Mapping[int, Enrolled] | None,
    ) -> None:
        self.signed = signed
        self.job = signed.job
        self.report = report
        self.branches: dict[int, BranchRecord] = {}
        self.refused: list[dict[str, Any]] = []
        self._missing: dict[str, str] = {}  # who gave no answer last, and why
        self._exchange = exchange
        self._enrolled = enrolled

    def ask(
        self, nodes: Iterable[int], question: messages.Question, body: Weights | None = None
    ) -> Mapping[int, tuple[messages.Answer, codec.Vector | None]]:
        """Every authentic answer, refusals among them; what is none is reported and dropped."""
        return self.ask_frame(nodes, codec.encode(question, body))

    def ask_frame(
        self, nodes: Iterable[int], frame: bytes
    ) -> Mapping[int, tuple[messages.Answer, codec.Vector | None]]:
        """As `ask`, of a question in its very bytes: by them a branch knows one that it answered before."""
        gathered = self._exchange.ask(
            dict.fromkeys(nodes, frame), timeout=self.job.federation.round_timeout_seconds
        )
        answers: dict[int, tuple[messages.Answer, codec.Vector | None]] = {}
        for node, raw in gathered.answers.items():
            if node in self.branches:
                self.branches[node].bytes_sent += len(raw)
            try:
                message, vector = codec.decode(raw, "answer")
            except FrameError:
                self._drop(node, "not a frame")
                continue
            if isinstance(message, messages.Refused):
                self._note_refusal(node, message)
            elif not self._authentic(node, message):
                self._drop(node, "is not who it says")
                continue
            self._missing.pop(self._name(node), None)
            answers[node] = (message, vector)
        for node, reason in gathered.dropped.items():
            self._drop(node, reason)
        return answers

    def _authentic(self, node: int, message: messages.Answer) -> bool:
        if not isinstance(message, OWN_FIELDS):
            return True
        if message.job_id != self.signed.job_id:
            return False
        if self._enrolled is None:
            return True
        pinned = self._enrolled.get(node)
        if pinned is None or message.branch != pinned.name:
            return False
        if isinstance(message, messages.RosterAccepted):
            return True
        try:
            message.ledger.verify(message.branch, pinned.ledger_key)
        except LedgerBroken:
            return False
        return True

    def _drop(self, node: int, reason: str) -> None:
        self._missing[self._name(node)] = reason
        self.report({"event": "dropped", "branch": self._name(node), "reason": reason})

    def _note_refusal(self, node: int, message: messages.Refused) -> None:
        refusal = {
            "branch": self._name(node),
            "code": message.code.value,
            "text": REFUSAL_TEXT[message.code],
            "requested": message.requested,
            "remaining": message.remaining,
        }
        self.refused.append(refusal)
        self.report({"event": "refused", **refusal})

    def _name(self, node: int) -> str:
        if node in self.branches:
            return self.branches[node].name
        if self._enrolled and node in self._enrolled:
            return self._enrolled[node].name
        return f"node {node}"

    def _require(self, count: int, what: str) -> None:
        needed = self.job.federation.min_branches
        if count < needed:
            refused = {f"{r['branch']}: {r['text']}" for r in self.refused}
            reasons = sorted(refused | {f"{name}: {why}" for name, why in self._missing.items()})
            raise JobFailed(
                f"only {count} of at least {needed} branches {what}"
                + (". " + "; ".join(reasons) if reasons else "")
            )

    def cosign(
        self, note: str, proof_from: Callable[[int], Sequence[str]], last: Mapping[str, int]
    ) -> list[str]:
        """Every branch's signature line for our ledger's checkpoint. `last` says which size each co-signed before.

        A branch that knows another size says so, and is asked once more.
        """
        sizes = {n: last.get(b.name, 0) for n, b in self.branches.items()}
        lines: dict[int, str] = {}
        for _ in range(2):
            for size in sorted(set(sizes.values())):
                nodes = [n for n, s in sizes.items() if s == size and n not in lines]
                question = messages.Cosign(checkpoint=note, old_size=size, proof=tuple(proof_from(size)))
                for node, (message, _) in self.ask(nodes, question).items() if nodes else ():
                    if isinstance(message, messages.Cosigned) and self._cosigned(node, note, message):
                        lines[node] = message.signature
                        self.branches[node].heads.append(message.ledger)
                    elif isinstance(message, messages.Refused) and message.remaining is not None:
                        sizes[node] = int(message.remaining)
        return list(lines.values())

    def _cosigned(self, node: int, note: str, message: messages.Cosigned) -> bool:
        known = self._enrolled.get(node) if self._enrolled else None
        if known is None or message.branch != known.name:
            return False
        try:
            message.ledger.verify(known.name, known.ledger_key)
            signed = SignedNote.parse(note).with_signatures([message.signature])
            signed.cosigned_at(branch_origin(known.name), known.ledger_key)
        except (LedgerBroken, ValueError):
            return False
        return True
