"""The strategy: who owns alpha, and what a search lends to it.

In a search two sets of parameters are trained: the weights w of the supernet, and alpha, which says
how strong each candidate (operation, learning rule) on each edge of a cell is. The supernet owns w
and knows nothing of alpha; the strategy owns alpha and knows nothing of the supernet's inside. All
that passes between them are *edge weights*: a tensor (edges, candidates) per cell type.

The life of alpha, and the method of `Strategy` that each stage of it is:

1. It is born. `begin` makes the `StrategyState` of one search, which holds alpha and all else that
   changes (optimizer, counters, samples). The strategy itself is a frozen dataclass of options, as
   a learning rule is, and may serve many searches.
2. It is lent to the supernet, twice a step: once for alpha's own step and once for that of w.
   `prepare` draws what the next edge weights depend on beside alpha (noise, a temperature), then
   `edge_weights` turns alpha into edge weights: by softmax, Gumbel softmax, a Dirichlet sample, ...
3. It is moved. Either by a gradient, once a step: `gradients` differentiates the loss on a
   validation batch, the search averages the result over processes, `move` follows it, and then w
   moves along the training loss. Or between epochs: `end_epoch` measures the validation loss of
   edge weights that it makes up itself (evolution, perturbation). In the first `warmup_share` of
   the epochs neither is done.
4. It is recorded and saved: `StrategyState.alpha` for the logs, `StrategyState.state_dict` for the
   checkpoint, from which an interrupted search goes on as if nothing had happened.
5. It becomes a genotype. `final_weights` returns the strength of each candidate, without chance and
   without a gradient, and `Space.derive` picks the strongest ones.

The example walks through these stages, with a loss made up in place of a supernet's:

>>> import torch
>>> from darts_bio.spaces import SPACES
>>> from darts_bio.strategies import STRATEGIES, Context, detached
>>> space = SPACES.build("nb201")
>>> table = space.table(["bp", "fa"])
>>> cpu = torch.device("cpu")
>>> context = Context(space, table, seed=0, device=cpu, epochs=10, steps_per_epoch=5)
>>> strategy = STRATEGIES.build("darts(lr=0.1)")
>>> state = strategy.begin(context)
>>> strategy.prepare(state)
>>> edge_weights = strategy.edge_weights(state)
>>> {cell_type: tuple(weights.shape) for cell_type, weights in edge_weights.items()}
{'cell': (6, 7)}
>>> loss = edge_weights["cell"][:, 2].sum()  # blames the third candidate of every edge
>>> strategy.move(state, torch.autograd.grad(loss, list(state.parameters.values())))
>>> bool((strategy.final_weights(state)["cell"].argmin(dim=1) == 2).all())
True
>>> cells = space.derive(strategy.final_weights(state), table)
>>> table.rows["cell"][0][2] in {edge.candidate for edge in cells["cell"].edges}
False
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
"""Maps a batch and edge weights to the supernet's loss, a scalar, and its logits (N, classes)."""

Measure = Callable[[EdgeWeights, int], tuple[Tensor, Tensor]]
"""Measures P individuals, each of which is a choice of edge weights.

It is called with the edge weights of all individuals, a tensor (P, edges, candidates) per cell
type, and with a number of validation batches. It returns two tensors (P,): the mean loss of each
individual on these batches, with the costs of the search's objective, and its accuracy, a fraction.

All individuals of a call meet the same batches, with batch norm by each batch's own statistics. The
supernet's weights are not changed."""


