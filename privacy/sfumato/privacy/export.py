"""A ledger as a file that anybody can check offline: entries, then signed checkpoints, as JSON lines.

    {"entry":"…","hash":"…","root":"…"}    one an entry: its very bytes, its leaf hash, the root of the tree so far
    {"checkpoint":"…","hash":"…"}          one or more, by size: a signed note, and the SHA-256 of its text

Each line is in the only form that this module writes, so that no byte can change unseen. The last checkpoint
is the ledger's latest; entries after it (an operator's commands that need no key) are not signed for yet.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from sfumato.common.canonical import canonical_bytes
from sfumato.common.enrolment import ed25519_public_key, ed25519_text
from sfumato.common.errors import LedgerBroken
from sfumato.common.notes import COSIGNATURE, Checkpoint, SignedNote, key_id, verify_checkpoint
from sfumato.privacy.entries import Entry, Replay
from sfumato.privacy.recount import Recount


def entry_line(raw: bytes, digest: str, root: str) -> str:
    return canonical_bytes({"entry": raw.decode(), "hash": digest, "root": root}).decode()


def checkpoint_line(note: str) -> str:
    digest = hashlib.sha256(note.encode()).hexdigest()
    return canonical_bytes({"checkpoint": note, "hash": digest}).decode()


@dataclass(frozen=True, slots=True)
class Cosigned:
    """Somebody else's word that a checkpoint continued all that they had seen of this ledger."""

    size: int
    name: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Verified:
    """What an export was found to be. `key_given`: the ledger's key came from outside the file."""

    origin: str
    key: str
    key_given: bool
    entries: int
    root: str
    unsigned: int  # entries after the last checkpoint
    first: datetime
    last: datetime
    cosigned: tuple[Cosigned, ...]
    not_checked: int  # signature lines of others whose keys were not given
    since: tuple[int, ...]  # sizes of the kept checkpoints that this ledger continues
    account: Recount


