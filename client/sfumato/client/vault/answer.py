"""What a vault says to a question. Every answer is a Released, a statement without customer data, or a code.

`Vault.answer` takes and gives frames (sfumato.common.codec). Any exception becomes a RefusalCode; its text
stays in the vault's own log.
"""

import hmac
import logging
from collections import deque
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sfumato.client.home import signer
from sfumato.client.policy import Policy
from sfumato.client.vault.contribution import Contributing, of_news
from sfumato.client.vault.customers import WarmData
from sfumato.client.vault.local_training import LocalTraining
from sfumato.client.vault.standing import Memory, StandingAnswers
from sfumato.client.vault.store import Store
from sfumato.client.vault.sums import Mask, Members, SecureSums
from sfumato.common import codec, messages
from sfumato.common.analyses.standing import Standing
from sfumato.common.codec import FrameError, Vector
from sfumato.common.contract import Contract
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.job import ANY_JOB, AnalysisJob, AnyJob, ChurnNetJob, Job, SignedJob
from sfumato.privacy.door import Door
from sfumato.privacy.keys import Keyring
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.mechanisms import (
    GaussianSum,
    StandingSum,
    SumNoise,
)
from sfumato.privacy.noise import SecureRandom
from sfumato.privacy.phantoms import Phantoms
from sfumato.privacy.plan import Ask, Plan
from sfumato.privacy.witness import Witness

