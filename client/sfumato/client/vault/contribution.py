"""What one round of a job asks of this branch's customers: their bounded sum, before any noise.

Phantom customers ride along in slots of their own, through the same clipping, sampling and summing (see
privacy.audit). Nothing is computed before the door calls for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sfumato.client.vault.customers import Customers, WarmData
from sfumato.common import analyses
from sfumato.common.analyses import score_histogram
from sfumato.common.codec import Vector
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells, Contributions
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.fixed_point import GRID
from sfumato.common.job import AnalysisJob, ChurnNetJob
from sfumato.common.learners import churn_net
from sfumato.privacy.clipping import BoundedSum
from sfumato.privacy.dpsgd import GradientSums
from sfumato.privacy.noise import SecureRandom
from sfumato.privacy.phantoms import Phantoms
from sfumato.privacy.plan import MOST_SUMMED, Ask


@dataclass(frozen=True)
class Contribution:
    """The sum to come, and the sensitivity (grid steps) that it will have."""

    compute: Callable[[], BoundedSum]
    l2_sensitivity: int


class Contributing:
    """Turns (job, round, what came along) into a contribution. Raises Refusal(BAD_VECTOR) on a wrong body."""

    def __init__(self, contract: Contract, data: WarmData, rng: SecureRandom) -> None:
        self._contract = contract
        self._data = data
        self._rng = rng
        self._steps: dict[str, tuple[churn_net.ChurnNet, GradientSums]] = {}  # of the latest job

    def of(
        self,
        job_id: str,
        job: ChurnNetJob | AnalysisJob,
        ask: Ask,
        round_: int,
        body: Vector | None,
        phantoms: Phantoms,
    ) -> Contribution:
        if isinstance(job, AnalysisJob):
            return self._of_analysis(job, ask, round_, body, phantoms)
        if ask.what == "step":
            return self._of_gradient(job_id, job, ask, body, phantoms)
        customers = self._data.learners(job.model.bins)
        if ask.what == "size":
            rows = int((~customers.holdout).sum())
            return _exact(
                lambda: Cells(np.zeros((rows, 1), dtype=np.int64), np.ones(1), 1), ask.max_norm, phantoms
            )
        return self._of_evaluation(job, customers, ask, body, phantoms)

    def _of_analysis(
        self, job: AnalysisJob, ask: Ask, round_: int, body: Vector | None, phantoms: Phantoms
    ) -> Contribution:
        analysis = analyses.build(job.kind, job.question, self._contract)
        asked = None if body is None else _floats(body)
        columns = self._data.columns(analysis.columns)

        def contributions() -> Contributions:
            try:
                return analysis.contribute(round_, columns, asked)
            except ValueError:
                raise Refusal(RefusalCode.BAD_VECTOR) from None

        return _exact(contributions, ask.max_norm, phantoms)

    def _of_gradient(
        self, job_id: str, job: ChurnNetJob, ask: Ask, body: Vector | None, phantoms: Phantoms
    ) -> Contribution:
        if job_id not in self._steps:
            net = churn_net.build(self._contract, job.model, job.training.seed)
            encoded, labels = self._data.learners(job.model.bins).training
            if len(encoded) + phantoms.canaries > MOST_SUMMED:
                raise ValueError(
                    f"more than {MOST_SUMMED} customers cannot be summed within the stated slack"
                )
            sums = GradientSums(net, encoded, labels, max_grad_norm=ask.max_norm, phantoms=phantoms)
            self._steps = {job_id: (net, sums)}
        net, sums = self._steps[job_id]
        load_weights(net, body)

        def compute() -> BoundedSum:
            total = sums(sample_rate=ask.sample_rate, rng=self._rng)
            return BoundedSum.of_clipped(total, ask.max_norm, MOST_SUMMED)

        return Contribution(compute, ask.l2_sensitivity(churn_net.size(net) + phantoms.slots))

    def _of_evaluation(
        self, job: ChurnNetJob, customers: Customers, ask: Ask, body: Vector | None, phantoms: Phantoms
    ) -> Contribution:
        net = churn_net.build(self._contract, job.model, job.training.seed)
        load_weights(net, body)

        def contributions() -> Contributions:
            logits = churn_net.logits(net, customers.encoded.take(customers.holdout))
            cells = score_histogram.cells(logits, customers.labels[customers.holdout], job.evaluation.bins)
            return Cells(cells[:, None], np.ones(1), 2 * job.evaluation.bins)

        return _exact(contributions, ask.max_norm, phantoms)


def load_weights(net: churn_net.ChurnNet, body: Vector | None) -> None:
    """Raises Refusal(BAD_VECTOR)."""
    try:
        churn_net.load(net, _floats(body))
    except ValueError:
        raise Refusal(RefusalCode.BAD_VECTOR) from None


def _floats(body: Vector | None) -> churn_net.Weights:
    if body is None or body.dtype != np.float32:
        raise Refusal(RefusalCode.BAD_VECTOR)
    return body.astype(np.float32, copy=False)


def _exact(contributions: Callable[[], Contributions], max_norm: float, phantoms: Phantoms) -> Contribution:
    return Contribution(
        lambda: BoundedSum.of(phantoms.extend(contributions(), max_norm), max_norm), l2_sensitivity=GRID
    )
