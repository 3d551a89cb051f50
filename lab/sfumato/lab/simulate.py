"""`sfumato simulate`: a whole federation in one machine's memory, by Flower's simulation engine.

The code is the branches' and the coordinator's own: each partition is ingested into a sealed store of its own,
opened by a real vault with its own ledger and budget; only the network is missing. Everything lies in a
temporary directory and is removed at the end.
"""

import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from sfumato.client.features import customer_frame
from sfumato.client.home import BranchHome, signer
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.ingest.parquet_source import ParquetSource
from sfumato.client.ingest.sources import Source
from sfumato.client.pinning import pin
from sfumato.client.policy import Policy
from sfumato.client.vault.answer import Vault
from sfumato.client.vault.service import open_vault
from sfumato.client.vault.store import Store
from sfumato.common.contract import Contract, load_contract
from sfumato.common.enrolment import Members
from sfumato.common.errors import BadInput, SfumatoError
from sfumato.common.flower_tasks import FRAME_RECORD
from sfumato.common.job import AnyJob, load_job, sign_job
from sfumato.common.private_files import write_new
from sfumato.lab.partition import NumberedSource, branch_names, split
from sfumato.lab.samplebank import SampleBank
from sfumato.privacy.keys import EphemeralKeys, Keyring, PassphraseKeyProvider
from sfumato.privacy.ledger import Ledger
from sfumato.server.conversation import Report
from sfumato.server.exchange import MessageExchange
from sfumato.server.job_run import JobOutcome, JobRun
from sfumato.server.rounds import Rounds

RAY_SETTINGS = {
    "RAY_worker_niceness": "0",  # at ray's own 15 a busy machine starves the vaults until their answers are late
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns at every start
}
TABLE_FILES = (".csv", ".parquet")
BUDGET_FACTOR = 2.0  # the simulated branches' budget, in jobs: a second job would still be admitted


@dataclass(frozen=True)
class Simulation:
    """What came out, and what stays at the (simulated) branches for comparison."""

    outcome: JobOutcome
    pooled: pa.Table | None


def simulate(
    job_file: Path,
    contract_file: Path,
    data: Path,
    *,
    branch_column: str | None = None,
    branches: int = 4,
    min_branch_size: int = 1,
    row_number_as: str | None = None,
    report: Report = lambda _: None,
    keep_pooled: bool = False,
) -> Simulation:
    """Run one job over a folder of branches, or one file split into them. Raises BadInput, or JobFailed with the
    reason.

    `keep_pooled` also returns the pooled features in the clear, for a central ceiling to compare with.
    """
    contract = load_contract(contract_file)
    job = load_job(job_file)
    with simulated_branches(
        contract_file,
        data,
        branch_column=branch_column,
        branches=branches,
        min_branch_size=min_branch_size,
        row_number_as=row_number_as,
        at_least=job.federation.min_branches,
        budget_epsilon=BUDGET_FACTOR * job.privacy.target_epsilon,
        budget_delta=job.privacy.delta,
        report=report,
        keep_pooled=keep_pooled,
    ) as made:
        outcome = _run(made.homes, job, contract, made.key, report)
    return Simulation(outcome, made.pooled)


@dataclass(frozen=True)
class SimulatedBranches:
    """Branches' directories with their data in them, the key that signs jobs for them, and the pooled features."""

    homes: list[BranchHome]
    key: Ed25519PrivateKey
    pooled: pa.Table | None


