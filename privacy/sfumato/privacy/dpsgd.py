"""Differentially private SGD (Abadi et al. 2016) inside one branch; the only place that imports Opacus.

Opacus gives the per-customer gradients and the order of the steps. Ours are: Poisson sampling and noise from
`privacy.noise`; clipping and summing in float64; a denominator that is given from outside, never counted.
One step costs dp_accounting's PoissonSampledDpEvent(sample_rate, GaussianDpEvent(noise_multiplier)), under
add/remove of one customer (one row here).

A sum of n clipped gradients in float64 is exact to n * 2^-53 of its size; that is the sensitivity's slack.

Phantom customers (privacy.phantoms) are a block of parameters beside the real ones, which no customer moves: the
same sampling, clipping, summing and noise, so that a fault in any of them shows in the block.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sfumato.common.learners.churn_net import MOMENTUM
from sfumato.common.learners.encoding import Encoded
from sfumato.privacy import clipped_gradients
from sfumato.privacy.adaptive_clipping import AdaptiveBound
from sfumato.privacy.clipped_gradients import DenseGradients, Gradients
from sfumato.privacy.noise import SecureRandom
from sfumato.privacy.phantoms import Phantoms

OptimizerName = Literal["adam", "sgd"]
PHYSICAL_BATCH = 512  # rows whose gradients are held at once: memory, not meaning
BOOKKEEPING_BATCH = 4096


@dataclass(frozen=True)
class OptimizerState:
    """The optimiser's moments after a call, for the next. Made of noisy gradients only; kept in the vault.

    `phantoms` [slots]: the noisy sums in the phantom slots, added up over the call's steps.
    """

    name: OptimizerName
    state: dict[str, Any]
    phantoms: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


class SecureDPOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with our clipping (float64, NaN-proof) and our noise. `rng` is the noise source.

    `phantom`: a parameter that is clipped, summed and noised with the others, and never stepped; its noisy sums
    add up in `phantom_total`.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        rng: SecureRandom,
        phantom: Any = None,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._rng = rng
        self.blocks = [*self.params, *([] if phantom is None else [phantom])]
        self._phantom = phantom
        self.phantom_total = np.zeros(0 if phantom is None else phantom.numel())

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        if self._phantom is not None:
            self._phantom.grad_sample = None
            if not self._is_last_step_skipped:
                self._phantom.summed_grad = None

    def clip_and_accumulate(self) -> None:
        """Add the clipped gradients of the rows at hand to `p.summed_grad`, float64."""
        add_clipped(self.blocks, self.max_grad_norm)

    def add_noise(self) -> None:
        """Gaussian noise of std noise_multiplier * max_grad_norm on every coordinate of the sum."""
        std = self.noise_multiplier * self.max_grad_norm
        noise = torch.from_numpy(self._rng.gaussian(sum(p.numel() for p in self.blocks), std))
        start = 0
        for p in self.blocks:
            part = noise[start : start + p.numel()].view_as(p)
            p.grad = (p.summed_grad + part).to(p.dtype)
            start += p.numel()
        if self._phantom is not None and self._phantom.grad is not None:
            self.phantom_total += self._phantom.grad.numpy()


def clip_factors(norm: torch.Tensor, bound: float) -> torch.Tensor:
    """What each row is multiplied by, so that its norm (float64 [n]) is at most `bound`.

    A row whose norm is not finite adds nothing: it can neither exceed the bound nor poison the sum.
    """
    return torch.where(torch.isfinite(norm), (bound / norm).clamp(max=1.0), 0.0)


def add_clipped(blocks: Sequence[Any], bound: float) -> None:
    """Clip the rows of `p.grad_sample` to a joint norm of `bound` and add their sum to `p.summed_grad`, float64."""
    samples = [p.grad_sample.detach().flatten(1) for p in blocks]
    norms = torch.stack([torch.linalg.vector_norm(g, dim=1, dtype=torch.float64) for g in samples])
    norm = torch.linalg.vector_norm(norms, dim=0)
    factor = clip_factors(norm, bound)
    finite = torch.isfinite(norm)
    if not bool(finite.all()):
        samples = [torch.where(finite.unsqueeze(1), g, 0.0) for g in samples]  # 0 * NaN is NaN
    for p, g in zip(blocks, samples, strict=True):
        summed = (factor @ g.double()).view_as(p)
        p.summed_grad = summed if getattr(p, "summed_grad", None) is None else p.summed_grad + summed


class GradientSums:
    """Sums of clipped per-customer gradients of one net on one branch's customers, step after step, without noise.

    Whoever releases one makes it a bounded sum first. The net's weights may change between calls; its customers,
    bound and phantoms may not. The churn net's gradients are never written out (privacy.clipped_gradients); any other
    net's are, by Opacus. Raises ValueError on a bad bound, unequal lengths, or a layer that mixes customers.
    """

    def __init__(
        self,
        net: nn.Module,
        encoded: Encoded,
        labels: npt.NDArray[Any],
        *,
        max_grad_norm: float,
        phantoms: Phantoms | None = None,
    ) -> None:
        _check(net, encoded, labels, max_grad_norm=max_grad_norm)
        self._net, self._bound = net, max_grad_norm
        self._rows = np.zeros((0, 0)) if phantoms is None else phantoms.rows(max_grad_norm)
        self._inputs = [torch.from_numpy(x) for x in encoded.inputs]
        self._target = torch.from_numpy(np.asarray(labels, dtype=np.float32))
        self._size = sum(p.numel() for p in net.parameters())

    def __call__(
        self, *, sample_rate: float, rng: SecureRandom, adaptive: AdaptiveBound | None = None
    ) -> npt.NDArray[np.float64]:
        """The sum over a Poisson sample: float64 [P + slots], weights in the order of net.parameters().

        With `adaptive`, [P + 1 + slots], where each customer's vector is at most 1 long (privacy.adaptive_clipping):
        so `max_grad_norm`, to which phantoms are clipped, must be 1. Raises ValueError if it is not, or on a rate
        outside [0, 1].
        """
        if adaptive is not None and self._bound != 1:
            raise ValueError("max_grad_norm must be 1 where the bound is adaptive")
        customers = self._target.numel()
        taken = rng.poisson_sample(customers + len(self._rows), sample_rate)
        real, phantoms = np.split(taken, [np.searchsorted(taken, customers)])
        length = self._size + (adaptive is not None)
        total = np.zeros(length + self._rows.shape[1])
        for gradients in self._gradients(real):
            total[:length] += self._clipped_sum(gradients, adaptive)
        total[length:] += self._clipped_sum(
            DenseGradients(torch.from_numpy(self._rows[phantoms - customers])), None
        )
        return total

    def _clipped_sum(self, gradients: Gradients, adaptive: AdaptiveBound | None) -> npt.NDArray[np.float64]:
        norms = gradients.norms()
        if adaptive is None:
            return gradients.weighted_sum(clip_factors(norms, self._bound)).numpy()
        factors = clip_factors(norms, adaptive.bound) * (adaptive.gradient / adaptive.bound)
        signs = 2 * (norms <= adaptive.bound).double() - 1  # NaN is not within
        return torch.cat([gradients.weighted_sum(factors), adaptive.sign * signs.sum()[None]]).numpy()

    def _gradients(self, rows: npt.NDArray[np.int64]) -> Iterator[Gradients]:
        net = self._net
        if clipped_gradients.supports(net):
            for chunk in _chunks(rows, BOOKKEEPING_BATCH):
                inputs = [x[chunk] for x in self._inputs]
                yield clipped_gradients.differentiate(net, inputs, self._target[chunk])
            return
        with per_customer_gradients(net) as module:
            for chunk in _chunks(rows, PHYSICAL_BATCH):
                logit = module(*(x[chunk] for x in self._inputs))
                loss = binary_cross_entropy_with_logits(logit, self._target[chunk], reduction="sum")
                torch.autograd.backward(loss)
                parameters: list[Any] = list(net.parameters())
                samples = [p.grad_sample.detach().flatten(1) for p in parameters]
                yield DenseGradients(torch.cat(samples, dim=1).double())
                module.zero_grad(set_to_none=True)


def _chunks(rows: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def train(
    net: nn.Module,
    encoded: Encoded,
    labels: npt.NDArray[Any],
    *,
    steps: int,
    sample_rate: float,
    noise_multiplier: float,
    max_grad_norm: float,
    learning_rate: float,
    optimizer: OptimizerName,
    expected_batch_size: float,
    rng: SecureRandom,
    proximal_mu: float = 0.0,
    state: OptimizerState | None = None,
    phantoms: Phantoms | None = None,
) -> OptimizerState:
    """Take `steps` noisy steps on the log-loss, in place. Labels are 0/1, [n].

    `proximal_mu` adds mu/2 |w - w0|^2 to it, w0 the weights that came in (FedProx; Li et al. 2020, section 3.2): its
    gradient joins the noisy mean, depends on released weights alone, and costs nothing.

    `expected_batch_size` divides the noisy sum: a public number or a charged count times the rate. `state`
    continues the optimiser of an earlier call. `phantoms` are taken in beside the customers, and what their slots
    showed is in the state that is returned; no weight depends on them.

    Raises ValueError on a bad parameter, unequal lengths, or a layer that mixes customers (batch norm); nothing is
    trained then.
    """
    if steps < 1:
        raise ValueError("steps must be at least 1")
    if not 0 <= proximal_mu < float("inf"):
        raise ValueError("proximal_mu must not be negative, and finite")
    _check(
        net,
        encoded,
        labels,
        noise_multiplier=noise_multiplier,
        max_grad_norm=max_grad_norm,
        expected_batch_size=expected_batch_size,
    )
    with per_customer_gradients(net) as module:
        inner = _optimizer(net, optimizer, learning_rate)
        if state is not None and state.name == optimizer:
            inner.load_state_dict(state.state)
            for group in inner.param_groups:
                group["lr"] = learning_rate
        rows = None if phantoms is None or phantoms.slots == 0 else phantoms.rows(max_grad_norm)
        secure = SecureDPOptimizer(
            inner,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            rng=rng,
            phantom=None if rows is None else _phantom_block(rows),
        )
        if proximal_mu:
            secure.attach_step_hook(_pull_back(net, proximal_mu))
        batches = _Batches(module, secure.blocks, encoded, labels, rows)
        for _ in range(steps):
            _step(secure, batches, rng.poisson_sample(len(batches), sample_rate))
        return OptimizerState(optimizer, inner.state_dict(), secure.phantom_total)


@contextmanager
def per_customer_gradients(net: nn.Module) -> Iterator[GradSampleModule]:
    """The net with Opacus' hooks; afterwards nothing of a customer, and no hook, is left on it."""
    net.train()  # Opacus records nothing otherwise
    module = GradSampleModule(net, loss_reduction="sum")
    try:
        with warnings.catch_warnings():
            # True of every net whose inputs are data; the hooks see the layers' gradients all the same.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield module
    finally:
        module.remove_hooks()
        for p in net.parameters():
            for name in ("grad_sample", "summed_grad"):
                if hasattr(p, name):
                    delattr(p, name)
            p.grad = None
        net.eval()


