"""What robustness measured through a rule's own backward is worth: one small network, a rule at a
time.

    python benchmarks/masking.py --data-dir data --device cpu
    python benchmarks/masking.py --data-dir data --device cpu --networks bp-1,bp-4 --out runs/controls
    python benchmarks/masking.py --data-dir data --channels 32 --epochs 30 --train-images 50000 --images 1000   a GPU

Trains the same small residual network under each rule, and under a mixture of them, with the same
recipe and seeds; then attacks all by `darts_bio.attack`, with the exact gradient and with the
rule's. bp-4 is bp for 4 epochs: a control that has fitted less. Runs lie in --out; those that are
done are not made again.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from measuring import RESULTS, run

import darts_bio
from darts_bio.registry import split_specs
from darts_bio.runtime import select_device

CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
"""A residual block of two convolutions, in NAS-Bench-201's form."""
MIXED = "|nor_conv_3x3:usf~0|+|none~0|nor_conv_3x3:frsf~1|+|skip_connect~0|none~1|skip_connect~2|"
"""Two rules in each cell, and bp in stem, reductions and classifier, as searches leave them."""
RULES = ("bp", "fa", "usf", "frsf", "brsf", "mixed", "dfa")
RECIPE: dict[str, Any] = {
    "protocol": "darts",
    "layers": 3,
    "batch_size": 128,
    "optimizer": "nesterov",
    "lr": 0.05,
    "warmup": 1,
    "weight_decay": 5e-4,
    "cutout": 0,
    "auxiliary": 0.0,
    "drop_path": 0.0,
}
ATTACKS: dict[str, Any] = {
    "attacks": ("fgsm", "pgd", "apgd_ce(steps=20)", "apgd_dlr(steps=20)", "square(queries=300)"),
    "eps": (1.0, 2.0, 4.0, 8.0),
    "gradients": ("true", "rule"),
    "draws": 4,
    "transfer": "pgd",
    "corruptions": ("all",),
}
KEPT = ("report.md", "results.json", "accuracy.svg", "examples.svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="auto", metavar="NAME")
    for name, default in {"channels": 16, "epochs": 10, "train-images": 20000, "seeds": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument(
        "--images", type=int, default=300, metavar="N", help="test images that are attacked"
    )
    parser.add_argument("--dataset", default="cifar10", metavar="NAME")
    parser.add_argument("--data-dir", metavar="DIR", help="default: data")
    parser.add_argument("--networks", default=",".join(RULES), metavar="A,B,...")
    parser.add_argument("--out", default="runs/masking", metavar="DIR", help="the runs' folder")
    parser.add_argument(
        "--results", metavar="DIR", help="where the report goes (default: benchmarks/results)"
    )
    arguments = parser.parse_args()
    sizes = {
        name: getattr(arguments, name) for name in ("channels", "epochs", "train_images", "seeds")
    }
    networks = split_specs(arguments.networks)

    common = {"data_dir": arguments.data_dir, "device": arguments.device, "resume": "auto"}
    trained = []
    for name in networks:
        rule, _, epochs = name.partition("-")
        genotype = (
            darts_bio.load_genotype(MIXED)
            if rule == "mixed"
            else darts_bio.load_genotype(CELL).with_rule(rule)
        )
        own = {"epochs": int(epochs), "warmup": min(1, int(epochs) - 1)} if epochs else {}
        options = RECIPE | sizes | own | common
        trained.append(
            darts_bio.train(
                genotype, arguments.dataset, out=str(Path(arguments.out, name)), **options
            )
        )
        if not trained[-1].finished:
            sys.exit(trained[-1].exit_code)
    attacked = darts_bio.attack(
        trained,
        images=arguments.images,
        out=str(Path(arguments.out, "robustness")),
        **ATTACKS | common,
    )
    if not attacked.finished:
        sys.exit(attacked.exit_code)
    name = f"{Path(arguments.out).name}-{arguments.dataset}-{select_device(arguments.device).type}"
    results = Path(arguments.results) if arguments.results else RESULTS / name
    results.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copy(attacked.folder / name, results / name)
    print(f"wrote {results}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
