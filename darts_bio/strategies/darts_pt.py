"""DARTS-PT (Wang 2021, arXiv 2108.04392): selection by perturbation.

Candidates are chosen by what their removal does, not by alpha:

1. Another strategy (`base`) trains the supernet for a `share` of the epochs.
2. Edge by edge, in random order, each candidate of the edge is taken out in turn, and the one whose
   absence costs the most validation accuracy is kept as the edge's only one. Between these choices
   w is trained on, with alpha as it is.
3. At last, node by node, each incoming edge is taken out in turn, and the node keeps those whose
   absence costs the most.

Of equal accuracies the one with the higher loss counts as the lower.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import InputError, check_number, check_whole
from darts_bio.networks import EdgeWeights
from darts_bio.runtime import generator
from darts_bio.strategies.base import (
    STRATEGIES,
    Bilevel,
    Context,
    Measure,
    Strategy,
    StrategyState,
    one_hot_like,
)

UNDECIDED = -1
"""Stands for the index of a candidate on an edge where none was chosen yet."""


class PerturbationState(StrategyState):
    """The state of the base strategy, and what was chosen so far.

    Per cell type `chosen` (edges,) holds the index of a candidate or UNDECIDED, and `dropped`
    (edges,) bool says which edges are gone. `decided` counts the choices that were made.
    """

    def __init__(self, context: Context, base: StrategyState) -> None:
        super().__init__(context)
        self.base = base
        edges = {t: len(rows) for t, rows in context.table.rows.items()}
        self.chosen = {t: torch.full((n,), UNDECIDED) for t, n in edges.items()}
        self.dropped = {t: torch.zeros(n, dtype=torch.bool) for t, n in edges.items()}
        self.decided = 0

    @property
    def alpha(self) -> dict[str, Tensor]:
        return self.base.alpha

    def begin_with(self, saved: dict[str, Any]) -> None:
        self.base.load_state_dict(saved)

    def state_dict(self) -> dict[str, Any]:
        choices = {
            "chosen": dict(self.chosen),
            "dropped": dict(self.dropped),
            "decided": self.decided,
        }
        return {"base": self.base.state_dict(), **choices}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.base.load_state_dict(saved["base"])
        self.chosen = {t: chosen.clone() for t, chosen in saved["chosen"].items()}
        self.dropped = {t: dropped.clone() for t, dropped in saved["dropped"].items()}
        self.decided = saved["decided"]

    def learning_rates(self) -> dict[str, float]:
        return self.base.learning_rates()

    @property
    def generators(self) -> Sequence[torch.Generator]:
        return self.base.generators


@STRATEGIES.register("darts_pt")
@dataclass(frozen=True)
class DartsPt(Strategy[PerturbationState]):
    """Selection by perturbation on a supernet that another strategy trained (Wang 2021).

    Attributes:
        base: The spec of the strategy that trains the supernet.
        share: The fraction of the epochs in which it does. With 0 the supernet of `--supernet` is
            taken as it is.
        batches: The number of validation batches that an accuracy is measured on.

    >>> from darts_bio.strategies import STRATEGIES
    >>> darts_pt = STRATEGIES.build("darts_pt(base=drnas, share=0.8)")
    >>> darts_pt.trainer.lr, darts_pt.base_epochs(50)
    (0.0006, 40)
    >>> STRATEGIES.options("darts_pt")
    {'base': 'darts', 'share': 0.5, 'batches': 8}
    """

    measures = True

    base: str = "darts"
    share: float = 0.5
    batches: int = 8

    def __post_init__(self) -> None:
        """Raise InputError for a value out of bounds, or for a base that is no strategy."""
        check_number(f"{self.where}: share", self.share, below=1)
        check_whole(f"{self.where}: batches", self.batches)
        if not isinstance(self.base, str):
            raise InputError(
                f"{self.where}: base: expected the spec of a strategy, such as darts, found "
                f"{self.base!r}"
            )
        try:
            trainer = STRATEGIES.build(self.base)
        except InputError as error:
            raise InputError(f"{self.where}: base: {error}") from None
        if trainer.shares_weights:
            raise InputError(
                f"{self.where}: base: expected a strategy on weights of each rule's own, since the "
                "loss without a candidate says nothing of rules that share theirs, found "
                f"{self.base}; search by {self.base} itself"
            )

    @cached_property
    def trainer(self) -> Strategy[Any]:
        """The strategy that `base` specifies."""
        return STRATEGIES.build(self.base)

    @property
    def partial(self) -> int:  # type: ignore[override]
        return self.trainer.partial

    @property
    def exchanges(self) -> bool:  # type: ignore[override]
        return self.trainer.exchanges

    @property
    def looks_ahead(self) -> bool:  # type: ignore[override]
        return self.trainer.looks_ahead

    def base_epochs(self, epochs: int) -> int:
        """Return in how many epochs, the first of a search, the base strategy trains."""
        return math.ceil(self.share * epochs)

    def warmup_share(self, epochs: int) -> float:
        # The base's share of its own epochs, as a share of all epochs.
        trained = self.base_epochs(epochs)
        return self.trainer.warmup_share(max(1, trained)) * trained / epochs

    def trains(self, state: PerturbationState) -> bool:
        """Return whether the base strategy still trains the supernet in the present epoch."""
        return state.epoch < self.base_epochs(state.context.epochs)

    def begin(self, context: Context) -> PerturbationState:
        trained = replace(context, epochs=max(1, self.base_epochs(context.epochs)))
        return PerturbationState(context, self.trainer.begin(trained))

    def notes(self, state: PerturbationState, rules: Sequence[str]) -> list[str]:
        rows = state.context.table.rows
        candidates = [c for t in rows for row in rows[t] for c in row if c is not None]
        passes = self.batches * len(candidates)
        return [
            *self.trainer.notes(state.base, rules),
            f"note: darts_pt chooses {sum(map(len, rows.values()))} candidates by {passes} passes "
            "between epochs, from "
            f"epoch {max(1, self.base_epochs(state.context.epochs))} on",
        ]

    def begin_epoch(self, state: PerturbationState, epoch: int) -> None:
        super().begin_epoch(state, epoch)
        if self.trains(state):
            self.trainer.begin_epoch(state.base, epoch)

    def edge_weights(self, state: PerturbationState) -> EdgeWeights:
        if self.trains(state):
            return self.trainer.edge_weights(state.base)
        return self.final_weights(state)

    def descends(self, state: PerturbationState) -> bool:
        return self.trains(state) and self.trainer.descends(state.base)

    def prepare(self, state: PerturbationState) -> None:
        if self.trains(state):
            self.trainer.prepare(state.base)

    def drawn(self, state: PerturbationState) -> Mapping[str, Sequence[int]] | None:
        return self.trainer.drawn(state.base) if self.trains(state) else None

    def gradients(
        self, state: PerturbationState, bilevel: Bilevel
    ) -> tuple[Sequence[Tensor], Tensor]:
        return self.trainer.gradients(state.base, bilevel)

    def move(self, state: PerturbationState, gradients: Sequence[Tensor]) -> None:
        self.trainer.move(state.base, gradients)

    def end_epoch(self, state: PerturbationState, epoch: int, measure: Measure) -> dict[str, float]:
        """Make the choices that are due after this epoch.

        They are spread evenly over the ends of the base's last epoch and of all epochs after it, so
        that the last choice is made after the last epoch. With `share=0` the base has no epoch, and
        the first end has the choices of two.
        """
        base_epochs = self.base_epochs(state.context.epochs)
        if epoch < base_epochs:
            numbers = self.trainer.end_epoch(state.base, epoch, measure)
            if epoch < base_epochs - 1:
                return numbers
        # Of remaining + 1 ends of epochs at which choices are made, this is number done + 1.
        done, remaining = epoch - base_epochs + 1, state.context.epochs - base_epochs
        choices = _choices(state.context)
        due = math.ceil(len(choices) * (done + 1) / (remaining + 1))
        for choice in choices[state.decided : due]:
            for cell_type, edges in choice.items():
                self._choose(state, cell_type, edges, measure)
        state.decided = due
        return {"selection/choices": float(state.decided)}

    def _choose(
        self, state: PerturbationState, cell_type: str, edges: Sequence[int], measure: Measure
    ) -> None:
        """Choose the candidate of a single edge, or which of several edges of a node stay."""
        context, weights = state.context, self.final_weights(state)
        # What is removed in each of T trials: an edge, and the columns of its row that become 0.
        removals: list[tuple[int, int | slice]]
        if len(edges) == 1:
            (e,) = edges
            row = context.table.rows[cell_type][e]
            options = [
                i for i, c in enumerate(row) if c is not None and context.space.selectable(c)
            ]
            removals = [(e, i) for i in options]
        else:
            removals = [(e, slice(None)) for e in edges]

        trials = weights[cell_type].repeat(len(removals), 1, 1)  # (T, edges, candidates)
        for trial, (e, columns) in zip(trials, removals, strict=True):
            trial[e, columns] = 0.0
        # The cells of all other types are the same in each trial.
        individuals = {
            t: trials if t == cell_type else w.expand(len(removals), -1, -1)
            for t, w in weights.items()
        }
        losses, accuracies = measure(individuals, self.batches)

        def quality_without(trial: int) -> tuple[float, float]:
            return accuracies[trial].item(), -losses[trial].item()

        # Most missed first: what leaves the supernet at its worst.
        most_missed = sorted(range(len(removals)), key=quality_without)
        if len(edges) == 1:
            state.chosen[cell_type][edges[0]] = options[most_missed[0]]
        else:
            assert context.space.kept_edges is not None
            for i in most_missed[context.space.kept_edges :]:
                state.dropped[cell_type][edges[i]] = True

    def final_weights(self, state: PerturbationState) -> EdgeWeights:
        """Return the final weights of the base strategy under the choices made so far.

        Where the candidate of an edge is chosen, it has the weight of all candidates of the edge
        together, and the others have none. A dropped edge has weight zero.
        """
        weights = {}
        for t, base in self.trainer.final_weights(state.base).items():
            chosen = state.chosen[t].to(base.device)
            # UNDECIDED is no index: where it stands, the result of one_hot_like is not used.
            single = one_hot_like(base, chosen.clamp_min(0)) * base.sum(1, keepdim=True)
            decided = torch.where((chosen == UNDECIDED).unsqueeze(1), base, single)
            weights[t] = decided.masked_fill(state.dropped[t].to(base.device).unsqueeze(1), 0.0)
        return weights


def _choices(context: Context) -> list[dict[str, list[int]]]:
    """Return all choices of a search in order, a function of its seed.

    A choice is made in the cells of all types at once. Per cell type it holds the index of one
    edge, whose candidate is chosen, or the indices of all edges into a node, some of which stay.
    The edges come first in random order, then the nodes that have more edges than they keep.
    """
    space = context.space
    choices_by_type = {}
    for t in context.table.rows:
        source = generator("cpu", "perturbation", context.seed, t)
        choices = [[e] for e in torch.randperm(len(space.edges), generator=source).tolist()]
        crowded = [
            edges for edges in space.incoming() if len(edges) > (space.kept_edges or len(edges))
        ]
        choices += [crowded[i] for i in torch.randperm(len(crowded), generator=source).tolist()]
        choices_by_type[t] = choices
    # {type: [choice, ...]} -> [{type: choice}, ...]; all types have the same edges.
    return [
        dict(zip(choices_by_type, choice, strict=True))
        for choice in zip(*choices_by_type.values(), strict=True)
    ]
