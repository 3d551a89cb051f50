"""Boosted random trees: the bound, the naive model without noise, and nothing taken from a stranger's `asked`."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.fixed_point import GRID
from sfumato.common.learners.random_trees import (
    CLIP,
    CURVATURE,
    LEAVES,
    LONGEST,
    NEAR,
    OWN,
    SHAPES,
    Forest,
    Question,
    RandomTrees,
    Tree,
    decode,
)
from sfumato.common.learners.schema import Schema, SchemaRound
from sfumato.privacy.clipping import BoundedSum

COLUMNS: list[dict[str, Any]] = [
    {"name": "id", "type": "string", "role": "customer_id"},
    {"name": "town", "type": "category", "role": "feature", "categories": ["ash", "elm", "oak"]},
    {"name": "age", "type": "integer", "role": "feature", "bounds": [18, 100]},
    {"name": "debt", "type": "number", "role": "amount", "bounds": [0, 1000], "nullable": True},
    {"name": "noise", "type": "number", "role": "feature", "bounds": [0, 1]},
    {"name": "left", "type": "integer", "role": "label"},
]
CONTRACT = Contract.model_validate(
    {
        "version": 1,
        "name": "toy",
        "purpose": "to be tested",
        "tables": [{"name": "customers", "columns": COLUMNS}],
    }
)


def people(n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    town, age, debt = rng.choice(["ash", "elm", "oak"], n), rng.integers(18, 100, n), rng.uniform(0, 1000, n)
    logit = 2.0 * (town == "oak") - 1 + np.where((age > 50) == (debt > 400), 1.5, -1.5)
    return {
        "town": town,
        "age": age,
        "debt": np.where(rng.random(n) < 0.05, np.nan, debt),
        "noise": rng.random(n),
        "left": (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64),
    }


FRAME = people(4000, 0)


def schema_of(frame: dict[str, Any]) -> Schema:
    asked = SchemaRound(CONTRACT)
    cells = asked.contribute(0, frame, None).cells
    counts = np.bincount(cells.ravel(), minlength=asked.length(0)).astype(np.float64)
    return asked.schema(NoisySum(counts, 1.0))


SCHEMA = schema_of(FRAME)


def learner(**question: Any) -> RandomTrees:
    return RandomTrees(SCHEMA, CONTRACT, Question(**question))


def run(
    asked: RandomTrees, frame: dict[str, Any], std: float = 0.0, rounds: int | None = None
) -> list[NoisySum]:
    rng, totals = np.random.default_rng(5), list[NoisySum]()
    for r in range(rounds or asked.question.rounds):
        rows = asked.contribute(r, frame, asked.ask(r, totals)).rows
        totals.append(NoisySum(rows.sum(axis=0) + rng.normal(0, std, rows.shape[1]), std))
    return totals


def auc(scores: Any, labels: Any) -> float:
    order = np.argsort(np.argsort(scores)) + 1.0
    positives = labels.sum()
    spare = order[labels == 1].sum() - positives * (positives + 1) / 2
    return float(spare / (positives * (len(labels) - positives)))


SHAPE = 19  # numbers of a tree's shape: which one, three features, fifteen cuts
GROWN = SHAPE + LEAVES


# --- contribution ------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 3), st.integers(0, 99), st.floats(-40, 40), st.data())
def test_every_customer_keeps_the_bound_whatever_the_model(
    trees: int, round_: int, seed: int, base: float, data: st.DataObject
) -> None:
    asked = learner(trees=trees, rounds=4, seed=seed)
    steps = np.array(data.draw(st.lists(st.floats(-999, 999, width=32), min_size=LEAVES, max_size=LEAVES)))
    body = asked.ask(round_, [NoisySum(np.zeros(asked.length(0)), 1.0)] * round_)
    body[0] = base
    for i in range(round_ * trees):  # any model at all, in the form that a branch gets it
        body[1 + i * GROWN + SHAPE : 1 + (i + 1) * GROWN] = np.roll(steps, i)
    frame = people(30, seed)
    frame["left"][0] = 3  # no label: adds nothing
    found = asked.contribute(round_, frame, body)
    assert found.rows.shape == (30, asked.length(round_))
    norms = np.linalg.norm(found.rows, axis=1)
    assert (norms <= asked.max_norm(round_) * (1 + 1e-12)).all()
    assert norms[0] == 0
    assert ((found.rows.reshape(30, trees, LEAVES, 2) != 0).any(axis=3).sum(axis=2) <= 1).all()
    assert BoundedSum.of(found, asked.max_norm(round_)).l2_sensitivity == GRID


def test_a_clipped_gradient_and_its_curvature_are_never_longer_than_the_longest() -> None:
    g = np.linspace(0, 1, 1_000_001)
    clip = np.minimum(1, CLIP / np.maximum(g, CLIP))
    length = np.hypot(g * clip, CURVATURE * g * (1 - g) * clip)
    assert length.max() == pytest.approx(LONGEST, abs=1e-9)
    assert length.max() <= LONGEST * (1 + 1e-12)


def test_without_noise_the_model_is_the_naive_one() -> None:
    asked = learner(rounds=3, trees=4, seed=2, averaged=0.5)
    codes, y = SCHEMA.codes(FRAME), FRAME["left"]
    q, totals = asked.question, run(asked, FRAME)
    rate = SCHEMA.positives / SCHEMA.customers
    assert 1 - rate < CLIP  # nobody's gradient is clipped at the start
    margin = np.full(len(y), np.log(rate / (1 - rate)))
    models = []
    for r in range(3):
        p = 1 / (1 + np.exp(-margin))
        clip = np.minimum(1, CLIP / np.abs(p - y))
        update = np.zeros(len(y))
        for tree in asked.trees(r):
            leaf = _naive_leaves(tree, codes)
            names = list(np.ndindex(*[len(c) + 1 for c in tree.cuts]))
            sums = np.zeros((2, LEAVES))
            for i, name in enumerate(names):
                inside = np.array([x == name for x in leaf])
                sums[:, i] = (clip * (p - y))[inside].sum(), (clip * p * (1 - p))[inside].sum()
            steps = np.linalg.solve(np.linalg.inv(q.tau**2 * _alike(names)) + np.diag(sums[1]), -sums[0])
            update += np.array([steps[names.index(x)] for x in leaf]) * q.rate / q.trees
        margin = margin + update
        models.append(margin)
    # Half of three rounds are the last two.
    assert asked.forest(totals[:2]).logits(codes) == pytest.approx(models[1], abs=1e-4)
    assert asked.forest(totals).logits(codes) == pytest.approx((models[1] + models[2]) / 2, abs=1e-4)


def _alike(names: list[tuple[int, ...]]) -> Any:
    """The steps' prior correlation, pair by pair."""
    own = OWN if len(names[0]) > 1 else OWN / 3
    found = np.empty((LEAVES, LEAVES))
    for i, a in enumerate(names):
        for j, b in enumerate(names):
            near = [NEAR ** abs(x - z) for x, z in zip(a, b, strict=True)]
            found[i, j] = own * (i == j) + (1 - own) * sum(near) / len(near)
    return found


