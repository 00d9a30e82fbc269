"""DARTS-PT (Wang 2021, arXiv 2108.04392): candidates are chosen by what their removal does, not by alpha.

Any strategy trains the supernet first. Then, edge by edge in random order, each candidate is taken out in turn, and the
one whose absence costs the most validation accuracy is kept; between these choices w is trained on, with alpha as it
is. At last each node keeps the edges whose removal costs the most. Equal accuracies are told apart by the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import check_number, check_whole
from darts_bio.networks import EdgeWeights
from darts_bio.runtime import generator
from darts_bio.strategies.base import STRATEGIES, Bilevel, Context, Measure, Strategy, one_hot_like

UNDECIDED = -1


@STRATEGIES.register("darts_pt")
class DartsPt(Strategy):
    """Selection by perturbation on a supernet that another strategy trained (Wang 2021)."""

    measures = True

    def __init__(self, context: Context, base: str = "darts", share: float = 0.5, batches: int = 8) -> None:
        """`base` trains the supernet for that `share` of the epochs (0: the one of `--supernet` is taken as it is); an
        accuracy is measured on so many validation batches."""
        check_number("strategy darts_pt: share", share, below=1)
        check_whole("strategy darts_pt: batches", batches)
        self.context, self.batches = context, batches
        self.base_epochs = math.ceil(share * context.epochs)
        self.base: Strategy = STRATEGIES.build(base, replace(context, epochs=max(1, self.base_epochs)))
        self.partial = self.base.partial
        self.warmup = self.base.warmup * self.base_epochs / context.epochs
        rows = context.table.rows
        self.chosen = {t: torch.full((len(rows[t]),), UNDECIDED) for t in rows}
        self.dropped = {t: torch.zeros(len(rows[t]), dtype=torch.bool) for t in rows}
        self.decided = 0
        self.epoch = 0

    @property
    def alpha(self) -> dict[str, Tensor]:
        return self.base.alpha

    def notes(self, rules: Sequence[str]) -> list[str]:
        rows = self.context.table.rows
        passes = self.batches * sum(candidate is not None for t in rows for row in rows[t] for candidate in row)
        return [
            *self.base.notes(rules),
            f"note: darts_pt chooses {sum(map(len, rows.values()))} candidates by {passes} passes between epochs, from "
            f"epoch {max(1, self.base_epochs)} on",
        ]

    def begin_with(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state)

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if epoch < self.base_epochs:
            self.base.begin_epoch(epoch)

    def edge_weights(self) -> EdgeWeights:
        return self.base.edge_weights() if self.epoch < self.base_epochs else self.final_weights()

    def step(self, bilevel: Bilevel) -> Tensor | None:
        return self.base.step(bilevel) if self.epoch < self.base_epochs else None

    def end_epoch(self, epoch: int, measure: Measure) -> dict[str, float]:
        """Makes the choices that are due: evenly over the epochs that remain, the last after the last one."""
        if epoch < self.base_epochs:
            numbers = self.base.end_epoch(epoch, measure)
            if epoch < self.base_epochs - 1:
                return numbers
        done, left = epoch - self.base_epochs + 1, self.context.epochs - self.base_epochs
        choices = self._choices()
        due = math.ceil(len(choices) * (done + 1) / (left + 1))
        for choice in choices[self.decided : due]:
            for cell_type, edges in choice.items():
                self._choose(cell_type, edges, measure)
        self.decided = due
        return {"selection/choices": float(self.decided)}

    def _choices(self) -> list[dict[str, list[int]]]:
        """In order: per cell type an edge whose candidate is chosen, or all edges of a node of which some stay."""
        space, seed = self.context.space, self.context.seed
        plans = {}
        for t in self.context.table.rows:
            source = generator("cpu", "perturbation", seed, t)
            plan = [[e] for e in torch.randperm(len(space.edges), generator=source).tolist()]
            crowded = [edges for edges in space.incoming() if len(edges) > (space.kept_edges or len(edges))]
            plan += [crowded[i] for i in torch.randperm(len(crowded), generator=source).tolist()]
            plans[t] = plan
        return [dict(zip(plans, choice, strict=True)) for choice in zip(*plans.values(), strict=True)]

    def _choose(self, cell_type: str, edges: Sequence[int], measure: Measure) -> None:
        weights = self.final_weights()
        own = weights[cell_type]
        removed: list[tuple[int, int | slice]]
        if len(edges) == 1:
            (e,) = edges
            row = self.context.table.rows[cell_type][e]
            options = [i for i, c in enumerate(row) if c is not None and self.context.space.selectable(c)]
            removed = [(e, i) for i in options]
        else:
            removed = [(e, slice(None)) for e in edges]
        trials = own.repeat(len(removed), 1, 1)
        for trial, (e, columns) in zip(trials, removed, strict=True):
            trial[e, columns] = 0.0
        stacked = {t: trials if t == cell_type else w.expand(len(removed), -1, -1) for t, w in weights.items()}
        losses, accuracies = measure(stacked, self.batches)
        damage = sorted(range(len(removed)), key=lambda i: (accuracies[i].item(), -losses[i].item()))
        if len(edges) == 1:
            self.chosen[cell_type][edges[0]] = options[damage[0]]
        else:
            assert self.context.space.kept_edges is not None
            for i in damage[self.context.space.kept_edges :]:
                self.dropped[cell_type][edges[i]] = True

    def final_weights(self) -> EdgeWeights:
        weights = {}
        for t, base in self.base.final_weights().items():
            chosen = self.chosen[t].to(base.device)
            single = one_hot_like(base, chosen.clamp_min(0)) * base.sum(1, keepdim=True)
            own = torch.where((chosen == UNDECIDED).unsqueeze(1), base, single)
            weights[t] = own.masked_fill(self.dropped[t].to(base.device).unsqueeze(1), 0.0)
        return weights

    def state_dict(self) -> dict[str, Any]:
        made = {"chosen": dict(self.chosen), "dropped": dict(self.dropped), "decided": self.decided}
        return {"base": self.base.state_dict(), **made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.base.load_state_dict(state["base"])
        self.chosen = {t: chosen.clone() for t, chosen in state["chosen"].items()}
        self.dropped = {t: dropped.clone() for t, dropped in state["dropped"].items()}
        self.decided = state["decided"]

    def learning_rates(self) -> dict[str, float]:
        return self.base.learning_rates()
