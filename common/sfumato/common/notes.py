"""Signed notes, checkpoints and cosignatures, as C2SP specifies them: what any transparency tool can check.

A note is a text, an empty line, and signature lines (c2sp.org/signed-note). A checkpoint is a note whose text
names a log, its size and its Merkle root (c2sp.org/tlog-checkpoint, without extension lines). A cosignature
says when somebody else saw that checkpoint continue all that they saw before (c2sp.org/tlog-cosignature, v1).
Keys are Ed25519; roots are 64 hex digits here and base64 in the note.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from sfumato.common.errors import LedgerBroken

ED25519 = 0x01
COSIGNATURE = 0x04
MAX_NOTE = 1 << 20  # characters
_NAME = re.compile(r"[^\s+\x00-\x20]{1,200}")
_LINE = re.compile(r"— (\S+) (\S+)")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")


def branch_origin(branch: str) -> str:
    """How a branch's ledger, and the branch as a cosigner, is called in notes."""
    return f"sfumato/branch/{branch}"


def coordinator_origin(key: Ed25519PublicKey) -> str:
    """A coordinator has no name of its own; its ledger is called by its key."""
    return f"sfumato/coordinator/{hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]}"


def key_id(name: str, key: Ed25519PublicKey, algorithm: int = ED25519) -> bytes:
    """The four bytes that name a key in a signature line."""
    data = name.encode() + b"\n" + bytes([algorithm]) + key.public_bytes_raw()
    return hashlib.sha256(data).digest()[:4]


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line: whose, by which key, and the bytes (of a cosignature: timestamp and signature)."""

    name: str
    key_id: bytes
    data: bytes

    def __str__(self) -> str:
        return f"— {self.name} {base64.b64encode(self.key_id + self.data).decode()}\n"

    @classmethod
    def parse(cls, line: str) -> Self:
        """Raises ValueError unless this is one line, written the only way there is."""
        match = _LINE.fullmatch(line.removesuffix("\n"))
        if match is None or _NAME.fullmatch(match[1]) is None:
            raise ValueError("not a signature line")
        data = _from_base64(match[2])
        if len(data) < 5:
            raise ValueError("not a signature line")
        return cls(match[1], data[:4], data[4:])


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A text and the signatures under it. `str` gives the note's only form."""

    text: str
    signatures: tuple[Signature, ...]

    def __str__(self) -> str:
        return self.text + "\n" + "".join(map(str, self.signatures))

    @classmethod
    def parse(cls, note: str) -> Self:
        """Raises ValueError for what is no signed note."""
        text, blank, block = note.rpartition("\n\n")
        if not blank or not text or not block.endswith("\n") or len(note) > MAX_NOTE:
            raise ValueError("not a signed note")
        if any(ord(c) < 0x20 and c != "\n" for c in note):
            raise ValueError("a signed note has no control characters")
        return cls(text + "\n", tuple(Signature.parse(line) for line in block[:-1].split("\n")))

    def verify(self, name: str, key: Ed25519PublicKey) -> None:
        """Raise LedgerBroken unless this key signed the text, under this name."""
        for signature in self._of(name, key, ED25519):
            try:
                key.verify(signature.data, self.text.encode())
            except InvalidSignature:
                raise LedgerBroken(f"the note is not signed by {name}: its signature is wrong") from None

    def cosigned_at(self, name: str, key: Ed25519PublicKey) -> datetime:
        """When this key cosigned. Raises LedgerBroken if it did not, or its signature is wrong."""
        times = []
        for signature in self._of(name, key, COSIGNATURE):
            seconds = int.from_bytes(signature.data[:8])
            try:
                key.verify(signature.data[8:], _cosigned_bytes(self.text, seconds))
                times.append(datetime.fromtimestamp(seconds, UTC))
            except (InvalidSignature, ValueError, OverflowError, OSError):
                raise LedgerBroken(f"the cosignature of {name} is wrong") from None
        return max(times)

    def with_signatures(self, lines: Iterable[str]) -> Self:
        """The same note under more lines. A line that is there stays single. Raises ValueError."""
        parsed = [*self.signatures, *map(Signature.parse, lines)]
        return type(self)(self.text, tuple(dict.fromkeys(parsed)))

    def _of(self, name: str, key: Ed25519PublicKey, algorithm: int) -> list[Signature]:
        wanted = (name, key_id(name, key, algorithm))
        found = [s for s in self.signatures if (s.name, s.key_id) == wanted]
        if not found:
            raise LedgerBroken(f"the note is not signed by {name} with the key that was given")
        return found


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where a log stood: its name, the number of its entries, and the Merkle root over them (hex)."""

    origin: str
    size: int
    root: str

    @property
    def text(self) -> str:
        return f"{self.origin}\n{self.size}\n{base64.b64encode(bytes.fromhex(self.root)).decode()}\n"

    @classmethod
    def parse(cls, note: str) -> Self:
        """The checkpoint in a signed note, its signatures unchecked. Raises ValueError."""
        text = SignedNote.parse(note).text
        lines = text.split("\n")
        if len(lines) != 4 or not lines[0] or _SIZE.fullmatch(lines[1]) is None:
            raise ValueError("not a checkpoint")
        root = _from_base64(lines[2])
        if len(root) != 32:
            raise ValueError("not a checkpoint")
        return cls(lines[0], int(lines[1]), root.hex())


def sign_checkpoint(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> str:
    """The checkpoint as a note, signed by the log itself: the key's name is the origin."""
    public, text = key.public_key(), checkpoint.text
    signature = Signature(checkpoint.origin, key_id(checkpoint.origin, public), key.sign(text.encode()))
    return str(SignedNote(text, (signature,)))


def verify_checkpoint(note: str, origin: str, key: Ed25519PublicKey) -> Checkpoint:
    """The checkpoint, if the log of this origin signed it with this key. Raises LedgerBroken."""
    try:
        checkpoint = Checkpoint.parse(note)
    except ValueError as e:
        raise LedgerBroken(f"what should be a checkpoint of {origin} is none: {e}") from None
    if checkpoint.origin != origin:
        raise LedgerBroken(f"the checkpoint is not one of {origin} but of {checkpoint.origin}")
    SignedNote.parse(note).verify(origin, key)
    return checkpoint


def cosignature(note: str, name: str, key: Ed25519PrivateKey, moment: datetime) -> str:
    """One signature line: `name` saw this checkpoint, at this second, as the latest of its log."""
    seconds = int(moment.timestamp())
    signed = key.sign(_cosigned_bytes(SignedNote.parse(note).text, seconds))
    identity = key_id(name, key.public_key(), COSIGNATURE)
    return str(Signature(name, identity, seconds.to_bytes(8) + signed))


def _cosigned_bytes(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def _from_base64(text: str) -> bytes:
    """Raises ValueError also where some bits are not used: one byte string has one text."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ValueError("not base64") from None
    if base64.b64encode(data).decode() != text:
        raise ValueError("not base64 in its only form")
    return data
