"""A learner's rounds: the schema, the learner's own sums, and how good the model is on customers held out."""

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.grouped_scores import GroupedScores
from sfumato.common.job import LearnerJob
from sfumato.common.learners import catalogue
from sfumato.common.learners.schema import SchemaRound
from sfumato.server.rounds import Rounds
from sfumato.server.training import Trained


def learn(rounds: Rounds, job: LearnerJob) -> Trained:
    """Raises JobFailed; BadInput where the schema leaves the learner nothing to learn from."""
    contract = rounds.signed.contract
    schema = job.binning.known
    if schema is None:
        asked = SchemaRound(contract, job.binning.bins)
        schema = asked.schema(rounds.total(0, asked.length(0)))
    bins = None if job.binning.known else schema  # what stands in the job need not travel again
    learner = catalogue.build(job.kind, job.learner, schema, contract)
    number = catalogue.rounds(job.kind, job.learner)
    totals: list[NoisySum] = []
    for r in range(number):
        totals.append(rounds.total(1 + r, learner.length(r), learner.ask(r, totals), bins=bins))
        rounds.report_progress("round", 1 + r, number)
    grouped = GroupedScores.of(contract, job.evaluation.groups, job.evaluation.bins)
    scores = rounds.total(number + 1, grouped.length, learner.finished(totals), bins=bins)
    tensors, parameters = learner.saved(totals)
    return Trained(
        tensors=tensors,
        parameters=parameters,
        schema=schema,
        histogram=grouped.whole(scores),
        noise_variance=scores.std**2,
        customers=schema.customers,
        fairness=grouped.read(scores),
    )
