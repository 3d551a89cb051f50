"""Answers of any kind, read by their parts: at the terminal, in the report, as charts, as files, as frames."""

import csv
import io
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sfumato.common.analyses.parts import part
from sfumato.common.errors import BadInput
from sfumato.server import api, connect, result
from sfumato.server.answer_export import as_csv, as_json
from sfumato.server.answers import print_answer
from sfumato.server.cli import job as job_cli
from sfumato.server.home import CoordinatorHome
from sfumato.server.part_figures import MOST_LINES, MOST_PANELS, figures
from sfumato.server.phrases import phrases
from sfumato.server.reading import Reading
from sfumato.server.report import render_report
from sfumato.server.report_words import Estimate
from sfumato.server.result import Result
from sfumato.server.whiskers import LONGEST_LABEL, WIDTH, Chart, Panel, span, ticks

SUMMARY = {
    "state": "finished",
    "job": "a [job]",
    "kind": "rfm",
    "epsilon": 0.99,
    "delta": 1e-5,
    "branches": 4,
}


def n(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def answer() -> dict[str, Any]:
    cells = [
        {
            "of": ["0 to 3", "many"],
            "customers": n(871.4, 850, 892),
            "share": n(0.108, 0.105, 0.11),
            "name": "best",
        },
        {"of": ["4 to 7", "few"], "customers": n(12.0, 0, 33)},
    ]
    units: dict[str, Any] = {"customers": "customers", "share": "share"}
    nps = part("overall", [], {"nps": "points"}, [{"of": [], "nps": n(-12.3, -16.3, -8.3)}])
    verdicts = part("verdicts", ["value"], {}, [{"of": ["card"], "part": "[bold]helps"}])
    parts = [part("cells", ["recency", "how often"], units, cells), nps, verdicts]
    return {"level": 0.95, "customers": n(8090, 7980, 8200), "notes": ["[b]ig sums are cut."], "parts": parts}


@pytest.fixture
def reading() -> Reading:
    return Reading.of("run 7", SUMMARY, answer())


# --- records, files, frames ----------------------------------------------------------------------------------


def test_every_number_is_a_record_with_its_interval_and_its_cost(reading: Reading) -> None:
    found = [(r["part"], tuple(r["of"]), r["measure"], r["value"], r["epsilon"]) for r in reading.records()]
    assert found == [
        ("all customers", (), "customers", 8090.0, 0.99),
        ("cells", ("0 to 3", "many"), "customers", 871.4, 0.99),
        ("cells", ("0 to 3", "many"), "share", 0.108, 0.99),
        ("cells", ("4 to 7", "few"), "customers", 12.0, 0.99),
        ("overall", (), "nps", -12.3, 0.99),
        ("verdicts", ("card",), None, None, None),
    ]


def test_csv_and_json_hold_the_same(reading: Reading) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv([reading]).decode(), newline="")))
    (exported,) = json.loads(as_json([reading]))["answers"]
    assert (exported["level"], exported["notes"]) == (0.95, ["[b]ig sums are cut."])
    for line, row in zip(lines, exported["rows"], strict=True):
        assert [line["of_1"], line["of_2"]][: len(row["of"])] == row["of"]
        assert [line[k] for k in ("low", "high")] == [
            "" if row[k] is None else str(row[k]) for k in ("low", "high")
        ]
    assert (lines[1]["by_2"], lines[1]["unit"], lines[1]["name"]) == ("how often", "customers", "best")
    assert lines[-1]["part"] == "verdicts" and lines[-1]["part_"] == "[bold]helps"


def test_frames_of_all_and_of_one_part(reading: Reading) -> None:
    found = Result(reading)
    assert found.parts == ("all customers", "cells", "overall", "verdicts") and found.notes == reading.notes
    whole = found.frame()
    assert len(whole) == 6 and whole.value.dtype == float
    cells = found.frame("cells")
    assert list(cells.columns[:4]) == ["recency", "how often", "measure", "value"] and cells.name[0] == "best"
    share = cells[cells.measure == "share"]
    assert (share.low.item(), share.high.item(), share.epsilon.item()) == (0.105, 0.11, 0.99)
    assert list(found.frame("verdicts").columns)[:2] == ["value_", "measure"]
    with pytest.raises(BadInput, match="no part 'cell'"):
        found.frame("cell")
    assert "epsilon 0.99" in repr(found) and "cells" in repr(found)


def test_without_pandas_it_says_what_to_install(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BadInput, match="notebook"):
        Result(reading).frame()


