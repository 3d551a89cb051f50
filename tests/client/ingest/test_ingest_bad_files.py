"""The table of bad files: each with the message it must give, and with no cell of it in the message."""

import csv
import gzip
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sfumato.client.ingest.load import ingest, open_source
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput

GOOD = {
    "id": "c-1",
    "name": "Ada",
    "iban": "CH93",
    "age": "41",
    "visits": "3",
    "balance": "10.5",
    "rate": "0.25",
    "city": "Basel",
    "product": "loan",
    "member": "yes",
    "since": "2024-02-29",
    "seen": "2024-02-29T10:11:12",
    "note": "fine",
    "churned": "0",
}
NAMES = list(GOOD)


def text(rows: list[dict[str, str]], names: list[str] = NAMES) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def cell(column: str, value: str, row: int = 2) -> bytes:
    """Three rows of which the `row`th has this cell."""
    rows: list[dict[str, str]] = [{**GOOD, "id": f"c-{i}"} for i in range(1, 4)]
    rows[row - 1][column] = value
    return text(rows).encode()


def parquet(column: str, values: Any) -> bytes:
    """Three typed rows in Parquet with this column replaced."""
    table = pa.table({name: [GOOD[name]] * 3 for name in NAMES})
    table = table.set_column(0, "id", pa.array(["c-1", "c-2", "c-3"]))
    table = table.set_column(NAMES.index(column), column, values)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@dataclass(frozen=True)
class Bad:
    name: str
    content: bytes | Callable[[], bytes]
    expected: str
    secret: str = ""  # the offending cell: must not be in the message
    suffix: str = ".csv"
    whole_file: bool = False  # cannot be quarantined: row borders or columns are not known


two = [{**GOOD, "id": f"c-{i}"} for i in (1, 2)]
line = text([GOOD]).splitlines()[1]

