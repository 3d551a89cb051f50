"""A forest: trees whose steps add up to a customer's log-odds. A tree is a grid over the codes of a schema's columns.

Grids and not nested splits: every leaf is a product of cells, so what one column does can be told apart
(learners.reasons), and a full binary tree says the same (server.onnx_export).
"""

from functools import lru_cache
from math import prod
from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

SHAPES = ((15,), (3, 1, 1), (3, 3), (7, 7))  # how many cuts each feature of a tree gets
_FEATURES, _CUTS = 3, 15
_SHAPE_NUMBERS = 1 + _FEATURES + _CUTS  # a tree's shape as float32; its leaves follow once they are known
LARGEST_STEP = 1e3
STEEPEST = 30.0  # log-odds beyond it are as good as certain

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Asked = npt.NDArray[np.float32]


@lru_cache
def leaves_of(shape: tuple[int, ...]) -> int:
    """How many leaves a tree of this shape has."""
    return prod(c + 1 for c in shape)


class Tree(BaseModel):
    """A grid: feature i is cut below the codes cuts[i] (ascending), the last feature's cell varies fastest. `steps`
    has a number for each of the `size` leaves, or is empty."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    features: tuple[int, ...] = Field(min_length=1, max_length=_FEATURES)
    cuts: tuple[tuple[int, ...], ...]
    steps: tuple[FiniteFloat, ...] = ()

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.shape not in SHAPES or len(self.cuts) != len(self.features):
            raise ValueError("a tree has one of the shapes, and cuts for each feature")
        if any(list(c) != sorted(c) for c in self.cuts):
            raise ValueError("a tree's cuts ascend")
        if len(self.steps) not in (0, self.size) or any(abs(s) > LARGEST_STEP for s in self.steps):
            raise ValueError(f"a tree has {self.size} steps of at most {LARGEST_STEP:g}, or none yet")
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """How many cuts each feature has."""
        return tuple(map(len, self.cuts))

    @property
    def size(self) -> int:
        """How many leaves."""
        return leaves_of(self.shape)

    def leaves(self, codes: Ints) -> Ints:
        """The leaf of each customer, int64 [n] in [0, size), from codes [n, F]."""
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
    return [SHAPES.index(tree.shape), *features, *cuts, *[0] * (_CUTS - len(cuts))]


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
    asked = np.frombuffer(data, dtype=np.float32).astype(np.float64)
    if not asked.size or not np.isfinite(asked).all():
        raise ValueError("a model's numbers are finite, and it has some")
    at, grown, new = 1, list[Tree](), list[Tree]()
    for _ in range(trees * rounds):
        tree, at = _tree(asked, at, with_steps=True)
        grown.append(tree)
    for _ in range(0 if grown_only else trees):
        tree, at = _tree(asked, at, with_steps=False)
        new.append(tree)
    if at != asked.size:
        raise ValueError("the model so far has another length")
    return Forest(base=float(asked[0]), trees=tuple(grown)), tuple(new)


def _tree(asked: Floats, at: int, *, with_steps: bool) -> tuple[Tree, int]:
    """The tree that begins there, and where the next one does."""
    numbers, behind = asked[at : at + _SHAPE_NUMBERS], at + _SHAPE_NUMBERS
    if len(numbers) < _SHAPE_NUMBERS:
        raise ValueError("the model so far has another length")
    if (numbers != np.floor(numbers)).any() or (numbers < 0).any() or numbers[0] >= len(SHAPES):
        raise ValueError("a tree's shape is whole numbers")
    kind, *rest = (int(x) for x in numbers)
    shape = SHAPES[kind]
    features, places = rest[: len(shape)], rest[_FEATURES:]
    cuts: list[tuple[int, ...]] = []
    for count in shape:
        cuts.append(tuple(places[:count]))
        places = places[count:]
    size = leaves_of(shape) if with_steps else 0
    steps = asked[behind : behind + size].tolist()
    if len(steps) < size:
        raise ValueError("the model so far has another length")
    return Tree(features=tuple(features), cuts=tuple(cuts), steps=tuple(steps)), behind + size