@contextmanager
def simulated_branches(
    contract_file: Path,
    data: Path,
    *,
    branch_column: str | None = None,
    branches: int = 4,
    min_branch_size: int = 1,
    row_number_as: str | None = None,
    at_least: int = 1,
    budget_epsilon: float,
    budget_delta: float,
    report: Report = lambda _: None,
    keep_pooled: bool = False,
) -> Iterator[SimulatedBranches]:
    """Branches, each with a sealed store, a ledger and a budget of its own: of a folder with a folder a branch, or
    of one file that is split. All of it is removed at the end. Raises BadInput."""
    contract = load_contract(contract_file)
    if branches < 1:
        raise BadInput("--branches must be at least 1")
    if data.is_dir():
        if branch_column is not None or row_number_as is not None:
            raise BadInput(f"{data}: is a folder of branches, which is not split nor numbered")
        found = branch_folders(data, contract)
        if len(found) < at_least:
            raise BadInput(f"{data}: has {len(found)} branches, the job needs at least {at_least}")
        with _of_folders(contract_file, found, budget_epsilon, budget_delta, report, keep_pooled) as made:
            yield made
        return
    if len(contract.tables) > 1:
        raise BadInput(
            f"{contract_file}: declares {len(contract.tables)} tables, and {data} is one file",
            hint="Give a folder with a folder for each branch, and in it a file for each table.",
        )
    source: Source = open_source(data)
    if row_number_as is not None:
        source = NumberedSource(source, row_number_as)
    with tempfile.TemporaryDirectory(prefix="sfumato-simulate-") as directory:
        base = Path(directory)
        pooled = _check_whole(source, contract, base, keep_pooled)
        parts = split(
            source,
            base / "parts",
            column=branch_column,
            branches=branches,
            min_branch_size=min_branch_size,
        )
        report({"event": "split", "branches": len(parts)})
        if len(parts) < at_least:
            raise BadInput(f"{data}: makes {len(parts)} branches, the job needs at least {at_least}")
        key = Ed25519PrivateKey.generate()
        genesis = _genesis(contract, budget_epsilon, budget_delta)
        homes = []
        for number, (name, part) in enumerate(parts.items()):
            tables = {contract.customers: ParquetSource(part)}
            homes.append(
                _make_branch(base / f"branch-{number:04d}", name, tables, contract_file, genesis, key)
            )
            part.unlink()
            report({"event": "ingested", "branch": name, "done": number + 1, "of": len(parts)})
        _pin_each_other(homes)
        yield SimulatedBranches(homes, key, pooled)


def branch_folders(data: Path, contract: Contract) -> dict[str, dict[str, Path]]:
    """A folder of branches: by branch and table the file, TABLE.csv or TABLE.parquet. Other files are left alone.
    A folder's name becomes one that a branch may have.

    Raises BadInput where a branch lacks a table or has two files for one.
    """
    found: dict[str, dict[str, Path]] = {}
    for folder in sorted(p for p in data.iterdir() if p.is_dir()):
        found[folder.name] = {}
        for table in contract.tables:
            files = [p for p in sorted(folder.iterdir()) if p.stem == table.name and p.suffix in TABLE_FILES]
            if len(files) != 1:
                raise BadInput(
                    f"{folder}: {'no' if not files else 'more than one'} file for table {table.name!r}",
                    hint=f"It takes one of {', '.join(table.name + s for s in TABLE_FILES)}.",
                )
            found[folder.name][table.name] = files[0]
    if not found:
        raise BadInput(f"{data}: has no folder of a branch", hint="It takes a folder for each branch.")
    return dict(zip(branch_names(list(found)), found.values(), strict=True))


@contextmanager
def bank_branches(
    bank: SampleBank, *, budget_epsilon: float, budget_delta: float
) -> Iterator[SimulatedBranches]:
    """The same for a sample bank."""
    found = branch_folders(bank.contract.parent, load_contract(bank.contract))
    with _of_folders(bank.contract, found, budget_epsilon, budget_delta, lambda _: None, False) as made:
        yield made


@contextmanager
def _of_folders(
    contract_file: Path,
    found: Mapping[str, Mapping[str, Path]],
    budget_epsilon: float,
    budget_delta: float,
    report: Report,
    keep_pooled: bool,
) -> Iterator[SimulatedBranches]:
    contract = load_contract(contract_file)
    key = Ed25519PrivateKey.generate()
    genesis = _genesis(contract, budget_epsilon, budget_delta)
    with tempfile.TemporaryDirectory(prefix="sfumato-simulate-") as directory:
        homes, frames = [], []
        report({"event": "split", "branches": len(found)})
        for number, (name, files) in enumerate(found.items(), 1):
            tables = {table: open_source(file) for table, file in files.items()}
            homes.append(_make_branch(Path(directory) / name, name, tables, contract_file, genesis, key))
            if keep_pooled:
                frames.append(_features(homes[-1], contract))
            report({"event": "ingested", "branch": name, "done": number, "of": len(found)})
        _pin_each_other(homes)
        yield SimulatedBranches(homes, key, pa.concat_tables(frames) if keep_pooled else None)


def _features(home: BranchHome, contract: Contract) -> pa.Table:
    """The customers in the clear, for a ceiling to compare with."""
    keyring = Keyring.open(home.keyring, (home.path / "passphrase").read_text())
    store = Store.open(home.store, contract, keyring, read_only=True)
    try:
        return customer_frame(store, contract)
    finally:
        store.close()


def _genesis(contract: Contract, budget_epsilon: float, budget_delta: float) -> dict[str, Any]:
    return {
        "budget_epsilon": budget_epsilon,
        "budget_delta": budget_delta,
        "contract": contract.hash,
        "unit": contract.unit,
    }