class ExportCheck:
    """Takes the lines of an export in order; `copy` keeps a state to go on from more than once.

    `since` are checkpoints kept from earlier: notes. Every method raises LedgerBroken, naming line or entry.
    """

    def __init__(self, name: str, since: Sequence[str] = ()) -> None:
        self._name = name
        self._replay = Replay(name)
        self._account = Recount()
        self._since = [_parsed(note, name) for note in since]
        self._roots = [self._replay.root]  # by size
        self._notes: list[str] = []
        self._first: Entry | None = None
        self._last: Entry | None = None

    def copy(self) -> Self:
        other = type(self)(self._name)
        other._replay, other._account = self._replay.copy(), self._account.copy()
        other._since, other._roots, other._notes = self._since, list(self._roots), list(self._notes)
        other._first, other._last = self._first, self._last
        return other

    def take(self, line: bytes) -> None:
        """One line, with its end."""
        number = self._replay.size + len(self._notes) + 1
        match _object(line):
            case {"entry": str(raw), "hash": str(digest), "root": str(root)} if not self._notes:
                entry = self._replay.take(raw.encode(), digest, root)
                self._account.take(entry, self._name)
                self._first, self._last = self._first or entry, entry
                self._roots.append(root)
            case {"checkpoint": str(note), "hash": str(digest)} if (
                hashlib.sha256(note.encode()).hexdigest() == digest
            ):
                self._notes.append(note)
            case _:
                what = "a checkpoint" if self._notes else f"entry {number - 1} nor a checkpoint"
                raise LedgerBroken(
                    f"{self._name}: line {number} is {'not' if self._notes else 'neither'} {what} "
                    "as an export has it"
                )

    def finish(
        self,
        key: Ed25519PublicKey | None = None,
        cosigners: Mapping[str, Ed25519PublicKey] | None = None,
    ) -> Verified:
        """What remains once all lines were taken: checkpoints, keys, what was kept. `cosigners` by note name."""
        if self._first is None or self._last is None or self._first.kind != "genesis":
            raise LedgerBroken(f"{self._name}: holds no entry 0")
        origin, own = self._identity(self._first)
        if key is not None and ed25519_text(key) != ed25519_text(own):
            raise LedgerBroken(f"{self._name}: entry 0 names another key than the one that was given")
        kept = [(note, c.size) for note, c in self._since]
        for note, _ in kept:
            self._check(note, origin, own, "kept")
        if not self._notes:
            raise LedgerBroken(f"{self._name}: has no checkpoint at its end; was it cut off?")
        last = max(self._check(note, origin, own, "signed") for note in self._notes)
        given = dict(cosigners or {})
        cosigned, unknown = _cosignatures([*self._notes, *(n for n, _ in kept)], origin, own, given)
        return Verified(
            origin=origin,
            key=ed25519_text(own),
            key_given=key is not None,
            entries=self._replay.size,
            root=self._replay.root,
            unsigned=self._replay.size - last,
            first=self._first.time,
            last=self._last.time,
            cosigned=cosigned,
            not_checked=unknown,
            since=tuple(sorted(size for _, size in kept)),
            account=self._account,
        )

    def _identity(self, genesis: Entry) -> tuple[str, Ed25519PublicKey]:
        try:
            return str(genesis.body["origin"]), ed25519_public_key(genesis.body["public_key"])
        except (KeyError, ValueError, TypeError):
            raise LedgerBroken(f"{self._name}: entry 0 names no ledger and key") from None

    def _check(self, note: str, origin: str, own: Ed25519PublicKey, what: str) -> int:
        """The checkpoint's size, if the ledger signed it and its first entries are those."""
        checkpoint = verify_checkpoint(note, origin, own)
        if checkpoint.size >= len(self._roots) or checkpoint.root != self._roots[checkpoint.size]:
            raise LedgerBroken(
                f"{self._name}: history differs from the {what} checkpoint of size {checkpoint.size}; the "
                f"first {min(checkpoint.size, self._replay.size)} entries are not those that were signed"
            )
        return checkpoint.size


def verify_export(
    lines: Iterable[bytes],
    name: str,
    *,
    since: Sequence[str] = (),
    key: Ed25519PublicKey | None = None,
    cosigners: Mapping[str, Ed25519PublicKey] | None = None,
) -> Verified:
    """Check a whole export, given as lines with their ends (an open binary file). Raises LedgerBroken."""
    check = ExportCheck(name, since)
    for line in lines:
        check.take(line)
    return check.finish(key, cosigners)


def _cosignatures(
    notes: Sequence[str], origin: str, own: Ed25519PublicKey, given: Mapping[str, Ed25519PublicKey]
) -> tuple[tuple[Cosigned, ...], int]:
    """Every cosignature by a key that was given, checked; and how many other lines there are."""
    found, unknown = [], 0
    known = {(name, key_id(name, key, COSIGNATURE)): key for name, key in given.items()}
    for note in notes:
        parsed, size = SignedNote.parse(note), Checkpoint.parse(note).size
        for line in parsed.signatures:
            key = known.get((line.name, line.key_id))
            if key is not None:
                found.append(Cosigned(size, line.name, parsed.cosigned_at(line.name, key)))
            elif (line.name, line.key_id) != (origin, key_id(origin, own)):
                unknown += 1
    return tuple(dict.fromkeys(found)), unknown


def _object(line: bytes) -> dict[str, Any] | None:
    """The line's JSON object, if it is in its only form."""
    try:
        value = json.loads(line)
        whole = isinstance(value, dict) and canonical_bytes(value) + b"\n" == line
    except (ValueError, RecursionError):
        return None
    return value if whole else None


def _parsed(note: str, name: str) -> tuple[str, Checkpoint]:
    try:
        return note, Checkpoint.parse(note)
    except ValueError as e:
        raise LedgerBroken(f"{name}: what was kept is no checkpoint: {e}") from None
