"""Trained networks, for use without the data that they were trained on.

A training's checkpoint says how its network is built and which images it expects, and so does what
`export --hub` wrote of it; `load_trained` reads either, and the networks that the package ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.config.files import refuse_missing_plugins
from darts_bio.errors import InputError, brief
from darts_bio.networks import Network, build_network
from darts_bio.networks.costs import parameters
from darts_bio.spaces import Genotype, from_json
from darts_bio.storage.checkpoint import checkpoint_of, read_checkpoint
from darts_bio.training.engine import fitting
from darts_bio.training.exported import EXPORT_FILE, is_export, located, read_export, read_weights
from darts_bio.training.provenance import Provenance, provenance_of_run


class PixelNetwork(nn.Module):
    """A network on pixels in [0, 1], which normalizes them for a network that wants that.

    `mean` and `std` have a value for each channel. They are buffers, and move with the module.

    >>> network = PixelNetwork(nn.Identity(), mean=(0.5,), std=(0.25,))
    >>> network(torch.tensor([[[[0.0, 1.0]]]]))
    tensor([[[[-2.,  2.]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, C, H, W) to logits (N, num_classes)."""
        return self.network((pixels - self.mean) / self.std)


@dataclass(frozen=True, repr=False)
class Trained:
    """A trained network, in evaluation mode on the CPU, with what it takes to use it.

    Attributes:
        network: The network, on normalized images.
        genotype: Its genotype.
        classes: The classes' names, in the order of the logits.
        mean: The mean of each channel, on pixels in [0, 1].
        std: The standard deviation of each channel, on pixels in [0, 1].
        image_size: The height and width of the images it was trained on.
        form: The keywords with which `build_network` built it.
        config: The options of the run that its checkpoint is bound to.
        step: How many updates the weights have had.
        provenance: The command, the machine and the test accuracy that the run recorded.

    `load_trained` makes one.

    >>> from darts_bio.spaces import load_genotype
    >>> genotype = load_genotype("bionas_darts")
    >>> form = {"channels": 4, "layers": 3, "num_classes": 2, "in_channels": 1}
    >>> network = build_network(genotype, **form).eval()
    >>> trained = Trained(network, genotype, ("cat", "dog"), (0.5,), (0.25,), (8, 8), form, {}, 0)
    >>> trained
    Trained(3,278 parameters, images 1x8x8 in 2 classes, test accuracy unknown)
    >>> trained.on_pixels()(torch.rand(3, 1, 8, 8)).shape
    torch.Size([3, 2])
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
    provenance: Provenance = field(default_factory=Provenance)

    def __repr__(self) -> str:
        height, width = self.image_size
        images = f"images {len(self.mean)}x{height}x{width} in {len(self.classes)} classes"
        made = self.provenance
        accuracy = "unknown" if made.accuracy is None else f"{100 * made.accuracy:.2f} %"
        sizes = f"{parameters(self.network):,} parameters, {images}"
        return f"{type(self).__name__}({sizes}, test accuracy {accuracy})"

    def on_pixels(self) -> PixelNetwork:
        """Return the network on pixels in [0, 1], in evaluation mode."""
        return PixelNetwork(self.network, self.mean, self.std).eval()


def load_trained(source: str | Path, *, averaged: bool = True) -> Trained:
    """Read a trained network: a shipped one by its name, that of a run, or an exported one.

    The state of PyTorch's generators is left as it was. Rules and operations of your own have to be
    imported before.

    Args:
        source: A shipped name (`darts-bio list` shows them), the run folder of a training, its
            checkpoint, or a folder that `export RUN --hub` wrote. A shipped name wins over a folder
            of that name: write ./NAME for a folder of that name.
        averaged: Whether to take the averaged weights, if a run kept such (`--ema`). An export
            holds those alone.

    Returns:
        The network on normalized images, its classes and normalization, the genotype, and where it
        comes from; `on_pixels()` is the network on pixels in [0, 1].

    Raises:
        InputError: There is no trained network of a genotype, or it is damaged. (Of a run whose
            checkpoint is whole, damaged records are a warning: the provenance is unknown.)

    Example:
        >>> import darts_bio
        >>> trained = darts_bio.load_trained("digits_rule_aware")
        >>> pixels = torch.zeros(2, 1, *trained.image_size)
        >>> trained.on_pixels()(pixels).shape, trained.classes[:3]
        (torch.Size([2, 10]), ('0', '1', '2'))
        >>> load_trained("runs/none")
        Traceback (most recent call last):
        darts_bio.errors.InputError: runs/none: expected the run folder of a training, or its \
checkpoint.pt, found no runs/none; a run writes it at the end of its first epoch
    """
    source = located(source)
    return _load_export(source) if is_export(source) else _load_run(source, averaged)


def _load_run(source: Path, averaged: bool) -> Trained:
    """Read the network of a run, as `load_trained` says, from its folder or its checkpoint."""
    path = checkpoint_of(source)
    refuse_missing_plugins(path.parent)
    state = read_checkpoint(path, "train")
    with fitting(path):
        task = state["task"]
        # Keys are a file format: their spelling stays.
        needed = {"network", "genotype", "form", "image_size", "classes", "normalisation"}
        missing = needed - set(task)
        if missing:
            raise InputError(
                f"{path}: expected the training of a genotype's network, found none of "
                f"{', '.join(sorted(missing))}; a run of an earlier version is written anew when "
                "it goes on by --resume"
            )
        averaged = averaged and "averaged" in task
        genotype, form = from_json(task["genotype"], f"{path}: genotype"), dict(task["form"])
        weights = task["averaged"] if averaged else task["network"]
        trained = Trained(
            _build(genotype, form, weights, path),
            genotype,
            tuple(task["classes"]),
            tuple(task["normalisation"]["mean"].tolist()),
            tuple(task["normalisation"]["std"].tolist()),
            tuple(task["image_size"]),
            form,
            state["config"],
            state["step"],
            provenance_of_run(path.parent, state["step"], state["command"], averaged=averaged),
        )
        _check(trained, path, ("classes", "normalisation", "image_size"))
    return trained


def _load_export(folder: Path) -> Trained:
    """Read the network of a folder that `export --hub` wrote, as `load_trained` says."""
    export, path = read_export(folder), folder / EXPORT_FILE
    weights = read_weights(folder, export)
    with fitting(path):
        trained = Trained(
            _build(export.genotype, export.form, weights, path),
            export.genotype,
            export.classes,
            export.mean,
            export.std,
            export.image_size,
            export.form,
            export.options,
            export.step,
            export.provenance,
        )
        images = "pretrained_cfg"
        _check(trained, path, ("label_names", f"{images}.mean/std", f"{images}.input_size"))
    return trained


def _build(
    genotype: Genotype, form: dict[str, Any], weights: Mapping[str, Tensor], path: Path
) -> Network:
    """Build a network with weights, in evaluation mode; `path` is the file that describes it.

    Raises InputError if there is no such network, or a larger one than there are weights of.
    """
    try:
        _check_size(genotype, form, weights, path)
        with torch.random.fork_rng(devices=[]):  # building draws weights that are not used
            network = build_network(genotype, **form)
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None
    network.load_state_dict(weights)
    return network.eval()


def _check_size(
    genotype: Genotype, form: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path
) -> None:
    """Raise InputError if a file asks for a larger network than there are weights of.

    The network is built without memory for its weights. Of those in the file the memory counts, not
    their shapes: a tensor of any shape may repeat a single number.
    """
    with torch.device("meta"):
        network = build_network(genotype, **form)
    needed = sum(weight.nbytes for weight in network.state_dict().values())
    storages = [weight.untyped_storage() for weight in weights.values() if not weight.is_meta]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    if needed > held:
        raise InputError(
            f"{path}: does not fit the run that its configuration describes: its network has "
            f"{needed:,} bytes of weights, found {held:,}; use another file"
        )


LARGEST_SIDE = 2048
"""Pixels of a side of the images that a file may ask for."""
SMALLEST_STD = 5e-7
"""Below the least standard deviation of a channel that `Normalization.of` tells of; pixels divided by
less would overflow."""


def _check(trained: Trained, path: Path, fields: tuple[str, str, str]) -> None:
    """Raise InputError unless the classes, the normalization and the image size fit the network.

    `fields` are what the file calls these three, in this order.
    """
    classes, channels = trained.form["num_classes"], trained.form["in_channels"]
    are_names = len(trained.classes) == classes and all(
        isinstance(name, str) for name in trained.classes
    )
    # Of pixels in [0, 1]. Comparisons with NaN are false.
    are_scales = (
        len(trained.mean) == len(trained.std) == channels
        and all(0 <= mean <= 1 for mean in trained.mean)
        and all(SMALLEST_STD <= std <= 1 for std in trained.std)
    )
    is_size = len(trained.image_size) == 2 and all(
        type(side) is int and 0 < side <= LARGEST_SIDE for side in trained.image_size
    )
    normalization = (trained.mean, trained.std)
    checks = (
        (f"{classes} names", are_names, trained.classes),
        (f"the means and stds of {channels} channels in [0, 1]", are_scales, normalization),
        ("a height and a width", is_size, trained.image_size),
    )
    for name, (expected, holds, value) in zip(fields, checks, strict=True):
        if not holds:
            raise InputError(
                f"{path}: {name}: expected {expected}, found {brief(value)}; use another file"
            )
