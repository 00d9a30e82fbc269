"""The truth of a small space: every genotype of it trained several times, and its place among all.

    python benchmarks/truth_table.py                    256 genotypes, 3 trainings each; goes on when run again
    python benchmarks/truth_table.py --trainings 6      three more

The space is `darts(nodes=1, operations=(nor_conv_1x1, sep_conv_3x3))`: two edges of normal and two of
reduce cells, and on each of them one of two operations under one of two rules. These are planted
(`planted_rules.py`): `planted_0` is backpropagation on normal edge 0 and reduce edge 1 and noise on
the others, `planted_1` the other way round. So no rule is the best of all edges; what is to be found
is a rule for each edge. A genotype is trained on 400 digits in five cells; its truth is the mean
test loss, its rank counts from 1, the best.

Printed is what a search can find at all: the reliability of the mean losses, the share of their
variance that is not the spread of their trainings (one-way analysis of variance), and how much of
their variance operations and rules explain (least squares). Writes
benchmarks/results/truth_table.json. `known_answer.py` compares strategies by this table, and
`rule_truth.py` makes one of real rules in the same way.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import itertools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, command, keep_results, kept_results, run
from planted_rules import Planted

from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.rules import RuleConv2d
from darts_bio.runtime import hardware
from darts_bio.spaces import SPACES, Candidate, Genotype
from darts_bio.training.engine import run_epoch
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search

EDGES = (("normal", 0), ("normal", 1), ("reduce", 0), ("reduce", 1))
IMAGES = 400
COMMON: dict[str, Any] = {"channels": 4, "layers": 5, "lr": 0.1, "crop_padding": 1, "flip": False}
TRAINING = COMMON | {"epochs": 8, "batch_size": 32, "cutout": 0, "auxiliary": 0.0, "drop_path": 0.0}
SEARCHING = COMMON | {"epochs": 20, "batch_size": 16}

Choice = tuple[int, ...]
"""The number of the candidate on each of `EDGES`."""

Losses = Mapping[str, Mapping[str, float]]
"""The test loss of each genotype, by its name, after the training from each seed."""


@dataclasses.dataclass(frozen=True)
class SmallSpace:
    """A DARTS space of one node, in which the same candidates stand on all four edges."""

    spec: str
    rules: tuple[str, ...]

    @functools.cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        """The candidates of an edge."""
        rows = SPACES.build(self.spec).table(self.rules).rows
        (row,) = {tuple(row) for of_type in rows.values() for row in of_type}
        assert None not in row
        return row  # type: ignore[return-value]

    @property
    def choices(self) -> list[Choice]:
        """All genotypes of the space."""
        return list(itertools.product(range(len(self.candidates)), repeat=len(EDGES)))

    def label(self, candidate: Candidate) -> str:
        """Return a candidate's rule where there is one operation, else operation and rule."""
        one_operation = len({each.op for each in self.candidates}) == 1
        return str(candidate.rule if one_operation else candidate)

    def name_of(self, choice: Choice) -> str:
        """Return the labels of the candidates on all edges."""
        return " ".join(self.label(self.candidates[number]) for number in choice)

    def genotype(self, choice: Choice) -> Genotype:
        """Return the genotype of a choice."""
        space = SPACES.build(self.spec)
        weights = {t: torch.zeros(2, len(self.candidates)) for t in ("normal", "reduce")}
        for (cell_type, edge), number in zip(EDGES, choice, strict=True):
            weights[cell_type][edge, number] = 1
        return Genotype(self.spec, space.derive(weights, space.table(self.rules)))

    def choice_of(self, genotype: Genotype) -> Choice:
        """Return the choice of which `genotype` makes this genotype."""
        edges = [edge for t in ("normal", "reduce") for edge in genotype.cells[t].edges]
        return tuple(self.candidates.index(edge.candidate) for edge in edges)


PLANTED = SmallSpace(
    "darts(nodes=1, operations=(nor_conv_1x1, sep_conv_3x3))", ("planted_0", "planted_1")
)
GOOD = dict(zip(EDGES, (0, 1, 1, 0), strict=True))
"""The number of the rule that is backpropagation on an edge; the other one is noise there."""


