"""Sentiment: of the sample bank's comments, and of Chinese reviews of hotels and of an online shop.

The truth of a share is what the same classifier finds in the pooled texts: the interval is for the counts' noise.
Accuracy is the classifier's on the held-out fifth, counted without noise, beside a linear model without privacy.
"""

import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from analytics_harness import DATA, Bar, Case, Columns, Pairs, answers, bank_columns, pooled, split

from sfumato.common.analyses import sentiment
from sfumato.common.analyses.analysis import HELD_OUT, NoisySum
from sfumato.common.contract import Contract, load_contract
from sfumato.common.learners.text import hashed, newest, tokens
from sfumato.common.learners.text_classifier import TextModel
from sfumato.lab.samplebank import generate

REVIEWS = DATA / "zh_reviews"
SETS = ("chnsenticorp_hotel", "online_shopping_10_cats")
BRANCHES, SPLITS, EPSILON, LEAST = 16, 5, 4.0, 0.84
JOB = Path(__file__).resolve().parent.parent / "examples" / "sample_bank" / "sentiment.toml"

Bools = npt.NDArray[np.bool_]
Mapped = Mapping[str, Any]


def cases() -> Iterator[Case]:
    question = tomllib.loads(JOB.read_text(encoding="utf-8"))["question"] | {"buckets": 512}
    names = (question["text"], question["rating"], *question["by"])
    with tempfile.TemporaryDirectory() as directory:
        bank = generate(Path(directory) / "bank", customers_per_branch=1000)
        contract = load_contract(bank.contract)
        found = bank_columns(bank, names, Path(directory))
    rng = np.random.default_rng(0)
    branches = tuple(held_out(columns, rng) for columns in found)
    everybody = pooled(branches)
    with telling_its_model():
        yield Case(
            "sample bank", contract, "sentiment", question, branches, partial(pairs, everybody, question)
        )


def held_out(columns: Columns, rng: np.random.Generator) -> Columns:
    """The same customers, a fifth of them never trained on."""
    rows = len(next(iter(columns.values())))
    return {**columns, HELD_OUT: pa.array(rng.random(rows) < 0.2)}


@contextmanager
def telling_its_model() -> Iterator[None]:
    """Inside, answers have the classifier's weights, too; and no text is hashed twice."""
    read, known = sentiment.Sentiment.read, lru_cache(maxsize=4 * BRANCHES)(hashed)

    def telling(self: sentiment.Sentiment, totals: list[NoisySum]) -> dict[str, Any]:
        return read(self, totals) | {"weights": self.saved(totals)[0]["weights"]}

    with (
        mock.patch.object(sentiment.Sentiment, "read", telling),
        mock.patch.object(sentiment, "hashed", lambda texts, buckets: known(tuple(texts), buckets)),
    ):
        yield


# --- what the intervals should hold -----------------------------------------------------------------------


def pairs(everybody: Columns, question: Mapped, answer: Mapped) -> Pairs:
    """Every number beside what this answer's classifier finds in all branches' texts together."""
    texts, ratings = newest(everybody[question["text"]], everybody[question["rating"]])
    there = np.array([t is not None for t in texts])
    written = [t for t in texts if t is not None]
    model = TextModel.of(answer["weights"], question["buckets"])
    happy = model.log_odds(hashed(written, question["buckets"])) > 0
    rated = ratings[there]
    tried = np.asarray(everybody[HELD_OUT])[there]
    groups: dict[tuple[str, str], Bools] = {("sentiment", ""): np.ones(len(written), dtype=np.bool_)}
    for name in question["by"]:
        values = np.array(everybody[name].to_pylist(), dtype=object)[there]
        groups |= {(f"sentiment by {name}", v): values == v for v in set(values.tolist())}
    for theme, words in question["themes"].items():
        groups["themes", theme] = np.array([_names(t, words) for t in written])
    high, low = tried & (rated >= question["positive_from"]), tried & (rated <= question["negative_to"])
    agreed = (high & happy) | (low & ~happy)
    rights = {"either": high | low, "negative": low, "positive": high}
    for part in answer["parts"]:
        for row in part["rows"]:
            of = "".join(row["of"])
            group = rights[of] if part["name"] == "accuracy" else groups.get((part["name"], of), there[:0])
            count = int(group.sum())
            yield f"{part['name']}, customers", row["customers"], float(count)
            if "share" in row:
                yield f"{part['name']}, share", row["share"], count / len(written)
            for key, yes in (("positive", happy), ("right", agreed)):
                if key in row and count:
                    yield f"{part['name']}, {key}", row[key], float(yes[group].mean())


