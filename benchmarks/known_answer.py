"""Every search strategy on a problem whose answer is known, beside what chance finds there.

    python benchmarks/truth_table.py                    first: the truth, 256 genotypes trained three times
    python benchmarks/known_answer.py                   searches, prints the table; goes on when run again
    python benchmarks/known_answer.py --strategies darts eg --seeds 20

The space is that of `truth_table.py`: on each of four edges one of two operations under one of two
planted rules, each of which is backpropagation on two edges and noise on the other two. A strategy
searches with the network's size and images, and with its own published hyper-parameters: none is
tuned on this problem (pc_darts takes k=2, since a quarter of four channels is one).

Counted is the rank of the genotype that a search finds, 1 to 256. Beside it stand four null models,
which draw a genotype in place of each search:

- uniform: any of the 256;
- constant rule: random operations under one rule on all edges, the one of lower mean rank;
- random rules: the operations that the search found, under random rules;
- random operations: the rules that the search found, with random operations.

p is the probability that such draws have a sum of ranks as small as the searches', or smaller
(exact: the sum's distribution is a convolution); it is not corrected for the number of comparisons.
The first two say whether a strategy beats chance, the third whether it finds rules, the fourth
whether it finds operations. Writes benchmarks/results/known_answer.json.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, command, keep_results, kept_results, run, shown
from planted_rules import plant
from truth_table import (
    EDGES,
    GOOD,
    IMAGES,
    PLANTED,
    SEARCHING,
    Choice,
    Losses,
    complete_searches,
    explained_by,
    means,
    of_first_seeds,
    ranks,
    reliability,
    searched,
)

from darts_bio.errors import InputError
from darts_bio.runtime import hardware

STRATEGIES = (
    "darts",
    "darts(order=2)",
    "pc_darts(k=2)",
    "gdas",
    "snas",
    "snas(hard=True)",
    "drnas",
    "random_paths",
    "rule_aware",
    "fair_darts",
    "darts_pt",
    "eg",
)
LEVEL = 0.05
"""Below which p a strategy is said to beat a null model."""


def search(strategy: str, seed: int) -> dict[str, Any]:
    """The genotype that a strategy finds, and the CPU seconds it took."""
    start = time.process_time()
    task = searched(PLANTED, strategy, seed, lambda task: plant(task, GOOD))
    name = PLANTED.name_of(PLANTED.choice_of(task.genotype()))
    return {"genotype": name, "seconds": round(time.process_time() - start, 1)}


def operations_of(choice: Choice) -> tuple[str, ...]:
    """The operation on each edge."""
    return tuple(PLANTED.candidates[number].op for number in choice)


def rules_of(choice: Choice) -> tuple[str | None, ...]:
    """The rule on each edge."""
    return tuple(PLANTED.candidates[number].rule for number in choice)


def good_rules(choice: Choice) -> int:
    """On how many edges the rule is the good one."""
    good = tuple(PLANTED.rules[GOOD[edge]] for edge in EDGES)
    return sum(one == other for one, other in zip(rules_of(choice), good, strict=True))


def constant_rule(rank: Mapping[Choice, int]) -> list[int]:
    """The ranks of all operations under one rule on all edges, the rule of the lower mean rank."""
    under = [
        [of_one for choice, of_one in rank.items() if set(rules_of(choice)) == {rule}]
        for rule in PLANTED.rules
    ]
    return min(under, key=statistics.mean)


def null_models(rank: Mapping[Choice, int], found: Sequence[Choice]) -> dict[str, list[list[int]]]:
    """For each null model the ranks of all genotypes that it may draw in place of each found one.

    `rank` is that of each genotype of the space.
    """
    return {
        "uniform": [list(rank.values())] * len(found),
        "constant rule": [constant_rule(rank)] * len(found),
        "random rules": [
            [rank[each] for each in rank if operations_of(each) == operations_of(choice)]
            for choice in found
        ],
        "random operations": [
            [rank[each] for each in rank if rules_of(each) == rules_of(choice)] for choice in found
        ],
    }


def p_of_sum(total: int, populations: Sequence[Sequence[int]]) -> float:
    """The probability that the sum of one draw from each population is at most `total`.

    Each member of a population of whole numbers from 0 is drawn alike.
    """
    chances = np.ones(1)  # of each sum, from 0
    for population in populations:
        chances = np.convolve(chances, np.bincount(population) / len(population))
    return float(chances[: total + 1].sum())


def row_of(rank: Mapping[Choice, int], searches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the table says of a strategy's searches: ranks, good rules, p of each null model."""
    by_name = {PLANTED.name_of(choice): choice for choice in rank}
    found = [by_name[each["genotype"]] for each in searches]
    of_found = [rank[choice] for choice in found]
    models = {}
    for name, populations in null_models(rank, found).items():
        draws = [one for population in populations for one in population]
        models[name] = {
            "mean_rank": statistics.mean(draws),
            "std_rank": statistics.pstdev(draws),
            "p": p_of_sum(sum(of_found), populations),
        }
    return {
        "ranks": of_found,
        "good_rules": [good_rules(choice) for choice in found],
        "null_models": models,
        "not_beaten": [name for name, model in models.items() if not model["p"] < LEVEL],
        "seconds": statistics.mean(each["seconds"] for each in searches),
    }


