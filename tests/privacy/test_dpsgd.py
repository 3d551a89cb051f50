"""DP-SGD against a naive per-customer loop, and the properties the accountant takes for granted."""

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sfumato.common.job import Model
from sfumato.common.learners import churn_net
from sfumato.common.learners.churn_net import ChurnNet
from sfumato.common.learners.encoding import Encoded
from sfumato.privacy import dpsgd
from sfumato.privacy.noise import SecureRandom

SEED = bytes(range(32))
CARDINALITIES = (3, 5, 2)
NO_NOISE = 1e-12  # zero is refused; this is far below float32


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def customers(n: int, seed: int = 0) -> tuple[Encoded, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, c, n) for c in CARDINALITIES], axis=1)
    numeric = rng.uniform(-1, 1, (n, 2)).astype(np.float32)
    return Encoded(codes, numeric, CARDINALITIES), (rng.random(n) < 0.4).astype(np.float32)


def net_of(seed: int = 3) -> ChurnNet:
    """A net whose last layers are not zero, so that every layer has a gradient."""
    net = ChurnNet(CARDINALITIES, 2, Model(hidden=(4,), embedding_dim=2), seed=seed)
    vector = np.random.default_rng(seed).normal(0, 0.7, churn_net.size(net)).astype(np.float32)
    churn_net.load(net, vector)
    return net


def run(net: nn.Module, encoded: Encoded, labels: np.ndarray, **changes: object) -> dpsgd.OptimizerState:
    settings: dict[str, object] = {
        "steps": 1,
        "sample_rate": 1.0,
        "noise_multiplier": NO_NOISE,
        "max_grad_norm": 0.3,
        "learning_rate": 1.0,
        "optimizer": "sgd",
        "expected_batch_size": 1.0,
        "rng": SecureRandom(SEED),
    }
    return dpsgd.train(net, encoded, labels, **(settings | changes))  # type: ignore[arg-type]


def moved(net: nn.Module, encoded: Encoded, labels: np.ndarray, **changes: object) -> np.ndarray:
    """What one plain step of rate 1 subtracts: the (noisy) sum of clipped gradients."""
    before = churn_net.flatten(net).astype(np.float64)
    trained = copy.deepcopy(net)
    run(trained, encoded, labels, **changes)
    return before - churn_net.flatten(trained)


def naive_sum(net: nn.Module, encoded: Encoded, labels: np.ndarray, bound: float) -> np.ndarray:
    """One customer at a time, in double precision."""
    net = copy.deepcopy(net).double()
    total = np.zeros(churn_net.size(net))
    for i in range(len(encoded)):
        net.zero_grad()
        one = encoded.take(np.array([i]))
        logit = net(torch.from_numpy(one.codes), torch.from_numpy(one.numeric).double())
        binary_cross_entropy_with_logits(logit, torch.tensor([labels[i]]).double()).backward()
        gradient = np.concatenate([p.grad.reshape(-1).numpy() for p in net.parameters()])
        total += gradient * min(1.0, bound / np.linalg.norm(gradient))
    return total


@pytest.mark.parametrize("n", [1, 50, 1100])  # 1100: more than two physical batches
@pytest.mark.parametrize("bound", [0.3, 100.0])
def test_the_clipped_sum_is_the_naive_one(n: int, bound: float) -> None:
    net, (encoded, labels) = net_of(), customers(n)
    got = moved(net, encoded, labels, max_grad_norm=bound, expected_batch_size=float(n)) * n
    wanted = naive_sum(net, encoded, labels, bound)
    assert np.abs(got - wanted).max() < 1e-5 * max(1.0, n)  # the weights are float32: 1e-7 of them, times n
    assert np.linalg.norm(got - wanted) < 1e-4 * np.linalg.norm(wanted)


def test_the_sum_before_the_step_is_the_naive_one_to_1e_5() -> None:
    seen: list[np.ndarray] = []

    class Spy(dpsgd.SecureDPOptimizer):
        def add_noise(self) -> None:
            seen.append(np.concatenate([p.summed_grad.reshape(-1).numpy() for p in self.params]))
            super().add_noise()

    net, (encoded, labels) = net_of(), customers(700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpsgd, "SecureDPOptimizer", Spy)
        run(copy.deepcopy(net), encoded, labels)
    wanted = naive_sum(net, encoded, labels, 0.3)
    assert seen[0].dtype == np.float64
    assert np.abs(seen[0] - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e18, 3e38, np.inf, np.nan])
