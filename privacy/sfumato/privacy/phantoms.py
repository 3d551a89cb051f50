"""Phantom slots beside every answer, in which no customer counts: what the audit looks at (see privacy.audit).

A sum's vector is [answer | empty slots | canary slots]. Empty slots show the noise. Canary slots show what one
customer can add: phantom customers, each taken in by a secret coin, ask for ten times the bound and go through
the same sampling, clipping and summing code as customers do.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sfumato.common.contributions import Cells, Contributions, Rows
from sfumato.common.errors import BadInput
from sfumato.privacy.noise import SecureRandom

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

OVERREACH = 10.0  # times the bound: what a phantom customer asks for


@dataclass(frozen=True, slots=True, repr=False)
class Phantoms:
    """A branch's phantom slots for one job. `coins` [K]: which phantom customers it took in; secret until the
    job closes."""

    empty_slots: int
    coins: Bools

    @classmethod
    def draw(cls, empty_slots: int, canaries: int, rng: SecureRandom) -> "Phantoms":
        """Flip a fair coin for each phantom customer; once a job. Raises ValueError on a negative number."""
        if empty_slots < 0 or canaries < 0:
            raise ValueError("Expected numbers of slots that are not negative.")
        return cls(empty_slots, _unpack(rng.keystream((canaries + 7) // 8), canaries))

    @classmethod
    def from_hex(cls, empty_slots: int, canaries: int, coins: str) -> "Phantoms":
        """The phantoms of `coins_hex`. Raises BadInput on a text of another length."""
        try:
            packed = bytes.fromhex(coins)
        except ValueError:
            raise BadInput("The coins are not hexadecimal.") from None
        if len(packed) != (canaries + 7) // 8:
            raise BadInput(f"Expected the coins of {canaries} canaries, got {len(packed)} bytes.")
        return cls(empty_slots, _unpack(packed, canaries))

    @property
    def canaries(self) -> int:
        return int(self.coins.size)

    @property
    def slots(self) -> int:
        """How much longer the sum's vector is: E + K."""
        return self.empty_slots + self.canaries

    def slots_alone(self) -> "Phantoms":
        """The same slots, into which nobody was taken: of further parts of one sum."""
        return Phantoms(self.empty_slots, np.zeros_like(self.coins))

    def coins_hex(self) -> str:
        """The coins as packed bits, first coin in the highest bit: what JobClosed carries."""
        return np.packbits(self.coins).tobytes().hex()

    def rows(self, max_norm: float) -> Floats:
        """What the phantom customers ask for, in the slots alone: float64 [coins that fell, slots]."""
        taken = np.flatnonzero(self.coins)
        rows = np.zeros((taken.size, self.slots))
        rows[np.arange(taken.size), self.empty_slots + taken] = OVERREACH * max_norm
        return rows

    def extend(self, contributions: Contributions, max_norm: float) -> Contributions:
        """The customers' contributions with the slots behind the answer and the phantom customers below them."""
        if isinstance(contributions, Rows):
            n, d = contributions.rows.shape
            below = self.rows(max_norm)
            rows = np.zeros((n + len(below), d + self.slots))
            rows[:n, :d] = contributions.rows
            rows[n:, d:] = below
            return Rows(rows)
        n, k = contributions.cells.shape
        taken = np.flatnonzero(self.coins)
        cells = np.full((n + taken.size, k + 1), -1, dtype=np.int64)
        cells[:n, :k] = contributions.cells
        cells[n:, k] = contributions.length + self.empty_slots + taken
        weights = np.append(contributions.weights, OVERREACH * max_norm)
        return Cells(cells, weights, contributions.length + self.slots)

    def __repr__(self) -> str:
        return f"Phantoms(<{self.empty_slots} empty slots, {self.canaries} secret coins>)"


def _unpack(packed: bytes, count: int) -> Bools:
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=count).astype(np.bool_)


def split(total: Floats, empty_slots: int, canaries: int) -> tuple[Floats, Floats, Floats]:
    """A released vector's answer, empty slots and canary slots. Raises ValueError if it is shorter than the slots."""
    d = total.size - empty_slots - canaries
    if d < 0:
        raise ValueError(f"Expected at least {empty_slots + canaries} values, got {total.size}.")
    return total[:d], total[d : d + empty_slots], total[d + empty_slots :]
