"""Quality: how good are the data that we model?

Question       Which tables to look at, after how many days a customer's rows are stale, and by which classes.
Contribution   For every problem that a column can have (see quality_checks) a customer adds 1/2 if they have it and
               -1/2 if not, and 1 to the number of customers; the same again in their class. A yes or no that is 1
               or 0 has length 1; about its middle it has half of that, and so has the noise.
Reading        Who has the problem: the sum, and half of the customers. Classes add up to all (least squares). What
               stands out is told by a noisier copy of the total, whose noise is not that of the numbers shown.

All problems have one bound, and nobody is cut. Most customers have few of them, but a bound on how many one may have
would make dirty data look cleaner than they are, and nobody could say by how much.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.domains import Domain, domain
from sfumato.common.analyses.estimates import LEVEL, independent_copies
from sfumato.common.analyses.parts import Unit, part
from sfumato.common.analyses.quality_checks import UNREAD, Check, checks
from sfumato.common.analyses.quality_counts import STANDS_OUT, Counts
from sfumato.common.contract import Contract
from sfumato.common.contributions import Rows
from sfumato.common.errors import BadInput
from sfumato.common.learners.consistent import Consistent

MOST_NUMBERS = 20_000
CLASS_STANDS_OUT = 3.5  # as STANDS_OUT, of classes: there are many to choose from

Floats = npt.NDArray[np.float64]


class Question(BaseModel):
    """All tables, if none is named; `by` are columns of the customers. `stands_out` is the share of customers from
    which on a problem is worth a line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tables: tuple[str, ...] = Field(default=(), max_length=100)
    by: tuple[str, ...] = Field(default=(), max_length=10)
    bins: int = Field(default=5, ge=2, le=64)
    stale_days: int = Field(default=90, ge=1, le=36_500)
    stands_out: float = Field(default=0.05, gt=0, lt=1)
    classes_share: float = Field(default=0.5, gt=0, lt=1)


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on a table that is not declared, classes without cells, and where nothing can be wrong."""
    known = [t.name for t in contract.tables]
    names = question.tables or tuple(known)
    for asked in (names, question.by):
        if len(set(asked)) < len(asked):
            raise BadInput("question: a table or a column is named twice")
    for name in names:
        if name not in known:
            raise BadInput(
                f"question.tables: {name!r} is not declared", hint=f"There are: {', '.join(known)}."
            )
    found = tuple(c for name in names for c in checks(contract, name, question.stale_days))
    if not found:
        raise BadInput(
            f"nothing can be wrong in {', '.join(names)}: what the contract rules out is refused at loading",
            hint="Columns that may be missing or are clipped can be checked, and tables beside the customers.",
        )
    classes = tuple(domain(contract, name, question.bins) for name in question.by)
    analysis = Quality(question, found, classes, _notes(contract, names))
    if analysis.length(0) > MOST_NUMBERS:
        raise BadInput(
            f"question: {analysis.length(0):,} numbers in all, and at most {MOST_NUMBERS:,} can be read",
            hint="Name fewer tables, or classes with fewer values.",
        )
    return analysis


def _notes(contract: Contract, names: tuple[str, ...]) -> tuple[str, ...]:
    columns = [c for name in names for c in contract.table(name).columns]
    unread = sum(c.role in UNREAD for c in columns)
    notes = [
        "A row counts against a customer: shares are of all customers, whatever number of rows they have."
    ]
    if unread:
        notes.append(f"{unread} columns are personal data or free text: no analysis looks into them.")
    sure = sum(not c.nullable for c in columns if c.role not in UNREAD)
    return (*notes, f"{sure} columns cannot be missing: loading refuses a row without them.")


@dataclass(frozen=True)
class Quality:
    """Shares of customers with each problem."""

    question: Question
    checks: tuple[Check, ...]
    classes: tuple[Domain, ...]
    notes: tuple[str, ...]
    shares: tuple[float, ...] = (1.0,)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(
            dict.fromkeys([*(n for c in self.checks for n in c.reads), *(d.name for d in self.classes)])
        )

    @cached_property
    def _groups(self) -> list[int]:
        """How many groups there are side by side: all customers, then the cells of each class."""
        return [1, *(len(d.cells) for d in self.classes)]

    @cached_property
    def _weights(self) -> Floats:
        """Of being counted, and of each problem, for each group [groups, 2]."""
        share = self.question.classes_share / len(self.classes) if self.classes else 0.0
        problems = len(self.checks)
        # A problem's noise and half of the customers' make a share's: least when both cost what they are worth.
        counted = 1 / (1 + sqrt(problems))
        each = np.array([counted, 4 * (1 - counted) / problems])
        squares = [1 - share * len(self.classes), *[share] * len(self.classes)]
        return np.repeat(np.sqrt(np.outer(squares, each)), self._groups, axis=0)

    def max_norm(self, round_: int) -> float:
        return 1.0

    def length(self, round_: int) -> int:
        return (1 + len(self.checks)) * sum(self._groups)

    def ask(self, round_: int, totals: list[NoisySum]) -> None:
        return None

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: object) -> Rows:
        """[groups, 1 + problems] of each customer, group after group."""
        if asked is not None:
            raise ValueError("quality is asked without numbers")
        problems = np.stack([c.found(columns) for c in self.checks], axis=1) - 0.5
        mine = np.hstack([np.ones((len(problems), 1)), problems])
        cells = [np.zeros(len(mine), dtype=np.int64), *(d.codes(columns[d.name]) for d in self.classes)]
        rows = np.zeros((len(mine), sum(self._groups), mine.shape[1]))
        starts = np.concatenate([[0], np.cumsum(self._groups)])[:-1]
        for start, cell in zip(starts.tolist(), cells, strict=True):
            there = np.flatnonzero(cell >= 0)
            rows[there, start + cell[there]] = mine[there]
        return Rows((rows * self._each).reshape(len(mine), self.length(0)))

    @cached_property
    def _each(self) -> Floats:
        """The weights of all numbers, [groups, 1 + problems]."""
        return np.hstack([self._weights[:, :1], np.repeat(self._weights[:, 1:], len(self.checks), axis=1)])

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """{"level", "customers", "notes", "parts": stands out, columns, classes}."""
        coarse, fine = (self._counts(copy) for copy in independent_copies(totals[0]))
        problems = range(len(self.checks))
        units: dict[str, Unit] = {"customers": "customers", "share": "share"}
        shown = part("stands out", ("column", "problem", "among"), units, self._standing_out(coarse, fine))
        rows = ({"of": self._of(p)} | fine.problem(0, p) for p in problems)
        parts = [shown, part("columns", ("column", "problem"), units, rows)]
        if self.classes:
            places = range(1, sum(self._groups))
            each = (
                {"of": [*self._of(p), self._named[g]]} | fine.problem(g, p) for p in problems for g in places
            )
            parts.append(part("classes", ("column", "problem", "among"), units, each))
        return {"level": LEVEL, "customers": fine.people(0), "notes": list(self.notes), "parts": parts}

    def _of(self, problem: int) -> list[str]:
        return [self.checks[problem].name, self.checks[problem].problem]

    @cached_property
    def _named(self) -> list[str]:
        return ["all customers", *(f"{d.name} {cell}" for d in self.classes for cell in d.cells)]

    def _counts(self, total: NoisySum) -> Counts:
        """Made to agree: the classes of a column add up to all customers."""
        values = total.values.reshape(self._each.shape) / self._each
        ends = np.cumsum(self._groups)
        ties = np.zeros((len(self.classes), len(values)))
        ties[:, 0] = -1.0
        for row, end, size in zip(ties, ends[1:].tolist(), self._groups[1:], strict=True):
            row[end - size : end] = 1.0
        both = [total.std / self._weights[:, k] for k in (0, 1)]
        people = Consistent.of(values[:, 0], both[0], ties)
        problems = [Consistent.of(v, both[1], ties) for v in values[:, 1:].T]
        return Counts(people, problems)

    def _standing_out(self, coarse: Counts, fine: Counts) -> Iterator[dict[str, Any]]:
        """Problems of many customers, the most frequent first; then classes that have one more often than all."""
        least = self.question.stands_out
        shares = {
            (g, p): coarse.share(g, p) for p in range(len(self.checks)) for g in range(len(self._named))
        }
        above = {at: (s - least) for at, (s, std) in shares.items() if s >= max(least, STANDS_OUT * std)}
        for g, p in sorted(above, key=lambda at: (at[0] > 0, -above[at])):
            beyond = shares[g, p][0] - shares[0, p][0]
            if not g or beyond >= max(least, CLASS_STANDS_OUT * shares[g, p][1]):
                meaning = {"meaning": self.checks[p].meaning}
                yield {"of": [*self._of(p), self._named[g]]} | fine.problem(g, p) | meaning
