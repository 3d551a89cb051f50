"""A job's rounds: open, train, evaluate, close; who answered, who refused, who dropped. No I/O of its own.

FedAvg (McMahan et al. 2017) with public weights: what the job declares, else the branches' noisy, charged sizes.
A branch that drops is left out of that round and asked again in the next; below `min_branches` the job ends
with a reason. Whatever happens, open branches are told to close, so that no reservation is left standing.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sfumato.common import codec, messages
from sfumato.common.analyses import score_histogram
from sfumato.common.codec import FrameError
from sfumato.common.contract import Contract
from sfumato.common.errors import REFUSAL_TEXT, LedgerBroken, RefusalCode, SfumatoError
from sfumato.common.job import SignedJob
from sfumato.common.learners import churn_net
from sfumato.server.exchange import Exchange

Weights = npt.NDArray[np.float32]
Report = Callable[[dict[str, Any]], None]
GIVE_BACK_SECONDS = 30.0
AWAY = RefusalCode.VAULT_UNREACHABLE


class JobFailed(SfumatoError):
    """The job ended without a result; the message says why, in words for the risk team."""

    exit_code = 7


@dataclass
class BranchRecord:
    """What the coordinator knows of one branch in one job: all of it released or public."""

    name: str
    node_id: int
    customers: int = 0  # trained on; noisy, charged
    epsilon: float = 0.0
    noise_multiplier: float = 0.0
    epsilon_spent: float = 0.0
    epsilon_budget: float = 0.0
    epsilon_remaining: float | None = None
    rounds_answered: int = 0
    rounds_missed: int = 0
    bytes_sent: int = 0
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


@dataclass(frozen=True)
class JobOutcome:
    """A finished job: its weights, the noisy evaluation, and the record of each branch."""

    weights: Weights
    histogram: npt.NDArray[np.int64]
    metrics: score_histogram.ScoreMetrics
    summary: dict[str, Any]


@dataclass(frozen=True)
class Enrolled:
    """What was pinned of a branch at enrolment: its name, and the key that signs its ledger's heads."""

    name: str
    ledger_key: Ed25519PublicKey


