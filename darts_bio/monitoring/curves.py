"""The curves of a training: loss and accuracy over the epochs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from darts_bio.monitoring.drawing import FAINT, MARGIN, Box, Drawing, Line, Primitive, Text, text_width

COLOURS = ("#365c8d", "#c8553d", "#2a9d5c", "#8d5a97", "#b58900", "#222222")
WIDTH, HEIGHT, LEFT, FOOT = 300.0, 180.0, 44.0, 22.0
"""Of a panel's plot, and the room beside and below it, in pixels."""
TICKS = 5


def draw_curves(records: Sequence[Mapping[str, Any]]) -> Drawing:
    """A panel for loss and one for accuracy, a line for each group that measured it (train, test, ...).

    `records` are the epochs of metrics.jsonl: `epoch`, and numbers named GROUP/loss and GROUP/accuracy.
    """
    primitives: list[Primitive] = []
    for number, quantity in enumerate(("loss", "accuracy")):
        series = {
            name.partition("/")[0]: [(record["epoch"], record[name]) for record in records if name in record]
            for name in dict.fromkeys(key for record in records for key in record)
            if name.endswith(f"/{quantity}") and name.count("/") == 1
        }
        primitives += _panel(MARGIN + number * (LEFT + WIDTH + MARGIN), quantity, series)
    size = round(2 * (LEFT + WIDTH + MARGIN) + MARGIN), round(HEIGHT + FOOT + 3 * MARGIN + 14)
    return Drawing(*size, tuple(primitives), "loss and accuracy over the epochs")


def _panel(x: float, title: str, series: Mapping[str, Sequence[tuple[int, float]]]) -> list[Primitive]:
    points = [point for line in series.values() for point in line]
    last = max([epoch for epoch, _ in points], default=1)
    low, high, step = _scale([value for _, value in points])
    left, top = x + LEFT, 2 * MARGIN + 14

    def place(epoch: float, value: float) -> tuple[float, float]:
        return left + WIDTH * (epoch - 1) / max(1, last - 1), top + HEIGHT * (1 - (value - low) / (high - low))

    drawn: list[Primitive] = [Box(left, top, WIDTH, HEIGHT, stroke=FAINT), Text(left, MARGIN, title, anchor="start")]
    for tick in range(round((high - low) / step) + 1):
        value = low + tick * step
        y = place(1, value)[1]
        drawn += [Line(((left, y), (left + WIDTH, y)), FAINT, 0.6), Text(left - 6, y, f"{value:.4g}", anchor="end")]
    drawn += [Text(place(epoch, low)[0], top + HEIGHT + 12, str(epoch)) for epoch in sorted({1, last})]
    drawn.append(Text(left + WIDTH / 2, top + HEIGHT + 12, "epoch"))
    along = left
    for colour, (name, line) in zip(COLOURS * (1 + len(series) // len(COLOURS)), series.items(), strict=False):
        places = tuple(place(epoch, value) for epoch, value in line)
        drawn.append(
            Line(places, colour, 1.8) if len(places) > 1 else Box(places[0][0], places[0][1] - 2, 4, 4, colour)
        )
        drawn.append(Text(along, MARGIN + 16, name, anchor="start", colour=colour))
        along += text_width(name) + 12
    return drawn


def _scale(values: Sequence[float]) -> tuple[float, float, float]:
    """Least and greatest value of an axis, and a round step between its ticks."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    raw = max(high - low, 1e-6 * max(1.0, abs(high))) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return step * math.floor(low / step), step * (math.floor(high / step) + 1), step
