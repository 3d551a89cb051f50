"""Learner jobs and segments over real vaults in this process: against the same sums done naively, and attacked."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sfumato.client.vault.customers import WarmData
from sfumato.common import codec, messages
from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract, load_contract
from sfumato.common.errors import BadInput, RefusalCode
from sfumato.common.job import AnyJob, LearnerJob, load_job, sign_job
from sfumato.common.learners import catalogue
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.components import Components, Inputs, Moments
from sfumato.common.learners.encoding import FeatureSpec
from sfumato.common.learners.learner import Coded
from sfumato.common.learners.models import SavedModel
from sfumato.common.learners.schema import SchemaRound
from sfumato.common.learners.scoring import scorer
from sfumato.lab.in_process import Answerer, open_vaults, run_in_process
from sfumato.lab.simulate import SimulatedBranches, simulated_branches
from sfumato.privacy.mechanisms import SumNoise
from sfumato.privacy.plan import Plan
from sfumato.server.job_run import JobOutcome

CONTRACT = """
version = 1
name = "village"
purpose = "A few hundred made-up customers, for tests."
holdout_fraction = 0.25
[[tables]]
name = "customers"
[[tables.columns]]
name = "id"
type = "string"
role = "customer_id"
[[tables.columns]]
name = "visits"
type = "integer"
role = "feature"
bounds = [0, 40]
[[tables.columns]]
name = "balance"
type = "number"
role = "amount"
bounds = [0, 5000]
scale = "log"
[[tables.columns]]
name = "tier"
type = "category"
role = "feature"
categories = ["gold", "plain"]
[[tables.columns]]
name = "leaves"
type = "integer"
role = "label"
"""
KINDS: dict[str, dict[str, Any]] = {"boosted-trees": {"rounds": 4, "trees": 3}, "scorecard": {"rounds": 4}}
CUSTOMERS = 900


def job(kind: str, *, mode: str = "secure-sum", epsilon: float = 20.0, **tables: Any) -> LearnerJob:
    return LearnerJob.model_validate(
        {
            "name": "who-leaves",
            "kind": kind,
            "purpose": "See who leaves the village.",
            "contract": "village",
            "privacy": {"target_epsilon": epsilon, "delta": 1e-5, "mode": mode},
            "learner": KINDS[kind],
            "federation": {"min_branches": 3},
            "evaluation": {"bins": 8, "groups": ["tier"]},
            **tables,
        }
    )


@dataclass
class Village:
    made: SimulatedBranches
    contract: Contract
    vaults: dict[int, Answerer]

    def run(self, asked: AnyJob) -> JobOutcome:
        return run_in_process(self.vaults, asked, self.contract, self.made.key)

    def data(self) -> list[WarmData]:
        """What each vault keeps warm."""
        return [v.__self__._data for v in self.vaults.values()]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def village(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Village]:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("village")
    rng = np.random.default_rng(3)
    visits, balance = rng.integers(0, 41, CUSTOMERS), np.exp(rng.normal(5, 1.5, CUSTOMERS)).clip(0, 5000)
    gold = rng.random(CUSTOMERS) < 0.3
    leaves = rng.random(CUSTOMERS) < 1 / (1 + np.exp(0.15 * (visits - 15) + 1.0 * gold))
    table = pa.table(
        {
            "id": [f"c{i:04d}" for i in range(CUSTOMERS)],
            "visits": visits,
            "balance": balance,
            "tier": np.where(gold, "gold", "plain"),
            "leaves": leaves.astype(int),
        }
    )
    pa.csv.write_csv(table, path / "data.csv")
    (path / "contract.toml").write_text(CONTRACT)
    with simulated_branches(
        path / "contract.toml", path / "data.csv", branches=3, budget_epsilon=1e6, budget_delta=1e-5
    ) as made:
        yield Village(made, load_contract(path / "contract.toml"), open_vaults(made.homes))


@pytest.fixture
def without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of (almost) no noise, so that totals can be held against those of a pooled table."""
    monkeypatch.setattr(SumNoise, "share_variance", lambda self, s: 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["secure-sum", "local"])
