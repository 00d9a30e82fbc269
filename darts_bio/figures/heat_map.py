"""The heat map of architecture parameters: a row an edge, a column a candidate."""

from __future__ import annotations

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
from darts_bio.spaces.genotype import Candidate

SHADES = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")
"""Anchors of a sequential, perceptually even color map (viridis)."""

TILE = 20.0
"""Height in pixels of a row."""


def _shade(share: float) -> str:
    """The color at `share`, from 0 to 1, of the scale."""
    place = share * (len(SHADES) - 1)
    i = min(int(place), len(SHADES) - 2)
    low, high = (
        np.array([int(shade[k : k + 2], 16) for k in (1, 3, 5)]) for shade in SHADES[i : i + 2]
    )
    return "#" + "".join(f"{round(v):02x}" for v in (low + (place - i) * (high - low)).tolist())


def _spread(groups: Sequence[Any], start: float) -> list[float]:
    """Where each tile of a row starts, with a gap wherever the group changes."""
    gaps = np.cumsum([0] + [a != b for a, b in itertools.pairwise(groups)])
    return [
        start + TILE * i + 5.0 * float(gap)
        for i, gap in zip(range(len(groups)), gaps, strict=False)
    ]


def draw_edge_weights(
    title: str,
    rows: Sequence[Row],
    edges: Sequence[tuple[int, int]],
    values: Tensor | Sequence[Sequence[float]],
) -> Drawing:
    """Heat map of values (edges, candidates), such as alpha or the edge weights of one cell type.

    `rows` are the table's candidates, `edges` the space's (node, input). A column holds one
    candidate wherever it stands in its row; an edge without it leaves it blank, and a value that is
    not finite an empty frame. A dot marks the first largest value of an edge.
    """
    found = list(
        dict.fromkeys(candidate for row in rows for candidate in row if candidate is not None)
    )
    ops = list(dict.fromkeys(candidate.op for candidate in found))
    columns = sorted(found, key=lambda candidate: ops.index(candidate.op))
    names = [f"{node} <- {source}" for node, source in edges]
    table = [
        {
            candidate: value
            for candidate, value in zip(row, line, strict=True)
            if candidate is not None
        }
        for row, line in zip(
            rows, torch.as_tensor(values).detach().double().cpu().tolist(), strict=True
        )
    ]
    finite = [value for line in table for value in line.values() if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    left = MARGIN + max((text_width(name) for name in names), default=0.0) + 8
    head = max((text_width(str(c)) for c in columns), default=0.0) * math.sqrt(0.5)
    top = MARGIN + 26 + head + 12
    xs = dict(zip(columns, _spread([candidate.op for candidate in columns], left), strict=True))
    ys = _spread([node for node, _ in edges], top)
    primitives: list[Primitive] = [Text(MARGIN, MARGIN + 8, title, 15, "start")] if title else []
    primitives += [
        Text(x + TILE / 2, top - 6, str(c), anchor="start", angle=45) for c, x in xs.items()
    ]
    primitives += [
        Text(left - 8, y + TILE / 2, name, anchor="end") for name, y in zip(names, ys, strict=True)
    ]
    for name, y, line in zip(names, ys, table, strict=True):
        primitives += _tiles(name, y, xs, line, low, high)
    bottom = (ys[-1] if ys else top) + TILE + 14
    if finite:
        primitives += _scale(left, bottom, low, high)
    right = max([x + TILE for x in xs.values()] + [left + 320, MARGIN + text_width(title, 15)])
    right = max(
        [right] + [x + TILE / 2 + 8 + text_width(str(c)) * math.sqrt(0.5) for c, x in xs.items()]
    )
    label = f"{title}: {len(edges)} edges, {len(columns)} candidates, values from {low:.3g} to {high:.3g}"
    return Drawing(
        math.ceil(right + MARGIN), math.ceil(bottom + 12 + MARGIN), tuple(primitives), label
    )


def _dot(x: float, y: float, color: str) -> Box:
    return Box(x - 3.5, y - 3.5, 7, 7, color, radius=3.5)


def _tiles(
    name: str,
    y: float,
    xs: Mapping[Candidate, float],
    values: Mapping[Candidate, float],
    low: float,
    high: float,
) -> list[Primitive]:
    """One edge's row of the heat map."""
    tiles: list[Primitive] = []
    finite = {candidate: value for candidate, value in values.items() if math.isfinite(value)}
    shares = {
        candidate: (value - low) / ((high - low) or 1.0) for candidate, value in finite.items()
    }
    for candidate, value in values.items():
        fill, stroke = (
            (_shade(shares[candidate]), "none") if candidate in shares else (PAPER, FAINT)
        )
        title = f"{name}, {candidate}: {value:.4g}"
        tiles.append(Box(xs[candidate], y, TILE - 1, TILE - 1, fill, stroke, title=title))
    if finite:
        largest = max(finite, key=finite.__getitem__)
        middle = (TILE - 1) / 2
        tiles.append(
            _dot(xs[largest] + middle, y + middle, INK if shares[largest] > 0.5 else PAPER)
        )
    return tiles


def _scale(x: float, y: float, low: float, high: float) -> list[Primitive]:
    """The color scale with its ends, and what the dot means."""
    least, most = f"{low:.3g}", f"{high:.3g}"
    x += text_width(least) + 6
    strip = [Box(x + 4 * i, y, 5, 12, _shade(i / 31)) for i in range(32)]
    after = x + 134 + text_width(most) + 24
    texts = [Text(x - 6, y + 6, least, anchor="end"), Text(x + 134, y + 6, most, anchor="start")]
    return [
        *strip,
        *texts,
        _dot(after, y + 6, INK),
        Text(after + 8, y + 6, "largest of the edge", anchor="start"),
    ]
