"""Strategy: the owner of alpha, and Bilevel, what it is lent in a step.

The network knows nothing of alpha: a strategy turns it into edge weights, the supernet is a function of these, and the
loss of that function on a validation batch tells the strategy where to move.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.networks import EdgeWeights, SuperNet
from darts_bio.registry import Registry
from darts_bio.spaces import CandidateTable, Space

Batch = tuple[Tensor, Tensor]
"""Images (N, C, H, W) and labels (N,)."""

Loss = Callable[[Batch, EdgeWeights], tuple[Tensor, Tensor]]


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within it no gradient of the module's parameters is computed; those that were frozen before stay so."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@dataclass(frozen=True)
class Context:
    """What a strategy knows of the search it serves."""

    space: Space
    table: CandidateTable
    seed: int
    device: torch.device
    epochs: int
    steps_per_epoch: int


@dataclass(frozen=True)
class Bilevel:
    """What a strategy may use in one step of a search.

    Both losses map (batch, edge weights) to the supernet's loss and its logits. `weight_loss` is the one that w
    follows, down through the rules' error; the gradient of `architecture_loss` goes down as `--arch-gradient` says.
    """

    supernet: SuperNet
    train_batch: Batch
    valid_batch: Batch
    weight_loss: Loss
    architecture_loss: Loss

    @contextlib.contextmanager
    def frozen_weights(self) -> Iterator[None]:
        """Within it no gradient of w is computed; alpha's is the same."""
        with frozen(self.supernet):
            yield


class Strategy(ABC):
    """Owns alpha for the candidates of a table. Subclasses are registered by name in `STRATEGIES`.

    A subclass is called as `(context, **its own options)`.
    """

    alpha: dict[str, Tensor]
    """Per cell type (edges, candidates); empty if the strategy has no such parameters."""

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027  (most need none)
        """Sets what is constant over an epoch, counted from 0; called again when a run goes on within one."""

    @abstractmethod
    def edge_weights(self) -> EdgeWeights:
        """What the supernet is lent: per cell type (edges, candidates), zero where the table is padded."""

    @abstractmethod
    def step(self, bilevel: Bilevel) -> Tensor | None:
        """Moves alpha once, before the weights' own step. Returns the validation logits it saw, detached; None if it
        saw none."""

    @abstractmethod
    def final_weights(self) -> EdgeWeights:
        """The strength of each candidate, by which the space derives the genotype; no gradient."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed search needs: alpha, its optimiser, random state. Tensors and plain values only."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` returned."""

    def learning_rates(self) -> dict[str, float]:
        """The rates at which alpha moves now, by name, for the records."""
        return {}


STRATEGIES: Registry[Callable[..., Strategy]] = Registry("strategy")


def masked_softmax(alpha: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the candidates of each edge (edges, candidates); zero where mask is False."""
    return torch.softmax(alpha.masked_fill(~mask, -torch.inf), dim=-1)
