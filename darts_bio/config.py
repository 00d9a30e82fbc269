"""What a run is made of, once: frozen dataclasses from which the command line, the YAML files and the checks follow.

The defaults are the protocol of DARTS (arXiv 1806.09055). This module imports no PyTorch, so that `--help` answers at
once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar

import yaml

from darts_bio.errors import InputError, unknown_name
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
    """What all runs have in common. Raises InputError for a value that is out of bounds."""

    seed: int = option(0, "fixes all that is drawn at random", minimum=0)
    device: str = option("auto", "auto, cpu, cuda or cuda:N", identity=False)
    out: str | None = option(
        None, "run folder, new or empty (default: runs/KIND-DATASET-TIME)", metavar="DIR", identity=False
    )
    resume: bool = option(False, "go on with the run in --out from its checkpoint", identity=False)
    plugin: tuple[str, ...] = option((), "modules to import first, such as my_package.my_rule", identity=False)

    @property
    def about(self) -> str:
        """What the run is of, in a word for its folder's name."""
        return ""

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
class FitConfig(RunConfig):
    """What all runs that fit weights to a data set have in common."""

    dataset: str = option("digits", "digits, cifar10, cifar100, imagenet16-120 or folder", metavar="NAME")
    data_dir: str | None = option(None, "where the data set lies, or is downloaded to", metavar="DIR", identity=False)
    train_images: int | None = option(None, "train on this many images only, drawn by the seed", minimum=2)

    channels: int = option(16, "channels of a node in the first cell; each reduction doubles them", minimum=2)
    layers: int = option(8, "cells stacked; a third and two thirds of the way they halve the size", minimum=1)

    epochs: int = option(50, "passes over the training images", minimum=1)
    batch_size: int = option(64, "images a step", minimum=2)
    optimizer: str = option("sgd", "of the weights: sgd, or one of timm's such as adamw or lion", metavar="NAME")
    lr: float = option(0.025, "learning rate of the weights at the start of its schedule", minimum=0)
    lr_min: float = option(0.001, "learning rate of the weights at the end of a cosine or a line", minimum=0)
    momentum: float = option(0.9, "momentum of the weights' optimizer, where it has one", minimum=0, below=1)
    weight_decay: float = option(3e-4, "weight decay of the weights", minimum=0)
    clip: float = option(5.0, "largest norm of the weights' gradient; 0 for no bound", minimum=0)

    seed: int = option(0, "fixes weights, feedback, alpha, the order of the data and its augmentation", minimum=0)
    amp: Literal["none", "bf16"] = option("none", "bf16: autocast to bfloat16")
    graphs: bool = option(True, "on a GPU, replay the passes of the network as CUDA graphs", identity=False)
    log_every: int = option(50, "steps between two records of the running numbers", minimum=1)

    @property
    def about(self) -> str:
        return self.dataset.replace("/", "-")


