"""What comes out of the phantom slots of one release, until the branches tell their coins."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sfumato.privacy.audit import SumEvidence
from sfumato.privacy.plan import Ask


@dataclass(frozen=True)
class Slots:
    """What came out of the phantom slots of one release, of these branches (see privacy.audit)."""

    ask: Ask
    round: int
    members: tuple[str, ...]
    std: float
    values: npt.NDArray[np.float64]
    steps: int = 1

    def evidence(self, empty_slots: int, coins: Mapping[str, npt.NDArray[np.bool_]]) -> SumEvidence:
        """With the coins that the branches told at the end, [canaries] each. Where one did not, only the empty
        slots say something."""
        told = set(self.members) <= set(coins)
        fallen = np.zeros(self.values.size - empty_slots, dtype=np.int64)
        for name in self.members if told else ():
            fallen += coins[name]
        return SumEvidence(
            what=self.ask.what,
            round=self.round,
            members=self.members,
            std=self.std,
            sample_rate=self.ask.sample_rate,
            max_norm=self.ask.max_norm,
            empty=tuple(self.values[:empty_slots].tolist()),
            canary=tuple(self.values[empty_slots:].tolist()) if told else (),
            coins=tuple(fallen.tolist()) if told else (),
            steps=self.steps,
        )
