"""ONNX files give the scores that the learners give: of nulls, unknown values, on cuts and out of bounds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest

from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.job import Model
from sfumato.common.learners import bins, churn_net, kmeans, random_trees
from sfumato.common.learners.encoding import Encoder, bin_edges, model_features, number_codes
from sfumato.common.learners.models import SavedModel
from sfumato.common.learners.scorecard import Scorecard
from sfumato.common.learners.scoring import scorer
from sfumato.server.onnx_export import onnx_bytes

Columns = dict[str, pa.Array]
Make = Callable[..., SavedModel]


def run(file: bytes, columns: Columns) -> dict[str, np.ndarray[Any, Any]]:
    """As somebody without Sfumato would: one array a column."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    given = {}
    for wanted in session.get_inputs():
        column = columns[wanted.name]
        if wanted.type == "tensor(string)":
            given[wanted.name] = np.array([v or "" for v in column.to_pylist()], dtype=object)
        else:
            assert wanted.type == "tensor(double)"
            given[wanted.name] = np.asarray(column.fill_null(np.nan), dtype=np.float64)
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


def logits(model: SavedModel, contract: Contract, columns: Columns) -> np.ndarray[Any, Any]:
    """What the learner itself says."""
    header = model.header
    if header.kind == "churn-net":
        shape = Model.model_validate(header.parameters["model"])
        net = churn_net.build(contract, shape)
        churn_net.load(net, np.asarray(model.tensors["weights"]))
        return churn_net.logits(net, Encoder(contract, shape.bins).transform(columns))
    assert header.schema_ is not None
    codes = header.schema_.codes(columns)
    if header.kind == "scorecard":
        return Scorecard.model_validate(header.parameters["card"]).log_odds(codes)
    rounds, trees = header.parameters["rounds"], header.parameters["trees"]
    forest, _ = random_trees.decode(model.tensors["forest"], trees, rounds, grown_only=True)  # type: ignore[arg-type]
    return forest.logits(codes)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", ["churn-net", "boosted-trees", "scorecard"])
def test_scores_are_those_of_the_learner(
    kind: str, seed: int, model_of: Make, bank_contract: Contract, customers_of: Callable[..., Columns]
) -> None:
    model, columns = model_of(kind, seed), customers_of(3000, seed)
    expected, found = logits(model, bank_contract, columns), run(onnx_bytes(model, bank_contract), columns)
    assert np.ptp(expected) > 1 and found["log_odds"].dtype == np.float64
    np.testing.assert_allclose(found["log_odds"], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["probability"], 1 / (1 + np.exp(-expected)), rtol=0, atol=1e-5)


def test_scores_are_those_of_local_scoring(
    model_of: Make, bank_contract: Contract, customers_of: Callable[..., Columns]
) -> None:
    """What `sfumato branch score` would write for the same customers."""
    columns = customers_of(2000, 5)
    for kind in ("churn-net", "boosted-trees", "scorecard", "segments", "component-segments"):
        model = model_of(kind, 3)
        found, local = (
            run(onnx_bytes(model, bank_contract), columns),
            scorer(model, bank_contract).score(columns),
        )
        given = {"probability": local.probability, "points_": local.points, "segment": local.segment}
        assert local.segment is None or len(set(local.segment.tolist())) > 2
        compared = {name for name, expected in given.items() if expected is not None}
        assert compared == set(found) - {"log_odds"} and compared
        for name in compared:
            np.testing.assert_allclose(
                found[name], given[name], rtol=0, atol=1e-5 if name == "probability" else 0
            )


def test_a_column_may_be_called_as_our_values_or_outputs_are(
    model_of: Make, bank_schema: bins.Schema, customers_of: Callable[..., Columns]
) -> None:
    columns = customers_of(20)
    names = dict(zip(columns, ("Add/1", "points", "points_", "Cast/3", "log_odds", "@"), strict=True))
    renamed = tuple(c.model_copy(update={"name": names[c.name]}) for c in bank_schema.columns)
    model = model_of("scorecard")
    card = Scorecard.model_validate(model.header.parameters["card"])
    attributes = tuple(a.model_copy(update={"column": names[a.column]}) for a in card.attributes)
    card = card.model_copy(update={"attributes": attributes})
    parameters, schema = (
        {"card": card.model_dump(mode="json")},
        bank_schema.model_copy(update={"columns": renamed}),
    )
    header = model.header.model_copy(update={"parameters": parameters, "schema_": schema})
    given = {names[name]: column for name, column in columns.items()}
    found = run(onnx_bytes(SavedModel(header, model.tensors)), given)
    np.testing.assert_array_equal(found["points__"], card.scores(schema.codes(given)))
    assert set(found) == {"points__", "log_odds_", "probability"}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_scorecards_points_and_log_odds_are_the_very_same(
    seed: int, model_of: Make, customers_of: Callable[..., Columns]
) -> None:
    model, columns = model_of("scorecard", seed), customers_of(5000, seed)
    card = Scorecard.model_validate(model.header.parameters["card"])
    assert model.header.schema_ is not None
    codes = model.header.schema_.codes(columns)
    found = run(onnx_bytes(model), columns)
    points = found["points_"]  # a column of this bank is called "points"
    assert points.dtype == np.int64
    np.testing.assert_array_equal(points, card.scores(codes))
    np.testing.assert_array_equal(found["log_odds"], card.log_odds(codes))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_segments_are_those_of_kmeans(
    seed: int, model_of: Make, bank_contract: Contract, customers_of: Callable[..., Columns]
) -> None:
    model, columns = model_of("segments", seed), customers_of(3000, seed)
    specs = {s.name: s for s in model_features(bank_contract)}
    values = [
        number_codes(columns[name], specs[name], bin_edges(specs[name], 16))[1]
        for name in model.header.parameters["names"]
    ]
    expected = kmeans.assign(np.stack(values, axis=1), model.tensors["centres"])
    found = run(onnx_bytes(model, bank_contract), columns)["segment"]
    assert len(set(expected.tolist())) > 2
    np.testing.assert_array_equal(found, expected)


