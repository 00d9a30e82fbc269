"""Accuracy on Imagenette under one recipe and budget: 14-cell networks of genotypes beside timm's ResNet-18.

    python benchmarks/imagenette.py --data-dir imagenette --seeds 2 --device cpu
    python benchmarks/imagenette.py --data-dir imagenette --image-size 128 --channels 48 --epochs 100 --device cuda

Every network gets the same images, order, augmentation, optimiser, schedule and number of epochs. A run lies in --out;
one that was stopped goes on, one that is done is not made again.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, options, run, write_timings
from torch import nn

from darts_bio.config import CONFIG_FILE, ImageNetConfig
from darts_bio.data.sources import Source, open_source
from darts_bio.monitoring.report import TrainingMonitor
from darts_bio.networks import multiply_adds, parameters
from darts_bio.registry import split_specs
from darts_bio.runtime import derive_seed, select_device, stop_on_signals
from darts_bio.spaces import load_genotype
from darts_bio.training.engine import fit
from darts_bio.training.retrain import Retraining, new_network
from darts_bio.training.run_folder import RunFolder

RECIPE: dict[str, Any] = {"schedule": "cosine", "lr": 0.1, "batch_size": 64, "auxiliary": 0.0, "log_every": 20}


def build(config: ImageNetConfig, source: Source) -> nn.Module:
    """A genotype's network, its rule after a colon if it is to be another (darts_v2:fa), or a model of timm's."""
    name, _, rule = config.genotype.partition(":")
    if name == "resnet18":
        import timm

        torch.manual_seed(derive_seed("weights", config.seed))
        return timm.create_model(name, num_classes=len(source.classes)).to(memory_format=torch.channels_last)
    genotype = load_genotype(name)
    return new_network(config, genotype.with_rule(rule) if rule else genotype, source)


def train(config: ImageNetConfig, device: torch.device) -> dict[str, Any] | None:
    """The result of a run; None if it was stopped."""
    source = open_source(config, device)
    network = build(config, source)
    training = Retraining(config, network, source, device)
    folder = RunFolder.open("train", config, ["python", *sys.argv])
    with stop_on_signals() as stop, TrainingMonitor(training, folder) as monitor:
        outcome = fit(training, folder, monitor, stop, log_every=config.log_every)
        monitor.write_report(outcome.step)
        seconds = monitor.records_up_to(outcome.step)[-1]["seconds"]
    source.close()
    if not outcome.finished:
        return None
    shape = (1, 3, config.image_size, config.image_size)
    return {
        "network": config.genotype,
        "seed": config.seed,
        "test_accuracy_percent": 100 * outcome.numbers["test/accuracy"],
        "train_loss": outcome.numbers["train/loss"],
        "parameters": parameters(network),
        "multiply_adds": multiply_adds(network, lambda: network(torch.zeros(shape, device=device))),
        "seconds": seconds,
    }


def main() -> None:
    parser = options(__doc__, "auto", image_size=64, channels=24, epochs=6, seeds=2, workers=1)
    parser.add_argument("--data-dir", default="imagenette", metavar="DIR", help="with the folders train and val")
    parser.add_argument("--networks", default="bionas_darts,bionas_darts:bp,resnet18", metavar="A,B,...")
    parser.add_argument("--out", default="runs/imagenette", metavar="DIR", help="the runs' folder")
    arguments = parser.parse_args()
    device = select_device(arguments.device)
    path = Path(arguments.json) if arguments.json else RESULTS / f"imagenette-{device.type}.json"
    sizes = {name: getattr(arguments, name) for name in ("image_size", "channels", "epochs", "workers")}
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
                resume=(out / CONFIG_FILE).exists(),
                **RECIPE,
                **sizes,
            )
            found = train(config, device)
            if found is None:
                sys.exit("stopped; the same command goes on")
            runs.append(found)
            write_timings(path, device, {"clock": "wall", "recipe": RECIPE, "sizes": sizes, "runs": runs})
    print("| network | parameters | multiply-adds | test accuracy, % | n | s a run |\n|---|---|---|---|---|---|")
    for name in split_specs(arguments.networks):
        own = [found for found in runs if found["network"] == name]
        accuracies = [found["test_accuracy_percent"] for found in own]
        spread = f" +- {statistics.stdev(accuracies):.2f}" if len(own) > 1 else ""
        print(
            f"| {name} | {own[0]['parameters']:,} | {own[0]['multiply_adds'] / 1e6:.1f} M | "
            f"{statistics.mean(accuracies):.2f}{spread} | {len(own)} | "
            f"{statistics.mean(found['seconds'] for found in own):.0f} |"
        )


if __name__ == "__main__":
    run(main)
