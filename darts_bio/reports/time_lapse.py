"""The time-lapse of alpha: its shares after each epoch of a search, as heat maps with a slider.

They are in the run folder's alpha.jsonl, a line an epoch: `step`, `epoch`, `genotype` (its digest)
and `shares`, of each cell type a row for each edge with the shares of its candidates, rounded to four
decimals.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from darts_bio.figures.heat_map import columns_of
from darts_bio.figures.thinning import thinned
from darts_bio.reports.page import MOST_ROWS, Widget
from darts_bio.spaces import CandidateTable
from darts_bio.training.search import Search

HEADING = "Alpha over the epochs"
MOST_VALUES = 150_000
"""The shares in a page, all frames together."""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("frames").textContent);
const fields = [...document.querySelectorAll(".share")];
const slider = document.querySelector(".lapse input");
const said = document.querySelector(".lapse output");
function show(number) {
  const values = data.frames[number];
  fields.forEach((field, i) => {
    field.style.setProperty("--s", (values[i] ?? 0) / data.top);
    field.dataset.share = values[i] === null ? "not finite" : (values[i] / 1000).toFixed(3);
    field.classList.remove("top");
  });
  for (const row of document.querySelectorAll(".heat tbody tr")) {
    const of_row = [...row.querySelectorAll(".share")];
    const shares = of_row.map((field) => values[fields.indexOf(field)] ?? -1);
    of_row[shares.indexOf(Math.max(...shares))]?.classList.add("top");
  }
  said.textContent = "epoch " + data.epochs[number];
}
slider.max = data.epochs.length - 1;
slider.value = slider.max;
slider.parentElement.hidden = data.epochs.length < 2;
slider.addEventListener("input", () => show(Number(slider.value)));
document.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  const at = fields.indexOf(document.activeElement);
  if (by === undefined || at < 0) return;
  fields[at + by]?.focus();
  event.preventDefault();
});
"""


def alpha_record(search: Search) -> dict[str, Any]:
    """Return what alpha.jsonl says of a search as it is: the genotype's digest and the shares."""
    return {
        "genotype": search.genotype().identity(),
        "shares": {
            cell_type: [[_rounded(share) for share in row] for row in rows]
            for cell_type, rows in edge_shares(search).items()
        },
    }


def edge_shares(search: Search) -> dict[str, list[list[float]]]:
    """Return by cell type, for each edge, the shares of its candidates in the order of their row.

    They sum to 1, unless all are zero. Padding of the rows is left out.
    """
    shares = search.shares()
    by_type: dict[str, list[list[float]]] = {}
    for cell_type, rows in search.table.rows.items():
        by_type[cell_type] = []
        for row, values in zip(rows, shares[cell_type].double().tolist(), strict=True):
            of_edge = [v for v, candidate in zip(values, row, strict=True) if candidate is not None]
            total = sum(of_edge) or 1.0
            by_type[cell_type].append([value / total for value in of_edge])
    return by_type


def epochs_unchanged(records: Sequence[Mapping[str, Any]]) -> int:
    """Return for how many epochs the genotype of the last one has been the same, at least 1.

    >>> epochs_unchanged([{"genotype": "digest 1f"}, {"genotype": "digest 2e"}])
    1
    """
    last = records[-1]["genotype"]
    return next(
        (n for n, record in enumerate(reversed(records)) if record["genotype"] != last),
        len(records),
    )


def time_lapse(
    records: Sequence[Mapping[str, Any]], table: CandidateTable, edges: Sequence[tuple[int, int]]
) -> Widget:
    """Return the heat maps of each cell type, a row for each edge, a column for each candidate.

    Without its script the page shows the last epoch.

    Args:
        records: Those of alpha.jsonl, at least one; of many, some evenly spaced ones are shown.
        table: The candidates of each edge.
        edges: The (node, input) of each edge.
    """
    values = sum(len(row) for rows in records[-1]["shares"].values() for row in rows)
    shown = thinned(records, max(2, min(MOST_ROWS, MOST_VALUES // values)))
    orders = {t: _order(table, t) for t in table.rows}
    frames = [
        [
            None if share is None else round(1000 * share)
            for cell_type, order in orders.items()
            for row, columns in zip(record["shares"][cell_type], order, strict=True)
            for share in (row[column] for column in columns)
        ]
        for record in shown
    ]
    top = max((value for frame in frames for value in frame if value is not None), default=0) or 1
    data = {"epochs": [record["epoch"] for record in shown], "top": top, "frames": frames}
    last = iter(frames[-1])
    maps = [_heat_map(t, table, edges, last, top) for t in table.rows]
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    html = (
        '<div class="lapse">\n<label hidden><input type="range" min="0" aria-label="epoch">'
        f"<output>epoch {shown[-1]['epoch']}</output></label>\n{''.join(maps)}"
        f'<script type="application/json" id="frames">{content}</script>\n</div>\n'
    )
    return Widget(HEADING, html, SCRIPT)


def _order(table: CandidateTable, cell_type: str) -> list[list[int]]:
    """Return for each edge the places of its shares, in the order of the heat map's columns."""
    columns = columns_of(table.rows[cell_type])
    order = []
    for row in table.rows[cell_type]:
        candidates = [candidate for candidate in row if candidate is not None]
        order.append([candidates.index(column) for column in columns if column in candidates])
    return order


def _heat_map(
    cell_type: str,
    table: CandidateTable,
    edges: Sequence[tuple[int, int]],
    values: Iterator[int | None],
    top: int,
) -> str:
    """Return the heat map of a cell type; `values` are the shares, in thousandths, of its fields."""
    columns = columns_of(table.rows[cell_type])
    head = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in columns)
    lines = [
        f'<div class="wide"><table class="heat"><caption>{escape(cell_type)}</caption>\n'
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n"
    ]
    for (node, source), row in zip(edges, table.rows[cell_type], strict=True):
        name = f"{source} -> {node}"
        there = [column for column in columns if column in row]
        of_edge = dict(zip(there, values, strict=False))
        finite = {c: value for c, value in of_edge.items() if value is not None}
        largest = max(finite, key=finite.__getitem__, default=None)
        fields = [
            _field(f"{name}, {column}", of_edge[column], top, column == largest, column == there[0])
            if column in of_edge
            else "<td></td>"
            for column in columns
        ]
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(fields)}</tr>\n')
    return "".join([*lines, "</tbody></table></div>\n"])


def _field(name: str, value: int | None, top: int, largest: bool, first: bool) -> str:
    """Return a field of a heat map; the tab key leads to the first one of each row."""
    share = "not finite" if value is None else f"{value / 1000:.3f}"
    kind = "share top" if largest else "share"
    return (
        f'<td class="{kind}" tabindex="{0 if first else -1}" style="--s:{(value or 0) / top:.3g}" '
        f'data-of="{escape(name)}" data-share="{share}"></td>'
    )


def _rounded(share: float) -> float | None:
    """Return a share with four decimals; None, which JSON has a word for, if it is not finite."""
    return round(share, 4) if math.isfinite(share) else None
