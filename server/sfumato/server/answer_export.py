"""Answers as files for other programs: CSV and JSON, a line for each measure of each row, with its interval."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from sfumato.server.reading import MEASURED, Reading, Record

FIXED = ("run", "job", "kind", "part", *MEASURED)


def flat(readings: Sequence[Reading]) -> tuple[list[str], list[dict[str, Any]]]:
    """Column names and lines of all readings. What a row is of stands in by_1, of_1, by_2, of_2 …; the words of a
    row in columns of their own, with an underscore behind a name that is taken."""
    found = [(r, record) for r in readings for record in r.records()]
    most = max((len(record["by"]) for _, record in found), default=0)
    of = [name for i in range(1, most + 1) for name in (f"by_{i}", f"of_{i}")]
    words = dict.fromkeys(w for _, record in found for w in record["words"])
    names = {w: f"{w}_" if w in (*FIXED, *of) else w for w in words}
    columns = ["run", "job", "kind", "part", *of, *MEASURED, *names.values()]
    return columns, [_line(reading, record, names) for reading, record in found]


def _line(reading: Reading, record: Record, names: dict[str, str]) -> dict[str, Any]:
    line = {"run": reading.source, "job": reading.job, "kind": reading.kind, "part": record["part"]}
    for i, (by, of) in enumerate(zip(record["by"], record["of"], strict=True), 1):
        line |= {f"by_{i}": by, f"of_{i}": of}
    line |= {key: record[key] for key in MEASURED}
    return line | {names[word]: text for word, text in record["words"].items()}


def as_csv(readings: Sequence[Reading]) -> bytes:
    """RFC 4180, UTF-8, with a head line; numbers in full."""
    columns, lines = flat(readings)
    written = io.StringIO()
    writer = csv.DictWriter(written, columns, restval="", lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(lines)
    return written.getvalue().encode()


def as_json(readings: Sequence[Reading]) -> bytes:
    """{"answers": [{"run", "job", "kind", "epsilon", "delta", "level", "notes", "rows"}]}; a row's `by` and `of` are
    lists."""
    answers = [
        {
            "run": r.source,
            "job": r.job,
            "kind": r.kind,
            "purpose": r.summary.get("purpose"),
            "epsilon": r.epsilon,
            "delta": r.delta,
            "level": r.level,
            "notes": list(r.notes),
            "rows": list(r.records()),
        }
        for r in readings
    ]
    return json.dumps({"answers": answers}, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
