"""Every search strategy on a problem whose answer is known: the rank of the cell it finds among all
cells.

    python benchmarks/known_answer.py                   trains all cells, runs every strategy, prints the table
    python benchmarks/known_answer.py --seeds 10        more searches; what is done is kept

The space is `darts(nodes=1, operations=(skip_connect, max_pool_3x3, sep_conv_3x3))` under the rules
bp and fa: 4 x 4 normal and 5 x 5 reduce cells, 400 genotypes. Each is trained on 400 digits in a
small network, three times; its rank is that of its mean test loss. A strategy searches with the
network's size and data, and with its own published hyper-parameters: none is tuned on this problem
(pc_darts takes k=2, since 4 channels cannot be divided by 8).

p is the probability that as many uniformly drawn genotypes have a mean rank as good or better;
where it is not below 0.05 the table says so. Writes benchmarks/results/known_answer-truth.json and
known_answer.json.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS

import darts_bio
from darts_bio.runtime import hardware

SPACE = "darts(nodes=1, operations=(skip_connect, max_pool_3x3, sep_conv_3x3))"
RULES = ("bp", "fa")
IMAGES = 400
QUIET: dict[str, Any] = {"progress": False, "tensorboard": False, "device": "cpu"}
COMMON: dict[str, Any] = {"channels": 4, "layers": 3, "lr": 0.1, "crop_padding": 1, "flip": False}
TRAINING = COMMON | {"epochs": 8, "batch_size": 32, "cutout": 0, "auxiliary": 0.0, "drop_path": 0.0}
SEARCHING = COMMON | {"epochs": 20, "batch_size": 16, "space": SPACE, "rules": RULES}
TRUTH_SEEDS = (0, 1, 2)
STRATEGIES = (
    "random",
    "darts",
    "darts(order=2)",
    "pc_darts(k=2)",
    "gdas",
    "snas",
    "drnas",
    "fair_darts",
    "darts_pt",
    "eg",
    "eg(published=True)",
)


@functools.cache
def genotypes() -> dict[str, Any]:
    """All genotypes of the space by a key of their candidates."""
    from darts_bio.spaces import SPACES, Genotype

    space = SPACES.build(SPACE)
    table = space.table(RULES)
    choices = [list(itertools.product(range(table.shape(t)[1]), repeat=2)) for t in table.rows]
    found = {}
    for picked in itertools.product(*choices):
        weights = {t: torch.zeros(table.shape(t)) for t in table.rows}
        for t, columns in zip(table.rows, picked, strict=True):
            for edge, column in enumerate(columns):
                weights[t][edge, column] = 1.0
        genotype = Genotype(SPACE, space.derive(weights, table))
        found[key(genotype)] = genotype
    return found


def key(genotype: Any) -> str:
    return " | ".join(
        str(edge.candidate) for cell in genotype.cells.values() for edge in cell.edges
    )


def begin() -> None:
    """A process a core."""
    torch.set_num_threads(1)


@functools.cache
def images() -> Any:
    """The same 400 digits for all trainings and searches."""
    from darts_bio.data.datasets import load_data

    return load_data("digits", train_images=IMAGES)


def train(name: str) -> tuple[str, list[float]]:
    """A genotype's test loss after training, for each seed."""
    losses = []
    for seed in TRUTH_SEEDS:
        with tempfile.TemporaryDirectory() as place:
            result = darts_bio.train(
                genotypes()[name], images(), seed=seed, out=place, **QUIET, **TRAINING
            )
        losses.append(result.epochs[-1]["test/loss"])
    return name, losses


def search(strategy: str, seed: int) -> tuple[str, int, str, float]:
    """The genotype that a strategy finds, and the seconds it took."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        result = darts_bio.search(
            images(), strategy=strategy, seed=seed, out=place, **QUIET, **SEARCHING
        )
    return strategy, seed, key(result.genotype), time.monotonic() - start


def p_value(ranks: list[int], of: int) -> float:
    """The probability that so many uniform ranks from 1 to `of` have a sum as small or smaller."""
    import numpy as np

    sums = np.ones(1)
    for _ in ranks:
        sums = np.convolve(sums, np.ones(of) / of)  # of (sum - number of terms)
    return float(sums[: sum(ranks) - len(ranks) + 1].sum())


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    begin()
    truth_path, path = RESULTS / "known_answer-truth.json", RESULTS / "known_answer.json"
    truth, result = read(truth_path), read(path)
    found: dict[str, dict[str, Any]] = result.get("searches", {})
    with ProcessPoolExecutor(arguments.processes, initializer=begin) as pool:
        names = list(genotypes())
        waiting = [pool.submit(train, name) for name in names if name not in truth]
        for done, future in enumerate(as_completed(waiting), 1):
            name, losses = future.result()
            truth[name] = losses
            if done % 20 == 0 or done == len(waiting):
                write(truth_path, truth)
                print(f"trained {len(truth)} of {len(names)}", file=sys.stderr)
        order = sorted(names, key=lambda name: statistics.mean(truth[name]))
        searches = [
            pool.submit(search, strategy, seed)
            for seed in range(arguments.seeds)
            for strategy in STRATEGIES
            if str(seed) not in found.get(strategy, {})
        ]
        for future in as_completed(searches):
            strategy, seed, name, seconds = future.result()
            found.setdefault(strategy, {})[str(seed)] = {"cell": name, "seconds": round(seconds, 1)}
            write(path, {"searches": found})
            print(f"seed {seed}  {strategy:20} rank {order.index(name) + 1}", file=sys.stderr)
    print(
        f"| strategy | mean rank of {len(names)} (n = {arguments.seeds}) | ranks | mean test loss "
        "| p | s a search |"
    )
    print("|---|---|---|---|---|---|")
    table = {}
    for strategy in STRATEGIES:
        runs = [found[strategy][str(seed)] for seed in range(arguments.seeds)]
        ranks = [order.index(run["cell"]) + 1 for run in runs]
        loss = statistics.mean(statistics.mean(truth[run["cell"]]) for run in runs)
        p = p_value(ranks, len(names))
        row = {
            "mean_rank": statistics.mean(ranks),
            "std_rank": statistics.stdev(ranks) if len(ranks) > 1 else 0.0,
            "ranks": ranks,
            "mean_test_loss": loss,
            "p": p,
            "seconds": statistics.mean(run["seconds"] for run in runs),
        }
        table[strategy] = row
        verdict = f"{p:.3f}" if p < 0.05 else f"{p:.2f}: no better than random"
        mean, listed = (
            f"{row['mean_rank']:.0f} +- {row['std_rank']:.0f}",
            ", ".join(map(str, sorted(ranks))),
        )
        print(
            f"| `{strategy}` | {mean} | {listed} | {loss:.3f} | {verdict} | {row['seconds']:.0f} |"
        )
    losses = [statistics.mean(truth[name]) for name in order]
    noise = statistics.mean(statistics.stdev(values) for values in truth.values())
    print(
        f"\nall cells: test loss {losses[0]:.3f} (best, {order[0]}) to {losses[-1]:.3f}, median "
        f"{statistics.median(losses):.3f}; std over the training's seeds {noise:.3f}"
    )
    write(
        path,
        {
            "command": shlex.join(["python", *sys.argv]),
            "hardware": f"{hardware(torch.device('cpu'))} in each of {arguments.processes} processes",
            "images": IMAGES,
            "training": TRAINING,
            "searching": SEARCHING,
            "table": table,
            "searches": found,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
