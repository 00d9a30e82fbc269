"""Random search with weight sharing (Li 2019, arXiv 1902.07638).

Each step of w trains one genotype, drawn uniformly: a path through the supernet, of which nothing
else is computed. After the last epoch `samples` genotypes are drawn, each is measured with the
weights as they are on one validation batch, and the `best` of them on the whole validation half.
There is no alpha, and all that the search has learned is w: a control for every strategy that moves
one.

As there, 1000 are measured and the best 10 measured again. They are compared by the loss, in which
the costs of the objective are, where the published code compares accuracies. Until the end the
genotype of the records is the one drawn last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import InputError, check_whole
from darts_bio.networks import EdgeWeights
from darts_bio.networks.supernet import single_columns
from darts_bio.runtime import fill, generator
from darts_bio.strategies.base import STRATEGIES, Context, Measure, Strategy, StrategyState
from darts_bio.strategies.random import random_cells

TOGETHER = 50
"""How many genotypes are handed over to be measured at once; in between a run may be stopped."""


class RandomPathsState(StrategyState):
    """The genotype drawn last, as weights (edges, candidates) per cell type, and their number.

    `weights` change in place.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.weights = {
            t: torch.zeros(context.table.shape(t), device=context.device)
            for t in context.table.rows
        }
        self.columns: dict[str, list[int]] = {}
        self.draws = 0

    @property
    def alpha(self) -> dict[str, Tensor]:
        return {}

    def put(self, weights: EdgeWeights) -> None:
        """Set the genotype to that of weights on the CPU."""
        columns = single_columns(weights)
        assert columns is not None
        self.columns = columns
        for t, of_type in weights.items():
            fill(self.weights[t], of_type)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": {t: w.cpu() for t, w in self.weights.items()}, "draws": self.draws}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.put(saved["weights"])
        self.draws = saved["draws"]


@STRATEGIES.register("random_paths")
@dataclass(frozen=True)
class RandomPaths(Strategy[RandomPathsState]):
    """w by one random genotype a step, then the best of many on the supernet (Li 2019).

    Attributes:
        samples: How many genotypes are measured after the last epoch, on a batch each.
        best: How many of them are measured again, on the whole validation half.

    >>> import torch
    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import STRATEGIES, Context
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> random_paths = STRATEGIES.build("random_paths(samples=100)")
    >>> state = random_paths.begin(Context(space, table, 0, cpu, epochs=1, steps_per_epoch=5))
    >>> random_paths.prepare(state)
    >>> random_paths.edge_weights(state)["cell"].sum(dim=1).tolist()  # one candidate an edge
    [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """

    measures = True

    samples: int = 1000
    best: int = 10

    def __post_init__(self) -> None:
        check_whole(f"{self.where}: samples", self.samples)
        check_whole(f"{self.where}: best", self.best)
        if self.best > self.samples:
            raise InputError(
                f"{self.where}: best: expected at most samples={self.samples}, found {self.best}"
            )

    def begin(self, context: Context) -> RandomPathsState:
        state = RandomPathsState(context)
        self.prepare(state)
        return state

    def notes(self, state: RandomPathsState, rules: Sequence[str]) -> list[str]:
        passes = self.samples + self.best * state.context.steps_per_epoch
        return [
            f"note: random_paths measures {self.samples} genotypes by {passes} passes after the last "
            "epoch; until then the genotype is that of the last step"
        ]

    def prepare(self, state: RandomPathsState) -> None:
        state.draws += 1
        source = generator("cpu", "random paths", state.context.seed, state.draws)
        state.put(random_cells(state.context, source))

    def edge_weights(self, state: RandomPathsState) -> EdgeWeights:
        return state.weights

    def drawn(self, state: RandomPathsState) -> Mapping[str, Sequence[int]]:
        return state.columns

    def end_epoch(self, state: RandomPathsState, epoch: int, measure: Measure) -> dict[str, float]:
        """After the last epoch, choose a genotype; return its loss and accuracy."""
        if epoch < state.context.epochs - 1:
            return {}
        source = generator("cpu", "random paths' choice", state.context.seed)
        genotypes = [random_cells(state.context, source) for _ in range(self.samples)]
        losses, _ = _measured(state, genotypes, measure, 1)
        order = sorted(range(self.samples), key=losses.__getitem__)
        finalists = [genotypes[i] for i in order[: self.best]]
        losses, accuracies = _measured(state, finalists, measure, state.context.steps_per_epoch)
        winner = losses.index(min(losses))
        state.put(finalists[winner])
        return {"paths/loss": losses[winner], "paths/accuracy": accuracies[winner]}

    def final_weights(self, state: RandomPathsState) -> EdgeWeights:
        return {t: weights.clone() for t, weights in state.weights.items()}


def _measured(
    state: RandomPathsState,
    genotypes: Sequence[Mapping[str, Tensor]],
    measure: Measure,
    batches: int,
) -> tuple[list[float], list[float]]:
    """Measure genotypes on validation batches; return the loss and the accuracy of each."""
    losses: list[float] = []
    accuracies: list[float] = []
    for start in range(0, len(genotypes), TOGETHER):
        chunk = genotypes[start : start + TOGETHER]
        stacked = {
            t: torch.stack([genotype[t] for genotype in chunk]).to(state.context.device)
            for t in chunk[0]
        }
        of_losses, of_accuracies = measure(stacked, batches)
        losses += of_losses.tolist()
        accuracies += of_accuracies.tolist()
    return losses, accuracies
