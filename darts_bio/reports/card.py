"""The model card of a trained network, report.md: its accuracy, architecture, cost and recipe."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from darts_bio.config import TrainingConfig
from darts_bio.distributed import world_size
from darts_bio.invocation import portable
from darts_bio.networks import multiply_adds, parameters
from darts_bio.reports.checklist import checklist
from darts_bio.reports.markdown import (
    block,
    code,
    counted,
    escaped,
    images_in_words,
    link,
    markdown_table,
    recipe,
    slowed,
)
from darts_bio.rules import count_rules
from darts_bio.runtime import hardware, made_by
from darts_bio.storage.run_folder import RunFolder
from darts_bio.training.retrain import Retraining

CARD_FILE = "report.md"
"""The report in a run folder."""
CURVES_FIGURE = "curves.svg"
"""The figure of losses and accuracies over the epochs in a folder with a report."""


def model_card(
    training: Retraining, folder: RunFolder, records: Sequence[Mapping[str, Any]]
) -> str:
    """Return the model card in Markdown.

    `records` are the numbers of the run's epochs as metrics.jsonl has them, at least one.
    """
    config, last = training.config, records[-1]
    done = "" if last["epoch"] == config.epochs else f", stopped after {last['epoch']}"
    lines = [f"# {_title(config)}, seed {config.seed}", "", "## Result", ""]
    if training.result in last:
        lines += [
            f"**{training.result_in_words}: {100 * last[training.result]:.2f} %**{on_images(training.images_measured)}",
            "",
        ]
    lines += [
        f"After the last of {counted(config.epochs, 'epoch')}{done}; nothing was chosen by the test images.",
        "",
    ]
    lines += markdown_table(("", "loss", "accuracy, %"), _measured(last))
    lines += ["", f"![loss and accuracy over the epochs]({CURVES_FIGURE})", "", *_network(training)]
    if training.genotype is not None:
        lines += ["", "![cells](cells.svg)"]
    lines += ["", "## Learning rules", "", *_rules(training), "", *recipe(config, folder.command)]
    lines += ["", "## Data and machine", "", f"- data: {escaped(training.subject['data set'])}"]
    lines += [
        f"- passed over, since it cannot be read: {code(name)} ({escaped(why)})"
        for name, why in training.damaged.items()
    ]
    cost = (
        f"{last['step']} steps of {config.batch_size} images in {last['seconds']:.0f} s "
        f"({last['images_per_second']:.0f} images/s, measuring between epochs included) by "
        f"{_processes(training)}"
    )
    machine = f"{hardware(training.device)}; {made_by()}"
    lines += [f"- {cost}", *slowed(training.optimizer.scale), f"- {machine}", ""]
    lines += checklist(
        config, training.genotype, data=training.subject["data set"], machine=machine, cost=cost
    )
    return "\n".join(lines) + "\n"


def seeds_card(config: TrainingConfig, command: str, results: Mapping[int, Any]) -> str:
    """Return the report of several seeds in Markdown: each accuracy, their mean and spread.

    `config` and `command` are those of all seeds together; `results` holds the `TrainResult` of
    each seed.
    """
    first = next(iter(results.values()))
    accuracies = {seed: result.accuracy for seed, result in results.items()}
    rows = [
        (link(f"{seed}", f"seed-{seed}/{CARD_FILE}"), f"{100 * accuracy:.2f}")
        for seed, accuracy in accuracies.items()
    ]
    lines = [f"# {_title(config)}, {len(results)} seeds", "", "## Result", ""]
    result = f"**{first.measured}: {spread(list(accuracies.values()))}**{on_images(first.images)}"
    lines += [result, ""]
    if any(seed_result.epochs for seed_result in results.values()):
        lines += [f"![loss and accuracy over the epochs]({CURVES_FIGURE})", ""]
    lines += [*markdown_table(("seed", f"{first.measured}, %"), rows), "", "## Network", ""]
    lines += [f"{first.parameters:,} parameters, the auxiliary head included", ""]
    if first.genotype is not None:
        lines += [*block(str(first.genotype)), ""]
    lines += [*recipe(config, command), "", "The reports of the seeds hold all else."]
    return "\n".join(lines) + "\n"


def on_images(count: int) -> str:
    """Return on how many images an accuracy was measured; "" where that is not known.

    >>> on_images(1797), on_images(0)
    (', on 1,797 images', '')
    """
    return f", on {count:,} images" if count else ""


def spread(accuracies: Sequence[float]) -> str:
    """Format the mean and the sample standard deviation of several accuracies in [0, 1].

    >>> spread([0.97, 0.98, 0.99])
    '98.00 +- 1.00 % (mean and standard deviation, n = 3)'
    """
    mean, deviation = 100 * statistics.mean(accuracies), 100 * statistics.stdev(accuracies)
    return f"{mean:.2f} +- {deviation:.2f} % (mean and standard deviation, n = {len(accuracies)})"


def _title(config: TrainingConfig) -> str:
    """Return the title of a report: the genotype and the data set."""
    # A DARTS-style string is too long for a title.
    name = portable(config.genotype) if len(config.genotype) < 60 else "genotype"
    images = config.dataset or portable(config.data_dir or "images")
    return f"{escaped(name)} on {images_in_words(images)}"


def _network(training: Retraining) -> list[str]:
    """Return the lines on the network: what it costs, and its genotype."""
    lines = ["## Network", "", *markdown_table(("", ""), _costs(training))]
    if training.genotype is not None:
        lines += ["", *block(str(training.genotype))]
    return lines


def _processes(training: Retraining) -> str:
    """Return the number of processes, and that at the start of the run if it was another."""
    before = "" if training.began_with == world_size() else f" (at first {training.began_with})"
    return f"{world_size()} process(es){before}"


def _measured(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return a row (group of images, loss, accuracy in per cent) for each group in a record."""
    groups = [name.removesuffix("/accuracy") for name in record if name.endswith("/accuracy")]
    return [
        (
            group.replace("_", ", "),
            f"{record[f'{group}/loss']:.4f}",
            f"{100 * record[f'{group}/accuracy']:.2f}",
        )
        for group in groups
    ]