BAD_FILES = [
    # the file as a whole
    Bad("empty", b"", "the file is empty (0 bytes)", whole_file=True),
    Bad("only-blank-lines", b"\n\r\n\n", "no header line, only blank lines", whole_file=True),
    Bad("header-only", text([]).encode(), "a header and no row", whole_file=True),
    Bad("bom-only", b"\xef\xbb\xbf", "no header line", whole_file=True),
    Bad("utf-16", text([GOOD]).encode("utf-16"), "not a CSV in UTF-8 but UTF-16", "Ada", whole_file=True),
    Bad("gzip", lambda: gzip.compress(b"x"), "but gzip-compressed", whole_file=True),
    Bad("spreadsheet", b"PK\x03\x04....", "a spreadsheet (.xlsx)", whole_file=True),
    Bad("parquet-as-csv", lambda: parquet("id", ["a", "b", "c"]), "but a Parquet file", whole_file=True),
    Bad(
        "csv-as-parquet", text([GOOD]).encode(), "not a whole, readable Parquet file", "Ada", ".parquet", True
    ),
    Bad("cut-parquet", lambda: parquet("id", ["a", "b", "c"])[:-20], "Is it cut short", "", ".parquet", True),
    Bad("unknown-suffix", b"x", "not a .csv, .tsv or .parquet file", "", ".xls", True),
    Bad(
        "semicolons",
        text([GOOD]).replace(",", ";").encode(),
        "the header is one single cell, and contains ';'",
        "Ada",
        whole_file=True,
    ),
    # the header
    Bad(
        "missing-column",
        text(two, [n for n in NAMES if n != "age"]).encode(),
        "missing column 'age'",
        whole_file=True,
    ),
    Bad(
        "extra-column",
        text([{**r, "shoe": "43.125"} for r in two], [*NAMES, "shoe"]).encode(),
        "extra column 'shoe' (place 15)",
        "43.125",
        whole_file=True,
    ),
    Bad(
        "extra-column-odd-name",
        text([{**r, "=cmd|x": "1"} for r in two], [*NAMES, "=cmd|x"]).encode(),
        "extra column with a name of 6 characters (place 15)",
        "=cmd|x",
        whole_file=True,
    ),
    Bad(
        "column-with-other-spelling",
        text(two).replace(",age,", ", Age ,", 1).encode(),
        "column 'age' is written with other capitals or spaces (place 4)",
        whole_file=True,
    ),
    Bad(
        "no-header",
        f"{line}\n{line}".replace("0.25", "7.25").encode(),
        "the header is not that of table 'customers': it has 0 of the 14 declared columns",
        "Ada",
        whole_file=True,
    ),
    Bad(
        "repeated-column",
        text(two).replace("visits", "age", 1).encode(),
        "columns 4 and 5 of the header have the same name",
        whole_file=True,
    ),
    Bad(
        "header-bad-encoding",
        text(two).replace("note", "notiz-é", 1).encode("latin-1"),
        "the header is not UTF-8 (byte {first_bad})",
        "notiz",
        whole_file=True,
    ),
    # rows that cannot be taken apart
    Bad(
        "open-quote",
        (text(two) + '"never closed,and,more\n').encode(),
        "row 3: a quote is opened and never closed",
        "and,more",
        whole_file=True,
    ),
    Bad(
        "text-after-quote",
        (text(two) + '"a"b' + "," * 13 + "\n").encode(),
        "row 3: text follows a closing quote",
        '"a"b',
        whole_file=True,
    ),
    Bad(
        "endless-cell",
        (text(two) + '"' + "zq" * 70_000 + '"\n').encode(),
        "row 3: a cell of more than 131,072 characters",
        "zqzq",
        whole_file=True,
    ),
    Bad(
        "too-few-cells", (text(two) + "c-3,Bob\n").encode(), "ragged-row: 1 row (row 3): found 2 cells", "Bob"
    ),
    Bad(
        "too-many-cells",
        (text(two) + line.replace("c-1", "c-3") + ",surplus\n").encode(),
        "found 15 cells; expected 14 cells, as in the header",
        "surplus",
    ),
    Bad(
        "latin-1",
        cell("name", "René Müller").decode().encode("latin-1"),
        "column 'name', bad-encoding: 1 row (row 2): found a byte that is not UTF-8 "
        "(the file's first is byte {first_bad})",
        "Ren",
    ),
    Bad(
        "nul", cell("note", "a\0bc"), "column 'note', nul-byte: 1 row (row 2): found text of 4 char", "a\0bc"
    ),
    # cells
    Bad(
        "empty-id",
        cell("id", ""),
        "column 'id', empty: 1 row (row 2): found empty; expected text, never empty",
    ),
    Bad("empty-pii", cell("name", ""), "column 'name', empty: 1 row (row 2)"),
    Bad("blank-number", cell("age", "   "), "column 'age', empty: 1 row (row 2): found empty"),
    Bad("nan", cell("age", "NaN"), "column 'age', empty: 1 row (row 2)", "NaN"),
    Bad("nan-small", cell("age", "nan"), "column 'age', empty: 1 row (row 2)", "nan"),
    Bad("infinite", cell("balance", "-Infinity"), "column 'balance', not-finite: 1 row (row 2)", "-Infinity"),
    Bad("overflow", cell("rate", "1e999"), "column 'rate', not-finite: 1 row (row 2)", "1e999"),
    Bad(
        "text-as-integer",
        cell("age", "forty"),
        "column 'age', wrong-type: 1 row (row 2): found text of 5",
        "forty",
    ),
    Bad("fraction", cell("age", "41.75"), "column 'age', wrong-type: 1 row (row 2)", "41.75"),
    Bad("hexadecimal", cell("age", "0x3F"), "column 'age', wrong-type: 1 row (row 2)", "0x3F"),
    Bad(
        "huge-integer",
        cell("visits", "9223372036854775808"),
        "column 'visits', wrong-type: 1 row (row 2): found a number beyond 64 bits",
        "9223372036854775808",
    ),
    Bad("thousands", cell("rate", "1'234.5"), "column 'rate', wrong-type: 1 row (row 2)", "1'234"),
    Bad("decimal-comma", cell("rate", "1234,5"), "expected a number with a decimal point", "1234,5"),
    Bad("below", cell("age", "7"), "column 'age', out-of-domain: 1 row (row 2): found a number below", "7"),
    Bad(
        "above", cell("age", "777"), "a number above the upper bound; expected a number from 18 to 100", "777"
    ),
    Bad("category", cell("city", "Atlantis"), "expected one of the contract's 3 categories", "Atlantis"),
    Bad("category-case", cell("city", "basel"), "column 'city', out-of-domain: 1 row (row 2)", "basel"),
    Bad("boolean", cell("member", "ja"), "expected true, false, yes, no, 1 or 0", "ja"),
    Bad("date-order", cell("since", "29.02.2024"), "column 'since', wrong-type: 1 row (row 2)", "29.02.2024"),
    Bad("no-such-day", cell("since", "2023-02-29"), "expected a date YYYY-MM-DD (ISO 8601)", "2023-02-29"),
    Bad(
        "year-nought", cell("since", "0000-01-01"), "column 'since', wrong-type: 1 row (row 2)", "0000-01-01"
    ),
    Bad("no-such-hour", cell("seen", "2024-02-28T25:00"), "expected a date and time", "2024-02-28T25:00"),
    Bad(
        "label",
        cell("churned", "2", row=3),
        "column 'churned', bad-label: 1 row (row 3): found a number that",
    ),
    Bad("formula-equals", cell("note", '=HYPERLINK("x")'), "column 'note', formula: 1 row (row 2)", "HYPER"),
    Bad("formula-plus", cell("name", "+cmd|' /C calc'!A0"), "column 'name', formula: 1 row (row 2)", "calc"),
    Bad("formula-minus", cell("note", "-2+3+cmd"), "column 'note', formula: 1 row (row 2)", "cmd"),
    Bad("formula-at", cell("note", "@SUM(1+1)"), "expected text that does not begin with = + - @", "SUM"),
    Bad("formula-tab", cell("note", "\tplain"), "column 'note', formula: 1 row (row 2)", "plain"),
    Bad("formula-return", cell("note", "\rplain"), "column 'note', formula: 1 row (row 2)", "plain"),
    Bad("formula-spaces", cell("note", "  =A1"), "column 'note', formula: 1 row (row 2)", "=A1"),
    Bad("formula-full-width", cell("note", "＝A1"), "column 'note', formula: 1 row (row 2)", "＝A1"),
    Bad("formula-in-clipped-category", cell("product", "=A1"), "column 'product', formula: 1 row", "=A1"),
    Bad("formula-in-id", cell("id", "=A1"), "column 'id', formula: 1 row (row 2)", "=A1"),
    Bad("too-long", cell("note", "wx" * 5001), "too-long: 1 row (row 2): found text of 10,002 char", "wx"),
    Bad(
        "duplicate-customer",
        text([*two, two[0]]).encode(),
        "column 'id', duplicate-customer: 1 row (row 3): found a customer id seen before",
        "c-1",
    ),
    # Parquet
    Bad(
        "nested",
        lambda: parquet("note", pa.array([[1], [2], [3]])),
        "column 13 has a nested or unusual Parquet type",
        "",
        ".parquet",
        True,
    ),
    Bad(
        "float-id",
        lambda: parquet("id", pa.array([1.5, 2.0, 3.0])),
        "column 'id', wrong-type: 1 row (row 1): found a number with a fraction; expected text",
        "1.5",
        ".parquet",
    ),
    Bad(
        "number-for-date",
        lambda: parquet("since", pa.array([20240101, None, None])),
        "column 'since', wrong-type: 1 row (row 1): found a number; expected a date",
        "20240101",
        ".parquet",
    ),
    Bad(
        "unsigned-beyond-64-bits",
        lambda: parquet("visits", pa.array([1, 2**64 - 1, 3], pa.uint64())),
        "column 'visits', wrong-type: 1 row (row 2): found a number beyond 64 bits",
        str(2**64 - 1),
        ".parquet",
    ),
    Bad(
        "float-beyond-2^53",
        lambda: parquet("visits", pa.array([1.0, 2.0, 1e17])),
        "column 'visits', wrong-type: 1 row (row 3): found a float beyond 2^53",
        "1e17",
        ".parquet",
    ),
    Bad(
        "parquet-bad-bytes",
        lambda: parquet("note", pa.array([b"ok", b"\xe9t\xe9", b"ok"], pa.binary())),
        "column 'note', bad-encoding: 1 row (row 2): found bytes that are not UTF-8",
        "t\\xe9",
        ".parquet",
    ),
    Bad(
        "parquet-nan",
        lambda: parquet("age", pa.array([40.0, float("nan"), float("inf")])),
        "column 'age', empty: 1 row (row 2)",
        "nan",
        ".parquet",
    ),
]


