"""What a step of the search costs: the batched supernets against the reference, a module a
candidate.

    python benchmarks/search_step.py                                                     C=8, 5 cells, 8 images of 16x16
    python benchmarks/search_step.py --channels 16 --layers 8 --image-size 32             the protocol's net, 8 images
    python benchmarks/search_step.py --channels 16 --layers 8 --image-size 32 --batch-size 64 --steps 0     counted only
    python benchmarks/search_step.py --channels 16 --layers 8 --image-size 32 --batch-size 64 --device cuda --amp bf16

A step is the pass for alpha, the pass for w, the two updates and the draw of the feedback. All nets
take turns in one process. The reference does what published DARTS codes do: candidates summed one
by one, and all gradients in both passes; the others freeze w while alpha is moved, as search/run.py
does.

The net `replayed` is the batched one with both passes and updates replayed as CUDA graphs; on a CPU
it is the same as that.

A kernel is a call of PyTorch's dispatcher that computes something (no view, no allocation), counted
over a step with two images on a CPU: the number does not depend on the batch. Activations kept are
the bytes that autograd holds between forward and backward pass of the weights, parameters left out,
in float32 on the `meta` device, which computes shapes only. Peak memory is that of the GPU, or the
largest resident memory of a process that runs one net alone, its libraries included.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import kept_bytes, peak_bytes, run, stopwatch, timing_device, write_timings
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from darts_bio.networks import FoldedCell, MixedCell, SuperNet
from darts_bio.networks.reference import ReferenceCell
from darts_bio.rules import Renewal
from darts_bio.runtime import autocast
from darts_bio.spaces import SPACES
from darts_bio.strategies import frozen
from darts_bio.training.graphs import Recorder

CELLS = {
    "reference": ReferenceCell,
    "batched": MixedCell,
    "low memory": FoldedCell,
    "replayed": MixedCell,
}
NOTHING_COMPUTED = ("empty", "new_empty", "detach", "_unsafe_view", "alias", "_record_function")


class Step:
    """One supernet and its alpha, and a step of first-order DARTS on noise."""

    def __init__(self, which: str, sizes: argparse.Namespace, device: torch.device) -> None:
        torch.manual_seed(0)
        space = SPACES.build(sizes.space)
        self.which, self.amp, self.device = which, sizes.amp, device
        self.net = SuperNet(
            space,
            sizes.rules.split(","),
            channels=sizes.channels,
            layers=sizes.layers,
            num_classes=10,
            cell=CELLS[which],
        ).to(device)
        self.run = Recorder(device, graphs=which == "replayed")
        self.renewal = Renewal(self.net, 0)
        self.run.generators = self.renewal.generators
        rows = self.net.table.rows
        self.alpha = {
            t: torch.zeros(self.net.table.shape(t), device=device, requires_grad=True) for t in rows
        }
        self.adam = torch.optim.Adam(
            self.alpha.values(), lr=3e-4, foreach=True, capturable=self.run.records
        )
        self.sgd = torch.optim.SGD(
            self.net.parameters(), lr=1e-3, momentum=0.9, weight_decay=3e-4, foreach=True
        )
        shape = (sizes.batch_size, 3, sizes.image_size, sizes.image_size)
        self.batches = [
            (
                torch.randn(shape, device=device),
                torch.zeros(shape[0], dtype=torch.long, device=device),
            )
            for _ in range(2)
        ]
        self.updates = 0

    def loss(self, number: int, frozen_alpha: bool) -> Tensor:
        x, labels = self.batches[number]
        weights = {t: a.softmax(1) for t, a in self.alpha.items()}
        if frozen_alpha:
            weights = {t: w.detach() for t, w in weights.items()}
        with (
            autocast(self.device, self.amp)
            if self.device.type != "meta"
            else contextlib.nullcontext()
        ):
            logits = self.net(x, weights)
        return F.cross_entropy(logits.float(), labels)

    def alpha_pass(self) -> None:
        self.run(self._move_alpha)

    def _move_alpha(self) -> None:
        with contextlib.nullcontext() if self.which == "reference" else frozen(self.net):
            _differentiate(self.loss(0, frozen_alpha=False), self.adam)
        self.adam.step()

    def weight_pass(self) -> None:
        self.run(self._move_weights)
        self.updates += 1
        self.renewal(self.updates, self.run)

    def _move_weights(self) -> None:
        _differentiate(self.loss(1, frozen_alpha=True), self.sgd)
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0, foreach=True)
        self.sgd.step()

    def __call__(self) -> None:
        self.alpha_pass()
        self.weight_pass()


def _differentiate(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Give each parameter its gradient, in a way that can be recorded."""
    parameters = optimizer.param_groups[0]["params"]
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True
    ):
        parameter.grad = gradient


