"""docs/data-contract.md names every key and every choice of the contract, and its example is a contract."""

import re
from enum import StrEnum
from pathlib import Path

import pytest
from pydantic import BaseModel

from sfumato.common import contract as c

PAGE = Path(__file__).parents[2] / "docs" / "data-contract.md"


@pytest.mark.parametrize("model", [c.Contract, c.Table, c.Column, c.Feature], ids=lambda m: m.__name__)
def test_every_key_has_its_line(model: type[BaseModel]) -> None:
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    documented = {key for line in lines for key in re.findall(r"`(\w+)`", line.split("|")[1])}
    assert set(model.model_fields) <= documented


@pytest.mark.parametrize(
    "choices",
    [c.ColumnType, c.Role, c.Protection, c.Scale, c.OutOfDomain, c.Aggregate],
    ids=lambda e: e.__name__,
)
def test_every_choice_is_named(choices: type[StrEnum]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [e.value for e in choices if f"`{e.value}`" not in page and f'`"{e.value}"`' not in page] == []


def test_the_example_is_a_contract(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "contract.toml"
    path.write_text(example, encoding="utf-8")
    assert c.load_contract(path).features[0].where == {"channel": "card"}
