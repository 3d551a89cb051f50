"""Envelope encryption: named data keys, wrapped by a key-encryption key that lives elsewhere.

A `Keyring` is one file (JSON, 0600) of wrapped data keys. A `KeyProvider` wraps and unwraps them: a passphrase
today, an HSM or a KMS by the same two calls. Rotation re-wraps the keys and touches no data; destroying a key
makes everything sealed under it unreadable (crypto-shredding). The whole file is authenticated under the
provider: an entry that was removed, moved or altered is noticed before any key is used.
"""

import base64
import fcntl
import hashlib
import json
import os
import secrets
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from sfumato.common.canonical import canonical_bytes
from sfumato.common.errors import BadInput, Insecure
from sfumato.common.private_files import replace, write_new

KEY_BYTES = 32
NONCE_BYTES = 12
MIN_PASSPHRASE = 8
FORMAT = "sfumato-keyring"
VERSION = 1
MAX_FILE_BYTES = 1 << 22

_NOT_OPEN = (
    "does not open: the passphrase (or key provider) is not the one it was made with, or it was altered"
)


class UnwrapFailed(Exception):
    """A wrapped key does not open: wrong key-encryption key, wrong context, or altered bytes."""


class KeyProvider(Protocol):
    """Whoever holds the key-encryption key. An HSM or KMS implements the same three calls.

    `context` is bound to the wrapped key: `unwrap` with another context raises UnwrapFailed.
    """

    def wrap(self, key: bytes, context: bytes) -> bytes: ...

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes: ...

    def describe(self) -> dict[str, Any]:
        """What the keyring file may say about this provider: JSON, nothing secret."""
        ...


class KeySource(Protocol):
    """Whatever hands out 32-byte data keys by name: a Keyring, or EphemeralKeys."""

    def data_key(self, name: str) -> bytes: ...


