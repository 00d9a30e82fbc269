"""Curves over a number: panels with axes, and the figure of a training, loss and accuracy over the
epochs.
"""

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
    Primitive,
    Text,
    text_width,
)

COLORS = ("#365c8d", "#c8553d", "#2a9d5c", "#8d5a97", "#b58900", "#222222", "#3aa0a8", "#a05a2c")
WIDTH, HEIGHT, LEFT, FOOT = 300.0, 180.0, 44.0, 22.0
"""Of a panel's plot, and the room beside and below it, in pixels."""
TICKS = 5


@dataclass(frozen=True)
class Series:
    """One line of a panel, through points (x, y); its name stands above the panel unless that is
    empty.
    """

    name: str
    points: Sequence[Point]
    color: str
    dashed: bool = False


def draw_curves(records: Sequence[Mapping[str, Any]]) -> Drawing:
    """A panel for loss and one for accuracy, a line for each group that measured it (train, test,
    ...).

    `records` are the epochs of metrics.jsonl: `epoch`, and numbers named GROUP/loss and
    GROUP/accuracy.
    """
    panels = {}
    for quantity in ("loss", "accuracy"):
        series = {
            name.partition("/")[0]: [
                (float(record["epoch"]), record[name]) for record in records if name in record
            ]
            for name in dict.fromkeys(key for record in records for key in record)
            if name.endswith(f"/{quantity}") and name.count("/") == 1
        }
        panels[quantity] = [
            Series(name, points, COLORS[number % len(COLORS)])
            for number, (name, points) in enumerate(series.items())
        ]
    last = max((record["epoch"] for record in records), default=1)
    return draw_panels(panels, sorted({1, last}), "epoch", "loss and accuracy over the epochs")


def draw_panels(
    panels: Mapping[str, Sequence[Series]],
    ticks: Sequence[float],
    along: str,
    label: str,
    *,
    columns: int = 2,
    span: tuple[float, float] | None = None,
) -> Drawing:
    """A panel for each title, with `columns` of them side by side. x runs from the first to the
    last of `ticks`, which are marked; y over `span`, or what there is in the panel.
    """
    width, height = LEFT + WIDTH + MARGIN, HEIGHT + FOOT + 3 * MARGIN + 14
    primitives: list[Primitive] = []
    for number, (title, curves) in enumerate(panels.items()):
        row, column = divmod(number, columns)
        primitives += _panel(
            MARGIN + column * width, row * height, title, curves, ticks, along, span
        )
    rows = -(-len(panels) // columns)
    size = round(min(columns, len(panels)) * width + MARGIN), round(rows * height)
    return Drawing(*size, tuple(primitives), label)


def _panel(
    x: float,
    y: float,
    title: str,
    curves: Sequence[Series],
    ticks: Sequence[float],
    along: str,
    span: tuple[float, float] | None,
) -> list[Primitive]:
    low, high, step = _scale(
        span or [value for curve in curves for _, value in curve.points], exact=span is not None
    )
    left, top = x + LEFT, y + 2 * MARGIN + 14

    def place(at: float, value: float) -> Point:
        share = (at - ticks[0]) / ((ticks[-1] - ticks[0]) or 1.0)
        return left + WIDTH * share, top + HEIGHT * (1 - (value - low) / (high - low))

    drawn: list[Primitive] = [
        Box(left, top, WIDTH, HEIGHT, stroke=FAINT),
        Text(left, y + MARGIN, title, anchor="start"),
    ]
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        height = place(ticks[0], value)[1]
        drawn.append(Line(((left, height), (left + WIDTH, height)), FAINT, 0.6))
        drawn.append(Text(left - 6, height, f"{value:.4g}", anchor="end"))
    drawn += [Text(place(tick, low)[0], top + HEIGHT + 12, f"{tick:g}") for tick in ticks]
    drawn.append(Text(left + WIDTH / 2, top + HEIGHT + (12 if len(ticks) < 3 else 26), along))
    beside = left
    for curve in curves:
        places = tuple(place(*point) for point in curve.points)
        if len(places) > 1:
            drawn.append(Line(places, curve.color, 1.8, curve.dashed))
        elif places:
            drawn.append(Box(places[0][0], places[0][1] - 2, 4, 4, curve.color))
        if curve.name:
            drawn.append(
                Text(beside, y + MARGIN + 16, curve.name, anchor="start", color=curve.color)
            )
            beside += text_width(curve.name) + 12
    return drawn


def _scale(values: Sequence[float], *, exact: bool = False) -> tuple[float, float, float]:
    """Least and greatest value of an axis, with `exact` those of the values, and a round step
    between its ticks.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    raw = max(high - low, 1e-6 * max(1.0, abs(high))) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    if exact:
        return low, high, step
    return step * math.floor(low / step), step * (math.floor(high / step) + 1), step
