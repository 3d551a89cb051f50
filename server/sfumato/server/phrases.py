"""What pages say, in the reader's language: the English phrases are the keys of `templates/zh.toml`."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from sfumato.server.pages import source

Language = Literal["en", "zh"]
_RANGE = re.compile(r"(?<=[\d.,)\u202f%]) to (?=[\u2212\d(])")


@dataclass(frozen=True)
class Phrases:
    """`phrases`: the page's own words, all of them. `terms`: the kinds' standard words, as far as they are known."""

    language: Language
    phrases: Mapping[str, str] = field(repr=False)
    terms: Mapping[str, str] = field(repr=False)

    @property
    def tag(self) -> str:
        """For a lang attribute (BCP 47)."""
        return {"en": "en", "zh": "zh-Hans"}[self.language]

    def say(self, phrase: str, **values: Any) -> str:
        """A phrase of the page, with its values. Raises KeyError on one that is not translated."""
        text = phrase if self.language == "en" else self.phrases[phrase]
        return text.format(**values)

    def term(self, name: str) -> str:
        """A part's, measure's or unit's name in words."""
        return self.value(name.replace("_", " "))

    def value(self, text: str) -> str:
        """A standard word of the catalogue in the language; else as the contract has it, with ranges said."""
        if self.language == "en":
            return text
        found = self.terms.get(text.replace("_", " ").lower())
        return found if found is not None else self.ranges(text)

    def ranges(self, text: str) -> str:
        """'3 to 5' in the language."""
        return text if self.language == "en" else _RANGE.sub(" 至 ", text)

    def foreign(self, text: str) -> str | None:
        """The lang attribute of a sentence that came in English, where the page is in another language."""
        return "en" if self.language != "en" and self.terms.get(text.lower()) is None else None


@cache
def phrases(language: Language) -> Phrases:
    """The catalogue of a language."""
    if language == "en":
        return Phrases("en", {}, {})
    read = tomllib.loads(source(f"{language}.toml"))
    return Phrases(language, read["phrases"], {k.lower(): v for k, v in read["terms"].items()})
