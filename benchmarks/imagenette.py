"""Accuracy on Imagenette under one recipe and budget: 14-cell networks of genotypes beside timm's
ResNet-18.

    python benchmarks/imagenette.py --data-dir imagenette --seeds 2 --device cpu
    python benchmarks/imagenette.py --data-dir imagenette --image-size 128 --channels 48 --epochs 100 --device cuda

Every network gets the same images, order, augmentation, optimizer, schedule and number of epochs. A
run lies in --out; one that was stopped goes on, one that is done is not made again.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, command, options, run, spread, write_timings
from torch import nn

from darts_bio.config import ImageNetConfig, TrainingConfig
from darts_bio.data.sources import Source
from darts_bio.networks import multiply_adds
from darts_bio.registry import split_specs
from darts_bio.runs.running import Watching
from darts_bio.runs.train import TrainResult, train
from darts_bio.runtime import derive_seed, select_device
from darts_bio.spaces import Genotype, load_genotype

RECIPE: dict[str, Any] = {
    "schedule": "cosine",
    "lr": 0.1,
    "batch_size": 64,
    "auxiliary": 0.0,
    "log_every": 20,
}


def resnet18(config: TrainingConfig, source: Source) -> nn.Module:
    """Build timm's ResNet-18, its weights drawn by the seed."""
    import timm

    torch.manual_seed(derive_seed("weights", config.seed))
    return timm.create_model("resnet18", num_classes=len(source.classes)).to(
        memory_format=torch.channels_last
    )


OTHERS: dict[str, Callable[[TrainingConfig, Source], nn.Module]] = {"resnet18": resnet18}
"""Networks that are no genotype's, by the name in --networks."""


def genotype_of(name: str) -> Genotype | None:
    """Read a genotype, its rule after a colon if it is to be another (darts_v2:fa); None for a
    network of OTHERS.
    """
    if name in OTHERS:
        return None
    name, _, rule = name.partition(":")
    genotype = load_genotype(name)
    return genotype.with_rule(rule) if rule else genotype


def trained(config: ImageNetConfig, device: torch.device) -> dict[str, Any]:
    """Train, or go on, and return the result; exit if the run is stopped."""
    name = config.genotype
    watching = Watching(sys.stderr, tensorboard=True)
    result = train(
        config, command(), genotype_of(name), watching=watching, network=OTHERS.get(name)
    )
    assert isinstance(result, TrainResult)
    if not result.finished:
        print("stopped; the same command goes on", file=sys.stderr)
        sys.exit(result.exit_code)
    last, network = result.epochs[-1], result.network
    shape = (1, 3, config.image_size, config.image_size)
    return {
        "network": name,
        "seed": config.seed,
        "test_accuracy_percent": 100 * result.accuracy,
        "train_loss": last["train/loss"],
        "parameters": result.parameters,
        "multiply_adds": multiply_adds(network, lambda: network(torch.zeros(shape, device=device))),
        "seconds": last["seconds"],
    }


def main() -> None:
    parser = options(__doc__, "auto", image_size=64, channels=24, epochs=6, seeds=2, workers=1)
    parser.add_argument(
        "--data-dir", default="imagenette", metavar="DIR", help="with the folders train and val"
    )
    parser.add_argument(
        "--networks", default="bionas_darts,bionas_darts:bp,resnet18", metavar="A,B,..."
    )
    parser.add_argument("--out", default="runs/imagenette", metavar="DIR", help="the runs' folder")
    arguments = parser.parse_args()
    device = select_device(arguments.device)
    path = Path(arguments.json) if arguments.json else RESULTS / f"imagenette-{device.type}.json"
    sizes = {
        name: getattr(arguments, name) for name in ("image_size", "channels", "epochs", "workers")
    }
    runs = []
    for seed in range(arguments.seeds):
        for name in split_specs(arguments.networks):
            out = Path(arguments.out) / f"{name.replace(':', '-')}-{seed}"
            config = ImageNetConfig(
                genotype=name,
                data_dir=arguments.data_dir,
                seed=seed,
                device=arguments.device,
                out=str(out),
                resume="auto",
                **RECIPE,
                **sizes,
            )
            runs.append(trained(config, device))
            write_timings(
                path, device, {"clock": "wall", "recipe": RECIPE, "sizes": sizes, "runs": runs}
            )
    print(
        "| network | parameters | multiply-adds | test accuracy, % | n | s a run "
        "|\n|---|---|---|---|---|---|"
    )
    for name in split_specs(arguments.networks):
        own = [found for found in runs if found["network"] == name]
        accuracies = [found["test_accuracy_percent"] for found in own]
        print(
            f"| {name} | {own[0]['parameters']:,} | {own[0]['multiply_adds'] / 1e6:.1f} M | "
            f"{spread(accuracies)} | {len(own)} | "
            f"{statistics.mean(found['seconds'] for found in own):.0f} |"
        )


if __name__ == "__main__":
    run(main)
