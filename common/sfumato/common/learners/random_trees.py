"""Boosted random trees: an accurate model from few sums, made of trees whose shape looks at no gradient.

Question       A schema (bins with noisy counts by label, learners.schema) and how many rounds of how many trees.
Contribution   At the model so far a customer has probability p, gradient g = p - y and curvature h = p (1 - p). Both
               shrink by min(1, CLIP / |g|): the loss is logistic up to there and straight beyond, as Huber's. They
               add (g, CURVATURE h) / LONGEST to the one leaf of each new tree that they fall into. Since h =
               |g| (1 - |g|), that vector is never longer than 1: over k trees the l2 norm is at most sqrt(k).
Reading        Leaf totals become a Newton step under a Gaussian prior on the tree's steps: std tau, and the more
               alike the nearer two leaves lie on the grid. So a leaf that the noise drowns leans on its neighbours,
               or stays near zero (H itself is drawn to what the schema's counts expect). A round adds `rate` times
               the mean of its trees' steps. The finished model is the mean of the last rounds' models, so that
               their noise is averaged too (Polyak & Juditsky 1992).

A tree is a grid of at most sixteen leaves: three features cut in four, two and two, two features cut in four each, or
one cut in sixteen, which learns what a feature does by itself. Features are drawn in proportion to a power of their
noisy gain in the schema's counts, with a uniform floor; cuts are drawn evenly. Nothing is asked twice: the
schema's counts by label stand in for a guide sum. After Maddock et al. 2022 (arXiv 2210.02910): random splits,
batches of trees between two sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil, log, prod, sqrt
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract
from sfumato.common.contributions import Rows
from sfumato.common.errors import BadInput
from sfumato.common.learners.bins import Column, Schema
from sfumato.common.learners.schema import label_codes

LEAVES = 16
SHAPES = ((15,), (3, 1, 1), (3, 3))  # how many cuts each feature of a tree gets
_FEATURES, _CUTS = 3, 15
_SHAPE_NUMBERS = 1 + _FEATURES + _CUTS  # a tree's shape as float32; its leaves follow once they are known
CLIP = 0.75  # of a gradient: most who leave have a long one, and the noise must hide the longest
CURVATURE = 0.75  # how much of it is sent: it can be guessed from the schema, the gradient cannot
LONGEST = CLIP * sqrt(1 + (CURVATURE * (1 - CLIP)) ** 2)
OWN, NEAR = 0.3, 0.5  # of a step's variance: a leaf's own part; what one cell further on still shares
SPREAD = 0.5  # how far a leaf's share is off the product of its features' shares
LARGEST_STEP = 1e3
STEEPEST = 30.0  # log-odds beyond it are as good as certain

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Asked = npt.NDArray[np.float32]


class Question(BaseModel):
    """How much to ask. `interplay` is the share of trees that cut more than one feature; `power` and `floor` say
    how strongly noisy gains guide the draw, `tau` how far noise shrinks a step; `averaged` is the part of the
    rounds, the last ones, whose models are averaged."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0)
    rounds: int = Field(default=40, ge=1, le=500)
    trees: int = Field(default=12, ge=1, le=64)
    interplay: float = Field(default=0.7, ge=0, le=1)
    rate: float = Field(default=1.4, gt=0, lt=2)  # from 2 on, trees that say the same swing ever further
    tau: float = Field(default=1.0, gt=0)
    averaged: float = Field(default=0.4, ge=0, le=1)
    power: float = Field(default=0.9, ge=0)
    floor: float = Field(default=0.15, ge=0, le=1)