def test_clip_has_bounded_norm(scale: float) -> None:
    """Whatever one customer's row holds, adding the customer moves the sum by at most max_grad_norm."""
    net, (encoded, labels) = net_of(), customers(20)
    numeric = encoded.numeric.copy()
    numeric[7] = np.array([1.0, -1.0]) * np.float32(scale)
    hostile = Encoded(encoded.codes, numeric, CARDINALITIES)
    others = np.arange(20) != 7
    everyone = moved(net, hostile, labels, max_grad_norm=0.25)
    without = moved(net, hostile.take(others), labels[others], max_grad_norm=0.25)
    assert np.isfinite(everyone).all()
    assert np.linalg.norm(everyone - without) <= 0.25 + 1e-5


def test_a_gradient_that_is_not_finite_adds_nothing() -> None:
    net, (encoded, labels) = net_of(), customers(20)
    encoded.numeric[7] = np.nan
    labels[8] = np.nan
    sane = (np.arange(20) != 7) & (np.arange(20) != 8)
    difference = moved(net, encoded, labels) - moved(net, encoded.take(sane), labels[sane])
    assert np.abs(difference).max() < 1e-5


def test_exploding_weights_from_outside_cannot_lift_the_bound() -> None:
    net, (encoded, labels) = net_of(), customers(30)
    churn_net.load(net, (churn_net.flatten(net) * np.float32(1e30)).astype(np.float32))
    seen: list[float] = []

    class Spy(dpsgd.SecureDPOptimizer):
        def add_noise(self) -> None:
            seen.append(float(sum((p.summed_grad**2).sum() for p in self.params)) ** 0.5)
            super().add_noise()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpsgd, "SecureDPOptimizer", Spy)
        run(net, encoded, labels, max_grad_norm=0.25)
    assert seen[0] <= 30 * 0.25 * (1 + 1e-9)


@pytest.mark.statistical
def test_noise_has_the_stated_standard_deviation() -> None:
    """KS of what is added to the gradients, std = noise_multiplier * max_grad_norm. False alarm 1e-4 each."""
    net = ChurnNet((200, 200), 2, Model(hidden=(32,), embedding_dim=8), seed=0)
    empty = Encoded(np.zeros((0, 2), np.int64), np.zeros((0, 2), np.float32), (200, 200))
    noise = moved(net, empty, np.zeros(0), noise_multiplier=3.0, max_grad_norm=2.0)
    assert noise.size > 3000
    assert stats.kstest(noise, "norm", args=(0, 6.0)).pvalue > 1e-4
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], noise.size)
    assert low < (noise**2).sum() / 36 < high
    assert not low < (noise**2).sum() / 9 < high  # a factor of two forgotten would be seen


def test_noise_does_not_depend_on_the_batch_and_is_divided_once() -> None:
    net, (encoded, labels) = net_of(), customers(1100)
    exact = moved(net, encoded, labels, expected_batch_size=10.0)
    noisy = moved(net, encoded, labels, expected_batch_size=10.0, noise_multiplier=1.0)
    rng = SecureRandom(SEED)
    rng.poisson_sample(1100, 1.0)
    assert np.allclose(noisy - exact, rng.gaussian(exact.size, 0.3) / 10, atol=2e-5)


def test_an_empty_batch_still_steps_with_noise() -> None:
    net, (encoded, labels) = net_of(), customers(30)
    assert np.abs(moved(net, encoded, labels, sample_rate=0.0, noise_multiplier=1.0)).min() > 0


def test_the_denominator_is_the_given_one_not_the_count() -> None:
    net, (encoded, labels) = net_of(), customers(40)
    twice = encoded.take(np.r_[0:40, 0:40])
    one = moved(net, encoded, labels, expected_batch_size=50.0)
    two = moved(net, twice, np.r_[labels, labels], expected_batch_size=50.0)
    assert np.allclose(two, 2 * one, atol=1e-5)


