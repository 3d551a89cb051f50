"""Scoring: the learners' own numbers, whatever is in a file answered by BadInput, reasons that are true causes."""

import dataclasses
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.special import expit

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells
from sfumato.common.errors import BadInput
from sfumato.common.job import Model
from sfumato.common.learners import boosted_trees, churn_net, kmeans, scorecard_fit
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.encoding import Encoder, inputs_hash, model_features, number_codes
from sfumato.common.learners.learner import Coded, Learner
from sfumato.common.learners.models import ModelHeader, Reason, SavedModel, Scores
from sfumato.common.learners.random_trees import LEAVES, Forest, Tree
from sfumato.common.learners.reasons import ForestAmounts, NetAmounts, Typical, largest
from sfumato.common.learners.schema import SchemaRound, label_codes
from sfumato.common.learners.scorecard import Scorecard
from sfumato.common.learners.scoring import scorer
from sfumato.lab.samplebank_model import COEFFICIENTS, GENDERS, MARITAL, PROFILES, draw_people

KINDS = ("churn-net", "boosted-trees", "scorecard", "segments")
COLUMNS: list[dict[str, Any]] = [
    {"name": "id", "type": "string", "role": "customer_id"},
    {"name": "town", "type": "category", "role": "feature", "categories": ["ash", "elm", "oak"]},
    {"name": "age", "type": "integer", "role": "feature", "bounds": [18, 100]},
    {"name": "debt", "type": "number", "role": "amount", "bounds": [0, 1e6], "scale": "log", "nullable": True},
    {"name": "app", "type": "boolean", "role": "feature"},
    {"name": "visits", "type": "number", "role": "feature", "bounds": [0, 9], "edges": [1, 3]},
    {"name": "left", "type": "integer", "role": "label"},
]  # fmt: skip


def contract_of(columns: list[dict[str, Any]], name: str = "toy") -> Contract:
    tables = [{"name": "customers", "columns": columns}]
    return Contract.model_validate(
        {"version": 1, "name": name, "purpose": "to be scored under", "tables": tables}
    )


CONTRACT = contract_of(COLUMNS)


