"""A job's noise, fixed before its first round: from the signed job and the contract alone.

So a vault and the coordinator compute the same plan, and the vault can hold the job to it: a plan reserves every
round, and as many repeats as the job pays for, and the whole of it costs no customer more than target_epsilon.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

from dp_accounting.dp_event import DpEvent

from sfumato.common.analyses.grouped_scores import GroupedScores
from sfumato.common.analyses.standing import Standing
from sfumato.common.canonical import canonical_bytes
from sfumato.common.contract import Contract
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.fixed_point import GRID
from sfumato.common.job import ANY_JOB, AnalysisJob, AnyJob, ChurnNetJob, LearnerJob, LearningPrivacy
from sfumato.common.learners import catalogue
from sfumato.common.learners.schema import SchemaRound
from sfumato.privacy import accounting
from sfumato.privacy.accounting import Population
from sfumato.privacy.clipping import clipped_sensitivity

# Customers of a branch in one sum of gradients: public, so that the noise tells no size.
MOST_SUMMED = 1 << 21
ROUNDS_A_REPEAT = 20  # of secure sums, where the job does not say how many repeats it pays for


@dataclass(frozen=True, slots=True)
class Ask:
    """One bounded sum of one round: whose, how long a customer's vector may be, and the noise over that length.

    `sample_rate` is the Poisson rate at which each branch takes its customers; 1 takes all. `charged`, of a standing
    question alone, is what each of its periods costs, as noise multipliers.
    """

    what: str
    population: Population
    noise_multiplier: float
    sample_rate: float
    max_norm: float
    charged: tuple[float, ...] = ()

    def l2_sensitivity(self, length: int) -> int:
        """Of a vector of this length, in grid steps. Gradients are summed in floating point, by a public bound on
        how many; all else in whole steps."""
        return clipped_sensitivity(length, MOST_SUMMED) if self.what == "step" else GRID


@dataclass(frozen=True)
class Plan:
    """What a job asks, with which noise, and what that reserves.

    `times` is max_branches_per_customer. Locally a customer pays in each of their branches: `events` count that.
    In a secure sum they add that many vectors to one total: there the noise is `times` as large, the event one.
    The scales are those of a local churn net's discrete Laplace counts, and 0 elsewhere.
    """

    times: int
    rounds: int
    repeats: int
    delta: float
    noise_multiplier: float  # of a training step, or of the analysis' dearest round
    events: Mapping[Population, DpEvent]
    asks: Mapping[str, Ask] = field(default_factory=dict)
    size_scale: float = 0.0
    evaluation_scale: float = 0.0

    @staticmethod
    def of(job: AnyJob, contract: Contract) -> "Plan":
        """The plan of a job. Raises BadInput where its question names what the contract does not declare."""
        return _plan(
            canonical_bytes(job.model_dump(mode="json")), canonical_bytes(contract.model_dump(mode="json"))
        )

    def ask(self, round_: int) -> Ask:
        """What the job asks in this round, from 0. Raises Refusal(ROUND_OUT_OF_ORDER) where it asks nothing."""
        name = f"round-{round_}"
        for first, each in (("size", "step"), ("schema", "sum")):
            if each in self.asks and round_ >= 0:
                names = {0: first, self.rounds + 1: "evaluation"}
                name = names.get(round_, each if round_ <= self.rounds else "")
        if name not in self.asks:
            raise Refusal(RefusalCode.ROUND_OUT_OF_ORDER)
        return self.asks[name]

    @property
    def stands(self) -> bool:
        """Whether the rounds are periods of a standing question."""
        return any(ask.charged for ask in self.asks.values())

    def epsilon(self, population: Population | None = None) -> float:
        """What a customer of this population may lose in all, or whoever may lose most; at the job's delta.

        Raises KeyError for a population of which the plan reserves nothing.
        """
        events = self.events.values() if population is None else [self.events[population]]
        return max(accounting.pld_epsilon([event], self.delta) for event in events)


@lru_cache(maxsize=64)
def _plan(job_bytes: bytes, contract_bytes: bytes) -> Plan:
    job, contract = ANY_JOB.validate_json(job_bytes), Contract.model_validate_json(contract_bytes)
    times = contract.max_branches_per_customer
    if isinstance(job, AnalysisJob):
        return _analysis(job, contract, times)
    if isinstance(job, LearnerJob):
        return _learner(job, contract, times)
    return (
        _secure_training(job, contract, times)
        if job.privacy.mode == "secure-sum"
        else _local_training(job, times)
    )


def _repeats(job: AnyJob, rounds: int) -> int:
    if job.federation.repeats is not None:
        return job.federation.repeats
    return max(1, math.ceil(rounds / ROUNDS_A_REPEAT)) if job.privacy.mode == "secure-sum" else 0


def _local_training(job: ChurnNetJob, times: int) -> Plan:
    """Each branch trains and adds all the noise; epsilon of the pure counts is split by the job's shares."""
    privacy, training = job.privacy, job.training
    repeats = _repeats(job, training.rounds)
    counts = 1 + (repeats > 0)  # a repeat may fall on the size and on the evaluation too
    size_scale = counts * times / (privacy.size_share * privacy.target_epsilon)
    evaluation_scale = times / min(
        privacy.evaluation_share * privacy.target_epsilon, privacy.target_epsilon / counts
    )
    steps = (training.rounds + repeats) * training.local_steps
    sizes = [accounting.discrete_laplace(size_scale)] * counts
    noise_multiplier = accounting.calibrate_noise_multiplier(
        privacy.target_epsilon,
        privacy.delta,
        training.sample_rate,
        steps,
        sizes,
        max_branches_per_customer=times,
    )
    train = accounting.gaussian_training(noise_multiplier, training.sample_rate, steps)
    evaluations = [accounting.discrete_laplace(evaluation_scale)] * counts
    return Plan(
        times=times,
        rounds=training.rounds,
        repeats=repeats,
        delta=privacy.delta,
        noise_multiplier=noise_multiplier,
        events=MappingProxyType(
            {
                "training": accounting.in_every_branch(accounting.compose([train, *sizes]), times),
                "holdout": accounting.in_every_branch(_one_or_more(evaluations), times),
            }
        ),
        size_scale=size_scale,
        evaluation_scale=evaluation_scale,
    )