class Tree(BaseModel):
    """A grid: feature i is cut below the codes cuts[i] (ascending), the last feature's cell varies fastest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: tuple[int, ...] = Field(min_length=1, max_length=_FEATURES)
    cuts: tuple[tuple[int, ...], ...]
    steps: tuple[FiniteFloat, ...] = ()

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if tuple(map(len, self.cuts)) not in SHAPES or len(self.cuts) != len(self.features):
            raise ValueError("a tree has one of the shapes, and cuts for each feature")
        if any(list(c) != sorted(c) for c in self.cuts):
            raise ValueError("a tree's cuts ascend")
        if len(self.steps) not in (0, LEAVES) or any(abs(s) > LARGEST_STEP for s in self.steps):
            raise ValueError(f"a tree has {LEAVES} steps of at most {LARGEST_STEP:g}, or none yet")
        return self

    def leaves(self, codes: Ints) -> Ints:
        """The leaf of each customer, int64 [n] in [0, LEAVES), from codes [n, F]."""
        leaf = np.zeros(len(codes), dtype=np.int64)
        for feature, cuts in zip(self.features, self.cuts, strict=True):
            table = np.searchsorted(cuts, np.arange(max(cuts) + 1), side="right")
            leaf = leaf * (len(cuts) + 1) + table[np.minimum(codes[:, feature], max(cuts))]
        return leaf


class Forest(BaseModel):
    """A model: `base` log-odds, and trees whose steps add up. JSON and back without loss."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: FiniteFloat
    trees: tuple[Tree, ...] = ()

    def logits(self, codes: Ints) -> Floats:
        """Log-odds, float64 [n], within +-STEEPEST. Inside a vault only: one of these is one customer's."""
        margin = np.full(len(codes), self.base)
        for tree in self.trees:
            margin += np.array(tree.steps)[tree.leaves(codes)]
        return np.asarray(margin.clip(-STEEPEST, STEEPEST))