log = logging.getLogger("sfumato.vault")
MOST_REFUSALS_A_DAY = 1000


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
        memory: Memory,
        reaches: Callable[[], date | None],
        approved: Callable[[], frozenset[str]] = frozenset,
        members: Members = dict,
        coordinator: Ed25519PublicKey | None = None,
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
        self._jobs: dict[str, tuple[AnyJob, Plan]] = {}  # the one at hand
        self._data = WarmData(store, contract, keyring)
        self._contributing = Contributing(contract, self._data, self._rng)
        memory.keep(self.door.open_jobs())
        self._standing = StandingAnswers(self._data, memory, reaches)
        self._training = LocalTraining(contract, self._data, self.door, ledger, self._rng)
        self._witness = Witness(ledger, coordinator, now=now) if coordinator else None
        self._sums = SecureSums(branch, signer(keyring), policy, members)
        self._refused: deque[datetime] | None = None  # when, of the latest day

    def answer(self, frame: bytes) -> bytes:
        """One question's frame in, one answer's frame out. Never raises."""
        question: messages.Question | None = None
        try:
            question, body = codec.decode(frame, "question")
            return self._dispatch(question, body, frame)
        except FrameError:
            refusal = Refusal(RefusalCode.BAD_FRAME)
        except Refusal as e:
            refusal = e
        except Exception:
            log.exception("a question could not be answered")
            refusal = Refusal(RefusalCode.INTERNAL)
        return self._refuse(refusal, question)

    def _dispatch(self, question: messages.Question, body: Vector | None, frame: bytes) -> bytes:
        match question:
            case messages.Ping():
                return codec.encode(messages.Pong(branch=self.branch))
            case messages.OpenJob():
                return self._open(question.signed_job)
            case messages.Roster():
                return self._roster(question)
            case messages.Sum():
                return self._sum(question, body, frame)
            case messages.Count():
                return self._count(question)
            case messages.Train():
                return self._train(question, body, frame)
            case messages.Evaluate():
                return self._evaluate(question, body, frame)
            case messages.CloseJob():
                return self._close(question.job_id)
            case messages.Cosign():
                return self._cosign(question)

    def _refuse(self, refusal: Refusal, question: messages.Question | None) -> bytes:
        log.warning("refused: %s", refusal.code.value)
        try:
            self._record(refusal, question)
        except Exception:  # a full disk must not turn a refusal into silence
            log.exception("a refusal could not be recorded")
        return codec.encode(
            messages.Refused(code=refusal.code, requested=refusal.requested, remaining=refusal.remaining)
        )

    def _record(self, refusal: Refusal, question: messages.Question | None) -> None:
        """What is turned away stands in the ledger with its reason, for the compliance officer.

        Anybody who reaches the vault can have a question turned away, so a day's worth of refusals is bounded;
        the vault's log has the rest. Closing a job that is not known here is no attack: a coordinator asks so
        after a crash.
        """
        if isinstance(question, messages.CloseJob):
            return
        body: dict[str, Any] = {"code": refusal.code.value, "question": question.type if question else None}
        job_id = getattr(question, "job_id", None)
        if isinstance(question, messages.OpenJob):
            signed = question.signed_job
            job_id = signed.job_id
            body |= {"job_hash": signed.job_hash, "epsilon": signed.job.privacy.target_epsilon}
        with self._ledger.exclusive() as transaction:
            if self._refused is None:  # of an earlier process
                self._refused = deque(e.time for e in transaction.entries("refuse"))
            while self._refused and self._refused[0] <= self._now() - timedelta(days=1):
                self._refused.popleft()
            if len(self._refused) < MOST_REFUSALS_A_DAY:
                self._refused.append(transaction.append("refuse", body, job_id=job_id).time)

    # --- opening a job -----------------------------------------------------------------------------------

    def _open(self, signed: SignedJob) -> bytes:
        signed.verify(self._job_keys, self._now())
        if signed.contract_hash != self._contract.hash or signed.job.contract != self._contract.name:
            raise Refusal(RefusalCode.WRONG_CONTRACT)
        self._policy.admit(signed, self._approved())
        self._sums.admit(signed.job)
        labelled = self._contract.label is not None or isinstance(signed.job, AnalysisJob)
        if not self._store.tables().get(self._contract.customers) or not labelled:
            raise Refusal(RefusalCode.NO_DATA)
        if isinstance(signed.job, AnalysisJob):
            self._standing.require(signed.job.as_of)
        plan = Plan.of(signed.job, self._contract)
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
        if reserved.body["job_hash"] != signed.job_hash:
            raise Refusal(RefusalCode.UNKNOWN_JOB)  # another job under an id that is taken
        privacy = signed.job.privacy
        log.info("job %s opened, epsilon %s", signed.job_id, privacy.target_epsilon)
        return codec.encode(
            messages.JobOpened(
                job_id=signed.job_id,
                branch=self.branch,
                planned=reserved.body["planned"],
                epsilon=plan.epsilon(),
                delta=privacy.delta,
                noise_multiplier=plan.noise_multiplier,
                key=self._sums.share(signed.job_id, signed.job, signed.job_hash),
                reaches=self._standing.reaches if plan.stands else None,
                ledger=self._ledger.signed_head(),
            )
        )

    def _opened(self, job_id: str) -> tuple[AnyJob, Plan]:
        if job_id not in self._jobs:
            reserved = self._ledger.entries("reserve", job_id=job_id)
            if not reserved:
                raise Refusal(RefusalCode.UNKNOWN_JOB)
            job = ANY_JOB.validate_python(reserved[0].body["job"])
            self._jobs = {job_id: (job, Plan.of(job, self._contract))}  # a reservation never changes
        return self._jobs[job_id]

    # --- secure sums, and sums with all the noise of one branch ------------------------------------------

    def _roster(self, question: messages.Roster) -> bytes:
        self._opened(question.job_id)
        roster = self._sums.accept(question)
        return codec.encode(
            messages.RosterAccepted(job_id=question.job_id, branch=self.branch, roster=roster)
        )

    def _sum(self, question: messages.Sum, body: Vector | None, frame: bytes) -> bytes:
        job, plan = self._opened(question.job_id)
        if isinstance(job, ChurnNetJob) and job.privacy.mode == "local":
            raise Refusal(RefusalCode.ROUND_OUT_OF_ORDER)  # it is trained by `Train`; its plan knows no sums
        ask = plan.ask(question.round)
        secure = job.privacy.mode == "secure-sum"
        if secure:
            self._sums.check_set(question, job)
        elif question.members or question.roster:
            raise Refusal(RefusalCode.BAD_ROSTER)
        what: messages.What = "share" if secure else "sum"
        again = self.door.answered(
            job_id=question.job_id, round_=question.round, what=what, question=frame, members=question.members
        )
        if again is not None:
            return again.frame  # also when the job is closed, or its keys went with another process
        self._check_order(question.job_id, question.round)
        mask = self._sums.mask(question) if secure else None
        noise = SumNoise(
            ask.noise_multiplier,
            times=plan.times if secure else 1,
            sample_rate=ask.sample_rate,
            members=len(question.members) if secure else 1,
            colluders=job.privacy.colluders if secure else 0,
        )
        mechanism = self._bounded(question, job, ask, body, noise, mask)
        return self.door.release(
            mechanism,
            job_id=question.job_id,
            round_=question.round,
            what=what,
            population=ask.population,
            question=frame,
            times=1 if secure else plan.times,
            members=question.members,
        ).frame

    def _bounded(
        self,
        question: messages.Sum,
        job: AnyJob,
        ask: Ask,
        body: Vector | None,
        noise: SumNoise,
        mask: Mask | None,
    ) -> GaussianSum:
        phantoms = self._phantoms(question.job_id, job)
        if not ask.charged:
            asked = self._contributing.of(
                question.job_id, job, ask, question.round, body, question.bins, phantoms
            )
            return GaussianSum(asked.compute, noise, asked.l2_sensitivity, self._rng, mask)
        if body is not None:
            raise Refusal(RefusalCode.BAD_VECTOR)
        assert isinstance(job, AnalysisJob)
        standing = job.analysis(self._contract)
        assert isinstance(standing, Standing)
        told = self.door.told(question.job_id)
        news = self._standing.news(question.job_id, standing, question.round, told)
        asked = of_news(news, ask, standing.length(question.round), phantoms)
        return StandingSum(
            asked.compute,
            noise,
            asked.l2_sensitivity,
            self._rng,
            mask,
            period=question.round,
            charged=ask.charged,
            told=news.digest,
        )

    def _check_order(self, job_id: str, round_: int) -> None:
        """Never back; the last round may be asked again (the door says of whom)."""
        if round_ < self.door.last_round(job_id):
            raise Refusal(RefusalCode.ROUND_OUT_OF_ORDER)

    def _phantoms(self, job_id: str, job: Job) -> Phantoms:
        """The job's phantom customers. Their coins come from a key of this branch, so that a restarted vault
        has the same ones."""
        seed = hmac.digest(self._keyring.data_key("phantoms"), job_id.encode(), "sha256")
        return Phantoms.draw(job.audit.empty_slots, job.audit.canaries, SecureRandom(seed))

    # --- local training ----------------------------------------------------------------------------------

    def _train(self, question: messages.Train, body: Vector | None, frame: bytes) -> bytes:
        job, plan = self._local(question.job_id)
        phantoms = self._phantoms(question.job_id, job)
        return self._training.train(question, body, frame, job, plan, phantoms).frame

    def _evaluate(self, question: messages.Evaluate, body: Vector | None, frame: bytes) -> bytes:
        job, plan = self._local(question.job_id)
        return self._training.evaluate(question, body, frame, job, plan).frame

    def _count(self, question: messages.Count) -> bytes:
        job, plan = self._local(question.job_id)
        return self._training.size(question.job_id, job, plan).frame

    def _local(self, job_id: str) -> tuple[ChurnNetJob, Plan]:
        """The job, if it is one that each branch trains by itself. Raises Refusal."""
        job, plan = self._opened(job_id)
        if not isinstance(job, ChurnNetJob) or job.privacy.mode != "local":
            raise Refusal(RefusalCode.ROUND_OUT_OF_ORDER)
        return job, plan

    # --- the end of a job --------------------------------------------------------------------------------

    def _cosign(self, question: messages.Cosign) -> bytes:
        """Bear witness that the coordinator's ledger continues what this branch saw of it before."""
        if self._witness is None:
            raise Refusal(RefusalCode.BAD_SIGNATURE)
        line = self._witness.cosign(question.checkpoint, question.old_size, question.proof)
        return codec.encode(
            messages.Cosigned(branch=self.branch, signature=line, ledger=self._ledger.signed_head())
        )

    def _close(self, job_id: str) -> bytes:
        job, _ = self._opened(job_id)
        self.door.close(job_id)
        self._sums.forget(job_id)
        self._standing.forget(job_id)
        spending = self.door.spending()
        return codec.encode(
            messages.JobClosed(
                job_id=job_id,
                branch=self.branch,
                epsilon_spent=spending.spent,
                epsilon_remaining=spending.remaining,
                ledger=self._ledger.signed_head(),
                canaries=self._phantoms(job_id, job).coins_hex(),
            )
        )
