"""Encoding by the contract alone: codes, bins, numbers, and that no row depends on another."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sfumato.common.contract import Contract, Scale
from sfumato.common.errors import BadInput
from sfumato.common.learners.encoding import Encoder, FeatureSpec, bin_edges, model_features


def contract(*columns: dict[str, Any], features: tuple[dict[str, Any], ...] = ()) -> Contract:
    tables: list[dict[str, Any]] = [
        {"name": "customers", "columns": [{"name": "id", "type": "string", "role": "customer_id"}, *columns]}
    ]
    if features:
        tables.append(
            {
                "name": "sales",
                "columns": [
                    {"name": "id", "type": "string", "role": "customer_id"},
                    {"name": "amount", "type": "number", "role": "amount", "bounds": [0, 10]},
                ],
            }
        )
    return Contract.model_validate(
        {"version": 1, "name": "t", "purpose": "a test contract", "tables": tables, "features": features}
    )


COLOUR = {"name": "colour", "type": "category", "role": "feature", "categories": ["red", "blue"]}
AGE = {"name": "age", "type": "integer", "role": "feature", "bounds": [18, 90]}
MONEY = {"name": "money", "type": "number", "role": "amount", "bounds": [-100, 10000], "scale": "log"}


def test_the_features_are_the_feature_and_amount_columns_then_the_rollups() -> None:
    note = {"name": "note", "type": "string", "role": "attribute"}
    rollup = {"name": "spent", "table": "sales", "aggregate": "sum", "column": "amount", "bounds": [0, 99]}
    specs = model_features(contract(AGE, note, COLOUR, MONEY, features=(rollup,)))
    assert [s.name for s in specs] == ["age", "colour", "money", "spent"]
    assert [s.derived for s in specs] == [False, False, False, True]


def test_categories_and_their_two_extra_codes() -> None:
    encoded = Encoder(contract(COLOUR)).transform(
        {"colour": np.array(["blue", "red", "green", None], object)}
    )
    assert encoded.codes[:, 0].tolist() == [1, 0, 2, 3]
    assert encoded.cardinalities == (4,)
    assert encoded.numeric.shape == (4, 0)
    assert encoded.codes.dtype == np.int64


@pytest.mark.parametrize(
    "values",
    [
        pa.chunked_array([["blue", None], ["red", "green"]]),
        pa.chunked_array([pa.array(["blue", None, "red", "green"]).dictionary_encode()]),
        np.array(["blue", None, "red", "green"], dtype=object),
        pa.array(["blue", None, "red", "green"]),
    ],
)
def test_every_container_encodes_alike(values: Any) -> None:
    assert Encoder(contract(COLOUR)).transform({"colour": values}).codes[:, 0].tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize(
    "values",
    [np.array([True, False, True]), pa.array([True, False, True]), np.array(["true", "false", "true"])],
)
def test_booleans(values: Any) -> None:
    flag = {"name": "flag", "type": "boolean", "role": "feature"}
    assert Encoder(contract(flag)).transform({"flag": values}).codes[:, 0].tolist() == [1, 0, 1]


def test_whole_numbers_as_categories() -> None:
    level = {"name": "level", "type": "category", "role": "feature", "categories": ["1", "2"]}
    encoder = Encoder(contract(level))
    assert encoder.transform({"level": np.array([2, 1, 5], dtype=np.int8)}).codes[:, 0].tolist() == [1, 0, 2]
    with pytest.raises(BadInput, match="fractions"):
        encoder.transform({"level": np.array([1.0, 2.5])})


def test_numbers_have_a_bin_and_a_value_in_the_unit_interval() -> None:
    encoder = Encoder(contract({"name": "x", "type": "number", "role": "feature", "bounds": [0, 10]}), bins=5)
    encoded = encoder.transform({"x": np.array([0, 1.9, 2, 10, -5, 99, np.nan, np.inf, -np.inf])})
    assert encoded.codes[:, 0].tolist() == [0, 0, 1, 4, 0, 4, 5, 4, 0]
    assert np.allclose(encoded.numeric[:, 0], [-1, -0.62, -0.6, 1, -1, 1, 0, 1, -1])
    assert encoded.numeric.dtype == np.float32
    assert encoder.cardinalities == (6,)


def test_log_scale_bins_are_of_equal_width_in_the_log() -> None:
    spec = FeatureSpec("x", bounds=(-100.0, 10000.0), scale=Scale.LOG)
    cuts = bin_edges(spec, 8)
    logs = np.sign(cuts) * np.log1p(np.abs(cuts))
    assert np.allclose(np.diff(logs), np.diff(logs)[0])
    assert len(cuts) == 7
    encoded = Encoder(contract(MONEY)).transform({"money": np.array([-100.0, 10000.0])})
    assert np.allclose(encoded.numeric[:, 0], [-1, 1])


def test_edges_of_the_contract_win_and_belong_to_the_bin_above() -> None:
    x = {"name": "x", "type": "number", "role": "feature", "bounds": [0, 10], "edges": [1, 5]}
    encoded = Encoder(contract(x), bins=64).transform({"x": pa.array([0.99, 1.0, 4.99, 5.0, None])})
    assert encoded.codes[:, 0].tolist() == [0, 1, 1, 2, 3]


def test_few_whole_numbers_get_a_bin_each() -> None:
    months = {"name": "m", "type": "integer", "role": "feature", "bounds": [-2, 8]}
    encoder = Encoder(contract(months), bins=16)
    assert encoder.transform({"m": np.arange(-2, 9)}).codes[:, 0].tolist() == list(range(11))
    assert encoder.cardinalities == (12,)


def test_every_code_is_below_its_cardinality() -> None:
    rng = np.random.default_rng(0)
    encoder = Encoder(contract(COLOUR, AGE, MONEY), bins=7)
    encoded = encoder.transform(
        {
            "colour": rng.choice(np.array(["red", "blue", "", None], object), 500),
            "age": rng.normal(50, 1000, 500),
            "money": rng.standard_cauchy(500) * 1e6,
        }
    )
    assert (encoded.codes >= 0).all()
    assert (encoded.codes < np.array(encoder.cardinalities)).all()
    assert np.abs(encoded.numeric).max() <= 1


def test_a_customer_is_encoded_alike_in_any_company() -> None:
    """No statistic of the data enters: encoding one row alone gives the same as within others."""
    rng = np.random.default_rng(1)
    columns = {
        "colour": rng.choice(np.array(["red", "blue", "mauve", None], object), 50),
        "age": rng.integers(0, 120, 50),
        "money": rng.standard_cauchy(50) * 1e3,
    }
    encoder = Encoder(contract(COLOUR, AGE, MONEY))
    whole = encoder.transform(columns)
    for i in range(50):
        one = encoder.transform({k: v[i : i + 1] for k, v in columns.items()})
        assert (one.codes[0] == whole.codes[i]).all()
        assert (one.numeric[0] == whole.numeric[i]).all()


def test_nobody_and_all_null_columns() -> None:
    encoder = Encoder(contract(COLOUR, AGE))
    assert encoder.transform({"colour": pa.array([], pa.string()), "age": np.zeros(0)}).codes.shape == (0, 2)
    nulls = encoder.transform({"colour": pa.nulls(2), "age": pa.nulls(2)})
    assert nulls.codes[:, 0].tolist() == [3, 3]
    assert nulls.numeric.tolist() == [[0.0], [0.0]]


def test_what_cannot_be_encoded_is_said() -> None:
    encoder = Encoder(contract(COLOUR, AGE))
    with pytest.raises(BadInput, match="no column 'age'"):
        encoder.transform({"colour": np.array(["red"], object)})
    with pytest.raises(BadInput, match="differ in length"):
        encoder.transform({"colour": np.array(["red"], object), "age": np.zeros(2)})
    with pytest.raises(BadInput, match="no column with role feature"):
        Encoder(contract())
    with pytest.raises(ValueError, match="category"):
        bin_edges(FeatureSpec("c", categories=("a",)), 4)


def test_take() -> None:
    encoded = Encoder(contract(AGE)).transform({"age": np.arange(18, 28)})
    assert encoded.take(np.array([3, 1])).codes[:, 0].tolist() == encoded.codes[[3, 1], 0].tolist()
    assert len(encoded.take(np.arange(10) < 4)) == 4
