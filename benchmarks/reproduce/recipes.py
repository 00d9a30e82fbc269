"""The tables of BioNAS (arXiv 2507.13485) as recipes: commands, what they cost, what was published.

A table has rows; a row is a number that is read from a run; a run is a command of this package, made
once for each seed, which may need runs that come before it. Published numbers are those of the
paper, of its rows that are known here; where there is none, the row is a control.

Hours are estimates for one GPU of the H200's class, none of them measured. Those of searches are
from docs/performance.md: 45 minutes for 19,500 steps in float32; that of `eg` has one pass a step in
place of two, and 14,000 individual batches; that of NAS-Bench-201's space is a guess. Those of
trainings follow from the activations that a step keeps (6.4 GB for a batch of CIFAR, 6.8 GB of
ImageNet): 13.5 times as much passes through memory, as in the supernet (405 GB in the two passes of
a step that keeps 15.1 GB), in 1.25 times the time that 4,300 GB/s allow. That of ImageNet has no
time for reading images in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Options = Mapping[str, str]
"""Options of a command, without their dashes. `{NAME}` in a value stands for the folder of the run
of that name from the same seed, `{cifar}`, `{imagenet}` and `{imagenet16}` for folders of data."""

PAIRS = "darts(layout=paper, strided_skip_rule=bp)"
"""The paper's space, with its code's skips at stride 2 (docs/differences.md)."""
CIFAR10: Options = {"dataset": "cifar10", "data-dir": "{cifar}"}
CIFAR100: Options = {"dataset": "cifar100", "data-dir": "{cifar}"}
IMAGENET16: Options = {"dataset": "imagenet16-120", "data-dir": "{imagenet16}"}
RULES = ("fa", "usf", "brsf", "frsf")

TINY: Options = {
    "dataset": "digits",
    "train-images": "64",
    "epochs": "1",
    "batch-size": "16",
    "channels": "2",
    "layers": "3",
    "crop-padding": "1",
}
TINY_TRAINING: Options = {**TINY, "auxiliary": "0", "cutout": "0", "drop-path": "0"}
TINY_IMAGENET: Options = {
    "data-dir": "{pictures}",
    "image-size": "32",
    "epochs": "1",
    "batch-size": "8",
    "channels": "2",
    "layers": "3",
    "auxiliary": "0",
    "workers": "1",
}
TINY_ATTACKS: Options = {"images": "32", "attacks": "fgsm,pgd(steps=3),apgd_ce(steps=3)"}


@dataclass(frozen=True)
class Run:
    """A command of this package, made once for each seed.

    Attributes:
        command: Its name, as in `python -m darts_bio COMMAND`.
        options: Its options. `out`, `resume`, and where it has one `seed` are added.
        small: The options that differ at toy sizes.
        hours: What it costs on a GPU.
        inside: The run in whose folder it writes; by default it has a folder of its own.
    """

    command: str
    options: Options
    small: Options
    hours: float
    inside: str | None = None


@dataclass(frozen=True)
class Row:
    """A number of a table.

    Attributes:
        label: What it is of.
        run: The name of the run that it is read from.
        measure: What is read: "accuracy" in per cent, "GPU-days", "variance" of the gradient, or
            accuracy in per cent under an attack, as "fgsm, true".
        published: The paper's number; None where none is known.
    """

    label: str
    run: str
    measure: str
    published: float | None = None


@dataclass(frozen=True)
class Table:
    """A table of the paper: its title, its rows, and what to know before comparing."""

    title: str
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = field(default=())

    def runs(self) -> tuple[str, ...]:
        """Return the names of its runs, each once, after those that it needs."""
        names = (name for row in self.rows for name in (*needed(row.run), row.run))
        return tuple(dict.fromkeys(names))


def needed(name: str) -> tuple[str, ...]:
    """Return the names of the runs that one needs, first to last."""
    values = " ".join(RUNS[name].options.values())
    direct = [other for other in RUNS if f"{{{other}}}" in values]
    return tuple(dict.fromkeys(name for one in direct for name in (*needed(one), one)))


def _search(strategy: str, hours: float) -> Run:
    options = {**CIFAR10, "space": PAIRS, "rules": ",".join(RULES), "strategy": strategy}
    small = {**TINY, "batch-size": "32"}
    if strategy.startswith("eg"):
        small["strategy"] = "eg(population=4, samples=1, batches=1)"
    return Run("search", options, small, hours)


def _train(genotype: str, data: Options = CIFAR10, **more: str) -> Run:
    options = {"genotype": genotype, **data, **more}
    return Run("train", options, TINY_TRAINING, CIFAR_HOURS)


CIFAR_HOURS, FAST_HOURS = 2.2, 0.4


def _control(rules: str) -> Run:
    """Draw a rule for each of the published operations: the same for all, if there is only one."""
    strategy = "random(genotype=bionas_darts)"
    options = {**CIFAR10, "space": "darts", "rules": rules, "strategy": strategy}
    return Run("search", options, TINY, 0.0)


RUNS: dict[str, Run] = {
    "published": _train("bionas_darts"),
    "published-fast": Run(
        "train",
        {"genotype": "bionas_darts", **CIFAR10, "protocol": "fast"},
        {**TINY_TRAINING, "warmup": "0"},
        FAST_HOURS,
    ),
    "published-100": _train("bionas_darts", CIFAR100),
    "darts-v2": _train("darts_v2"),
    "pairs": _search("darts", 0.75),
    "pairs-trained": _train("{pairs}"),
    "rule-aware": _search("rule_aware", 0.9),
    "rule-aware-trained": _train("{rule-aware}"),
    "eg": _search("eg", 0.6),
    "eg-trained": _train("{eg}"),
    "imagenet-trained": Run(
        "train-imagenet",
        {"genotype": "bionas_darts", "data-dir": "{imagenet}"},
        TINY_IMAGENET,
        19.0,
    ),
    "nb201": Run(
        "search",
        {**IMAGENET16, "space": "nb201"},
        TINY,
        0.5,
    ),
    "nb201-trained": Run("train", {"genotype": "{nb201}", **IMAGENET16}, TINY_TRAINING, 0.3),
    "random": _control(",".join(RULES)),
    "random-trained": _train("{random}"),
}
for _rule in ("bp", *RULES):
    RUNS[f"{_rule}-everywhere"] = _control(_rule)
    RUNS[f"{_rule}-trained"] = _train(f"{{{_rule}-everywhere}}")
for _name in ("published", "bp-trained"):
    RUNS[f"{_name}-attacked"] = Run(
        "robustness",
        {
            "checkpoint": f"{{{_name}}}",
            "attacks": "fgsm,pgd,apgd_ce,apgd_dlr,square",
            "eps": "8",
            "gradients": "true,rule",
        },
        TINY_ATTACKS,
        0.2,
    )
for _name in ("published", *(f"{_rule}-trained" for _rule in ("bp", *RULES))):
    RUNS[f"{_name}-aligned"] = Run(
        "alignment",
        {"checkpoint": f"{{{_name}}}", "batches": "64"},
        {"batches": "2"},
        0.02,
        inside=_name,
    )


def _attacked(label: str, run: str, **published: float) -> tuple[Row, ...]:
    """Return a row for each attack, along the rules' gradient, then along the true one."""
    return tuple(
        Row(
            f"{label}, {attack} along the {gradient} gradient",
            run,
            f"{attack}, {gradient}",
            published.get(attack) if gradient == "rule" else None,
        )
        for gradient in ("rule", "true")
        for attack in ("fgsm", "pgd", "apgd_ce")
    )


