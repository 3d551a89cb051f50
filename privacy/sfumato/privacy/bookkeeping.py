"""Per-customer gradients of the churn net that are never written out (book-keeping: Bu et al. 2023).

A layer's gradient for one customer is the product of what went in and of what came back, so its norm and a
weighted sum of many need only those two. In float64 from there on. `privacy.dpsgd` clips; Opacus does the same for
every other net, and the tests hold the two against each other.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sfumato.common.learners.churn_net import ChurnNet

Floats = npt.NDArray[np.float64]


class Gradients(Protocol):
    """The gradients of n customers: their norms [n], and their sum with these weights [P]; both float64."""

    def norms(self) -> Floats: ...

    def weighted_sum(self, weights: Floats) -> Floats: ...


@dataclass(frozen=True, slots=True, repr=False)
class LinearLayer:
    """What went in [n, inputs] and what came back [n, outputs]: weight and bias of an nn.Linear."""

    inputs: Floats
    back: Floats

    def squares(self) -> Floats:
        into = np.einsum("ni,ni->n", self.inputs, self.inputs) + 1.0  # the bias sees a constant 1
        return np.asarray(into * np.einsum("no,no->n", self.back, self.back), dtype=np.float64)

    def weighted_sum(self, weights: Floats) -> Floats:
        weights, inputs, back = _without_zeros(weights, self.inputs, self.back)
        weighted = back.T * weights
        return np.concatenate([(weighted @ inputs).ravel(), weighted.sum(axis=1)])


@dataclass(frozen=True, slots=True, repr=False)
class EmbeddingLayer:
    """Rows [n, F], no row twice in a customer, and what came back [n, F, dim]: an nn.Embedding of `size` rows."""

    rows: npt.NDArray[np.int64]
    back: Floats
    size: int

    def squares(self) -> Floats:
        return np.asarray(np.einsum("nfd,nfd->n", self.back, self.back), dtype=np.float64)

    def weighted_sum(self, weights: Floats) -> Floats:
        weights, rows, back = _without_zeros(weights, self.rows, self.back)
        flat, weighted = rows.ravel(), back * weights[:, None, None]
        columns = [np.bincount(flat, weighted[:, :, i].ravel(), self.size) for i in range(self.back.shape[2])]
        return np.asarray(np.stack(columns, axis=1).ravel(), dtype=np.float64)


@dataclass(frozen=True, slots=True, repr=False)
class LayerGradients:
    """The gradients of a batch, layer by layer in the order of net.parameters()."""

    layers: tuple[LinearLayer | EmbeddingLayer, ...]

    def norms(self) -> Floats:
        return np.asarray(np.sqrt(np.sum([layer.squares() for layer in self.layers], axis=0)))

    def weighted_sum(self, weights: Floats) -> Floats:
        return np.concatenate([layer.weighted_sum(weights) for layer in self.layers])


@dataclass(frozen=True, slots=True, repr=False)
class DenseGradients:
    """Gradients that are written out: float64 [n, P]."""

    rows: Floats

    def norms(self) -> Floats:
        return np.asarray(np.linalg.norm(self.rows, axis=1), dtype=np.float64)

    def weighted_sum(self, weights: Floats) -> Floats:
        weights, rows = _without_zeros(weights, self.rows)
        return np.asarray(weights @ rows)


def _without_zeros(weights: Floats, *values: Any) -> tuple[Any, ...]:
    """Without the customers of weight zero, whose gradient may not be finite: 0 * NaN is NaN."""
    keep = weights != 0
    return (weights, *values) if keep.all() else (weights[keep], *(v[keep] for v in values))


def supports(net: nn.Module) -> bool:
    """Whether every layer is used once, and no customer meets an embedding's row twice: true of the churn net."""
    return type(net) is ChurnNet


def differentiate(
    net: nn.Module, codes: torch.Tensor, numeric: torch.Tensor, target: torch.Tensor
) -> LayerGradients:
    """The gradients of each customer's log-loss. Raises TypeError on a net that is not supported."""
    if not supports(net):
        raise TypeError("Expected a churn net.")
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    seen: dict[nn.Module, tuple[torch.Tensor, torch.Tensor]] = {}

    def record(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        seen[layer] = (inputs[0].detach(), output)

    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        loss = binary_cross_entropy_with_logits(net(codes, numeric), target, reduction="sum")
        backs = torch.autograd.grad(loss, [seen[layer][1] for layer in layers])
    finally:
        for hook in hooks:
            hook.remove()
    return LayerGradients(tuple(_layer(m, seen[m][0], back) for m, back in zip(layers, backs, strict=True)))


def _layer(layer: nn.Module, inputs: torch.Tensor, back: torch.Tensor) -> LinearLayer | EmbeddingLayer:
    if isinstance(layer, nn.Embedding):
        return EmbeddingLayer(inputs.numpy(), back.double().numpy(), layer.num_embeddings)
    return LinearLayer(inputs.double().numpy(), back.double().numpy())
