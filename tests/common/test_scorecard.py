"""The scorecard: points that are the model, evidence with honest intervals, reasons that are the true causes."""

import json
from fractions import Fraction
from math import log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contributions import Cells
from sfumato.common.learners.additive import Question, build
from sfumato.common.learners.curves import BinnedColumn, Curve, Model
from sfumato.common.learners.scorecard import Estimate, Reason, Scaling, Scorecard, evidence, scorecard
from sfumato.lab.samplebank_model import PROFILES, People, draw_people, effects


def evidence_of(counts: np.ndarray, std: float) -> tuple[list[Estimate], Estimate]:
    return evidence(counts, np.full(counts.shape[1], std))


def model(curves: list[list[float]], intercept: float = -1.5, std: float = 0.1) -> Model:
    def curve(f: int, values: list[float]) -> Curve:
        column = BinnedColumn(f"c{f}", tuple(f"b{i}" for i in range(len(values))))
        counts = np.array([[90.0] * len(values), [10.0] * len(values)])
        return Curve(column, np.array(values), np.full(len(values), std), counts, np.full(len(values), 2.0))

    return Model(intercept, tuple(curve(f, values) for f, values in enumerate(curves)))


CURVES = st.lists(st.lists(st.floats(-8, 8), min_size=1, max_size=5), min_size=1, max_size=6)


@given(
    curves=CURVES,
    scaling=st.builds(
        Scaling, base_score=st.integers(0, 900), base_odds=st.floats(1, 99), double=st.integers(1, 60)
    ),
    seed=st.integers(0, 2**20),
)
@settings(max_examples=60, deadline=None)
def test_the_points_are_the_log_odds_exactly(curves: list[list[float]], scaling: Scaling, seed: int) -> None:
    card, fitted = scorecard(model(curves), scaling), model(curves)
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, len(c), 20) for c in curves], axis=1).astype(np.int64)
    scores, log_odds = card.scores(codes), card.log_odds(codes)
    by_hand = [
        card.base + sum(a.bins[c].points for a, c in zip(card.attributes, row, strict=True)) for row in codes
    ]
    assert scores.tolist() == by_hand
    # One score, one number of log-odds, wherever it is worked out; and back to the very same points.
    assert [scaling.log_odds(np.array([s]))[0] for s in by_hand] == log_odds.tolist()
    assert np.rint([scaling.score(v) for v in log_odds.tolist()]).astype(int).tolist() == by_hand
    again = Scorecard.model_validate_json(json.dumps(card.model_dump(mode="json")))
    assert again == card and again.log_odds(codes).tolist() == log_odds.tolist()
    # Rounding moves a score by half a point a table at most.
    assert np.abs(log_odds - fitted.logits(codes)).max() <= (len(curves) + 1.001) * 0.5 / scaling.factor


def test_points_double_the_odds() -> None:
    scaling = Scaling(base_score=600, base_odds=50, double=20)
    odds = np.exp(-scaling.log_odds(np.array([600, 620, 640, 580])))
    assert np.allclose(odds, [50, 100, 200, 25])
    assert Fraction(round(scaling.score(-log(50)))) == 600


def test_reasons_are_the_columns_that_cost_most() -> None:
    card = scorecard(model([[0.0, 1.0, -1.0], [0.0, 2.0, -2.0], [0.0, 1.0, -1.0]]))
    lost = round(2 * card.scaling.factor)
    codes = np.array([[1, 1, 1], [2, 2, 2], [2, 1, 0], [0, 0, 0]])
    first, second, third, fourth = card.reasons(codes, most=2)
    assert first == (Reason("c1", "b1", lost), Reason("c0", "b1", round(card.scaling.factor)))
    assert third == (Reason("c1", "b1", lost),)
    assert second == () and fourth == ()


def test_bad_codes_and_cards_are_refused() -> None:
    card = scorecard(model([[0.0, 1.0], [0.5]]))
    for codes in (np.array([[2, 0]]), np.array([[-1, 0]]), np.array([[0]]), np.array([[0.0, 0.0]])):
        with pytest.raises(ValueError, match="Expected"):
            card.scores(codes)
    table = card.model_dump(mode="json")
    for broken in ({**table, "attributes": []}, {**table, "attributes": [table["attributes"][0]] * 2},
                   {**table, "base": 10**9}, {**table, "more": 1}):  # fmt: skip
        with pytest.raises(ValidationError):
            Scorecard.model_validate(broken)


def test_evidence_by_hand() -> None:
    counts = np.array([[60.0, 30.0, 10.0], [10.0, 20.0, 20.0]])
    woes, iv = evidence_of(counts, 0.0)
    by_hand = [log((g / 100) / (b / 50)) for g, b in counts.T]
    assert np.allclose([w.value for w in woes], by_hand)
    assert np.isclose(
        iv.value, sum((g / 100 - b / 50) * w for (g, b), w in zip(counts.T, by_hand, strict=True))
    )
    assert all(np.isclose(w.low, w.high) for w in woes) and np.isclose(iv.low, iv.high)