def expected_text(bad: Bad, path: Path) -> str:
    return bad.expected.replace("{first_bad}", str(path.read_bytes().find(b"\xe9")))


@pytest.mark.parametrize("bad", BAD_FILES, ids=lambda b: b.name)
def test_bad_file_is_refused_whole(bad: Bad, tmp_path: Path, contract: Contract, store: Any) -> None:
    path = tmp_path / f"file{bad.suffix}"
    path.write_bytes(bad.content if isinstance(bad.content, bytes) else bad.content())
    with pytest.raises(BadInput) as caught:
        ingest(open_source(path), "customers", contract, store)
    message = str(caught.value)
    assert expected_text(bad, path) in message
    assert str(path) in message
    assert not bad.secret or not re.search(
        rf"\b{bad.secret}\b" if bad.secret.isdigit() else re.escape(bad.secret),
        message.replace(str(path), ""),
    )
    assert store.tables == {}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("bad", BAD_FILES, ids=lambda b: b.name)
def test_bad_rows_go_to_quarantine_and_bad_files_do_not(
    bad: Bad, tmp_path: Path, contract: Contract, store: Any
) -> None:
    path, held = tmp_path / f"file{bad.suffix}", tmp_path / "held.csv"
    path.write_bytes(bad.content if isinstance(bad.content, bytes) else bad.content())
    if bad.whole_file:
        with pytest.raises(BadInput, match=r"."):
            ingest(open_source(path), "customers", contract, store, quarantine=held)
        assert store.tables == {}
        assert list(tmp_path.iterdir()) == [path]
        return
    report = ingest(open_source(path), "customers", contract, store, quarantine=held)
    assert expected_text(bad, path) in str(report)
    assert report.rows_read == 3
    assert report.rows_loaded + report.rows_quarantined == 3
    assert store.tables["customers"].num_rows == report.rows_loaded
    with held.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["row", "column", "kind", "expected", *NAMES]
    assert len(lines) - 1 == report.rows_quarantined
    assert {int(line[0]) for line in lines[1:]} == {r for f in report.findings for r in f.rows}


def test_the_table_is_long_and_has_no_twin() -> None:
    assert len(BAD_FILES) >= 25
    assert len({b.name for b in BAD_FILES}) == len(BAD_FILES)


def test_missing_file_and_directory(tmp_path: Path, contract: Contract, store: Any) -> None:
    for path, expected in ((tmp_path / "none.csv", "no such file"), (tmp_path, "not a .csv")):
        with pytest.raises(BadInput, match=expected):
            ingest(open_source(path), "customers", contract, store)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(BadInput, match="not a regular file"):
        ingest(open_source(tmp_path / "folder.csv"), "customers", contract, store)


def test_unknown_table(tmp_path: Path, contract: Contract, store: Any) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes(cell("note", "ok"))
    with pytest.raises(BadInput, match="the contract has no table 'loans'"):
        ingest(open_source(path), "loans", contract, store)
