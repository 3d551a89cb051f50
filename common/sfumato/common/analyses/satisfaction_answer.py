"""The parts of satisfaction that are read from voices: scores of all and by group, answers, moves between answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfumato.common.analyses.estimates import Number
from sfumato.common.analyses.parts import Unit, part
from sfumato.common.analyses.voice_sums import ANSWERED, PLACE, VERDICT, Key, VoiceSums
from sfumato.common.learners.consistent import Consistent

KINDS = ("detractor", "passive", "promoter")
COUNTED: dict[str, Unit] = {"customers": "customers", "share": "share"}
SCORED: dict[str, Unit] = {
    "answered": "customers",
    "response": "share",
    "nps": "points",
    "promoters": "share",
    "passives": "share",
    "detractors": "share",
    "content": "share",
    "mean": "number",
}


@dataclass(frozen=True)
class ScoreParts:
    """Of sums that agree."""

    sums: VoiceSums
    found: Consistent

    def parts(self) -> list[dict[str, Any]]:
        """nps, csat, answers, by group, moves: as far as they were asked."""
        sums, scores = self.sums, range(len(self.sums.scores))
        parts = [self._part(sums.scores[s].scale.name, (), [self._overall(s)]) for s in scores]
        parts.append(part("answers", ("score", "answer"), COUNTED, self._answers()))
        if sums.tables:
            cells = [(t, g) for t, table in enumerate(sums.tables) for g in range(len(table.cells.cells))]
            for s in scores:
                rows = [self._group(t, g, s) for t, g in cells]
                parts.append(self._part(f"{sums.scores[s].scale.name} by group", ("column", "value"), rows))
        if sums.moved:
            parts.append(part("moves", ("before", "latest"), COUNTED, self._moves()))
        return parts

    @staticmethod
    def _part(name: str, by: tuple[str, ...], rows: list[dict[str, Any]]) -> dict[str, Any]:
        return part(name, by, {m: u for m, u in SCORED.items() if any(m in r for r in rows)}, rows)

    def _overall(self, s: int) -> dict[str, Any]:
        """One score of all customers."""
        sums, key, scale = self.sums, ("score", s), self.sums.scores[s].scale
        answered = sums.form(key)
        row = {
            "of": [],
            "answered": self.found.count(answered),
            "response": self.found.ratio(answered, sums.form(("everyone",))),
            **self._score(s, key, None),
        }
        if scale.name == "nps":
            for kind, name in zip((-1, 0, 1), KINDS, strict=True):
                those = np.array(scale.verdict) == kind
                row[name + "s"] = self.found.ratio(sums.form(("answer", s), factors=those * 1.0), answered)
        return row

    def _group(self, t: int, g: int, s: int) -> dict[str, Any]:
        """One score of one group; who did not answer has a group only if the customers have it."""
        sums, table, key = self.sums, self.sums.tables[t], ("group", t, s)
        answered = sums.form(key, group=g)
        row = {"of": [table.name, table.cells.cells[g]], "answered": self.found.count(answered)}
        if not table.by_answer:
            row["response"] = self.found.ratio(answered, sums.form(("people", t), group=g))
        return row | self._score(s, key, g)

    def _score(self, s: int, key: Key, group: int | None) -> dict[str, Number]:
        sums, scale = self.sums, self.sums.scores[s].scale
        answered, verdict = (sums.form(key, m, group=group) for m in (ANSWERED, VERDICT))
        score = self.found.ratio(verdict, answered, -1.0, 1.0)
        if scale.name == "nps":
            return {"nps": {end: 100 * x for end, x in score.items()}}
        mean = self.found.ratio(sums.form(key, PLACE, group=group), answered, -1.0, 1.0)
        half = (scale.most - scale.least) / 2
        return {
            "content": {end: (1 + x) / 2 for end, x in score.items()},
            "mean": {end: scale.least + half * (1 + x) for end, x in mean.items()},
        }

    def _answers(self) -> Iterator[dict[str, Any]]:
        for s, score in enumerate(self.sums.scores):
            whole = self.sums.form(("score", s))
            for a in range(score.scale.answers):
                one = self.sums.form(("answer", s), group=a)
                of = [score.scale.name, str(score.scale.least + a)]
                yield {"of": of, "customers": self.found.count(one), "share": self.found.ratio(one, whole)}

    def _moves(self) -> Iterator[dict[str, Any]]:
        """The share is of those who were of the kind before."""
        kinds = {"nps": KINDS, "csat": ("not content", "", "content")}[self.sums.scores[0].scale.name]
        named = [(k, name) for k, name in enumerate(kinds) if name]
        for before, was in named:
            forms = {name: self.sums.form(("moves",), group=3 * before + k) for k, name in named}
            whole = np.sum(list(forms.values()), axis=0)
            for name, one in forms.items():
                yield {
                    "of": [was, name],
                    "customers": self.found.count(one),
                    "share": self.found.ratio(one, whole),
                }