def _pull_back(net: nn.Module, mu: float) -> Callable[[DPOptimizer], None]:
    """Adds mu (w - w0) to the noisy mean gradient, once it is one; w0 is where the weights are now."""
    anchors = [(p, p.detach().clone()) for p in net.parameters()]

    def pull(_: DPOptimizer) -> None:
        for p, anchor in anchors:
            assert p.grad is not None
            p.grad.add_(p.detach() - anchor, alpha=mu)

    return pull


def _phantom_block(rows: npt.NDArray[np.float64]) -> Any:
    return nn.Parameter(torch.zeros(rows.shape[1], dtype=torch.float64))


class _Batches:
    """Customers and, behind them, phantom customers: their gradients, chunk by chunk, into `p.grad_sample`.

    Customers have zeros in the phantom block, which comes last in `blocks`, and phantoms in all the others.
    """

    def __init__(
        self,
        module: GradSampleModule,
        blocks: Sequence[Any],
        encoded: Encoded,
        labels: npt.NDArray[Any],
        phantoms: npt.NDArray[np.float64] | None,
    ) -> None:
        self._module, self._blocks, self._encoded = module, blocks, encoded
        self._target = torch.from_numpy(np.asarray(labels, dtype=np.float32))
        self._phantoms = phantoms

    def __len__(self) -> int:
        return len(self._encoded) + (0 if self._phantoms is None else len(self._phantoms))

    def chunks(self, rows: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
        """Customers in physical batches, then the phantoms; an empty one if there is nobody at all."""
        customers, phantoms = np.split(rows, [np.searchsorted(rows, len(self._encoded))])
        parts = _chunks(customers, PHYSICAL_BATCH)
        return [*parts, phantoms] if phantoms.size or not parts else parts

    def differentiate(self, chunk: npt.NDArray[np.int64]) -> None:
        customers = chunk.size > 0 and int(chunk[0]) < len(self._encoded)
        if customers:
            logit = self._module(*(torch.from_numpy(x[chunk]) for x in self._encoded.inputs))
            loss = binary_cross_entropy_with_logits(logit, self._target[chunk], reduction="sum")
            torch.autograd.backward(loss)
        real = self._blocks if self._phantoms is None else self._blocks[:-1]
        if not customers:
            for p in real:
                p.grad_sample = p.new_zeros((chunk.size, *p.shape))
        if self._phantoms is not None:
            taken = np.zeros((chunk.size, self._phantoms.shape[1]))
            if not customers:
                taken = self._phantoms[chunk - len(self._encoded)]
            self._blocks[-1].grad_sample = torch.from_numpy(taken)


def _step(optimizer: SecureDPOptimizer, batches: _Batches, rows: npt.NDArray[np.int64]) -> None:
    """One noisy step on these rows; on none of them, a step of noise alone."""
    optimizer.zero_grad(set_to_none=True)
    chunks = batches.chunks(rows)
    for i, chunk in enumerate(chunks):
        batches.differentiate(chunk)
        last = i == len(chunks) - 1
        optimizer.signal_skip_step(do_skip=not last)
        optimizer.step()
        if not last:
            optimizer.zero_grad(set_to_none=True)


def _optimizer(net: nn.Module, name: OptimizerName, learning_rate: float) -> torch.optim.Optimizer:
    if name == "adam":
        return torch.optim.Adam(net.parameters(), lr=learning_rate)
    if name == "sgd":
        return torch.optim.SGD(net.parameters(), lr=learning_rate, momentum=MOMENTUM)
    raise ValueError(f"optimizer must be adam or sgd, got {name!r}")


def _check(net: nn.Module, encoded: Encoded, labels: npt.NDArray[Any], **positive: float) -> None:
    was_training = net.training
    faults = ModuleValidator.validate(net.train(), strict=False)  # in eval mode it refuses every net
    net.train(was_training)
    if faults:
        raise ValueError("the net has a layer that mixes customers or that Opacus cannot clip")
    if len(labels) != len(encoded):
        raise ValueError(f"{len(encoded)} customers but {len(labels)} labels")
    for name, value in positive.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite")
