"""How fast are masks and noise? Alternating runs, medians of elapsed time; CPU time beside it.

    python benchmarks/masking.py [--coordinates 1000000] [--peers 10] [--runs 15]

Beside ours: the raw keystream into one buffer, with no vector (plain AES-256-CTR; and GCTR, which ours is), and
flwr's own mask generator (a Mersenne Twister from a 32-bit seed), alone and with the addition that its client does
after it. Its time jumps by a third with where its fresh arrays come to lie; the median shows one or the other.
Our masking takes two threads from 2^22 words of streams on; everything else here is one thread.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, GCM
from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from rich.console import Console
from rich.table import Table

from sfumato.privacy import keystream
from sfumato.privacy.noise import SecureRandom

FLWR_RANGE = 1 << 32  # its default modulus
VARIANCES = {"sigma 1": 1, "sigma 1000": 10**6, "sigma 2^40": 1 << 80}


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Elapsed and CPU time."""
    start, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - busy


class Raw:
    """Keystream a block at a time into the same buffer, as fast as the library gives it."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._zeros, self._drawn = bytes(min(length, 8 * keystream.BLOCK)), bytearray(8 * keystream.BLOCK)

    def __call__(self, mode: CTR | GCM) -> None:
        cipher = Cipher(AES(os.urandom(32)), mode).encryptor()
        for start in range(0, self._length, len(self._zeros)):
            cipher.update_into(memoryview(self._zeros)[: self._length - start], self._drawn)


def measure(coordinates: int, peers: int, runs: int) -> dict[str, tuple[float, float]]:
    """Median seconds, elapsed and CPU: a peer of masking, a whole vector of noise."""
    vector = np.zeros(coordinates, dtype=np.uint64)
    parameters = [np.zeros(coordinates, dtype=np.int64)]
    streams = [(os.urandom(32), i % 2 == 0) for i in range(peers)]
    rng, raw = SecureRandom(), Raw(8 * coordinates)

    def flwr_mask() -> list[np.ndarray]:
        return pseudo_rand_gen(os.urandom(32), FLWR_RANGE, [(coordinates,)])

    works: dict[str, tuple[Callable[[], object], int]] = {
        "raw AES-256-CTR": (lambda: [raw(CTR(bytes(16))) for _ in range(peers)], peers),
        "raw AES-256-GCTR": (lambda: [raw(GCM(bytes(12))) for _ in range(peers)], peers),
        "masking": (lambda: keystream.apply(vector, streams), peers),
        "flwr generator": (flwr_mask, 1),
        "flwr generator and addition": (lambda: parameters_addition(parameters, flwr_mask()), 1),
        **{
            name: (lambda v=variance: rng.discrete_gaussian(coordinates, v), 1)
            for name, variance in VARIANCES.items()
        },
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(runs + 1):
        for name, (work, share) in works.items():
            elapsed, busy = seconds(work)
            times[name].append((elapsed / share, busy / share))
    return {
        name: (statistics.median(t[0] for t in taken[1:]), statistics.median(t[1] for t in taken[1:]))
        for name, taken in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coordinates", type=int, default=1_000_000)
    parser.add_argument("--peers", type=int, default=10)
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    medians = measure(args.coordinates, args.peers, args.runs)
    ours = medians["masking"][0]
    masks = Table(title=f"Masks: {args.coordinates:,} coordinates of 8 bytes, a peer")
    for column in ("", "ms", "CPU ms", "GB/s", "its time ÷ ours"):
        masks.add_column(column, justify="right" if column else "left")
    noise = Table("Discrete Gaussian", "ns a coordinate", title="Noise")
    for name, (taken, busy) in medians.items():
        if name in VARIANCES:
            noise.add_row(name, f"{taken / args.coordinates * 1e9:.0f}")
        else:
            rate = 8 * args.coordinates / taken / 1e9
            masks.add_row(
                name, f"{taken * 1e3:.2f}", f"{busy * 1e3:.2f}", f"{rate:.2f}", f"{taken / ours:.2f}"
            )
    Console().print(masks, noise)


if __name__ == "__main__":
    main()
