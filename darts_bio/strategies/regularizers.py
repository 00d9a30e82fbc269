"""Regularizers of a search: what keeps alpha from following the noise of half-trained weights.

A regularizer adds a penalty to the loss that alpha follows, changes the edge weights that the
supernet is lent, has a say in when the search stops or when alpha begins to move, or asks for
another form of alpha or of the supernet. Any number of them goes with any strategy, but where it
says so. They are registered by name in `REGULARIZERS` and given as
`--regularizers "skip_stop(most=2),entropy(weight=0.1)"`.

Here is what they have in common; those of a few lines are in `ingredients`, the others have a file of
their own.

>>> from darts_bio.strategies import REGULARIZERS
>>> REGULARIZERS.names()[:4]
('auxiliary_skip', 'beta_decay', 'eigenvalue_stop', 'entropy')
>>> REGULARIZERS.options("entropy")
{'weight': 0.1, 'level': 'pair'}
>>> REGULARIZERS.build("entropy(level=rule)")
Entropy(weight=0.1, level='rule')
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.networks import EdgeWeights, SuperNet
from darts_bio.registry import Registry
from darts_bio.spaces import Cell
from darts_bio.strategies.base import STRATEGIES, Context, Strategy, StrategyState, masks_of
from darts_bio.strategies.gradient import GradientStrategy


class Lookout(Protocol):
    """What a regularizer sees of a search after an epoch."""

    strategy: Strategy[Any]
    strategy_state: StrategyState

    def cells(self) -> dict[str, Cell]:
        """Return the cells that would be derived now, per cell type."""

    def validation_loss(self, edge_weights: EdgeWeights) -> Tensor:
        """Return the loss on a validation batch, the same batch at each call.

        It is differentiable in the edge weights (edges, candidates), with exact gradients in place
        of the rules' own.
        """


class RegularizerState:
    """What a regularizer keeps in a search; nothing, unless a subclass says otherwise.

    >>> from darts_bio.strategies import RegularizerState
    >>> class Counter(RegularizerState):
    ...     epochs = 0
    ...     def state_dict(self):
    ...         return {"epochs": self.epochs}
    ...     def load_state_dict(self, saved):
    ...         self.epochs = saved["epochs"]
    >>> resumed = Counter()
    >>> resumed.load_state_dict({"epochs": 7})
    >>> resumed.epochs
    7
    >>> RegularizerState().state_dict()
    {}
    """

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed search needs, as tensors and plain values only."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class ScheduledState(RegularizerState):
    """A number that changes from epoch to epoch, as a scalar tensor that changes in place.

    Args:
        context: The search.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.masks = masks_of(context)
        """(edges, candidates) bool per cell type: True where there is a candidate."""
        self.number = torch.zeros((), device=context.device)


R = TypeVar("R", bound=RegularizerState)


