"""A file larger than memory: the peak of a load does not grow with the file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TARGET = 120_000_000

# Runs in its own process: peak memory is a property of a process. The store only counts.
SCRIPT = """
import contextlib, json, sys
from pathlib import Path
from sfumato.client.ingest.load import ingest, open_source
from sfumato.common.contract import Contract

class Loader:
    rows = 0
    def append(self, rows, numbers): self.rows += rows.num_rows
    def duplicate_rows(self): return []
    def discard(self, numbers): pass

class Store:
    @contextlib.contextmanager
    def load(self, table, *, mode):
        yield loader

def peak():  # of this process alone; ru_maxrss would inherit the parent's at fork
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(l.split()[1]) * 1024 for l in lines if l.startswith("VmHWM"))

columns = [
    {"name": "id", "type": "string", "role": "customer_id"},
    {"name": "day", "type": "date", "role": "time"},
    {"name": "amount", "type": "number", "role": "amount", "bounds": [0, 1e6]},
    {"name": "kind", "type": "category", "role": "feature", "categories": ["card", "cash", "transfer"]},
    {"name": "branches", "type": "integer", "nullable": True},
    {"name": "note", "type": "string", "role": "pii", "protection": "encrypt"},
]
contract = Contract.model_validate({"version": 1, "name": "m", "purpose": "memory test", "customers": "customers",
    "tables": [{"name": "customers", "columns": columns}]})
big, small, held = map(Path, sys.argv[1:])
loader = Loader()
# a first, small load: what any load costs (libraries, pools)
ingest(open_source(small), "customers", contract, Store(), quarantine=held.with_suffix(".first"))
before = peak()
loader = Loader()
report = ingest(open_source(big), "customers", contract, Store(), quarantine=held)
assert loader.rows == report.rows_loaded
figures = {"rows": report.rows_read, "bad": report.rows_quarantined}
print(json.dumps(figures | {"growth": peak() - before, "peak": peak()}))
"""


def write(path: Path, size: int) -> int:
    """About `size` bytes; one row in a thousand is bad. Returns the number of rows."""
    block = "".join(
        f"customer-{i:08d},2024-03-{i % 28 + 1:02d},{i % 997}.25,{('card', 'cash', 'transfer')[i % 3]},"
        f'{"x" if i % 1000 == 0 else i % 7},"a note, {i * 7919} of some words, that is quoted"\n'
        for i in range(10_000)
    )
    times = max(1, size // len(block))
    with path.open("w") as file:
        file.write("id,day,amount,kind,branches,note\n")
        for _ in range(times):
            file.write(block)
    return times * 10_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: peak memory from /proc")
def test_peak_memory_stays_far_below_the_file(tmp_path: Path) -> None:
    big, small = tmp_path / "big.csv", tmp_path / "small.csv"
    rows = write(big, TARGET)
    write(small, 1)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, big, small, tmp_path / "held.csv"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    file, growth, peak = (n / 1e6 for n in (big.stat().st_size, seen["growth"], seen["peak"]))
    print(f"file {file:.0f} MB: peak grew by {growth:.0f} MB to {peak:.0f} MB")
    assert (seen["rows"], seen["bad"]) == (rows, rows // 1000)
    assert seen["growth"] < big.stat().st_size / 3
