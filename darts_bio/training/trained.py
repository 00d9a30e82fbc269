"""Trained networks without the data they were trained on: a checkpoint says how its network is
built and used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.config.files import refuse_missing_plugins
from darts_bio.errors import InputError
from darts_bio.networks import Network, build_network
from darts_bio.spaces import Genotype, from_json
from darts_bio.spaces.genotype import brief
from darts_bio.training.engine import fitting
from darts_bio.training.run_folder import checkpoint_of, read_checkpoint


class PixelNetwork(nn.Module):
    """Pixels (N, C, H, W) in [0, 1] to logits (N, num_classes), by a network that wants them
    normalised.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network((pixels - self.mean) / self.std)


@dataclass(frozen=True)
class Trained:
    """A trained network, in evaluation mode on the CPU, and what it takes to use it.

    `mean` and `std` are those of each channel, on pixels in [0, 1]; `image_size` is (height,
    width); `form` holds `build_network`'s keywords; `config` the options of the run that its
    checkpoint is bound to; `step` the number of weight updates.
    """

    network: Network
    genotype: Genotype
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    form: dict[str, Any]
    config: dict[str, Any]
    step: int

    def on_pixels(self) -> PixelNetwork:
        """The network on pixels in [0, 1], in evaluation mode."""
        return PixelNetwork(self.network, self.mean, self.std).eval()


def load_trained(source: str | Path, *, averaged: bool = True) -> Trained:
    """What a run folder of a training holds, or its checkpoint. PyTorch's generator is left as it
    was.

    With `averaged` the weights are the run's averaged ones, if it kept such. Rules and operations
    of your own have to be imported before. Raises InputError if the folder holds no whole
    checkpoint of a training.
    """
    path = checkpoint_of(Path(source))
    refuse_missing_plugins(path.parent)
    state = read_checkpoint(path, "train")
    with fitting(path):
        task = state["task"]
        missing = {"network", "genotype", "form", "image_size", "classes", "normalisation"} - set(
            task
        )
        if missing:
            raise InputError(
                f"{path}: expected the training of a genotype's network, found none of "
                f"{', '.join(sorted(missing))}; "
                "a run of an earlier version is written anew when it goes on by --resume"
            )
        genotype, form = from_json(task["genotype"], f"{path}: genotype"), dict(task["form"])
        with torch.random.fork_rng(devices=[]):
            network = build_network(genotype, **form)
        network.load_state_dict(
            task["averaged"] if averaged and "averaged" in task else task["network"]
        )
        trained = Trained(
            network.eval(),
            genotype,
            tuple(task["classes"]),
            tuple(task["normalisation"]["mean"].tolist()),
            tuple(task["normalisation"]["std"].tolist()),
            tuple(task["image_size"]),
            form,
            state["config"],
            state["step"],
        )
        _check(trained, path)
    return trained


def _check(trained: Trained, path: Path) -> None:
    """Raises InputError unless what goes with the network fits it."""
    classes, channels = trained.form["num_classes"], trained.form["in_channels"]
    named = len(trained.classes) == classes and all(
        isinstance(name, str) for name in trained.classes
    )
    scaled = len(trained.mean) == len(trained.std) == channels and all(
        std > 0 for std in trained.std
    )
    sized = len(trained.image_size) == 2 and all(
        type(side) is int and side > 0 for side in trained.image_size
    )
    for name, expected, holds, found in (
        ("classes", f"{classes} names", named, trained.classes),
        (
            "normalisation",
            f"the means and stds of {channels} channels",
            scaled,
            (trained.mean, trained.std),
        ),
        ("image_size", "a height and a width", sized, trained.image_size),
    ):
        if not holds:
            raise InputError(
                f"{path}: {name}: expected {expected}, found {brief(found)}; use another checkpoint"
            )
