"""eg on a supernet whose weights stay: how the best and the mean fitness of a generation rise, what of
it evolution does, and the figure of it.

    python benchmarks/evolution.py                      the digits, 6 seeds; goes on when run again

The supernet is trained for a few epochs with equal edge weights, then eg makes its generations on
the same validation batches, with and without (`published=True`, on one of these batches) a
covariance that lives on. Novelty is left out, so that fitness is the negative validation loss
alone; and the loss of the architecture itself is measured on eight other batches (of the same
images, drawn otherwise).

The individuals of later generations lie closer to the architecture, since the width s of the draws
falls, and closer ones are better whether anything is learned or not. Two controls take this apart:

- drawn, same widths: each generation's individuals are drawn independently, around an architecture
  that stays, at eg's widths; nothing is selected.
- eg, width stays: s does not fall.

Printed are means with standard deviations over seeds, rises from the first to the last generation,
and p of sign flips, paired by the seed: of the rises, and of the last generation's difference from
what is drawn. The figure shows means and, as bands, ranges. Writes
results/evolution.json and evolution.svg.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, command, keep_results, kept_results, paired_p, run, spread

from darts_bio.config import SearchConfig
from darts_bio.data.datasets import load_data
from darts_bio.errors import InputError
from darts_bio.figures.charts import style
from darts_bio.runtime import hardware
from darts_bio.strategies import Measure
from darts_bio.training.engine import run_epoch
from darts_bio.training.search import Search

SIZE = "population=20, samples=1, batches=8, novelty=0"


@dataclass(frozen=True)
class Kind:
    """How generations are made."""

    options: str
    """The options of eg."""

    selects: bool = True
    """Whether a generation's fitness moves anything."""


DRAWN = "drawn, same widths"
KINDS = {
    "eg": Kind(SIZE),
    DRAWN: Kind(SIZE, selects=False),
    "eg, width stays": Kind(f"{SIZE}, sigma=1, sigma_min=1"),
    "eg, published": Kind(f"{SIZE}, published=True"),
}
WARM_EPOCHS = 6
COLORS = ("#0072b2", "#666666", "#009e73", "#d55e00")
LABELS = {
    "best": "best of a generation",
    "mean": "its mean",
    "architecture": "the architecture, other batches",
}


def drawn_generation(
    strategy: Any, state: Any, generation: int, measure: Measure
) -> dict[str, float]:
    """The fitness of individuals of a distribution that has learned nothing; nothing moves."""
    offsets = strategy.sampler(state.context, 1000 + generation).ask()
    individuals = state.individuals(offsets, strategy.scale(state, generation))
    losses, _ = measure(individuals, strategy.measured_batches)
    return {
        "evolution/best_fitness": -losses.min().item(),
        "evolution/mean_fitness": -losses.mean().item(),
    }


