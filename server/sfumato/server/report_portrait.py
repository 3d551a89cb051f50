"""The report's portrait: the answer of a profile as figures with error bars, each with its numbers as a table.

A marginal is drawn as shares of all customers. A cross-tab is drawn as shares within each value of its first column,
a panel for each value of the second (of two values, the last: the other is what is left).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sfumato.server.report_figures import Plot
from sfumato.server.report_svg import ACCENT, PALE, QUIET, draw, plain
from sfumato.server.report_words import NARROW_SPACE, Estimate, number, rounded_up

MOST_LINES, MOST_PANELS = 40, 4
LONGEST_LIST = 8


@dataclass(frozen=True)
class Portrait:
    """What the page shows of a profile: figures of columns, of pairs in one panel, and of pairs in several."""

    customers: Estimate
    min_group: str
    level: str
    epsilon: str | None  # of the job that asked, where it is another than the page's
    single: tuple[Plot, ...]
    crossed: tuple[Plot, ...]
    panels: tuple[Plot, ...]


@dataclass(frozen=True)
class _Group:
    cells: tuple[tuple[str, ...], ...]
    customers: Estimate
    share: Estimate | None
    of_row: Estimate | None
    fewer_than: int | None

    @property
    def merged(self) -> bool:
        return len(self.cells) > 1

    @property
    def row(self) -> str | None:
        """The value of the first column that all of its cells share."""
        first = {c[0] for c in self.cells}
        return first.pop() if len(first) == 1 else None

    def name(self, *, short: bool) -> str:
        """`short` for a figure; else with all that was merged."""
        if not self.merged:
            return " · ".join(self.cells[0])
        if short:
            return f"{len(self.cells)} merged"
        if len(self.cells[0]) > 1 and self.row is not None:
            return f"{self.row} · merged: {_listed([' · '.join(c[1:]) for c in self.cells])}"
        return f"merged: {_listed([' · '.join(c) for c in self.cells])}"


@dataclass(frozen=True)
class _Table:
    columns: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]  # of each column, all that the contract knows
    groups: tuple[_Group, ...]

    @property
    def notes(self) -> str:
        """What is not drawn by itself, and why."""
        merged = sum(len(g.cells) for g in self.groups if g.merged and g.fewer_than is None)
        few = [g for g in self.groups if g.fewer_than is not None]
        found = [f"{merged} small groups are merged."] if merged else []
        for g in few:
            names = _listed([" · ".join(c) for c in g.cells])
            together = " together" if g.merged else ""
            found.append(f"Not drawn:{together} fewer than {number(g.fewer_than)} customers ({names}).")
        return " ".join(found)


def portrait_of(answer: Mapping[str, Any] | None) -> Portrait | None:
    """The figures of a profile's answer; None if there is none. Raises ValueError on what is no such answer."""
    if answer is None:
        return None
    try:
        customers = Estimate.of(answer["customers"])
        tables = [_table(t) for t in answer["tables"]]
        level, min_group = f"{number(100 * answer['level'])}{NARROW_SPACE}%", number(answer["min_group"])
    except (KeyError, TypeError) as e:
        raise ValueError(f"not the answer of a profile: {e}") from None
    if customers is None:
        raise ValueError("not the answer of a profile: no number of customers")
    single = tuple(_marginal(i, t) for i, t in enumerate(tables) if len(t.columns) == 1)
    pairs = [(i, t) for i, t in enumerate(tables) if len(t.columns) == 2]
    crossed = tuple(_cross(i, t) for i, t in pairs if len(t.values[1]) == 2)
    panels = tuple(_cross(i, t) for i, t in pairs if len(t.values[1]) != 2)
    epsilon = rounded_up(answer["epsilon"]) if "epsilon" in answer else None
    return Portrait(customers, min_group, level, epsilon, single, crossed, panels)


def _table(given: Mapping[str, Any]) -> _Table:
    values = tuple(tuple(map(str, v)) for v in given["values"])
    return _Table(tuple(map(str, given["columns"])), values, tuple(map(_group, given["groups"])))


def _group(given: Mapping[str, Any]) -> _Group:
    customers = Estimate.of(given["customers"])
    if customers is None:
        raise KeyError("customers")
    return _Group(
        cells=tuple(tuple(map(str, c)) for c in given["cells"]),
        customers=customers,
        share=Estimate.of(given.get("share"), unit="%"),
        of_row=Estimate.of(given.get("share_of_row"), unit="%"),
        fewer_than=given.get("fewer_than"),
    )


