"""A trend that stands: each month is asked when it is over, and the job's one budget holds for all of them.

Contribution   What is new about where a customer is (standing.py), in cells of groups and states.
Reading        Counts until the latest month that was asked, with the exact covariance. Customers come and go, and
               change their group, so months are not made to add up.

A month in which a branch was away that had answered before is not shown: its customers would be missing. The next
month with all of them is right again, as each branch tells what is new since it was asked last.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.domains import Domain
from sfumato.common.analyses.estimates import LEVEL
from sfumato.common.analyses.followed import Followed
from sfumato.common.analyses.month_parts import everyone, month_parts, restless_part
from sfumato.common.analyses.standing import NOWHERE, RESTLESS, StandingPaths
from sfumato.common.contributions import Cells

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StandingTrend:
    """States of what is followed, read anew for each month. `changes`: None for any number."""

    follow: str
    followed: tuple[Followed, ...]
    group: Domain | None
    changes: int | None
    days: tuple[date, ...]

    @cached_property
    def paths(self) -> StandingPaths:
        groups = len(self.group.cells) if self.group else 1
        return StandingPaths(groups * len(self._names), len(self.days), self.changes)

    @property
    def _names(self) -> tuple[str, ...]:
        """Of the states, in every month."""
        return self.followed[0].states

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.followed[0].columns, *([self.group.name] if self.group else ()))

    @cached_property
    def shares(self) -> tuple[float, ...]:
        """What each month adds to the longest path, of all months."""
        bounds = self.paths.bounds
        return tuple((np.diff(bounds, prepend=0.0) / bounds[-1]).tolist())

    def max_norm(self, round_: int) -> float:
        return sqrt(self.paths.longest(round_))

    def length(self, round_: int) -> int:
        return self.paths.length

    def ask(self, round_: int, totals: list[NoisySum]) -> None:
        return None

    def states(self, round_: int, columns: Mapping[str, Any]) -> Ints:
        """Cells of groups and states, the last fastest; columns as of the month's last day."""
        state = self.followed[round_].read(columns)[:, 0]
        group = np.zeros(len(state), dtype=np.int64)
        if self.group:
            group = self.group.codes(columns[self.group.name])
        return np.where((group < 0) | (state < 0), NOWHERE, group * len(self._names) + state)

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: object) -> Cells:
        raise TypeError(
            "a standing question is answered from what the vault remembers, not from columns alone"
        )

    # --- reading ---------------------------------------------------------------------------------------

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """Of as many months as there are totals. Parts: months (all customers), groups if asked for, restless if
        changes are bounded."""
        found = StandingCounts.of(self.paths, totals, len(self._names))
        whole = self._whole(totals)
        until = [day.isoformat() for day in self.days[: len(totals)]]
        parts = month_parts(found, until, self.follow, self._names, self.group, whole)
        if self.changes is not None:
            value = sum(float(t.values[-1]) for t in totals) / RESTLESS
            parts.append(restless_part(value, sqrt(sum(t.std**2 for t in totals)) / RESTLESS, found))
        latest = max(t for t in range(len(until)) if whole[t])
        return {
            "level": LEVEL,
            "customers": everyone(found, latest),
            "notes": list(self._notes(totals, whole)),
            "parts": parts,
        }

    @staticmethod
    def _whole(totals: list[NoisySum]) -> list[bool]:
        """Whether each month has every branch that answered until then."""
        seen: set[str] = set()
        whole = []
        for total in totals:
            seen |= set(total.members)
            whole.append(seen == set(total.members))
        return whole

    def _notes(self, totals: list[NoisySum], whole: list[bool]) -> Iterator[str]:
        told, months = len(totals), len(self.days)
        yield f"A month has 30 days. {told} of {months} months are told, the latest ends on {self.days[told - 1]}."
        if told < months:
            yield f"The next one ends on {self.days[told]}; the budget for it is set aside."
        for day, is_whole in zip(self.days, whole, strict=False):
            if not is_whole:
                yield f"{day}: not all branches that had answered before did, so that month is not shown."
        if self.changes is not None:
            yield f"Noise is alike in neighbouring months (correlation {self.paths.alike:.2f})."
            changes = f"{self.changes} times" if self.changes > 1 else "once"
            yield f"The restless would have changed more than {changes}; they count where they were told to be."
            yield "No count is off by more than there are of them."


@dataclass(frozen=True)
class StandingCounts:
    """Counts by group, month and state [G, M, S], and the variance of their noise by month."""

    counts: Floats
    variances: tuple[float, ...]
    alike: float

    @staticmethod
    def of(paths: StandingPaths, totals: list[NoisySum], states: int) -> "StandingCounts":
        near, count, variance = sqrt(1 - paths.alike**2), np.zeros(paths.cells), 0.0
        counts, variances = [], []
        for t, total in enumerate(totals):
            told = total.values[: paths.cells]
            count = told if t == 0 else paths.alike * count + near * told
            variance = total.std**2 if t == 0 else paths.alike**2 * variance + near**2 * total.std**2
            counts.append(count.reshape(-1, states))
            variances.append(variance)
        return StandingCounts(np.stack(counts, axis=1), tuple(variances), paths.alike)

    def covariance(self, t: int, s: int, u: int, v: int) -> float:
        """Of the noise of state s in month t and of v in u, in one group."""
        return (s == v) * self.alike ** abs(t - u) * self.variances[min(t, u)]

    @property
    def everyone(self) -> Floats:
        """All customers by group and month [G, M]."""
        return np.asarray(self.counts.sum(axis=2))

    def whole(self, t: int) -> tuple[float, float]:
        """Variance of one group's `everyone` in month t, and its covariance with each of its counts then."""
        return self.counts.shape[2] * self.variances[t], self.variances[t]
