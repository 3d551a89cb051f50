"""Reason codes: which columns moved one customer's log-odds toward the label, and by how much?

A column's amount is how much the log-odds fall if that column alone were as it is for the average customer:

    amount_f(x) = logit(x) - sum_b share_b * logit(x with column f in bin b)

where share_b is the part of the customers that bin b holds: one baseline a column, the others left as they are (the
marginal baseline values of Sundararajan & Najmi 2020, section 3, one feature at a time). Columns that act together
each get the whole of what they do together. Only amounts toward the label are reasons.

Inside a vault only: each amount is one customer's. Whose shares they are is said where they are taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sfumato.common.contract import Contract
from sfumato.common.job import Model
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.churn_net import ChurnNet
from sfumato.common.learners.curves import BinnedColumn
from sfumato.common.learners.encoding import (
    Encoded,
    FeatureSpec,
    bin_edges,
    model_features,
    monthly_specs,
    number_codes,
)
from sfumato.common.learners.models import Reason
from sfumato.common.learners.random_trees import Forest, Tree

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NOTHING = 1e-6  # log-odds: a smaller amount is rounding


def largest(
    amounts: Floats, codes: Ints, columns: Sequence[BinnedColumn], most: int
) -> tuple[tuple[Reason, ...], ...]:
    """Of each customer the columns of largest amount, from amounts and codes [n, F]: largest first, at most so many.

    Only amounts above NOTHING; of two equal ones the column that is first in the list.
    """
    order = np.argsort(-amounts, axis=1, kind="stable")[:, :most]
    rows = np.arange(len(order))[:, None]
    found = zip(order.tolist(), amounts[rows, order].tolist(), codes[rows, order].tolist(), strict=True)
    return tuple(
        tuple(
            Reason(columns[f].name, columns[f].bins[code], amount)
            for f, amount, code in zip(*row, strict=True)
            if amount > NOTHING
        )
        for row in found
    )


def shares_of(counts: npt.ArrayLike) -> Floats:
    """Noisy counts of bins as shares: what noise made negative is nobody; all alike where nobody is left."""
    people = np.maximum(np.asarray(counts, dtype=np.float64), 0.0)
    return people / people.sum() if people.sum() > 0 else np.full(len(people), 1 / len(people))


# --- trees -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForestAmounts:
    """A forest, and of each tree what each of its columns does in each leaf: amounts add up over trees.

    `moves[t]` holds pairs of a column and its amounts by leaf, float64 [LEAVES]. The average customer is the
    schema's: that of all branches.
    """

    forest: Forest
    moves: tuple[tuple[tuple[int, Floats], ...], ...]
    features: int

    @staticmethod
    def of(forest: Forest, schema: Schema) -> "ForestAmounts":
        shares = [shares_of(c.counts) for c in schema.columns]
        return ForestAmounts(forest, tuple(_moves(t, shares) for t in forest.trees), len(shares))

    def amounts(self, codes: Ints) -> Floats:
        """Of each customer and column, float64 [n, F], from codes [n, F]; the log-odds' outer limit left away."""
        found = np.zeros((self.features, len(codes)))
        for tree, moves in zip(self.forest.trees, self.moves, strict=True):
            leaves = tree.leaves(codes)
            for feature, by_leaf in moves:
                found[feature] += by_leaf[leaves]
        return found.T


def _moves(tree: Tree, shares: Sequence[Floats]) -> tuple[tuple[int, Floats], ...]:
    grid = np.array(tree.steps).reshape([len(c) + 1 for c in tree.cuts])
    found = []
    for feature in dict.fromkeys(tree.features):
        share = shares[feature]
        # Usually one axis; a column that is cut twice moves along both at once.
        axes = [i for i, f in enumerate(tree.features) if f == feature]
        cells = tuple(np.searchsorted(tree.cuts[i], np.arange(len(share)), side="right") for i in axes)
        people = np.zeros([grid.shape[i] for i in axes])
        np.add.at(people, cells, share)
        average = np.tensordot(people, grid, axes=(range(len(axes)), axes))
        found.append((feature, (grid - np.expand_dims(average, axes)).ravel()))
    return tuple(found)


# --- the churn net -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Typical:
    """Whom a net's customers are compared with: of each column the share of every code, float64 [codes], and the
    number in [-1, 1] that stands for it (0 for categories and null). Of a recurrent net also the average customer's
    sequence, float32 [months, S]."""

    shares: tuple[Floats, ...]
    numbers: tuple[Floats, ...]
    sequence: npt.NDArray[np.float32] | None = None

    @staticmethod
    def of_customers(encoded: Encoded, contract: Contract) -> "Typical":
        """These customers, at least one."""
        shares, numbers, g = list[Floats](), list[Floats](), 0
        for f, (spec, size) in enumerate(zip(model_features(contract), encoded.cardinalities, strict=True)):
            codes = encoded.codes[:, f]
            people = np.bincount(codes, minlength=size)
            shares.append(people / people.sum())
            if spec.numeric:
                total = np.bincount(codes, encoded.numeric[:, g], minlength=size)
                numbers.append(total / np.maximum(people, 1))
                g += 1
            else:
                numbers.append(np.zeros(size))
        sequence = None if encoded.sequence is None else encoded.sequence.mean(axis=0)
        return Typical(tuple(shares), tuple(numbers), sequence)

    @staticmethod
    def of_contract(contract: Contract, model: Model) -> "Typical":
        """By public knowledge alone, which is little: as many customers in each of the contract's bins or
        categories, each in the middle of its bin; and months of 0."""
        shares, numbers = [], []
        for spec in model_features(contract):
            middles = _middles(spec, model.bins) if spec.numeric else np.zeros(len(spec.categories or ()))
            unknown = np.zeros(1 if spec.numeric else 2)  # null; of a category also "other"
            shares.append(np.concatenate([np.full(len(middles), 1 / len(middles)), unknown]))
            numbers.append(np.concatenate([middles, unknown]))
        idle = [number_codes(np.zeros(1), s, np.zeros(0))[1] for s in monthly_specs(contract, model.sequence)]
        sequence = np.tile(np.stack(idle, axis=1), (model.months, 1)) if idle else None
        return Typical(tuple(shares), tuple(numbers), sequence)


