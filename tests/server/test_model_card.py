"""The card: its figures are the run's, its warnings follow from them, its page loads nothing and escapes all."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato.common.analyses import catalogue
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.job import ANY_JOB, sign_job
from sfumato.common.learners import bins, random_trees
from sfumato.common.learners.models import SavedModel
from sfumato.common.learners.scorecard import Scorecard
from sfumato.server.home import CoordinatorHome
from sfumato.server.job_run import JobOutcome
from sfumato.server.ledger import record_end, record_start
from sfumato.server.model_card import apart, card
from sfumato.server.model_comparison import comparison
from sfumato.server.model_explained import column_moves
from sfumato.server.model_page import card_page
from sfumato.server.onnx_export import read_forest
from sfumato.server.registry import Registry
from sfumato.server.results import store_outcome

Finish = Callable[..., Path]
RUNS = {"churn-net": "10", "boosted-trees": "11", "scorecard": "12", "segments": "13"}


class Page(HTMLParser):
    """The text of a page, and its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def made(home: CoordinatorHome, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(card(Registry.of(home).entry(run)), allow_nan=False))
    return found


@pytest.fixture(scope="module")
def pages(full_home: CoordinatorHome) -> dict[str, str]:
    return {kind: card_page(made(full_home, run)) for kind, run in RUNS.items()}


@pytest.mark.parametrize("kind", RUNS)
def test_a_card_says_what_the_run_says(kind: str, full_home: CoordinatorHome) -> None:
    entry = Registry.of(full_home).entry(RUNS[kind])
    found = made(full_home, RUNS[kind])
    assert entry.model is not None and entry.end is not None
    assert (found["kind"], found["state"], found["sha256"]) == (kind, "verified", entry.sha256)
    assert found["contract"]["hash"] == entry.model.header.contract
    assert found["job"]["id"] == entry.end.job_id and found["job"]["mode"] == "secure-sum"
    assert found["privacy"]["epsilon"] == 1.99 and "at most 7.4 times" in found["privacy"]["meaning"]
    assert "any one branch that works with it" in found["privacy"]["meaning"]
    assert [b["name"] for b in found["branches"]] == ["harbour", "market-square", "north"]
    assert found["ledger"]["entry"] == entry.end.seq and found["audit"] == "consistent"
    assert [c["branch"] for c in found["ledger"]["checkpoint"]["cosigned"]] == [
        "harbour",
        "market-square",
        "north",
    ]
    auc = entry.result.get("metrics", {}).get("auc")
    assert found["evaluation"]["metrics"].get("auc") == auc and (auc is None) == (kind == "segments")


@pytest.mark.parametrize("kind", RUNS)
def test_the_page_stands_alone(kind: str, pages: dict[str, str]) -> None:
    page = pages[kind]
    parsed = Page(page)
    policy = parsed.named("meta")[1]["content"]
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'sha256-")
    assert not {"script", "img", "link", "iframe", "object", "base"} & {tag for tag, _ in parsed.elements}
    for _, attributes in parsed.elements:
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes)
        for name in ("href", "src", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#")
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for a in parsed.named("a")}
    assert {t for t in targets if t} <= {f"#{i}" for i in ids}
    assert not re.search(r"\b(nan|None|inf|undefined)\b", parsed.text)
    assert "Find who will leave, <soon>." in parsed.text and "<soon>" not in page
    for word in (
        "sha256sum model.safetensors",
        "What it must not be used for",
        "keep them by better service",
    ):
        assert word in parsed.text


def test_the_same_card_gives_the_same_page(full_home: CoordinatorHome, pages: dict[str, str]) -> None:
    assert card_page(made(full_home, "11")) == pages["boosted-trees"]


def test_a_scorecards_page_holds_every_point(full_home: CoordinatorHome, pages: dict[str, str]) -> None:
    entry = Registry.of(full_home).entry("12")
    assert entry.model is not None
    table = Scorecard.model_validate(entry.model.header.parameters["card"])
    found = made(full_home, "12")
    inside = found["explanation"]
    assert {c["column"] for c in inside["columns"]} == {a.column for a in table.attributes}
    worths = [c["iv"]["value"] for c in inside["columns"]]
    assert worths == sorted(worths, reverse=True)
    text = Page(pages["scorecard"]).text
    for attribute in table.attributes:
        for line in attribute.bins:
            assert line.bin in text and str(line.points).replace("-", "−") in text
    assert len(Page(pages["scorecard"]).named("svg")) == len(table.attributes) + 1  # and one of a group's AUC


def test_segments_page_holds_every_middle_with_its_interval(
    full_home: CoordinatorHome, pages: dict[str, str]
) -> None:
    found = made(full_home, "13")
    entry = Registry.of(full_home).entry("13")
    assert entry.model is not None and found["explanation"]["count"] == 5
    for segment, row in zip(found["explanation"]["segments"], entry.model.tensors["centres"], strict=True):
        names = found["explanation"]["names"]
        assert [segment["centre"][n]["value"] for n in names] == pytest.approx(row.tolist())
    text = Page(pages["segments"]).text
    assert "Segment 4" in text and "900 (850 to 950) customers" in text.replace("\u202f", " ")


