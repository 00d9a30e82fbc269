"""The time-lapse of alpha: its shares after each epoch of a search, as heat maps with a slider.

They are in the run folder's alpha.jsonl, a line an epoch: `step`, `epoch`, `genotype` (its digest)
and `shares`, of each cell type a row for each edge with the shares of its candidates, rounded to
seven decimals: at the beginning of a search those of an edge differ in the fifth.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from darts_bio.figures.heat_map import columns_of
from darts_bio.figures.thinning import thinned
from darts_bio.reports.page import MOST_ROWS, PAGE_FILE, Widget
from darts_bio.spaces import CandidateTable
from darts_bio.spaces.base import by_operation
from darts_bio.training.search import Search

HEADING = "Alpha over the epochs"
HINT = f"[{PAGE_FILE}]({PAGE_FILE}) shows them as heat maps."
"""The paragraph of report.md that the page, which has the heat maps, leaves out."""
MOST_VALUES = 150_000
"""The shares in a page, all frames together."""
UNITS = 10_000
"""The units of a share in a page: ten-thousandths."""
LEAST_TOP = 2.0
"""How many times its equal share a candidate has at least, to be drawn in full color."""

SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("frames").textContent);
const fields = [...document.querySelectorAll(".share")];
const slider = document.querySelector(".lapse input");
const said = document.querySelector(".lapse output");
function show(number) {
  const values = data.frames[number];
  fields.forEach((field, i) => {
    const times = (values[i] ?? 0) / data.units / data.equal[i];
    field.style.setProperty("--s", times > 1 ? Math.min(1, Math.log(times) / Math.log(data.top)) : 0);
    field.dataset.share = values[i] === null ? "not finite" : (values[i] / data.units).toFixed(4);
    field.classList.remove("top");
  });
  for (const place of data.largest[number]) fields[place].classList.add("top");
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
    records: Sequence[Mapping[str, Any]],
    table: CandidateTable,
    edges: Sequence[tuple[int, int]],
    factorised: bool = False,
) -> Widget:
    """Return the heat maps of each cell type, a row for each edge, a column for each candidate.

    The color tells how many times its equal share a candidate has, on a logarithmic scale: what is
    undecided is pale. A dot marks the largest share of an edge, with factorised alpha that of the
    best rule of the best operation; where several are equal there is none. Without its script the
    page shows the last epoch.

    Args:
        records: Those of alpha.jsonl, at least one; of many, some evenly spaced ones are shown.
        table: The candidates of each edge.
        edges: The (node, input) of each edge.
        factorised: Whether equal shares are those of operations, and of rules within them.
    """
    values = sum(len(row) for rows in records[-1]["shares"].values() for row in rows)
    shown = thinned(records, max(2, min(MOST_ROWS, MOST_VALUES // values)))
    equal_of = equal_shares(table, factorised)
    equal = [share for row in _in_order(equal_of, table) for share in row]
    groups = _groups(table) if factorised else None
    # Of each frame, for each edge, the shares in the order of the fields.
    frames = [_in_order(record["shares"], table) for record in shown]
    most = max(
        (
            share / even
            for frame in frames
            for share, even in zip(itertools.chain(*frame), equal, strict=True)
            if share is not None
        ),
        default=0.0,
    )
    top = max(LEAST_TOP, most)
    largest = [_largest(frame, groups) for frame in frames]
    data = {
        "epochs": [record["epoch"] for record in shown],
        "units": UNITS,
        "top": round(top, 3),
        "equal": [round(share, 6) for share in equal],
        "largest": largest,
        "frames": [
            [None if share is None else round(UNITS * share) for share in itertools.chain(*frame)]
            for frame in frames
        ],
    }
    fields = iter(_fields(frames[-1], equal, top, largest[-1]))
    mark = "the best rule of the best operation" if factorised else "the largest of its edge"
    maps = [_heat_map(t, table, edges, fields) for t in table.rows]
    content = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    html = (
        '<div class="lapse">\n<label hidden><input type="range" min="0" aria-label="epoch">'
        f"<output>epoch {shown[-1]['epoch']}</output></label>\n{''.join(maps)}"
        f'<p class="scale">equal share or less <span></span> {top:.3g} times the equal share'
        f"{' or more' if most < top else ''}; &#x25cf; {mark}</p>\n"
        f'<script type="application/json" id="frames">{content}</script>\n</div>\n'
    )
    return Widget(HEADING, html, SCRIPT, HINT)


def equal_shares(table: CandidateTable, factorised: bool) -> dict[str, list[list[float]]]:
    """Return by cell type, for each edge, the share of each candidate where nothing is decided.

    Args:
        table: The candidates of each edge.
        factorised: Whether operations have equal shares, and rules within them, rather than pairs.

    >>> from darts_bio.spaces import SPACES
    >>> table = SPACES.build("darts(operations=(none, sep_conv_3x3))").table(("usf", "fa", "bp"))
    >>> equal_shares(table, False)["normal"][0][0], equal_shares(table, True)["normal"][0][0]
    (0.25, 0.5)
    """
    by_type: dict[str, list[list[float]]] = {}
    for cell_type, rows in table.rows.items():
        by_type[cell_type] = []
        for row, of_edge in zip(rows, table.equal_shares(cell_type).tolist(), strict=True):
            pools = by_operation(row) if factorised else ()
            for pool in pools:
                for column in pool.columns:
                    of_edge[column] = 1 / (len(pools) * len(pool.columns))
            there = [share for share, c in zip(of_edge, row, strict=True) if c is not None]
            by_type[cell_type].append(there)
    return by_type


Shares = Sequence[float | None]
"""The shares of an edge's candidates; None is one that is not finite."""


