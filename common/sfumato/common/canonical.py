"""One byte string for one value: the bytes that are hashed and signed.

JSON with sorted keys, no white space, UTF-8, no NaN and no infinity (the subset of RFC 8785 that
Python's shortest float representation already satisfies for the values we use).
"""

import hashlib
import json
from typing import Any


def canonical_bytes(value: Any) -> bytes:
    """Bytes of a JSON value (dict, list, str, int, float, bool, None). Raises ValueError on NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8")


def content_hash(value: Any) -> str:
    """Hex SHA-256 of the canonical bytes."""
    return hashlib.sha256(canonical_bytes(value)).hexdigest()
