"""DARTS-PT (Wang 2021, arXiv 2108.04392): selection by perturbation.

Candidates are chosen by what their removal does, not by alpha:

1. Another strategy (`base`) trains the supernet for a `share` of the epochs.
2. Edge by edge, in random order, each candidate of the edge is taken out in turn, and the one whose
   absence costs the most validation accuracy is kept as the edge's only one.
3. At last, node by node, each incoming edge is taken out in turn, and the one that is missed least
   leaves the node; the others are measured again without it, until as many are left as a node keeps.

After each of these choices w and alpha are trained on, on what is left, before the next one is
measured. Their rate in that phase follows a cosine of its own from a tenth of the first rate, and
their optimizer is begun anew (github.com/ruocwang/darts-pt, sota/cnn/projection.py). That code makes
the cosine but never advances it, so that its rate stays at a tenth. It measures the edges of a node
again, too, but with those in place that have left, which on the same images changes nothing.

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
    Loss,
    Measure,
    Strategy,
    StrategyState,
    WeightPhase,
    one_hot_like,
)

UNDECIDED = -1
"""Stands for the index of a candidate on an edge where none was chosen yet."""

TUNING_SCALE = 0.1
"""The rate of w at the beginning of the choices, relative to that of the search."""


class PerturbationState(StrategyState):
    """The state of the base strategy, and what was chosen so far.

    Per cell type `chosen` (edges,) holds the index of a candidate or UNDECIDED, and `dropped`
    (edges,) bool says which edges are gone. `decided` counts the choices that were made.
    """

    def __init__(self, context: Context, base: StrategyState) -> None:
        super().__init__(context)
        self.base = base
        shapes = {t: context.table.shape(t) for t in context.table.rows}
        self.chosen = {t: torch.full((edges,), UNDECIDED) for t, (edges, _) in shapes.items()}
        self.dropped = {t: torch.zeros(edges, dtype=torch.bool) for t, (edges, _) in shapes.items()}
        self.decided = 0
        # The same as factors on the search's device, which change in place: recorded steps read
        # them.
        self._undecided = {
            t: torch.ones(edges, 1, device=context.device) for t, (edges, _) in shapes.items()
        }
        self._single = {t: torch.zeros(shape, device=context.device) for t, shape in shapes.items()}

    def choose(self, cell_type: str, edge: int, candidate: int) -> None:
        """Keep a candidate as the only one of its edge."""
        self.chosen[cell_type][edge] = candidate
        self._update_factors()

    def drop(self, cell_type: str, edge: int) -> None:
        """Take an edge out of the cell, whose candidate is chosen."""
        self.dropped[cell_type][edge] = True
        self._update_factors()

    def _update_factors(self) -> None:
        for t, chosen in self.chosen.items():
            undecided = (chosen == UNDECIDED).unsqueeze(1)
            # UNDECIDED is no index: where it stands, the row becomes 0.
            single = one_hot_like(self._single[t].cpu(), chosen.clamp_min(0))
            gone = undecided | self.dropped[t].unsqueeze(1)
            self._undecided[t].copy_(undecided)
            self._single[t].copy_(single.masked_fill(gone, 0.0))

    def under_choices(self, weights: EdgeWeights) -> EdgeWeights:
        """Return edge weights under the choices so far, with their gradient.

        Where the candidate of an edge is chosen, it has the weight of all candidates of the edge
        together, and the others have none. A dropped edge has weight zero.

        Args:
            weights: Those of the base, (edges, candidates) per cell type.
        """
        return {
            t: self._undecided[t] * w + self._single[t] * w.sum(1, keepdim=True)
            for t, w in weights.items()
        }

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
        self._update_factors()

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
        share: The fraction of the epochs in which it does, before w is tuned between choices. With 0
            the supernet of `--supernet` is tuned from the first epoch on.
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
        """Raise InputError for a value out of bounds, or for a base that it cannot choose after."""
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
        if trainer.drops_edges:
            raise InputError(
                f"{self.where}: base: expected a strategy that leaves the choice of edges to "
                f"darts_pt, found {self.base}; leave its threshold out"
            )
        if trainer.finished or isinstance(trainer, DartsPt):
            raise self._leaves_no_choice()

    def _leaves_no_choice(self) -> InputError:
        """Return the error for a base under whose final weights there is nothing to choose from."""
        return InputError(
            f"{self.where}: base: expected a strategy that ends with weights for all candidates of "
            f"an edge, found {self.base}; use another one, such as darts or eg"
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

    def weight_phase(self, epochs: int) -> WeightPhase | None:
        trained = self.base_epochs(epochs)
        return WeightPhase(trained, epochs - trained, TUNING_SCALE) if trained < epochs else None

    def begin(self, context: Context) -> PerturbationState:
        trained = replace(context, epochs=max(1, self.base_epochs(context.epochs)))
        base = self.trainer.begin(trained)
        # One that draws a candidate an edge and has no alpha knows no others, such as random_paths.
        if not base.alpha and self.trainer.drawn(base) is not None:
            raise self._leaves_no_choice()
        return PerturbationState(context, base)

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
        # What follows the epochs, such as a temperature, stays where the base's last epoch had it.
        self.trainer.begin_epoch(state.base, min(epoch, state.base.context.epochs - 1))

    def edge_weights(self, state: PerturbationState) -> EdgeWeights:
        return state.under_choices(self.trainer.edge_weights(state.base))

    def descends(self, state: PerturbationState) -> bool:
        return self.trainer.descends(state.base)

    def prepare(self, state: PerturbationState) -> None:
        self.trainer.prepare(state.base)

    def drawn(self, state: PerturbationState) -> Mapping[str, Sequence[int]] | None:
        drawn = self.trainer.drawn(state.base)
        if drawn is None:
            return None
        return {
            t: [
                column if chosen == UNDECIDED else chosen
                for column, chosen in zip(columns, state.chosen[t].tolist(), strict=True)
            ]
            for t, columns in drawn.items()
        }

    def gradients(
        self, state: PerturbationState, bilevel: Bilevel
    ) -> tuple[Sequence[Tensor], Tensor]:
        def under_choices(loss: Loss) -> Loss:
            return lambda batch, weights: loss(batch, state.under_choices(weights))

        bilevel = replace(
            bilevel,
            weight_loss=under_choices(bilevel.weight_loss),
            architecture_loss=under_choices(bilevel.architecture_loss),
        )
        return self.trainer.gradients(state.base, bilevel)

    def move(self, state: PerturbationState, gradients: Sequence[Tensor]) -> None:
        self.trainer.move(state.base, gradients)

    def end_epoch(self, state: PerturbationState, epoch: int, measure: Measure) -> dict[str, float]:
        """Make the choices that are due after this epoch.

        The first is due after the base's last epoch, the last after the last epoch of all, and the
        others evenly in between. Where there are fewer epochs than choices, several are due at once.
        With `share=0` the base has no epoch, and the first choice is due after the first epoch.
        """
        base_epochs = self.base_epochs(state.context.epochs)
        numbers: dict[str, float] = {}
        if epoch < base_epochs:
            numbers = self.trainer.end_epoch(state.base, epoch, measure)
        if epoch < base_epochs - 1:
            return numbers
        # Of `tuning` epochs of training on, `done` are over.
        done, tuning = epoch - base_epochs + 1, state.context.epochs - base_epochs
        choices = _choices(state.context)
        if tuning >= len(choices) - 1:
            due = 1 + done * (len(choices) - 1) // max(1, tuning)
        else:
            due = math.ceil(len(choices) * (done + 1) / (tuning + 1))
        for choice in choices[state.decided : due]:
            for cell_type, edges in choice.items():
                if len(edges) == 1:
                    self._choose_candidate(state, cell_type, edges[0], measure)
                else:
                    self._choose_edges(state, cell_type, edges, measure)
        state.decided = due
        return numbers | {"selection/choices": float(state.decided)}

    def _choose_candidate(
        self, state: PerturbationState, cell_type: str, edge: int, measure: Measure
    ) -> None:
        """Keep the candidate of an edge that is missed most."""
        space, row = state.context.space, state.context.table.rows[cell_type][edge]
        options = [i for i, c in enumerate(row) if c is not None and space.selectable(c)]
        without = self._without(state, cell_type, [(edge, i) for i in options], measure)
        state.choose(cell_type, edge, options[without.index(min(without))])

    def _choose_edges(
        self, state: PerturbationState, cell_type: str, edges: Sequence[int], measure: Measure
    ) -> None:
        """Take edges out of a node, the one that is missed least first, until enough are gone."""
        kept_edges, left = state.context.space.kept_edges, list(edges)
        assert kept_edges is not None
        while len(left) > kept_edges:
            without = self._without(state, cell_type, [(e, slice(None)) for e in left], measure)
            # Of edges that are missed alike the later one leaves.
            least = max(range(len(left)), key=lambda i: (without[i], i))
            state.drop(cell_type, left.pop(least))

    def _without(
        self,
        state: PerturbationState,
        cell_type: str,
        removals: Sequence[tuple[int, int | slice]],
        measure: Measure,
    ) -> list[tuple[float, float]]:
        """Return (accuracy, -loss) of the supernet without each of T parts of it.

        Args:
            state: The choices so far.
            cell_type: The cell type that something is taken out of.
            removals: For each trial an edge, and the columns of its row that become 0.
            measure: The search's measure.
        """
        weights = self.final_weights(state)
        trials = weights[cell_type].repeat(len(removals), 1, 1)  # (T, edges, candidates)
        for trial, (e, columns) in zip(trials, removals, strict=True):
            trial[e, columns] = 0.0
        # The cells of all other types are the same in each trial.
        individuals = {
            t: trials if t == cell_type else w.expand(len(removals), -1, -1)
            for t, w in weights.items()
        }
        losses, accuracies = measure(individuals, self.batches)
        return list(zip(accuracies.tolist(), (-losses).tolist(), strict=True))

    @torch.no_grad()
    def final_weights(self, state: PerturbationState) -> EdgeWeights:
        """Return the final weights of the base strategy under the choices made so far."""
        return state.under_choices(self.trainer.final_weights(state.base))


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
