"""The schema round: one cell a feature for each customer, bins of equal mass, and none that noise made."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sfumato.common.analyses.analysis import NoisySum
from sfumato.common.contract import Contract
from sfumato.common.contributions import Cells
from sfumato.common.errors import BadInput
from sfumato.common.fixed_point import GRID
from sfumato.common.learners.schema import Schema, SchemaRound, label_codes
from sfumato.privacy.clipping import BoundedSum

COLUMNS: list[dict[str, Any]] = [
    {"name": "id", "type": "string", "role": "customer_id"},
    {
        "name": "town",
        "type": "category",
        "role": "feature",
        "categories": ["ash", "elm", "oak", "yew"],
        "nullable": True,
        "out_of_domain": "clip",
    },
    {"name": "active", "type": "boolean", "role": "feature"},
    {"name": "age", "type": "integer", "role": "feature", "bounds": [18, 100]},
    {"name": "gain", "type": "number", "role": "amount", "bounds": [0, 100_000], "scale": "log"},
    {"name": "debt", "type": "number", "role": "amount", "bounds": [-50, 1000], "nullable": True},
    {"name": "left", "type": "integer", "role": "label"},
]


def contract(columns: list[dict[str, Any]] = COLUMNS) -> Contract:
    return Contract.model_validate(
        {
            "version": 1,
            "name": "toy",
            "purpose": "to be tested",
            "tables": [{"name": "customers", "columns": columns}],
        }
    )


def people(n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    age = rng.integers(18, 90, n)
    return {
        "town": rng.choice(["ash", "elm", "oak", "other", None], n, p=[0.5, 0.3, 0.15, 0.03, 0.02]),
        "active": rng.random(n) < 0.4,
        "age": age,
        "gain": np.where(rng.random(n) < 0.9, 0.0, rng.lognormal(8, 1, n)),
        "debt": np.where(rng.random(n) < 0.1, np.nan, rng.normal(300, 150, n)),
        "left": (rng.random(n) < age / 150).astype(np.int64),
    }


def total_of(asked: SchemaRound, frame: dict[str, Any], std: float = 0.0, seed: int = 0) -> NoisySum:
    found = asked.contribute(0, frame, None)
    counts = np.bincount(found.cells[found.cells >= 0], minlength=found.length).astype(np.float64)
    return NoisySum(counts + np.random.default_rng(seed).normal(0, std, counts.size), std)


# --- contribution ------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(COLUMNS[1:-1]), min_size=1, unique_by=lambda c: c["name"]), st.data())
def test_every_customer_keeps_the_bound_and_adds_one_a_feature(
    features: list[dict[str, Any]], data: st.DataObject
) -> None:
    with_label = data.draw(st.booleans())
    asked = SchemaRound(contract([COLUMNS[0], *features, *COLUMNS[-1:] * with_label]))
    frame = people(data.draw(st.integers(1, 30)), data.draw(st.integers(0, 9)))
    wild = data.draw(st.sampled_from([np.inf, -1e300, 1e300, -0.0, 0.0, 5e-324]))
    frame["gain"][0] = frame["debt"][0] = wild
    found = asked.contribute(0, frame, None)
    assert isinstance(found, Cells)
    assert found.cells.shape == (len(frame["age"]), len(features))
    rows = np.zeros((len(found.cells), found.length))
    np.add.at(rows, (np.arange(len(rows))[:, None], found.cells), found.weights)
    assert rows.sum() == rows.size / rows.shape[1] * len(features)
    assert (np.linalg.norm(rows, axis=1) <= asked.max_norm(0) * (1 + 1e-12)).all()
    bounded = BoundedSum.of(found, asked.max_norm(0))
    assert bounded.l2_sensitivity == GRID
    assert bounded.total.size == asked.length(0)


def test_whoever_has_no_label_adds_nothing() -> None:
    asked, frame = SchemaRound(contract()), people(3, 0)
    frame["left"] = np.array([0, 7, 1])
    cells = asked.contribute(0, frame, None).cells
    assert (cells[1] == -1).all()
    assert (cells[[0, 2]] >= 0).all()
    assert label_codes(contract(), frame).tolist() == [0, -1, 1]


def test_it_is_asked_without_numbers() -> None:
    asked = SchemaRound(contract())
    assert asked.ask(0, []) is None
    with pytest.raises(ValueError, match="without numbers"):
        asked.contribute(0, people(3, 0), np.zeros(2, np.float32))


# --- reading -----------------------------------------------------------------------------------------------


def test_without_noise_the_counts_are_the_naive_ones() -> None:
    asked, frame = SchemaRound(contract()), people(3000, 1)
    schema = asked.schema(total_of(asked, frame))
    codes = schema.codes(frame)
    assert schema.customers == pytest.approx(3000)
    assert schema.positives == pytest.approx(frame["left"].sum())
    for i, column in enumerate(schema.columns):
        all_of, positive = Counter(codes[:, i].tolist()), Counter(codes[frame["left"] == 1, i].tolist())
        assert column.counts == pytest.approx([all_of[b] for b in range(len(column.counts))])
        assert column.positives == pytest.approx([positive[b] for b in range(len(column.counts))])
    town = schema.columns[0]
    assert town.categories is not None
    assert all(codes[frame["town"] == t, 0].tolist() == [c] * all_of for t, c, all_of in [
        (t, town.categories[t], int((frame["town"] == t).sum())) for t in ("ash", "elm", "oak")
    ])  # fmt: skip


def test_bins_of_a_number_hold_equal_parts_with_noise_too() -> None:
    """24 bins of 20,000 customers, noise of std 25 a cell: no bin is over twice its share, or under a third."""
    asked, frame = SchemaRound(contract()), people(20_000, 2)
    schema = asked.schema(total_of(asked, frame, 25.0))
    found = np.bincount(schema.codes(frame)[:, 2])
    assert 16 <= len(found) <= 24
    assert found.max() < 2 * 20_000 / 24
    assert found[:-1].min() > 20_000 / 24 / 3


def test_an_atom_has_a_bin_alone_and_the_tail_beyond_it_has_its_own() -> None:
    asked, frame = SchemaRound(contract()), people(20_000, 3)
    schema = asked.schema(total_of(asked, frame, 10.0))
    gain = schema.codes(frame)[:, 3]
    (zero,) = set(gain[frame["gain"] == 0].tolist())
    assert set(frame["gain"][gain == zero].tolist()) == {0.0}
    tail = np.bincount(gain[frame["gain"] > 0])[zero + 1 :]
    assert len(tail) >= 6
    assert tail.max() < 700  # of 2,000


def test_null_has_its_own_bin_where_it_stands_out() -> None:
    asked, frame = SchemaRound(contract()), people(5000, 4)
    debt = asked.schema(total_of(asked, frame, 10.0)).columns[4]
    assert debt.null == len(debt.counts) - 1
    none = np.isnan(frame["debt"])
    assert (debt.codes(frame["debt"]) == debt.null).tolist() == none.tolist()
    frame["debt"] = np.where(none, 300.0, frame["debt"])
    debt = asked.schema(total_of(asked, frame, 10.0)).columns[4]
    assert len(debt.counts) == len(debt.cuts or ()) + 1


def test_rare_categories_share_a_bin_and_an_unknown_one_falls_into_it() -> None:
    asked, frame = SchemaRound(contract()), people(5000, 5)
    town = asked.schema(total_of(asked, frame, 15.0)).columns[0]
    assert town.categories is not None
    assert town.categories["yew"] == town.other  # nobody lives there
    assert town.codes(["birch", "other"]).tolist() == [town.other] * 2
    assert len({town.categories[t] for t in ("ash", "elm", "oak")} | {town.other}) == 4


@pytest.mark.statistical
def test_noise_alone_makes_no_bins() -> None:
    """Of nobody: 50 draws of noise. A bin must exceed 3 standard deviations (one-sided 1.3e-3) before it stands
    alone, out of at most 132 cells a column: fewer than 2 bins a column on average."""
    asked = SchemaRound(contract())
    bins = []
    for seed in range(50):
        noise = np.random.default_rng(seed).normal(0, 50, asked.length(0))
        bins.append(asked.schema(NoisySum(noise, 50.0)).cardinalities)
    assert (np.mean(bins, axis=0) < 2).all(), np.mean(bins, axis=0)


def test_categories_stand_in_the_order_of_their_share_of_positives() -> None:
    asked, frame = SchemaRound(contract()), people(20_000, 6)
    rate = {"ash": 0.5, "elm": 0.1, "oak": 0.9}
    chance = np.array([rate.get(str(t), 0.3) for t in frame["town"]])
    frame["left"] = (np.random.default_rng(0).random(20_000) < chance).astype(np.int64)
    town = asked.schema(total_of(asked, frame, 10.0)).columns[0].categories
    assert town is not None
    assert town["elm"] < town["ash"] < town["oak"]


# --- the artefact ------------------------------------------------------------------------------------------


def test_a_schema_travels_as_json_and_repeats() -> None:
    asked, frame = SchemaRound(contract()), people(2000, 7)
    total = total_of(asked, frame, 10.0)
    schema = asked.schema(total)
    back = Schema.model_validate_json(schema.model_dump_json())
    assert back == schema == Schema.model_validate(asked.read([total]))
    assert (back.codes(frame) == schema.codes(frame)).all()
    back.require(contract())
    with pytest.raises(BadInput, match="not one of contract"):
        back.require(contract(COLUMNS[:-1]))


def test_codes_are_always_bins_that_exist() -> None:
    asked, frame = SchemaRound(contract()), people(500, 8)
    schema = asked.schema(total_of(asked, frame, 5.0))
    strange = people(8, 9) | {
        "gain": np.array([-np.inf, np.inf, np.nan, -0.0, 0.0, 5e-324, -1e300, 1e300]),
        "town": np.array(["birch", None, "", "ash", "yew", "oak", "elm", "other"]),
    }
    codes = schema.codes(strange)
    assert ((codes >= 0) & (codes < np.array(schema.cardinalities))).all()
    with pytest.raises(BadInput, match="no column 'gain'"):
        schema.codes({k: v for k, v in strange.items() if k != "gain"})
    with pytest.raises(BadInput, match="differ in length"):
        schema.codes(strange | {"gain": np.zeros(3)})


@pytest.mark.parametrize(
    "wrong",
    [
        {"cuts": [3.0, 2.0]},
        {"cuts": [1.0]},
        {"null": 9},
        {"counts": [1.0, 2.0]},
        {"cuts": [float("nan"), 1.0]},
        {"categories": {"a": 0}},
        {"cuts": None},
        {"positives": [1.0]},
    ],
)
def test_a_malformed_column_is_refused(wrong: dict[str, Any]) -> None:
    good: dict[str, Any] = {
        "name": "x",
        "cuts": [1.0, 2.0],
        "null": 0,
        "counts": [1.0] * 3,
        "stds": [1.0] * 3,
    }
    kept = {"contract": "0", "label": None, "customers": 3.0, "positives": None, "columns": [good]}
    Schema.model_validate(kept)
    if wrong == {"cuts": [1.0]}:
        good["counts"] = good["stds"] = [1.0]
    with pytest.raises(ValidationError):
        Schema.model_validate(kept | {"columns": [good | wrong]})


def test_a_contract_without_features_has_no_schema() -> None:
    with pytest.raises(BadInput, match="no column with role feature"):
        SchemaRound(contract([COLUMNS[0], COLUMNS[-1]]))
    with pytest.raises(BadInput, match="2 to 64"):
        SchemaRound(contract(), bins=1)