@dataclass(frozen=True, kw_only=True)
class SmallImagesConfig(FitConfig):
    """Of runs on images that lie in memory as one tensor, and are augmented there."""

    image_size: int | None = option(None, "side the images of --dataset folder are resized to", minimum=4)
    crop_padding: int = option(4, "pixels an image is padded by before a random crop; 0 for none", minimum=0)
    flip: bool = option(True, "mirror images at random")
    cutout: int = option(0, "side of the square blanked at random; 0 for none", minimum=0)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(SmallImagesConfig):
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
            _refuse_repeated(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(FitConfig):
    """A genotype's network trained from scratch."""

    stem: ClassVar[str]
    """The network's form, of `networks.STEMS`."""

    genotype: str = option(
        "",
        "a shipped name, a JSON file, a search's run folder, DARTS-style or NAS-Bench-201 text; required",
        metavar="X",
    )
    protocol: str = option(
        "auto", "recipe of what is not given; auto: of the data set or the space, else darts", metavar="NAME"
    )
    schedule: Literal["cosine", "linear", "exponential"] = option(
        "cosine", "how the learning rate falls from one epoch to the next"
    )
    lr_decay: float = option(0.97, "factor of the learning rate an epoch, of the exponential schedule", minimum=0)
    lr_batch: int = option(0, "batch size --lr is meant for: it is scaled with the batch size; 0: as it is", minimum=0)
    warmup: int = option(0, "epochs in which the learning rate grows to --lr", minimum=0)
    accumulate: int = option(1, "parts a batch is passed through the network in, one after the other", minimum=1)
    auxiliary: float = option(0.4, "weight of the auxiliary head's loss; 0 leaves the head out", minimum=0)
    drop_path: float = option(0.2, "probability of dropping an edge at the end, growing from 0", minimum=0, below=1)
    label_smoothing: float = option(0.0, "share of a label that is spread over all classes", minimum=0, below=1)
    mixup: float = option(0.0, "alpha of mixup, through timm; 0 for none", minimum=0)
    cutmix: float = option(0.0, "alpha of cutmix, through timm; 0 for none", minimum=0)
    auto_augment: str = option("", "timm's augmentation policy, such as rand-m9-mstd0.5", metavar="TEXT")
    workers: int | None = option(
        None,
        "processes that read, and augment by a policy; 0: this one does (default: as many as cores, at most 16)",
        minimum=0,
        identity=False,
    )
    adversarial: str = option(
        "", "train on adversarial examples: 'pgd(eps=8)', 'trades(beta=6)', 'pgd(gradient=rule)'", metavar="SPEC"
    )
    ema: float = option(0.0, "decay of the averaged network, which is then the result; 0 for none", minimum=0, below=1)
    holdout: int = option(
        0, "training images held out and measured after each epoch; the test images then only at the end", minimum=0
    )
    alignment_every: int = option(
        0, "measure how near learning is to backpropagation every N epochs; 0 for never", minimum=0, identity=False
    )
    seeds: int = option(1, "train this many networks, of seeds --seed, --seed + 1, ...", minimum=1, identity=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.genotype:
            raise InputError(
                "--genotype is required: a shipped name, a JSON file, a run folder, DARTS-style or NAS-Bench-201 text"
            )
        object.__setattr__(self, "adversarial", canonical_spec(self.adversarial) if self.adversarial else "")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"--accumulate: expected a divisor of the batch size {self.batch_size}, found {self.accumulate}"
            )
        if self.warmup >= self.epochs and self.warmup:
            raise InputError(f"--warmup: expected fewer than the {self.epochs} epochs there are, found {self.warmup}")


@dataclass(frozen=True, kw_only=True)
class RetrainConfig(TrainingConfig, SmallImagesConfig):
    """On small images. The defaults are those of DARTS on CIFAR-10."""

    stem = "cifar"

    channels: int = option(36, "channels of a node in the first cell; each reduction doubles them", minimum=2)
    layers: int = option(20, "cells stacked; a third and two thirds of the way they halve the size", minimum=1)
    epochs: int = option(600, "passes over the training images", minimum=1)
    batch_size: int = option(96, "images a step, of all processes together", minimum=2)
    lr_min: float = option(0.0, "learning rate of the weights at the end of a cosine or a line", minimum=0)
    cutout: int = option(16, "side of the square blanked at random; 0 for none", minimum=0)


@dataclass(frozen=True, kw_only=True)
class ImageNetConfig(TrainingConfig):
    """On ImageNet, or other images of its kind. The defaults are those of DARTS."""

    stem = "imagenet"

    dataset: str = option(
        "",
        "timm's name of the data set, such as hfds/NAME or wds/NAME; by default a folder or tar files",
        metavar="NAME",
    )
    train_split: str = option("train", "the part, or folder, that is trained on", metavar="NAME")
    test_split: str = option("validation", "the part, or folder, that is measured on", metavar="NAME")
    num_classes: int | None = option(None, "classes, if not as many as there are class folders", minimum=1)
    image_size: int = option(224, "side of the images", minimum=8)
    crop_share: float = option(0.875, "side that is measured over the shorter side of the image", minimum=0.1)
    color_jitter: float = option(
        0.4,
        "strength for brightness, contrast and saturation, half for hue; 0 for none; a policy goes before",
        minimum=0,
    )
    flip: bool = option(True, "mirror images at random")

    channels: int = option(48, "channels of a node in the first cell; each reduction doubles them", minimum=2)
    layers: int = option(14, "cells stacked; a third and two thirds of the way they halve the size", minimum=1)
    epochs: int = option(250, "passes over the training images", minimum=1)
    batch_size: int = option(128, "images a step, of all processes together", minimum=2)
    schedule: Literal["cosine", "linear", "exponential"] = option(
        "exponential", "how the learning rate falls from one epoch to the next"
    )
    lr: float = option(0.1, "learning rate of the weights at the start of its schedule", minimum=0)
    lr_min: float = option(0.0, "learning rate of the weights at the end of a cosine or a line", minimum=0)
    weight_decay: float = option(3e-5, "weight decay of the weights", minimum=0)
    label_smoothing: float = option(0.1, "share of a label that is spread over all classes", minimum=0, below=1)
    drop_path: float = option(0.0, "probability of dropping an edge at the end, growing from 0", minimum=0, below=1)


@dataclass(frozen=True, kw_only=True)
class RobustnessConfig(RunConfig):
    """Attacks on trained networks."""

    checkpoint: tuple[str, ...] = option(
        (), "run folders of trainings, side by side; of one with several seeds all of them; required", metavar="RUN,..."
    )
    attacks: tuple[str, ...] = option(
        ("fgsm", "pgd", "apgd_ce", "apgd_dlr", "square"), "such as fgsm or 'pgd(steps=50, restarts=5)'"
    )
    eps: tuple[float, ...] = option(
        (1.0, 2.0, 4.0, 8.0), "how much a pixel may change, in 1/255 of its range", minimum=0.01, below=256
    )
    gradients: tuple[str, ...] = option(
        ("true",), "by which attacks climb: true, the exact one; rule, what the learning rules send down"
    )
    draws: int = option(1, "draws of random feedback that the rule's gradient is the mean of", minimum=1)
    transfer: str = option("", "attack whose images made on each network are tried on the others", metavar="SPEC")
    corruptions: tuple[str, ...] = option((), "common corruptions, such as gaussian_noise,gaussian_blur; or all")

    images: int = option(1000, "test images, drawn by the seed; fewer if there are no more", minimum=1)
    batch_size: int = option(250, "images at once", minimum=1)
    data_dir: str | None = option(
        None, "where the data lie, if not where the runs found them", metavar="DIR", identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise InputError("--checkpoint is required: one or several run folders of trainings, separated by commas")
        for name in ("attacks", "eps", "gradients"):
            if not getattr(self, name):
                raise InputError(f"--{name}: expected at least one, found none")
        for side in self.gradients:
            if side not in ("true", "rule"):
                raise unknown_name("value of --gradients", side, ("true", "rule"))
        object.__setattr__(self, "attacks", tuple(map(canonical_spec, self.attacks)))
        object.__setattr__(self, "transfer", canonical_spec(self.transfer) if self.transfer else "")
        object.__setattr__(self, "eps", tuple(sorted(self.eps)))
        for name in ("checkpoint", "attacks", "eps", "gradients", "corruptions"):
            _refuse_repeated(name, getattr(self, name))


PRESETS: Mapping[type[RunConfig], Mapping[str, Mapping[str, Any]]] = {
    SearchConfig: {
        # Sized for two CPU cores: 8x8 images of digits, on which a mirror image is another shape.
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
        },
        # The benchmark's network, and its augmentation of 16x16 images (arXiv 2001.00326).
        "nb201": {"layers": 15},
        "imagenet16-120": {"crop_padding": 2},
    },
    RetrainConfig: {
        "darts": {},
        # A short recipe of today's usual parts; what it reaches has not been measured.
        "fast": {
            "epochs": 100,
            "batch_size": 128,
            "optimizer": "nesterov",
            "lr": 0.1,
            "warmup": 5,
            "weight_decay": 5e-4,
            "label_smoothing": 0.1,
            "drop_path": 0.1,
            "ema": 0.999,
            "amp": "bf16",
        },
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
        },
        # Images of 16x16 are too small for an auxiliary head.
        "imagenet16-120": {"crop_padding": 2, "cutout": 0, "auxiliary": 0.0},
        # The benchmark's training (arXiv 2001.00326).
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
        },
    },
    ImageNetConfig: {
        "darts": {},
        # The other published schedule (arXiv 1904.12760, 1907.05737).
        "p_darts": {"batch_size": 1024, "schedule": "linear", "lr": 0.5, "warmup": 5},
        # Today's usual parts; what it reaches has not been measured.
        "modern": {
            "epochs": 300,
            "batch_size": 1024,
            "optimizer": "nesterov",
            "schedule": "cosine",
            "lr": 0.5,
            "warmup": 5,
            "mixup": 0.1,
            "auto_augment": "rand-m5-mstd0.5",
            "color_jitter": 0.0,
            "ema": 0.9999,
            "amp": "bf16",
        },
    },
    RobustnessConfig: {},
}
"""Values by the name of a protocol, a data set or a space, for what is not given."""


