"""Anomaly: scores are what they are said to be, thresholds where they should be, and planted customers are found."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.analyses.anomaly import Anomaly, Question, build
from sfumato.common.contract import Contract
from sfumato.common.contributions import Rows
from sfumato.common.errors import BadInput
from sfumato.common.learners.anomalies import Autoencoder, Tail, edges
from sfumato.common.learners.encoding import inputs_hash
from sfumato.common.learners.models import ModelHeader, SavedModel
from sfumato.common.learners.scoring import scorer

CONTRACT = Contract.model_validate(
    {
        "version": 1,
        "name": "toy",
        "purpose": "to be tested",
        "tables": [
            {
                "name": "customers",
                "columns": [
                    {"name": "id", "type": "string", "role": "customer_id"},
                    *(
                        {
                            "name": n,
                            "type": "number",
                            "role": "amount",
                            "bounds": [-1, 1],
                            "nullable": n == "c",
                        }
                        for n in "abcd"
                    ),
                    {"name": "town", "type": "category", "role": "feature", "categories": ["ash", "elm"]},
                    {"name": "note", "type": "category", "categories": ["x"]},
                ],
            }
        ],
    }
)
NUMBERS = list("abcd")


def asked(**more: Any) -> Anomaly:
    found = build(Question.model_validate({"dimensions": 2} | more), CONTRACT)
    assert isinstance(found, Anomaly)
    return found


def people(n: int, seed: int, planted: int = 0) -> dict[str, Any]:
    """Four numbers of two causes; planted ones break what ties them, each number by itself being usual."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(0, 0.25, (n, 2))
    values = causes @ np.array([[1, 1, 0.2, 0], [0, 0.2, 1, 1]]) + rng.normal(0, 0.03, (n, 4))
    if planted:
        values[:planted] = np.stack([rng.permutation(values[:, j])[:planted] for j in range(4)], axis=1)
    frame: dict[str, Any] = dict(zip(NUMBERS, np.clip(values, -1, 1).T, strict=True))
    return frame | {"town": rng.choice(["ash", "elm"], n)}


def totals(question: Anomaly, frame: Mapping[str, Any], std: float = 1e-9, seed: int = 0) -> list[NoisySum]:
    rng, found = np.random.default_rng(seed), list[NoisySum]()
    for round_ in range(2):
        made = question.contribute(round_, frame, question.ask(round_, found))
        if isinstance(made, Rows):
            assert np.linalg.norm(made.rows, axis=1).max(initial=0.0) <= 1 + 1e-12
            exact = made.rows.sum(axis=0)
        else:
            assert made.cells.shape[1] == 1 and (made.cells >= 0).all()
            exact = np.bincount(made.cells[:, 0], minlength=made.length).astype(float)
        assert exact.size == question.length(round_)
        noise = std / np.sqrt(question.shares[round_])
        found.append(NoisySum(exact + noise * rng.standard_normal(exact.size), noise))
    return found


def saved(question: Anomaly, made: list[NoisySum], **change: Any) -> SavedModel:
    tensors, parameters = question.saved(made)
    header = ModelHeader(
        kind="anomaly",
        name="unlike",
        purpose="to be tested",
        job_id="0" * 32,
        job_hash="0",
        contract=CONTRACT.hash,
        contract_name="toy",
        inputs=inputs_hash(CONTRACT),
        label=None,
        epsilon=1.0,
        delta=1e-5,
        made=datetime(2025, 1, 1, tzinfo=UTC),
        parameters=dict(parameters) | change,
    )
    return SavedModel.of_bytes(SavedModel(header, tensors).to_bytes(), "unlike")


def test_without_noise_a_score_is_what_principal_components_leave() -> None:
    question, frame = asked(columns=NUMBERS), people(2000, 1)
    made = totals(question, frame)
    x = np.stack([frame[n] for n in NUMBERS], axis=1)
    pca = PCA(2).fit(x)
    left = x - pca.inverse_transform(pca.transform(x))
    wanted = (left**2 / np.maximum(left.var(axis=0), 1e-3)).mean(axis=1)
    got = scorer(saved(question, made), CONTRACT).score({n: pa.array(v) for n, v in frame.items()})
    assert got.anomaly is not None and got.flagged is not None
    assert got.anomaly == pytest.approx(wanted, rel=2e-3, abs=1e-4)
    answer = question.read(made)
    (row,) = answer["parts"][0]["rows"]
    assert row["threshold"]["value"] in edges()
    above = wanted > row["threshold"]["value"]
    assert row["customers"]["value"] == pytest.approx(above.sum(), abs=2)
    assert abs(row["share"]["value"] - 0.01) < 0.005
    assert (got.flagged == (got.anomaly > row["threshold"]["value"])).all()
    assert answer["customers"]["value"] == pytest.approx(2000)
    ends = [-np.inf, *2.0 ** np.arange(-1, 6), np.inf]
    for shown, low, high in zip(answer["parts"][1]["rows"], ends[:-1], ends[1:], strict=True):
        inside = (wanted > low) & (wanted <= high)
        assert shown["customers"]["value"] == pytest.approx(inside.sum(), abs=2)
        assert shown["share"]["value"] == pytest.approx(inside.mean(), abs=1e-3)


