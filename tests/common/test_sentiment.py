"""Texts, the classifier trained by sums, and sentiment: against naive versions, on hostile input, coverage."""

import zlib
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from math import log, sqrt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from scipy.special import expit

from sfumato.common.analyses import sentiment
from sfumato.common.analyses.analysis import HELD_OUT, NoisySum
from sfumato.common.analyses.domains import domain
from sfumato.common.analyses.listed import listed
from sfumato.common.analyses.parts import parts_of
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells, Rows
from sfumato.common.errors import BadInput
from sfumato.common.fixed_point import GRID
from sfumato.common.learners.text import Keywords, hashed, newest, tokens
from sfumato.common.learners.text_classifier import BIAS, TEXT, TextModel, TextTraining
from sfumato.privacy.clipping import BoundedSum

GOOD = ("friendly", "quick", "热", "好", "thanks")
BAD = ("rude", "slow", "差", "慢", "never")
PLAIN = ("the", "bank", "desk", "fees", "app", "手", "续", "费", "客", "，")


def contract(**changes: Any) -> Contract:
    return Contract.model_validate(
        {
            "version": 1,
            "name": "voices",
            "purpose": "Hear what customers say.",
            "tables": [
                {
                    "name": "customers",
                    "columns": [
                        {"name": "id", "type": "string", "role": "customer_id"},
                        {"name": "name", "type": "string", "role": "pii", "protection": "encrypt"},
                        {"name": "tier", "type": "category", "categories": ["a", "b", "c"]},
                        {"name": "motto", "type": "string", "role": "text", "nullable": True},
                        {"name": "stars", "type": "integer", "bounds": [1, 5]},
                    ],
                },
                {
                    "name": "surveys",
                    "columns": [
                        {"name": "id", "type": "string", "role": "customer_id"},
                        {"name": "nps", "type": "integer", "bounds": [0, 10], "nullable": True},
                        {"name": "topic", "type": "string"},
                        {"name": "comment", "type": "string", "role": "text", "nullable": True},
                    ],
                },
            ],
            **changes,
        }
    )


CONTRACT = contract()
QUESTION: dict[str, Any] = {
    "text": "surveys.comment",
    "rating": "surveys.nps",
    "positive_from": 9,
    "negative_to": 6,
    "by": ["tier"],
    "themes": {"money": ["fees", "手续费"], "app": ["app"]},
    "buckets": 1024,
}


def built(**changes: Any) -> sentiment.Sentiment:
    made = sentiment.build(sentiment.Question.model_validate({**QUESTION, **changes}), CONTRACT)
    assert isinstance(made, sentiment.Sentiment)
    return made


def people(n: int, seed: int) -> dict[str, Any]:
    """Some write nothing, some twice; a rating says what the words say, and may be missing."""
    rng = np.random.default_rng(seed)
    comments: list[list[str | None]] = []
    ratings: list[list[int | None]] = []
    for happy, rows, known in zip(
        rng.random(n) < 0.6, rng.integers(0, 4, n), rng.random(n) < 0.8, strict=True
    ):
        own = [*rng.choice(GOOD if happy else BAD, 2), *rng.choice(PLAIN, 5)]
        text = " ".join(own)
        score = rng.choice((9, 10) if happy else (0, 3, 6)) if known else 7
        comments.append([None, text, "friendly"][3 - rows :] if rows else [])
        rated: list[int | None] = [5, int(score), 10]
        ratings.append(rated[3 - rows :] if rows else [])
    return {
        "surveys.comment": pa.array(comments, pa.list_(pa.string())),
        "surveys.nps": pa.array(ratings, pa.list_(pa.int64())),
        "tier": pa.array(rng.choice(["a", "b", "c"], n)),
        HELD_OUT: pa.array(rng.random(n) < 0.2),
    }