@pytest.mark.parametrize(
    ("summary", "found", "says"),
    [
        ({"state": "failed", "reason": "nobody came"}, None, "nobody came"),
        ({"state": "running"}, None, "has not ended"),
        ({}, None, "neither an answer nor metrics"),
        ({}, {"parts": [{"name": "x"}]}, "not an answer"),
        ({}, {"customers": {"value": 1, "low": 0, "high": float("nan")}}, "customers is no number"),
        ({}, {"customers": 3}, "customers is no number"),
    ],
)
def test_what_is_no_answer_is_refused(summary: dict[str, Any], found: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        list(Reading.of("run 7", summary, found).records())


def test_a_models_metrics_are_a_part(full_home: CoordinatorHome) -> None:
    found = Result.of_run(full_home, 11)
    metrics = found.frame("metrics").set_index("metric")
    assert metrics.value["auc"] == found.summary["metrics"]["auc"]["value"]
    assert metrics.low["auc"] < metrics.value["auc"] < metrics.high["auc"]
    with pytest.raises(BadInput, match="a model has no answer"):
        found.show()


def test_files_that_simulate_wrote_are_read(reading: Reading, tmp_path: Path) -> None:
    path = tmp_path / "rfm.json"
    path.write_text(json.dumps({**SUMMARY, "answer": answer()}))
    assert list(Reading.of_file(path).records()) == list(reading.records())
    for text, says in (("{", "is not JSON"), ("[]", "is not what")):
        path.write_text(text)
        with pytest.raises(BadInput, match=says):
            Reading.of_file(path)
    with pytest.raises(BadInput, match="No such file"):
        Reading.of_file(tmp_path / "none.json")


def test_segments_are_exported_and_shown_by_the_command(full_home: CoordinatorHome, tmp_path: Path) -> None:
    home = ["--coordinator", str(full_home.path)]
    out = tmp_path / "s.csv"
    assert CliRunner().invoke(job_cli, ["export", "13", *home, "--csv", str(out)]).exit_code == 0
    lines = list(csv.DictReader(out.open(encoding="utf-8", newline="")))
    assert {line["part"] for line in lines} >= {"segments", "middles"}
    shown = CliRunner().invoke(job_cli, ["show", "13", *home])
    assert "5 segments of customers" in shown.output
    for line, says in (
        (["export", "13", *home], "nothing to write"),
        (["show", "10", *home], "made a model"),
    ):
        assert says in str(CliRunner().invoke(job_cli, line).exception)


# --- print, report, charts -----------------------------------------------------------------------------------


def test_the_terminal_shows_every_part_its_words_and_notes() -> None:
    out = Console(file=io.StringIO(), width=120, highlight=False)
    print_answer(SUMMARY, answer(), out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "a [job]: 4 branches, 8,090 (7,980 to 8,200) customers" in text
    assert "871 (850 to 892)" in text and "10.80% (10.50 to 11.00%)" in text and "−12 (−17 to −8)" in text
    assert "[bold]helps" in text and "- [b]ig sums are cut." in text and "how often" in text
    assert "Epsilon 0.99 at delta 1e-05" in text


def test_a_long_table_says_how_much_is_not_shown() -> None:
    rows = [{"of": [str(i)], "customers": n(i, i, i)} for i in range(100)]
    long = {"level": 0.95, "parts": [part("many", ["i"], {"customers": "customers"}, rows)]}
    out = Console(file=io.StringIO(), width=80)
    print_answer(SUMMARY, long, out)
    assert "and 40 rows more" in out.file.getvalue()  # type: ignore[attr-defined]


def test_the_report_has_a_figure_a_part_and_the_notes() -> None:
    page = render_report({**SUMMARY, "mode": "secure-sum"}, None, portrait=answer())
    assert page.count("<svg") == 2 and page.count("<figure") == 3
    assert "Who bought lately, often, and for much?" in page and "[b]ig sums are cut." in page
    with pytest.raises(ValueError, match="not the answer of rfm"):
        render_report(SUMMARY, None, portrait={"level": 0.95})


def svg(estimates: list[Estimate | None], **settings: Any) -> ET.Element:
    labels = tuple(f"row {i}" for i in range(len(estimates)))
    chart = Chart("x", "t", "d", labels, ("",) * len(labels), (Panel("share", tuple(estimates), **settings),))
    return ET.fromstring(chart.svg())


def test_marks_stand_where_their_numbers_are() -> None:
    found = [Estimate(10, 5, 20, "%"), Estimate(40, 38, 44, "%"), Estimate(20, 0, 35, "%")]
    drawn = svg(list(found))
    rings = [float(c.get("cx", "")) for c in drawn.iter("circle")]
    whiskers = [
        (float(x.get("x1", "")), float(x.get("x2", "")))
        for x in drawn.iter("line")
        if x.get("stroke-width") == "2.2"
    ]
    unit = (rings[1] - rings[0]) / 30
    zero = rings[0] - 10 * unit
    for e, ring, (low, high) in zip(found, rings, whiskers, strict=True):
        assert (ring, low, high) == pytest.approx(
            [zero + v * unit for v in (e.value, e.low, e.high)], abs=0.11
        )
    assert not list(drawn.iter("path"))
    assert all(0 <= x <= WIDTH for pair in whiskers for x in pair)


def test_an_interval_out_of_all_proportion_leaves_the_figure_with_an_arrow() -> None:
    far = svg([Estimate(10, 9, 11), Estimate(12, 2, 9000)])
    assert len(list(far.iter("path"))) == 1
    assert float(next(far.iter("circle")).get("cx", "")) > 100


def test_a_number_that_the_noise_drowns_is_a_dotted_line_and_a_question_mark() -> None:
    drowned = svg([Estimate(50, 0, 100, "%"), None], whole=(0.0, 100.0))
    assert not list(drowned.iter("circle"))
    assert [x.get("stroke-dasharray") for x in drowned.iter("line") if x.get("stroke-dasharray")] == ["1.6 3"]
    assert {"?", "–"} <= {t.text for t in drowned.iter("text")}


@pytest.mark.parametrize("ends", [(0, 1), (-100, 100), (0, 0.031), (-0.2, 13_999_999), (5, 5)])
def test_ticks_are_round_and_few(ends: tuple[float, float]) -> None:
    marks = ticks(*ends)
    assert 1 <= len(marks) <= 6 and all(ends[0] - 1e-9 <= m <= ends[1] + 1e-9 for m in marks)
    if len(marks) > 1:
        step = f"{marks[1] - marks[0]:.0e}"
        assert step[0] in "125"
    assert span([], from_zero=True) == (0.0, 1.0)


def test_long_and_chinese_labels_fit() -> None:
    label = "客户" * 40
    chart = Chart("x", "t", "d", (label,), ("",), (Panel("p", (Estimate(1, 0, 2),)),))
    texts = [t for t in ET.fromstring(chart.svg()).iter("text") if t.get("text-anchor") == "end"]
    (text,) = [t.text or "" for t in texts]
    assert text.endswith("…") and 12 * len(text) <= LONGEST_LABEL + 12


def test_figures_split_by_column_and_by_measure() -> None:
    words = phrases("en")
    units: dict[str, Any] = {f"m{i}": "number" for i in range(5)}
    rows = [{"of": [c, g], **{m: n(1, 0, 2) for m in units}} for c in ("age", "income") for g in "ab"]
    (made,) = Reading.of("x", SUMMARY, {"parts": [part("middles", ["column", "group"], units, rows)]}).parts
    found = list(figures(made, words, "f"))
    assert [f.title for f in found] == [f"Middles · {c} ({i}/2)" for c in ("age", "income") for i in (1, 2)]
    assert [len(f.columns) - 1 for f in found] == [3, 2, 3, 2] and MOST_PANELS == 4
    many = [{"of": [str(i)], "m0": n(1, 0, 2)} for i in range(MOST_LINES + 5)]
    (made,) = Reading.of("x", SUMMARY, {"parts": [part("many", ["i"], {"m0": "number"}, many)]}).parts
    (figure,) = figures(made, words, "f")
    assert "The first 80 of 85 rows" in figure.caption and len(figure.rows) == 85
    assert len(list(ET.fromstring(figure.svg).iter("circle"))) == 80


# --- the handle ----------------------------------------------------------------------------------------------


def test_connect_reads_the_home_and_lists(
    full_home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = connect(str(full_home.path))
    assert str(full_home.path) in repr(asked)
    models = asked.models()
    assert len(models) == 4 and set(models.state) == {"verified"}
    analyses = asked.analyses().set_index("kind")
    assert analyses.question["drift"].startswith("Are the customers still")
    assert asked.run(13).result().parts[:2] == ("segments", "middles")
    state = SimpleNamespace(
        run_id=5, job="no JSON", finished=True, sub_status="failed", status="", submitted_at="", details="x"
    )
    control = SimpleNamespace(list_runs=lambda: [state], close=lambda: None)
    monkeypatch.setattr(api.ControlClient, "of", lambda home: control)
    assert asked.runs().iloc[0][["run", "state", "why"]].tolist() == [5, "failed", "x"]


def test_a_job_that_is_none_is_refused(full_home: CoordinatorHome, tmp_path: Path) -> None:
    for job, says in (({}, "no 'job' table"), ({"job": {"kind": "rfm"}}, "not a valid job")):
        with pytest.raises(BadInput, match=says):
            api.read_job(job)
    with pytest.raises(BadInput):
        connect(tmp_path)


def test_importing_the_server_stays_cheap() -> None:
    code = "import sys, sfumato.server; assert not {'numpy', 'flwr', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert result.require_pandas().__name__ == "pandas"
