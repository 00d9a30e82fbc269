"""The figures of alignment: against the depth of layers, and over the epochs of a run.

Marks and lines have the color of the learning rule, as edges have in the figures of cells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from darts_bio.errors import InputError
from darts_bio.evaluation.alignment import Alignment, LayerAlignment
from darts_bio.figures.cells import draw_legend, rule_colors
from darts_bio.figures.curves import Mark, Series, draw_panels
from darts_bio.figures.drawing import (
    FAINT,
    MARGIN,
    Drawing,
    Line,
    Point,
    Polygon,
    Primitive,
    Text,
    text_width,
)

ANGLES = {
    "feedback_angle": "feedback to the weight, degrees",
    "error_angle": "error sent down to the exact one, degrees",
    "gradient_angle": "gradient of the weight to the exact one, degrees",
}
"""The angles that are compared, fields of `LayerAlignment`, and what they are called."""

VARIANCE = "variance of the gradient over batches / |mean|^2, log10; faint: of the exact one"

PLOT = 640.0
"""The width of a panel's plot, in pixels."""

SHAPES = (16, 4, 3, 5)
"""The corners of the marks of one checkpoint and the next; 16 look like a circle."""


def draw_by_depth(alignments: Mapping[str, Alignment]) -> Drawing:
    """Draw angles and variance of the gradient against the depth of layers, a line an alignment.

    Alignments are told apart by the shape of their marks; the lines of every other one are dashed.
    Hovering over a mark shows the layer and the value.

    Args:
        alignments: What is drawn, by the name in the legend.

    Raises:
        InputError: If there is none.

    >>> from darts_bio.evaluation.alignment import measure_alignment
    >>> from darts_bio.rules import convert
    >>> import torch
    >>> from torch import nn
    >>> plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    >>> batches = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    >>> found = {
    ...     rule: measure_alignment(convert(plain, rule), batches, nn.functional.cross_entropy)
    ...     for rule in ("fa", "usf")
    ... }
    >>> draw_by_depth(found).label
    'alignment with backpropagation against depth: fa, usf'
    """
    if not alignments:
        raise InputError("alignment: expected at least one to draw, found none")
    colors = _colors(alignments.values())
    panels: dict[str, list[Series]] = {title: [] for title in (*ANGLES.values(), VARIANCE)}
    marks: dict[str, list[Mark]] = {title: [] for title in panels}
    for number, (name, alignment) in enumerate(alignments.items()):
        corners, dashed = SHAPES[number % len(SHAPES)], number % 2 == 1
        for quantity, title in (*ANGLES.items(), ("gradient_variance", VARIANCE)):
            found = _measured(alignment.layers, quantity)
            points = [(float(layer.depth), value) for layer, value in found]
            hues = [colors[layer.rule] for layer, _ in found]
            if quantity == "gradient_variance":
                exact = _measured(alignment.layers, "exact_gradient_variance")
                of_exact = [(float(layer.depth), value) for layer, value in exact]
                panels[title].append(Series("", of_exact, FAINT, dashed))
            panels[title] += _colored(points, hues, dashed)
            for (layer, value), point, hue in zip(found, points, hues, strict=True):
                text = f"{name}, {layer.label}: {value:.3g}"
                marks[title].append(Mark(point, hue, corners, text))
    deepest = max((layer.depth for a in alignments.values() for layer in a.layers), default=0)
    label = f"alignment with backpropagation against depth: {', '.join(alignments)}"
    shown = {title: curves for title, curves in panels.items() if marks[title]}
    ticks = [0.0, float(max(1, deepest))]
    drawing = draw_panels(
        shown, ticks, "depth of the layer", label, columns=1, marks=marks, plot=PLOT
    )
    return _with_legends(drawing, colors, list(alignments))


