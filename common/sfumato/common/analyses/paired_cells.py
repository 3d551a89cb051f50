"""Cells in pairs, of no and of yes: a block of pairs for each table, side by side in one long total."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.estimates import Ties

Pair = tuple[int, int]  # the places of no and of yes
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairedCells:
    """How many pairs each block has. The first few, `tied`, hold the same customers."""

    blocks: tuple[int, ...]
    tied: int

    @property
    def starts(self) -> list[int]:
        return [0, *(2 * np.cumsum(self.blocks)).tolist()]

    @property
    def length(self) -> int:
        return self.starts[-1]

    def pairs(self, block: int) -> list[Pair]:
        """The block's places."""
        start = self.starts[block]
        return [(start + 2 * i, start + 2 * i + 1) for i in range(self.blocks[block])]

    def places(self, codes: Ints, yes: Ints) -> Ints:
        """Int64 [n, blocks], from which pair each customer is in (-1: none), and 0 or 1 [n]."""
        return np.asarray(np.where(codes < 0, -1, np.array(self.starts[:-1]) + 2 * codes + yes[:, None]))

    def ties(self) -> Ties:
        """The tied blocks have the same number of no, and of yes."""
        sums = np.zeros((self.tied, 2, self.length))
        for block in range(self.tied):
            for side in (0, 1):
                sums[block, side, [pair[side] for pair in self.pairs(block)]] = 1.0
        return Ties((sums[1:] - sums[0]).reshape(-1, self.length))


def both(pairs: Iterable[Pair]) -> list[int]:
    """All places of some pairs."""
    return [place for pair in pairs for place in pair]


def yes(pairs: Iterable[Pair]) -> list[int]:
    """The places of yes alone."""
    return [pair[1] for pair in pairs]
