"""The report page: self-contained, escaped, honest about digits, complete for a failed job."""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common.analyses import score_histogram
from sfumato.common.contract import Contract
from sfumato.common.errors import REFUSAL_TEXT, RefusalCode
from sfumato.common.notes import Checkpoint, sign_checkpoint
from sfumato.server.report import render_report, write_report
from sfumato.server.report_curves import score_curves
from sfumato.server.report_words import (
    ADVICE,
    Estimate,
    duration,
    number,
    outcome_of,
    power_of_ten,
    rounded_down,
    rounded_up,
    size_text,
    surest_guess,
)

BINS, EPSILON, BRANCHES = 32, 2.0, ("harbour", "market-square", "north-station", "Zürich 中文")
MADE = datetime(2026, 3, 14, 9, 26, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = "<script>alert(1)</script>\"'&{{ 7*7 }}$\\frac{1}{0}$\x00\ud800</title></svg><img src=x onerror=y>"


@pytest.fixture(scope="module")
def contract() -> Contract:
    return Contract.model_validate(
        {
            "version": 1,
            "name": "demo-bank",
            "purpose": "Foresee which customers will leave, to keep them by better service.",
            "tables": [
                {
                    "name": "customers",
                    "columns": [
                        {"name": "customer_id", "type": "string", "role": "customer_id"},
                        {"name": "full_name", "type": "string", "role": "pii", "protection": "encrypt"},
                        {"name": "iban", "type": "string", "role": "pii", "protection": "encrypt"},
                        {"name": "age", "type": "integer", "role": "feature", "bounds": [18, 100]},
                        {"name": "churned", "type": "boolean", "role": "label"},
                    ],
                }
            ],
        }
    )


def noisy_histogram(customers: int, scales: list[float], seed: int = 5) -> np.ndarray[Any, Any]:
    """Scores of a fair model on a made-up bank, with discrete Laplace noise of each branch."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(customers) < 0.17).astype(np.int64)
    scores = rng.normal(-2.3 + 1.5 * labels, 1.15)
    total = score_histogram.contribution(scores, labels, BINS)
    for scale in scales:
        p = 1 - np.exp(-1 / scale)
        total = total + rng.geometric(p, 2 * BINS) - rng.geometric(p, 2 * BINS)
    return total.astype(np.int64)


def branch(name: str, i: int) -> dict[str, Any]:
    head = hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()
    note = sign_checkpoint(Checkpoint("sfumato/branch/x", 17 + i, head), KEY)
    return {
        "name": name,
        "epsilon": 1.9993 - 0.01 * i,
        "noise_multiplier": 1.234 + 0.1 * i,
        "epsilon_spent": 1.9993 + 1.7 * i,
        "epsilon_budget": 8.0,
        "epsilon_remaining": 6.0007 - 1.7 * i,
        "rounds_answered": 10 - i // 3,
        "rounds_missed": i // 3,
        "bytes_sent": 148_320 - 9_000 * (i // 3),
        "ledger_head": {"type": "ledger-head", "version": 1, "note": note},
    }


def refusal(name: str, code: RefusalCode, requested: float | None, remaining: float | None) -> dict[str, Any]:
    return {
        "branch": name,
        "code": code.value,
        "text": REFUSAL_TEXT[code],
        "requested": requested,
        "remaining": remaining,
    }


def finished(histogram: np.ndarray[Any, Any], scales: list[float]) -> dict[str, Any]:
    """What `JobRun._summary` makes of such a histogram."""
    metrics = score_histogram.read(histogram, score_histogram.laplace_variance(scales))
    return {
        "state": "finished",
        "job": "demo-churn",
        "job_id": "5f0c7a3e9d1b48266f0c7a3e9d1b4826",
        "kind": "churn-net",
        "auc": metrics.auc.value,
        "auc_low": metrics.auc.low,
        "auc_high": metrics.auc.high,
        "metrics": {
            name: {"value": m.value, "low": m.low, "high": m.high}
            for name, m in vars(metrics).items()
            if isinstance(m, score_histogram.Interval)
        },
        "epsilon": 1.9993,
        "delta": 1e-6,
        "branches": len(BRANCHES),
        "customers": round(metrics.customers.value / 0.2),
        "rounds": 10,
        "seconds": 41.3,
        "per_branch": [branch(name, i) for i, name in enumerate(BRANCHES)],
        "refused": [refusal("old-town", RefusalCode.OVER_BUDGET, 2.0, 0.4183)],
        "noise_variance": score_histogram.laplace_variance(scales),
    }


@pytest.fixture(scope="module")
def scales() -> list[float]:
    return [1 / (0.1 * EPSILON)] * len(BRANCHES)


@pytest.fixture(scope="module")
def histogram(scales: list[float]) -> np.ndarray[Any, Any]:
    return noisy_histogram(3200, scales)


@pytest.fixture(scope="module")
def result(histogram: np.ndarray[Any, Any], scales: list[float]) -> dict[str, Any]:
    return json.loads(json.dumps(finished(histogram, scales)))


@pytest.fixture(scope="module")
def page(result: dict[str, Any], histogram: np.ndarray[Any, Any], contract: Contract) -> str:
    return render_report(result, histogram, contract=contract, ledger_verified=True, generated_at=MADE)


FAILED: dict[str, Any] = {
    "state": "failed",
    "job": "demo-churn",
    "job_id": "5f0c7a3e9d1b48266f0c7a3e9d1b4826",
    "reason": "only 1 of at least 2 branches opened the job",
    "refused": [
        refusal("old-town", RefusalCode.OVER_BUDGET, 2.0, 0.4183),
        refusal("node 8123", RefusalCode.NOT_APPROVED, None, None),
    ],
}


class Page(HTMLParser):
    """Tags with attributes and text, and a check that every element is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, (tag, self.stack)
        self.stack.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


# --- self-contained ------------------------------------------------------------------------------------------


def test_page_asks_for_nothing_outside_itself(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)|javascript:", page, re.IGNORECASE)
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "image"} & {
        t for t, _ in parsed.tags
    }
    for _, attrs in parsed.tags:
        assert not any(name.startswith("on") or name in ("src", "style") for name in attrs)
        assert all((attrs.get(name) or "#").startswith("#") for name in ("href", "xlink:href"))


