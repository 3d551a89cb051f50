"""Dot-and-whisker charts of any part of an answer, as SVG that needs no font, no script and no colour.

Written out and not drawn by matplotlib: a page has dozens of them, in two languages, and matplotlib takes half a
second for each and measures text by a font that knows no Chinese. One panel a measure, all on the same rows; bar,
whisker and ring differ in form and in lightness. Lengths are in px of a chart that is `WIDTH` wide.
"""

import math
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.server.report_svg import ACCENT, GRID, INK, PALE, QUIET, plain
from sfumato.server.report_words import NARROW_SPACE, Estimate, number

WIDTH, ROW, TOP, BOTTOM, FONT = 760.0, 20.0, 26.0, 24.0, 12.0
LONGEST_LABEL = 230.0
GAP, LEAST_TEXT = 16.0, 40.0
FAR = 3.0  # times the largest value: an interval that reaches farther leaves the figure


@dataclass(frozen=True)
class Panel:
    """One measure: its heading, and of each row an estimate or none. `from_zero`: an amount of something, so a bar
    may stand for it; else (points, differences) only its place counts. `whole`: the range that says nothing."""

    head: str
    estimates: tuple[Estimate | None, ...]
    from_zero: bool = True
    whole: tuple[float, float] | None = None

    def tells(self, e: Estimate) -> bool:
        return self.whole is None or e.low > self.whole[0] or e.high < self.whole[1]

    def says(self, e: Estimate | None) -> str:
        """Beside the mark: a dash where there is no number, a question mark where the noise drowns it."""
        return "–" if e is None else e.text if self.tells(e) else "?"


@dataclass(frozen=True)
class Chart:
    """Rows with the same labels in every panel; a new `groups` value sets a rule above its row."""

    name: str
    title: str
    description: str
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    panels: tuple[Panel, ...]

    def svg(self) -> str:
        """The markup; the same chart gives the same text. `name` keeps ids apart."""
        left = min(LONGEST_LABEL, max((_width(label) for label in self.labels), default=0.0)) + 10
        wide = (WIDTH - left - GAP * (len(self.panels) - 1)) / max(len(self.panels), 1)
        height = TOP + ROW * len(self.labels) + BOTTOM
        root = ET.Element(
            "svg",
            {
                "viewBox": f"0 0 {WIDTH:g} {height:g}",
                "role": "img",
                "aria-labelledby": f"{self.name}-title {self.name}-desc",
                "focusable": "false",
                "font-size": f"{FONT:g}",
                "fill": INK,
            },
        )
        for tag, text in (("title", self.title), ("desc", self.description)):
            ET.SubElement(root, tag, {"id": f"{self.name}-{tag}"}).text = plain(text, 4000)
        for i, label in enumerate(self.labels):
            if i and self.groups[i] != self.groups[i - 1]:
                _line(root, 0, TOP + ROW * i, WIDTH, TOP + ROW * i, stroke=GRID, width=0.8)
            _text(root, left - 10, _middle(i) + 4, _shortened(label), anchor="end")
        for place, panel in enumerate(self.panels):
            _panel(root, panel, left + place * (wide + GAP), wide, height)
        return ET.tostring(root, encoding="unicode")


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) in [low, high], at most so many."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    while (high - low) / step > most:
        step *= 2.5 if f"{step:e}"[0] == "2" else 2
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def span(estimates: Sequence[Estimate | None], *, from_zero: bool) -> tuple[float, float]:
    """What of the line is drawn: all values, and the intervals as far as they do not dwarf them."""
    found = [e for e in estimates if e is not None]
    if not found:
        return 0.0, 1.0
    most = max(abs(e.value) for e in found)
    reach = FAR * most if most > 0 else max(e.high for e in found)
    low, high = max(min(e.low for e in found), -reach), min(max(e.high for e in found), reach)
    low, high = min(low, *(e.value for e in found)), max(high, *(e.value for e in found))
    if from_zero or 0 < low < 0.5 * high:
        low = min(low, 0.0)
    if high <= low:
        high = low + 1.0
    return low, high


@dataclass(frozen=True)
class _Axis:
    """From `low` at `x`, `scale` px a unit; values beyond either end lie at that end."""

    low: float
    high: float
    x: float
    scale: float

    def at(self, value: float) -> float:
        return self.x + (min(max(value, self.low), self.high) - self.low) * self.scale


