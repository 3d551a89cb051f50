"""A whole federation on loopback: a coordinator and its branches, each of two real processes, brought up and down.

The demo and the tests of the whole stand on it. Everything goes through the same commands and functions as on
real machines; only the passphrases are made up and kept in files beside the branches.
"""

import os
import secrets
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sfumato.client.home import BranchHome
from sfumato.client.ingest.load import ingest, open_source
from sfumato.client.pinning import pin
from sfumato.client.policy import Policy
from sfumato.client.setup import init_branch
from sfumato.client.vault.store import Store
from sfumato.common.contract import Contract, load_contract
from sfumato.common.errors import LedgerBroken, Unavailable
from sfumato.common.job import AnyJob, sign_job
from sfumato.common.messages import LedgerHead
from sfumato.common.private_files import write_new
from sfumato.common.processes import free_ports, python, quiet_environment, start_child, stop_group
from sfumato.privacy.ledger import Ledger
from sfumato.server.control import ControlClient, register_branches
from sfumato.server.coordinator import Coordinator
from sfumato.server.home import CoordinatorHome
from sfumato.server.run_files import read_result, run_directory

START_SECONDS = 120.0
Process = subprocess.Popen[bytes]


class Federation:
    """Coordinator and branches under `path`, for one contract. Use in a `with` block, from the main thread.

    `say` hears each step. Branches are started while the next one is still being made.
    """

    def __init__(
        self,
        path: Path,
        contract: Path,
        *,
        budget_epsilon: float = 8.0,
        policy: Policy | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.path = path
        self.contract_file = contract
        self.contract: Contract = load_contract(contract)
        self.branches: dict[str, BranchHome] = {}
        self.processes: dict[str, Process] = {}
        self._budget = budget_epsilon
        self._policy = policy or Policy()
        self._say = say
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            port, session_port = free_ports(2)
            self.home = CoordinatorHome.init(
                self.path / "coordinator", host="127.0.0.1", port=port, session_port=session_port
            )
            self.coordinator = self._stack.enter_context(Coordinator(self.home))
            self.control = ControlClient.of(self.home)
            self._stack.callback(self.control.close)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends every process; what each branch needs to say good-bye, all at once."""
        for process in self.processes.values():
            process.terminate()
        for name in list(self.processes):
            self.stop_branch(name)
        self._stack.close()

    # --- branches ----------------------------------------------------------------------------------------

    def add_branch(
        self,
        name: str,
        folder: Path,
        *,
        start: bool = True,
        vault_user: str | None = None,
        courier_user: str | None = None,
    ) -> BranchHome:
        """`branch init`, `branch ingest` of each table's file in `folder`, `coordinator enrol`, `branch pin` at
        every branch, `branch start`."""
        passphrase = secrets.token_urlsafe(24)
        branch = init_branch(
            self.path / name,
            name=name,
            invitation=self.home.path / "invitation.json",
            contract=self.contract_file,
            passphrase=passphrase,
            budget_epsilon=self._budget,
            budget_delta=1e-5,
            policy=self._policy,
            vault_user=vault_user,
            courier_user=courier_user,
        )
        write_new(branch.path / "passphrase", passphrase.encode())
        self.home.enrol(branch.path / "enrolment.json")
        register_branches(self.home, self.control)
        ingest_all(branch, folder, passphrase)
        self.branches[name] = branch
        self._pin_everywhere()
        if start:
            self.start_branch(name)
        return branch

    def _pin_everywhere(self) -> None:
        members = self.home.members()
        for branch in self.branches.values():
            pin(branch, members)

    def start_branch(self, name: str) -> Process:
        """`sfumato branch start`, as an operator would type it."""
        branch = self.branches[name]
        passphrase = str(branch.path / "passphrase")
        command = ["-m", "sfumato.common.cli", "branch", "start", str(branch.path)]
        self.processes[name] = start_child(
            python(*command, "--passphrase-file", passphrase),
            environment=quiet_environment(os.environ, branch.courier / "flwr"),
            log=branch.path / "start.log",
        )
        return self.processes[name]

    def stop_branch(self, name: str) -> None:
        stop_group(self.processes.pop(name), grace=15.0)

    def await_branches(self, *, timeout: float = START_SECONDS) -> None:
        """Wait until every started branch is online. Raises Unavailable, naming those that are not."""
        deadline = time.monotonic() + timeout
        while missing := self._missing():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise Unavailable(
                        f"{name} ended with status {process.returncode}", hint=_last_line(self.path / name)
                    )
            if time.monotonic() > deadline:
                raise Unavailable(f"not up within {timeout:.0f} s: {', '.join(missing)}")
            time.sleep(0.2)

    def _missing(self) -> list[str]:
        online = {n.node_id for n in self.control.nodes() if n.status == "online"}
        return [b.name for b in self.home.branches() if b.name in self.processes and b.node_id not in online]

    # --- jobs --------------------------------------------------------------------------------------------

    def submit(self, job: AnyJob, *, valid_for: timedelta = timedelta(hours=1)) -> int:
        """`sfumato job submit`: sign and start. Returns the run's number."""
        return self.control.submit(sign_job(job, self.contract, self.home.job_key(), valid_for=valid_for))

    def result(self, run_id: int) -> dict[str, Any]:
        """What the run left in its directory (result.json)."""
        return read_result(run_directory(self.home, run_id))

    def ledgers_verify(self, result: dict[str, Any]) -> None:
        """Recompute every chain; hold each against the signed head that the coordinator kept. Raises LedgerBroken."""
        kept = {b["name"]: b["ledger_head"] for b in result["per_branch"]}
        for name, branch in self.branches.items():
            if kept.get(name) is None:
                raise LedgerBroken(f"{name}: the coordinator kept no head of its ledger")
            Ledger.read(branch.ledger).verify(LedgerHead.model_validate(kept[name]))


def ingest_all(branch: BranchHome, folder: Path, passphrase: str) -> None:
    """`branch ingest` of each table's file in `folder`. Raises BadInput."""
    keyring = branch.open_keyring(passphrase)
    ledger = branch.open_ledger(keyring)
    contract = branch.contract()
    store = Store.open(branch.store, contract, keyring)
    try:
        for table in contract.tables:
            file = next(p for p in sorted(folder.iterdir()) if p.stem == table.name)
            ingest(open_source(file), table.name, contract, store)
            ledger.append("ingest", {"table": table.name, "mode": "create"})
    finally:
        store.close()
        branch.restore_owner()


def _last_line(branch: Path) -> str:
    log = branch / "start.log"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else ""
