"""What a job costs, recomputed by somebody else; what a budget does not allow, refused where the data are."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.privacy_accountant import NeighboringRelation
from typer.testing import CliRunner

from sfumato.client.cli import app as branch_cli
from sfumato.common.errors import REFUSAL_TEXT, RefusalCode
from sfumato.common.job import sign_job
from sfumato.privacy.door import Door
from sfumato.privacy.ledger import Ledger

pytestmark = pytest.mark.slow

DELTA = 1e-5


# --- an accountant of its own: from the exported JSON lines to epsilon, nothing of ours in between --------


def leaves(event: dict[str, Any], count: int = 1) -> Counter[str]:
    """The single mechanisms of an event, and how often each ran."""
    if "composed" in event:
        return sum((leaves(e, count) for e in event["composed"]), Counter())
    if "self_composed" in event:
        inner = event["self_composed"]
        return leaves(inner["event"], count * inner["count"])
    return Counter({json.dumps(event, sort_keys=True): count})


def mechanism(event: dict[str, Any]) -> dp_event.DpEvent:
    ((kind, given),) = event.items()
    if kind == "poisson_sampled":
        return dp_event.PoissonSampledDpEvent(given["sampling_probability"], mechanism(given["event"]))
    if kind == "gaussian":
        return dp_event.GaussianDpEvent(given["noise_multiplier"])
    assert kind == "discrete_laplace"
    return dp_event.DiscreteLaplaceDpEvent(given["noise_parameter"], given["sensitivity"])


def by_population(charges: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    """A customer is trained on or held out for good; what is asked of `all` is asked of both."""
    totals: dict[str, Counter[str]] = {"training": Counter(), "holdout": Counter()}
    for charge in charges:
        asked = charge["body"]["population"]
        assert asked in (*totals, "all")
        for population in totals if asked == "all" else (asked,):
            totals[population] += leaves(charge["body"]["event"])
    return totals


def recomputed(populations: dict[str, Counter[str]], delta: float) -> float:
    """What the customer who lost most lost."""
    epsilons = []
    for events in populations.values():
        accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE)
        for event, count in events.items():
            accountant.compose(mechanism(json.loads(event)), count)
        epsilons.append(float(accountant.get_epsilon(delta)))
    return max(epsilons)


def test_the_ledgers_epsilon_is_what_dp_accounting_says(small: Any, tmp_path: Any) -> None:
    job = small.job("recomputed", epsilon=0.6, rounds=4, min_branches=3)
    run_id = small.whole.submit(job)
    state, result = small.ended(run_id)
    assert state.sub_status == "completed", state.details
    small.whole.ledgers_verify(result)
    small.assert_nothing_uncharged(result)
    for name, home in small.whole.branches.items():
        export = tmp_path / f"{name}.jsonl"
        run = CliRunner().invoke(branch_cli, ["ledger", str(home.path), "--export", str(export)])
        assert run.exit_code == 0, run.output
        lines = [json.loads(line) for line in export.read_text().splitlines()]
        entries = [json.loads(line["entry"]) for line in lines if "entry" in line]
        charges = [e for e in entries if e["kind"] == "charge"]
        mine = [e for e in charges if e["job_id"] == result["job_id"]]
        ((reserved, closed),) = [
            (r["body"], c["body"])
            for r in entries
            for c in entries
            if (r["kind"], c["kind"]) == ("reserve", "close")
            and r["job_id"] == c["job_id"] == result["job_id"]
        ]
        charged = by_population(mine)
        planned = {population: leaves(event) for population, event in reserved["planned"].items()}
        assert charged == planned, "all that was planned, and nothing else"
        steps = sum(n for event, n in charged["training"].items() if "poisson_sampled" in json.loads(event))
        assert steps == job.training.rounds * job.training.local_steps
        assert closed["releases"] == len(mine) == job.training.rounds + 2

        epsilon = recomputed(charged, job.privacy.delta)
        assert 0.97 * job.privacy.target_epsilon < epsilon <= job.privacy.target_epsilon
        assert closed["epsilon"] == pytest.approx(recomputed(charged, DELTA), rel=0.01)
        whole = recomputed(by_population(charges), DELTA)
        spending = Door(Ledger.read(home.ledger)).spending()
        print(f"{name}: job {epsilon:.5f}, ledger {whole:.5f}, reported {spending.reported:.5f}")
        assert spending.reported == pytest.approx(whole, rel=0.01)
        assert spending.spent >= whole, "the filter that admits is the stricter of the two"


def test_over_the_budget_is_refused_by_the_branch_also_after_its_restart(small: Any) -> None:
    dear = small.job("too-dear", epsilon=2.9)
    over = REFUSAL_TEXT[RefusalCode.OVER_BUDGET]

    def attempt() -> dict[str, Any]:
        run_id = small.whole.submit(dear)
        state, result = small.ended(run_id)
        assert (state.sub_status, result["state"]) == ("failed", "failed")
        assert state.details == result["reason"]
        assert result["reason"].startswith("only 0 of at least 2 branches opened the job")
        assert f"branch-1: {over}" in result["reason"]
        refused = {r["branch"]: r for r in result["refused"]}
        assert set(refused) == set(small.whole.branches)
        shown = [e for e in small.events(run_id) if e["event"] == "refused"]
        assert [{**e, "event": None} for e in shown] == [{**r, "event": None} for r in result["refused"]]
        for name, refusal in refused.items():
            assert (refusal["code"], refusal["text"]) == ("over-budget", over)
            ledger = Ledger.read(small.whole.branches[name].ledger)
            spending = Door(ledger).spending()
            assert refusal["remaining"] == pytest.approx(spending.remaining, abs=1e-6)
            assert refusal["requested"] > spending.remaining > 0
            last = ledger.entries("refuse", job_id=result["job_id"])[-1].body
            assert (last["code"], last["epsilon"]) == ("over-budget", 2.9)
            assert not ledger.entries("reserve", job_id=result["job_id"])
        return refused

    before = attempt()
    small.whole.stop_branch("branch-1")
    small.whole.start_branch("branch-1")
    small.whole.await_branches()
    assert attempt() == before, "nothing was forgotten, nothing was spent"
    small.works_again()


def test_a_job_that_is_not_the_risk_teams_is_refused(small: Any) -> None:
    """The coordinator's own app turns away a forged or expired job; a vault, one for another contract."""
    whole = small.whole
    job = small.job("not-so")
    other = whole.contract.model_copy(update={"purpose": whole.contract.purpose + " And more."})
    key = whole.home.job_key()
    hour, ago = timedelta(hours=1), datetime.now(UTC) - timedelta(hours=2)
    forged = sign_job(job, whole.contract, Ed25519PrivateKey.generate(), valid_for=hour)
    expired = sign_job(job, whole.contract, key, valid_for=hour, now=ago)
    for signed, code in ((forged, RefusalCode.BAD_SIGNATURE), (expired, RefusalCode.EXPIRED)):
        state = small.end_of(whole.control.submit(signed))
        assert state.sub_status == "failed"
        assert state.details == f"{code.value}: {REFUSAL_TEXT[code]}"
        assert not any(Ledger.read(b.ledger).entries(job_id=signed.job_id) for b in whole.branches.values())

    foreign = sign_job(job, other, key, valid_for=hour)
    state, result = small.ended(whole.control.submit(foreign))
    assert (state.sub_status, result["state"]) == ("failed", "failed")
    assert {r["code"] for r in result["refused"]} == {"wrong-contract"}
    for branch in whole.branches.values():
        (entry,) = Ledger.read(branch.ledger).entries(job_id=foreign.job_id)
        assert (entry.kind, entry.body["code"]) == ("refuse", "wrong-contract")
