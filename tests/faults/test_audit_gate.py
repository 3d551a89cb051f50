"""Planted defects in whole jobs over real vaults: each contradicts the claim, and then nothing is published.

The defects themselves, test by test, are in tests/privacy/test_audit_defects.py. Correct code is contradicted once
in a million audits.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from sfumato.client.home import BranchHome
from sfumato.client.pinning import pin
from sfumato.client.policy import Policy
from sfumato.client.setup import init_branch
from sfumato.client.vault.answer import Vault
from sfumato.client.vault.service import open_vault
from sfumato.common.contract import load_contract
from sfumato.common.fixed_point import GRID
from sfumato.common.job import AnalysisJob, ChurnNetJob, load_job, sign_job
from sfumato.lab.federation import ingest_all
from sfumato.lab.in_process import InProcessExchange
from sfumato.lab.samplebank import SampleBank, generate
from sfumato.privacy import dpsgd
from sfumato.privacy.cli import CONTRADICTED, audit
from sfumato.privacy.mechanisms import SumNoise
from sfumato.privacy.noise import SecureRandom
from sfumato.server.home import CoordinatorHome
from sfumato.server.job_run import ClaimContradicted, JobOutcome
from sfumato.server.results import run_job
from sfumato.server.run_files import read_result

pytestmark = pytest.mark.slow

PASSPHRASE = "correct horse battery staple"
SILENT = "branch-3"
NOT_WRONG = ("consistent", "flagged")  # by chance some test is flagged in 2 of 100 audits of correct code
Plant = Callable[[pytest.MonkeyPatch, dict[str, Vault]], None]


@dataclass
class House:
    """A coordinator's directory and four branches of the sample bank, their vaults in this process."""

    home: CoordinatorHome
    bank: SampleBank
    vaults: dict[str, Vault]

    def run(self, job: ChurnNetJob | AnalysisJob) -> tuple[Path, JobOutcome | ClaimContradicted]:
        """`sfumato job submit` and the coordinator's run of it, less the network."""
        signed = sign_job(
            job, load_contract(self.bank.contract), self.home.job_key(), valid_for=timedelta(hours=1)
        )
        enrolled = dict(enumerate(self.home.branches(), 1))
        exchange = InProcessExchange({n: self.vaults[b.name].answer for n, b in enrolled.items()})
        directory = self.home.directory("runs") / str(len(list((self.home.path / "runs").iterdir())) + 1)
        directory.mkdir(mode=0o700)
        ledger = self.home.open_ledger()
        try:
            outcome: JobOutcome | ClaimContradicted = run_job(
                exchange,
                signed,
                branches=enrolled,
                out_dir=directory,
                report=lambda _: None,
                ledger=ledger,
                cosigned=self.home.cosigned,
            )
        except ClaimContradicted as e:
            outcome = e
        finally:
            ledger.close()
        return directory, outcome

    def end(self, directory: Path) -> dict[str, Any]:
        """What the coordinator's ledger says of this run's end."""
        ledger = self.home.open_ledger()
        try:
            (entry,) = [e for e in ledger.entries("end") if e.body["run"] == directory.name]
            return entry.body
        finally:
            ledger.close()


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("gate")
    bank = generate(path / "bank", branches=4, customers_per_branch=60)
    home = CoordinatorHome.init(path / "coordinator", host="127.0.0.1", port=9092, session_port=9093)
    branches: dict[str, BranchHome] = {}
    for name, folder in bank.branches.items():
        branches[name] = init_branch(
            path / name,
            name=name,
            invitation=home.path / "invitation.json",
            contract=bank.contract,
            passphrase=PASSPHRASE,
            budget_epsilon=1000.0,
            budget_delta=1e-5,
            policy=Policy(),
        )
        home.enrol(branches[name].path / "enrolment.json")
        ingest_all(branches[name], folder, PASSPHRASE)
    for branch in branches.values():
        pin(branch, home.members())
    return House(home, bank, {name: open_vault(branch, PASSPHRASE) for name, branch in branches.items()})


def secure_job(house: House) -> ChurnNetJob:
    """The demo's, sampled so that sampling can go wrong; fewer rounds, and more empty slots for it."""
    return changed(load_job(house.bank.secure_job), rounds=10, sample_rate=0.1)


def local_job(house: House) -> ChurnNetJob:
    """The demo's of local DP-SGD, likewise."""
    return changed(load_job(house.bank.job), rounds=5, local_steps=8)


def changed(job: ChurnNetJob | AnalysisJob, **training: Any) -> ChurnNetJob:
    assert isinstance(job, ChurnNetJob)
    audited = job.audit.model_copy(update={"empty_slots": 512})
    return job.model_copy(
        update={"training": job.training.model_copy(update=training), "audit": audited}, deep=True
    )


# --- the defects ----------------------------------------------------------------------------------------------


class Muted(SecureRandom):
    """A source that gives zeros for noise, and honest coins and samples."""

    def discrete_gaussian(self, size: int, variance: int) -> np.ndarray:
        return np.zeros(size, dtype=np.int64)

    def gaussian(self, size: int, std: float) -> np.ndarray:
        return np.zeros(size)


def mute(patch: pytest.MonkeyPatch, vault: Vault) -> None:
    """No noise of its own any more, in sums and in training."""
    for noisy in (vault, vault._training):
        patch.setattr(noisy, "_rng", Muted())


def noise_forgotten(patch: pytest.MonkeyPatch, vaults: dict[str, Vault]) -> None:
    for vault in vaults.values():
        mute(patch, vault)


