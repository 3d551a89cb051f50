"""The audit's phantoms and tests: layout, calibration under the claim, power, and what is read from a file."""

import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from sfumato.common.contributions import Cells, Rows
from sfumato.common.errors import BadInput
from sfumato.privacy import audit as audits
from sfumato.privacy.audit import Finding, SumEvidence, assess, from_json, split, to_json
from sfumato.privacy.cli import audit as command
from sfumato.privacy.clipping import BoundedSum
from sfumato.privacy.noise import SecureRandom
from sfumato.privacy.phantoms import Phantoms

SEED = bytes(range(32))
FEW = Phantoms(2, np.array([True, False, True, True]))


def evidence(
    rng: np.random.Generator,
    *,
    rounds: int = 100,
    members: int = 4,
    z: float = 1.2,
    rate: float = 0.1,
    slots: int = 32,
    steps: int = 1,
    noise: float = 1.0,
    clip: float = 1.0,
    real_rate: float | None = None,
    stuck: bool = False,
) -> list[SumEvidence]:
    """What the slots show in the model: Gaussian noise, binomial canaries. `noise`, `clip`, ... are the defects."""
    names = tuple(f"branch-{i}" for i in range(members))
    coins, found = rng.binomial(members, 0.5, slots), []
    drawn = rng.normal(0, z * noise * math.sqrt(steps), 2 * slots)
    for round_ in range(rounds):
        if not stuck:
            drawn = rng.normal(0, z * noise * math.sqrt(steps), 2 * slots)
        taken = clip * rng.binomial(coins * steps, rate if real_rate is None else real_rate)
        empty, canary = drawn[:slots], drawn[slots:] + taken
        found.append(SumEvidence("step", round_, names, z, rate, 1.0, empty, canary, coins, steps))  # type: ignore[arg-type]
    return found


def by_test(found: list[SumEvidence]) -> dict[str, Finding]:
    return {f.test: f for f in assess(found).findings}


# --- phantoms -------------------------------------------------------------------------------------------------


def test_coins_are_fair_secret_in_print_and_come_back_from_hex() -> None:
    """1,000 coins: heads within 3.9 standard deviations (false alarm 1e-4)."""
    drawn = Phantoms.draw(3, 1000, SecureRandom(SEED))
    assert (drawn.empty_slots, drawn.canaries, drawn.slots) == (3, 1000, 1003)
    assert abs(drawn.coins.sum() - 500) < 3.9 * math.sqrt(250)
    back = Phantoms.from_hex(3, 1000, drawn.coins_hex())
    assert (back.coins == drawn.coins).all()
    assert drawn.coins_hex() not in repr(drawn) and "True" not in repr(drawn)
    assert FEW.coins_hex() == "b0"
    assert Phantoms.draw(0, 0, SecureRandom(SEED)).coins_hex() == ""


@pytest.mark.parametrize("text", ["", "zz", "b0b0", "b"])
def test_coins_of_another_number_are_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"hexadecimal|Expected the coins"):
        Phantoms.from_hex(2, 4, text)


def test_negative_numbers_of_slots_are_refused() -> None:
    with pytest.raises(ValueError, match="not negative"):
        Phantoms.draw(-1, 4, SecureRandom(SEED))


@pytest.mark.parametrize("max_norm", [1.0, 2.5])
def test_extended_rows_and_cells_give_the_answer_and_the_clipped_phantoms(max_norm: float) -> None:
    rng = np.random.default_rng(0)
    cells = np.stack([rng.integers(-1, 3, 40), rng.integers(3, 5, 40)], axis=1)
    weights = np.array([0.6, 0.8]) * max_norm
    rows = np.zeros((40, 5))
    for column in range(2):
        taken = cells[:, column] >= 0
        rows[np.flatnonzero(taken), cells[taken, column]] += weights[column]
    for contributions in (Cells(cells, weights, 5), Rows(rows)):
        alone = BoundedSum.of(contributions, max_norm).total
        total = BoundedSum.of(FEW.extend(contributions, max_norm), max_norm).total
        answer, empty, canary = split(total.astype(np.float64), 2, 4)
        assert (answer == alone).all()
        assert (empty == 0).all()
        assert np.allclose(canary / 2**24, FEW.coins, atol=1e-6)
        assert (canary <= 2**24).all()


