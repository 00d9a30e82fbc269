"""DARTS-PT (Wang 2021, arXiv 2108.04392): candidates are chosen by what their removal does, not by
alpha.

Any strategy trains the supernet first. Then, edge by edge in random order, each candidate is taken
out in turn, and the one whose absence costs the most validation accuracy is kept; between these
choices w is trained on, with alpha as it is. At last each node keeps the edges whose removal costs
the most. Equal accuracies are told apart by the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import check_number, check_whole
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


class PerturbationState(StrategyState):
    """The base strategy's state, and per cell type what was chosen: `chosen` (edges,) holds a
    candidate's index or UNDECIDED, `dropped` (edges,) bool the edges that are gone. `decided`
    counts the choices that were made.
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
        made = {"chosen": dict(self.chosen), "dropped": dict(self.dropped), "decided": self.decided}
        return {"base": self.base.state_dict(), **made}

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

    The strategy of the spec `base` trains the supernet for that `share` of the epochs (0: the one
    of `--supernet` is taken as it is); an accuracy is measured on so many validation `batches`.
    """

    measures = True

    base: str = "darts"
    share: float = 0.5
    batches: int = 8

    def __post_init__(self) -> None:
        """Raises InputError for a value out of bounds, or for a base that there is not."""
        check_number(f"{self.where}: share", self.share, below=1)
        check_whole(f"{self.where}: batches", self.batches)
        STRATEGIES.build(self.base)

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

    def base_epochs(self, epochs: int) -> int:
        """Returns for how many epochs of a search, from the first on, the base strategy trains the
        supernet.
        """
        return math.ceil(self.share * epochs)

    def warmup_share(self, epochs: int) -> float:
        trained = self.base_epochs(epochs)
        return self.trainer.warmup_share(max(1, trained)) * trained / epochs

    def trains(self, state: PerturbationState) -> bool:
        """Returns whether the base strategy still trains the supernet in the present epoch."""
        return state.epoch < self.base_epochs(state.context.epochs)

    def begin(self, context: Context) -> PerturbationState:
        trained = replace(context, epochs=max(1, self.base_epochs(context.epochs)))
        return PerturbationState(context, self.trainer.begin(trained))

    def notes(self, state: PerturbationState, rules: Sequence[str]) -> list[str]:
        rows = state.context.table.rows
        passes = self.batches * sum(
            candidate is not None for t in rows for row in rows[t] for candidate in row
        )
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
        return (
            self.trainer.edge_weights(state.base)
            if self.trains(state)
            else self.final_weights(state)
        )

    def descends(self, state: PerturbationState) -> bool:
        return self.trains(state) and self.trainer.descends(state.base)

    def prepare(self, state: PerturbationState) -> None:
        if self.trains(state):
            self.trainer.prepare(state.base)

    def gradients(
        self, state: PerturbationState, bilevel: Bilevel
    ) -> tuple[Sequence[Tensor], Tensor]:
        return self.trainer.gradients(state.base, bilevel)

    def move(self, state: PerturbationState, gradients: Sequence[Tensor]) -> None:
        self.trainer.move(state.base, gradients)

    def end_epoch(self, state: PerturbationState, epoch: int, measure: Measure) -> dict[str, float]:
        """Makes the choices that are due: evenly over the epochs that remain, the last after the
        last one.
        """
        base_epochs = self.base_epochs(state.context.epochs)
        if epoch < base_epochs:
            numbers = self.trainer.end_epoch(state.base, epoch, measure)
            if epoch < base_epochs - 1:
                return numbers
        done, left = epoch - base_epochs + 1, state.context.epochs - base_epochs
        choices = _choices(state.context)
        due = math.ceil(len(choices) * (done + 1) / (left + 1))
        for choice in choices[state.decided : due]:
            for cell_type, edges in choice.items():
                self._choose(state, cell_type, edges, measure)
        state.decided = due
        return {"selection/choices": float(state.decided)}

    def _choose(
        self, state: PerturbationState, cell_type: str, edges: Sequence[int], measure: Measure
    ) -> None:
        """Chooses the candidate of a single edge, or which of several edges stay."""
        context, weights = state.context, self.final_weights(state)
        own = weights[cell_type]
        removed: list[tuple[int, int | slice]]
        if len(edges) == 1:
            (e,) = edges
            row = context.table.rows[cell_type][e]
            options = [
                i for i, c in enumerate(row) if c is not None and context.space.selectable(c)
            ]
            removed = [(e, i) for i in options]
        else:
            removed = [(e, slice(None)) for e in edges]
        trials = own.repeat(len(removed), 1, 1)
        for trial, (e, columns) in zip(trials, removed, strict=True):
            trial[e, columns] = 0.0
        stacked = {
            t: trials if t == cell_type else w.expand(len(removed), -1, -1)
            for t, w in weights.items()
        }
        losses, accuracies = measure(stacked, self.batches)
        damage = sorted(
            range(len(removed)), key=lambda i: (accuracies[i].item(), -losses[i].item())
        )
        if len(edges) == 1:
            state.chosen[cell_type][edges[0]] = options[damage[0]]
        else:
            assert context.space.kept_edges is not None
            for i in damage[context.space.kept_edges :]:
                state.dropped[cell_type][edges[i]] = True

    def final_weights(self, state: PerturbationState) -> EdgeWeights:
        weights = {}
        for t, base in self.trainer.final_weights(state.base).items():
            chosen = state.chosen[t].to(base.device)
            single = one_hot_like(base, chosen.clamp_min(0)) * base.sum(1, keepdim=True)
            own = torch.where((chosen == UNDECIDED).unsqueeze(1), base, single)
            weights[t] = own.masked_fill(state.dropped[t].to(base.device).unsqueeze(1), 0.0)
        return weights


def _choices(context: Context) -> list[dict[str, list[int]]]:
    """Returns in order: per cell type an edge whose candidate is chosen, or all edges of a node of
    which some stay.
    """
    space = context.space
    plans = {}
    for t in context.table.rows:
        source = generator("cpu", "perturbation", context.seed, t)
        plan = [[e] for e in torch.randperm(len(space.edges), generator=source).tolist()]
        crowded = [
            edges for edges in space.incoming() if len(edges) > (space.kept_edges or len(edges))
        ]
        plan += [crowded[i] for i in torch.randperm(len(crowded), generator=source).tolist()]
        plans[t] = plan
    return [dict(zip(plans, choice, strict=True)) for choice in zip(*plans.values(), strict=True)]