@dataclass(frozen=True)
class Context:
    """What a strategy is told of the search it serves.

    Attributes:
        space: The space that is searched.
        table: The candidates of each edge; rows of one cell type are padded to the same length.
        seed: The seed of the search, from which everything random is derived.
        device: Where alpha, edge weights and the supernet are.
        epochs: The length of the search.
        steps_per_epoch: How many steps an epoch has.
        warmup_epochs: For how many epochs, from the first on, alpha stays as it is.
        factorised: Whether alpha is asked for as operation times rule given the operation, where
            the strategy has an alpha.
        normalizes_edges: Whether the edges into a node are asked to compete, where the strategy has
            an alpha (`strategies.edges`).
        recorded: Whether steps are recorded as CUDA graphs (see `Strategy.descends`).

    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import Context
    >>> space = SPACES.build("nb201")
    >>> table = space.table(["bp", "fa"])
    >>> context = Context(space, table, 0, torch.device("cpu"), epochs=10, steps_per_epoch=5)
    >>> {cell_type: context.table.shape(cell_type) for cell_type in context.table.rows}
    {'cell': (6, 7)}
    """

    space: Space
    table: CandidateTable
    seed: int
    device: torch.device
    epochs: int
    steps_per_epoch: int
    warmup_epochs: int = 0
    factorised: bool = False
    normalizes_edges: bool = False
    recorded: bool = False


@dataclass(frozen=True)
class Bilevel:
    """What a strategy may use in one step of a search: two batches and the losses on them.

    Of several processes each has its share of both batches, and computes gradients of that share.

    Attributes:
        supernet: The network that both losses run.
        train_batch: The batch along which w moves in this step.
        valid_batch: The batch along which alpha moves in this step.
        weight_loss: The loss that w follows; its gradient goes down by the rules' error.
        architecture_loss: The loss that alpha follows; its gradient goes down as the option
            `--arch-gradient` says, by the rules' error or exactly.
        penalty: What the objective and the regularizers add to the loss that alpha follows. It maps
            each candidate's share of its edge, and the logits alpha, both (edges, candidates) per
            cell type, to a scalar.
        weights: The parameters of the supernet that a step moves: w.
        virtual_step: Maps the gradient g of w to what w would be after an optimizer step along g,
            and to the rate d(w after)/d(-g) of what moves. It changes nothing.
        moving: Maps directions of w to the same with zeros where a step leaves w as it is (by
            default nowhere).

    A search makes one in each step. By hand, without penalty, momentum or weight decay:

    >>> import torch.nn.functional as F
    >>> from darts_bio.networks import SuperNet
    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import STRATEGIES, Bilevel, Context
    >>> space = SPACES.build("nb201")
    >>> supernet = SuperNet(space, ["bp"], channels=4, layers=3, num_classes=10)
    >>> def loss(batch, edge_weights):
    ...     logits = supernet(batch[0], edge_weights)
    ...     return F.cross_entropy(logits, batch[1]), logits
    >>> weights = list(supernet.parameters())
    >>> bilevel = Bilevel(
    ...     supernet,
    ...     train_batch=(torch.rand(2, 3, 8, 8), torch.tensor([0, 1])),
    ...     valid_batch=(torch.rand(2, 3, 8, 8), torch.tensor([2, 3])),
    ...     weight_loss=loss,
    ...     architecture_loss=loss,
    ...     penalty=lambda shares, alpha: torch.zeros(()),
    ...     weights=weights,
    ...     virtual_step=lambda g: ([w - 0.1 * d for w, d in zip(weights, g)], 0.1),
    ... )
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> darts = STRATEGIES.build("darts")
    >>> state = darts.begin(Context(space, table, 0, cpu, epochs=1, steps_per_epoch=1))
    >>> (gradient,), logits = darts.gradients(state, bilevel)
    >>> tuple(gradient.shape), tuple(logits.shape)
    ((6, 5), (2, 10))
    """

    supernet: SuperNet
    train_batch: Batch
    valid_batch: Batch
    weight_loss: Loss
    architecture_loss: Loss
    penalty: Callable[[EdgeWeights, Mapping[str, Tensor]], Tensor]
    weights: Sequence[nn.Parameter]
    virtual_step: Callable[[Sequence[Tensor]], tuple[list[Tensor], float | Tensor]]
    moving: Callable[[Sequence[Tensor]], list[Tensor]] = list

    @contextlib.contextmanager
    def frozen_weights(self) -> Iterator[None]:
        """Compute no gradient of w within the context; that of alpha is the same."""
        with frozen(self.supernet):
            yield


