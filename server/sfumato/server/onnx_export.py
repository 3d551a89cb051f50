"""A model as ONNX: raw columns in, scores out, without Sfumato.

One input a column, as the contract names it: double [N] for a number (NaN: null), string [N] for a category or a
boolean ("": null). All arithmetic is double, so scores are those of `sfumato branch score` but for rounding;
a scorecard's points are the very same. Outputs, each [N]:

churn-net, boosted-trees    log_odds, probability (double)
scorecard                   points (int64), log_odds, probability (double)
segments                    segment (int64, from 0)
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, numpy_helper
from pydantic import ValidationError
from torch import Tensor, nn

from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.common.job import Model
from sfumato.common.learners import bins, churn_net, random_trees
from sfumato.common.learners.components import Components, Inputs
from sfumato.common.learners.encoding import FeatureSpec, Monthly, bin_edges, model_features, monthly_specs
from sfumato.common.learners.models import SavedModel
from sfumato.common.learners.random_trees import LEAVES, STEEPEST, Forest, Tree
from sfumato.common.learners.scorecard import Scorecard
from sfumato.server.onnx_graph import ML, Graph

NEEDS_CONTRACT = ("churn-net", "segments")


def onnx_bytes(model: SavedModel, contract: Contract | None = None) -> bytes:
    """The ONNX file. A churn net and segments encode by the contract, the others carry their bins.

    Raises BadInput without the contract where it is needed, on another contract, and on a model that does not hold
    what its kind says.
    """
    header, graph = model.header, Graph()
    if contract is not None:
        model.require(contract)
    try:
        match header.kind:
            case "boosted-trees":
                _log_odds(graph, _forest(graph, model))
            case "scorecard":
                _scorecard(graph, model)
            case "churn-net":
                _log_odds(graph, _churn_net(graph, model, _needed(contract, model)))
            case "segments":
                _segments(graph, model, _needed(contract, model))
            case "offer":
                raise BadInput(
                    "a plan of offers draws by the customers' tokens, which ONNX knows nothing of",
                    hint="Apply it with `sfumato branch score`; its fractions stand in model.safetensors.",
                )
            case "clv":
                raise BadInput(
                    "lifetime value reads lists of purchases, which ONNX has no type for",
                    hint="Score with `sfumato branch score`; its parameters stand in model.safetensors.",
                )
            case "sentiment":
                raise BadInput(
                    "a sentiment model reads text, which ONNX has no way to cut into words as it does",
                    hint="Score with `sfumato branch score`, or read its weights from model.safetensors.",
                )
            case "anomaly":
                raise BadInput(
                    "an autoencoder of anomalies is not written as ONNX",
                    hint="Score with `sfumato branch score`; its numbers stand in model.safetensors.",
                )
    except (KeyError, ValueError, ValidationError) as e:
        raise BadInput(
            f"model {header.name!r} does not hold what a {header.kind} needs: {e}",
            hint="It was written by another release, or is damaged.",
        ) from None
    facts = header.model_dump(mode="json", exclude={"schema_", "parameters"})
    return graph.model(
        header.name, header.purpose, {f"sfumato.{k}": str(v) for k, v in facts.items() if v is not None}
    )


def _needed(contract: Contract | None, model: SavedModel) -> Contract:
    if contract is None:
        raise BadInput(
            f"a {model.header.kind} encodes by its contract, which is not kept with this run",
            hint=f"Give contract {model.header.contract_name!r} with --contract.",
        )
    return contract


def _log_odds(graph: Graph, value: str) -> None:
    graph.output("log_odds", value, TensorProto.DOUBLE, "log-odds of the label")
    graph.output("probability", graph.add("Sigmoid", value), TensorProto.DOUBLE, "probability of the label")


# --- kinds that carry their bins -----------------------------------------------------------------------------


def _schema(model: SavedModel) -> bins.Schema:
    if model.header.schema_ is None:
        raise ValueError("it has no schema")
    return model.header.schema_


def _schema_codes(graph: Graph, schema: bins.Schema) -> str:
    """`schema.codes` as a value, int64 [N, F]."""
    return graph.side_by_side([_codes(graph, column) for column in schema.columns])


def _codes(graph: Graph, column: bins.Column) -> str:
    if column.categories is not None:
        assert column.other is not None
        return graph.category_codes(column.name, column.categories, other=column.other, null=column.null)
    number = graph.number(column.name)
    found = graph.bins(number, column.cuts or ())
    return graph.unless_null(number, found, graph.constant(column.null, np.int64))


def _scorecard(graph: Graph, model: SavedModel) -> None:
    schema = _schema(model)
    card = Scorecard.model_validate(model.header.parameters["card"])
    sizes = tuple(len(a.bins) for a in card.attributes)
    if tuple(a.column for a in card.attributes) != tuple(c.name for c in schema.columns) or (
        sizes != schema.cardinalities
    ):
        raise ValueError("its card and its schema have other columns")
    points = np.array([b.points for a in card.attributes for b in a.bins], dtype=np.int64)
    if not np.array_equal(points, model.tensors["points"]):
        raise ValueError("its points are not those of its card")
    rows = graph.add("Add", _schema_codes(graph, schema), graph.constant(_offsets(sizes), np.int64))
    each = graph.add("Gather", graph.constant(points, np.int64), rows)
    total = graph.add("ReduceSum", each, graph.constant([1], np.int64), keepdims=0)
    score = graph.add("Add", total, graph.constant(card.base, np.int64))
    graph.output("points", score, TensorProto.INT64, "the customer's score; more is better")
    # As Scaling.log_odds, step by step: the same doubles to the last bit.
    short = graph.double(graph.add("Sub", graph.constant(card.scaling.base_score, np.int64), score))
    log_odds = graph.add("Div", short, graph.constant(card.scaling.factor))
    _log_odds(graph, graph.add("Sub", log_odds, graph.constant(np.log(card.scaling.base_odds))))


def _offsets(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Where each column's codes begin, when all stand side by side."""
    return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)


