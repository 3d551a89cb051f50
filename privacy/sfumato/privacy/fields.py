"""Field-level encryption: columns of PII sealed chunk by chunk, and keyed tokens for identifiers.

`FieldCipher` makes one AES-256-GCM call (NIST SP 800-38D) a chunk of at most 8192 values, under a data key of the
field's own, so the AEAD costs nearly nothing a value. `Tokenizer` gives the same value the same pseudonym:
HMAC-SHA256 (RFC 2104), separated by purpose.
"""

import hashlib
import hmac
import secrets
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sfumato.common.errors import BadInput
from sfumato.privacy.keys import NONCE_BYTES, KeySource

CHUNK_VALUES = 8192
MAX_CHUNKS = 2**32
TOKEN_HEX_DIGITS = 32
VERSION = 1

_HEADER = struct.Struct("<BI")  # version, count; then the nonce, then ciphertext and tag
_U64 = struct.Struct("<Q")
_TAG_BYTES = 16


class FieldCipher:
    """Seals and opens chunks of one column under the data key `field:{table}.{column}`.

    A sealed chunk is  version u8 | count u32 | nonce 12 B | ciphertext | tag 16 B;  version, count, table, column
    and chunk number are associated data, so a chunk opens only in its own place. The plaintext is a validity
    bitmap, count lengths (u32) and the UTF-8 bytes.

    Nonces are 96 random bits. SP 800-38D (8.3) allows 2^32 of them under one key: chunk numbers are below 2^32
    and the store never uses a number twice, which keeps the limit (3.5e13 values a field). Lengths are not hidden
    beyond the chunk's total.
    """

    def __init__(self, keyring: KeySource) -> None:
        self._keys = keyring

    def seal(
        self, values: "Sequence[str | None] | pa.Array", *, table: str, column: str, chunk: int
    ) -> bytes:
        """Seal 0 to 8192 values (str or None; or an Arrow string array). Raises ValueError on anything else."""
        array = _string_array(values)
        if len(array) > CHUNK_VALUES:
            raise ValueError(f"a chunk holds at most {CHUNK_VALUES} values, got {len(array)}")
        bound = _associated_data(table, column, chunk, len(array))
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = self._aead(table, column).encrypt(nonce, _pack(array), bound)
        return _HEADER.pack(VERSION, len(array)) + nonce + sealed

    def open(self, sealed: bytes, *, table: str, column: str, chunk: int) -> list[str | None]:
        """The values of a sealed chunk. Raises BadInput when it was altered, moved, or sealed under another key."""
        values: list[str | None] = self.open_array(
            sealed, table=table, column=column, chunk=chunk
        ).to_pylist()
        return values

    def open_array(self, sealed: bytes, *, table: str, column: str, chunk: int) -> pa.Array:
        """As `open`, as an Arrow string array."""
        failed = BadInput(
            f"{table}.{column}: sealed chunk {chunk} does not open: altered, moved, or sealed under another key"
        )
        if len(sealed) < _HEADER.size + NONCE_BYTES + _TAG_BYTES:
            raise failed
        version, count = _HEADER.unpack_from(sealed)
        if version != VERSION or count > CHUNK_VALUES:
            raise failed
        bound = _associated_data(table, column, chunk, count)
        nonce = sealed[_HEADER.size : _HEADER.size + NONCE_BYTES]
        try:
            plain = self._aead(table, column).decrypt(nonce, sealed[_HEADER.size + NONCE_BYTES :], bound)
        except InvalidTag:
            raise failed from None
        return _unpack(plain, count)

    def _aead(self, table: str, column: str) -> AESGCM:
        return AESGCM(self._keys.data_key(field_key_name(table, column)))

    def __repr__(self) -> str:
        return "FieldCipher()"


def field_key_name(table: str, column: str) -> str:
    """The keyring's name of a field's data key. Table names hold no dot, so no two fields share one."""
    return f"field:{table}.{column}"


