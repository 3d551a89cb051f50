"""Many keystreams into one vector: AES-256 in counter mode, block by block while the vector is in the cache.

Stream of a key: the encryption of zeros under AES-256-CTR (NIST SP 800-38A) from counter block 2 on, read as
little-endian uint64. That is what GCM with a zero nonce encrypts with (SP 800-38D, GCTR), and OpenSSL's GCM is a
quarter faster than its plain counter mode although it also makes a tag, which nobody asks for. A key serves one
vector only. Cipher and addition run outside the interpreter's lock, so long work is shared by two threads.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

KEY_BYTES = 32
BLOCK = 1 << 17
_WORTH_A_THREAD = 1 << 22  # words of all streams together: 4 ms of work
_LONGEST = 1 << 32  # words: GCM's counter has 32 bits and ends at 2^36 bytes

_Words = npt.NDArray[np.uint64]


def apply(vector: _Words, streams: Sequence[tuple[bytes, bool]]) -> None:
    """Add (True) or subtract (False) the keystream of each key, modulo 2^64, in place.

    `vector` is a contiguous uint64 [d]. Raises ValueError otherwise, or on a key of another length.
    """
    if (
        vector.dtype != np.uint64
        or vector.ndim != 1
        or not vector.flags.c_contiguous
        or vector.size > _LONGEST
    ):
        raise ValueError("Expected a contiguous uint64 vector.")
    if any(len(key) != KEY_BYTES for key, _ in streams):
        raise ValueError(f"Expected keys of {KEY_BYTES} bytes.")
    if len(streams) < 2 or len(streams) * vector.size < _WORTH_A_THREAD:
        _combine(vector, streams)
        return
    half = len(streams) // 2
    apart = np.zeros_like(vector)
    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(_combine, apart, streams[:half])
        _combine(vector, streams[half:])
        other.result()
    np.add(vector, apart, out=vector)


def _combine(vector: _Words, streams: Sequence[tuple[bytes, bool]]) -> None:
    ciphers = [
        (Cipher(AES(key), GCM(bytes(12))).encryptor(), np.add if add else np.subtract) for key, add in streams
    ]
    block = min(BLOCK, vector.size)
    zeros = np.zeros(8 * block, dtype=np.uint8)
    drawn = np.empty(8 * block, dtype=np.uint8)
    words = drawn.view("<u8")
    for start in range(0, vector.size, BLOCK):
        piece = vector[start : start + BLOCK]
        length = 8 * piece.size
        for cipher, combine in ciphers:
            cipher.update_into(zeros.data[:length], drawn.data[:length])
            combine(piece, words[: piece.size], out=piece)
