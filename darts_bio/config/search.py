"""The options of a search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from darts_bio.config.common import Gradients, SmallImagesConfig, refuse_repeated
from darts_bio.config.options import configuration, option
from darts_bio.config.stages import Stage, build_stages
from darts_bio.errors import InputError


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
    arch_gradient: Gradients = option(
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
            refuse_repeated(name, getattr(self, name))
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
