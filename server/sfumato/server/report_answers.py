"""The report's figures of an analysis that is no profile: segments and drift in a form of their own, all else part by
part."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from sfumato.common.analyses.drift import SHIFTED, STABLE
from sfumato.common.analyses.parts import parts_of
from sfumato.common.analyses_listing import kinds, question_of
from sfumato.server import model_figures
from sfumato.server.part_figures import figures
from sfumato.server.phrases import phrases
from sfumato.server.report_figures import Plot
from sfumato.server.report_svg import ACCENT, INK, QUIET, draw, plain
from sfumato.server.report_words import NARROW_SPACE, Estimate, number

MOST_COLUMNS = 40
QUESTIONS = {"segments": "Which kinds of customers are there?", "drift": "Are the customers still the same?"}


@dataclass(frozen=True)
class Answer:
    """The question as a title, the answer in a sentence, figures, and what is to be known of it."""

    question: str
    lead: str
    plots: tuple[Plot, ...]
    notes: tuple[str, ...] = ()
    paired: bool = False  # figures small enough to stand side by side


def answer_of(kind: str, answer: Mapping[str, Any] | None) -> Answer | None:
    """None for no answer, or a profile's. Raises ValueError on what is no answer of that kind."""
    if answer is None or kind == "profile" or kind not in kinds():
        return None
    try:
        if kind not in QUESTIONS:
            return _parts(kind, answer)
        lead, plots = _segments(answer) if kind == "segments" else _drift(answer)
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"not the answer of {kind}: {e}") from None
    return Answer(QUESTIONS[kind], lead, plots, paired=len(plots) > 1)


def _parts(kind: str, answer: Mapping[str, Any]) -> Answer:
    """A figure a part. Raises ValueError."""
    words = phrases("en")
    parts = list(parts_of({"parts": answer["parts"]}))
    plots = tuple(plot for i, part in enumerate(parts) for plot in figures(part, words, f"part-{i}"))
    customers = Estimate.of(answer.get("customers"))
    lead = "The sums of all branches answer it."
    if customers is not None:
        lead = f"The sums over about {customers.text} customers ({customers.interval}) answer it."
    return Answer(question_of(kind), lead, plots, tuple(map(str, answer.get("notes", ()))))


def _segments(answer: Mapping[str, Any]) -> tuple[str, tuple[Plot, ...]]:
    segments = [{"segment": i, **s} for i, s in enumerate(answer["segments"])]
    sizes = [e.text for s in segments if (e := Estimate.of(s["share"], unit="%"))]
    lead = f"{number(len(segments))} kinds of customers; the largest is {sizes[0]} of all, the smallest {sizes[-1]}."
    if len(segments) < 2:
        lead = "No kinds of customers stand apart by these columns: one segment holds them all."
    level = f"{number(100 * answer['level'])}{NARROW_SPACE}%"
    return lead, tuple(model_figures.segments(segments, answer["names"], level))


def _drift(answer: Mapping[str, Any]) -> tuple[str, tuple[Plot, ...]]:
    found = [(str(c["column"]), Estimate.of(c["psi"]), str(c["verdict"])) for c in answer["drift"]]
    rows = [(column, psi, verdict) for column, psi, verdict in found if psi is not None]
    shown = rows[:MOST_COLUMNS]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for bound, word in ((STABLE, "stable below"), (SHIFTED, "shifted above")):
            axes.axvline(bound, color=INK, linewidth=0.9, linestyle=(0, (5, 3)))
            axes.annotate(
                f"{word} {bound:g}",
                (bound, 1.0),
                xycoords=("data", "axes fraction"),
                ha="right" if bound == STABLE else "left",
                va="bottom",
                color=QUIET,
            )
        for y, (_, e, _) in enumerate(shown):
            axes.plot([e.low, e.high], [y, y], color=ACCENT, linewidth=2.2, solid_capstyle="butt")
            axes.plot([e.value], [y], "o", color="white", markeredgecolor=ACCENT, markersize=5, zorder=4)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_yticks(range(len(shown)), [f"{plain(c)}: {v}" for c, _, v in shown])
        axes.set_xlim(0, max([0.4, *(min(e.high, 2.0) for _, e, _ in shown)]))
        axes.set_xlabel("Population stability index")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)

    shifted = [c for c, _, v in rows if v == "shifted"]
    unknown = sum(v == "cannot tell" for _, _, v in rows)
    lead = f"{number(len(shifted))} of {number(len(rows))} columns have shifted"
    lead += f" ({', '.join(shifted)})." if shifted else "."
    if unknown:
        lead += f" Of {number(unknown)} it cannot be told: the noise leaves both open."
    title = "How far each column has moved"
    says = (
        "Population stability index of each column, with its interval; a verdict needs all of it on its side. "
        "An interval that leaves the figure goes on."
    )
    svg = draw("drift", title, f"Dot-and-whisker plot. {says}", (8.2, 1.1 + 0.27 * len(shown)), paint)
    heads = ("Column", "PSI", "Interval", "Verdict")
    return lead, (
        Plot("drift", title, says, svg, heads, tuple((c, e.text, e.interval, v) for c, e, v in rows)),
    )
