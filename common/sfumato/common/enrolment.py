"""What a coordinator and a branch hand each other before they ever connect: an invitation, an enrolment, members.

All are public JSON files, carried by a person. The invitation pins the coordinator (its CA, the risk team's job
key, the key of its ledger); the enrolment gives the branch's two public keys; the members are every branch's ledger
key, which each branch pins before it joins a secure sum. Private keys stay where they were made.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509 import load_pem_x509_certificate
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sfumato.common.canonical import canonical_bytes
from sfumato.common.contract import validation_lines
from sfumato.common.errors import BadInput

SESSION_DOMAIN = b"sfumato-session-v1\x00"
NODE_CURVE = ec.SECP384R1
BranchName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9\-]{0,62}$")]
Address = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.\-]+):[0-9]{1,5}$")]
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Public(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    what: ClassVar[str]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check the file. Raises BadInput naming the file and each fault."""
        try:
            return cls.model_validate(json.loads(path.read_bytes()))
        except FileNotFoundError:
            raise BadInput(f"{path}: no such file") from None
        except OSError as e:
            raise BadInput(f"{path}: cannot be read ({e.strerror})") from None
        except ValidationError as e:
            raise BadInput(f"{path}: not a valid {cls.what}\n  {validation_lines(e)}") from None
        except (ValueError, RecursionError):
            raise BadInput(f"{path}: not JSON") from None

    def dump(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), indent=2).encode() + b"\n"


class Invitation(_Public):
    """Coordinator to branch. `superlink` and `session` are host:port; keys are raw Ed25519 in base64."""

    what = "invitation"
    format: Literal[1] = 1
    superlink: Address
    session: Address
    ca: str
    job_public_key: str
    ledger_public_key: str
    bundle_hash: Hash

    @model_validator(mode="after")
    def _readable(self) -> Self:
        load_pem_x509_certificate(self.ca.encode())
        ed25519_public_key(self.job_public_key)
        ed25519_public_key(self.ledger_public_key)
        return self


class Enrolment(_Public):
    """Branch to coordinator. `node_public_key` is PEM (P-256 or P-384): what Flower registers."""

    what = "enrolment"
    format: Literal[1] = 1
    name: BranchName
    node_public_key: str
    ledger_public_key: str

    @model_validator(mode="after")
    def _readable(self) -> Self:
        node_public_key(self.node_public_key.encode())
        ed25519_public_key(self.ledger_public_key)
        return self


class Member(_Public):
    """One branch as the others know it: its name, and the key that signs its ledger and its job keys."""

    what = "member"
    name: BranchName
    ledger_public_key: str

    @model_validator(mode="after")
    def _readable(self) -> Self:
        ed25519_public_key(self.ledger_public_key)
        return self

    @property
    def key(self) -> Ed25519PublicKey:
        return ed25519_public_key(self.ledger_public_key)


class Members(_Public):
    """Every enrolled branch, each name and each key once: what a coordinator hands out and a vault pins.

    Not to be confused with `messages.Roster`, the fresh keys of one job, which these keys must have signed.
    """

    what = "list of members"
    format: Literal[1] = 1
    members: Annotated[tuple[Member, ...], Field(max_length=10_000)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names: set[str] = set()
        owners: dict[bytes, str] = {}
        for member in self.members:
            if member.name in names:
                raise ValueError(f"branch {member.name!r} is named twice")
            names.add(member.name)
            other = owners.setdefault(member.key.public_bytes_raw(), member.name)
            if other != member.name:
                raise ValueError(f"branches {other!r} and {member.name!r} have the same key")
        return self

    @classmethod
    def of(cls, keys: dict[str, Ed25519PublicKey]) -> Self:
        """Sorted by name. Raises BadInput when two branches have one key."""
        members = [Member(name=name, ledger_public_key=ed25519_text(keys[name])) for name in sorted(keys)]
        try:
            return cls(members=tuple(members))
        except ValidationError as e:
            raise BadInput(f"not a valid {cls.what}\n  {validation_lines(e)}") from None

    @property
    def keys(self) -> dict[str, Ed25519PublicKey]:
        return {m.name: m.key for m in self.members}


def fingerprint(key: Ed25519PublicKey) -> str:
    """The first 96 bits of the raw key's SHA-256, in groups of four hex digits: to be read out by telephone."""
    digits = hashlib.sha256(key.public_bytes_raw()).hexdigest()[:24]
    return " ".join(digits[i : i + 4] for i in range(0, 24, 4))


def ed25519_public_key(text: str) -> Ed25519PublicKey:
    """The key behind its base64. Raises ValueError."""
    return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))


def ed25519_text(key: Ed25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes_raw()).decode()


def node_public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """A node's key. Raises ValueError unless it is PEM and on a curve that Flower admits."""
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError:
        raise ValueError("the node key is not a PEM public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, ec.SECP384R1 | ec.SECP256R1
    ):
        raise ValueError("the node key must be ECDSA on P-384 or P-256")
    return key


def new_node_key() -> tuple[bytes, bytes]:
    """A fresh node key pair: the private one as OpenSSH (what `flower-supernode` reads), the public as PEM."""
    key = ec.generate_private_key(NODE_CURVE())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return private, public_pem(key)


def load_node_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    """The private key of a node. Raises ValueError."""
    key = serialization.load_ssh_private_key(data, None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("the node key is not ECDSA")
    return key


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def session_claim(*, nonce: bytes, run_id: int, node_id: int, session: str) -> bytes:
    """The bytes a courier signs to enter a session: fresh nonce, this run, this node, this session."""
    return SESSION_DOMAIN + canonical_bytes(
        {"nonce": nonce.hex(), "run": str(run_id), "node": str(node_id), "session": session}
    )


def sign_claim(key: ec.EllipticCurvePrivateKey, claim: bytes) -> bytes:
    return key.sign(claim, ec.ECDSA(hashes.SHA384()))


def verify_claim(key: ec.EllipticCurvePublicKey, claim: bytes, signature: bytes) -> None:
    """Raise InvalidSignature unless the key's owner signed this claim (ECDSA, SHA-384)."""
    if len(signature) > 256:
        raise InvalidSignature
    key.verify(signature, claim, ec.ECDSA(hashes.SHA384()))