def test_a_forest_of_few_positives_starts_where_clipped_gradients_are_even() -> None:
    few = SCHEMA.model_copy(update={"positives": SCHEMA.customers / 10})
    asked = RandomTrees(few, CONTRACT, Question(rounds=2, trees=1))
    p = 1 / (1 + np.exp(-asked.forest([]).base))
    assert 0.9 * p == pytest.approx(0.1 * CLIP, rel=1e-5)
    # What is finished starts at the true share: scores are read as probabilities.
    nothing = [NoisySum(np.zeros(asked.length(0)), 1.0)] * 2
    assert asked.forest(nothing).base == pytest.approx(np.log(1 / 9), rel=1e-5)


def _naive_leaves(tree: Tree, codes: Any) -> list[tuple[int, ...]]:
    return [
        tuple(sum(row[f] >= c for c in cuts) for f, cuts in zip(tree.features, tree.cuts, strict=True))
        for row in codes
    ]


# --- learning ----------------------------------------------------------------------------------------------


def test_it_learns_what_one_feature_does_and_what_two_do_together() -> None:
    asked, fresh = learner(rounds=20), people(4000, 1)
    clean = asked.forest(run(asked, FRAME)).logits(SCHEMA.codes(fresh))
    noisy = asked.forest(run(asked, FRAME, 20.0)).logits(SCHEMA.codes(fresh))
    logit = 2.0 * (fresh["town"] == "oak") + 3.0 * ((fresh["age"] > 50) == (fresh["debt"] > 400))
    best = auc(logit + 1e-9 * fresh["noise"], fresh["left"])
    assert auc(clean, fresh["left"]) > best - 0.03
    assert 0.65 < auc(noisy, fresh["left"]) < auc(clean, fresh["left"]) + 0.01


def test_where_noise_drowns_everything_a_step_is_near_zero() -> None:
    asked = learner(rounds=2)
    forest = asked.forest(run(asked, FRAME, 1e5))
    assert max(abs(s) for t in forest.trees for s in t.steps) < 0.01
    assert np.ptp(forest.logits(SCHEMA.codes(FRAME))) < 0.01