@dataclass(frozen=True)
class WeightPhase:
    """A last part of a search in which w is tuned at a lower rate, by an optimizer begun anew.

    The cosine of the epochs before it ends where the phase begins (`training.schedules`).

    Attributes:
        first: The epoch that the phase begins with, counted from 0.
        epochs: Its length, to the end of the search.
        scale: Where its cosine begins, relative to the rate that the search began with.
    """

    first: int
    epochs: int
    scale: float


class StrategyState(ABC):
    """Everything of a strategy that changes while it searches.

    That is alpha, its optimizer, and what was drawn or chosen so far. Subclasses say how it is
    shown (`alpha`), saved and restored.

    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import STRATEGIES, Context
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> context = Context(space, table, 0, cpu, epochs=10, steps_per_epoch=5)
    >>> strategy = STRATEGIES.build("gdas")
    >>> state, resumed = strategy.begin(context), strategy.begin(context)
    >>> strategy.prepare(state)  # draws a sample
    >>> resumed.load_state_dict(state.state_dict())
    >>> resumed.draws
    1
    >>> sorted(state.state_dict())
    ['draws', 'optimizer', 'parameters']
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.epoch = 0
        """The present epoch, counted from 0."""

    @property
    @abstractmethod
    def alpha(self) -> dict[str, Tensor]:
        """Logits (edges, candidates) per cell type, for the records; empty without an alpha."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed search needs, as tensors and plain values only."""

    @abstractmethod
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""

    def begin_with(self, saved: dict[str, Any]) -> None:  # noqa: B027
        """Take over what is of use from the strategy that trained the supernet of `--supernet`.

        Args:
            saved: The `state_dict` of that strategy's state.
        """

    def learning_rates(self) -> dict[str, float]:
        """Return the present learning rates of alpha, by name, for the records.

        That of the name "alpha" is `lr/alpha` there. A report whose search has it may advise a
        larger option `lr` of the strategy; one that inherits `lr` and does not use it returns {}.
        """
        return {}

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """The generators on the search's device that edge weights are drawn from.

        `Strategy.prepare` seeds them. A recorder of CUDA graphs has to know them.
        """
        return ()


S = TypeVar("S", bound=StrategyState)