def _secure_training(job: ChurnNetJob, contract: Contract, times: int) -> Plan:
    """One secure sum a step; `size_share` of the training customers' mu squared pays for their count."""
    privacy, training = job.privacy, job.training
    repeats = _repeats(job, training.rounds)
    counts = 1 + (repeats > 0)
    steps = training.rounds + repeats
    whole = accounting.calibrate_gaussian(privacy.target_epsilon, privacy.delta)
    size = accounting.round_up(whole * math.sqrt(counts / privacy.size_share))
    sizes = [accounting.gaussian(size)] * counts
    sampled = accounting.in_any_branch(training.sample_rate, times)
    step = accounting.calibrate_noise_multiplier(privacy.target_epsilon, privacy.delta, sampled, steps, sizes)
    evaluation = _evaluation(privacy, counts, whole)
    rate, norm = training.sample_rate, training.max_grad_norm
    if training.clipping == "adaptive":
        norm = 1.0  # of gradient over bound and the sign beside it (see privacy.adaptive_clipping)
    grouped = GroupedScores.of(contract, job.evaluation.groups, job.evaluation.bins)
    return Plan(
        times=times,
        rounds=training.rounds,
        repeats=repeats,
        delta=privacy.delta,
        noise_multiplier=step,
        events=MappingProxyType(
            {
                "training": accounting.compose([accounting.gaussian_training(step, sampled, steps), *sizes]),
                "holdout": _one_or_more([accounting.gaussian(evaluation)] * counts),
            }
        ),
        asks=MappingProxyType(
            {
                "size": Ask("size", "training", size, 1.0, 1.0),
                "step": Ask("step", "training", step, rate, norm),
                "evaluation": Ask("evaluation", "holdout", evaluation, 1.0, grouped.max_norm),
            }
        ),
    )