@pytest.mark.statistical
def test_intervals_of_evidence_cover() -> None:
    # 300 draws x 6 bins, seed fixed. 95 % each: below 92 % of 1,800 has a chance of less than 1e-8, and of 300
    # below 90 % of 1e-3.
    counts = np.array([[900, 700, 500, 400, 300, 60.0], [40, 60, 80, 90, 120, 30.0]])
    rng, truth = np.random.default_rng(11), evidence_of(counts, 0.0)
    woe_held, iv_held, ivs, naive = 0, 0, [], []
    for _ in range(300):
        noisy = counts + 8.0 * rng.standard_normal(counts.shape)
        woes, iv = evidence_of(noisy, 8.0)
        woe_held += sum(w.low <= t.value <= w.high for w, t in zip(woes, truth[0], strict=True))
        iv_held += iv.low <= truth[1].value <= iv.high
        ivs.append(iv.value)
        naive.append(evidence_of(noisy, 0.0)[1].value)
    assert woe_held >= 0.92 * 1800
    assert iv_held >= 0.90 * 300
    off, error = np.mean(ivs) - truth[1].value, np.std(ivs) / np.sqrt(300)
    assert abs(off) < 3 * error, "the noise's own information is taken off"
    assert np.mean(naive) - np.mean(ivs) > error


def test_a_bin_of_nobody_says_nothing() -> None:
    woes, iv = evidence_of(np.array([[100.0, -3.0], [50.0, 2.0]]), 5.0)
    assert woes[1].low < -2 and woes[1].high > 1
    assert iv.low == 0.0
    assert scorecard(model([[0.0, 0.0]])).attributes[0].bins[0].share == 0.5


# --- the sample bank: the causes are known ------------------------------------------------------------------


def binned(people: People) -> tuple[tuple[BinnedColumn, ...], np.ndarray]:
    """What is true of the customers in bins, causes and columns that cause nothing by themselves."""
    years = np.minimum(people.tenure_months // 36, 5)
    columns = {
        "decline": (np.digitize(people.decline, [0.1, 0.3, 0.5, 0.7]), 5),
        "complaints": (np.minimum(people.complaints, 3), 4),
        "tenure": (years, 6),
        "products": (people.products - 1, 7),
        "salary": (people.salary.astype(np.int64), 2),
        "age": (np.digitize(people.age, [22, 27, 32, 40, 60, 68, 74, 80]), 9),
        "gender": (people.gender, 3),
        "city": (people.city, 3),
        "marital": (people.marital, 4),
    }
    names = tuple(
        BinnedColumn(n, tuple(map(str, range(k))), 0 if n in ("gender", "city", "marital") else k)
        for n, (_, k) in columns.items()
    )
    return names, np.stack([np.asarray(c, dtype=np.int64) for c, _ in columns.values()], axis=1)


@pytest.fixture(scope="module")
def bank() -> tuple[Scorecard, People, np.ndarray]:
    """A card fitted without noise on the first branch, and its customers."""
    rng = np.random.default_rng(12)
    people = draw_people(rng, PROFILES[0], 12_000)
    columns, codes = binned(people)
    label = (rng.random(len(codes)) < people.propensity).astype(np.float64)
    fit, totals = build(Question(), columns), list[NoisySum]()
    for round_ in range(len(fit.shares)):
        c = fit.contribute(round_, {"codes": codes, "label": label}, fit.ask(round_, totals))
        total = (
            np.bincount(c.cells.ravel(), minlength=c.length) if isinstance(c, Cells) else c.rows.sum(axis=0)
        )
        totals.append(NoisySum(total.astype(np.float64), 0.0))
    return scorecard(fit.model(totals), Scaling(double=40)), people, codes


def test_reasons_name_the_true_causes(bank: tuple[Scorecard, People, np.ndarray]) -> None:
    card, people, codes = bank
    truth = effects(people)
    reasons = card.reasons(codes)
    first = np.array([r[0].column if r else "" for r in reasons])
    gain = truth["propensity"] - truth["do_no_decline"]
    # Of those who were told of their decline first, stopping it would keep far more than of the others.
    assert (first == "decline").sum() > 1000
    assert gain[first == "decline"].mean() > 10 * gain[first != "decline"].mean()
    # Of customers whose decline costs them most by the true model, by far, nearly all are told so first.
    strong = people.decline > 0.7
    assert (first[strong] == "decline").mean() > 0.95
    # What causes nothing is as good as never the first of the reasons that cost a quarter of log-odds or more.
    dear = np.array([bool(r) and r[0].points_lost >= 0.25 * card.scaling.factor for r in reasons])
    assert dear.mean() > 0.7
    assert np.isin(first[dear], ["gender", "city", "marital"]).mean() < 0.002
    said = np.array([any(r.column == "salary" for r in rs) for rs in reasons])
    assert not said[people.salary].any() and said[~people.salary].mean() > 0.7
    complained = np.array([any(r.column == "complaints" for r in rs) for rs in reasons])
    assert complained[people.complaints >= 2].mean() > 0.9 and not complained[people.complaints == 0].any()


def test_reasons_are_what_the_score_would_gain(bank: tuple[Scorecard, People, np.ndarray]) -> None:
    card, _, codes = bank
    neutral = {a.column: (f, a) for f, a in enumerate(card.attributes)}
    for code, reasons in zip(codes[:200], card.reasons(codes[:200]), strict=True):
        assert [r.points_lost for r in reasons] == sorted((r.points_lost for r in reasons), reverse=True)
        for reason in reasons:
            f, attribute = neutral[reason.column]
            assert attribute.neutral - attribute.bins[code[f]].points == reason.points_lost > 0
            assert reason.bin == attribute.bins[code[f]].bin


def test_causes_have_more_information(bank: tuple[Scorecard, People, np.ndarray]) -> None:
    card, _, _ = bank
    iv = {a.column: a.iv.value for a in card.attributes}
    assert max(iv, key=lambda c: iv[c]) == "decline"
    assert min(iv[c] for c in ("complaints", "tenure", "products", "salary")) > 3 * max(
        iv["gender"], iv["city"]
    )
    woe = [b.woe.value for b in next(a for a in card.attributes if a.column == "decline").bins]
    assert woe[0] > 0 > woe[-1]
