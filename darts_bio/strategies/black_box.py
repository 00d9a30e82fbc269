"""Search without a supernet: all that is seen of a genotype is an accuracy.

A black-box strategy proposes a genotype, is told the validation accuracy of its network, and
proposes the next. Each such query is a training from scratch (`training.black_box`) or a look into
a table of known accuracies. These are the baselines that a one-shot search has to beat at the same
cost:

- `random_search`: independent draws (Li & Talwalkar 2019, arXiv 1902.07638);
- `regularized_evolution`: the oldest of a population dies, whatever its accuracy (Real et al. 2018,
  arXiv 1802.01548, algorithm 1);
- `local_search`: to the first neighbor that is better, and on from there (White et al. 2020, arXiv
  2005.02960).

What they find is the most accurate genotype of all queries. All draw genotypes as the strategy
`random` does, and move by the neighbors of `spaces.neighbors`. Query number n draws from generators
of (seed, n), so a proposal is a function of the state, and the population that evolution begins with
is what random search draws first.

In a space by depth a draw has the same operations in all cells of a kind, as that of `random`; a
neighbor differs in one cell, and so by depth.

>>> from darts_bio.spaces import SPACES
>>> from darts_bio.strategies import BLACK_BOX_STRATEGIES, Context
>>> space = SPACES.build("nb201")
>>> table, cpu = space.table(["bp"]), torch.device("cpu")
>>> strategy = BLACK_BOX_STRATEGIES.build("regularized_evolution(population=10, sample=5)")
>>> state = strategy.begin(Context(space, table, 0, cpu, epochs=200, steps_per_epoch=1))
>>> def accuracy(genotype):  # the share of edges with a 3x3 convolution, in place of a training
...     return sum(edge.candidate.op == "nor_conv_3x3" for edge in genotype.cells["cell"].edges) / 6
>>> history = []
>>> for query in range(200):
...     genotype = strategy.propose(state)
...     strategy.observe(state, genotype, accuracy(genotype))
...     history.append(accuracy(genotype))
>>> max(history[:10]), max(history)
(0.5, 1.0)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from darts_bio.errors import check_whole
from darts_bio.registry import Registry
from darts_bio.runtime import generator
from darts_bio.spaces import SPACES, Genotype, from_json, neighbors, random_neighbor
from darts_bio.strategies.base import Context
from darts_bio.strategies.random import random_cells

Measured = tuple[Genotype, float]
"""A genotype that was queried, and its accuracy, a fraction."""

DRAWS = 1000
"""How many genotypes `local_search` draws to find one that it has not queried yet."""


class BlackBoxState:
    """What of a black-box strategy changes while it searches.

    Attributes:
        context: What the strategy is told of the search. Its `epochs` are the queries.
        queries: How many accuracies it has been told.

    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import BLACK_BOX_STRATEGIES, Context
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> strategy = BLACK_BOX_STRATEGIES.build("random_search")
    >>> state = strategy.begin(Context(space, table, 0, cpu, epochs=9, steps_per_epoch=1))
    >>> strategy.observe(state, strategy.propose(state), 0.93)
    >>> state.state_dict()
    {'queries': 1}
    """

    def __init__(self, context: Context) -> None:
        self.context, self.queries = context, 0

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed search needs, as tensors and plain values only."""
        return {"queries": self.queries}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.queries = saved["queries"]

    def drawn(self, attempt: int = 0) -> Genotype:
        """Return the random genotype of the present query, another one for each attempt."""
        context = self.context
        source = generator("cpu", "random query", context.seed, self.queries, attempt)
        cells = context.space.derive(random_cells(context, source), context.table)
        return Genotype(SPACES.spec(context.space), cells)


S = TypeVar("S", bound=BlackBoxState)


class BlackBoxStrategy(ABC, Generic[S]):
    """Which genotype to query next, by the accuracies of those before.

    Subclasses are frozen dataclasses, whose fields are their options, registered by name in
    `BLACK_BOX_STRATEGIES`. What changes lies in the state that `begin` makes.

    >>> from darts_bio.strategies import BLACK_BOX_STRATEGIES, BlackBoxStrategy
    >>> isinstance(BLACK_BOX_STRATEGIES.build("local_search"), BlackBoxStrategy)
    True
    """

    @property
    def where(self) -> str:
        """The words that an error message about this strategy begins with."""
        return f"strategy {BLACK_BOX_STRATEGIES.name_of(self)}"

    @abstractmethod
    def begin(self, context: Context) -> S:
        """Make the state of a new search, whose `context.epochs` are the number of queries."""

    @abstractmethod
    def propose(self, state: S) -> Genotype:
        """Return the genotype to query next, the same until `observe` is called.

        Raises:
            InputError: If the space offers no other genotype.
        """

    def observe(self, state: S, genotype: Genotype, accuracy: float) -> None:
        """Take note of the accuracy, a fraction, of the genotype that was proposed."""
        state.queries += 1

    def notes(self, state: S) -> list[str]:
        """Return what a user should know before the search begins, a line each."""
        return []


BLACK_BOX_STRATEGIES: Registry[type[BlackBoxStrategy[Any]]] = Registry(
    "black-box strategy", base=BlackBoxStrategy
)
"""All black-box strategies, by the names and options that `--strategy` takes."""


