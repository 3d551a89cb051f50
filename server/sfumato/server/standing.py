"""Standing questions at the coordinator: which periods can be asked now, and how long a job is valid."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta

from sfumato.common.analyses.standing import Standing
from sfumato.common.contract import Contract
from sfumato.common.job import AnalysisJob, AnyJob
from sfumato.server.conversation import JobFailed
from sfumato.server.rounds import Rounds

USUAL = timedelta(hours=24)
PATIENCE = timedelta(days=92)  # after the last period: data may be late, and somebody must ask


def due(rounds: Rounds, days: Sequence[date]) -> int:
    """How many periods can be told: those whose day the data reach at every branch that opened the job, and those
    that were told before. Raises JobFailed if there is none."""
    reached = [b.reaches for b in rounds.branches.values() if b.reaches is not None]
    over = sum(day <= min(reached) for day in days) if reached else 0
    told = max(over, rounds.done_before)
    if told == 0:
        raise JobFailed(
            f"the data do not reach {days[0]} at {', '.join(behind(rounds, days[0])) or 'any branch'}",
            hint="Their operators load them and say so (sfumato branch reach). Then go on (sfumato job resume).",
        )
    return told


def behind(rounds: Rounds, day: date) -> list[str]:
    """Branches whose data do not reach this day."""
    return sorted(b.name for b in rounds.branches.values() if b.reaches is not None and b.reaches < day)


def valid_for(job: AnyJob, contract: Contract) -> timedelta:
    """How long a job's signature holds unless somebody says otherwise: a day; of a standing question until three
    months after its last period. Raises BadInput on a question that does not fit the contract."""
    if isinstance(job, AnalysisJob):
        analysis = job.analysis(contract)
        if isinstance(analysis, Standing):
            last = datetime.combine(analysis.days[-1], time(), UTC)
            return max(last - datetime.now(UTC), timedelta(0)) + PATIENCE
    return USUAL
