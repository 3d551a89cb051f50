"""The catalogue: one file an analysis. Each has the typed question, one customer's contribution with its bound,
and the reading of the noisy totals. A new analysis is a new file, and a line here."""

from collections.abc import Mapping
from typing import Any, Literal

from sfumato.common.analyses import (
    anomaly,
    basket,
    campaign,
    clv,
    drift,
    lifecycle,
    loyalty,
    offer,
    profile,
    quality,
    query,
    rfm,
    risk,
    satisfaction,
    segments,
    sentiment,
    trend,
)
from sfumato.common.analyses.analysis import Analysis, AnalysisModule
from sfumato.common.contract import Contract

Kind = Literal[
    "profile",
    "segments",
    "drift",
    "basket",
    "campaign",
    "clv",
    "lifecycle",
    "loyalty",
    "offer",
    "quality",
    "query",
    "rfm",
    "risk",
    "satisfaction",
    "sentiment",
    "trend",
    "anomaly",
]
CATALOGUE: dict[Kind, AnalysisModule] = {
    "profile": profile,
    "segments": segments,
    "drift": drift,
    "basket": basket,
    "campaign": campaign,
    "clv": clv,
    "lifecycle": lifecycle,
    "loyalty": loyalty,
    "offer": offer,
    "quality": quality,
    "query": query,
    "rfm": rfm,
    "risk": risk,
    "satisfaction": satisfaction,
    "sentiment": sentiment,
    "trend": trend,
    "anomaly": anomaly,
}


def build(kind: Kind, question: Mapping[str, Any], contract: Contract) -> Analysis:
    """The analysis of a job's question. Raises BadInput."""
    module = CATALOGUE[kind]
    return module.build(module.Question.model_validate(question), contract)
