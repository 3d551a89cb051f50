"""Baskets: which products or kinds of spending go together?

Question       The column of items of another table, e.g. "transactions.category"; what a basket is: all of a
               customer's items, or those of one basket id. How many items, pairs and triples to follow.
Contribution   Up to three sums. The first two only choose: items, then pairs of the frequent ones; a customer whose
               vector is longer than that of `most_items` items is scaled down to it. The last one measures what was
               chosen, and cuts nobody: its bound is the norm of a customer who has all of it.
Reading        Support, confidence and lift (Agrawal et al. 1993; Brin et al. 1997) of what the last sum counts alone:
               its noise is independent of the choice. So intervals are neither bent by choosing nor off by clipping.

A sum whose choice is settled by the contract (no more items than are followed, ...) is left away, and its budget goes
to the others.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb, sqrt
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.estimates import LEVEL
from sfumato.common.analyses.item_sets import Chosen, all_sets, baskets
from sfumato.common.analyses.listed import Listed, listed
from sfumato.common.analyses.measured_baskets import MeasuredBaskets
from sfumato.common.analyses.parts import part
from sfumato.common.contract import Contract
from sfumato.common.contributions import Rows
from sfumato.common.errors import BadInput

SHARES = {"items": 0.2, "pairs": 0.8}  # of what choosing takes

Stage = Literal["items", "pairs", "measure"]


class Question(BaseModel):
    """`column` holds the items, `basket` the basket's id in the same table; without it a customer is one basket.
    Of the budget, choosing takes `choosing`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str
    basket: str | None = None
    most_baskets: int = Field(default=4, ge=1, le=20)
    items: int = Field(default=24, ge=2, le=64)
    pairs: int = Field(default=30, ge=1, le=500)
    triples: int = Field(default=0, ge=0, le=200)
    most_items: int = Field(default=4, ge=2, le=64)
    choosing: float = Field(default=0.5, gt=0, lt=1)


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on a column that is not listed, has no public list of items, or a basket of another table."""
    column = listed(contract, question.column)
    if len(column.column.categories or ()) < 2:
        raise BadInput(
            f"question.column: {column.name!r} has no public list of items",
            hint='Give it type = "category" and two `categories` or more in the contract.',
        )
    basket = listed(contract, question.basket) if question.basket else None
    if basket and (basket.table.name != column.table.name or basket.name == column.name):
        raise BadInput(f"question.basket: {basket.name!r} is no other column of table {column.table.name!r}")
    return Basket(column, basket, question)


@dataclass(frozen=True)
class Basket:
    """Counts of baskets by items, pairs and triples."""

    column: Listed
    basket: Listed | None
    question: Question

    @cached_property
    def categories(self) -> tuple[str, ...]:
        return self.column.column.categories or ()

    @cached_property
    def _sizes(self) -> tuple[int, int, int]:
        """How many items, pairs and triples are measured."""
        q, items = self.question, min(self.question.items, len(self.categories))
        return items, min(q.pairs, comb(items, 2)), min(q.triples, comb(items, 3))

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        items, pairs, triples = self._sizes
        choose_pairs = pairs < comb(items, 2) or 0 < triples < comb(items, 3)
        chosen: dict[Stage, bool] = {"items": items < len(self.categories), "pairs": choose_pairs}
        return (*(stage for stage, needed in chosen.items() if needed), "measure")

    @property
    def shares(self) -> tuple[float, ...]:
        first = [SHARES[stage] * self.question.choosing for stage in self.stages[:-1]]
        all_ = [*first, 1 - self.question.choosing]
        return tuple(s / sum(all_) for s in all_)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column.name, *([self.basket.name] if self.basket else []))

    @property
    def _most_baskets(self) -> int:
        return self.question.most_baskets if self.basket else 1

    @property
    def _measured(self) -> MeasuredBaskets:
        return MeasuredBaskets(self._sizes, self._most_baskets, self.basket is not None)

    def max_norm(self, round_: int) -> float:
        q = self.question
        match self.stages[round_]:
            case "items":
                return sqrt(q.most_items * self._most_baskets)
            case "pairs":
                return sqrt(comb(q.most_items, 2) * self._most_baskets)
            case "measure":
                return self._measured.norm

    def length(self, round_: int) -> int:
        lengths: dict[Stage, int] = {
            "items": len(self.categories),
            "pairs": comb(self._sizes[0], 2),
            "measure": self._measured.length,
        }
        return lengths[self.stages[round_]]

    # --- choosing ----------------------------------------------------------------------------------------------

    def chosen(self, totals: Sequence[NoisySum]) -> Chosen:
        """By the totals of the choosing sums so far; the first ones where nothing is to be chosen."""
        known = dict(zip(self.stages, (t.values for t in totals), strict=False))
        return Chosen.of(self._sizes, known.get("items"), known.get("pairs"))

    def ask(self, round_: int, totals: list[NoisySum]) -> npt.NDArray[np.float32] | None:
        """Places of the items; to measure, also those of the pairs and triples among them. None at first."""
        if round_ == 0:
            return None
        chosen = self.chosen(totals)
        return (chosen.items if self.stages[round_] == "pairs" else chosen.flat).astype(np.float32)

    def _told(self, round_: int, asked: npt.NDArray[np.float32] | None) -> Chosen:
        """What the coordinator asks for, checked. Raises ValueError."""
        if round_ == 0:
            if asked is not None:
                raise ValueError("The first sum is asked without numbers.")
            return self.chosen([])
        items, pairs, triples = self._sizes
        if self.stages[round_] == "pairs":
            pairs, triples = 0, 0
        return Chosen.told(asked, (items, pairs, triples), len(self.categories))

    # --- counting ----------------------------------------------------------------------------------------------

    def contribute(
        self, round_: int, columns: Mapping[str, Any], asked: npt.NDArray[np.float32] | None
    ) -> Rows:
        """A row a customer: their baskets' items, or pairs, or all that is measured, added up."""
        told, stage = self._told(round_, asked), self.stages[round_]
        codes = np.arange(len(self.categories)) if stage == "items" else told.items
        ids = columns[self.basket.name] if self.basket else None
        found = baskets(columns[self.column.name], self.categories, codes, ids, self._most_baskets)
        if stage == "measure":
            return Rows(self._measured.rows(found, told))
        rows = found.per_customer(found.held if stage == "items" else found.of_all(all_sets(len(codes), 2)))
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return Rows(rows * np.minimum(1.0, self.max_norm(round_) / np.maximum(norms, 1.0)))

    # --- reading -----------------------------------------------------------------------------------------------

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """Parts "items", "pairs", "triples" and "rules": see association.ItemSets."""
        customers, held = self._measured.read(totals[-1], self.chosen(totals[:-1]), self.categories)
        whole = part("all baskets", (), {"baskets": "number"}, [{"of": [], "baskets": held.whole.number}])
        return {
            "level": LEVEL,
            "customers": customers.number,
            "notes": list(self._notes()),
            "parts": [*([whole] if self.basket else []), *held.parts()],
        }

    def _notes(self) -> Iterator[str]:
        items, pairs, triples = self._sizes
        if self.basket:
            yield f"A basket is a {self.basket.name} of a customer, the latest {self._most_baskets} of each."
        else:
            yield "A basket is all that a customer has; a customer without any item counts as an empty one."
        if len(self.stages) > 1:
            yield (
                f"Of {len(self.categories)} items {items} were followed, and {pairs} pairs and {triples} triples of "
                "them: those that looked most frequent in sums of their own. Others may be as frequent."
            )
