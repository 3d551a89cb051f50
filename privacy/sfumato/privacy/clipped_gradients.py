"""Per-customer gradients of the churn net that are never written out (book-keeping: Bu et al. 2023).

A layer's gradient for one customer is the product of what went in and of what came back, so its norm and a
weighted sum of many need only those two. In float64 from there on, and in torch, whose threads are ours to limit:
numpy's BLAS spins on busy cores. `privacy.dpsgd` clips. Opacus does the same for every other net, and the tests
hold the two against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sfumato.common.learners.churn_net import ChurnNet


class Gradients(Protocol):
    """The gradients of n customers: their norms [n], and their sum with these weights [P]; float64 tensors."""

    def norms(self) -> Tensor: ...

    def weighted_sum(self, weights: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True, repr=False)
class LinearLayer:
    """What went in [n, inputs] and what came back [n, outputs]: weight and bias of an nn.Linear."""

    inputs: Tensor
    back: Tensor

    def squares(self) -> Tensor:
        into = self.inputs.square().sum(dim=1) + 1.0  # the bias sees a constant 1
        return into * self.back.square().sum(dim=1)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        weights, inputs, back = _without_zeros(weights, self.inputs, self.back)
        weighted = back.T * weights
        return torch.cat([(weighted @ inputs).flatten(), weighted.sum(dim=1)])


@dataclass(frozen=True, slots=True, repr=False)
class EmbeddingLayer:
    """Rows [n, F], no row twice in a customer, and what came back [n, F, dim]: an nn.Embedding of `size` rows."""

    rows: Tensor
    back: Tensor
    size: int

    def squares(self) -> Tensor:
        return self.back.square().sum(dim=(1, 2))

    def weighted_sum(self, weights: Tensor) -> Tensor:
        weights, rows, back = _without_zeros(weights, self.rows, self.back)
        flat, weighted = rows.flatten(), back * weights[:, None, None]
        columns = [torch.bincount(flat, weighted[:, :, i].flatten(), self.size) for i in range(back.shape[2])]
        return torch.stack(columns, dim=1).flatten()


@dataclass(frozen=True, slots=True, repr=False)
class LayerGradients:
    """The gradients of a batch, layer by layer in the order of net.parameters()."""

    layers: "tuple[LinearLayer | EmbeddingLayer | DenseGradients, ...]"

    def norms(self) -> Tensor:
        return torch.stack([layer.squares() for layer in self.layers]).sum(dim=0).sqrt()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        return torch.cat([layer.weighted_sum(weights) for layer in self.layers])


@dataclass(frozen=True, slots=True, repr=False)
class DenseGradients:
    """Gradients that are written out: float64 [n, P]; or a layer's part of them, with P as many as it has weights.

    A layer that is used again and again, as a recurrent one is, is written out: the norm of its sum over uses, told
    from what went in and came back, would be a difference of large numbers where a hostile net makes it one.
    """

    rows: Tensor

    @classmethod
    def of_linear(cls, inputs: Tensor, back: Tensor) -> "DenseGradients":
        """Weight and bias of an nn.Linear: what went in [n, uses, inputs], what came back [n, uses, outputs]."""
        weight = back.transpose(1, 2) @ inputs
        return cls(torch.cat([weight.flatten(1), back.sum(dim=1)], dim=1))

    def squares(self) -> Tensor:
        return self.rows.square().sum(dim=1)

    def norms(self) -> Tensor:
        return self.squares().sqrt()

    def weighted_sum(self, weights: Tensor) -> Tensor:
        weights, rows = _without_zeros(weights, self.rows)
        return torch.mv(rows.T, weights)


def _without_zeros(weights: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Without the customers of weight zero, whose gradient may not be finite: 0 * NaN is NaN."""
    keep = weights != 0
    return (weights, *values) if bool(keep.all()) else (weights[keep], *(v[keep] for v in values))


def supports(net: nn.Module) -> bool:
    """Whether all weights are in linear layers and embeddings, each embedding is used once, and no customer meets a
    row of it twice: true of the churn net."""
    return type(net) is ChurnNet


def differentiate(net: nn.Module, inputs: Sequence[Tensor], target: Tensor) -> LayerGradients:
    """The gradients of each customer's log-loss. Raises TypeError on a net that is not supported."""
    if not supports(net):
        raise TypeError("Expected a churn net.")
    layers = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    uses: list[tuple[nn.Module, Tensor, Tensor]] = []

    def record(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        uses.append((layer, inputs[0].detach(), output))

    hooks = [layer.register_forward_hook(record) for layer in layers]
    try:
        loss = binary_cross_entropy_with_logits(net(*inputs), target, reduction="sum")
        backs = torch.autograd.grad(loss, [output for _, _, output in uses])
    finally:
        for hook in hooks:
            hook.remove()
    seen: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}
    for (layer, went_in, _), back in zip(uses, backs, strict=True):
        seen[layer].append((went_in, back))
    return LayerGradients(tuple(_layer(layer, seen[layer]) for layer in layers))


def _layer(
    layer: nn.Module, uses: list[tuple[Tensor, Tensor]]
) -> LinearLayer | EmbeddingLayer | DenseGradients:
    inputs, back = uses[0]
    if isinstance(layer, nn.Embedding):
        return EmbeddingLayer(inputs, back.double(), layer.num_embeddings)
    if len(uses) == 1:
        return LinearLayer(inputs.double(), back.double())
    went_in, came_back = (torch.stack(side, dim=1).double() for side in zip(*uses, strict=True))
    return DenseGradients.of_linear(went_in, came_back)
