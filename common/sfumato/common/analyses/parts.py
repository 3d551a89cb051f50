"""The shape of an answer: parts, each a table of rows with named measures. Whoever shows answers reads this alone.

A part says what its rows are `by`; a row says `of` which values it is, and has measures: numbers with an interval,
or text. One file reads every kind of analysis, so that no kind needs a printer, a page or an export of its own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

Unit = Literal["customers", "share", "amount", "points", "days", "number"]
Number = Mapping[str, float]
UNITS: tuple[Unit, ...] = get_args(Unit)


@dataclass(frozen=True)
class Row:
    """One row: the values it is `of`, its numbers, and what is said of it in words."""

    of: tuple[str, ...]
    numbers: Mapping[str, Number]
    words: Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """One table of an answer. `units` has every measure that some row has a number of."""

    name: str
    by: tuple[str, ...]
    units: Mapping[str, Unit]
    rows: tuple[Row, ...]

    @property
    def measures(self) -> tuple[str, ...]:
        return tuple(self.units)

    @property
    def words(self) -> tuple[str, ...]:
        """The names of what rows say in words."""
        return tuple(dict.fromkeys(w for r in self.rows for w in r.words))


def part(
    name: str, by: Sequence[str], units: Mapping[str, Unit], rows: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """A part of an answer, as JSON: a row is {"of": [...], measure: Number or text, ...}.

    Raises ValueError on a row of another form: that would be a mistake in the analysis.
    """
    made = {"name": name, "by": list(by), "units": dict(units), "rows": [dict(r) for r in rows]}
    _part(made)
    return made


def parts_of(answer: Mapping[str, Any]) -> Iterator[Part]:
    """The parts of any analysis' answer; of the kinds with tables of their own form, in this form.

    Raises ValueError on what is no answer.
    """
    try:
        if "customers" in answer:
            yield _whole(answer["customers"])
        yield from map(_part, answer.get("parts", ()))
        yield from map(_counted, answer.get("tables", ()))
        if "segments" in answer:
            yield from _segments(answer["segments"])
        if "drift" in answer:
            yield from _drift(answer["drift"])
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"not an answer: {e}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"value", "low", "high"}


def _part(made: Mapping[str, Any]) -> Part:
    by, units = tuple(made["by"]), dict(made["units"])
    for unit in units.values():
        if unit not in UNITS:
            raise ValueError(f"{made['name']}: no unit {unit!r}")
    return Part(made["name"], by, units, tuple(_row(r, by, units) for r in made["rows"]))


def _row(made: Mapping[str, Any], by: tuple[str, ...], units: Mapping[str, Unit]) -> Row:
    of = tuple(map(str, made["of"]))
    if len(of) != len(by):
        raise ValueError(f"a row of {len(of)} values in a part by {len(by)}")
    numbers = {k: v for k, v in made.items() if k != "of" and _is_number(v)}
    words = {k: v for k, v in made.items() if k != "of" and isinstance(v, str)}
    strange = set(made) - {"of", *numbers, *words}
    if strange or not set(numbers) <= set(units):
        raise ValueError(f"a row has {', '.join(sorted(strange or set(numbers) - set(units)))}")
    return Row(of, numbers, words)


def _whole(customers: Number) -> Part:
    return Part("all customers", (), {"customers": "customers"}, (Row((), {"customers": customers}, {}),))


def _counted(table: Mapping[str, Any]) -> Part:
    """A table of a profile: a merged group is of all its cells."""
    by = tuple(table["columns"])
    units: dict[str, Unit] = {"customers": "customers", "share": "share"}
    if len(by) > 1:
        units["share_of_row"] = "share"
    rows = []
    for group in table["groups"]:
        values = zip(*group["cells"], strict=True)
        of = tuple(" or ".join(dict.fromkeys(map(str, v))) for v in values)
        words = {"note": "merged"} if len(group["cells"]) > 1 else {}
        if "fewer_than" in group:
            words = {"note": f"fewer than {group['fewer_than']}"}
        rows.append(Row(of, {m: group[m] for m in units if m in group}, words))
    return Part(" x ".join(by), by, units, tuple(rows))


def _segments(segments: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    named = [(str(i), s) for i, s in enumerate(segments, 1)]
    sizes: dict[str, Unit] = {"customers": "customers", "share": "share"}
    yield Part(
        "segments",
        ("segment",),
        sizes,
        tuple(Row((i,), {m: s[m] for m in sizes}, {}) for i, s in named),
    )
    middles = (Row((i, c), {"middle": n}, {}) for i, s in named for c, n in s["centre"].items())
    yield Part("middles", ("segment", "column"), {"middle": "number"}, tuple(middles))
    mixes = tuple(
        Row((i, column, cell), {"share": n}, {})
        for i, s in named
        for column, mix in s.get("mix", {}).items()
        for cell, n in mix.items()
    )
    if mixes:
        yield Part("mix", ("segment", "column", "value"), {"share": "share"}, mixes)


def _drift(columns: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    rows = (Row((c["column"],), {"psi": c["psi"]}, {"verdict": c["verdict"]}) for c in columns)
    yield Part("stability", ("column",), {"psi": "number"}, tuple(rows))
    bins = (
        Row((c["column"], str(b["bin"])), {"then": b["then"], "now": b["now"]}, {})
        for c in columns
        for b in c["bins"]
    )
    yield Part("bins", ("column", "bin"), {"then": "share", "now": "share"}, tuple(bins))