def _marginal(place: int, table: _Table) -> Plot:
    (column,) = table.columns
    shown = [(g, g.share) for g in table.groups if g.share is not None and g.fewer_than is None][:MOST_LINES]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        _whiskers(axes, list(enumerate(e for _, e in shown)), max((e.high for _, e in shown), default=1.0))
        axes.set_yticks(range(len(shown)), [plain(g.name(short=True)) for g, _ in shown])

    says = f"Share of all customers. {table.notes}"
    name, title = f"portrait-{place}", _title(column)
    svg = draw(name, title, f"Dot-and-whisker plot. {says}", _size(len(shown)), paint)
    heads = (column, "Customers", "95% interval", "Share", "95% interval")
    rows = tuple(
        (g.name(short=False), *_count(g), *_cells(g.share if g.fewer_than is None else None))
        for g in table.groups
    )
    return Plot(name, title, says, svg, heads, rows)


def _cross(place: int, table: _Table) -> Plot:
    first, second = table.columns
    found = {g.cells[0]: g.of_row for g in table.groups if not g.merged and g.of_row is not None}
    panels = _panels(table, found)
    lines = [v for v in table.values[0] if any((v, panel) in found for panel in panels)][:MOST_LINES]

    most = max((found[v, panel].high for v in lines for panel in panels if (v, panel) in found), default=1.0)

    def paint(figure: Figure) -> None:
        for axes, panel in zip(
            figure.subplots(1, max(len(panels), 1), squeeze=False)[0], panels, strict=False
        ):
            _whiskers(axes, [(i, found[v, panel]) for i, v in enumerate(lines) if (v, panel) in found], most)
            if len(panels) > 1:
                axes.set_title(plain(panel), loc="left", fontsize=9.5, weight="bold")
            axes.set_ylim(len(lines) - 0.4, -0.6)
            axes.set_yticks(range(len(lines)), [])
        figure.axes[0].set_yticks(range(len(lines)), [plain(v) for v in lines])

    of = f" {panels[0]}" if len(panels) == 1 else ""
    name, title = f"portrait-{place}", f"{_title(second)}{of and ':' + of}, by {_title(first)}"
    left_out = 1 < len(panels) < len(table.values[1])
    more = f" {len(panels)} of {len(table.values[1])} values are drawn." if left_out else ""
    says = f"Share among the customers of each {_title(first)}.{more} {table.notes}"
    svg = draw(name, title, f"Dot-and-whisker plot. {says}", _size(len(lines), len(panels)), paint)
    heads = (f"{first} · {second}", "Customers", "95% interval", f"Share of {first}", "95% interval")
    rows = tuple((g.name(short=False), *_count(g), *_cells(g.of_row)) for g in table.groups)
    return Plot(name, title, says, svg, heads, rows)


def _panels(table: _Table, found: Mapping[tuple[str, ...], Estimate]) -> list[str]:
    """Which values of the second column are drawn: the last of two, else those with most customers."""
    values = table.values[1]
    if len(values) == 2:
        return [values[1]]
    size = dict.fromkeys(values, 0.0)
    for group in table.groups:
        if group.cells[0] in found:
            size[group.cells[0][1]] += group.customers.value
    kept = sorted((v for v in values if size[v] > 0), key=lambda v: -size[v])[:MOST_PANELS]
    return [v for v in values if v in kept]


def _whiskers(axes: Axes, lines: Sequence[tuple[int, Estimate]], most: float) -> None:
    """Ring and bar at each line's height, with the value written beside; percentages up to `most`."""
    for y, e in lines:
        axes.barh(y, e.value, height=0.55, color=PALE)
        axes.plot([e.low, e.high], [y, y], color=ACCENT, linewidth=2.2, solid_capstyle="butt")
        for end in (e.low, e.high):
            axes.plot([end] * 2, [y - 0.16, y + 0.16], color=ACCENT, linewidth=1.4)
        axes.plot([e.value], [y], "o", color="white", markeredgecolor=ACCENT, markersize=5, zorder=4)
        axes.annotate(
            e.text, (e.high, y), xytext=(6, 0), textcoords="offset points", va="center", color=QUIET
        )
    axes.set_ylim(max((y for y, _ in lines), default=0) + 0.6, -0.6)
    axes.set_xlim(0, 1.3 * most)
    axes.set_xticks([t for t in MaxNLocator(4).tick_values(0, most) if 0 <= t <= most * 1.1])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}{NARROW_SPACE}%"))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


# --- words -------------------------------------------------------------------------------------------------


def _title(column: str) -> str:
    return column.replace("_", " ")


def _size(lines: int, panels: int = 1) -> tuple[float, float]:
    return (5.0 if panels < 2 else 8.2, 0.9 + 0.27 * max(lines, 1))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LONGEST_LIST]) + (
        f" and {len(names) - LONGEST_LIST} more" if len(names) > LONGEST_LIST else ""
    )


def _count(group: _Group) -> tuple[str, str]:
    if group.fewer_than is not None:
        return f"fewer than {number(group.fewer_than)}", ""
    return _cells(group.customers)


def _cells(e: Estimate | None) -> tuple[str, str]:
    return (e.text, e.interval) if e is not None else ("", "")
