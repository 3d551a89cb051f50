"""Scoring: a model file and the contract of its job, ready for customers.

Whoever scores trusts the file with nothing: kind, tensors, parameters and schema must be those of this contract, or
it is BadInput that says what is wrong. A score is one customer's and stays in the vault.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import ValidationError
from scipy.special import expit

from sfumato.common.analyses.listed import is_listed, listed
from sfumato.common.contract import Contract, Role, validation_lines
from sfumato.common.errors import BadInput
from sfumato.common.job import Model
from sfumato.common.learners import churn_net, kmeans
from sfumato.common.learners.anomaly_scorer import AnomalyScorer
from sfumato.common.learners.bins import Schema
from sfumato.common.learners.churn_net import ChurnNet
from sfumato.common.learners.components import Components, Inputs
from sfumato.common.learners.curves import BinnedColumn, of_contract, of_schema
from sfumato.common.learners.encoding import Encoder, FeatureSpec, model_features
from sfumato.common.learners.lifetime_scoring import LifetimeScorer
from sfumato.common.learners.models import Reason, SavedModel, Scorer, Scores
from sfumato.common.learners.offers import OfferScorer, Plan
from sfumato.common.learners.random_trees import Forest, Question, RandomTrees
from sfumato.common.learners.reasons import ForestAmounts, NetAmounts, Typical, largest
from sfumato.common.learners.scorecard import Scorecard
from sfumato.common.learners.text import hashed, newest
from sfumato.common.learners.text_classifier import TextModel

ROWS = 8192  # scored at a time: what a tree or a layer needs of them stays in the processor's cache
HAS_REASONS = ("churn-net", "boosted-trees", "scorecard", "anomaly")

Floats = npt.NDArray[np.float64]
Found = TypeVar("Found")


def scorer(saved: SavedModel, contract: Contract, typical: Mapping[str, Any] | None = None) -> Scorer:
    """The model, checked. Raises BadInput that says what is wrong with it.

    `typical` are columns of customers with whom a churn net's reasons compare a customer; without them it is the
    even customer of `reasons.Typical.of_contract`, which skewed columns are far from. Other kinds need none: their
    file says how the average customer is.
    """
    saved.require(contract)
    try:
        match saved.header.kind:
            case "churn-net":
                return _net(saved, contract, typical)
            case "boosted-trees":
                return _trees(saved, contract)
            case "scorecard":
                return _card(saved, contract)
            case "segments":
                return _segments(saved, contract)
            case "anomaly":
                return AnomalyScorer.of(saved, contract)
            case "clv":
                return LifetimeScorer.of(saved, contract)
            case "offer":
                return _offers(saved, contract)
            case "sentiment":
                return _sentiment(saved, contract)
    except ValidationError as e:
        wrong = validation_lines(e)
    except (ValueError, OverflowError) as e:
        wrong = str(e)
    raise BadInput(
        f"model {saved.header.name!r} ({saved.header.kind}) cannot be used: {wrong}",
        hint="It is damaged, or was not written by this release.",
    )


# --- kinds -------------------------------------------------------------------------------------------------


class NetScorer:
    """A churn net."""

    def __init__(
        self, net: ChurnNet, encoder: Encoder, contract: Contract, model: Model, typical: Typical
    ) -> None:
        self._net, self._encoder = net, encoder
        months = (f"the last {model.months} months",)
        by_month = (BinnedColumn(f"{name} by month", months) for name in model.sequence)
        self._words = (*of_contract(contract, model.bins), *by_month)
        is_number = [f.numeric for f in encoder.features]
        self._amounts = NetAmounts(net, encoder.cardinalities, typical, is_number)

    @property
    def columns(self) -> tuple[str, ...]:
        return self._encoder.columns

    def score(self, columns: Mapping[str, Any], *, reasons: int = 0) -> Scores:
        _check_reasons(reasons)
        encoded = _read(lambda: self._encoder.transform(columns))
        logits = churn_net.logits(self._net, encoded)
        if not np.isfinite(logits).all():
            raise BadInput("the net's log-odds are no numbers", hint="Its weights are beyond all measure.")
        named = list[tuple[Reason, ...]]()
        for rows in _chunks(len(encoded)) if reasons else ():
            part = encoded.take(np.arange(rows.start, rows.stop))
            amounts = self._amounts.amounts(part)
            codes = np.pad(part.codes, ((0, 0), (0, amounts.shape[1] - part.codes.shape[1])))
            named += largest(amounts, codes, self._words, reasons)
        return Scores(probability=expit(logits), reasons=tuple(named) if reasons else None)


class TreesScorer:
    """Boosted trees over a schema's codes."""

    def __init__(self, forest: Forest, schema: Schema) -> None:
        self._forest, self._schema = forest, schema
        self._words = of_schema(schema)
        self._amounts = ForestAmounts.of(forest, schema)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(c.name for c in self._schema.columns)

    def score(self, columns: Mapping[str, Any], *, reasons: int = 0) -> Scores:
        _check_reasons(reasons)
        codes = _read(lambda: self._schema.codes(columns))
        logits, named = np.zeros(len(codes)), list[tuple[Reason, ...]]()
        for rows in _chunks(len(codes)):
            logits[rows] = self._forest.logits(codes[rows])
            if reasons:
                named += largest(self._amounts.amounts(codes[rows]), codes[rows], self._words, reasons)
        return Scores(probability=expit(logits), reasons=tuple(named) if reasons else None)


