"""A ledger's entries: their only form in bytes, and the replay that finds the first one that is not right."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from sfumato.common.canonical import canonical_bytes
from sfumato.common.errors import LedgerBroken
from sfumato.privacy.merkle import CompactRange, Place, leaf_hash

_FIELDS = {"seq", "time", "kind", "job_id", "body"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger, as it was written. `hash` is its leaf hash in the tree, hex."""

    seq: int
    time: datetime
    kind: str
    job_id: str | None
    body: dict[str, Any]
    hash: str


def entry_bytes(seq: int, time: datetime, kind: str, job_id: str | None, body: dict[str, Any]) -> bytes:
    """The bytes that are hashed. Raises ValueError for a body that is not JSON."""
    return canonical_bytes(
        {"seq": seq, "time": time.isoformat(), "kind": kind, "job_id": job_id, "body": body}
    )


def parse_entry(raw: bytes, digest: str) -> Entry:
    """Raises ValueError for what is no entry."""
    try:
        data = json.loads(raw)
        if set(data) != _FIELDS or type(data["seq"]) is not int or not isinstance(data["body"], dict):
            raise ValueError
        return Entry(hash=digest, **{**data, "time": datetime.fromisoformat(data["time"])})
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError("not an entry") from None


def _as_written(raw: bytes, digest: str) -> Entry:
    """Raises ValueError also for an entry that is not in its only form."""
    entry = parse_entry(raw, digest)
    if entry_bytes(entry.seq, entry.time, entry.kind, entry.job_id, entry.body) != raw:
        raise ValueError("not in canonical form")
    return entry


class Replay:
    """Takes a ledger's entries in order, recomputes the tree, and names the first that does not fit."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.tree = CompactRange()

    @property
    def size(self) -> int:
        return self.tree.size

    @property
    def root(self) -> str:
        return self.tree.root().hex()

    def copy(self) -> Self:
        """The state so far, to go on from more than once."""
        other = type(self)(self._name)
        other.tree = self.tree.copy()
        return other

    def take(
        self, raw: bytes, digest: str, root: str, node: Callable[[Place], bytes | None] | None = None
    ) -> Entry:
        """The next entry, its stored hash, and the stored root of the tree that ends with it.

        `node` gives the stored hash of an interior node. Raises LedgerBroken.
        """
        seq = self.size
        leaf = leaf_hash(raw)
        if leaf.hex() != digest:
            raise LedgerBroken(f"{self._name}: entry {seq} was altered (its hash does not match)")
        try:
            entry = _as_written(raw, digest)
        except (ValueError, RecursionError):
            raise LedgerBroken(f"{self._name}: entry {seq} is not readable") from None
        if entry.seq != seq:
            raise LedgerBroken(f"{self._name}: entry {seq} does not follow entry {seq - 1}")
        complete = self.tree.append(leaf)
        if self.root != root:
            raise LedgerBroken(
                f"{self._name}: entry {seq} is not the one that was written (its tree has another root)"
            )
        if node is not None and any(node(place) != value for place, value in complete):
            raise LedgerBroken(f"{self._name}: entry {seq} does not fit the stored tree")
        return entry
