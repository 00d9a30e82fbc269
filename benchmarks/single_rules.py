"""One learning rule for a whole network: test error of each rule, over several seeds.

    python benchmarks/single_rules.py --epochs 10                               the digits, on two CPU cores
    python benchmarks/single_rules.py --dataset cifar10 --data-dir data --train-images 5000 --epochs 20 --batch-size 64

The literature's order (Xiao 2018, arXiv 1811.03567; BioNAS, arXiv 2507.13485): bp and usf best, then brsf and frsf,
which are alike, and far behind fa. Every rule gets the same genotype, stem and classifier included, the same recipe
and the same seeds. Writes benchmarks/results/single_rules-DATASET.json.
"""

from __future__ import annotations

import json
import platform
import shlex
import statistics
import sys
import time
from pathlib import Path

from darts_bio.command_line import run_script
from darts_bio.config import RetrainConfig
from darts_bio.errors import InputError

RULES = ("bp", "usf", "brsf", "frsf", "fa")
SEEDS = 5


def main(config: RetrainConfig) -> int:
    from dataclasses import replace

    import torch

    from darts_bio.data.datasets import load_data
    from darts_bio.runtime import select_device
    from darts_bio.spaces import load_genotype
    from darts_bio.training.retrain import Retraining

    if config.out or config.resume:
        raise InputError("single_rules: expected neither --out nor --resume, since it keeps no run; leave them out")
    device = select_device(config.device)
    genotype = load_genotype(config.genotype)
    data = load_data(config.dataset, config.data_dir, config.image_size, config.train_images, config.seed)
    errors: dict[str, list[float]] = {rule: [] for rule in RULES}
    start = time.monotonic()
    for seed in range(config.seed, config.seed + SEEDS):
        for rule in RULES:
            task = Retraining.of_genotype(replace(config, seed=seed), genotype.with_rule(rule), data, device)
            for epoch in range(task.epochs):
                task.begin_epoch(epoch)
                for t in range(epoch * task.steps_per_epoch, (epoch + 1) * task.steps_per_epoch):
                    task.step(t)
            errors[rule].append(100 * (1 - task.end_epoch(task.epochs - 1)["test/accuracy"]))
            print(f"seed {seed}  {rule:5} test error {errors[rule][-1]:6.2f} %", file=sys.stderr)
    print(f"| rule | test error, % (mean +- std, n = {SEEDS}) |\n|---|---|")
    for rule, values in errors.items():
        print(f"| {rule} | {statistics.mean(values):.2f} +- {statistics.stdev(values):.2f} |")
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "config": config.identity(),
        "test_error_percent": errors,
        "seconds": round(time.monotonic() - start),
        "hardware": f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    path = Path(__file__).parent / "results" / f"single_rules-{config.dataset}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    chosen = any(argument.partition("=")[0] in ("--genotype", "--config") for argument in sys.argv)
    arguments = sys.argv[1:] if chosen else ["--genotype", "darts_v1", *sys.argv[1:]]
    sys.exit(run_script(RetrainConfig, main, (__doc__ or "").split("\n")[0], arguments))
