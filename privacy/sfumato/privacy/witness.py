"""A branch as the witness of the coordinator's ledger: it co-signs what continues all that it saw, else accuses.

Two parties that see the same cosignature saw the same history. What was co-signed last stands in the branch's
own ledger (`cosign`), and so does a contradiction (`equivocation`), with both signed notes as evidence.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sfumato.common.errors import LedgerBroken, Refusal, RefusalCode
from sfumato.common.notes import Checkpoint, coordinator_origin, cosignature, verify_checkpoint
from sfumato.privacy.entries import Entry
from sfumato.privacy.ledger import Ledger, Transaction
from sfumato.privacy.merkle import check_consistency

MAX_EVIDENCE = 100  # accusations that are written down: nobody fills a disk with them


class Witness:
    """Over a branch's ledger, for the coordinator whose ledger key this branch pinned."""

    def __init__(
        self,
        ledger: Ledger,
        coordinator: Ed25519PublicKey,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._ledger = ledger
        self._coordinator = coordinator
        self._origin = coordinator_origin(coordinator)
        self._now = now

    @property
    def size(self) -> int:
        """Of the checkpoint that was co-signed last; 0 before the first."""
        with self._ledger.exclusive() as transaction:
            known = transaction.latest("cosign")
        return _checkpoint(known).size if known else 0

    def cosign(self, checkpoint: str, old_size: int, proof: Sequence[str]) -> str:
        """The branch's signature line for this checkpoint; `proof` leads from what it co-signed last (hex).

        What it co-signed before gets the same line again. Raises Refusal: BAD_SIGNATURE; UNKNOWN_CHECKPOINT
        when `old_size` is not that of its last one (`remaining` says which) or the checkpoint is an older one
        that it never signed; EQUIVOCATION when this history is not the one that it saw.
        """
        try:
            shown = verify_checkpoint(checkpoint, self._origin, self._coordinator)
        except LedgerBroken:
            raise Refusal(RefusalCode.BAD_SIGNATURE) from None
        with self._ledger.exclusive() as transaction:
            known = transaction.latest("cosign")
            again = _signed_before(transaction, shown)
            against = again or known
            why = _contradiction(shown, _checkpoint(against), old_size, proof) if against else None
            if why is None and again is not None:
                return str(again.body["signature"])
            if why is None:
                _continues(shown, _checkpoint(known) if known else None, old_size)
                return self._sign(transaction, checkpoint)
            self._accuse(transaction, checkpoint, against, why)
        raise Refusal(RefusalCode.EQUIVOCATION)

    def _sign(self, transaction: Transaction, checkpoint: str) -> str:
        line = cosignature(checkpoint, self._ledger.origin, self._ledger.signer, self._now())
        transaction.append("cosign", {"checkpoint": checkpoint, "signature": line})
        return line

    def _accuse(self, transaction: Transaction, shown: str, against: Entry | None, why: str) -> None:
        known = transaction.entries("equivocation")
        if len(known) < MAX_EVIDENCE and all(e.body["shown"] != shown for e in known):
            signed = against.body["checkpoint"] if against else ""
            transaction.append("equivocation", {"cosigned": signed, "shown": shown, "why": why})


def _contradiction(shown: Checkpoint, known: Checkpoint, old_size: int, proof: Sequence[str]) -> str | None:
    """Why these two cannot be of one history, or None if they are, or if the proof is for another question."""
    if shown.size == known.size:
        return None if shown.root == known.root else "one size, two roots"
    if old_size != known.size:
        raise _unknown(old_size, known.size)
    first, second = sorted((shown, known), key=lambda c: c.size)
    try:
        check_consistency(
            first.size,
            second.size,
            bytes.fromhex(first.root),
            bytes.fromhex(second.root),
            [bytes.fromhex(h) for h in proof],
        )
    except (LedgerBroken, ValueError):
        return "no proof that one continues the other"
    return None


def _continues(shown: Checkpoint, known: Checkpoint | None, old_size: int) -> None:
    size = known.size if known else 0
    if old_size != size or shown.size < size:  # a cosignature says: the largest that I saw
        raise _unknown(old_size, size)


def _unknown(old_size: int, size: int) -> Refusal:
    return Refusal(RefusalCode.UNKNOWN_CHECKPOINT, requested=float(old_size), remaining=float(size))


def _signed_before(transaction: Transaction, shown: Checkpoint) -> Entry | None:
    """The entry of this size that was co-signed, whatever its root."""
    return next((e for e in transaction.entries("cosign") if _checkpoint(e).size == shown.size), None)


def _checkpoint(entry: Entry) -> Checkpoint:
    return Checkpoint.parse(entry.body["checkpoint"])
