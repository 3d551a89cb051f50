"""The catalogue: one file an analysis. Each has the typed question, one customer's contribution with its bound,
and the reading of the noisy totals. A new analysis is a new file, and a line here."""

from collections.abc import Mapping
from typing import Any, Literal

from sfumato.common.analyses import (
    basket,
    campaign,
    drift,
    lifecycle,
    loyalty,
    offer,
    profile,
    rfm,
    risk,
    satisfaction,
    segments,
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
    "lifecycle",
    "loyalty",
    "rfm",
    "risk",
    "satisfaction",
    "trend",
    "offer",
]
CATALOGUE: dict[Kind, AnalysisModule] = {
    "profile": profile,
    "segments": segments,
    "drift": drift,
    "basket": basket,
    "campaign": campaign,
    "offer": offer,
    "lifecycle": lifecycle,
    "loyalty": loyalty,
    "rfm": rfm,
    "risk": risk,
    "satisfaction": satisfaction,
    "trend": trend,
}


def build(kind: Kind, question: Mapping[str, Any], contract: Contract) -> Analysis:
    """The analysis of a job's question. Raises BadInput."""
    module = CATALOGUE[kind]
    return module.build(module.Question.model_validate(question), contract)
