"""What a model does with the columns, as far as its kind tells: for its card. Public: it reads what was released."""

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato.common.analyses.parts import parts_of
from sfumato.common.errors import BadInput
from sfumato.common.job import Model
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.models import SavedModel
from sfumato.common.learners.offers import Plan
from sfumato.common.learners.random_trees import Forest
from sfumato.common.learners.scorecard import Scorecard
from sfumato.server.onnx_export import read_forest

Floats = npt.NDArray[np.float64]


def explained(model: SavedModel, answer: dict[str, Any] | None) -> dict[str, Any]:
    """By kind, as JSON. Raises BadInput on a model that does not hold what its kind says.

    scorecard       {"scaling", "base", "level", "columns": [the card's attributes, the highest IV first]}
    boosted-trees   {"trees", "base", "columns": [{"column", "moves"}]}, see `column_moves`
    churn-net       {"weights", "model"}
    segments        {"columns", "names", "count", "segments": [{"segment", "customers", "share", "centre", "mix"}],
                    "chosen"}: `names` are the numbers, `mix` the shares of categories where there are any; from the
                    run's answer, if it is there
    offer           {"groups", "most_offers", "plan": [{"group", "product", "fraction"}]}, where somebody is asked
    clv             {"question", "parameters": {name: number}, of BG/NBD and gamma-gamma}
    sentiment       {"text", "buckets", "accuracy": of customers never trained on, from the run's answer, or None}
    anomaly         {"columns", "dimensions", "threshold"}: of the autoencoder, and the score above which it flags
    """
    header = model.header
    try:
        match header.kind:
            case "scorecard":
                return _scorecard(Scorecard.model_validate(header.parameters["card"]))
            case "boosted-trees":
                forest, schema = read_forest(model), header.schema_
                assert schema is not None
                moves = sorted(column_moves(forest, schema).items(), key=lambda m: (-m[1], m[0]))
                columns = [{"column": c, "moves": m} for c, m in moves]
                return {"trees": len(forest.trees), "base": forest.base, "columns": columns}
            case "churn-net":
                weights = int(np.asarray(model.tensors["weights"]).size)
                shape = Model.model_validate(header.parameters["model"])
                return {"weights": weights, "model": shape.model_dump(mode="json")}
            case "offer":
                return _plan(Plan.model_validate(header.parameters), np.asarray(model.tensors["fractions"]))
            case "segments":
                names = [str(n) for n in header.parameters["names"]]
                return {"columns": names, **_segments(names, len(model.tensors["centres"]), answer)}
            case "clv":
                letters = ("r", "alpha", "a", "b", "p", "q", "v")
                numbers = np.asarray(model.tensors["parameters"]).tolist()
                question = dict(header.parameters["question"])
                return {"question": question, "parameters": dict(zip(letters, numbers, strict=False))}
            case "sentiment":
                buckets = int(model.tensors["weights"].size) - 1
                return {
                    "text": str(header.parameters["text"]),
                    "buckets": buckets,
                    "accuracy": _accuracy(answer),
                }
            case "anomaly":
                facts = header.parameters
                return {
                    "columns": [str(n) for n in facts["names"]],
                    "dimensions": int(facts["dimensions"]),
                    "threshold": float(facts["threshold"]),
                }
    except (KeyError, ValueError, TypeError, StopIteration) as e:
        raise BadInput(
            f"model {header.name!r} does not hold what a {header.kind} needs: {e}",
            hint="It was written by another release, or is damaged.",
        ) from None


def column_moves(forest: Forest, schema: Schema) -> dict[str, float]:
    """How much each column by itself moves the log-odds: the standard deviation over customers of its main effect.

    The main effect of a bin is the forest's mean over everybody in that bin, were the columns independent; the
    customers a bin has are the schema's noisy counts.
    """
    shares = [_shares(np.array(c.counts)) for c in schema.columns]
    effects = [np.zeros(len(s)) for s in shares]
    for tree in forest.trees:
        cells = [
            np.searchsorted(cuts, np.arange(len(shares[f])), side="right")
            for f, cuts in zip(tree.features, tree.cuts, strict=True)
        ]
        people = [
            np.bincount(cell, shares[f], len(cuts) + 1)
            for f, cuts, cell in zip(tree.features, tree.cuts, cells, strict=True)
        ]
        grid = np.array(tree.steps).reshape([len(p) for p in people])
        for i, (feature, cell) in enumerate(zip(tree.features, cells, strict=True)):
            mean = grid
            for j in reversed(range(len(people))):  # the last axis first: those before it keep their number
                if j != i:
                    mean = np.tensordot(mean, people[j], axes=(j, 0))
            effects[feature] += mean[cell]
    return {
        column.name: float(np.sqrt(share @ (effect - share @ effect) ** 2))
        for column, share, effect in zip(schema.columns, shares, effects, strict=True)
    }


def _shares(counts: Floats) -> Floats:
    people = np.maximum(counts, 0.0)
    return people / people.sum() if people.sum() > 0 else np.full(len(people), 1 / len(people))


def _scorecard(card: Scorecard) -> dict[str, Any]:
    table = card.model_dump(mode="json")
    columns = sorted(table["attributes"], key=lambda a: (-a["iv"]["value"], a["column"]))
    return {"scaling": table["scaling"], "base": card.base, "level": card.level, "columns": columns}


def _accuracy(answer: dict[str, Any] | None) -> dict[str, float] | None:
    if answer is None:
        return None
    rated = next(p for p in parts_of(answer) if p.name == "accuracy")
    return dict(rated.rows[0].numbers["right"])


def _plan(plan: Plan, fractions: npt.NDArray[Any]) -> dict[str, Any]:
    groups = list(product(*(g.cells for g in plan.groups)))
    rows = [
        {"group": list(group), "product": offer, "fraction": float(fraction)}
        for group, row in zip(groups, fractions, strict=True)
        for offer, fraction in zip(plan.offers, row, strict=True)
        if fraction > 0
    ]
    return {"groups": [g.name for g in plan.groups], "most_offers": plan.most_offers, "plan": rows}


def _segments(columns: list[str], k: int, answer: dict[str, Any] | None) -> dict[str, Any]:
    if answer is None:
        return {"names": columns, "segments": [], "count": k}
    found = [{"segment": i, **s} for i, s in enumerate(answer["segments"])]
    if len(found) != k:
        raise ValueError("its answer has another number of segments")
    shown = {"names": [str(n) for n in answer["names"]], "segments": found, "count": k}
    return shown | {"chosen": answer.get("chosen"), "level": answer.get("level")}
