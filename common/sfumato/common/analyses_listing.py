"""What the catalogue of analyses says of itself: questions, keys and example jobs, read from the modules."""

import types
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sfumato.common.analyses import catalogue
from sfumato.common.errors import BadInput

PAGES = "docs/analyses"
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}
_LIMITS = (("ge", "at least {}"), ("gt", "more than {}"), ("le", "at most {}"), ("lt", "less than {}"))
_LENGTHS = (("min_length", "{} or more"), ("max_length", "at most {}"))


@dataclass(frozen=True)
class Key:
    """One key of a [question], in words."""

    name: str
    type: str
    default: str


def kinds() -> tuple[str, ...]:
    return tuple(catalogue.CATALOGUE)


def question_of(kind: str) -> str:
    """In one line: the first of the module's own words. Raises BadInput."""
    line = (_module(kind).__doc__ or "").strip().splitlines()[0]
    _, colon, question = line.partition(": ")
    text = question if colon else line
    return text[:1].upper() + text[1:]


def about(kind: str) -> str:
    """All of the module's own words. Raises BadInput."""
    return (_module(kind).__doc__ or "").strip()


def keys(kind: str) -> list[Key]:
    """The keys of its [question]. Raises BadInput."""
    fields: dict[str, FieldInfo] = _module(kind).Question.model_fields
    return [Key(name, _constrained(f), _default(f)) for name, f in fields.items()]


def page_of(kind: str) -> str:
    """Where the docs describe it, from the project's root. Raises BadInput."""
    _module(kind)
    return f"{PAGES}/{kind}.md" if (_checkout() / PAGES / f"{kind}.md").is_file() else "docs/analyses.md"


def example(kind: str) -> str | None:
    """A job (TOML) over the sample bank that asks it; None where there is none. Raises BadInput."""
    _module(kind)
    packaged = resources.files("sfumato.common").joinpath("examples", f"{kind}.toml")
    for place in (packaged, _checkout() / "examples" / "sample_bank" / f"{kind}.toml"):
        if place.is_file():
            return place.read_text("utf-8")
    return None


def _checkout() -> Path:
    return Path(__file__).resolve().parents[3]


def _module(kind: str) -> Any:
    for known, module in catalogue.CATALOGUE.items():
        if known == kind:
            return module
    raise BadInput(f"no analysis {kind!r}", hint=f"There are: {', '.join(kinds())}.")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "not set"
    if isinstance(value, BaseModel):
        return "a table with its own defaults"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return "{}" if value == {} else str(list(value)) if isinstance(value, tuple) else str(value)


def _constrained(field: FieldInfo) -> str:
    """'whole number, at least 2, at most 64'"""
    said = [_type(field.annotation), *_bounds(field.metadata)]
    return ", ".join(said)


def _bounds(metadata: Sequence[Any]) -> list[str]:
    found = []
    for name, phrase in (*_LIMITS, *_LENGTHS):
        found += [phrase.format(v) for m in metadata if (v := getattr(m, name, None)) is not None]
    return found


def _type(annotation: Any) -> str:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    origin, of = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([_type(of[0]), *_bounds(of[1:])])
    if origin is Literal:
        return "one of " + ", ".join(f'"{v}"' for v in of)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(t) for t in of if t is not type(None))
    if origin in (tuple, list, set, frozenset) and of:
        if origin is tuple and Ellipsis not in of:
            return f"[{', '.join(map(_type, of))}]"
        return f"list of {_type(of[0])}"
    if origin is dict:
        return f"table of {_type(of[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"table ({', '.join(annotation.model_fields)})"
    return str(getattr(annotation, "__name__", annotation))