def test_policy_allows_only_the_pages_own_style_sheet(page: str) -> None:
    policy = next(
        a["content"] for a in Page(page).named("meta") if a.get("http-equiv") == "Content-Security-Policy"
    )
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(style) == 1
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def test_size_and_determinism(
    page: str, result: dict[str, Any], histogram: np.ndarray[Any, Any], contract: Contract
) -> None:
    again = render_report(result, histogram, contract=contract, ledger_verified=True, generated_at=MADE)
    assert again == page
    assert len(page.encode()) < 400_000


def test_write_report_replaces_whole_and_keeps_the_old_page_on_failure(
    tmp_path: Path, result: dict[str, Any], histogram: np.ndarray[Any, Any]
) -> None:
    path = tmp_path / "report.html"
    write_report(path, FAILED, None)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="bins"):
        write_report(path, result, histogram[:7])
    assert path.read_bytes() == before
    write_report(path, result, histogram, generated_at=MADE)
    assert b"Which customers will leave?" in path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


# --- for a screen reader -------------------------------------------------------------------------------------


def test_every_plot_is_named_described_and_has_its_numbers(page: str) -> None:
    parsed = Page(page)
    plots = parsed.named("svg")
    assert len(plots) == 6
    ids = [a["id"] for _, a in parsed.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    for plot in plots:
        assert plot["role"] == "img"
        for name in (plot["aria-labelledby"] or "").split():
            text = re.search(rf'id="{name}">([^<]+)<', page)
            assert text and len(text[1]) > 10
    for figure in re.findall(r"<figure.*?</figure>", page, re.DOTALL):
        assert figure.count("<svg") == 1
        assert len(re.findall(r"<tr>", figure)) > 3 and 'scope="row"' in figure
    assert parsed.named("html") == [{"lang": "en"}]
    assert len(parsed.named("h1")) == 1


def test_inner_references_of_plots_resolve(page: str) -> None:
    ids = {a["id"] for _, a in Page(page).tags if a.get("id")}
    wanted = set(re.findall(r'(?:href="#|url\(#)([\w.\-]+)', page))
    assert wanted and wanted <= ids


# --- what it says --------------------------------------------------------------------------------------------


def test_banker_gets_one_sentence_with_its_interval(page: str, result: dict[str, Any]) -> None:
    text = Page(page).text
    m = result["metrics"]
    hits, chance = (100 * m["lift_at_10"]["value"] * m["base_rate"]["value"], 100 * m["base_rate"]["value"])
    said = re.search(
        r"about (\d+) would really leave \((\d+) to (\d+)\), against (\d+) \((\d+) to (\d+)\)", text
    )
    assert said
    n, low, high, at_random, random_low, random_high = map(int, said.groups())
    assert abs(n - hits) <= 5 and at_random == round(chance)
    assert low <= n <= high and random_low <= at_random <= random_high
    assert at_random < low


def test_compliance_finds_each_branch(page: str, contract: Contract) -> None:
    text = Page(page).text
    for i, name in enumerate(BRANCHES):
        b = branch(name, i)
        assert name in text and Checkpoint.parse(b["ledger_head"]["note"]).root in page
        assert (
            f"{rounded_up(b['epsilon_spent'])} of 8.00" in text
            and rounded_down(b["epsilon_remaining"]) in text
        )
    for what in ("names", "IBANs", "transactions", "exact counts", "customers.full_name", "customers.iban"):
        assert what in text
    assert "(2.00, 10⁻⁶)-differentially private for each customer" in text
    assert "one in 1 000 000" in text.replace("\u202f", " ")
    assert contract.hash in text and "customers.age" not in text


def test_branch_operator_finds_rounds_and_refusals(page: str) -> None:
    text = Page(page).text
    assert "took part in every round" in text and "took part, with gaps" in text
    assert REFUSAL_TEXT[RefusalCode.OVER_BUDGET] in text and ADVICE[RefusalCode.OVER_BUDGET] in text
    assert "2.00, 0.41" in text


def test_every_refusal_has_advice() -> None:
    assert set(ADVICE) == set(RefusalCode)


@pytest.mark.parametrize(
    ("verified", "says"),
    [(True, "recomputed entry by entry"), (False, "Warning: a ledger did not verify"), (None, "not checked")],
)
def test_ledger_state_is_said_in_words(result: dict[str, Any], verified: bool | None, says: str) -> None:
    text = Page(render_report(result, None, ledger_verified=verified)).text
    assert says in text
    assert ("Warning" in text) is (verified is False)


def test_useless_model_is_called_so(scales: list[float]) -> None:
    rng = np.random.default_rng(3)
    labels = (rng.random(1500) < 0.2).astype(np.int64)
    total = score_histogram.contribution(rng.normal(-1, 1, 1500), labels, BINS)
    text = Page(
        render_report(finished(total, scales), total, noise_variance=score_histogram.laplace_variance(scales))
    ).text
    assert "no more than chance does" in text and "would really leave" not in text


def test_words_follow_the_label(contract: Contract, result: dict[str, Any]) -> None:
    plain = contract.model_dump(mode="json")
    plain["tables"][0]["columns"][-1]["name"] = "default.payment.next.month"
    assert (
        "would really default"
        in Page(render_report(result, None, contract=Contract.model_validate(plain))).text
    )
    plain["tables"][0]["columns"][-1]["name"] = "bought"
    assert (
        outcome_of(Contract.model_validate(plain)).question == "Which customers will turn out “bought = 1”?"
    )


# --- failed jobs, and keys that are missing ------------------------------------------------------------------


def test_failed_job_says_what_happened_and_what_to_do() -> None:
    parsed = Page(render_report(FAILED, None, generated_at=MADE))
    assert "ended without a result" in parsed.text and FAILED["reason"] in parsed.text
    assert ADVICE[RefusalCode.OVER_BUDGET] in parsed.text and ADVICE[RefusalCode.NOT_APPROVED] in parsed.text
    assert "This result records no release" in parsed.text and "AUC" not in parsed.text
    assert not parsed.named("svg")


def test_failed_in_mid_run_still_shows_what_was_spent() -> None:
    text = Page(render_report({**FAILED, "refused": [], "per_branch": [branch("harbour", 0)]}, None)).text
    assert "2.00 of 8.00" in text and "sfumato branch status" in text


def test_running_job_is_no_result() -> None:
    assert "has not ended yet" in Page(render_report({"state": "running", "job": "demo-churn"}, None)).text


def test_any_key_may_be_missing(result: dict[str, Any], histogram: np.ndarray[Any, Any]) -> None:
    for key in result:
        few = {"metrics": {}, "per_branch": []}
        Page(render_report({k: v for k, v in {**result, **few}.items() if k != key}, None))
    Page(
        render_report(
            {k: v for k, v in result.items() if k not in ("auc", "metrics", "per_branch")}, histogram
        )
    )
    for key in result["per_branch"][0]:
        few = {"metrics": {}, "per_branch": [{k: v for k, v in branch("a", 1).items() if k != key}]}
        Page(render_report({**result, **few}, None))
    for key in result["metrics"]:
        metrics = {k: v for k, v in result["metrics"].items() if k != key}
        Page(render_report({**result, "metrics": metrics, "per_branch": []}, None))
    assert "finished" in Page(render_report({"state": "finished"}, None)).text


def test_none_and_not_a_number_are_not_shown(result: dict[str, Any]) -> None:
    odd = {**branch("a", 0), "epsilon_remaining": None, "epsilon_budget": 0.0, "ledger_head": None}
    text = Page(render_report({**result, "auc": float("nan"), "per_branch": [odd]}, None)).text
    assert not re.search(r"\b(nan|None|inf)\b", text, re.IGNORECASE)


def test_without_the_noise_variance_the_curves_are_left_out_and_it_says_so(
    result: dict[str, Any], histogram: np.ndarray[Any, Any]
) -> None:
    bare = {k: v for k, v in result.items() if k != "noise_variance"}
    parsed = Page(render_report(bare, histogram))
    assert "No curves" in parsed.text and len(parsed.named("svg")) == 2


# --- hostile input -------------------------------------------------------------------------------------------


def test_hostile_strings_stay_text(result: dict[str, Any], histogram: np.ndarray[Any, Any]) -> None:
    bad = {**branch("x", 1), "name": HOSTILE, "ledger_head": {"note": HOSTILE}}
    hostile = {
        **result,
        "job": HOSTILE,
        "purpose": HOSTILE,
        "job_id": HOSTILE,
        "per_branch": [bad, branch("harbour", 0)],
        "refused": [
            {"branch": HOSTILE, "code": HOSTILE, "text": HOSTILE, "requested": None, "remaining": None}
        ],
    }
    for page in (
        render_report(hostile, histogram),
        render_report({**hostile, "state": "failed", "reason": HOSTILE}, None),
        render_report({**hostile, "state": HOSTILE}, None),
    ):
        parsed = Page(page.encode("utf-8", "replace").decode())
        assert not parsed.named("script") and not parsed.named("img")
        assert "alert(1)" in parsed.text and "49" not in re.sub(r"[^{}a-z0-9* ]", "", HOSTILE)
        assert "{{ 7*7 }}" in parsed.text


def test_hostile_page_can_be_written(tmp_path: Path, result: dict[str, Any]) -> None:
    write_report(tmp_path / "r.html", {**result, "job": HOSTILE}, None)
    (tmp_path / "r.html").read_text("utf-8")


def test_many_branches_keep_the_page_small(result: dict[str, Any], histogram: np.ndarray[Any, Any]) -> None:
    many = [branch(f"branch {i:03d} with a name that is rather long for a bar chart", 0) for i in range(60)]
    page = render_report({**result, "per_branch": many}, histogram)
    assert len(page.encode()) < 400_000
    assert "branch 059" in Page(page).text and "24 branches closest" in page


# --- numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (Estimate(0.78312, 0.76123, 0.80487), "0.783 (0.761 to 0.805)"),
        (Estimate(0.8512, 0.8431, 0.8597), "0.851 (0.843 to 0.860)"),
        (Estimate(0.78312, 0.6123, 0.91), "0.78 (0.61 to 0.91)"),
        (Estimate(16234.0, 15890.0, 16577.0), "16 230 (15 890 to 16 580)"),
        (Estimate(12.4, -3.0, 31.0, "%"), "12 % (−3 to 31 %)"),
        (Estimate(0.5, 0.5, 0.5), "0.500 (0.500 to 0.500)"),
        (Estimate(0.3, 0.2, 0.4), "0.30 (0.20 to 0.40)"),
        (Estimate(0.53, 0.1, 0.93), "0.5 (0.1 to 1.0)"),
    ],
)
def test_no_digit_that_the_interval_does_not_support(estimate: Estimate, shown: str) -> None:
    assert estimate.full.replace("\u202f", " ") == shown


