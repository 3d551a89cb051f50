"""The additive model: bounded rows, exact without noise, curves that find the truth, bands that hold the noise."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contributions import Cells, Contributions
from sfumato.common.errors import BadInput
from sfumato.common.learners.additive import Additive, Question, build
from sfumato.common.learners.bins import Column, Schema
from sfumato.common.learners.curves import BinnedColumn, Counts, Model, counts_of, of_schema, pooled

COLUMNS = (
    BinnedColumn("age", ("young", "grown", "old", "very old", "ancient", "(none)"), ordered=5),
    BinnedColumn("town", ("ash", "elm", "oak")),
    BinnedColumn("flag", ("no", "yes")),
)
TRUTH = (np.array([-1.0, -0.5, 0.0, 0.6, 1.2, 0.0]), np.array([0.8, 0.0, -0.8]), np.zeros(2))


def people(n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, len(c.bins), n) for c in COLUMNS], axis=1).astype(np.int64)
    logit = -1.0 + sum(t[codes[:, f]] for f, t in enumerate(TRUTH))
    return {"codes": codes, "label": (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float64)}


def dense(contributions: Contributions) -> np.ndarray:
    """Each customer's vector [n, d], whatever form it came in."""
    if not isinstance(contributions, Cells):
        return contributions.rows
    rows = np.zeros((len(contributions.cells), contributions.length))
    for column, weight in enumerate(contributions.weights):
        cells = contributions.cells[:, column]
        inside = np.flatnonzero(cells >= 0)
        rows[inside, cells[inside]] += weight
    return rows


def run(model: Additive, frame: dict[str, Any], std: float = 0.0, seed: int = 0) -> list[NoisySum]:
    """All rounds; `std` is the noise's, in units of a round's bound."""
    rng, totals = np.random.default_rng(seed), list[NoisySum]()
    for round_ in range(len(model.shares)):
        rows = dense(model.contribute(round_, frame, model.ask(round_, totals)))
        noise = std * model.max_norm(round_)
        totals.append(NoisySum(rows.sum(axis=0) + noise * rng.standard_normal(rows.shape[1]), noise))
    return totals


@given(
    codes=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 2), st.integers(0, 1)), min_size=1, max_size=8
    ),
    scale=st.floats(0, 1e6),
    seed=st.integers(0, 2**20),
    round_=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_no_customer_says_more_than_the_bound(
    codes: list[tuple[int, int, int]], scale: float, seed: int, round_: int
) -> None:
    model, rng = build(Question(rounds=5), COLUMNS), np.random.default_rng(seed)
    frame = {"codes": np.array(codes, dtype=np.int64), "label": rng.integers(0, 2, len(codes))}
    asked = model.ask(round_, run(model, people(50, seed), std=3.0)[:round_])
    if asked is not None:
        asked[: 1 + 11] = rng.standard_normal(12) * scale
    rows = dense(model.contribute(round_, frame, asked))
    assert rows.shape == (len(codes), model.length(round_))
    assert np.linalg.norm(rows, axis=1).max() <= model.max_norm(round_) * (1 + 1e-12)


def test_the_rounds_add_up_customer_by_customer() -> None:
    model, frame = build(Question(rounds=3), COLUMNS), people(40, 1)
    totals = run(model, frame)
    asked = model.ask(2, totals[:2])
    assert asked is not None
    intercept, curves = float(asked[0]), asked[1:12].astype(np.float64)
    weights, leaf = asked[12:15].astype(np.float64), asked[15:].astype(int)
    leaves = model.length(2) // 2
    naive = np.zeros(2 * leaves)
    for codes, label in zip(frame["codes"], frame["label"], strict=True):
        bins = [int(c) + start for c, start in zip(codes, (0, 6, 9), strict=True)]
        p = 1 / (1 + np.exp(-(intercept + sum(curves[b] for b in bins))))
        for f, b in enumerate(bins):
            naive[leaf[b]] += weights[f] * (label - p)
            naive[leaf[b] + leaves] += weights[f] * 3 * p * (1 - p)
    assert np.allclose(totals[2].values, naive, atol=1e-9)
    assert np.isclose(float(weights @ weights), 1, atol=1e-5)
    counts = totals[0].values.reshape(2, 11)
    assert counts[1, 6] == sum(frame["label"][frame["codes"][:, 1] == 0])
    assert np.isclose(sum(model.shares), 1)


