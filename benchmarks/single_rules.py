"""One learning rule for a whole network: test error of each rule, over several seeds.

    python benchmarks/single_rules.py --epochs 10                               the digits, on two CPU cores
    python benchmarks/single_rules.py --dataset cifar10 --data-dir data --train-images 5000 --epochs 20 --batch-size 64

The literature's order (Xiao 2018, arXiv 1811.03567; BioNAS, arXiv 2507.13485): bp and usf best,
then brsf and frsf, which are alike, and far behind fa. Every rule gets the same genotype, stem and
classifier included, the same recipe (what is not given is that of the data set) and the same seeds.
Writes benchmarks/results/single_rules-DATASET.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import RESULTS, run, spread, write_timings

import darts_bio
from darts_bio.config import RetrainConfig
from darts_bio.config.protocols import values_of
from darts_bio.data.datasets import load_data
from darts_bio.runtime import select_device

RULES = ("bp", "usf", "brsf", "frsf", "fa")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], argument_default=argparse.SUPPRESS
    )
    parser.add_argument("--genotype", default="darts_v1", metavar="X")
    parser.add_argument("--dataset", default="digits", metavar="NAME")
    parser.add_argument("--data-dir", default=None, metavar="DIR")
    parser.add_argument(
        "--train-images", type=int, default=None, metavar="N", help="train on this many images only"
    )
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="how many, from 0")
    parser.add_argument("--device", default="auto", metavar="NAME")
    parser.add_argument(
        "--json", default=None, metavar="FILE", help="where the numbers go (default: in results)"
    )
    for size in ("epochs", "batch-size", "channels", "layers"):
        parser.add_argument(
            f"--{size}", type=int, metavar="N", help="default: that of the data set's protocol"
        )
    recipe: dict[str, Any] = vars(parser.parse_args())
    name, dataset = recipe.pop("genotype"), recipe.pop("dataset")
    genotype = darts_bio.load_genotype(name)
    data = load_data(dataset, recipe.pop("data_dir"), train_images=recipe.pop("train_images"))
    seeds, path = range(recipe.pop("seeds")), recipe.pop("json")
    # Images that are handed over have no protocol of their own.
    recipe["protocol"] = dataset if dataset in values_of(RetrainConfig.command) else "darts"
    errors: dict[str, list[float]] = {rule: [] for rule in RULES}
    options: dict[str, Any] = {}
    start = time.monotonic()
    for seed in seeds:
        for rule in RULES:
            with tempfile.TemporaryDirectory() as place:
                result = darts_bio.train(
                    genotype.with_rule(rule),
                    data,
                    seed=seed,
                    out=place,
                    progress=False,
                    tensorboard=False,
                    **recipe,
                )
                options = darts_bio.load_run(place).options
            if not result.finished:
                sys.exit(result.exit_code)
            errors[rule].append(100 * (1 - result.accuracy))
            print(f"seed {seed}  {rule:5} test error {errors[rule][-1]:6.2f} %", file=sys.stderr)
    print(f"| rule | test error, % (mean +- std, n = {len(seeds)}) |\n|---|---|")
    for rule, values in errors.items():
        print(f"| {rule} | {spread(values)} |")
    numbers = {
        "clock": "wall",
        "config": {
            key: value for key, value in options.items() if key not in ("seed", "seeds", "device")
        }
        | {"genotype": name, "dataset": dataset, "train_images": len(data.train)},
        "test_error_percent": errors,
        "seconds": round(time.monotonic() - start),
    }
    write_timings(
        Path(path) if path else RESULTS / f"single_rules-{dataset}.json",
        select_device(recipe["device"]),
        numbers,
    )


if __name__ == "__main__":
    run(main)
