"""Does a search rank learning rules as retraining does? All assignments of four rules to four edges.

    python benchmarks/rule_truth.py                     trains all, searches, prints the table; goes on when run again
    python benchmarks/rule_truth.py --trainings 6 --seeds 10

The space is `darts(nodes=1, operations=(sep_conv_3x3,))`: two edges of normal and two of reduce
cells, each under fa, usf, brsf or frsf, 256 assignments. Each is trained on 400 digits in five cells,
from several seeds; its truth is the mean test loss. A search has the same network's size and images.
Its score of an assignment is the sum over edges of the logarithm of the rule's share, and what is
counted is Spearman's rank correlation of scores with truth, over all assignments: 1 is the true
order, 0 is chance.

Reliability is the share of the variance of the mean losses that is not the spread of their trainings
(one-way analysis of variance): the square of the largest correlation that one could expect.
Writes benchmarks/results/rule_truth.json.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, command, keep_results, kept_results, paired_p, run

import darts_bio
from darts_bio.config import SearchConfig
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.runtime import hardware
from darts_bio.spaces import SPACES, Genotype
from darts_bio.training.search import Search

SPACE = "darts(nodes=1, operations=(sep_conv_3x3,))"
RULES = ("fa", "usf", "brsf", "frsf")
EDGES = 4
IMAGES = 400
COMMON: dict[str, Any] = {"channels": 4, "layers": 5, "lr": 0.1, "crop_padding": 1, "flip": False}
TRAINING = COMMON | {"epochs": 8, "batch_size": 32, "cutout": 0, "auxiliary": 0.0, "drop_path": 0.0}
SEARCHING = COMMON | {"epochs": 20, "batch_size": 16, "space": SPACE, "rules": RULES}
STRATEGIES = (
    "rule_aware(rule_lr=0.03)",
    "darts",
    "darts(lr=0.03)",
    "darts(order=2)",
)

Assignment = tuple[int, ...]
"""The number of the rule on edges 0 and 1 of normal cells, then of reduce cells."""


def assignments() -> list[Assignment]:
    return list(itertools.product(range(len(RULES)), repeat=EDGES))


def name_of(assignment: Assignment) -> str:
    return " ".join(RULES[number] for number in assignment)


@functools.cache
def images() -> ImageData:
    """The same digits for all trainings and searches."""
    torch.set_num_threads(1)
    return load_data("digits", train_images=IMAGES)


def train(assignment: Assignment, seed: int) -> tuple[str, int, float, float]:
    """The test loss and accuracy of an assignment, trained from a seed."""
    space = SPACES.build(SPACE)
    table = space.table(RULES)
    weights = {t: torch.zeros(table.shape(t)) for t in table.rows}
    for place, number in enumerate(assignment):
        weights[("normal", "reduce")[place // 2]][place % 2, number] = 1
    genotype = Genotype(SPACE, space.derive(weights, table))
    data = images()
    with tempfile.TemporaryDirectory() as place:
        quiet = {"progress": False, "tensorboard": False, "device": "cpu"}
        result = darts_bio.train(genotype, data, seed=seed, out=place, **quiet, **TRAINING)
    return name_of(assignment), seed, result.epochs[-1]["test/loss"], result.accuracy


def search(strategy: str, seed: int) -> tuple[str, int, list[list[float]]]:
    """The shares of the rules on each edge that a strategy ends with."""
    config = SearchConfig(strategy=strategy, seed=seed, dataset="digits", **SEARCHING)
    task = Search(config, images(), torch.device("cpu"))
    for epoch in range(config.epochs):
        task.begin_epoch(epoch)
        for t in range(task.steps_per_epoch):
            task.step(epoch * task.steps_per_epoch + t)
    weights = task.strategy.edge_weights(task.strategy_state)
    rows = torch.cat([weights[t].detach() for t in ("normal", "reduce")])
    return strategy, seed, rows.double().tolist()


def ranks(values: Sequence[float]) -> np.ndarray:
    return np.argsort(np.argsort(np.asarray(values))).astype(float)


def rank_correlation(shares: Sequence[Sequence[float]], losses: dict[str, float]) -> float:
    """Spearman's correlation of a search's scores with the negative losses."""
    logs = np.log(np.asarray(shares))
    scores = [sum(logs[e, n] for e, n in enumerate(each)) for each in assignments()]
    truth = [-losses[name_of(each)] for each in assignments()]
    return float(np.corrcoef(ranks(scores), ranks(truth))[0, 1])


def reliability(losses: dict[str, dict[str, float]]) -> float:
    """The share of the variance of means that is not that of trainings from other seeds."""
    table = np.array([list(of_seeds.values()) for of_seeds in losses.values()])
    within = table.var(axis=1, ddof=1).mean() / table.shape[1]
    return float(1 - within / table.mean(axis=1).var(ddof=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trainings", type=int, default=6, metavar="N", help="of each assignment")
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="of each strategy")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, metavar="SPEC")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--json", type=Path, default=RESULTS / "rule_truth.json", metavar="FILE")
    options = parser.parse_args()
    path: Path = options.json
    result = kept_results(path)
    losses: dict[str, dict[str, float]] = result.setdefault("losses", {})
    accuracies: dict[str, dict[str, float]] = result.setdefault("accuracies", {})
    searches: dict[str, dict[str, Any]] = result.setdefault("searches", {})

    def write() -> None:
        keep_results(path, result)

    with ProcessPoolExecutor(options.processes) as pool:
        trainings = [
            pool.submit(train, each, seed)
            for seed in range(options.trainings)
            for each in assignments()
            if str(seed) not in losses.get(name_of(each), {})
        ]
        for done, future in enumerate(as_completed(trainings), 1):
            name, seed, loss, accuracy = future.result()
            losses.setdefault(name, {})[str(seed)] = loss
            accuracies.setdefault(name, {})[str(seed)] = accuracy
            if done % 32 == 0 or done == len(trainings):
                write()
                print(f"trained {done} of {len(trainings)}", file=sys.stderr)
        waiting = [
            pool.submit(search, strategy, seed)
            for seed in range(options.seeds)
            for strategy in options.strategies
            if str(seed) not in searches.get(strategy, {})
        ]
        for future in as_completed(waiting):
            strategy, seed, shares = future.result()
            searches.setdefault(strategy, {})[str(seed)] = shares
            write()
            print(f"searched {strategy}, seed {seed}", file=sys.stderr)
    report(options, result)
    write()


def report(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print the tables, and put their numbers into the result."""
    seeds = [str(seed) for seed in range(options.trainings)]
    losses = {name: {s: of[s] for s in seeds} for name, of in result["losses"].items()}
    means = {name: statistics.mean(of.values()) for name, of in losses.items()}
    order = sorted(means, key=means.__getitem__)
    sure = reliability(losses)
    spread = statistics.stdev(means.values())
    print(f"{len(order)} assignments, {options.trainings} trainings each: reliability {sure:.3f}")
    print(f"mean test loss: {means[order[0]]:.3f} ({order[0]}) to {means[order[-1]]:.3f}", end=" ")
    print(f"({order[-1]}), standard deviation {spread:.3f}\n")
    print("| rule everywhere | mean test loss | rank of 256 | accuracy |\n|---|---|---|---|")
    for rule in RULES:
        name = " ".join([rule] * EDGES)
        accuracy = statistics.mean(result["accuracies"][name].values())
        print(f"| {rule} | {means[name]:.3f} | {order.index(name) + 1} | {accuracy:.3f} |")
    print("\nmean loss by the rule of an edge:\n")
    print("| edge | " + " | ".join(RULES) + " |\n|---" + "|---" * len(RULES) + "|")
    for edge in range(EDGES):
        cells = []
        for rule in RULES:
            of_rule = [means[name] for name in means if name.split()[edge] == rule]
            cells.append(f"{statistics.mean(of_rule):.3f}")
        print(f"| {('normal', 'reduce')[edge // 2]} {edge % 2} | " + " | ".join(cells) + " |")
    print("\n| strategy | rank correlation | n | found: mean rank | p against the first |")
    print("|---|---|---|---|---|")
    table = {}
    for strategy in options.strategies:
        of_seeds = [result["searches"][strategy][str(seed)] for seed in range(options.seeds)]
        correlations = [rank_correlation(shares, means) for shares in of_seeds]
        chosen = [name_of(tuple(int(np.argmax(e)) for e in shares)) for shares in of_seeds]
        found = [order.index(name) + 1 for name in chosen]
        table[strategy] = {"rank_correlation": correlations, "rank": found, "found": chosen}
        first = table[options.strategies[0]]["rank_correlation"]
        differences = [a - b for a, b in zip(first, correlations, strict=True)]
        p = "" if strategy == options.strategies[0] else f"{paired_p(differences):.3f}"
        deviation = statistics.stdev(correlations) if len(correlations) > 1 else 0.0
        print(
            f"| `{strategy}` | {statistics.mean(correlations):.2f} +- {deviation:.2f} | "
            f"{len(found)} | {statistics.mean(found):.0f} | {p} |"
        )
    result |= {
        "command": command(),
        "hardware": f"{hardware(torch.device('cpu'))} in each of {options.processes} processes",
        "training": TRAINING,
        "searching": SEARCHING,
        "reliability": sure,
        "table": table,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    run(main)
