"""The counted part of a satisfaction vector: which voices a customer adds where, and what ties the sums together.

Blocks of numbers lie side by side; the squares of a block's weights are its share of the longest vector's square. A
customer adds to one group of a block or, where several answers make one voice, to some in part: that is no longer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.voices import Answers, Groups

Floats = npt.NDArray[np.float64]
Key = tuple[str | int, ...]

# Of a part's square, for how many customers there are, with or without an answer: in all, and in each group.
EVERYONE, PEOPLE = 0.02, 0.1
# Of a score's square: that they answered, the verdict, the place on the scale, which answer. NPS has no place.
PORTIONS = {"nps": (0.28, 0.64, 0.0, 0.08), "csat": (0.25, 0.4, 0.25, 0.1)}
ANSWERED, VERDICT, PLACE = range(3)
KINDS = 3  # detractor, passive, promoter


@dataclass(frozen=True)
class Block:
    """Some numbers of the vector: [groups, measures], each measure with its weight."""

    start: int
    weights: Floats
    groups: int = 1

    def place(self, group: int, measure: int) -> int:
        return self.start + group * len(self.weights) + measure


@dataclass(frozen=True)
class VoiceSums:
    """Blocks: "everyone"; "score" and "answer" of each score; "people" and, of each score, "group" of each table;
    "moves". `whole`, `grouped` and `moved` are their shares of the square of the longest vector."""

    scores: tuple[Answers, ...]
    tables: tuple[Groups, ...]
    latest: int
    whole: float
    grouped: float
    moved: float

    def measures(self, score: int) -> Floats:
        """What is added up of each answer, [measures, answers]: 1, the verdict, and of CSAT the place."""
        scale = self.scores[score].scale
        found = np.stack([np.ones(scale.answers), scale.verdict, scale.place])
        return found[: 3 if PORTIONS[scale.name][PLACE] else 2]

    @cached_property
    def blocks(self) -> dict[Key, Block]:
        """By what they are of."""
        found: dict[Key, Block] = {}

        def add(key: Key, squares: npt.ArrayLike, groups: int = 1) -> None:
            start = sum(b.groups * len(b.weights) for b in found.values())
            found[key] = Block(start, np.sqrt(np.atleast_1d(squares)), groups)

        add(("everyone",), EVERYONE * self.whole)
        for s, score in enumerate(self.scores):
            portions = np.array(PORTIONS[score.scale.name]) * (1 - EVERYONE) * self.whole / len(self.scores)
            add(("score", s), portions[: len(self.measures(s))])
            add(("answer", s), portions[-1], score.scale.answers)
        for t, table in enumerate(self.tables):
            cells, share = len(table.cells.cells), self.grouped / len(self.tables)
            if not table.by_answer:
                add(("people", t), PEOPLE * share, cells)
            for s, score in enumerate(self.scores):
                portions = np.array(PORTIONS[score.scale.name][: len(self.measures(s))])
                each = (1.0 if table.by_answer else 1 - PEOPLE) * share / len(self.scores)
                add(("group", t, s), portions / portions.sum() * each, cells)
        if self.moved:
            add(("moves",), self.moved, KINDS**2)
        return found

    @cached_property
    def weights(self) -> Floats:
        """Of every number."""
        return np.concatenate([np.tile(b.weights, b.groups) for b in self.blocks.values()])

    def rows(self, columns: Mapping[str, Any]) -> Floats:
        """Each customer's vector, float64 [n, numbers]."""
        voices = [s.voices(columns, self.latest) for s in self.scores]
        codes = [t.codes(columns) for t in self.tables]
        parts = []
        for key, block in self.blocks.items():
            match key:
                case ("everyone",):
                    raw = np.ones((voices[0].customers, 1))
                case ("score", int(s)):
                    raw = np.hstack([voices[s].mean(f)[:, None] for f in self.measures(s)])
                case ("answer", int(s)):
                    raw = voices[s].each(np.ones(block.groups), voices[s].answer, block.groups)
                case ("people", int(t)):
                    raw = (codes[t][:, None] == np.arange(block.groups)).astype(np.float64)
                case ("group", int(t), int(s)):
                    at = codes[t][voices[s].row if self.tables[t].by_answer else voices[s].customer]
                    each = [voices[s].each(f, at, block.groups) for f in self.measures(s)]
                    raw = np.stack(each, axis=2).reshape(len(each[0]), block.groups * len(each))
                case _:
                    raw = self._moves(columns)
            parts.append(raw)
        return np.hstack(parts) * self.weights

    def _moves(self, columns: Mapping[str, Any]) -> Floats:
        """One cell for who answered twice: the kind of the answer before, and of the latest."""
        found = self.scores[0].voices(columns, 2)
        kind = np.array(self.scores[0].scale.verdict, dtype=np.int64)[found.answer] + 1
        second = np.flatnonzero(found.customer[1:] == found.customer[:-1]) + 1
        cells = np.zeros((found.customers, KINDS**2))
        cells[found.customer[second], kind[second] * KINDS + kind[second - 1]] = 1.0
        return cells

    def form(
        self, key: Key, measure: int = 0, *, group: int | None = None, factors: Floats | None = None
    ) -> Floats:
        """One measure of one group of a block, or added up over its groups, times factors."""
        block, form = self.blocks[key], np.zeros(len(self.weights))
        for g in range(block.groups) if group is None else [group]:
            form[block.place(g, measure)] = 1.0 if factors is None else factors[g]
        return form

    @cached_property
    def ties(self) -> Floats:
        """Forms that are nothing without noise: one way to add up the same voices, less another. [k, numbers]."""
        rows = []
        for s in range(len(self.scores)):
            for m, function in enumerate(self.measures(s)):
                whole = self.form(("score", s), m)
                rows.append(self.form(("answer", s), factors=function) - whole)
                rows += [self.form(("group", t, s), m) - whole for t in range(len(self.tables))]
        for t, table in enumerate(self.tables):
            if not table.by_answer:
                rows.append(self.form(("people", t)) - self.form(("everyone",)))
        if self._answered_together():
            rows.append(self.form(("score", 0)) - self.form(("score", 1)))
            for t, table in enumerate(self.tables):
                for g in range(len(table.cells.cells)):
                    rows.append(self.form(("group", t, 0), group=g) - self.form(("group", t, 1), group=g))
        return np.array(rows)

    def _answered_together(self) -> bool:
        """Whether who answers the one question answers the other."""
        first, last = self.scores[0], self.scores[-1]
        return len(self.scores) == 2 and first.table == last.table and not (first.nullable or last.nullable)
