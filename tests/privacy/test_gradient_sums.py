"""Sums of clipped gradients: book-keeping against a loop over customers in double precision, and against Opacus."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sfumato.common.job import Model
from sfumato.common.learners import churn_net
from sfumato.common.learners.churn_net import ChurnNet
from sfumato.common.learners.encoding import Encoded
from sfumato.privacy import clipped_gradients, dpsgd
from sfumato.privacy.noise import SecureRandom
from sfumato.privacy.phantoms import Phantoms

SEED = bytes(range(32))
CARDINALITIES = (3, 5, 2)
COINS = Phantoms(2, np.array([True, False, True]))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def customers(n: int) -> tuple[Encoded, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = np.stack([rng.integers(0, c, n) for c in CARDINALITIES], axis=1)
    return Encoded(codes, rng.uniform(-1, 1, (n, 2)).astype(np.float32), CARDINALITIES), rng.integers(0, 2, n)


RECURRENT = Model(
    architecture="recurrent", sequence=("a", "b", "c"), months=6, state=3, hidden=(4,), embedding_dim=2
)


def with_months(n: int) -> tuple[Encoded, np.ndarray]:
    encoded, labels = customers(n)
    months = np.random.default_rng(1).uniform(-1, 1, (n, 6, 3)).astype(np.float32)
    return Encoded(encoded.codes, encoded.numeric, CARDINALITIES, months), labels


def recurrent_net(seed: int = 3) -> ChurnNet:
    net = ChurnNet(CARDINALITIES, 2, RECURRENT, seed=seed)
    churn_net.load(net, np.random.default_rng(seed).normal(0, 0.7, churn_net.size(net)).astype(np.float32))
    return net


def net_of(hidden: tuple[int, ...] = (4,), seed: int = 3) -> ChurnNet:
    net = ChurnNet(CARDINALITIES, 2, Model(hidden=hidden, embedding_dim=2), seed=seed)
    vector = np.random.default_rng(seed).normal(0, 0.7, churn_net.size(net)).astype(np.float32)
    churn_net.load(net, vector)
    return net


class Wrapped(nn.Module):
    """The same net under another type: Opacus does the gradients."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.net(*inputs)


def summed(
    net: nn.Module,
    n: int = 300,
    rate: float = 1.0,
    bound: float = 0.3,
    given: Any = customers,
    **more: object,
) -> np.ndarray:
    sums = dpsgd.GradientSums(net, *given(n), max_grad_norm=bound, **more)  # type: ignore[arg-type]
    return sums(sample_rate=rate, rng=SecureRandom(SEED))


def one_by_one(
    net: nn.Module, rows: np.ndarray, encoded: Encoded, labels: np.ndarray, bound: float
) -> np.ndarray:
    net = copy.deepcopy(net).double()
    total = np.zeros(churn_net.size(net))
    for i in rows:
        net.zero_grad()
        one = encoded.take(np.array([i]))
        logit = net(torch.from_numpy(one.codes), *(torch.from_numpy(x).double() for x in one.inputs[1:]))
        binary_cross_entropy_with_logits(logit, torch.tensor([labels[i]]).double()).backward()
        gradient = np.concatenate([p.grad.reshape(-1).numpy() for p in net.parameters()])
        total += gradient * min(1.0, bound / np.linalg.norm(gradient))
    return total


@pytest.mark.parametrize("hidden", [(), (4,), (5, 3)])
@pytest.mark.parametrize("bound", [0.3, 100.0])
def test_the_sum_is_the_naive_one_to_a_millionth(hidden: tuple[int, ...], bound: float) -> None:
    net = net_of(hidden)
    wanted = one_by_one(net, np.arange(300), *customers(300), bound)
    assert np.linalg.norm(summed(net, bound=bound) - wanted) < 1e-6 * np.linalg.norm(wanted)


@pytest.mark.parametrize("bound", [0.3, 100.0])
def test_the_recurrent_sum_is_the_naive_one_to_a_millionth(bound: float) -> None:
    net = recurrent_net()
    wanted = one_by_one(net, np.arange(200), *with_months(200), bound)
    assert np.linalg.norm(
        summed(net, n=200, bound=bound, given=with_months) - wanted
    ) < 1e-6 * np.linalg.norm(wanted)