def test_a_feature_that_tells_more_is_drawn_more_often() -> None:
    asked = learner(rounds=100)
    gains = asked.gains()
    drawn = np.bincount([t.features[0] for r in range(100) for t in asked.trees(r)], minlength=4)
    assert gains[0] == gains.max()  # town
    assert drawn[0] > 2 * drawn[3] > 0  # noise is drawn too: the floor
    shapes = {tuple(map(len, t.cuts)) for r in range(20) for t in asked.trees(r)}
    assert shapes == {SHAPES[0], SHAPES[1]}


# --- determinism, and what travels -------------------------------------------------------------------------


def test_the_same_totals_give_the_same_bytes_and_another_seed_other_trees() -> None:
    asked, again = learner(rounds=3), learner(rounds=3)
    totals = run(asked, FRAME, 5.0)
    assert asked.ask(2, totals[:2]).tobytes() == again.ask(2, totals[:2]).tobytes()
    assert asked.read(totals) == again.read(totals)
    assert asked.trees(1) != learner(seed=1).trees(1)
    assert sum(asked.shares) == pytest.approx(1)
    assert asked.columns == ("town", "age", "debt", "noise", "left")


def test_what_the_branches_get_is_the_model_that_is_read() -> None:
    asked = learner(rounds=3)
    totals = run(asked, FRAME, 5.0)
    forest, new = decode(asked.ask(2, totals), asked.question.trees, 2)
    assert forest == asked.forest(totals[:2])
    assert new == asked.trees(2)
    whole = Forest.model_validate(asked.read(totals))
    assert (whole.logits(SCHEMA.codes(FRAME)) == asked.forest(totals).logits(SCHEMA.codes(FRAME))).all()


def _spoiled(place: int, value: float) -> Any:
    def spoil(body: Any) -> Any:
        body[place] = value
        return body

    return spoil


NEW = 1 + 2 * GROWN  # one round of two trees, then the new ones


@pytest.mark.parametrize(
    "spoil",
    [
        lambda b: b[:-1],
        lambda b: np.append(b, np.float32(0)),
        lambda b: b.astype(np.float64),
        lambda b: b[None, :],
        lambda b: None,
        _spoiled(0, np.nan),
        _spoiled(1 + SHAPE, np.inf),
        _spoiled(1 + SHAPE, 1e9),
        _spoiled(NEW, 3),
        _spoiled(NEW, -1),
        _spoiled(NEW, 0.5),
        _spoiled(NEW + 1, 4),
        _spoiled(NEW + 1, 1e30),
        _spoiled(NEW + 4, 0),
        _spoiled(NEW + 4, 1e9),
        _spoiled(2, 77),
    ],
)
def test_an_asked_of_another_form_is_refused(spoil: Any) -> None:
    asked = learner(rounds=2, trees=2)
    body = asked.ask(1, run(asked, FRAME, rounds=1))
    asked.contribute(1, people(3, 0), body)
    with pytest.raises(ValueError):  # pydantic's is one of them
        asked.contribute(1, people(3, 0), spoil(body.copy()))


def test_rounds_that_are_not_there_are_refused() -> None:
    asked = learner(rounds=1)
    with pytest.raises(ValueError, match="1 rounds"):
        asked.contribute(1, people(3, 0), asked.ask(0, []))


# --- what cannot be asked ----------------------------------------------------------------------------------


def test_a_schema_without_labels_or_of_another_contract_is_refused() -> None:
    bare = SCHEMA.model_dump() | {"label": None, "positives": None}
    bare["columns"] = [c | {"positives": None} for c in bare["columns"]]
    with pytest.raises(BadInput, match="no counts by label"):
        RandomTrees(Schema.model_validate(bare), CONTRACT)
    with pytest.raises(BadInput, match="not one of contract"):
        RandomTrees(SCHEMA.model_copy(update={"contract": "0" * 64}), CONTRACT)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"trees": 65}, {"tau": 0}, {"interplay": 2}, {"x": 1}])
def test_a_malformed_question(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Question(**wrong)


SIXTEENTHS = tuple(range(1, 16))


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": (0, 1), "cuts": (SIXTEENTHS,)},
        {"features": (0,), "cuts": ((1, 2),)},
        {"features": (0,), "cuts": (SIXTEENTHS[::-1],)},
        {"features": (0,), "cuts": (SIXTEENTHS,), "steps": (1.0,)},
    ],
)
def test_a_malformed_tree(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Tree(**wrong)
