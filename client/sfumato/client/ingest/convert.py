"""Raw cells into the contract's types, a column at a time.

Each conversion takes a plain Arrow array (text from CSV and PostgreSQL, typed from Parquet) and gives the
typed values, null where a cell is empty or bad, with masks of the cells that do not parse. Empty are: null,
the empty text, for everything but text also blanks, and for numbers NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sfumato.client.column_types import ARROW_TYPE
from sfumato.client.ingest.findings import FaultKind
from sfumato.common.contract import ColumnType

Mask = npt.NDArray[np.bool_]

EXPECTED: dict[ColumnType, str] = {
    ColumnType.STRING: "text",
    ColumnType.CATEGORY: "text",
    ColumnType.INTEGER: "a whole number within 64 bits",
    ColumnType.NUMBER: "a number with a decimal point",
    ColumnType.BOOLEAN: "true, false, yes, no, 1 or 0",
    ColumnType.DATE: "a date YYYY-MM-DD (ISO 8601)",
    ColumnType.DATETIME: "a date and time YYYY-MM-DDThh:mm:ss (ISO 8601)",
}

_INTEGER = r"^[+-]?[0-9]+(\.0*)?$"
_SHORT_INTEGER = r"^[+-]?0*[0-9]{1,18}(\.0*)?$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_NAN = r"^[+-]?[nN][aA][nN]$"
_INFINITE = r"^[+-]?(?i:inf|infinity)$"
_DAY = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK = r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?"
_ZONE = r"(Z|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?)"
_NAIVE_TIME = f"^{_DAY}([T ]{_CLOCK})?$"
_ZONED_TIME = f"^{_DAY}[T ]{_CLOCK}{_ZONE}$"
_TRUE, _FALSE = pa.array(["true", "yes", "1"]), pa.array(["false", "no", "0"])
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896  # 0001-01-01 and 9999-12-31, in days from 1970


@dataclass(frozen=True, slots=True)
class CellFault:
    """Cells of one column with one fault. `value_class` None: told by the text's length."""

    kind: FaultKind
    mask: Mask
    expected: str
    value_class: str | None = None


@dataclass(frozen=True, slots=True)
class Converted:
    """Typed values, null where `faults` says bad or the cell is empty."""

    values: pa.Array
    faults: list[CellFault] = field(default_factory=list)


def convert(kind: ColumnType, raw: pa.Array) -> Converted:
    """The array as the Arrow type of `kind`. Never raises on a value: what does not parse is a fault."""
    return _CONVERSIONS[kind](raw)


def as_mask(array: pa.Array) -> Mask:
    """A boolean Arrow array as numpy, null as False."""
    mask: Mask = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
    return mask


def without(values: pa.Array, bad: Mask) -> pa.Array:
    """The values, null where bad."""
    return pc.if_else(pa.array(bad), pa.scalar(None, values.type), values) if bad.any() else values


def _wrong(kind: ColumnType, bad: Mask, value_class: str | None = None) -> list[CellFault]:
    return [CellFault(FaultKind.WRONG_TYPE, bad, EXPECTED[kind], value_class)] if bad.any() else []


def _not_finite(bad: Mask) -> list[CellFault]:
    found = "an infinite number"
    return [CellFault(FaultKind.NOT_FINITE, bad, "a finite number", found)] if bad.any() else []


def _all_wrong(kind: ColumnType, raw: pa.Array) -> Converted:
    bad = as_mask(pc.is_valid(raw))
    return Converted(pa.nulls(len(raw), ARROW_TYPE[kind]), _wrong(kind, bad, f"a {_family(raw.type)}"))


def _family(kind: pa.DataType) -> str:
    t = pa.types
    for test, name in ((t.is_boolean, "truth value"), (t.is_date, "date"), (t.is_timestamp, "date and time")):
        if test(kind):
            return name
    return "text" if t.is_string(kind) else "number"


def _trimmed(raw: pa.Array) -> pa.Array:
    """Text without outer white space, null where nothing is left."""
    text = pc.utf8_trim_whitespace(raw)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def _matches(text: pa.Array, pattern: str) -> Mask:
    return as_mask(pc.match_substring_regex(text, pattern))


def _text(raw: pa.Array) -> Converted:
    t = pa.types
    if t.is_string(raw.type):
        return Converted(pc.if_else(pc.equal(raw, ""), pa.scalar(None, pa.string()), raw))
    if t.is_floating(raw.type) or t.is_decimal(raw.type):
        # an integer column with gaps is a float column in pandas: 7.0 is the text "7"
        whole = _integer(raw)
        expected = EXPECTED[ColumnType.STRING]
        faults = [CellFault(f.kind, f.mask, expected, f.value_class) for f in whole.faults]
        return Converted(whole.values.cast(pa.string()), faults)
    return Converted(raw.cast(pa.string()))


