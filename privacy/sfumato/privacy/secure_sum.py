"""The secure sum's keys and masks: each pair of branches shares a keystream that one adds and the other subtracts.

Bonawitz et al. 2017 (CCS), section 4, without its recovery: nothing is ever unmasked, a drop means new masks for a
smaller set. X25519 (RFC 7748) under Ed25519-signed keys, HKDF-SHA256 (RFC 5869), AES-256-CTR (SP 800-38A); 256 bits
throughout. docs/protocol.md says what it proves.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sfumato.common.canonical import canonical_bytes
from sfumato.common.errors import Refusal, RefusalCode
from sfumato.common.job import SMALLEST_SET
from sfumato.common.messages import KeyShare
from sfumato.privacy import keystream

SHARE_DOMAIN = b"sfumato-key-share-v1\x00"
ROSTER_DOMAIN = b"sfumato-roster-v1\x00"
SET_DOMAIN = b"sfumato-set-v1\x00"
MASK_DOMAIN = b"sfumato-mask-v1\x00"
# Any scalar that is no multiple of the group's order takes exactly the points of low order to zero.
_PROBE = X25519PrivateKey.from_private_bytes(bytes(32))


class JobKey:
    """A branch's X25519 key for one job, in memory only; `share` is what others may see of it."""

    __slots__ = ("_masked", "_private", "job_id", "share")

    def __init__(
        self, job_id: str, branch: str, private: X25519PrivateKey, signer: Ed25519PrivateKey
    ) -> None:
        self._private = private
        self._masked: set[tuple[str, int, str]] = set()
        self.job_id = job_id
        public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
        signature = signer.sign(_share_bytes(job_id, branch, public))
        self.share = KeyShare(branch=branch, x25519=public, signature=base64.b64encode(signature).decode())

    @classmethod
    def fresh(cls, job_id: str, branch: str, signer: Ed25519PrivateKey) -> "JobKey":
        """A new key from the operating system's random source, signed with the branch's enrolled key."""
        return cls(job_id, branch, X25519PrivateKey.generate(), signer)

    def agree(self, other: X25519PublicKey) -> bytes:
        """The secret of the pair, 32 bytes. Raises ValueError for a point of low order."""
        return self._private.exchange(other)

    def unused(self, roster: str, round_: int, members: str) -> None:
        """Raise Refusal if this key made a mask for this roster, round and set (hashes) before."""
        if (roster, round_, members) in self._masked:
            raise Refusal(RefusalCode.ROUND_ALREADY_ANSWERED)

    def use_once(self, roster: str, round_: int, members: str) -> None:
        """Raise Refusal unless the mask is `unused`; from now on it is used."""
        self.unused(roster, round_, members)
        self._masked.add((roster, round_, members))

    def __repr__(self) -> str:
        return f"JobKey(job_id={self.job_id!r}, branch={self.share.branch!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a job's key is never copied: it lives and dies with its vault")


@dataclass(frozen=True, slots=True)
class CheckedRoster:
    """The keys of one job's branches, every one signed by a pinned branch. Made by `check_roster` alone."""

    job_id: str
    keys: Mapping[str, X25519PublicKey]
    hash: str

    @property
    def names(self) -> tuple[str, ...]:
        """Sorted."""
        return tuple(self.keys)


def job_context(job_id: str, job_hash: str) -> str:
    """What a job's keys are bound to, and with them rosters and masks; give it as `job_id` in this module.

    The id alone does not say how much noise each branch adds. Whoever signs jobs could open one with little noise at
    some branches and one with much noise at another, under one id: that one's share would hide behind too little.
    """
    return f"{job_id}:{job_hash}"


def check_roster(
    shares: Sequence[KeyShare], pinned: Mapping[str, Ed25519PublicKey], job_id: str, own: KeyShare
) -> CheckedRoster:
    """The roster, if all of it can be believed.

    Raises Refusal(BAD_ROSTER) on a branch that is not pinned, a signature that is not its own for this job, a name
    or a key twice, the own share missing or changed, or an X25519 point of low order.
    """
    ordered = sorted(shares, key=lambda share: share.branch)
    keys = {share.branch: _checked(share, pinned, job_id) for share in ordered}
    distinct = {key.public_bytes_raw() for key in keys.values()}
    if own not in ordered or not len(keys) == len(distinct) == len(ordered):
        raise Refusal(RefusalCode.BAD_ROSTER)
    return CheckedRoster(job_id, keys, roster_hash(shares))


