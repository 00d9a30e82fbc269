"""The options of evaluations: robustness and alignment."""

from __future__ import annotations

from darts_bio.config.common import (
    CommandConfig,
    Gradients,
    RunConfig,
    charts_option,
    check_charts,
    refuse_repeated,
)
from darts_bio.config.options import configuration, option
from darts_bio.errors import InputError


@configuration("attacks")
class RobustnessConfig(RunConfig):
    """The options of attacks on trained networks.

    >>> RobustnessConfig(checkpoint="runs/a,runs/b", eps="8,2").eps
    (2.0, 8.0)
    """

    command = "robustness"

    checkpoint: tuple[str, ...] = option(
        (),
        "run folders of trainings to compare, exports of --hub, or names of shipped networks; a "
        "folder with several seeds stands for all of them; required",
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
    gradients: tuple[Gradients, ...] = option(
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
        object.__setattr__(self, "eps", tuple(sorted(self.eps)))
        for name in ("checkpoint", "attacks", "eps", "gradients", "corruptions"):
            refuse_repeated(name, getattr(self, name))


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
    charts: tuple[str, ...] = charts_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_charts(self.charts)
        if not self.checkpoint:
            raise InputError(
                "--checkpoint is required: one or several run folders of trainings, separated by "
                "commas"
            )
        refuse_repeated("checkpoint", self.checkpoint)
        if self.out and len(self.checkpoint) == 1:
            raise InputError(
                f"--out {self.out}: expected several run folders to compare, found one, whose "
                "alignment is written into it"
            )
