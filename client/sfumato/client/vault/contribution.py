"""What one round of a job asks of this branch's customers: their bounded sum, before any noise.

Phantom customers ride along in slots of their own, through the same clipping, sampling and summing (see
privacy.audit). Nothing is computed before the door calls for it.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sfumato.client.vault.customers import WarmData
from sfumato.client.vault.standing import News
from sfumato.common.analyses.grouped_scores import GroupedScores
from sfumato.common.codec import Vector
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells, Contributions
from sfumato.common.errors import BadInput, Refusal, RefusalCode
from sfumato.common.fixed_point import GRID
from sfumato.common.job import AnalysisJob, AnyJob, ChurnNetJob, Evaluation, LearnerJob
from sfumato.common.learners import catalogue, churn_net
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.schema import SchemaRound
from sfumato.privacy.adaptive_clipping import AdaptiveBound
from sfumato.privacy.clipping import BoundedSum
from sfumato.privacy.noise import SecureRandom
from sfumato.privacy.phantoms import Phantoms
from sfumato.privacy.plan import MOST_SUMMED, Ask

if TYPE_CHECKING:
    from sfumato.privacy.dpsgd import GradientSums

PART_NUMBERS = 1 << 22  # of customers' vectors that lie in memory at once


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
        job: AnyJob,
        ask: Ask,
        round_: int,
        body: Vector | None,
        bins: Schema | None,
        phantoms: Phantoms,
    ) -> Contribution:
        if isinstance(job, AnalysisJob):
            return self._of_analysis(job, ask, round_, body, phantoms)
        if isinstance(job, LearnerJob):
            return self._of_learner(job, ask, round_, body, bins, phantoms)
        if ask.what == "step":
            return self._of_gradient(job_id, job, ask, body, phantoms)
        customers = self._data.learners(job.model)
        if ask.what == "size":
            rows = int((~customers.holdout).sum())
            return _exact(
                lambda: [Cells(np.zeros((rows, 1), dtype=np.int64), np.ones(1), 1)], ask.max_norm, phantoms
            )
        net = churn_net.build(self._contract, job.model, job.training.seed)
        load_weights(net, body)
        held_out = customers.encoded.take(customers.holdout)
        labels = customers.labels[customers.holdout]
        return self._of_evaluation(
            job.evaluation,
            ask,
            phantoms,
            customers.holdout,
            lambda: (churn_net.logits(net, held_out), labels),
        )

    def _of_analysis(
        self, job: AnalysisJob, ask: Ask, round_: int, body: Vector | None, phantoms: Phantoms
    ) -> Contribution:
        analysis = job.analysis(self._contract)
        asked = None if body is None else _floats(body)
        columns = self._data.columns(analysis.columns, job.as_of)
        nobody = {name: values.slice(0, 0) for name, values in columns.items()}
        _refusing(lambda: analysis.contribute(round_, nobody, asked))
        rows = len(next(iter(columns.values())))

        def parts() -> Iterator[Contributions]:
            for part in _parts(rows, analysis.length(round_)):
                some = {name: values[part] for name, values in columns.items()}
                yield analysis.contribute(round_, some, asked)

        return _exact(parts, ask.max_norm, phantoms)

    def _of_gradient(
        self, job_id: str, job: ChurnNetJob, ask: Ask, body: Vector | None, phantoms: Phantoms
    ) -> Contribution:
        from sfumato.privacy.dpsgd import GradientSums  # opacus doubles the time in which a vault comes up

        if job_id not in self._steps:
            net = churn_net.build(self._contract, job.model, job.training.seed)
            encoded, labels = self._data.learners(job.model).training
            if len(encoded) + phantoms.canaries > MOST_SUMMED:
                raise ValueError(
                    f"more than {MOST_SUMMED} customers cannot be summed within the stated slack"
                )
            sums = GradientSums(net, encoded, labels, max_grad_norm=ask.max_norm, phantoms=phantoms)
            self._steps = {job_id: (net, sums)}
        net, sums = self._steps[job_id]
        adaptive = None
        if job.training.clipping == "adaptive":
            body, adaptive = _bounded(body, job.training.clipping_share)
        load_weights(net, body)

        def compute() -> BoundedSum:
            total = sums(sample_rate=ask.sample_rate, rng=self._rng, adaptive=adaptive)
            return BoundedSum.of_clipped(total, ask.max_norm, MOST_SUMMED)

        length = churn_net.size(net) + (adaptive is not None)
        return Contribution(compute, ask.l2_sensitivity(length + phantoms.slots))

    def _of_learner(
        self,
        job: LearnerJob,
        ask: Ask,
        round_: int,
        body: Vector | None,
        bins: Schema | None,
        phantoms: Phantoms,
    ) -> Contribution:
        """The schema's cells, or what the learner asks of the customers in them; a part of them at a time."""
        data = self._data
        if ask.what == "schema":
            asked = SchemaRound(self._contract, job.binning.bins)
            columns = data.columns(asked.columns)
            return _exact(
                lambda: [_some(asked.contribute(0, columns, None), ~data.holdout)], ask.max_norm, phantoms
            )
        schema = job.binning.known or bins
        if schema is None:
            raise Refusal(RefusalCode.BAD_VECTOR)
        try:
            learner = catalogue.build(job.kind, job.learner, schema, self._contract)
            customers = data.coded(schema)
        except BadInput:
            raise Refusal(RefusalCode.BAD_VECTOR) from None
        model, nobody = _floats(body), customers[:0]
        if ask.what == "evaluation":
            rows = data.holdout & (customers.labels >= 0)
            held_out = customers[rows]
            _refusing(lambda: learner.logits(nobody.codes, model))
            return self._of_evaluation(
                job.evaluation,
                ask,
                phantoms,
                rows,
                lambda: (learner.logits(held_out.codes, model), held_out.labels),
            )
        _refusing(lambda: learner.contribute(round_ - 1, nobody, model))
        training = customers[~data.holdout]

        def parts() -> Iterator[Contributions]:
            for part in _parts(len(training), learner.length(round_ - 1)):
                yield learner.contribute(round_ - 1, training[part], model)

        return _exact(parts, ask.max_norm, phantoms)

    def _of_evaluation(
        self,
        evaluation: Evaluation,
        ask: Ask,
        phantoms: Phantoms,
        rows: npt.NDArray[np.bool_],
        scored: Callable[[], tuple[npt.NDArray[np.float64], npt.NDArray[np.generic]]],
    ) -> Contribution:
        """The scores and labels of these rows, the held-out customers', by group."""
        grouped = GroupedScores.of(self._contract, evaluation.groups, evaluation.bins)
        columns: dict[str, Any] = {}
        if grouped.columns:
            found = self._data.columns(grouped.columns)
            columns = {name: found[name].filter(pa.array(rows)) for name in grouped.columns}

        return _exact(lambda: [grouped.contribute(*scored(), columns)], ask.max_norm, phantoms)