def test_the_recurrent_sum_is_that_of_opacus_and_phantoms_stand_behind_it() -> None:
    net = recurrent_net()
    ours = summed(net, given=with_months, phantoms=COINS)
    opacus = summed(Wrapped(net), given=with_months, phantoms=COINS)
    assert np.linalg.norm(ours - opacus) < 1e-6 * np.linalg.norm(opacus)
    assert np.allclose(ours[-5:], [0, 0, 0.3, 0, 0.3], rtol=1e-12)


def test_months_that_cancel_move_the_sum_by_the_bound_at_most() -> None:
    """Huge weights, so that what each month adds is far larger than their sum: what is clipped is what is summed."""
    net, (encoded, labels) = recurrent_net(), with_months(60)
    churn_net.load(net, (churn_net.flatten(net) * np.float32(30)).astype(np.float32))

    def total(rows: np.ndarray) -> np.ndarray:
        sums = dpsgd.GradientSums(net, encoded.take(rows), labels[rows], max_grad_norm=0.25)
        return sums(sample_rate=1.0, rng=SecureRandom(SEED))

    everyone = total(np.arange(60))
    moved = [np.linalg.norm(everyone - total(np.arange(60) != i)) for i in range(20)]
    assert 0.2499 < max(moved) <= 0.25 * (1 + 1e-9)


def test_a_sample_is_the_one_that_the_source_draws() -> None:
    net, (encoded, labels) = net_of(), customers(300)
    rows = SecureRandom(SEED).poisson_sample(300, 0.2)
    assert 0 < rows.size < 120
    wanted = one_by_one(net, rows, encoded, labels, 0.3)
    assert np.linalg.norm(summed(net, rate=0.2) - wanted) < 1e-6 * np.linalg.norm(wanted)


@pytest.mark.parametrize("n", [1, 700, 9000])  # 9000: more than two physical batches of either way
def test_book_keeping_and_opacus_give_the_same(n: int) -> None:
    net = net_of()
    ours = summed(net, n=n, phantoms=COINS)
    opacus = summed(Wrapped(net), n=n, phantoms=COINS)
    assert ours.dtype == np.float64
    assert np.linalg.norm(ours - opacus) < 1e-6 * np.linalg.norm(opacus)


@pytest.mark.parametrize("wrap", [lambda net: net, Wrapped])
def test_phantoms_are_clipped_and_stand_behind_the_weights(wrap: type) -> None:
    net = wrap(net_of())
    plain, with_phantoms = summed(net, bound=0.25), summed(net, bound=0.25, phantoms=COINS)
    assert (with_phantoms[: plain.size] == plain).all()
    assert np.allclose(with_phantoms[plain.size :], [0, 0, 0.25, 0, 0.25], rtol=1e-12)


@pytest.mark.parametrize("wrap", [lambda net: net, Wrapped])
def test_phantoms_are_sampled_as_customers_are(wrap: type) -> None:
    """100 canaries at rate 0.1: between 1 and 25 in a step (false alarm 2e-5 a case)."""
    phantoms = Phantoms(0, np.ones(100, dtype=np.bool_))
    slots = summed(wrap(net_of()), rate=0.1, phantoms=phantoms)[-100:]
    assert set(np.round(slots, 9)) == {0.0, 0.3}
    assert 1 <= (slots > 0).sum() <= 25


def test_nobody_gives_zeros() -> None:
    assert not summed(net_of(), rate=0.0, phantoms=COINS).any()
    assert not summed(Wrapped(net_of()), n=0).any()


@pytest.mark.parametrize("wrap", [lambda net: net, Wrapped])
@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_a_row_from_nowhere_moves_the_sum_by_the_bound_at_most(wrap: type, value: float) -> None:
    net, (encoded, labels) = wrap(net_of()), customers(50)
    numeric = encoded.numeric.copy()
    numeric[7] = value
    hostile, others = Encoded(encoded.codes, numeric, CARDINALITIES), np.arange(50) != 7
    everyone, without = (
        dpsgd.GradientSums(net, *given, max_grad_norm=0.25)(sample_rate=1.0, rng=SecureRandom(SEED))
        for given in ((hostile, labels), (hostile.take(others), labels[others]))
    )
    assert np.isfinite(everyone).all()
    assert np.linalg.norm(everyone - without) <= 0.25 * (1 + 1e-9)