def line_of(strategy: str, row: Mapping[str, Any]) -> str:
    """A strategy's line of the table."""
    models = row["null_models"]

    def against(name: str, mean: bool) -> str:
        model = models[name]
        p = "< 0.001" if model["p"] < 0.001 else f"{model['p']:.3f}"
        return f"{model['mean_rank']:.0f} +- {model['std_rank']:.0f}, {p}" if mean else p

    cells = [
        f"`{strategy}`",
        f"{statistics.mean(row['ranks']):.0f} +- {statistics.stdev(row['ranks']):.0f}",
        shown(row["good_rules"]),
        against("uniform", False),
        against("constant rule", False),
        against("random rules", True),
        against("random operations", True),
        ", ".join(row["not_beaten"]) or "none",
        f"{row['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def losses_of(path: Path, trainings: int) -> dict[str, dict[str, float]]:
    """The losses of all genotypes after the trainings from seeds 0, 1, ..., from a truth table.

    Raises InputError if it lacks some.
    """
    losses = kept_results(path).get("losses", {})
    wanted = {str(seed) for seed in range(trainings)}
    names = [PLANTED.name_of(choice) for choice in PLANTED.choices]
    trained = sum(wanted <= losses.get(name, {}).keys() for name in names)
    if trained < len(names):
        raise InputError(
            f"--truth {path}: expected {len(names)} genotypes with {trainings} "
            f"trainings each, found {trained}; run python benchmarks/truth_table.py first"
        )
    return of_first_seeds(losses, trainings)


def report(
    losses: Losses, searches: Mapping[str, Mapping[str, Any]], seeds: int
) -> dict[str, dict[str, Any]]:
    """Print the truth, the null models and the strategies' table; return its rows by strategy.

    It has the strategies of all `searches` from seeds 0, 1, ..., also of earlier runs.
    """
    mean_losses = means(losses)
    in_order = ranks([mean_losses[PLANTED.name_of(choice)] for choice in PLANTED.choices])
    rank = dict(zip(PLANTED.choices, in_order.tolist(), strict=True))
    constant = constant_rule(rank)
    print(f"{len(rank)} genotypes, reliability {reliability(losses):.3f}; of the variance")
    for what, share in explained_by(PLANTED, mean_losses).items():
        print(f"  {share:.3f} by {what}")
    uniform = list(rank.values())
    print("mean rank of a single draw: uniform", end=" ")
    print(
        f"{statistics.mean(uniform):.1f} +- {statistics.pstdev(uniform):.1f}, constant rule",
        end=" ",
    )
    print(f"{statistics.mean(constant):.1f} +- {statistics.pstdev(constant):.1f}\n")
    print(
        f"| strategy | mean rank of {len(rank)} (n = {seeds}) | good rules of 4 | p: uniform "
        "| p: constant rule | its operations, random rules, p | its rules, random operations, p "
        "| not beaten | s a search |"
    )
    print("|---" * 9 + "|")
    table = {}
    for strategy, of_strategy in searches.items():
        if not all(str(seed) in of_strategy for seed in range(seeds)):
            continue
        of_seeds = [of_strategy[str(seed)] for seed in range(seeds)]
        table[strategy] = row_of(rank, of_seeds)
        print(line_of(strategy, table[strategy]))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="of each strategy")
    parser.add_argument(
        "--trainings", type=int, default=3, metavar="N", help="that rank a genotype"
    )
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, metavar="SPEC")
    parser.add_argument("--processes", type=int, default=1, metavar="N")
    parser.add_argument("--truth", type=Path, default=RESULTS / "truth_table.json", metavar="FILE")
    parser.add_argument("--json", type=Path, default=RESULTS / "known_answer.json", metavar="FILE")
    options = parser.parse_args()
    for name, count in (("seeds", options.seeds), ("trainings", options.trainings)):
        if count < 2:
            raise InputError(f"--{name}: expected at least 2, for a spread, found {count}")
    losses = losses_of(options.truth, options.trainings)
    result = kept_results(options.json)
    searches = complete_searches(
        options.json, result, options.strategies, options.seeds, search, options.processes
    )
    table = report(losses, searches, options.seeds)
    result |= {
        "command": command(),
        "date": datetime.date.today().isoformat(),
        "hardware": f"{hardware(torch.device('cpu'))} in each of {options.processes} processes",
        "images": IMAGES,
        "trainings": options.trainings,
        "searching": SEARCHING | {"space": PLANTED.spec, "rules": PLANTED.rules},
        "table": table,
        "torch": torch.__version__,
    }
    keep_results(options.json, result)


if __name__ == "__main__":
    run(main)
