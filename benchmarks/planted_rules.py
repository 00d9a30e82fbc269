"""A good rule planted among noise on known edges of a supernet: which strategy finds it?

    python benchmarks/planted_rules.py                          noise: 10 seeds, hours on two CPU cores
    python benchmarks/planted_rules.py --low 0.7 --high 0.9     a subtle one: all rules are useful
    python benchmarks/planted_rules.py --by-depth               each cell has good rules of its own

Rules differ in one number, the quality a of their kernel K = a W + sqrt(1 - a^2) B, with B a fixed
draw from W's initialization: a = 1 is backpropagation, a = 0 feedback alignment. On each edge of
each cell type (`--by-depth`: of each cell) one of R rules, drawn by the seed, has quality `--high`,
the others `--low`. A strategy searches among them on the digits, with sep_conv_3x3 the only
operation, so that nothing but rules can be chosen. Counted are the edges on which the rule of
largest share is the planted one; chance is 1/R.

What is done lies in the result file, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, command, run
from torch import Tensor

from darts_bio.config import SearchConfig
from darts_bio.data.datasets import load_data
from darts_bio.rules import RULES, InitialLaw, LearningRule
from darts_bio.rules.mixed_feedback import MixedFeedback
from darts_bio.runs.options import complete
from darts_bio.runtime import hardware
from darts_bio.strategies import STRATEGIES
from darts_bio.training.search import Search

SPACE = "darts(nodes=2, operations=(sep_conv_3x3,))"
COUNT = 3
LAYERS = 5
"""Cells: three normal ones, with reducing ones between them, so that all but one has others below."""
COMPARED = ("rule_aware(rule_lr=0.03)", "rule_aware", "darts(lr=0.03)", "darts")


@dataclass(frozen=True)
class Planted(LearningRule):
    """A rule whose kernel is as good as its state says, weight by weight."""

    elementwise = True

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"noise": law.sample(generator), "quality": torch.zeros(law.shape)}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        quality = state["quality"]
        return quality * weight + (1 - quality.square()).sqrt() * state["noise"]


for _number in range(COUNT):
    RULES.register(f"planted_{_number}")(type(f"Planted{_number}", (Planted,), {}))


def answer(task: Search, seed: int) -> dict[tuple[str, int], int]:
    """The number of the planted rule on each (cell type, edge)."""
    source = random.Random(seed)
    places = [(t, edge) for t, rows in task.table.rows.items() for edge in range(len(rows))]
    return {place: source.randrange(COUNT) for place in places}


def members(task: Search) -> Iterator[tuple[Tensor, int, str, int]]:
    """(quality of one member, number of its rule, cell type, edge) of all stacked members."""
    homes = {
        id(layer): cell_type
        for cell_type, cell in zip(task.supernet.plan, task.supernet.cells, strict=True)
        for layer in cell.stacked_layers()  # type: ignore[operator]
    }
    for shared in task.supernet.feedback:
        for number, flat in enumerate(shared.flat):  # type: ignore[arg-type]
            first = 0
            for layer in (flat.layers[i] for i in flat.order):
                names = layer.names
                if not isinstance(shared, MixedFeedback):  # members in the order (rule, edge)
                    edges = len(names) // len(layer.rules)
                    names = names[number * edges :][:edges]
                size = layer.weight.numel() // len(layer.names)
                for name in names:
                    quality = flat.feedback["quality"][first : first + size]
                    yield quality, number, homes[id(layer)], int(name.split(".")[1])
                    first += size


def plant(
    task: Search, good: Mapping[tuple[str, int], int], high: float = 1.0, low: float = 0.0
) -> None:
    """Give the good rule of each (cell type, edge), by its number, quality `high`, others `low`."""
    for quality, number, cell_type, edge in members(task):
        quality.fill_(high if good[cell_type, edge] == number else low)


def search(
    strategy: str, seed: int, space: str, kernel_scale: str, high: float, low: float, epochs: int
) -> dict[str, float | str | int]:
    """The share of edges on which the strategy finds the planted rule."""
    torch.set_num_threads(1)
    rules = tuple(f"planted_{number}" for number in range(COUNT))
    options: dict[str, Any] = {"strategy": strategy, "seed": seed, "epochs": epochs, "rules": rules}
    if STRATEGIES.build(strategy).shares_weights:
        options["kernel_scale"] = kernel_scale
    config = complete(
        SearchConfig, {"dataset": "digits", "space": space, "layers": LAYERS, **options}
    )
    task = Search(config, load_data("digits", None, None, None, 0), torch.device("cpu"))
    planted = answer(task, seed)
    plant(task, planted, high, low)
    start = time.process_time()
    for epoch in range(epochs):
        task.begin_epoch(epoch)
        for t in range(task.steps_per_epoch):
            task.step(epoch * task.steps_per_epoch + t)
    weights = task.strategy.final_weights(task.strategy_state)
    hits = {
        place: int(weights[place[0]][place[1]].argmax()) == number
        for place, number in planted.items()
    }
    numbers: dict[str, Any] = {"strategy": strategy, "seed": seed}
    for t in task.table.rows:
        of_type = [hit for place, hit in hits.items() if place[0] == t]
        numbers[t] = sum(of_type) / len(of_type)
    numbers["all"] = sum(hits.values()) / len(hits)
    numbers["steps"] = epochs * task.steps_per_epoch
    numbers["seconds"] = round(time.process_time() - start)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--high", type=float, default=1.0, metavar="A")
    parser.add_argument("--low", type=float, default=0.0, metavar="A")
    parser.add_argument("--by-depth", action="store_true", help="rules of each cell, not cell type")
    parser.add_argument("--kernel-scale", default="match", choices=("match", "init"))
    parser.add_argument("--seeds", type=int, default=10, metavar="N")
    parser.add_argument("--epochs", type=int, default=16, metavar="N")
    parser.add_argument("--strategies", nargs="+", default=COMPARED, metavar="SPEC")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    space = f"by_depth(cells={LAYERS}, space={SPACE})" if options.by_depth else SPACE
    name = f"planted_rules-{options.low:g}-{options.high:g}"
    name += "-by_depth" if options.by_depth else ""
    name += "-init" if options.kernel_scale == "init" else ""
    path: Path = options.json or RESULTS / f"{name}.json"
    done: list[dict[str, Any]] = json.loads(path.read_text())["searches"] if path.exists() else []
    known = {(entry["strategy"], entry["seed"]) for entry in done}
    wanted = [
        (strategy, seed)
        for seed in range(options.seeds)
        for strategy in options.strategies
        if (strategy, seed) not in known
    ]
    setting = (space, options.kernel_scale, options.high, options.low, options.epochs)
    with ProcessPoolExecutor(options.processes) as pool:
        for future in as_completed(pool.submit(search, *each, *setting) for each in wanted):
            done.append(future.result())
            print(done[-1], file=sys.stderr)
            done.sort(key=lambda entry: (entry["strategy"], entry["seed"]))
            result = {
                "command": command(),
                "hardware": hardware(torch.device("cpu")),
                "high": options.high,
                "low": options.low,
                "chance": 1 / COUNT,
                "searches": done,
                "torch": torch.__version__,
            }
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    places = [key for key in done[0] if key not in ("strategy", "seed", "steps", "seconds")]
    print(f"| strategy | {' | '.join(places)} | n | (chance {1 / COUNT:.2f})")
    print("|---" * (len(places) + 2) + "|")
    for strategy in options.strategies:
        own = [entry for entry in done if entry["strategy"] == strategy]
        columns = [[entry[key] for entry in own] for key in places]
        cells = " | ".join(
            f"{statistics.mean(c):.2f} +- {statistics.stdev(c):.2f}" if len(c) > 1 else f"{c}"
            for c in columns
        )
        print(f"| {strategy} | {cells} | {len(own)} | |")


if __name__ == "__main__":
    run(main)
