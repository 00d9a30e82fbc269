"""Alignments side by side: of several networks, or of one after several epochs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from darts_bio.errors import InputError
from darts_bio.evaluation.alignment import Alignment, LayerAlignment
from darts_bio.evaluation.moments import degrees
from darts_bio.figures.alignment import draw_by_depth
from darts_bio.figures.charts import Chart
from darts_bio.networks.naming import WeightName
from darts_bio.reports.markdown import markdown_table

COLUMNS = {"feedback_angle": "K to W", "error_angle": "error", "gradient_angle": "gradient"}
"""The angles of a table, and what stands above their columns."""


@dataclass(frozen=True)
class AlignmentComparison:
    """Alignments by name, compared layer by layer.

    A row of the table is a place in the network and what stands there, with all rules that it has
    there. Angles are in degrees; a dash says that there is nothing to compare.

    >>> import torch
    >>> from torch import nn
    >>> from darts_bio.evaluation.alignment import measure_alignment
    >>> from darts_bio.rules import convert
    >>> _ = torch.manual_seed(0)
    >>> plain = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> batches = [(torch.randn(8, 6), torch.arange(8)) for _ in range(2)]
    >>> loss = nn.functional.cross_entropy
    >>> comparison = AlignmentComparison({
    ...     rule: measure_alignment(convert(plain, rule), batches, loss) for rule in ("bp", "usf")
    ... })
    >>> head, _, first, *_ = comparison.table().splitlines()
    >>> print(head[:59])
    | layer | bp: K to W | usf: K to W | bp: error | usf: error
    >>> print(first[:26])
    | 0, Linear:bp / usf | 0.0
    >>> comparison.figure().svg()[:4]
    '<svg'

    Raises:
        InputError: If there is nothing to compare, or something that is no `Alignment`.
    """

    alignments: Mapping[str, Alignment]

    def __post_init__(self) -> None:
        if not self.alignments:
            raise InputError("comparison: expected at least one alignment, found none")
        for name, alignment in self.alignments.items():
            if not isinstance(alignment, Alignment):
                raise InputError(
                    f"comparison: expected what measure_alignment returns as {name!r}, found "
                    f"{alignment!r:.60}"
                )

    def table(self) -> str:
        """Return the table in Markdown: a row a layer, and for each angle a column an alignment."""
        head = [f"{name}: {title}" for title in COLUMNS.values() for name in self.alignments]
        rows = []
        for title, of_layer in self._layers().items():
            rules = dict.fromkeys(layer.rule for layer in of_layer if layer is not None)
            values = [
                _text(None if layer is None else getattr(layer, quantity))
                for quantity in COLUMNS
                for layer in of_layer
            ]
            rows.append((title.under(" / ".join(rules)), *values))
        whole = [
            _text(None if (cosine := alignment.gradient_cosine) is None else degrees(cosine))
            for alignment in self.alignments.values()
        ]
        blank = [""] * (len(head) - len(whole))
        rows.append(("all weights", *blank, *whole))
        return "\n".join(markdown_table(("layer", *head), rows)) + "\n"

    def figure(self) -> Chart:
        """Return the angles against depth, a line an alignment; `figure().svg()` is its SVG."""
        return draw_by_depth(self.alignments)

    def to_json(self) -> str:
        """Return all numbers as JSON: the alignments by name, as `Alignment.as_dict` has them."""
        content = {name: alignment.as_dict() for name, alignment in self.alignments.items()}
        return json.dumps(content, indent=2) + "\n"

    def _layers(self) -> dict[WeightName, list[LayerAlignment | None]]:
        """Return the layers of each alignment by what stands there; None where it has none such.

        They come in the order of the first alignment; those of later ones follow what they follow
        there.
        """
        order: list[WeightName] = []
        tables: list[dict[WeightName, LayerAlignment]] = []
        for alignment in self.alignments.values():
            tables.append({layer.title: layer for layer in alignment.layers})
            place = 0
            for title in tables[-1]:
                if title not in order:
                    order.insert(place, title)
                place = order.index(title) + 1
        return {title: [table.get(title) for table in tables] for title in order}


def _text(value: Any) -> str:
    """Return an angle with a decimal, or a dash where there is none."""
    return "-" if value is None else f"{value:.1f}"