def test_a_model_is_learnt_evaluated_and_saved_whole(village: Village, kind: str, mode: str) -> None:
    outcome = village.run(job(kind, mode=mode))
    summary = outcome.summary
    assert summary["sums"] == 2 + KINDS[kind]["rounds"] and summary["audit"] != "contradicted"
    assert summary["epsilon"] <= 20 and summary["auc_low"] <= summary["auc"] <= summary["auc_high"]
    assert summary["auc"] > 0.6 and abs(summary["customers"] - CUSTOMERS) < 200
    assert set(summary["fairness"]["tier"]) == {"gold", "plain"}
    assert outcome.model is not None and outcome.model.header.schema_ is not None
    assert [c.name for c in outcome.model.header.schema_.columns] == ["visits", "balance", "tier"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("without_noise")
def test_the_sums_are_those_of_the_pooled_training_customers(village: Village, kind: str) -> None:
    """The naive way: everybody's vectors in one table, added up. Held-out customers are in no sum but the last."""
    asked = job(kind, audit={"empty_slots": 0, "canaries": 0})
    outcome = village.run(asked)
    assert outcome.model is not None and outcome.model.header.schema_ is not None
    schema = outcome.model.header.schema_
    parts = [(d.coded(schema), d.holdout) for d in village.data()]
    training, held_out = (
        Coded(
            np.concatenate([c.codes[h == which] for c, h in parts]),
            np.concatenate([c.labels[h == which] for c, h in parts]),
        )
        for which in (False, True)
    )
    assert len(training) + len(held_out) == CUSTOMERS and 150 < len(held_out) < 300
    assert schema.customers == pytest.approx(len(training), abs=0.01)
    learner = catalogue.build(asked.kind, asked.learner, schema, village.contract)
    totals: list[NoisySum] = []
    for r in range(4):
        each = learner.contribute(r, training, learner.ask(r, totals))
        std = 2.0**-20
        totals.append(NoisySum(each.rows.sum(axis=0), std))  # type: ignore[union-attr]
    assert np.allclose(learner.finished(totals), _finished(outcome.model), atol=2e-2)
    assert outcome.histogram is not None
    assert np.rint(outcome.histogram).sum() == len(held_out)
    assert np.rint(outcome.histogram)[8:].sum() == held_out.labels.sum()
    found = outcome.summary["fairness"]["tier"]
    assert sum(g["customers"]["value"] for g in found.values()) == pytest.approx(len(held_out), rel=0.05)


def _finished(model: SavedModel) -> np.ndarray:
    if model.header.kind == "boosted-trees":
        return model.tensors["forest"]
    return np.array([model.header.parameters["card"]["base"], *model.tensors["points"]], dtype=np.float32)


def test_a_known_schema_is_not_asked_or_paid_again(village: Village, tmp_path: Path) -> None:
    first = village.run(job("boosted-trees"))
    assert first.model is not None and first.model.header.schema_ is not None
    file = tmp_path / "schema.json"
    file.write_text(first.model.header.schema_.model_dump_json())
    toml = (
        '[job]\nname = "again"\nkind = "scorecard"\npurpose = "Use the schema again."\ncontract = "village"\n'
        '[privacy]\ntarget_epsilon = 20.0\ndelta = 1e-5\nmode = "secure-sum"\n[learner]\nrounds = 4\n'
        '[binning]\nknown = "schema.json"\n[federation]\nmin_branches = 3\n'
    )
    (tmp_path / "job.toml").write_text(toml)
    asked = load_job(tmp_path / "job.toml")
    second = village.run(asked)
    assert second.summary["sums"] == 1 + 4
    assert second.model is not None and second.model.header.schema_ == first.model.header.schema_
    known, fresh = Plan.of(asked, village.contract), Plan.of(job("scorecard"), village.contract)
    assert known.noise_multiplier < fresh.noise_multiplier
    file.write_text("{}")
    with pytest.raises(BadInput, match="not a schema"):
        load_job(tmp_path / "job.toml")
    file.unlink()
    with pytest.raises(BadInput, match=r"schema\.json: No such file"):
        load_job(tmp_path / "job.toml")


@pytest.mark.parametrize("mode", ["secure-sum", "local"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_plan_costs_what_the_job_says_and_no_more(village: Village, mode: str, times: int) -> None:
    contract = village.contract.model_copy(update={"max_branches_per_customer": times})
    for kind in KINDS:
        plan = Plan.of(job(kind, mode=mode, epsilon=1.0), contract)
        assert 0.97 < plan.epsilon("training") <= 1.0
        assert 0.45 < plan.epsilon("holdout") <= 1.0
        assert [plan.ask(r).what for r in range(6)] == ["schema", *["sum"] * 4, "evaluation"]


# --- against a hostile coordinator -----------------------------------------------------------------------------


@pytest.fixture
def ask(village: Village) -> Callable[..., messages.Answer]:
    """One open job of local noise at the first vault, and questions about it."""
    signed = sign_job(
        job("scorecard", mode="local"), village.contract, village.made.key, valid_for=timedelta(hours=1)
    )
    vault = village.vaults[1]
    vault(codec.encode(messages.OpenJob(signed_job=signed)))

    def ask(round_: int, body: np.ndarray | None = None, bins: Schema | None = None) -> messages.Answer:
        question = messages.Sum(job_id=signed.job_id, round=round_, bins=bins)
        answer = vault(codec.encode(question, body))
        assert answer is not None
        return codec.decode(answer, "answer")[0]

    return ask


def _schema(village: Village) -> Schema:
    asked = SchemaRound(village.contract, 8)
    return asked.schema(NoisySum(np.full(asked.length(0), 20.0), 0.1))


def test_questions_that_do_not_fit_are_refused_and_cost_nothing(
    village: Village, ask: Callable[..., messages.Answer]
) -> None:
    schema = _schema(village)
    learner = catalogue.build("scorecard", KINDS["scorecard"], schema, village.contract)
    good = learner.ask(0, [])
    renamed = schema.columns[0].model_copy(update={"name": "else"})
    strange: list[tuple[str, np.ndarray | None, Schema | None]] = [
        ("no schema", good, None),
        ("another contract's", good, schema.model_copy(update={"contract": "0" * 64})),
        ("other columns", good, schema.model_copy(update={"columns": (renamed, *schema.columns[1:])})),
        ("too short", good[:-1], schema),
        ("no numbers", None, schema),
        ("not finite", np.where(np.arange(good.size) == 3, np.nan, good).astype(np.float32), schema),
        ("whole numbers", good.astype(np.int64), schema),
    ]
    for name, body, bins in strange:
        answer = ask(1, body, bins)
        assert isinstance(answer, messages.Refused), name
        assert answer.code in (RefusalCode.BAD_VECTOR, RefusalCode.BAD_FRAME), name
    answer = ask(6, good, schema)
    assert isinstance(answer, messages.Refused) and answer.code is RefusalCode.ROUND_OUT_OF_ORDER
    assert isinstance(ask(1, good, schema), messages.ReleasedAnswer)


def test_an_evaluation_of_no_model_is_refused(village: Village, ask: Callable[..., messages.Answer]) -> None:
    schema = _schema(village)
    bins = sum(schema.cardinalities)
    for body in (np.full(1 + bins, 0.5), np.full(1 + bins, 1e9), np.zeros(bins)):
        answer = ask(5, body.astype(np.float32), schema)
        assert isinstance(answer, messages.Refused) and answer.code is RefusalCode.BAD_VECTOR
    assert isinstance(ask(5, np.zeros(1 + bins, dtype=np.float32), schema), messages.ReleasedAnswer)


# --- what a job may ask ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"evaluation": {"groups": ["nothing"]}}, "'nothing' is not declared"),
        ({"evaluation": {"groups": ["leaves"]}}, "is the label"),
        ({"evaluation": {"groups": ["id"]}}, "the customer id"),
    ],
)
def test_a_job_that_the_contract_cannot_answer_is_not_signed(
    village: Village, tables: Mapping[str, Any], words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        sign_job(
            job("scorecard", **tables),
            village.contract,
            Ed25519PrivateKey.generate(),
            valid_for=timedelta(hours=1),
        )


# --- segments --------------------------------------------------------------------------------------------------


def test_segments_are_an_answer_and_a_model(village: Village, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(
        '[job]\nname = "segments"\nkind = "segments"\npurpose = "Know the kinds."\ncontract = "village"\n'
        '[privacy]\ntarget_epsilon = 20.0\ndelta = 1e-5\nmode = "secure-sum"\n[question]\nsegments = 3\n'
        "[federation]\nmin_branches = 3\n"
    )
    outcome = village.run(load_job(tmp_path / "job.toml"))
    assert outcome.answer is not None and outcome.model is not None
    answer = outcome.answer
    json.dumps(answer, allow_nan=False)
    sizes = [s["customers"]["value"] for s in answer["segments"]]
    assert sizes == sorted(sizes, reverse=True) and abs(sum(sizes) - CUSTOMERS) < 60
    assert outcome.model.header.parameters == {"names": ["visits", "balance"]}
    assert outcome.model.header.label is None
    # Who is in which segment, the file says; the answer is about these, in the same order.
    ready = scorer(outcome.model, village.contract)
    columns = [d.columns(ready.columns) for d in village.data()]
    group = np.concatenate([ready.score(c).segment for c in columns])  # type: ignore[arg-type]
    visits = np.concatenate([c["visits"].to_numpy() for c in columns])
    for j, segment in enumerate(answer["segments"]):
        own = (
            (segment["customers"], (group == j).sum()),
            (segment["centre"]["visits"], visits[group == j].mean()),
        )
        for number, truth in own:  # within five standard deviations
            assert abs(number["value"] - truth) <= 2.6 * max(
                number["high"] - number["value"], number["value"] - number["low"]
            )
        for name in ("visits", "balance"):
            centre = segment["centre"][name]
            assert centre["low"] <= centre["value"] <= centre["high"]


def test_a_model_file_comes_back_as_it_was(village: Village, tmp_path: Path) -> None:
    model = village.run(job("scorecard")).model
    assert model is not None
    file = tmp_path / "model.safetensors"
    file.write_bytes(model.to_bytes())
    again = SavedModel.read(file)
    assert again.header == model.header and again.to_bytes() == model.to_bytes()
    again.require(village.contract)
    with pytest.raises(BadInput, match="another version of contract 'village'"):
        again.require(village.contract.model_copy(update={"purpose": "Something else entirely."}))
    for damage in (b"", b"x" * 100, file.read_bytes()[:-5]):
        file.write_bytes(damage)
        with pytest.raises(BadInput, match="not a model file"):
            SavedModel.read(file)


SEGMENTS = (
    '[job]\nname = "segments"\nkind = "segments"\npurpose = "Know the kinds."\ncontract = "village"\n'
    '[privacy]\ntarget_epsilon = 20.0\ndelta = 1e-5\nmode = "secure-sum"\n'
    "[question]\nsegments = 3\ndimensions = 2\n[federation]\nmin_branches = 3\n"
)


@pytest.mark.usefixtures("without_noise")
def test_segments_by_components_say_who_is_in_them(village: Village, tmp_path: Path) -> None:
    """Held against every customer, assigned with the saved model: sizes, means on the scale, and shares."""
    (tmp_path / "job.toml").write_text(SEGMENTS)
    outcome = village.run(load_job(tmp_path / "job.toml"))
    assert outcome.answer is not None and outcome.model is not None
    ready = scorer(outcome.model, village.contract)
    columns = [d.columns(ready.columns) for d in village.data()]
    segment = np.concatenate([ready.score(c).segment for c in columns])  # type: ignore[arg-type]
    visits = np.concatenate([c["visits"].to_numpy() for c in columns])
    gold = np.concatenate([np.array(c["tier"].to_pylist()) == "gold" for c in columns])
    for j, found in enumerate(outcome.answer["segments"]):
        own = segment == j
        assert found["customers"]["value"] == pytest.approx(own.sum(), abs=0.01)
        assert found["centre"]["visits"]["value"] == pytest.approx(visits[own].mean(), abs=0.01)
        assert found["mix"]["tier"]["gold"]["value"] == pytest.approx(gold[own].mean(), abs=1e-3)


def test_components_are_those_of_the_covariance() -> None:
    """Against numpy's own; a customer's vector is never longer than 1."""
    specs = (
        FeatureSpec("a", bounds=(0.0, 1.0)),
        FeatureSpec("b", bounds=(0.0, 1.0)),
        FeatureSpec("c", categories=("x", "y")),
    )
    moments = Moments(Inputs(specs))
    rng = np.random.default_rng(5)
    a = rng.random(500)
    columns = {"a": a, "b": np.clip(a + 0.1 * rng.normal(size=500), 0, 1), "c": np.where(a > 0.5, "x", "y")}
    rows = moments.contribute(columns).rows
    assert rows.shape == (500, moments.length)
    assert np.linalg.norm(rows, axis=1).max() <= 1 + 1e-12
    found = moments.components(NoisySum(rows.sum(axis=0), 1e-9), 2)
    inputs = moments.inputs.matrix(columns)
    values, vectors = np.linalg.eigh(np.cov(inputs.T, bias=True))
    assert np.allclose(found.mean, inputs.mean(axis=0))
    assert np.allclose(np.abs(found.directions.T @ vectors[:, ::-1][:, :2]), np.eye(2), atol=1e-6)
    assert found.scale == pytest.approx(3 * values[-1] ** 0.5)
    again = Components.of(found.flat(), inputs.shape[1], 2)
    assert np.allclose(again.places(inputs), found.places(inputs), atol=1e-5)
    for wrong in (found.flat()[:-1], np.where(np.arange(found.flat().size) == 0, 0, found.flat())):
        with pytest.raises(ValueError, match="finite numbers"):
            Components.of(wrong, inputs.shape[1], 2)