def test_without_noise_it_finds_the_curves() -> None:
    model = build(Question(rounds=60), COLUMNS)
    fitted = model.model(run(model, people(40_000, 2)))
    for curve, truth, of in zip(fitted.curves, TRUTH, COLUMNS, strict=True):
        expected = truth - truth.mean()
        assert np.abs(curve.values - expected).max() < 0.12, of.name
        assert curve.std.max() == 0
    frame = people(5000, 3)
    rates = 1 / (1 + np.exp(-fitted.logits(frame["codes"])))
    assert abs(rates.mean() - frame["label"].mean()) < 0.02


def test_bands_hold_the_noise() -> None:
    # 12 draws of the noise alone: a pooled standard deviation over 9 free numbers is within a third, surely.
    model, frame = build(Question(rounds=20), COLUMNS), people(20_000, 4)
    fits = [model.model(run(model, frame, std=15.0, seed=s)) for s in range(12)]
    seen = np.std([np.concatenate([c.values for c in f.curves]) for f in fits], axis=0, ddof=1)
    told = np.mean([np.concatenate([c.std for c in f.curves]) for f in fits], axis=0)
    ratio = np.sqrt((seen**2).mean() / (told**2).mean())
    assert 0.67 < ratio < 1.5
    bins = model.read(run(model, frame, std=15.0))["curves"][0]["bins"]
    assert all(b["log_odds"]["low"] < b["log_odds"]["value"] < b["log_odds"]["high"] for b in bins)


@pytest.mark.parametrize("direction", ["increasing", "decreasing"])
def test_monotone_curves_are_monotone(direction: str) -> None:
    question = Question.model_validate({"rounds": 10, "monotone": {"age": direction}})
    model = build(question, COLUMNS)
    fitted = model.model(run(model, people(500, 5), std=60.0))
    steps = np.diff(fitted.curves[0].values[:5])
    assert (steps >= 0).all() if direction == "increasing" else (steps <= 0).all()
    without = build(Question(rounds=10), COLUMNS)
    free = np.diff(without.model(run(without, people(500, 5), std=60.0)).curves[0].values[:5])
    assert (free < 0).any() and (free > 0).any()


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(0.1, 9)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_pooling_is_the_nearest_rising_curve(points: list[tuple[float, float]]) -> None:
    values, weights = np.array(points).T
    found = pooled(values, weights)
    assert (np.diff(found) >= -1e-12).all()
    # The projection on a cone: what is left is orthogonal to it, and no rising step would come nearer.
    left = weights * (values - found)
    assert abs(left @ found) < 1e-6 and abs(left.sum()) < 1e-6
    assert all(left[i:].sum() < 1e-6 for i in range(len(left)))


def test_the_same_totals_give_the_same_question() -> None:
    model, frame = build(Question(rounds=4), COLUMNS), people(200, 6)
    totals = run(model, frame, std=2.0)
    first, second = (build(Question(rounds=4), COLUMNS).ask(4, totals[:4]) for _ in range(2))
    assert first is not None and second is not None and first.dtype == np.float32
    assert first.tobytes() == second.tobytes()
    assert model.ask(0, []) is None
    assert not np.array_equal(model.ask(1, totals[:1])[15:], model.ask(2, totals[:2])[15:])  # type: ignore[index]


def bad(kind: str, asked: np.ndarray) -> np.ndarray | None:
    match kind:
        case "none":
            return None
        case "short":
            return asked[:-1]
        case "nan":
            asked[3] = np.nan
        case "heavy":
            asked[12] = 1.1
        case "no weight":
            asked[12] = 0.0
        case "another column's leaf":
            asked[15] = asked[-1]
        case "half a leaf":
            asked[15] += 0.5
        case "no leaf":
            asked[-1] = 99
    return asked


