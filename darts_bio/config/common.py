"""The options that commands have in common, as frozen dataclasses.

The defaults are the protocol of DARTS (arXiv 1806.09055). The help texts are what `--help` shows.
This package imports no PyTorch, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar, Literal

import yaml

from darts_bio.bounded import MOST_CELLS
from darts_bio.config.options import check_values, configuration, flag, option, plain
from darts_bio.errors import InputError, unknown_name
from darts_bio.invocation import portable

CONFIG_FILE = "config.yaml"
"""The file of a run folder that holds the run's options."""


CHART_FORMATS = ("png", "pdf")
"""The formats that `--charts` names; SVG, which reports show, is always written."""


Gradients = Literal["true", "rule"]
"""Which derivative is followed: the exact one, or what the learning rules send down in its place."""


TRACKERS = ("mlflow", "wandb")
"""What `--log` names: trackers of experiments, by their packages."""


def charts_option() -> Any:
    """Declare the option of the formats of charts."""
    return option(
        (),
        "write charts as png or pdf, too, beside the svg of reports",
        metavar="A,B",
        identity=False,
    )


def check_charts(charts: Sequence[str]) -> None:
    """Raise InputError for a format that charts are not written in."""
    for form in charts:
        if form not in CHART_FORMATS:
            raise unknown_name("format in --charts", form, CHART_FORMATS)


def refuse_repeated(name: str, values: Sequence[Any]) -> None:
    """Raise InputError if an option holds a value more than once."""
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        what = "rule" if name == "rules" else "of them"
        raise InputError(
            f"{flag(name)}: expected each {what} once, found {', '.join(map(str, repeated))} more "
            "than once"
        )


@configuration("plug-ins")
class CommandConfig:
    """The options of every command; raises InputError for a value that is not possible.

    >>> CommandConfig(plugin="my_package.my_rule").plugin
    ('my_package.my_rule',)
    """

    command: ClassVar[str]
    """The command's name: `darts-bio NAME`."""

    plugin: tuple[str, ...] = option(
        (),
        "your own modules to import first, such as my_package.my_rule",
        metavar="A,B,...",
        identity=False,
    )

    def __post_init__(self) -> None:
        check_values(self)


