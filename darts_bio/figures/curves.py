"""The charts of trainings and searches over their epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from darts_bio.figures.charts import Chart, Panel, Series
from darts_bio.figures.colors import LINE_COLORS
from darts_bio.figures.drawing import Point

Records = Sequence[Mapping[str, Any]]
"""The numbers of epochs as metrics.jsonl has them: `epoch`, GROUP/loss, GROUP/accuracy, ..."""

UNITS = {"loss": "loss, nats", "accuracy": "accuracy, %"}
"""What is drawn of a group of images, and what its axis says."""
OVER_SEEDS = "lines: means over the seeds; bands: +- 1 standard deviation; thin lines: each seed"


def draw_curves(seeds: Sequence[Records]) -> Chart:
    """Draw a panel for loss and one for accuracy, with a line for each group of images.

    Args:
        seeds: The numbers of each seed of a training; a group of images is train, test or the like.

    Example:
        >>> epochs = [{"epoch": 1, "train/loss": 2.3, "train/accuracy": 0.1},
        ...           {"epoch": 2, "train/loss": 1.9, "train/accuracy": 0.4}]
        >>> chart = draw_curves([epochs])
        >>> [(panel.title, panel.series[0].points) for panel in chart.panels]
        [('loss, nats', [(1.0, 2.3), (2.0, 1.9)]), ('accuracy, %', [(1.0, 10.0), (2.0, 40.0)])]
    """
    groups = dict.fromkeys(name.partition("/")[0] for name in _measured(seeds))
    colors = dict(zip(groups, _line_colors(len(groups)), strict=True))
    panels = []
    for quantity, title in UNITS.items():
        lines: list[Series] = []
        for group, color in colors.items():
            lines += with_spread(
                group.replace("_", ", "), values(seeds, f"{group}/{quantity}"), color
            )
        if lines:
            panels.append(Panel(title, lines, decades=quantity == "loss"))
    return Chart(
        panels, "epoch", "loss and accuracy over the epochs", OVER_SEEDS if len(seeds) > 1 else ""
    )


def draw_runs(runs: Mapping[str, Sequence[Records]]) -> Chart:
    """Draw the losses and accuracies of several runs, a panel for each and a line for each run.

    Args:
        runs: The numbers of each seed of each run, by the run's name.

    Example:
        >>> epochs = [{"epoch": 1, "test/loss": 2.3}, {"epoch": 2, "test/loss": 1.9}]
        >>> [panel.title for panel in draw_runs({"a": [epochs], "b": [epochs]}).panels]
        ['test loss, nats']
    """
    colors = dict(zip(runs, _line_colors(len(runs)), strict=True))
    panels = []
    for name in _measured([seed for seeds in runs.values() for seed in seeds]):
        group, quantity = name.split("/")
        lines: list[Series] = []
        for number, (run, seeds) in enumerate(runs.items()):
            dashed = number >= len(LINE_COLORS)
            lines += with_spread(run, values(seeds, name), colors[run], dashed)
        title = f"{group.replace('_', ', ')} {UNITS[quantity]}"
        panels.append(Panel(title, lines, decades=quantity == "loss"))
    several = any(len(seeds) > 1 for seeds in runs.values())
    note = OVER_SEEDS if several else ""
    return Chart(panels, "epoch", "losses and accuracies over the epochs", note)


def draw_known(records: Records) -> Chart | None:
    """Draw the known accuracies of a search's cells, in per cent, with a line for each data set.

    `records` have shares named known/DATA SET. None if no record has any.

    >>> draw_known([{"epoch": 1, "known/cifar10": 0.91}, {"epoch": 2}]).label
    'known accuracy over the epochs'
    """
    names = dict.fromkeys(
        name for record in records for name in record if name.startswith("known/")
    )
    if not names:
        return None
    series = [
        Series(name.removeprefix("known/"), _points(records, name), color)
        for name, color in zip(names, _line_colors(len(names)), strict=True)
    ]
    panel = Panel("known accuracy, %", series)
    return Chart([panel], "epoch", "known accuracy over the epochs")


def draw_best(records: Records) -> Chart:
    """Draw the accuracy of each query of a search, in per cent, and the best so far.

    `records` are the numbers of queries as metrics.jsonl has them: `epoch`, the number of the query,
    and the shares valid/accuracy and best/accuracy.

    >>> draw_best([{"epoch": 1, "valid/accuracy": 0.91, "best/accuracy": 0.91}]).label
    'accuracy over the queries'
    """
    series = [
        Series("of each", _points(records, "valid/accuracy"), LINE_COLORS[0], width=0, marker="."),
        Series("best so far", _points(records, "best/accuracy"), LINE_COLORS[1]),
    ]
    return Chart([Panel(UNITS["accuracy"], series)], "query", "accuracy over the queries")


def values(seeds: Sequence[Records], name: str) -> list[list[Point]]:
    """Return the points (epoch, number) of each seed that has some; of accuracies, in per cent.

    >>> values([[{"epoch": 1, "test/accuracy": 0.5}, {"epoch": 2}], []], "test/accuracy")
    [[(1.0, 50.0)]]
    """
    lines = [_points(records, name) for records in seeds]
    return [line for line in lines if line]


def _points(records: Records, name: str) -> list[Point]:
    """Return the points (epoch, number) of the records that have that number."""
    scale = 100 if name.endswith("/accuracy") or name.startswith("known/") else 1
    return [(float(record["epoch"]), scale * record[name]) for record in records if name in record]


def with_spread(
    name: str, lines: Sequence[Sequence[Point]], color: str, dashed: bool = False
) -> list[Series]:
    """Return the mean of several lines with its spread and each of them; a single line as it is.

    The mean and the band, one sample standard deviation up and down, are where all lines have a
    point.

    >>> drawn = with_spread("a", [[(1.0, 2.0), (2.0, 3.0)], [(1.0, 4.0)]], "#222222")
    >>> [(line.name, line.points) for line in drawn][:2]
    [('', [(1.0, 2.0), (2.0, 3.0)]), ('', [(1.0, 4.0)])]
    >>> drawn[2].name, drawn[2].points, [round(end, 2) for end in drawn[2].band[0]]
    ('a', [(1.0, 3.0)], [1.0, 1.59, 4.41])
    """
    if len(lines) < 2:
        return [Series(name, line, color, dashed) for line in lines]
    tables = [dict(line) for line in lines]
    means, band = [], []
    for x in tables[0]:
        found = [table[x] for table in tables if x in table]
        if len(found) == len(tables):
            mean, deviation = fmean(found), stdev(found)
            means.append((x, mean))
            band.append((x, mean - deviation, mean + deviation))
    each = [Series("", line, color, dashed, width=0.5) for line in lines]
    return [*each, Series(name, means, color, dashed, band=band)]


def _measured(seeds: Sequence[Records]) -> list[str]:
    """Return the names of the losses and accuracies that records have, each once."""
    names = dict.fromkeys(name for records in seeds for record in records for name in record)
    return [name for name in names if name.count("/") == 1 and name.split("/")[1] in UNITS]


def _line_colors(count: int) -> list[str]:
    """Return so many colors of lines, from the first again where there are more lines."""
    return [LINE_COLORS[i % len(LINE_COLORS)] for i in range(count)]