class KernelCount(TorchDispatchMode):
    """Counts what the dispatcher is asked to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        view = bool(returns) and all(
            r.alias_info is not None and not r.alias_info.is_write for r in returns
        )
        if not view and not func._schema.name.split("::")[1].startswith(NOTHING_COMPUTED):
            self.kernels += 1
        return func(*args, **(kwargs or {}))


def count(which: str, sizes: argparse.Namespace) -> dict[str, int]:
    two_images = argparse.Namespace(**{**vars(sizes), "batch_size": 2, "amp": "none"})
    step = Step(which, two_images, torch.device("cpu"))
    step()  # the optimizers make their state
    with KernelCount() as counter:
        step()
    abstract = Step(which, sizes, torch.device("meta"))
    kept = kept_bytes(abstract.net, lambda: abstract.loss(1, frozen_alpha=True))
    return {"kernels": counter.kernels, "kept_bytes": kept}


def timings(sizes: argparse.Namespace, device: torch.device) -> dict[str, dict[str, list[float]]]:
    """Seconds of the passes of each net, which take turns."""
    steps = {which: Step(which, sizes, device) for which in sizes.nets.split(",")}
    now = stopwatch(device)
    seconds: dict[str, dict[str, list[float]]] = {
        which: {"alpha": [], "weights": []} for which in steps
    }
    for turn in range(sizes.steps + 1):
        for which, step in steps.items():
            start = now()
            step.alpha_pass()
            middle = now()
            step.weight_pass()
            end = now()
            if turn > 0:  # the first one allocates
                seconds[which]["alpha"].append(middle - start)
                seconds[which]["weights"].append(end - middle)
    return seconds


def two_steps(which: str, sizes: argparse.Namespace, device: str) -> None:
    step = Step(which, sizes, timing_device(device))
    step()
    step()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--space", default="darts(layout=paper)", metavar="SPEC")
    parser.add_argument("--rules", default="fa,usf,brsf,frsf", metavar="A,B,...")
    parser.add_argument("--nets", default=",".join(CELLS), metavar="A,B")
    parser.add_argument("--device", default="cpu", metavar="NAME")
    parser.add_argument("--amp", default="none", choices=["none", "bf16"])
    for name, default in {
        "channels": 8,
        "layers": 5,
        "batch-size": 8,
        "image-size": 16,
        "steps": 7,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="write all numbers there")
    sizes = parser.parse_args()
    device = timing_device(sizes.device)
    nets: dict[str, dict[str, Any]] = {
        which: dict(count(which, sizes)) for which in sizes.nets.split(",")
    }
    if sizes.steps:
        for which, passes in timings(sizes, device).items():
            total = [a + w for a, w in zip(passes["alpha"], passes["weights"], strict=True)]
            nets[which] |= {"seconds": passes, "median_s": statistics.median(total)}
        for which in nets:
            if device.type == "cuda" or Path("/proc/self/status").exists():
                nets[which]["peak_bytes"] = peak_bytes(device, two_steps, which, sizes, str(device))
    print(
        "| net | kernels a step | kept activations, GB | s a step: alpha + weights (median) | peak "
        "memory, GB |"
    )
    print("|---|---|---|---|---|")
    for which, found in nets.items():
        timed = peak = "-"
        if "seconds" in found:
            parts = [statistics.median(found["seconds"][name]) for name in ("alpha", "weights")]
            timed = f"{parts[0]:.3f} + {parts[1]:.3f} = {found['median_s']:.3f}"
            peak = f"{found['peak_bytes'] / 1e9:.2f}" if "peak_bytes" in found else "-"
        print(
            f"| {which} | {found['kernels']} | {found['kept_bytes'] / 1e9:.2f} | {timed} | {peak} |"
        )
    ratios = {}
    if sizes.steps and "reference" in nets:
        total = {
            which: [a + w for a, w in zip(*n["seconds"].values(), strict=True)]
            for which, n in nets.items()
        }
        for which in [which for which in nets if which != "reference"]:
            own = sorted(
                slow / fast for slow, fast in zip(total["reference"], total[which], strict=True)
            )
            ratios[which] = statistics.median(own)
            spread = f"median of {len(own)}; {own[0]:.2f} to {own[-1]:.2f}"
            print(f"\nreference / {which}: {ratios[which]:.2f} ({spread})")
    if sizes.json:
        write_timings(
            Path(sizes.json),
            device,
            {"batch_size": sizes.batch_size, "ratio_to_reference": ratios, "nets": nets},
        )


if __name__ == "__main__":
    run(main)
