"""Many keystreams into one vector: AES-256-CTR (SP 800-38A), block by block while in the cache.

Stream of a key: the encryption of zeros from counter 0, read as little-endian uint64. A key serves one vector only.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

KEY_BYTES = 32
_BLOCK = (
    1 << 15
)  # words: 256 KiB of keystream beside 256 KiB of the vector, within a core's second-level cache
_CIPHER_BLOCK = 16
_ALONE = 1 << 17  # words of work that are not worth a second thread
_WORKERS = 2

_Words = npt.NDArray[np.uint64]
_Stream = tuple[bytes, bool]


def apply(vector: _Words, streams: Sequence[_Stream]) -> None:
    """Add (True) or subtract (False) the keystream of each key, modulo 2^64, in place.

    `vector` is a contiguous uint64 [d]. Raises ValueError otherwise, or on a key of another length. The result does
    not depend on how many threads share the work.
    """
    if vector.dtype != np.uint64 or vector.ndim != 1 or not vector.flags.c_contiguous:
        raise ValueError("Expected a contiguous uint64 vector.")
    if any(len(key) != KEY_BYTES for key, _ in streams):
        raise ValueError(f"Expected keys of {KEY_BYTES} bytes.")
    if vector.size * len(streams) < _ALONE:
        _apply_from(0, vector, streams)
        return
    with ThreadPoolExecutor(_WORKERS) as pool:
        # Both the cipher and numpy's addition let go of the interpreter; the parts of the vector are disjoint.
        list(pool.map(lambda part: _apply_from(part[0], part[1], streams), _parts(vector)))


def _parts(vector: _Words) -> Iterator[tuple[int, _Words]]:
    length = -(-vector.size // (2 * _WORKERS)) * 2  # whole cipher blocks
    return ((start, vector[start : start + length]) for start in range(0, vector.size, length))


def _apply_from(start: int, part: _Words, streams: Sequence[_Stream]) -> None:
    """The streams' words from `start` (even) on, onto this part."""
    counter = (start * 8 // _CIPHER_BLOCK).to_bytes(_CIPHER_BLOCK, "big")
    ciphers = [(Cipher(AES(key), CTR(counter)).encryptor(), add) for key, add in streams]
    block = min(_BLOCK, max(1, part.size))
    zeros = np.zeros(8 * block, dtype=np.uint8)
    drawn = np.empty(8 * block, dtype=np.uint8)
    words = drawn.view("<u8")
    for at in range(0, part.size, block):
        piece = part[at : at + block]
        length = 8 * piece.size
        for cipher, add in ciphers:
            cipher.update_into(zeros.data[:length], drawn.data[:length])
            (np.add if add else np.subtract)(piece, words[: piece.size], out=piece)
