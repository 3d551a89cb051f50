"""The figures of a model's card. As the report's: none relies on colour, each has its numbers as a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sfumato.server.report_figures import Plot
from sfumato.server.report_svg import ACCENT, INK, PALE, QUIET, draw, plain
from sfumato.server.report_words import NARROW_SPACE, Estimate, number

MOST_COLUMNS = 24
LONGEST = 22


def points(place: int, attribute: Mapping[str, Any]) -> Plot:
    """A column's shape function: points of each bin, with the band that the noise alone makes."""
    bins, name = attribute["bins"], str(attribute["column"])
    neutral = attribute["neutral"]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        # A mark a bin, and no line from one to the next: categories have no order, and nothing lies between bins.
        for i, b in enumerate(bins):
            low, high = b["points"] - b["noise"], b["points"] + b["noise"]
            axes.bar(i, high - low, bottom=low, width=0.84, color=PALE, edgecolor=QUIET, linewidth=0.6)
            axes.hlines(b["points"], i - 0.42, i + 0.42, color=ACCENT, linewidth=2.2)
        axes.use_sticky_edges = False
        axes.axhline(neutral, color=INK, linewidth=0.8, linestyle=(0, (6, 3)), zorder=0.9)
        axes.annotate(
            f"neutral\n{number(neutral)}",
            (1.01, neutral),
            xycoords=("axes fraction", "data"),
            va="center",
            color=QUIET,
            annotation_clip=False,
        )
        names = [plain(str(b["bin"]), LONGEST) for b in bins]
        axes.set_xticks(range(len(bins)), names, rotation=40, ha="right", rotation_mode="anchor")
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("Points")

    says = "Each bin’s points (line); how far the noise may have moved them (box); the average customer’s (dashed)."
    return Plot(
        f"points-{place}",
        name.replace("_", " "),
        says,
        draw(
            f"points-{place}",
            name,
            f"Points with 95% bands. {says}",
            (8.2 if len(bins) > 12 else 5.0, 3.2),
            paint,
        ),
        (
            "Bin",
            "Points",
            "Noise, either way",
            "Customers",
            "Bad rate",
            "95% interval",
            "WOE",
            "95% interval",
        ),
        tuple(_bin_row(b) for b in bins),
    )


def _bin_row(line: Mapping[str, Any]) -> tuple[str, ...]:
    rate, woe = Estimate.of(line["bad_rate"], unit="%"), Estimate.of(line["woe"])
    assert rate is not None and woe is not None
    share = Estimate(100 * line["share"], 0, 0).value
    return (
        str(line["bin"]),
        number(line["points"]),
        number(line["noise"], 1),
        f"{number(share, 1)}{NARROW_SPACE}%",
        rate.text,
        rate.interval,
        woe.text,
        woe.interval,
    )


def moves(columns: Sequence[Mapping[str, Any]]) -> Plot:
    """Which columns carry a forest: how much each by itself moves the log-odds."""
    shown = columns[:MOST_COLUMNS]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for y, c in enumerate(shown):
            axes.barh(y, c["moves"], height=0.6, color=PALE, edgecolor=ACCENT, linewidth=0.8)
            axes.annotate(
                number(c["moves"], 2), (c["moves"], y), xytext=(5, 0), textcoords="offset points", va="center"
            )
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_yticks(range(len(shown)), [plain(str(c["column"])) for c in shown])
        axes.set_xlim(0, 1.15 * max((c["moves"] for c in shown), default=1.0) or 1.0)
        axes.set_xlabel("Log-odds, standard deviation over customers")
        _bare(axes)

    more = f" {len(shown)} of {len(columns)} columns are drawn." if len(columns) > len(shown) else ""
    says = (
        "How much each column by itself moves the log-odds from customer to customer, averaged over the others as if "
        f"they were independent. What two columns do only together is not in it.{more}"
    )
    title = "Which columns carry the model"
    return Plot(
        "moves",
        title,
        says,
        draw("moves", title, f"Bar chart. {says}", (8.2, 0.9 + 0.27 * len(shown)), paint),
        ("Column", "Log-odds, std over customers"),
        tuple((str(c["column"]), number(c["moves"], 3)) for c in columns),
    )


def segments(found: Sequence[Mapping[str, Any]], names: Sequence[str], level: str) -> list[Plot]:
    """A figure for each segment {"segment", "customers", "share", "centre"}: where its numbers lie among all."""
    reach = {n: _reach([s["centre"][n] for s in found if n in s["centre"]]) for n in names}
    plots = [_centre(i, {**s, "reach": reach}, names, level) for i, s in enumerate(found)]
    return [p for p in plots if p is not None]