def one_branch_silent(patch: pytest.MonkeyPatch, vaults: dict[str, Vault]) -> None:
    mute(patch, vaults[SILENT])


def noise_over_n(patch: pytest.MonkeyPatch, vaults: dict[str, Vault]) -> None:
    """Each branch has 1/N of the std, not 1/sqrt(N). The coordinator's code, in this process too, is correct."""
    right = SumNoise.share_variance
    patch.setattr(
        SumNoise,
        "total_std",
        lambda self, s, norm: math.sqrt(self.members * right(self, s)) * (norm / GRID),
    )
    patch.setattr(SumNoise, "share_variance", lambda self, s: right(self, s) // self.members)


def clip_forgotten(patch: pytest.MonkeyPatch, vaults: dict[str, Vault]) -> None:
    patch.setattr(dpsgd, "clip_factors", lambda norm, bound: torch.ones_like(norm))


def sampling_not_accounted(patch: pytest.MonkeyPatch, vaults: dict[str, Vault]) -> None:
    patch.setattr(SecureRandom, "poisson_sample", lambda self, n, rate: np.arange(n))


def half_the_noise(patch: pytest.MonkeyPatch, vaults: dict[str, Vault]) -> None:
    right = SecureRandom.gaussian
    patch.setattr(SecureRandom, "gaussian", lambda self, size, std: right(self, size, std / 2))


# --- the gate -------------------------------------------------------------------------------------------------


def privacy_of(directory: Path, *options: str) -> tuple[int, str]:
    """`sfumato audit privacy`: exit code and output."""
    done = CliRunner().invoke(audit, ["privacy", str(directory), *options])
    return done.exit_code, done.output


def assert_published(house: House, directory: Path, outcome: object, product: str) -> None:
    assert isinstance(outcome, JobOutcome), outcome
    result = read_result(directory)
    assert (result["state"], result["audit"] in NOT_WRONG) == ("finished", True), result
    assert {product, "audit.json", "checkpoint"} <= {f.name for f in directory.iterdir()}
    end = house.end(directory)
    assert (end["state"], end["audit"]) == ("finished", result["audit"])
    assert {product, "audit.json"} <= set(end["files"])
    code, text = privacy_of(directory)
    assert code == 0 and f"Verdict: {result['audit']}" in text, text


def assert_withheld(house: House, directory: Path, outcome: object, tests: set[str]) -> list[dict[str, Any]]:
    """Returns the contradicted findings."""
    assert isinstance(outcome, ClaimContradicted), outcome
    result = read_result(directory)
    assert result["state"] == "failed"
    assert result["reason"].startswith("the audit contradicts the claim, and nothing is published")
    assert result["open_at"] == []
    assert {f.name for f in directory.iterdir()} == {"audit.json", "result.json", "checkpoint"}
    end = house.end(directory)
    assert (end["state"], end["audit"]) == ("failed", "contradicted")
    assert set(end["files"]) == {"audit.json", "result.json"}
    code, text = privacy_of(directory)
    assert code == CONTRADICTED and "Verdict: contradicted" in text, text
    code, text = privacy_of(directory, "--json")
    found = [f for f in json.loads(text)["findings"] if f["outcome"] == "contradicted"]
    assert code == CONTRADICTED and tests <= {f["test"] for f in found}, found
    return found


def test_correct_secure_sums_are_published(house: House) -> None:
    assert_published(house, *house.run(secure_job(house)), "model.safetensors")


@pytest.mark.parametrize(
    ("plant", "tests"),
    [
        (noise_forgotten, {"noise"}),
        (noise_over_n, {"noise"}),
        (one_branch_silent, {"noise"}),
        (clip_forgotten, {"canaries", "rate"}),
        (sampling_not_accounted, {"canaries", "rate"}),
    ],
)
def test_a_defect_in_secure_sums_publishes_nothing(
    house: House, plant: Plant, tests: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, house.vaults)
    found = assert_withheld(house, *house.run(secure_job(house)), tests)
    assert "step" in {f["what"] for f in found}


def test_correct_local_training_is_published(house: House) -> None:
    assert_published(house, *house.run(local_job(house)), "model.safetensors")


@pytest.mark.parametrize(
    ("plant", "tests"),
    [
        (noise_forgotten, {"noise"}),
        (half_the_noise, {"noise"}),
        (clip_forgotten, {"canaries", "rate"}),
        (sampling_not_accounted, {"canaries", "rate"}),
        (one_branch_silent, {"noise"}),
    ],
)
def test_a_defect_in_local_training_publishes_nothing_and_names_the_branch(
    house: House, plant: Plant, tests: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, house.vaults)
    found = assert_withheld(house, *house.run(local_job(house)), tests)
    wrong = [SILENT] if plant is one_branch_silent else sorted(house.vaults)
    assert {f["what"] for f in found} == {f"weights of {name}" for name in wrong}


@pytest.mark.parametrize("mode", ["local", "secure-sum"])
def test_of_an_analysis_too(house: House, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round: it takes many empty slots to see one of four shares missing. Where each branch adds all of the
    noise, the branch is seen by name."""
    job = load_job(house.bank.profile)
    privacy = job.privacy.model_copy(update={"mode": mode})
    slots = job.audit.model_copy(update={"empty_slots": 4096})
    job = job.model_copy(update={"privacy": privacy, "audit": slots})
    assert isinstance(job, AnalysisJob)
    assert_published(house, *house.run(job), "answer.json")
    one_branch_silent(monkeypatch, house.vaults)
    found = assert_withheld(house, *house.run(job), {"noise"})
    assert {f["what"] for f in found} == {"round-0" if mode == "secure-sum" else f"round-0 of {SILENT}"}
