"""The report's figures: each a drawing, a description in words, and its numbers as a table.

No figure relies on colour: lines differ in dash and marker, areas in filling, and what matters is written
beside the mark.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sfumato.server.report_curves import Band, ScoreCurves
from sfumato.server.report_svg import ACCENT, GRID, INK, PALE, QUIET, SECOND, draw, plain
from sfumato.server.report_words import Estimate, Outcome, number, rounded_down, rounded_up

SQUARE = (5.0, 4.3)
MOST_BARS = 24
TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
PROBABILITIES = (0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99)


@dataclass(frozen=True)
class Plot:
    """One figure of the page. `svg` is safe markup; everything else is text. Rows go with `columns`."""

    name: str
    title: str
    caption: str
    svg: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def roc(curves: ScoreCurves, auc: Estimate | None, words: Outcome) -> Plot:
    band = curves.roc
    area = f"The area under the curve is {auc.full}. " if auc else ""

    def paint(figure: Figure) -> None:
        axes = _unit_axes(figure)
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(0.62, 0.55, "drawn by lot", color=QUIET, rotation=40, rotation_mode="anchor", va="top")
        _ribbon(axes, band)
        axes.set_xlabel(f"Share of those who {words.negative}, flagged")
        axes.set_ylabel(f"Share of those who {words.positive}, found")
        if auc:
            axes.text(0.97, 0.06, f"AUC {auc.text}", ha="right", fontsize=13, weight="bold", color=ACCENT)
            axes.text(0.97, 0.005, f"95% interval {auc.interval}", ha="right", color=QUIET, va="bottom")

    title = "Telling the two groups apart"
    says = f"{area}A model that knows nothing lies on the diagonal (0.5); a perfect one in the upper left corner (1)."
    return Plot(
        "roc",
        title,
        says,
        draw("roc", title, f"ROC curve with a 95% band. {says}", SQUARE, paint),
        ("Flagged in error", "Found", "95% interval"),
        _band_rows(band),
    )


def gains(curves: ScoreCurves, words: Outcome) -> Plot:
    band = curves.gains
    reached = _at(band, 0.1)

    def paint(figure: Figure) -> None:
        axes = _unit_axes(figure)
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(0.62, 0.55, "drawn by lot", color=QUIET, rotation=40, rotation_mode="anchor", va="top")
        _ribbon(axes, band)
        axes.plot([0.1, 0.1], [0, reached.value / 100], color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.plot([0.1], [reached.value / 100], marker="o", color=SECOND, markersize=6, zorder=5)
        axes.annotate(
            f"top tenth: {reached.text}\nof all who {words.positive}",
            (0.1, reached.value / 100),
            (0.34, max(0.08, reached.value / 100 - 0.2)),
            va="center",
            arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.8, "shrinkB": 5},
        )
        axes.set_xlabel("Share of customers contacted, highest score first")
        axes.set_ylabel(f"Share of all who {words.positive}, reached")

    title = "How many are reached by contacting how many"
    says = (
        f"Contacting the tenth of customers with the highest scores reaches {reached.text} "
        f"({reached.interval}) of all who {words.positive}; a tenth drawn by lot would reach 10{_NBSP}%."
    )
    return Plot(
        "gains",
        title,
        says,
        draw("gains", title, f"Cumulative gains curve with a 95% band. {says}", SQUARE, paint),
        ("Contacted", "Reached", "95% interval"),
        _band_rows(band),
    )


def calibration(curves: ScoreCurves, words: Outcome) -> Plot:
    band = curves.calibration
    # Where hardly a customer is, the fit only continues its neighbours: nothing to show.
    shown = np.flatnonzero(curves.customers >= max(1.0, 0.002 * curves.customers.sum()))

    def paint(figure: Figure) -> None:
        axes = _unit_axes(figure)
        axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1, linestyle=(0, (4, 3)))
        axes.text(0.97, 0.04, "dashed: foretold = came true", color=QUIET, ha="right")
        x, y = band.x[shown], band.y[shown]
        axes.vlines(x, band.low[shown], band.high[shown], color=ACCENT, linewidth=1.4)
        size = 90 * curves.customers[shown] / curves.customers.max() + 9
        axes.scatter(x, y, s=size, facecolor="white", edgecolor=ACCENT, linewidth=1.4, zorder=4)
        axes.set_xlabel("Probability the model gave")
        axes.set_ylabel(f"Share who {words.positive}")

    title = "Can its probabilities be taken at their word?"
    says = (
        "Each ring is a group of customers with nearly the same score, larger where there are more of them; "
        "the line through it is the 95% interval. On the dashed line, what was foretold came true as often as said."
    )
    rows = tuple(
        (_percent(band.x[i]), *_estimate_cells(_share(band.y[i], band.low[i], band.high[i]))) for i in shown
    )
    return Plot(
        "calibration",
        title,
        says,
        draw("calibration", title, f"Calibration plot. {says}", SQUARE, paint),
        ("Foretold", "Came true", "95% interval"),
        rows,
    )


def distribution(curves: ScoreCurves, words: Outcome) -> Plot:
    groups = ((words.negative, curves.negative, "o"), (words.positive, curves.positive, "D"))

    def paint(figure: Figure) -> None:
        for axes, (word, group, marker) in zip(figure.subplots(2, 1, sharex=True), groups, strict=True):
            axes.fill_between(curves.centres, group.smooth, color=PALE, linewidth=0)
            axes.plot(curves.centres, group.smooth, color=ACCENT, linewidth=1.5)
            axes.plot(curves.centres, group.noisy, marker, color=INK, markersize=3, linestyle="none")
            axes.axhline(0, color=QUIET, linewidth=0.8)
            axes.set_title(f"Customers who {word}", loc="left", fontsize=9.5, weight="bold")
            axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: number(v)))
            axes.grid(visible=False, axis="x")
        axes.set_xticks(
            [float(np.log(p / (1 - p))) for p in PROBABILITIES], [_percent(p) for p in PROBABILITIES]
        )
        axes.set_xlabel("Probability the model gave (spaced by odds)")

    title = "Where the scores of the two groups lie"
    says = (
        "Dots: the noisy counts as they were released, which may lie below zero. Shaded: the smooth distribution "
        "read from them. The further the two hills lie apart, the better the model tells the groups apart."
    )
    rows = tuple(
        (_percent(1 / (1 + np.exp(-c))), *(number(float(g.noisy[i])) for _, g, _ in groups))
        for i, c in enumerate(curves.centres)
    )
    columns = ("Probability", f"Noisy count: {words.negative}", f"Noisy count: {words.positive}")
    svg = draw("distribution", title, f"Two histograms of scores. {says}", SQUARE, paint)
    return Plot("distribution", title, says, svg, columns, rows)


def metric_intervals(metrics: Sequence[tuple[str, Estimate]]) -> Plot:
    """Dot and whisker of every metric that is a share, on one axis from 0 to 1 (or to 100%)."""
    shown = [(name, e) for name, e in metrics if e.unit in ("", "%")]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (_, e) in enumerate(shown):
            f = 0.01 if e.unit == "%" else 1.0
            axes.plot([e.low * f, e.high * f], [i, i], color=ACCENT, linewidth=2.2, solid_capstyle="butt")
            for end in (e.low, e.high):
                axes.plot([end * f] * 2, [i - 0.16, i + 0.16], color=ACCENT, linewidth=1.4)
            axes.plot([e.value * f], [i], "o", color="white", markeredgecolor=ACCENT, markersize=6, zorder=4)
            axes.text(1.04, i, e.full, va="center")
        axes.set_yticks(range(len(shown)), [name for name, _ in shown])
        axes.set_xlim(0, 1)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xticks(TICKS, ["0", "0.2", "0.4", "0.6", "0.8", "1"])
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)

    title = "Each measure with its interval"
    says = "The ring is the estimate; the bar is the 95% interval, for noise and for sample size."
    svg = draw("intervals", title, f"Dot-and-whisker plot. {says}", (8.2, 0.9 + 0.32 * len(shown)), paint)
    rows = tuple((name, *_estimate_cells(e)) for name, e in metrics)
    return Plot("intervals", title, says, svg, ("Measure", "Estimate", "95% interval"), rows)


def budgets(branches: Sequence[dict[str, Any]]) -> Plot | None:
    """Spent (solid) and left (outlined) of each branch's budget; None when no budget is known."""
    known = [b for b in branches if b["budget"] is not None and b["spent"] is not None]
    if not known:
        return None
    bars = sorted(known, key=lambda b: (-(b["spent"] / b["budget"]), str(b["name"])))[:MOST_BARS]
    widest = max(b["budget"] for b in bars)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for i, b in enumerate(bars):
            axes.barh(i, b["budget"], height=0.52, facecolor="white", edgecolor=ACCENT, linewidth=1.1)
            axes.barh(i, b["spent"], height=0.52, facecolor=ACCENT, edgecolor=ACCENT, linewidth=1.1)
            text = f"{rounded_up(b['spent'])} spent, {rounded_down(b['left'])} left"
            axes.text(b["budget"] + 0.015 * widest, i, text, va="center")
        axes.set_yticks(range(len(bars)), [plain(str(b["name"])) for b in bars])
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(0, widest * 1.42)
        axes.set_xticks([t for t in MaxNLocator(5).tick_values(0, widest) if t <= widest * 1.0001])
        axes.set_xlabel("Privacy budget, epsilon")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_color(GRID)

    title = "Privacy budget of each branch"
    more = f" The {len(bars)} branches closest to their limit." if len(known) > len(bars) else ""
    says = f"Solid: spent so far, by this job and all before it. Outlined: left.{more}"
    svg = draw("budgets", title, f"Bar chart. {says}", (8.2, 0.95 + 0.36 * len(bars)), paint)
    rows = tuple(
        (str(b["name"]), rounded_up(b["spent"]), rounded_down(b["left"]), number(b["budget"], 2))
        for b in known
    )
    return Plot("budgets", title, says, svg, ("Branch", "Spent", "Left", "Budget"), rows)


