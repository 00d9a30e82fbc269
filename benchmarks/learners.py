"""Global learners against backpropagation on the digits: test error, alignment, cost of a step.

    python benchmarks/learners.py

An MLP 64-128-128-10 of tanh is trained by Adam in batches of 64, 230 steps for each. The rate of
each learner is the one of RATES that errs least on a fifth of the training images, over seeds of
their own; then it is trained on all of them with seeds 0, 1, ... and measured once on the 359 test
images, which are the same for all. Seeds draw weights, the learner's state, the order of images.
The cosine is that of all weights' gradients to the exact one, over eight batches of the trained
network.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import RESULTS, median_seconds, run, spread, timing_device, write_timings
from torch import Tensor, nn

from darts_bio.data.datasets import DIGITS
from darts_bio.evaluation.learner_alignment import learner_alignment
from darts_bio.learners import Learner, learner
from darts_bio.runtime import derive_seed, generator

LEARNERS = (
    *("bp", "pc", "pc(mode=fixed, rate=1, steps=3)", "dual_propagation", "pepita", "dtp", "drtp"),
)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
BATCH = 64
CHOICE_SEEDS = (100, 101)

Data = tuple[Tensor, Tensor]


def digits() -> tuple[Data, Data]:
    """Images (N, 64) of values 0 to 1 and labels, for training (1438) and for the test (359)."""
    with np.load(DIGITS, allow_pickle=False) as file:
        images = torch.tensor(file["images"], dtype=torch.float32).flatten(1) / 16
        labels = torch.tensor(file["labels"], dtype=torch.int64)
    order = torch.randperm(len(images), generator=generator("cpu", "split", 0))
    return (images[order[359:]], labels[order[359:]]), (images[order[:359]], labels[order[:359]])


def mlp(*widths: int) -> nn.Sequential:
    first, second, third, last = widths
    return nn.Sequential(
        *(nn.Linear(first, second), nn.Tanh(), nn.Linear(second, third), nn.Tanh()),
        nn.Linear(third, last),
    )


def descent(model: nn.Module, teacher: Learner | None) -> Callable[[Tensor, Tensor], None]:
    """Return what fills .grad from (x, y): the learner, or backpropagation where there is none."""

    def backward(x: Tensor, y: Tensor) -> None:
        if teacher is None:
            F.cross_entropy(model(x), y).backward()
        else:
            teacher.backward(x, y)

    return backward


def trained(
    name: str, rate: float, seed: int, epochs: int, train: Data
) -> tuple[nn.Module, Learner | None]:
    torch.manual_seed(derive_seed("weights", seed))
    model = mlp(64, 128, 128, 10)
    teacher = None if name == "bp" else learner(model, name, seed=seed)
    backward = descent(model, teacher)
    own = [] if teacher is None else teacher.parameters()
    optimizer = torch.optim.Adam([*model.parameters(), *own], lr=rate)
    x, y = train
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator("cpu", "order", seed, epoch))
        for part in order.split(BATCH):
            optimizer.zero_grad()
            backward(x[part], y[part])
            optimizer.step()
    return model, teacher


@torch.no_grad()
def error(model: nn.Module, data: Data) -> float:
    """In %."""
    return 100 * (model(data[0]).argmax(1) != data[1]).double().mean().item()


def chosen_rate(name: str, epochs: int, train: Data) -> float:
    x, y = train
    validation, rest = (x[:288], y[:288]), (x[288:], y[288:])

    def mean_error(rate: float) -> float:
        return statistics.mean(
            error(trained(name, rate, seed, epochs, rest)[0], validation) for seed in CHOICE_SEEDS
        )

    return min(RATES, key=mean_error)


def cosine(model: nn.Module, teacher: Learner | None, train: Data) -> float:
    if teacher is None:
        return 1.0
    batches = [(train[0][k * BATCH :][:BATCH], train[1][k * BATCH :][:BATCH]) for k in range(8)]
    return learner_alignment(model, teacher, batches).gradient_cosine or 0.0


def costs(
    device: torch.device, names: Sequence[str], widths: tuple[int, ...], batch: int
) -> dict[str, list[float]]:
    """Seconds of filling .grad once, relative to backpropagation: in three rounds, taking turns."""
    torch.manual_seed(0)
    x, y = torch.rand(batch, widths[0]), torch.arange(batch) % widths[-1]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(3):
        seconds = {}
        for name in names:
            model = mlp(*widths)
            backward = descent(model, None if name == "bp" else learner(model, name))
            seconds[name] = median_seconds(partial(backward, x, y), device, repeats=5)
        for name, found in ratios.items():
            found.append(seconds[name] / seconds["bp"])
    return ratios


def span(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=10, metavar="N")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--json", metavar="FILE", help="where the numbers go")
    parser.add_argument(
        "--learners",
        nargs="+",
        default=LEARNERS,
        metavar="SPEC",
        help="which, beside bp, that costs are relative to",
    )
    arguments = parser.parse_args()
    names = tuple(dict.fromkeys(("bp", *arguments.learners)))
    device = timing_device("cpu")
    train, test = digits()
    small = costs(device, names, (64, 128, 128, 10), BATCH)
    wide = costs(device, names, (784, 1024, 1024, 10), 256)
    print("| learner | rate | test error, % | cosine | cost | cost, 784-1024-1024-10 |")
    print("|---|---|---|---|---|---|")
    found = {}
    for name in names:
        rate = chosen_rate(name, arguments.epochs, train)
        errors, cosines = [], []
        for seed in range(arguments.seeds):
            model, teacher = trained(name, rate, seed, arguments.epochs, train)
            errors.append(error(model, test))
            cosines.append(cosine(model, teacher, train))
        found[name] = {
            "rate": rate,
            "test_error_percent": errors,
            "cosine": cosines,
            "cost": small[name],
            "cost_wide": wide[name],
        }
        print(
            f"| `{name}` | {rate:g} | {spread(errors)} | {spread(cosines)} | "
            f"{span(small[name])} | {span(wide[name])} |",
            flush=True,
        )
    sizes = {"epochs": arguments.epochs, "seeds": arguments.seeds, "rates": RATES, "batch": BATCH}
    path = Path(arguments.json) if arguments.json else RESULTS / "learners-digits-cpu.json"
    write_timings(path, device, {"sizes": sizes, "learners": found})


if __name__ == "__main__":
    run(main)