def test_nobody_extended_is_the_phantoms_alone() -> None:
    nobody = Cells(np.zeros((0, 1), dtype=np.int64), np.ones(1), 3)
    assert BoundedSum.of(FEW.extend(nobody, 1.0), 1.0).total.tolist()[:5] == [0] * 5
    assert BoundedSum.of(FEW.extend(Rows(np.zeros((0, 3))), 1.0), 1.0).total[5] == 2**24


def test_no_slots_change_nothing() -> None:
    none, cells = (
        Phantoms.draw(0, 0, SecureRandom(SEED)),
        Cells(np.zeros((3, 1), dtype=np.int64), np.ones(1), 2),
    )
    assert BoundedSum.of(none.extend(cells, 1.0), 1.0).total.tolist() == [3 << 24, 0]


def test_a_vector_shorter_than_its_slots_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 5 values, got 4"):
        split(np.zeros(4), 2, 3)


# --- calibration: correct code --------------------------------------------------------------------------------


@pytest.mark.statistical
@pytest.mark.parametrize(
    "settings",
    [
        {"rounds": 1, "rate": 1.0},
        {"rounds": 1, "z": 0.3},  # the sampling outweighs the noise: skewed
        {"rounds": 3, "rate": 0.02, "z": 0.5, "members": 1},
        {"rounds": 5, "steps": 20, "members": 1},
        {"rounds": 3, "rate": 0.9, "z": 0.3},
    ],
)
def test_correct_code_is_flagged_as_often_as_stated(settings: dict[str, float]) -> None:
    """1,000 audits: each test's p below 1e-2 in at most 25 (binomial tail 5e-5 a test), below 1e-6 in none (5e-3)."""
    rng, below = np.random.default_rng(7), defaultdict(int)
    for _ in range(1000):
        verdict = assess(evidence(rng, **settings))  # type: ignore[arg-type]
        assert not verdict.contradicted
        for f in verdict.findings:
            below[f.test] += f.p < 1e-2
            assert f.p > 1e-6
    assert stats.binom.sf(25, 1000, 1e-2) < 5e-5
    assert max(below.values()) <= 25
    assert below["noise"] >= 1  # and the tests can see something at all


# --- power: defects in the model ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defect", "tests"),
    [
        ({"noise": 1e-9}, {"noise", "canaries"}),
        ({"noise": 0.5}, {"noise"}),
        ({"noise": math.sqrt(0.75)}, {"noise"}),  # one of four branches silent, withstanding one colluder
        ({"noise": 1.2}, {"noise"}),
        ({"clip": 10.0}, {"canaries", "clip", "rate"}),
        ({"clip": 10.0, "rate": 1.0}, {"canaries", "clip"}),
        ({"clip": 1.2, "rate": 1.0}, {"canaries", "clip"}),
        ({"real_rate": 1.0}, {"canaries", "rate"}),
        ({"real_rate": 0.0}, {"rate"}),
        ({"real_rate": 0.0, "rate": 1.0}, {"rate"}),
        ({"stuck": True, "z": 1.0}, {"fresh"}),
        ({"clip": 10.0, "members": 1, "rounds": 20, "rate": 0.5}, {"canaries", "clip", "rate"}),
    ],
)
def test_a_defect_is_contradicted_by_the_test_that_is_for_it(
    defect: dict[str, float], tests: set[str]
) -> None:
    for seed in range(5):
        found = by_test(evidence(np.random.default_rng(seed), **defect))  # type: ignore[arg-type]
        assert tests <= {t for t, f in found.items() if f.outcome == "contradicted"}


def test_unaccounted_sampling_is_not_taken_for_a_forgotten_clip() -> None:
    """At rate 0.1 both add ten times too much on average; only one ever adds more than the bound at once."""
    for seed in range(20):
        found = by_test(evidence(np.random.default_rng(seed), real_rate=1.0))
        assert found["clip"].outcome == "consistent"


