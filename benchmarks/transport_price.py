"""What does weight transport cost? Accuracy against the share of parameters whose error it carries.

    python benchmarks/transport_price.py               searches, retrains, draws; goes on when run again
    python benchmarks/transport_price.py --seeds 2 --shares 0.2 0.6
    python benchmarks/transport_price.py --signs       the same where signs cost nothing

Nothing but the rules of ten edges is chosen (`assignments.py`): bp, which sends the error down
through the weights' own values, or one that does without: fa, and with `--signs` fa or usf, which
knows the weights' signs. A share s of weight transport is allowed: at most s of the cells'
parameters under bp. What is not searched has fa where it has not bp, and with `--signs` usf.
Compared are

- rule_aware: searched with `--objective weight_transport(share=s)`;
- darts: the same by first order, on weights of each rule's own, with rule_aware's learning rate;
- random: bp on edges in a random order, as long as they fit;
- from above: bp on edges from the classifier down, as long as they fit, in each cell that of the
  newer input first: what one would do by hand;
- from below: the same from the stem up;
- by a route: first the edges by which the error reaches the stem at the least cost (each cell's
  older input comes from the cell but one before, so every second cell can be left out), then the
  others from below: what one would do by hand who had seen what the search does.

Each assignment is trained from scratch, from the seed of its search or drawing. What is drawn is the
mean test error, with its standard deviation over the seeds. Writes
benchmarks/results/transport_price.json and .svg, or transport_price-signs.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from assignments import (
    CELLS,
    COMMON,
    DIGITS,
    EDGES,
    SEARCHING,
    TRAINING,
    Assignment,
    genotype,
    read,
    search,
    text,
    train_missing,
)
from measuring import RESULTS, command, keep_results, kept_results, p_against_first, run, shown

import darts_bio
from darts_bio.figures.charts import style
from darts_bio.rules import count_rules
from darts_bio.runtime import hardware

STRATEGIES = {"rule_aware": "rule_aware(rule_lr=0.03)", "darts": "darts(lr=0.03)"}
METHODS = (*STRATEGIES, "random", "from above", "from below", "by a route")
ROUTE = (8, 4, 0)
"""The edges from the older inputs of cells 4, 2 and 0."""
COLORS = ("#d55e00", "#0072b2", "#56b4e9", "#009e73", "#999999", "#cc79a7")


def everywhere(rule: str) -> Assignment:
    """Return the assignment that has one rule on all edges."""
    return (rule,) * EDGES


@functools.cache
def sizes() -> tuple[int, ...]:
    """Return the parameters of each edge's layers, those of its batch norms not counted."""
    network = darts_bio.build_network(
        genotype(everywhere("bp")), channels=COMMON["channels"], layers=CELLS
    )
    edges = (edge for cell in network.cells for edge in cell.edges)  # type: ignore[union-attr]
    return tuple(count_rules(edge).parameters for edge in edges)


def share_of(assignment: Assignment) -> float:
    """Return the share of the cells' parameters that are under bp."""
    spent = sum(size for size, rule in zip(sizes(), assignment, strict=True) if rule == "bp")
    return spent / sum(sizes())


def filled(order: Sequence[int], share: float, otherwise: str) -> Assignment:
    """Put edges under bp in that order, passing over those that do not fit into the share."""
    chosen = list(everywhere(otherwise))
    for edge in order:
        chosen[edge] = "bp"
        if share_of(tuple(chosen)) > share:
            chosen[edge] = otherwise
    return tuple(chosen)


def by_hand(method: str, share: float, seed: int, otherwise: str) -> Assignment:
    """Return the assignment of a method that does not search."""
    order = list(range(EDGES))
    if method == "random":
        random.Random(f"transport {share} {seed}").shuffle(order)
    elif method == "from above":
        order.reverse()
    elif method == "by a route":
        order = [*ROUTE, *(edge for edge in order if edge not in ROUTE)]
    return filled(order, share, otherwise)


