"""A step of the search beside the published code of DARTS, and beside naive pairs, in one process.

    git clone https://github.com/quark0/darts ANYWHERE
    python benchmarks/peers.py --darts ANYWHERE                                        C=8, 5 cells, 8 images of 16x16
    python benchmarks/peers.py --darts ANYWHERE --channels 16 --layers 8 --image-size 32 --steps 5

The published code is run as it is: its `Network` of `cnn/model_search.py`, its `Architect` (first
order), and the loop of its `train_search.py`. It is of 2018 and wants a GPU, so while its network
is made `Tensor.cuda` gives a tensor on the CPU. It has eight operations under backpropagation, as
ours has here under `bp`. Naive pairs are one module a candidate under four rules, summed in Python,
all gradients in both passes; ours are batched (`search_step.py`). All take turns, on noise, with
one thread; seconds are CPU time.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measuring import RESULTS, options, run, stopwatch, timing_device, write_timings
from search_step import Step
from torch import Tensor, nn

from darts_bio.errors import InputError

PAIRS = "fa,usf,brsf,frsf"
TURNS = (("published DARTS", "ours under bp"), ("naive pairs", "our pairs"))
"""Who is compared with whom: theirs, ours."""


class Published:
    """The published supernet and a step of its search, from a user's clone of the repository."""

    def __init__(self, clone: Path, sizes: argparse.Namespace) -> None:
        folder = clone / "cnn"
        if not (folder / "model_search.py").is_file():
            raise InputError(
                f"--darts {clone}: expected a clone of quark0/darts, found no cnn/model_search.py "
                "there"
            )
        sys.path.insert(0, str(folder))
        with mock.patch.object(Tensor, "cuda", lambda tensor, *_: tensor):
            search, architect = (
                importlib.import_module(name) for name in ("model_search", "architect")
            )
            torch.manual_seed(0)
            criterion = nn.CrossEntropyLoss()
            self.net = search.Network(sizes.channels, 10, sizes.layers, criterion)
        settings = {
            "momentum": 0.9,
            "weight_decay": 3e-4,
            "arch_learning_rate": 3e-4,
            "arch_weight_decay": 1e-3,
        }
        self.architect = architect.Architect(self.net, argparse.Namespace(**settings))
        self.sgd = torch.optim.SGD(self.net.parameters(), 1e-3, momentum=0.9, weight_decay=3e-4)
        self.criterion = criterion
        shape = (sizes.batch_size, 3, sizes.image_size, sizes.image_size)
        self.batches = [
            (torch.randn(shape), torch.zeros(shape[0], dtype=torch.long)) for _ in range(2)
        ]

    def __call__(self) -> None:
        (x, labels), (valid_x, valid_labels) = self.batches
        self.architect.step(x, labels, valid_x, valid_labels, 1e-3, self.sgd, unrolled=False)
        self.sgd.zero_grad()
        self.criterion(self.net(x), labels).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.sgd.step()


def main() -> None:
    parser = options(__doc__, "cpu", channels=8, layers=5, batch_size=8, image_size=16, steps=7)
    parser.add_argument("--darts", required=True, metavar="DIR", help="a clone of quark0/darts")
    sizes = parser.parse_args()
    device = timing_device(sizes.device)
    if device.type != "cpu":
        raise InputError(
            f"--device {sizes.device}: expected cpu, where seconds of one process can be compared"
        )

    def ours(which: str, space: str, rules: str) -> Step:
        return Step(
            which, argparse.Namespace(**vars(sizes), space=space, rules=rules, amp="none"), device
        )

    steps: dict[str, Any] = {
        "published DARTS": Published(Path(sizes.darts), sizes),
        "ours under bp": ours("batched", "darts", "bp"),
        "naive pairs": ours("reference", "darts(layout=paper)", PAIRS),
        "our pairs": ours("batched", "darts(layout=paper)", PAIRS),
    }
    now, names = stopwatch(device), list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(sizes.steps + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = now()
            steps[name]()
            if turn > 0:  # the first one allocates
                seconds[name].append(now() - start)
    print("| step | s (median) | s, ours | times as fast (least to most) |\n|---|---|---|---|")
    ratios = {}
    for theirs, mine in TURNS:
        own = sorted(slow / fast for slow, fast in zip(seconds[theirs], seconds[mine], strict=True))
        ratios[f"{theirs} / {mine}"] = statistics.median(own)
        medians = (statistics.median(seconds[name]) for name in (theirs, mine))
        print(f"| {theirs} | {' | '.join(f'{s:.3f}' for s in medians)} | {statistics.median(own):.2f} "
              f"({own[0]:.2f} to {own[-1]:.2f}) |")  # fmt: skip
    path = Path(sizes.json) if sizes.json else RESULTS / f"peers-{sizes.image_size}px-cpu.json"
    named = {
        key: value for key, value in vars(sizes).items() if key not in ("device", "json", "darts")
    }
    write_timings(path, device, {"sizes": named, "seconds": seconds, "ratios": ratios})


if __name__ == "__main__":
    run(main)