def test_planted_customers_are_found_and_the_reason_names_what_stands_out() -> None:
    question, frame = asked(flag=0.02, dimensions=3), people(6000, 2, planted=60)
    made = totals(question, frame, std=1.0)
    score = scorer(saved(question, made), CONTRACT).score(frame)
    assert score.anomaly is not None and score.flagged is not None and score.reasons is None
    truth = np.arange(6000) < 60
    assert roc_auc_score(truth, score.anomaly) > 0.9
    assert score.flagged[truth].mean() > 20 * score.flagged[~truth].mean() > 0
    alone = {n: frame[n][:1].copy() for n in frame}
    for n in NUMBERS:
        alone[n][0] = 0.0
    alone["a"][0] = 0.9
    (reasons,) = scorer(saved(question, made), CONTRACT).score(alone, reasons=2).reasons or ()
    assert (
        len(reasons) == 2 and reasons[0].column in ("a", "b") and reasons[0].amount >= reasons[1].amount > 0
    )
    assert "to" in reasons[0].bin


def test_a_customer_s_cell_is_theirs_alone() -> None:
    question, frame = asked(), people(500, 3)
    body = question.ask(1, totals(question, frame))
    whole = question.contribute(1, frame, body)
    part = question.contribute(1, {n: v[100:200] for n, v in frame.items()}, body)
    assert (whole.cells[100:200] == part.cells).all()  # type: ignore[union-attr]


@pytest.mark.statistical
def test_the_threshold_s_interval_holds_the_quantile() -> None:
    """400 draws of the noise; nominal 95 %, on the safe side as its ends are cut points of the grid."""
    rng = np.random.default_rng(4)
    scores = np.exp(rng.normal(-0.3, 0.7, 8000))
    counts = np.bincount(np.searchsorted(edges(), scores), minlength=len(edges()) + 1).astype(float)
    quantile, held, above = np.quantile(scores, 0.97), 0, 0
    for _ in range(400):
        noisy = NoisySum(counts + 12 * rng.standard_normal(counts.size), 12.0)
        tail = Tail.of(noisy, 8000 + 20 * rng.standard_normal(), 20.0)
        place, low, high = tail.threshold(0.03, 1.96)
        held += low <= quantile <= high
        assert low <= edges()[place] <= high
        above += abs(tail.above[place] - (scores > edges()[place]).sum()) <= 1.96 * tail.std[place]
    assert held >= 0.93 * 400
    assert 0.91 * 400 <= above <= 0.99 * 400


def test_hopeless_noise_gives_a_whole_range() -> None:
    question = asked()
    (row,) = question.read(totals(question, people(50, 5), std=1e4))["parts"][0]["rows"]
    assert row["threshold"]["low"] == 0.0 and row["threshold"]["high"] == edges()[-1]


@pytest.mark.parametrize("wrong", [None, 3, "nan", "spread"])
def test_an_autoencoder_of_another_form_is_refused(wrong: Any) -> None:
    question, frame = asked(), people(20, 6)
    body = Autoencoder.read(question.moments, totals(question, frame)[0], 2).flat()
    if wrong is None or wrong == 3:
        body = None if wrong is None else body[:3]  # type: ignore[assignment]
    else:
        body[-1 if wrong == "spread" else 0] = -1.0 if wrong == "spread" else np.nan
    with pytest.raises(ValueError, match="Expected"):
        question.contribute(1, frame, body)
    with pytest.raises(ValueError, match="without numbers"):
        question.contribute(0, frame, np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"columns": ["note"]}, "no model column"),
        ({"columns": ["id"]}, "no model column"),
        ({"columns": ["a", "a"]}, "named once"),
        ({"columns": ["a", "b"]}, "2 inputs"),
        ({"dimensions": 8}, "8 inputs"),
    ],
)
def test_a_question_that_cannot_be_asked(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        asked(**wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["note"]},
        {"names": []},
        {"names": ["a", "a"]},
        {"dimensions": 3},
        {"dimensions": True},
        {"threshold": "2"},
        {"threshold": -1.0},
    ],
)
def test_a_damaged_model_is_refused(change: dict[str, Any]) -> None:
    question = asked()
    with pytest.raises(BadInput, match="cannot be used"):
        scorer(saved(question, totals(question, people(100, 7)), **change), CONTRACT)


def test_customers_of_another_form_are_refused() -> None:
    question, frame = asked(), people(100, 8)
    ready = scorer(saved(question, totals(question, frame)), CONTRACT)
    with pytest.raises(BadInput, match="no column 'a'"):
        ready.score({n: v for n, v in frame.items() if n != "a"})
    with pytest.raises(BadInput, match="differ in length"):
        ready.score(frame | {"a": frame["a"][:5]})
    empty = ready.score({n: v[:0] for n, v in frame.items()}, reasons=1)
    assert empty.anomaly is not None and len(empty.anomaly) == 0