def _pin_each_other(homes: list[BranchHome]) -> None:
    members = Members.of({home.name: Ledger.read(home.ledger).public_key for home in homes})
    for home in homes:
        pin(home, members)


def _check_whole(source: Source, contract: Contract, base: Path, keep: bool) -> pa.Table | None:
    """Check every row once, under its own number, as one branch would; the scratch store's keys die here."""
    store = Store.create(base / "whole.duckdb", contract, EphemeralKeys())
    try:
        ingest(source, contract.customers, contract, store)
        return customer_frame(store, contract) if keep else None
    finally:
        store.close()
        (base / "whole.duckdb").unlink()


def _make_branch(
    path: Path,
    name: str,
    tables: Mapping[str, Source],
    contract_file: Path,
    genesis: dict[str, Any],
    key: Ed25519PrivateKey,
) -> BranchHome:
    """A branch's directory as `branch init` and `branch ingest` make it, less the network's half."""
    home = BranchHome(path)
    home.vault.mkdir(mode=0o700, parents=True)
    (home.vault / "job-keys").mkdir(mode=0o700)
    passphrase = secrets.token_urlsafe(32)
    # A random 256-bit passphrase needs no stretching.
    provider = PassphraseKeyProvider(passphrase, iterations=1, lanes=1, memory_kib=8 * 1024)
    keyring = Keyring.create(home.keyring, provider)
    contract = load_contract(contract_file)
    write_new(home.vault / "contract.toml", contract_file.read_bytes())
    policy = Policy(max_epsilon_per_job=genesis["budget_epsilon"], min_colluders=0)
    write_new(home.vault / "policy.toml", policy.to_toml().encode())
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    write_new(home.vault / "job-keys" / "lab.pem", public)
    write_new(path / "branch.toml", _toml_name(name))
    write_new(path / "passphrase", passphrase.encode())
    Ledger.create(home.ledger, branch=name, signer=signer(keyring), genesis=genesis).close()
    store = Store.create(home.store, contract, keyring)
    try:
        for table, source in tables.items():
            ingest(source, table, contract, store)
    finally:
        store.close()
    return home


def _toml_name(name: str) -> bytes:
    import tomli_w

    return tomli_w.dumps({"name": name}).encode()


@cache
def _vault(path: str) -> Vault:
    torch.set_num_threads(1)
    home = BranchHome(Path(path))
    return open_vault(home, (home.path / "passphrase").read_text())


def _client_app(homes: list[BranchHome]) -> ClientApp:
    paths = [str(h.path) for h in homes]
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        vault = _vault(paths[int(context.node_config["partition-id"])])
        frame = message.content.config_records[FRAME_RECORD]["frame"]
        assert isinstance(frame, bytes)
        answer = ConfigRecord({"frame": vault.answer(frame)})
        return Message(RecordDict({FRAME_RECORD: answer}), reply_to=message)

    return app


def _run(
    homes: list[BranchHome],
    job: AnyJob,
    contract: Contract,
    key: Ed25519PrivateKey,
    report: Report,
) -> JobOutcome:
    from flwr.simulation import run_simulation

    for name, value in RAY_SETTINGS.items():
        os.environ.setdefault(name, value)
    signed = sign_job(job, contract, key, valid_for=timedelta(hours=24))
    finished: list[JobOutcome] = []
    failed: list[Exception] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        exchange = MessageExchange(grid)
        try:
            finished.append(JobRun(Rounds(exchange, signed, report)).run())
        except Exception as e:
            failed.append(e)
        finally:
            exchange.close()

    with ExitStack() as stack:
        stack.callback(_quiet_logs())
        run_simulation(
            server_app=server,
            client_app=_client_app(homes),
            num_supernodes=len(homes),
            backend_config={
                "init_args": {
                    # A job's keys live in one vault's memory, so each vault must live in one process.
                    "num_cpus": 1 if job.privacy.mode == "secure-sum" else os.cpu_count() or 1,
                    "include_dashboard": False,
                    "log_to_driver": False,
                    "logging_level": "ERROR",
                },
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            },
        )
    if failed:
        raise (
            failed[0] if isinstance(failed[0], SfumatoError) else RuntimeError("the job failed")
        ) from failed[0]
    return finished[0]


def _quiet_logs() -> Callable[[], Any]:
    """Flower and ray say at ERROR what matters here; the rest would tear the progress display."""
    loggers = [logging.getLogger(name) for name in ("flwr", "ray")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)

    def restore() -> None:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

    return restore
