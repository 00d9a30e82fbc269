"""The heat map of a network's alignment: a row for each layer, a column for each angle."""

from __future__ import annotations

from darts_bio.evaluation.alignment import Alignment
from darts_bio.figures.drawing import Drawing
from darts_bio.figures.grid import draw_grid

COLUMNS = {"feedback_angle": "feedback", "error_angle": "error", "gradient_angle": "gradient"}
"""The angles that are shown, fields of `LayerAlignment`, by what they are called here."""


def draw_layers(alignment: Alignment) -> Drawing:
    """Draw the angles of all layers, by depth, from 0 degrees (backpropagation's) to 90 and more.

    Rows are named by place, operation and rule. Where there is nothing to compare, such as no error
    sent down, the tile is an empty frame.

    >>> from darts_bio.evaluation.alignment import LayerAlignment
    >>> from darts_bio.networks.naming import WeightName
    >>> layer = LayerAlignment("0", WeightName("0", "Conv2d"), "fa", 0, 60.0, 1.1, None, 0.8, 0.5, 0.4)
    >>> draw_layers(Alignment((layer,), 0.8, 0.5, 0.4)).label
    'alignment by layer: 1 rows, feedback, error, gradient'
    """
    rows: dict[str, list[float | None]] = {}
    for layer in alignment.layers:
        rows[layer.label] = [getattr(layer, name) for name in COLUMNS]
    columns = list(COLUMNS.values())
    text = "degrees and more: at 90 nothing is left of the exact direction"
    return draw_grid("alignment by layer", columns, rows, (0.0, 90.0), text)
