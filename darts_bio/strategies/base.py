"""Strategy: the owner of alpha, and what it is lent: Bilevel in a step, Measure between two epochs.

The network knows nothing of alpha: a strategy turns it into edge weights, the supernet is a
function of these, and the loss of that function on a validation batch tells the strategy where to
move.

A strategy is a small immutable value, as a learning rule is; what changes in a search lies in its
`StrategyState`.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

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
"""(edge weights of P individuals, a tensor (P, edges, candidates) per cell type; a number of
validation batches) to the mean loss (P,), with the costs that the search counts, and the accuracy
in [0, 1] (P,) of each on these batches.

All individuals of a call meet the same batches, with batch norm by each batch's own statistics; w
is not touched."""


@dataclass(frozen=True)
class Context:
    """What a strategy knows of the search it serves.

    `factorised` asks for alpha as operation times rule given the operation, where the strategy has
    an alpha. `recorded` says that steps are recorded as CUDA graphs (see `Strategy.descends`).
    """

    space: Space
    table: CandidateTable
    seed: int
    device: torch.device
    epochs: int
    steps_per_epoch: int
    factorised: bool = False
    recorded: bool = False


@dataclass(frozen=True)
class Bilevel:
    """What a strategy may use in one step of a search.

    Both losses map (batch, edge weights) to the supernet's loss and its logits. `weight_loss` is
    the one that w follows, down through the rules' error; the gradient of `architecture_loss` goes
    down as `--arch-gradient` says. `penalty` is what the objective and the regularizers add, a
    function of each candidate's share of its edge and of alpha. `virtual_step` maps w's gradient to
    (w after a step along it, d(w after)/d(-gradient)).
    """

    supernet: SuperNet
    train_batch: Batch
    valid_batch: Batch
    weight_loss: Loss
    architecture_loss: Loss
    penalty: Callable[[EdgeWeights, Mapping[str, Tensor]], Tensor]
    weights: Sequence[nn.Parameter]
    virtual_step: Callable[[Sequence[Tensor]], tuple[list[Tensor], float | Tensor]]

    @contextlib.contextmanager
    def frozen_weights(self) -> Iterator[None]:
        """Within it no gradient of w is computed; alpha's is the same."""
        with frozen(self.supernet):
            yield


class StrategyState(ABC):
    """Everything that changes while a strategy searches: alpha, its optimizer, what was drawn or
    chosen so far.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.epoch = 0
        """The epoch that runs now, counted from 0."""

    @property
    @abstractmethod
    def alpha(self) -> dict[str, Tensor]:
        """Logits (edges, candidates) per cell type, for the records; empty if there are no such
        parameters.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed search needs, as tensors and plain values only."""

    @abstractmethod
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Puts back what `state_dict` returned."""

    def begin_with(self, saved: dict[str, Any]) -> None:  # noqa: B027
        """Takes over what it wants from the `state_dict` of the strategy that trained the supernet
        of `--supernet`.
        """

    def learning_rates(self) -> dict[str, float]:
        """Returns the rates at which alpha moves now, by name, for the records."""
        return {}

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """The generators on the search's device that edge weights are drawn from;
        `Strategy.prepare` seeds them.
        """
        return ()


S = TypeVar("S", bound=StrategyState)


class Strategy(ABC, Generic[S]):
    """How alpha becomes edge weights, how it moves, and which genotype it stands for.

    Subclasses are frozen dataclasses, whose fields are their options, registered by name in
    `STRATEGIES`. A strategy is a value that many searches may share: `begin` makes the state of one
    search, and every method is given that state.
    """

    partial: ClassVar[int] = 1
    """k, where 1/k of the channels are to go through the candidates (`SuperNet`)."""

    warmup: ClassVar[float] = 0.0
    """The share of the epochs in which only w is trained, as published."""

    measures: ClassVar[bool] = False
    """Whether it measures individuals between epochs: work that several processes can share."""

    exchanges: ClassVar[bool] = False
    """Whether `gradients` averages something over processes by itself; what it returns is averaged
    in any case."""

    finished: ClassVar[bool] = False
    """Whether no further epoch would change what is derived."""

    @property
    def where(self) -> str:
        """What an error message begins with."""
        return f"strategy {STRATEGIES.name_of(self)}"

    @abstractmethod
    def begin(self, context: Context) -> S:
        """Makes the state of a new search. Raises InputError if the strategy does not go with that
        search.
        """

    def warmup_share(self, epochs: int) -> float:
        """Returns the share of a search's epochs, from the first on, in which only w is trained."""
        return self.warmup

    def notes(self, state: S, rules: Sequence[str]) -> list[str]:
        """Returns what a user of these rules is to know of the strategy's assumptions, a line
        each.
        """
        return []

    def begin_epoch(self, state: S, epoch: int) -> None:
        """Notes which epoch begins, counted from 0; called again when a run goes on within an
        epoch.
        """
        state.epoch = epoch

    def descends(self, state: S) -> bool:
        """Returns whether alpha follows a gradient in the present epoch: once a step, by
        `gradients` and `move`.

        On a GPU these two and `edge_weights` are recorded then (`training.graphs`): they may depend
        on nothing that changes but tensors that change in place. What else they need, `prepare`
        puts into such tensors.
        """
        return False

    def prepare(self, state: S) -> None:
        """Puts into the state what the next edge weights depend on beside alpha: a sample's noise,
        a temperature.

        Called before each pass that moves alpha, and before each one that moves w.
        """

    @abstractmethod
    def edge_weights(self, state: S) -> EdgeWeights:
        """Returns what the supernet is lent, (edges, candidates) per cell type, zero where the
        table is padded.
        """

    def gradients(self, state: S, bilevel: Bilevel) -> tuple[Sequence[Tensor], Tensor]:
        """Returns the gradients that alpha follows, in the order of the state's parameters, and the
        validation logits (N, classes) that were seen, detached. w is as before.
        """
        raise NotImplementedError(f"{type(self).__name__}.gradients")

    def move(self, state: S, gradients: Sequence[Tensor]) -> None:
        """Moves alpha once along its gradients, before the weights' own step."""
        raise NotImplementedError(f"{type(self).__name__}.move")

    def end_epoch(self, state: S, epoch: int, measure: Measure) -> dict[str, float]:
        """Does what is due after an epoch's last step, once the warm-up is over. Returns numbers
        for the records.
        """
        return {}

    @abstractmethod
    def final_weights(self, state: S) -> EdgeWeights:
        """Returns the strength of each candidate, (edges, candidates) per cell type without a
        gradient.

        The space derives the genotype from it. Where a space compares edges, it takes each row for
        shares of 1.
        """


STRATEGIES: Registry[type[Strategy[Any]]] = Registry("strategy")


def masks_of(context: Context) -> dict[str, Tensor]:
    """Returns per cell type (edges, candidates) bool, on the search's device: True where there is a
    candidate.
    """
    return {t: context.table.mask(t).to(context.device) for t in context.table.rows}


def detached(edge_weights: EdgeWeights) -> EdgeWeights:
    """The same numbers without a gradient."""
    return {cell_type: weights.detach() for cell_type, weights in edge_weights.items()}


def masked_softmax(alpha: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the candidates of each edge (edges, candidates); zero where mask is False."""
    return torch.softmax(alpha.masked_fill(~mask, -torch.inf), dim=-1)


def one_hot_like(weights: Tensor, chosen: Tensor) -> Tensor:
    """1 at the candidate of index `chosen` (edges,) of each edge, else 0, as `weights` (edges,
    candidates).
    """
    return torch.zeros_like(weights).scatter(1, chosen.unsqueeze(1), 1.0)