def test_intervals_are_never_shown_narrower_than_they_are() -> None:
    rng = np.random.default_rng(11)
    for _ in range(2000):
        value, half = rng.uniform(-50, 50), 10 ** rng.uniform(-3, 2)
        e = Estimate(value, value - half * rng.uniform(0.2, 1), value + half * rng.uniform(0.2, 1))
        low, high = (float(t.replace("\u202f", "").replace("−", "-")) for t in e.interval.split(" to "))
        assert low <= e.low + 1e-6 and e.high - 1e-6 <= high


def test_spending_is_rounded_up_and_the_rest_down() -> None:
    assert (rounded_up(1.9911), rounded_down(1.9989), rounded_up(2.0), rounded_down(0.3)) == (
        "2.00",
        "1.99",
        "2.00",
        "0.30",
    )
    assert rounded_up(None) == rounded_down(float("inf")) == "not known"


def test_small_words() -> None:
    assert number(1234567.0) == "1\u202f234\u202f567" and number(-0.0004, 2) == "0.00" and number(-2) == "−2"
    assert (power_of_ten(1e-6), power_of_ten(2.5e-5)) == ("10⁻⁶", "2.5 × 10⁻⁵")
    assert (size_text(12), size_text(148_320), size_text(3_400_000)) == (
        "12\u202fB",
        "148\u202fkB",
        "3.4\u202fMB",
    )
    assert (duration(41.3), duration(600), duration(9000)) == ("41 s", "10 min", "2.5 h")
    assert surest_guess(2.0) == pytest.approx(88.08, abs=0.01)


