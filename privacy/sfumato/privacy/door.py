"""The door: the only way out of a vault.

A mechanism goes in, a `Released` with its cost comes out. In between, in this order: the budget is asked, the
charge is written to the ledger and synced to disk, the mechanism runs, the answer is stored. A crash after the
charge wastes budget and hides nothing. A repeated question gets the stored bytes: no second draw of noise, no
second charge.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn, final

from dp_accounting.dp_event import DpEvent

from sfumato.common import codec
from sfumato.common.codec import Vector
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.messages import Cost, ReleasedAnswer, What
from sfumato.privacy import accounting
from sfumato.privacy.accounting import Curve, Population
from sfumato.privacy.ledger import Entry, Ledger, Transaction
from sfumato.privacy.mechanisms import Mechanism

POPULATIONS: tuple[Literal["training", "holdout"], ...] = ("training", "holdout")
Curves = dict[str, Curve]  # one Rényi curve a population
SLACK = 1e-9  # relative; the sum of many small curves against one large curve

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
    reported: float

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
            asked = _planned_curves(body["planned"])
            self._admit(transaction, _add(self._committed(transaction), asked), asked)
            return transaction.append("reserve", body, job_id=job_id)

    def close(self, job_id: str) -> None:
        """Give back what the job did not spend. Closing twice is one closing."""
        with self._ledger.exclusive() as transaction:
            if transaction.entries("reserve", job_id=job_id) and not transaction.entries(
                "close", job_id=job_id
            ):
                charges = transaction.entries("charge", job_id=job_id)
                body = {"releases": len(charges), "epsilon": self._reported(charges), "delta": self.delta}
                transaction.append("close", body, job_id=job_id)

    # --- release -----------------------------------------------------------------------------------------

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
        members: str = "",
    ) -> Released:
        """Charge, then run, then seal. `times` is max_branches_per_customer; `question` names a repeat.

        `population` says whose data the mechanism holds; the caller vouches that it holds nobody else's.
        `members` names the set of a secure sum: another set is another release, charged again.

        Raises Refusal: unknown, closed or expired job, over budget, or another question for the same round.
        """
        question_hash = hashlib.sha256(question).hexdigest()
        with self._ledger.exclusive() as transaction:
            stored = transaction.answered(job_id, round_, what, members)
            if stored is not None:
                if stored[0] != question_hash:
                    raise Refusal(RefusalCode.ROUND_ALREADY_ANSWERED)
                return self._again(stored[1])
            self._live(transaction, job_id)
            event = accounting.in_every_branch(mechanism.event, times)
            cost = _of(population, accounting.rdp_curve(event))
            self._admit(transaction, self._committed(transaction, extra=(job_id, cost)), cost)
            charge = transaction.append(
                "charge",
                {
                    "what": what,
                    "round": round_,
                    "population": population,
                    "event": accounting.encode_event(event),
                    "question": question_hash,
                    **({"members": members} if members else {}),
                },
                job_id=job_id,
            )
            spent = self._epsilon(self._spent(transaction))
        vector = mechanism.run()
        paid = Cost(
            event=charge.body["event"],
            population=population,
            epsilon_spent=spent,
            epsilon_budget=self.budget,
            delta=self.delta,
        )
        frame = self._frame(job_id, round_, what, paid, vector, members)
        with self._ledger.exclusive() as transaction:
            transaction.store_answer(job_id, round_, what, question_hash, frame, members)
        return Released(vector, frame, seal=_SEAL)

    # --- the account -------------------------------------------------------------------------------------

    def spending(self) -> Spending:
        with self._ledger.exclusive() as transaction:
            spent, committed = self._spent(transaction), self._committed(transaction)
            charges = transaction.entries("charge")
        return Spending(
            budget=self.budget,
            delta=self.delta,
            spent=self._epsilon(spent),
            reserved=self._epsilon(committed),
            reported=self._reported(charges),
        )

    def _epsilon(self, curves: Curves) -> float:
        """What the customer who lost most lost."""
        return max(accounting.filter_epsilon(curves[p], self.delta) for p in POPULATIONS)

    def _reported(self, charges: list[Entry]) -> float:
        figures = [0.0]
        for population in POPULATIONS:
            mine = [e.body["event"] for e in charges if e.body["population"] in (population, "all")]
            if mine:
                figures.append(accounting.pld_epsilon([accounting.decode_event(e) for e in mine], self.delta))
        return max(figures)

    def _spent(self, transaction: Transaction) -> Curves:
        total = _nothing()
        for entry in transaction.entries("charge"):
            total = _add(total, _charged_curves(entry))
        return total

    def _committed(self, transaction: Transaction, extra: tuple[str, Curves] | None = None) -> Curves:
        """Spent, plus what open jobs may still spend. `extra` is a charge about to be written, with its job."""
        charged: dict[str | None, Curves] = {extra[0]: extra[1]} if extra else {}
        for entry in transaction.entries("charge"):
            charged[entry.job_id] = _add(charged.get(entry.job_id, _nothing()), _charged_curves(entry))
        closed = {e.job_id for e in transaction.entries("close")}
        total = _nothing()
        for curves in charged.values():
            total = _add(total, curves)
        for entry in transaction.entries("reserve"):
            if entry.job_id in closed or datetime.fromisoformat(entry.body["expires_at"]) < self._now():
                continue
            planned, paid = _planned_curves(entry.body["planned"]), charged.get(entry.job_id, _nothing())
            total = _add(total, {p: accounting.left_of(planned[p], paid[p]) for p in POPULATIONS})
        return total

    def _admit(self, transaction: Transaction, after: Curves, asked: Curves) -> None:
        if self._epsilon(after) > self.budget * (1 + SLACK):
            left = self.budget - self._epsilon(self._committed(transaction))
            raise Refusal(RefusalCode.OVER_BUDGET, requested=self._epsilon(asked), remaining=max(0.0, left))

    def _live(self, transaction: Transaction, job_id: str) -> None:
        reserved = transaction.entries("reserve", job_id=job_id)
        if not reserved:
            raise Refusal(RefusalCode.UNKNOWN_JOB)
        if transaction.entries("close", job_id=job_id):
            raise Refusal(RefusalCode.JOB_CLOSED)
        if datetime.fromisoformat(reserved[0].body["expires_at"]) < self._now():
            raise Refusal(RefusalCode.EXPIRED)

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


def _nothing() -> Curves:
    return {p: accounting.zero_curve() for p in POPULATIONS}


def _add(a: Curves, b: Curves) -> Curves:
    return {p: a[p] + b[p] for p in POPULATIONS}


def _of(population: str, curve: Curve) -> Curves:
    """A cost on the account of its population, or of both. Raises ValueError on any other word."""
    if population not in (*POPULATIONS, "all"):
        raise ValueError(f"Expected a population, got {population!r}.")
    return {p: curve if population in (p, "all") else accounting.zero_curve() for p in POPULATIONS}


def _charged_curves(charge: Entry) -> Curves:
    return _of(charge.body["population"], accounting.rdp_curve(accounting.decode_event(charge.body["event"])))


def _planned_curves(planned: dict[str, Any]) -> Curves:
    total = _nothing()
    for population, event in planned.items():
        total = _add(total, _of(population, accounting.rdp_curve(accounting.decode_event(event))))
    return total
