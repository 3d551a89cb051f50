"""A churn net that each branch trains by itself: its size, DP-SGD from the weights that came, its evaluation."""

import numpy as np
import numpy.typing as npt

from sfumato.client.vault.contribution import load_weights
from sfumato.client.vault.customers import WarmData
from sfumato.common import messages
from sfumato.common.analyses import score_histogram
from sfumato.common.codec import Vector
from sfumato.common.contract import Contract
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.job import ChurnNetJob
from sfumato.common.learners import churn_net
from sfumato.privacy.door import Door, Released
from sfumato.privacy.ledger import Ledger
from sfumato.privacy.mechanisms import DiscreteLaplaceHistogram, DpSgdTraining, OneCellCounts
from sfumato.privacy.noise import SecureRandom
from sfumato.privacy.phantoms import Phantoms
from sfumato.privacy.plan import Plan


class LocalTraining:
    """Questions of jobs in mode local. Raises Refusal: a round out of order, a wrong body, what the door refuses."""

    def __init__(
        self, contract: Contract, data: WarmData, door: Door, ledger: Ledger, rng: SecureRandom
    ) -> None:
        self._contract = contract
        self._data = data
        self._door = door
        self._ledger = ledger
        self._rng = rng

    def train(
        self,
        question: messages.Train,
        body: Vector | None,
        frame: bytes,
        job: ChurnNetJob,
        plan: Plan,
        phantoms: Phantoms,
    ) -> Released:
        from sfumato.privacy import dpsgd  # opacus doubles the time in which a vault comes up

        self._check_round(question.job_id, question.round, job.training.rounds)
        net = churn_net.build(self._contract, job.model, job.training.seed)
        load_weights(net, body)
        size = max(1, int(self.size(question.job_id, job, plan).vector[0]))
        encoded, labels = self._data.learners(job.model).training

        def train() -> npt.NDArray[np.float32]:
            state = dpsgd.train(
                net,
                encoded,
                labels,
                steps=job.training.local_steps,
                sample_rate=job.training.sample_rate,
                noise_multiplier=plan.noise_multiplier,
                max_grad_norm=job.training.max_grad_norm,
                learning_rate=job.training.learning_rate,
                optimizer=job.training.optimizer,
                proximal_mu=job.training.proximal_mu if job.training.strategy == "fedprox" else 0.0,
                expected_batch_size=max(1.0, job.training.sample_rate * size),
                rng=self._rng,
                phantoms=phantoms,
            )
            return np.concatenate([churn_net.flatten(net), state.phantoms.astype(np.float32)])

        mechanism = DpSgdTraining(
            plan.noise_multiplier, job.training.sample_rate, job.training.local_steps, train
        )
        return self._door.release(
            mechanism,
            job_id=question.job_id,
            round_=question.round,
            what="weights",
            population="training",
            question=frame,
            times=plan.times,
        )

    def evaluate(
        self, question: messages.Evaluate, body: Vector | None, frame: bytes, job: ChurnNetJob, plan: Plan
    ) -> Released:
        """The score-by-label histogram of the held-out customers."""
        if question.round != job.training.rounds:  # the plan pays for one evaluation, of the final weights
            raise Refusal(RefusalCode.ROUND_OUT_OF_ORDER)
        net = churn_net.build(self._contract, job.model, job.training.seed)
        load_weights(net, body)
        customers = self._data.learners(job.model)
        logits = churn_net.logits(net, customers.encoded.take(customers.holdout))
        cells = score_histogram.cells(logits, customers.labels[customers.holdout], job.evaluation.bins)
        mechanism = DiscreteLaplaceHistogram(
            OneCellCounts.of(cells, 2 * job.evaluation.bins), plan.evaluation_scale, self._rng
        )
        return self._door.release(
            mechanism,
            job_id=question.job_id,
            round_=question.round,
            what="score-histogram",
            population="holdout",
            question=frame,
            times=plan.times,
        )

    def size(self, job_id: str, job: ChurnNetJob, plan: Plan) -> Released:
        """The noisy number of training customers: charged once a job, it scales the mean and weighs FedAvg."""
        customers = self._data.learners(job.model)
        counts = OneCellCounts.of(np.zeros(int((~customers.holdout).sum()), dtype=np.int64), 1)
        mechanism = DiscreteLaplaceHistogram(counts, plan.size_scale, self._rng)
        return self._door.release(
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
        charges = self._ledger.entries("charge", job_id=job_id)
        done = max((e.body["round"] for e in charges if e.body["what"] == "weights"), default=0)
        if not done <= round_ <= rounds:
            raise Refusal(RefusalCode.ROUND_OUT_OF_ORDER)
