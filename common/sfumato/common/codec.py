"""Frames: how a message and its vector become bytes, and how bytes are distrusted.

    magic "SFM1" | header length u32 | body length u64 | header (JSON) | body (little-endian array)

The header is `{"message": ..., "dtype": ..., "length": ...}`. A body has one of two element types, float32
or int64, and exactly the stated length; weights must be finite. Every fault is a `FrameError`: nothing is
guessed.
"""

import json
import struct
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from sfumato.common.messages import ANSWER, QUESTION, Answer, Question

MAGIC = b"SFM1"
PREFIX = struct.Struct("<4sIQ")
MAX_HEADER = 1 << 20
MAX_BODY = 1 << 28
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "int64": np.dtype("<i8")}

Vector = npt.NDArray[np.float32] | npt.NDArray[np.int64]


class FrameError(ValueError):
    """These bytes are not a frame we speak."""


def encode(message: Question | Answer, body: Vector | None = None) -> bytes:
    """One frame. `body` is a one-dimensional float32 or int64 array, or nothing."""
    header: dict[str, Any] = {"message": message.model_dump(mode="json")}
    raw = b""
    if body is not None:
        if body.ndim != 1 or body.dtype.name not in DTYPES:
            raise FrameError(f"expected a 1-d float32 or int64 vector, got {body.dtype.name}, {body.ndim}-d")
        header |= {"dtype": body.dtype.name, "length": int(body.size)}
        raw = np.ascontiguousarray(body, dtype=DTYPES[body.dtype.name]).tobytes()
    head = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    if len(head) > MAX_HEADER or len(raw) > MAX_BODY:
        raise FrameError("frame too large")
    return PREFIX.pack(MAGIC, len(head), len(raw)) + head + raw


def frame_length(prefix: bytes) -> int:
    """Total length of the frame that starts with these 16 bytes. Raises FrameError."""
    try:
        magic, head, body = PREFIX.unpack(prefix)
    except struct.error:
        raise FrameError("truncated prefix") from None
    if magic != MAGIC:
        raise FrameError("wrong magic")
    if head > MAX_HEADER or body > MAX_BODY:
        raise FrameError("frame too large")
    return PREFIX.size + int(head) + int(body)


@overload
def decode(frame: bytes, kind: Literal["question"]) -> tuple[Question, Vector | None]: ...
@overload
def decode(frame: bytes, kind: Literal["answer"]) -> tuple[Answer, Vector | None]: ...
def decode(frame: bytes, kind: Literal["question", "answer"]) -> tuple[Question | Answer, Vector | None]:
    """The message and its vector. Raises FrameError on anything but a whole, valid frame of that kind."""
    if frame_length(frame[: PREFIX.size]) != len(frame):
        raise FrameError("length does not match")
    head_length = PREFIX.unpack(frame[: PREFIX.size])[1]
    head, raw = frame[PREFIX.size : PREFIX.size + head_length], frame[PREFIX.size + head_length :]
    try:
        header = json.loads(head, parse_constant=_no_constant)
        adapter = QUESTION if kind == "question" else ANSWER
        message: Question | Answer = adapter.validate_python(header["message"], strict=False)
    except (ValidationError, ValueError, KeyError, TypeError, RecursionError):
        raise FrameError("header is not a message we speak") from None
    return message, _vector(header, raw)


def _vector(header: dict[str, Any], raw: bytes) -> Vector | None:
    extra = set(header) - {"message", "dtype", "length"}
    if extra:
        raise FrameError("unknown header field")
    if "dtype" not in header:
        if raw:
            raise FrameError("body without a declared type")
        return None
    dtype, length = header["dtype"], header.get("length")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FrameError("element type must be float32 or int64")
    if type(length) is not int or length < 0 or length * DTYPES[dtype].itemsize != len(raw):
        raise FrameError("body length does not match")
    vector = np.frombuffer(raw, dtype=DTYPES[dtype]).copy()
    if dtype == "float32" and not np.isfinite(vector).all():
        raise FrameError("vector holds NaN or infinity")
    return vector


def _no_constant(_: str) -> float:
    raise ValueError("NaN or infinity")
