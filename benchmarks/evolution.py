"""eg on a supernet whose weights stay: how the best and the mean fitness of a generation rise, and
the figure of it.

    python benchmarks/evolution.py                      the digits; writes results/evolution.json and evolution.svg

The supernet is trained for a few epochs with equal edge weights, then eg makes its generations on
the same validation batches, with and without (`published=True`, on one of these batches) a
covariance that lives on. Novelty is left out, so that fitness is the negative validation loss
alone; and the loss of the architecture itself is measured on eight other batches (of the same
images, drawn otherwise). n seeds; the figure shows their mean and, as bands, their range. It needs
matplotlib.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, run, spread, write_timings

from darts_bio.config import SearchConfig
from darts_bio.data.datasets import load_data
from darts_bio.errors import install_hint
from darts_bio.training.engine import run_epoch
from darts_bio.training.search import Search

SIZE = "population=20, samples=1, batches=8, novelty=0"
KINDS = {"eg": SIZE, "eg, published": f"{SIZE}, published=True"}
WARM_EPOCHS = 6
LABELS = {
    "best": "best of a generation",
    "mean": "its mean",
    "architecture": "the architecture, other batches",
}


def fitness(options: str, seed: int, generations: int) -> dict[str, Any]:
    """Make that many generations on the warm supernet of a seed; return the fitness after each of
    them.

    Raises InputError if there are no more of them than epochs of warm-up: both follow one schedule.
    """
    config = SearchConfig(
        space="darts(nodes=2)",
        strategy=f"eg({options})",
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
    for generation in range(generations):
        numbers = strategy.end_epoch(
            state, generation, lambda weights, batches: search._measure(weights, 0, batches)
        )
        best.append(numbers["evolution/best_fitness"])
        mean.append(numbers["evolution/mean_fitness"])
        alone = {t: weights.unsqueeze(0) for t, weights in strategy.edge_weights(state).items()}
        architecture.append(-search._measure(alone, 1000, 8)[0].item())
    scales = state.samplers[0].scales
    print(
        f"seed {seed}  {options:30} best fitness {best[0]:.3f} to {best[-1]:.3f}", file=sys.stderr
    )
    return {
        "best": best,
        "mean": mean,
        "architecture": architecture,
        "axes": {"least": float(scales.min()), "most": float(scales.max())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--generations", type=int, default=25, help=f"more than {WARM_EPOCHS}")
    parser.add_argument(
        "--json", metavar="FILE", help="where the numbers go, and the figure (default: in results)"
    )
    arguments = parser.parse_args()
    path = Path(arguments.json) if arguments.json else RESULTS / "evolution.json"
    runs = {
        kind: [fitness(options, seed, arguments.generations) for seed in range(arguments.seeds)]
        for kind, options in KINDS.items()
    }
    print(
        "| | best fitness, first | last | the architecture's, first | last | axes of the "
        "distribution, most / least |"
    )
    print("|---|---|---|---|---|---|")
    for kind, own in runs.items():
        ends = [
            [run[name][place] for run in own]
            for name in ("best", "architecture")
            for place in (0, -1)
        ]
        cells = [spread(values, 3) for values in ends]
        axes = statistics.mean(run["axes"]["most"] / run["axes"]["least"] for run in own)
        print(f"| {kind} | {' | '.join(cells)} | {axes:.2f} |")
    write_timings(path, torch.device("cpu"), {"runs": runs})
    try:
        draw(runs, path.with_suffix(".svg"))
    except ImportError:
        print(f"no figure: matplotlib is not installed ({install_hint('plot')})", file=sys.stderr)


def draw(runs: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "darts_bio"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9.0, 3.6))
    for color, (kind, own) in zip(("#0072b2", "#d55e00"), runs.items(), strict=True):
        for name, style in (("best", "-"), ("mean", ":"), ("architecture", "--")):
            curves = [run[name] for run in own]
            middle = [statistics.mean(values) for values in zip(*curves, strict=True)]
            x = range(1, len(middle) + 1)
            axes.plot(x, middle, style, color=color, label=f"{kind}: {LABELS[name]}")
            if name == "best":
                low, high = zip(*((min(v), max(v)) for v in zip(*curves, strict=True)), strict=True)
                axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set_xlabel("generation")
    axes.set_ylabel("fitness (negative validation loss)")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    run(main)