def fitness(kind: Kind, seed: int, generations: int) -> dict[str, Any]:
    """Make that many generations on the warm supernet of a seed; return the fitness after each of
    them.

    Raises InputError if there are no more of them than epochs of warm-up: both follow one schedule.
    """
    config = SearchConfig(
        space="darts(nodes=2)",
        strategy=f"eg({kind.options})",
        channels=8,
        layers=3,
        lr=0.1,
        crop_padding=1,
        flip=False,
        epochs=generations,
        regularizers=(
            f"warmup(epochs={WARM_EPOCHS})",
        ),  # no generation is made while the weights are trained
        seed=seed,
    )
    search = Search(config, load_data("digits"), torch.device("cpu"))
    for epoch in range(WARM_EPOCHS):
        run_epoch(search, epoch)
    best, mean, architecture = [], [], []
    strategy: Any = search.strategy
    state: Any = search.strategy_state
    make = strategy.end_epoch if kind.selects else lambda *given: drawn_generation(strategy, *given)
    for generation in range(generations):
        numbers = make(
            state,
            generation,
            lambda weights, batches: search.individuals.measure(weights, 0, batches),
        )
        best.append(numbers["evolution/best_fitness"])
        mean.append(numbers["evolution/mean_fitness"])
        alone = {t: weights.unsqueeze(0) for t, weights in strategy.edge_weights(state).items()}
        architecture.append(-search.individuals.measure(alone, 1000, 8)[0].item())
    scales = state.samplers[0].scales
    return {
        "best": best,
        "mean": mean,
        "architecture": architecture,
        "axes": {"least": float(scales.min()), "most": float(scales.max())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=6, metavar="N", help="at least 2")
    parser.add_argument(
        "--generations", type=int, default=25, metavar="N", help=f"more than {WARM_EPOCHS}"
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=RESULTS / "evolution.json",
        metavar="FILE",
        help="where the numbers go, and the figure (default: in results)",
    )
    options = parser.parse_args()
    if options.seeds < 2:
        raise InputError(f"--seeds: expected at least 2, for a spread, found {options.seeds}")
    torch.set_num_threads(1)
    result = kept_results(options.json)
    if result.get("generations", options.generations) != options.generations:
        raise InputError(
            f"--json {options.json}: expected runs of {options.generations} generations, found "
            f"{result['generations']}; name another file"
        )
    result["generations"] = options.generations
    kept = result.setdefault("runs", {})
    for kind, how in KINDS.items():
        for seed in range(options.seeds):
            if str(seed) in kept.get(kind, {}):
                continue
            made = fitness(how, seed, options.generations)
            kept.setdefault(kind, {})[str(seed)] = made
            keep_results(options.json, result)
            print(
                f"{kind}, seed {seed}: best {made['best'][0]:.3f} to {made['best'][-1]:.3f}",
                file=sys.stderr,
            )
    runs = {kind: [kept[kind][str(seed)] for seed in range(options.seeds)] for kind in KINDS}
    result["table"] = report(runs)
    result |= {
        "command": command(),
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(torch.device("cpu")),
        "torch": torch.__version__,
    }
    keep_results(options.json, result)
    draw(runs, options.json.with_suffix(".svg"))


def report(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Print the table of all kinds' runs; return its numbers."""
    print(
        "| | best fitness, first | last | rise (p) | last, less what is drawn (p) | the "
        "architecture's, first | last | rise (p) | axes of the distribution, most / least |"
    )
    print("|---" * 9 + "|")
    table: dict[str, Any] = {}
    last_drawn = [of_seed["best"][-1] for of_seed in runs[DRAWN]]
    for kind, of_seeds in runs.items():
        numbers: dict[str, Any] = {}
        cells = []
        for name in ("best", "architecture"):
            first, last = ([each[name][place] for each in of_seeds] for place in (0, -1))
            rises = [b - a for a, b in zip(first, last, strict=True)]
            numbers[name] = {"first": first, "last": last, "p": paired_p(rises)}
            cells += [spread(first, 3), spread(last, 3)]
            cells.append(f"{spread(rises, 3)} ({numbers[name]['p']:.3f})" if any(rises) else "")
            if name == "best":
                more = [a - b for a, b in zip(last, last_drawn, strict=True)]
                numbers["above drawn"] = {"differences": more, "p": paired_p(more)}
                p = numbers["above drawn"]["p"]
                cells.append("" if kind == DRAWN else f"{spread(more, 3)} ({p:.3f})")
        axes = statistics.mean(each["axes"]["most"] / each["axes"]["least"] for each in of_seeds)
        table[kind] = numbers | {"axes": axes}
        print(f"| {kind} | {' | '.join(cells)} | {axes:.2f} |")
    return table


def draw(runs: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    with style():
        figure, axes = pyplot.subplots(figsize=(9.0, 3.6))
        for color, (kind, own) in zip(COLORS, runs.items(), strict=True):
            for name, dashes in (("best", "-"), ("mean", ":"), ("architecture", "--")):
                curves = [run[name] for run in own]
                middle = [statistics.mean(values) for values in zip(*curves, strict=True)]
                x = range(1, len(middle) + 1)
                axes.plot(x, middle, dashes, color=color, label=f"{kind}: {LABELS[name]}")
                if name == "best":
                    low, high = zip(
                        *((min(v), max(v)) for v in zip(*curves, strict=True)), strict=True
                    )
                    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_xlabel("generation")
        axes.set_ylabel("fitness (negative validation loss)")
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.tight_layout()
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


if __name__ == "__main__":
    run(main)