def draw_over_epochs(history: Mapping[int, Alignment]) -> Drawing:
    """Draw the angles of each layer of one run over its epochs, a line a layer.

    Hovering over a mark shows the layer and the value.

    Args:
        history: The alignments, by epoch.

    Raises:
        InputError: If there is none.
    """
    if not history:
        raise InputError("alignment: expected at least one epoch to draw, found none")
    epochs = sorted(history)
    colors = _colors(history.values())
    panels: dict[str, list[Series]] = {title: [] for title in ANGLES.values()}
    marks: dict[str, list[Mark]] = {title: [] for title in panels}
    for quantity, title in ANGLES.items():
        lines: dict[str, list[tuple[Point, LayerAlignment]]] = {}  # by the layer's name
        for epoch in epochs:
            for layer, value in _measured(history[epoch].layers, quantity):
                lines.setdefault(layer.name, []).append(((float(epoch), value), layer))
        for line in lines.values():
            hue = colors[line[0][1].rule]
            panels[title].append(Series("", [point for point, _ in line], hue))
            for point, layer in line:
                text = f"epoch {point[0]:g}, {layer.label}: {point[1]:.3g}"
                marks[title].append(Mark(point, hue, SHAPES[0], text))
    shown = {title: curves for title, curves in panels.items() if marks[title]}
    ticks = [float(epoch) for epoch in sorted({epochs[0], epochs[-1]})]
    label = "alignment with backpropagation over the epochs, a line a layer"
    drawing = draw_panels(shown, ticks, "epoch", label, columns=1, marks=marks, plot=PLOT)
    return _with_legends(drawing, colors, [])


def _colors(alignments: Iterable[Alignment]) -> dict[str | None, str]:
    """Return the color of each rule in alignments."""
    return rule_colors(layer.rule for alignment in alignments for layer in alignment.layers)


def _measured(
    layers: Sequence[LayerAlignment], quantity: str
) -> list[tuple[LayerAlignment, float]]:
    """Return the layers that have a quantity, with its value; of a variance its logarithm.

    A value is None where a layer has nothing to compare, such as no feedback. A variance of 0 has
    no logarithm.
    """
    values: list[tuple[LayerAlignment, Any]] = [
        (layer, getattr(layer, quantity)) for layer in layers
    ]
    if quantity.endswith("variance"):
        return [(layer, math.log10(value)) for layer, value in values if value]
    return [(layer, value) for layer, value in values if value is not None]


def _colored(points: Sequence[Point], colors: Sequence[str], dashed: bool) -> list[Series]:
    """Return a line through points that comes to each of them in its color."""
    series = []
    steps = zip(itertools.pairwise(points), colors[1:], strict=True)
    for color, group in itertools.groupby(steps, key=lambda step: step[1]):
        ends = [ends for ends, _ in group]
        series.append(Series("", [ends[0][0], *(end for _, end in ends)], color, dashed))
    return series


def _with_legends(
    drawing: Drawing, colors: Mapping[str | None, str], names: Sequence[str]
) -> Drawing:
    """Return a drawing with the names of what is drawn, by their marks, and the rules below it."""
    primitives: list[Primitive] = []
    x, y = MARGIN, drawing.height + MARGIN
    for number, name in enumerate(names):
        if x > MARGIN and x + 34 + text_width(name) > drawing.width - MARGIN:
            x, y = MARGIN, y + 18
        dashed, corners = number % 2 == 1, SHAPES[number % len(SHAPES)]
        primitives.append(Line(((x, y), (x + 26, y)), dashed=dashed))
        primitives.append(Polygon.regular(x + 13, y, 4.5, corners, "#222222"))
        primitives.append(Text(x + 34, y, name, anchor="start"))
        x += 34 + text_width(name) + 22
    if names:
        y += 18
    legend, bottom = draw_legend(colors, y - 8, drawing.width)
    height = math.ceil(bottom + MARGIN)
    everything = (*drawing.primitives, *primitives, *legend)
    return Drawing(drawing.width, height, everything, drawing.label)
