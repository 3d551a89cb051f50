"""The portrait: how many customers there are of each kind.

Question       Which columns to count by, which pairs of them to cross, and the smallest group shown by itself.
Contribution   One customer adds one to one cell of every table: over T tables the l2 norm is sqrt(T), at most.
Reading        All tables count the same customers, and a cross-tab refines the tables of its columns: least squares
               makes them agree, which takes noise away. Small groups are merged, and said to be.

Every table has weight 1, so every count the same noise: any other choice sharpens one table at the cost of another
(least squares already sharpens the tables that others refine). Which groups are merged is decided on a noisier copy
of the total, whose noise is independent of that of the numbers shown: so a group is not shown *because* its noise was
high, and the intervals are as good after merging as before (docs/analyses/profile.md has the price).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil, sqrt
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.domains import domain
from sfumato.common.analyses.estimates import LEVEL, Estimates, Ties, independent_copies
from sfumato.common.analyses.tables import Table, ties
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells
from sfumato.common.errors import BadInput

MOST_CELLS = 10_000
STANDS_OUT = 2.0  # standard deviations of the noisier copy: below that, a group may well be nobody


class Question(BaseModel):
    """Which columns to draw, which pairs of them to cross, and the smallest group that is shown by itself.
    `bins` is for numbers without public edges."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: tuple[str, ...] = Field(min_length=1, max_length=200)
    cross: tuple[tuple[str, str], ...] = Field(default=(), max_length=100)
    min_group: int = Field(default=20, ge=1)
    bins: int = Field(default=10, ge=2, le=64)


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on a column without public cells, one named twice, and too many cells."""
    for pair in question.cross:
        if pair[0] == pair[1]:
            raise BadInput(f"question.cross: {pair[0]!r} is crossed with itself")
    asked = [*((name,) for name in question.columns), *question.cross]
    seen = {frozenset(names) for names in asked}
    if len(seen) < len(asked):
        raise BadInput("question: a column, or a pair of them, is named twice")
    names = dict.fromkeys(name for names in asked for name in names)
    domains = {name: domain(contract, name, question.bins) for name in names}
    tables, start = [], 0
    for group in asked:
        tables.append(Table(tuple(domains[name] for name in group), start))
        start = tables[-1].places.stop
    if start > MOST_CELLS:
        raise BadInput(
            f"question: {start:,} cells in all, and at most {MOST_CELLS:,} can be read",
            hint="Cross fewer columns, or columns with fewer values.",
        )
    return Profile(tuple(tables), tuple(names), question.min_group)


@dataclass(frozen=True)
class Profile:
    """Counts of customers by columns of the contract."""

    tables: tuple[Table, ...]
    columns: tuple[str, ...]
    min_group: int
    shares: tuple[float, ...] = (1.0,)

    def max_norm(self, round_: int) -> float:
        return sqrt(len(self.tables))

    def length(self, round_: int) -> int:
        return self.tables[-1].places.stop

    def ask(self, round_: int, totals: list[NoisySum]) -> None:
        return None

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: object) -> Cells:
        """One cell a table for each customer."""
        if asked is not None:
            raise ValueError("a profile is asked without numbers")
        codes = {d.name: d.codes(columns[d.name]) for t in self.tables for d in t.columns}
        cells = np.stack([t.cells(codes) for t in self.tables], axis=1)
        return Cells(cells, np.ones(len(self.tables)), self.length(0))

    @cached_property
    def _ties(self) -> Ties:
        return ties(self.tables)

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """{"customers", "level", "min_group", "tables": [{"columns", "values", "groups"}]}; a group has its "cells"
        (several: merged), "customers" and "share", within a row of a cross-tab "share_of_row". One that is too
        small for that is each table's last, and has "fewer_than"."""
        coarse, fine = (Estimates(copy, self._ties) for copy in independent_copies(totals[0]))
        return {
            "customers": fine.count(self.tables[0].places),
            "level": LEVEL,
            "min_group": self.min_group,
            "tables": [
                {
                    "columns": [c.name for c in t.columns],
                    "values": [list(c.cells) for c in t.columns],
                    "groups": list(self._groups(t, coarse, fine)),
                }
                for t in self.tables
            ],
        }

    def _groups(self, table: Table, coarse: Estimates, fine: Estimates) -> Iterator[dict[str, Any]]:
        """Cells that stand out; what is left of a row, if that does; what is left of the table."""

        def stands_out(places: list[int]) -> bool:
            return coarse.sum(places) >= max(self.min_group, STANDS_OUT * coarse.std(places))

        left: list[int] = []
        for row in table.rows():
            alone = [p for p in row if stands_out([p])]
            rest = [p for p in row if p not in alone]
            whole = row if len(table.columns) > 1 else None
            yield from (self._group(table, [p], fine, whole) for p in alone)
            if rest and whole and stands_out(rest):
                yield self._group(table, rest, fine, whole)
            else:
                left += rest
        if left:
            group = self._group(table, left, fine, None)
            if not stands_out(left):
                most = max(self.min_group, ceil(group["customers"]["high"]))
                group["fewer_than"] = most
                group["customers"] |= {"low": 0.0, "high": float(most)}
                group["share"]["low"] = 0.0
            yield group

    def _group(self, table: Table, places: list[int], fine: Estimates, row: range | None) -> dict[str, Any]:
        group = {
            "cells": table.names(places),
            "customers": fine.count(places),
            "share": fine.ratio(places, table.places),
        }
        return group | ({"share_of_row": fine.ratio(places, row)} if row else {})
