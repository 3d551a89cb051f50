"""Portrait pages: right for a screen reader, without colour, in two languages, with the same numbers everywhere."""

import csv
import io
import json
import re
import tomllib
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sfumato.common.analyses import catalogue
from sfumato.common.analyses.parts import part
from sfumato.common.errors import BadInput
from sfumato.server.pages import source
from sfumato.server.phrases import phrases
from sfumato.server.portrait import Group, Portrait
from sfumato.server.portrait_cli import portrait as command
from sfumato.server.portrait_page import portrait_page
from sfumato.server.reading import Reading
from sfumato.server.report_svg import ACCENT, INK, PALE, QUIET

SERVER = Path(__file__).parents[2] / "server" / "sfumato" / "server"
HOSTILE = "<script>alert(1)</script>{{ 7*7 }}"
LANGUAGES = ("en", "zh")


def n(value: float, reach: float) -> dict[str, float]:
    return {"value": value, "low": value - reach, "high": value + reach}


def summary(job: str, kind: str, epsilon: float = 0.987) -> dict[str, Any]:
    paid = {"epsilon": epsilon, "delta": 1e-5, "mode": "secure-sum", "branches": 4}
    return {"state": "finished", "job": job, "kind": kind, "purpose": "Know them.", **paid}


def profile() -> Reading:
    groups = [
        {
            "cells": [["mass", "0"]],
            "customers": n(5000, 20),
            "share": n(0.5, 0.01),
            "share_of_row": n(0.8, 0.02),
        },
        {
            "cells": [["private", "0"]],
            "customers": n(300, 20),
            "share": n(0.03, 0.01),
            "share_of_row": n(0.7, 0.09),
        },
        {"cells": [["mass", "1"], ["private", "1"]], "customers": n(31, 20), "share": n(0.02, 0.01)},
    ]
    groups[2] |= {"fewer_than": 51}
    tables = [
        {"columns": ["segment", "churned"], "values": [["mass", "private"], ["0", "1"]], "groups": groups}
    ]
    answer = {"customers": n(10_000, 25), "level": 0.95, "min_group": 20, "tables": tables}
    return Reading.of("run 7", summary("who", "profile"), answer)


def scores() -> Reading:
    """A kind that no catalogue knows: points below zero, a number that the noise drowns, words, hostile names."""
    rows = [
        {
            "of": [f"{HOSTILE} {i}", f"{i} to {i + 2}"],
            "nps": n(40 - 30 * i, 9.5),
            "share": n(0.1 * i + 0.05, 0.04),
        }
        for i in range(45)
    ]
    rows[1] |= {"share": {"value": 0.5, "low": 0.0, "high": 1.0}, "name": "the drowned"}
    del rows[2]["share"]
    parts = [part("scores", ["shop", "visits"], {"nps": "points", "share": "share"}, rows)]
    words = [{"of": ["mass"], "verdict": "helps"}]
    parts.append(part("whom to ask", ["segment"], {}, words))
    middles = [{"of": [c, "a"], "middle": n(v, 1)} for c, v in (("income", 50_000.0), ("visits", 3.0))]
    parts.append(part("middles", ["column", "group"], {"middle": "number"}, middles))
    answer = {"customers": n(9_000, 300), "level": 0.95, "notes": ["A note."], "parts": parts}
    return Reading.of("scores.json", summary("scores", "new-kind", 0.5), answer)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    made = Portrait.of([profile(), scores()])
    others = {"en": ("zh",), "zh": ("en",)}
    return {lang: portrait_page(made, lang, others[lang]) for lang in LANGUAGES}  # type: ignore[arg-type,misc]