def test_same_seed_same_weights_and_other_seed_others() -> None:
    encoded, labels = customers(60)
    runs = []
    for seed in (SEED, SEED, bytes(32)):
        net = net_of()
        run(net, encoded, labels, steps=5, sample_rate=0.3, noise_multiplier=1.0, rng=SecureRandom(seed))
        runs.append(churn_net.flatten(net))
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


def test_the_pull_is_the_gradient_of_the_proximal_term_and_ends_at_the_first_weights() -> None:
    """Two plain steps of rate r along g and g' + mu (w1 - w0): the pull is not clipped, noised or divided."""
    net, (encoded, labels) = net_of(), customers(50)
    settings = {"steps": 2, "learning_rate": 0.5, "expected_batch_size": 25.0}
    nets = [copy.deepcopy(net) for _ in range(3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dpsgd, "MOMENTUM", 0.0)
        run(nets[0], encoded, labels, **settings)
        run(nets[1], encoded, labels, **settings, proximal_mu=0.7)
        run(nets[2], encoded, labels, **(settings | {"steps": 1}))
    start, plain, pulled, first = (churn_net.flatten(n).astype(np.float64) for n in (net, *nets))
    assert np.abs(first - start).max() > 1e-3
    assert np.allclose(plain - pulled, 0.5 * 0.7 * (first - start), atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_two_calls_with_the_state_are_one_call(optimizer: str) -> None:
    encoded, labels = customers(60)
    settings = {"optimizer": optimizer, "sample_rate": 0.5, "noise_multiplier": 1.0, "learning_rate": 0.05}
    whole, halves = net_of(), net_of()
    run(whole, encoded, labels, steps=6, **settings)
    rng = SecureRandom(SEED)
    state = run(halves, encoded, labels, steps=3, rng=rng, **settings)
    run(halves, encoded, labels, steps=3, rng=rng, state=state, **settings)
    assert np.allclose(churn_net.flatten(whole), churn_net.flatten(halves), atol=1e-7)


def test_nothing_private_stays_on_the_net() -> None:
    net, (encoded, labels) = net_of(), customers(30)
    run(net, encoded, labels)
    assert not net.training
    for p in net.parameters():
        assert p.grad is None
        assert not hasattr(p, "grad_sample")
        assert not hasattr(p, "summed_grad")
    run(net, encoded, labels)  # and it can be trained again


def test_a_net_that_mixes_customers_is_refused() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.out = nn.BatchNorm1d(2), nn.Linear(2, 1)

        def forward(self, codes: torch.Tensor, numeric: torch.Tensor) -> torch.Tensor:
            return self.out(self.norm(numeric)).squeeze(1)

    with pytest.raises(ValueError, match="mixes customers"):
        run(Mixing(), *customers(30))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"noise_multiplier": float("nan")}, "noise_multiplier"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm"),
        ({"expected_batch_size": 0.0}, "expected_batch_size"),
        ({"sample_rate": 1.5}, "rate"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"proximal_mu": -1.0}, "proximal_mu"),
    ],
)
def test_bad_settings_change_nothing(changes: dict[str, object], message: str) -> None:
    net, (encoded, labels) = net_of(), customers(10)
    before = churn_net.flatten(net)
    with pytest.raises(ValueError, match=message):
        run(net, encoded, labels, **changes)
    assert (churn_net.flatten(net) == before).all()
    with pytest.raises(ValueError, match="10 customers but 9 labels"):
        run(net, encoded, labels[:9])


def test_it_learns() -> None:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, c, 3000) for c in CARDINALITIES], axis=1)
    encoded = Encoded(codes, rng.uniform(-1, 1, (3000, 2)).astype(np.float32), CARDINALITIES)
    labels = (codes[:, 1] >= 3).astype(np.float32)
    net = ChurnNet(CARDINALITIES, 2, Model())
    run(net, encoded, labels, steps=60, sample_rate=0.2, noise_multiplier=1.0, max_grad_norm=1.0,
        learning_rate=0.05, optimizer="adam", expected_batch_size=600.0)  # fmt: skip
    assert ((churn_net.logits(net, encoded) > 0) == labels).mean() > 0.99
