"""What robustness measured through a rule's own backward is worth: one small network, a rule at a time.

    python benchmarks/masking.py --data-dir data --device cpu
    python benchmarks/masking.py --data-dir data --device cpu --networks bp-1,bp-4 --out runs/controls
    python benchmarks/masking.py --data-dir data --channels 32 --epochs 30 --train-images 50000 --images 1000   a GPU

Trains the same small residual network under each rule, and under a mixture of them, with the same recipe and seeds;
then attacks all by evaluate/robustness.py, with the exact gradient and with the rule's. bp-4 is bp for 4 epochs: a
control that has fitted less. Runs lie in --out; those that are done are not made again.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from measuring import RESULTS, options, run

from darts_bio.config import CONFIG_FILE, RetrainConfig, RobustnessConfig
from darts_bio.registry import split_specs
from darts_bio.runs import measure_robustness, train
from darts_bio.runtime import select_device
from darts_bio.spaces import load_genotype

CELL = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
"""A residual block of two convolutions, in NAS-Bench-201's form."""
MIXED = "|nor_conv_3x3:usf~0|+|none~0|nor_conv_3x3:frsf~1|+|skip_connect~0|none~1|skip_connect~2|"
"""Two rules in each cell, and bp in stem, reductions and classifier, as searches leave them."""
RULES = ("bp", "fa", "usf", "frsf", "brsf", "mixed", "dfa")
RECIPE: dict[str, Any] = {
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
    parser = options(__doc__, "auto", channels=16, epochs=10, train_images=20000, seeds=2)
    parser.add_argument("--images", type=int, default=300, metavar="N", help="test images that are attacked")
    parser.add_argument("--dataset", default="cifar10", metavar="NAME")
    parser.add_argument("--data-dir", default="data", metavar="DIR")
    parser.add_argument("--networks", default=",".join(RULES), metavar="A,B,...")
    parser.add_argument("--out", default="runs/masking", metavar="DIR", help="the runs' folder")
    arguments = parser.parse_args()
    sizes = {name: getattr(arguments, name) for name in ("channels", "epochs", "train_images", "seeds")}
    networks = split_specs(arguments.networks)

    def where(folder: Path) -> dict[str, Any]:
        """Of a run in that folder, new or to be gone on with."""
        begun = (folder / CONFIG_FILE).exists()
        return {"data_dir": arguments.data_dir, "device": arguments.device, "out": str(folder), "resume": begun}

    for name in networks:
        rule, _, epochs = name.partition("-")
        genotype = load_genotype(MIXED) if rule == "mixed" else load_genotype(CELL).with_rule(rule)
        folder, file = Path(arguments.out, name), Path(arguments.out, f"{name}.json")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(genotype.to_json(), encoding="utf-8")
        own = {"epochs": int(epochs), "warmup": min(1, int(epochs) - 1)} if epochs else {}
        config = RetrainConfig(
            genotype=str(file),
            dataset=arguments.dataset,
            **RECIPE | sizes | own | where(folder),
        )
        if code := train(config):
            sys.exit(code)
    folder = Path(arguments.out, "robustness")
    attacks = RobustnessConfig(
        checkpoint=tuple(str(Path(arguments.out, name)) for name in networks),
        images=arguments.images,
        **ATTACKS | where(folder),
    )
    if code := measure_robustness(attacks):
        sys.exit(code)
    results = RESULTS / f"{Path(arguments.out).name}-{arguments.dataset}-{select_device(arguments.device).type}"
    results.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copy(folder / name, results / name)
    print(f"wrote {results}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