@dataclass(frozen=True)
class RandomTrees:
    """The rounds of one forest. Raises BadInput on a schema of another contract, or one without counts by label."""

    schema: Schema
    contract: Contract
    question: Question = Question()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        self.schema.require(self.contract)
        if self.schema.label is None or self.schema.positives is None:
            raise BadInput(
                f"the schema of contract {self.contract.name!r} has no counts by label",
                hint="Give the contract a label and run the schema round again.",
            )
        if max(self.schema.cardinalities) < 2:
            raise BadInput("no feature has two bins, so there is nothing to cut")

    @property
    def shares(self) -> tuple[float, ...]:
        return (1 / self.question.rounds,) * self.question.rounds

    @property
    def columns(self) -> tuple[str, ...]:
        assert self.schema.label is not None
        return (*(c.name for c in self.schema.columns), self.schema.label)

    def max_norm(self, round_: int) -> float:
        return sqrt(self.question.trees)

    def length(self, round_: int) -> int:
        return 2 * LEAVES * self.question.trees

    # --- at the coordinator ------------------------------------------------------------------------------

    def ask(self, round_: int, totals: list[NoisySum]) -> Asked:
        """The model so far, then this round's new trees without steps."""
        return encode(self.forest(totals[:round_]), self.trees(round_))

    def forest(self, totals: list[NoisySum]) -> Forest:
        """The model after these rounds; after the last one, the finished one. Steps are float32: what is read is
        what the branches worked with."""
        finished = len(totals) == self.question.rounds
        grown: list[Tree] = []
        for round_, total in enumerate(totals):
            steps = self._steps(round_, total) * np.float32(self._part(round_) if finished else 1)
            for tree, step in zip(self.trees(round_), steps, strict=True):
                grown.append(tree.model_copy(update={"steps": tuple(step.tolist())}))
        rate = (self.schema.positives or 0.0) / self.schema.customers
        rate = min(max(rate, 1e-3), 1 - 1e-3)
        base = rate if finished else _balanced(rate)
        return Forest(base=float(np.float32(log(base / (1 - base)))), trees=tuple(grown))

    def _part(self, round_: int) -> float:
        """How much of a round's steps is in the mean of the last rounds' models."""
        last = max(ceil(self.question.averaged * self.question.rounds), 1)
        return min(self.question.rounds - round_, last) / last

    def read(self, totals: list[NoisySum]) -> dict[str, Any]:
        """The `Forest`, as JSON."""
        return self.forest(totals).model_dump(mode="json")

    def _steps(self, round_: int, total: NoisySum) -> Asked:
        """A round's totals to steps, float32 [trees, LEAVES]."""
        q, noise = self.question, total.std * LONGEST
        g, h = LONGEST * total.values.reshape(q.trees, LEAVES, 2).transpose(2, 0, 1)
        h = self._curvature(round_, h / CURVATURE, noise / CURVATURE)
        # -g / h tells a leaf's step with variance (noise^2 + h) / h^2; what the customers left to chance is h.
        precision = h**2 / (noise**2 + h)
        prior = np.stack([_alike_inverse(tuple(map(len, t.cuts))) for t in self.trees(round_)]) / q.tau**2
        known = np.einsum("tl,lm->tlm", precision, np.eye(LEAVES))
        steps = np.linalg.solve(prior + known, (precision * -g / h)[:, :, None])[:, :, 0]
        steps *= q.rate / q.trees
        return np.asarray(steps.clip(-LARGEST_STEP, LARGEST_STEP), dtype=np.float32)

    def _curvature(self, round_: int, h: Floats, noise: float) -> Floats:
        """Of each leaf, positive: as measured, drawn to what the schema expects as far as noise drowns it.

        Every tree's leaves hold the same customers, so the mean over trees tells the whole well; a leaf's part
        of it is the product of its features' shares, give or take SPREAD of itself.
        """
        whole = min(max(float(h.sum(axis=1).mean()), 1.0), self.schema.customers / 4)
        expected = np.array([self._expected(tree) for tree in self.trees(round_)]) * whole + 1e-6
        doubt = (SPREAD * expected) ** 2
        mean = (h * doubt + expected * noise**2) / (doubt + noise**2)
        return np.asarray(np.maximum(mean, expected / 20))

    def _expected(self, tree: Tree) -> Floats:
        """The share of customers in each leaf, were the features independent; float64 [LEAVES]."""
        shares = np.ones(1)
        for feature, cuts in zip(tree.features, tree.cuts, strict=True):
            counts = np.maximum(self.schema.columns[feature].counts, 0.0)
            cells = np.searchsorted(cuts, np.arange(len(counts)), side="right")
            cells_of = np.bincount(cells, counts / max(counts.sum(), 1.0), len(cuts) + 1)
            shares = np.outer(shares, cells_of).ravel()
        return shares

    def trees(self, round_: int) -> tuple[Tree, ...]:
        """The new trees of a round, drawn from the public seed and the schema alone."""
        if round_ not in self._drawn:
            q = self.question
            rng = np.random.default_rng([q.seed, round_])  # noqa: TID251 - public: what to ask, nobody's secret
            self._drawn[round_] = tuple(self._draw(rng) for _ in range(q.trees))
        return self._drawn[round_]

    @cached_property
    def _drawn(self) -> dict[int, tuple[Tree, ...]]:
        return {}

    def _draw(self, rng: np.random.Generator) -> Tree:  # noqa: TID251 - a type
        chances = self._chances
        possible = int((chances > 0).sum())
        shape: tuple[int, ...] = SHAPES[0]
        if possible > 1 and rng.random() < self.question.interplay:
            shape = SHAPES[1] if possible > 2 else SHAPES[2]
        features = rng.choice(len(chances), len(shape), replace=False, p=chances)
        cuts = []
        for feature, count in zip(features, shape, strict=True):
            bins = self.schema.cardinalities[feature]
            drawn = np.sort(1 + rng.choice(bins - 1, min(count, bins - 1), replace=False))
            # A feature with fewer cuts than the shape has room for: the last leaves stay empty.
            cuts.append((*drawn.tolist(), *[bins] * (count - len(drawn))))
        return Tree(features=tuple(features.tolist()), cuts=tuple(cuts))

    @cached_property
    def _chances(self) -> Floats:
        """How likely each feature is to be drawn; 0 for one that has a single bin."""
        q = self.question
        possible = np.array(self.schema.cardinalities) > 1
        guided = np.where(possible, self.gains() ** q.power, 0.0)
        even = possible / possible.sum()
        return np.asarray(
            even if guided.sum() <= 0 else (1 - q.floor) * guided / guided.sum() + q.floor * even
        )

    def gains(self) -> Floats:
        """What the best single cut of each feature gains by the schema's counts, noise taken off; float64 [F]."""
        assert self.schema.positives is not None
        rate = min(max(self.schema.positives / self.schema.customers, 1e-3), 1 - 1e-3)
        return np.array([_best_cut(c, rate, self.schema.customers) for c in self.schema.columns])

    # --- at a branch -------------------------------------------------------------------------------------

    def contribute(self, round_: int, columns: Mapping[str, Any], asked: Asked | None) -> Rows:
        """Each customer's part of their leaves, float64 [n, length]. Raises ValueError on another `asked`.

        Whoever's label the contract rules out adds nothing.
        """
        labels = label_codes(self.contract, columns)
        return self.contribute_coded(round_, self.schema.codes(columns), labels, asked)

    def contribute_coded(self, round_: int, codes: Ints, labels: Ints, asked: Asked | None) -> Rows:
        """The same from codes [n, F] and labels [n] (-1: adds nothing), for who keeps them warm."""
        forest, trees = self._decode(round_, asked)
        p = 1 / (1 + np.exp(-forest.logits(codes)))
        known = labels >= 0
        g = np.where(known, p - labels, 0.0)
        scale = np.minimum(1.0, CLIP / np.maximum(np.abs(g), CLIP)) / LONGEST
        h = np.where(known, p * (1 - p), 0.0) * scale * CURVATURE
        g = g * scale
        rows = np.zeros((len(codes), self.length(round_)))
        everyone = np.arange(len(codes))
        for place, tree in enumerate(trees):
            at = 2 * (place * LEAVES + tree.leaves(codes))
            rows[everyone, at], rows[everyone, at + 1] = g, h
        return Rows(rows)

    def _decode(self, round_: int, asked: Asked | None) -> tuple[Forest, tuple[Tree, ...]]:
        if not 0 <= round_ < self.question.rounds:
            raise ValueError(f"there are {self.question.rounds} rounds")
        if asked is None:
            raise ValueError("trees are asked with the model so far")
        forest, new = decode(asked, self.question.trees, round_)
        self._check((*forest.trees, *new))
        return forest, new

    def finished_forest(self, asked: Asked | None) -> Forest:
        """The model after the last round, as `encode(forest, ())`. Raises ValueError on anything else."""
        if asked is None:
            raise ValueError("a model is read from its numbers")
        forest, _ = decode(asked, self.question.trees, self.question.rounds, grown_only=True)
        self._check(forest.trees)
        return forest

    def _check(self, trees: tuple[Tree, ...]) -> None:
        cardinalities = self.schema.cardinalities
        for tree in trees:
            for feature, cuts in zip(tree.features, tree.cuts, strict=True):
                if not (
                    0 <= feature < len(cardinalities) and cuts[0] >= 1 and cuts[-1] <= cardinalities[feature]
                ):
                    raise ValueError("a tree cuts what the schema does not have")