def _costs(training: Retraining) -> list[tuple[str, str]]:
    """Return the rows (quantity, value) on parameters and multiply-adds of the network."""
    network = training.network
    auxiliary = network.get_submodule("auxiliary") if training.config.auxiliary else None
    head_parameters = 0 if auxiliary is None else parameters(auxiliary)
    shape = (1, training.source.in_channels, *training.source.image_size)
    adds = multiply_adds(network, lambda: network(torch.zeros(shape, device=training.device)))
    rows = [("parameters", f"{parameters(network) - head_parameters:,}")]
    if head_parameters:
        rows.append(("with the auxiliary head, for training only", f"{parameters(network):,}"))
    size = "x".join(map(str, shape[1:]))
    return [
        *rows,
        (f"multiply-adds of one {size} image (torch.utils.flop_counter)", f"{adds / 1e6:.2f} M"),
    ]


def _rules(training: Retraining) -> list[str]:
    """Return the lines on the learning rules: layers and parameters of each, weight transport."""
    weight_audit = count_rules(training.network)
    sizes_by_rule: dict[str, list[int]] = {}
    for row in weight_audit.rows:
        sizes_by_rule.setdefault(row.rule or "bp (plain)", []).append(row.parameters)
    rows = [
        (rule, str(len(sizes)), f"{sum(sizes):,}") for rule, sizes in sorted(sizes_by_rule.items())
    ]
    return [
        *markdown_table(("rule", "layers", "parameters"), rows),
        "",
        f"{weight_audit.transported:,} of {weight_audit.parameters:,} parameters of these layers "
        f"({100 * weight_audit.share:.1f} %) carry the error down by their own weights.",
    ]