@pytest.mark.statistical
@pytest.mark.parametrize("rounds", [1, 10, 100])
def test_the_power_statement_is_true(rounds: int) -> None:
    """At the stated noise 95% of 200 audits contradict: 179 to 199 of them (binomial, false alarm 2e-4)."""
    stated = by_test(evidence(np.random.default_rng(0), rounds=rounds))["noise"].power
    level = audits.CONTRADICT / 5
    n = 32 * rounds
    below = math.sqrt(stats.chi2.ppf(level / 2, n) / stats.chi2.ppf(0.95, n))
    assert f"noise below {below:.0%}" in stated
    rng = np.random.default_rng(1)
    seen = sum(
        by_test(evidence(rng, rounds=rounds, noise=below))["noise"].outcome == "contradicted"
        for _ in range(200)
    )
    assert 179 <= seen <= 199


def test_one_round_says_how_little_it_could_see() -> None:
    found = by_test(evidence(np.random.default_rng(0), rounds=1, rate=1.0, noise=math.sqrt(0.75)))
    assert found["noise"].outcome == "consistent"
    assert "below 50%" in found["noise"].power
    sampled = by_test(evidence(np.random.default_rng(0), rounds=2, slots=2, z=20.0))
    assert sampled["rate"].power == "nothing: too few canaries"
    assert sampled["clip"].power.startswith("nothing by itself")
    assert sampled["fresh"].power == "nothing: too few slots"


# --- groups ---------------------------------------------------------------------------------------------------


def test_a_silent_branch_is_found_by_name_where_branches_answer_alone() -> None:
    rng, found = np.random.default_rng(3), []
    for name in ("a", "b", "c"):
        for e in evidence(rng, rounds=20, members=1, noise=0.1 if name == "b" else 1.0):
            found.append(
                SumEvidence(
                    "weights", e.round, (name,), e.std, e.sample_rate, 1.0, e.empty, e.canary, e.coins
                )
            )
    contradicted = {f.what for f in assess(found).findings if f.outcome == "contradicted"}
    assert contradicted == {"weights of b"}


def test_more_tests_make_a_contradiction_no_likelier() -> None:
    """p = 1.5e-7 contradicts alone (level 2e-7), and is a flag among ten sorts of answers (level 2e-8)."""
    target = stats.norm.isf(1.5e-7)
    one = SumEvidence("size", 0, ("a", "b", "c"), 1.0, 1.0, 1.0, (), (1.0 + target,), (1,))
    assert by_test([one])["clip"].outcome == "contradicted"
    others = [
        SumEvidence(f"other-{i}", 0, ("a", "b", "c"), 1.0, 1.0, 1.0, (), (1.0,), (1,)) for i in range(9)
    ]
    verdict = assess([one, *others])
    assert verdict.outcome == "flagged"
    assert not verdict.contradicted


def test_canaries_whose_coins_were_never_told_say_nothing() -> None:
    full = evidence(np.random.default_rng(0), rounds=20)
    untold = [
        SumEvidence(e.what, e.round, e.members, e.std, e.sample_rate, 1.0, e.empty, (), ()) for e in full
    ]
    assert set(by_test(untold)) == {"noise", "fresh"}
    assert assess(untold).outcome == "consistent"


def test_without_slots_nothing_was_audited() -> None:
    assert assess([]).outcome == "unaudited"
    bare = SumEvidence("size", 0, ("a",), 1.0, 1.0, 1.0, (), (), ())
    assert assess([bare]).outcome == "unaudited"
    assert not assess([bare]).contradicted


# --- files and the command ------------------------------------------------------------------------------------


def test_evidence_comes_back_from_json_with_the_same_verdict() -> None:
    found = evidence(np.random.default_rng(0), rounds=3)
    assert from_json(to_json(found)) == found
    assert assess(from_json(to_json(found))) == assess(found)
    told = json.loads(assess(found).to_json())
    assert told["outcome"] == "consistent" and told["releases"] == 3
    assert {f["test"] for f in told["findings"]} == {"noise", "fresh", "canaries", "clip", "rate"}


