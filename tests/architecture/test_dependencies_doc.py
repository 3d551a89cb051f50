"""docs/dependencies.md gives every dependency its reason, and names none that is not there."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"^[A-Za-z0-9._-]+")


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = [*project["dependencies"], *(d for e in project["optional-dependencies"].values() for d in e)]
    return {match[0] for d in listed if (match := NAME.match(d))} - {project["name"]}


def documented() -> dict[str, str]:
    reasons = {}
    for line in (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            first, *others = (cell.strip() for cell in line.strip("|").split("|"))
            reasons |= {
                match[0]: others[-1] for n in re.findall(r"`([^`]+)`", first) if (match := NAME.match(n))
            }
    return reasons


def test_every_dependency_has_its_reason() -> None:
    assert declared() - set(documented()) == set()


def test_no_dependency_is_documented_that_is_gone() -> None:
    assert set(documented()) - declared() == set()


def test_a_reason_is_a_sentence() -> None:
    assert [
        name for name, why in documented().items() if len(why) < 10 or not why.endswith((".", ".)"))
    ] == []
