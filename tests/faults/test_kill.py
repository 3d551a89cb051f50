"""kill -9 in mid-run of a courier, a vault and the coordinator: a clear end, nothing uncharged, and it goes on."""

import re
import time
from collections import Counter
from typing import Any

import pytest
from typer.testing import CliRunner

from sfumato.client.status import read_status
from sfumato.privacy.cli import audit
from sfumato.privacy.door import Door
from sfumato.privacy.ledger import Ledger
from sfumato.server.cli import job
from sfumato.server.run_files import INTERRUPTED

pytestmark = pytest.mark.slow

VICTIM = "branch-2"
BACK_SECONDS = 120.0


def reserved(small: Any, branch: str) -> float:
    """Epsilon that open jobs still hold at a branch."""
    spending = Door(Ledger.read(small.whole.branches[branch].ledger)).spending()
    return spending.reserved - spending.spent


def test_of_a_courier_the_job_goes_on_without_it_and_the_next_one_has_it_again(small: Any) -> None:
    rounds = 160
    run_id = small.whole.submit(small.job("courier-killed", rounds=rounds))
    small.in_mid_run(run_id)
    courier = small.pid(VICTIM, "courier")
    assert small.kill_tree(courier) == 2, "courier with executor, and SuperNode"
    killed = time.monotonic()
    small.await_restart(VICTIM, "courier", courier)
    state, result = small.ended(run_id)
    print(f"the run ended {time.monotonic() - killed:.1f} s after the kill")
    assert (state.sub_status, result["state"]) == ("completed", "finished")
    took_part = {b["name"]: (b["rounds_answered"], b["rounds_missed"]) for b in result["per_branch"]}
    assert took_part["branch-1"] == took_part["branch-3"] == (rounds, 0)
    answered, missed = took_part[VICTIM]
    print(f"{VICTIM} answered {answered} rounds and missed {missed}")
    assert missed >= 1 and answered + missed == rounds

    events = small.events(run_id)
    gone = events.index({"event": "dropped", "branch": VICTIM, "reason": "gone"})
    later = [VICTIM in e["branches"] for e in events[gone:] if e["event"] == "round"]
    assert not later[0]
    print(f"{VICTIM} was {'found again in' if later[-1] else 'away until the end of'} the run")
    log = (small.whole.branches[VICTIM].courier / "courier.log").read_text()
    assert "signing it off" in log
    assert "Failed to initialize the connection" not in log, "its new SuperNode was let in at once"
    small.assert_nothing_uncharged(result)
    small.works_again()


def test_of_a_vault_the_job_ends_with_a_reason_and_the_vault_is_started_again(small: Any) -> None:
    run_id = small.whole.submit(small.job("vault-killed", rounds=1000, min_branches=3))
    small.in_mid_run(run_id)
    vault = small.pid(VICTIM, "vault")
    small.held_in_mid_answer(VICTIM, vault)
    assert small.kill_tree(vault) == 1
    state, result = small.ended(run_id)
    assert (state.sub_status, result["state"]) == ("failed", "failed")
    assert state.details == result["reason"]
    assert result["reason"].startswith("only 2 of at least 3 branches answered round")
    assert f"{VICTIM}: the branch's vault does not answer" in result["reason"]
    refusals = [(r["branch"], r["code"]) for r in result["refused"]]
    assert set(refusals) == {(VICTIM, "vault-unreachable")}
    assert small.events(run_id)[-1]["reason"] == result["reason"]
    small.assert_nothing_uncharged(result)
    small.whole.ledgers_verify(result)
    assert result["open_at"] in ([], [VICTIM]), "the other two gave back what they had reserved"
    assert reserved(small, "branch-1") == pytest.approx(0, abs=1e-9)

    new = small.await_restart(VICTIM, "vault", vault)
    assert read_status(small.whole.branches[VICTIM].path).vault == f"running (process {new})"
    small.works_again()
    assert reserved(small, VICTIM) == pytest.approx(0, abs=1e-9), "closed late, but closed"
    small.assert_nothing_uncharged()


def test_of_the_coordinator_a_fresh_one_resumes_the_run_and_no_round_is_charged_twice(small: Any) -> None:
    rounds, home = 120, small.whole.home.path
    run_id = small.whole.submit(small.job("coordinator-killed", rounds=rounds, epsilon=0.2))
    small.in_mid_run(run_id)
    assert small.kill_tree(*small.whole.coordinator.pids.values()) == 2, "SuperLink and executor"
    assert small.whole.result(run_id)["state"] == "running"
    small.restart_coordinator()
    assert small.whole.coordinator.waiting == [run_id]
    state, cut = small.ended(run_id, timeout=5.0)
    assert state.sub_status == "stopped"
    assert (cut["state"], cut["reason"]) == ("failed", INTERRUPTED)
    assert cut["open_at"] == sorted(small.whole.branches)
    assert all(r.finished for r in small.whole.control.list_runs())
    small.assert_nothing_uncharged(cut)
    paid = {name: charged(small, name, cut["job_id"]) for name in small.whole.branches}
    done = [e["round"] for e in small.events(run_id) if e["event"] == "round"]
    assert all(paid[name]["weights", r] == 1 for name in paid for r in done)
    assert max(done) < rounds, "it was cut short"
    assert all(reserved(small, b) > 0.01 for b in small.whole.branches), "no branch knows that it is over"

    small.whole.await_branches(timeout=BACK_SECONDS)
    said = CliRunner().invoke(job, ["resume", str(run_id), "--coordinator", str(home)])
    assert said.exit_code == 0, said.output
    resumed = int(re.findall(r"goes on as run (\d+)", said.output)[0])
    state, result = small.ended(resumed)
    assert (state.sub_status, result["state"], result["resumes"]) == ("completed", "finished", run_id), result
    assert result["audit"] in ("consistent", "flagged")
    told = small.events(resumed)
    again = next(e["round"] for e in told if e["event"] == "round")
    assert again >= max(done), "what was finished is not asked again"
    print(f"killed in round {max(done)} of {rounds}, resumed in round {again}")
    once = {("size", 0): 1, ("score-histogram", rounds): 1, **{("weights", r + 1): 1 for r in range(rounds)}}
    for name in small.whole.branches:
        assert charged(small, name, result["job_id"]) == once
    assert all(reserved(small, b) == pytest.approx(0, abs=1e-9) for b in small.whole.branches)
    assert small.whole.result(run_id)["open_at"] == result["open_at"] == []
    small.assert_nothing_uncharged(result)
    small.whole.ledgers_verify(result)
    audited = CliRunner().invoke(audit, ["privacy", str(resumed), "--coordinator", str(home)])
    assert audited.exit_code == 0 and f"Verdict: {result['audit']}" in audited.output
    twice = CliRunner().invoke(job, ["resume", str(run_id), "--coordinator", str(home)])
    assert f"run {run_id} was resumed as run {resumed}" in str(twice.exception)


def charged(small: Any, branch: str, job_id: str) -> Counter[tuple[str, int]]:
    """How often a branch was charged for each round of a job."""
    charges = Ledger.read(small.whole.branches[branch].ledger).entries("charge", job_id=job_id)
    return Counter((c.body["what"], c.body["round"]) for c in charges)
