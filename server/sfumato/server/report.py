"""A job's report: one self-contained HTML page for the risk team, the compliance officer and the branches.

The page loads nothing: its policy (`default-src 'none'`, one style sheet allowed by its hash) forbids even what
a mistake in it might ask for. The same input gives the same bytes.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses import catalogue
from sfumato.common.contract import Contract, Role
from sfumato.common.notes import Checkpoint
from sfumato.server import report_figures as figures
from sfumato.server.pages import render, source
from sfumato.server.report_answers import answer_of
from sfumato.server.report_curves import ScoreCurves, score_curves
from sfumato.server.report_portrait import portrait_of
from sfumato.server.report_words import (
    UNKNOWN,
    Estimate,
    Outcome,
    advice,
    duration,
    number,
    odds,
    outcome_of,
    power_of_ten,
    rounded_down,
    rounded_up,
    size_text,
    surest_guess,
)
from sfumato.server.run_files import write_whole

Counts = npt.NDArray[np.int64] | npt.NDArray[np.float64]
# name, unit, label, what it says: in the order of a reader's interest.
METRICS = (
    ("auc", "", "AUC", "how often the right one of a pair gets the higher score"),
    (
        "precision",
        "%",
        "Precision",
        "of those flagged, the share that was right; as many are flagged as there are to find",
    ),
    ("recall", "%", "Recall", "of those to be found, the share that was flagged, at the same cut-off"),
    ("f1", "", "F1", "precision and recall in one number"),
    ("base_rate", "%", "Base rate", "the share of positives among all customers"),
    ("calibration_error", "%", "Calibration error", "mean distance of foretold from observed shares"),
    ("brier", "", "Brier score", "mean squared error of the probabilities; 0 is perfect"),
    ("lift_at_10", "×", "Lift in the top tenth", "positives there, compared with a tenth drawn by lot"),
)
# What the secure sums were, by the job's kind.
SUMS = {
    "churn-net": "one for each step of the training, one for the number of customers and one for the score counts",
    **dict.fromkeys(
        ("boosted-trees", "scorecard"),
        "one for the bins of the columns, one for each step of the training and one for the score counts",
    ),
    "segments": "one for each step on the way to the segments, and one for who is in them",
    "profile": "of how many customers each group has",
    "drift": "of how many customers each bin has",
}
SUMS_OF_AN_ANALYSIS = "of bounded numbers, to which each customer adds no more than the job allows"
ONE_TABLE = ("profile", "drift")
NEVER_SENT = (
    "names",
    "customer numbers and national ids",
    "phone numbers and e-mail addresses",
    "IBANs and account numbers",
    "postal addresses",
    "transactions",
    "exact counts",
    "any single customer’s score",
    "any single customer’s gradient",
)


def render_report(
    result: dict[str, Any],
    histogram: Counts | None,
    *,
    portrait: Mapping[str, Any] | None = None,
    contract: Contract | None = None,
    ledger_verified: bool | None = None,
    generated_at: datetime | None = None,
    noise_variance: float | None = None,
) -> str:
    """The page as text. `result` as `results.read_result` gives it, of a finished, failed or running job.

    `histogram`: the noisy score counts [2 * bins]; `noise_variance`: of the whole noise in each of them
    (default: the result's own). Without either, the curves are left out and the page says so.
    `portrait`: the job's own answer, or a profile's to show beside a model. Raises ValueError on a histogram or an
    answer that is none.
    """
    words = outcome_of(contract)
    noise = noise_variance if noise_variance is not None else _number(result.get("noise_variance"))
    finished = result.get("state", "finished") == "finished"
    curves = None
    if finished and histogram is not None and noise is not None:
        curves = score_curves(histogram, noise)
    kind = str(result.get("kind", "churn-net"))
    trained = kind not in catalogue.CATALOGUE
    branches = [_branch(b, result) for b in _dicts(result.get("per_branch"))]
    metrics = _metrics(result)
    return render(
        "report.html.j2",
        source("report.css"),
        job=str(result.get("job") or "unnamed job"),
        job_id=result.get("job_id"),
        purpose=result.get("purpose") or (contract.purpose if contract else None),
        contract=contract,
        state=str(result.get("state", "finished")),
        reason=result.get("reason"),
        words=words,
        trained=trained,
        sums=SUMS.get(kind, SUMS_OF_AN_ANALYSIS),
        sums_alone=kind not in ("churn-net", *ONE_TABLE),
        secure=result.get("mode") == "secure-sum",
        colluders=result.get("colluders") or 0,
        portrait=portrait_of(portrait) if finished and (trained or kind == "profile") else None,
        answer=answer_of(kind, portrait) if finished else None,
        headline=_headline(metrics, curves, words) if finished else None,
        auc=metrics.get("auc"),
        metrics=[(label, says, metrics[key]) for key, _, label, says in METRICS if key in metrics],
        level=_level(result),
        customers=_customers(result, metrics),
        rounds=result.get("rounds"),
        seconds=duration(seconds) if (seconds := _number(result.get("seconds"))) is not None else None,
        branches=branches,
        refused=[_refusal(r) for r in _dicts(result.get("refused"))],
        privacy=_privacy(result, contract),
        ledger_verified=ledger_verified,
        audit=result.get("audit"),
        never_sent=NEVER_SENT,
        personal=_personal_columns(contract),
        plots=_plots(curves, metrics, branches, words),
        curves_missing=finished and curves is None,
        total_bytes=size_text(sum(b["raw_bytes"] or 0 for b in branches)),
        generated=f"{generated_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if generated_at else None,
    )


def write_report(
    path: Path,
    result: dict[str, Any],
    histogram: Counts | None,
    *,
    portrait: Mapping[str, Any] | None = None,
    contract: Contract | None = None,
    ledger_verified: bool | None = None,
    generated_at: datetime | None = None,
    noise_variance: float | None = None,
) -> None:
    """Render, then write the page whole or not at all. Arguments and errors as `render_report`, and OSError."""
    page = render_report(
        result,
        histogram,
        portrait=portrait,
        contract=contract,
        ledger_verified=ledger_verified,
        generated_at=generated_at,
        noise_variance=noise_variance,
    )
    write_whole(path, page.encode("utf-8", "replace"))


# --- what the page says --------------------------------------------------------------------------------------


def _metrics(result: Mapping[str, Any]) -> dict[str, Estimate]:
    given = result.get("metrics")
    entries: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    found = {key: Estimate.of(entries.get(key), unit=unit) for key, unit, _, _ in METRICS}
    found["customers"] = Estimate.of(entries.get("customers"))
    if found["auc"] is None:
        parts = {"value": result.get("auc"), "low": result.get("auc_low"), "high": result.get("auc_high")}
        found["auc"] = Estimate.of(parts)
    return {key: e for key, e in found.items() if e is not None}


def _headline(
    metrics: Mapping[str, Estimate], curves: ScoreCurves | None, words: Outcome
) -> dict[str, str] | None:
    """Of 100 customers in the top tenth: how many, and how many at random. None if the metrics lack it."""
    lift, base = metrics.get("lift_at_10"), metrics.get("base_rate")
    if lift is None or base is None or lift.value <= 0 or base.value <= 0:
        return None
    hits = Estimate(*curves.top_tenth).scaled(100) if curves else _hits(lift, base)
    auc = metrics.get("auc")
    useless = lift.low <= 1 or (auc is not None and auc.low <= 0.5)
    return {
        "hits": _people(hits),
        "interval": _people_interval(hits),
        "random": _people(base),
        "random_interval": _people_interval(base),
        "event": words.event,
        "useless": "yes" if useless else "",
    }


def _hits(lift: Estimate, base: Estimate) -> Estimate:
    """Their product; the relative errors add in quadrature, which is wide, as they partly cancel."""
    value = min(100.0, lift.value * base.value)
    down = math.hypot(1 - lift.low / lift.value, 1 - base.low / base.value)
    up = math.hypot(lift.high / lift.value - 1, base.high / base.value - 1)
    return Estimate(value, max(0.0, value * (1 - down)), min(100.0, value * (1 + up)))


def _people(e: Estimate) -> str:
    """A number of customers out of 100: never a fraction of one, unless there are few."""
    return number(e.value, 0 if e.value >= 2 else min(1, max(0, e.decimals)))


def _people_interval(e: Estimate) -> str:
    places = 0 if e.value >= 2 else min(1, max(0, e.decimals))
    return f"{rounded_down(e.low, places)} to {rounded_up(e.high, places)}"


def _customers(result: Mapping[str, Any], metrics: Mapping[str, Estimate]) -> Estimate | None:
    """All customers: the held-out estimate, scaled as the result scales it."""
    held_out, total = metrics.get("customers"), _number(result.get("customers"))
    if held_out is None or total is None or held_out.value <= 0:
        return None
    return held_out.scaled(total / held_out.value)


def _level(result: Mapping[str, Any]) -> str:
    metrics = result.get("metrics")
    level = _number(metrics.get("level")) if isinstance(metrics, Mapping) else None
    return f"{number(100 * (level or 0.95))}\u202f%"


def _privacy(result: Mapping[str, Any], contract: Contract | None) -> dict[str, Any]:
    epsilon, delta = _number(result.get("epsilon")), _number(result.get("delta"))
    return {
        "epsilon": rounded_up(epsilon) if epsilon is not None else None,
        "delta": power_of_ten(delta) if delta is not None else None,
        "odds": odds(delta) if delta else None,
        "guess": number(math.ceil(surest_guess(epsilon) - 1e-9)) if epsilon is not None else None,
        "factor": rounded_up(math.exp(epsilon), 1) if epsilon is not None and epsilon < 20 else None,
        "most_branches": contract.max_branches_per_customer if contract else None,
    }


def _branch(given: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    spent, left = _number(given.get("epsilon_spent")), _number(given.get("epsilon_remaining"))
    budget = _number(given.get("epsilon_budget")) or None
    if budget is None and spent is not None and left is not None:
        budget = (spent + left) or None
    if left is None and budget is not None and spent is not None:
        left = max(0.0, budget - spent)
    answered, missed = given.get("rounds_answered"), given.get("rounds_missed")
    head = given.get("ledger_head")
    kept = _checkpoint(head.get("note")) if isinstance(head, Mapping) else None
    return {
        "name": str(given.get("name") or "unnamed branch"),
        "budget": budget,
        "spent": spent,
        "left": left,
        "epsilon": rounded_up(_number(given.get("epsilon"))),
        "noise": number(_number(given.get("noise_multiplier")), 2),
        "spent_text": rounded_up(spent),
        "left_text": rounded_down(left),
        "budget_text": number(budget, 2),
        "answered": answered if answered is not None else UNKNOWN,
        "missed": missed if missed is not None else UNKNOWN,
        "standing": _standing(answered, missed, result.get("rounds")),
        "raw_bytes": given.get("bytes_sent"),
        "bytes": size_text(given.get("bytes_sent")),
        "ledger_size": number(kept.size if kept else None),
        "ledger_head": kept.root if kept else None,
    }


def _checkpoint(note: object) -> Checkpoint | None:
    try:
        return Checkpoint.parse(str(note))
    except ValueError:
        return None


def _standing(answered: Any, missed: Any, rounds: Any) -> str:
    if not isinstance(answered, int):
        return "opened the job"
    if answered == 0:
        return "opened the job, answered no round"
    if missed:
        return "took part, with gaps"
    return "took part in every round" if answered == rounds else "took part"


def _refusal(given: Mapping[str, Any]) -> dict[str, Any]:
    requested, remaining = _number(given.get("requested")), _number(given.get("remaining"))
    return {
        "branch": str(given.get("branch") or "unnamed branch"),
        "code": str(given.get("code") or "unknown"),
        "text": str(given.get("text") or "no reason was given"),
        "requested": rounded_up(requested) if requested is not None else None,
        "remaining": rounded_down(remaining) if remaining is not None else None,
        "advice": advice(given.get("code")),
    }


def _personal_columns(contract: Contract | None) -> list[str]:
    """The contract's own personal columns, as 'table.column'."""
    if contract is None:
        return []
    return [
        f"{t.name}.{c.name}"
        for t in contract.tables
        for c in t.columns
        if c.role in (Role.PII, Role.CUSTOMER_ID)
    ]


def _plots(
    curves: ScoreCurves | None,
    metrics: Mapping[str, Estimate],
    branches: Sequence[dict[str, Any]],
    words: Outcome,
) -> dict[str, figures.Plot | None]:
    shown = [(label, metrics[key]) for key, _, label, _ in METRICS if key in metrics]
    plots: dict[str, figures.Plot | None] = {
        **dict.fromkeys(("gains", "roc", "calibration", "distribution")),
        "intervals": figures.metric_intervals(shown) if shown else None,
        "budgets": figures.budgets(branches),
    }
    if curves is not None:
        plots["gains"] = figures.gains(curves, words)
        plots["roc"] = figures.roc(curves, metrics.get("auc"), words)
        plots["calibration"] = figures.calibration(curves, words)
        plots["distribution"] = figures.distribution(curves, words)
    return plots


# --- reading the result and the package ----------------------------------------------------------------------


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    return [v for v in value if isinstance(v, Mapping)] if isinstance(value, list | tuple) else []
