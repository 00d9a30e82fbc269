"""What a learning rule costs: the time of a training step under each rule, relative to
backpropagation.

    python benchmarks/training_step.py                                            C=16, 8 cells, 16 images of 32x32
    python benchmarks/training_step.py --channels 36 --layers 20 --batch-size 96 --device cuda

One network a rule, the same genotype and weights, in one process; the rules take turns at every
step, in an order that turns too, so that what else the machine does meets all alike. Prints medians
and their ratios to bp, and writes benchmarks/results/training_step-DEVICE.json, or what --json
names.
"""

from __future__ import annotations

import statistics
from pathlib import Path

import torch
from measuring import RESULTS, options, run, stopwatch, timing_device, write_timings

from darts_bio.config import RetrainConfig
from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData
from darts_bio.rules import RULES as REGISTERED
from darts_bio.spaces import load_genotype
from darts_bio.training.retrain import Retraining

RULES = tuple(REGISTERED)


def random_images(n: int, side: int) -> ImageData:
    """Noise: the time of a step does not depend on what the images show."""
    source = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=source)
    split = Split(images, torch.randint(0, 10, (n,), generator=source))
    return ImageData(split, split, tuple(map(str, range(10))))


def main() -> None:
    parser = options(__doc__, "cpu", channels=16, layers=8, batch_size=16, image_size=32, steps=15)
    parser.add_argument("--genotype", default="darts_v1", metavar="X")
    arguments = parser.parse_args()
    device = timing_device(arguments.device)
    config = RetrainConfig(
        genotype=arguments.genotype,
        channels=arguments.channels,
        layers=arguments.layers,
        batch_size=arguments.batch_size,
        auxiliary=0.0,
        cutout=0,
    )
    data = random_images(4 * arguments.batch_size, arguments.image_size)
    genotype = load_genotype(arguments.genotype)
    tasks = {
        rule: Retraining.of_genotype(config, genotype.with_rule(rule), data, device)
        for rule in RULES
    }
    for task in tasks.values():
        task.begin_epoch(0)
    now = stopwatch(device)
    seconds: dict[str, list[float]] = {rule: [] for rule in RULES}
    for t in range(arguments.steps + 2):
        for rule in RULES[t % len(RULES) :] + RULES[: t % len(RULES)]:
            start = now()
            tasks[rule].step(t)
            if t >= 2:  # the first steps allocate
                seconds[rule].append(now() - start)
    ratios = {
        rule: [own / bp for own, bp in zip(seconds[rule], seconds["bp"], strict=True)]
        for rule in RULES
        if rule != "bp"
    }
    print(
        f"| rule | seconds a step (median of {arguments.steps}) | ratio to bp: median (quartiles) "
        "|\n|---|---|---|"
    )
    for rule in RULES:
        spread = ""
        if rule in ratios:
            own = ratios[rule]
            low, middle, high = statistics.quantiles(own, n=4) if len(own) > 1 else 3 * own
            spread = f"{middle:.3f} ({low:.3f} to {high:.3f})"
        print(f"| {rule} | {statistics.median(seconds[rule]):.3f} | {spread} |")
    numbers = {
        "sizes": {
            key: value for key, value in vars(arguments).items() if key not in ("device", "json")
        },
        "seconds": seconds,
        "median_ratio_to_bp": {rule: statistics.median(values) for rule, values in ratios.items()},
    }
    path = Path(arguments.json) if arguments.json else RESULTS / f"training_step-{device.type}.json"
    write_timings(path, device, numbers)


if __name__ == "__main__":
    run(main)