def of_news(news: News, ask: Ask, length: int, phantoms: Phantoms) -> Contribution:
    """What is new in a period of a standing question."""
    return _exact(lambda: map(news.part, _parts(news.customers, length)), ask.max_norm, phantoms)


def _parts(rows: int, length: int) -> Iterator[slice]:
    """Rows whose vectors of this length fit into memory together; one empty part of no rows."""
    step = max(PART_NUMBERS // max(1, length), 256)
    return (slice(start, start + step) for start in range(0, max(rows, 1), step))


def _refusing(form: Callable[[], object]) -> None:
    """What came along, tried on nobody before the door charges for it."""
    try:
        form()
    except ValueError:
        raise Refusal(RefusalCode.BAD_VECTOR) from None


def _some(cells: Cells, rows: npt.NDArray[np.bool_]) -> Cells:
    return Cells(cells.cells[rows], cells.weights, cells.length)


def load_weights(net: churn_net.ChurnNet, body: Vector | None) -> None:
    """Raises Refusal(BAD_VECTOR)."""
    try:
        churn_net.load(net, _floats(body))
    except ValueError:
        raise Refusal(RefusalCode.BAD_VECTOR) from None


def _bounded(body: Vector | None, share: float) -> tuple[Vector, AdaptiveBound]:
    """Weights, and the bound that came behind them. Raises Refusal(BAD_VECTOR)."""
    values = _floats(body)
    try:
        return values[:-1], AdaptiveBound(float(values[-1]), share)
    except (ValueError, IndexError):
        raise Refusal(RefusalCode.BAD_VECTOR) from None


def _floats(body: Vector | None) -> churn_net.Weights:
    if body is None or body.dtype != np.float32:
        raise Refusal(RefusalCode.BAD_VECTOR)
    return body.astype(np.float32, copy=False)


def _exact(parts: Callable[[], Iterable[Contributions]], max_norm: float, phantoms: Phantoms) -> Contribution:
    """The sum over customers who come a part at a time; the phantoms ride with the first."""

    def compute() -> BoundedSum:
        riders = chain([phantoms], repeat(phantoms.slots_alone()))
        return BoundedSum.of_parts(
            (p.extend(part, max_norm) for p, part in zip(riders, parts(), strict=False)), max_norm
        )

    return Contribution(compute, l2_sensitivity=GRID)
