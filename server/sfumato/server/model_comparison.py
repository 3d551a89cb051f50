"""Models side by side: which differences do their intervals show, and may they be compared at all?"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from sfumato.common.errors import BadInput
from sfumato.server.model_card import apart, metrics, summary
from sfumato.server.registry import Entry


def comparison(entries: Sequence[Entry]) -> dict[str, Any]:
    """{"runs": [a summary each], "metrics": {name: {"of": {run: estimate or None}, "apart": [[run, run], ...]}},
    "warnings": [...]}, as JSON. Raises BadInput on fewer than two, one given twice, or a file without a model."""
    runs = [e.run for e in entries]
    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise BadInput("give two or more different runs to compare")
    for entry in entries:
        if entry.model is None:
            raise BadInput(f"the model of run {entry.run} is {entry.state}: {'; '.join(entry.problems)}")
    found = {e.run: metrics(e) for e in entries}
    names = list(dict.fromkeys(name for of_run in found.values() for name in of_run))
    return {
        "runs": [summary(e) for e in entries],
        "metrics": {
            name: {
                "of": {run: found[run].get(name) for run in runs},
                "apart": [
                    [a, b]
                    for a, b in combinations(runs, 2)
                    if name in found[a] and name in found[b] and apart(found[a][name], found[b][name])
                ],
            }
            for name in names
        },
        "warnings": _warnings(entries),
    }


def _warnings(entries: Sequence[Entry]) -> list[str]:
    said = []
    headers = [e.model.header for e in entries if e.model is not None]
    if len({h.contract for h in headers}) > 1:
        names = sorted({h.contract_name for h in headers})
        versions = f"contracts {', '.join(names)}" if len(names) > 1 else f"versions of contract {names[0]}"
        said.append(
            f"They were trained under different {versions}: other columns, other customers held out. "
            "Their figures answer different questions."
        )
    if len({h.label for h in headers}) > 1:
        said.append("They foretell different labels.")
    branches = [{str(b.get("name")) for b in e.result.get("per_branch") or []} for e in entries]
    if any(b != branches[0] for b in branches):
        said.append("Different branches took part: they were measured on different customers.")
    for entry in entries:
        if entry.state != "verified":
            said.append(f"The model of run {entry.run} is {entry.state}: {'; '.join(entry.problems)}.")
    return said
