"""docs/jobs.md names every key of a job file with its default, and its example is a job."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sfumato.common import job as j
from sfumato.common.analyses import catalogue as analyses
from sfumato.common.learners import catalogue

PAGE = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text(encoding="utf-8")
TABLES: dict[str, type[BaseModel]] = {
    "job": j.ChurnNetJob,
    "privacy": j.TrainingPrivacy,
    "model": j.Model,
    "training": j.Training,
    "evaluation": j.Evaluation,
    "binning": j.Binning,
    "federation": j.Federation,
    "audit": j.Audit,
}


def lines(table: str) -> dict[str, str]:
    """Key to the text of its default, from the section of that table."""
    (section,) = re.findall(rf"^## `\[{table}\]`\n(.*?)(?=^## )", PAGE, re.DOTALL | re.MULTILINE)
    return dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))


@pytest.mark.parametrize("table", TABLES)
def test_every_key_has_its_line_and_its_default(table: str) -> None:
    fields = {k: f for k, f in TABLES[table].model_fields.items() if k not in TABLES}
    documented = lines(table)
    assert set(fields) == set(documented)
    for key, field in fields.items():
        if field.is_required():
            assert documented[key] == "required"
            continue
        default = field.get_default(call_default_factory=True)
        assert default is not PydanticUndefined
        shown = documented[key].strip("`")
        if default is None:
            assert shown == "not set"
        elif isinstance(default, str):
            assert shown == f'"{default}"'
        elif isinstance(default, tuple):
            assert shown == str(list(default))
        elif isinstance(default, dict):
            assert (shown, default) == ("{}", {})
        else:
            assert float(shown) == default


def test_the_example_is_a_job_and_sets_every_key(tmp_path: Path) -> None:
    example, learner, question = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "job.toml"
    path.write_text(example, encoding="utf-8")
    job = j.load_job(path)
    assert job.federation.weights == {"zurich": 2.0}
    for table in set(TABLES.values()) - {j.Binning}:
        part = job if table is j.ChurnNetJob else next(p for p in dict(job).values() if isinstance(p, table))
        assert part.model_fields_set == set(table.model_fields)
    path.write_text(learner, encoding="utf-8")
    assert isinstance(j.load_job(path), j.LearnerJob)
    path.write_text(question, encoding="utf-8")
    asked = j.load_job(path)
    assert isinstance(asked, j.AnalysisJob)
    assert asked.question["columns"] == ["segment", "age", "churned"]


def test_an_analysis_has_the_empty_slots_that_the_page_says() -> None:
    example = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[2]
    asked = j.ANY_JOB.validate_python((lambda d: {**d.pop("job"), **d})(tomllib.loads(example)))
    (shown,) = re.findall(
        r"^\| `empty_slots` .* In a job of an analysis ([\d,]+) unless set", PAGE, re.MULTILINE
    )
    assert asked.audit.empty_slots == int(shown.replace(",", ""))
    fewer = asked.model_dump() | {"audit": {"canaries": 8}}
    assert j.ANY_JOB.validate_python(fewer).audit.empty_slots == asked.audit.empty_slots


@pytest.mark.parametrize(
    ("page", "modules"), [("analyses.md", analyses.CATALOGUE), ("learners.md", catalogue.LEARNERS)]
)
def test_every_key_of_a_question_has_its_line_and_its_default(page: str, modules: dict[str, Any]) -> None:
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    for kind, module in modules.items():
        (section,) = re.findall(rf"^## `{kind}`.*?\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
        documented = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", section, re.MULTILINE))
        fields = module.Question.model_fields
        assert set(documented) == set(fields)
        for key, field in fields.items():
            shown = documented[key].strip("`")
            if field.is_required():
                assert shown == "required"
            elif field.default is None:
                assert shown == "not set"
            elif isinstance(field.default, tuple):
                assert shown == str(list(field.default))
            elif field.default_factory is not None:
                assert shown == "{}"
            elif isinstance(field.default, bool | str):
                assert tomllib.loads(f"default = {shown}")["default"] == field.default
            else:
                assert float(shown) == field.default