def test_segments_that_know_categories_show_each_ones_share(full_home: CoordinatorHome) -> None:
    found = made(full_home, "13")
    for i, segment in enumerate(found["explanation"]["segments"]):
        share = {"value": 0.1 + 0.2 * i, "low": 0.05 + 0.2 * i, "high": 0.15 + 0.2 * i}
        segment["mix"] = {"card": {"Größe <b>": share, "(none)": {"value": 0.0, "low": 0.0, "high": 0.04}}}
    page = card_page(found)
    text = Page(page).text.replace("\u202f", " ")
    assert "Größe <b>" in text and "Größe <b>" not in page
    assert "50 % (45 to 55 %)" in text and "0.0 % (0.0 to 4.0 %)" in text and "principal components" in text


# --- what carries a forest -----------------------------------------------------------------------------------


def test_a_columns_moves_are_the_spread_of_its_main_effect(
    model_of: Callable[..., SavedModel], bank_schema: bins.Schema
) -> None:
    """Against the slow way: everybody in every combination of bins."""
    forest = read_forest(model_of("boosted-trees"))
    grids = np.meshgrid(*(np.arange(n) for n in bank_schema.cardinalities), indexing="ij")
    codes = np.stack([g.ravel() for g in grids], axis=1)
    shares = [np.maximum(c.counts, 0) / np.maximum(c.counts, 0).sum() for c in bank_schema.columns]
    weight = np.prod([s[codes[:, f]] for f, s in enumerate(shares)], axis=0)
    margin = sum(np.array(t.steps)[t.leaves(codes)] for t in forest.trees)
    found = column_moves(forest, bank_schema)
    for f, column in enumerate(bank_schema.columns):
        share = shares[f]
        mean = np.bincount(codes[:, f], weight * margin, len(share)) / np.maximum(share, 1e-300)
        mean = np.where(share > 0, mean, 0.0)
        spread = np.sqrt(share @ (mean - share @ mean) ** 2)
        assert found[column.name] == pytest.approx(spread, rel=1e-9)
    assert max(found.values()) > 0.1


def test_a_column_that_no_tree_cuts_moves_nothing(bank_schema: bins.Schema) -> None:
    tree = random_trees.Tree(features=(0,), cuts=((1, 2, 3, 4, *[5] * 11),), steps=(0.5, -0.5, *[0.1] * 14))
    found = column_moves(random_trees.Forest(base=0.0, trees=(tree,)), bank_schema)
    names = [c.name for c in bank_schema.columns]
    assert found[names[0]] > 0 and all(found[n] == 0 for n in names[1:])


# --- warnings ------------------------------------------------------------------------------------------------


def limits(home: CoordinatorHome, run: str) -> str:
    return "\n".join(made(home, run)["limits"])


def test_groups_that_fare_worse_are_named(full_home: CoordinatorHome, pages: dict[str, str]) -> None:
    said = limits(full_home, "12")
    assert "Not without care for active = false" in said and "active = true" not in said
    assert "Nothing is known of how good it is for active = (none)" in said
    page = Page(pages["scorecard"]).text
    assert "Is it as good for everybody?" in page


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audit": "flagged"}, "the audit of the running code says flagged"),
        ({"audit": None}, "The running code was not audited"),
        ({"fairness": {}}, "No groups were declared"),
        ({"metrics": {"auc": {"value": 0.55, "low": 0.48, "high": 0.6}}}, "cannot be told from a coin"),
    ],
)
def test_what_its_own_figures_forbid_is_said(
    changes: dict[str, Any], said: str, home_copy: CoordinatorHome, finish: Finish
) -> None:
    finish(home_copy, 60, "churn-net", **changes)
    assert said in limits(home_copy, "60") and said not in limits(home_copy, "10")
    assert said.split("’")[0] in Page(card_page(made(home_copy, "60"))).text


def drift_run(home: CoordinatorHome, contract: Contract, schema: bins.Schema, run: int, ages: float) -> Path:
    """A finished job that asked for drift against this schema; everybody has grown older by so many bins' share."""
    question = {"known": schema.model_dump(mode="json")}
    head = {
        "name": "are-they-the-same",
        "kind": "drift",
        "purpose": "Are they still the same?",
        "contract": contract.name,
    }
    job = ANY_JOB.validate_python({**head, "privacy": {"target_epsilon": 0.5}, "question": question})
    signed = sign_job(job, contract, home.job_key(), valid_for=timedelta(hours=1))
    asked = catalogue.build("drift", job.question, contract)
    counts = [np.maximum(c.counts, 0) for c in schema.columns]
    counts[0] = np.roll(counts[0], 1) * ages + counts[0] * (1 - ages)
    answer = asked.read([NoisySum(np.concatenate(counts), 3.0)])
    directory = home.directory("runs") / str(run)
    ledger = home.open_ledger()
    record_start(ledger, signed, str(run))
    store_outcome(directory, JobOutcome({"job": job.name, "kind": "drift", "epsilon": 0.5}, answer=answer))
    (directory / "job.json").write_text(signed.model_dump_json())
    record_end(ledger, signed.job_id, run=str(run), state="finished", files=list(directory.iterdir()))
    return directory