def totals_of(
    asked: sentiment.Sentiment, columns: Mapping[str, Any], multiplier: float, rng: np.random.Generator
) -> list[NoisySum]:
    """All rounds, with noise of `multiplier` for the whole, split by the shares."""
    totals: list[NoisySum] = []
    for r, share in enumerate(asked.shares):
        bound = asked.max_norm(r)
        given = asked.contribute(r, columns, asked.ask(r, totals))
        exact = BoundedSum.of(given, bound).total * (bound / GRID)
        std = multiplier * bound / sqrt(share)
        totals.append(NoisySum(exact + std * rng.standard_normal(exact.size), std))
    return totals


# --- texts -------------------------------------------------------------------------------------------------


def test_words_are_tokens_and_so_is_each_sign_of_a_script_without_blanks() -> None:
    assert tokens("The APP's手续费：2，５％ — ｶﾞ 한") == [
        "the", "app", "'", "s", "手", "续", "费", ":", "2", ",", "5", "%", "—", "ガ", "한",
    ]  # fmt: skip
    assert tokens(" _\n\t") == []


def test_texts_are_hashed_as_the_naive_way_does_it() -> None:
    def mixed(value: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            value = ((value ^ (value >> shift)) * factor) % 2**64
        return value ^ (value >> 31)

    texts = ["很好 很好 app", "", "app", "x y z x y", "___"]
    for text, row in zip(texts, hashed(texts, 97).toarray(), strict=True):
        codes = [zlib.crc32(t.encode()) for t in tokens(text)]
        pairs = [(a * 0x9E3779B97F4A7C15 + b) % 2**64 for a, b in pairwise(codes)]
        counts = Counter(mixed(c) % 97 for c in codes + pairs)
        expected = np.zeros(97)
        for bucket, times in counts.items():
            expected[bucket] = sqrt(times)
        assert row == pytest.approx(expected / max(float(np.linalg.norm(expected)), 1.0))
    assert hashed([], 97).shape == (0, 97)


def test_buckets_are_those_of_every_model_file_so_far() -> None:
    """Another hash would make nonsense of them."""
    row = hashed(["好 App"], 8192)
    assert sorted(row.indices.tolist()) == PINNED


PINNED = [878, 4825, 5607]  # 好, app, and the two together


def test_a_keyword_is_whole_words_in_their_order() -> None:
    named = Keywords(["app", "opening hours", "手续费"]).named_in
    texts = ["Happy!", "my APP.", "opening", "Opening  hours", "hours opening", "手续费高", "费手续", ""]
    assert named(texts).tolist() == [False, True, False, True, False, True, False, False]
    with pytest.raises(ValueError, match="keyword"):
        Keywords(["fine", " _ "])


def test_the_newest_text_that_is_not_blank_counts_with_its_own_rating() -> None:
    texts = pa.array([[" ", None, "new", "old"], [], ["x"], [None]], pa.list_(pa.string()))
    ratings = pa.array([[1, 2, 3, 4], [], [None], [5]], pa.list_(pa.int64()))
    found, beside = newest(texts, ratings)
    assert found == ["new", None, "x", None]
    assert beside[0] == 3 and np.isnan(beside[1:]).all()
    found, beside = newest(pa.chunked_array([["a", None]]), pa.chunked_array([[2.0, 1.0]]))
    assert found == ["a", None] and beside[0] == 2 and np.isnan(beside[1])


# --- the classifier ----------------------------------------------------------------------------------------


def test_a_step_is_the_gradient_of_the_log_likelihood_and_nobody_is_longer_than_one() -> None:
    rng = np.random.default_rng(1)
    texts = hashed([" ".join(rng.choice([*GOOD, *BAD, *PLAIN], 6)) for _ in range(40)], 64)
    positive = rng.random(40) < 0.5
    training = TextTraining(64, 4)
    flat = rng.normal(0, 1, 65).astype(np.float32)
    given = training.contribute(1, texts, positive, flat)
    assert np.linalg.norm(given.rows, axis=1).max() <= 1
    slope = given.rows.sum(axis=0) / np.append(np.full(64, TEXT), BIAS)

    def likelihood(weights: np.ndarray[Any, Any]) -> float:
        odds = texts.toarray() @ weights[:-1] + weights[-1]
        return float(np.log(expit(np.where(positive, odds, -odds))).sum())

    at = flat.astype(np.float64)
    for i in (*np.flatnonzero(texts.sum(axis=0))[:8], 64):
        move = np.zeros(65)
        move[i] = 1e-5
        assert slope[i] == pytest.approx((likelihood(at + move) - likelihood(at - move)) / 2e-5, abs=1e-6)
    first = training.contribute(0, texts, positive, None).rows
    assert np.linalg.norm(first, axis=1) == pytest.approx(np.ones(40))
    assert first.sum(axis=0)[-2:] / BIAS == pytest.approx([(~positive).sum(), positive.sum()])
    assert first[:, :-2] / TEXT == pytest.approx(texts.toarray())


def test_without_steps_everybody_has_the_odds_of_the_ratings() -> None:
    first = NoisySum(np.append(np.zeros(64), np.array([30.0, 90.0]) * BIAS), 1e-9)
    model = TextTraining(64, 4).model([first])
    assert model.log_odds(hashed(["a"], 64)) == pytest.approx([log(3)])


@pytest.mark.parametrize("seed", range(3))
def test_it_learns_two_languages_under_noise(seed: int) -> None:
    """At epsilon 2 (multiplier 1.93) about 2,000 customers' texts are enough for words this clear."""
    asked, columns = built(), people(4000, seed)
    model = asked.training.model(totals_of(asked, columns, 1.93, np.random.default_rng(seed))[:-1])
    rng = np.random.default_rng(100 + seed)
    new = [
        " ".join([*rng.choice(words, 2), *rng.choice(PLAIN, 5)]) for words in (GOOD, BAD) for _ in range(500)
    ]
    right = (model.log_odds(hashed(new, 1024)) > 0) == (np.arange(1000) < 500)
    assert right.mean() > 0.93


# --- the analysis ------------------------------------------------------------------------------------------


def truth(columns: Mapping[str, Any], model: TextModel) -> dict[tuple[str, ...], tuple[int, int]]:
    """(part, row) → customers, and positive or right ones; one customer after the other."""
    found: Counter[tuple[tuple[str, ...], bool]] = Counter()
    rows = zip(
        *(columns[n].to_pylist() for n in ("surveys.comment", "surveys.nps", "tier", HELD_OUT)), strict=True
    )
    for texts, ratings, tier, held_out in rows:
        written = [(t, r) for t, r in zip(texts, ratings, strict=True) if t]
        if not written:
            continue
        text, rating = written[0]
        happy = bool(model.log_odds(hashed([text], 1024))[0] > 0)
        found[("sentiment",), happy] += 1
        found[("sentiment by tier", tier), happy] += 1
        if any(w in text.split() for w in ("fees",)) or "手 续 费" in text:
            found[("themes", "money"), happy] += 1
        if "app" in text.split():
            found[("themes", "app"), happy] += 1
        if held_out and (rating >= 9 or rating <= 6):
            right = happy == (rating >= 9)
            found[("accuracy", "either"), right] += 1
            found[("accuracy", "positive" if rating >= 9 else "negative"), right] += 1
    return {of: (found[of, True] + found[of, False], found[of, True]) for of, _ in found}


def numbers(answer: Mapping[str, Any]) -> dict[tuple[str, ...], Mapping[str, Any]]:
    return {(p.name, *r.of): r.numbers for p in parts_of(answer) for r in p.rows}


def test_with_next_to_no_noise_the_answer_is_what_is_counted_one_by_one() -> None:
    asked, columns = built(), people(1500, 5)
    totals = totals_of(asked, columns, 1.5, np.random.default_rng(0))
    given = asked.contribute(asked.question.steps + 1, columns, asked.ask(asked.question.steps + 1, totals))
    assert isinstance(given, Cells)
    counts = np.bincount(given.cells[given.cells >= 0], minlength=given.length).astype(float)
    answer = asked.read([*totals[:-1], NoisySum(counts, 1e-9)])
    shown, counted = numbers(answer), truth(columns, asked.training.model(totals[:-1]))
    everyone = counted[("sentiment",)][0]
    assert answer["customers"]["value"] == pytest.approx(everyone)
    assert set(counted) <= set(shown)
    for of, (customers, yes) in counted.items():
        assert shown[of]["customers"]["value"] == pytest.approx(customers)
        assert shown[of]["right" if of[0] == "accuracy" else "positive"]["value"] == pytest.approx(
            yes / customers
        )
        if "share" in shown[of]:
            assert shown[of]["share"]["value"] == pytest.approx(customers / everyone)


def test_intervals_hold_the_counts_as_often_as_they_say() -> None:
    asked, columns, rng = built(), people(3000, 6), np.random.default_rng(7)
    totals = totals_of(asked, columns, 1.5, rng)
    last = len(asked.shares) - 1
    given = asked.contribute(last, columns, asked.ask(last, totals))
    counted = truth(columns, asked.training.model(totals[:-1]))
    counts = BoundedSum.of(given, asked.max_norm(last)).total * (asked.max_norm(last) / GRID)
    everyone, held = counted[("sentiment",)][0], list[bool]()
    for _ in range(150):
        noisy = NoisySum(counts + 20 * rng.standard_normal(counts.size), 20.0)
        shown = numbers(asked.read([*totals[:-1], noisy]))
        for of, (customers, yes) in counted.items():
            exact = {"customers": customers, "share": customers / everyone}
            exact |= {"positive": yes / customers, "right": yes / customers}
            held += [
                n["low"] - 0.01 <= exact[k] <= n["high"] + 0.01
                for k, n in shown[of].items()
                if k == "customers"
            ]
            held += [
                n["low"] <= exact[k] + 1e-4 and exact[k] - 1e-4 <= n["high"]
                for k, n in shown[of].items()
                if k != "customers"
            ]
    assert 0.93 < np.mean(held) < 0.97


def test_a_customers_vector_depends_on_nobody_else_and_keeps_its_bound() -> None:
    asked, columns = built(), people(90, 8)
    flat = np.random.default_rng(0).normal(0, 1, 1025).astype(np.float32)
    for r, body in ((0, None), (3, flat), (9, flat)):
        whole = BoundedSum.of(asked.contribute(r, columns, body), asked.max_norm(r)).total
        parts = [
            asked.contribute(r, {k: v.slice(start, 30) for k, v in columns.items()}, body)
            for start in (0, 30, 60)
        ]
        assert all(whole == sum(BoundedSum.of(p, asked.max_norm(r)).total for p in parts))
        assert len(whole) == asked.length(r)
    cells = asked.contribute(9, columns, flat)
    assert isinstance(cells, Cells)
    assert (cells.cells >= 0).sum(axis=1).max() <= asked.max_norm(9) ** 2 == pytest.approx(4)
    nobody = {k: v.slice(0, 0) for k, v in columns.items()}
    assert BoundedSum.of(asked.contribute(9, nobody, flat), 2.0).total.sum() == 0


def test_held_out_customers_are_not_trained_on() -> None:
    asked, columns = built(), people(200, 9)
    kept = columns | {HELD_OUT: pa.array(np.ones(200, dtype=np.bool_))}
    given = asked.contribute(0, kept, None)
    assert isinstance(given, Rows) and len(given.rows) == 0
    assert sum(asked.shares) == pytest.approx(1)


@pytest.mark.parametrize(
    ("round_", "asked"),
    [
        (0, np.zeros(1025, dtype=np.float32)),
        (1, None),
        (1, np.zeros(1024, dtype=np.float32)),
        (9, np.full(1025, np.nan, dtype=np.float32)),
        (9, np.zeros((1, 1025), dtype=np.float32)),
        (9, None),
    ],
)
def test_a_hostile_coordinators_numbers_are_refused(round_: int, asked: Any) -> None:
    columns = {k: v.slice(0, 0) for k, v in people(5, 1).items()}
    with pytest.raises(ValueError, match=r"weights|without numbers"):
        built().contribute(round_, columns, asked)


def test_the_order_of_themes_is_their_names_not_the_files() -> None:
    """A signed job's keys are sorted: coordinator and vault must lay out the same cells."""
    turned = built(themes=dict(reversed(QUESTION["themes"].items())))
    columns, flat = people(50, 2), np.ones(1025, dtype=np.float32)
    one, other = (a.contribute(9, columns, flat) for a in (built(), turned))
    assert isinstance(one, Cells) and isinstance(other, Cells)
    assert (one.cells == other.cells).all()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text": "name"}, "no column of free text"),
        ({"text": "surveys.topic"}, "surveys.comment"),
        ({"text": "tier"}, "no column of free text"),
        ({"text": "nothing"}, "no column of free text"),
        ({"rating": "stars"}, "stands beside"),
        ({"rating": "surveys.topic"}, "stands beside"),
        ({"text": "motto", "rating": "surveys.nps"}, "stands beside"),
        ({"by": ["motto"]}, "free text"),
        ({"by": ["surveys.topic"]}, "is not declared"),
    ],
)
def test_what_the_contract_does_not_have_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as e:
        built(**changes)
    assert says in f"{e.value} {e.value.hint}"


