"""The door: the only way out of a vault.

A mechanism goes in, a `Released` with its cost comes out. In between, in this order: the budget is asked, the
charge is written to the ledger and synced to disk, the mechanism runs, the answer is stored. A crash after the
charge wastes budget and hides nothing. A repeated question gets the stored bytes: no second draw of noise, no
second charge.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn, final

from dp_accounting.dp_event import DpEvent

from sfumato.common import codec
from sfumato.common.codec import Vector
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.messages import Cost, ReleasedAnswer, What
from sfumato.privacy import accounting, secure_sum
from sfumato.privacy.accounting import POPULATIONS, Population
from sfumato.privacy.ledger import Entry, Ledger, Transaction
from sfumato.privacy.mechanisms import Mechanism, StandingSum
from sfumato.privacy.running_totals import Curves, OpenJob, Standing, of, planned_curves

_SEAL = object()


@final
@dataclass(frozen=True, slots=True)
class Released:
    """A vector that may leave, with what it cost. Only the door makes one; it cannot be copied or pickled.

    `frame` is the encoded answer: exactly these bytes are stored, sent, and sent again if asked again.
    """

    vector: Vector
    frame: bytes
    seal: InitVar[object] = None

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("a Released comes out of the door only")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Released cannot be pickled or copied")


@dataclass(frozen=True, slots=True)
class Spending:
    """Where a branch's budget stands, for the customers who lost most.

    Epsilons of the Rényi filter at `delta`; `reported` is the PLD figure of the recorded charges.
    """

    budget: float
    delta: float
    spent: float
    reserved: float
    # Of each population: its events, encoded, and how often each was charged.
    charges: tuple[Mapping[bytes, int], ...] = field(repr=False)

    @property
    def reported(self) -> float:
        """Slow (some hundredths of a second), so only where somebody reads it."""
        return max(
            accounting.pld_epsilon(accounting.repeated(events), self.delta) if events else 0.0
            for events in self.charges
        )

    @property
    def remaining(self) -> float:
        return max(0.0, self.budget - self.reserved)


class Door:
    """One door a ledger. The budget stands in the ledger's entry 0, nowhere else.

    A customer is trained on or held out for good, by a keyed hash of nothing but their own token. So what is
    asked of one population costs the other nothing (parallel composition, McSherry 2009): each has its own
    account under the same budget, and what a customer lost is at most the larger of the two.
    """

    def __init__(self, ledger: Ledger, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._ledger = ledger
        self._now = now
        self._standing = Standing()
        genesis = ledger.genesis
        self.budget = float(genesis["budget_epsilon"])
        self.delta = float(genesis["budget_delta"])

    # --- admission ---------------------------------------------------------------------------------------

    def reserve(
        self,
        job_id: str,
        planned: Mapping[Population, DpEvent],
        *,
        expires_at: datetime,
        details: dict[str, Any],
    ) -> Entry:
        """Set aside a whole job's cost before its first release. Raises Refusal(OVER_BUDGET).

        A job that is reserved already gets the same entry again: asking twice costs once.
        """
        with self._ledger.exclusive() as transaction:
            known = transaction.entries("reserve", job_id=job_id)
            if known:
                return known[0]
            body = {
                "planned": {p: accounting.encode_event(e) for p, e in planned.items()},
                "expires_at": expires_at.isoformat(),
                **details,
            }
            self._standing.follow(transaction)
            self._admit(self._standing.committed(self._now()), planned_curves(body["planned"]))
            return transaction.append("reserve", body, job_id=job_id)

    def close(self, job_id: str) -> None:
        """Give back what the job did not spend. Closing twice is one closing."""
        with self._ledger.exclusive() as transaction:
            if transaction.entries("reserve", job_id=job_id) and not transaction.entries(
                "close", job_id=job_id
            ):
                charges = transaction.entries("charge", job_id=job_id)
                epsilon = _reported(charges, self.delta)
                body = {"releases": len(charges), "epsilon": epsilon, "delta": self.delta}
                transaction.append("close", body, job_id=job_id)

    # --- release -----------------------------------------------------------------------------------------

    def answered(
        self, *, job_id: str, round_: int, what: What, question: bytes, members: Sequence[str] = ()
    ) -> Released | None:
        """What this very question was answered with, or None where its answer would be a new release.

        For the caller to ask before it gets a mechanism ready; also once the job is closed. Raises as `release`
        does, save for what the job reserved.
        """
        names, set_hash = _named(members)
        with self._ledger.exclusive() as transaction:
            stored = _stored(transaction, job_id, round_, what, set_hash, _hash(question))
            if stored is not None:
                return self._again(stored)
            self._standing.follow(transaction)
            _smaller(self._live(job_id).sets.get((round_, what)), frozenset(names))
        return None

    def release(
        self,
        mechanism: Mechanism,
        *,
        job_id: str,
        round_: int,
        what: What,
        population: Population,
        question: bytes,
        times: int = 1,
        members: Sequence[str] = (),
    ) -> Released:
        """Charge, then run, then seal. `times` is max_branches_per_customer; `question` names a repeat.

        `population` says whose data the mechanism holds; the caller vouches that it holds nobody else's.
        `members` names the set of a secure sum. Another set for the same round is another release, charged again,
        and must be a smaller part of the last one: two sets of which neither holds the other could be set off
        against each other.

        Raises Refusal: unknown, closed or expired job; more than the job reserved; another question for the same
        round and set, or a set that is not smaller. Raises ValueError for a name that is in the set twice.
        """
        question_hash = _hash(question)
        names, set_hash = _named(members)
        with self._ledger.exclusive() as transaction:
            stored = _stored(transaction, job_id, round_, what, set_hash, question_hash)
            if stored is not None:
                return self._again(stored)
            self._standing.follow(transaction)
            job = self._live(job_id)
            _smaller(job.sets.get((round_, what)), frozenset(names))
            event, told = mechanism.event, {}
            if isinstance(mechanism, StandingSum):
                event, told = mechanism.event_after(job.last_round), {"told": mechanism.told}
            event = accounting.in_every_branch(event, times)
            cost = of(population, accounting.rdp_curve(event))
            self._admit_release(job, cost)
            charge = transaction.append(
                "charge",
                {
                    "what": what,
                    "round": round_,
                    "population": population,
                    "event": accounting.encode_event(event),
                    "question": question_hash,
                    **({"members": names} if names else {}),
                    **told,
                },
                job_id=job_id,
            )
            spent = self._epsilon(self._standing.spent + cost)
        vector = mechanism.run()
        paid = Cost(
            event=charge.body["event"],
            population=population,
            epsilon_spent=spent,
            epsilon_budget=self.budget,
            delta=self.delta,
        )
        frame = self._frame(job_id, round_, what, paid, vector, set_hash)
        with self._ledger.exclusive() as transaction:
            # Asked twice at once, both were charged and both drew noise: only what is stored first leaves.
            stored = _stored(transaction, job_id, round_, what, set_hash, question_hash)
            if stored is not None:
                return self._again(stored)
            transaction.store_answer(job_id, round_, what, question_hash, frame, set_hash)
        return Released(vector, frame, seal=_SEAL)

    def last_round(self, job_id: str) -> int:
        """The highest round that an open job was charged for; 0 if none."""
        with self._ledger.exclusive() as transaction:
            self._standing.follow(transaction)
        job = self._standing.jobs.get(job_id)
        return job.last_round or 0 if job else 0

    def open_jobs(self) -> frozenset[str]:
        """Jobs that may still be asked: reserved, not closed, not expired."""
        with self._ledger.exclusive() as transaction:
            self._standing.follow(transaction)
        return frozenset(i for i, job in self._standing.jobs.items() if job.expires_at >= self._now())

    def told(self, job_id: str) -> Mapping[int, str]:
        """Of a standing question: what this branch remembered after each period that it was charged for, SHA-256."""
        with self._ledger.exclusive() as transaction:
            charges = transaction.entries("charge", job_id=job_id)
        return {int(e.body["round"]): str(e.body["told"]) for e in charges}

    # --- the account -------------------------------------------------------------------------------------

    def spending(self) -> Spending:
        with self._ledger.exclusive() as transaction:
            standing = self._standing
            standing.follow(transaction)
            return Spending(
                budget=self.budget,
                delta=self.delta,
                spent=self._epsilon(standing.spent),
                reserved=self._epsilon(standing.committed(self._now())),
                charges=standing.charges(),
            )

    def _epsilon(self, curves: Curves) -> float:
        """What the customer who lost most lost."""
        return max(accounting.filter_epsilon(curve, self.delta) for curve in curves)

    def _admit(self, committed: Curves, asked: Curves) -> None:
        if self._epsilon(committed + asked) > self.budget * (1 + accounting.SLACK):
            left = max(0.0, self.budget - self._epsilon(committed))
            raise Refusal(RefusalCode.OVER_BUDGET, requested=self._epsilon(asked), remaining=left)

    def _admit_release(self, job: OpenJob, cost: Curves) -> None:
        """A job never spends more than it reserved, order by order. So a release leaves what is committed as it
        was: within the budget, unless a clock that was set back brought an expired reservation to life."""
        if not accounting.within(job.planned, job.charged + cost):
            raise Refusal(RefusalCode.OVER_JOB_PLAN, requested=self._epsilon(cost))
        if self._epsilon(self._standing.committed(self._now())) > self.budget * (1 + 10 * accounting.SLACK):
            raise Refusal(RefusalCode.OVER_BUDGET, requested=self._epsilon(cost), remaining=0.0)

    def _live(self, job_id: str) -> OpenJob:
        if job_id in self._standing.closed:
            raise Refusal(RefusalCode.JOB_CLOSED)
        job = self._standing.jobs.get(job_id)
        if job is None:
            raise Refusal(RefusalCode.UNKNOWN_JOB)
        if job.expires_at < self._now():
            raise Refusal(RefusalCode.EXPIRED)
        return job

    def _frame(self, job_id: str, round_: int, what: What, cost: Cost, vector: Vector, members: str) -> bytes:
        answer = ReleasedAnswer(
            job_id=job_id,
            branch=self._ledger.branch,
            round=round_,
            what=what,
            cost=cost,
            ledger=self._ledger.signed_head(),
            members=members or None,
        )
        return codec.encode(answer, vector)

    def _again(self, frame: bytes) -> Released:
        _, vector = codec.decode(frame, "answer")
        if vector is None:
            raise Refusal(RefusalCode.INTERNAL)
        return Released(vector, frame, seal=_SEAL)


def _hash(question: bytes) -> str:
    return hashlib.sha256(question).hexdigest()


def _named(members: Sequence[str]) -> tuple[list[str], str]:
    """The set's sorted names, and what it is stored under."""
    names = sorted(members)
    if len(set(names)) < len(names):
        raise ValueError("Expected each name once.")
    return names, secure_sum.set_hash(names) if names else ""


def _stored(
    transaction: Transaction, job_id: str, round_: int, what: What, set_hash: str, question_hash: str
) -> bytes | None:
    """The answer to this very question. Raises Refusal if another one was answered in its place."""
    stored = transaction.answered(job_id, round_, what, set_hash)
    if stored is not None and stored[0] != question_hash:
        raise Refusal(RefusalCode.ROUND_ALREADY_ANSWERED)
    return stored[1] if stored else None


def _smaller(last: frozenset[str] | None, asked: frozenset[str]) -> None:
    """`last` is the set that the round was charged for, answered or not: an answer may be on its way.

    The same set is asked again where a crash came between charge and answer; it is charged again.
    """
    if last is not None and asked != last and not (asked and asked < last):
        raise Refusal(RefusalCode.SET_NOT_SMALLER)


def _reported(charges: list[Entry], delta: float) -> float:
    figures = [0.0]
    for population in POPULATIONS:
        mine = [e.body["event"] for e in charges if e.body["population"] in (population, "all")]
        if mine:
            figures.append(accounting.pld_epsilon([accounting.decode_event(e) for e in mine], delta))
    return max(figures)
