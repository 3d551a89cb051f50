"""The ledger: an append-only, hash-chained record of everything a branch released, refused or opened.

Entry n is canonical JSON that holds the hash of entry n-1; its own hash is SHA-256(0x00 || bytes), the leaf
hash of RFC 9162 section 2.1.1, so that a Merkle log can be laid over the same entries. Heads are signed with
the branch's enrolled Ed25519 key. An append is durable (fsync) before it returns; processes may share a ledger.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sfumato.common.canonical import canonical_bytes
from sfumato.common.errors import BadInput, LedgerBroken
from sfumato.common.messages import LedgerHead

NO_ENTRY = "0" * 64

_metadata = sa.MetaData()
_entries = sa.Table(
    "entries",
    _metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(32), nullable=False, index=True),
    sa.Column("job_id", sa.String(32), nullable=True, index=True),
    sa.Column("entry", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
_answers = sa.Table(
    "answers",
    _metadata,
    sa.Column("job_id", sa.String(32), primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("what", sa.String(32), primary_key=True),
    sa.Column("members", sa.String(64), primary_key=True),  # hash of the set of a secure sum, else empty
    sa.Column("question", sa.String(64), nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger, as it was written."""

    seq: int
    time: datetime
    kind: str
    job_id: str | None
    body: dict[str, Any]
    prev: str
    hash: str


def entry_hash(entry: bytes) -> str:
    return hashlib.sha256(b"\x00" + entry).hexdigest()


class Transaction:
    """Exclusive access: what is read stays true until what is written is durable."""

    def __init__(self, connection: sa.Connection, now: datetime) -> None:
        self._connection = connection
        self._now = now

    def head(self) -> tuple[int, str]:
        """Number of entries, and the hash of the last."""
        row = self._connection.execute(
            sa.select(_entries.c.seq, _entries.c.hash).order_by(_entries.c.seq.desc()).limit(1)
        ).first()
        return (row.seq + 1, row.hash) if row else (0, NO_ENTRY)

    def entries(self, *kinds: str, job_id: str | None = None, after: int = -1) -> list[Entry]:
        """Entries of these kinds (all if none is named), of this job, with a number above `after`; in order."""
        query = sa.select(_entries).where(_entries.c.seq > after).order_by(_entries.c.seq)
        if kinds:
            query = query.where(_entries.c.kind.in_(kinds))
        if job_id is not None:
            query = query.where(_entries.c.job_id == job_id)
        return [_parse(row.entry, row.hash) for row in self._connection.execute(query)]

    def append(self, kind: str, body: dict[str, Any], *, job_id: str | None = None) -> Entry:
        """Write one entry. It is durable when the transaction ends."""
        size, prev = self.head()
        raw = canonical_bytes(
            {
                "seq": size,
                "time": self._now.isoformat(),
                "kind": kind,
                "job_id": job_id,
                "body": body,
                "prev": prev,
            }
        )
        digest = entry_hash(raw)
        self._connection.execute(
            _entries.insert().values(seq=size, kind=kind, job_id=job_id, entry=raw, hash=digest)
        )
        return _parse(raw, digest)

    def answered(self, job_id: str, round_: int, what: str, members: str = "") -> tuple[str, bytes] | None:
        """The hash of the question and the stored answer, if this was answered before."""
        row = self._connection.execute(
            sa.select(_answers.c.question, _answers.c.answer).where(
                _answers.c.job_id == job_id,
                _answers.c.round == round_,
                _answers.c.what == what,
                _answers.c.members == members,
            )
        ).first()
        return (row.question, row.answer) if row else None

    def store_answer(
        self, job_id: str, round_: int, what: str, question: str, answer: bytes, members: str = ""
    ) -> None:
        self._connection.execute(
            _answers.insert().values(
                job_id=job_id, round=round_, what=what, members=members, question=question, answer=answer
            )
        )


