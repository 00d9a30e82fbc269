"""Probe what soft Hebbian layers learn: their features on CIFAR-10, beside random ones.

    python benchmarks/hebbian_probe.py --data-dir data
    python benchmarks/hebbian_probe.py --data-dir data --weights pretraining,random,hebbian
    python benchmarks/hebbian_probe.py --data-dir data --blocks 2 --seeds 3

A block is `hebbian_block`: 96 channels of 5x5 (the published first block), and with --blocks 2 so
many of 3x3 upon it. It sees the images once, without labels, by `hebbian_pretraining` at its
defaults. `random` are the same blocks with weights that stay as PyTorch draws them; `hebbian` is the
rule at its default options in a convolution of the same shape, once through the images by SGD in
batches of 64 at a rate of 0.05, as layers learn that learn by an error.

The probe is ridge regression on one-hot labels. Its features are the mean over each sixteenth of
the map behind the activation (ReLU, or the triangle of the published block), without and with the
block's own pooling before, standardized; its strength is the one of STRENGTHS that errs least on a
fifth of the training images, held out. A run that is done is kept in --json and not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import RESULTS, run, spread, timing_device, write_timings
from torch import Tensor, nn

from darts_bio.data.batches import Split
from darts_bio.data.datasets import load_data
from darts_bio.errors import InputError, unknown_name
from darts_bio.modes import in_mode
from darts_bio.rules import RULES, RuleConv2d
from darts_bio.runtime import derive_seed, generator
from darts_bio.training.hebbian import Triangle, hebbian_block, hebbian_pretraining

STRENGTHS = (3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
RATES = (0.08, 0.005)
"""The published ones of the first two blocks."""


def pixels(split: Split) -> Tensor:
    """Images (N, 3, 32, 32) of values 0 to 1."""
    return split.images.float() / 255


def blocks(count: int, second: int) -> nn.Sequential:
    built = [hebbian_block(3, 96, 5, power=0.7)]
    if count == 2:
        built.append(hebbian_block(96, second, 3, temperature=0.65, power=1.4))
    return nn.Sequential(*built)


def learned(model: nn.Sequential, rule: str, images: Tensor, seed: int) -> None:
    """Teach the blocks on the images, in place; batch norms follow them in any case."""
    count = len(model)
    if rule == "pretraining":
        found = hebbian_pretraining(model, images, lr=RATES[:count], seed=seed)
        print(f"seed {seed}  mean norms {found}", file=sys.stderr)
        return
    order = torch.randperm(len(images), generator=generator("cpu", "order", seed))
    parts = [images[part] for part in order.split(64)]
    if rule == "random":
        with torch.no_grad():
            for x in parts:  # for the batch norms
                model[-1].get_submodule("norm")(model[:-1](x))
        return
    (block,) = model
    front = block[:2]  # batch norm and convolution
    assert isinstance(front[1], RuleConv2d)
    front[1].carry(RULES.build("hebbian"))
    optimizer = torch.optim.SGD(front.parameters(), 0.05)
    for x in parts:
        optimizer.zero_grad()
        front(x).sum().backward()
        optimizer.step()


@torch.no_grad()
def features(model: nn.Sequential, images: Tensor) -> dict[str, Tensor]:
    """Return (N, 4 channels) by the activation and the pooling of the last block."""
    last = model[-1]
    found: dict[str, list[Tensor]] = {}
    with in_mode(model, training=False):
        for x in images.split(100):
            for block in model[:-1]:
                x = block(x)
            x = x.contiguous(memory_format=torch.channels_last)
            u = last.get_submodule("convolution")(last.get_submodule("norm")(x))
            triangle = last.get_submodule("activation")
            assert isinstance(triangle, Triangle)
            for name, maps in (("relu", u.relu()), ("triangle", triangle(u))):
                pooled = last.get_submodule("pool")(maps)
                for kind, probed in ((name, maps), (f"{name}, pooled", pooled)):
                    means = F.adaptive_avg_pool2d(probed, 2).flatten(1)
                    found.setdefault(kind, []).append(means)
    return {name: torch.cat(parts) for name, parts in found.items()}


def ridge(x: Tensor, y: Tensor, strengths: tuple[float, ...]) -> list[Tensor]:
    """Return the regressions (features, classes) of y on x, for penalties of N times a strength."""
    gram, cross = x.T @ x, x.T @ y
    unit = torch.eye(len(gram), dtype=x.dtype)
    return [torch.linalg.solve(gram + s * len(x) * unit, cross) for s in strengths]


def accuracy(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Accuracy of the probe on the test images, in %."""
    mean, std = train.mean(0), train.std(0).clamp_min(1e-6)
    x, z = ((train - mean) / std).double(), ((test - mean) / std).double()
    y = F.one_hot(labels, 10).double() - 0.1
    rest = len(x) * 4 // 5

    def right(weights: Tensor, inputs: Tensor, truth: Tensor) -> float:
        return 100 * ((inputs @ weights).argmax(1) == truth).double().mean().item()

    tried = ridge(x[:rest], y[:rest], STRENGTHS)
    held_out = [right(weights, x[rest:], labels[rest:]) for weights in tried]
    best = STRENGTHS[held_out.index(max(held_out))]
    return right(ridge(x, y, (best,))[0], z, test_labels)


