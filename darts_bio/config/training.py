"""The options of trainings: of small images, and of ImageNet."""

from __future__ import annotations

from darts_bio.config.common import FitConfig, SmallImagesConfig
from darts_bio.config.options import configuration, option
from darts_bio.errors import InputError


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
                f"--warmup: expected fewer epochs than --epochs {self.epochs}, found {self.warmup}; "
                "use a smaller --warmup, or more --epochs"
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