def _reach(middles: Sequence[Mapping[str, float]]) -> tuple[float, float]:
    return min((m["low"] for m in middles), default=0.0), max((m["high"] for m in middles), default=1.0)


def _centre(place: int, segment: Mapping[str, Any], names: Sequence[str], level: str) -> Plot | None:
    """A segment's middle in each number's unit, as a table; drawn where it lies among the segments' middles."""
    found = {n: Estimate.of(segment["centre"].get(n)) for n in names}
    known = {n: e for n, e in found.items() if e is not None}
    if not known:
        return None
    reach = segment["reach"]  # of each number, over all segments: what the axis shows

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for y, (name, e) in enumerate(known.items()):
            low, high = reach[name]
            at = [(v - low) / ((high - low) or 1.0) for v in (e.low, e.value, e.high)]
            axes.plot([0, 1], [y, y], color=PALE, linewidth=5, solid_capstyle="round", zorder=1)
            axes.plot([at[0], at[2]], [y, y], color=ACCENT, linewidth=2.2, solid_capstyle="butt")
            axes.plot([at[1]], [y], "o", color="white", markeredgecolor=ACCENT, markersize=6, zorder=4)
            axes.annotate(e.text, (1.03, y), va="center", color=INK, annotation_clip=False)
        axes.set_ylim(len(known) - 0.4, -0.6)
        axes.set_xlim(-0.03, 1.25)
        axes.set_yticks(range(len(known)), [plain(n) for n in known])
        axes.set_xticks([0, 1], ["lowest of all", "highest of all"])
        _bare(axes)

    size, title = Estimate.of(segment.get("customers")), f"Segment {segment['segment']}"
    share = Estimate.of(segment.get("share"), unit="%")
    many = f"{size.full} customers" if size else "its size is not known"
    of_all = f", {share.full} of all" if share else ""
    says = f"{many}{of_all}. Rings: its middle with a {level} interval, among the middles of all segments."
    return Plot(
        f"segment-{place}",
        title,
        says[0].upper() + says[1:],
        draw(
            f"segment-{place}", title, f"Dot-and-whisker plot. {says}", (5.0, 0.9 + 0.27 * len(known)), paint
        ),
        ("Column", "Middle", f"{level} interval"),
        tuple((n, e.text, e.interval) for n, e in known.items()),
    )


def fairness(
    place: int, column: str, groups: Mapping[str, Mapping[str, Any]], whole: Estimate | None
) -> Plot | None:
    """AUC of each group of a column, beside that of everybody."""
    found = {g: Estimate.of(m.get("auc")) for g, m in groups.items()}
    shown = [(g, e) for g, e in found.items() if e is not None]
    if not shown:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        if whole is not None:
            axes.axvspan(whole.low, whole.high, color=PALE, linewidth=0)
            axes.axvline(whole.value, color=INK, linewidth=1, linestyle=(0, (5, 3)))
            axes.annotate(
                "everybody", (whole.value, 1.01), xycoords=("data", "axes fraction"), ha="center", va="bottom"
            )
        for y, (_, e) in enumerate(shown):
            axes.plot([e.low, e.high], [y, y], color=ACCENT, linewidth=2.2, solid_capstyle="butt")
            for end in (e.low, e.high):
                axes.plot([end] * 2, [y - 0.16, y + 0.16], color=ACCENT, linewidth=1.4)
            axes.plot([e.value], [y], "o", color="white", markeredgecolor=ACCENT, markersize=5, zorder=4)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_yticks(range(len(shown)), [plain(g) for g, _ in shown])
        axes.set_xlim(min(0.5, *(e.low for _, e in shown)) - 0.02, 1.02)
        axes.set_xlabel("AUC")
        _bare(axes)

    title = f"AUC by {column.replace('_', ' ')}"
    says = "Each group’s with its interval; the strip is everybody’s. Where they overlap, no difference is shown."
    return Plot(
        f"fairness-{place}",
        title,
        says,
        draw(
            f"fairness-{place}", title, f"Dot-and-whisker plot. {says}", (5.0, 1.1 + 0.3 * len(shown)), paint
        ),
        (column, "AUC", "95% interval"),
        tuple((g, e.text, e.interval) for g, e in shown),
    )


def _bare(axes: Axes) -> None:
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
