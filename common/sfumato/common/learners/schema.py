"""The schema round: into which bins does each column fall, and how many customers are in each?

Question       The contract's model features, each on a fine public grid.
Contribution   One customer adds one to one fine cell of every feature (its cell and, where the contract has a label,
               the label's value): over F features the l2 norm is sqrt(F).
Reading        Quantile bins of equal noisy mass, a bin of its own for a heavy atom, rare categories merged. No bin is
               made that noise could easily have made. Categories are put in the order of their noisy log-odds.

The answer is a `Schema`: public from then on, kept beside the models, and all that a learner needs to turn columns
into codes. Vault and coordinator use the same bytes of it, so nothing is worked out twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.domains import BINARY, Domain, domain
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells
from sfumato.common.errors import BadInput
from sfumato.common.learners.bins import Column, Schema
from sfumato.common.learners.encoding import (
    BOOLEAN_CATEGORIES,
    FeatureSpec,
    bin_edges,
    category_codes,
    inputs_hash,
    model_features,
    number_codes,
)

__all__ = ["Column", "FineGrid", "Schema", "SchemaRound", "label_codes"]

FINE_CELLS = 128  # of a number; more would only add up more noise
STANDS_OUT = 2.0  # standard deviations: below that a count may well be nobody's
HEAVY = 0.7  # of a bin's share: a cell this full is an atom

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FineGrid:
    """The public cells of one feature. A number's: between `cuts`, then null; a category's: the contract's, then
    other, then null."""

    spec: FeatureSpec
    cuts: Floats
    start: int

    @staticmethod
    def of(spec: FeatureSpec, start: int) -> "FineGrid":
        if not spec.numeric:
            return FineGrid(spec, np.zeros(0), start)
        assert spec.bounds is not None
        low, high = spec.bounds
        cuts = {*bin_edges(replace(spec, edges=None), FINE_CELLS).tolist(), *(spec.edges or ())}
        if low <= 0 <= high:  # no amount at all is another matter than a small one
            cuts |= {0.0, 0.5 if spec.integer else float(np.nextafter(0.0, 1.0))}
        if spec.integer:
            # Cuts between the same two whole numbers make empty cells: one of them is enough.
            cuts = {float(np.ceil(c)) for c in cuts}
        return FineGrid(spec, np.array(sorted(c for c in cuts if low < c <= high)), start)

    @property
    def size(self) -> int:
        known = len(self.cuts) + 1 if self.spec.numeric else len(self.spec.categories or ()) + 1
        return known + 1

    def codes(self, values: Any) -> Ints:
        """Each customer's cell, int64 [n]. Raises BadInput on a category column that holds fractions."""
        if self.spec.numeric:
            return number_codes(values, self.spec, self.cuts)[0]
        return category_codes(values, self.spec.categories or ())