# --- bands ---------------------------------------------------------------------------------------------------


def test_curves_agree_with_the_reading(histogram: np.ndarray[Any, Any], scales: list[float]) -> None:
    noise = score_histogram.laplace_variance(scales)
    ours, theirs = score_curves(histogram, noise), score_histogram.curves(histogram, noise)
    np.testing.assert_allclose(ours.roc.x, theirs.false_positive_rate, atol=1e-12)
    np.testing.assert_allclose(ours.roc.y, theirs.true_positive_rate, atol=1e-12)
    np.testing.assert_allclose(ours.calibration.y, theirs.observed, atol=1e-12)
    metrics = score_histogram.read(histogram, score_histogram.laplace_variance(scales))
    at_tenth = np.interp(0.1, ours.gains.x, ours.gains.y)
    assert at_tenth == pytest.approx(0.1 * metrics.lift_at_10.value, abs=0.04)  # mode against median
    low, high = (np.interp(0.1, ours.gains.x, v) for v in (ours.gains.low, ours.gains.high))
    assert low == pytest.approx(0.1 * metrics.lift_at_10.low, abs=0.05)
    assert high == pytest.approx(0.1 * metrics.lift_at_10.high, abs=0.05)
    for band in (ours.roc, ours.gains, ours.calibration):
        assert (band.low <= band.y).all() and (band.y <= band.high).all()
        assert (band.low >= 0).all() and (band.high <= 1).all()


@pytest.mark.statistical
def test_bands_hold_the_truth(scales: list[float]) -> None:
    """24 banks, the true gain at a tenth known: binomial(24, .93) falls below 18 with probability 1e-3.

    .93 and not .95: sixty bootstrap draws know their 2.5% tails only so well.
    """
    rng = np.random.default_rng(0)
    labels = (rng.random(400_000) < 0.17).astype(np.int64)
    scores = rng.normal(-2.3 + 1.5 * labels, 1.15)
    top = scores >= np.quantile(scores, 0.9)
    truth = labels[top].sum() / labels.sum()
    inside = 0
    for seed in range(24):
        gains = score_curves(
            noisy_histogram(3200, scales, seed=100 + seed), score_histogram.laplace_variance(scales), draws=60
        ).gains
        inside += np.interp(0.1, gains.x, gains.low) <= truth <= np.interp(0.1, gains.x, gains.high)
    assert inside >= 18
