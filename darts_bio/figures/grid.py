"""A grid of shaded tiles: a named row for each thing, a named column for each of its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from darts_bio.figures.drawing import (
    FAINT,
    MARGIN,
    PAPER,
    Box,
    Drawing,
    Primitive,
    Text,
    text_width,
)
from darts_bio.figures.heat_map import shade

TILE, HEIGHT = 20.0, 14.0
"""The width of a column and the height of a row, in pixels; a tile leaves a gap of one."""

MOST_ROWS = 56
"""The rows that stand below each other; further ones stand beside them."""


def draw_grid(
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Sequence[float | None]],
    ends: tuple[float, float],
    scale: str,
) -> Drawing:
    """Draw rows of numbers as shades of a color scale with fixed ends.

    A number that there is not (None), or that is not finite, is an empty frame. Hovering over a
    tile shows row, column and number.

    Args:
        title: What stands above the grid.
        columns: The names of the columns.
        rows: The numbers of each row, one a column, by the row's name.
        ends: The numbers at both ends of the color scale; numbers beyond have the color of the end.
        scale: What is written beside the color scale, such as the unit.

    >>> figure = draw_grid("angles", ["feedback"], {"stem": [30.0]}, (0.0, 90.0), "degrees")
    >>> figure.label
    'angles: 1 rows, feedback'
    """
    count = math.ceil(len(rows) / MOST_ROWS) or 1
    per_block = math.ceil(len(rows) / count)
    names = list(rows)
    head = max((text_width(name) for name in columns), default=0.0) * math.sqrt(0.5)
    top = MARGIN + 26 + head + 12
    primitives: list[Primitive] = [Text(MARGIN, MARGIN + 8, title, 15, "start")]
    left = right = MARGIN
    for start in range(0, len(names), per_block or 1):
        block = names[start : start + per_block]
        x = left + max(text_width(name) for name in block) + 8
        for number, column in enumerate(columns):
            middle = x + TILE * number + TILE / 2
            primitives.append(Text(middle, top - 6, column, anchor="start", angle=45))
        for line, name in enumerate(block):
            y = top + HEIGHT * line
            primitives.append(Text(x - 8, y + HEIGHT / 2, name, anchor="end"))
            primitives += [
                _tile(x + TILE * i, y, f"{name}, {column}", value, ends)
                for i, (column, value) in enumerate(zip(columns, rows[name], strict=True))
            ]
        right = x + TILE * len(columns) + 8 + head
        left = x + TILE * len(columns) + max(24.0, head)
    bottom = top + HEIGHT * per_block + 14
    scale_of_color = _scale(MARGIN, bottom, ends, scale)
    primitives += scale_of_color
    last = scale_of_color[-1]
    right = max(right, MARGIN + text_width(title, 15), last.x + last.width)
    label = f"{title}: {len(rows)} rows, {', '.join(columns)}"
    return Drawing(
        math.ceil(right + MARGIN), math.ceil(bottom + 12 + MARGIN), tuple(primitives), label
    )


def _tile(x: float, y: float, name: str, value: float | None, ends: tuple[float, float]) -> Box:
    """Draw a number's tile with its upper left corner at (x, y)."""
    if value is None or not math.isfinite(value):
        return Box(x, y, TILE - 1, HEIGHT - 1, PAPER, FAINT, title=name)
    low, high = ends
    share = min(1.0, max(0.0, (value - low) / ((high - low) or 1.0)))
    return Box(x, y, TILE - 1, HEIGHT - 1, shade(share), title=f"{name}: {value:.4g}")


def _scale(x: float, y: float, ends: tuple[float, float], text: str) -> list[Box | Text]:
    """Draw the color scale at (x, y), with its ends and a text behind it."""
    low, high = (f"{end:.3g}" for end in ends)
    x += text_width(low) + 6
    strip: list[Box | Text] = [Box(x + 4 * i, y, 5, 12, shade(i / 31)) for i in range(32)]
    behind = x + 134 + text_width(high) + 10
    return [
        *strip,
        Text(x - 6, y + 6, low, anchor="end"),
        Text(x + 134, y + 6, high, anchor="start"),
        Text(behind, y + 6, text, anchor="start"),
    ]