@dataclass(frozen=True)
class SchemaRound:
    """One sum over all features. `bins` is how many a number may get, atoms and null not counted."""

    contract: Contract
    bins: int = 24
    shares: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not model_features(self.contract):
            raise BadInput(
                f"contract {self.contract.name!r} has no column with role feature or amount",
                hint="A schema needs at least one: give the customers table a feature.",
            )
        if not 2 <= self.bins <= 64:
            raise BadInput("a number gets 2 to 64 bins")

    @cached_property
    def grids(self) -> tuple[FineGrid, ...]:
        grids: list[FineGrid] = []
        for spec in model_features(self.contract):
            grids.append(FineGrid.of(spec, grids[-1].start + grids[-1].size if grids else 0))
        return tuple(grids)

    @cached_property
    def _label(self) -> Domain | None:
        label = self.contract.label
        return domain(self.contract, label.name, 2) if label else None

    @property
    def columns(self) -> tuple[str, ...]:
        names = tuple(g.spec.name for g in self.grids)
        return (*names, self._label.name) if self._label else names

    def max_norm(self, round_: int) -> float:
        return sqrt(len(self.grids))

    def length(self, round_: int) -> int:
        cells = self.grids[-1].start + self.grids[-1].size
        return cells * (2 if self._label else 1)

    def ask(self, round_: int, totals: list[NoisySum]) -> None:
        return None

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: object) -> Cells:
        """A cell a feature for each customer, by label; whoever's label the contract rules out adds nothing."""
        if asked is not None:
            raise ValueError("a schema is asked without numbers")
        cells = np.stack([g.start + g.codes(columns[g.spec.name]) for g in self.grids], axis=1)
        if self._label:
            label = label_codes(self.contract, columns)
            cells = np.where(label[:, None] < 0, -1, 2 * cells + label[:, None])
        return Cells(cells, np.ones(len(self.grids)), self.length(0))

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """The `Schema`, as JSON."""
        return self.schema(totals[0]).model_dump(mode="json")

    def schema(self, total: NoisySum) -> Schema:
        """See the module. Repeats: the same total gives the same bytes."""
        split = 2 if self._label else 1
        counts = total.values.reshape(-1, split)
        std = total.std * sqrt(split)
        each = [counts[g.start : g.start + g.size] for g in self.grids]
        # Every feature counts the same customers: their mean total, each weighed by its noise.
        weights = np.array([1.0 / g.size for g in self.grids])
        sums = np.array([c.sum(axis=0) for c in each])
        whole = np.maximum(weights @ sums / weights.sum(), 0.0)
        customers = float(max(whole.sum(), 1.0))
        columns = tuple(
            _column(grid, c, customers, std, self.bins) for grid, c in zip(self.grids, each, strict=True)
        )
        return Schema(
            contract=self.contract.hash,
            inputs=inputs_hash(self.contract),
            label=self._label.name if self._label else None,
            customers=customers,
            positives=float(whole[1]) if self._label else None,
            columns=columns,
        )


def label_codes(contract: Contract, columns: Mapping[str, Any]) -> Ints:
    """The contract's label, int64 [n]: 1 positive, 0 not, -1 for what the contract rules out. Raises BadInput."""
    label = contract.label
    if label is None:
        raise BadInput(f"contract {contract.name!r} has no label to learn")
    found = domain(contract, label.name, 2)
    codes = found.codes(columns[label.name])
    positive = label.positive or (BINARY[1] if found.spec.categories == BINARY else BOOLEAN_CATEGORIES[1])
    return np.where(codes < 0, -1, codes == found.cells.index(positive)).astype(np.int64)


# --- reading -----------------------------------------------------------------------------------------------


def _column(grid: FineGrid, counts: Floats, customers: float, std: float, bins: int) -> Column:
    """The bins of one feature, from its noisy counts [cells] or, by label, [cells, 2]."""
    both, label = counts.sum(axis=1), _surprise(counts, std)
    if grid.spec.numeric:
        groups = _quantiles(both[:-1], label[:-1], customers, std, bins)
    else:
        groups = _frequent(both[:-1], label[:-1], std)
    null = len(both) - 1
    heaviest = max(range(len(groups)), key=lambda b: float(both[groups[b]].sum()))
    if both[null] >= STANDS_OUT * std:
        groups.append([null])
    else:
        groups[heaviest] = [*groups[heaviest], null]
    if not grid.spec.numeric and counts.shape[1] == 2:
        groups = _by_log_odds(groups, counts, std)
    code = {cell: b for b, group in enumerate(groups) for cell in group}
    name = grid.spec.name
    stds = tuple(std * sqrt(len(g)) for g in groups)
    summed = [counts[g].sum(axis=0) for g in groups]
    number = tuple(float(s.sum()) for s in summed)
    positives = tuple(float(s[1]) for s in summed) if counts.shape[1] == 2 else None
    if grid.spec.numeric:
        firsts = [min(c for c in g if c != null) for g in groups if g != [null]]
        cuts = tuple(float(grid.cuts[f - 1]) for f in firsts if f)
        return Column(name=name, cuts=cuts, null=code[null], counts=number, positives=positives, stds=stds)
    categories = grid.spec.categories or ()
    return Column(
        name=name,
        categories={c: code[i] for i, c in enumerate(categories)},
        other=code[len(categories)],
        null=code[null],
        counts=number,
        positives=positives,
        stds=stds,
    )


