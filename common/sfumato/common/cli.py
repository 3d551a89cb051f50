"""The `sfumato` command. Each role brings its own commands by an entry point; a branch's wheel has only its own."""

import os
import sys
from importlib.metadata import entry_points, version

import typer
from rich.console import Console

from sfumato.common.errors import SfumatoError

app = typer.Typer(
    name="sfumato",
    help="Customer portraits across bank branches, without anyone ever seeing a customer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(show_version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if show_version:
        typer.echo(version("sfumato"))
        raise typer.Exit


def _attach() -> None:
    for point in sorted(entry_points(group="sfumato.commands"), key=lambda p: p.name):
        try:
            command = point.load()
        except ModuleNotFoundError as e:
            if e.name is None or not e.name.startswith("sfumato."):
                raise
            continue  # a role-only installation: that role is not here
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name)
        else:
            app.command(point.name)(command)


def main() -> None:
    """Run the command line. A SfumatoError becomes a message and its exit code, never a traceback."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # no warning about a future default
    _attach()
    try:
        app()
    except SfumatoError as e:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {e}", markup=False, style="red")
        sys.exit(e.exit_code)


if __name__ == "__main__":
    main()
