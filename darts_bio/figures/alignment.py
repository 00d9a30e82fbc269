"""The charts of alignment: against the depth of layers, and over the epochs of a run.

Marks and lines have the color of the learning rule, as edges have in the figures of cells.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from darts_bio.errors import InputError
from darts_bio.evaluation.alignment import Alignment, LayerAlignment
from darts_bio.figures.charts import WIDTH, Chart, Panel, Series
from darts_bio.figures.colors import rule_colors
from darts_bio.figures.drawing import FAINT, INK, Point
from darts_bio.figures.thinning import thinned

ANGLES = {
    "feedback_angle": "feedback to the weight, degrees",
    "error_angle": "error sent down to the exact one, degrees",
    "gradient_angle": "gradient of the weight to the exact one, degrees",
}
"""The angles that are compared, fields of `LayerAlignment`, and what they are called."""

VARIANCE = "variance of the gradient over batches / |mean|^2; faint: of the exact one"

SHAPES = ("o", "s", "^", "p")
"""The marks of one alignment and the next."""

MOST_MARKS = 5000
"""The most marks of the chart over epochs; of more epochs, some evenly spaced ones are drawn."""


def draw_by_depth(alignments: Mapping[str, Alignment]) -> Chart:
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
    lines: dict[str, list[Series]] = {}
    marks: dict[str, list[Series]] = {title: [] for title in (*ANGLES.values(), VARIANCE)}
    keys = []
    for number, (name, alignment) in enumerate(alignments.items()):
        shape, dashed = SHAPES[number % len(SHAPES)], number % 2 == 1
        keys.append(Series(name, (), INK, dashed, marker=shape))
        for quantity, title in (*ANGLES.items(), ("gradient_variance", VARIANCE)):
            of_panel = lines.setdefault(title, [])
            if quantity == "gradient_variance":
                exact = _measured(alignment.layers, "exact_gradient_variance")
                points = [(float(layer.depth), value) for layer, value in exact]
                of_panel.append(Series("", points, FAINT, dashed))
            found = _measured(alignment.layers, quantity)
            points = [(float(layer.depth), value) for layer, value in found]
            of_panel += _colored(points, [colors[layer.rule] for layer, _ in found], dashed)
            titles = [f"{name}, {layer.label}: {value:.3g}" for layer, value in found]
            rules = [layer.rule for layer, _ in found]
            marks[title] += _marks(points, titles, rules, colors, shape)
    panels = [
        Panel(title, [*lines[title], *of_panel], decades=title == VARIANCE)
        for title, of_panel in marks.items()
        if of_panel
    ]
    label = f"alignment with backpropagation against depth: {', '.join(alignments)}"
    note = "colors: learning rules; marks and dashes: networks" if len(alignments) > 1 else ""
    return Chart(
        panels,
        "depth of the layer",
        label,
        note,
        [*keys, *_rule_keys(colors)],
        columns=1,
        width=2 * WIDTH,
    )


def draw_over_epochs(history: Mapping[int, Alignment]) -> Chart:
    """Draw the angles of each layer of one run over its epochs, a line a layer.

    Hovering over a mark shows the layer and the value.

    Args:
        history: The alignments, by epoch.

    Raises:
        InputError: If there is none.
    """
    if not history:
        raise InputError("alignment: expected at least one epoch to draw, found none")
    colors = _colors(history.values())
    layers = max(len(alignment.layers) for alignment in history.values()) or 1
    epochs = thinned(sorted(history), max(2, MOST_MARKS // (len(ANGLES) * layers)))
    panels = []
    for quantity, title in ANGLES.items():
        by_layer: dict[str, list[tuple[Point, LayerAlignment]]] = {}  # by the layer's name
        for epoch in epochs:
            for layer, value in _measured(history[epoch].layers, quantity):
                by_layer.setdefault(layer.name, []).append(((float(epoch), value), layer))
        lines = [
            Series(
                "",
                [point for point, _ in line],
                colors[line[0][1].rule],
                marker=SHAPES[0],
                titles=[f"epoch {x:g}, {layer.label}: {value:.3g}" for (x, value), layer in line],
            )
            for line in by_layer.values()
        ]
        if lines:
            panels.append(Panel(title, lines))
    label = "alignment with backpropagation over the epochs, a line a layer"
    note = "a line a layer; colors: learning rules"
    return Chart(panels, "epoch", label, note, _rule_keys(colors), columns=1, width=2 * WIDTH)


def _colors(alignments: Iterable[Alignment]) -> dict[str | None, str]:
    """Return the color of each rule in alignments."""
    return rule_colors(layer.rule for alignment in alignments for layer in alignment.layers)


def _rule_keys(colors: Mapping[str | None, str]) -> list[Series]:
    """Return what the legend says of the colors of rules."""
    return [Series(rule or "no weights", (), color) for rule, color in colors.items()]


def _measured(
    layers: Sequence[LayerAlignment], quantity: str
) -> list[tuple[LayerAlignment, float]]:
    """Return the layers that have a quantity, with its value.

    A value is None where a layer has nothing to compare, such as no feedback. A variance of 0 has
    no place on a logarithmic axis.
    """
    values: list[tuple[LayerAlignment, Any]] = [
        (layer, getattr(layer, quantity)) for layer in layers
    ]
    if quantity.endswith("variance"):
        return [(layer, value) for layer, value in values if value]
    return [(layer, value) for layer, value in values if value is not None]


def _colored(points: Sequence[Point], colors: Sequence[str], dashed: bool) -> list[Series]:
    """Return a line through points that comes to each of them in its color, a series a color."""
    pieces: dict[str, list[Point]] = {}
    for (start, end), color in zip(itertools.pairwise(points), colors[1:], strict=True):
        # Between its pieces a line is interrupted.
        pieces.setdefault(color, []).extend([start, end, (end[0], math.nan)])
    return [Series("", piece, color, dashed) for color, piece in pieces.items()]


def _marks(
    points: Sequence[Point],
    titles: Sequence[str],
    rules: Sequence[str | None],
    colors: Mapping[str | None, str],
    shape: str,
) -> list[Series]:
    """Return the marks at points, a series for each rule."""
    marks = []
    for rule in dict.fromkeys(rules):
        of_rule = [i for i, name in enumerate(rules) if name == rule]
        marks.append(
            Series(
                "",
                [points[i] for i in of_rule],
                colors[rule],
                width=0,
                marker=shape,
                titles=[titles[i] for i in of_rule],
            )
        )
    return marks