def _middles(spec: FeatureSpec, bins: int) -> Floats:
    """Of each bin of a number, in [-1, 1]; of a whole number's, between the first and the last that it holds."""
    assert spec.bounds is not None
    edges = bin_edges(spec, bins)
    low, high = np.concatenate([[spec.bounds[0]], edges]), np.concatenate([edges, [spec.bounds[1]]])
    if spec.integer:
        low, high = np.ceil(low), np.maximum(np.concatenate([np.ceil(edges) - 1, high[-1:]]), np.ceil(low))
    ends = [number_codes(x, spec, edges)[1].astype(np.float64) for x in (low, high)]
    return np.asarray((ends[0] + ends[1]) / 2)


class NetAmounts:
    """A churn net, taken apart at its first layer: a column's share of that is looked up by its code.

    What a recurrent net reads by month is one column a roll-up, compared with the average customer's months at once.
    """

    def __init__(
        self, net: ChurnNet, cardinalities: Sequence[int], typical: Typical, numeric: Sequence[bool]
    ) -> None:
        linear = [*(layer for layer in net.mlp if isinstance(layer, nn.Linear)), net.out]
        self._bias, self._rest = linear[0].bias.detach(), linear[1:]
        self._recurrent, self._sequence = net.recurrent, typical.sequence
        self._shares, self._numeric = typical.shares, tuple(numeric)
        starts = np.concatenate([[0], np.cumsum(cardinalities)]).tolist()
        rows = [slice(a, b) for a, b in pairwise(starts)]
        weight, dim = linear[0].weight.detach(), net.embedding.embedding_dim
        self._scores = [net.score.weight.detach()[r, 0] for r in rows]
        self._tables = [
            net.embedding.weight.detach()[r] @ weight[:, f * dim : (f + 1) * dim].T
            for f, r in enumerate(rows)
        ]
        self._slopes = weight[:, len(rows) * dim :].T
        places = np.cumsum(self._numeric) - 1
        self._compared = [
            table + torch.outer(torch.tensor(number, dtype=torch.float32), self._slopes[place])
            if is_number
            else table
            for table, number, place, is_number in zip(
                self._tables, typical.numbers, places.tolist(), self._numeric, strict=True
            )
        ]

    def amounts(self, encoded: Encoded) -> Floats:
        """Of each customer and column, then of each roll-up read by month, float64 [n, F + S]."""
        with torch.inference_mode():
            codes, numeric = torch.from_numpy(encoded.codes), torch.from_numpy(encoded.numeric)
            own = self._own(codes, numeric)
            first = torch.stack(own).sum(dim=0) + self._bias
            months = torch.zeros(1) if encoded.sequence is None else torch.from_numpy(encoded.sequence)
            by_month = self._of_months(months)
            first = first + by_month
            now = self._after(first)
            found = []
            for f, share in enumerate(self._shares):
                without = first - own[f]
                wide, deep = 0.0, torch.zeros(len(codes))
                for code in np.flatnonzero(share).tolist():
                    wide += float(share[code]) * float(self._scores[f][code])
                    deep += float(share[code]) * self._after(without + self._compared[f][code])
                found.append(self._scores[f][codes[:, f]] - wide + now - deep)
            for s, average in enumerate(() if self._sequence is None else self._sequence.T):
                other = months.clone()
                other[:, :, s] = torch.tensor(average)
                found.append(now - self._after(first - by_month + self._of_months(other)))
            return np.asarray(torch.stack(found, dim=1).double().numpy())

    def _of_months(self, months: torch.Tensor) -> torch.Tensor:
        """What the sequence [n, months, S] puts into the first layer, [n, H]; 0 of a net that reads none."""
        if self._recurrent is None:
            return torch.zeros(1)
        state: torch.Tensor = self._recurrent(months)
        return state @ self._slopes[-state.shape[1] :]

    def _own(self, codes: torch.Tensor, numeric: torch.Tensor) -> list[torch.Tensor]:
        """What each column puts into the first layer, [n, H] each."""
        parts, g = [], 0
        for f, (table, is_number) in enumerate(zip(self._tables, self._numeric, strict=True)):
            part = table[codes[:, f]]
            if is_number:
                part = part + numeric[:, g : g + 1] * self._slopes[g]
                g += 1
            parts.append(part)
        return parts

    def _after(self, first: torch.Tensor) -> torch.Tensor:
        """The deep part of the log-odds [n], from the first layer's sums [n, H]."""
        for layer in self._rest:
            first = layer(torch.tanh(first))
        return first[:, 0]
