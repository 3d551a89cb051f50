"""What `branch ledger` says of an entry, in one line."""

from datetime import UTC, datetime
from typing import Any

import pytest

from sfumato.client.status import describe_entry
from sfumato.privacy.entries import Entry


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            {"code": "over-budget", "question": "open-job", "job_hash": "ab12", "epsilon": 2.0},
            "over-budget: the branch's privacy budget would be exceeded (job hash ab12)",
        ),
        (
            {"code": "set-too-small", "question": "sum"},
            "set-too-small: a secure sum over so few branches would protect nobody (sum)",
        ),
        ({"code": "bad-frame", "question": None}, "bad-frame: the question was not understood"),
    ],
)
def test_a_refusal_is_told_whatever_was_asked(body: dict[str, Any], says: str) -> None:
    entry = Entry(seq=1, time=datetime.now(UTC), kind="refuse", job_id=None, body=body, hash="00")
    assert describe_entry(entry) == says
