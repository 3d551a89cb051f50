"""The door: the only way out of a vault.

A mechanism goes in, a `Released` with its cost comes out. In between, in this order: the budget is asked, the
charge is written to the ledger and synced to disk, the mechanism runs, the answer is stored. A crash after the
charge wastes budget and hides nothing. A repeated question gets the stored bytes: no second draw of noise, no
second charge.
"""

import hashlib
from collections.abc import Callable
from dataclasses import InitVar, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn, final

from dp_accounting.dp_event import DpEvent

from sfumato.common import codec
from sfumato.common.codec import Vector
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.messages import Cost, ReleasedAnswer
from sfumato.privacy import accounting
from sfumato.privacy.accounting import Curve
from sfumato.privacy.ledger import Entry, Ledger, Transaction
from sfumato.privacy.mechanisms import Mechanism

What = Literal["size", "weights", "score-histogram"]
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
    """Where a branch's budget stands. Epsilons of the Rényi filter at `delta`; `reported` is the PLD figure."""

    budget: float
    delta: float
    spent: float
    reserved: float
    reported: float

    @property
    def remaining(self) -> float:
        return max(0.0, self.budget - self.reserved)


class Door:
    """One door a ledger. The budget stands in the ledger's entry 0, nowhere else."""

    def __init__(self, ledger: Ledger, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._ledger = ledger
        self._now = now
        genesis = ledger.genesis
        self.budget = float(genesis["budget_epsilon"])
        self.delta = float(genesis["budget_delta"])

    # --- admission ---------------------------------------------------------------------------------------

    def reserve(
        self, job_id: str, planned: DpEvent, *, expires_at: datetime, details: dict[str, Any]
    ) -> Entry:
        """Set aside a whole job's cost before its first release. Raises Refusal(OVER_BUDGET).

        A job that is reserved already gets the same entry again: asking twice costs once.
        """
        with self._ledger.exclusive() as transaction:
            known = transaction.entries("reserve", job_id=job_id)
            if known:
                return known[0]
            body = {
                "planned": accounting.encode_event(planned),
                "expires_at": expires_at.isoformat(),
                **details,
            }
            after = self._committed(transaction) + accounting.rdp_curve(planned)
            self._admit(transaction, after, planned)
            return transaction.append("reserve", body, job_id=job_id)

    def close(self, job_id: str) -> None:
        """Give back what the job did not spend. Closing twice is one closing."""
        with self._ledger.exclusive() as transaction:
            if transaction.entries("reserve", job_id=job_id) and not transaction.entries(
                "close", job_id=job_id
            ):
                charges = transaction.entries("charge", job_id=job_id)
                events = [accounting.decode_event(e.body["event"]) for e in charges]
                body = {
                    "releases": len(charges),
                    "epsilon": accounting.pld_epsilon(events, self.delta) if events else 0.0,
                    "delta": self.delta,
                }
                transaction.append("close", body, job_id=job_id)

    # --- release -----------------------------------------------------------------------------------------

    def release(
        self, mechanism: Mechanism, *, job_id: str, round_: int, what: What, question: bytes, times: int = 1
    ) -> Released:
        """Charge, then run, then seal. `times` is max_branches_per_customer; `question` names a repeat.

        Raises Refusal: unknown, closed or expired job, over budget, or another question for the same round.
        """
        question_hash = hashlib.sha256(question).hexdigest()
        with self._ledger.exclusive() as transaction:
            stored = transaction.answered(job_id, round_, what)
            if stored is not None:
                if stored[0] != question_hash:
                    raise Refusal(RefusalCode.ROUND_ALREADY_ANSWERED)
                return self._again(stored[1])
            self._live(transaction, job_id)
            event = accounting.in_every_branch(mechanism.event, times)
            curve = accounting.rdp_curve(event)
            self._admit(transaction, self._committed(transaction, extra={job_id: curve}), event)
            charge = transaction.append(
                "charge",
                {
                    "what": what,
                    "round": round_,
                    "event": accounting.encode_event(event),
                    "question": question_hash,
                },
                job_id=job_id,
            )
            spent = accounting.filter_epsilon(self._spent(transaction), self.delta)
        vector = mechanism.run()
        cost = Cost(
            event=charge.body["event"],
            epsilon_spent=spent,
            epsilon_budget=self.budget,
            delta=self.delta,
        )
        frame = self._frame(job_id, round_, what, cost, vector)
        with self._ledger.exclusive() as transaction:
            transaction.store_answer(job_id, round_, what, question_hash, frame)
        return Released(vector, frame, seal=_SEAL)

    # --- the account -------------------------------------------------------------------------------------

    def spending(self) -> Spending:
        with self._ledger.exclusive() as transaction:
            spent, committed = self._spent(transaction), self._committed(transaction)
            events = [accounting.decode_event(e.body["event"]) for e in transaction.entries("charge")]
        return Spending(
            budget=self.budget,
            delta=self.delta,
            spent=accounting.filter_epsilon(spent, self.delta),
            reserved=accounting.filter_epsilon(committed, self.delta),
            reported=accounting.pld_epsilon(events, self.delta) if events else 0.0,
        )

    def _spent(self, transaction: Transaction) -> Curve:
        total = accounting.zero_curve()
        for entry in transaction.entries("charge"):
            total += accounting.rdp_curve(accounting.decode_event(entry.body["event"]))
        return total

    def _committed(self, transaction: Transaction, extra: dict[str, Curve] | None = None) -> Curve:
        """Spent, plus what open jobs may still spend. `extra` is a charge about to be written."""
        charged: dict[str | None, Curve] = {job: curve.copy() for job, curve in (extra or {}).items()}
        for entry in transaction.entries("charge"):
            curve = accounting.rdp_curve(accounting.decode_event(entry.body["event"]))
            charged[entry.job_id] = charged.get(entry.job_id, accounting.zero_curve()) + curve
        closed = {e.job_id for e in transaction.entries("close")}
        total = sum(charged.values(), start=accounting.zero_curve())
        for entry in transaction.entries("reserve"):
            if entry.job_id in closed or datetime.fromisoformat(entry.body["expires_at"]) < self._now():
                continue
            planned = accounting.rdp_curve(accounting.decode_event(entry.body["planned"]))
            total += (planned - charged.get(entry.job_id, accounting.zero_curve())).clip(min=0)
        return total

    def _admit(self, transaction: Transaction, after: Curve, event: DpEvent) -> None:
        if accounting.filter_epsilon(after, self.delta) > self.budget * (1 + SLACK):
            alone = accounting.filter_epsilon(accounting.rdp_curve(event), self.delta)
            now = accounting.filter_epsilon(self._committed(transaction), self.delta)
            raise Refusal(RefusalCode.OVER_BUDGET, requested=alone, remaining=max(0.0, self.budget - now))

    def _live(self, transaction: Transaction, job_id: str) -> None:
        reserved = transaction.entries("reserve", job_id=job_id)
        if not reserved:
            raise Refusal(RefusalCode.UNKNOWN_JOB)
        if transaction.entries("close", job_id=job_id):
            raise Refusal(RefusalCode.JOB_CLOSED)
        if datetime.fromisoformat(reserved[0].body["expires_at"]) < self._now():
            raise Refusal(RefusalCode.EXPIRED)

    def _frame(self, job_id: str, round_: int, what: What, cost: Cost, vector: Vector) -> bytes:
        answer = ReleasedAnswer(
            job_id=job_id,
            branch=self._ledger.branch,
            round=round_,
            what=what,
            cost=cost,
            ledger=self._ledger.signed_head(),
        )
        return codec.encode(answer, vector)

    def _again(self, frame: bytes) -> Released:
        _, vector = codec.decode(frame, "answer")
        if vector is None:
            raise Refusal(RefusalCode.INTERNAL)
        return Released(vector, frame, seal=_SEAL)
