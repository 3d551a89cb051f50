"""The portrait of all customers, or of one group of them, made from one or several runs: pages, JSON and CSV."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sfumato.common.analyses.parts import Number, Part
from sfumato.common.errors import BadInput
from sfumato.server.answer_export import as_csv, as_json
from sfumato.server.model_export import write_bundle
from sfumato.server.phrases import Language
from sfumato.server.reading import Reading


@dataclass(frozen=True)
class Group:
    """Customers with this value in this column of an answer."""

    column: str
    value: str

    @classmethod
    def parse(cls, text: str) -> "Group":
        """From 'column=value'. Raises BadInput."""
        column, equals, value = text.partition("=")
        if not (column and equals and value):
            raise BadInput(
                f"{text!r}: not a group", hint="Write it as COLUMN=VALUE, such as segment=private."
            )
        return cls(column, value)


@dataclass(frozen=True)
class Portrait:
    """What several runs say of the same customers. `group`: they were narrowed to it."""

    readings: tuple[Reading, ...]
    group: Group | None = None

    @classmethod
    def of(cls, readings: Sequence[Reading], group: Group | None = None) -> "Portrait":
        """Raises BadInput where nothing is said of the group, or a run is named twice."""
        if len({r.source for r in readings}) < len(readings):
            raise BadInput("a run is named twice")
        if group is None:
            return cls(tuple(readings))
        narrowed = [replace(r, parts=tuple(_narrowed(r.parts, group))) for r in readings]
        kept = tuple(r for r in narrowed if r.parts)
        if not kept:
            columns = dict.fromkeys(by for r in readings for part in r.parts for by in part.by)
            raise BadInput(
                f"no run says anything of customers with {group.column} = {group.value}",
                hint=f"Their tables are by {', '.join(columns) or 'nothing'}; a group is one value of one of these.",
            )
        return cls(kept, group)

    @property
    def customers(self) -> Number | None:
        """How many there are: by a profile, as it counts all, else by the first run that says so."""
        found = [
            (reading.kind != "profile", row.numbers["customers"])
            for reading in self.readings
            for part in reading.parts
            for row in part.rows
            if not part.by and "customers" in row.numbers
        ]
        return min(found, key=lambda f: f[0], default=(True, None))[1]

    @property
    def epsilon(self) -> float | None:
        """Of all runs together, by adding up: an upper bound. None where a run does not say."""
        found = [r.epsilon for r in self.readings]
        return sum(e for e in found if e is not None) if None not in found else None


def _narrowed(parts: Sequence[Part], group: Group) -> Iterator[Part]:
    """What is said by the group's column, of its value alone."""
    for part in parts:
        if group.column not in part.by:
            continue
        at = part.by.index(group.column)
        rows = [r for r in part.rows if r.of[at] == group.value]
        if rows:
            kept = tuple(replace(r, of=r.of[:at] + r.of[at + 1 :]) for r in rows)
            name = f"{group.column} = {group.value}" if part.name == group.column else part.name
            yield replace(part, name=name, by=part.by[:at] + part.by[at + 1 :], rows=kept)


def write_portrait(
    out: Path, portrait: Portrait, languages: Sequence[Language], *, force: bool = False
) -> list[str]:
    """portrait.LANGUAGE.html, portrait.json and portrait.csv; of a new folder all or nothing. Returns their names.

    Raises BadInput where a file is there, unless `force`, and where nothing can be written.
    """
    from sfumato.server.portrait_page import file_name, portrait_page

    files = {"portrait.json": as_json(portrait.readings), "portrait.csv": as_csv(portrait.readings)}
    for language in languages:
        others = tuple(other for other in languages if other != language)
        files[file_name(language)] = portrait_page(portrait, language, others).encode("utf-8", "replace")
    write_bundle(out, files, force=force)
    return sorted(files)
