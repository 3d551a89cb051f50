"""How a bounded sum travels: whole numbers on a fine public grid, added modulo 2^64.

One unit of the vector's l2 bound is GRID steps. So fine a grid makes a sum of discrete Gaussians, for every
purpose here, the Gaussian that is accounted for (docs/protocol.md has the bound).
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

GRID = 1 << 24

Ints = npt.NDArray[np.int64]


def add(shares: Iterable[Ints]) -> Ints:
    """The sum modulo 2^64, int64 two's complement: the masks of a whole set cancel. Raises ValueError if none."""
    total: npt.NDArray[np.uint64] | None = None
    for share in shares:
        total = share.view(np.uint64).copy() if total is None else total + share.view(np.uint64)
    if total is None:
        raise ValueError("Expected at least one share.")
    return total.view(np.int64)


def decode(total: Ints, max_norm: float) -> npt.NDArray[np.float64]:
    """Grid steps to the contributions' own unit: float64 [d]."""
    return total.astype(np.float64) * (max_norm / GRID)