class Ledger:
    """A branch's ledger in one SQLite file (0600)."""

    def __init__(
        self, path: Path, engine: sa.Engine, *, branch: str, signer: Ed25519PrivateKey | None
    ) -> None:
        self.path = path
        self.branch = branch
        self._engine = engine
        self._signer = signer

    @classmethod
    def create(cls, path: Path, *, branch: str, signer: Ed25519PrivateKey, genesis: dict[str, Any]) -> Self:
        """A new ledger whose entry 0 states branch, budget and key. Raises BadInput if one is there."""
        if path.exists():
            raise BadInput(f"{path}: a ledger is there already", hint="A ledger is never started over.")
        path.touch(mode=0o600, exist_ok=False)
        engine = _engine(path)
        _metadata.create_all(engine)
        ledger = cls(path, engine, branch=branch, signer=signer)
        key = base64.b64encode(signer.public_key().public_bytes_raw()).decode()
        ledger.append("genesis", {**genesis, "branch": branch, "public_key": key})
        return ledger

    @classmethod
    def open(cls, path: Path, *, branch: str, signer: Ed25519PrivateKey) -> Self:
        """An existing ledger. Raises BadInput if there is none, LedgerBroken if it is another branch's."""
        if not path.is_file():
            raise BadInput(
                f"{path}: no ledger here", hint="Was this branch set up with `sfumato branch init`?"
            )
        ledger = cls(path, _engine(path), branch=branch, signer=signer)
        key = base64.b64encode(signer.public_key().public_bytes_raw()).decode()
        if ledger.genesis.get("branch") != branch or ledger.genesis.get("public_key") != key:
            raise LedgerBroken(f"{path}: entry 0 names another branch or key")
        return ledger

    @classmethod
    def read(cls, path: Path) -> Self:
        """An existing ledger, to look at and verify without any key. Raises BadInput if there is none."""
        if not path.is_file():
            raise BadInput(
                f"{path}: no ledger here", hint="Was this branch set up with `sfumato branch init`?"
            )
        ledger = cls(path, _engine(path), branch="", signer=None)
        ledger.branch = str(ledger.genesis.get("branch"))
        return ledger

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that entry 0 names."""
        try:
            return Ed25519PublicKey.from_public_bytes(base64.b64decode(self.genesis["public_key"]))
        except (KeyError, ValueError):
            raise LedgerBroken(f"{self.path}: entry 0 names no key") from None

    @contextmanager
    def exclusive(self) -> Iterator[Transaction]:
        """Read, decide and write as one step. Rolls back on an exception."""
        with self._engine.begin() as connection:
            yield Transaction(connection, datetime.now(UTC))

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

    def signed_head(self) -> LedgerHead:
        """Size and head hash, signed: whoever keeps it can tell later whether history was rewritten."""
        with self.exclusive() as transaction:
            size, head = transaction.head()
        if self._signer is None:
            raise ValueError("a ledger opened with `read` cannot sign")
        signature = self._signer.sign(LedgerHead.signed_bytes(self.branch, size, head))
        return LedgerHead(size=size, head=head, signature=base64.b64encode(signature).decode())

    def verify(self, *kept: LedgerHead) -> int:
        """Recompute the chain and compare it with heads kept elsewhere. Returns the number of entries.

        Raises LedgerBroken that names the first bad entry.
        """
        with self._engine.begin() as connection:
            rows = connection.execute(sa.select(_entries).order_by(_entries.c.seq)).all()
        lines = [(row.entry, row.hash, row.kind, row.job_id) for row in rows]
        return verify_chain(lines, str(self.path), kept, self.branch, self.public_key)

    def export(self) -> Iterator[str]:
        """The ledger as JSON lines: one entry with its hash a line, then nothing."""
        with self._engine.begin() as connection:
            for row in connection.execute(sa.select(_entries).order_by(_entries.c.seq)):
                yield json.dumps({"entry": row.entry.decode(), "hash": row.hash}, ensure_ascii=False)

    def close(self) -> None:
        self._engine.dispose()


def verify_chain(
    lines: list[tuple[bytes, str, str, str | None]],
    name: str,
    kept: tuple[LedgerHead, ...] = (),
    branch: str | None = None,
    key: Ed25519PublicKey | None = None,
) -> int:
    """Check (bytes, hash, kind, job id) lines as one chain, and kept heads against it; see `verify`."""
    prev, hashes = NO_ENTRY, [NO_ENTRY]
    for seq, (raw, digest, kind, job_id) in enumerate(lines):
        try:
            entry = _parse(raw, digest)
        except (ValueError, KeyError, TypeError):
            raise LedgerBroken(f"{name}: entry {seq} is not readable") from None
        if entry_hash(raw) != digest:
            raise LedgerBroken(f"{name}: entry {seq} was altered (its hash does not match)")
        if entry.seq != seq or entry.prev != prev:
            raise LedgerBroken(f"{name}: entry {seq} does not follow entry {seq - 1}")
        if (entry.kind, entry.job_id) != (kind, job_id):
            raise LedgerBroken(f"{name}: entry {seq} is filed under another kind or job")
        prev = digest
        hashes.append(digest)
    for head in kept:
        if key is not None:
            head.verify(branch or "", key)
        if head.size >= len(hashes) or hashes[head.size] != head.head:
            raise LedgerBroken(
                f"{name}: history differs from the head kept at size {head.size}; "
                f"the first {min(head.size, len(lines))} entries are not those that were signed"
            )
    return len(lines)


def _parse(raw: bytes, digest: str) -> Entry:
    data = json.loads(raw)
    return Entry(
        seq=data["seq"],
        time=datetime.fromisoformat(data["time"]),
        kind=data["kind"],
        job_id=data["job_id"],
        body=data["body"],
        prev=data["prev"],
        hash=digest,
    )


def _engine(path: Path) -> sa.Engine:
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 30}, poolclass=sa.pool.NullPool)

    # The driver's own transaction handling delays BEGIN until the first write, so a reader could decide on
    # stale spending: take the write lock first.
    @sa.event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA synchronous=FULL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