class Regularizer(Generic[R]):
    """A regularizer that does nothing; subclasses override what they are about.

    Subclasses are frozen dataclasses, whose fields are their options, registered by name in
    `REGULARIZERS`. `begin` makes the state of one search, and most other methods are given that
    state.

    >>> from dataclasses import dataclass
    >>> from darts_bio.strategies import Regularizer
    >>> @dataclass(frozen=True)
    ... class Even(Regularizer):
    ...     weight: float = 0.1
    ...     def penalty(self, state, shares):
    ...         return self.weight * sum(s.square().sum((-2, -1)) for s in shares.values())
    >>> single, even = torch.eye(2), torch.full((2, 2), 0.5)  # two edges, two candidates
    >>> Even().penalty(None, {"normal": torch.stack([single, even])})
    tensor([0.2000, 0.1000])
    """

    warmup_epochs: ClassVar[int | None] = None
    """For how many epochs alpha is not moved; None if the regularizer has no say in it."""

    factorised: ClassVar[bool] = False
    """Whether alpha is to be operation times rule given the operation."""

    normalizes_edges: ClassVar[bool] = False
    """Whether the edges into a node are to compete."""

    partial: ClassVar[int | None] = None
    """k, where 1/k of the channels are to go through the candidates; None without a say in it."""

    drops_skips: ClassVar[bool] = False
    """Whether skip connections are to be followed by dropout, of the rate `number` of its state,
    which is then a `ScheduledState`."""

    spreads: ClassVar[bool] = False
    """Whether it gives weight to candidates that had none, so that a strategy that draws one
    candidate an edge has to have all of them computed."""

    exchanges: ClassVar[bool] = False
    """Whether `perturbed` averages something over processes by itself."""

    @property
    def where(self) -> str:
        """The words that an error message about this regularizer begins with."""
        return f"regularizer {REGULARIZERS.name_of(self)}"

    def begin(self, context: Context) -> R:
        """Make the state of a new search.

        Raises:
            InputError: If the regularizer does not go with that search.
        """
        return RegularizerState()  # type: ignore[return-value]

    def accept(self, strategy: Strategy[Any], state: StrategyState) -> None:
        """Raise InputError if the regularizer cannot go with this strategy, whose state is given."""

    def attend(self, state: R, supernet: SuperNet) -> Mapping[nn.Parameter, Tensor]:
        """Look at the supernet, once it is built and on its device.

        Returns the parameters whose gradients `compare` is to be called with, if any. The tensor of
        each is a mask that broadcasts to it: where it is True, steps leave the parameter as it is.
        `compare` may change the masks in place.
        """
        return {}

    def begin_epoch(self, state: R, epoch: int) -> None:
        """Set what a schedule changes, for an epoch counted from 0; again if a run is resumed."""

    def lent(self, state: R, weights: EdgeWeights) -> EdgeWeights:
        """Return the edge weights that the supernet is lent in place of the strategy's.

        This is so in every pass: of w, of alpha, and of individuals that are measured.

        Args:
            state: What `begin` made.
            weights: (edges, candidates) per cell type.
        """
        return weights

    def prepare(self, state: R) -> None:
        """Draw what the next `perturbed` depends on, in place."""

    def perturbed(
        self, state: R, weights: EdgeWeights, loss: Callable[[EdgeWeights], Tensor]
    ) -> EdgeWeights:
        """Return the edge weights that w is trained with, in place of those that alpha stands for.

        On a GPU it is recorded (see `Strategy.descends`).

        Args:
            state: What `begin` made.
            weights: (edges, candidates) per cell type, without a gradient.
            loss: Returns the supernet's loss on the training batch at other edge weights, a scalar.
                It is differentiable, with exact gradients in place of the rules' own, and the
                supernet is in evaluation mode.
        """
        return weights

    def compare(self, state: R, train: Sequence[Tensor], valid: Sequence[Tensor]) -> None:
        """Look at w's gradients on the training and the validation batch of a step, before w moves.

        Both are taken at the same w and edge weights, and are means over all processes. The
        supernet then takes a further pass a step. On a GPU it is recorded (see
        `Strategy.descends`).

        Args:
            state: What `begin` made.
            train: A gradient for each parameter that `attend` returned, in its order.
            valid: Likewise.
        """

    def penalty(self, state: R, shares: EdgeWeights) -> Tensor | float:
        """Return what is added to the loss that alpha follows, for the shares of candidates.

        Args:
            state: What `begin` made.
            shares: Each candidate's share of its edge, (..., edges, candidates) per cell type. What
                stands before the last two dimensions, such as individuals, is kept: (...).
        """
        return 0.0

    def alpha_penalty(self, state: R, alpha: Mapping[str, Tensor]) -> Tensor | float:
        """Return what is added to the loss that alpha follows, for alpha itself: a scalar.

        It is called where a strategy moves alpha along a gradient; individuals that are only
        measured have no alpha.

        Args:
            state: What `begin` made.
            alpha: The logits, (edges, candidates) per cell type.
        """
        return 0.0

    def after_epoch(self, state: R, epoch: int, search: Lookout) -> tuple[bool, dict[str, float]]:
        """Return whether the search is to stop, and numbers for the records."""
        return False, {}

    def decisive(
        self, state: R, weights: EdgeWeights, derive: Callable[[EdgeWeights], dict[str, Cell]]
    ) -> EdgeWeights:
        """Return the weights that the genotype is derived from, in place of the strategy's.

        Args:
            state: What `begin` made.
            weights: The final weights of the strategy, (edges, candidates) per cell type.
            derive: Returns the cells that such weights stand for.
        """
        return weights


REGULARIZERS: Registry[type[Regularizer[Any]]] = Registry("regularizer", base=Regularizer)
"""All regularizers, by the names and options that `--regularizers` takes."""


def refuse_without_gradient(regularizer: Regularizer[Any], strategy: Strategy[Any]) -> None:
    """Raise InputError if the strategy does not move alpha along a gradient."""
    if not isinstance(strategy, GradientStrategy):
        raise InputError(
            f"{regularizer.where}: expected a strategy that moves alpha along a gradient, found "
            f"{STRATEGIES.name_of(strategy)}; choose one that does, such as darts, or leave the "
            "regularizer out"
        )
