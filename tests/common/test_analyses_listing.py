"""`sfumato analyses` says of every kind what it asks, which keys it has, and shows a job that is one."""

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sfumato.common import analyses_listing as listing
from sfumato.common.analyses.catalogue import CATALOGUE
from sfumato.common.analyses_cli import analyses
from sfumato.common.errors import BadInput
from sfumato.common.job import load_job
from sfumato.common.learners.bins import Column, Schema

ROOT = Path(__file__).parents[2]
LEFT_BY_A_RUN = Schema(
    contract="0" * 64,
    label=None,
    customers=10.0,
    positives=None,
    columns=(Column(name="age", cuts=(40.0,), null=0, counts=(4.0, 6.0), stds=(1.0, 1.0)),),
)


def said(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(analyses)
    done = CliRunner().invoke(app, list(arguments), terminal_width=200, env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.exception
    return done.output


def test_the_list_has_every_kind_with_its_question_and_a_page_that_is_there() -> None:
    text = said()
    for kind in CATALOGUE:
        assert re.search(rf"^ {kind} ", text, re.MULTILINE)
        question = listing.question_of(kind)
        assert question in text and 20 < len(question) < 120 and question[0].isupper()
        assert (ROOT / listing.page_of(kind)).is_file()


@pytest.mark.parametrize("kind", CATALOGUE)
def test_a_kind_shows_its_keys_and_an_example_that_loads(kind: str, tmp_path: Path) -> None:
    text = said(kind)
    for name, field in CATALOGUE[kind].Question.model_fields.items():  # type: ignore[index]
        (line,) = re.findall(rf"^ {name} +(.*)$", text, re.MULTILINE)
        assert ("required" in line) == field.is_required()
        assert not re.search(r"typing|Annotated|<class|PydanticUndefined", line)
    example = listing.example(kind)
    assert example is not None and example.strip() in text
    (tmp_path / "job.toml").write_text(example)
    (tmp_path / "schema.json").write_text(LEFT_BY_A_RUN.model_dump_json())
    assert load_job(tmp_path / "job.toml").kind == kind


def test_types_and_limits_are_said_in_words() -> None:
    keys = {k.name: k for k in listing.keys("profile")}
    assert keys["columns"] == listing.Key("columns", "list of text, 1 or more, at most 200", "required")
    assert keys["cross"].type == "list of [text, text], at most 100"
    assert (keys["bins"].type, keys["bins"].default) == ("whole number, at least 2, at most 64", "10")
    assert {k.name: k.default for k in listing.keys("segments")}["segments"] == "not set"


def test_an_unknown_kind_names_those_that_are() -> None:
    for ask in (listing.question_of, listing.keys, listing.example, listing.page_of):
        with pytest.raises(BadInput, match="no analysis 'nps'") as refused:
            ask("nps")
        assert "profile" in refused.value.hint
