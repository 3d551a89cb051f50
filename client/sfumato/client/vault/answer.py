"""What a vault says to a question. Every answer is a Released, a statement without customer data, or a code.

`Vault.answer` takes and gives frames (sfumato.common.codec). Any exception becomes a RefusalCode; its text
stays in the vault's own log.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from dp_accounting.dp_event import DpEvent

from sfumato.client.features import customer_frame, holdout_mask
from sfumato.client.policy import Policy
from sfumato.client.vault.store import Store
from sfumato.common import codec, messages
from sfumato.common.analyses import score_histogram
from sfumato.common.codec import FrameError, Vector
from sfumato.common.contract import Contract
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.job import Job, SignedJob
from sfumato.common.learners import churn_net
from sfumato.common.learners.encoding import Encoded, Encoder
from sfumato.privacy import accounting, dpsgd
from sfumato.privacy.door import Door, Population, Released
from sfumato.privacy.keys import Keyring
from sfumato.privacy.ledger import Entry, Ledger
from sfumato.privacy.mechanisms import DiscreteLaplaceHistogram, DpSgdTraining, OneCellCounts
from sfumato.privacy.noise import SecureRandom

log = logging.getLogger("sfumato.vault")
MOST_REFUSALS_A_DAY = 1000


@dataclass(frozen=True, repr=False)
class Customers:
    """The branch's customers as the learner sees them: encoded by the contract, split by a keyed hash."""

    encoded: Encoded
    labels: npt.NDArray[np.float32]
    holdout: npt.NDArray[np.bool_]


