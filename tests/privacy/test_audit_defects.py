"""Planted defects in the real code, and whether the audit sees them: secure sums, analyses, local DP-SGD.

Correct code is contradicted once in a million audits and flagged by a test once in a thousand; seeds are fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sfumato.common import fixed_point
from sfumato.common.contributions import Cells
from sfumato.common.job import Model
from sfumato.common.learners.churn_net import ChurnNet
from sfumato.common.learners.encoding import Encoded
from sfumato.privacy import clipping, dpsgd
from sfumato.privacy.audit import SumEvidence, Verdict, assess, split
from sfumato.privacy.clipping import BoundedSum, clipped_sensitivity
from sfumato.privacy.mechanisms import GaussianSum, SumNoise
from sfumato.privacy.noise import SecureRandom
from sfumato.privacy.phantoms import Phantoms

CARDINALITIES = (3, 4)
CUSTOMERS, NORM = 60, 0.5
NAMES = ("a", "b", "c", "d")
NOISE = SumNoise(noise_multiplier=1.0, sample_rate=0.1, members=4, colluders=1)
EMPTY, CANARIES = 32, 32


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Muted(SecureRandom):
    """A branch's source that gives zeros for noise, and honest coins and samples."""

    def discrete_gaussian(self, size: int, variance: int) -> np.ndarray:
        return np.zeros(size, dtype=np.int64)

    def gaussian(self, size: int, std: float) -> np.ndarray:
        return np.zeros(size)


class Stuck(SecureRandom):
    """A source whose noise is the same whenever it is asked."""

    def discrete_gaussian(self, size: int, variance: int) -> np.ndarray:
        return SecureRandom(bytes(32)).discrete_gaussian(size, variance)


def source(number: int, kind: type[SecureRandom] = SecureRandom) -> SecureRandom:
    return kind(number.to_bytes(32, "big"))


def customers(number: int) -> tuple[Encoded, np.ndarray]:
    rng = np.random.default_rng(number)
    codes = np.stack([rng.integers(0, c, CUSTOMERS) for c in CARDINALITIES], axis=1)
    numeric = rng.uniform(-1, 1, (CUSTOMERS, 1)).astype(np.float32)
    return Encoded(codes, numeric, CARDINALITIES), rng.integers(0, 2, CUSTOMERS)


@dataclass
class Branch:
    """What a branch's vault does in a secure step, without its masks, which cancel in the total."""

    phantoms: Phantoms
    sums: dpsgd.GradientSums
    rng: SecureRandom

    @classmethod
    def of(cls, number: int, net: ChurnNet, kind: type[SecureRandom]) -> "Branch":
        phantoms = Phantoms.draw(EMPTY, CANARIES, source(100 + number))
        sums = dpsgd.GradientSums(net, *customers(number), max_grad_norm=NORM, phantoms=phantoms)
        return cls(phantoms, sums, source(number, kind))

    def share(self, length: int) -> np.ndarray:
        def contribution() -> BoundedSum:
            total = self.sums(sample_rate=NOISE.sample_rate, rng=self.rng)
            return BoundedSum.of_clipped(total, NORM, CUSTOMERS + CANARIES)

        sensitivity = clipped_sensitivity(length, CUSTOMERS + CANARIES)
        return GaussianSum(contribution, NOISE, sensitivity, self.rng).run()


def evidence_of(what: str, round_: int, total: np.ndarray, branches: list[Branch], std: float) -> SumEvidence:
    _, empty, canary = split(total, EMPTY, CANARIES)
    coins = np.sum([b.phantoms.coins for b in branches], axis=0)
    return SumEvidence(what, round_, NAMES, std, NOISE.sample_rate, NORM, empty, canary, coins)  # type: ignore[arg-type]


def secure_steps(kinds: dict[int, type[SecureRandom]] | None = None, rounds: int = 100) -> Verdict:
    """A job of `rounds` secure gradient sums over four branches, some of them with another source."""
    net = ChurnNet(CARDINALITIES, 1, Model(hidden=(2,), embedding_dim=1))
    branches = [Branch.of(i, net, (kinds or {}).get(i, SecureRandom)) for i in range(4)]
    length = sum(p.numel() for p in net.parameters()) + EMPTY + CANARIES
    std = NOISE.total_std(clipped_sensitivity(length, CUSTOMERS + CANARIES), NORM)
    found = []
    for round_ in range(rounds):
        total = fixed_point.decode(fixed_point.add(b.share(length) for b in branches), NORM)
        found.append(evidence_of("step", round_, total, branches, std))
    return assess(found)


def contradicted(verdict: Verdict) -> set[str]:
    return {f.test for f in verdict.findings if f.outcome == "contradicted"}


# --- secure sums of gradients ---------------------------------------------------------------------------------


def test_correct_secure_sums_are_consistent() -> None:
    assert secure_steps().outcome == "consistent"


def test_forgotten_noise_is_contradicted() -> None:
    assert {"noise", "canaries"} <= contradicted(secure_steps(dict.fromkeys(range(4), Muted)))


def test_one_branch_silent_about_noise_is_contradicted() -> None:
    """Its absence leaves 3/4 of the variance: as much as the guarantee needs with one colluder, and not what runs."""
    verdict = secure_steps({2: Muted})
    assert contradicted(verdict) == {"noise"}
    assert next(f.measured for f in verdict.findings if f.test == "noise") == pytest.approx(
        0.75**0.5, abs=0.03
    )


