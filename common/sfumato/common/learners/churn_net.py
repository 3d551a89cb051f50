"""The churn net: who is about to leave?

Question       For each customer with these public inputs, the log-odds of the contract's label.
Contribution   A customer's gradient of their own log-loss, clipped: l2 norm <= training.max_grad_norm. A branch
               sums it over a Poisson sample of its customers, adds Gaussian noise and steps (privacy.dpsgd).
Reading        The branch's weights after a round; the coordinator averages them (FedAvg, public weights).

Wide and deep (Cheng et al. 2016): a score per category or bin, added up, which is logistic regression on
one-hot bins; plus an embedding per category or bin, beside the normalised numbers, into a small MLP that
learns what the sum cannot. The last layers start at zero, so that the first net says "even odds" to everyone.

The recurrent net has one input more: a gated recurrent unit (Cho et al. 2014) reads a few roll-ups month by month,
and its last state goes into the MLP beside the rest.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sfumato.common.contract import Contract
from sfumato.common.job import Model
from sfumato.common.learners.encoding import Encoded, Encoder

Weights = npt.NDArray[np.float32]

MOMENTUM = 0.9  # of plain gradient descent, at a branch and at the coordinator alike


class GatedRecurrentUnit(nn.Module):
    """Inputs [n, T, S] to the last state [n, H], in (-1, 1). Of plain linear layers, so that each customer's gradient
    can be told (privacy.clipped_gradients); the reset gate is before the product, as in the paper's equation 8."""

    def __init__(self, inputs: int, state: int) -> None:
        super().__init__()
        self.state = state
        self.gates = nn.Linear(inputs + state, 2 * state)
        self.candidate = nn.Linear(inputs + state, state)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        state = sequence.new_zeros(len(sequence), self.state)
        for now in sequence.unbind(dim=1):
            keep, reset = torch.sigmoid(self.gates(torch.cat([now, state], dim=1))).chunk(2, dim=1)
            new = torch.tanh(self.candidate(torch.cat([now, reset * state], dim=1)))
            state = keep * state + (1 - keep) * new
        return state


class ChurnNet(nn.Module):
    """Codes [n, F] and numbers [n, G] to logits [n]; a recurrent net takes a sequence [n, months, S] too. Initial
    weights depend on `seed` alone."""

    def __init__(
        self, cardinalities: Sequence[int], numeric_count: int, model: Model, *, seed: int = 0
    ) -> None:
        super().__init__()
        total, dim = sum(cardinalities), model.embedding_dim
        # Not a buffer: it is a constant of the contract, no state, and Opacus refuses buffers.
        self._offsets = torch.tensor([0, *np.cumsum(cardinalities)[:-1].tolist()])
        self.score = nn.Embedding(total, 1)
        self.embedding = nn.Embedding(total, dim)
        layers: list[nn.Module] = []
        width = len(cardinalities) * dim + numeric_count
        self.recurrent: GatedRecurrentUnit | None = None
        if model.architecture == "recurrent":
            self.recurrent = GatedRecurrentUnit(len(model.sequence), model.state)
            width += model.state
        for hidden in model.hidden:
            layers += [nn.Linear(width, hidden), nn.Tanh()]
            width = hidden
        self.mlp = nn.Sequential(*layers)
        self.out = nn.Linear(width, 1)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        nn.init.zeros_(self.score.weight)
        nn.init.normal_(self.embedding.weight, std=0.5, generator=generator)
        for layer in [*(self.recurrent.children() if self.recurrent else ()), *self.mlp]:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features), generator=generator)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, codes: torch.Tensor, numeric: torch.Tensor, sequence: torch.Tensor | None = None
    ) -> torch.Tensor:
        if (sequence is None) != (self.recurrent is None):
            raise ValueError("a recurrent net reads a sequence, and no other net does")
        rows = codes + self._offsets
        wide = self.score(rows).sum(dim=(1, 2))
        inputs = [self.embedding(rows).flatten(1), numeric]
        if self.recurrent is not None:
            inputs.append(self.recurrent(sequence))
        deep = self.mlp(torch.cat(inputs, dim=1))
        logit: torch.Tensor = wide + self.out(deep).squeeze(1)
        return logit


def encoder(contract: Contract, model: Model) -> Encoder:
    """From columns to this model's inputs. Raises BadInput where the contract does not have what it reads."""
    return Encoder(contract, model.bins, sequence=model.sequence, months=model.months)


def build(contract: Contract, model: Model, seed: int = 0) -> ChurnNet:
    """The net of this contract and model. Same arguments, same weights, in every process of one platform.

    Raises BadInput where the contract does not have what the model reads.
    """
    inputs = encoder(contract, model)
    return ChurnNet(inputs.cardinalities, inputs.numeric_count, model, seed=seed)


def size(net: nn.Module) -> int:
    """How many weights `flatten` gives."""
    return sum(p.numel() for p in net.parameters())


def flatten(net: nn.Module) -> Weights:
    """All weights as one float32 vector, in the order of `net.parameters()`; a copy."""
    parts = [p.detach().reshape(-1).numpy() for p in net.parameters()]
    return np.concatenate(parts).astype(np.float32)


def load(net: nn.Module, vector: Weights) -> None:
    """Put a `flatten`ed vector into the net. Raises ValueError on another length, type, NaN or infinity."""
    expected = size(net)
    if vector.ndim != 1 or vector.size != expected:
        raise ValueError(f"expected {expected} weights, got {vector.size}")
    if vector.dtype != np.float32 or not np.isfinite(vector).all():
        raise ValueError("weights must be finite float32")
    start = 0
    with torch.no_grad():
        for p in net.parameters():
            part = vector[start : start + p.numel()]
            p.copy_(torch.from_numpy(part.copy()).reshape(p.shape))
            start += p.numel()


def logits(net: nn.Module, encoded: Encoded, batch: int = 8192) -> npt.NDArray[np.float64]:
    """The log-odds of each customer, float64 [n]. Inside a vault only: one of these is one customer's."""
    net.eval()
    parts = [np.zeros(0)]
    with torch.inference_mode():
        for start in range(0, len(encoded), batch):
            inputs = (torch.from_numpy(x[start : start + batch]) for x in encoded.inputs)
            parts.append(net(*inputs).double().numpy())
    return np.concatenate(parts)