def _balanced(rate: float) -> float:
    """The probability at which the clipped gradients of a whole with this share of positives add up to zero."""
    if rate > 0.5:
        return 1 - _balanced(1 - rate)
    return rate if 1 - rate <= CLIP else CLIP * rate / (1 - rate)


@lru_cache
def _alike_inverse(shape: tuple[int, ...]) -> Floats:
    """Of the steps' prior correlation over a grid, the inverse, float64 [LEAVES, LEAVES].

    Each feature has its part, which fades from cell to cell; the rest is each leaf's own, less where there is one
    feature.
    """
    cells = np.stack(np.unravel_index(np.arange(LEAVES), [c + 1 for c in shape]))
    own = OWN if len(shape) > 1 else OWN / 3
    alike = (NEAR ** np.abs(cells[:, :, None] - cells[:, None, :])).mean(axis=0)
    return np.asarray(np.linalg.inv(own * np.eye(LEAVES) + (1 - own) * alike))


def _best_cut(column: Column, rate: float, customers: float) -> float:
    assert column.positives is not None
    n, positives, spread = np.array(column.counts), np.array(column.positives), np.array(column.stds) ** 2
    # All columns count the same customers, and their residuals add up to nothing: what is known takes noise away.
    h = np.maximum(n + spread / spread.sum() * (customers - n.sum()), 0.0) * rate * (1 - rate)
    # Counts of positives and of the others have equal, independent noise: half a count's variance each.
    noise = spread / 2 * (rate**2 + (1 - rate) ** 2) + 1e-9
    g = n * rate - positives
    left_g, left_h, left_noise = np.cumsum([g - noise / noise.sum() * g.sum(), h, noise], axis=1)[:, :-1]
    rest = left_noise * np.maximum(1 - left_noise / noise.sum(), 0.0)
    sides = 1 / (left_h + np.sqrt(rest) + 1) + 1 / (h.sum() - left_h + np.sqrt(rest) + 1)
    return float(np.max(np.maximum(left_g**2 - rest, 0.0) * sides, initial=0.0))