class Vault:
    """Answers questions about one branch's store. Data and model stay warm between questions."""

    def __init__(
        self,
        *,
        branch: str,
        contract: Contract,
        store: Store,
        keyring: Keyring,
        ledger: Ledger,
        policy: Policy,
        job_keys: dict[str, Ed25519PublicKey],
        approved: Callable[[], frozenset[str]] = frozenset,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.branch = branch
        self.door = Door(ledger, now=now)
        self._contract = contract
        self._store = store
        self._keyring = keyring
        self._ledger = ledger
        self._policy = policy
        self._job_keys = job_keys
        self._approved = approved
        self._now = now
        self._rng = SecureRandom()
        self._customers: dict[int, Customers] = {}  # by number of bins

    def answer(self, frame: bytes) -> bytes:
        """One question's frame in, one answer's frame out. Never raises."""
        try:
            question, body = codec.decode(frame, "question")
            return self._dispatch(question, body, frame)
        except FrameError:
            return self._refuse(Refusal(RefusalCode.BAD_FRAME))
        except Refusal as refusal:
            return self._refuse(refusal)
        except Exception:
            log.exception("a question could not be answered")
            return self._refuse(Refusal(RefusalCode.INTERNAL))

    def _dispatch(self, question: messages.Question, body: Vector | None, frame: bytes) -> bytes:
        match question:
            case messages.Ping():
                return codec.encode(messages.Pong(branch=self.branch))
            case messages.OpenJob():
                return self._recorded(question.signed_job, lambda: self._open(question.signed_job))
            case messages.Count():
                return self._count(question)
            case messages.Train():
                return self._train(question, body, frame)
            case messages.Evaluate():
                return self._evaluate(question, body, frame)
            case messages.CloseJob():
                return self._close(question.job_id)

    def _recorded(self, signed: SignedJob, act: Callable[[], bytes]) -> bytes:
        """A job that is turned away stands in the ledger with its reason, for the compliance officer.

        Anybody who reaches the vault can have a job turned away, so a day's worth of refusals is bounded; the
        vault's log has the rest.
        """
        try:
            return act()
        except Refusal as refusal:
            body = {
                "code": refusal.code.value,
                "job_hash": signed.job_hash,
                "epsilon": signed.job.privacy.target_epsilon,
            }
            with self._ledger.exclusive() as transaction:
                since = self._now() - timedelta(days=1)
                if sum(e.time > since for e in transaction.entries("refuse")) < MOST_REFUSALS_A_DAY:
                    transaction.append("refuse", body, job_id=signed.job_id)
            raise

    def _refuse(self, refusal: Refusal) -> bytes:
        log.warning("refused: %s", refusal.code.value)
        return codec.encode(
            messages.Refused(code=refusal.code, requested=refusal.requested, remaining=refusal.remaining)
        )

    # --- opening a job -----------------------------------------------------------------------------------

    def _open(self, signed: SignedJob) -> bytes:
        signed.verify(self._job_keys, self._now())
        if signed.contract_hash != self._contract.hash or signed.job.contract != self._contract.name:
            raise Refusal(RefusalCode.WRONG_CONTRACT)
        self._policy.admit(signed, self._approved())
        if not self._store.tables().get(self._contract.customers) or self._contract.label is None:
            raise Refusal(RefusalCode.NO_DATA)
        plan = Plan.of(signed.job, self._contract.max_branches_per_customer)
        reserved = self.door.reserve(
            signed.job_id,
            plan.events,
            expires_at=signed.expires_at,
            details={
                "job_hash": signed.job_hash,
                "job": signed.job.model_dump(mode="json"),
                "noise_multiplier": plan.noise_multiplier,
            },
        )
        privacy = signed.job.privacy
        log.info("job %s opened, epsilon %s", signed.job_id, privacy.target_epsilon)
        return codec.encode(
            messages.JobOpened(
                job_id=signed.job_id,
                branch=self.branch,
                planned=reserved.body["planned"],
                epsilon=max(accounting.pld_epsilon([e], privacy.delta) for e in plan.events.values()),
                delta=privacy.delta,
                noise_multiplier=plan.noise_multiplier,
                ledger=self._ledger.signed_head(),
            )
        )

    def _opened(self, job_id: str) -> tuple[Job, "Plan"]:
        reserved = self._ledger.entries("reserve", job_id=job_id)
        if not reserved:
            raise Refusal(RefusalCode.UNKNOWN_JOB)
        job = Job.model_validate(reserved[0].body["job"])
        return job, Plan.of(job, self._contract.max_branches_per_customer)

    # --- rounds ------------------------------------------------------------------------------------------

    def _train(self, question: messages.Train, body: Vector | None, frame: bytes) -> bytes:
        job, plan = self._opened(question.job_id)
        self._check_round(question.job_id, question.round, job.training.rounds)
        net = churn_net.build(self._contract, job.model, job.training.seed)
        _load(net, body)
        customers = self._customers_for(job)
        size = max(1, int(self._size(question.job_id, customers, plan).vector[0]))
        rows = ~customers.holdout
        encoded, labels = customers.encoded.take(rows), customers.labels[rows]

        def train() -> npt.NDArray[np.float32]:
            dpsgd.train(
                net,
                encoded,
                labels,
                steps=job.training.local_steps,
                sample_rate=job.training.sample_rate,
                noise_multiplier=plan.noise_multiplier,
                max_grad_norm=job.training.max_grad_norm,
                learning_rate=job.training.learning_rate,
                optimizer=job.training.optimizer,
                expected_batch_size=max(1.0, job.training.sample_rate * size),
                rng=self._rng,
            )
            return churn_net.flatten(net)

        mechanism = DpSgdTraining(
            plan.noise_multiplier, job.training.sample_rate, job.training.local_steps, train
        )
        return self.door.release(
            mechanism,
            job_id=question.job_id,
            round_=question.round,
            what="weights",
            population="training",
            question=frame,
            times=plan.times,
        ).frame

    def _evaluate(self, question: messages.Evaluate, body: Vector | None, frame: bytes) -> bytes:
        job, plan = self._opened(question.job_id)
        if question.round != job.training.rounds:  # the plan pays for one evaluation, of the final weights
            raise Refusal(RefusalCode.ROUND_OUT_OF_ORDER)
        net = churn_net.build(self._contract, job.model, job.training.seed)
        _load(net, body)
        customers = self._customers_for(job)
        logits = churn_net.logits(net, customers.encoded.take(customers.holdout))
        cells = score_histogram.cells(logits, customers.labels[customers.holdout], job.evaluation.bins)
        mechanism = DiscreteLaplaceHistogram(
            OneCellCounts.of(cells, 2 * job.evaluation.bins), plan.evaluation_scale, self._rng
        )
        return self.door.release(
            mechanism,
            job_id=question.job_id,
            round_=question.round,
            what="score-histogram",
            population="holdout",
            question=frame,
            times=plan.times,
        ).frame

    def _count(self, question: messages.Count) -> bytes:
        job, plan = self._opened(question.job_id)
        return self._size(question.job_id, self._customers_for(job), plan).frame

    def _size(self, job_id: str, customers: Customers, plan: "Plan") -> Released:
        """The noisy number of training customers: charged once a job, it scales the mean and weighs FedAvg."""
        counts = OneCellCounts.of(np.zeros(int((~customers.holdout).sum()), dtype=np.int64), 1)
        mechanism = DiscreteLaplaceHistogram(counts, plan.size_scale, self._rng)
        return self.door.release(
            mechanism,
            job_id=job_id,
            round_=0,
            what="size",
            population="training",
            question=b"size",
            times=plan.times,
        )

    def _check_round(self, job_id: str, round_: int, rounds: int) -> None:
        """Never back, never beyond the plan. Skipping is allowed: a branch that was away may come back."""
        done = max((e.body["round"] for e in self._rounds(job_id)), default=0)
        if not done <= round_ <= rounds:
            raise Refusal(RefusalCode.ROUND_OUT_OF_ORDER)

    def _rounds(self, job_id: str) -> list[Entry]:
        return [e for e in self._ledger.entries("charge", job_id=job_id) if e.body["what"] == "weights"]

    def _close(self, job_id: str) -> bytes:
        self._opened(job_id)
        self.door.close(job_id)
        spending = self.door.spending()
        return codec.encode(
            messages.JobClosed(
                job_id=job_id,
                branch=self.branch,
                epsilon_spent=spending.spent,
                epsilon_remaining=spending.remaining,
                ledger=self._ledger.signed_head(),
            )
        )

    # --- data, kept warm ---------------------------------------------------------------------------------

    def _customers_for(self, job: Job) -> Customers:
        key = job.model.bins
        if key not in self._customers:
            frame = customer_frame(self._store, self._contract)
            columns: dict[str, Any] = {n: frame.column(n) for n in frame.column_names}
            self._customers[key] = Customers(
                encoded=Encoder(self._contract, job.model.bins).transform(columns),
                labels=frame.column("label").to_numpy().astype(np.float32),
                holdout=holdout_mask(
                    frame.column("token").to_pylist(), self._keyring, self._contract.holdout_fraction
                ),
            )
        return self._customers[key]


@dataclass(frozen=True)
class Plan:
    """A job's noise, fixed before its first round: all rounds and the size count; and the evaluation."""

    noise_multiplier: float
    size_scale: float
    evaluation_scale: float
    times: int
    events: dict[Population, DpEvent]

    @classmethod
    def of(cls, job: Job, max_branches_per_customer: int) -> "Plan":
        """The noise with which no customer loses more than target_epsilon, in whichever branches they are."""
        privacy, training = job.privacy, job.training
        times = max_branches_per_customer
        size_scale = times / (privacy.size_share * privacy.target_epsilon)
        evaluation_scale = times / (privacy.evaluation_share * privacy.target_epsilon)
        size, evaluation = map(accounting.discrete_laplace, (size_scale, evaluation_scale))
        steps = training.rounds * training.local_steps
        noise_multiplier = accounting.calibrate_noise_multiplier(
            privacy.target_epsilon,
            privacy.delta,
            training.sample_rate,
            steps,
            [size],
            max_branches_per_customer=times,
        )
        train = accounting.gaussian_training(noise_multiplier, training.sample_rate, steps)
        events: dict[Population, DpEvent] = {
            "training": accounting.in_every_branch(accounting.compose([train, size]), times),
            "holdout": accounting.in_every_branch(evaluation, times),
        }
        return cls(noise_multiplier, size_scale, evaluation_scale, times, events)


def _load(net: churn_net.ChurnNet, body: Vector | None) -> None:
    if body is None or body.dtype != np.float32:
        raise Refusal(RefusalCode.BAD_VECTOR)
    try:
        churn_net.load(net, body.astype(np.float32))
    except ValueError:
        raise Refusal(RefusalCode.BAD_VECTOR) from None