class JobRun:
    """One signed job over one exchange. `report` gets a small public dict for each event, for a screen.

    With `enrolled` (by node id), an answer under another name or with a badly signed ledger head is dropped.
    `left_open` are jobs of earlier runs, to be closed first; `given_back` says which branches did. `open_at`
    names the branches that opened this job and have not said that they closed it.
    """

    def __init__(
        self,
        exchange: Exchange,
        signed: SignedJob,
        contract: Contract,
        report: Report,
        *,
        enrolled: Mapping[int, Enrolled] | None = None,
        left_open: Iterable[str] = (),
        join_timeout: float = 120.0,
    ) -> None:
        self._enrolled = enrolled
        self._exchange = exchange
        self._signed = signed
        self._job = signed.job
        self._contract = contract
        self._report = report
        self._join_timeout = join_timeout
        self._branches: dict[int, BranchRecord] = {}
        self._left_open = tuple(left_open)
        self.refused: list[dict[str, Any]] = []
        self.given_back: dict[str, set[str]] = {}
        self.open_at: list[str] = []

    def run(self) -> JobOutcome:
        """Raises JobFailed with the reason; reservations at the branches are released either way."""
        started = time.monotonic()
        try:
            self._open()
            self._count()
            weights = self._train()
            histogram, scales = self._evaluate(weights)
        finally:
            with contextlib.suppress(SfumatoError):  # what it was that ended the job matters more
                self._close()
        noise = score_histogram.laplace_variance(scales)
        metrics = score_histogram.read(histogram, noise)
        summary = self._summary(metrics, time.monotonic() - started) | {"noise_variance": noise}
        return JobOutcome(weights, histogram, metrics, summary)

    def per_branch(self) -> list[dict[str, Any]]:
        """What is known of each branch that opened the job, with the last head of its ledger; by name."""
        return sorted((b.as_dict() for b in self._branches.values()), key=lambda b: str(b["name"]))

    # --- steps -------------------------------------------------------------------------------------------

    def _open(self) -> None:
        needed = self._job.federation.min_branches
        nodes = self._exchange.open(at_least=needed, timeout=self._join_timeout)
        self._report({"event": "joined", "branches": len(nodes)})
        self._give_back(nodes)
        question = messages.OpenJob(signed_job=self._signed)
        self.open_at = sorted(self._name(n) for n in nodes)
        answers = self._ask(nodes, question, None)
        for node, (message, _) in answers.items():
            if isinstance(message, messages.JobOpened):
                self._branches[node] = BranchRecord(
                    name=message.branch,
                    node_id=node,
                    epsilon=message.epsilon,
                    noise_multiplier=message.noise_multiplier,
                    heads=[message.ledger],
                )
                self._report({"event": "opened", "branch": message.branch, "epsilon": message.epsilon})
        # Who gave no answer, or lost its vault over it, may have opened the job all the same.
        clear = {n for n, (m, _) in answers.items() if isinstance(m, messages.Refused) and m.code is not AWAY}
        self.open_at = sorted(self._name(n) for n in nodes if n not in clear)
        self._require(len(self._branches), "opened the job")

    def _give_back(self, nodes: Iterable[int]) -> None:
        """A branch that refuses to close a job does not know it, so it holds nothing for it."""
        timeout = min(GIVE_BACK_SECONDS, self._job.federation.round_timeout_seconds)
        for job_id in self._left_open:
            frame = codec.encode(messages.CloseJob(job_id=job_id))
            gathered = self._exchange.ask(dict.fromkeys(nodes, frame), timeout=timeout)
            self.given_back[job_id] = {self._name(n) for n, raw in gathered.answers.items() if _settled(raw)}

    def _count(self) -> None:
        """Noisy sizes: what FedAvg weighs by, where the job declares no weights of its own."""
        question = messages.Count(job_id=self._signed.job_id)
        for node, vector in self._released(question, None, "size", 0).items():
            self._branches[node].customers = max(1, int(vector[0]))

    def _sizes(self) -> dict[str, float]:
        """A branch that missed the count weighs as much as the others do on average."""
        known = [b.customers for b in self._branches.values() if b.customers]
        return {b.name: float(b.customers or np.mean(known)) for b in self._branches.values()}

    def _train(self) -> Weights:
        job = self._job
        net = churn_net.build(self._contract, job.model, job.training.seed)
        weights = churn_net.flatten(net)
        for round_ in range(1, job.training.rounds + 1):
            question = messages.Train(job_id=self._signed.job_id, round=round_)
            answers = self._released(question, weights, "weights", round_)
            update = [(self._branches[n].name, v) for n, v in answers.items()]
            weights = federated_average(update, job.federation.weights or self._sizes())
            self._report(
                {
                    "event": "round",
                    "round": round_,
                    "rounds": job.training.rounds,
                    "branches": sorted(name for name, _ in update),
                    "epsilon_spent": {b.name: b.epsilon_spent for b in self._branches.values()},
                    "epsilon_budget": {b.name: b.epsilon_budget for b in self._branches.values()},
                }
            )
        return weights

    def _evaluate(self, weights: Weights) -> tuple[npt.NDArray[np.int64], list[float]]:
        job = self._job
        question = messages.Evaluate(job_id=self._signed.job_id, round=job.training.rounds)
        answers = self._released(question, weights, "score-histogram", job.training.rounds)
        scale = self._contract.max_branches_per_customer / (
            job.privacy.evaluation_share * job.privacy.target_epsilon
        )
        total = np.zeros(2 * job.evaluation.bins, dtype=np.int64)
        for vector in answers.values():
            total += vector.astype(np.int64)
        return total, [scale] * len(answers)

    def _close(self) -> None:
        if not self._branches:
            return
        question = messages.CloseJob(job_id=self._signed.job_id)
        for node, (message, _) in self._ask(tuple(self._branches), question, None).items():
            if isinstance(message, messages.JobClosed):
                record = self._branches[node]
                record.epsilon_spent = message.epsilon_spent
                record.epsilon_remaining = message.epsilon_remaining
                record.heads.append(message.ledger)
                self.open_at = [name for name in self.open_at if name != record.name]

    # --- asking ------------------------------------------------------------------------------------------

    def _released(
        self, question: messages.Question, weights: Weights | None, what: str, round_: int
    ) -> dict[int, codec.Vector]:
        """Vectors of every branch that released, checked for kind and length."""
        vectors: dict[int, codec.Vector] = {}
        lengths = {"size": 1, "score-histogram": 2 * self._job.evaluation.bins}
        expected = lengths[what] if weights is None or what in lengths else weights.size
        dtype = np.float32 if what == "weights" else np.int64
        for node, (message, vector) in self._ask(tuple(self._branches), question, weights).items():
            record = self._branches[node]
            if not isinstance(message, messages.ReleasedAnswer) or vector is None:
                continue
            if message.what != what or vector.size != expected or vector.dtype != dtype:
                self._report(
                    {"event": "dropped", "branch": record.name, "reason": "answer has the wrong form"}
                )
                continue
            vectors[node] = vector
            record.heads.append(message.ledger)
            record.epsilon_spent = message.cost.epsilon_spent
            record.epsilon_budget = message.cost.epsilon_budget
            if what == "weights":
                record.rounds_answered += 1
        for node, record in self._branches.items():
            if node not in vectors and what == "weights":
                record.rounds_missed += 1
        step = {"size": "gave their size", "weights": f"answered round {round_}"}
        self._require(len(vectors), step.get(what, "answered the evaluation"))
        return vectors

    def _ask(
        self, nodes: Iterable[int], question: messages.Question, body: Weights | None
    ) -> Mapping[int, tuple[messages.Answer, codec.Vector | None]]:
        frame = codec.encode(question, body)
        gathered = self._exchange.ask(
            dict.fromkeys(nodes, frame), timeout=self._job.federation.round_timeout_seconds
        )
        answers: dict[int, tuple[messages.Answer, codec.Vector | None]] = {}
        for node, raw in gathered.answers.items():
            if node in self._branches:
                self._branches[node].bytes_sent += len(raw)
            try:
                message, vector = codec.decode(raw, "answer")
            except FrameError:
                self._report({"event": "dropped", "branch": self._name(node), "reason": "not a frame"})
                continue
            if isinstance(message, messages.Refused):
                self._note_refusal(node, message)
            elif not self._authentic(node, message):
                self._report({"event": "dropped", "branch": self._name(node), "reason": "is not who it says"})
                continue
            answers[node] = (message, vector)
        for node, reason in gathered.dropped.items():
            self._report({"event": "dropped", "branch": self._name(node), "reason": reason})
        return answers

    def _authentic(self, node: int, message: messages.Answer) -> bool:
        if self._enrolled is None or not isinstance(
            message, messages.JobOpened | messages.ReleasedAnswer | messages.JobClosed
        ):
            return True
        pinned = self._enrolled.get(node)
        if pinned is None or message.branch != pinned.name or message.job_id != self._signed.job_id:
            return False
        try:
            message.ledger.verify(message.branch, pinned.ledger_key)
        except LedgerBroken:
            return False
        return True

    def _note_refusal(self, node: int, message: messages.Refused) -> None:
        refusal = {
            "branch": self._name(node),
            "code": message.code.value,
            "text": REFUSAL_TEXT[message.code],
            "requested": message.requested,
            "remaining": message.remaining,
        }
        self.refused.append(refusal)
        self._report({"event": "refused", **refusal})

    def _name(self, node: int) -> str:
        if node in self._branches:
            return self._branches[node].name
        if self._enrolled and node in self._enrolled:
            return self._enrolled[node].name
        return f"node {node}"

    def _require(self, count: int, what: str) -> None:
        needed = self._job.federation.min_branches
        if count < needed:
            reasons = sorted({f"{r['branch']}: {r['text']}" for r in self.refused})
            raise JobFailed(
                f"only {count} of at least {needed} branches {what}"
                + (". " + "; ".join(reasons) if reasons else "")
            )

    def _summary(self, metrics: score_histogram.ScoreMetrics, seconds: float) -> dict[str, Any]:
        customers = sum(b.customers for b in self._branches.values()) / (1 - self._contract.holdout_fraction)
        return {
            "job": self._job.name,
            "job_id": self._signed.job_id,
            "kind": self._job.kind,
            "auc": metrics.auc.value,
            "auc_low": metrics.auc.low,
            "auc_high": metrics.auc.high,
            "metrics": asdict(metrics),
            "epsilon": max(b.epsilon for b in self._branches.values()),
            "delta": self._job.privacy.delta,
            "branches": len(self._branches),
            "customers": max(0, round(customers)),
            "rounds": self._job.training.rounds,
            "seconds": seconds,
            "per_branch": self.per_branch(),
            "refused": self.refused,
        }


def _settled(raw: bytes) -> bool:
    """Whether this answer to CloseJob means that the branch holds no reservation for the job."""
    try:
        message, _ = codec.decode(raw, "answer")
    except FrameError:
        return False
    unknown = isinstance(message, messages.Refused) and message.code is RefusalCode.UNKNOWN_JOB
    return unknown or isinstance(message, messages.JobClosed)


def federated_average(updates: list[tuple[str, codec.Vector]], weights: Mapping[str, float]) -> Weights:
    """Weighted mean of float32 vectors; a branch without a declared weight weighs 1. Raises ValueError if none."""
    if not updates:
        raise ValueError("no update to average")
    share = np.array([weights.get(name, 1.0) for name, _ in updates])
    stacked = np.stack([vector.astype(np.float64) for _, vector in updates])
    return np.asarray(share @ stacked / share.sum(), dtype=np.float32)
