"""A model's card as one self-contained HTML page; the same card gives the same bytes."""

from collections.abc import Mapping
from typing import Any

from sfumato.server import model_figures as figures
from sfumato.server.model_card import apart
from sfumato.server.pages import render, source
from sfumato.server.report import METRICS
from sfumato.server.report_figures import Plot
from sfumato.server.report_words import Estimate, number, power_of_ten, rounded_up, size_text

KINDS = {
    "churn-net": "a small neural net",
    "boosted-trees": "boosted random trees",
    "scorecard": "a scorecard of whole points",
    "segments": "segments of customers",
    "anomaly": "an autoencoder that finds who is unlike the others",
    "clv": "lifetime value of customers",
    "offer": "a plan of offers",
    "sentiment": "a classifier of what customers write",
}
OF_GROUPS = ("auc", "recall", "precision", "base_rate", "customers")
UNITS = {key: unit for key, unit, _, _ in METRICS}
LABELS = {key: label for key, _, label, _ in METRICS} | {"customers": "Customers"}


def card_page(card: Mapping[str, Any]) -> str:
    """The page of a card that `model_card.card` made."""
    metrics = {
        k: e for k, v in card["evaluation"]["metrics"].items() if (e := Estimate.of(v, unit=UNITS.get(k, "")))
    }
    level = (
        f"{number(100 * (card['evaluation']['level'] or card['explanation'].get('level') or 0.95))}\u202f%"
    )
    return render(
        "model_card.html.j2",
        source("report.css") + source("model_card.css"),
        card=card,
        kind=KINDS[card["kind"]],
        level=level,
        epsilon=rounded_up(card["privacy"]["epsilon"]),
        delta=power_of_ten(card["privacy"]["delta"]),
        auc=metrics.get("auc"),
        metrics=[(label, says, metrics[key]) for key, _, label, says in METRICS if key in metrics],
        branches=[_branch(b) for b in card["branches"]],
        size=size_text(card["file"]["bytes"]),
        fairness=_fairness(card, metrics.get("auc")),
        drift=_drift(card),
        points=_points(card),
        moves=figures.moves(card["explanation"]["columns"]) if card["kind"] == "boosted-trees" else None,
        base=number(card["explanation"].get("base"), 2),
        accuracy=Estimate.of(card["explanation"].get("accuracy"), unit="%"),
        segments=_segments(card, level),
        mix=_mix(card),
    )


def _branch(given: Mapping[str, Any]) -> dict[str, str]:
    epsilon = given.get("epsilon")
    return {
        "name": str(given.get("name") or "unnamed branch"),
        "epsilon": rounded_up(epsilon if isinstance(epsilon, int | float) else None),
        "answered": number(given.get("rounds_answered")),
        "bytes": size_text(given.get("bytes_sent")),
    }


def _fairness(card: Mapping[str, Any], auc: Estimate | None) -> list[dict[str, Any]]:
    whole, found = card["evaluation"]["metrics"], []
    for place, (column, groups) in enumerate(card["fairness"].items()):
        shown = [m for m in OF_GROUPS if any(m in g for g in groups.values())]
        rows = []
        for group, of_group in groups.items():
            cells = [Estimate.of(of_group.get(m), unit=UNITS.get(m, "")) for m in shown]
            differs = [
                LABELS[m]
                for m in shown
                if m != "customers" and m in of_group and m in whole and apart(of_group[m], whole[m])
            ]
            rows.append((group, [c.full if c else "not known" for c in cells], ", ".join(differs) or "none"))
        found.append(
            {
                "column": column,
                "labels": [LABELS[m] for m in shown],
                "rows": rows,
                "plot": figures.fairness(place, column, groups, auc),
            }
        )
    return found


def _drift(card: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of the latest run that asked."""
    if not card["drift"]:
        return None
    last = card["drift"][-1]
    rows = [(c["column"], Estimate.of(c["psi"]), c["verdict"]) for c in last["columns"]]
    shown = [(column, psi.text, psi.interval, verdict) for column, psi, verdict in rows if psi is not None]
    return {
        "run": last["run"],
        "day": last["time"][:10],
        "epsilon": rounded_up(last["epsilon"]),
        "rows": shown,
    }


def _points(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    if card["kind"] != "scorecard":
        return []
    found = []
    for place, attribute in enumerate(card["explanation"]["columns"]):
        iv = Estimate.of(attribute["iv"])
        found.append({"plot": figures.points(place, attribute), "iv": iv.full if iv else "not known"})
    return found


def _segments(card: Mapping[str, Any], level: str) -> list[Plot]:
    if card["kind"] != "segments":
        return []
    return figures.segments(card["explanation"]["segments"], card["explanation"]["names"], level)


def _mix(card: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of segments that know categories, a table a column: the share of each value in each segment."""
    segments = card["explanation"]["segments"] if card["kind"] == "segments" else []
    mixes = [s.get("mix") or {} for s in segments]
    return [
        {
            "column": column,
            "segments": [f"segment {s['segment']}" for s in segments],
            "rows": [(value, [_share(m, column, value) for m in mixes]) for value in values],
        }
        for column, values in (mixes[0].items() if mixes else ())
    ]


def _share(mix: Mapping[str, Any], column: str, value: str) -> str:
    found = Estimate.of(mix.get(column, {}).get(value), unit="%")
    return found.full if found else "not known"
