"""The states of a customer's life, month by month, from the months with activity. Public rules; it knows no data.

prospect   nothing yet
new        began less than `new` months ago
active     was there within the last `sleep` months
sleeping   has been quiet for `sleep` months and more
churned    has been quiet for `churn` months and more
won back   came back, less than `new` months ago, after having churned
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

STATES = ("prospect", "new", "active", "sleeping", "churned", "won back")
PROSPECT, NEW, ACTIVE, SLEEPING, CHURNED, WON_BACK = range(len(STATES))

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """In months; 1 <= sleep < churn and new >= 1."""

    new: int
    sleep: int
    churn: int

    @property
    def _start(self) -> Ints:
        """Nobody has begun: months since the first activity (-1: none), of quiet, since coming back."""
        return np.array([[-1, 0, self.new]])

    def _next(self, phase: Ints, active: Bools) -> Ints:
        """A month later, [n, 3]; each number stops where it no longer matters."""
        since, quiet, back = phase.T
        begun = since >= 0
        returns = active & begun & (quiet >= self.churn)
        since = np.where(begun, np.minimum(since + 1, self.new), np.where(active, 0, -1))
        quiet = np.where(active | (since < 0), 0, np.minimum(quiet + 1, self.churn))
        back = np.where(returns, 0, np.minimum(back + 1, self.new))
        return np.stack([since, quiet, back], axis=1)

    def _state(self, phase: Ints) -> Ints:
        since, quiet, back = phase.T
        rules = [
            (since < 0, PROSPECT),
            (quiet >= self.churn, CHURNED),
            (quiet >= self.sleep, SLEEPING),
            (back < self.new, WON_BACK),
            (since < self.new, NEW),
        ]
        return np.select([r for r, _ in rules], [s for _, s in rules], ACTIVE)

    def states(self, active: Bools) -> Ints:
        """The state at the end of each month, int64 [n, months], from the months with activity, oldest first."""
        phase = np.repeat(self._start, len(active), axis=0)
        found = np.empty(active.shape, dtype=np.int64)
        for month in range(active.shape[1]):
            phase = self._next(phase, active[:, month])
            found[:, month] = self._state(phase)
        return found

    @cached_property
    def transitions(self) -> tuple[tuple[int, int], ...]:
        """All that can happen in a month: pairs of states, from and to."""
        known, fresh, found = set[bytes](), self._start, set[tuple[int, int]]()
        while len(fresh):
            both = [self._next(fresh, np.full(len(fresh), a)) for a in (False, True)]
            before = self._state(fresh).tolist()
            for after in both:
                found |= set(zip(before, self._state(after).tolist(), strict=True))
            reached = np.unique(np.concatenate(both), axis=0)
            fresh = reached[[r.tobytes() not in known for r in reached]]
            known |= {r.tobytes() for r in reached}
        return tuple(sorted(found))
