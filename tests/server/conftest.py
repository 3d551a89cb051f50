"""A small bank's contract, customers made up for it, and a model of every kind as a finished run would hold it."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sfumato.common.contract import Contract
from sfumato.common.job import Model
from sfumato.common.learners import bins, churn_net, curves, models, random_trees
from sfumato.common.learners.encoding import model_features
from sfumato.common.learners.scorecard import scorecard

Columns = dict[str, pa.Array]
KINDS = ("churn-net", "boosted-trees", "scorecard", "segments")
EDGES = {"age": (30.0, 45.0, 60.0), "balance": (-250.0, 0.0, 1e-9, 99.5, 12_000.0)}


@pytest.fixture(scope="session")
def bank_contract() -> Contract:
    feature = {"role": "feature", "nullable": True}
    columns = [
        {"name": "customer_id", "type": "string", "role": "customer_id"},
        {"name": "age", "type": "integer", "bounds": [18, 100], "edges": EDGES["age"], **feature},
        {"name": "balance", "type": "number", "bounds": [-500, 50_000], "scale": "log", **feature},
        {"name": "points", "type": "number", "bounds": [0, 1], **feature},  # called as an output is
        {"name": "products", "type": "integer", "bounds": [1, 4], **feature},
        {"name": "card", "type": "category", "categories": ["Blue", "Gold", "Größe <b>"], **feature},
        {"name": "active", "type": "boolean", **feature},
        {"name": "churned", "type": "boolean", "role": "label"},
    ]
    return Contract.model_validate(
        {
            "version": 1,
            "name": "small-bank",
            "purpose": "Foresee which customers will leave, to keep them by better service.",
            "tables": [{"name": "customers", "columns": columns}],
        }
    )


@pytest.fixture(scope="session")
def bank_schema(bank_contract: Contract) -> bins.Schema:
    """Bins as a schema round leaves them: merged categories, a null bin of its own or not, noisy counts."""
    rng = np.random.default_rng(7)
    cuts = {**EDGES, "points": (0.25, 0.5), "products": ()}
    found = []
    for spec in model_features(bank_contract):
        given: dict[str, Any] = {"name": spec.name}
        if spec.numeric:
            own_null = spec.name != "points"
            size = len(cuts[spec.name]) + 1 + own_null
            given |= {"cuts": cuts[spec.name], "null": size - 1 if own_null else 0}
        else:
            codes = {c: (0, 1, 1)[i] for i, c in enumerate(spec.categories or ())}
            size = 3
            given |= {"categories": codes, "other": 1, "null": 2}
        counts = rng.uniform(-5, 900, size)
        positives = counts * rng.uniform(0.05, 0.6, size)
        found.append(bins.Column(**given, counts=counts, positives=positives, stds=[9.0] * size))
    return bins.Schema(
        contract=bank_contract.hash, label="churned", customers=3000, positives=600, columns=tuple(found)
    )


@pytest.fixture(scope="session")
def customers_of() -> Callable[..., Columns]:
    """Columns of n made-up customers: nulls, unknown categories, values on cuts, at and out of bounds."""

    def make(n: int, seed: int = 0) -> Columns:
        rng = np.random.default_rng(seed)
        odd = [
            *EDGES["age"],
            *EDGES["balance"],
            0.25,
            0.5,
            1.0,
            4.0,
            -1e9,
            1e9,
            18.0,
            100.0,
            -500.0,
            50_000.0,
        ]

        def numbers(low: float, high: float) -> Any:
            drawn = rng.uniform(low, high, n)
            drawn = np.where(rng.random(n) < 0.3, rng.choice(odd, n), drawn)
            return [None if null else v for v, null in zip(drawn.tolist(), rng.random(n) < 0.15, strict=True)]

        def texts(values: list[str | None]) -> Any:
            return [values[i] for i in rng.integers(0, len(values), n)]

        return {
            "age": pa.array(numbers(15, 110), pa.float64()),
            "balance": pa.array(numbers(-700, 60_000), pa.float64()),
            "points": pa.array(numbers(-0.1, 1.1), pa.float64()),
            "products": pa.array(numbers(0, 5), pa.float64()),
            "card": pa.array(texts(["Blue", "Gold", "Größe <b>", "Platinum", None]), pa.string()),
            "active": pa.array(texts(["true", "false", None]), pa.string()),
        }

    return make


@pytest.fixture(scope="session")
def model_of(bank_contract: Contract, bank_schema: bins.Schema) -> Callable[..., models.SavedModel]:
    """A model of this kind with numbers that were drawn, not trained; `header` replaces what it says."""

    def make(kind: str, seed: int = 0, **header: Any) -> models.SavedModel:
        rng = np.random.default_rng(seed)
        tensors, parameters = _numbers(kind, rng, bank_contract, bank_schema)
        facts = {
            "name": f"bank-{kind}",
            "purpose": "Find who will leave, <soon>.",
            "job_id": "ab" * 16,
            "job_hash": "cd" * 32,
            "contract": bank_contract.hash,
            "contract_name": bank_contract.name,
            "label": None if kind == "segments" else "churned",
            "epsilon": 1.99,
            "delta": 1e-6,
            "made": datetime(2026, 3, 14, 9, 26, tzinfo=UTC),
            "schema_": bank_schema if kind in ("boosted-trees", "scorecard") else None,
        }
        made = models.ModelHeader(kind=kind, parameters=parameters, **(facts | header))
        return models.SavedModel(made, tensors)

    return make


def _numbers(
    kind: str, rng: np.random.Generator, contract: Contract, schema: bins.Schema
) -> tuple[dict[str, Any], dict[str, Any]]:
    if kind == "churn-net":
        shape = Model(hidden=(8, 4), embedding_dim=3, bins=8)
        size = churn_net.size(churn_net.build(contract, shape))
        return {"weights": rng.normal(0, 0.7, size).astype(np.float32)}, {
            "model": shape.model_dump(mode="json")
        }
    if kind == "boosted-trees":
        question = random_trees.Question(rounds=6, trees=8, seed=int(rng.integers(1000)))
        grower = random_trees.RandomTrees(schema, contract, question)
        grown = [t for r in range(6) for t in grower.trees(r)]
        steps = rng.normal(0, 0.6, (len(grown), random_trees.LEAVES)).astype(np.float32)
        trees = tuple(
            t.model_copy(update={"steps": tuple(s)}) for t, s in zip(grown, steps.tolist(), strict=True)
        )
        forest = random_trees.Forest(base=-1.25, trees=trees)
        return {"forest": random_trees.encode(forest, ())}, {"rounds": 6, "trees": 8}
    if kind == "scorecard":
        fitted = [
            curves.Curve(
                column=column,
                values=rng.normal(0, 0.8, len(column.bins)),
                std=np.full(len(column.bins), 0.1),
                counts=rng.uniform(5, 500, (2, len(column.bins))),
                counts_std=np.full(len(column.bins), 6.0),
            )
            for column in curves.of_schema(schema)
        ]
        card = scorecard(curves.Model(-1.3, tuple(fitted)))
        points = [b.points for a in card.attributes for b in a.bins]
        return {"points": np.array(points, dtype=np.int64)}, {"card": card.model_dump(mode="json")}
    names = [spec.name for spec in model_features(contract) if spec.numeric][::-1]
    return {"centres": rng.uniform(-1, 1, (5, len(names))).astype(np.float32)}, {"names": names}