def _learner(job: LearnerJob, contract: Contract, times: int) -> Plan:
    """Gaussians all through: the schema takes its share of mu squared, the learner's sums share the rest alike.
    A schema that is known already takes nothing."""
    privacy = job.privacy
    rounds = catalogue.rounds(job.kind, job.learner)
    repeats = _repeats(job, rounds)
    counts = 1 + (repeats > 0)
    local = times if privacy.mode == "local" else 1
    whole = accounting.calibrate_gaussian(privacy.target_epsilon, privacy.delta)
    binning = job.binning
    first = 0.0 if binning.known is not None else binning.share
    share = (1 - first) / rounds
    parts = local * (counts * first + (rounds + repeats) * share)
    each = accounting.round_up(whole * math.sqrt(parts / share))
    noise = [each] * (rounds + repeats)
    asks = {"sum": Ask("sum", "training", each, 1.0, catalogue.max_norm(job.kind, job.learner))}
    if first:
        schema = accounting.round_up(whole * math.sqrt(parts / first))
        noise += [schema] * counts
        norm = SchemaRound(contract, binning.bins).max_norm(0)
        asks["schema"] = Ask("schema", "training", schema, 1.0, norm)
    evaluation = accounting.round_up(math.sqrt(local) * _evaluation(privacy, counts, whole))
    grouped = GroupedScores.of(contract, job.evaluation.groups, job.evaluation.bins)
    return Plan(
        times=times,
        rounds=rounds,
        repeats=repeats,
        delta=privacy.delta,
        noise_multiplier=each,
        events=MappingProxyType(
            {
                "training": accounting.in_every_branch(
                    accounting.compose([accounting.gaussian(z) for z in noise]), local
                ),
                "holdout": accounting.in_every_branch(
                    _one_or_more([accounting.gaussian(evaluation)] * counts), local
                ),
            }
        ),
        asks=MappingProxyType(
            {**asks, "evaluation": Ask("evaluation", "holdout", evaluation, 1.0, grouped.max_norm)}
        ),
    )


def _evaluation(privacy: LearningPrivacy, counts: int, whole: float) -> float:
    """Each evaluation within its share, and all of them within target_epsilon."""
    alone = accounting.calibrate_gaussian(privacy.evaluation_share * privacy.target_epsilon, privacy.delta)
    return max(alone, accounting.round_up(whole * math.sqrt(counts)))


def _analysis(job: AnalysisJob, contract: Contract, times: int) -> Plan:
    """Gaussians all through: their 1 / z^2 add up, so one calibration is split by the rounds' shares."""
    privacy = job.privacy
    analysis = job.analysis(contract)
    rounds = len(analysis.shares)
    repeats = _repeats(job, rounds)
    local = times if privacy.mode == "local" else 1
    whole = accounting.calibrate_gaussian(privacy.target_epsilon, privacy.delta)
    if isinstance(analysis, Standing):
        noise, charged = _standing(analysis, whole, local, repeats)
    else:
        parts = local * (math.fsum(analysis.shares) + repeats * max(analysis.shares))
        noise = [accounting.round_up(whole * math.sqrt(parts / share)) for share in analysis.shares]
        charged = []
    events = [accounting.gaussian(z) for z in (*(charged or noise), *[min(noise)] * repeats)]
    return Plan(
        times=times,
        rounds=rounds,
        repeats=repeats,
        delta=privacy.delta,
        noise_multiplier=min(noise),
        events=MappingProxyType({"all": accounting.in_every_branch(_one_or_more(events), local)}),
        asks=MappingProxyType(
            {
                f"round-{r}": Ask(f"round-{r}", "all", z, 1.0, analysis.max_norm(r), tuple(charged))
                for r, z in enumerate(noise)
            }
        ),
    )


def _standing(analysis: Standing, whole: float, local: int, repeats: int) -> tuple[list[float], list[float]]:
    """Of each period: the noise over its longest vector, which is what a repeat costs, and over what the period adds
    to the longest path. In the vectors' own unit the noise is the same in all periods."""
    longest = float(analysis.paths.bounds[-1])
    alone = [analysis.max_norm(r) ** 2 / longest for r in range(len(analysis.shares))]
    path = accounting.round_up(whole * math.sqrt(local * (1 + repeats * max(alone))))
    return [path / math.sqrt(a) for a in alone], [path / math.sqrt(s) for s in analysis.shares]


def _one_or_more(events: list[DpEvent]) -> DpEvent:
    return events[0] if len(events) == 1 else accounting.compose(events)
