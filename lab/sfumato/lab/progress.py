"""What a simulation is at, on the terminal or in a notebook."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)


class Shown:
    """Hears a simulation's events, and draws a bar."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def report(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "ingested":
                self.say("ingesting", event["done"], event["of"])
            case "joined":
                self.say("opening the job")
            case "sum":
                self.say("asking", event["round"], event["rounds"])
            case "round":
                self.say("training", event["round"], event["rounds"])

    def say(self, what: str, done: int = 0, of: int | None = None) -> None:
        self._progress.update(self._task, description=what, completed=done, total=of)


@contextmanager
def shown_progress(console: Console) -> Iterator[Shown]:
    """A bar until the block ends; then it is gone."""
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        yield Shown(progress, progress.add_task("checking the data", total=None))
