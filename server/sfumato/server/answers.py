"""An analysis' answer at the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_answer(summary: dict[str, Any], answer: dict[str, Any], console: Console) -> None:
    """What was found, with its intervals, and what it cost."""
    customers = answer["customers"]
    console.print(
        f"{summary['job']}: {summary['branches']} branches, {customers['value']:,.0f} customers "
        f"({customers['low']:,.0f} to {customers['high']:,.0f})"
    )
    for table in answer["tables"]:
        console.print(_table(table, answer["level"]))
    console.print(
        f"Epsilon {summary['epsilon']:.2f} at delta {summary['delta']:g}; every interval holds the true number "
        f"with a probability of {answer['level']:.0%}, the noise included."
    )


def _table(table: dict[str, Any], level: float) -> Table:
    columns = [" x ".join(table["columns"]), "customers", f"{level:.0%} interval", "share", "interval"]
    crossed = len(table["columns"]) > 1
    if crossed:
        columns += [f"of its {table['columns'][0]}", "interval"]
    shown = Table(*columns, box=None)
    for group in table["groups"]:
        count, share = group["customers"], group["share"]
        shown.add_row(
            name_of(group["cells"]),
            f"fewer than {group['fewer_than']:,}" if "fewer_than" in group else f"{count['value']:,.0f}",
            f"{count['low']:,.0f} to {count['high']:,.0f}",
            f"{share['value']:.1%}",
            f"{share['low']:.1%} to {share['high']:.1%}",
            *_of_row(group.get("share_of_row")),
        )
    return shown


def _of_row(share: dict[str, float] | None) -> tuple[str, ...]:
    return (f"{share['value']:.1%}", f"{share['low']:.1%} to {share['high']:.1%}") if share else ()


def name_of(cells: list[Any]) -> str:
    """A group's name; of a merged one, whom it is made of."""
    names = [" x ".join(c) if isinstance(c, list | tuple) else str(c) for c in cells]
    return names[0] if len(names) == 1 else f"merged: {', '.join(names)}"