class CardScorer:
    """A scorecard over a schema's codes. Its reasons' amounts are points lost against the column's neutral level."""

    def __init__(self, card: Scorecard, schema: Schema) -> None:
        self._card, self._schema = card, schema

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(c.name for c in self._schema.columns)

    def score(self, columns: Mapping[str, Any], *, reasons: int = 0) -> Scores:
        _check_reasons(reasons)
        codes = _read(lambda: self._schema.codes(columns))
        named = [
            tuple(Reason(r.column, r.bin, float(r.points_lost)) for r in lost)
            for lost in (self._card.reasons(codes, reasons) if reasons else ())
        ]
        return Scores(
            probability=expit(self._card.log_odds(codes)),
            points=self._card.scores(codes),
            reasons=tuple(named) if reasons else None,
        )


class SegmentScorer:
    """The nearest of some centres, among the columns or among their components. There are no reasons: `reasons` is
    passed over."""

    def __init__(
        self, centres: Floats, specs: tuple[FeatureSpec, ...], components: Components | None = None
    ) -> None:
        self._centres, self._specs, self._components = centres, specs, components

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(s.name for s in self._specs)

    def score(self, columns: Mapping[str, Any], *, reasons: int = 0) -> Scores:
        _check_reasons(reasons)
        missing = [n for n in self.columns if n not in columns]
        if missing:
            raise BadInput(f"no column {missing[0]!r} to score", hint="The model's segments are made of it.")
        if len({len(columns[n]) for n in self.columns}) != 1:
            raise BadInput("the columns to score differ in length")
        values = _read(lambda: Inputs(self._specs).matrix(columns))
        if self._components is not None:
            values = self._components.places(values)
        return Scores(segment=kmeans.assign(values, self._centres))


class TextScorer:
    """How likely a customer's newest text is positive; NaN of who has written none. There are no reasons: words
    cannot be read off hashed weights."""

    def __init__(self, text: str, model: TextModel) -> None:
        self._text, self._model = text, model

    @property
    def columns(self) -> tuple[str, ...]:
        return (self._text,)

    def score(self, columns: Mapping[str, Any], *, reasons: int = 0) -> Scores:
        _check_reasons(reasons)
        if self._text not in columns:
            raise BadInput(f"no column {self._text!r} to score", hint="The model reads nothing else.")
        texts, _ = newest(columns[self._text])
        odds = self._model.log_odds(hashed([t or "" for t in texts], self._model.weights.size))
        return Scores(probability=np.where([t is None for t in texts], np.nan, expit(odds)))


# --- from the file -----------------------------------------------------------------------------------------


def _net(saved: SavedModel, contract: Contract, typical: Mapping[str, Any] | None) -> Scorer:
    _check_label(saved, contract)
    weights = _tensor(saved, "weights", np.float32, 1)
    model = Model.model_validate(_parameter(saved, "model", dict))
    net = churn_net.build(contract, model)
    churn_net.load(net, weights)
    encoder = churn_net.encoder(contract, model)
    return NetScorer(net, encoder, contract, model, _typical(encoder, contract, model, typical))


def _typical(
    encoder: Encoder, contract: Contract, model: Model, customers: Mapping[str, Any] | None
) -> Typical:
    if customers is not None:
        encoded = _read(lambda: encoder.transform(customers))
        if len(encoded):
            return Typical.of_customers(encoded, contract)
    return Typical.of_contract(contract, model)


def _trees(saved: SavedModel, contract: Contract) -> Scorer:
    schema = _schema(saved, contract)
    numbers = _tensor(saved, "forest", np.float32, 1)
    question = Question(rounds=_parameter(saved, "rounds", int), trees=_parameter(saved, "trees", int))
    return TreesScorer(RandomTrees(schema, contract, question).finished_forest(numbers), schema)


def _card(saved: SavedModel, contract: Contract) -> Scorer:
    schema = _schema(saved, contract)
    points = _tensor(saved, "points", np.int64, 1)
    card = Scorecard.model_validate(_parameter(saved, "card", dict))
    if [(a.column, len(a.bins)) for a in card.attributes] != [
        (c.name, len(c.counts)) for c in schema.columns
    ]:
        raise ValueError("its card and its schema have other columns or bins")
    if points.tolist() != [b.points for a in card.attributes for b in a.bins]:
        raise ValueError("tensor 'points' does not hold the points of its card")
    return CardScorer(card, schema)


