"""Learning rules on what is not an image, under several optimizers: a table of numbers and a
sequence, by `convert`.

    python benchmarks/beyond_images.py

The table: 30 measurements of each of 569 tumours (scikit-learn's breast cancer data: pip install
scikit-learn), three linear layers. The sequence: the handwritten digits as eight rows, one after
the other, eight values each; three one-dimensional convolutions. A fifth of the data is held out;
the results are test errors in %, the mean over seeds. A local rule gets the readout trained by its
exact gradient, since it sees no labels; beside it stands the same readout on layers that do not
learn at all (`frozen`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import RESULTS, run, spread, timing_device, write_timings
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from darts_bio.data.datasets import DIGITS
from darts_bio.errors import InputError
from darts_bio.modes import in_mode
from darts_bio.rules import RULES, convert, draw_feedback
from darts_bio.runtime import derive_seed, generator
from darts_bio.training.engine import run_epoch

OPTIMIZERS = {"sgd": 0.05, "adam": 3e-3, "adamw": 3e-3, "lion": 5e-4}
"""Learning rates, those of common use; none was tuned on these data."""

SHARP = "hebbian(temperature=10.0)"
FROZEN = "frozen"
BATCH = 64

Data = tuple[Tensor, Tensor]


def table() -> Data:
    """(569, 30) and two classes."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        raise InputError(
            "the table needs scikit-learn's breast cancer data: pip install scikit-learn"
        ) from None
    found = load_breast_cancer()
    x = torch.tensor(found.data, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.tensor(found.target)


def sequence() -> Data:
    """(1797, 8 values, 8 moments) and ten classes."""
    with np.load(DIGITS, allow_pickle=False) as file:
        values, labels = file["images"], file["labels"]
    x = torch.tensor(values, dtype=torch.float32).transpose(1, 2)
    return (x - x.mean()) / x.std(), torch.tensor(labels, dtype=torch.int64)


def table_model() -> nn.Sequential:
    return nn.Sequential(
        *(
            nn.Linear(30, 64),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.BatchNorm1d(64),
            nn.ReLU(),
        ),
        nn.Linear(64, 2),
    )


def sequence_model() -> nn.Sequential:
    layers: list[nn.Module] = []
    for c_in in (8, 32, 32):
        layers += [nn.Conv1d(c_in, 32, 3, padding=1), nn.BatchNorm1d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 10))


KINDS: dict[str, tuple[Callable[[], Data], Callable[[], nn.Sequential]]] = {
    "table": (table, table_model),
    "sequence": (sequence, sequence_model),
}


class Fitting:
    """A task of the training loop: a model, fitted to four fifths of some data in batches of 64 by
    one of timm's optimizers. What does not fill a batch is left out of an epoch; the rest is
    measured on after it.
    """

    def __init__(self, kind: str, rule: str, optimizer: str, seed: int) -> None:
        load, build = KINDS[kind]
        self.x, self.labels = load()
        self.seed = seed
        order = torch.randperm(len(self.x), generator=generator("cpu", "split", seed))
        self.test, self.train = order[: len(self.x) // 5], order[len(self.x) // 5 :]
        self.steps_per_epoch = (len(self.train) - 1) // BATCH
        torch.manual_seed(derive_seed("weights", seed))
        plain = build()
        readout = str(len(list(plain.children())) - 1)
        self.model: nn.Module = plain
        if rule == FROZEN:
            plain[:-1].requires_grad_(False)
        else:
            self.model = convert(
                plain, {readout: "bp", "*": rule} if RULES.build(rule).local else rule, seed=seed
            )
        learning = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = create_optimizer_v2(
            learning, optimizer, OPTIMIZERS[optimizer], weight_decay=5e-3
        )

    def begin_epoch(self, epoch: int) -> None:
        order = torch.randperm(
            len(self.train), generator=generator("cpu", "order", self.seed, epoch)
        )
        self.batches = self.train[order].split(BATCH)

    def step(self, t: int) -> None:
        part = self.batches[t % self.steps_per_epoch]
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.x[part]), self.labels[part]).backward()
        self.optimizer.step()
        draw_feedback(self.model, self.seed, t + 1)

    @torch.no_grad()
    def end_epoch(self, epoch: int) -> dict[str, float]:
        with in_mode(self.model, training=False):
            wrong = self.model(self.x[self.test]).argmax(1) != self.labels[self.test]
        return {"test/error": wrong.float().mean().item()}


def test_error(kind: str, rule: str, optimizer: str, seed: int, epochs: int) -> float:
    """Train and return the error of the last epoch, in %."""
    fitting = Fitting(kind, rule, optimizer, seed)
    measured = [run_epoch(fitting, epoch) for epoch in range(epochs)]
    return 100 * measured[-1]["test/error"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=int, default=10, metavar="N")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument(
        "--json", metavar="FILE", help="where the numbers go (default: benchmarks/results)"
    )
    arguments = parser.parse_args()
    device = timing_device("cpu")
    errors: dict[str, dict[str, dict[str, list[float]]]] = {}
    for kind in KINDS:
        print(f"\n| {kind} | " + " | ".join(OPTIMIZERS) + " |\n|" + "---|" * (len(OPTIMIZERS) + 1))
        errors[kind] = {}
        for rule in (*RULES, SHARP, FROZEN):
            own = {
                optimizer: [
                    test_error(kind, rule, optimizer, s, arguments.epochs)
                    for s in range(arguments.seeds)
                ]
                for optimizer in OPTIMIZERS
            }
            errors[kind][rule] = own
            texts = [spread(values, 1) for values in own.values()]
            print(f"| {rule} | " + " | ".join(texts) + " |", flush=True)
    path = Path(arguments.json) if arguments.json else RESULTS / "beyond_images-cpu.json"
    sizes = {"epochs": arguments.epochs, "seeds": arguments.seeds, "learning_rates": OPTIMIZERS}
    write_timings(path, device, {"sizes": sizes, "test_error_percent": errors})


if __name__ == "__main__":
    run(main)
