"""Differentially private SGD (Abadi et al. 2016) inside one branch; the only place that imports Opacus.

Opacus gives the per-customer gradients and the order of the steps. Ours are: Poisson sampling and noise from
`privacy.noise`; clipping and summing in float64; a denominator that is given from outside, never counted.
One step costs dp_accounting's PoissonSampledDpEvent(sample_rate, GaussianDpEvent(noise_multiplier)), under
add/remove of one customer (one row here).

A sum of n clipped gradients in float64 is exact to n * 2^-53 of its size; that is the sensitivity's slack.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from opacus.grad_sample import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sfumato.common.learners.encoding import Encoded
from sfumato.privacy.noise import SecureRandom

OptimizerName = Literal["adam", "sgd"]
MOMENTUM = 0.9
PHYSICAL_BATCH = 512  # rows whose gradients are held at once: memory, not meaning


@dataclass(frozen=True)
class OptimizerState:
    """The optimiser's moments after a call, for the next. Made of noisy gradients only; kept in the vault."""

    name: OptimizerName
    state: dict[str, Any]


class SecureDPOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with our clipping (float64, NaN-proof) and our noise. `rng` is the noise source."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        rng: SecureRandom,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            loss_reduction="mean",
        )
        self._rng = rng

    def clip_and_accumulate(self) -> None:
        """Add the clipped gradients of the rows at hand to `p.summed_grad`, float64.

        A row whose gradient is not finite adds nothing: it can neither exceed the bound nor poison the sum.
        """
        samples = [g.detach().flatten(1) for g in self.grad_samples]
        norms = torch.stack([torch.linalg.vector_norm(g, dim=1, dtype=torch.float64) for g in samples])
        norm = torch.linalg.vector_norm(norms, dim=0)
        finite = torch.isfinite(norm)
        factor = torch.where(finite, (self.max_grad_norm / norm).clamp(max=1.0), 0.0)
        if not bool(finite.all()):
            samples = [torch.where(finite.unsqueeze(1), g, 0.0) for g in samples]  # 0 * NaN is NaN
        for p, g in zip(self.params, samples, strict=True):
            summed = (factor @ g.double()).view_as(p)
            p.summed_grad = summed if p.summed_grad is None else p.summed_grad + summed

    def add_noise(self) -> None:
        """Gaussian noise of std noise_multiplier * max_grad_norm on every coordinate of the sum."""
        std = self.noise_multiplier * self.max_grad_norm
        noise = torch.from_numpy(self._rng.gaussian(sum(p.numel() for p in self.params), std))
        start = 0
        for p in self.params:
            part = noise[start : start + p.numel()].view_as(p)
            p.grad = (p.summed_grad + part).to(p.dtype)
            start += p.numel()


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
    state: OptimizerState | None = None,
) -> OptimizerState:
    """Take `steps` noisy steps on the log-loss, in place. Labels are 0/1, [n].

    `expected_batch_size` divides the noisy sum: a public number or a charged count times the rate. `state`
    continues the optimiser of an earlier call. Raises ValueError on a bad parameter, unequal lengths, or a
    layer that mixes customers (batch norm); nothing is trained then.
    """
    net.train()
    _check(net, encoded, labels, steps, noise_multiplier, max_grad_norm, expected_batch_size)
    module = GradSampleModule(net, loss_reduction="sum")
    try:
        inner = _optimizer(net, optimizer, learning_rate)
        if state is not None and state.name == optimizer:
            inner.load_state_dict(state.state)
            for group in inner.param_groups:
                group["lr"] = learning_rate
        secure = SecureDPOptimizer(
            inner,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
            rng=rng,
        )
        target = torch.from_numpy(np.asarray(labels, dtype=np.float32))
        with warnings.catch_warnings():
            # True of every net whose inputs are data; the hooks see the layers' gradients all the same.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            for _ in range(steps):
                _step(module, secure, encoded, target, rng.poisson_sample(len(encoded), sample_rate))
        return OptimizerState(optimizer, inner.state_dict())
    finally:
        module.remove_hooks()
        for p in net.parameters():
            for name in ("grad_sample", "summed_grad"):
                if hasattr(p, name):
                    delattr(p, name)
            p.grad = None
        net.eval()


def _step(
    module: GradSampleModule,
    optimizer: SecureDPOptimizer,
    encoded: Encoded,
    target: torch.Tensor,
    rows: npt.NDArray[np.int64],
) -> None:
    """One noisy step on these rows; on none of them, a step of noise alone."""
    optimizer.zero_grad(set_to_none=True)
    chunks = [rows[i : i + PHYSICAL_BATCH] for i in range(0, len(rows), PHYSICAL_BATCH)] or [rows]
    for i, chunk in enumerate(chunks):
        if len(chunk):
            codes, numeric = torch.from_numpy(encoded.codes[chunk]), torch.from_numpy(encoded.numeric[chunk])
            logit = module(codes, numeric)
            loss = binary_cross_entropy_with_logits(logit, target[chunk], reduction="sum")
            torch.autograd.backward(loss)
        else:
            for p in optimizer.params:
                p.grad_sample = p.new_zeros((0, *p.shape))
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


def _check(
    net: nn.Module,
    encoded: Encoded,
    labels: npt.NDArray[Any],
    steps: int,
    noise_multiplier: float,
    max_grad_norm: float,
    expected_batch_size: float,
) -> None:
    if ModuleValidator.validate(net, strict=False):
        raise ValueError("the net has a layer that mixes customers or that Opacus cannot clip")
    if len(labels) != len(encoded):
        raise ValueError(f"{len(encoded)} customers but {len(labels)} labels")
    if steps < 1:
        raise ValueError("steps must be at least 1")
    for name, value in [
        ("noise_multiplier", noise_multiplier),
        ("max_grad_norm", max_grad_norm),
        ("expected_batch_size", expected_batch_size),
    ]:
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite")
