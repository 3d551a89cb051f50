"""Sentiment: what do customers write about, and how do they feel about it? In any language, without a list of words.

Question       A column of free text and the rating that goes with it: high is positive, low is negative. By which
               columns to show the answer, and the themes, each by its keywords.
Contribution   A customer's newest text alone. First it trains a classifier (learners.text_classifier): each sum's
               vector is at most 1 long. At the end it adds one to a cell of every table and to one of each theme
               that it names, by the sentiment that the classifier finds in it: with or without a rating. Customers
               of the contract's holdout are never trained on: theirs adds one more, by what the rating says.
               Over B tables and themes, and this one, that is sqrt(B + 1) long.
Reading        Shares of positive texts, with intervals, and how often the classifier agrees with the rating.

The classifier is a model, too: with it each branch scores its own customers' texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sfumato.common.analyses.analysis import HELD_OUT, Analysis, NoisySum
from sfumato.common.analyses.domains import Domain, domain
from sfumato.common.analyses.estimates import LEVEL, Estimates
from sfumato.common.analyses.listed import Listed, is_listed, listed
from sfumato.common.analyses.paired_cells import Pair, PairedCells, both, yes
from sfumato.common.analyses.parts import Unit, part
from sfumato.common.contract import NUMERIC, Contract, Role
from sfumato.common.contributions import Cells, Contributions
from sfumato.common.errors import BadInput
from sfumato.common.learners.text import Keywords, hashed, newest
from sfumato.common.learners.text_classifier import TextModel, TextTraining

NOTES = (
    "Sentiment is what a classifier makes of a customer's newest text; see accuracy for how far to trust it.",
    "Accuracy is of customers who are never trained on and whose rating is high or low.",
    "The classifier's weights are of hashed words: they name none. Themes are found by the question's keywords.",
)
_UNITS: dict[str, Unit] = {"customers": "customers", "share": "share", "positive": "share"}


class Question(BaseModel):
    """The `text` and its `rating`: positive from `positive_from` on, negative up to `negative_to`; what lies between
    is not trained on. `train_share` of the budget trains; the counts have the rest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    rating: str
    positive_from: float = Field(allow_inf_nan=False)
    negative_to: float = Field(allow_inf_nan=False)
    by: tuple[str, ...] = Field(default=(), max_length=10)
    themes: dict[str, tuple[str, ...]] = Field(default_factory=dict, max_length=20)
    bins: int = Field(default=10, ge=2, le=64)
    buckets: int = Field(default=8192, ge=64, le=65536)
    steps: int = Field(default=8, ge=2, le=50)
    train_share: float = Field(default=0.6, gt=0, lt=1)

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.negative_to >= self.positive_from:
            raise ValueError("negative_to must lie below positive_from")
        if len(set(self.by)) < len(self.by):
            raise ValueError("by names a column twice")
        for name, words in self.themes.items():
            if not name.strip() or not words:
                raise ValueError("a theme has a name, and at least one keyword")
            Keywords(words)
        return self


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on a text that is no column of free text, and a rating that is no number of the same table."""
    text, rating = _place(contract, question.text), _place(contract, question.rating)
    if text is None or text.column.role is not Role.TEXT:
        found = [f"{t.name}.{c.name}" for t in contract.tables for c in t.with_role(Role.TEXT)]
        raise BadInput(
            f"question.text: {question.text!r} is no column of free text",
            hint=f"Contract {contract.name!r} has: {', '.join(found) or 'none'} (role text in the contract).",
        )
    number = rating is not None and rating.column.type in NUMERIC and rating.column.role is not Role.PII
    if rating is None or not number or rating.table != text.table:
        raise BadInput(
            f"question.rating: {question.rating!r} is no number that stands beside {question.text!r}",
            hint="Name the rating that the customer gave with the text, of the same table.",
        )
    return Sentiment(question, tuple(domain(contract, name, question.bins) for name in question.by))


def _place(contract: Contract, name: str) -> Listed | None:
    if is_listed(contract, name):
        return listed(contract, name, text=True)
    table = contract.customer_table
    return Listed(table, table.column(name)) if table.has(name) else None


@dataclass(frozen=True)
class Sentiment:
    """Rounds: the training's, then the counts: cells in pairs, of negative and of positive texts."""

    question: Question
    by: tuple[Domain, ...]

    @cached_property
    def training(self) -> TextTraining:
        return TextTraining(self.question.buckets, self.question.steps)

    @property
    def columns(self) -> tuple[str, ...]:
        names = self.question.text, self.question.rating, *(d.name for d in self.by), HELD_OUT
        return tuple(dict.fromkeys(names))

    @property
    def shares(self) -> tuple[float, ...]:
        train = self.question.train_share
        return (*(train * s for s in self.training.shares), 1 - train)

    @property
    def _last(self) -> int:
        return self.question.steps + 1

    @property
    def _themes(self) -> list[tuple[str, tuple[str, ...]]]:
        """By name: a signed job keeps no other order."""
        return sorted(self.question.themes.items())

    @cached_property
    def cells(self) -> PairedCells:
        """Each table's (without `by` one of everybody), the ratings', and each theme's."""
        tables = [len(d.cells) for d in self.by] or [1]
        return PairedCells((*tables, 2, *[1] * len(self.question.themes)), len(tables))

    def max_norm(self, round_: int) -> float:
        return sqrt(len(self.cells.blocks)) if round_ == self._last else 1.0

    def length(self, round_: int) -> int:
        return self.cells.length if round_ == self._last else self.training.length(round_)

    def ask(self, round_: int, totals: list[NoisySum]) -> npt.NDArray[np.float32] | None:
        return self.training.ask(round_, totals)

    def contribute(
        self, round_: int, columns: Mapping[str, Any], asked: npt.NDArray[np.float32] | None
    ) -> Contributions:
        texts, ratings = newest(columns[self.question.text], columns[self.question.rating])
        written = np.array([t is not None for t in texts], dtype=np.bool_)
        positive = ratings >= self.question.positive_from
        rated = positive | (ratings <= self.question.negative_to)
        held_out = np.asarray(columns[HELD_OUT], dtype=np.bool_)
        kept = written if round_ == self._last else written & rated & ~held_out
        some = [t for t, k in zip(texts, kept.tolist(), strict=True) if t is not None and k]
        features = hashed(some, self.question.buckets)
        if round_ < self._last:
            return self.training.contribute(round_, features, positive[kept], asked)
        happy = (TextModel.of(asked, self.question.buckets).log_odds(features) > 0).astype(np.int64)
        tables = [d.codes(columns[d.name])[kept] for d in self.by] or [np.zeros(len(some), dtype=np.int64)]
        tried = np.where((rated & held_out)[kept], positive[kept].astype(np.int64), -1)
        named = [Keywords(words).named_in(some) for _, words in self._themes]
        codes = np.stack([*tables, tried, *(n.astype(np.int64) - 1 for n in named)], axis=1)
        places = self.cells.places(codes, happy)
        return Cells(places, np.ones(len(self.cells.blocks)), self.cells.length)

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """{"level", "customers" (with a text), "notes", "parts": everybody, accuracy, by each column, themes}."""
        counts = Estimates(totals[-1], self.cells.ties())
        blocks, tied = [self.cells.pairs(i) for i in range(len(self.cells.blocks))], self.cells.tied
        tables, (tried, *themes) = blocks[:tied], blocks[tied:]
        everyone = both(tables[0])

        def row(of: Sequence[str], pairs: Sequence[Pair]) -> dict[str, Any]:
            places = both(pairs)
            shown = {"customers": counts.count(places), "share": counts.ratio(places, everyone)}
            return {"of": of, **shown, "positive": counts.ratio(yes(pairs), places)}

        def right(of: str, pairs: Sequence[Pair], agreeing: Sequence[int]) -> dict[str, Any]:
            places = both(pairs)
            return {"of": [of], "customers": counts.count(places), "right": counts.ratio(agreeing, places)}

        whole, ((low, _), (_, high)) = row([], tables[0]), tried
        del whole["share"]  # of itself
        rated = [right("either", tried, [low, high]), right("negative", tried[:1], [low])]
        rated.append(right("positive", tried[1:], [high]))
        parts = [
            part("sentiment", [], {k: _UNITS[k] for k in whole if k in _UNITS}, [whole]),
            part("accuracy", ["rated"], {"customers": "customers", "right": "share"}, rated),
        ]
        for column, pairs in zip(self.by, tables, strict=False):
            rows = [row([cell], [pair]) for cell, pair in zip(column.cells, pairs, strict=True)]
            parts.append(part(f"sentiment by {column.name}", [column.name], _UNITS, rows))
        if themes:
            rows = [row([name], pairs) for (name, _), pairs in zip(self._themes, themes, strict=True)]
            parts.append(part("themes", ["theme"], _UNITS, rows))
        return {"level": LEVEL, "customers": whole["customers"], "notes": list(NOTES), "parts": parts}

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        """The weights of the hash's buckets, the intercept last, and the column that they read."""
        return {"weights": self.training.model(totals[: self._last]).flat()}, {"text": self.question.text}
