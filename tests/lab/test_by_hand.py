"""The pieces by hand, as the guide says: every command a real process, nothing but their output read."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sfumato.common.processes import free_ports
from sfumato.lab.samplebank import SampleBank, generate

pytestmark = pytest.mark.slow
BRANCHES = ("branch-1", "branch-2")


class Shell:
    """Types `sfumato …`; keeps what runs in the background and ends it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.background: list[subprocess.Popen[str]] = []

    def run(self, *arguments: str | Path, expect: int = 0) -> str:
        done = subprocess.run(
            self._line(arguments), capture_output=True, text=True, env=self._environment(), timeout=200
        )
        assert done.returncode == expect, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def start(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        log = (self.directory / f"{arguments[0]}-{len(self.background)}.log").open("w")
        process = subprocess.Popen(
            self._line(arguments), stdout=log, stderr=subprocess.STDOUT, text=True, env=self._environment()
        )
        self.background.append(process)
        return process

    def end(self) -> list[int]:
        for process in reversed(self.background):
            process.terminate()
        return [process.wait(30) for process in self.background]

    def _line(self, arguments: tuple[str | Path, ...]) -> list[str]:
        return [sys.executable, "-m", "sfumato.common.cli", *map(str, arguments)]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> SampleBank:
    return generate(tmp_path_factory.mktemp("bank"), branches=2, customers_per_branch=300)


def job_file(bank: SampleBank, path: Path) -> Path:
    text = re.sub(r"min_branches = \d+", "min_branches = 2", bank.job.read_text())
    path.write_text(re.sub(r"rounds = \d+", "rounds = 3", text))
    return path


def test_a_federation_by_hand(bank: SampleBank, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    coordinator = tmp_path / "coordinator"
    port, session = free_ports(2)
    try:
        shell.run("coordinator", "init", coordinator, "--port", str(port), "--session-port", str(session))
        passphrase = tmp_path / "passphrase"
        passphrase.touch(0o600)
        passphrase.write_text("four words of nonsense")
        secret = ("--passphrase-file", passphrase)
        for name in BRANCHES:
            home = tmp_path / name
            init = (
                "--name",
                name,
                "--invitation",
                coordinator / "invitation.json",
                "--contract",
                bank.contract,
            )
            shell.run("branch", "init", home, *init, *secret)
            said = shell.run("branch", "ingest", home, bank.branches[name], *secret)
            assert "customers" in said
            assert "not running" in shell.run("branch", "status", home)
        enrolments = [tmp_path / name / "enrolment.json" for name in BRANCHES]
        assert "next start" in shell.run("coordinator", "enrol", coordinator, *enrolments)

        shell.start("coordinator", "start", coordinator)
        for name in BRANCHES:
            shell.start("branch", "start", tmp_path / name, *secret)
        job = job_file(bank, tmp_path / "job.toml")
        submit = ("job", "submit", job, "--contract", bank.contract, "--coordinator", coordinator)
        assert re.search(r"hash [0-9a-f]{64}", shell.run(*submit, "--dry-run"))
        said = _until_up(shell, submit)
        run_id = re.search(r"as run (\d+)", said)
        assert run_id is not None

        result = tmp_path / "result.json"
        shell.run("job", "watch", run_id[1], "--coordinator", coordinator, "--json", result)
        summary = json.loads(result.read_text())
        assert summary["branches"] == 2 and summary["rounds"] == 3
        assert summary["auc_low"] <= summary["auc"] <= summary["auc_high"]
        assert "completed" in shell.run("job", "list", "--coordinator", coordinator)
        page = tmp_path / "report.html"
        shell.run("job", "report", run_id[1], "--coordinator", coordinator, "--out", page)
        assert "<svg" in page.read_text()

        status = shell.run("branch", "status", tmp_path / "branch-1")
        assert "running (process" in status and "closed" in status
        assert "verifies" in shell.run("branch", "ledger", tmp_path / "branch-1", "--verify")
        export = tmp_path / "ledger.jsonl"
        shell.run("branch", "ledger", tmp_path / "branch-1", "--export", export)
        lines = [json.loads(line) for line in export.read_text().splitlines()]
        kinds = [json.loads(line["entry"])["kind"] for line in lines if "entry" in line]
        assert kinds.count("charge") == 1 + 3 + 1 and kinds[-2:] == ["close", "cosign"]
        kept = ["--since", coordinator / "runs" / run_id[1] / "result.json"]
        known = ["--key", tmp_path / "branch-1" / "enrolment.json"]
        audited = shell.run("audit", "verify", export, *known, *kept)
        assert "the key that you gave" in audited and "that you kept" in audited
        listed = shell.run("branch", "ledger", tmp_path / "branch-1")
        assert "weights, round 3" in listed and "set aside" in listed

        stopped = shell.run(
            "branch", "ingest", tmp_path / "branch-1", bank.branches["branch-1"], *secret, expect=2
        )
        assert "stop the branch" in stopped.lower()
    finally:
        statuses = shell.end()
    assert statuses == [0, 0, 0], [p.read_text() for p in sorted(tmp_path.glob("*.log"))]


def _until_up(shell: Shell, submit: tuple[str | Path, ...]) -> str:
    """Submit once the coordinator answers; a person would try again too."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return shell.run(*submit)
        except AssertionError as e:
            assert "5\n" in str(e) or "does not answer" in str(e) or "reach" in str(e), e
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def test_wrong_passphrase_and_wrong_directory(bank: SampleBank, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    coordinator = tmp_path / "coordinator"
    port, session = free_ports(2)
    shell.run("coordinator", "init", coordinator, "--port", str(port), "--session-port", str(session))
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    for file, text in ((right, "four words of nonsense"), (wrong, "four other words here")):
        file.touch(0o600)
        file.write_text(text)
    home = tmp_path / "north"
    init = ("--name", "north", "--invitation", coordinator / "invitation.json", "--contract", bank.contract)
    shell.run("branch", "init", home, *init, "--passphrase-file", right)
    assert "is not empty" in shell.run("branch", "init", home, *init, "--passphrase-file", right, expect=2)
    assert "passphrase" in shell.run(
        "branch", "ingest", home, bank.branches["branch-1"], "--passphrase-file", wrong, expect=2
    )
    assert "no branch.toml" in shell.run("branch", "status", tmp_path, expect=2)
    right.chmod(0o644)
    assert "others may use it" in shell.run("branch", "start", home, "--passphrase-file", right, expect=3)