def _surprise(counts: Floats, std: float) -> Floats:
    """How many positives a cell has beyond its share, in standard deviations of the noise; 0 without a label."""
    if counts.shape[1] < 2:
        return np.zeros(len(counts))
    rate = float(np.clip(counts[:, 1].sum() / max(counts.sum(), 1.0), 0.0, 1.0))
    noise = max(std / sqrt(2) * sqrt(rate**2 + (1 - rate) ** 2), 1e-12)
    return np.asarray((counts[:, 1] - rate * counts.sum(axis=1)) / noise)


def _quantiles(counts: Floats, label: Floats, customers: float, std: float, bins: int) -> list[list[int]]:
    """Runs of neighbouring cells: atoms alone, the rest in bins of equal mass, none of them within the noise."""
    counts = _consistent(counts, customers)
    heavy = max(HEAVY * customers / bins, STANDS_OUT * std)
    atoms = set(np.flatnonzero(counts >= heavy).tolist())
    rest = max(float(counts.sum() - counts[list(atoms)].sum()), 0.0)
    target = rest / max(bins - len(atoms), 2)
    groups: list[list[int]] = []
    run: list[int] = []
    for cell in range(len(counts)):
        if cell in atoms:
            groups += [run, [cell]] if run else [[cell]]
            run = []
            continue
        run.append(cell)
        if _mass(counts, run) >= max(target, STANDS_OUT * std * sqrt(len(run))):
            groups.append(run)
            run = []
    if run:
        groups.append(run)
    return _merged(groups, counts, label, std, target)


def _consistent(counts: Floats, customers: float) -> Floats:
    """The nearest counts >= 0 that add up to the customers (Duchi et al. 2008, the simplex)."""
    ordered = np.sort(counts)[::-1]
    over = (np.cumsum(ordered) - customers) / np.arange(1, len(counts) + 1)
    shift = over[np.flatnonzero(ordered > over)[-1]]
    return np.asarray(np.maximum(counts - shift, 0.0))


def _mass(counts: Floats, cells: list[int]) -> float:
    return float(counts[cells].sum())


def _merged(
    groups: list[list[int]], counts: Floats, label: Floats, std: float, target: float
) -> list[list[int]]:
    """What is left between two atoms and lies within the noise, label and all, joins its lighter neighbour."""
    while len(groups) > 1:
        masses = [_mass(counts, g) for g in groups]
        weak = [
            i
            for i, (g, m) in enumerate(zip(groups, masses, strict=True))
            if m < max(STANDS_OUT * std * sqrt(len(g)), target / 3)
            and m < STANDS_OUT * std * len(g)
            and abs(label[g].sum()) < STANDS_OUT * sqrt(len(g))
        ]
        if not weak:
            break
        i = min(weak, key=lambda j: masses[j])
        beside = min((j for j in (i - 1, i + 1) if 0 <= j < len(groups)), key=lambda j: masses[j])
        low, high = sorted((i, beside))
        groups = [*groups[:low], groups[low] + groups[high], *groups[high + 1 :]]
    return groups


def _frequent(counts: Floats, label: Floats, std: float) -> list[list[int]]:
    """A bin a category that stands out, by count or label; the others, and what no category names, share one."""
    stands = (counts >= STANDS_OUT * std) | (np.abs(label) >= STANDS_OUT)
    frequent = [i for i in range(len(counts) - 1) if stands[i]]
    rare = [i for i in range(len(counts)) if i not in frequent]
    if not frequent:
        return [rare]
    if counts[rare].sum() >= STANDS_OUT * std * sqrt(len(rare)):
        return [*([i] for i in frequent), rare]
    heaviest = max(frequent, key=lambda i: counts[i])
    return [[i, *rare] if i == heaviest else [i] for i in frequent]


def _by_log_odds(groups: list[list[int]], counts: Floats, std: float) -> list[list[int]]:
    """In the order of the noisy share of positives, drawn to the whole's as far as the noise may have made it."""
    rate = float(np.clip(counts[:, 1].sum() / max(counts.sum(), 1.0), 1e-3, 1 - 1e-3))

    def share(group: list[int]) -> float:
        own, noise = counts[group].sum(axis=0), std * sqrt(len(group)) + 1.0
        n = max(float(own.sum()), 0.0)
        return (max(float(own[1]), 0.0) + noise * rate) / (n + noise)

    return sorted(groups, key=share)