SCRIPTS: Mapping[type[RunConfig], str] = {
    SearchConfig: "search/run.py",
    RetrainConfig: "evaluate/train_cifar.py",
    ImageNetConfig: "evaluate/train_imagenet.py",
    RobustnessConfig: "evaluate/robustness.py",
}


C = TypeVar("C", bound=RunConfig)


def class_of(options: Collection[str], expected: type[C], *others: type[C]) -> type[C]:
    """Which configuration an earlier run's options are of: that which knows most of them, in doubt the first."""
    return max((expected, *others), key=lambda cls: len({f.name for f in fields(cls)}.intersection(options)))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def flag(name: str) -> str:
    """The option of a field, as the command line has it."""
    return "--" + name.replace("_", "-")


def _refuse_repeated(name: str, given: Sequence[Any]) -> None:
    """Raises InputError if an option holds something twice."""
    twice = sorted({value for value in given if given.count(value) > 1})
    if twice:
        what = "rule" if name == "rules" else "of them"
        raise InputError(f"--{name}: expected each {what} once, found {', '.join(map(str, twice))} more than once")


def _check(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if isinstance(value, tuple):
        for item in value:
            _check(name, item, metadata)
        return
    minimum, below = metadata["minimum"], metadata["below"]
    if value is None or (minimum is None and below is None):
        return
    # Written so that "not a number" fails both.
    low_enough = below is None or value < below
    if not (value >= minimum and low_enough and value != float("inf")):
        bounds = f"at least {minimum}" + (f" and below {below}" if below is not None else "")
        raise InputError(f"{flag(name)}: expected {bounds}, found {value}")