def _in_order(shares: Mapping[str, Sequence[Shares]], table: CandidateTable) -> list[list[Any]]:
    """Return for each edge of all cell types its shares in the order of the heat map's columns."""
    ordered = []
    for cell_type, rows in table.rows.items():
        columns = columns_of(rows)
        for row, of_edge in zip(rows, shares[cell_type], strict=True):
            candidates = [candidate for candidate in row if candidate is not None]
            there = [candidates.index(column) for column in columns if column in candidates]
            ordered.append([of_edge[place] for place in there])
    return ordered


def _groups(table: CandidateTable) -> list[list[str]]:
    """Return for each edge of all cell types the operations of its fields, in their order."""
    operations = []
    for rows in table.rows.values():
        columns = columns_of(rows)
        operations += [[column.op for column in columns if column in row] for row in rows]
    return operations


def _largest(frame: Sequence[Shares], groups: Sequence[Sequence[str]] | None = None) -> list[int]:
    """Return the places, among the fields of all edges, of shares that are the largest of an edge.

    Where two are equal there is no largest one.

    Args:
        frame: Of each edge its shares.
        groups: Of each edge the operations of its shares, where these are compared first, by the sum
            of their shares: then the place is that of the largest share of the largest operation.

    >>> _largest([[0.2, 0.8], [0.5, 0.5], [None, 1.0]])
    [1, 5]
    >>> _largest([[0.4, 0.2, 0.4]], [["skip", "conv", "conv"]])
    [2]
    """
    places, start = [], 0
    for edge, of_edge in enumerate(frame):
        inside: Sequence[int] = range(len(of_edge))
        if groups is not None:
            sums: dict[str, float] = {}
            for op, share in zip(groups[edge], of_edge, strict=True):
                sums[op] = sums.get(op, 0.0) + (share or 0.0)
            best = [op for op, total in sums.items() if total == max(sums.values())]
            inside = [i for i in inside if best == [groups[edge][i]]]
        finite = [(share, i) for i in inside if (share := of_edge[i]) is not None]
        top = max(finite, default=(0.0, 0))
        if sum(share == top[0] for share, _ in finite) == 1:
            places.append(start + top[1])
        start += len(of_edge)
    return places


def _fields(
    frame: Sequence[Shares], equal: Sequence[float], top: float, largest: Sequence[int]
) -> list[tuple[str, str]]:
    """Return of each field the start of its tag and its share, as the script would set them."""
    fields = []
    for place, (share, even) in enumerate(zip(itertools.chain(*frame), equal, strict=True)):
        times = (share or 0.0) / even
        color = min(1.0, math.log(times) / math.log(top)) if times > 1 else 0.0
        kind = "share top" if place in largest else "share"
        text = "not finite" if share is None else f"{share:.4f}"
        fields.append((f'class="{kind}" style="--s:{color:.3g}"', text))
    return fields


def _heat_map(
    cell_type: str,
    table: CandidateTable,
    edges: Sequence[tuple[int, int]],
    fields: Iterator[tuple[str, str]],
) -> str:
    """Return the heat map of a cell type from the next of the `_fields`.

    The tab key leads to the first field of each row.
    """
    columns = columns_of(table.rows[cell_type])
    head = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in columns)
    lines = [
        f'<div class="wide"><table class="heat"><caption>{escape(cell_type)}</caption>\n'
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n"
    ]
    for (node, source), row in zip(edges, table.rows[cell_type], strict=True):
        name = f"{source} -> {node}"
        cells, tab = [], 0
        for column in columns:
            if column not in row:
                cells.append("<td></td>")
                continue
            look, share = next(fields)
            of = escape(f"{name}, {column}")
            cells.append(f'<td {look} tabindex="{tab}" data-of="{of}" data-share="{share}"></td>')
            tab = -1
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>\n')
    return "".join([*lines, "</tbody></table></div>\n"])


def _rounded(share: float) -> float | None:
    """Return a share with seven decimals; None, which JSON has a word for, if it is not finite."""
    return round(share, 7) if math.isfinite(share) else None