class _Unpicklable:
    """Keys live in one process: they are never pickled, copied to a child or printed."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be pickled: it holds keys")


class EphemeralKeys(_Unpicklable):
    """Random data keys that are never written anywhere: what they sealed dies with the object."""

    def __init__(self) -> None:
        self._keys: dict[str, bytes] = {}

    def data_key(self, name: str) -> bytes:
        return self._keys.setdefault(name, secrets.token_bytes(KEY_BYTES))

    def __repr__(self) -> str:
        return f"EphemeralKeys({len(self._keys)} keys)"


class PassphraseKeyProvider(_Unpicklable):
    """Key-encryption key from a passphrase: Argon2id (RFC 9106), then AES-256-GCM key wrap with the context bound.

    The defaults are RFC 9106's second recommended parameters (64 MiB, 3 passes, 4 lanes). Parameters and salt
    stand in the keyring file; absurd ones are refused before any memory is spent. A new passphrase has at least
    8 characters (raises BadInput); it is compared in Unicode NFC.
    """

    def __init__(
        self,
        passphrase: str,
        *,
        salt: bytes | None = None,
        iterations: int = 3,
        lanes: int = 4,
        memory_kib: int = 64 * 1024,
    ) -> None:
        if len(passphrase) < MIN_PASSPHRASE:
            raise BadInput(
                f"the passphrase has fewer than {MIN_PASSPHRASE} characters", hint="Use several words."
            )
        self._salt = secrets.token_bytes(16) if salt is None else salt
        self._cost = {"iterations": iterations, "lanes": lanes, "memory_kib": memory_kib}
        _check_argon2(self._salt, self._cost)
        secret = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogatepass")
        kek = Argon2id(
            salt=self._salt, length=KEY_BYTES, iterations=iterations, lanes=lanes, memory_cost=memory_kib
        ).derive(secret)
        self._aead = AESGCM(kek)

    @classmethod
    def from_description(cls, description: dict[str, Any], passphrase: str) -> "PassphraseKeyProvider":
        """The provider a keyring file describes. Raises BadInput when the description is not one."""
        try:
            if set(description) != {"kind", "kdf", "salt", "iterations", "lanes", "memory_kib"}:
                raise ValueError
            if (description["kind"], description["kdf"]) != ("passphrase", "argon2id"):
                raise ValueError
            cost = {k: description[k] for k in ("iterations", "lanes", "memory_kib")}
            salt = base64.b64decode(description["salt"], validate=True)
            _check_argon2(salt, cost)
        except (TypeError, ValueError):
            raise BadInput("the keyring's key-derivation parameters are not ones we accept") from None
        if len(passphrase) < MIN_PASSPHRASE:  # cannot be right; the same answer as any wrong one
            raise UnwrapFailed
        return cls(passphrase, salt=salt, **cost)

    def wrap(self, key: bytes, context: bytes) -> bytes:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + self._aead.encrypt(nonce, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        try:
            return self._aead.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise UnwrapFailed from None

    def describe(self) -> dict[str, Any]:
        salt = base64.b64encode(self._salt).decode()
        return {"kind": "passphrase", "kdf": "argon2id", "salt": salt, **self._cost}

    def __repr__(self) -> str:
        return "PassphraseKeyProvider(argon2id)"


def _check_argon2(salt: bytes, cost: dict[str, Any]) -> None:
    """Between 8 MiB and 1 GiB, at most 16 passes and lanes. Raises ValueError: a file must not exhaust us."""
    if any(type(v) is not int for v in cost.values()):
        raise ValueError("Argon2id parameters are integers")
    if not (1 <= cost["iterations"] <= 16 and 1 <= cost["lanes"] <= 16):
        raise ValueError("Argon2id takes 1 to 16 iterations and lanes")
    if not 8 * 1024 <= cost["memory_kib"] <= 1024 * 1024:
        raise ValueError("Argon2id takes 8 MiB to 1 GiB of memory")
    if not 16 <= len(salt) <= 64:
        raise ValueError("Argon2id takes a salt of 16 to 64 bytes")


class Keyring(_Unpicklable):
    """Wrapped data keys by name, in one file. Made by `create` or `open`; safe across threads and processes."""

    def __init__(self, path: Path, provider: KeyProvider, document: dict[str, Any]) -> None:
        self._path = path
        self._provider = provider
        self._document = document
        self._cache: dict[str, bytes] = {}
        self._mutex = threading.RLock()

    @classmethod
    def create(cls, path: Path, provider: KeyProvider) -> "Keyring":
        """Make an empty keyring file, 0600. Raises BadInput when a file of that name exists."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "id": secrets.token_hex(16),
            "provider": provider.describe(),
            "keys": {},
            "destroyed": [],
        }
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_new(path, _sealed_bytes(document, provider))
        return cls(path, provider, document)

    @classmethod
    def open(
        cls, path: Path, passphrase: str | None = None, *, provider: KeyProvider | None = None
    ) -> "Keyring":
        """Open by passphrase, or by another provider. Raises Insecure (permissions) or BadInput (anything else).

        A wrong passphrase and an altered file give the same answer.
        """
        if (passphrase is None) == (provider is None):
            raise TypeError("give a passphrase or a provider")
        document, seal = _read(path)
        try:
            if provider is None:
                assert passphrase is not None
                provider = PassphraseKeyProvider.from_description(document["provider"], passphrase)
            _check_seal(document, seal, provider)
        except UnwrapFailed:
            raise BadInput(f"{path}: {_NOT_OPEN}", hint="Check the passphrase.") from None
        return cls(path, provider, document)

    @property
    def path(self) -> Path:
        return self._path

    def names(self) -> list[str]:
        """The names of the living keys, sorted."""
        with self._mutex:
            return sorted(self._document["keys"])

    def data_key(self, name: str) -> bytes:
        """The 32-byte key of that name, made and written on first use. Raises BadInput once it is destroyed."""
        with self._mutex:
            if name not in self._cache:
                if name not in self._document["keys"]:
                    self._update(lambda document: self._ensure(document, name))
                self._cache[name] = self._unwrap(name)
            return self._cache[name]

    def rotate(self, new_provider: KeyProvider) -> None:
        """Wrap every key anew, under another key-encryption key. No data is touched.

        One atomic rename: a crash leaves the old file or the new one, whole. Backups of the old file still
        open with the old passphrase: delete them.
        """

        def rewrap(document: dict[str, Any]) -> None:
            keys = {}
            for name, wrapped in document["keys"].items():
                context = _context(document["id"], name)
                key = self._provider.unwrap(_unbase64(wrapped), context)
                keys[name] = base64.b64encode(new_provider.wrap(key, context)).decode()
            document["keys"] = keys
            document["provider"] = new_provider.describe()

        with self._mutex:
            self._update(rewrap, sealed_by=new_provider)
            self._provider = new_provider

    def destroy(self, name: str) -> None:
        """Destroy a key for good: what it sealed cannot be opened again (once backups of this file are gone).

        The name stays as a tombstone, so that nothing is ever sealed under a quietly renewed key. Raises BadInput
        when there is no such key.
        """

        def forget(document: dict[str, Any]) -> None:
            if document["keys"].pop(name, None) is None:
                raise BadInput(f"{self._path}: holds no key {name!r}")
            document["destroyed"] = sorted({*document["destroyed"], name})

        with self._mutex:
            self._update(forget)
            self._cache.pop(name, None)

    def _ensure(self, document: dict[str, Any], name: str) -> None:
        if name in document["destroyed"]:
            raise BadInput(
                f"{self._path}: the key {name!r} was destroyed", hint="What it sealed is gone for good."
            )
        if name not in document["keys"]:  # another process may have made it meanwhile
            wrapped = self._provider.wrap(secrets.token_bytes(KEY_BYTES), _context(document["id"], name))
            document["keys"][name] = base64.b64encode(wrapped).decode()

    def _unwrap(self, name: str) -> bytes:
        try:
            wrapped = _unbase64(self._document["keys"][name])
            key = self._provider.unwrap(wrapped, _context(self._document["id"], name))
        except UnwrapFailed:
            raise BadInput(f"{self._path}: {_NOT_OPEN}") from None
        if len(key) != KEY_BYTES:
            raise BadInput(f"{self._path}: the key {name!r} has the wrong length")
        return key

    def _update(
        self, change: Callable[[dict[str, Any]], None], *, sealed_by: KeyProvider | None = None
    ) -> None:
        """Read the file afresh under a lock, change it, put it back by rename."""
        with _locked(self._path.parent):
            document, seal = _read(self._path)
            try:
                _check_seal(document, seal, self._provider)
                change(document)
            except UnwrapFailed:
                hint = "If another process rotated it, open it again."
                raise BadInput(f"{self._path}: {_NOT_OPEN}", hint=hint) from None
            replace(self._path, _sealed_bytes(document, sealed_by or self._provider))
            self._document = document

    def __repr__(self) -> str:
        return f"Keyring({str(self._path)!r}, {len(self._document['keys'])} keys)"


