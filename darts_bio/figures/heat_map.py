"""The heat map of architecture parameters: a row for each edge, a column for each candidate."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darts_bio.figures.drawing import (
    FAINT,
    INK,
    MARGIN,
    PAPER,
    Box,
    Drawing,
    Primitive,
    Text,
    text_width,
)
from darts_bio.spaces.base import Row
from darts_bio.spaces.genotype import Candidate, Cell

SHADES = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")
"""Anchors of a sequential, perceptually even color map (viridis)."""

TILE = 20.0
"""The side in pixels of a tile with its gap: the height of a row and the width of a column."""

LEAST_RANGE = 0.1
"""The least difference between the ends of the color scale.

At the beginning of a search all shares of an edge are nearly alike, and look so.
"""

KEPT, DROPPED = "#e41a1c", "#8c8c8c"
"""The colors of the frame of a candidate that is in the genotype, and of an edge that is not."""


def shade(share: float) -> str:
    """Return the color at `share`, from 0 to 1, of the scale, between the two nearest shades."""
    place = share * (len(SHADES) - 1)
    i = min(int(place), len(SHADES) - 2)
    low, high = (_rgb(shade) for shade in SHADES[i : i + 2])
    mixed = low + (place - i) * (high - low)
    return "#" + "".join(f"{round(value):02x}" for value in mixed.tolist())


@functools.cache
def _rgb(color: str) -> np.ndarray:
    """Return red, green and blue, from 0 to 255, of a color "#rrggbb"."""
    return np.array([int(color[k : k + 2], 16) for k in (1, 3, 5)])


def _tile_positions(groups: Sequence[Any], start: float) -> list[float]:
    """Return where each tile starts; between tiles of two groups there is a gap of 5 pixels."""
    gaps = np.cumsum([0] + [a != b for a, b in itertools.pairwise(groups)])
    return [
        start + TILE * i + 5.0 * float(gap)
        for i, gap in zip(range(len(groups)), gaps, strict=False)
    ]


def columns_of(rows: Sequence[Row]) -> list[Candidate]:
    """Return the candidates of the edges, each once, in the order of a heat map's columns.

    Those of the same operation stand together, operations in the order of their first one.

    >>> skip, fa, usf = Candidate("skip", None), Candidate("conv", "fa"), Candidate("conv", "usf")
    >>> [str(candidate) for candidate in columns_of([(fa, skip, None), (skip, usf, fa)])]
    ['conv:fa', 'conv:usf', 'skip']
    """
    candidates = list(
        dict.fromkeys(candidate for row in rows for candidate in row if candidate is not None)
    )
    ops = list(dict.fromkeys(candidate.op for candidate in candidates))
    return sorted(candidates, key=lambda candidate: ops.index(candidate.op))


def draw_edge_weights(
    title: str,
    rows: Sequence[Row],
    edges: Sequence[tuple[int, int]],
    values: Tensor | Sequence[Sequence[float]],
    cell: Cell | None = None,
) -> Drawing:
    """Draw a heat map of one cell type's values, such as alpha or the edge weights.

    A column holds one candidate, at whatever place it stands in its row. An edge without that
    candidate leaves the column blank; a value that is not finite is an empty frame. A dot marks the
    first largest value of an edge. The color scale is that of `scale_ends`.

    Args:
        title: What stands above the heat map.
        rows: The candidates of each edge, in the order of the values; None pads a row.
        edges: The (node, input) of each edge.
        values: The values, (edges, candidates).
        cell: The cell that is derived from them: its candidates are framed, and the names of edges
            that it lacks are gray. None marks none.

    Example:
        >>> skip, conv = Candidate("skip_connect", None), Candidate("sep_conv_3x3", "usf")
        >>> figure = draw_edge_weights(
        ...     "normal cell", [(skip, conv)] * 2, [(2, 0), (2, 1)], [[0.25, 0.75], [0.5, 0.5]]
        ... )
        >>> figure.label
        'normal cell: 2 edges, 2 candidates, values from 0.25 to 0.75'
    """
    columns = columns_of(rows)
    edge_names = [f"{node} <- {source}" for node, source in edges]
    value_rows = torch.as_tensor(values).detach().double().cpu().tolist()
    table: list[dict[Candidate, float]] = []  # of each edge: candidate -> value
    for row, row_values in zip(rows, value_rows, strict=True):
        pairs = zip(row, row_values, strict=True)
        table.append({candidate: value for candidate, value in pairs if candidate is not None})
    finite = [value for line in table for value in line.values() if math.isfinite(value)]
    low, high = scale_ends(finite)
    kept = {} if cell is None else {(edge.node, edge.input): edge.candidate for edge in cell.edges}

    # Names of candidates stand above their columns at 45 degrees.
    head_widths = {candidate: text_width(str(candidate)) * math.sqrt(0.5) for candidate in columns}
    left = MARGIN + max((text_width(name) for name in edge_names), default=0.0) + 8
    top = MARGIN + 26 + max(head_widths.values(), default=0.0) + 12
    column_xs = _tile_positions([candidate.op for candidate in columns], left)
    xs = dict(zip(columns, column_xs, strict=True))
    ys = _tile_positions([node for node, _ in edges], top)

    primitives: list[Primitive] = [Text(MARGIN, MARGIN + 8, title, 15, "start")] if title else []
    for candidate, x in xs.items():
        primitives.append(Text(x + TILE / 2, top - 6, str(candidate), anchor="start", angle=45))
    frames: list[Primitive] = []
    for edge, name, y, line in zip(edges, edge_names, ys, table, strict=True):
        color = INK if cell is None or edge in kept else DROPPED
        primitives.append(Text(left - 8, y + TILE / 2, name, anchor="end", color=color))
        primitives += _tiles(name, y, xs, line, low, high)
        if edge in kept:
            frames += [_frame(xs[candidate], y) for candidate in _owners(kept[edge], line)]
    primitives = frames + primitives  # the frames lie below the tiles, and show around them
    bottom = (ys[-1] if ys else top) + TILE + 14
    legend = _scale(left, bottom, low, high, framed=bool(frames)) if finite else []
    primitives += legend
    right = max(
        *(item.x + item.width for item in legend if isinstance(item, Text)),
        left,
        MARGIN + text_width(title, 15),
        *(x + TILE for x in xs.values()),
        *(x + TILE / 2 + 8 + head_widths[candidate] for candidate, x in xs.items()),
    )
    label = (
        f"{title}: {len(edges)} edges, {len(columns)} candidates, values from "
        f"{min(finite, default=0.0):.3g} to {max(finite, default=0.0):.3g}"
    )
    return Drawing(
        math.ceil(right + MARGIN), math.ceil(bottom + 12 + MARGIN), tuple(primitives), label
    )


def scale_ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the color scale of finite values, at least `LEAST_RANGE` apart.

    It begins at 0, or at the least value if that is negative.

    >>> scale_ends([0.0498, 0.0502]), scale_ends([0.25, 0.5]), scale_ends([-1.0, -0.5])
    ((0.0, 0.1), (0.0, 0.5), (-1.0, -0.5))
    """
    low = min([0.0, *values])
    return low, max([*values, low + LEAST_RANGE])


