"""How fast a genotype trains by the protocol of DARTS on CIFAR-10: images a second, and the time of
600 epochs.

    python benchmarks/training_speed.py --data-dir data --device cpu
    python benchmarks/training_speed.py --data-dir data --device cuda --steps 50

In one process, taking turns at every step, in an order that turns too: the genotype under its rules
and under bp, as evaluate/train_cifar.py trains them; and the same network in the plain loop of
published codes: images one by one through torchvision's transforms and a DataLoader, maps with
their channels first, a loop over the parameters in clipping and in SGD, the loss read at each step,
no recorded graphs; and that loop with two flags changed, channels last and all parameters at once
(`foreach`). Auxiliary head, cutout and drop path are those of the middle of training.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import RESULTS, options, run, stopwatch, timing_device, write_timings
from torch import Tensor, nn
from torch.utils.data import DataLoader

from darts_bio.config import RetrainConfig
from darts_bio.data.datasets import load_data
from darts_bio.data.transforms import CIFAR_MEAN, CIFAR_STD
from darts_bio.networks import Network, build_network
from darts_bio.networks.cells import DropPath
from darts_bio.rules import draw_feedback
from darts_bio.spaces import Genotype, load_genotype
from darts_bio.training.retrain import Retraining

IMAGES = 50_000


class Cutout:
    """Blanks a square of one image (3, H, W)."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[1:]
        y, x = (int(torch.randint(size, ())) for size in (height, width))
        half = self.side // 2
        image[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = 0
        return image


class PlainLoop:
    """The training as a script of published codes writes it; `tuned` is that with channels last and
    `foreach`.
    """

    def __init__(
        self,
        config: RetrainConfig,
        genotype: Genotype,
        workers: int,
        device: torch.device,
        tuned: bool,
    ) -> None:
        self.config, self.device, self.tuned = config, device, tuned
        self.network: Network = build_network(
            genotype, channels=config.channels, layers=config.layers, auxiliary=config.auxiliary > 0
        ).to(device)
        self.network.memory_format = torch.channels_last if tuned else torch.contiguous_format
        for drop in self.network.modules():
            if isinstance(drop, DropPath):
                drop.probability = config.drop_path / 2
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            config.lr,
            config.momentum,
            weight_decay=config.weight_decay,
            foreach=tuned,
        )
        self.batches = self._batches(workers)

    def _batches(self, workers: int) -> Iterator[Any]:
        from torchvision import transforms
        from torchvision.datasets import CIFAR10

        steps = [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
        ]
        steps += [transforms.Normalize(CIFAR_MEAN, CIFAR_STD), Cutout(self.config.cutout)]
        images = CIFAR10(self.config.data_dir or "data", transform=transforms.Compose(steps))
        size = self.config.batch_size
        loader = DataLoader(
            images, size, shuffle=True, num_workers=workers, pin_memory=self.device.type == "cuda"
        )
        return itertools.chain.from_iterable(itertools.repeat(loader))

    def step(self, t: int) -> None:
        x, labels = (part.to(self.device) for part in next(self.batches))
        self.optimizer.zero_grad()
        logits, auxiliary = self.network(x)
        loss = F.cross_entropy(logits, labels) + self.config.auxiliary * F.cross_entropy(
            auxiliary, labels
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip, foreach=self.tuned)
        self.optimizer.step()
        draw_feedback(self.network, self.config.seed, t + 1)
        loss.item()


def main() -> None:
    parser = options(__doc__, "cpu", channels=36, layers=20, batch_size=96, steps=5, workers=0)
    parser.add_argument("--genotype", default="bionas_darts", metavar="X")
    parser.add_argument("--data-dir", default="data", metavar="DIR")
    parser.add_argument("--amp", default="none", choices=("none", "bf16"), help="of the first two")
    arguments = parser.parse_args()
    device = timing_device(arguments.device)
    config = RetrainConfig(
        genotype=arguments.genotype,
        dataset="cifar10",
        data_dir=arguments.data_dir,
        channels=arguments.channels,
        layers=arguments.layers,
        batch_size=arguments.batch_size,
        amp=arguments.amp,
    )
    data, genotype = load_data("cifar10", arguments.data_dir), load_genotype(arguments.genotype)
    tasks: dict[str, Any] = {
        "under its rules": Retraining.of_genotype(config, genotype, data, device),
        "under bp": Retraining.of_genotype(config, genotype.with_rule("bp"), data, device),
        "under its rules, plain loop": PlainLoop(
            config, genotype, arguments.workers, device, tuned=False
        ),
        "under its rules, tuned loop": PlainLoop(
            config, genotype, arguments.workers, device, tuned=True
        ),
    }
    names = list(tasks)
    for name in names[:2]:
        tasks[name].begin_epoch(config.epochs // 2)
    now = stopwatch(device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for t in range(arguments.steps + 3):
        for name in names[t % len(names) :] + names[: t % len(names)]:
            start = now()
            tasks[name].step(t)
            if t >= 3:  # the first steps allocate, and record graphs
                seconds[name].append(now() - start)
    rates = {
        name: config.batch_size / statistics.median(values) for name, values in seconds.items()
    }
    plain = seconds[names[2]]
    print(
        "| training | images/s | against the plain loop (least to most) | 600 epochs, hours "
        "|\n|---|---|---|---|"
    )
    for name in names:
        ratios = [one / other for one, other in zip(plain, seconds[name], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(
            f"| {name} | {rates[name]:.1f} | {spread} | {600 * IMAGES / rates[name] / 3600:.1f} |"
        )
    numbers = {
        "sizes": {
            key: value
            for key, value in vars(arguments).items()
            if key not in ("device", "json", "data_dir")
        },
        "seconds": seconds,
        "images_per_second": rates,
    }
    path = (
        Path(arguments.json) if arguments.json else RESULTS / f"training_speed-{device.type}.json"
    )
    write_timings(path, device, numbers)


if __name__ == "__main__":
    run(main)
