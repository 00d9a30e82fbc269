"""Strategy: the owner of alpha, and what it is lent: Bilevel in a step, Measure between two epochs.

The network knows nothing of alpha: a strategy turns it into edge weights, the supernet is a function of these, and the
loss of that function on a validation batch tells the strategy where to move.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.modes import frozen
from darts_bio.networks import EdgeWeights, SuperNet
from darts_bio.registry import Registry
from darts_bio.spaces import CandidateTable, Space

Batch = tuple[Tensor, Tensor]
"""Images (N, C, H, W) and labels (N,)."""

Loss = Callable[[Batch, EdgeWeights], tuple[Tensor, Tensor]]

Measure = Callable[[EdgeWeights, int], tuple[Tensor, Tensor]]
"""(edge weights of P individuals, a tensor (P, edges, candidates) per cell type; a number of validation batches) to
the mean loss (P,), with the costs that the search counts, and the accuracy in [0, 1] (P,) of each on these batches.

All individuals of a call meet the same batches, with batch norm by each batch's own statistics; w is not touched."""


@dataclass(frozen=True)
class Context:
    """What a strategy knows of the search it serves.

    `factorised` asks for alpha as operation times rule given the operation, where the strategy has an alpha.
    """

    space: Space
    table: CandidateTable
    seed: int
    device: torch.device
    epochs: int
    steps_per_epoch: int
    factorised: bool = False


@dataclass(frozen=True)
class Bilevel:
    """What a strategy may use in one step of a search.

    Both losses map (batch, edge weights) to the supernet's loss and its logits. `weight_loss` is the one that w
    follows, down through the rules' error; the gradient of `architecture_loss` goes down as `--arch-gradient` says.
    `penalty` is what the objective and the regularisers add, a function of each candidate's share of its edge.
    `virtual_step` maps w's gradient to (w after a step along it, d(w after)/d(-gradient)).
    """

    supernet: SuperNet
    train_batch: Batch
    valid_batch: Batch
    weight_loss: Loss
    architecture_loss: Loss
    penalty: Callable[[EdgeWeights], Tensor]
    weights: Sequence[nn.Parameter]
    virtual_step: Callable[[Sequence[Tensor]], tuple[list[Tensor], float]]

    @contextlib.contextmanager
    def frozen_weights(self) -> Iterator[None]:
        """Within it no gradient of w is computed; alpha's is the same."""
        with frozen(self.supernet):
            yield


class Strategy(ABC):
    """Owns alpha for the candidates of a table. Subclasses are registered by name in `STRATEGIES`.

    A subclass is called as `(context, **its own options)`.
    """

    partial: int = 1
    """k, where 1/k of the channels are to go through the candidates (`SuperNet`)."""

    warmup: float = 0.0
    """The share of the epochs, from the first on, in which only w is trained, as published."""

    measures: bool = False
    """Whether it measures individuals between epochs: work that several processes can share."""

    finished: bool = False
    """Whether no further epoch would change what is derived."""

    @property
    @abstractmethod
    def alpha(self) -> dict[str, Tensor]:
        """Per cell type (edges, candidates), for the records; empty if the strategy has no such parameters."""

    def notes(self, rules: Sequence[str]) -> list[str]:
        """What a user of these rules is to know of the strategy's assumptions, a line each."""
        return []

    def begin_with(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Takes over what it wants of the state of the strategy that trained the supernet this search starts from."""

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027  (most need none)
        """Sets what is constant over an epoch, counted from 0; called again when a run goes on within one."""

    @abstractmethod
    def edge_weights(self) -> EdgeWeights:
        """What the supernet is lent: per cell type (edges, candidates), zero where the table is padded. A strategy that
        samples draws at each call."""

    @abstractmethod
    def step(self, bilevel: Bilevel) -> Tensor | None:
        """Moves alpha once, before the weights' own step. Returns the validation logits it saw, detached; None if it
        saw none."""

    def end_epoch(self, epoch: int, measure: Measure) -> dict[str, float]:
        """What is done after an epoch's last step, once the warm-up is over. Returns numbers for the records."""
        return {}

    @abstractmethod
    def final_weights(self) -> EdgeWeights:
        """The strength of each candidate, by which the space derives the genotype; no gradient. Where a space
        compares edges, it takes each row for shares of 1."""

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


def name_of(strategy: Strategy) -> str:
    """The name that its class is registered by."""
    known = (name for name in STRATEGIES if STRATEGIES.get(name) is type(strategy))
    return next(known, type(strategy).__name__)


def detached(edge_weights: EdgeWeights) -> EdgeWeights:
    """The same numbers without a gradient."""
    return {cell_type: weights.detach() for cell_type, weights in edge_weights.items()}


def masked_softmax(alpha: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the candidates of each edge (edges, candidates); zero where mask is False."""
    return torch.softmax(alpha.masked_fill(~mask, -torch.inf), dim=-1)


def one_hot_like(weights: Tensor, chosen: Tensor) -> Tensor:
    """1 at the candidate of index `chosen` (edges,) of each edge, else 0, as `weights` (edges, candidates)."""
    return torch.zeros_like(weights).scatter(1, chosen.unsqueeze(1), 1.0)
