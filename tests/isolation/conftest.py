"""A small sample bank, and the processes of a branch as the kernel sees them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfumato.lab.samplebank import SampleBank, generate


@pytest.fixture(scope="package")
def bank(tmp_path_factory: pytest.TempPathFactory) -> SampleBank:
    return generate(tmp_path_factory.mktemp("bank"), branches=3, customers_per_branch=300)


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    return [int(c) for t in tasks.iterdir() for c in (t / "children").read_text().split()]


def _with_descendants(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = _children(pid)
    except FileNotFoundError:
        return
    for child in children:
        yield from _with_descendants(child)


@pytest.fixture(scope="session")
def pids_of():
    """pids_of(branch home): {"launcher": [...], "vault": [...], "courier": [...]}, each with its descendants."""

    def read(home: Path) -> dict[str, list[int]]:
        state = json.loads((home / "run" / "state.json").read_text())
        found = {
            role: list(_with_descendants(state[role])) for role in ("vault", "courier") if state.get(role)
        }
        return {"launcher": [state["launcher"]], **found}

    return read


@pytest.fixture(scope="session")
def need_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: needs root, to run processes as other system users")
