"""ResNet-20 on CIFAR-10 under one learning rule each: test error of every rule, over several seeds.

    python benchmarks/resnet20.py --data-dir data --shrink --epochs 10 --processes 2
    python benchmarks/resnet20.py --data-dir data --epochs 200 --seeds 3 --device cuda

The network of He 2016 (arXiv 1512.03385, section 4.2; projections as shortcuts), converted whole by
`convert`. Every rule gets the same recipe and the same seeds; a local rule gets the readout trained
by its exact gradient, since it sees no labels. With --shrink the images are shrunk to 16x16 pixels, a
quarter of the work, so that a CPU has time for many updates. The literature (BioTorch's table, 200
epochs, test error in %): bp 8.63, usf 10.05, brsf 11.02, frsf 11.2, fa 32.16, dfa 45.94. A run that
is done is kept in --json and not made again; its seconds include the measurement on the test images
after each epoch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from assignments import images
from measuring import RESULTS, command, run, spread, write_timings
from torch import Tensor, nn

from darts_bio.config import RetrainConfig, TrainingConfig
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.data.given import GIVEN
from darts_bio.data.sources import Source
from darts_bio.registry import split_specs
from darts_bio.rules import RULES, convert
from darts_bio.runs.train import TrainResult, train
from darts_bio.runtime import derive_seed, select_device

PUBLISHED = {"bp": 8.63, "usf": 10.05, "brsf": 11.02, "frsf": 11.2, "fa": 32.16, "dfa": 45.94}


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, c_in, H, W) to (N, c_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = (
            nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        same = c_in == c_out and stride == 1
        projection = (
            [] if same else [nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)]
        )
        self.shortcut = nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


class ResNet20(nn.Sequential):
    """Images (N, 3, 32, 32) to logits (N, num_classes), computed with the maps' channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous(memory_format=torch.channels_last))


def resnet20(num_classes: int = 10) -> ResNet20:
    """Build the network, its layers by names that patterns of `convert` match."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    c_in = 16
    for c_out, stride in ((16, 1), (32, 2), (64, 2)):
        for i in range(3):
            layers.append(Block(c_in, c_out, stride if i == 0 else 1))
            c_in = c_out
    names = ["stem", "norm", "relu", *(f"block{i}" for i in range(9)), "pool", "flatten", "fc"]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)]
    model = ResNet20()
    for name, layer in zip(names, layers, strict=True):
        model.add_module(name, layer)
    return model


def image_data(arguments: argparse.Namespace) -> ImageData:
    """Load the images that the options ask for, with all test images."""
    if arguments.shrink:
        return images(arguments.dataset, arguments.data_dir, arguments.train_images, 10_000)
    return load_data(arguments.dataset, arguments.data_dir, None, arguments.train_images, 0)


def trained(rule: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train once; return the last epoch's test error in %, and the mean training loss in that
    epoch.
    """
    started = time.process_time()
    data = image_data(arguments)
    patterns = {"fc": "bp", "*": rule} if RULES.build(rule).local else {"*": rule}

    def network(config: TrainingConfig, source: Source) -> nn.Module:
        torch.manual_seed(derive_seed("weights", config.seed))
        converted = convert(resnet20(len(source.classes)), patterns, seed=config.seed)
        return converted.to(memory_format=torch.channels_last)

    with tempfile.TemporaryDirectory() as place:
        config = RetrainConfig(
            genotype="resnet20",
            dataset=GIVEN,
            lr=0.1,
            weight_decay=5e-4,
            epochs=arguments.epochs,
            batch_size=128,
            clip=0.0,
            crop_padding=2 if arguments.shrink else 4,
            cutout=0,
            auxiliary=0.0,
            amp=arguments.amp,
            seed=seed,
            device=arguments.device,
            out=place,
        )
        result = train(config, command(), data=data, network=network)
    assert isinstance(result, TrainResult)
    if not result.finished:
        sys.exit(result.exit_code)
    last = result.epochs[-1]
    return {
        "rule": rule,
        "seed": seed,
        "test_error_percent": 100 * (1 - result.accuracy),
        "train_loss": last["train/loss"],
        "seconds": round(last["seconds"]),
        "cpu_seconds": round(time.process_time() - started),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset", default="cifar10", metavar="NAME")
    parser.add_argument("--data-dir", metavar="DIR", help="default: data")
    parser.add_argument(
        "--train-images", type=int, metavar="N", help="train on this many images only"
    )
    parser.add_argument(
        "--shrink", action="store_true", help="shrink images of 32x32 pixels to 16x16, on a CPU"
    )
    parser.add_argument("--rules", default=",".join(RULES), metavar="A,B,...")
    parser.add_argument("--epochs", type=int, default=10, metavar="N")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many, from 0")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="how many runs at a time"
    )
    parser.add_argument("--device", default="auto", metavar="NAME")
    parser.add_argument("--amp", default="none", choices=("none", "bf16"))
    parser.add_argument(
        "--json", metavar="FILE", help="where the numbers go (default: benchmarks/results)"
    )
    arguments = parser.parse_args()
    device = select_device(arguments.device)
    of_what = arguments.dataset + ("-16px" if arguments.shrink else "")
    path = (
        Path(arguments.json)
        if arguments.json
        else RESULTS / f"resnet20-{of_what}-{device.type}.json"
    )
    sizes = {key: getattr(arguments, key) for key in ("dataset", "train_images", "epochs", "amp")}
    if arguments.shrink:
        sizes["pixels"] = 16
    runs: list[dict[str, Any]] = []
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        runs = before["runs"] if before["sizes"] == sizes else []
    rules = split_specs(arguments.rules)
    made = {(done["rule"], done["seed"]) for done in runs}
    wanted = [(rule, seed) for seed in range(arguments.seeds) for rule in rules]
    with ProcessPoolExecutor(arguments.processes) as pool:
        begun = [pool.submit(trained, *one, arguments) for one in wanted if one not in made]
        for ended in as_completed(begun):
            runs.append(ended.result())
            print(runs[-1], file=sys.stderr)
            write_timings(path, device, {"sizes": sizes, "runs": runs})
    print("| rule | test error, % (mean +- std) | n | published, 200 epochs |\n|---|---|---|---|")
    for rule in rules:
        errors = [done["test_error_percent"] for done in runs if done["rule"] == rule]
        print(f"| {rule} | {spread(errors)} | {len(errors)} | {PUBLISHED.get(rule, '')} |")


if __name__ == "__main__":
    run(main)
