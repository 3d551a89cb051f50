"""`sfumato analyses`: what can be asked, read from the catalogue itself."""

from typing import Annotated

import typer


def analyses(
    kind: Annotated[str | None, typer.Argument(help="One of them: its keys and an example.")] = None,
) -> None:
    """List the analyses that a job can ask for; of one, what it asks, its keys and an example job."""
    from rich.console import Console
    from rich.table import Table

    from sfumato.common import analyses_listing as listing

    console = Console(highlight=False, soft_wrap=True, markup=False)
    if kind is None:
        table = Table("kind", "question", "page", box=None)
        for name in listing.kinds():
            table.add_row(name, listing.question_of(name), listing.page_of(name))
        console.print(table)
        console.print("\nOne of them, with its keys and an example: sfumato analyses KIND")
        return
    console.print(listing.about(kind))
    table = Table("key of [question]", "is", "default", box=None)
    for key in listing.keys(kind):
        table.add_row(key.name, key.type, key.default)
    console.print()
    console.print(table)
    if (job := listing.example(kind)) is not None:
        console.print(f"\nA job over the sample bank (sfumato sample-bank DIR):\n\n{job.strip()}")
    console.print(f"\nMore: {listing.page_of(kind)}")