def test_every_bin_of_every_column_is_reached(
    model_of: Make, bank_schema: bins.Schema, customers_of: Callable[..., Columns]
) -> None:
    """Else the comparisons above would have proved less than they say."""
    codes = bank_schema.codes(customers_of(3000))
    for column, spec in zip(codes.T, bank_schema.columns, strict=True):
        assert set(column.tolist()) == set(range(len(spec.counts)))


def test_no_customers_give_no_scores(
    model_of: Make, bank_contract: Contract, customers_of: Callable[..., Columns]
) -> None:
    nobody = customers_of(0)
    for kind in ("churn-net", "boosted-trees", "scorecard", "segments", "component-segments"):
        found = run(onnx_bytes(model_of(kind), bank_contract), nobody)
        assert all(v.shape == (0,) for v in found.values())


def test_a_forest_without_trees_says_its_base(model_of: Make, customers_of: Callable[..., Columns]) -> None:
    grown = model_of("boosted-trees")
    header = grown.header.model_copy(update={"parameters": {"rounds": 0, "trees": 8}})
    bare = SavedModel(header, {"forest": grown.tensors["forest"][:1]})
    np.testing.assert_array_equal(run(onnx_bytes(bare), customers_of(4))["log_odds"], [-1.25] * 4)


def test_the_same_model_gives_the_same_file_with_its_facts(model_of: Make, bank_contract: Contract) -> None:
    file = onnx_bytes(model_of("scorecard"))
    assert file == onnx_bytes(model_of("scorecard"), bank_contract)
    facts = {p.key: p.value for p in onnx.load_from_string(file).metadata_props}
    assert facts["sfumato.contract"] == bank_contract.hash and facts["sfumato.job_id"] == "ab" * 16
    assert "sfumato.parameters" not in facts


@pytest.mark.parametrize("kind", ["churn-net", "segments"])
def test_what_encodes_by_its_contract_needs_exactly_that(
    kind: str, model_of: Make, bank_contract: Contract
) -> None:
    with pytest.raises(BadInput, match="--contract"):
        onnx_bytes(model_of(kind))
    other = bank_contract.model_copy(update={"purpose": "Something else entirely."})
    with pytest.raises(BadInput, match="another version of contract"):
        onnx_bytes(model_of(kind), other)


def changed(model: SavedModel, **changes: Any) -> SavedModel:
    tensors = {k: v for k, v in (dict(model.tensors) | changes).items() if v is not None}
    return SavedModel(model.header, tensors)


@pytest.mark.parametrize(
    ("kind", "tensors"),
    [
        ("scorecard", {"points": None}),
        ("scorecard", {"points": np.zeros(3, dtype=np.int64)}),
        ("boosted-trees", {"forest": np.zeros(4, dtype=np.float32)}),
        ("churn-net", {"weights": np.zeros(4, dtype=np.float32)}),
        ("segments", {"centres": np.zeros((2, 2), dtype=np.float32)}),
        ("component-segments", {"components": np.ones(7, dtype=np.float32)}),
        ("component-segments", {"components": None}),
    ],
)
def test_a_model_that_does_not_hold_what_it_says_is_refused(
    kind: str, tensors: dict[str, Any], model_of: Make, bank_contract: Contract
) -> None:
    with pytest.raises(BadInput, match="does not hold what a"):
        onnx_bytes(changed(model_of(kind), **tensors), bank_contract)


def test_points_that_are_not_the_cards_are_refused(model_of: Make) -> None:
    model = model_of("scorecard")
    with pytest.raises(BadInput, match="points are not those of its card"):
        onnx_bytes(changed(model, points=model.tensors["points"] + 1))


def test_a_tree_over_bins_that_are_not_there_is_refused(model_of: Make) -> None:
    model = model_of("boosted-trees")
    forest = np.array(model.tensors["forest"])
    forest[2] = 99  # the first tree's first feature
    with pytest.raises(BadInput, match="cuts what the schema does not have"):
        onnx_bytes(changed(model, forest=forest))


def test_an_empty_category_cannot_be_told_from_null(model_of: Make, bank_schema: bins.Schema) -> None:
    card = next(c for c in bank_schema.columns if c.name == "card")
    odd = card.model_copy(update={"categories": {"": 0, "Gold": 1}})
    schema = bank_schema.model_copy(
        update={"columns": tuple(odd if c is card else c for c in bank_schema.columns)}
    )
    with pytest.raises(BadInput, match="empty category"):
        onnx_bytes(model_of("scorecard", schema_=schema))
