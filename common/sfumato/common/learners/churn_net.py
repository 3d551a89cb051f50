"""The churn net: who is about to leave?

Question       For each customer with these public inputs, the log-odds of the contract's label.
Contribution   A customer's gradient of their own log-loss, clipped: l2 norm <= training.max_grad_norm. A branch
               sums it over a Poisson sample of its customers, adds Gaussian noise and steps (privacy.dpsgd).
Reading        The branch's weights after a round; the coordinator averages them (FedAvg, public weights).

Wide and deep (Cheng et al. 2016): a score per category or bin, added up, which is logistic regression on
one-hot bins; plus an embedding per category or bin, beside the normalised numbers, into a small MLP that
learns what the sum cannot. The last layers start at zero, so that the first net says "even odds" to everyone.
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


class ChurnNet(nn.Module):
    """Codes [n, F] and numbers [n, G] to logits [n]. Initial weights depend on `seed` alone."""

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
        for hidden in model.hidden:
            layers += [nn.Linear(width, hidden), nn.Tanh()]
            width = hidden
        self.mlp = nn.Sequential(*layers)
        self.out = nn.Linear(width, 1)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        nn.init.zeros_(self.score.weight)
        nn.init.normal_(self.embedding.weight, std=0.5, generator=generator)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features), generator=generator)
                nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, codes: torch.Tensor, numeric: torch.Tensor) -> torch.Tensor:
        rows = codes + self._offsets
        wide = self.score(rows).sum(dim=(1, 2))
        deep = self.mlp(torch.cat([self.embedding(rows).flatten(1), numeric], dim=1))
        logit: torch.Tensor = wide + self.out(deep).squeeze(1)
        return logit


def build(contract: Contract, model: Model, seed: int = 0) -> ChurnNet:
    """The net of this contract and model. Same arguments, same weights, in every process of one platform."""
    encoder = Encoder(contract, model.bins)
    return ChurnNet(encoder.cardinalities, encoder.numeric_count, model, seed=seed)


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
            codes = torch.from_numpy(encoded.codes[start : start + batch])
            numeric = torch.from_numpy(encoded.numeric[start : start + batch])
            parts.append(net(codes, numeric).double().numpy())
    return np.concatenate(parts)