@configuration("this run")
class RunConfig(CommandConfig):
    """The options of all commands that write a run folder.

    >>> RunConfig(seed=3, device="cpu").identity()
    {'seed': 3}
    """

    seed: int = option(
        0,
        "seed of all random draws: weights, feedback, alpha, order and augmentation of images",
        minimum=0,
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N", metavar="NAME", identity=False)
    out: str | None = option(
        None,
        "run folder, new or empty (default: runs/KIND-DATASET-TIME)",
        metavar="DIR",
        identity=False,
    )
    resume: bool | Literal["auto"] = option(
        False,
        "resume the run in --out from its checkpoint; auto: resume if there is one, else begin",
        identity=False,
    )
    quiet: bool = option(False, "show no progress, only what came of the run", identity=False)
    charts: tuple[str, ...] = charts_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_charts(self.charts)

    @property
    def about(self) -> str:
        """The word between the command and the time in the default name of the run's folder."""
        return ""

    def identity(self) -> dict[str, Any]:
        """Return the options that a checkpoint is bound to, by name, as plain data."""
        names = [f.name for f in fields(self) if f.metadata["identity"]]
        return {name: plain(value) for name, value in asdict(self).items() if name in names}

    def differences(self, identity: Mapping[str, Any]) -> list[str]:
        """List the options in which this run differs from the identity of an earlier one.

        An entry reads "seed was 0, is 1". An option that `identity` lacks is newer than that run,
        which had its default.

        >>> RunConfig(seed=1).differences({"seed": 0})
        ['seed was 0, is 1']
        """
        defaults = {f.name: plain(f.default) for f in fields(self)}
        lines = []
        for name, value in self.identity().items():
            earlier = identity.get(name, defaults[name])
            if earlier != value:
                lines.append(f"{name} was {earlier}, is {value}")
        return lines

    def to_yaml(self, *, folders: bool = True) -> str:
        """Return all options but those of one call as YAML, for `--config` and `--resume`.

        Without `folders` paths are cut to their last name, for pages that are passed on.

        >>> "data_dir: cifar" in DataConfig(data_dir="/home/me/cifar").to_yaml(folders=False)
        True
        """
        values = {
            name: plain(value if folders else portable(value))
            for name, value in asdict(self).items()
            if name not in ("out", "resume", "quiet")
        }
        return yaml.safe_dump(values, sort_keys=False)


@configuration("data")
class DataConfig(RunConfig):
    """The options on the data of a run that trains weights."""

    dataset: str = option(
        "digits", "digits, cifar10, cifar100, imagenet16-120 or folder", metavar="NAME"
    )
    data_dir: str | None = option(
        None,
        "folder that holds the data set, or to which it is downloaded",
        metavar="DIR",
        identity=False,
    )
    train_images: int | None = option(
        None, "train on this many images only, drawn by the seed", minimum=2
    )
    data_seed: int | None = option(
        None,
        "seed by which --train-images and --holdout draw images, so that runs of several seeds "
        "share them (default: --seed)",
        minimum=0,
    )

    @property
    def about(self) -> str:
        return self.dataset.replace("/", "-")

    @property
    def seed_of_images(self) -> int:
        """The seed by which the images of `train_images` and `holdout` are drawn."""
        return self.seed if self.data_seed is None else self.data_seed


@configuration("network")
class NetworkConfig(DataConfig):
    """The options on the size of the network, beside those on the data."""

    channels: int = option(
        16, "channels of a node in the first cell; each reduction doubles them", minimum=2
    )
    layers: int = option(
        8,
        "cells stacked; those at a third and at two thirds of the depth halve the image's sides",
        minimum=1,
        below=MOST_CELLS + 1,
    )


@configuration("training of the weights")
class WeightsConfig(NetworkConfig):
    """The options on the training of the weights, beside those on data and network."""

    epochs: int = option(50, "passes over the training images", minimum=1)
    batch_size: int = option(64, "images per step, over all processes together", minimum=2)
    optimizer: str = option(
        "sgd",
        "optimizer of the weights: sgd, nesterov, batch_manhattan, or one of timm's such as adamw or "
        "lion",
        metavar="NAME",
    )
    lr: float = option(
        0.025, "learning rate of the weights at the start of its schedule", minimum=0
    )
    lr_min: float = option(
        0.001,
        "learning rate of the weights at the end of a cosine or linear schedule",
        minimum=0,
    )
    momentum: float = option(
        0.9, "momentum of the weights' optimizer, where it has one", minimum=0, below=1
    )
    weight_decay: float = option(3e-4, "weight decay of the weights", minimum=0)
    clip: float = option(5.0, "largest norm of the weights' gradient; 0 for no bound", minimum=0)


@configuration("this run")
class FitConfig(WeightsConfig):
    """The options of all runs that train weights: searches and trainings.

    >>> FitConfig(seeds=3, dataset="cifar10").about
    'cifar10'
    """

    protocol: str = option(
        "auto",
        "recipe for the options that are not given; auto: of the data set or space, else darts",
        metavar="NAME",
        group="training of the weights",
    )
    seeds: int = option(
        1, "number of runs, with the seeds --seed, --seed + 1, ...", minimum=1, identity=False
    )
    amp: Literal["none", "bf16"] = option("none", "bf16: autocast to bfloat16")
    graphs: bool = option(True, "on a GPU, replay steps as CUDA graphs", identity=False)
    log_every: int = option(50, "steps between two records of loss and accuracy", minimum=1)
    log: tuple[str, ...] = option(
        (),
        "send the numbers to mlflow or wandb, too, which are installed beside this package",
        metavar="A,B",
        identity=False,
    )
    save_every: float = option(
        300.0,
        "seconds between two checkpoints within an epoch; 0: after each step",
        minimum=0,
        identity=False,
    )
    rollbacks: int = option(
        0,
        "how often a run that diverges goes back to the beginning of the epoch, and on with half the "
        "learning rate of the weights; 0: it ends",
        minimum=0,
        identity=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for tracker in self.log:
            if tracker not in TRACKERS:
                raise unknown_name("tracker in --log", tracker, TRACKERS)
        refuse_repeated("log", self.log)


@configuration("images")
class SmallImagesConfig(FitConfig):
    """The options of runs on small images, held in memory as one tensor and augmented there.

    >>> SmallImagesConfig(cutout=16).cutout
    16
    """

    image_size: int | None = option(
        None,
        "side in pixels of the images of --dataset folder, resized and the center cut out; left out: 32",
        minimum=4,
    )
    crop_padding: int = option(
        4, "pixels an image is padded by before a random crop; 0 for none", minimum=0
    )
    flip: bool = option(True, "mirror images at random")
    cutout: int = option(0, "side in pixels of the square blanked at random; 0: none", minimum=0)
