"""The ledger: an append-only Merkle log (RFC 9162) of everything a branch released, refused or opened.

Entry n is canonical JSON, and leaf n of the tree. With each entry the root of the tree that ends with it is
stored, and the owner's Ed25519 signature of that checkpoint (see `sfumato.common.notes`); an operator's command
that has no key leaves it to the next entry to sign for both. An append is durable before it returns and touches
O(log n) hashes; processes may share a ledger. The coordinator keeps one too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sfumato.common.enrolment import ed25519_public_key, ed25519_text
from sfumato.common.errors import BadInput, LedgerBroken
from sfumato.common.messages import LedgerHead
from sfumato.common.notes import (
    Checkpoint,
    Signature,
    SignedNote,
    branch_origin,
    coordinator_origin,
    key_id,
    verify_checkpoint,
)
from sfumato.privacy import ledger_storage as storage
from sfumato.privacy import merkle
from sfumato.privacy.entries import Entry, Replay, entry_bytes, parse_entry
from sfumato.privacy.export import checkpoint_line, entry_line
from sfumato.privacy.ledger_storage import Database, place_number

__all__ = ["Database", "Entry", "Ledger", "Transaction"]

_e, _n, _a = storage.entries.c, storage.nodes.c, storage.answers.c
Sign = Callable[[int, str], bytes | None]  # size and root of a checkpoint -> its signature


class Transaction:
    """Exclusive access: what is read stays true until what is written is durable."""

    def __init__(self, connection: sa.Connection, now: datetime, sign: Sign) -> None:
        self._connection = connection
        self._now = now
        self._sign = sign
        self._tree: merkle.CompactRange | None = None

    def head(self) -> tuple[int, str]:
        """Number of entries, and the Merkle root over them (hex)."""
        row = self._connection.execute(sa.select(_e.seq, _e.root).order_by(_e.seq.desc()).limit(1)).first()
        return (row.seq + 1, row.root) if row else (0, merkle.EMPTY.hex())

    def entries(self, *kinds: str, job_id: str | None = None, after: int = -1) -> list[Entry]:
        """Entries of these kinds (all if none is named), of this job, with a number above `after`; in order."""
        query = sa.select(_e.entry, _e.hash).where(_e.seq > after).order_by(_e.seq)
        if kinds:
            query = query.where(_e.kind.in_(kinds))
        if job_id is not None:
            query = query.where(_e.job_id == job_id)
        return [_readable(row.entry, row.hash) for row in self._connection.execute(query)]

    def latest(self, kind: str) -> Entry | None:
        """The newest entry of this kind."""
        query = sa.select(_e.entry, _e.hash).where(_e.kind == kind).order_by(_e.seq.desc()).limit(1)
        row = self._connection.execute(query).first()
        return _readable(row.entry, row.hash) if row else None

    def append(self, kind: str, body: dict[str, Any], *, job_id: str | None = None) -> Entry:
        """Write one entry. It is durable when the transaction ends."""
        tree = self._tree = self._tree or self._load_tree()
        size = tree.size
        raw = entry_bytes(size, self._now, kind, job_id, body)
        leaf = merkle.leaf_hash(raw)
        complete = tree.append(leaf)
        root = tree.root().hex()
        self._connection.execute(
            storage.entries.insert().values(
                seq=size,
                kind=kind,
                job_id=job_id,
                entry=raw,
                hash=leaf.hex(),
                root=root,
                signature=self._sign(size + 1, root),
            )
        )
        if complete:
            self._connection.execute(
                storage.nodes.insert(),
                [{"place": place_number(place), "hash": value} for place, value in complete],
            )
        return parse_entry(raw, leaf.hex())

    def _load_tree(self) -> merkle.CompactRange:
        row = self._connection.execute(sa.select(_e.seq, _e.hash).order_by(_e.seq.desc()).limit(1)).first()
        if row is None:
            return merkle.CompactRange()
        size = row.seq + 1
        places = [place_number(place) for place in merkle.peaks(size) if place[0]]
        found = self._connection.execute(sa.select(_n.place, _n.hash).where(_n.place.in_(places)))
        known = {r.place: r.hash for r in found}
        if len(known) != len(places):
            raise LedgerBroken("the ledger's tree has lost a node; verify it")
        last = [bytes.fromhex(row.hash)] if size & 1 else []
        return merkle.CompactRange(size, [*(known[place] for place in places), *last])

    def node(self, level: int, position: int) -> bytes:
        """The hash of a complete subtree. Raises LedgerBroken if it is not there."""
        if level == 0:
            found = self._connection.execute(sa.select(_e.hash).where(_e.seq == position)).scalar()
            value = bytes.fromhex(found) if found else None
        else:
            value = self._connection.execute(
                sa.select(_n.hash).where(_n.place == place_number((level, position)))
            ).scalar()
        if value is None:
            raise LedgerBroken(f"the ledger's tree has lost the node at level {level}, position {position}")
        return value

    def answered(self, job_id: str, round_: int, what: str, members: str = "") -> tuple[str, bytes] | None:
        """The hash of the question and the stored answer, if this was answered before."""
        row = self._connection.execute(
            sa.select(_a.question, _a.answer).where(
                _a.job_id == job_id, _a.round == round_, _a.what == what, _a.members == members
            )
        ).first()
        return (row.question, row.answer) if row else None

    def store_answer(
        self, job_id: str, round_: int, what: str, question: str, answer: bytes, members: str = ""
    ) -> None:
        self._connection.execute(
            storage.answers.insert().values(
                job_id=job_id, round=round_, what=what, members=members, question=question, answer=answer
            )
        )


class Ledger:
    """A branch's or the coordinator's ledger: one SQLite file (0600), or a schema in PostgreSQL.

    `branch` is empty for the coordinator's. `origin` is the log's name in every checkpoint.
    """

    def __init__(self, path: Path | Database, engine: sa.Engine, *, signer: Ed25519PrivateKey | None) -> None:
        self.path = path
        self.branch = ""
        self.origin = ""
        self._engine = engine
        self._signer = signer

    @classmethod
    def create(
        cls, path: Path | Database, *, branch: str = "", signer: Ed25519PrivateKey, genesis: dict[str, Any]
    ) -> Self:
        """A new ledger whose entry 0 states whose it is, budget and key. Raises BadInput if one is there."""
        storage.claim(path)
        ledger = cls(path, storage.engine(path), signer=signer)
        ledger.branch, ledger.origin = branch, _origin(branch, signer)
        body = {**genesis, "origin": ledger.origin, "public_key": ed25519_text(signer.public_key())}
        body |= {"branch": branch} if branch else {}
        with ledger._engine.begin() as connection:
            storage.create_tables(connection, path)
            ledger._transaction(connection).append("genesis", body)
        return ledger

    @classmethod
    def open(cls, path: Path | Database, *, branch: str = "", signer: Ed25519PrivateKey) -> Self:
        """An existing ledger. Raises BadInput if there is none, LedgerBroken if it is another's."""
        ledger = cls._found(path, signer)
        if (ledger.origin, ledger.genesis.get("public_key")) != (
            _origin(branch, signer),
            ed25519_text(signer.public_key()),
        ):
            raise LedgerBroken(f"{path}: entry 0 names another branch or key")
        return ledger

    @classmethod
    def read(cls, path: Path | Database) -> Self:
        """An existing ledger, to look at and verify without any key. Raises BadInput if there is none."""
        return cls._found(path, None)

    @classmethod
    def _found(cls, path: Path | Database, signer: Ed25519PrivateKey | None) -> Self:
        if isinstance(path, Path) and not path.is_file():
            raise BadInput(f"{path}: no ledger here", hint="Was this home set up with `sfumato … init`?")
        ledger = cls(path, storage.engine(path), signer=signer)
        try:
            with ledger.exclusive() as transaction:
                transaction.head()
            genesis = ledger.genesis
        except sa.exc.ProgrammingError:
            raise BadInput(f"{path}: no ledger here, or not one that this user may read") from None
        except sa.exc.OperationalError as e:
            if "no such" not in str(e.orig):  # locked for long, or a database that went away
                raise
            raise BadInput(f"{path}: no ledger of this release (its tables are others)") from None
        except sa.exc.DatabaseError:
            raise LedgerBroken(f"{path}: is not a ledger's file any more") from None
        ledger.branch, ledger.origin = str(genesis.get("branch", "")), str(genesis.get("origin"))
        return ledger

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that entry 0 names."""
        try:
            return ed25519_public_key(self.genesis["public_key"])
        except (KeyError, ValueError, TypeError):
            raise LedgerBroken(f"{self.path}: entry 0 names no key") from None

    @property
    def signer(self) -> Ed25519PrivateKey:
        if self._signer is None:
            raise ValueError("a ledger opened with `read` cannot sign")
        return self._signer

    @contextmanager
    def exclusive(self) -> Iterator[Transaction]:
        """Read, decide and write as one step. Rolls back on an exception."""
        with self._engine.begin() as connection:
            yield self._transaction(connection)

    def _transaction(self, connection: sa.Connection) -> Transaction:
        return Transaction(connection, datetime.now(UTC), self._signature)

    def _signature(self, size: int, root: str) -> bytes | None:
        text = Checkpoint(self.origin, size, root).text.encode()
        return self._signer.sign(text) if self._signer else None

    def append(self, kind: str, body: dict[str, Any], *, job_id: str | None = None) -> Entry:
        with self.exclusive() as transaction:
            return transaction.append(kind, body, job_id=job_id)

    def entries(self, *kinds: str, job_id: str | None = None) -> list[Entry]:
        with self.exclusive() as transaction:
            return transaction.entries(*kinds, job_id=job_id)

    @property
    def genesis(self) -> dict[str, Any]:
        found = self.entries("genesis")
        if not found:
            raise LedgerBroken(f"{self.path}: has no entry 0")
        return found[0].body

    # --- checkpoints and proofs --------------------------------------------------------------------------

    def checkpoint(self, size: int | None = None) -> str:
        """The signed checkpoint of the first `size` entries: a note. Raises ValueError if there is none.

        Of all entries if `size` is None; without the key, of as many as were signed for.
        """
        query = sa.select(_e.seq, _e.root, _e.signature).order_by(_e.seq.desc()).limit(1)
        if size is not None:
            query = query.where(_e.seq == size - 1)
        if self._signer is None:
            query = query.where(_e.signature.is_not(None))
        with self._engine.begin() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise ValueError(f"Expected a size for which there is a signed checkpoint, got {size}.")
        return self._note(row)

    def _note(self, row: Any) -> str:
        """The checkpoint that ends with this row, which is signed unless we hold the key."""
        key = self._signer.public_key() if self._signer else self.public_key
        text = Checkpoint(self.origin, row.seq + 1, row.root).text
        data = row.signature or self.signer.sign(text.encode())
        return str(SignedNote(text, (Signature(self.origin, key_id(self.origin, key), data),)))

    def signed_head(self) -> LedgerHead:
        """The latest checkpoint: whoever keeps it can tell later whether history was rewritten."""
        return LedgerHead(note=self.checkpoint())

    def inclusion(self, seq: int, size: int) -> list[str]:
        """RFC 9162's proof that entry `seq` is in the checkpoint of `size`; hex. Raises ValueError."""
        with self.exclusive() as transaction:
            _within(transaction, size)
            return [h.hex() for h in merkle.inclusion_proof(transaction.node, seq, size)]

    def consistency(self, first: int, second: int) -> list[str]:
        """RFC 9162's proof that the checkpoint of `second` continues that of `first`; hex. Raises ValueError."""
        with self.exclusive() as transaction:
            _within(transaction, second)
            return [h.hex() for h in merkle.consistency_proof(transaction.node, first, second)]

    # --- verification ------------------------------------------------------------------------------------

    def verify(self, *kept: LedgerHead) -> int:
        """Recompute the whole tree and compare it with heads kept elsewhere. Returns the number of entries.

        Raises LedgerBroken that names the first bad entry.
        """
        with self._engine.begin() as connection:
            rows = connection.execute(sa.select(storage.entries).order_by(_e.seq)).all()
            stored = {r.place: r.hash for r in connection.execute(sa.select(storage.nodes))}
        replay, roots = Replay(str(self.path)), [merkle.EMPTY.hex()]
        for row in rows:
            entry = replay.take(row.entry, row.hash, row.root, lambda place: stored.get(place_number(place)))
            if (entry.kind, entry.job_id) != (row.kind, row.job_id):
                raise LedgerBroken(f"{self.path}: entry {entry.seq} is filed under another kind or job")
            roots.append(row.root)
        if len(stored) != replay.size - replay.size.bit_count():
            raise LedgerBroken(f"{self.path}: entry {replay.size} and more are gone, but their tree is there")
        key = self.public_key
        for note in (self.checkpoint(), *(head.note for head in kept)):
            checkpoint = verify_checkpoint(note, self.origin, key)
            if checkpoint.size >= len(roots) or roots[checkpoint.size] != checkpoint.root:
                raise LedgerBroken(
                    f"{self.path}: history differs from the head kept at size {checkpoint.size}; the first "
                    f"{min(checkpoint.size, len(rows))} entries are not those that were signed"
                )
        return len(rows)

    def export(self, *kept: str) -> Iterator[str]:
        """The ledger as JSON lines: each entry with its hash and root, then `kept` checkpoints, then its own.

        `sfumato audit verify` reads it; see `sfumato.privacy.export`.
        """
        with self._engine.begin() as connection:
            rows = connection.execute(sa.select(storage.entries).order_by(_e.seq)).all()
        yield from (entry_line(row.entry, row.hash, row.root) for row in rows)
        last = next(row for row in reversed(rows) if row.signature or self._signer)
        yield from map(checkpoint_line, (*kept, self._note(last)))

    def close(self) -> None:
        self._engine.dispose()


def _origin(branch: str, signer: Ed25519PrivateKey) -> str:
    return branch_origin(branch) if branch else coordinator_origin(signer.public_key())


def _within(transaction: Transaction, size: int) -> None:
    known, _ = transaction.head()
    if size > known:
        raise ValueError(f"Expected a size={size} of at most {known} entries.")


def _readable(raw: bytes, digest: str) -> Entry:
    try:
        return parse_entry(raw, digest)
    except ValueError:
        raise LedgerBroken("the ledger holds an entry that is not readable; verify it") from None
