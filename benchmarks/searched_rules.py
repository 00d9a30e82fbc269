"""Do searched rules beat random ones and a single one, where all else is equal?

    python benchmarks/searched_rules.py                     the digits; goes on when run again
    python benchmarks/searched_rules.py --dataset cifar10 --data-dir DIR --train-images 2000

All methods choose the rules of the same ten edges (`assignments.py`), and each choice is trained
from scratch with the same recipe. Compared are `rule_aware`, first order on weights of each rule's
own (`darts`, also with rule_aware's learning rate), rules drawn at random, and each single rule
everywhere. The seed of a search, or of a drawing, is that of the training, so that methods are
compared in pairs: the test is that of all sign flips of the differences. CIFAR-10 is shrunk to
16x16 pixels.

Writes benchmarks/results/searched_rules-DATASET.json.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from assignments import (
    EDGES,
    SEARCHING,
    TRAINING,
    Assignment,
    Source,
    read,
    search,
    text,
    train_missing,
)
from measuring import RESULTS, command, keep_results, kept_results, p_against_first, run, shown

from darts_bio.runtime import hardware

RULES = ("fa", "usf", "brsf", "frsf")
STRATEGIES = ("rule_aware(rule_lr=0.03)", "darts", "darts(lr=0.03)")
METHODS = (*STRATEGIES, "random rules", *(f"{rule} everywhere" for rule in RULES))


def find(source: Source, strategy: str, seed: int) -> tuple[str, int, Assignment]:
    """Search from a seed; return the strategy, the seed, and what was found."""
    return strategy, seed, search(source, strategy, RULES, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset", default="digits", choices=("digits", "cifar10"))
    parser.add_argument("--data-dir", metavar="DIR")
    parser.add_argument("--train-images", type=int, metavar="N")
    parser.add_argument("--seeds", type=int, default=8, metavar="N")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    path: Path = options.json or RESULTS / f"searched_rules-{options.dataset}.json"
    result = kept_results(path)
    found: dict[str, dict[str, str]] = result.setdefault("searched", {})
    errors: dict[str, dict[str, float]] = result.setdefault("test_error_percent", {})
    source: Source = (options.dataset, options.data_dir, options.train_images)
    seeds = range(options.seeds)

    def save() -> None:
        keep_results(path, result)

    def assignment(method: str, seed: int) -> Assignment:
        if method in STRATEGIES:
            return read(found[method][str(seed)])
        if method == "random rules":
            drawn = random.Random(f"rules {seed}")
            return tuple(drawn.choice(RULES) for _ in range(EDGES))
        return (method.split()[0],) * EDGES

    with ProcessPoolExecutor(options.processes) as pool:
        searches = [
            pool.submit(find, source, strategy, seed)
            for seed in seeds
            for strategy in STRATEGIES
            if str(seed) not in found.get(strategy, {})
        ]
        for future in as_completed(searches):
            strategy, seed, rules = future.result()
            found.setdefault(strategy, {})[str(seed)] = text(rules)
            save()
            print(f"{strategy}, seed {seed}: {text(rules)}", file=sys.stderr)
        wanted = [(assignment(method, seed), seed) for seed in seeds for method in METHODS]
        train_missing(pool, source, wanted, errors, save)

    columns = {
        method: [errors[text(assignment(method, seed))][str(seed)] for seed in seeds]
        for method in METHODS
    }
    tests = p_against_first(columns)
    print("| rules | test error, % | n | p against the first |\n|---|---|---|---|")
    for method, column in columns.items():
        p = f"{tests[method]:.3f}" if method in tests else ""
        print(f"| {method} | {shown(column)} | {len(column)} | {p} |")
    best = min(columns, key=lambda method: statistics.mean(columns[method]))
    print(f"\nbest on average: {best}")
    result |= {
        "command": command(),
        "hardware": f"{hardware(torch.device('cpu'))} in each of {options.processes} processes",
        "torch": torch.__version__,
        "training": TRAINING,
        "searching": SEARCHING | {"rules": RULES},
        "table": columns,
        "p": tests,
    }
    save()


if __name__ == "__main__":
    run(main)