def people(n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    town, age, debt = rng.choice(["ash", "elm", "oak"], n), rng.integers(18, 101, n), rng.lognormal(5, 3, n)
    logit = 2.0 * (town == "oak") - 1 + np.where((age > 50) == (debt > 150), 1.5, -1.5)
    return {
        "town": np.where(rng.random(n) < 0.05, "yew", town),
        "age": age,
        "debt": np.where(rng.random(n) < 0.1, np.nan, debt),
        "app": rng.random(n) < 0.4,
        "visits": rng.uniform(-1, 11, n),  # beyond its bounds
        "left": (rng.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64),
    }


def schema_of(contract: Contract, frame: Mapping[str, Any]) -> Schema:
    asked = SchemaRound(contract)
    cells = asked.contribute(0, frame, None).cells
    counts = np.bincount(cells.ravel(), minlength=asked.length(0)).astype(np.float64)
    return asked.schema(NoisySum(counts, 1.0))


def fit(learner: Learner, rounds: int, customers: Coded) -> list[NoisySum]:
    """A learner's rounds over one branch, without noise."""
    totals = list[NoisySum]()
    for r in range(rounds):
        given = learner.contribute(r, customers, learner.ask(r, totals))
        cells = isinstance(given, Cells)
        total = np.bincount(given.cells.ravel(), minlength=given.length) if cells else given.rows.sum(axis=0)
        totals.append(NoisySum(total.astype(np.float64), 0.0))
    return totals


def header(kind: Any, contract: Contract, **more: Any) -> ModelHeader:
    label = contract.label.name if contract.label and kind != "segments" else None
    return ModelHeader(
        kind=kind,
        name="to-score",
        purpose="to be scored with",
        job_id="0" * 32,
        job_hash="ab" * 32,
        contract=contract.hash,
        contract_name=contract.name,
        inputs=inputs_hash(contract),
        label=label,
        epsilon=1.0,
        delta=1e-6,
        made=datetime(2026, 1, 1, tzinfo=UTC),
        **more,
    )


def trees_or_card(kind: str, contract: Contract, frame: Mapping[str, Any], **question: Any) -> SavedModel:
    schema = schema_of(contract, frame)
    customers = Coded(schema.codes(frame), label_codes(contract, frame))
    module: Any = {"boosted-trees": boosted_trees, "scorecard": scorecard_fit}[kind]
    learner = module.build(module.Question(**question), schema, contract)
    tensors, parameters = learner.saved(fit(learner, question["rounds"], customers))
    return SavedModel(header(kind, contract, schema_=schema, parameters=dict(parameters)), tensors)


def net_of(contract: Contract, model: Model, seed: int = 3) -> SavedModel:
    rng = np.random.default_rng(seed)
    net = churn_net.build(contract, model, seed)
    weights = churn_net.flatten(net) + rng.normal(0, 0.4, churn_net.size(net)).astype(np.float32)
    parameters = {"model": model.model_dump(mode="json")}
    return SavedModel(header("churn-net", contract, parameters=parameters), {"weights": weights})


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@cache
def saved(kind: str) -> SavedModel:
    if kind == "churn-net":
        return net_of(CONTRACT, Model(hidden=(8, 4), embedding_dim=3))
    if kind == "segments":
        centres = np.random.default_rng(5).uniform(-1, 1, (4, 2)).astype(np.float32)
        return SavedModel(
            header("segments", CONTRACT, parameters={"names": ["visits", "debt"]}), {"centres": centres}
        )
    question = {"rounds": 6, "trees": 5} if kind == "boosted-trees" else {"rounds": 8}
    return trees_or_card(kind, CONTRACT, people(3000, 0), **question)


FRAME = people(500, 1)


def scored(model: SavedModel, reasons: int = 0, frame: Mapping[str, Any] = FRAME) -> Scores:
    return scorer(model, CONTRACT).score(frame, reasons=reasons)


# --- scores ------------------------------------------------------------------------------------------------


def test_a_nets_probability_is_its_own() -> None:
    model = saved("churn-net")
    net = churn_net.build(CONTRACT, Model.model_validate(model.header.parameters["model"]))
    churn_net.load(net, np.asarray(model.tensors["weights"]))
    found = scored(model)
    assert found.probability is not None and (found.points, found.segment, found.reasons) == (None,) * 3
    own = churn_net.logits(net, Encoder(CONTRACT).transform(FRAME))
    assert np.ptp(own) > 1
    assert found.probability.tolist() == expit(own).tolist()


def test_a_forests_probability_is_its_own() -> None:
    model = saved("boosted-trees")
    schema, numbers = model.header.schema_, np.asarray(model.tensors["forest"])
    assert schema is not None
    learner = boosted_trees.build(boosted_trees.Question(rounds=6, trees=5), schema, CONTRACT)
    own = learner.logits(schema.codes(FRAME), numbers)
    found = scored(model)
    assert found.probability is not None and np.ptp(own) > 1
    assert found.probability.tolist() == expit(own).tolist()


def test_a_cards_points_are_its_log_odds_exactly() -> None:
    model = saved("scorecard")
    card, schema = Scorecard.model_validate(model.header.parameters["card"]), model.header.schema_
    assert schema is not None
    found = scored(model)
    assert found.points is not None and found.probability is not None and np.ptp(found.points) > 20
    by_hand = [
        card.base + sum(a.bins[c].points for a, c in zip(card.attributes, row, strict=True))
        for row in schema.codes(FRAME)
    ]
    assert found.points.tolist() == by_hand
    assert found.probability.tolist() == expit(card.scaling.log_odds(found.points)).tolist()
    learner = scorecard_fit.build(scorecard_fit.Question(rounds=8), schema, CONTRACT)
    finished = np.array([card.base, *np.asarray(model.tensors["points"])], dtype=np.float32)
    assert found.probability.tolist() == expit(learner.logits(schema.codes(FRAME), finished)).tolist()


def test_a_segment_is_the_nearest_centre() -> None:
    model = saved("segments")
    found = scored(model)
    assert found.segment is not None and len(set(found.segment.tolist())) == 4
    spec = {s.name: s for s in model_features(CONTRACT)}
    values = np.stack(
        [number_codes(FRAME[n], spec[n], np.zeros(0))[1] for n in ("visits", "debt")], axis=1
    ).astype(np.float64)
    far = ((values[:, None] - np.asarray(model.tensors["centres"], dtype=np.float64)) ** 2).sum(axis=2)
    assert found.segment.tolist() == far.argmin(axis=1).tolist()
    assert found.segment.tolist() == kmeans.assign(values, model.tensors["centres"]).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_customers_score_is_their_own(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, among others, in small parts, in Arrow or numpy: the same; and of nobody, nothing."""
    ready = scorer(saved(kind), CONTRACT)
    assert set(ready.columns) <= set(FRAME) - {"left"}
    whole = ready.score(FRAME, reasons=3)
    monkeypatch.setattr("sfumato.common.learners.scoring.ROWS", 64)
    frame = {n: pa.chunked_array([pa.array(FRAME[n], from_pandas=True)]) for n in ready.columns}
    again = ready.score(frame, reasons=3)
    one = ready.score({n: FRAME[n][7:8] for n in ready.columns}, reasons=3)
    nobody = ready.score({n: frame[n][:0] for n in ready.columns}, reasons=3)
    for name in ("probability", "points", "segment"):
        all_, parts = getattr(whole, name), getattr(again, name)
        assert (all_ is None) == (parts is None) == (getattr(one, name) is None)
        if all_ is not None:
            assert np.allclose(all_, parts, rtol=1e-5, atol=0)
            assert np.isclose(getattr(one, name)[0], all_[7], rtol=1e-5)
            assert len(getattr(nobody, name)) == 0
    if kind == "segments":
        assert whole.reasons is None
        return
    assert whole.reasons is not None and again.reasons is not None and one.reasons is not None
    for mine, same in zip([*whole.reasons, whole.reasons[7]], [*again.reasons, *one.reasons], strict=True):
        assert [r.amount for r in mine] == pytest.approx([r.amount for r in same], abs=1e-4)
        assert {r.column for r in mine if r.amount > 1e-2} <= {r.column for r in same}
    assert nobody.reasons == ()


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_are_not_the_contracts(kind: str) -> None:
    ready = scorer(saved(kind), CONTRACT)
    for wrong, says in (
        ({n: v for n, v in FRAME.items() if n != "debt"}, "no column 'debt'"),
        ({**FRAME, "debt": FRAME["debt"][:9]}, "differ in length"),
        ({**FRAME, "debt": np.array(["a lot"] * 500)}, "does not hold what the contract says"),
    ):
        with pytest.raises(BadInput, match=says):
            ready.score(wrong)
    with pytest.raises(BadInput, match="0 reasons or more"):
        ready.score(FRAME, reasons=-1)


# --- reasons -----------------------------------------------------------------------------------------------


def test_amounts_of_trees_are_what_their_definition_says() -> None:
    """Column by column and bin by bin, the slow way; also of trees that cut a column twice."""
    schema = schema_of(CONTRACT, FRAME)
    counts = list(schema.columns[1].counts)
    counts[0] = -3.0  # noise may do that
    columns = list(schema.columns)
    columns[1] = columns[1].model_copy(update={"counts": tuple(counts)})
    schema = schema.model_copy(update={"columns": tuple(columns)})
    rng = np.random.default_rng(1)
    shapes = (
        ((1,), (15,)),
        ((1, 0, 2), (3, 1, 1)),
        ((1, 1, 2), (3, 1, 1)),
        ((2, 2), (3, 3)),
        ((4, 1), (3, 3)),
    )
    trees = tuple(
        Tree(
            features=features,
            cuts=tuple(
                tuple(sorted(rng.integers(1, schema.cardinalities[f] + 1, k).tolist()))
                for f, k in zip(features, cuts, strict=True)
            ),
            steps=tuple(rng.normal(size=LEAVES).tolist()),
        )
        for features, cuts in shapes * 3
    )
    forest, codes = Forest(base=-1.0, trees=trees), schema.codes({n: v[:40] for n, v in FRAME.items()})
    found = ForestAmounts.of(forest, schema).amounts(codes)
    for f, column in enumerate(schema.columns):
        share = np.maximum(column.counts, 0.0)
        average = np.zeros(len(codes))
        for b, s in enumerate(share / share.sum()):
            moved = codes.copy()
            moved[:, f] = b
            average += s * forest.logits(moved)
        assert found[:, f] == pytest.approx(forest.logits(codes) - average, abs=1e-9)


@pytest.mark.parametrize("hidden", [(), (6,), (8, 4)])
def test_amounts_of_a_net_are_what_their_definition_says(hidden: tuple[int, ...]) -> None:
    """The net itself, asked about each customer with each bin of each column in place of their own."""
    model = Model(hidden=hidden, embedding_dim=2, bins=4)
    net, encoder = churn_net.build(CONTRACT, model), Encoder(CONTRACT, 4)
    churn_net.load(net, np.asarray(net_of(CONTRACT, model).tensors["weights"]))
    encoded = encoder.transform({n: v[:20] for n, v in FRAME.items()})
    numeric = [f.numeric for f in encoder.features]
    for typical in (Typical.of_contract(CONTRACT, model), Typical.of_customers(encoded, CONTRACT)):
        found = NetAmounts(net, encoder.cardinalities, typical, numeric).amounts(encoded)
        for f in range(len(numeric)):
            assert typical.shares[f].sum() == pytest.approx(1)
            average = np.zeros(len(encoded))
            for code, share in enumerate(typical.shares[f]):
                codes, numbers = encoded.codes.copy(), encoded.numeric.copy()
                codes[:, f] = code
                if numeric[f]:
                    numbers[:, sum(numeric[:f])] = typical.numbers[f][code]
                moved = dataclasses.replace(encoded, codes=codes, numeric=numbers)
                average += share * churn_net.logits(net, moved)
            assert found[:, f] == pytest.approx(churn_net.logits(net, encoded) - average, abs=2e-5)


def test_what_a_net_reads_by_month_is_a_reason_too() -> None:
    tables = [
        {"name": "customers", "columns": [COLUMNS[0], COLUMNS[2], COLUMNS[-1]]},
        {"name": "visits", "columns": [COLUMNS[0], {"name": "day", "type": "date", "role": "time"}]},
    ]
    facts = {"version": 1, "name": "toy", "purpose": "to be scored under", "as_of": "2026-01-01"}
    roll_ups = [{"name": n, "table": "visits", "aggregate": "count", "bounds": [0, 9]} for n in ("a", "b")]
    contract = Contract.model_validate({**facts, "tables": tables, "features": roll_ups})
    model = Model(architecture="recurrent", hidden=(4,), sequence=("a", "b"), months=3)
    file, rng = net_of(contract, model), np.random.default_rng(4)
    ready = scorer(file, contract)
    frame = {name: rng.uniform(0, 9, 40) for name in ready.columns}
    ready = scorer(file, contract, frame)
    net, encoder = churn_net.build(contract, model), churn_net.encoder(contract, model)
    churn_net.load(net, np.asarray(file.tensors["weights"]))
    encoded = encoder.transform(frame)
    for s, name in enumerate(("a", "b")):
        assert encoded.sequence is not None
        sequence = encoded.sequence.copy()
        sequence[:, :, s] = sequence[:, :, s].mean(axis=0)
        amount = churn_net.logits(net, encoded) - churn_net.logits(
            net, dataclasses.replace(encoded, sequence=sequence)
        )
        reasons = ready.score(frame, reasons=9).reasons
        assert reasons is not None and (amount > 0.01).any()
        said = [[r for r in rs if r.column == f"{name} by month"] for rs in reasons]
        assert [sum(r.amount for r in rs) for rs in said] == pytest.approx(np.maximum(amount, 0), abs=2e-5)
        assert {r.bin for rs in said for r in rs} == {"the last 3 months"}
    even = Typical.of_contract(contract, model).sequence
    assert even is not None and even.tolist() == [[-1.0, -1.0]] * 3


def test_the_even_customer_lies_in_the_middle_of_each_bin() -> None:
    even = Typical.of_contract(CONTRACT, Model(bins=4))
    assert even.shares[0].tolist() == [1 / 3] * 3 + [0, 0]  # town: neither other nor null
    assert even.numbers[4] == pytest.approx([0.5 / 4.5 - 1, 2 / 4.5 - 1, 6 / 4.5 - 1, 0])
    whole = contract_of([COLUMNS[0], {**COLUMNS[2], "bounds": [0, 3]}, COLUMNS[-1]])
    assert Typical.of_contract(whole, Model(bins=4)).numbers[0] == pytest.approx([-1, -1 / 3, 1 / 3, 1, 0])


def test_only_what_moves_toward_the_label_is_a_reason() -> None:
    model = saved("boosted-trees")
    assert model.header.schema_ is not None
    ready = scorer(model, CONTRACT)
    assert ready.score(FRAME).reasons is None
    few, many = ready.score(FRAME, reasons=2).reasons, ready.score(FRAME, reasons=99).reasons
    assert few is not None and many is not None
    assert all(len(a) <= 2 and a == b[:2] for a, b in zip(few, many, strict=True))
    amounts = [[r.amount for r in reasons] for reasons in many]
    assert all(a == sorted(a, reverse=True) and min(a, default=1) > 0 for a in amounts)
    assert {len(a) for a in amounts} > {1, 2}
    oaks = [reasons for row, reasons in zip(FRAME["town"], many, strict=True) if row == "oak"]
    said = {r.bin for reasons in oaks for r in reasons if r.column == "town"}
    assert len(said) == 1 and said.pop().startswith("oak")
    assert np.mean([any(r.column == "town" for r in reasons) for reasons in oaks]) > 0.95


def test_equal_amounts_go_by_place_and_rounding_is_nothing() -> None:
    words = scorer(saved("boosted-trees"), CONTRACT)._words  # type: ignore[attr-defined]
    amounts, codes = np.array([[0.5, 1e-9, 0.5, -1.0, 0.7]]), np.zeros((1, 5), dtype=np.int64)
    (found,) = largest(amounts, codes, words, 4)
    assert [(r.column, r.amount) for r in found] == [("visits", 0.7), ("town", 0.5), ("debt", 0.5)]
    assert found[0] == Reason("visits", words[4].bins[0], 0.7)


# --- what is in the file -----------------------------------------------------------------------------------


def changed(
    kind: str, *, header: Mapping[str, Any] | None = None, tensors: Any = None, **parameters: Any
) -> SavedModel:
    model = saved(kind)
    facts = {"parameters": {**model.header.parameters, **parameters}, **(header or {})}
    return SavedModel(model.header.model_copy(update=facts), model.tensors if tensors is None else tensors)


def schema_with(column: int, **change: Any) -> dict[str, Any]:
    schema = saved("boosted-trees").header.schema_
    assert schema is not None
    columns = list(schema.columns)
    columns[column] = columns[column].model_copy(update=change)
    return {"schema_": schema.model_copy(update={"columns": tuple(columns)})}


def tensor(kind: str) -> Any:
    (value,) = saved(kind).tensors.values()
    return np.array(value)


def with_tensor(kind: str, change: Callable[[Any], Any]) -> Callable[[], SavedModel]:
    (name,) = saved(kind).tensors
    return lambda: changed(kind, tensors={name: change(tensor(kind))})


def put(place: Any, value: Any) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[place] = value
        return array

    return change


def card_with(**change: Any) -> dict[str, Any]:
    return {**saved("scorecard").header.parameters["card"], **change}


FOREIGN = {"contract": "0" * 64, "inputs": "0" * 64}
DAMAGED: list[tuple[Callable[[], SavedModel], str]] = [
    *((lambda k=k: changed(k, header=FOREIGN), "another version of contract") for k in KINDS),
    *((lambda k=k: changed(k, tensors={}), "expected one tensor .* found none") for k in KINDS),
    *((lambda k=k: changed(k, tensors={**saved(k).tensors, "b": tensor(k)}), "expected one tensor") for k in KINDS),
    *((with_tensor(k, lambda a: a.astype(np.float64)), "-dimensional float64") for k in KINDS),
    *((with_tensor(k, lambda a: a[None]), "is [23]-dimensional") for k in KINDS),
    *((lambda k=k: changed(k, header={"parameters": {}}), "parameter .* is NoneType") for k in KINDS),
    *((lambda k=k: changed(k, header={"label": "age"}), "foretells 'age'") for k in KINDS[:3]),
    *((lambda k=k: changed(k, header={"schema_": None}), "it has no schema") for k in KINDS[1:3]),
    (with_tensor("churn-net", lambda a: a[:-1]), "weights, got"),
    (with_tensor("churn-net", put(3, np.nan)), "must be finite"),
    (lambda: changed("churn-net", model={"hidden": [8, 4], "embedding_dim": 0}), "embedding_dim"),
    (lambda: changed("churn-net", model={"hidden": [8, 4], "embedding_dim": 2}), "weights, got"),
    (lambda: changed("churn-net", model={"layers": 4}), "layers: Extra inputs"),
    (lambda: changed("churn-net", model=[8, 4]), "must be of type dict, is list"),
    (with_tensor("boosted-trees", lambda a: a[:-1]), "another length"),
    (with_tensor("boosted-trees", put(0, np.inf)), "finite"),
    (with_tensor("boosted-trees", put(2, 5.0)), "what the schema does not have"),  # a feature
    (with_tensor("boosted-trees", put(2, 0.5)), "whole numbers"),
    (with_tensor("boosted-trees", put(1, 3.0)), "whole numbers"),  # a shape
    (with_tensor("boosted-trees", put(5, 1e30)), "does not have|ascend"),  # a cut
    (with_tensor("boosted-trees", put(20, 1e4)), "at most"),  # a step
    (lambda: changed("boosted-trees", rounds=5), "another length"),
    (lambda: changed("boosted-trees", rounds=6.0), "must be of type int, is float"),
    (lambda: changed("boosted-trees", rounds=True), "must be of type int, is bool"),
    (lambda: changed("boosted-trees", rounds=-1), "rounds: Input should be greater"),
    (lambda: changed("boosted-trees", trees=10**9), "trees: Input should be less"),
    (lambda: changed("boosted-trees", header=schema_with(0, categories={"ash": 0, "elm": 1})), "'town' has other"),
    (lambda: changed("boosted-trees", header=schema_with(0, categories=None, cuts=(1.0,))), "'town' has other"),
    (lambda: changed("boosted-trees", header=schema_with(1, cuts=(30.0,))), "'age' has bins that nobody"),
    (lambda: changed("boosted-trees", header=schema_with(1, name="years")), "not one of contract"),
    (with_tensor("scorecard", put(2, 10**6)), "points of its card"),
    (with_tensor("scorecard", lambda a: a[1:]), "points of its card"),
    (lambda: changed("scorecard", card=card_with(base=10**9)), "within 1,000,000 points"),
    (lambda: changed("scorecard", card=card_with(attributes=card_with()["attributes"][1:])), "other columns"),
    (lambda: changed("scorecard", card=card_with(attributes=card_with()["attributes"][::-1])), "other columns"),
    (lambda: changed("scorecard", card=card_with(scaling={"double": 0})), "scaling.double"),
    (lambda: changed("segments", names=["visits"]), "must be of 1 numbers"),
    (lambda: changed("segments", names=["visits", "visits"]), "must be of 1 numbers"),
    (lambda: changed("segments", names=["visits", "town"]), "must name numbers"),
    (lambda: changed("segments", names=["visits", 2]), "must name numbers"),
    (lambda: changed("segments", names=[]), "must name numbers"),
    (with_tensor("segments", put((1, 1), np.nan)), "must be finite"),
    (with_tensor("segments", lambda a: a[:0]), "must be of 2 numbers"),
    (lambda: changed("segments", header={"kind": "scorecard"}), "foretells None"),
    (lambda: changed("boosted-trees", header={"kind": "scorecard"}), "expected one tensor 'points'"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "says"), DAMAGED)
def test_a_damaged_or_foreign_model_is_refused(made: Callable[[], SavedModel], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        scorer(made(), CONTRACT)


def test_a_net_beyond_all_measure_scores_nobody() -> None:
    ready = scorer(with_tensor("churn-net", lambda a: np.full_like(a, 3e38))(), CONTRACT)
    with pytest.raises(BadInput, match="no numbers"):
        ready.score(FRAME)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_a_wrong_byte_is_refused_or_scores(kind: str) -> None:
    """Never a traceback, and no score that is no number. Such a byte may make another model, which nobody can see."""
    data, rng = saved(kind).to_bytes(), np.random.default_rng(8)
    outcomes = set()
    frame = {n: v[:5] for n, v in FRAME.items()}
    for place in rng.integers(0, len(data), 40).tolist():
        wrong = bytearray(data)
        wrong[place] ^= 1 << int(rng.integers(0, 8))
        try:
            found = scored(SavedModel.of_bytes(bytes(wrong), "it"), 2, frame)
        except BadInput:
            outcomes.add("refused")
            continue
        outcomes.add("scored")
        assert found.probability is None or ((found.probability >= 0) & (found.probability <= 1)).all()
    for length in (0, 7, 8, 100, len(data) - 1):
        with pytest.raises(BadInput, match="not a model file"):
            SavedModel.of_bytes(data[:length], "it")
    assert outcomes == {"refused", "scored"}


def test_a_file_is_the_same_again() -> None:
    for kind in KINDS:
        data = saved(kind).to_bytes()
        again = SavedModel.of_bytes(data, "it")
        assert again.to_bytes() == data and again.header == saved(kind).header


# --- the sample bank: the causes are known ------------------------------------------------------------------

CAUSES: list[dict[str, Any]] = [
    {"name": "decline", "type": "number", "role": "feature", "bounds": [0, 1]},
    {"name": "complaints", "type": "integer", "role": "feature", "bounds": [0, 12]},
    {"name": "tenure", "type": "integer", "role": "feature", "bounds": [0, 960]},
    {"name": "products", "type": "integer", "role": "feature", "bounds": [1, 7]},
    {"name": "salary", "type": "boolean", "role": "feature"},
    {"name": "age", "type": "integer", "role": "feature", "bounds": [18, 100]},
]
IDLE: list[dict[str, Any]] = [
    {"name": "gender", "type": "category", "role": "feature", "categories": list(GENDERS)},
    {"name": "marital", "type": "category", "role": "feature", "categories": list(MARITAL)},
    {"name": "channel", "type": "integer", "role": "feature", "bounds": [0, 3]},
]
IDLE_NAMES = [c["name"] for c in IDLE]
BANK = contract_of([COLUMNS[0], *CAUSES, *IDLE, COLUMNS[-1]], "bank")


@cache
def bank() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Customers of the generator's first branch, and what each cause truly adds to their log-odds of leaving."""
    rng, c = np.random.default_rng(12), COEFFICIENTS
    drawn = draw_people(rng, PROFILES[0], 6000)
    frame = {
        "decline": drawn.decline,
        "complaints": drawn.complaints,
        "tenure": drawn.tenure_months,
        "products": drawn.products,
        "salary": drawn.salary,
        "age": drawn.age,
        "gender": np.array(GENDERS)[drawn.gender],
        "marital": np.array(MARITAL)[drawn.marital],
        "channel": drawn.channel,
        "left": (rng.random(6000) < drawn.propensity).astype(np.int64),
    }
    truth = {
        # A tired customer is dissatisfied too, which no column shows.
        "decline": (c["decline"] + 1.3 * c["dissatisfaction"]) * drawn.decline,
        "complaints": c["complaint"] * np.minimum(drawn.complaints, 3),
        "tenure": c["tenure_year"] * np.minimum(drawn.tenure_months / 12, 25),
        "products": c["extra_product"] * (drawn.products - 1.0),
        "salary": c["salary"] * drawn.salary,
        "age": c["young"] * np.exp(-(((drawn.age - 27) / 7) ** 2))
        + c["old"] * np.exp(-(((drawn.age - 74) / 9) ** 2)),
    }
    return frame, {name: value - value.mean() for name, value in truth.items()}


def trained_net(frame: dict[str, Any]) -> SavedModel:
    """By plain gradient descent: what would come out without noise."""
    model = Model(hidden=(8,), embedding_dim=2, bins=16)
    net, encoded = churn_net.build(BANK, model), Encoder(BANK, 16).transform(frame)
    codes, numeric = torch.from_numpy(encoded.codes), torch.from_numpy(encoded.numeric)
    labels = torch.from_numpy(frame["left"].astype(np.float32))
    weights = list(net.parameters())
    speed = [torch.zeros_like(w) for w in weights]
    for step in range(120):  # by hand, with momentum: torch.optim takes seconds to be imported
        rows = slice(step % 10 * 600, step % 10 * 600 + 600)
        logits = net(codes[rows], numeric[rows])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[rows])
        with torch.no_grad():
            for w, v, slope in zip(weights, speed, torch.autograd.grad(loss, weights), strict=True):
                v.mul_(0.9).sub_(slope, alpha=0.3)
                w.add_(v)
    parameters = {"model": model.model_dump(mode="json")}
    return SavedModel(header("churn-net", BANK, parameters=parameters), {"weights": churn_net.flatten(net)})


@cache
def of_bank(kind: str) -> SavedModel:
    frame, _ = bank()
    if kind == "churn-net":
        return trained_net(frame)
    question = {"rounds": 15, "trees": 12} if kind == "boosted-trees" else {"rounds": 30}
    return trees_or_card(kind, BANK, frame, **question)


@pytest.mark.parametrize("kind", KINDS[:3])
def test_the_first_reason_is_the_true_cause(kind: str) -> None:
    frame, truth = bank()
    ready = scorer(of_bank(kind), BANK, {n: v[:2000] for n, v in frame.items()})
    reasons = ready.score(frame, reasons=3).reasons
    assert reasons is not None
    first = np.array([r[0].column if r else "" for r in reasons])
    names = np.array(list(truth))
    added = np.stack(list(truth.values()), axis=1)
    order = np.argsort(-added, axis=1)
    rows = np.arange(len(added))
    most, second = added[rows, order[:, 0]], added[rows, order[:, 1]]
    # One cause is large, and larger than every other by half a unit of log-odds.
    plain = (most > 0.6) & (most - second > 0.5)
    assert plain.mean() > 0.2
    cause = names[order[plain, 0]]
    named = {n: (first[plain][cause == n] == n).mean() for n in names if (cause == n).sum() > 50}
    assert set(named) == {"decline", "complaints", "products", "age"}
    assert (first[plain] == cause).mean() > 0.95 and min(named.values()) > 0.9, named
    # What causes nothing is told first only to those who have no cause, and then as next to nothing.
    told, idle = np.array([r[0].amount if r else 0.0 for r in reasons]), np.isin(first, IDLE_NAMES)
    assert idle[plain].mean() < 0.01 and idle.mean() < 0.1
    assert told[idle].mean() < 0.2 * np.median(told[~idle])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_columns_on_another_day_without_a_label_are_scored_alike(kind: str) -> None:
    """Today's customers, of whom nobody knows yet whether they will leave; but for another purpose they are not."""
    contract, model = CONTRACT, saved(kind)
    tables = [t.model_dump(mode="json") for t in contract.tables]
    tables[0]["columns"] = [c for c in tables[0]["columns"] if c["role"] != "label"]
    today = Contract.model_validate(contract.model_dump(mode="json") | {"tables": tables})
    assert today.label is None and today.hash != contract.hash
    there, here = (scorer(model, c).score(FRAME) for c in (contract, today))
    for name in ("probability", "points", "segment"):
        one, other = getattr(there, name), getattr(here, name)
        assert (one is None and other is None) or (one == other).all()
    with pytest.raises(BadInput, match="another version of contract"):
        scorer(model, contract.model_copy(update={"purpose": "To sell them more than they need."}))
