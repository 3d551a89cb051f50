"""An analysis' answer at the terminal: profiles, segments and drift in a view of their own, all else part by part."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sfumato.common.analyses.parts import Part, Unit, parts_of
from sfumato.server.report_words import NARROW_SPACE, Estimate

MOST_NAMES = 6
MOST_ROWS = 60


def print_answer(summary: Mapping[str, Any], answer: Mapping[str, Any], console: Console) -> None:
    """What was found, with its intervals, and what it cost."""
    day = f", as of {summary['as_of']}" if summary.get("as_of") else ""
    head = f"{escape(summary['job'])}: {summary['branches']} branches{day}"
    if "segments" in answer:
        console.print(f"{head}, {len(answer['segments'])} segments of customers")
        console.print(_segments(answer))
    else:
        customers = measured(answer.get("customers"), "customers")
        console.print(f"{head}, {customers} customers" if customers else head)
        for table in answer.get("tables", ()):
            console.print(_table(table, answer["level"]))
        if "drift" in answer:
            console.print(_drift(answer))
        _print_parts(answer, console)
    console.print(
        f"Epsilon {summary['epsilon']:.2f} at delta {summary['delta']:g}; every interval, in brackets, holds the "
        f"true number with a probability of {answer['level']:.0%}, the noise included."
    )


def _print_parts(answer: Mapping[str, Any], console: Console) -> None:
    """The parts of a kind without a view of its own, a table each, then its notes."""
    for part in parts_of({"parts": answer.get("parts", ())}):
        console.print()
        console.print(_rows(part))
        if (more := len(part.rows) - MOST_ROWS) > 0:
            console.print(f"and {more:,} rows more: in the report, and in exported files")
    if "parts" in answer:
        console.print()
    for note in answer.get("notes", ()):
        console.print(f"- {note}", markup=False)


def _rows(part: Part) -> Table:
    heads = [*part.by, *part.measures, *part.words]
    shown = Table(*(escape(h.replace("_", " ")) for h in heads), box=None)
    shown.title, shown.title_justify = escape(part.name), "left"
    for row in part.rows[:MOST_ROWS]:
        numbers = (measured(row.numbers.get(m), part.units[m]) for m in part.measures)
        words = (row.words.get(w, "") for w in part.words)
        shown.add_row(*(escape(cell) for cell in (*row.of, *numbers, *words)))
    return shown


def measured(number: Mapping[str, float] | None, unit: Unit) -> str:
    """With no more digits than its interval supports; nothing where there is no number."""
    found = Estimate.of(number, unit="%" if unit == "share" else "")
    if found is None:
        return ""
    return found.full.replace(f"{NARROW_SPACE}%", "%").replace(NARROW_SPACE, ",")


def _drift(answer: Mapping[str, Any]) -> Table:
    shown = Table("column", "stability index", "verdict", box=None, caption_justify="left")
    shown.caption = f"in brackets: {answer['level']:.0%} intervals, for the noise"
    for column in answer["drift"]:
        psi = column["psi"]
        index = f"{psi['value']:.3f} ({psi['low']:.3f} to {psi['high']:.3f})"
        shown.add_row(column["column"], index, column["verdict"])
    return shown


def _segments(answer: Mapping[str, Any]) -> Table:
    """A column a segment: how many customers it has, and where their middle lies."""
    segments = answer["segments"]
    shown = Table(
        "",
        *(f"segment {i}" for i in range(1, len(segments) + 1)),
        box=None,
        caption=f"in brackets: {answer['level']:.0%} intervals",
        caption_justify="left",
    )
    shown.add_row("customers", *(_count(s) for s in segments))
    shown.add_row("share", *(_percent(s["share"]) for s in segments))
    for name in answer["names"]:
        shown.add_row(name, *(_middle(s["centre"][name]) for s in segments))
    for name in segments[0].get("mix", ()):
        shown.add_row(f"most often, {name}", *(_commonest(s["mix"][name]) for s in segments))
    return shown


def _commonest(mix: dict[str, dict[str, float]]) -> str:
    category = max(mix, key=lambda c: mix[c]["value"])
    return f"{category}: {_percent(mix[category])}"


def _middle(centre: dict[str, float]) -> str:
    return f"{centre['value']:,.4g} ({centre['low']:,.4g} to {centre['high']:,.4g})"


def _table(table: dict[str, Any], level: float) -> Table:
    crossed = len(table["columns"]) > 1
    columns = [" x ".join(table["columns"]), "customers"]
    columns.append(f"share of its {table['columns'][0]}" if crossed else "share")
    shown = Table(*columns, box=None, caption=f"in brackets: {level:.0%} intervals", caption_justify="left")
    for group in table["groups"]:
        share = group.get("share_of_row") if crossed else group["share"]
        shown.add_row(name_of(group["cells"]), _count(group), _percent(share) if share else "")
    return shown


def _count(group: dict[str, Any]) -> str:
    count = group["customers"]
    if "fewer_than" in group:
        return f"fewer than {group['fewer_than']:,}"
    return f"{count['value']:,.0f} ({count['low']:,.0f} to {count['high']:,.0f})"


def _percent(share: dict[str, float]) -> str:
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


def name_of(cells: list[Any]) -> str:
    """A group's name; of a merged one, whom it is made of, or the first of many."""
    names = [" x ".join(c) if isinstance(c, list | tuple) else str(c) for c in cells]
    if len(names) == 1:
        return names[0]
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"merged: {', '.join(names[:MOST_NAMES])}{more}"
