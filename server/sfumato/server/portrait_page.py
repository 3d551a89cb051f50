"""A portrait as a self-contained page in one language: no script, no network, readable in black and white, on paper
and by a screen reader. The same portrait gives the same bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sfumato.common.analyses_listing import kinds, question_of
from sfumato.server.pages import render, source
from sfumato.server.part_figures import estimate, figures
from sfumato.server.phrases import Language, Phrases, phrases
from sfumato.server.portrait import Portrait
from sfumato.server.reading import Reading
from sfumato.server.report_figures import Plot
from sfumato.server.report_words import NARROW_SPACE, number, power_of_ten, rounded_up

NATIVE: dict[Language, str] = {"en": "English", "zh": "中文"}


@dataclass(frozen=True)
class Said:
    """A sentence, and its lang attribute where it is in another language than the page."""

    text: str
    language: str | None = None


@dataclass(frozen=True)
class Section:
    """What one run says."""

    id: str
    question: Said
    job: str
    purpose: str
    cost: str
    notes: tuple[Said, ...]
    plots: tuple[Plot, ...]


def file_name(language: Language) -> str:
    return f"portrait.{language}.html"


def portrait_page(portrait: Portrait, language: Language, others: Sequence[Language] = ()) -> str:
    """The page's text, with links to the same in `others`, beside it."""
    words = phrases(language)
    customers = estimate(portrait.customers, "customers")
    return render(
        "portrait_page.html.j2",
        source("report.css") + source("portrait.css"),
        say=words.say,
        tag=words.tag,
        title=_title(portrait, words),
        lead=words.say(
            "About {value} customers ({interval}).",
            value=customers.text,
            interval=words.ranges(customers.interval),
        )
        if customers
        else None,
        levels=words.say(", ").join(
            dict.fromkeys(f"{number(100 * r.level)}{NARROW_SPACE}%" for r in portrait.readings)
        ),
        epsilon=rounded_up(portrait.epsilon),
        sections=list(_sections(portrait, words)),
        runs=[_run(r, words) for r in portrait.readings],
        others=[(file_name(o), phrases(o).tag, NATIVE[o]) for o in others],
    )


def _title(portrait: Portrait, words: Phrases) -> str:
    if (group := portrait.group) is None:
        return words.say("A portrait of the customers")
    return words.say(
        "A portrait of the customers with {column} {value}",
        column=group.column,
        value=words.ranges(group.value),
    )


def _sections(portrait: Portrait, words: Phrases) -> Iterator[Section]:
    for place, reading in enumerate(portrait.readings):
        of_kind = phrases(words.language, reading.kind)
        shown = [p for p in reading.parts if p.by or set(p.measures) != {"customers"}]  # these stand on top
        plots = (p for i, part in enumerate(shown) for p in figures(part, of_kind, f"answer-{place}-{i}"))
        yield Section(
            id=f"answer-{place}",
            question=_question(reading, of_kind),
            job=reading.job,
            purpose=str(reading.summary.get("purpose") or ""),
            cost=_cost(reading, words),
            notes=tuple(_note(n, of_kind) for n in reading.notes),
            plots=tuple(plots),
        )


def _question(reading: Reading, words: Phrases) -> Said:
    if reading.answer is None:
        return Said(words.say("How good the model is"))
    if words.question is not None:
        return Said(words.question)
    if reading.kind not in kinds():
        return Said(reading.kind)  # of another release
    return Said(question_of(reading.kind), words.foreign)


def _note(note: str, words: Phrases) -> Said:
    translated = words.note(note)
    return Said(translated) if translated is not None else Said(note, words.foreign)


def _cost(reading: Reading, words: Phrases) -> str:
    return words.say(
        "{run}: epsilon {epsilon} for each customer, {branches} branches.",
        run=_source(reading, words),
        epsilon=rounded_up(reading.epsilon),
        branches=number(reading.summary.get("branches")),
    )


def _run(reading: Reading, words: Phrases) -> tuple[str, ...]:
    mode = str(reading.summary.get("mode") or "")
    return (
        _source(reading, words),
        reading.job,
        reading.kind,
        words.term(mode) if mode else "–",
        number(reading.summary.get("branches")),
        rounded_up(reading.epsilon),
        power_of_ten(reading.delta) if reading.delta is not None else "–",
    )


def _source(reading: Reading, words: Phrases) -> str:
    """'run 7' in the language, or the file's name."""
    head, _, run = reading.source.partition(" ")
    return words.say("Run {run}", run=run) if head == "run" and run else reading.source
