"""Whole jobs of secure sums over a real federation: run, witnessed, audited; and hurt in the middle."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sfumato.client.cli import app as branch_cli
from sfumato.common.enrolment import ed25519_public_key
from sfumato.common.job import AnalysisJob, ChurnNetJob, load_job
from sfumato.common.notes import SignedNote, branch_origin, coordinator_origin, verify_checkpoint
from sfumato.lab.samplebank import SampleBank
from sfumato.privacy.cli import audit
from sfumato.privacy.ledger import Ledger
from sfumato.server.cli import coordinator as coordinator_cli
from sfumato.server.run_files import read_answer, run_directory

pytestmark = pytest.mark.slow

VICTIM = "branch-2"


def net(bank: SampleBank, name: str, *, rounds: int, travel: str = "session") -> ChurnNetJob:
    """The demo's, with less of it."""
    job = load_job(bank.secure_job)
    assert isinstance(job, ChurnNetJob)
    return job.model_copy(
        update={
            "name": name,
            "privacy": job.privacy.model_copy(update={"target_epsilon": 0.1}),
            "training": job.training.model_copy(update={"rounds": rounds}),
            "federation": job.federation.model_copy(
                update={"travel": travel, "round_timeout_seconds": 30.0, "repeats": 2}
            ),
        }
    )


def portrait(bank: SampleBank, name: str, *, travel: str) -> AnalysisJob:
    job = load_job(bank.profile)
    assert isinstance(job, AnalysisJob)
    return job.model_copy(
        update={
            "name": name,
            "privacy": job.privacy.model_copy(update={"target_epsilon": 0.1}),
            "federation": job.federation.model_copy(update={"travel": travel}),
        }
    )


def done(cli: Any, *arguments: object) -> str:
    run = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert run.exit_code == 0, run.output
    return run.output


def assert_whole(small: Any, run_id: int, sums: int) -> dict[str, Any]:
    """Finished with all three branches, audited, and its checkpoint signed by all of them."""
    state, result = small.ended(run_id)
    assert (state.sub_status, result["state"]) == ("completed", "finished"), (state.details, result)
    assert (result["mode"], result["sums"]) == ("secure-sum", sums)
    assert small.events(run_id)[-1]["cosigned_by"] == 3
    assert result["audit"] in ("consistent", "flagged")
    taken = {b["name"]: (b["rounds_answered"], b["rounds_missed"]) for b in result["per_branch"]}
    assert taken == dict.fromkeys(sorted(small.whole.branches), (sums, 0))
    assert {b["customers"] for b in result["per_branch"]} == {0}, "only the total is known"
    for name in small.whole.branches:
        kinds = [what for job_id, _, what, *_ in small.answers(name) if job_id == result["job_id"]]
        assert kinds == ["share"] * sums
    directory = run_directory(small.whole.home, run_id)
    note = (directory / "checkpoint").read_text()
    home = small.whole.home
    key = ed25519_public_key(home.invitation.ledger_public_key)
    verify_checkpoint(note, coordinator_origin(key), key)
    for branch in home.branches():
        own = ed25519_public_key(branch.enrolment.ledger_public_key)
        SignedNote.parse(note).cosigned_at(branch_origin(branch.name), own)
    small.assert_nothing_uncharged(result)
    small.whole.ledgers_verify(result)
    said = done(audit, "privacy", run_id, "--coordinator", home.path)
    assert f"Verdict: {result['audit']}" in said
    return result


def test_a_net_is_trained_and_witnessed(small: Any, bank: SampleBank) -> None:
    run_id = small.whole.submit(net(bank, "net-by-session", rounds=3))
    assert_whole(small, run_id, sums=5)
    assert (run_directory(small.whole.home, run_id) / "model.safetensors").is_file()


def test_a_portrait_is_drawn_by_messages_and_witnessed(small: Any, bank: SampleBank) -> None:
    run_id = small.whole.submit(portrait(bank, "portrait-by-messages", travel="messages"))
    assert_whole(small, run_id, sums=1)
    answer = read_answer(run_directory(small.whole.home, run_id))
    assert answer is not None and answer["customers"]["value"] > 0


def test_every_ledger_verifies_offline(small: Any, bank: SampleBank, tmp_path: Path) -> None:
    """Against the result that the risk team holds, the keys of the enrolment, and each other's signatures."""
    whole = small.whole
    before = tmp_path / "before.jsonl"
    done(coordinator_cli, "ledger", whole.home.path, "--export", before)
    run_id = whole.submit(portrait(bank, "portrait-to-verify", travel="session"))
    assert_whole(small, run_id, sums=1)
    result = run_directory(whole.home, run_id) / "result.json"
    enrolments = {name: home.path / "enrolment.json" for name, home in whole.branches.items()}
    for name, home in whole.branches.items():
        export = tmp_path / f"{name}.jsonl"
        done(branch_cli, "ledger", home.path, "--export", export)
        said = done(audit, "verify", export, "--since", result, "--key", enrolments[name])
        assert f"The ledger of {branch_origin(name)} is whole" in said
        assert "That is the key that you gave." in said and "that you kept" in said
    export = tmp_path / "coordinator.jsonl"
    done(coordinator_cli, "ledger", whole.home.path, "--export", export)
    cosigners = [part for file in enrolments.values() for part in ("--cosigner", file)]
    key = whole.home.path / "invitation.json"
    said = done(audit, "verify", export, "--since", before, "--key", key, *cosigners)
    for name in whole.branches:
        assert f"by {branch_origin(name)}," in said
    assert "not checked" not in said


@pytest.mark.parametrize("process", ["vault", "courier"])
def test_of_three_one_is_killed_and_the_job_ends_with_a_reason(
    small: Any, bank: SampleBank, process: str
) -> None:
    """There are repeats left, but a secure sum of two would protect nobody. The next job has all three again."""
    run_id = small.whole.submit(net(bank, f"{process}-killed-in-sums", rounds=300))
    small.in_mid_run(run_id)
    killed = small.pid(VICTIM, process)
    assert small.kill_tree(killed) >= 1
    state, result = small.ended(run_id)
    assert (state.sub_status, result["state"]) == ("failed", "failed")
    assert state.details == result["reason"]
    assert result["reason"].startswith("only 2 of at least 3 branches are left for round "), result
    directory = run_directory(small.whole.home, run_id)
    assert not (directory / "model.safetensors").exists()
    lost = [e for e in small.events(run_id) if e["event"] == "repeat"]
    assert [e["without"] for e in lost] == [[VICTIM]]
    small.await_restart(VICTIM, process, killed)
    assert set(result["open_at"]) <= {VICTIM}, "a branch that is away cannot be told that the job is over"
    for name, home in small.whole.branches.items():
        charges = Ledger.read(home.ledger).entries("charge", job_id=result["job_id"])
        asked = [(e.body["round"], tuple(e.body["members"])) for e in charges]
        assert len(set(asked)) == len(asked), "each attempt charged once"
        assert {len(members) for _, members in asked} == {3}, name
    small.assert_nothing_uncharged(result)
    small.whole.ledgers_verify(result)

    small.whole.await_branches()
    assert_whole(small, small.whole.submit(net(bank, "sums-afterwards", rounds=2)), sums=4)
    assert small.whole.result(run_id)["open_at"] == []