def _names(text: str, words: Sequence[str]) -> bool:
    """Token by token, without joining them."""
    cut = tokens(text)
    phrases = [tokens(w) for w in words]
    return any(cut[i : i + len(p)] == p for p in phrases for i in range(len(cut) - len(p) + 1))


# --- the bar: Chinese reviews -----------------------------------------------------------------------------


def bars(seeds: int) -> Iterator[Bar]:
    """Each split has its own noise; never more than SPLITS of them."""
    for name in SETS:
        path = REVIEWS / f"{name}.parquet"
        if not path.exists():
            print(f"SKIPPED {name}: the data file is not beside the project")
            continue
        with telling_its_model():
            yield _bar(name, pq.read_table(path, columns=["review", "label"]), min(seeds, SPLITS))


def _bar(name: str, table: pa.Table, splits: int) -> Bar:
    table = table.drop_null()
    columns = {"review": table["review"].cast(pa.string()), "label": table["label"]}
    private, plain = [], []
    for seed in range(splits):
        rng = np.random.default_rng(seed)
        with_test = held_out(columns, rng)
        private.append(_accuracy(with_test, seed))
        plain.append(_without_privacy(with_test))
    seen = f"{np.mean(private):.3f} ({min(private):.3f} to {max(private):.3f}); {np.mean(plain):.3f} without privacy"
    what = f"sentiment of {name}, accuracy at epsilon {EPSILON:g}, {splits} splits"
    return Bar(what, f"at least {LEAST}", seen, float(np.mean(private)) >= LEAST)


def _accuracy(columns: Columns, seed: int) -> float:
    question = {"text": "review", "rating": "label", "positive_from": 1, "negative_to": 0}
    case = Case("reviews", CONTRACT, "sentiment", question, split(columns, BRANCHES), lambda a: iter(()))
    (answer,) = answers(case, EPSILON, 1, start=seed)
    test = np.asarray(columns[HELD_OUT])
    texts = [t for t, held in zip(columns["review"].to_pylist(), test.tolist(), strict=True) if held]
    model = TextModel.of(answer["weights"], sentiment.Question.model_fields["buckets"].default)
    happy = model.log_odds(hashed(texts, model.weights.size)) > 0
    return float((happy == (np.asarray(columns["label"])[test] == 1)).mean())


def _without_privacy(columns: Columns) -> float:
    """TF-IDF of single signs and pairs, and a linear support vector machine, on the same split."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    test, texts = np.asarray(columns[HELD_OUT]), np.array(columns["review"].to_pylist(), dtype=object)
    labels = np.asarray(columns["label"])
    words = TfidfVectorizer(analyzer="char", ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    fitted = LinearSVC(C=0.3).fit(words.fit_transform(texts[~test]), labels[~test])
    return float(fitted.score(words.transform(texts[test]), labels[test]))


CONTRACT = Contract.model_validate(
    {
        "version": 1,
        "name": "reviews",
        "purpose": "Hear what customers say.",
        "tables": [
            {
                "name": "customers",
                "columns": [
                    {"name": "id", "type": "string", "role": "customer_id"},
                    {"name": "review", "type": "string", "role": "text"},
                    {"name": "label", "type": "integer", "bounds": [0, 1]},
                ],
            }
        ],
    }
)
