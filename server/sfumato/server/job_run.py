"""One job, from its opening to its outcome: whatever its kind, the same frame around its rounds."""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from sfumato.common.analyses import score_histogram
from sfumato.common.analyses.analysis import Analysis, NoisySum, SavesModel
from sfumato.common.analyses.standing import Standing
from sfumato.common.errors import BadInput, SfumatoError
from sfumato.common.job import AnalysisJob, AnyJob, ChurnNetJob, LearnerJob
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.encoding import inputs_hash
from sfumato.common.learners.models import ModelHeader, ModelKind, SavedModel, Tensors
from sfumato.privacy import audit
from sfumato.privacy.phantoms import Phantoms
from sfumato.server.conversation import JobFailed, Weights
from sfumato.server.learning import learn
from sfumato.server.rounds import Rounds
from sfumato.server.standing import behind, due
from sfumato.server.training import Trained, train


@dataclass(frozen=True)
class JobOutcome:
    """A finished job: what it gave (a model with its noisy evaluation, or an analysis' answer), what the audit of
    its phantom slots saw, and a summary with the record of each branch."""

    summary: dict[str, Any]
    model: SavedModel | None = None
    histogram: npt.NDArray[np.float64] | None = None
    metrics: score_histogram.ScoreMetrics | None = None
    answer: dict[str, Any] | None = None
    evidence: tuple[audit.SumEvidence, ...] = field(default=(), repr=False)

    @property
    def weights(self) -> Weights | None:
        """Of a churn net, float32 [W]."""
        found = self.model.tensors.get("weights") if self.model else None
        return None if found is None else found.astype(np.float32, copy=False)


class ClaimContradicted(JobFailed):
    """The running code did not do what its epsilon says: what came out is not published."""

    final = True

    def __init__(self, evidence: tuple[audit.SumEvidence, ...], verdict: audit.Verdict) -> None:
        worst = "; ".join(
            f"{f.what}: {f.quantity} is {f.measured:.3g}, claimed {f.claimed:.3g}"
            for f in verdict.findings
            if f.outcome == "contradicted"
        )
        super().__init__(
            f"the audit contradicts the claim, and nothing is published ({worst})",
            hint="See `sfumato audit privacy`; look for a branch whose release differs.",
        )
        self.evidence = evidence


