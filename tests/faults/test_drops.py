"""Branches die at any moment of a secure sum: a right total over the rest, or a clear refusal; each try paid once."""

import random
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from sfumato.common import codec, messages
from sfumato.common.analyses import catalogue
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.errors import RefusalCode
from sfumato.common.job import sign_job
from sfumato.lab.in_process import Answerer, InProcessExchange
from sfumato.server.conversation import JobFailed
from sfumato.server.job_run import JobOutcome, JobRun
from sfumato.server.rounds import Rounds

pytestmark = pytest.mark.slow

BRANCHES = 6
TRIALS = 100


@pytest.fixture(scope="module")
def village(make_village: Callable[[int], Any]) -> Any:
    return make_village(BRANCHES)


class Mortal:
    """A branch that dies for good at its `life`-th question: before it hears it, or once it has answered and
    paid, so that nobody hears the answer."""

    def __init__(self, answer: Answerer, life: int, *, after_answering: bool) -> None:
        self._answer, self._life, self._after = answer, life, after_answering

    def __call__(self, frame: bytes) -> bytes | None:
        self._life -= 1
        if self._life > 0:
            return self._answer(frame)
        if self._life == 0 and self._after:
            self._answer(frame)
        return None


def run(
    village: Any, branches: dict[int, Answerer], *, repeats: int, epsilon: float = 0.5
) -> tuple[str, JobOutcome | JobFailed, list[dict[str, Any]], dict[int, tuple[NoisySum, set[str]]]]:
    """One job. Also the total that was read, and over whom."""
    signed = sign_job(
        village.job(epsilon=epsilon, repeats=repeats),
        village.contract,
        village.key,
        valid_for=timedelta(hours=1),
    )
    events: list[dict[str, Any]] = []
    job = JobRun(Rounds(InProcessExchange(branches), signed, events.append))
    totals: dict[int, tuple[NoisySum, set[str]]] = {}
    ask = job.rounds.total

    def total(round_: int, length: int, body: Any = None) -> NoisySum:
        found = ask(round_, length, body)
        totals[round_] = (found, set(job.rounds.slots[-1].members))
        return found

    job.rounds.total = total  # type: ignore[method-assign]
    try:
        return signed.job_id, job.run(), events, totals
    except JobFailed as e:
        return signed.job_id, e, events, totals


def truth(village: Any, names: set[str]) -> np.ndarray:
    """The plain sum over these branches' customers, by the analysis' own contribution and nothing else."""
    columns = {c: [x[c] for x in village.customers if x["place"] in names] for c in ("product", "age")}
    job = village.job()
    analysis = catalogue.build(job.kind, job.question, village.contract)
    given = analysis.contribute(0, {c: columns[c] for c in analysis.columns}, None)
    total = np.zeros(analysis.length(0))
    for j, weight in enumerate(given.weights):
        cells = given.cells[:, j]
        np.add.at(total, cells[cells >= 0], weight)
    return total


def charges(village: Any, job_id: str) -> dict[int, list[list[str]]]:
    """The sets that each branch was charged for, in order."""
    return {
        n: [e.body["members"] for e in village.ledger(n).entries("charge", job_id=job_id)]
        for n in village.vaults
    }


def test_any_branches_may_die_at_any_moment(village: Any) -> None:
    """100 seeded trials, 1 to N-3 deaths each. The totals are compared within 6.5 standard deviations: over the
    some 7,000 numbers a false alarm has a chance below 1e-6."""
    outcomes: Counter[str] = Counter()
    for seed in range(TRIALS):
        rng = random.Random(seed)
        branches: dict[int, Answerer] = {n: v.answer for n, v in village.vaults.items()}
        dying = rng.sample(sorted(branches), rng.randint(1, BRANCHES - 3))
        for n in dying:
            # Questions of a life: open, roster, the sum and its repeats, close.
            branches[n] = Mortal(branches[n], rng.randint(1, 5), after_answering=rng.random() < 0.5)
        repeats = rng.choice([0, 1, 6])
        job_id, outcome, events, totals = run(village, branches, repeats=repeats)
        paid = charges(village, job_id)
        asked_again = sum(e["event"] == "repeat" for e in events)
        if isinstance(outcome, JobFailed):
            outcomes["refused"] += 1
            assert asked_again > repeats and "no repeat left" in str(outcome), (seed, outcome)
        else:
            outcomes["total"] += 1
            found, names = totals[0]
            assert names >= {village.names[n] for n in village.vaults if n not in dying}, seed
            assert np.abs(found.values - truth(village, names)).max() < 6.5 * found.std, seed
        for n, sets in paid.items():
            assert len({tuple(s) for s in sets}) == len(sets), (seed, n)  # each attempt charged once
            assert all(set(b) < set(a) for a, b in pairwise(sets)), (seed, n)
            assert len(sets) <= 1 + asked_again
    assert min(outcomes["total"], outcomes["refused"]) >= 10, outcomes
    for n in village.vaults:
        village.ledger(n).verify()


def test_below_the_smallest_set_the_job_ends_with_a_reason(village: Any) -> None:
    branches: dict[int, Answerer] = {n: v.answer for n, v in village.vaults.items()}
    for n in sorted(branches)[: BRANCHES - 2]:
        branches[n] = Mortal(branches[n], 3, after_answering=False)
    _, outcome, _, totals = run(village, branches, repeats=6)
    assert isinstance(outcome, JobFailed) and "only 2 of at least 3 branches" in str(outcome)
    assert not totals


def test_a_vault_that_restarts_comes_back_with_a_new_key(village: Any) -> None:
    """The round at hand goes on without it. For the next it opens the job again, and all accept a roster with its
    new key, whose masks are other masks. One that dropped for good meanwhile is not asked again."""
    node, gone = 3, 5
    restarted: list[bool] = []
    branches: dict[int, Answerer] = {n: v.answer for n, v in village.vaults.items()}

    def forgetful(frame: bytes) -> bytes:
        question, _ = codec.decode(frame, "question")
        if isinstance(question, messages.Sum) and question.round == 1 and not restarted:
            village.restart(node)
            restarted.append(True)
            refusal = messages.Refused(code=RefusalCode.VAULT_UNREACHABLE)
            return codec.encode(refusal)  # what a courier says meanwhile
        return village.vaults[node].answer(frame)

    branches[node] = forgetful
    branches[gone] = Mortal(
        branches[gone], 4, after_answering=False
    )  # open, roster, size; not the first step
    signed = sign_job(village.net(), village.contract, village.key, valid_for=timedelta(hours=1))
    events: list[dict[str, Any]] = []
    job = JobRun(Rounds(InProcessExchange(branches), signed, events.append))
    assert isinstance(job.run(), JobOutcome)
    sets = {slots.round: set(slots.members) for slots in job.rounds.slots}
    everyone, lost = set(village.names.values()), {village.names[node], village.names[gone]}
    assert sets[0] == everyone and sets[1] == everyone - lost
    assert sets[2] == sets[3] == sets[4] == everyone - {village.names[gone]}
    assert [set(e["without"]) for e in events if e["event"] == "repeat"] == [lost]
