"""Any part of an answer as figures: charts with whiskers, a description in words, and every number as a table."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sfumato.common.analyses.parts import Number, Part, Row, Unit
from sfumato.server.phrases import Phrases
from sfumato.server.report_figures import Plot
from sfumato.server.report_words import Estimate
from sfumato.server.whiskers import Chart, Panel

MOST_LINES, MOST_PANELS = 80, 4
_STANDARD = re.compile("[a-z ]+")
SCALES = "column"  # what rows are by whose values lie on scales of their own


def estimate(number: Number | None, unit: Unit) -> Estimate | None:
    """In the unit it is shown in; None where there is no number."""
    return Estimate.of(number, unit="%" if unit == "share" else "")


def figures(part: Part, words: Phrases, name: str) -> Iterator[Plot]:
    """The part's figures; `name` keeps their ids apart. Rows of several columns give a figure a column, as these lie
    on scales of their own."""
    pieces = list(_pieces(part))
    for place, (column, whole) in enumerate(pieces):
        known = {m: u for m, u in whole.units.items() if any(m in r.numbers for r in whole.rows)}
        piece = replace(whole, units=known)
        title = _title(part, words) + (f" · {column}" if column is not None else "")
        chunks = list(_panels(piece)) or [()]
        for i, measures in enumerate(chunks):
            shown = replace(piece, units={m: piece.units[m] for m in measures})
            more = f" ({i + 1}/{len(chunks)})" if len(chunks) > 1 else ""
            yield _figure(shown, words, f"{name}-{place}-{i}", title + more)


def _title(part: Part, words: Phrases) -> str:
    """Of a table that is called after its columns, those as the contract has them."""
    if part.name in part.by:
        return words.column(part.name)
    named = words.part(part.name)
    return _capital(named) if _STANDARD.fullmatch(named) else named


def _pieces(part: Part) -> Iterator[tuple[str | None, Part]]:
    if SCALES not in part.by or set(part.units.values()) <= {"share"} or len(part.by) < 2:
        yield None, part
        return
    at = part.by.index(SCALES)
    for column in dict.fromkeys(r.of[at] for r in part.rows):
        rows = tuple(replace(r, of=_without(r.of, at)) for r in part.rows if r.of[at] == column)
        yield column, replace(part, by=_without(part.by, at), rows=rows)


def _without(names: tuple[str, ...], at: int) -> tuple[str, ...]:
    return (*names[:at], *names[at + 1 :])


def _panels(part: Part) -> Iterator[tuple[str, ...]]:
    """The measures of each figure: as few figures as hold them, and as equal."""
    figures_ = max(1, math.ceil(len(part.measures) / MOST_PANELS))
    size = max(1, math.ceil(len(part.measures) / figures_))
    for start in range(0, len(part.measures), size):
        yield part.measures[start : start + size]


def _figure(part: Part, words: Phrases, name: str, title: str) -> Plot:
    labels = [_label(part, r, words) for r in part.rows]
    by = words.say(" and ").join(map(words.column, part.by))
    heads = [_head(m, part.units[m], words) for m in part.measures]
    caption = (
        _capital(words.say(", ").join(heads)) + (words.say(", by {by}", by=by) if by else "") + words.say(".")
    )
    if len(part.rows) > MOST_LINES:
        caption += words.say(
            " The first {most} of {all} rows are drawn.", most=MOST_LINES, all=len(part.rows)
        )
    drawn = part.rows[:MOST_LINES]
    panels = [_panel(m, part.units[m], h, drawn) for m, h in zip(part.measures, heads, strict=True)]
    svg = ""
    if panels and drawn:
        says = words.say("Dot-and-whisker chart.") + " " + caption + _extremes(panels[0], labels, words)
        groups = tuple(r.of[0] if len(r.of) > 1 else "" for r in drawn)
        svg = Chart(name, title, says, tuple(labels[:MOST_LINES]), groups, tuple(panels)).svg()
    columns = [" · ".join(map(words.column, part.by)) or words.say("Of whom")]
    columns += [*heads, *map(words.term, part.words)]
    return Plot(
        name,
        title,
        caption,
        svg,
        tuple(columns),
        tuple(_cells(part, [label or title for label in labels], words)),
    )


def _label(part: Part, row: Row, words: Phrases) -> str:
    """What the row is of, with its name where it has one."""
    of = " · ".join(words.value(by, v) for by, v in zip(part.by, row.of, strict=True))
    name = words.value("name", row.words["name"]) if "name" in row.words else ""
    return f"{of}: {name}" if of and name else of or name


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _head(measure: str, unit: Unit, words: Phrases) -> str:
    """The measure's name, and its unit where that does not go without saying."""
    named, of = words.term(measure), words.term(unit)
    return named if unit in ("share", "number") or of in named else f"{named} ({of})"


def _panel(measure: str, unit: Unit, head: str, rows: Sequence[Row]) -> Panel:
    found = tuple(estimate(r.numbers.get(measure), unit) for r in rows)
    amount = unit != "points" and all(e.low >= 0 for e in found if e is not None)
    whole = None
    if unit in (
        "share",
        "points",
    ):  # of points: a score from -100 to 100; a difference of shares has that range, too
        whole = (0.0 if amount else -100.0, 100.0)
    return Panel(head, found, amount, whole)


def _extremes(panel: Panel, labels: Sequence[str], words: Phrases) -> str:
    """The rows with most and least of the first measure, in words."""
    known = [(e, label) for e, label in zip(panel.estimates, labels, strict=False) if e is not None]
    if len(known) < 2:
        return "".join(words.ranges(f" {e.full}") for e, _ in known)
    (high, of_high), (low, of_low) = (pick(known, key=lambda k: k[0].value) for pick in (max, min))
    return words.ranges(
        words.say(
            " {head}: most at {of_high}, {high}; least at {of_low}, {low}.",
            **{"head": panel.head, "of_high": of_high, "high": high.full, "of_low": of_low, "low": low.full},
        )
    )


def _cells(part: Part, labels: Sequence[str], words: Phrases) -> Iterator[tuple[str, ...]]:
    for row, label in zip(part.rows, labels, strict=True):
        cells = [label]
        found = (estimate(row.numbers.get(m), unit) for m, unit in part.units.items())
        cells += [words.ranges(e.full) if e is not None else "–" for e in found]
        yield (*cells, *(words.value(w, row.words.get(w, "")) for w in part.words))