def _panel(root: ET.Element, panel: Panel, x: float, wide: float, height: float) -> None:
    texts = [panel.says(e) for e in panel.estimates]
    room = min(wide / 2, max(LEAST_TEXT, max(map(_width, texts), default=0.0) + 8))
    low, high = span(panel.estimates, from_zero=panel.from_zero)
    axis = _Axis(low, high, x, (wide - room) / (high - low))
    _text(root, x, TOP - 10, _shortened(panel.head, wide), weight="600")
    _scale(root, axis, next((e.unit for e in panel.estimates if e), ""), wide - room, height - BOTTOM)
    for i, (e, text) in enumerate(zip(panel.estimates, texts, strict=True)):
        y = _middle(i)
        if e is None:
            _text(root, x + 2, y + 4, text, fill=QUIET)
            continue
        _mark(root, panel, e, axis, y)
        _text(root, max(axis.at(e.high), axis.at(e.value) + 5) + 6, y + 4, text, fill=QUIET)


def _scale(root: ET.Element, axis: _Axis, unit: str, wide: float, bottom: float) -> None:
    marks = ticks(axis.low, axis.high, max(2, int(wide / 60)))
    decimals = max(0, -math.floor(math.log10(marks[1] - marks[0]) + 1e-9)) if len(marks) > 1 else 0
    for mark in marks:
        x = axis.at(mark)
        _line(root, x, TOP, x, bottom, stroke=QUIET if mark == 0 else GRID, width=0.8)
        label = number(mark, decimals) + (f"{NARROW_SPACE}{unit}" if unit else "")
        _text(root, x, bottom + 15, label, anchor="middle", fill=QUIET)


def _mark(root: ET.Element, panel: Panel, e: Estimate, axis: _Axis, y: float) -> None:
    """Bar, whisker with caps (an arrow where the interval goes on), ring. Of an interval that says nothing only a
    dotted line is drawn."""
    at = axis.at
    if not panel.tells(e):
        _line(root, at(e.low), y, at(e.high), y, stroke=QUIET, width=1.6, dash="1.6 3")
        return
    if panel.from_zero:
        begin, end = sorted((at(0.0), at(e.value)))
        bar = {"x": begin, "y": y - 5.5, "width": end - begin, "height": 11.0}
        ET.SubElement(root, "rect", {**{k: f"{v:.1f}" for k, v in bar.items()}, "fill": PALE})
    _line(root, at(e.low), y, at(e.high), y, stroke=ACCENT, width=2.2)
    for value, beyond, back in ((e.low, e.low < axis.low, 5), (e.high, e.high > axis.high, -5)):
        x = at(value)
        if beyond:
            tip = f"M{x + back:.1f} {y - 4:.1f}L{x:.1f} {y:.1f}L{x + back:.1f} {y + 4:.1f}"
            ET.SubElement(root, "path", {"d": tip, "fill": "none", "stroke": ACCENT, "stroke-width": "1.6"})
        else:
            _line(root, x, y - 4, x, y + 4, stroke=ACCENT, width=1.4)
    ring = {"cx": f"{at(e.value):.1f}", "cy": f"{y:.1f}", "r": "3.6", "fill": "#ffffff", "stroke": ACCENT}
    ET.SubElement(root, "circle", {**ring, "stroke-width": "1.6"})


def _middle(row: int) -> float:
    return TOP + ROW * (row + 0.5)


def _line(
    root: ET.Element, x1: float, y1: float, x2: float, y2: float, *, stroke: str, width: float, dash: str = ""
) -> None:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    line = ET.SubElement(root, "line", {**ends, "stroke": stroke, "stroke-width": f"{width:g}"})
    if dash:
        line.set("stroke-dasharray", dash)


def _text(
    root: ET.Element,
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    fill: str = INK,
    weight: str = "",
) -> None:
    element = ET.SubElement(root, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}"})
    for key, value, default in (
        ("text-anchor", anchor, "start"),
        ("fill", fill, INK),
        ("font-weight", weight, ""),
    ):
        if value != default:
            element.set(key, value)
    element.text = text


def _width(text: str) -> float:
    """About as wide as the reader's font will draw it: Chinese is a square, the rest less than two thirds of one."""
    return FONT * sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.64 for c in text)


def _shortened(text: str, longest: float = LONGEST_LABEL) -> str:
    line = plain(text, 400)
    while _width(line) > longest and len(line) > 2:
        line = line.rstrip("…")[:-1].rstrip() + "…"
    return line
