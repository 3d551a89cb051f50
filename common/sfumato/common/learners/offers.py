"""A plan of offers, at the branch: which of them its own customers get. See analyses.offer for how it comes about."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from sfumato.common.analyses.domains import domain
from sfumato.common.analyses.listed import listed
from sfumato.common.analyses.tables import Table
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.learners.allocation import drawn
from sfumato.common.learners.holdings import holdings
from sfumato.common.learners.models import Scores

ROUNDING = 4e-6  # of a sum of float32 fractions; `drawn` bears it
TOKEN = "token"  # noqa: S105 - the name of a column

Floats = npt.NDArray[np.float64]


class Group(BaseModel):
    """A column and its cells, as the plan counts them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    cells: tuple[str, ...]


class Plan(BaseModel):
    """What a model of this kind has beside its fractions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: tuple[Group, ...] = Field(min_length=1, max_length=2)
    bins: int
    products: str
    opened: str
    offers: tuple[str, ...] = Field(min_length=1)
    most_offers: int = Field(ge=1, le=5)


class OfferScorer:
    """Offers by the plan's fractions [groups, offers], drawn by a hash of the customer's token and the job: the same
    customer gets the same offers each time. Nobody is offered what they hold. There are no reasons."""

    def __init__(self, plan: Plan, fractions: Floats, contract: Contract, job_id: str) -> None:
        """Raises ValueError on a plan of another contract, or fractions that are none."""
        found = Table(tuple(domain(contract, g.name, plan.bins) for g in plan.groups), 0)
        if [d.cells for d in found.columns] != [g.cells for g in plan.groups]:
            raise ValueError("its groups have other cells than the contract's columns")
        known = listed(contract, plan.products).column.categories or ()
        if len(set(plan.offers)) < len(plan.offers) or not set(plan.offers) <= set(known):
            raise ValueError("it offers what is not on the contract's list of products")
        if contract.as_of is None:
            raise ValueError("the contract has no `as_of`: on that day customers hold what they hold")
        listed(contract, plan.opened)
        if (
            fractions.shape != (len(found.places), len(plan.offers))
            or not ((fractions >= 0) & (fractions <= 1) & np.isfinite(fractions)).all()
        ):
            raise ValueError("tensor 'fractions' must hold a fraction for each group and offer")
        if (fractions.sum(axis=1) > plan.most_offers + ROUNDING).any():
            raise ValueError("a group's fractions are more than the offers that a customer may get")
        self._plan, self._fractions, self._groups, self._job = plan, fractions, found, job_id
        self._known, self._as_of = known, contract.as_of

    @property
    def columns(self) -> tuple[str, ...]:
        """`score` reads the customers' tokens, too."""
        return tuple(
            dict.fromkeys([*(g.name for g in self._plan.groups), self._plan.products, self._plan.opened])
        )

    def score(self, columns: Mapping[str, Any], *, reasons: int = 0) -> Scores:
        missing = [n for n in (*self.columns, TOKEN) if n not in columns]
        if missing:
            raise BadInput(f"no column {missing[0]!r} to score", hint="The plan is made of it.")
        plan = self._plan
        held = holdings(
            columns[plan.products], columns[plan.opened], plan.offers, self._known, self._as_of, months=1
        )
        group = self._groups.cells({d.name: d.codes(columns[d.name]) for d in self._groups.columns})
        fractions = np.where((group >= 0)[:, None], self._fractions[group], 0.0)
        given = drawn(fractions, self._uniform(columns[TOKEN])) & ~held.before & ~held.took
        chosen = ([plan.offers[p] for p in np.flatnonzero(row)] for row in given)
        return Scores(offers=tuple((*c, *[None] * (plan.most_offers - len(c))) for c in chosen))

    def _uniform(self, tokens: Sequence[Any]) -> Floats:
        """A number in [0, 1) for each token: a token is keyed by the branch, so that this needs no key of its own."""
        prefix = f"sfumato-offers-v1\0{self._job}\0".encode()
        raw = b"".join(hashlib.sha256(prefix + str(t).encode()).digest()[:8] for t in tokens)
        return np.asarray((np.frombuffer(raw, dtype="<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53)
