"""ResNet-20 on CIFAR-10 under one learning rule each: test error of every rule, over several seeds.

    python benchmarks/resnet20.py --data-dir data --train-images 10000 --epochs 10
    python benchmarks/resnet20.py --data-dir data --epochs 200 --seeds 3 --device cuda

The network of He 2016 (arXiv 1512.03385, section 4.2; projections as shortcuts), converted whole by `convert`. Every
rule gets the same recipe and the same seeds; a local rule gets the readout trained by its exact gradient, since it sees
no labels. The literature (BioTorch's table, 200 epochs, test error in %): bp 8.63, usf 10.05, brsf 11.02, frsf 11.2,
fa 32.16, dfa 45.94. A run that is done is kept in --json and not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import RESULTS, run, write_timings
from torch import Tensor, nn

from darts_bio.config import RetrainConfig
from darts_bio.data.batches import Augmentation, Batches, Normalisation, in_order
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.registry import split_specs
from darts_bio.rules import RULES, convert, draw_feedback
from darts_bio.runtime import autocast, derive_seed, select_device
from darts_bio.training.engine import evaluate
from darts_bio.training.optim import WeightOptimizer

PUBLISHED = {"bp": 8.63, "usf": 10.05, "brsf": 11.02, "frsf": 11.2, "fa": 32.16, "dfa": 45.94}


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, c_in, H, W) to (N, c_out, H/stride, W/stride)."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        same = c_in == c_out and stride == 1
        projection = [] if same else [nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)]
        self.shortcut = nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


def resnet20(num_classes: int = 10) -> nn.Sequential:
    """Images (N, 3, 32, 32) to logits (N, num_classes)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    c_in = 16
    for c_out, stride in ((16, 1), (32, 2), (64, 2)):
        for i in range(3):
            layers.append(Block(c_in, c_out, stride if i == 0 else 1))
            c_in = c_out
    names = ["stem", "norm", "relu", *(f"block{i}" for i in range(9)), "pool", "flatten", "fc"]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)]
    model = nn.Sequential()
    for name, layer in zip(names, layers, strict=True):
        model.add_module(name, layer)
    return model


def train(rule: str, seed: int, data: ImageData, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Trains once; the result is the last epoch's test error in %, and the training loss of that epoch."""
    config = RetrainConfig(
        genotype="resnet20", lr=0.1, weight_decay=5e-4, epochs=arguments.epochs, batch_size=128, clip=0.0
    )
    torch.manual_seed(derive_seed("weights", seed))
    patterns = {"fc": "bp", "*": rule} if RULES.build(rule).local else {"*": rule}
    model = convert(resnet20(len(data.classes)), patterns, seed=seed)
    model.to(device, memory_format=torch.channels_last)
    optimizer = WeightOptimizer(model, config)
    normalisation = Normalisation.of(data.train.images)
    batches = Batches(data.train, 128, normalisation, Augmentation(4, True, 0), seed=seed, name="train", device=device)
    start = time.monotonic()
    for epoch in range(arguments.epochs):
        optimizer.begin_epoch(epoch)
        losses = []
        for t in range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch):
            x, labels = batches.batch(t)
            with autocast(device, arguments.amp):
                logits = model(x.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.step(loss)
            draw_feedback(model, seed, t + 1)
            losses.append(loss.detach())
    test = evaluate(model, in_order(data.test.to(device), 500, normalisation.to(device)), prefix="test")
    return {
        "rule": rule,
        "seed": seed,
        "test_error_percent": 100 * (1 - test["test/accuracy"]),
        "train_loss": torch.stack(losses).mean().item(),
        "seconds": round(time.monotonic() - start),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dataset", default="cifar10", metavar="NAME")
    parser.add_argument("--data-dir", default="data", metavar="DIR")
    parser.add_argument("--train-images", type=int, metavar="N", help="train on this many images only")
    parser.add_argument("--rules", default=",".join(RULES), metavar="A,B,...")
    parser.add_argument("--epochs", type=int, default=10, metavar="N")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many, from 0")
    parser.add_argument("--device", default="auto", metavar="NAME")
    parser.add_argument("--amp", default="none", choices=("none", "bf16"))
    parser.add_argument("--json", metavar="FILE", help="where the numbers go (default: benchmarks/results)")
    arguments = parser.parse_args()
    device = select_device(arguments.device)
    path = Path(arguments.json) if arguments.json else RESULTS / f"resnet20-{arguments.dataset}-{device.type}.json"
    sizes = {key: getattr(arguments, key) for key in ("dataset", "train_images", "epochs", "amp")}
    runs: list[dict[str, Any]] = []
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        runs = before["runs"] if before["sizes"] == sizes else []
    data = load_data(arguments.dataset, arguments.data_dir, None, arguments.train_images, 0)
    rules = split_specs(arguments.rules)
    for seed in range(arguments.seeds):
        for rule in rules:
            if any(done["rule"] == rule and done["seed"] == seed for done in runs):
                continue
            runs.append(train(rule, seed, data, arguments, device))
            print(f"seed {seed}  {rule:14} {runs[-1]}", file=sys.stderr)
            write_timings(path, device, {"sizes": sizes, "runs": runs})
    print("| rule | test error, % (mean +- std) | n | published, 200 epochs |\n|---|---|---|---|")
    for rule in rules:
        errors = [done["test_error_percent"] for done in runs if done["rule"] == rule]
        spread = f" +- {statistics.stdev(errors):.2f}" if len(errors) > 1 else ""
        print(f"| {rule} | {statistics.mean(errors):.2f}{spread} | {len(errors)} | {PUBLISHED.get(rule, '')} |")


if __name__ == "__main__":
    run(main)