def test_noise_divided_by_n_and_not_by_its_root_is_contradicted(monkeypatch: pytest.MonkeyPatch) -> None:
    right, std = SumNoise.share_variance, NOISE.total_std(1 << 24, NORM)
    monkeypatch.setattr(SumNoise, "total_std", lambda *_: std)  # the coordinator's code is correct
    monkeypatch.setattr(SumNoise, "share_variance", lambda self, s: right(self, s) // self.members)
    assert "noise" in contradicted(secure_steps(rounds=20))


def test_noise_that_is_drawn_once_is_contradicted() -> None:
    assert "fresh" in contradicted(secure_steps(dict.fromkeys(range(4), Stuck), rounds=20))


def test_a_forgotten_clip_of_gradients_is_contradicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpsgd, "clip_factors", lambda norm, bound: torch.ones_like(norm))
    assert {"canaries", "clip", "rate"} <= contradicted(secure_steps(rounds=50))


def test_unaccounted_sampling_is_contradicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecureRandom, "poisson_sample", lambda self, n, rate: np.arange(n))
    assert contradicted(secure_steps(rounds=50)) == {"canaries", "rate"}


# --- an analysis: one sum of cells ----------------------------------------------------------------------------


def analysis(kinds: dict[int, type[SecureRandom]] | None = None) -> Verdict:
    """A one-round job over four branches: a histogram of three cells."""
    noise, cells = SumNoise(noise_multiplier=1.0, members=4, colluders=1), np.random.default_rng(0)
    shares, coins = [], []
    for i in range(4):
        phantoms = Phantoms.draw(EMPTY, CANARIES, source(100 + i))
        one = Cells(cells.integers(0, 3, (500, 1)), np.ones(1), 3)
        total = BoundedSum.of(phantoms.extend(one, 1.0), 1.0)
        rng = source(i, (kinds or {}).get(i, SecureRandom))
        shares.append(GaussianSum(lambda total=total: total, noise, fixed_point.GRID, rng).run())  # type: ignore[misc]
        coins.append(phantoms.coins)
    answer, empty, canary = split(fixed_point.decode(fixed_point.add(shares), 1.0), EMPTY, CANARIES)
    assert answer.size == 3
    std, fallen = noise.total_std(fixed_point.GRID, 1.0), np.sum(coins, axis=0)
    return assess([SumEvidence("histogram", 0, NAMES, std, 1.0, 1.0, empty, canary, fallen)])  # type: ignore[arg-type]


def test_a_correct_analysis_of_one_round_is_consistent() -> None:
    assert analysis().outcome == "consistent"


def test_an_analysis_without_noise_is_contradicted_in_one_round() -> None:
    assert {"noise", "canaries"} <= contradicted(analysis(dict.fromkeys(range(4), Muted)))


def test_one_silent_branch_is_not_seen_in_one_round_and_the_verdict_says_so() -> None:
    verdict = analysis({0: Muted})
    assert not verdict.contradicted
    assert "below 50%" in next(f.power for f in verdict.findings if f.test == "noise")


def test_a_forgotten_clip_of_an_analysis_is_contradicted_in_one_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unclipped(rows: np.ndarray, max_norm: float) -> np.ndarray:
        return np.trunc(rows * (fixed_point.GRID / max_norm))

    monkeypatch.setattr(clipping, "_on_grid", unclipped)
    assert {"canaries", "clip"} <= contradicted(analysis())


# --- local DP-SGD ---------------------------------------------------------------------------------------------


def local_training(kind: type[SecureRandom] = SecureRandom, rounds: int = 6, steps: int = 10) -> Verdict:
    encoded, labels = customers(0)
    phantoms, rng = Phantoms.draw(EMPTY, CANARIES, source(100)), source(0, kind)
    net, found = ChurnNet(CARDINALITIES, 1, Model(hidden=(2,), embedding_dim=1)), []
    for round_ in range(rounds):
        state = dpsgd.train(
            net, encoded, labels, steps=steps, sample_rate=0.2, noise_multiplier=1.0, max_grad_norm=NORM,
            learning_rate=0.05, optimizer="adam", expected_batch_size=12.0, rng=rng, phantoms=phantoms,
        )  # fmt: skip
        _, empty, canary = split(state.phantoms, EMPTY, CANARIES)
        coins = phantoms.coins.astype(int)
        found.append(SumEvidence("weights", round_, ("a",), NORM, 0.2, NORM, empty, canary, coins, steps))  # type: ignore[arg-type]
    return assess(found)


def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecureRandom, "gaussian", lambda self, size, std: np.zeros(size))


def half_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SecureRandom.gaussian
    monkeypatch.setattr(SecureRandom, "gaussian", lambda self, size, std: right(self, size, std / 2))


def no_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dpsgd, "clip_factors", lambda norm, bound: torch.ones_like(norm))


def everybody_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SecureRandom, "poisson_sample", lambda self, n, rate: np.arange(n))


def test_correct_training_is_consistent() -> None:
    assert local_training().outcome == "consistent"


@pytest.mark.parametrize(
    ("plant", "tests"),
    [
        (no_noise, {"noise"}),
        (half_the_noise, {"noise"}),
        (no_clip, {"canaries", "rate"}),
        (everybody_every_time, {"canaries", "rate"}),
    ],
)
def test_a_defect_in_training_is_contradicted(
    plant: Callable[[pytest.MonkeyPatch], None], tests: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert tests <= contradicted(local_training())


# --- the hostile angle: what the audit does not see -----------------------------------------------------------


class ForShow(SecureRandom):
    """A hostile branch's source: noise in the phantom slots alone, which it knows as well as anybody."""

    def discrete_gaussian(self, size: int, variance: int) -> np.ndarray:
        noise = super().discrete_gaussian(size, variance)
        noise[: size - EMPTY - CANARIES] = 0
        return noise


def test_noise_for_show_passes() -> None:
    """A limit, stated in docs/audit.md: the audit is of code that errs, not of a branch that lies about itself."""
    assert secure_steps({0: ForShow}, rounds=50).outcome == "consistent"