def _context(ring: str, name: str) -> bytes:
    return f"sfumato-data-key-v1\0{ring}\0{name}".encode()


def _seal_context(ring: str) -> bytes:
    return f"sfumato-keyring-v1\0{ring}".encode()


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError):
        raise UnwrapFailed from None


def _sealed_bytes(document: dict[str, Any], provider: KeyProvider) -> bytes:
    """The file: the document and its digest, wrapped by the provider, so that only it can have written this."""
    digest = hashlib.sha256(canonical_bytes(document)).digest()
    seal = base64.b64encode(provider.wrap(digest, _seal_context(document["id"]))).decode()
    return json.dumps({**document, "seal": seal}, indent=1, ensure_ascii=False).encode("utf-8")


def _check_seal(document: dict[str, Any], seal: str, provider: KeyProvider) -> None:
    digest = hashlib.sha256(canonical_bytes(document)).digest()
    if not secrets.compare_digest(provider.unwrap(_unbase64(seal), _seal_context(document["id"])), digest):
        raise UnwrapFailed


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The document and its seal, unverified. Raises Insecure when others could read it, BadInput otherwise."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such keyring", hint="Make one with `sfumato branch init`.") from None
    except OSError as e:
        raise BadInput(f"{path}: cannot be opened ({e.strerror})") from None
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            raise BadInput(f"{path}: not a regular file")
        if stat.S_IMODE(mode) & 0o077:
            raise Insecure(
                f"{path}: group or others have access (mode {stat.S_IMODE(mode):04o})",
                hint="chmod 600 it, and think about who may have copied it.",
            )
        with os.fdopen(fd, "rb", closefd=False) as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    finally:
        os.close(fd)
    try:
        document = json.loads(raw.decode("utf-8"))
        seal = document.pop("seal")
        shape = {"format": str, "version": int, "id": str, "provider": dict, "keys": dict, "destroyed": list}
        if len(raw) > MAX_FILE_BYTES or set(document) != set(shape):
            raise ValueError
        if not all(type(document[k]) is t for k, t in shape.items()):
            raise ValueError
        if (document["format"], document["version"]) != (FORMAT, VERSION):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"{path}: not a keyring of version {VERSION}") from None
    return document, seal


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on the keyring's folder, across processes."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
