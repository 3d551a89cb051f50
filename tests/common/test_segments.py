"""Segments: bounded rows, plain Lloyd's steps without noise, clusters found again with it, a number chosen."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contributions import Cells, Contributions
from sfumato.common.learners import kmeans
from sfumato.common.learners.segments import Question, Segmentation, assign

NAMES = ("age", "wealth", "visits")
BLOBS = np.array([[-0.6, -0.6, 0.0], [0.6, -0.5, 0.2], [0.0, 0.7, -0.3]])


def people(n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    spread = 0.12 * rng.standard_normal((n, 3))
    return {"numeric": np.clip(BLOBS[rng.integers(0, 3, n)] + spread, -1, 1)}


def dense(contributions: Contributions) -> np.ndarray:
    if not isinstance(contributions, Cells):
        return contributions.rows
    rows = np.zeros((len(contributions.cells), contributions.length))
    for column, weight in enumerate(contributions.weights):
        rows[np.arange(len(rows)), contributions.cells[:, column]] += weight
    return rows


def run(model: Segmentation, frame: dict[str, Any], std: float = 0.0, seed: int = 0) -> list[NoisySum]:
    """All rounds; `std` is the noise's, in units of a round's bound."""
    rng, totals = np.random.default_rng(seed), list[NoisySum]()
    for round_ in range(len(model.shares)):
        rows = dense(model.contribute(round_, frame, model.ask(round_, totals)))
        noise = std * model.max_norm(round_)
        totals.append(NoisySum(rows.sum(axis=0) + noise * rng.standard_normal(rows.shape[1]), noise))
    return totals


def inertia(values: np.ndarray, centres: np.ndarray) -> float:
    return float(((values - centres[assign(values, centres)]) ** 2).sum())


@given(
    values=st.lists(st.tuples(*[st.floats(-1, 1)] * 3), min_size=1, max_size=8),
    round_=st.integers(0, 3),
    seed=st.integers(0, 2**20),
    radius=st.floats(1e-6, 1e6),
)
@settings(max_examples=60, deadline=None)
def test_no_customer_says_more_than_the_bound(
    values: list[tuple[float, float, float]], round_: int, seed: int, radius: float
) -> None:
    model = Segmentation(NAMES, Question(segments=3, steps=2))
    asked = model.ask(round_, run(model, people(50, seed), std=3.0)[:round_])
    if asked is not None:
        asked[0 if round_ == 1 else 1] = radius
    rows = dense(model.contribute(round_, {"numeric": np.array(values)}, asked))
    assert rows.shape == (len(values), model.length(round_))
    assert np.linalg.norm(rows, axis=1).max() <= model.max_norm(round_) * (1 + 1e-12)


def test_the_micro_cells_add_up_customer_by_customer() -> None:
    model, frame = Segmentation(NAMES, Question(segments=3, cells=12)), people(80, 1)
    totals = run(model, frame)
    asked = model.ask(1, totals[:1])
    assert asked is not None
    radius, table = float(asked[0]), asked[1:].astype(np.float64).reshape(2, 3, kmeans.BINS)
    shape = table[0].max(axis=1).astype(int) + 1
    assert 1 < np.prod(shape) <= 12
    counts, ways = np.zeros(12), np.zeros((12, 3))
    for x in frame["numeric"]:
        bins = [min(int((v + 1) * 16), 31) for v in x]
        a, b, c = (int(table[0, f, bins[f]]) for f in range(3))
        cell = a + shape[0] * (b + shape[1] * c)
        way = (x - np.array([table[1, f, bins[f]] for f in range(3)])) / radius
        counts[cell] += 1
        ways[cell] += way / max(1.0, float(np.linalg.norm(way)))
    total = totals[1].values
    assert np.allclose(total[:12] / total[:12].sum(), counts / 80)
    assert np.allclose(total[12:-1].reshape(12, 3) / total[:12].sum() * 80 * 0.6 / 0.78, ways)


def test_a_step_without_noise_is_lloyds() -> None:
    frame = people(600, 2)
    model = Segmentation(NAMES, Question(segments=3, steps=1))
    totals = run(model, frame)
    before = model.centres(totals[:2]).astype(np.float64)
    group = assign(frame["numeric"], before)
    # All within the radius here, so nothing is cut and the step is the plain average.
    largest_first = np.argsort(-np.bincount(group), kind="stable")
    plain = np.stack([frame["numeric"][group == j].mean(axis=0) for j in largest_first])
    asked = model.ask(2, totals[:2])
    assert asked is not None
    near = np.linalg.norm(frame["numeric"] - before[group], axis=1) <= asked[1]
    assert near.mean() > 0.97
    assert np.abs(model.centres(totals) - plain).max() < 0.01


def test_clusters_are_found_again_under_noise() -> None:
    frame = people(3000, 3)
    best = inertia(frame["numeric"], np.stack([frame["numeric"][assign(frame["numeric"], BLOBS) == j].mean(0) for j in range(3)]))  # fmt: skip  # noqa: E501
    for seed in range(5):
        model = Segmentation(NAMES, Question(segments=3))
        centres = model.centres(run(model, frame, std=8.0, seed=seed))
        assert inertia(frame["numeric"], centres.astype(np.float64)) < 1.02 * best


def test_the_number_of_segments_is_chosen() -> None:
    model = Segmentation(NAMES, Question(most=6))
    found = model.chosen(run(model, people(3000, 4), std=8.0))
    assert found["segments"] == 3
    assert [c["segments"] for c in found["of"]] == [1, 2, 3, 4, 5, 6]
    shapeless = {"numeric": np.random.default_rng(5).uniform(-1, 1, (3000, 3))}
    assert model.chosen(run(model, shapeless, std=8.0))["segments"] == 1


def test_the_same_totals_give_the_same_centres() -> None:
    totals = run(Segmentation(NAMES, Question()), people(300, 7), std=3.0)
    first, second = (Segmentation(NAMES, Question()).ask(3, totals[:3]) for _ in range(2))
    assert first is not None and second is not None and first.dtype == np.float32
    assert first.tobytes() == second.tobytes()
    assert first.size == 2 + 8 * 3


def bad(kind: str, asked: np.ndarray) -> np.ndarray | None:
    match kind:
        case "none":
            return None
        case "short":
            return asked[:-1]
        case "nan":
            asked[-1] = np.nan
        case "no radius":
            asked[:2] = 0
        case "far":
            asked[-1] = 1.5
        case "half":
            asked[0 if len(asked) < 50 else 1] += 0.5
        case "many":
            asked[0 if len(asked) < 50 else slice(1, 97)] = 31
    return asked


@pytest.mark.parametrize("round_", [1, 2])
@pytest.mark.parametrize("kind", ["none", "short", "nan", "no radius", "far", "half", "many"])
def test_a_bad_question_is_refused(kind: str, round_: int) -> None:
    model, frame = Segmentation(NAMES, Question(segments=3)), people(50, 8)
    asked = model.ask(round_, run(model, frame)[:round_])
    assert asked is not None
    with pytest.raises(ValueError, match="Expected"):
        model.contribute(round_, frame, bad(kind, asked))
    with pytest.raises(ValueError, match="without numbers"):
        model.contribute(0, frame, asked)


def test_bad_numbers_are_refused() -> None:
    model = Segmentation(NAMES, Question())
    for numeric in (np.zeros((4, 2)), np.full((4, 3), 1.1), np.full((4, 3), np.nan), np.zeros(3)):
        with pytest.raises(ValueError, match="Expected 3 numbers"):
            model.contribute(0, {"numeric": numeric}, None)
    with pytest.raises(ValidationError, match="nothing for Lloyd"):
        Question(histogram_share=0.5, cells_share=0.5)
    with pytest.raises(ValidationError, match="as many cells"):
        Question(cells=4, segments=5)
    with pytest.raises(ValueError, match="different names"):
        Segmentation(("a", "a"), Question())


def test_noise_that_drowns_everything_is_survived() -> None:
    model = Segmentation(NAMES, Question())
    totals = run(model, people(3, 9), std=1e4)
    assert np.abs(model.centres(totals)).max() <= 1
    assert len(model.centres(totals)) == model.chosen(totals)["segments"]
    assert len(model.centres(run(model, {"numeric": np.zeros((0, 3))}))) >= 1


@given(st.lists(st.integers(0, 9), min_size=kmeans.BINS, max_size=kmeans.BINS).filter(any), st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_cuts_are_the_best_there_are(counts: list[int], k: int) -> None:
    mass = np.array(counts) / sum(counts)
    plan, at = kmeans.Cuts.of(mass), (np.arange(kmeans.BINS) + 0.5) / 16 - 1

    def left(ends: tuple[int, ...]) -> float:
        parts = np.split(np.arange(kmeans.BINS), ends)
        means = [np.average(at[p], weights=mass[p]) if mass[p].sum() else 0.0 for p in parts]
        return float(sum((mass[p] * (at[p] - m) ** 2).sum() for p, m in zip(parts, means, strict=True)))

    tries = {1: [()], 2: [(a,) for a in range(1, 32)]}
    best = min(left(ends) for ends in tries[k])
    assert np.isclose(plan.spread[k - 1], best, atol=1e-9)
    assert np.isclose(left(plan.ends[k - 1]), best, atol=1e-9)