def probe(rule: str, seed: int, train: Split, test: Split, arguments: Any) -> dict[str, Any]:
    """Teach one set of blocks and probe it."""
    began = time.process_time()
    torch.manual_seed(derive_seed("weights", seed))
    model = blocks(arguments.blocks, arguments.second)
    learned(model, rule, pixels(train), seed)
    labeled = train[: arguments.labels]
    found, tested = features(model, pixels(labeled)), features(model, pixels(test))
    accuracies = {
        name: accuracy(values, labeled.labels, tested[name], test.labels)
        for name, values in found.items()
    }
    seconds = round(time.process_time() - began, 1)
    return {"rule": rule, "seed": seed, "accuracy_percent": accuracies, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-dir", default="data", metavar="DIR")
    sizes = {"images": 10000, "labels": 5000, "test": 3000, "blocks": 1, "second": 192, "seeds": 5}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--weights", default="pretraining,random", metavar="A,B,...")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go")
    arguments = parser.parse_args()
    device = timing_device("cpu")
    path = RESULTS / f"hebbian_probe-{arguments.blocks}-cpu.json"
    path = Path(arguments.json) if arguments.json else path
    sizes = {name: getattr(arguments, name) for name in sizes if name != "seeds"}
    runs: list[dict[str, Any]] = []
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        runs = before["runs"] if before["sizes"] == sizes else []
    rules = tuple(arguments.weights.split(","))
    if unknown := set(rules) - {"pretraining", "random", "hebbian"}:
        raise unknown_name("weights", min(unknown), ("pretraining", "random", "hebbian"))
    if arguments.blocks not in (1, 2) or (arguments.blocks == 2 and "hebbian" in rules):
        raise InputError("--blocks: expected 1, or 2 without hebbian among --weights")
    data = load_data("cifar10", arguments.data_dir, None, arguments.images, 0)
    test = data.test[: arguments.test]
    for seed, rule in product(range(arguments.seeds), rules):
        if any((done["rule"], done["seed"]) == (rule, seed) for done in runs):
            continue
        runs.append(probe(rule, seed, data.train, test, arguments))
        print(runs[-1], file=sys.stderr)
        write_timings(path, device, {"sizes": sizes, "runs": runs})
    kinds = list(runs[0]["accuracy_percent"])
    print(f"| weights | {' | '.join(kinds)} | n |\n|{'---|' * (len(kinds) + 2)}")
    for rule in rules:
        own = [done["accuracy_percent"] for done in runs if done["rule"] == rule]
        texts = [spread([accuracies[kind] for accuracies in own], 1) for kind in kinds]
        print(f"| {rule} | {' | '.join(texts)} | {len(own)} |")


if __name__ == "__main__":
    run(main)
