"""What each command is told: frozen dataclasses of options, with the protocol of DARTS (arXiv
1806.09055) as defaults.

This module imports no PyTorch, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, ClassVar, Literal

import yaml

from darts_bio.config.options import check_values, configuration, flag, option, plain
from darts_bio.errors import InputError, unknown_name
from darts_bio.registry import canonical_spec

CONFIG_FILE = "config.yaml"


@configuration("plug-ins")
class CommandConfig:
    """What every command can be told. Raises InputError for a value that cannot be meant."""

    command: ClassVar[str]
    """Its name: `darts-bio NAME`."""

    plugin: tuple[str, ...] = option(
        (),
        "modules of yours to import first, such as my_package.my_rule",
        metavar="A,B,...",
        identity=False,
    )

    def __post_init__(self) -> None:
        check_values(self)


@configuration("this run")
class RunConfig(CommandConfig):
    """What all runs, which write a folder, have in common."""

    seed: int = option(
        0,
        "fixes all that is drawn: weights, feedback, alpha, images' order and augmentation",
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
        "go on with the run in --out from its checkpoint; auto: if there is one, else begin",
        identity=False,
    )

    @property
    def about(self) -> str:
        """What the run is of, in a word for its folder's name."""
        return ""

    def identity(self) -> dict[str, Any]:
        """The values that a checkpoint is bound to, as plain data."""
        names = [f.name for f in fields(self) if f.metadata["identity"]]
        return {name: plain(value) for name, value in asdict(self).items() if name in names}

    def differences(self, identity: Mapping[str, Any]) -> list[str]:
        """Say how the identity of an earlier run differs from this one's, an option an entry:
        "channels was 8, is 16".

        An option that it lacks is newer than that run, and had its default then.
        """
        defaults = {f.name: plain(f.default) for f in fields(self)}
        return [
            f"{name} was {identity.get(name, defaults[name])}, is {here}"
            for name, here in self.identity().items()
            if identity.get(name, defaults[name]) != here
        ]

    def to_yaml(self) -> str:
        """Write every value but where this run lies, as `--config` and `--resume` read it."""
        values = {k: plain(v) for k, v in asdict(self).items() if k not in ("out", "resume")}
        return yaml.safe_dump(values, sort_keys=False)


@configuration("data")
class DataConfig(RunConfig):
    """What a run that fits weights is told of its data."""

    dataset: str = option(
        "digits", "digits, cifar10, cifar100, imagenet16-120 or folder", metavar="NAME"
    )
    data_dir: str | None = option(
        None, "where the data set lies, or is downloaded to", metavar="DIR", identity=False
    )
    train_images: int | None = option(
        None, "train on this many images only, drawn by the seed", minimum=2
    )

    @property
    def about(self) -> str:
        return self.dataset.replace("/", "-")


@configuration("network")
class NetworkConfig(DataConfig):
    """What it is told of the network."""

    channels: int = option(
        16, "channels of a node in the first cell; each reduction doubles them", minimum=2
    )
    layers: int = option(
        8, "cells stacked; a third and two thirds of the way they halve the size", minimum=1
    )


@configuration("training of the weights")
class WeightsConfig(NetworkConfig):
    """What it is told of the training of the weights."""

    epochs: int = option(50, "passes over the training images", minimum=1)
    batch_size: int = option(64, "images a step, of all processes together", minimum=2)
    optimizer: str = option(
        "sgd", "of the weights: sgd, or one of timm's such as adamw or lion", metavar="NAME"
    )
    lr: float = option(
        0.025, "learning rate of the weights at the start of its schedule", minimum=0
    )
    lr_min: float = option(
        0.001, "learning rate of the weights at the end of a cosine or a line", minimum=0
    )
    momentum: float = option(
        0.9, "momentum of the weights' optimizer, where it has one", minimum=0, below=1
    )
    weight_decay: float = option(3e-4, "weight decay of the weights", minimum=0)
    clip: float = option(5.0, "largest norm of the weights' gradient; 0 for no bound", minimum=0)


@configuration("this run")
class FitConfig(WeightsConfig):
    """What all runs that fit weights to a data set have in common."""

    seeds: int = option(
        1, "make this many runs, of seeds --seed, --seed + 1, ...", minimum=1, identity=False
    )
    amp: Literal["none", "bf16"] = option("none", "bf16: autocast to bfloat16")
    graphs: bool = option(True, "on a GPU, replay steps as CUDA graphs", identity=False)
    log_every: int = option(50, "steps between two records of the running numbers", minimum=1)


