"""The threat model names real tests, and says where there are none."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = Path(__file__).parents[2] / "docs" / "threat-model.md"
NAMED = re.compile(r"`(…|[\w/]+\.py)(?:::(test_\w+))?`")


def named(cell: str) -> list[tuple[str, str]]:
    """(file, test) of each test in a cell; a … stands for the file before it."""
    found: list[tuple[str, str]] = []
    for file, test in NAMED.findall(cell):
        found.append((found[-1][0] if file == "…" else file, test))
    return found


def attacks() -> list[list[str]]:
    """Rows of the tables that have a column for tests."""
    rows, with_tests = [], False
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            with_tests = False
        elif cells[-1] == "tested in":
            with_tests = True
        elif with_tests and not cells[0].startswith("---"):
            rows.append(cells)
    return rows


def missing(file: str, test: str) -> bool:
    path = TESTS / file
    return not path.is_file() or (bool(test) and f"def {test}(" not in path.read_text(encoding="utf-8"))


def test_every_named_test_is_there() -> None:
    rows = attacks()
    assert len(rows) > 35
    assert [n for row in rows for n in named(row[-1]) if missing(*n)] == []


def test_a_row_without_a_test_says_so() -> None:
    silent = [r[0] for r in attacks() if not named(r[-1]) and "not defended" not in r[-1]]
    assert [s for s in silent if not s.startswith("different weights")] == []


def test_a_test_that_is_not_there_would_be_seen() -> None:
    assert named("`a/b.py::test_c`, `…::test_d`") == [("a/b.py", "test_c"), ("a/b.py", "test_d")]
    assert missing("architecture/test_threat_model_doc.py", "test_nowhere") and missing("no/file.py", "")
