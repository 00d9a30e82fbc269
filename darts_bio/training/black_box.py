"""A search without a supernet: each genotype that is queried is trained from scratch, or looked up.

The budget is a number of queries. A query trains the genotype's network by the options of the
search (its channels, layers, epochs, batches and rates, without auxiliary head and drop path) on
the half of the training images that a supernet's weights would learn from, and measures it on the
half that alpha would. With `--query COLUMN` its accuracy is that of `--table` instead, and nothing
is trained.

For the training loop an epoch is a query, and a step an update of the weights of the network that
is queried, so a run can be stopped within a query and goes on there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from darts_bio.config import RetrainConfig, SearchConfig, SmallImagesConfig
from darts_bio.data.datasets import ImageData, halves
from darts_bio.errors import InputError, unknown_name
from darts_bio.rules import RULES
from darts_bio.runtime import derive_seed
from darts_bio.spaces import SPACES, Genotype, Nb201Table, Space, from_json, to_nb201_text
from darts_bio.strategies import (
    BLACK_BOX_STRATEGIES,
    BlackBoxState,
    BlackBoxStrategy,
    Context,
)
from darts_bio.training.answers import ask, kept, wrong_answer
from darts_bio.training.engine import named_tensors, never
from darts_bio.training.meters import Numbers, Sums, evaluate
from darts_bio.training.retrain import Retraining

T = TypeVar("T")

QUERIES = 100
"""The number of queries where `--queries` is not given."""

OF_A_SUPERNET = (
    "regularizers",
    "objective",
    "supernet",
    "arch_gradient",
    "weights",
    "kernel_scale",
    "memory",
    "stages",
    "rollbacks",
)
"""Options of a search that mean nothing without a supernet."""


@dataclass(frozen=True)
class QueryResult:
    """What a query found.

    Attributes:
        query: Its number, counted from 1.
        genotype: What was queried.
        accuracy: On the held-out half of the training images, or in the table, a fraction; 0 of a
            training that diverged.
        loss: The mean cross entropy there; None if the training diverged, and from a table.
        seed: The seed of the training; None from a table.
        images: The training images of all queries so far, counted as often as they were used.

    >>> from darts_bio.spaces import load_genotype
    >>> QueryResult(1, load_genotype("darts_v1"), 0.93, 0.25, 7, 4096).accuracy
    0.93
    """

    query: int
    genotype: Genotype
    accuracy: float
    loss: float | None
    seed: int | None
    images: int

    def plain(self) -> dict[str, Any]:
        """Return it as plain values, the genotype as the text of its file."""
        return {**asdict(self), "genotype": self.genotype.to_json()}

    @classmethod
    def of(cls, values: dict[str, Any]) -> QueryResult:
        """Return the evaluation whose `plain` values these are."""
        return cls(**{**values, "genotype": from_json(values["genotype"], "checkpoint")})


class BlackBoxSearch:
    """The task of finding the most accurate genotype by a number of queries.

    Attributes:
        strategy: What proposes genotypes; `strategy_state` holds what it knows.
        best: The most accurate query so far, the first of equals; None before the first one.
        latest: The query that was made last.
        halves: The numbers of images that a query is trained and measured on.
        images: The training images of all queries so far (see `QueryResult`).
        training: The training of the genotype that is queried; None from a table and between two
            queries.

    >>> from darts_bio.data.batches import Split
    >>> split = Split(torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8), torch.arange(16) % 2)
    >>> space = "darts(nodes=1, operations=(none, skip_connect, sep_conv_3x3))"
    >>> sizes = {"channels": 2, "layers": 3, "batch_size": 4, "epochs": 2, "queries": 3}
    >>> config = SearchConfig(space=space, strategy="local_search", crop_padding=0, **sizes)
    >>> task = BlackBoxSearch(config, ImageData(split, split, ("cat", "dog")), torch.device("cpu"))
    >>> task.epochs, task.steps_per_epoch  # three queries of two epochs of two steps
    (3, 4)
    """

    # Of a `Task`: it wants all queries, and their ends are short.
    finished = measures = False

    def __init__(
        self,
        config: SearchConfig,
        data: ImageData,
        device: torch.device,
        table: Nb201Table | None = None,
    ) -> None:
        """Build all that the options name, and the training of the first query.

        Raises:
            InputError: An option names something unknown, or options do not go together.
        """
        self.config, self.device, self.epochs = config, device, config.queries or QUERIES
        self.space: Space = SPACES.build(config.space)
        for rule in (*config.rules, config.backbone_rule):
            RULES.build(rule)
        self.strategy: BlackBoxStrategy[Any] = BLACK_BOX_STRATEGIES.build(config.strategy)
        self._refuse_contradictions()
        context = Context(
            self.space,
            self.space.table(config.rules),
            config.seed,
            device,
            epochs=self.epochs,
            steps_per_epoch=1,
        )
        self.strategy_state = self._asked("begin", BlackBoxState, context)
        self.subject = {"data set": data.identity()}
        self.table = None if config.query is None else table
        train, held_out = halves(data.train, config.seed)
        self._data = replace(data, train=train, test=held_out)
        self.halves = len(train), len(held_out)
        self.images, self.images_per_step, self.steps_per_epoch = 0, 0, 1
        self.best: QueryResult | None = None
        self.latest: QueryResult | None = None
        self.training: Retraining | None = None
        self._query: int | None = None  # the query that is under way
        self._epoch: int | None = None  # the epoch of its training
        # Now, so that options which do not fit are refused before the run has a folder.
        self._begin_query(0)
        if self.table is not None:
            self._looked_up(self._genotype)
            digest = hashlib.blake2b(self.table.path.read_bytes(), digest_size=8).hexdigest()
            self.subject["table"] = f"digest {digest}"
        if self.training is not None:
            self.images_per_step = config.batch_size
            self.steps_per_epoch = config.epochs * self.training.steps_per_epoch

    def _asked(self, method: str, kind: type[T], argument: Any) -> T:
        """Return what a method of the strategy answers; raise InputError unless it is of a kind."""
        answer = ask(self.strategy, method, argument)
        if not isinstance(answer, kind):
            raise wrong_answer(self.strategy, method, f"a {kind.__name__}", answer)
        return answer

    def _refuse_contradictions(self) -> None:
        """Raise InputError for options that a search without a supernet has no use for."""
        config = self.config
        defaults = {f.name: f.default for f in fields(SearchConfig)}
        for name in OF_A_SUPERNET:
            if getattr(config, name) != defaults[name]:
                raise InputError(
                    f"--{name.replace('_', '-')}: has no say with --strategy {config.strategy}, "
                    "which trains no supernet; leave it out"
                )
        self.space.plan(config.layers)
        unused = self.space.unused(config.layers)
        if unused:
            raise InputError(
                f"--layers: expected a place for each cell of the {self.space.where}, found none for "
                f"{', '.join(unused)} among {config.layers} cells; use more --layers, or fewer "
                "cells in the space"
            )

    def training_options(self, query: int) -> RetrainConfig:
        """Return the options of the training of a query, counted from 0; each has its own seed."""
        shared = {f.name: getattr(self.config, f.name) for f in fields(SmallImagesConfig)}
        own = {
            "genotype": f"query {query + 1}",
            "seed": derive_seed("query", self.config.seed, query),
            "seeds": 1,
            "train_images": None,
            "out": None,
            "resume": False,
            "auxiliary": 0.0,
            "drop_path": 0.0,
        }
        return RetrainConfig(**(shared | own))

    @property
    def _genotype(self) -> Genotype:
        """The genotype that is queried, its space and backbone rule as the options say."""
        return replace(
            self._proposal,
            space=self.config.space,
            backbone_rule=self.config.backbone_rule,
        )

    def _begin_query(self, query: int) -> None:
        """Ask the strategy for a genotype, and build what trains it."""
        self._query = query
        self._proposal = self._asked("propose", Genotype, self.strategy_state)
        self.space.validate(self._proposal, f"{self.strategy.where}: propose: genotype")
        if self.table is None:
            options = self.training_options(query)
            self.training = Retraining.of_genotype(options, self._genotype, self._data, self.device)

    def notes(self) -> list[str]:
        """Return lines that the user is to know of this search before it begins."""
        return list(self._asked("notes", list, self.strategy_state))

    def begin_epoch(self, epoch: int) -> None:
        """Begin a query, unless it is under way."""
        if self._query != epoch:
            self._begin_query(epoch)
        self._epoch = None  # begun by the next step

    def step(self, t: int) -> dict[str, Sums]:
        """Make one update of the network that is queried; from a table, none.

        Nothing is returned: that a training diverges is no end of a search.
        """
        if self.training is not None:
            done = t % self.steps_per_epoch
            epoch = done // self.training.steps_per_epoch
            if epoch != self._epoch:
                self.training.begin_epoch(epoch)
                self._epoch = epoch
            self.training.step(done)
        return {}

    def end_epoch(self, epoch: int, stop: Callable[[], bool] = never) -> Numbers:
        """Measure the genotype, tell the strategy, and return what was found so far."""
        loss, seed = None, None
        if self.training is None:
            accuracy = self._looked_up(self._genotype)
        else:
            accuracy, loss = self._measured(self.training)
            seed = self.training.config.seed
            self.images += self.steps_per_epoch * self.config.batch_size
        self.latest = QueryResult(epoch + 1, self._genotype, accuracy, loss, seed, self.images)
        ask(self.strategy, "observe", self.strategy_state, self._proposal, accuracy)
        if self.best is None or accuracy > self.best.accuracy:
            self.best = self.latest
        self._query = self.training = None
        numbers = {"valid/accuracy": accuracy, "best/accuracy": self.best.accuracy}
        if loss is not None:
            numbers["valid/loss"] = loss
        return numbers | {"cost/images": float(self.images)}

    def _measured(self, training: Retraining) -> tuple[float, float | None]:
        """Return accuracy and loss on the held-out half; (0, None) if the training diverged."""
        batches = training.source.measured("test")  # of the halves, not the data set's test images
        numbers = evaluate(training.network, batches, prefix="valid", amp=self.config.amp)
        if not (math.isfinite(numbers["valid/loss"]) and _is_finite(training.state_dict())):
            return 0.0, None
        return numbers["valid/accuracy"], numbers["valid/loss"]

    def _looked_up(self, genotype: Genotype) -> float:
        """Return a genotype's accuracy in the table, a fraction.

        Raises InputError if the table has no such column, or not that cell.
        """
        assert self.table is not None
        column = self.config.query or ""
        known = self.table.accuracies(genotype)
        if known is not None and column in known:
            return known[column] / 100
        if known is not None:
            raise unknown_name(f"column of {self.table.path}", column, known)
        raise InputError(
            f"--table {self.table.path}: expected all cells of the space, found no "
            f"{to_nb201_text(genotype, rules=False)}; write the whole table, or leave --query out"
        )

    def slow_down(self, factor: float) -> None:
        """Do nothing: a training that diverges is a query of accuracy 0, and ends no run."""

    def cause(self) -> str:
        return ""

    def learning_rates(self) -> Numbers:
        return {} if self.training is None else self.training.learning_rates()

    def genotype(self) -> Genotype:
        """Return the most accurate genotype so far; before the first query, what it asks for."""
        return self._genotype if self.best is None else self.best.genotype

    def synchronize(self) -> None:
        """Average batch norms' statistics of the network that is queried over the processes."""
        if self.training is not None:
            self.training.synchronize()

    def statistics(self) -> list[Tensor]:
        """Return the running statistics of the network that is queried, none between queries."""
        return [] if self.training is None else self.training.statistics()

    def state_dict(self) -> dict[str, Any]:
        """Return what the strategy knows, the best query, and the training that is under way."""
        state: dict[str, Any] = {
            "strategy": kept(self.strategy, self.strategy_state),
            "best": None if self.best is None else self.best.plain(),
            "images": self.images,
            "query": self._query,
            "training": None if self.training is None else self.training.state_dict(),
        }
        if not _is_finite(state):
            # A training that diverged is not saved: what is not finite stays so, and is measured as
            # such whatever its last steps are.
            state["training"] = "diverged"
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.strategy_state.load_state_dict(state["strategy"])
        self.best = None if state["best"] is None else QueryResult.of(state["best"])
        self.images, self._query, self.training = state["images"], None, None
        if state["query"] is None:
            return
        self._begin_query(state["query"])
        if self.training is None:
            return
        if state["training"] == "diverged":
            with torch.no_grad():
                for parameter in self.training.network.parameters():
                    parameter.fill_(math.nan)
        else:
            self.training.load_state_dict(state["training"])


def _is_finite(state: dict[str, Any]) -> bool:
    """Return whether all tensors in a state are finite."""
    return all(bool(tensor.isfinite().all()) for _, tensor in named_tensors(state))