TABLES: dict[str, Table] = {
    "T1": Table(
        "Accuracy on CIFAR-10 and CIFAR-100, %",
        (
            Row("CIFAR-10, the published cell, `fast`", "published-fast", "accuracy"),
            Row("CIFAR-10, the published cell", "published", "accuracy", 95.16),
            Row("CIFAR-100, the published cell", "published-100", "accuracy", 76.48),
            Row("CIFAR-10, pairs by `darts`", "pairs-trained", "accuracy", 95.16),
            Row("CIFAR-10, pairs by `eg`", "eg-trained", "accuracy"),
            Row("CIFAR-10, rules by `rule_aware`", "rule-aware-trained", "accuracy"),
            Row("CIFAR-10, DARTS, second order, under bp", "darts-v2", "accuracy", 97.24),
        ),
        (
            "`fast` is ours and has no published number: it comes first since it costs least.",
            "The cell of CIFAR-10 is trained on CIFAR-100; whether the paper's number is of this "
            "cell is not known here.",
            "97.24 is of DARTS' paper, and tells whether the recipe is the same.",
        ),
    ),
    "T2": Table(
        "Accuracy on ImageNet16-120 and ImageNet, %",
        (
            Row("ImageNet16-120, NAS-Bench-201's space", "nb201-trained", "accuracy", 43.42),
            Row("ImageNet, the published cell", "imagenet-trained", "accuracy", 60.51),
        ),
        (
            "That the paper's number of ImageNet16-120 is of a search in the space of NAS-Bench-201, "
            "from which the data set comes, is taken for granted.",
            "The paper's schedule on ImageNet is not known here: this is DARTS', and `--protocol "
            "p_darts` is the other published one.",
        ),
    ),
    "T3": Table(
        "Cost of a search on CIFAR-10, GPU-days",
        (
            Row("pairs by `darts`", "pairs", "GPU-days", 1.37),
            Row("pairs by `eg`", "eg", "GPU-days", 0.35),
            Row("rules by `rule_aware`", "rule-aware", "GPU-days"),
        ),
        ("A comparison of machines as much as of programs: the paper's GPU is another.",),
    ),
    "T4": Table(
        "Accuracy under attack on CIFAR-10, eps 8/255, %",
        (
            *_attacked("published cell", "published-attacked", fgsm=61.1, pgd=60.6, apgd_ce=67.0),
            *_attacked("its operations under bp", "bp-trained-attacked"),
        ),
        (
            "The published harness averages clean and attacked accuracy, and its strongest attack does "
            "least, which is what masking looks like (docs/robustness.md): so its numbers stand beside "
            "the rows along the rules' gradient. Robustness is what is left along the true one.",
        ),
    ),
    "T5": Table(
        "Searched against random rules on CIFAR-10, accuracy in %",
        (
            Row("the published rules", "published", "accuracy", 95.16),
            Row("random rules on the same operations", "random-trained", "accuracy", 94.8),
            *(
                Row(f"{rule} on the same operations", f"{rule}-trained", "accuracy")
                for rule in ("bp", *RULES)
            ),
        ),
        ("94.8 is known here to a tenth only.",),
    ),
    "F3": Table(
        "Variance of the gradient over batches, relative to its squared norm",
        (
            Row("the published rules", "published-aligned", "variance"),
            *(
                Row(f"{rule} on the same operations", f"{rule}-trained-aligned", "variance")
                for rule in ("bp", *RULES)
            ),
        ),
        ("The paper compares rules by a figure; no numbers of it are known here.",),
    ),
}
"""The tables by name; F3 is the third figure."""