def test_the_latest_drift_by_its_schema_stands_on_a_card(
    home_copy: CoordinatorHome, bank_contract: Contract, bank_schema: bins.Schema
) -> None:
    assert made(home_copy, "11")["drift"] == []
    drift_run(home_copy, bank_contract, bank_schema, 90, 0.0)
    directory = drift_run(home_copy, bank_contract, bank_schema, 91, 1.0)
    other = bank_schema.model_copy(update={"customers": 2999.0})
    drift_run(home_copy, bank_contract, other, 92, 1.0)
    found = made(home_copy, "11")
    assert [d["run"] for d in found["drift"]] == ["90", "91"] and made(home_copy, "10")["drift"] == []
    assert found["drift"][0]["columns"][0]["verdict"] == "stable"
    assert (found["drift"][1]["columns"][0]["column"], found["drift"][1]["columns"][0]["verdict"]) == (
        "age",
        "shifted",
    )
    assert "customers are others now by age (run 91)" in "\n".join(found["limits"])
    text = Page(card_page(found)).text
    assert "Run 91 of" in text and "shifted" in text
    (directory / "answer.json").write_text("{}")
    assert [d["run"] for d in made(home_copy, "11")["drift"]] == ["90"]


def test_an_altered_models_card_says_so_first(home_copy: CoordinatorHome) -> None:
    (home_copy.path / "runs" / "10" / "histogram.json").write_text("[]")
    found = made(home_copy, "10")
    assert found["state"] == "altered" and found["limits"][0].startswith("Not at all, as it lies here")
    assert "Warning: this model is altered." in Page(card_page(found)).text


def test_a_missing_model_has_no_card(home_copy: CoordinatorHome) -> None:
    (home_copy.path / "runs" / "12" / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"model\.safetensors is missing"):
        made(home_copy, "12")


def test_any_key_of_the_result_may_be_missing(home_copy: CoordinatorHome, finish: Finish) -> None:
    few = dict.fromkeys(
        ("metrics", "fairness", "per_branch", "audit", "mode", "colluders", "rounds", "sums", "seconds")
    )
    for run, kind in enumerate(("churn-net", "segments"), 70):
        finish(home_copy, run, kind, **few)
        text = Page(card_page(made(home_copy, str(run)))).text
        assert not re.search(r"\b(nan|None|inf)\b", text)
    odd = {
        "metrics": {"auc": {"value": float(1), "low": None}, "brier": 3},
        "fairness": {"active": 3},
        "per_branch": [1],
    }
    finish(home_copy, 75, "scorecard", **odd)
    assert made(home_copy, "75")["evaluation"]["metrics"] == {}


# --- comparison ------------------------------------------------------------------------------------------------


def entries(home: CoordinatorHome, *runs: str) -> list[Any]:
    registry = Registry.of(home)
    return [registry.entry(run) for run in runs]


def test_a_comparison_says_where_intervals_overlap(home_copy: CoordinatorHome, finish: Finish) -> None:
    low = {"value": 0.6, "low": 0.57, "high": 0.63}
    finish(home_copy, 80, "boosted-trees", metrics={"auc": low})
    found = comparison(entries(home_copy, "11", "12", "80"))
    assert found["metrics"]["auc"]["of"]["80"] == low
    assert found["metrics"]["auc"]["apart"] == [["11", "80"], ["12", "80"]]
    assert found["metrics"]["f1"]["of"]["80"] is None and found["metrics"]["f1"]["apart"] == []
    assert found["warnings"] == []


def test_intervals_that_touch_are_not_apart() -> None:
    a, b = {"value": 0.5, "low": 0.4, "high": 0.6}, {"value": 0.7, "low": 0.6, "high": 0.8}
    assert not apart(a, b) and not apart(b, a)
    assert apart(a, {**b, "low": 0.61}) and apart({**b, "low": 0.61}, a)


def test_it_warns_where_models_are_not_comparable(
    home_copy: CoordinatorHome, finish: Finish, bank_contract: Contract
) -> None:
    newer = bank_contract.model_copy(update={"purpose": "Another purpose, a year later."})
    finish(home_copy, 81, "churn-net", newer)
    other = bank_contract.model_copy(update={"name": "other-bank"})
    finish(home_copy, 82, "churn-net", other, per_branch=[{"name": "south"}])
    (home_copy.path / "runs" / "12" / "histogram.json").write_text("[]")
    versions = "\n".join(comparison(entries(home_copy, "10", "81"))["warnings"])
    assert "different versions of contract small-bank" in versions and "branches" not in versions
    said = "\n".join(comparison(entries(home_copy, "12", "82", "13"))["warnings"])
    assert "different contracts other-bank, small-bank" in said and "different labels" in said
    assert "Different branches took part" in said and "run 12 is altered" in said


def test_a_comparison_needs_two_runs(full_home: CoordinatorHome) -> None:
    for runs in (["10"], ["10", "10"]):
        with pytest.raises(BadInput, match="two or more different runs"):
            comparison(entries(full_home, *runs))
