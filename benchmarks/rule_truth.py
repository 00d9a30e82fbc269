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
(one-way analysis of variance): the square of the largest correlation that one could expect. How
genotypes are trained, and the network's size, are those of `truth_table.py`.
Writes benchmarks/results/rule_truth.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RESULTS, command, keep_results, paired_p, run
from truth_table import (
    EDGES,
    SEARCHING,
    TRAINING,
    SmallSpace,
    complete,
    complete_searches,
    means,
    of_first_seeds,
    ranks,
    reliability,
    searched,
    train,
)

from darts_bio.runtime import hardware

RULES = ("fa", "usf", "brsf", "frsf")
SPACE = SmallSpace("darts(nodes=1, operations=(sep_conv_3x3,))", RULES)
STRATEGIES = (
    "rule_aware(rule_lr=0.03)",
    "darts",
    "darts(lr=0.03)",
    "darts(order=2)",
)


def search(strategy: str, seed: int) -> list[list[float]]:
    """The shares of the rules on each edge that a strategy ends with."""
    task = searched(SPACE, strategy, seed)
    weights = task.strategy.edge_weights(task.strategy_state)
    return torch.cat([weights[t].detach() for t in ("normal", "reduce")]).double().tolist()


def rank_correlation(shares: Sequence[Sequence[float]], losses: Mapping[str, float]) -> float:
    """Spearman's correlation of a search's scores with the negative losses."""
    logs = np.log(np.asarray(shares))
    scores = [sum(logs[e, n] for e, n in enumerate(each)) for each in SPACE.choices]
    truth = [-losses[SPACE.name_of(each)] for each in SPACE.choices]
    return float(np.corrcoef(ranks(scores), ranks(truth))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trainings", type=int, default=6, metavar="N", help="of each assignment")
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="of each strategy")
    parser.add_argument("--strategies", nargs="+", default=STRATEGIES, metavar="SPEC")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--json", type=Path, default=RESULTS / "rule_truth.json", metavar="FILE")
    options = parser.parse_args()
    path: Path = options.json
    result = complete(path, SPACE, options.trainings, train, options.processes)
    complete_searches(path, result, options.strategies, options.seeds, search, options.processes)
    report(options, result)
    keep_results(path, result)


def report(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print the tables, and put their numbers into the result."""
    losses = of_first_seeds(result["losses"], options.trainings)
    mean_losses = means(losses)
    order = sorted(mean_losses, key=mean_losses.__getitem__)
    sure = reliability(losses)
    spread = statistics.stdev(mean_losses.values())
    print(f"{len(order)} assignments, {options.trainings} trainings each: reliability {sure:.3f}")
    print(
        f"mean test loss: {mean_losses[order[0]]:.3f} ({order[0]}) to {mean_losses[order[-1]]:.3f}",
        end=" ",
    )
    print(f"({order[-1]}), standard deviation {spread:.3f}\n")
    print("| rule everywhere | mean test loss | rank of 256 | accuracy |\n|---|---|---|---|")
    for rule in RULES:
        name = " ".join([rule] * len(EDGES))
        accuracy = statistics.mean(result["accuracies"][name].values())
        print(f"| {rule} | {mean_losses[name]:.3f} | {order.index(name) + 1} | {accuracy:.3f} |")
    print("\nmean loss by the rule of an edge:\n")
    print("| edge | " + " | ".join(RULES) + " |\n|---" + "|---" * len(RULES) + "|")
    for place, (cell_type, edge) in enumerate(EDGES):
        cells = []
        for rule in RULES:
            of_rule = [loss for name, loss in mean_losses.items() if name.split()[place] == rule]
            cells.append(f"{statistics.mean(of_rule):.3f}")
        print(f"| {cell_type} {edge} | " + " | ".join(cells) + " |")
    print("\n| strategy | rank correlation | n | found: mean rank | p against the first |")
    print("|---|---|---|---|---|")
    table = {}
    for strategy in options.strategies:
        of_seeds = [result["searches"][strategy][str(seed)] for seed in range(options.seeds)]
        correlations = [rank_correlation(shares, mean_losses) for shares in of_seeds]
        chosen = [SPACE.name_of(tuple(int(np.argmax(e)) for e in shares)) for shares in of_seeds]
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
        "searching": SEARCHING | {"space": SPACE.spec, "rules": RULES},
        "reliability": sure,
        "table": table,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    run(main)
