"""Following a run: what is missing at the end of Flower's log stream is asked for again, once, in order."""

import io
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from sfumato.server import watching
from sfumato.server.conversation import JobFailed

ROUND = {
    "event": "round",
    "round": 1,
    "rounds": 2,
    "epsilon_spent": {"north": 1.0},
    "epsilon_budget": {"north": 8.0},
}
FINISHED = {"event": "finished", "auc": 0.8}


class Control:
    """A control API whose log streams are given; the last one repeats."""

    def __init__(self, *streams: list[dict[str, Any]]) -> None:
        self._streams = list(streams)

    def logs(self, run_id: int) -> Iterator[str]:
        stream = self._streams.pop(0) if len(self._streams) > 1 else self._streams[0]
        yield "".join(json.dumps(e) + "\n" for e in stream)

    def run(self, run_id: int) -> SimpleNamespace:
        return SimpleNamespace(sub_status="completed", details="")


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setattr(watching, "LOG_PAUSE", 0.0)
    return Console(file=io.StringIO())


def test_a_last_line_that_the_stream_missed_is_fetched(console: Console) -> None:
    seen: list[dict[str, Any]] = []
    control = Control([ROUND], [ROUND, FINISHED])
    assert watching.watch_run(control, 7, console, seen.append) == FINISHED  # type: ignore[arg-type]
    assert seen == [ROUND, FINISHED]


def test_a_run_that_left_no_result_says_so(console: Console) -> None:
    with pytest.raises(JobFailed, match=r"run 7 ended without a result \(completed\)"):
        watching.watch_run(Control([ROUND]), 7, console)  # type: ignore[arg-type]
