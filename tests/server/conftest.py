"""A small bank's contract, customers made up for it, and a model of every kind as a finished run would hold it."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.common.analyses import score_histogram
from sfumato.common.contract import Contract
from sfumato.common.enrolment import Enrolment, ed25519_text, new_node_key
from sfumato.common.job import ANY_JOB, Model, sign_job
from sfumato.common.learners import bins, churn_net, components, curves, models, random_trees
from sfumato.common.learners.encoding import inputs_hash, model_features
from sfumato.common.learners.scorecard import scorecard
from sfumato.common.notes import branch_origin, cosignature
from sfumato.server.home import CoordinatorHome
from sfumato.server.job_run import JobOutcome
from sfumato.server.ledger import record_end, record_start
from sfumato.server.results import store_outcome

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
            "inputs": inputs_hash(bank_contract),
            "label": None if kind.endswith("segments") else "churned",
            "epsilon": 1.99,
            "delta": 1e-6,
            "made": datetime(2026, 3, 14, 9, 26, tzinfo=UTC),
            "schema_": bank_schema if kind in ("boosted-trees", "scorecard") else None,
        }
        kind = kind.removeprefix("component-")
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
    if kind == "component-segments":
        specs = model_features(contract)[::-1]
        size = components.Inputs(specs).size
        turned = np.linalg.qr(rng.normal(size=(size, 3)))[0]
        found = components.Components(rng.uniform(-0.3, 0.6, size), turned, 1.3)
        tensors = {"centres": rng.uniform(-1, 1, (4, 3)).astype(np.float32), "components": found.flat()}
        return tensors, {"names": [s.name for s in specs]}
    names = [spec.name for spec in model_features(contract) if spec.numeric][::-1]
    return {"centres": rng.uniform(-1, 1, (5, len(names))).astype(np.float32)}, {"names": names}


# --- finished runs -------------------------------------------------------------------------------------------

BRANCHES = ("harbour", "market-square", "north")
LEDGER_KEYS = {n: Ed25519PrivateKey.from_private_bytes(bytes([i + 1]) * 32) for i, n in enumerate(BRANCHES)}
JOBS: dict[str, dict[str, Any]] = {
    "churn-net": {"model": {"hidden": [8, 4], "embedding_dim": 3, "bins": 8}},
    "boosted-trees": {"learner": {"rounds": 6, "trees": 8}},
    "scorecard": {},
    "segments": {"question": {"segments": 5}},
}


@pytest.fixture(scope="session")
def bank_home(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorHome:
    """A coordinator with three branches and no run."""
    folder = tmp_path_factory.mktemp("registry")
    home = CoordinatorHome.init(folder / "c", host="127.0.0.1", port=9092, session_port=9093)
    for name, key in LEDGER_KEYS.items():
        enrolment = Enrolment(
            name=name,
            node_public_key=new_node_key()[1].decode(),
            ledger_public_key=ed25519_text(key.public_key()),
        )
        path = folder / f"{name}.json"
        path.write_bytes(enrolment.dump())
        home.enrol(path)
    return home


@pytest.fixture(scope="session")
def finish(model_of: Callable[..., models.SavedModel], bank_contract: Contract) -> Callable[..., Path]:
    """Leave a run in a home as `results.run_job` does: files, ledger, checkpoint with cosignatures."""

    def make(
        home: CoordinatorHome, run: int, kind: str, contract: Contract = bank_contract, **changes: Any
    ) -> Path:
        head = {
            "name": f"bank-{kind}",
            "kind": kind,
            "purpose": "Find who will leave, <soon>.",
            "contract": contract.name,
        }
        privacy = {"mode": "secure-sum", "target_epsilon": 2.0}
        more = {"training": {"local_steps": 1}} if kind == "churn-net" else {}
        job = ANY_JOB.validate_python(
            {**head, "privacy": privacy, "federation": {"min_branches": 3}, **JOBS[kind], **more}
        )
        signed = sign_job(job, contract, home.job_key(), valid_for=timedelta(hours=1))
        ids = {"job_id": signed.job_id, "job_hash": signed.job_hash, "contract": contract.hash}
        ids |= {"contract_name": contract.name}
        model = model_of(kind, run, **ids)
        directory = home.directory("runs") / str(run)
        ledger = home.open_ledger()
        record_start(ledger, signed, directory.name)
        summary, histogram = result_of(kind, signed.job_id, run)
        answer = answer_of(model) if kind == "segments" else None
        store_outcome(
            directory,
            JobOutcome(summary | changes, model=model, histogram=histogram, answer=answer),
        )
        (directory / "job.json").write_text(signed.model_dump_json(indent=1))
        files = [f for f in directory.iterdir() if f.is_file()]
        record_end(ledger, signed.job_id, run=str(run), state="finished", files=files, audit="consistent")
        note = ledger.checkpoint()
        moment = datetime(2026, 3, 14, 9, 30, tzinfo=UTC)
        lines = [cosignature(note, branch_origin(n), key, moment) for n, key in LEDGER_KEYS.items()]
        (directory / "checkpoint").write_text(home.cosigned.add(note, lines))
        return directory

    return make


@pytest.fixture(scope="session")
def full_home(bank_home: CoordinatorHome, finish: Callable[..., Path]) -> CoordinatorHome:
    """With a model of every kind, runs 10 to 13. To look at only."""
    for run, kind in enumerate(KINDS, 10):
        finish(bank_home, run, kind)
    return bank_home


@pytest.fixture
def home_copy(full_home: CoordinatorHome, tmp_path: Path) -> CoordinatorHome:
    """The same, to break."""
    shutil.copytree(full_home.path, tmp_path / "c")
    return CoordinatorHome.load(tmp_path / "c")


def result_of(kind: str, job_id: str, seed: int) -> tuple[dict[str, Any], Any]:
    """What `JobRun` makes of a run, and its score histogram."""
    per_branch = [
        {"name": n, "epsilon": 1.98, "rounds_answered": 8, "rounds_missed": 0, "bytes_sent": 12_345}
        for n in BRANCHES
    ]
    summary = {
        "job": f"bank-{kind}", "job_id": job_id, "kind": kind, "mode": "secure-sum", "colluders": 1,
        "epsilon": 1.98, "delta": 1e-6, "branches": 3, "sums": 8, "rounds": 8, "seconds": 3.2,
        "per_branch": per_branch, "refused": [], "audit": "consistent", "open_at": [],
    }  # fmt: skip
    if kind == "segments":
        return summary, None
    found, counts = evaluation(seed % 4)
    close, far = found.auc.value - 0.01, found.auc.low - 0.2
    auc = lambda v, half: {"value": v, "low": v - half, "high": v + half}  # noqa: E731
    fairness = {
        "active": {
            "true": {"auc": auc(close, 0.03), "base_rate": {"value": 0.2, "low": 0.18, "high": 0.22}},
            "false": {"auc": auc(far, 0.05), "base_rate": {"value": 0.3, "low": 0.2, "high": 0.4}},
            "(none)": {"auc": {"value": 0.6, "low": 0.0, "high": 1.0}},
        }
    }
    return summary | {"metrics": asdict(found), "fairness": fairness, "noise_variance": 16.0}, counts


@cache
def evaluation(seed: int) -> tuple[score_histogram.ScoreMetrics, Any]:
    """Metrics read from a noisy score histogram, and the histogram."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(4000) < 0.2).astype(np.int64)
    counts = score_histogram.contribution(rng.normal(-2 + 1.6 * labels, 1.1), labels, 16) + rng.normal(
        0, 4, 32
    )
    found = score_histogram.read(counts, 16.0, draws=100)
    return found, counts


def answer_of(model: models.SavedModel) -> dict[str, Any]:
    centres = model.tensors["centres"].astype(np.float64)
    estimate = lambda v: {"value": v, "low": v - 0.05, "high": v + 0.05}  # noqa: E731
    segments = [
        {
            "customers": {"value": 900 - 100 * i, "low": 850 - 100 * i, "high": 950 - 100 * i},
            "share": {"value": 0.3 - 0.03 * i, "low": 0.28 - 0.03 * i, "high": 0.32 - 0.03 * i},
            "centre": {
                n: estimate(float(v)) for n, v in zip(model.header.parameters["names"], row, strict=True)
            },
        }
        for i, row in enumerate(centres)
    ]
    return {"names": model.header.parameters["names"], "level": 0.95, "segments": segments}