@BLACK_BOX_STRATEGIES.register("random_search")
@dataclass(frozen=True)
class RandomSearch(BlackBoxStrategy[BlackBoxState]):
    """Draws that are each trained from scratch, the best by validation (Li 2019)."""

    def begin(self, context: Context) -> BlackBoxState:
        return BlackBoxState(context)

    def propose(self, state: BlackBoxState) -> Genotype:
        return state.drawn()


class PopulationState(BlackBoxState):
    """The living members of the population, the oldest first."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.population: list[Measured] = []

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"population": _saved(self.population)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.population = _loaded(saved["population"])


@BLACK_BOX_STRATEGIES.register("regularized_evolution")
@dataclass(frozen=True)
class RegularizedEvolution(BlackBoxStrategy[PopulationState]):
    """Mutants of the best of a sample take the place of the oldest (Real 2018, algorithm 1).

    Attributes:
        population: How many members live: P in the paper. So many first queries are random draws.
        sample: How many members, drawn with replacement, a parent is the best of: S in the paper.

    A child is any neighbor of its parent with the same probability. The paper's mutations choose
    between operation and input first, and a few leave the parent as it is.
    """

    population: int = 100
    sample: int = 25

    def __post_init__(self) -> None:
        check_whole(f"{self.where}: population", self.population)
        check_whole(f"{self.where}: sample", self.sample)

    def begin(self, context: Context) -> PopulationState:
        return PopulationState(context)

    def notes(self, state: PopulationState) -> list[str]:
        queries = state.context.epochs
        if queries > self.population:
            return []
        return [
            f"note: all of {queries} queries are random draws, since so many do not exceed the "
            f"population of {self.population}: give --queries more, or population=N fewer"
        ]

    def propose(self, state: PopulationState) -> Genotype:
        if len(state.population) < self.population:
            return state.drawn()
        context = state.context
        source = generator("cpu", "evolution", context.seed, state.queries)
        drawn = torch.randint(len(state.population), (self.sample,), generator=source).tolist()
        # Of equals the first one that was drawn.
        parent, _ = max((state.population[i] for i in drawn), key=lambda member: member[1])
        return random_neighbor(parent, context.space, context.table, source)

    def observe(self, state: PopulationState, genotype: Genotype, accuracy: float) -> None:
        super().observe(state, genotype, accuracy)
        state.population.append((genotype, accuracy))
        del state.population[: -self.population]


class LocalState(BlackBoxState):
    """Where a local search stands, and which genotypes it has queried.

    Attributes:
        center: The genotype whose neighbors are queried; None at first.
        found_at: The number of the query that was the center's, which the order of its neighbors is
            drawn by.
        visited: The digests of all genotypes that were queried.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.center: Measured | None = None
        self.found_at = 0
        self.visited: set[str] = set()
        self._order: list[Genotype] = []
        self._position = 0

    def move_to(self, center: Measured, found_at: int) -> None:
        """Make a genotype the center, and draw the order of its neighbors."""
        self.center, self.found_at = center, found_at
        around = neighbors(center[0], self.context.space, self.context.table)
        source = generator("cpu", "order of neighbors", self.context.seed, found_at)
        order = torch.randperm(len(around), generator=source).tolist()
        self._order, self._position = [around[i] for i in order], 0

    def next_neighbor(self) -> Genotype | None:
        """Return the next neighbor of the center that was not queried; None if all were."""
        # Those that were queried stay so, and need not be looked at again.
        while self._position < len(self._order):
            neighbor = self._order[self._position]
            if neighbor.identity() not in self.visited:
                return neighbor
            self._position += 1
        return None

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "center": _saved([] if self.center is None else [self.center]),
            "found_at": self.found_at,
            "visited": sorted(self.visited),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        super().load_state_dict(saved)
        self.visited = set(saved["visited"])
        for center in _loaded(saved["center"]):
            self.move_to(center, saved["found_at"])


@BLACK_BOX_STRATEGIES.register("local_search")
@dataclass(frozen=True)
class LocalSearch(BlackBoxStrategy[LocalState]):
    """Neighbors in random order until one is better, from there on; else a restart (White 2020).

    No genotype is queried twice: neighbors that were are passed over, and a restart draws anew until
    its genotype is new (or, in a space that is nearly used up, after `DRAWS` draws takes an old one).
    This is the variant of the published code that moves at the first improvement, from one random
    genotype.
    """

    def begin(self, context: Context) -> LocalState:
        return LocalState(context)

    def propose(self, state: LocalState) -> Genotype:
        neighbor = state.next_neighbor()
        if neighbor is not None:
            return neighbor
        draws = (state.drawn(attempt) for attempt in range(DRAWS))
        new = (genotype for genotype in draws if genotype.identity() not in state.visited)
        return next(new, state.drawn())

    def observe(self, state: LocalState, genotype: Genotype, accuracy: float) -> None:
        restarts = state.next_neighbor() is None
        if restarts or state.center is None or accuracy > state.center[1]:
            state.move_to((genotype, accuracy), state.queries)
        state.visited.add(genotype.identity())
        super().observe(state, genotype, accuracy)


def _saved(members: Sequence[Measured]) -> list[list[Any]]:
    """Return genotypes and their accuracies as plain values."""
    return [[genotype.to_json(), accuracy] for genotype, accuracy in members]


def _loaded(saved: Sequence[Sequence[Any]]) -> list[Measured]:
    """Return what `_saved` was given."""
    return [(from_json(text, "checkpoint"), accuracy) for text, accuracy in saved]
