"""How a step of the search grows with the number of rules, with channels, layers and batch.

    python benchmarks/scaling.py                          around C=8, 5 cells, 8 images of 16x16, four rules
    python benchmarks/scaling.py --device cuda --channels 16 --layers 8 --image-size 32 --batch-size 64

One size is varied at a time. Per point: the time of a step of the batched supernet (alpha pass and
weight pass, median; CPU time of one thread, or the wall where a GPU works), kernels a step and
activations kept, counted as benchmarks/search_step.py does. Writes
benchmarks/results/scaling-DEVICE.json and scaling-DEVICE.svg.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import RESULTS, run, timing_device, write_timings
from search_step import count, timings
from torch import Tensor

from darts_bio.figures.charts import style
from darts_bio.rules import RULES, LearningRule
from darts_bio.runtime import hardware

NAMES = ("fa", "usf", "brsf", "frsf", "bp", "half")


@RULES.register("half")
@dataclass(frozen=True)
class Half(LearningRule):
    """K = W / 2: a sixth rule, for the count's sake."""

    carries = "values"
    elementwise = True

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return weight / 2


def points(sizes: argparse.Namespace) -> dict[str, dict[Any, argparse.Namespace]]:
    """By the name of what is varied: its values, and the sizes that go with each."""

    def varied(name: str, values: list[int]) -> dict[Any, argparse.Namespace]:
        return {value: argparse.Namespace(**{**vars(sizes), name: value}) for value in values}

    by_rules = {
        n: argparse.Namespace(**{**vars(sizes), "rules": ",".join(NAMES[:n])})
        for n in range(1, len(NAMES) + 1)
    }
    return {
        "rules": by_rules,
        "channels": varied("channels", [sizes.channels * k for k in (1, 2, 4)]),
        "layers": varied("layers", [sizes.layers, sizes.layers + 3, sizes.layers + 6]),
        "batch size": varied("batch_size", [sizes.batch_size * k for k in (1, 2, 4)]),
    }


def draw(found: dict[str, dict[Any, dict[str, float]]], path: Path, machine: str) -> None:
    from matplotlib import pyplot

    with style():
        figure, axes = pyplot.subplots(
            1, len(found), figsize=(3 * len(found), 2.8), sharey=True, layout="constrained"
        )
        for axis, (name, values) in zip(axes, found.items(), strict=True):
            at = list(values)
            for key, mark in {"seconds": "o-", "kept_bytes": "s--", "kernels": "^:"}.items():
                first = values[at[0]][key]
                axis.plot(
                    at,
                    [value[key] / first for value in values.values()],
                    mark,
                    label=key.replace("_", " "),
                )
            axis.plot(
                at, [value / at[0] for value in at], color="0.7", zorder=0, label="proportional"
            )
            axis.set_xlabel(name)
            axis.set_xticks(at)
        axes[0].set_ylabel("relative to the first")
        axes[0].legend(fontsize=8)
        figure.suptitle(f"one step of the search, {machine}", fontsize=9)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="cpu", metavar="NAME")
    for name, default in {
        "channels": 8,
        "layers": 5,
        "batch-size": 8,
        "image-size": 16,
        "steps": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument(
        "--json", metavar="FILE", help="where the numbers go, and the figure (default: in results)"
    )
    arguments = parser.parse_args()
    device = timing_device(arguments.device)
    path = Path(arguments.json) if arguments.json else RESULTS / f"scaling-{device.type}.json"
    sizes = argparse.Namespace(
        **vars(arguments), space="darts", rules=",".join(NAMES[:4]), nets="batched", amp="none"
    )
    found: dict[str, dict[Any, dict[str, float]]] = {}
    for name, values in points(sizes).items():
        print(
            f"\n| {name} | seconds a step | relative | kernels a step | kept activations, GB "
            "|\n|---|---|---|---|---|"
        )
        found[name] = {}
        for value, point in values.items():
            passes = timings(point, device)["batched"]
            seconds = statistics.median(
                a + w for a, w in zip(passes["alpha"], passes["weights"], strict=True)
            )
            found[name][value] = {"seconds": seconds, **count("batched", point)}
            own, first = found[name][value], next(iter(found[name].values()))
            relative = seconds / first["seconds"]
            kept = own["kept_bytes"] / 1e9
            print(
                f"| {value} | {seconds:.3f} | {relative:.2f} | {own['kernels']} | {kept:.3f} |",
                flush=True,
            )
    write_timings(path, device, {"points": found})
    draw(found, path.with_suffix(".svg"), hardware(device))


if __name__ == "__main__":
    run(main)
