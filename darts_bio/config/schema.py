"""The options of each command, as frozen dataclasses.

The defaults are the protocol of DARTS (arXiv 1806.09055). The help texts are what `--help` shows.
This module imports no PyTorch, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, ClassVar, Literal

import yaml

from darts_bio.bounded import MOST_CELLS
from darts_bio.config.options import check_values, configuration, flag, option, plain
from darts_bio.config.stages import Stage, build_stages
from darts_bio.errors import InputError, unknown_name
from darts_bio.invocation import portable

CONFIG_FILE = "config.yaml"
"""The file of a run folder that holds the run's options."""


CHART_FORMATS = ("png", "pdf")
"""The formats that `--charts` names; SVG, which reports show, is always written."""


def _charts() -> Any:
    """Declare the option of the formats of charts."""
    return option(
        (),
        "write charts as png or pdf, too, beside the svg of reports",
        metavar="A,B",
        identity=False,
    )


def _check_charts(charts: Sequence[str]) -> None:
    """Raise InputError for a format that charts are not written in."""
    for form in charts:
        if form not in CHART_FORMATS:
            raise unknown_name("format in --charts", form, CHART_FORMATS)


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
    charts: tuple[str, ...] = _charts()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_charts(self.charts)

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


@configuration("search")
class SearchConfig(SmallImagesConfig):
    """The options of a search; the defaults are those of DARTS on CIFAR-10.

    >>> config = SearchConfig(rules="usf, fa", strategy="darts(lr=6e-4)")
    >>> config.rules, config.strategy, config.channels
    (('usf', 'fa'), 'darts(lr=0.0006)', 16)
    """

    command = "search"

    space: str = option(
        "darts",
        "search space, such as darts or 'darts(layout=paper)'",
        metavar="SPEC",
        spec=True,
    )
    rules: tuple[str, ...] = option(
        ("fa", "usf", "brsf", "frsf"),
        "learning rules that operations are paired with; bp alone is plain DARTS",
        spec=True,
    )
    strategy: str = option(
        "darts",
        "search strategy, such as darts or 'darts(lr=6e-4)'",
        metavar="SPEC",
        spec=True,
    )
    objective: tuple[str, ...] = option(
        (),
        "costs added to the validation loss: parameters, multiply_adds, weight_transport, as "
        "'NAME(weight=0.1)'; 'weight_transport(share=0.3)' bounds its share of the parameters",
        spec=True,
    )
    regularizers: tuple[str, ...] = option(
        (),
        "regularizers of the search, such as 'warmup(epochs=15)', 'entropy(weight=0.1)', "
        "skip_stop, eigenvalue_stop, factorised",
        spec=True,
    )
    stages: tuple[str, ...] = option(
        (),
        "search in stages, each a 'stage(candidates=5, layers=11)': the strongest candidates of each "
        "edge go on to the next; see `--protocol p_darts` and `drnas`",
        metavar="SPEC,...",
        spec=True,
    )
    supernet: str | None = option(
        None, "run folder of a search whose trained supernet this one starts from", metavar="RUN"
    )
    table: str | None = option(
        None,
        "JSON or CSV file of NAS-Bench-201's accuracies, in which the cell is looked up after each "
        "epoch",
        metavar="FILE",
        identity=False,
    )
    queries: int | None = option(
        None,
        "with a strategy that trains no supernet (random_search, regularized_evolution, "
        "local_search): how many genotypes are trained, each for --epochs (default: 100)",
        minimum=1,
    )
    query: str | None = option(
        None,
        "with such a strategy: the column of --table in which accuracies are looked up, so that "
        "nothing is trained",
        metavar="COLUMN",
    )
    arch_gradient: Literal["rule", "true"] = option(
        "rule",
        "gradient of alpha: rule, through the error that the learning rules send down; true, the "
        "exact one",
    )
    backbone_rule: str = option(
        "bp",
        "learning rule of stem, preprocessing and classifier",
        metavar="RULE",
        spec=True,
    )
    share: Literal["seeds", "batch"] = option(
        "seeds",
        "what the processes of torchrun divide where there are several --seeds: seeds, each search "
        "belongs to one process; batch, all processes share each batch, one search after the "
        "other, as with a single seed",
        identity=False,
        group="this run",
    )
    weights: Literal["auto", "own", "shared"] = option(
        "auto",
        "the supernet's weights: own, of each (operation, rule); shared, of an operation, by all "
        "its rules, whose kernels are mixed; auto, as the strategy needs them",
    )
    kernel_scale: Literal["match", "init"] = option(
        "match",
        "with shared weights, the scale in which rules' kernels are mixed: match, the norm of the "
        "weight; init, as each rule has it",
    )
    memory: Literal["normal", "low"] = option(
        "normal",
        "low: the supernet stores 40 % less for the backward pass, and takes a quarter to a third "
        "more time",
    )
    choose: bool = option(
        False,
        "with several --seeds: train the cell of each search from scratch for --choice-epochs, "
        "choose one by held-out training images, and train it in full",
        group="after the searches",
    )
    choice_epochs: int = option(
        100,
        "epochs of the training that --choose measures each cell by",
        minimum=1,
        identity=False,
        group="after the searches",
        needs="choose",
    )
    training: str = option(
        "auto",
        "recipe of the trainings of --choose: a --protocol of `train`, with its options as in "
        "'auto(epochs=300, channels=16)'",
        metavar="SPEC",
        identity=False,
        group="after the searches",
        spec=True,
        needs="choose",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.choose and self.seeds == 1:
            raise InputError(
                "--choose: expected several searches to choose among, found --seeds 1; add --seeds "
                "4"
            )
        if self.choose and self.supernet is not None:
            raise InputError(
                "--choose: expected searches that each train a supernet from their own seed, found "
                "--supernet; leave it out"
            )
        if self.stages and self.supernet is not None:
            raise InputError(
                "--stages: expected stages that train supernets of their own, found --supernet; "
                "leave it out"
            )
        if not self.rules:
            raise InputError(
                "--rules: expected at least one learning rule, found none; use for example --rules "
                "fa,usf"
            )
        for name in ("rules", "objective", "regularizers"):
            _refuse_repeated(name, getattr(self, name))
        self.of_stages()  # raises for a value of one of them
        if self.table is not None and self.space.partition("(")[0] != "nb201":
            raise InputError(
                f"--table: expected --space nb201, whose cells it knows, found {self.space}"
            )
        if self.query is not None and self.table is None:
            raise InputError(
                f"--query {self.query}: expected --table FILE, of which it is a column; add it, or "
                "leave --query out to train each genotype"
            )
        if self.query is not None and self.rules != ("bp",):
            raise InputError(
                f"--query {self.query}: expected --rules bp, under which the cells of --table were "
                f"trained, found {','.join(self.rules)}; add --rules bp, or leave --query out to "
                "train each genotype"
            )

    def of_stages(self) -> list[tuple[Stage, SearchConfig]]:
        """Return each of `stages` with the options of the search that it is.

        >>> search = SearchConfig(stages="stage, stage(candidates=5, layers=11)", epochs=25)
        >>> [(config.layers, config.epochs) for _, config in search.of_stages()]
        [(8, 25), (11, 25)]
        """
        pairs = []
        for stage in build_stages(self.stages):
            own = stage.own() | {"regularizers": self.regularizers + stage.regularizers}
            alone: dict[str, Any] = {"stages": (), "choose": False, "seeds": 1, "out": None}
            pairs.append((stage, replace(self, resume=False, **alone, **own)))
        return pairs


@configuration("recipe")
class TrainingConfig(FitConfig):
    """The options of training a genotype's network from scratch, on any kind of images.

    >>> TrainingConfig(genotype="darts_v2", adversarial="pgd(eps=8)").adversarial
    'pgd(eps=8)'
    """

    genotype: str = option(
        "",
        "a shipped name, a JSON file, a search's run folder, DARTS-style or NAS-Bench-201 text; "
        "required",
        metavar="X",
        group="data",
    )
    stem: str = option(
        "cifar", "layers before the cells: cifar, imagenet or one of yours", metavar="NAME"
    )
    schedule: str = option(
        "cosine",
        "course of the learning rate over the epochs: cosine, linear, exponential",
        metavar="NAME",
    )
    lr_decay: float = option(
        0.97,
        "factor by which the exponential schedule multiplies the learning rate per epoch",
        minimum=0,
    )
    lr_batch: int = option(
        0,
        "batch size that --lr is meant for: --lr grows in proportion to --batch-size; 0: it does "
        "not",
        minimum=0,
    )
    warmup: int = option(0, "epochs in which the learning rate grows to --lr", minimum=0)
    accumulate: int = option(
        1,
        "parts of a batch that pass through the network one after the other, to save memory",
        minimum=1,
    )
    auxiliary: float = option(
        0.4, "weight of the auxiliary head's loss; 0 leaves the head out", minimum=0
    )
    drop_path: float = option(
        0.2,
        "probability of dropping an edge, growing from 0 to this at the end of the training",
        minimum=0,
        below=1,
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
        "processes that read images, and augment them by a policy; 0: the training's own process "
        "does (default: as many as cores, at most 16)",
        minimum=0,
        identity=False,
    )
    adversarial: str = option(
        "",
        "train on adversarial examples: 'pgd(eps=8)', 'trades(beta=6)', 'pgd(gradient=rule)'",
        metavar="SPEC",
        spec=True,
    )
    ema: float = option(
        0.0,
        "decay of the moving average of the weights, which is then the result; 0 for none",
        minimum=0,
        below=1,
    )
    holdout: int = option(
        0,
        "training images held out to measure on after each epoch; the test images are then "
        "measured at the end only",
        minimum=0,
    )
    test_at_end: bool = option(
        True, "with --holdout, measure the test images at the end; off: they are never measured"
    )
    alignment_every: int = option(
        0,
        "measure every N epochs how near learning is to backpropagation; 0 for never",
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
        if self.batch_size % self.accumulate:
            raise InputError(
                f"--accumulate: expected a divisor of the batch size {self.batch_size}, found "
                f"{self.accumulate}"
            )
        if not (self.test_at_end or self.holdout):
            raise InputError(
                "--no-test-at-end: expected together with --holdout, since nothing else would be "
                "measured, found --holdout 0"
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
    """The options of a training on small images; the defaults are those of DARTS on CIFAR-10.

    >>> config = RetrainConfig(genotype="darts_v2")
    >>> config.channels, config.layers, config.epochs
    (36, 20, 600)
    """

    command = "train"


@configuration(
    "images", dataset="", stem="imagenet", channels=48, layers=14, epochs=250, batch_size=128, schedule="exponential",
    lr=0.1, lr_min=0.0, weight_decay=3e-5, label_smoothing=0.1, drop_path=0.0,
)  # fmt: skip
class ImageNetConfig(TrainingConfig):
    """The options of a training on ImageNet or similar images; the defaults are those of DARTS.

    >>> config = ImageNetConfig(genotype="darts_v2")
    >>> config.channels, config.layers, config.epochs, config.image_size
    (48, 14, 250, 224)
    """

    command = "train-imagenet"

    train_split: str = option(
        "train", "split, or folder, to train on", metavar="NAME", group="data"
    )
    test_split: str = option(
        "validation", "split, or folder, to measure on", metavar="NAME", group="data"
    )
    num_classes: int | None = option(
        None, "number of classes, if it is not that of the class folders", minimum=1, group="data"
    )
    image_size: int = option(224, "side of the images in pixels", minimum=8)
    crop_share: float = option(
        0.875,
        "side of the central crop to measure on, as a share of the image's shorter side",
        minimum=0.1,
    )
    color_jitter: float = option(
        0.4,
        "strength of random changes of brightness, contrast and saturation, half of it for hue; 0 "
        "for none; an --auto-augment policy takes its place",
        minimum=0,
    )
    flip: bool = option(True, "mirror images at random")


@configuration("attacks")
class RobustnessConfig(RunConfig):
    """The options of attacks on trained networks.

    >>> RobustnessConfig(checkpoint="runs/a,runs/b", eps="8,2").eps
    (2.0, 8.0)
    """

    command = "robustness"

    checkpoint: tuple[str, ...] = option(
        (),
        "run folders of trainings to compare; one with several seeds stands for all of them; "
        "required",
        metavar="RUN,...",
    )
    attacks: tuple[str, ...] = option(
        ("fgsm", "pgd", "apgd_ce", "apgd_dlr", "square"),
        "attacks, such as fgsm or 'pgd(steps=50, restarts=5)'",
        spec=True,
    )
    eps: tuple[float, ...] = option(
        (1.0, 2.0, 4.0, 8.0),
        "largest change of a pixel, in 1/255 of its range",
        minimum=0.01,
        below=256,
    )
    gradients: tuple[str, ...] = option(
        ("true",),
        "gradients that attacks follow: true, the exact one; rule, what the learning rules send "
        "down",
    )
    draws: int = option(
        1, "draws of random feedback over which the rule's gradient is averaged", minimum=1
    )
    transfer: str = option(
        "",
        "attack whose images, made on each network, are tried on the other networks too",
        metavar="SPEC",
        spec=True,
    )
    corruptions: tuple[str, ...] = option(
        (), "common corruptions, such as gaussian_noise,gaussian_blur; or all"
    )

    images: int = option(
        1000, "test images, drawn by the seed; all, if there are not that many", minimum=1
    )
    batch_size: int = option(250, "images per batch", minimum=1)
    data_dir: str | None = option(
        None, "folder of the data, if it is not that of the runs", metavar="DIR", identity=False
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
        object.__setattr__(self, "eps", tuple(sorted(self.eps)))
        for name in ("checkpoint", "attacks", "eps", "gradients", "corruptions"):
            _refuse_repeated(name, getattr(self, name))


@configuration("measurement")
class AlignmentConfig(CommandConfig):
    """The options of measuring how near trained networks' learning is to backpropagation.

    >>> AlignmentConfig(checkpoint="runs/a,runs/b").checkpoint
    ('runs/a', 'runs/b')
    """

    command = "alignment"

    checkpoint: tuple[str, ...] = option(
        (), "run folders of trainings; several are compared; required", metavar="RUN,..."
    )
    out: str | None = option(
        None,
        "folder of the comparison of several, new or empty (default: runs/alignment-TIME)",
        metavar="DIR",
    )
    data_dir: str | None = option(
        None, "folder of the data, if it is not that of the runs", metavar="DIR"
    )
    batches: int = option(8, "training batches to measure on", minimum=2)
    device: str = option("auto", "auto, cpu, cuda or cuda:N", metavar="NAME")
    charts: tuple[str, ...] = _charts()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_charts(self.charts)
        if not self.checkpoint:
            raise InputError(
                "--checkpoint is required: one or several run folders of trainings, separated by "
                "commas"
            )
        _refuse_repeated("checkpoint", self.checkpoint)
        if self.out and len(self.checkpoint) == 1:
            raise InputError(
                f"--out {self.out}: expected several run folders to compare, found one, whose "
                "alignment is written into it"
            )


@configuration("what is written")
class ExportConfig(CommandConfig):
    """The options of writing a trained network in the forms of other libraries.

    >>> ExportConfig(source="runs/a", onnx="a.onnx").onnx
    'a.onnx'
    """

    command = "export"

    source: str = option(
        "", "run folder of a training, or its checkpoint.pt", metavar="RUN", positional=True
    )
    onnx: str | None = option(None, "write an ONNX model", metavar="FILE")
    program: str | None = option(None, "write a program for torch.export.load", metavar="FILE.pt2")
    hub: str | None = option(
        None,
        'write a new folder for timm.create_model("local-dir:DIR") or the Hub',
        metavar="DIR",
    )
    batch: int | None = option(
        None,
        "fix the number of images in a batch of --onnx and --program (default: any)",
        minimum=1,
    )

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
    """The options of showing and drawing a genotype, or the table of the shipped ones.

    >>> GenotypeConfig(source="darts_v2", svg="cells.svg").svg
    'cells.svg'
    """

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
    """The options of showing by which rule each weight of a genotype's network learns.

    >>> AuditConfig(source="darts_v2").channels
    36
    """

    command = "audit"

    source: str = option("", "a genotype, named as for `genotype`", metavar="X", positional=True)
    channels: int = option(36, "channels of a node in the first cell", minimum=2)
    layers: int = option(20, "cells stacked", minimum=1, below=MOST_CELLS + 1)
    rows: bool = option(False, "also list all weights, a line each")
    json: str | None = option(None, "also write it to this file as JSON", metavar="FILE")


@configuration("what is shown")
class RulesConfig(CommandConfig):
    """The options of showing the table of learning rules, or the page of one.

    >>> RulesConfig(name="usf").name
    'usf'
    """

    command = "rules"

    name: str | None = option(None, "the name of a rule", metavar="RULE", positional=True)


@configuration("what is shown")
class ListConfig(CommandConfig):
    """The options of listing every name that an option takes: only those of all commands.

    >>> ListConfig().plugin
    ()
    """

    command = "list"


@configuration("what is shown")
class RunsConfig(CommandConfig):
    """The options of listing runs.

    >>> RunsConfig(folder="runs", where="strategy=darts, rules=(fa, usf)").where
    ('strategy=darts', 'rules=(fa, usf)')
    """

    command = "runs"

    folder: str | None = option(
        None,
        "the folder in and below which runs lie (default: runs)",
        metavar="FOLDER",
        positional=True,
    )
    where: tuple[str, ...] = option(
        (),
        "list only runs for which all of these hold: NAME=VALUE, where NAME is a column or an option "
        "of the run, such as 'strategy=darts, dataset=digits'",
        metavar="A=B,...",
    )
    sort: str | None = option(
        None,
        "sort by a column, an option, or a number of the last epoch, such as test/accuracy; "
        "accuracies begin with the highest (default: by path)",
        metavar="NAME",
    )
    csv: bool = option(False, "print CSV")
    json: bool = option(False, "print JSON, with all options and numbers")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.csv and self.json:
            raise InputError("runs: expected --csv or --json, found both; leave one out")


@configuration("what is compared")
class ReportConfig(CommandConfig):
    """The options of comparing runs side by side.

    >>> ReportConfig(runs=["runs/a", "runs/b"]).runs
    ('runs/a', 'runs/b')
    """

    command = "report"

    runs: tuple[str, ...] = option(
        (),
        "two or more run folders; one with several seeds stands for all of them",
        metavar="RUN ...",
        positional=True,
    )
    out: str | None = option(
        None, "folder of the report, new or empty (default: runs/report-TIME)", metavar="DIR"
    )
    charts: tuple[str, ...] = _charts()

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_charts(self.charts)
        if len(self.runs) < 2:
            raise InputError(
                f"report: expected two or more run folders to compare, found {len(self.runs)}"
            )
        _refuse_repeated("runs", self.runs)


@configuration("what is run")
class TimmConfig(CommandConfig):
    """The options of running a script of timm's with this package's models registered.

    >>> TimmConfig(script="train.py", arguments=["--model", "darts_v2_cifar"]).arguments
    ('--model', 'darts_v2_cifar')
    """

    command = "timm"

    script: str = option(
        "", "your copy of timm's train.py, validate.py, ...", metavar="SCRIPT", positional=True
    )
    arguments: tuple[str, ...] = option(
        (), "arguments of the script", metavar="ARGS", positional="rest"
    )


RUNS: Mapping[str, type[RunConfig]] = {
    cls.command: cls for cls in (SearchConfig, RetrainConfig, ImageNetConfig, RobustnessConfig)
}
"""The configurations of commands that write a run folder, by the command's name."""


def _refuse_repeated(name: str, values: Sequence[Any]) -> None:
    """Raise InputError if an option holds a value more than once."""
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        what = "rule" if name == "rules" else "of them"
        raise InputError(
            f"{flag(name)}: expected each {what} once, found {', '.join(map(str, repeated))} more "
            "than once"
        )
