"""What a step of each search strategy costs: seconds and activations kept, beside first-order
darts, in one process.

    python benchmarks/strategy_step.py                                              C=16, 5 cells, 16 images of 16x16
    python benchmarks/strategy_step.py --channels 16 --layers 8 --image-size 32 --batch-size 64 --device cuda

A step is `Search.step`: alpha, w, feedback; the strategies take turns, on noise. Activations kept
are the bytes that autograd holds between the forward and the backward pass of the weights,
parameters left out; the mean of ten samples, since gdas computes what each draws. eg and darts_pt
move nothing in a step; what they do between epochs is a number of forward passes, measured for one
individual.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from measuring import (
    kept_bytes,
    noise,
    run,
    seconds_a_step,
    stopwatch,
    timing_device,
    write_timings,
)

from darts_bio.config import SearchConfig
from darts_bio.training.search import Search

STRATEGIES = (
    "darts",
    "darts(order=2)",
    "pc_darts(k=2)",
    "pc_darts",
    "gdas",
    "snas",
    "drnas",
    "fair_darts",
)


DRAWS = 10


def kept_by(search: Search) -> int:
    """Return the bytes that a pass of the weights keeps, of a sample of its own."""
    strategy, state = search.strategy, search.strategy_state
    strategy.prepare(state)
    weights = {t: w.detach() for t, w in strategy.edge_weights(state).items()}
    batch = search.train_batches.batch(0)
    with search.supernet.drawn(strategy.drawn(state)):
        return kept_bytes(search.supernet, lambda: search._weight_loss(batch, weights))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rules", default="fa,usf,brsf,frsf", metavar="A,B,...")
    parser.add_argument("--space", default="darts", metavar="SPEC")
    parser.add_argument("--device", default="cpu", metavar="NAME")
    parser.add_argument("--amp", default="none", choices=["none", "bf16"])
    for name, default in {
        "channels": 16,
        "layers": 5,
        "batch-size": 16,
        "image-size": 16,
        "steps": 7,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    sizes = parser.parse_args()
    device = timing_device(sizes.device)
    data = noise(4 * sizes.batch_size, sizes.image_size)
    common: dict[str, Any] = {
        name: getattr(sizes, name) for name in ("channels", "layers", "batch_size", "space", "amp")
    }
    common |= {
        "rules": tuple(sizes.rules.split(",")),
        "epochs": 100,
        "regularizers": ("warmup(epochs=0)",),
    }
    searches = {s: Search(SearchConfig(strategy=s, **common), data, device) for s in STRATEGIES}
    seconds, now = seconds_a_step(searches, sizes.steps, device), stopwatch(device)
    found: dict[str, Any] = {}
    print(
        "| strategy | s a step (median) | relative to darts (least to most) | activations kept, MB "
        "| relative |"
    )
    print("|---|---|---|---|---|")
    for strategy, search in searches.items():
        kept = statistics.mean(kept_by(search) for _ in range(DRAWS))
        ratios = sorted(
            own / base for own, base in zip(seconds[strategy], seconds["darts"], strict=True)
        )
        found[strategy] = {
            "seconds": seconds[strategy],
            "kept_bytes": kept,
            "ratio": statistics.median(ratios),
        }
        share = kept / found["darts"]["kept_bytes"]
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(
            f"| `{strategy}` | {statistics.median(seconds[strategy]):.3f} | {spread} | "
            f"{kept / 1e6:.0f} | {share:.2f} |"
        )
    plain = searches["darts"]
    single = {
        t: w.detach().unsqueeze(0)
        for t, w in plain.strategy.edge_weights(plain.strategy_state).items()
    }
    passes = []
    for _ in range(sizes.steps):
        start = now()
        plain.individuals.measure(single, 0, 1)
        passes.append(now() - start)
    print(
        f"\none individual on one batch (eg, darts_pt): {statistics.median(passes):.3f} s, median "
        f"of {len(passes)}"
    )
    if sizes.json:
        write_timings(
            Path(sizes.json),
            device,
            {"sizes": vars(sizes), "strategies": found, "individual": passes},
        )


if __name__ == "__main__":
    run(main)
