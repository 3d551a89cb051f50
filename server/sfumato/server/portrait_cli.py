"""`sfumato portrait`: pages, JSON and CSV of one or several runs' answers."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from sfumato.common.errors import BadInput

console = Console(highlight=False, soft_wrap=True, markup=False)


def portrait(
    runs: Annotated[
        list[str],
        typer.Argument(help="Runs of analyses, by number; or files that `sfumato simulate --json` wrote."),
    ],
    out: Annotated[Path, typer.Option(help="The directory to write; made when needed.")],
    home: Annotated[
        Path | None, typer.Option("--coordinator", help="The coordinator's directory, for runs by number.")
    ] = None,
    lang: Annotated[Literal["en", "zh", "both"], typer.Option(help="English, Chinese or both.")] = "both",
    only: Annotated[
        str | None, typer.Option(help="COLUMN=VALUE: the portrait of these customers alone.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Write a portrait of the customers: what one or several runs found, as pages, JSON and CSV."""
    from sfumato.server.home import CoordinatorHome
    from sfumato.server.portrait import Group, Portrait, write_portrait
    from sfumato.server.reading import Reading

    coordinator = CoordinatorHome.load(home) if home is not None else None
    readings = []
    for run in runs:
        if not run.isdecimal():
            readings.append(Reading.of_file(Path(run)))
        elif coordinator is None:
            raise BadInput(f"run {run}: of which coordinator?", hint="Give its directory with --coordinator.")
        else:
            readings.append(Reading.of_run(coordinator, int(run)))
    made = Portrait.of(readings, Group.parse(only) if only is not None else None)
    written = write_portrait(out, made, ("en", "zh") if lang == "both" else (lang,), force=force)
    console.print(f"Wrote {', '.join(written)} to {out}.")
