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
from functools import cached_property
from math import inf, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.analysis import Analysis, NoisySum
from sfumato.common.analyses.domains import Domain, domain
from sfumato.common.analyses.estimates import LEVEL, REACH, independent_copies, number
from sfumato.common.analyses.listed import Listed, listed
from sfumato.common.analyses.offer_tables import Shown, moment_part
from sfumato.common.analyses.tables import Table
from sfumato.common.contract import ColumnType, Contract
from sfumato.common.contributions import Cells
from sfumato.common.errors import BadInput
from sfumato.common.learners.allocation import Limits, Market, allocate
from sfumato.common.learners.holdings import BANDS, Holdings, holdings

MOST_CELLS = 10_000
MOMENT_WEIGHT = 0.7
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
    table = Table(tuple(domain(contract, g, question.bins) for g in question.groups), 0)
    moment = domain(contract, question.moment, question.bins) if question.moment else None
    found = Offer(question, contract, products, opened, table, moment)
    if found.length(0) > MOST_CELLS:
        raise BadInput(f"question: {found.length(0):,} cells in all, and at most {MOST_CELLS:,} can be read")
    return found


@dataclass(frozen=True)
class Offer:
    """Counts by group and product, and the plan that follows from them."""

    question: Question
    contract: Contract
    products: Listed
    opened: Listed
    groups: Table
    moment: Domain | None
    shares: tuple[float, ...] = (1.0,)

    @property
    def columns(self) -> tuple[str, ...]:
        moment = [self.moment.name] if self.moment else []
        return tuple(dict.fromkeys([*self.question.groups, *moment, self.products.name, self.opened.name]))

    @property
    def names(self) -> tuple[str, ...]:
        """The products on offer."""
        return tuple(o.product for o in self.question.offers)

    @property
    def bands(self) -> tuple[str, ...]:
        return self.moment.cells if self.moment else BANDS

    @property
    def _sizes(self) -> tuple[int, int]:
        """Groups and products."""
        return len(self.groups.places), len(self.names)

    @cached_property
    def weights(self) -> Floats:
        return np.array([1.0] * (1 + len(self.names)) + [MOMENT_WEIGHT])

    def max_norm(self, round_: int) -> float:
        return sqrt(float((self.weights**2).sum()))

    def length(self, round_: int) -> int:
        groups, products = self._sizes
        return groups * (1 + 2 * products) + 2 * len(self.bands)

    def ask(self, round_: int, totals: list[NoisySum]) -> None:
        return None

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: object) -> Cells:
        """One cell for the group, one a product that is held, one for the moment."""
        if asked is not None:
            raise ValueError("offers are asked without numbers")
        assert self.contract.as_of is not None  # build has checked it
        held = holdings(
            columns[self.products.name],
            columns[self.opened.name],
            self.names,
            self.products.column.categories or (),
            self.contract.as_of,
            self.question.months,
        )
        groups, products = self._sizes
        group = self.groups.cells({d.name: d.codes(columns[d.name]) for d in self.groups.columns})[:, None]
        pair = groups + (group * products + np.arange(products)) * 2
        inside = (held.before | held.took) & (group >= 0)
        band = self._band(held, columns)[:, None]
        moment = groups * (1 + 2 * products) + 2 * band + held.took.any(axis=1, keepdims=True)
        cells = [group, np.where(inside, pair + held.took, -1), np.where(band >= 0, moment, -1)]
        return Cells(np.hstack(cells).astype(np.int64), self.weights, self.length(0))

    def _band(self, held: Holdings, columns: Mapping[str, Any]) -> npt.NDArray[np.int64]:
        if self.moment:
            return self.moment.codes(columns[self.moment.name])
        return held.bands

    # --- the plan ----------------------------------------------------------------------------------------------

    def market(self, total: NoisySum) -> Market:
        groups, products = self._sizes
        pairs = total.values[groups : groups * (1 + 2 * products)].reshape(groups, products, 2)
        return Market(total.values[:groups], pairs[..., 0], pairs[..., 1], total.std**2)

    @property
    def _money(self) -> tuple[Floats, Floats]:
        """Values and costs of the products on offer."""
        offers = self.question.offers
        return np.array([o.value for o in offers]), np.array([o.cost for o in offers])

    def planned(self, totals: list[NoisySum]) -> tuple[Floats, Market]:
        """The plan's fractions [groups, products], and the counts to read its worth from."""
        coarse, fine = (self.market(copy) for copy in independent_copies(totals[0], SHARPNESS))
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
        groups, products = self._sizes
        market = self.market(total)
        moments = total.values[groups * (1 + 2 * products) :].reshape(-1, 2) / MOMENT_WEIGHT
        shown = Shown(self.groups, self.names)
        everyone, reach = float(market.group.sum()), REACH * total.std * sqrt(groups)
        return {
            "level": LEVEL,
            "customers": number(everyone, everyone - reach, everyone + reach),
            "notes": list(self._notes(plan)),
            "parts": [
                shown.take_up(market),
                moment_part(
                    self.moment.name if self.moment else "since the last product",
                    self.bands,
                    moments,
                    (total.std / MOMENT_WEIGHT) ** 2,
                ),
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
        if self.moment:
            yield f"{self.moment.name} is of the day of the data, and not of the day of the take-up."

    def saved(
        self, totals: list[NoisySum]
    ) -> tuple[Mapping[str, npt.NDArray[np.generic]], Mapping[str, Any]]:
        """Tensors and parameters of the model file (see learners.offers)."""
        return {"fractions": self.planned(totals)[0].astype(np.float32)}, {
            "groups": [{"name": d.name, "cells": list(d.cells)} for d in self.groups.columns],
            "bins": self.question.bins,
            "products": self.products.name,
            "opened": self.opened.name,
            "offers": list(self.names),
            "most_offers": self.question.most_offers,
        }