@pytest.mark.parametrize(
    "kind", ["none", "short", "nan", "heavy", "no weight", "another column's leaf", "half a leaf", "no leaf"]
)
def test_a_bad_question_is_refused(kind: str) -> None:
    model, frame = build(Question(rounds=2), COLUMNS), people(50, 7)
    asked = model.ask(1, run(model, frame)[:1])
    assert asked is not None
    with pytest.raises(ValueError, match="Expected"):
        model.contribute(1, frame, bad(kind, asked))
    with pytest.raises(ValueError, match="without numbers"):
        model.contribute(0, frame, asked)


def test_bad_rows_are_refused() -> None:
    model, frame = build(Question(), COLUMNS), people(5, 8)
    for codes in (
        frame["codes"][:, :2],
        frame["codes"].astype(np.float64),
        frame["codes"] + 6,
        frame["codes"] - 9,
    ):
        with pytest.raises(ValueError, match="Expected"):
            model.contribute(0, {**frame, "codes": codes}, None)
    for label in (frame["label"] + 0.5, frame["label"][:3]):
        with pytest.raises(ValueError, match="Expected one label"):
            model.contribute(0, {**frame, "label": label}, None)


def test_a_question_about_what_is_not_there_is_refused() -> None:
    with pytest.raises(BadInput, match="no column 'height'"):
        build(Question(monotone={"height": "increasing"}), COLUMNS)
    with pytest.raises(BadInput, match="have no order"):
        build(Question(monotone={"town": "increasing"}), COLUMNS)
    with pytest.raises(BadInput, match="different names"):
        build(Question(), (COLUMNS[0], COLUMNS[0]))
    with pytest.raises(ValueError, match="needs bins"):
        BinnedColumn("x", (), 0)


def test_noise_that_drowns_everything_is_survived() -> None:
    model = build(Question(rounds=6), COLUMNS)
    fitted: Model = model.model(run(model, people(3, 9), std=1e4))
    assert np.isfinite(fitted.logits(people(20, 10)["codes"])).all()
    nobody = {"codes": np.zeros((0, 3), dtype=np.int64), "label": np.zeros(0)}
    assert np.isfinite(model.model(run(model, nobody)).intercept)


def test_a_schemas_bins_in_words() -> None:
    three = (1.0, 2.0, 3.0)
    age = Column(name="age", cuts=(30.0,), null=2, counts=three, positives=three, stds=three)
    town = Column(
        name="town", categories={"ash": 1, "elm": 0, "oak": 1}, other=2, null=2, counts=three, positives=three,
        stds=three,
    )  # fmt: skip
    schema = Schema(contract="c", label="left", customers=6.0, positives=2.0, columns=(age, town))
    found = of_schema(schema)
    assert found[0] == BinnedColumn("age", ("below 30", "30 and more", "(none)"), ordered=2)
    assert found[1] == BinnedColumn("town", ("elm", "ash or oak", "(other) or (none)"), ordered=3)
    counts = counts_of(schema)
    assert counts.values.tolist() == [[0.0] * 6, [1.0, 2.0, 3.0] * 2]
    assert np.allclose(counts.std, [x / np.sqrt(2) for x in three * 2])
    with pytest.raises(ValueError, match="with a label"):
        counts_of(schema.model_copy(update={"label": None}))


def test_known_counts_save_their_round() -> None:
    frame = people(5000, 11)
    counting = build(Question(rounds=8), COLUMNS)
    totals = run(counting, frame)
    known = Counts(totals[0].values.reshape(2, 11), np.zeros(11))
    stepping = build(Question(rounds=8), COLUMNS, known)
    assert len(stepping.shares) == 8 and np.isclose(sum(stepping.shares), 1)
    assert stepping.max_norm(0) == 1 and stepping.length(0) == counting.length(1)
    first, second = counting.model(totals), stepping.model(run(stepping, frame))
    assert np.array_equal(first.logits(frame["codes"]), second.logits(frame["codes"]))
    with pytest.raises(BadInput, match="not those of the 11 bins"):
        build(Question(), COLUMNS, Counts(np.zeros((2, 10)), np.zeros(10)))