def find(
    method: str, share: float, seed: int, rules: tuple[str, ...]
) -> tuple[str, float, int, Assignment]:
    """Search for a share from a seed; return what was asked, and the assignment found."""
    objective = (f"weight_transport(share={share})",)
    found = search(DIGITS, STRATEGIES[method], rules, seed, objective=objective)
    return method, share, seed, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shares", nargs="+", type=float, default=(0.2, 0.4, 0.6, 0.8))
    parser.add_argument("--seeds", type=int, default=8, metavar="N")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--signs", action="store_true", help="search among fa, usf and bp")
    options = parser.parse_args()
    rules = ("fa", "usf", "bp") if options.signs else ("fa", "bp")
    otherwise = rules[-2]
    path = RESULTS / f"transport_price{'-signs' if options.signs else ''}.json"
    result = kept_results(path)
    found: dict[str, dict[str, dict[str, str]]] = result.setdefault("searched", {})
    errors: dict[str, dict[str, float]] = result.setdefault("test_error_percent", {})
    seeds = range(options.seeds)

    def save() -> None:
        keep_results(path, result)

    def assignment_of(method: str, share: float, seed: int) -> Assignment:
        if method in STRATEGIES:
            return read(found[method][str(share)][str(seed)])
        return by_hand(method, share, seed, otherwise)

    with ProcessPoolExecutor(options.processes) as pool:
        waiting = [
            pool.submit(find, method, share, seed, rules)
            for method in STRATEGIES
            for seed in seeds
            for share in options.shares
            if str(seed) not in found.get(method, {}).get(str(share), {})
        ]
        for future in as_completed(waiting):
            method, share, seed, chosen = future.result()
            found.setdefault(method, {}).setdefault(str(share), {})[str(seed)] = text(chosen)
            save()
            print(f"{method}, share {share}, seed {seed}: {text(chosen)}", file=sys.stderr)
        ends = [(assignment, seed) for assignment in map(everywhere, rules) for seed in seeds]
        placed = [
            (assignment_of(method, share, seed), seed)
            for seed in seeds
            for share in options.shares
            for method in METHODS
        ]
        train_missing(pool, DIGITS, ends + placed, errors, save)

    def error_of(method: str, share: float, seed: int) -> float:
        return errors[text(assignment_of(method, share, seed))][str(seed)]

    ends_of = {
        rule: [errors[text(everywhere(rule))][str(seed)] for seed in seeds] for rule in rules
    }
    table = {
        method: {
            share: {
                "error": [error_of(method, share, seed) for seed in seeds],
                "share": [share_of(assignment_of(method, share, seed)) for seed in seeds],
            }
            for share in options.shares
        }
        for method in METHODS
    }
    for name, of_seeds in ends_of.items():
        print(f"{name} everywhere: {shown(of_seeds)} % test error")
    print(f"\n| allowed | {' | '.join(METHODS)} | p of the first against each other |")
    print("|---" * (len(METHODS) + 2) + "|")
    tests: dict[str, dict[str, float]] = {}
    for share in options.shares:
        columns = {method: table[method][share]["error"] for method in METHODS}
        of_share = p_against_first(columns)
        tests[str(share)] = of_share
        p = ", ".join(f"{value:.3f}" for value in of_share.values())
        print(f"| {share:g} | {' | '.join(map(shown, columns.values()))} | {p} |")
    result |= {
        "command": command(),
        "hardware": f"{hardware(torch.device('cpu'))} in each of {options.processes} processes",
        "torch": torch.__version__,
        "training": TRAINING,
        "searching": SEARCHING | {"strategies": STRATEGIES},
        "ends": ends_of,
        "table": table,
        "p": tests,
    }
    save()
    draw(ends_of, otherwise, table, path.with_suffix(".svg"))


def draw(ends: dict[str, list[float]], otherwise: str, table: dict[str, Any], path: Path) -> None:
    """Draw test error against the share of transport, a line for each method.

    All lines begin at that of the rule `otherwise` on all edges.
    """
    from matplotlib import pyplot, ticker

    with style():
        figure, axes = pyplot.subplots(figsize=(6.4, 4.2))
        for method, color in zip(METHODS, COLORS, strict=True):
            points = [(statistics.mean(v["share"]), v["error"]) for v in table[method].values()]
            points = [(0.0, ends[otherwise]), *points, (1.0, ends["bp"])]
            axes.errorbar(
                [x for x, _ in points],
                [statistics.mean(errors) for _, errors in points],
                [statistics.stdev(errors) if len(errors) > 1 else 0.0 for _, errors in points],
                color=color,
                marker="o",
                markersize=4,
                capsize=3,
                label=method,
            )
        others = " or ".join(rule for rule in ends if rule != "bp")
        axes.set_xlabel(
            f"share of the cells' parameters whose values carry the error (bp; the others: {others})"
        )
        axes.set_ylabel("test error, %")
        axes.set_yscale("log")
        plain = ticker.FuncFormatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter(plain)
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


if __name__ == "__main__":
    run(main)
