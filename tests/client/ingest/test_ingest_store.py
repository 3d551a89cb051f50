"""Ingest into the real sealed store: what was promised to the Protocol holds there too."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfumato.client.ingest.findings import LoadRefused
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.vault.store import Store
from sfumato.common.contract import Contract
from sfumato.common.errors import BadInput
from sfumato.privacy.keys import Keyring, PassphraseKeyProvider

PASSPHRASE = "correct horse battery staple"
HEADER = "id,name,iban,age,visits,balance,rate,city,product,member,since,seen,note,churned"
FEW = "select id, age, city from customers order by age"


def row(id_: str, age: object = 41) -> str:
    return f"{id_},Ada Zq{id_},CH93,{age},3,2000,0.5,Basel,boat,1,2024-01-02,2024-01-02T03:04:05,fine,1"


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join([HEADER, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    folder = tmp_path / "vault"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def sealed(vault: Path, contract: Contract) -> Iterator[Store]:
    provider = PassphraseKeyProvider(PASSPHRASE, iterations=1, lanes=1, memory_kib=8192)
    store = Store.create(vault / "store.duckdb", contract, Keyring.create(vault / "keyring.json", provider))
    yield store
    store.close()


def test_bad_rows_and_duplicates_aside_the_others_sealed(
    sealed: Store, contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfumato.client.ingest.csv_source.BATCH_ROWS", 3)
    rows = [row(f"c{i}", 20 + i) for i in range(20)]
    rows[4], rows[9], rows[15] = row("c4", "old"), row("c1", 99), "cut"
    path = write(tmp_path / "f.csv", *rows)
    report = ingest(open_source(path), "customers", contract, sealed, quarantine=tmp_path / "q.csv")
    assert (report.rows_loaded, report.rows_quarantined) == (17, 3)
    table = sealed.query(FEW)
    assert table.column("age").to_pylist() == [20 + i for i in range(20) if i not in (4, 9, 15)]
    assert set(sealed.query("select product, balance from customers").to_pylist()[0].values()) == {
        "other",
        1000.5,
    }
    opened = sealed.reveal("customers", "name", ["c1", "c4", "c19"], audit=lambda *_: None)
    assert opened == {"c1": ["Ada Zqc1"], "c4": [], "c19": ["Ada Zqc19"]}
    held = (tmp_path / "q.csv").read_text()
    assert [line.split(",")[0] for line in held.splitlines()[1:]] == ['"5"', '"16"', '"10"']
    assert '"c1","Ada Zqc1","CH93","99"' in held


def test_refused_load_leaves_what_was_there(sealed: Store, contract: Contract, tmp_path: Path) -> None:
    good, bad = (
        write(tmp_path / "1.csv", row("a"), row("b")),
        write(tmp_path / "2.csv", row("c"), row("b"), row("d", 5)),
    )
    ingest(open_source(good), "customers", contract, sealed)
    before = sealed.query(FEW)
    for mode in ("append", "replace"):
        with pytest.raises(LoadRefused) as caught:
            ingest(open_source(bad), "customers", contract, sealed, mode=mode)  # type: ignore[arg-type]
        kinds = {f.kind.value: f.rows for f in caught.value.report.findings}
        assert kinds["out-of-domain"] == (3,)
        assert kinds.get("duplicate-customer") == ((2,) if mode == "append" else None)
        assert sealed.query(FEW).equals(before)
    with pytest.raises(BadInput, match="loaded already"):
        ingest(open_source(good), "customers", contract, sealed, quarantine=tmp_path / "q.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.csv", "2.csv", "vault"]


SCRIPT = """
import sys, time
from pathlib import Path
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.vault.store import Store
from sfumato.common.contract import Contract
from sfumato.privacy.keys import Keyring
vault, path, held, contract = map(Path, sys.argv[1:5])
contract = Contract.model_validate_json(contract.read_text())
store = Store.open(vault / "store.duckdb", contract, Keyring.open(vault / "keyring.json", sys.argv[5]))
def slowly(rows):
    print(rows, flush=True)
    time.sleep(30 if rows > 30_000 else 0)
ingest(open_source(path), "customers", contract, store, quarantine=held, progress=slowly)
"""


def _ended(process: "subprocess.Popen[str]", how: signal.Signals) -> int:
    """Ctrl-C again if nothing happens, as a person would: one may land in a place that cannot be interrupted."""
    for _ in range(8):
        process.send_signal(how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(5)
    raise AssertionError(f"still running after {how.name}")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_load_ended_from_outside_leaves_nothing(
    how: signal.Signals, sealed: Store, vault: Path, contract: Contract, tmp_path: Path
) -> None:
    sealed.close()
    path, held = tmp_path / "f.csv", tmp_path / "out" / "held.csv"
    held.parent.mkdir()
    write(path, *(row(f"c{i}", "x" if i % 7 == 0 else 30) for i in range(60_000)))
    (tmp_path / "contract.json").write_text(contract.model_dump_json())
    command = [sys.executable, "-c", SCRIPT, vault, path, held, tmp_path / "contract.json", PASSPHRASE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        read = 0
        while read <= 30_000:
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            read = int(line)
        time.sleep(0.05)
        assert _ended(process, how) != 0
    nameless = hasattr(os, "O_TMPFILE")
    assert list(held.parent.iterdir()) == [] or (how == signal.SIGKILL and not nameless)
    keyring = Keyring.open(vault / "keyring.json", PASSPHRASE)
    store = Store.open(vault / "store.duckdb", contract, keyring)
    try:
        assert store.tables() == {}
        assert ingest(open_source(path), "customers", contract, store, quarantine=held).rows_loaded == 51_428
    finally:
        store.close()