def plant_in_network(task: Retraining) -> None:
    """Give each layer of a genotype's network the quality that its rule has on its edge."""
    network: Any = task.network
    for cell_type, cell in zip(network.plan, network.cells, strict=True):
        for edge, operation in enumerate(cell.edges):
            for layer in operation.modules():
                if isinstance(layer, RuleConv2d) and isinstance(layer.rule, Planted):
                    number = PLANTED.rules.index(layer.rule.spec)
                    good = GOOD[cell_type, edge] == number
                    layer.feedback["quality"].fill_(float(good))


@functools.cache
def images() -> ImageData:
    """Return the digits of all trainings and searches."""
    torch.set_num_threads(1)
    return load_data("digits", train_images=IMAGES)


def train(
    space: SmallSpace,
    choice: Choice,
    seed: int,
    prepare: Callable[[Retraining], None] | None = None,
) -> tuple[str, int, float, float]:
    """Train a genotype's network; return its name, the seed, the test loss and the accuracy.

    `prepare` is given the training before its first step.
    """
    data = images()
    genotype = space.genotype(choice)
    config = RetrainConfig(genotype="small", seed=seed, **TRAINING)
    task = Retraining.of_genotype(config, genotype, data, torch.device("cpu"))
    if prepare is not None:
        prepare(task)
    for epoch in range(config.epochs):
        task.begin_epoch(epoch)
        for t in range(task.steps_per_epoch):
            task.step(epoch * task.steps_per_epoch + t)
    numbers = task.end_epoch(config.epochs - 1)  # the test images are measured once
    return space.name_of(choice), seed, numbers["test/loss"], numbers["test/accuracy"]


def searched(
    space: SmallSpace, strategy: str, seed: int, prepare: Callable[[Search], None] | None = None
) -> Search:
    """Return a strategy's search at its end; `prepare` is given it before its first step."""
    data = images()
    config = SearchConfig(
        strategy=strategy, seed=seed, space=space.spec, rules=space.rules, **SEARCHING
    )
    task = Search(config, data, torch.device("cpu"))
    if prepare is not None:
        prepare(task)
    for epoch in range(config.epochs):
        run_epoch(task, epoch)
    return task


def complete(
    path: Path,
    space: SmallSpace,
    trainings: int,
    training: Callable[..., tuple[str, int, float, float]],
    processes: int,
) -> dict[str, Any]:
    """Train from seeds 0, 1, ... what the file lacks; return its content.

    `training` is called as `train` is. After each training the file is written.
    """
    result = kept_results(path)
    losses, accuracies = result.setdefault("losses", {}), result.setdefault("accuracies", {})
    missing = [
        (choice, seed)
        for seed in range(trainings)
        for choice in space.choices
        if str(seed) not in losses.get(space.name_of(choice), {})
    ]
    if not missing:
        return result
    with ProcessPoolExecutor(processes) as pool:
        waiting = [pool.submit(training, space, *each) for each in missing]
        for done, future in enumerate(as_completed(waiting), 1):
            name, seed, loss, accuracy = future.result()
            losses.setdefault(name, {})[str(seed)] = loss
            accuracies.setdefault(name, {})[str(seed)] = accuracy
            keep_results(path, result)
            if done % 32 == 0 or done == len(waiting):
                print(f"trained {done} of {len(waiting)}", file=sys.stderr)
    return result


def complete_searches(
    path: Path,
    result: dict[str, Any],
    strategies: Sequence[str],
    seeds: int,
    search: Callable[[str, int], Any],
    processes: int,
) -> dict[str, dict[str, Any]]:
    """Search with each strategy from seeds 0, 1, ... what the result lacks; return its searches.

    `search(strategy, seed)` returns what JSON can hold. After each search the file is written.
    """
    searches: dict[str, dict[str, Any]] = result.setdefault("searches", {})
    missing = [
        (strategy, seed)
        for seed in range(seeds)
        for strategy in strategies
        if str(seed) not in searches.get(strategy, {})
    ]
    if not missing:
        return searches
    with ProcessPoolExecutor(processes) as pool:
        waiting = {pool.submit(search, *each): each for each in missing}
        for future in as_completed(waiting):
            strategy, seed = waiting[future]
            searches.setdefault(strategy, {})[str(seed)] = future.result()
            keep_results(path, result)
            print(f"searched {strategy}, seed {seed}", file=sys.stderr)
    return searches


