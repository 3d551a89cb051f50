"""What can be followed by month: a roll-up in its public cells, or whether a customer has rows in a table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.active_months import ActiveMonths
from sfumato.common.analyses.domains import Domain, domain
from sfumato.common.contract import Contract
from sfumato.common.learners.encoding import Monthly, monthly_specs

Ints = npt.NDArray[np.int64]


class Followed(Protocol):
    """What a customer's path is read from."""

    @property
    def states(self) -> tuple[str, ...]:
        """In the order of their codes."""

    @property
    def columns(self) -> tuple[str, ...]:
        """That `read` needs."""

    def read(self, columns: Mapping[str, Any]) -> Ints:
        """Each customer's state in each month, int64 [n, months], oldest first; -1: none."""


@dataclass(frozen=True)
class FollowedRollup:
    """A roll-up's value in each month, in its public cells."""

    cells: Domain
    months: int

    @property
    def states(self) -> tuple[str, ...]:
        return self.cells.cells

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(Monthly(self.cells.name, m).column for m in reversed(range(self.months)))

    def read(self, columns: Mapping[str, Any]) -> Ints:
        return np.stack([self.cells.codes(columns[c]) for c in self.columns], axis=1)


@dataclass(frozen=True)
class FollowedTable:
    """Whether a customer had a row in each month, or in so many months before it that they are not `quiet` yet."""

    activity: ActiveMonths
    months: int
    quiet: int
    states: tuple[str, ...] = ("active", "quiet")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.activity.column.name,)

    def read(self, columns: Mapping[str, Any]) -> Ints:
        rows = self.activity.read(columns[self.activity.column.name])
        last = rows.shape[1] - self.months
        active = [rows[:, last - q : rows.shape[1] - q] for q in range(self.quiet)]
        return np.where(np.any(active, axis=0), 0, 1).astype(np.int64)


def follow(contract: Contract, name: str, months: int, quiet: int, bins: int) -> Followed:
    """Raises BadInput on what is neither a roll-up nor a table, or cannot be read by month."""
    if name in {t.name for t in contract.tables} - {contract.customers}:
        return FollowedTable(ActiveMonths.of(contract, name), months, quiet)
    monthly_specs(contract, [name], "question.follow")
    return FollowedRollup(domain(contract, name, bins), months)
