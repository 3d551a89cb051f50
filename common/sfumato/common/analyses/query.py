"""One question as SQL asks it: counts, sums, means and quantiles of customers by groups, for some of them or all.

Question       Columns to group by, measures, and which customers count. `sfumato query` makes it of a SELECT; no
               vault reads SQL.
Contribution   A customer adds to their group's numbers alone: 1 to its count, each number as its place between
               public bounds, from -1 to 1, and one cell a level to the histogram that quantiles are read from.
               Blocks of numbers have weights (see `blocks`): the l2 norm is 1 at most.
Reading        Sums and means by the bounds, means with Fieller's interval, quantiles by order statistics.

HAVING and LIMIT choose rows by a noisier copy of the total, and what is shown has noise independent of that, as in a
profile: a row is not shown *because* its noise was high.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod, sqrt
from typing import Any

import numpy as np

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.blocks import Blocks, Key
from sfumato.common.analyses.conditions import Between, Filter
from sfumato.common.analyses.domains import NONE, Domain, domain
from sfumato.common.analyses.estimates import LEVEL, REACH, Number, independent_copies, number
from sfumato.common.analyses.measures import EVERYBODY, Measured
from sfumato.common.analyses.parts import part
from sfumato.common.analyses.quantities import Quantity, any_column
from sfumato.common.analyses.query_question import Group, Order, Question, check_names
from sfumato.common.analyses.tables import Table
from sfumato.common.contract import Contract
from sfumato.common.contributions import Contributions
from sfumato.common.errors import BadInput

__all__ = ["Group", "Order", "Query", "Question", "build"]

MOST_GROUPS, MOST_NUMBERS = 5_000, 20_000
NAMED = 64  # a whole number with at most so many values has a group a value
COUNTED = 0.05  # what a count's variance costs where no measure asks for it


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on what the contract does not declare or cannot be grouped by or added up, on a name that is
    missing or there twice, and on too many groups or numbers."""
    check_names(question)
    groups = tuple(_grouped(contract, g.column) for g in question.groups)
    measures = {m.name: Measured.of(contract, m) for m in question.measures}
    costs: dict[Key, float] = {EVERYBODY: COUNTED}
    for measure in measures.values():
        for key, cost in measure.costs():
            costs[key] = costs.get(key, 0.0) + cost
    cells = prod(len(d.cells) for d in groups)
    blocks = Blocks.of(costs, cells)
    if cells > MOST_GROUPS or blocks.length > MOST_NUMBERS:
        raise BadInput(
            f"question: {cells:,} groups with {blocks.length:,} numbers in the sum; at most {MOST_GROUPS:,} groups "
            f"and {MOST_NUMBERS:,} numbers can be read",
            hint="Group by fewer columns, or ask for fewer quantiles at once (272 numbers a group).",
        )
    kept = Filter.of(contract, question.where)
    return Query(question, groups, measures, blocks, kept, any_column(contract))