@configuration("images")
class SmallImagesConfig(FitConfig):
    """Of runs on images that lie in memory as one tensor, and are augmented there."""

    image_size: int | None = option(
        None, "side the images of --dataset folder are resized to", minimum=4
    )
    crop_padding: int = option(
        4, "pixels an image is padded by before a random crop; 0 for none", minimum=0
    )
    flip: bool = option(True, "mirror images at random")
    cutout: int = option(0, "side of the square blanked at random; 0 for none", minimum=0)


@configuration("search")
class SearchConfig(SmallImagesConfig):
    """A search. The defaults are those of DARTS on CIFAR-10."""

    command = "search"

    space: str = option(
        "darts", "search space, such as darts or 'darts(layout=paper)'", metavar="SPEC"
    )
    rules: tuple[str, ...] = option(
        ("fa", "usf", "brsf", "frsf"),
        "learning rules that operations are paired with; bp alone is plain DARTS",
    )
    strategy: str = option(
        "darts", "search strategy, such as darts or 'darts(lr=6e-4)'", metavar="SPEC"
    )
    objective: tuple[str, ...] = option(
        (),
        "costs added to the validation loss: parameters, multiply_adds, weight_transport, as "
        "'NAME(weight=0.1)'",
    )
    regularizers: tuple[str, ...] = option(
        (),
        "such as 'warmup(epochs=15)', 'entropy(weight=0.1)', skip_stop, eigenvalue_stop, "
        "factorised",
    )
    supernet: str | None = option(
        None, "run folder of a search whose trained supernet this one starts from", metavar="RUN"
    )
    table: str | None = option(
        None,
        "JSON or CSV file of NAS-Bench-201's accuracies, to look the cell up in",
        metavar="FILE",
        identity=False,
    )
    arch_gradient: Literal["rule", "true"] = option(
        "rule", "whether alpha's gradient goes down through the rules' error or the exact one"
    )
    backbone_rule: str = option(
        "bp", "learning rule of stem, preprocessing and classifier", metavar="RULE"
    )
    share: Literal["seeds", "batch"] = option(
        "seeds",
        "what processes of torchrun share out, where there are several --seeds: seeds: each search "
        "is one process' "
        "alone; batch: all share each batch of a search, one search after the other, as with a "
        "single seed",
        identity=False,
        group="this run",
    )
    memory: Literal["normal", "low"] = option(
        "normal", "low: the supernet keeps 40 % less, at a quarter to a third more time"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rules:
            raise InputError(
                "--rules: expected at least one learning rule, found none; use for example --rules "
                "fa,usf"
            )
        for name in ("rules", "objective", "regularizers"):
            object.__setattr__(self, name, tuple(map(canonical_spec, getattr(self, name))))
            _refuse_repeated(name, getattr(self, name))
        object.__setattr__(self, "backbone_rule", canonical_spec(self.backbone_rule))
        if self.table is not None and canonical_spec(self.space).partition("(")[0] != "nb201":
            raise InputError(
                f"--table: expected --space nb201, whose cells it knows, found {self.space}"
            )


@configuration("recipe")
class TrainingConfig(FitConfig):
    """A genotype's network trained from scratch."""

    genotype: str = option(
        "",
        "a shipped name, a JSON file, a search's run folder, DARTS-style or NAS-Bench-201 text; "
        "required",
        metavar="X",
        group="data",
    )
    stem: str = option(
        "cifar", "what stands before the cells: cifar, imagenet or one of yours", metavar="NAME"
    )
    protocol: str = option(
        "auto",
        "recipe of what is not given; auto: of the data set or the space, else darts",
        metavar="NAME",
    )
    schedule: str = option(
        "cosine",
        "how the learning rate goes from one epoch to the next: cosine, linear, exponential",
        metavar="NAME",
    )
    lr_decay: float = option(
        0.97, "factor of the learning rate an epoch, of the exponential schedule", minimum=0
    )
    lr_batch: int = option(
        0, "batch size --lr is meant for: it is scaled with the batch size; 0: as it is", minimum=0
    )
    warmup: int = option(0, "epochs in which the learning rate grows to --lr", minimum=0)
    accumulate: int = option(
        1, "parts a batch is passed through the network in, one after the other", minimum=1
    )
    auxiliary: float = option(
        0.4, "weight of the auxiliary head's loss; 0 leaves the head out", minimum=0
    )
    drop_path: float = option(
        0.2, "probability of dropping an edge at the end, growing from 0", minimum=0, below=1
    )
    label_smoothing: float = option(
        0.0, "share of a label that is spread over all classes", minimum=0, below=1
    )
    mixup: float = option(0.0, "alpha of mixup, through timm; 0 for none", minimum=0)
    cutmix: float = option(0.0, "alpha of cutmix, through timm; 0 for none", minimum=0)
    auto_augment: str = option(
        "", "timm's augmentation policy, such as rand-m9-mstd0.5", metavar="TEXT"
    )
    workers: int | None = option(
        None,
        "processes that read, and augment by a policy; 0: this one does (default: as many as "
        "cores, at most 16)",
        minimum=0,
        identity=False,
    )
    adversarial: str = option(
        "",
        "train on adversarial examples: 'pgd(eps=8)', 'trades(beta=6)', 'pgd(gradient=rule)'",
        metavar="SPEC",
    )
    ema: float = option(
        0.0,
        "decay of the averaged network, which is then the result; 0 for none",
        minimum=0,
        below=1,
    )
    holdout: int = option(
        0,
        "training images held out and measured after each epoch; the test images then only at the "
        "end",
        minimum=0,
    )
    alignment_every: int = option(
        0,
        "measure how near learning is to backpropagation every N epochs; 0 for never",
        minimum=0,
        identity=False,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.genotype:
            raise InputError(
                "--genotype is required: a shipped name, a JSON file, a run folder, DARTS-style or "
                "NAS-Bench-201 text"
            )
        object.__setattr__(
            self, "adversarial", canonical_spec(self.adversarial) if self.adversarial else ""
        )
        if self.batch_size % self.accumulate:
            raise InputError(
                f"--accumulate: expected a divisor of the batch size {self.batch_size}, found "
                f"{self.accumulate}"
            )
        if self.warmup >= self.epochs and self.warmup:
            raise InputError(
                f"--warmup: expected fewer than the {self.epochs} epochs there are, found "
                f"{self.warmup}"
            )


@configuration(
    "images", channels=36, layers=20, epochs=600, batch_size=96, lr_min=0.0, cutout=16,
)  # fmt: skip
class RetrainConfig(TrainingConfig, SmallImagesConfig):
    """A training on small images. The defaults are those of DARTS on CIFAR-10."""

    command = "train"


@configuration(
    "images", dataset="", stem="imagenet", channels=48, layers=14, epochs=250, batch_size=128, schedule="exponential",
    lr=0.1, lr_min=0.0, weight_decay=3e-5, label_smoothing=0.1, drop_path=0.0,
)  # fmt: skip
class ImageNetConfig(TrainingConfig):
    """A training on ImageNet, or other images of its kind. The defaults are those of DARTS."""

    command = "train-imagenet"

    train_split: str = option(
        "train", "the part, or folder, that is trained on", metavar="NAME", group="data"
    )
    test_split: str = option(
        "validation", "the part, or folder, that is measured on", metavar="NAME", group="data"
    )
    num_classes: int | None = option(
        None, "classes, if not as many as there are class folders", minimum=1, group="data"
    )
    image_size: int = option(224, "side of the images", minimum=8)
    crop_share: float = option(
        0.875, "side that is measured over the shorter side of the image", minimum=0.1
    )
    color_jitter: float = option(
        0.4,
        "strength for brightness, contrast and saturation, half for hue; 0 for none; a policy goes "
        "before",
        minimum=0,
    )
    flip: bool = option(True, "mirror images at random")


@configuration("attacks")
class RobustnessConfig(RunConfig):
    """Attacks on trained networks."""

    command = "robustness"

    checkpoint: tuple[str, ...] = option(
        (),
        "run folders of trainings, side by side; of one with several seeds all of them; required",
        metavar="RUN,...",
    )
    attacks: tuple[str, ...] = option(
        ("fgsm", "pgd", "apgd_ce", "apgd_dlr", "square"),
        "such as fgsm or 'pgd(steps=50, restarts=5)'",
    )
    eps: tuple[float, ...] = option(
        (1.0, 2.0, 4.0, 8.0),
        "how much a pixel may change, in 1/255 of its range",
        minimum=0.01,
        below=256,
    )
    gradients: tuple[str, ...] = option(
        ("true",),
        "by which attacks climb: true, the exact one; rule, what the learning rules send down",
    )
    draws: int = option(
        1, "draws of random feedback that the rule's gradient is the mean of", minimum=1
    )
    transfer: str = option(
        "", "attack whose images made on each network are tried on the others", metavar="SPEC"
    )
    corruptions: tuple[str, ...] = option(
        (), "common corruptions, such as gaussian_noise,gaussian_blur; or all"
    )

    images: int = option(
        1000, "test images, drawn by the seed; fewer if there are no more", minimum=1
    )
    batch_size: int = option(250, "images at once", minimum=1)
    data_dir: str | None = option(
        None, "where the data lie, if not where the runs found them", metavar="DIR", identity=False
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise InputError(
                "--checkpoint is required: one or several run folders of trainings, separated by "
                "commas"
            )
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


@configuration("measurement")
class AlignmentConfig(CommandConfig):
    """How near a trained network's learning is to backpropagation."""

    command = "alignment"

    checkpoint: str = option("", "the run folder of a training; required", metavar="RUN")
    data_dir: str | None = option(
        None, "where the data lie, if not where the run found them", metavar="DIR"
    )
    batches: int = option(8, "training batches to measure on", minimum=2)
    device: str = option("auto", "auto, cpu, cuda or cuda:N", metavar="NAME")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.checkpoint:
            raise InputError("--checkpoint is required: the run folder of a training")


@configuration("what is written")
class ExportConfig(CommandConfig):
    """A trained network in the forms of other libraries."""

    command = "export"

    source: str = option(
        "", "run folder of a training, or its checkpoint.pt", metavar="RUN", positional=True
    )
    onnx: str | None = option(None, "ONNX model", metavar="FILE")
    program: str | None = option(None, "program for torch.export.load", metavar="FILE.pt2")
    hub: str | None = option(
        None, 'new folder for timm.create_model("local-dir:DIR") or the Hub', metavar="DIR"
    )
    batch: int | None = option(None, "fix the number of images at once (default: any)", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.onnx or self.program or self.hub):
            raise InputError(
                "export: expected something to write; give --onnx FILE, --program FILE.pt2 or "
                "--hub DIR"
            )
        if self.batch is not None and not (self.onnx or self.program):
            raise InputError("--batch: expected together with --onnx or --program, found neither")


@configuration("what is shown")
class GenotypeConfig(CommandConfig):
    """A genotype, shown and drawn, or what the shipped ones cost."""

    command = "genotype"

    source: str | None = option(
        None,
        "a shipped name, a JSON file, a run folder, DARTS-style or NAS-Bench-201 text",
        metavar="X",
        positional=True,
    )
    json: str | None = option(None, "write it as a genotype file", metavar="FILE")
    svg: str | None = option(None, "draw its cells", metavar="FILE")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is None and (self.json or self.svg):
            raise InputError("genotype: --json and --svg need a genotype X to write")


@configuration("network")
class AuditConfig(CommandConfig):
    """Which layers of a genotype's network transport weights."""

    command = "audit"

    source: str = option("", "a genotype, named as for `genotype`", metavar="X", positional=True)
    channels: int = option(36, "channels of a node in the first cell", minimum=2)
    layers: int = option(20, "cells stacked", minimum=1)


@configuration("what is shown")
class RulesConfig(CommandConfig):
    """The table of learning rules, or the page of one."""

    command = "rules"

    name: str | None = option(None, "the name of a rule", metavar="RULE", positional=True)


@configuration("what is shown")
class ListConfig(CommandConfig):
    """Every name that an option takes."""

    command = "list"


@configuration("what is run")
class TimmConfig(CommandConfig):
    """A script of timm's, run with this package's models registered."""

    command = "timm"

    script: str = option(
        "", "your copy of timm's train.py, validate.py, ...", metavar="SCRIPT", positional=True
    )
    arguments: tuple[str, ...] = option(
        (), "the script's own, as it takes them", metavar="ARGS", positional=True
    )


RUNS: Mapping[str, type[RunConfig]] = {
    cls.command: cls for cls in (SearchConfig, RetrainConfig, ImageNetConfig, RobustnessConfig)
}
"""The configurations of commands that write a run folder, by the command's name."""


def _refuse_repeated(name: str, given: Sequence[Any]) -> None:
    """Raise InputError if an option holds something twice."""
    twice = sorted({value for value in given if given.count(value) > 1})
    if twice:
        what = "rule" if name == "rules" else "of them"
        raise InputError(
            f"{flag(name)}: expected each {what} once, found {', '.join(map(str, twice))} more "
            "than once"
        )