@pytest.mark.parametrize(
    "changes",
    [
        {"negative_to": 9},
        {"by": ["tier", "tier"]},
        {"themes": {"none": []}},
        {"themes": {"": ["x"]}},
        {"themes": {"marks": ["_"]}},
        {"positive_from": float("nan")},
        {"buckets": 10},
    ],
)
def test_questions_that_make_no_sense_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        sentiment.Question.model_validate({**QUESTION, **changes})


def test_a_text_of_the_customers_table_needs_no_list() -> None:
    asked = built(text="motto", rating="stars", positive_from=4, negative_to=2, by=[], themes={})
    columns = {
        "motto": pa.chunked_array([["good", "bad", None, " "]]),
        "stars": pa.chunked_array([[5, 1, 5, 5]]),
        HELD_OUT: pa.chunked_array([[True, False, False, False]]),
    }
    assert set(asked.columns) == set(columns)
    trained = asked.contribute(0, columns, None)
    assert isinstance(trained, Rows) and trained.rows[:, -2:] == pytest.approx(np.array([[BIAS, 0]]))
    last = asked.contribute(9, columns, np.append(np.zeros(1024), 1).astype(np.float32))
    assert isinstance(last, Cells) and last.cells.tolist() == [[1, 5], [1, -1]]


# --- free text is for text analyses alone --------------------------------------------------------------------


def test_no_other_analysis_can_name_free_text() -> None:
    with pytest.raises(BadInput, match="free text"):
        listed(CONTRACT, "surveys.comment")
    with pytest.raises(BadInput, match="free text"):
        domain(CONTRACT, "motto", 5)
    assert listed(CONTRACT, "surveys.comment", text=True).column.name == "comment"
    with pytest.raises(BadInput, match="not declared"):
        listed(CONTRACT, "surveys.words", text=True)


@pytest.mark.parametrize("part", [{"column": "comment"}, {"where": {"comment": "x"}}])
def test_free_text_is_not_rolled_up_and_is_a_string(part: dict[str, Any]) -> None:
    feature = {"name": "f", "table": "surveys", "aggregate": "count", "bounds": [0, 1], **part}
    with pytest.raises(ValidationError, match="free text"):
        contract(features=[feature])
    tables = CONTRACT.model_dump(mode="json")["tables"]
    tables[1]["columns"][1]["role"] = "text"
    with pytest.raises(ValidationError, match="a text is a string"):
        contract(tables=tables)
