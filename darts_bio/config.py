"""What a run is made of, once: frozen dataclasses from which the command line, the YAML files and the checks follow.

The defaults are the protocol of DARTS (arXiv 1806.09055). This module imports no PyTorch, so that `--help` answers at
once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import yaml

from darts_bio.errors import InputError
from darts_bio.registry import canonical_spec

CONFIG_FILE = "config.yaml"


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    below: float | None = None,
    metavar: str | None = None,
    identity: bool = True,
) -> Any:
    """A field of a configuration.

    `minimum` is the least value, `below` a bound that is not reached. `identity` says whether a checkpoint of one value
    is of no use under another; where it is False the value may change when a run is resumed.
    """
    metadata = {"help": help, "minimum": minimum, "below": below, "metavar": metavar, "identity": identity}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What search and retraining have in common. Raises InputError for a value that is out of bounds."""

    dataset: str = option("digits", "digits, cifar10, cifar100, imagenet16-120 or folder", metavar="NAME")
    data_dir: str | None = option(None, "where the data set lies, or is downloaded to", metavar="DIR", identity=False)
    image_size: int | None = option(None, "side the images of --dataset folder are resized to", minimum=4)
    train_images: int | None = option(None, "train on this many images only, drawn by the seed", minimum=2)

    channels: int = option(16, "channels of a node in the first cell; each reduction doubles them", minimum=2)
    layers: int = option(8, "cells stacked; a third and two thirds of the way they halve the size", minimum=1)

    epochs: int = option(50, "passes over the training images", minimum=1)
    batch_size: int = option(64, "images a step", minimum=2)
    optimizer: str = option("sgd", "of the weights: sgd, or one of timm's such as adamw or lion", metavar="NAME")
    lr: float = option(0.025, "learning rate of the weights at the start of its cosine", minimum=0)
    lr_min: float = option(0.001, "learning rate of the weights at the end", minimum=0)
    momentum: float = option(0.9, "momentum of the weights' optimizer, where it has one", minimum=0, below=1)
    weight_decay: float = option(3e-4, "weight decay of the weights", minimum=0)
    clip: float = option(5.0, "largest norm of the weights' gradient; 0 for no bound", minimum=0)
    crop_padding: int = option(4, "pixels an image is padded by before a random crop; 0 for none", minimum=0)
    flip: bool = option(True, "mirror images at random")
    cutout: int = option(0, "side of the square blanked at random; 0 for none", minimum=0)

    seed: int = option(0, "fixes weights, feedback, alpha, the order of the data and its augmentation", minimum=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N", identity=False)
    amp: Literal["none", "bf16"] = option("none", "bf16: autocast to bfloat16")
    graphs: bool = option(True, "on a GPU, replay the passes of the network as CUDA graphs", identity=False)
    log_every: int = option(50, "steps between two records of the running numbers", minimum=1)

    out: str | None = option(
        None, "run folder, new or empty (default: runs/KIND-DATASET-TIME)", metavar="DIR", identity=False
    )
    resume: bool = option(False, "go on with the run in --out from its checkpoint", identity=False)
    plugin: tuple[str, ...] = option((), "modules to import first, such as my_package.my_rule", identity=False)

    def __post_init__(self) -> None:
        for f in fields(self):
            _check(f.name, getattr(self, f.name), f.metadata)

    def identity(self) -> dict[str, Any]:
        """The values that a checkpoint is bound to, as plain data."""
        names = [f.name for f in fields(self) if f.metadata["identity"]]
        return {name: _plain(value) for name, value in asdict(self).items() if name in names}

    def differences(self, identity: Mapping[str, Any]) -> list[str]:
        """How the identity of an earlier run differs from this one's, an option an entry: "channels was 8, is 16".

        An option that it lacks is newer than that run, and had its default then.
        """
        defaults = {f.name: _plain(f.default) for f in fields(self)}
        return [
            f"{name} was {identity.get(name, defaults[name])}, is {here}"
            for name, here in self.identity().items()
            if identity.get(name, defaults[name]) != here
        ]

    def to_yaml(self) -> str:
        """Every value but where this run lies, as `--config` and `--resume` read it."""
        values = {k: _plain(v) for k, v in asdict(self).items() if k not in ("out", "resume")}
        return yaml.safe_dump(values, sort_keys=False)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(RunConfig):
    """A search. The defaults are those of DARTS on CIFAR-10."""

    space: str = option("darts", "search space, such as darts or 'darts(layout=paper)'", metavar="SPEC")
    rules: tuple[str, ...] = option(
        ("fa", "usf", "brsf", "frsf"), "learning rules that operations are paired with; bp alone is plain DARTS"
    )
    strategy: str = option("darts", "search strategy, such as darts or 'darts(lr=6e-4)'", metavar="SPEC")
    objective: tuple[str, ...] = option(
        (), "costs added to the validation loss: parameters, multiply_adds, weight_transport, as 'NAME(weight=0.1)'"
    )
    regularizers: tuple[str, ...] = option(
        (), "such as 'warmup(epochs=15)', 'entropy(weight=0.1)', skip_stop, eigenvalue_stop, factorised"
    )
    supernet: str | None = option(
        None, "run folder of a search whose trained supernet this one starts from", metavar="RUN"
    )
    table: str | None = option(
        None, "JSON or CSV file of NAS-Bench-201's accuracies, to look the cell up in", metavar="FILE", identity=False
    )
    arch_gradient: Literal["rule", "true"] = option(
        "rule", "whether alpha's gradient goes down through the rules' error or the exact one"
    )
    backbone_rule: str = option("bp", "learning rule of stem, preprocessing and classifier", metavar="RULE")
    memory: Literal["normal", "low"] = option(
        "normal", "low: the supernet keeps 40 % less, at a quarter to a third more time"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rules:
            raise InputError("--rules: expected at least one learning rule, found none; use for example --rules fa,usf")
        object.__setattr__(self, "rules", tuple(map(canonical_spec, self.rules)))
        object.__setattr__(self, "objective", tuple(map(canonical_spec, self.objective)))
        object.__setattr__(self, "regularizers", tuple(map(canonical_spec, self.regularizers)))
        object.__setattr__(self, "backbone_rule", canonical_spec(self.backbone_rule))
        for name in ("rules", "objective", "regularizers"):
            given = getattr(self, name)
            twice = sorted({spec for spec in given if given.count(spec) > 1})
            if twice:
                what = "rule" if name == "rules" else "of them"
                raise InputError(f"--{name}: expected each {what} once, found {', '.join(twice)} more than once")


@dataclass(frozen=True, kw_only=True)
class RetrainConfig(RunConfig):
    """A genotype's network trained from scratch. The defaults are those of DARTS on CIFAR-10."""

    genotype: str = option(
        "",
        "a shipped name, a JSON file, a search's run folder, DARTS-style or NAS-Bench-201 text; required",
        metavar="X",
    )
    channels: int = option(36, "channels of a node in the first cell; each reduction doubles them", minimum=2)
    layers: int = option(20, "cells stacked; a third and two thirds of the way they halve the size", minimum=1)
    epochs: int = option(600, "passes over the training images", minimum=1)
    batch_size: int = option(96, "images a step", minimum=2)
    lr_min: float = option(0.0, "learning rate of the weights at the end", minimum=0)
    cutout: int = option(16, "side of the square blanked at random; 0 for none", minimum=0)
    auxiliary: float = option(0.4, "weight of the auxiliary head's loss; 0 leaves the head out", minimum=0)
    alignment_every: int = option(
        0, "measure how near learning is to backpropagation every N epochs; 0 for never", minimum=0, identity=False
    )
    drop_path: float = option(0.2, "probability of dropping an edge at the end, growing from 0", minimum=0, below=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.genotype:
            raise InputError(
                "--genotype is required: a shipped name, a JSON file, a run folder, DARTS-style or NAS-Bench-201 text"
            )


PRESETS: Mapping[type[RunConfig], Mapping[str, Mapping[str, Any]]] = {
    # Sized for two CPU cores: 8x8 images of digits, on which a mirror image is another shape.
    SearchConfig: {
        "digits": {
            "space": "darts(nodes=2)",
            "strategy": "darts(lr=0.01)",
            "channels": 8,
            "layers": 3,
            "epochs": 6,
            "batch_size": 64,
            "lr": 0.1,
            "crop_padding": 1,
            "flip": False,
            "log_every": 5,
        }
    },
    RetrainConfig: {
        "digits": {
            "channels": 16,
            "layers": 3,
            "epochs": 30,
            "batch_size": 64,
            "lr": 0.1,
            "crop_padding": 1,
            "flip": False,
            "cutout": 0,
            "auxiliary": 0.0,
            "drop_path": 0.0,
            "log_every": 10,
        }
    },
}


SPACE_PRESETS: Mapping[type[RunConfig], Mapping[str, Mapping[str, Any]]] = {
    # The benchmark's network and its training (arXiv 2001.00326). A data set's preset goes before.
    SearchConfig: {"nb201": {"layers": 15}},
    RetrainConfig: {
        "nb201": {
            "channels": 16,
            "layers": 15,
            "epochs": 200,
            "batch_size": 256,
            "optimizer": "nesterov",
            "lr": 0.1,
            "weight_decay": 5e-4,
            "clip": 0.0,
            "cutout": 0,
            "auxiliary": 0.0,
            "drop_path": 0.0,
        }
    },
}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def flag(name: str) -> str:
    """The option of a field, as the command line has it."""
    return "--" + name.replace("_", "-")


def _check(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    minimum, below = metadata["minimum"], metadata["below"]
    if value is None or (minimum is None and below is None):
        return
    # Written so that "not a number" fails both.
    low_enough = below is None or value < below
    if not (value >= minimum and low_enough and value != float("inf")):
        bounds = f"at least {minimum}" + (f" and below {below}" if below is not None else "")
        raise InputError(f"{flag(name)}: expected {bounds}, found {value}")