class Strategy(ABC, Generic[S]):
    """How alpha becomes edge weights, how it moves, and which genotype it stands for.

    Subclasses are frozen dataclasses, whose fields are their options, registered by name in
    `STRATEGIES`. A strategy is a value that many searches may share: `begin` makes the state of one
    search, and every other method is given that state.

    The class variables and methods are what a search asks of it. A strategy that moves alpha along
    a gradient extends `GradientStrategy` instead, which answers most of it. The shortest strategy
    there is gives each candidate the same share, and learns nothing:

    >>> from dataclasses import dataclass
    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import Context, Strategy, StrategyState
    >>> class EqualState(StrategyState):
    ...     alpha = {}
    ...     def state_dict(self):
    ...         return {}
    ...     def load_state_dict(self, saved):
    ...         pass
    >>> @dataclass(frozen=True)
    ... class Equal(Strategy[EqualState]):
    ...     def begin(self, context):
    ...         return EqualState(context)
    ...     def edge_weights(self, state):
    ...         masks = {t: state.context.table.mask(t) for t in state.context.table.rows}
    ...         return {t: mask / mask.sum(1, keepdim=True) for t, mask in masks.items()}
    ...     def final_weights(self, state):
    ...         return self.edge_weights(state)
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> strategy = Equal()
    >>> state = strategy.begin(Context(space, table, 0, cpu, epochs=10, steps_per_epoch=5))
    >>> strategy.edge_weights(state)["cell"][0]  # the five candidates of the first edge
    tensor([0.2000, 0.2000, 0.2000, 0.2000, 0.2000])
    """

    partial: ClassVar[int] = 1
    """k, where 1/k of the channels are to go through the candidates (see `SuperNet`)."""

    factorised: ClassVar[bool] = False
    """Whether alpha is operation times rule given the operation, whether asked to be or not."""

    normalizes_edges: ClassVar[bool] = False
    """Whether the edges into a node compete, whether asked to or not (`strategies.edges`)."""

    warmup: ClassVar[float] = 0.0
    """The share of the epochs, a fraction, in which only w is trained, as published."""

    measures: ClassVar[bool] = False
    """Whether it measures individuals between epochs: work that several processes can share."""

    exchanges: ClassVar[bool] = False
    """Whether `gradients` averages something over processes by itself; what it returns is averaged
    in any case."""

    looks_ahead: ClassVar[bool] = False
    """Whether it asks for `Bilevel.virtual_step`, which is a step of SGD."""

    shares_weights: ClassVar[bool] = False
    """Whether it needs a supernet in which the rules of an operation share its weights, and in which
    all layers, those of the backbone too, send their error through a kernel."""

    drops_edges: ClassVar[bool] = False
    """Whether its final weights leave edges out, which takes a space of `optional_edges`."""

    finished: ClassVar[bool] = False
    """Whether no further epoch would change what is derived."""

    @property
    def where(self) -> str:
        """The words that an error message about this strategy begins with."""
        return f"strategy {STRATEGIES.name_of(self)}"

    @property
    def trainer(self) -> Strategy[Any]:
        """The strategy that moves alpha: itself, unless it leaves that to another one."""
        return self

    @abstractmethod
    def begin(self, context: Context) -> S:
        """Make the state of a new search.

        Raises:
            InputError: If the strategy does not go with that search.
        """

    def warmup_share(self, epochs: int) -> float:
        """Return the fraction of a search's epochs, from the first on, that train only w."""
        return self.warmup

    def weight_phase(self, epochs: int) -> WeightPhase | None:
        """Return in which last part of a search w is tuned at a rate of its own; None for none."""
        return None

    def notes(self, state: S, rules: Sequence[str]) -> list[str]:
        """Return what a user should know of the strategy's assumptions, a list of lines.

        The console shows them when a search begins or goes on, before its first step.

        Args:
            state: The state at the beginning of the search.
            rules: The learning rules that are searched among.
        """
        return []

    def begin_epoch(self, state: S, epoch: int) -> None:
        """Note which epoch begins, counted from 0.

        It is called again for the same epoch when an interrupted run goes on within it.
        """
        state.epoch = epoch

    def descends(self, state: S) -> bool:
        """Return whether alpha follows a gradient in the present epoch.

        If so, `gradients` and `move` are called once a step, but in the warm-up. On a GPU these two
        and `edge_weights` are then recorded as CUDA graphs (`training.graphs`; `gradients` not, if
        it `exchanges` with other processes): Python runs them a few times and never
        again, so they may depend on nothing that changes but tensors that change in place. What
        else they need, `prepare` puts into such tensors.
        """
        return False

    def prepare(self, state: S) -> None:
        """Set what the next edge weights depend on beside alpha: a sample's noise, a temperature.

        It is called before each pass that moves alpha, and before each one that moves w.
        """

    @abstractmethod
    def edge_weights(self, state: S) -> EdgeWeights:
        """Return what the supernet is lent: (edges, candidates) per cell type.

        Entries are zero where the table of candidates is padded.
        """

    def drawn(self, state: S) -> Mapping[str, Sequence[int]] | None:
        """Return the one candidate of each edge that `prepare` drew, or None if it drew none.

        They are columns of the table of candidates, for each edge of a cell type. All others have
        no weight and are not computed; the passes are then not recorded, since each differs from
        the one before. (`edge_weights` gives the drawn ones their weight, and alpha its gradient.)
        """
        return None

    def gradients(self, state: S, bilevel: Bilevel) -> tuple[Sequence[Tensor], Tensor]:
        """Return the gradients that alpha follows, and the validation logits they come from.

        Gradients are a sequence of tensors, each in the shape of what it moves; of an `AlphaState`
        in the order of the values of `state.parameters`. The logits (N, classes) are detached. When
        it returns, w is as it was.
        """
        raise NotImplementedError(f"{type(self).__name__}.gradients")

    def move(self, state: S, gradients: Sequence[Tensor]) -> None:
        """Move alpha once, in place, along what `gradients` returned; w's own step comes after.

        Of several processes the gradients are averaged. Nothing is returned.
        """
        raise NotImplementedError(f"{type(self).__name__}.move")

    def end_epoch(self, state: S, epoch: int, measure: Measure) -> dict[str, float]:
        """Do what is due after the last step of an epoch, and return numbers for the records.

        It is called once the warm-up is over.
        """
        return {}

    @abstractmethod
    def final_weights(self, state: S) -> EdgeWeights:
        """Return the strength of each candidate: (edges, candidates) per cell type, no gradient.

        The space derives the genotype from it. Where a space compares edges, it takes each row for
        shares that add up to 1.
        """