# --- shared ------------------------------------------------------------------------------------------------

_NBSP = "\u202f"


def _unit_axes(figure: Figure) -> Axes:
    axes = figure.subplots()
    labels = [f"{round(100 * t)}{_NBSP}%" for t in TICKS]
    axes.set_xticks(TICKS, labels)
    axes.set_yticks(TICKS, labels)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    return axes


def _ribbon(axes: Axes, band: Band) -> None:
    axes.fill_between(band.x, band.low, band.high, color=PALE, linewidth=0)
    axes.plot(band.x, band.y, color=ACCENT, linewidth=2)


def _percent(share: float) -> str:
    decimals = 1 if min(share, 1 - share) < 0.0095 else 0
    return f"{number(100 * float(share), decimals)}{_NBSP}%"


def _share(y: float, low: float, high: float) -> Estimate:
    return Estimate(100 * float(y), 100 * float(low), 100 * float(high), "%")


def _estimate_cells(e: Estimate) -> tuple[str, str]:
    return e.text, e.interval


def _band_rows(band: Band) -> tuple[tuple[str, ...], ...]:
    """The band read at every twentieth: as many rows as a person reads."""
    places = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    return tuple((_percent(x), *_estimate_cells(_at(band, x))) for x in places)


def _at(band: Band, x: float) -> Estimate:
    y, low, high = (float(np.interp(x, band.x, v)) for v in (band.y, band.low, band.high))
    return _share(y, low, high)