class Page(HTMLParser):
    """Tags with what encloses them, and text by the language that it is said to be in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.said: list[tuple[str, str]] = []  # language, text
        self._open: list[tuple[str, str]] = [("", "")]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        language = dict(attrs).get("lang") or self._open[-1][1]
        if tag not in ("meta", "link", "br"):
            self._open.append((tag, language))
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self._open]
        if inside[-1] in ("td", "th"):
            self.cells[-1] += data
        if data.strip() and "style" not in inside:
            self.said.append((self._open[-1][1], data.strip()))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_screen_reader_finds_its_way(pages: dict[str, str], lang: str) -> None:
    page = Page(pages[lang])
    assert page.named("html") == [{"lang": {"en": "en", "zh": "zh-Hans"}[lang]}]
    levels = [int(t[1]) for t, _ in page.tags if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(a.get("scope") in ("col", "row") for a in page.named("th"))
    assert len(page.named("caption")) == len(page.named("table")) > 3
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    texts = dict(re.findall(r'<(?:title|desc) id="([^"]+)">([^<]+)<', pages[lang]))
    for plot in page.named("svg"):
        assert plot["role"] == "img"
        assert all(len(texts[i]) > 5 for i in (plot["aria-labelledby"] or "").split())
    for figure in re.findall(r"<figure.*?</figure>", pages[lang], re.DOTALL):
        assert figure.count("<table>") == 1 and "<caption" in figure
    for link in page.named("a"):
        target = link["href"] or ""
        assert (
            target[1:] in ids if target.startswith("#") else target == f"portrait.{link['hreflang'][:2]}.html"
        )  # type: ignore[index]
    assert all(a.get("aria-labelledby") or a.get("aria-label") for a in page.named("section"))


@pytest.mark.parametrize("lang", LANGUAGES)
def test_it_loads_nothing_and_runs_nothing(pages: dict[str, str], lang: str) -> None:
    page = Page(pages[lang])
    assert not {"script", "link", "img", "iframe", "object", "form", "image"} & {t for t, _ in page.tags}
    assert not re.search(r"https?:|@import|url\(|javascript:", pages[lang], re.IGNORECASE)
    assert "default-src 'none'" in pages[lang]
    assert all(not k.startswith("on") and k not in ("src", "style") for _, a in page.tags for k in a)
    assert HOSTILE in " ".join(text for _, text in page.said)


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_enough_and_needs_no_colour(pages: dict[str, str]) -> None:
    """WCAG 2.2: 4.5 for text, 3 for marks. Luminance alone counts, so a grey print shows the same."""
    texts = set(re.findall(r'<text[^>]* fill="(#\w{6})"', pages["en"])) | {INK}
    assert texts == {INK, QUIET}
    style = source("report.css")
    texts |= set(re.findall(r"--(?:ink|quiet|accent|alarm):(#\w{6})", style))
    assert all(contrast(c, "#ffffff") >= 4.5 for c in texts), texts
    assert contrast(ACCENT, "#ffffff") >= 3 and contrast(ACCENT, PALE) >= 3
    strokes = set(re.findall(r'<circle[^>]* stroke="(#\w{6})"', pages["en"]))
    assert strokes == {ACCENT}


def test_both_languages_show_the_same_numbers(pages: dict[str, str]) -> None:
    digits = {lang: [re.findall(r"[\d\u202f.]+", c) for c in Page(pages[lang]).cells] for lang in LANGUAGES}
    assert digits["en"] == digits["zh"] and len(digits["en"]) > 150


def test_what_stays_english_says_so(pages: dict[str, str]) -> None:
    said = Page(pages["zh"]).said
    assert ("en", "A note.") in said
    assert not any("interval" in text or "Epsilon" in text for lang, text in said if lang != "en")
    assert any(re.search("[\u4e00-\u9fff]", text) for _, text in said)


def test_the_chinese_catalogue_has_every_phrase_and_no_other() -> None:
    code = "".join(p.read_text("utf-8") for p in sorted(SERVER.glob("*.py")))
    templates = source("portrait_page.html.j2")
    used = {a or b for a, b in re.findall(r'\bsay\(\s*(?:"([^"]+)"|\'([^\']+)\')', code + templates)}
    used |= set(re.findall(r'"(\w+)"', re.findall(r"for head in \(([^)]+)\)", templates)[0])) | {"to", "or"}
    known = phrases("zh").phrases
    assert used == set(known)
    for english, chinese in known.items():
        assert set(re.findall(r"{\w+}", english)) == set(re.findall(r"{\w+}", chinese)), english


def test_the_chinese_catalogue_knows_only_kinds_that_are() -> None:
    assert set(tomllib.loads(source("zh.toml"))["kinds"]) <= set(catalogue.CATALOGUE)


def test_words_are_translated_and_the_contracts_are_not() -> None:
    words = phrases("zh", "drift")
    assert (words.term("psi"), words.value("verdict", "cannot tell")) == ("群体稳定性指数（PSI）", "无法判断")
    assert (words.column("opened_on"), words.value("opened_on", "stable")) == ("opened_on", "stable")
    assert words.value("age", "18 to 29 or 30 to 39") == "18 至 29 或 30 至 39"
    assert words.value("city", "Road to Rome") == "Road to Rome"
    assert words.value("note", "fewer than 51") == "少于 51"


def test_a_group_has_its_own_portrait() -> None:
    made = Portrait.of([profile(), scores()], Group.parse("segment=private"))
    assert [r.source for r in made.readings] == ["run 7"]
    (crossed,) = made.readings[0].parts
    assert crossed.by == ("churned",)
    assert [(r.of, r.numbers["customers"]["value"]) for r in crossed.rows] == [(("0",), 300)]
    assert "segment private" in portrait_page(made, "en")
    with pytest.raises(BadInput, match="no run says anything of customers with segment = nobody"):
        Portrait.of([profile()], Group.parse("segment=nobody"))
    with pytest.raises(BadInput, match="not a group"):
        Group.parse("segment")


def test_costs_add_up_and_a_run_counts_once() -> None:
    assert Portrait.of([profile(), scores()]).epsilon == pytest.approx(1.487)
    assert "at most epsilon 1.49" in portrait_page(Portrait.of([profile(), scores()]), "en")
    with pytest.raises(BadInput, match="named twice"):
        Portrait.of([profile(), profile()])


def test_the_command_writes_the_same_numbers_four_times(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command)
    for reading in (profile(), scores()):
        text = json.dumps({**reading.summary, "answer": reading.answer})
        (tmp_path / f"{reading.job}.json").write_text(text)
    line = [str(tmp_path / "who.json"), str(tmp_path / "scores.json"), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(app, line).exit_code == 0
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"portrait.en.html", "portrait.zh.html", "portrait.json", "portrait.csv"}
    lines = list(csv.DictReader(io.StringIO((tmp_path / "out" / "portrait.csv").read_text("utf-8"))))
    answers = json.loads((tmp_path / "out" / "portrait.json").read_text())["answers"]
    rows = [row for answer in answers for row in answer["rows"]]
    assert len(rows) == len(lines) > 90
    for row, flat in zip(rows, lines, strict=True):
        assert (row["part"], row["measure"] or "") == (flat["part"], flat["measure"])
        assert str("" if row["value"] is None else row["value"]) == flat["value"]
        assert row["of"] == [flat[f"of_{i}"] for i in range(1, len(row["of"]) + 1)]
    again = CliRunner().invoke(app, line)
    assert isinstance(again.exception, BadInput) and "holds" in str(again.exception)
    by_number = CliRunner().invoke(app, ["7", "--out", str(tmp_path / "x")])
    assert isinstance(by_number.exception, BadInput) and "--coordinator" in str(by_number.exception)
    assert not (tmp_path / "x").exists()