def of_first_seeds(losses: Losses, trainings: int) -> dict[str, dict[str, float]]:
    """Return the losses after the trainings from seeds 0, 1, ... alone."""
    seeds = [str(seed) for seed in range(trainings)]
    return {name: {seed: of_seeds[seed] for seed in seeds} for name, of_seeds in losses.items()}


def means(losses: Losses) -> dict[str, float]:
    """Return each genotype's mean loss."""
    return {name: statistics.mean(of_seeds.values()) for name, of_seeds in losses.items()}


def ranks(values: Sequence[float]) -> np.ndarray:
    """Return the rank of each value: 1 of the least; of equal values the earlier has the lower."""
    return np.argsort(np.argsort(np.asarray(values), kind="stable"), kind="stable") + 1


def reliability(losses: Losses) -> float:
    """Return the share of the variance of means that is not that of trainings from other seeds.

    It is the square of the largest correlation that anything can have with them.
    """
    table = np.array([list(of_seeds.values()) for of_seeds in losses.values()])
    within = table.var(axis=1, ddof=1).mean() / table.shape[1]
    return float(1 - within / table.mean(axis=1).var(ddof=1))


def explained(values: Sequence[float], features: np.ndarray) -> float:
    """Return the share of the variance of values (N,) that features (N, F) explain linearly."""
    y = np.asarray(values)
    x = np.column_stack([np.ones(len(y)), features])
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return float(1 - rest.var() / y.var())


def explained_by(space: SmallSpace, mean_losses: Mapping[str, float]) -> dict[str, float]:
    """Return how much of the variance of mean losses what is chosen explains.

    The space has two operations and two rules.
    """
    choices = space.choices
    picked = [[space.candidates[number] for number in choice] for choice in choices]
    first_op, first_rule = space.candidates[0].op, space.rules[0]
    operations = np.array([[each.op == first_op for each in edges] for edges in picked], float)
    rules = np.array([[each.rule == first_rule for each in edges] for edges in picked], float)
    values = [mean_losses[space.name_of(choice)] for choice in choices]
    return {
        "operations, alike on all edges": explained(values, operations.sum(1, keepdims=True)),
        "operations, by edge": explained(values, operations),
        "rules, alike on all edges": explained(values, rules.sum(1, keepdims=True)),
        "rules, by edge": explained(values, rules),
        "operations and rules, by edge": explained(values, np.hstack([operations, rules])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trainings", type=int, default=3, metavar="N", help="of each genotype")
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument("--json", type=Path, default=RESULTS / "truth_table.json", metavar="FILE")
    options = parser.parse_args()
    training = functools.partial(train, prepare=plant_in_network)
    result = complete(options.json, PLANTED, options.trainings, training, options.processes)
    losses = of_first_seeds(result["losses"], options.trainings)
    mean_losses = means(losses)
    shares, sure = explained_by(PLANTED, mean_losses), reliability(losses)
    order = sorted(mean_losses, key=mean_losses.__getitem__)
    print(f"{len(order)} genotypes, {options.trainings} trainings each: reliability {sure:.3f}")
    print(f"mean test loss {mean_losses[order[0]]:.3f} ({order[0]}) to", end=" ")
    print(f"{mean_losses[order[-1]]:.3f} ({order[-1]})\n")
    print("| | share of the variance |\n|---|---|")
    for what, share in shares.items():
        print(f"| {what} | {share:.3f} |")
    result |= {
        "command": command(),
        "date": datetime.date.today().isoformat(),
        "hardware": f"{hardware(torch.device('cpu'))} in each of {options.processes} processes",
        "images": IMAGES,
        "space": PLANTED.spec,
        "training": TRAINING,
        "good rule": {f"{cell_type} {edge}": number for (cell_type, edge), number in GOOD.items()},
        "reliability": sure,
        "explained": shares,
        "torch": torch.__version__,
    }
    keep_results(options.json, result)


if __name__ == "__main__":
    run(main)