def _integer(raw: pa.Array) -> Converted:
    t, kind = pa.types, ColumnType.INTEGER
    if t.is_string(raw.type):
        return _integer_text(_trimmed(raw))
    if t.is_boolean(raw.type):
        return Converted(raw.cast(pa.int64()))
    if t.is_integer(raw.type):
        big = np.zeros(len(raw), np.bool_)
        if raw.type == pa.uint64():
            big = as_mask(pc.greater(raw, pa.scalar(2**63 - 1, pa.uint64())))
        return Converted(without(raw, big).cast(pa.int64()), _wrong(kind, big, "a number beyond 64 bits"))
    if t.is_decimal(raw.type):
        return _integer_decimal(raw)
    return _integer_float(raw) if t.is_floating(raw.type) else _all_wrong(kind, raw)


def _integer_float(raw: pa.Array) -> Converted:
    kind, number = ColumnType.INTEGER, _number(raw)
    value = number.values.to_numpy(zero_copy_only=False)
    known = ~np.isnan(value)
    fraction = known & (value != np.floor(value))
    # a float holds every whole number only up to 2^53: beyond, digits of an id would be lost
    big = known & ~fraction & (np.abs(value) > 2.0**53)
    whole = without(number.values, fraction | big).cast(pa.int64())
    faults = _wrong(kind, fraction, "a number with a fraction")
    return Converted(whole, number.faults + faults + _wrong(kind, big, "a float beyond 2^53"))


def _integer_decimal(raw: pa.Array) -> Converted:
    whole = pc.floor(raw)
    fraction = as_mask(pc.not_equal(whole, raw))
    value = pc.cast(raw, pa.float64()).to_numpy(zero_copy_only=False)
    big = np.abs(np.nan_to_num(value)) >= 2.0**63
    kept = pc.cast(without(whole, fraction | big), pa.int64(), safe=False)
    faults = _wrong(ColumnType.INTEGER, fraction, "a number with a fraction")
    return Converted(kept, faults + _wrong(ColumnType.INTEGER, big & ~fraction, "a number beyond 64 bits"))


def _integer_text(text: pa.Array) -> Converted:
    kind = ColumnType.INTEGER
    missing = _matches(text, _NAN)
    known = as_mask(pc.is_valid(text)) & ~missing
    short = _matches(text, _SHORT_INTEGER)
    infinite = _matches(text, _INFINITE)
    values = without(text, ~short)
    if short.any():
        values = pc.replace_substring_regex(values, r"^\+|\.0*$", "")
    whole = values.cast(pa.int64())
    long = known & ~short & _matches(text, _INTEGER)
    if long.any():  # 19 digits or more: rare enough to look at one by one
        whole, long = _long_integers(text, whole, long)
    unparsed = known & ~short & ~infinite & ~_matches(text, _INTEGER)
    faults = _not_finite(infinite) + _wrong(kind, unparsed)
    return Converted(whole, faults + _wrong(kind, long, "a number beyond 64 bits"))


def _long_integers(text: pa.Array, whole: pa.Array, long: Mask) -> tuple[pa.Array, Mask]:
    values = whole.to_pylist()
    beyond = long.copy()
    for index in np.flatnonzero(long):
        digits = text[int(index)].as_py().split(".")[0]
        # 20 digits and a sign suffice for 64 bits; more would only feed int() a long text
        number = int(digits) if len(digits.lstrip("+-0")) <= 20 else 2**63
        if -(2**63) <= number < 2**63:
            values[index], beyond[index] = number, False
    return pa.array(values, pa.int64()), beyond


def _number(raw: pa.Array) -> Converted:
    t, kind = pa.types, ColumnType.NUMBER
    faults: list[CellFault] = []
    if t.is_string(raw.type):
        text = _trimmed(raw)
        number, infinite = _matches(text, _NUMBER), _matches(text, _INFINITE)
        unparsed = as_mask(pc.is_valid(text)) & ~number & ~infinite & ~_matches(text, _NAN)
        faults += _not_finite(infinite) + _wrong(kind, unparsed)
        values = without(text, ~number).cast(pa.float64())
    elif t.is_integer(raw.type) or t.is_floating(raw.type) or t.is_decimal(raw.type):
        values = raw.cast(pa.float64(), safe=False)
    else:
        return _all_wrong(kind, raw)
    value = values.to_numpy(zero_copy_only=False)
    faults += _not_finite(np.isinf(value))  # also 1e999, which overflows to infinity
    return Converted(without(values, ~np.isfinite(value)), faults)


