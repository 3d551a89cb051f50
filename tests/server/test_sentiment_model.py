"""A sentiment model at the coordinator: what its card says is inside, and that it is not exported as ONNX."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from sfumato.common.analyses.parts import part
from sfumato.common.errors import BadInput
from sfumato.common.learners.models import ModelHeader, SavedModel
from sfumato.server.model_cli import _inside
from sfumato.server.model_explained import explained
from sfumato.server.onnx_export import onnx_bytes

RIGHT = {"value": 0.9, "low": 0.85, "high": 0.95}


def model(**parameters: Any) -> SavedModel:
    header = ModelHeader(
        kind="sentiment",
        name="voices",
        purpose="tests",
        job_id="0f" * 16,
        job_hash="ab" * 32,
        contract="cd" * 32,
        contract_name="bank",
        inputs="ef" * 32,
        label=None,
        epsilon=1.0,
        delta=1e-5,
        made=datetime(2026, 1, 1, tzinfo=UTC),
        parameters=parameters,
    )
    return SavedModel(header, {"weights": np.zeros(65, dtype=np.float32)})


def answer() -> dict[str, Any]:
    rows = [{"of": [of], "right": RIGHT} for of in ("either", "negative", "positive")]
    return {"level": 0.95, "parts": [part("accuracy", ["rated"], {"right": "share"}, rows)]}


def test_its_card_says_what_it_reads_and_how_often_it_is_right() -> None:
    inside = explained(model(text="surveys.comment"), answer())
    assert inside == {"text": "surveys.comment", "buckets": 64, "accuracy": RIGHT}
    ((title, table),) = _inside("sentiment", inside)
    assert "hashed" in title
    text, buckets, right = (next(iter(c.cells)) for c in table.columns)
    assert (text, buckets) == ("surveys.comment", "64")
    assert str(right).startswith("90") and "85 to 95" in str(right)
    assert explained(model(text="surveys.comment"), None)["accuracy"] is None
    for broken, said in ((model(), answer()), (model(text="surveys.comment"), {"level": 0.95})):
        with pytest.raises(BadInput, match="does not hold"):
            explained(broken, said)


def test_it_is_not_exported_as_onnx() -> None:
    with pytest.raises(BadInput, match="reads text"):
        onnx_bytes(model(text="surveys.comment"))