def read_forest(model: SavedModel) -> Forest:
    """The forest of a model of kind boosted-trees. Raises KeyError or ValueError if it holds none."""
    parameters = model.header.parameters
    numbers = np.asarray(model.tensors["forest"], dtype=np.float32)
    forest, _ = random_trees.decode(
        numbers, int(parameters["trees"]), int(parameters["rounds"]), grown_only=True
    )
    sizes = _schema(model).cardinalities
    for tree in forest.trees:
        for feature, cuts in zip(tree.features, tree.cuts, strict=True):
            if not (feature < len(sizes) and cuts[0] >= 1 and cuts[-1] <= sizes[feature]):
                raise ValueError("a tree cuts what the schema does not have")
    return forest


def _forest(graph: Graph, model: SavedModel) -> str:
    forest = read_forest(model)
    codes = graph.double(_schema_codes(graph, _schema(model)))
    value = graph.constant(forest.base)
    if forest.trees:
        # A grid of sixteen leaves is a full binary tree: fifteen nodes, numbered like a heap, then the leaves.
        splits = [_splits(tree) for tree in forest.trees]
        count, inner = len(splits), LEAVES - 1
        nodes = range(inner + LEAVES)
        places = [n for _ in splits for n in nodes]
        trees = [t for t in range(count) for _ in nodes]
        is_inner = [n < inner for n in nodes] * count
        cut = [float(c) for tree in splits for _, c in (*tree, *[(0, 0)] * LEAVES)]
        steps = np.array([tree.steps for tree in forest.trees], dtype=np.float64)
        grown = graph.add(
            "TreeEnsembleRegressor",
            codes,
            domain=ML,
            n_targets=1,
            aggregate_function="SUM",
            nodes_treeids=trees,
            nodes_nodeids=places,
            nodes_featureids=[f for tree in splits for f, _ in (*tree, *[(0, 0)] * LEAVES)],
            nodes_modes=["BRANCH_GTE" if i else "LEAF" for i in is_inner],
            nodes_values_as_tensor=numpy_helper.from_array(np.array(cut), "cuts"),
            nodes_truenodeids=[2 * n + 2 if i else 0 for n, i in zip(places, is_inner, strict=True)],
            nodes_falsenodeids=[2 * n + 1 if i else 0 for n, i in zip(places, is_inner, strict=True)],
            target_treeids=[t for t in range(count) for _ in range(LEAVES)],
            target_nodeids=[inner + leaf for _ in splits for leaf in range(LEAVES)],
            target_ids=[0] * (count * LEAVES),
            target_weights_as_tensor=numpy_helper.from_array(steps.ravel(), "steps"),
        )
        flat = graph.add("Squeeze", graph.double(grown), graph.constant([1], np.int64))
        value = graph.add("Add", flat, value)
    else:  # a model of no rounds says the same of everyone
        nothing = graph.add("ReduceSum", codes, graph.constant([1], np.int64), keepdims=0)
        value = graph.add("Add", graph.add("Mul", nothing, graph.constant(0.0)), value)
    return graph.add("Clip", value, graph.constant(-STEEPEST), graph.constant(STEEPEST))