def _segments(saved: SavedModel, contract: Contract) -> Scorer:
    by_components = "components" in saved.tensors
    centres = _tensor(saved, "centres", np.float32, 2, beside="components").astype(np.float64)
    names = _parameter(saved, "names", list)
    known = {spec.name: spec for spec in model_features(contract) if spec.numeric or by_components}
    if not names or any(not isinstance(n, str) or n not in known for n in names):
        raise ValueError("parameter 'names' must name numbers among the contract's model features")
    specs = tuple(known[n] for n in names)
    width = centres.shape[1] if by_components else len(names)
    if len(set(names)) < len(names) or centres.shape[1] != width or not centres.size:
        raise ValueError(f"tensor 'centres' must be of {len(set(names))} numbers, is {list(centres.shape)}")
    if not np.isfinite(centres).all():
        raise ValueError("tensor 'centres' must be finite")
    if not by_components:
        return SegmentScorer(centres, specs)
    flat = _tensor(saved, "components", np.float32, 1, beside="centres")
    return SegmentScorer(centres, specs, Components.of(flat, Inputs(specs).size, width))


def _sentiment(saved: SavedModel, contract: Contract) -> Scorer:
    flat, name = _tensor(saved, "weights", np.float32, 1), _parameter(saved, "text", str)
    table = contract.customer_table
    column = table.column(name) if table.has(name) else None
    if is_listed(contract, name):
        column = listed(contract, name, text=True).column
    if column is None or column.role is not Role.TEXT:
        raise ValueError("parameter 'text' must name a column of free text of the contract")
    if flat.size < 2:
        raise ValueError("tensor 'weights' holds no weight")
    return TextScorer(name, TextModel.of(flat, flat.size - 1))


def _offers(saved: SavedModel, contract: Contract) -> Scorer:
    fractions = _tensor(saved, "fractions", np.float32, 2).astype(np.float64)
    return OfferScorer(Plan.model_validate(saved.header.parameters), fractions, contract, saved.header.job_id)


def _tensor(
    saved: SavedModel, name: str, kind: type[np.generic], dimensions: int, beside: str = ""
) -> npt.NDArray[Any]:
    """The one tensor that this kind has, but for one that may stand beside it."""
    if set(saved.tensors) - {beside} != {name}:
        raise ValueError(f"expected one tensor {name!r}, found {sorted(saved.tensors) or 'none'}")
    tensor = saved.tensors[name]
    if tensor.dtype != kind or tensor.ndim != dimensions:
        raise ValueError(
            f"tensor {name!r} must be {dimensions}-dimensional {np.dtype(kind).name}, is {tensor.ndim}-dimensional "
            f"{tensor.dtype.name}"
        )
    return tensor


def _parameter(saved: SavedModel, name: str, kind: type[Found]) -> Found:
    value = saved.header.parameters.get(name)
    if type(value) is not kind:
        raise ValueError(f"parameter {name!r} must be of type {kind.__name__}, is {type(value).__name__}")
    return value


def _check_label(saved: SavedModel, contract: Contract) -> None:
    own = (
        contract.label.name if contract.label else saved.header.label
    )  # of today's customers nobody knows it
    if own is None or saved.header.label != own:
        raise ValueError(f"it foretells {saved.header.label!r}, the contract's label is {own!r}")


def _schema(saved: SavedModel, contract: Contract) -> Schema:
    """The model's bins, if they are bins of this contract's columns."""
    _check_label(saved, contract)
    schema = saved.header.schema_
    if schema is None:
        raise ValueError("it has no schema")
    if schema.contract != saved.header.contract:
        raise ValueError("its schema is another contract's")
    schema = schema.model_copy(update={"contract": contract.hash})  # as `require` allows
    schema.require(contract)
    if schema.label != saved.header.label:
        raise ValueError(f"its schema counts {schema.label!r}")
    for spec, column, words in zip(model_features(contract), schema.columns, of_schema(schema), strict=True):
        same = (column.categories is not None) != spec.numeric
        if not same or set(column.categories or ()) != set(spec.categories or ()):
            raise ValueError(f"its schema's column {spec.name!r} has other values than the contract's")
        if len(words.bins) != len(column.counts):
            raise ValueError(f"its schema's column {spec.name!r} has bins that nobody can be in")
    return schema


# --- customers ---------------------------------------------------------------------------------------------


def _read(columns: Callable[[], Found]) -> Found:
    try:
        return columns()
    except pa.ArrowException:  # its text may hold a value
        raise BadInput(
            "a column does not hold what the contract says", hint="Ingest the data again under this contract."
        ) from None


def _check_reasons(reasons: int) -> None:
    if reasons < 0:
        raise BadInput("a score has 0 reasons or more")


def _chunks(n: int) -> list[slice]:
    return [slice(start, min(start + ROWS, n)) for start in range(0, n, ROWS)]
