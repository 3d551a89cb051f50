"""Following a run: the job's progress events, carried in its log through Flower's control API.

The ServerApp prints each event as one line of JSON (`app.print_report`); who may read the log may watch it.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sfumato.server.control import ControlClient
from sfumato.server.conversation import JobFailed

Event = dict[str, Any]
LOG_ATTEMPTS, LOG_PAUSE = 8, 0.25  # seconds


def events(pieces: Iterator[str]) -> Iterator[Event]:
    """The events in a log that arrives in pieces; other lines and half lines are passed over or joined."""
    buffer = ""
    for piece in pieces:
        buffer += piece
        *lines, buffer = buffer.split("\n")
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
                yield event


class Screen:
    """A live view of one run: a bar for the rounds, a line a branch, and what went wrong."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._task = self._progress.add_task("waiting for branches", total=None)
        self._branches: dict[str, tuple[float, float]] = {}
        self._troubles: list[str] = []

    def take(self, event: Event) -> None:
        match event["event"]:
            case "joined":
                self._progress.update(self._task, description=f"{event['branches']} branches are there")
            case "opened":
                self._branches[event["branch"]] = (0.0, 0.0)
                self._progress.update(self._task, description="branches open the job")
            case "resumed":
                self._progress.update(self._task, description=f"goes on after {event['sums']} sums")
            case "round" | "sum":
                doing = "training" if event["event"] == "round" else "asking"
                self._progress.update(
                    self._task, description=doing, completed=event["round"], total=event["rounds"]
                )
                for name, spent in event["epsilon_spent"].items():
                    self._branches[name] = (spent, event["epsilon_budget"][name])
            case "repeat":
                lost = ", ".join(event["without"])
                self._troubles.append(f"round {event['round']} is asked again, without {lost}")
            case "refused":
                self._troubles.append(f"{event['branch']} refused: {event['text']}")
            case "dropped":
                self._troubles.append(f"{event['branch']} dropped: {event['reason']}")
            case "finished":
                self._progress.update(self._task, description="finished")

    def __rich__(self) -> Group:
        table = Table("branch", "epsilon spent", "of", box=None)
        for name, (spent, budget) in sorted(self._branches.items()):
            table.add_row(name, f"{spent:.3f}", f"{budget:g}" if budget else "")
        return Group(self._progress, table, *self._troubles[-5:])


def watch_run(
    control: ControlClient, run_id: int, console: Console, on_event: Callable[[Event], None] | None = None
) -> Event:
    """Show a run until it ends and return its result. Raises JobFailed with the reason if it has none."""
    screen = Screen()
    last: Event | None = None
    seen = 0
    with Live(screen, console=console, refresh_per_second=8):
        # Flower ends the stream when it finds the run finished, which can be after it last looked for new lines:
        # what is missing then is asked for again, from the start.
        for _ in range(LOG_ATTEMPTS):
            for number, event in enumerate(events(control.logs(run_id))):
                if number < seen:
                    continue
                seen = number + 1
                screen.take(event)
                if on_event is not None:
                    on_event(event)
                if event["event"] in ("finished", "failed"):
                    last = event
            if last is not None:
                break
            time.sleep(LOG_PAUSE)
    if not console.is_terminal:
        console.print()  # into a file, the view's last line has no end
    if last is None:
        state = control.run(run_id)
        raise JobFailed(f"run {run_id} ended without a result ({state.sub_status}): {state.details}")
    if last["event"] == "failed":
        hint = f"Go on with it: sfumato job resume {run_id}" if last.get("resumable") else ""
        raise JobFailed(f"run {run_id} failed: {last['reason']}", hint=hint)
    if "waits_for" in last:
        console.print(
            f"The months until now are told. It waits for data until {last['waits_for']} "
            f"(not yet at: {', '.join(last['behind'])}); then: sfumato job resume {run_id}"
        )
    return last