def roster_hash(shares: Sequence[KeyShare]) -> str:
    """Names a roster: SHA-256 of domain and the canonical bytes of branches and keys, sorted, in hex."""
    ordered = sorted(shares, key=lambda share: share.branch)
    members = [{"branch": share.branch, "x25519": share.x25519} for share in ordered]
    content = ROSTER_DOMAIN + canonical_bytes(members)
    return hashlib.sha256(content).hexdigest()


def _checked(share: KeyShare, pinned: Mapping[str, Ed25519PublicKey], job_id: str) -> X25519PublicKey:
    try:
        signature = base64.b64decode(share.signature, validate=True)
        pinned[share.branch].verify(signature, _share_bytes(job_id, share.branch, share.x25519))
        key = X25519PublicKey.from_public_bytes(base64.b64decode(share.x25519, validate=True))
        _PROBE.exchange(key)
    except (KeyError, InvalidSignature, ValueError):
        raise Refusal(RefusalCode.BAD_ROSTER) from None
    return key


def _share_bytes(job_id: str, branch: str, x25519: str) -> bytes:
    return SHARE_DOMAIN + canonical_bytes({"job_id": job_id, "branch": branch, "x25519": x25519})


def set_hash(members: Sequence[str]) -> str:
    """Names a set of branches: SHA-256 of domain and the canonical bytes of its sorted names, in hex."""
    return hashlib.sha256(SET_DOMAIN + canonical_bytes(sorted(members))).hexdigest()


class Pairing:
    """One branch's masks within one roster. Raises ValueError if the key is not the one in the roster."""

    def __init__(self, own: JobKey, roster: CheckedRoster) -> None:
        self._own, self._roster, self._name = own, roster, own.share.branch
        listed = roster.keys.get(self._name)
        public = base64.b64decode(own.share.x25519)
        if own.job_id != roster.job_id or listed is None or listed.public_bytes_raw() != public:
            raise ValueError("Expected a roster of this job that holds this key.")
        self._secrets: dict[str, bytes] = {}

    @property
    def roster_hash(self) -> str:
        return self._roster.hash

    @property
    def names(self) -> tuple[str, ...]:
        """Whose keys are in the roster."""
        return self._roster.names

    def check(self, *, round_: int, members: Sequence[str]) -> None:
        """Raise Refusal where `mask` would, before anything is paid for."""
        self._check(members)
        self._own.unused(self._roster.hash, round_, set_hash(members))

    def mask(self, vector: npt.NDArray[np.uint64], *, round_: int, members: Sequence[str]) -> None:
        """Add this branch's masks to a contiguous uint64 vector, in place, modulo 2^64.

        Over all `members` they cancel. Raises Refusal unless `members` are sorted, at least three, all in the roster
        and this branch among them; and when this round was masked for this set before, as two vectors under one
        mask give away their difference.
        """
        self._check(members)
        named = set_hash(members)
        self._own.use_once(self._roster.hash, round_, named)
        streams = [
            (self._key(other, round_, named, vector.size), self._name < other)
            for other in members
            if other != self._name
        ]
        keystream.apply(vector, streams)

    def _check(self, members: Sequence[str]) -> None:
        if not set(members) <= self._roster.keys.keys():
            raise Refusal(RefusalCode.UNKNOWN_ROSTER)
        if list(members) != sorted(set(members)) or self._name not in members:
            raise Refusal(RefusalCode.BAD_FRAME)
        if len(members) < SMALLEST_SET:
            raise Refusal(RefusalCode.SET_TOO_SMALL)

    def _key(self, other: str, round_: int, named: str, length: int) -> bytes:
        secret = self._secrets.get(other)
        if secret is None:
            secret = self._secrets[other] = self._own.agree(self._roster.keys[other])
        info = MASK_DOMAIN + canonical_bytes(
            {
                "job_id": self._roster.job_id,
                "round": round_,
                "roster": self._roster.hash,
                "set": named,
                "pair": sorted((self._name, other)),
                "length": length,
            }
        )
        return HKDF(algorithm=SHA256(), length=keystream.KEY_BYTES, salt=None, info=info).derive(secret)

    def __repr__(self) -> str:
        return f"Pairing(branch={self._name!r}, roster={self._roster.hash[:16]!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("pair secrets are never copied")