def _splits(tree: Tree) -> list[tuple[int, int]]:
    """Feature and cut of each inner node, breadth first: a code of at least the cut goes right.

    The boundary between two neighbouring leaves is a cut of the last feature whose cell begins there.
    """
    found = []
    for depth in range(LEAVES.bit_length() - 1):
        width = LEAVES >> depth
        for first in range(0, LEAVES, width):
            leaf = first + width // 2
            for feature, cuts in reversed(list(zip(tree.features, tree.cuts, strict=True))):
                leaf, cell = divmod(leaf, len(cuts) + 1)
                if cell:
                    found.append((feature, cuts[cell - 1]))
                    break
    return found


# --- kinds that encode by the contract -----------------------------------------------------------------------


def _churn_net(graph: Graph, model: SavedModel, contract: Contract) -> str:
    shape = Model.model_validate(model.header.parameters["model"])
    net = churn_net.build(contract, shape)
    churn_net.load(net, np.asarray(model.tensors["weights"], dtype=np.float32))
    codes, numeric, sizes = [], [], []
    for spec in model_features(contract):
        if spec.categories is not None:
            sizes.append(len(spec.categories) + 2)
            codes.append(_category(graph, spec))
        else:
            edges = bin_edges(spec, shape.bins).tolist()
            sizes.append(len(edges) + 2)
            null = graph.constant(sizes[-1] - 1, np.int64)
            codes.append(graph.unless_null(spec.name, graph.bins(graph.clipped(spec), edges), null))
            numeric.append(graph.scaled(spec))
    rows = graph.add("Add", graph.side_by_side(codes), graph.constant(_offsets(sizes), np.int64))
    scores = graph.add("Gather", _weights(graph, net.score.weight[:, 0]), rows)
    wide = graph.add("ReduceSum", scores, graph.constant([1], np.int64), keepdims=0)
    embedded = graph.add("Gather", _weights(graph, net.embedding.weight), rows)
    width = len(sizes) * shape.embedding_dim
    deep = graph.add("Reshape", embedded, graph.constant([0, width], np.int64))
    if numeric:
        deep = graph.add("Concat", deep, graph.side_by_side(numeric), axis=1)
    if net.recurrent is not None:
        deep = graph.add("Concat", deep, _last_state(graph, net.recurrent, contract, shape), axis=1)
    for layer in net.mlp:
        deep = _linear(graph, deep, layer) if isinstance(layer, nn.Linear) else graph.add("Tanh", deep)
    out = graph.add("Squeeze", _linear(graph, deep, net.out), graph.constant([1], np.int64))
    return graph.add("Add", wide, out)


