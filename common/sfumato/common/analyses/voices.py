"""Voices: what customers answered on a scale, each customer once, whatever number of answers is looked at.

NPS (Reichheld 2003): 0 to 6 is a detractor, 7 and 8 passive, 9 and 10 a promoter. CSAT: 1 to 5, content from 4 on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sfumato.common.analyses.domains import Domain, column_domain, domain
from sfumato.common.analyses.listed import is_listed, listed
from sfumato.common.contract import ColumnType, Contract, Role
from sfumato.common.errors import BadInput

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ScaleName = Literal["nps", "csat"]

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class Scale:
    """Answers from `least` to `most`; `verdict` [answers] in [-1, 1] is what the score is the mean of."""

    name: ScaleName
    least: int
    most: int
    verdict: tuple[float, ...]

    @property
    def answers(self) -> int:
        return self.most - self.least + 1

    @property
    def place(self) -> Floats:
        """Where each answer lies on the scale, in [-1, 1]."""
        return np.linspace(-1.0, 1.0, self.answers).astype(np.float64)


SCALES = {
    "nps": Scale("nps", 0, 10, (*[-1.0] * 7, 0.0, 0.0, 1.0, 1.0)),
    "csat": Scale("csat", 1, 5, (-1.0, -1.0, -1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Voices:
    """Answers of n customers, side by side: whose, which, how much of their voice, and in which row it stands."""

    customers: int
    customer: Ints
    answer: Ints
    part: Floats
    row: Ints

    def each(self, values: Floats, group: Ints, groups: int) -> Floats:
        """The mean of `values` [answers] over a customer's answers, in the group [answers given] that each of them
        falls in: float64 [n, groups]; -1 is no group."""
        there = group >= 0
        place = self.customer[there] * groups + group[there]
        found = np.bincount(
            place, (self.part * values[self.answer])[there], minlength=self.customers * groups
        )
        return found.reshape(self.customers, groups).astype(np.float64)

    def mean(self, values: Floats) -> Floats:
        """The mean of `values` [answers] over a customer's answers, float64 [n]; 0 for who gave none."""
        return self.each(values, np.zeros(len(self.row), dtype=np.int64), 1)[:, 0]

    @property
    def heard(self) -> npt.NDArray[np.bool_]:
        """Who gave an answer, [n]."""
        return np.bincount(self.customer, minlength=self.customers) > 0


@dataclass(frozen=True)
class Answers:
    """A column of answers: of the customers, or of another table. There only those of the last days count, if so many
    are given; `time` is then the column that says when."""

    scale: Scale
    name: str
    table: str | None
    nullable: bool
    time: str | None = None
    since: int = 0  # days from 1970

    @staticmethod
    def of(contract: Contract, scale: Scale, name: str, days: int | None) -> "Answers":
        """Raises BadInput on a column that cannot hold such answers."""
        table = listed(contract, name).table if is_listed(contract, name) else None
        if table is not None:
            column = listed(contract, name).column
        else:
            domain(contract, name, 2)  # says what is wrong with the name
            if not contract.customer_table.has(name):
                raise BadInput(
                    f"question.{scale.name}: {name!r} is a roll-up, not answers",
                    hint="Name the column that it is made of, as table.column.",
                )
            column = contract.customer_table.column(name)
        inside = column.bounds and scale.least <= column.bounds[0] and column.bounds[1] <= scale.most
        if column.type is not ColumnType.INTEGER or not inside:
            raise BadInput(
                f"question.{scale.name}: {name!r} holds no answers from {scale.least} to {scale.most}",
                hint=f"It takes an integer with bounds [{scale.least}, {scale.most}] in the contract.",
            )
        if days is None:
            return Answers(scale, name, table.name if table else None, column.nullable)
        times = table.with_role(Role.TIME) if table else ()
        if table is None or not times or contract.as_of is None:
            raise BadInput(
                f"question.days: nobody knows when {name!r} was answered",
                hint="It takes a column of another table with a time, and the contract's as_of.",
            )
        since = (contract.as_of - _EPOCH).days - days + 1
        return Answers(scale, name, table.name, column.nullable, f"{table.name}.{times[0].name}", since)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name,) if self.time is None else (self.name, self.time)

    def voices(self, columns: Mapping[str, Any], latest: int) -> Voices:
        """The latest few answers of each customer."""
        customers = len(columns[self.name])
        customer, values = _flat(columns[self.name], self.table is not None)
        answers = np.asarray(values.cast(pa.float64(), safe=False).fill_null(np.nan), dtype=np.float64)
        code = answers - self.scale.least
        good = (code >= 0) & (code < self.scale.answers)
        if self.time is not None:
            days = _flat(columns[self.time], True)[1].cast(pa.date32()).cast(pa.int32())
            good &= np.asarray(days.fill_null(self.since - 1)) >= self.since
        row = np.flatnonzero(good)
        whose = customer[row]
        before = np.arange(len(row)) - np.searchsorted(whose, whose, side="left")
        row, whose = row[before < latest], whose[before < latest]
        part = 1.0 / np.maximum(np.bincount(whose, minlength=customers), 1)[whose]
        return Voices(customers, whose, code[row].astype(np.int64), part, row)


@dataclass(frozen=True)
class Groups:
    """The cells of a column of the customers, or of the answers' own table."""

    name: str
    cells: Domain
    by_answer: bool

    @staticmethod
    def of(contract: Contract, name: str, bins: int) -> "Groups":
        """Raises BadInput on a column without public cells."""
        if is_listed(contract, name):
            return Groups(name, column_domain(listed(contract, name).column, bins), True)
        return Groups(name, domain(contract, name, bins), False)

    def codes(self, columns: Mapping[str, Any]) -> Ints:
        """Of each customer, or of each row of the table."""
        return self.cells.codes(_flat(columns[self.name], True)[1] if self.by_answer else columns[self.name])


def _flat(values: Any, is_list: bool) -> tuple[Ints, pa.Array]:
    """Rows side by side, and whose each is."""
    column = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if not isinstance(column, pa.Array):
        column = pa.array(column, from_pandas=True)
    if not is_list:
        return np.arange(len(column)), column
    return np.asarray(pc.list_parent_indices(column)).astype(np.int64), pc.list_flatten(column)
