"""Offers: who takes up which product, when, and whom to offer what under limits of contacts and money?

Question       The lists of products held and of the days they were opened; one or two columns that make the groups;
               which products are on offer, what a take-up is worth and an offer costs; the limits.
Contribution   One to the group; for each product on offer one to (group, product), as a holder from before the window
               or as one who took it up in it; one to the band of the moment, with or without a take-up. A customer
               who holds all P products has the norm sqrt(1 + P + 0.7^2), and nobody is cut.
Reading        Holders and take-up by group and product, take-up by moment; and a plan: the fraction of each group
               that is offered each product, by a linear programme (see learners.allocation).

Which cells are best is judged on one copy of the total, and what the plan needs and gains is read from another whose
noise is independent of the first: cells that a plan picks look better than they are, wherever their own noise helped
to pick them. The plan is a model, too: with it each branch finds its own customers' offers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.domains import domain
from sfumato.common.analyses.estimates import LEVEL, REACH, independent_copies, number
from sfumato.common.analyses.listed import listed
from sfumato.common.analyses.offer_counts import Counts
from sfumato.common.analyses.offer_tables import Shown, moment_part
from sfumato.common.analyses.tables import Table
from sfumato.common.contract import ColumnType, Contract
from sfumato.common.contributions import Cells
from sfumato.common.errors import BadInput
from sfumato.common.learners.allocation import Limits, Market, allocate

MOST_CELLS = 10_000
SINCE = "since the last product"
SHARPNESS = 0.7  # of the copies: choosing the plan gets more of what is known than reading its worth
SEEN = 5.0  # standard deviations: where fewer customers could take a product up, nobody is offered it
LEAST = 1e-4  # a smaller fraction is none

Floats = npt.NDArray[np.float64]


class Candidate(BaseModel):
    """A product on offer: what one take-up is worth and one offer costs, in the same money."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    product: str
    value: float = Field(ge=0, le=1e9, allow_inf_nan=False)
    cost: float = Field(ge=0, le=1e9, allow_inf_nan=False)


class Question(BaseModel):
    """`products` and `opened` are columns of one other table. `moment` is a column of the customers table; without it
    the time since the latest product counts. `bins` is for numbers without public edges."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    products: str
    opened: str
    groups: tuple[str, ...] = Field(min_length=1, max_length=2)
    offers: tuple[Candidate, ...] = Field(min_length=1, max_length=50)
    months: int = Field(default=12, ge=1, le=60)
    moment: str | None = None
    bins: int = Field(default=8, ge=2, le=32)
    contacts: int | None = Field(default=None, ge=1)
    money: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    most_offers: int = Field(default=1, ge=1, le=5)
    caution: float = Field(default=0.5, ge=0, le=3)


def build(question: Question, contract: Contract) -> Analysis:
    """Raises BadInput on lists that are no products with dates, unknown products, and groups without public cells."""
    products, opened = listed(contract, question.products), listed(contract, question.opened)
    known = products.column.categories or ()
    if not known:
        raise BadInput(
            f"question.products: {products.name!r} has no public list of products",
            hint='Give it type = "category" and `categories` in the contract.',
        )
    if opened.table.name != products.table.name or opened.column.type not in (
        ColumnType.DATE,
        ColumnType.DATETIME,
    ):
        raise BadInput(f"question.opened: {opened.name!r} is no date in table {products.table.name!r}")
    if contract.as_of is None:
        raise BadInput("question.months: the contract has no `as_of` to count back from")
    names = [o.product for o in question.offers]
    for name in names:
        if name not in known:
            raise BadInput(f"question.offers: no product {name!r}", hint=f"There are: {', '.join(known)}.")
    if len(set(names)) < len(names) or len(set(question.groups)) < len(question.groups):
        raise BadInput("question: a product on offer, or a group, is named twice")
    found = Counts(
        Table(tuple(domain(contract, g, question.bins) for g in question.groups), 0),
        domain(contract, question.moment, question.bins) if question.moment else None,
        products,
        opened,
        tuple(names),
        contract.as_of,
        question.months,
    )
    if found.length > MOST_CELLS:
        raise BadInput(f"question: {found.length:,} cells in all, and at most {MOST_CELLS:,} can be read")
    return Offer(question, found)


@dataclass(frozen=True)
class Offer:
    """Counts by group and product, and the plan that follows from them."""

    question: Question
    counts: Counts
    shares: tuple[float, ...] = (1.0,)

    @property
    def columns(self) -> tuple[str, ...]:
        return self.counts.columns

    def max_norm(self, round_: int) -> float:
        return self.counts.norm

    def length(self, round_: int) -> int:
        return self.counts.length

    def ask(self, round_: int, totals: list[NoisySum]) -> None:
        return None

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: object) -> Cells:
        """See offer_counts."""
        if asked is not None:
            raise ValueError("offers are asked without numbers")
        return self.counts.cells(columns)

    # --- the plan ----------------------------------------------------------------------------------------------

    @property
    def _money(self) -> tuple[Floats, Floats]:
        """Values and costs of the products on offer."""
        offers = self.question.offers
        return np.array([o.value for o in offers]), np.array([o.cost for o in offers])

    def planned(self, totals: list[NoisySum]) -> tuple[Floats, Market]:
        """The plan's fractions [groups, products], and the counts to read its worth from."""
        coarse, fine = (self.counts.market(copy) for copy in independent_copies(totals[0], SHARPNESS))
        q = self.question
        limits = Limits(q.contacts or inf, q.money or inf, q.most_offers)
        seen = SEEN * sqrt(2 * coarse.variance)
        rates = np.where(coarse.before >= seen, coarse.likely(q.caution), 0.0)
        plan = allocate(fine, rates, *self._money, limits, reach=REACH)
        return np.where(plan < LEAST, 0.0, plan).astype(np.float32).astype(np.float64), fine

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """Parts "take-up", "moment", "plan in all" and "plan" (see offer_tables); and the plan's "fractions" by group
        and product, as the model has them."""
        total, (plan, fine) = totals[0], self.planned(totals)
        counts, market = self.counts, self.counts.market(total)
        shown = Shown(counts.groups, counts.names)
        everyone, reach = float(market.group.sum()), REACH * total.std * sqrt(len(market.group))
        return {
            "level": LEVEL,
            "customers": number(everyone, everyone - reach, everyone + reach),
            "notes": list(self._notes(plan)),
            "parts": [
                shown.take_up(market),
                moment_part(self.question.moment or SINCE, counts.bands, *counts.moments(total)),
                *shown.plan(plan, fine, *self._money),
            ],
            "fractions": plan.tolist(),
        }

    def _notes(self, plan: Floats) -> Iterator[str]:
        q = self.question
        yield f"Take-up is of the last {q.months} months, by those who did not hold the product when they began."
        yield "The plan counts on the take-up of these months. It does not know who would have come without an offer."
        if q.contacts or q.money:
            yield f"The plan stays below its limits by {REACH:.2f} standard deviations of the noise."
        if not plan.any():
            yield "No offer is worth its cost by what is known: nobody is offered anything."
        if q.moment:
            yield f"{q.moment} is of the day of the data, and not of the day of the take-up."

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        """Tensors and parameters of the model file (see learners.offers)."""
        return {"fractions": self.planned(totals)[0].astype(np.float32)}, {
            "groups": [{"name": d.name, "cells": list(d.cells)} for d in self.counts.groups.columns],
            "bins": self.question.bins,
            "products": self.question.products,
            "opened": self.question.opened,
            "offers": list(self.counts.names),
            "most_offers": self.question.most_offers,
        }
