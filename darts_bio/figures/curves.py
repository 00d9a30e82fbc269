"""Panels of curves with axes, and the figures of a training and a search over the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from darts_bio.figures.drawing import (
    FAINT,
    MARGIN,
    Box,
    Drawing,
    Line,
    Point,
    Polygon,
    Primitive,
    Text,
    text_width,
)

COLORS = ("#365c8d", "#c8553d", "#2a9d5c", "#8d5a97", "#b58900", "#222222", "#3aa0a8", "#a05a2c")
WIDTH, HEIGHT, LEFT, FOOT = 300.0, 180.0, 44.0, 22.0
"""Width and height of a panel's plot, and the room to its left and below it, in pixels."""
MARK = 3.5
"""The radius of a mark, in pixels."""
TICKS = 5
"""The greatest number of steps between the ends of a y axis, as the values need."""


@dataclass(frozen=True)
class Series:
    """A line of a panel through points (x, y); a name that is not empty stands above the plot."""

    name: str
    points: Sequence[Point]
    color: str
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """A mark at a point (x, y) of a panel: a polygon of so many corners, with a title."""

    point: Point
    color: str
    corners: int
    title: str = ""


def draw_curves(records: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw a panel for loss and one for accuracy, with a line for each group of images.

    `records` are the numbers of epochs as metrics.jsonl has them: `epoch`, and numbers named
    GROUP/loss and GROUP/accuracy, where the group is train, test or the like.

    >>> epochs = [{"epoch": 1, "train/loss": 2.3, "train/accuracy": 0.1},
    ...           {"epoch": 2, "train/loss": 1.9, "train/accuracy": 0.4}]
    >>> figure = draw_curves(epochs)
    >>> figure.width, figure.label
    (736, 'loss and accuracy over the epochs')
    """
    names = list(dict.fromkeys(key for record in records for key in record))
    panels = {}
    for quantity in ("loss", "accuracy"):
        series: list[Series] = []
        for name in names:
            group, _, rest = name.partition("/")
            if rest != quantity:
                continue
            points = [
                (float(record["epoch"]), record[name]) for record in records if name in record
            ]
            series.append(Series(group, points, COLORS[len(series) % len(COLORS)]))
        panels[quantity] = series
    last = max((record["epoch"] for record in records), default=1)
    return draw_panels(panels, sorted({1, last}), "epoch", "loss and accuracy over the epochs")


def draw_known(records: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """Draw the known accuracies of a search's cells, in per cent, with a line for each data set.

    `records` are the numbers of epochs as metrics.jsonl has them: `epoch`, and shares named
    known/DATA SET. None if no record has any.

    >>> draw_known([{"epoch": 1, "known/cifar10": 0.91}, {"epoch": 2}]).label
    'known accuracy over the epochs'
    """
    names = dict.fromkeys(
        name for record in records for name in record if name.startswith("known/")
    )
    if not names:
        return None
    series = [
        Series(
            name.removeprefix("known/"),
            [(float(record["epoch"]), 100 * record[name]) for record in records if name in record],
            COLORS[number % len(COLORS)],
        )
        for number, name in enumerate(names)
    ]
    ticks = sorted({1, records[-1]["epoch"]})
    title = "known accuracy, %"
    return draw_panels({title: series}, ticks, "epoch", "known accuracy over the epochs")


def draw_best(records: Sequence[Mapping[str, Any]]) -> Drawing:
    """Draw the accuracy of each query of a search, in per cent, and the best so far.

    `records` are the numbers of queries as metrics.jsonl has them: `epoch`, the number of the query,
    and the shares valid/accuracy and best/accuracy.

    >>> draw_best([{"epoch": 1, "valid/accuracy": 0.91, "best/accuracy": 0.91}]).label
    'accuracy over the queries'
    """
    series = [
        Series(
            name,
            [(float(record["epoch"]), 100 * record[f"{group}/accuracy"]) for record in records],
            COLORS[number],
        )
        for number, (name, group) in enumerate((("of each", "valid"), ("best so far", "best")))
    ]
    ticks = sorted({1, records[-1]["epoch"]})
    return draw_panels({"accuracy, %": series}, ticks, "query", "accuracy over the queries")


def draw_panels(
    panels: Mapping[str, Sequence[Series]],
    ticks: Sequence[float],
    along: str,
    label: str,
    *,
    columns: int = 2,
    span: tuple[float, float] | None = None,
    marks: Mapping[str, Sequence[Mark]] | None = None,
    plot: float = WIDTH,
) -> Drawing:
    """Draw a panel of curves for each title.

    Args:
        panels: Title -> the lines of the panel.
        ticks: The values marked on the x axis, which runs from the first to the last.
        along: What the x axis shows.
        label: The figure in words, for those who cannot see it.
        columns: The number of panels side by side.
        span: The ends of the y axis; by default round numbers around the values of the panel.
        marks: Title -> what is marked in the panel, over its lines.
        plot: The width of a panel's plot in pixels.
    """
    width, height = LEFT + plot + MARGIN, HEIGHT + FOOT + 3 * MARGIN + 14
    primitives: list[Primitive] = []
    for number, (title, curves) in enumerate(panels.items()):
        row, column = divmod(number, columns)
        frame = _Frame(MARGIN + column * width, row * height, plot, ticks, along, span)
        primitives += _panel(frame, title, curves, (marks or {}).get(title, ()))
    rows = -(-len(panels) // columns)  # rounded up
    size = round(min(columns, len(panels)) * width + MARGIN), round(rows * height)
    return Drawing(*size, tuple(primitives), label)


@dataclass(frozen=True)
class _Frame:
    """Where a panel lies, (x, y) its upper left corner; the rest is as in `draw_panels`."""

    x: float
    y: float
    plot: float
    ticks: Sequence[float]
    along: str
    span: tuple[float, float] | None


def _panel(
    frame: _Frame, title: str, curves: Sequence[Series], marks: Sequence[Mark]
) -> list[Primitive]:
    """Draw one panel."""
    ticks, y, width = frame.ticks, frame.y, frame.plot
    values = frame.span or [
        *(value for curve in curves for _, value in curve.points),
        *(mark.point[1] for mark in marks),
    ]
    low, high, step = _scale(values, exact=frame.span is not None)
    left, top = frame.x + LEFT, y + 2 * MARGIN + 14

    def place(abscissa: float, value: float) -> Point:
        share = (abscissa - ticks[0]) / ((ticks[-1] - ticks[0]) or 1.0)  # or 1: a single tick
        return left + width * share, top + HEIGHT * (1 - (value - low) / (high - low))

    drawn: list[Primitive] = [
        Box(left, top, width, HEIGHT, stroke=FAINT),
        Text(left, y + MARGIN, title, anchor="start"),
    ]
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        height = place(ticks[0], value)[1]
        drawn.append(Line(((left, height), (left + width, height)), FAINT, 0.6))
        drawn.append(Text(left - 6, height, f"{value:.4g}", anchor="end"))
    drawn += [Text(place(tick, low)[0], top + HEIGHT + 12, f"{tick:g}") for tick in ticks]
    # Between two ticks there is room for the axis' title; it goes below more of them.
    below = 12 if len(ticks) < 3 else 26
    drawn.append(Text(left + width / 2, top + HEIGHT + below, frame.along))
    legend_x = left
    for curve in curves:
        places = tuple(place(*point) for point in curve.points)
        if len(places) > 1:
            drawn.append(Line(places, curve.color, 1.8, curve.dashed))
        elif places:
            drawn.append(Box(places[0][0], places[0][1] - 2, 4, 4, curve.color))
        if curve.name:
            drawn.append(
                Text(legend_x, y + MARGIN + 16, curve.name, anchor="start", color=curve.color)
            )
            legend_x += text_width(curve.name) + 12
    drawn += [
        Polygon.regular(*place(*mark.point), MARK, mark.corners, mark.color, mark.title)
        for mark in marks
    ]
    return drawn


def _scale(values: Sequence[float], *, exact: bool = False) -> tuple[float, float, float]:
    """Return the ends of an axis and a round step (1, 2 or 5 times a power of 10) between ticks.

    With `exact` the ends are those of the values, otherwise the multiples of the step around them.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    # A smallest range keeps the logarithm finite where all values are equal.
    least_step = max(high - low, 1e-6 * max(1.0, abs(high))) / TICKS
    power = 10.0 ** math.floor(math.log10(least_step))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least_step)
    if exact:
        return low, high, step
    return step * math.floor(low / step), step * (math.floor(high / step) + 1), step