class JobRun:
    """One signed job, by its rounds."""

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds

    def run(self) -> JobOutcome:
        """Raises JobFailed with the reason; reservations at the branches are released either way, unless a later run
        can go on where this one was cut short, or where a standing question waits for its next period."""
        started, stays_open = time.monotonic(), False
        rounds, job = self.rounds, self.rounds.job
        try:
            rounds.open()
            match job:
                case ChurnNetJob():
                    trained = train(rounds, job)
                case LearnerJob():
                    trained = learn(rounds, job)
                case AnalysisJob():
                    analysis, totals = _ask(rounds, job)
                    stays_open = len(totals) < len(analysis.shares)
        except BaseException as e:
            stays_open = rounds.can_be_resumed(e)
            raise
        finally:
            if not stays_open:
                with contextlib.suppress(SfumatoError):  # what it was that ended the job matters more
                    rounds.close()
        evidence = self._evidence()
        verdict = audit.assess(evidence)
        if verdict.contradicted:
            if stays_open:
                with contextlib.suppress(SfumatoError):
                    rounds.close()
            raise ClaimContradicted(evidence, verdict)
        summary = self._summary(time.monotonic() - started) | {"audit": verdict.outcome}
        if not isinstance(job, AnalysisJob):
            return self._of_model(trained, job, summary, evidence)
        if isinstance(analysis, Standing) and stays_open:
            day = analysis.days[len(totals)]
            summary |= {"waits_for": day.isoformat(), "behind": behind(rounds, day)}
        model = None
        if isinstance(analysis, SavesModel):
            tensors, parameters = analysis.saved(totals)
            model = self._saved(job, tensors, parameters)
        return JobOutcome(
            summary | {"rounds": len(totals)}, model=model, answer=analysis.read(totals), evidence=evidence
        )

    def per_branch(self) -> list[dict[str, Any]]:
        """What is known of each branch that opened the job, with the last head of its ledger; by name."""
        return sorted((b.as_dict() for b in self.rounds.branches.values()), key=lambda b: str(b["name"]))

    def _evidence(self) -> tuple[audit.SumEvidence, ...]:
        slots = self.rounds.job.audit
        told: dict[str, npt.NDArray[np.bool_]] = {}
        for branch in self.rounds.branches.values():
            with contextlib.suppress(BadInput):  # it is gone, or told something else
                phantoms = Phantoms.from_hex(slots.empty_slots, slots.canaries, branch.canaries)
                told[branch.name] = phantoms.coins
        if slots.empty_slots + slots.canaries == 0:
            return ()
        return tuple(s.evidence(slots.empty_slots, told) for s in self.rounds.slots)

    def _of_model(
        self,
        trained: Trained,
        job: ChurnNetJob | LearnerJob,
        summary: dict[str, Any],
        evidence: tuple[audit.SumEvidence, ...],
    ) -> JobOutcome:
        metrics = score_histogram.read(trained.histogram, trained.noise_variance)
        customers = trained.customers / (1 - self.rounds.signed.contract.holdout_fraction)
        summary |= {
            "auc": metrics.auc.value,
            "auc_low": metrics.auc.low,
            "auc_high": metrics.auc.high,
            "metrics": asdict(metrics),
            "fairness": dict(trained.fairness),
            "customers": max(0, round(customers)),
            "rounds": self.rounds.plan.rounds,
            "noise_variance": trained.noise_variance,
        }
        return JobOutcome(
            summary,
            model=self._saved(job, trained.tensors, trained.parameters, trained.schema),
            histogram=trained.histogram,
            metrics=metrics,
            evidence=evidence,
        )

    def _saved(
        self,
        job: AnyJob,
        tensors: Tensors,
        parameters: Mapping[str, Any],
        schema: Schema | None = None,
    ) -> SavedModel:
        signed = self.rounds.signed
        label = None if isinstance(job, AnalysisJob) else signed.contract.label
        header = ModelHeader(
            kind=TypeAdapter(ModelKind).validate_python(job.kind),
            name=job.name,
            purpose=job.purpose,
            job_id=signed.job_id,
            job_hash=signed.job_hash,
            contract=signed.contract_hash,
            contract_name=signed.contract.name,
            inputs=inputs_hash(signed.contract),
            label=label.name if label else None,
            epsilon=max(b.epsilon for b in self.rounds.branches.values()),
            delta=job.privacy.delta,
            made=datetime.now(UTC).replace(microsecond=0),
            schema_=schema,
            parameters=dict(parameters),
        )
        return SavedModel(header, tensors)

    def _summary(self, seconds: float) -> dict[str, Any]:
        rounds, job = self.rounds, self.rounds.job
        return {
            "job": job.name,
            "job_id": rounds.signed.job_id,
            "kind": job.kind,
            "purpose": job.purpose,
            "mode": job.privacy.mode,
            "colluders": job.privacy.colluders if job.privacy.mode == "secure-sum" else None,
            "epsilon": max(b.epsilon for b in rounds.branches.values()),
            "delta": job.privacy.delta,
            "as_of": _day(rounds),
            "branches": len(rounds.branches),
            "sums": rounds.sums,
            "seconds": seconds,
            "per_branch": self.per_branch(),
            "refused": rounds.refused,
        }


def _day(rounds: Rounds) -> str | None:
    """The day as of which was asked; of a question that stands, of its first."""
    asked = rounds.job.as_of if isinstance(rounds.job, AnalysisJob) else None
    day = asked or rounds.signed.contract.as_of
    return day.isoformat() if day else None


def _ask(rounds: Rounds, job: AnalysisJob) -> tuple[Analysis, list[NoisySum]]:
    analysis = job.analysis(rounds.signed.contract)
    totals: list[NoisySum] = []
    asked = due(rounds, analysis.days) if isinstance(analysis, Standing) else len(analysis.shares)
    for round_ in range(asked):
        totals.append(rounds.total(round_, analysis.length(round_), analysis.ask(round_, totals)))
        rounds.report_progress("sum", round_ + 1, len(analysis.shares))
    return analysis, totals
