"""The regularizers of a search, which act as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.networks import EdgeWeights, SuperNet
from darts_bio.spaces import Cell
from darts_bio.strategies import Context, Regularizer, Strategy, StrategyState
from darts_bio.strategies.regularizers import Lookout


class Regularization:
    """The regularizers of one search with their states: each acts on what those before it left.

    The methods are those of `Regularizer`, which says what each does.

    Attributes:
        regularizers: The regularizers, in their order.
        states: What each keeps in this search, in the same order.
        factorised: Whether one wants alpha to be operation times rule given the operation.
        normalizes_edges: Whether one wants the edges into a node to compete.
        spreads: Whether one gives weight to candidates that had none.
        exchanges: Whether one averages over processes while it perturbs.
        compared: The parameters whose gradients `compare` needs, each with the mask of what steps
            leave as it is; empty before `attend`.

    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import REGULARIZERS
    >>> space = SPACES.build("darts(nodes=1, operations=(none, skip_connect, sep_conv_3x3))")
    >>> context = Context(space, space.table(["fa", "usf"]), 0, torch.device("cpu"), 1, 1)
    >>> two = Regularization([REGULARIZERS.build(n) for n in ("entropy", "factorised")], context)
    >>> two.factorised, two.spreads, two.state_dict()
    (True, False, [{}, {}])
    """

    def __init__(self, regularizers: Sequence[Regularizer[Any]], context: Context) -> None:
        """Make the state of each.

        Raises:
            InputError: One of them does not go with that search.
        """
        self.regularizers = tuple(regularizers)
        self.states = tuple(regularizer.begin(context) for regularizer in regularizers)
        self.factorised = any(r.factorised for r in regularizers)
        self.normalizes_edges = any(r.normalizes_edges for r in regularizers)
        self.spreads = any(r.spreads for r in regularizers)
        self.exchanges = any(r.exchanges for r in regularizers)
        self.compared: dict[nn.Parameter, Tensor] = {}
        self._compared_by: list[list[nn.Parameter]] = []

    def _pairs(self) -> Iterator[tuple[Regularizer[Any], Any]]:
        """Yield each regularizer with its state."""
        return zip(self.regularizers, self.states, strict=True)

    @property
    def skip_rate(self) -> Tensor | None:
        """The rate of the dropout that follows skip connections, a scalar; None without one."""
        return next((state.number for r, state in self._pairs() if r.drops_skips), None)

    def accept(self, strategy: Strategy[Any], state: StrategyState) -> None:
        """Raise InputError if one of them cannot go with this strategy, whose state is given."""
        for regularizer in self.regularizers:
            regularizer.accept(strategy, state)

    def attend(self, supernet: SuperNet) -> None:
        """Have them look at the supernet, and set `compared` to what they ask for."""
        masks = [regularizer.attend(state, supernet) for regularizer, state in self._pairs()]
        self.compared = {p: mask for each in masks for p, mask in each.items()}
        self._compared_by = [list(each) for each in masks]

    def begin_epoch(self, epoch: int) -> None:
        for regularizer, state in self._pairs():
            regularizer.begin_epoch(state, epoch)

    def prepare(self) -> None:
        for regularizer, state in self._pairs():
            regularizer.prepare(state)

    def lent(self, weights: EdgeWeights) -> EdgeWeights:
        for regularizer, state in self._pairs():
            weights = regularizer.lent(state, weights)
        return weights

    def perturbed(self, weights: EdgeWeights, loss: Callable[[EdgeWeights], Tensor]) -> EdgeWeights:
        for regularizer, state in self._pairs():
            weights = regularizer.perturbed(state, weights, loss)
        return weights

    def compare(self, *valid: Tensor) -> None:
        """Have them compare gradients; w's hold those on the training batch.

        Args:
            valid: Those on the validation batch, in the order of `compared`.
        """
        on_valid = dict(zip(self.compared, valid, strict=True))
        for (regularizer, state), parameters in zip(self._pairs(), self._compared_by, strict=True):
            train = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            if parameters:
                regularizer.compare(state, train, [on_valid[p] for p in parameters])

    def penalty(self, shares: EdgeWeights) -> Tensor | float:
        return sum(regularizer.penalty(state, shares) for regularizer, state in self._pairs())

    def alpha_penalty(self, alpha: Mapping[str, Tensor]) -> Tensor | float:
        return sum(regularizer.alpha_penalty(state, alpha) for regularizer, state in self._pairs())

    def after_epoch(self, epoch: int, search: Lookout) -> tuple[bool, dict[str, float]]:
        ends = False
        numbers: dict[str, float] = {}
        for regularizer, state in self._pairs():
            this_ends, measured = regularizer.after_epoch(state, epoch, search)
            ends = ends or this_ends
            numbers |= measured
        return ends, numbers

    def decisive(
        self, weights: EdgeWeights, derive: Callable[[EdgeWeights], dict[str, Cell]]
    ) -> EdgeWeights:
        for regularizer, state in self._pairs():
            weights = regularizer.decisive(state, weights, derive)
        return weights

    def state_dict(self) -> list[dict[str, Any]]:
        """Return what a resumed search needs of each."""
        return [state.state_dict() for state in self.states]

    def load_state_dict(self, saved: Sequence[dict[str, Any]]) -> None:
        """Restore what `state_dict` returned."""
        for state, of_state in zip(self.states, saved, strict=True):
            state.load_state_dict(of_state)