def _associated_data(table: str, column: str, chunk: int, count: int) -> bytes:
    if not 0 <= chunk < MAX_CHUNKS:
        raise ValueError(f"chunk number {chunk} outside [0, 2^32)")
    names = b"".join(_U64.pack(len(b)) + b for b in (table.encode(), column.encode()))
    return b"sfumato-field-v1\0" + _HEADER.pack(VERSION, count) + _U64.pack(chunk) + names


def _string_array(values: "Sequence[str | None] | pa.Array") -> pa.Array:
    try:
        if isinstance(values, pa.Array):
            array = values if pa.types.is_string(values.type) else values.cast(pa.string())
        else:
            array = pa.array(values, type=pa.string())
        array.validate(full=True)  # also that the bytes are UTF-8
    except (pa.ArrowException, UnicodeError, TypeError):
        raise ValueError("a value is a string of valid Unicode, or nothing") from None
    return array


def _pack(array: pa.Array) -> bytes:
    valid: npt.NDArray[Any] = np.packbits(np.asarray(array.is_valid()), bitorder="little")
    lengths: npt.NDArray[Any] = pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return valid.tobytes() + lengths.astype("<u4").tobytes() + _text(array)


def _text(array: pa.Array) -> bytes:
    """The UTF-8 bytes of all values in a row, without those that a null may hide."""
    if array.null_count:
        array = array.drop_null()
    if len(array) == 0:
        return b""
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    return b"" if data is None else bytes(memoryview(data)[int(offsets[0]) : int(offsets[-1])])


def _unpack(plain: bytes, count: int) -> pa.Array:
    head = (count + 7) // 8
    lengths = np.frombuffer(plain, dtype="<u4", count=count, offset=head)
    offsets = np.zeros(count + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [pa.py_buffer(plain[:head]), pa.py_buffer(offsets.tobytes()), None]
    buffers[2] = pa.py_buffer(plain[head + 4 * count :])
    return pa.Array.from_buffers(pa.string(), count, buffers)


class Tokenizer:
    """Deterministic keyed pseudonyms: 128 bits of HMAC-SHA256 under the data key `token`, as 32 hex digits.

    `purpose` separates domains: the same value under two purposes gives unrelated tokens. Without the key nobody
    can find a value by trying all of them; with it anyone can, so the key never leaves the vault.
    """

    def __init__(self, keyring: KeySource) -> None:
        # RFC 2104 by hand: absorbing the padded key once halves the cost of a short message.
        block = keyring.data_key("token").ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(b ^ 0x36 for b in block))
        self._outer = hashlib.sha256(bytes(b ^ 0x5C for b in block))

    def token(self, value: str, *, purpose: str) -> str:
        """One value's token: 32 hex digits."""
        return self._digests([value], purpose)[0]

    def tokens(
        self, values: "pa.Array | pa.ChunkedArray | Sequence[str | None]", *, purpose: str
    ) -> pa.Array:
        """A string array of tokens, null where the value is null. Each distinct value is hashed once."""
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        coded = _string_array(values).dictionary_encode()
        words = pa.array(self._digests(coded.dictionary.to_pylist(), purpose), type=pa.string())
        return words.take(coded.indices)

    def _digests(self, values: Sequence[str], purpose: str) -> list[str]:
        name = purpose.encode()
        start = self._inner.copy()
        start.update(b"sfumato-token-v1\0" + _U64.pack(len(name)) + name)
        out = []
        for value in values:
            inner, outer = start.copy(), self._outer.copy()
            inner.update(value.encode())
            outer.update(inner.digest())
            out.append(outer.hexdigest()[:TOKEN_HEX_DIGITS])
        return out

    def __repr__(self) -> str:
        return "Tokenizer()"


def keyed_uniform(tokens: Sequence[str], key: bytes, *, purpose: str) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each token: the first 53 bits of HMAC-SHA256(key, purpose, token)."""
    prefix = f"sfumato-uniform-v1\0{purpose}\0".encode()
    raw = b"".join(hmac.digest(key, prefix + t.encode(), "sha256")[:8] for t in tokens)
    words: npt.NDArray[Any] = np.frombuffer(raw, dtype="<u8") >> np.uint64(11)
    return words.astype(np.float64) * 2.0**-53