def test_sums_follow_the_weights_and_leave_nothing_on_the_net() -> None:
    net, (encoded, labels) = net_of(), customers(300)
    sums = dpsgd.GradientSums(net, encoded, labels, max_grad_norm=0.3)
    before = sums(sample_rate=1.0, rng=SecureRandom(SEED))
    churn_net.load(net, churn_net.flatten(net_of(seed=5)))
    after = sums(sample_rate=1.0, rng=SecureRandom(SEED))
    assert np.linalg.norm(after - before) > 0.1
    assert (after == summed(net_of(seed=5))).all()
    churn_net.logits(net, encoded)  # puts it into eval mode
    assert (sums(sample_rate=1.0, rng=SecureRandom(SEED)) == after).all()
    for p in net.parameters():
        assert p.grad is None
        assert not hasattr(p, "grad_sample")
    assert not any(m._forward_hooks for m in net.modules())


def test_bad_settings_are_refused() -> None:
    encoded, labels = customers(10)
    with pytest.raises(ValueError, match="max_grad_norm"):
        dpsgd.GradientSums(net_of(), encoded, labels, max_grad_norm=0.0)
    with pytest.raises(ValueError, match="10 customers but 9 labels"):
        dpsgd.GradientSums(net_of(), encoded, labels[:9], max_grad_norm=1.0)
    with pytest.raises(ValueError, match="rate"):
        summed(net_of(), rate=1.5)
    with pytest.raises(TypeError, match="churn net"):
        clipped_gradients.differentiate(nn.Linear(2, 1), [torch.zeros(1, 2)], torch.zeros(1))


# --- phantom slots of local DP-SGD ---------------------------------------------------------------------------


def trained(steps: int = 4, **more: object) -> tuple[np.ndarray, np.ndarray]:
    net, (encoded, labels) = net_of(), customers(100)
    settings = {"sample_rate": 1.0, "noise_multiplier": 1e-12, "phantoms": COINS} | more
    state = dpsgd.train(
        net, encoded, labels, steps=steps, max_grad_norm=0.25, learning_rate=0.1, optimizer="adam",
        expected_batch_size=100.0, rng=SecureRandom(SEED), **settings,  # type: ignore[arg-type]
    )  # fmt: skip
    return churn_net.flatten(net), state.phantoms


def test_a_recurrent_net_is_trained_in_a_branch_along_its_clipped_gradients() -> None:
    net, (encoded, labels) = recurrent_net(), with_months(80)
    before = churn_net.flatten(net).astype(np.float64)
    wanted = one_by_one(net, np.arange(80), encoded, labels, 0.25)
    dpsgd.train(
        net, encoded, labels, steps=1, sample_rate=1.0, noise_multiplier=1e-12, max_grad_norm=0.25,
        learning_rate=1.0, optimizer="sgd", expected_batch_size=80.0, rng=SecureRandom(SEED),
    )  # fmt: skip
    moved = 80 * (before - churn_net.flatten(net))
    assert np.abs(moved - wanted).max() < 2e-4 * np.abs(wanted).max()


def test_training_shows_its_phantoms_and_is_not_moved_by_them() -> None:
    with_phantoms, slots = trained()
    without, nothing = trained(phantoms=None)
    assert np.allclose(slots, [0, 0, 1.0, 0, 1.0], atol=1e-9)
    assert nothing.size == 0
    assert np.allclose(with_phantoms, without, atol=1e-7)


def test_training_without_customers_takes_its_phantoms_and_noise_on_all_slots() -> None:
    net, (encoded, labels) = net_of(), customers(0)
    state = dpsgd.train(
        net, encoded, labels, steps=1, sample_rate=1.0, noise_multiplier=1.0, max_grad_norm=0.25, learning_rate=0.1,
        optimizer="sgd", expected_batch_size=1.0, rng=SecureRandom(SEED), phantoms=COINS,
    )  # fmt: skip
    assert np.unique(state.phantoms).size == COINS.slots


def test_the_state_of_phantoms_is_carried_into_the_next_call_by_nobody() -> None:
    net, (encoded, labels) = net_of(), customers(100)
    state = None
    for _ in range(2):
        state = dpsgd.train(
            net, encoded, labels, steps=2, sample_rate=1.0, noise_multiplier=1e-12, max_grad_norm=0.25,
            learning_rate=0.1, optimizer="adam", expected_batch_size=100.0, rng=SecureRandom(SEED), state=state,
            phantoms=COINS,
        )  # fmt: skip
        assert np.allclose(state.phantoms, [0, 0, 0.5, 0, 0.5], atol=1e-9)