def _grouped(contract: Contract, name: str) -> Domain:
    found = domain(contract, name, NAMED // 2)
    bounds = found.spec.bounds
    if bounds and found.spec.edges is None and not (found.spec.integer and bounds[1] - bounds[0] < NAMED):
        raise BadInput(
            f"column {name!r} has no declared groups: it is a number without `edges`",
            hint="Declare edges for it in the contract, or ask for its AVG or QUANTILE.",
        )
    return found


@dataclass(frozen=True)
class Query:
    """Counts, sums, means and quantiles of customers by groups."""

    question: Question
    groups: tuple[Domain, ...]
    measures: Mapping[str, Measured]
    blocks: Blocks
    kept: Filter
    readable: str
    shares: tuple[float, ...] = (1.0,)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        asked = [m.column for m in self.measures.values() if m.column is not None]
        used = [*(d.name for d in self.groups), *asked, *self.kept.columns]
        return tuple(dict.fromkeys(used)) or (self.readable,)

    def max_norm(self, round_: int) -> float:
        return 1.0

    def length(self, round_: int) -> int:
        return self.blocks.length

    def ask(self, round_: int, totals: list[NoisySum]) -> None:
        return None

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: object) -> Contributions:
        """To the numbers of one's own group, if one counts at all."""
        if asked is not None:
            raise ValueError("a query is asked without numbers")
        rows = len(columns[self.columns[0]])
        group = np.zeros(rows, dtype=np.int64)
        if self.groups:
            group = Table(self.groups, 0).cells({d.name: d.codes(columns[d.name]) for d in self.groups})
        return self.blocks.contribute(columns, np.where(self.kept.mask(columns, rows), group, -1))

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """{"level", "customers": all who count, "notes", "parts": one, with a row a group}."""
        total, places, shown = totals[0], self.possible, self.question
        chooses = bool(shown.having) or (shown.limit is not None and self._by_measure)
        if chooses:
            coarse, total = independent_copies(total)
            seen = {p: self._row(coarse, p) for p in places}
            places = [p for p in places if all(_lies(seen[p][b.column]["value"], b) for b in shown.having)]
            places = self._ordered(places, seen)[: shown.limit]
        rows = {p: self._row(total, p) for p in places}
        places = self._ordered(places, rows)[: shown.limit]
        units = {name: m.unit for name, m in self.measures.items() if m.measure.shown}
        made = [{"of": self._of(p), **{name: rows[p][name] for name in units}} for p in places]
        return {
            "level": LEVEL,
            "customers": self._customers(totals[0]),
            "notes": list(self._notes(chooses)),
            "parts": [part("answer", [g.name for g in shown.groups], units, made)],
        }

    @cached_property
    def possible(self) -> list[int]:
        """The groups that a customer who counts can be in."""
        found = np.ones(1, dtype=np.bool_)
        for d in self.groups:
            found = np.logical_and.outer(found, self.kept.cells(d)).ravel()
        return np.flatnonzero(found).tolist()

    @property
    def _by_measure(self) -> bool:
        return any(o.by in self.measures for o in self.question.order)

    def _row(self, total: NoisySum, group: int) -> dict[str, Number]:
        return {name: m.read(self.blocks, total, group) for name, m in self.measures.items()}

    def _customers(self, total: NoisySum) -> Number:
        block = self.blocks.each[EVERYBODY]
        value = sum(float(block.numbers(total.values, p)[0]) for p in self.possible)
        reach = REACH * block.noise(total.std) * sqrt(len(self.possible))
        return number(value, value - reach, value + reach)

    def _codes(self, place: int) -> tuple[int, ...]:
        return tuple(int(c) for c in np.unravel_index(place, [len(d.cells) for d in self.groups]))

    def _of(self, place: int) -> list[str]:
        return (
            [d.cells[c] for d, c in zip(self.groups, self._codes(place), strict=True)] if self.groups else []
        )

    def _ordered(self, places: list[int], rows: Mapping[int, Mapping[str, Number]]) -> list[int]:
        """By the question's order: numbers' bands by size, names by their letters, null after all."""
        names = [g.name for g in self.question.groups]

        def key(place: int, by: str) -> tuple[bool, float, str]:
            if by in self.measures:
                return False, rows[place][by]["value"], ""
            d, code = self.groups[names.index(by)], self._codes(place)[names.index(by)]
            cell = d.cells[code]
            return cell == NONE, float(code) if d.spec.numeric else 0.0, cell

        for order in reversed(self.question.order):
            keyed = [(key(p, order.by), p) for p in places]
            places = [p for _, p in sorted(keyed, key=lambda found: found[0], reverse=order.down)]
        return places

    def _notes(self, chooses: bool) -> Iterator[str]:
        for d in self.groups:
            if d.spec.edges is not None:
                yield f"{d.name}: grouped in the contract's bands."
        for of in dict.fromkeys(m.source for m in self.measures.values()):
            if isinstance(of, Quantity) and of.presence.known is None:
                null = " Customers without a value do not count in it." if of.presence.nullable else ""
                yield f"{of.column}: what one customer adds lies from {of.low:,.10g} to {of.high:,.10g}.{null}"
        if chooses:
            yield "Rows were chosen by a noisier copy of the answer, so that being chosen does not bend the numbers."


def _lies(x: float, ends: Between) -> bool:
    above = ends.low is None or (x > ends.low if ends.low_open else x >= ends.low)
    return above and (ends.high is None or (x < ends.high if ends.high_open else x <= ends.high))