@pytest.mark.parametrize(
    "change",
    [
        {"std": 0.0}, {"std": "1"}, {"max_norm": -1.0}, {"sample_rate": 1.5}, {"steps": 0}, {"members": []},
        {"std": 1e-320}, {"std": 1e30, "max_norm": 1e-30}, {"sample_rate": 1e-300}, {"steps": 10**400},
        {"what": 3}, {"coins": [5] * 32}, {"coins": [1]},
        {"empty": [float("nan")]}, {"empty": ["1"]}, {"surprise": 1},
    ],
)  # fmt: skip
def test_evidence_that_no_honest_answer_has_is_refused(change: dict[str, object]) -> None:
    data = json.loads(to_json(evidence(np.random.default_rng(0), rounds=1)))
    data["evidence"][0] |= change
    with pytest.raises(BadInput, match="not the evidence of an audit"):
        from_json(json.dumps(data))


def test_numbers_beyond_all_noise_are_judged_and_not_stumbled_over() -> None:
    for huge in (3.4e38, -3.4e38):
        for settings in ({}, {"rounds": 1, "rate": 1.0}, {"members": 1, "steps": 20}):
            found = evidence(np.random.default_rng(0), **settings)  # type: ignore[arg-type]
            e = found[0]
            values = (e.what, e.round, e.members, e.std, e.sample_rate, 1.0)
            odd = SumEvidence(*values, (huge,) * 32, (huge,) * 32, e.coins, e.steps)
            verdict = assess([odd, *found[1:]])
            assert verdict.contradicted
            assert json.loads(verdict.to_json())["outcome"] == "contradicted"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2, "evidence": []}', b"\xff\xfe"])
def test_another_file_is_refused(text: str | bytes) -> None:
    with pytest.raises(BadInput, match="not the evidence of an audit"):
        from_json(text)


def run_of(tmp_path: Path, found: list[SumEvidence]) -> Path:
    run = tmp_path / "runs" / "17"
    run.mkdir(parents=True)
    (run / "audit.json").write_text(to_json(found))
    return run


def test_the_command_reads_a_run_a_directory_or_a_file(tmp_path: Path) -> None:
    run = run_of(tmp_path, evidence(np.random.default_rng(0)))
    for arguments in ([str(run)], [str(run / "audit.json")], ["17", "--coordinator", str(tmp_path)]):
        result = CliRunner().invoke(command, ["privacy", *arguments])
        assert result.exit_code == 0
        assert "Verdict: consistent (5 of 5 tests, on 100 answers)." in " ".join(result.stdout.split())
        assert "noise below 92% or above 109% of the claim" in result.stdout


def test_the_command_ends_with_8_when_the_claim_is_contradicted(tmp_path: Path) -> None:
    run = run_of(tmp_path, evidence(np.random.default_rng(0), clip=10.0))
    result = CliRunner().invoke(command, ["privacy", str(run)])
    assert result.exit_code == 8
    assert "contradicted (3 of 5 tests, on 100 answers)" in " ".join(result.stdout.split())
    assert "publishes nothing" in " ".join(result.stdout.split())
    told = CliRunner().invoke(command, ["privacy", str(run), "--json"])
    assert told.exit_code == 8
    assert json.loads(told.stdout)["outcome"] == "contradicted"


def test_the_command_lists_the_odd_ones_of_many(tmp_path: Path) -> None:
    rng, found = np.random.default_rng(3), []
    for i in range(12):
        for e in evidence(rng, rounds=5, members=1, noise=0.1 if i == 7 else 1.0):
            name = f"[b]{i}"  # no markup of ours
            found.append(
                SumEvidence(
                    "weights", e.round, (name,), e.std, e.sample_rate, 1.0, e.empty, e.canary, e.coins
                )
            )
    run = run_of(tmp_path, found)
    result = CliRunner().invoke(command, ["privacy", str(run)])
    assert "weights of [b]7" in result.stdout and "weights of [b]3" not in result.stdout
    assert "more tests are consistent" in result.stdout
    assert "weights of [b]3" in CliRunner().invoke(command, ["privacy", str(run), "--all"]).stdout


def test_the_command_says_what_is_missing(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["privacy", str(tmp_path)])
    assert isinstance(result.exception, BadInput)
    assert "no evidence of an audit here" in str(result.exception)
    bare = SumEvidence("size", 0, ("a",), 1.0, 1.0, 1.0, (), (), ())
    assert "Unaudited" in CliRunner().invoke(command, ["privacy", str(run_of(tmp_path, [bare]))]).stdout