def _boolean(raw: pa.Array) -> Converted:
    t, kind = pa.types, ColumnType.BOOLEAN
    if t.is_boolean(raw.type):
        return Converted(raw)
    if t.is_string(raw.type):
        text = _trimmed(raw)
        lower = pc.utf8_lower(text)
        true, false = as_mask(pc.is_in(lower, _TRUE)), as_mask(pc.is_in(lower, _FALSE))
        bad = as_mask(pc.is_valid(text)) & ~true & ~false
    elif t.is_integer(raw.type) or t.is_floating(raw.type) or t.is_decimal(raw.type):
        value = raw.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        true, false = value == 1, value == 0
        bad = ~np.isnan(value) & ~true & ~false
    else:
        return _all_wrong(kind, raw)
    found = None if t.is_string(raw.type) else "a number that is neither 0 nor 1"
    return Converted(without(pa.array(true), ~true & ~false), _wrong(kind, bad, found))


def _date(raw: pa.Array) -> Converted:
    t, kind = pa.types, ColumnType.DATE
    if t.is_string(raw.type):
        text = _trimmed(raw)
        known = as_mask(pc.is_valid(text))
        shaped = _matches(text, _NAIVE_TIME) | _matches(text, _ZONED_TIME)
        days, real = _days(pc.utf8_slice_codeunits(without(text, ~shaped), 0, 10))
        return Converted(days, _wrong(kind, known & ~(shaped & real)))
    if t.is_timestamp(raw.type):
        # a stamp becomes the day on its own clock; the time of day is not kept
        local = pc.local_timestamp(raw) if raw.type.tz else raw
        return _within_calendar(kind, pc.floor_temporal(local, unit="day").cast(pa.date32(), safe=False))
    if t.is_date(raw.type):
        return _within_calendar(kind, raw.cast(pa.date32(), safe=False))
    return _all_wrong(kind, raw)


def _days(text: pa.Array) -> tuple[pa.Array, Mask]:
    """Texts YYYY-MM-DD as dates, and where they name a real day (30 February is none)."""
    try:
        days = text.cast(pa.date32())
    except pa.ArrowInvalid:
        real = np.fromiter((c is not None and _is_day(c) for c in text.to_pylist()), np.bool_, len(text))
        days = without(text, ~real).cast(pa.date32())
    inside = as_mask(pc.greater_equal(days.cast(pa.int32()), _FIRST_DAY))
    return without(days, ~inside), inside


def _is_day(text: str) -> bool:
    try:
        np.datetime64(text)
    except ValueError:
        return False
    return True


def _datetime(raw: pa.Array) -> Converted:
    t, kind = pa.types, ColumnType.DATETIME
    if t.is_string(raw.type):
        return _datetime_text(_trimmed(raw))
    if t.is_date(raw.type) or t.is_timestamp(raw.type):
        day = _date(raw)  # also tells the years outside the calendar
        inside = without(raw, as_mask(pc.is_null(day.values)))
        zone = raw.type.tz if t.is_timestamp(raw.type) else None
        stamps = inside.cast(pa.timestamp("us", zone), safe=False).cast(pa.timestamp("us"))
        return Converted(
            stamps, [CellFault(f.kind, f.mask, EXPECTED[kind], f.value_class) for f in day.faults]
        )
    return _all_wrong(kind, raw)


def _datetime_text(text: pa.Array) -> Converted:
    known = as_mask(pc.is_valid(text))
    zoned, naive = _matches(text, _ZONED_TIME), _matches(text, _NAIVE_TIME)
    _, real = _days(pc.utf8_slice_codeunits(without(text, ~(zoned | naive)), 0, 10))
    text = pc.replace_substring_regex(text, r"(\.[0-9]{6})[0-9]+", r"\1")
    plain = without(text, ~(naive & real)).cast(pa.timestamp("us"))
    if zoned.any():  # kept as the instant in UTC
        utc = without(text, ~(zoned & real)).cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
        plain = pc.if_else(pa.array(zoned), utc, plain)
    return Converted(plain, _wrong(ColumnType.DATETIME, known & ~((zoned | naive) & real)))


def _within_calendar(kind: ColumnType, days: pa.Array) -> Converted:
    number = days.cast(pa.int32())
    outside = as_mask(pc.or_(pc.less(number, _FIRST_DAY), pc.greater(number, _LAST_DAY)))
    return Converted(without(days, outside), _wrong(kind, outside, "a date outside the years 1 to 9999"))


_CONVERSIONS: dict[ColumnType, Callable[[Any], Converted]] = {
    ColumnType.STRING: _text,
    ColumnType.CATEGORY: _text,
    ColumnType.INTEGER: _integer,
    ColumnType.NUMBER: _number,
    ColumnType.BOOLEAN: _boolean,
    ColumnType.DATE: _date,
    ColumnType.DATETIME: _datetime,
}
