"""The only source of noise and of sampling decisions: a CSPRNG keystream, and exact or careful samplers on it.

Keystream: AES-256 in counter mode (NIST SP 800-38A) under a fresh key from the operating system. Nothing here
can be seeded in production; `seed` is for tests, where a noise draw must repeat.
"""

import os
import secrets
from fractions import Fraction
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from sfumato.privacy import discrete_gaussian

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SEED_BYTES = 32
_UNIT = 2.0**-53
_CHUNK = 1 << 20


class SecureRandom:
    """A stream of secret random numbers. Not thread-safe; never copied, pickled or carried over a fork.

    `seed` (32 bytes) is FOR TESTS ONLY: whoever knows it can subtract the noise. Left out, the key is
    `secrets.token_bytes(32)`. The nonce is constant because a key is never used for a second stream.
    Raises ValueError on a seed of another length.
    """

    def __init__(self, seed: bytes | None = None) -> None:
        key = secrets.token_bytes(SEED_BYTES) if seed is None else seed
        if len(key) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, got {len(key)}")
        self._stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
        self._pid = os.getpid()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a keystream is never copied: two copies would draw the same noise")

    def keystream(self, length: int) -> bytes:
        """The next `length` bytes. Raises RuntimeError after a fork (parent and child would share noise)."""
        if os.getpid() != self._pid:
            raise RuntimeError("this keystream belongs to the process that made it; make a new one")
        return self._stream.update(bytes(length))

    def _words(self, count: int) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self.keystream(8 * count), dtype="<u8")

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound), exact for any size of `bound` (rejection). Raises ValueError."""
        if bound < 1:
            raise ValueError("bound must be at least 1")
        bits = (bound - 1).bit_length()
        length = (bits + 7) // 8
        while True:
            value = int.from_bytes(self.keystream(length), "little") >> (8 * length - bits)
            if value < bound:
                return value

    def gaussian(self, size: int, std: float) -> Floats:
        """`size` normal draws of standard deviation `std`, float64.

        Box-Muller on 53-bit uniforms, and each draw is the sum of four halved: what floating point leaves out
        of one draw's range (Mironov 2012) then no longer betrays the value it was added to (Holohan & Braghin,
        ESORICS 2021). Raises ValueError on a negative or non-finite std.
        """
        if not 0 <= std < float("inf"):
            raise ValueError("std must be finite and not negative")
        if size == 0:
            return np.zeros(0)
        bits = (self._words(4 * size) >> np.uint64(11)).astype(np.float64).reshape(2, 2 * size)
        radius = np.sqrt(-2.0 * np.log((bits[0] + 1.0) * _UNIT))  # (0, 1]: the logarithm is finite
        angle = (2.0 * np.pi * _UNIT) * bits[1]
        normals = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).reshape(4, size)
        return np.asarray(normals.sum(axis=0) * (0.5 * std), dtype=np.float64)

    def poisson_sample(self, population: int, rate: float) -> Ints:
        """Indices in [0, population), ascending, each taken independently with probability `rate`.

        The probability is floor(rate * 2^53) / 2^53: exact for the comparison, and never above `rate`.
        Raises ValueError on a rate outside [0, 1].
        """
        if not 0 <= rate <= 1:
            raise ValueError("rate must lie in [0, 1]")
        threshold = np.uint64(int(rate * 2.0**53))
        taken = [
            start
            + np.flatnonzero((self._words(min(_CHUNK, population - start)) >> np.uint64(11)) < threshold)
            for start in range(0, population, _CHUNK)
        ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *taken]).astype(np.int64)

    def permutation(self, size: int) -> Ints:
        """A uniform permutation of range(size), int64: the order of 128-bit keys.

        Ties, and with them any bias, have probability below size^2 / 2^129.
        """
        return np.lexsort(self._words(2 * size).reshape(2, size)).astype(np.int64)

    def discrete_laplace(self, size: int, scale: float) -> Ints:
        """`size` integers with P(x) proportional to exp(-|x| / scale), exact: integer arithmetic throughout.

        Canonne, Kamath & Steinke 2020 (arXiv 2004.00010), algorithm 2; `scale` counts as the rational number
        that the float is. For sensitivity 1 this is epsilon-DP with epsilon = 1 / scale. Raises ValueError
        unless 0 < scale <= 2^40.
        """
        if not 0 < scale <= 2.0**40:
            raise ValueError("scale must lie in (0, 2^40]")
        t, s = Fraction(scale).as_integer_ratio()
        return np.array([self._one_discrete_laplace(t, s) for _ in range(size)], dtype=np.int64)

    def discrete_gaussian(self, size: int, variance: int) -> Ints:
        """`size` integers with P(x) proportional to exp(-x^2 / (2 variance)), exact (see the module of that name).

        Canonne, Kamath & Steinke 2020 (arXiv 2004.00010), algorithm 3. For l2 sensitivity D its Rényi curve
        is at most that of the Gaussian of noise multiplier sqrt(variance) / D. Raises ValueError unless
        0 <= variance <= 2^100.
        """
        return discrete_gaussian.sample(self._words, size, variance)

    def _one_discrete_laplace(self, t: int, s: int) -> int:
        while True:
            u = self.below(t)
            if not self.bernoulli_exp(u, t):
                continue
            v = 0
            while self.bernoulli_exp(1, 1):
                v += 1
            magnitude = (u + t * v) // s
            negative = self.below(2) == 1
            if not (negative and magnitude == 0):  # else zero would count twice
                return -magnitude if negative else magnitude

    def bernoulli_exp(self, numerator: int, denominator: int) -> bool:
        """True with probability exp(-numerator / denominator), 0 <= numerator <= denominator; exact."""
        k = 1
        while self.below(denominator * k) < numerator:  # Bernoulli(numerator / (denominator * k))
            k += 1
        return k % 2 == 1
