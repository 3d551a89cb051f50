"""What pages say, in the reader's language: the English phrases are the keys of `templates/zh.toml`."""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from sfumato.server.pages import source

Language = Literal["en", "zh"]
_BETWEEN = re.compile(r"(?<=[\d.,)\u202f%]) (to|or) (?=[-\u2212\d(])")


@dataclass(frozen=True)
class Phrases:
    """`phrases`: the pages' own sentences, all of them. `names`: parts, measures, units and what rows are by.
    `values`: by what they are by, values that are the catalogue's own words. `notes`: what a kind says of its answer,
    with {} for what varies. What a language does not have stays English, or as the contract has it."""

    language: Language
    phrases: Mapping[str, str] = field(repr=False)
    names: Mapping[str, str] = field(repr=False)
    values: Mapping[str, dict[str, str]] = field(repr=False)
    notes: Mapping[str, str] = field(repr=False)
    question: str | None = None  # that the kind asks

    @property
    def tag(self) -> str:
        """For a lang attribute (BCP 47)."""
        return {"en": "en", "zh": "zh-Hans"}[self.language]

    @property
    def foreign(self) -> str | None:
        """The lang attribute of what stays in English."""
        return "en" if self.language != "en" else None

    def say(self, phrase: str, **values: Any) -> str:
        """A sentence of the page, with its values. Raises KeyError on one that is not translated."""
        text = phrase if self.language == "en" else self.phrases[phrase]
        return text.format(**values)

    def term(self, name: str) -> str:
        """A measure's or unit's name in words."""
        return _filled(self.names, name, self.column) or name.replace("_", " ")

    def part(self, name: str) -> str:
        """A part's name; one that is made of columns has them as the contract does."""
        return _filled(self.names, name, self.column) or name

    def column(self, name: str) -> str:
        """What rows are by: a word of the kind, or a column, as the contract has it."""
        return self.names.get(name, name)

    def value(self, by: str, text: str) -> str:
        """One of its values."""
        known = self.values.get("any", {}) | self.values.get(by, {})
        return _filled(known, text, self.ranges) or self.ranges(text)

    def ranges(self, text: str) -> str:
        """'3 to 5' and '3 or 5' in the language."""
        if self.language == "en":
            return text
        return _BETWEEN.sub(lambda found: f" {self.phrases[found[1]]} ", text)

    def note(self, text: str) -> str | None:
        """What a kind says of its answer; None where it is not translated."""
        return text if self.language == "en" else _filled(self.notes, text, self.ranges)


def _filled(known: Mapping[str, str], text: str, inner: Callable[[str], str]) -> str | None:
    """Its translation: of the text itself, or of the first pattern that fits, filled with what `inner` says of what
    varies."""
    if text in known:
        return known[text]
    for english, translated in known.items():
        if "{}" not in english:
            continue
        pattern = "(.+?)".join(re.escape(piece) for piece in english.split("{}"))
        if (found := re.fullmatch(pattern, text)) is not None:
            return translated.format(*map(inner, found.groups()))
    return None


@cache
def phrases(language: Language, kind: str = "") -> Phrases:
    """The catalogue of a language; with the words of a `kind`."""
    if language == "en":
        return Phrases("en", {}, {}, {}, {})
    read = tomllib.loads(source(f"{language}.toml"))
    of = read["kinds"].get(kind, {})
    return Phrases(
        language,
        read["phrases"],
        read["names"] | of.get("names", {}),
        read["values"] | of.get("values", {}),
        of.get("notes", {}),
        of.get("question"),
    )