def _last_state(graph: Graph, unit: churn_net.GatedRecurrentUnit, contract: Contract, shape: Model) -> str:
    """What the unit carries after the latest month, [N, H]; a column is a roll-up of one month (encoding.Monthly)."""
    keeps, resets = (
        (_weights(graph, weight.T), _weights(graph, bias))
        for weight, bias in zip(unit.gates.weight.chunk(2), unit.gates.bias.chunk(2), strict=True)
    )
    news = _weights(graph, unit.candidate.weight.T), _weights(graph, unit.candidate.bias)
    specs, state = monthly_specs(contract, shape.sequence), ""
    for month in reversed(range(shape.months)):
        columns = [replace(spec, name=Monthly(spec.name, month).column) for spec in specs]
        now = graph.side_by_side([graph.scaled(column) for column in columns])
        state = state or graph.add("MatMul", now, graph.constant(np.zeros((len(specs), unit.state))))
        both = graph.add("Concat", now, state, axis=1)
        keep, reset = (graph.add("Sigmoid", _affine(graph, both, *side)) for side in (keeps, resets))
        left = graph.add("Concat", now, graph.add("Mul", reset, state), axis=1)
        new = graph.add("Tanh", _affine(graph, left, *news))
        state = graph.add("Add", new, graph.add("Mul", keep, graph.add("Sub", state, new)))
    return state


def _affine(graph: Graph, value: str, weight: str, bias: str) -> str:
    return graph.add("Add", graph.add("MatMul", value, weight), bias)


def _linear(graph: Graph, value: str, layer: nn.Linear) -> str:
    return _affine(graph, value, _weights(graph, layer.weight.T), _weights(graph, layer.bias))


def _weights(graph: Graph, weight: Tensor) -> str:
    """As float32 in the file, as the model has them, and as double in the arithmetic."""
    return graph.double(graph.constant(weight.detach().numpy(), np.float32))


def _segments(graph: Graph, model: SavedModel, contract: Contract) -> None:
    names = [str(name) for name in model.header.parameters["names"]]
    known = {spec.name: spec for spec in model_features(contract)}
    centres = np.asarray(model.tensors["centres"], dtype=np.float64)
    if not names or not set(names) <= set(known) or centres.ndim != 2 or not centres.size:
        raise ValueError("its centres are not of the contract's columns")
    specs = tuple(known[name] for name in names)
    flat = model.tensors.get("components")
    if flat is None and (not all(s.numeric for s in specs) or centres.shape[1] != len(specs)):
        raise ValueError("its centres are not of the contract's numbers")
    values = graph.side_by_side([graph.scaled(s) for s in specs]) if flat is None else ""
    if flat is not None:
        components = Components.of(np.asarray(flat), Inputs(specs).size, centres.shape[1])
        values = _places(graph, specs, components)
    # As kmeans.assign: the nearest centre, of two equally near the first.
    product = graph.add("MatMul", values, graph.constant(centres.T))
    nearness = graph.add("Sub", product, graph.constant(0.5 * (centres**2).sum(axis=1)))
    nearest = graph.add("ArgMax", nearness, axis=1, keepdims=0)
    graph.output("segment", nearest, TensorProto.INT64, "the customer's segment, from 0")


def _places(graph: Graph, specs: Sequence[FeatureSpec], components: Components) -> str:
    """`Components.places` of `Inputs.matrix`, double [N, E]: a category is one number a value."""
    axis, parts = graph.constant([1], np.int64), []
    for spec in specs:
        if spec.categories is None:
            parts.append(graph.add("Unsqueeze", graph.scaled(spec), axis))
        else:
            code = graph.add("Unsqueeze", _category(graph, spec), axis)
            values = graph.constant([np.arange(len(spec.categories) + 2)], np.int64)
            parts.append(graph.double(graph.add("Equal", code, values)))
    inputs = graph.add("Concat", *parts, axis=1)
    centred = graph.add("Sub", inputs, graph.constant(components.mean))
    along = graph.add("MatMul", centred, graph.constant(components.directions))
    scaled = graph.add("Div", along, graph.constant(components.scale))
    return graph.add("Clip", scaled, graph.constant(-1.0), graph.constant(1.0))


def _category(graph: Graph, spec: FeatureSpec) -> str:
    """`encoding.category_codes`: its place in the contract's list, then any other, then null."""
    categories = spec.categories or ()
    places = {c: i for i, c in enumerate(categories)}
    return graph.category_codes(spec.name, places, other=len(categories), null=len(categories) + 1)
