"""What a step costs where rules share weights, by the number of rules, beside (operation, rule)
pairs.

    python benchmarks/shared_weights.py                                    C=16, 5 cells, 16 images of 16x16
    python benchmarks/shared_weights.py --channels 8 --batch-size 8        the small size
    python benchmarks/shared_weights.py --layers 8 --image-size 32 --batch-size 8

A step is `Search.step`: alpha, w, feedback; the searches take turns, on noise. Two strategies run on
shared weights: darts, in the first order, and rule_aware, which unrolls a step and sweeps it.
Activations kept are what autograd holds in the pass of the weights, parameters left out; the peak is
the most that a process holds which makes two steps, less what one holds that makes none.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from measuring import (
    kept_bytes,
    noise,
    peak_bytes,
    run,
    seconds_a_step,
    timing_device,
    write_timings,
)

from darts_bio.config import SearchConfig
from darts_bio.training.search import Search

RULES = {
    1: ("usf",),
    2: ("fa", "usf"),
    4: ("fa", "usf", "brsf", "frsf"),
    6: ("fa", "usf", "brsf", "frsf", "bp", "usf(scale=match)"),
}
PAIRS = "pairs, darts, 4 rules"


def variants() -> dict[str, dict[str, Any]]:
    """The options of each search, by its name."""
    found = {PAIRS: {"strategy": "darts", "rules": RULES[4], "weights": "own"}}
    for strategy in ("darts", "rule_aware"):
        for count, rules in RULES.items():
            options = {"strategy": strategy, "rules": rules, "weights": "shared"}
            found[f"shared, {strategy}, {count} rules"] = options
    return found


def build(options: dict[str, Any], sizes: argparse.Namespace) -> Search:
    names = ("channels", "layers", "batch_size", "space", "amp")
    common = {name: getattr(sizes, name) for name in names}
    common |= {"epochs": 100, "regularizers": ("warmup(epochs=0)",)}
    data = noise(4 * sizes.batch_size, sizes.image_size)
    return Search(SearchConfig(**common, **options), data, timing_device(sizes.device))


def steps(options: dict[str, Any], sizes: argparse.Namespace, count: int) -> None:
    search = build(options, sizes)
    search.begin_epoch(0)
    for t in range(count):
        search.step(t)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--space", default="darts", metavar="SPEC")
    parser.add_argument("--device", default="cpu", metavar="NAME")
    parser.add_argument("--amp", default="none", choices=["none", "bf16"])
    defaults = {"channels": 16, "layers": 5, "batch-size": 16, "image-size": 16, "steps": 7}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    sizes = parser.parse_args()
    device = timing_device(sizes.device)
    searches = {name: build(options, sizes) for name, options in variants().items()}
    seconds = seconds_a_step(searches, sizes.steps, device)
    found: dict[str, Any] = {}
    print("| search | s a step | relative to pairs (least to most) | kept, MB | peak, MB |")
    print("|---|---|---|---|---|")
    for name, search in searches.items():
        state = search.strategy_state
        weights = {t: w.detach() for t, w in search.strategy.edge_weights(state).items()}
        batch = search.train_batches.batch(0)
        kept = kept_bytes(
            search.supernet, lambda s=search, b=batch, w=weights: s._weight_loss(b, w)
        )
        ratios = sorted(a / b for a, b in zip(seconds[name], seconds[PAIRS], strict=True))
        held = [peak_bytes(device, steps, variants()[name], sizes, count) for count in (2, 0)]
        found[name] = {
            "seconds": seconds[name],
            "kept_bytes": kept,
            "peak_bytes": held[0] - held[1],
        }
        found[name]["ratio"] = statistics.median(ratios)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        median = statistics.median(seconds[name])
        print(
            f"| {name} | {median:.3f} | {spread} | {kept / 1e6:.0f} | {(held[0] - held[1]) / 1e6:.0f} |",
            flush=True,
        )
    for strategy in ("darts", "rule_aware"):
        six, one = (seconds[f"shared, {strategy}, {count} rules"] for count in (6, 1))
        ratio = statistics.median(a / b for a, b in zip(six, one, strict=True))
        found[f"{strategy}: 6 rules to 1"] = ratio
        print(f"\n{strategy}: six rules take {ratio:.2f} of the time of one")
    if sizes.json:
        write_timings(Path(sizes.json), device, {"sizes": vars(sizes), "searches": found})


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main)