STRATEGIES: Registry[type[Strategy[Any]]] = Registry("strategy", base=Strategy)
"""All strategies, by the names and options that `--strategy` takes."""


def masks_of(context: Context) -> dict[str, Tensor]:
    """Return masks (edges, candidates) per cell type: True where there is a candidate.

    They are on the search's device.
    """
    return {t: context.table.mask(t).to(context.device) for t in context.table.rows}


def detached(edge_weights: EdgeWeights) -> EdgeWeights:
    """Return the same edge weights without a gradient: for a pass that moves w and not alpha.

    >>> from darts_bio.strategies import detached
    >>> edge_weights = {"normal": torch.ones(14, 8, requires_grad=True)}
    >>> detached(edge_weights)["normal"].requires_grad
    False
    """
    return {cell_type: weights.detach() for cell_type, weights in edge_weights.items()}


def masked_softmax(alpha: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over the candidates of each edge, zero where the mask is False.

    All three are (edges, candidates).

    >>> from darts_bio.strategies import masked_softmax
    >>> alpha = torch.zeros(2, 3)
    >>> mask = torch.tensor([[True, True, True], [True, True, False]])
    >>> masked_softmax(alpha, mask)
    tensor([[0.3333, 0.3333, 0.3333],
            [0.5000, 0.5000, 0.0000]])
    """
    # Minus infinity rather than a product with the mask: the shares of a row still add up to 1.
    return torch.softmax(alpha.masked_fill(~mask, -torch.inf), dim=-1)


def shares_of_edges(weights: Tensor) -> Tensor:
    """Return each candidate's share of its edge, (..., edges, candidates), for such weights.

    Where an edge has no weight, as one that was taken out of a cell, all its shares are 0.

    >>> from darts_bio.strategies.base import shares_of_edges
    >>> shares_of_edges(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    tensor([[0.2500, 0.7500],
            [0.0000, 0.0000]])
    """
    totals = weights.sum(-1, keepdim=True)
    # The divisor, not the quotient, is replaced: the gradient of 0 / 0 would be NaN in any case.
    return weights / torch.where(totals == 0, 1, totals)


def one_hot_like(weights: Tensor, chosen: Tensor) -> Tensor:
    """Return 1 at the chosen candidate of each edge and 0 elsewhere.

    Args:
        weights: (edges, candidates); its shape, dtype and device are those of the result.
        chosen: (edges,), the index of a candidate for each edge.
    """
    return torch.zeros_like(weights).scatter(1, chosen.unsqueeze(1), 1.0)