# --- as float32 --------------------------------------------------------------------------------------------


def encode(forest: Forest, new: tuple[Tree, ...]) -> Asked:
    """[base | shape and steps of each tree | shape of each new tree]; see `decode`."""
    numbers: list[float] = [forest.base]
    for tree in forest.trees:
        numbers += [*_shape(tree), *tree.steps]
    for tree in new:
        numbers += _shape(tree)
    return np.array(numbers, dtype=np.float32)


def _shape(tree: Tree) -> list[float]:
    cuts = [c for each in tree.cuts for c in each]
    features = [*tree.features, *[0] * (_FEATURES - len(tree.features))]
    return [SHAPES.index(tuple(map(len, tree.cuts))), *features, *cuts, *[0] * (_CUTS - len(cuts))]


def decode(
    asked: Asked, trees: int, rounds: int, *, grown_only: bool = False
) -> tuple[Forest, tuple[Tree, ...]]:
    """The model of so many rounds, and the new trees (with `grown_only`, there are none). Raises ValueError on
    anything that `encode` does not make."""
    if asked.dtype != np.float32 or asked.ndim != 1:
        raise ValueError("the model so far is a vector of float32")
    return _decoded(asked.tobytes(), trees, rounds, grown_only)


@lru_cache(maxsize=2)  # customers come a part at a time, all with the same model
def _decoded(data: bytes, trees: int, rounds: int, grown_only: bool) -> tuple[Forest, tuple[Tree, ...]]:
    asked = np.frombuffer(data, dtype=np.float32)
    grown, coming = trees * rounds, 0 if grown_only else trees
    width = _SHAPE_NUMBERS + LEAVES
    if asked.shape != (1 + grown * width + coming * _SHAPE_NUMBERS,):
        raise ValueError("the model so far has another length")
    if not np.isfinite(asked).all():
        raise ValueError("a model's numbers are finite")
    old = asked[1 : 1 + grown * width].reshape(grown, width).astype(np.float64)
    new = asked[1 + grown * width :].reshape(coming, _SHAPE_NUMBERS).astype(np.float64)
    forest = Forest(
        base=float(asked[0]),
        trees=tuple(_tree(t[:_SHAPE_NUMBERS], tuple(t[_SHAPE_NUMBERS:].tolist())) for t in old),
    )
    return forest, tuple(_tree(t, ()) for t in new)


def _tree(numbers: Floats, steps: tuple[float, ...]) -> Tree:
    if (numbers != np.floor(numbers)).any() or (numbers < 0).any() or numbers[0] >= len(SHAPES):
        raise ValueError("a tree's shape is whole numbers")
    kind, *rest = (int(x) for x in numbers)
    shape = SHAPES[kind]
    features, places = rest[: len(shape)], rest[_FEATURES:]
    cuts: list[tuple[int, ...]] = []
    for count in shape:
        cuts.append(tuple(places[:count]))
        places = places[count:]
    return Tree(features=tuple(features), cuts=tuple(cuts), steps=steps)


assert all(prod(c + 1 for c in shape) == LEAVES for shape in SHAPES)