def _owners(candidate: Candidate, row: Mapping[Candidate, float]) -> list[Candidate]:
    """Return which candidates of a row a derived one stands for.

    A skip is derived without the rule that it may have where it has weights.
    """
    return [c for c in row if c == candidate] or [c for c in row if c.op == candidate.op]


def _frame(x: float, y: float) -> Box:
    """Draw what shows around a tile at (x, y)."""
    return Box(x - 2, y - 2, TILE + 3, TILE + 3, KEPT)


def _dot(x: float, y: float, color: str) -> Box:
    """Draw a dot around (x, y)."""
    return Box(x - 3.5, y - 3.5, 7, 7, color, radius=3.5)


def _tiles(
    name: str,
    y: float,
    xs: Mapping[Candidate, float],
    values: Mapping[Candidate, float],
    low: float,
    high: float,
) -> list[Primitive]:
    """Draw the row of one edge.

    Args:
        name: The edge, for the titles that appear on hovering.
        y: The top of the row.
        xs: The left side of each candidate's column.
        values: The value of each candidate on the edge.
        low: The value at the low end of the color scale.
        high: The value at the high end of the color scale.
    """
    tiles: list[Primitive] = []
    finite = {candidate: value for candidate, value in values.items() if math.isfinite(value)}
    shares = {
        candidate: (value - low) / ((high - low) or 1.0) for candidate, value in finite.items()
    }
    for candidate, value in values.items():
        fill, stroke = PAPER, FAINT
        if candidate in shares:
            fill, stroke = shade(shares[candidate]), "none"
        title = f"{name}, {candidate}: {value:.4g}"
        tiles.append(Box(xs[candidate], y, TILE - 1, TILE - 1, fill, stroke, title=title))
    if finite:
        largest = max(finite, key=finite.__getitem__)
        middle = (TILE - 1) / 2
        # Low shades are dark, high ones light.
        color = INK if shares[largest] > 0.5 else PAPER
        tiles.append(_dot(xs[largest] + middle, y + middle, color))
    return tiles


def _scale(x: float, y: float, low: float, high: float, framed: bool) -> list[Primitive]:
    """Draw the color scale with its ends at (x, y), and beside it what dot and frame mean.

    `framed` says whether there are frames.
    """
    low_text, high_text = f"{low:.3g}", f"{high:.3g}"
    x += text_width(low_text) + 6
    strip = [Box(x + 4 * i, y, 5, 12, shade(i / 31)) for i in range(32)]
    dot_x = x + 134 + text_width(high_text) + 24
    legend: list[Primitive] = []
    if framed:
        frame_x = dot_x + 8 + text_width("largest of the edge") + 16
        legend = [
            Box(frame_x, y - 1, 14, 14, KEPT),
            Box(frame_x + 2, y + 1, 10, 10, PAPER),
            Text(frame_x + 20, y + 6, "in the genotype", anchor="start"),
        ]
    return [
        *strip,
        *legend,
        Text(x - 6, y + 6, low_text, anchor="end"),
        Text(x + 134, y + 6, high_text, anchor="start"),
        _dot(dot_x, y + 6, INK),
        Text(dot_x + 8, y + 6, "largest of the edge", anchor="start"),
    ]
