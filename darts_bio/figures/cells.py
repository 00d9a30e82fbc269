"""Figures of cells: edges labeled by operation and colored by learning rule.

Cells are taken as their space validated them: every edge goes from a node to a later one. Nodes 0
and 1 are the cell's inputs, node 0 alone where an edge leads into node 1; any number of edges may
lead into a node.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from darts_bio.figures.drawing import (
    ARROW,
    FAINT,
    MARGIN,
    PAPER,
    Box,
    Curve,
    Drawing,
    Primitive,
    Text,
    text_width,
)
from darts_bio.spaces.genotype import Cell, Genotype

KNOWN_COLORS = {
    "bp": "#0072b2",
    "fa": "#009e73",
    "usf": "#d55e00",
    "frsf": "#cc79a7",
    "brsf": "#e69f00",
}
"""Okabe and Ito's colors, told apart under every common form of color blindness."""

FURTHER_COLORS = ("#56b4e9", "#332288", "#882255", "#999933", "#117733", "#000000")
NO_RULE = "#8c8c8c"
LANE, NODE, PILL = 38.0, 30.0, 17.0
"""Heights in pixels: of the lanes that nodes lie in, of a node, of an edge's label."""
PITCH = 132.0
"""The least distance of columns of nodes."""


def rule_colors(rules: Iterable[str | None]) -> dict[str | None, str]:
    """Rule -> color, as a legend orders them.

    The known rules' colors are fixed; any other's follows from its name, unless two of them clash.
    """
    names = set(rules)
    colors: dict[str | None, str] = {
        rule: color for rule, color in KNOWN_COLORS.items() if rule in names
    }
    for rule in sorted(rule for rule in names if rule is not None and rule not in KNOWN_COLORS):
        start = int.from_bytes(
            hashlib.blake2b(rule.encode("utf-8", "replace"), digest_size=8).digest(), "big"
        )
        further = [
            FURTHER_COLORS[(start + i) % len(FURTHER_COLORS)] for i in range(len(FURTHER_COLORS))
        ]
        free = [color for color in further if color not in colors.values()] or further
        colors[rule] = free[0]
    return colors | ({None: NO_RULE} if None in names else {})


@dataclass(frozen=True)
class _Plan:
    """Where a cell's nodes lie (columns count from the inputs, heights in pixels) and how far its
    lines bow out.

    The last column and height are the output's. `lines` has (source, target), as positions in
    `nodes`, for each edge and then for each node of the concatenation.
    """

    cell: Cell
    nodes: tuple[int, ...]
    inputs: int
    columns: np.ndarray
    lines: tuple[tuple[int, int], ...]
    heights: np.ndarray
    bows: np.ndarray


def _plan(cell: Cell) -> _Plan:
    inputs = (0,) if any(edge.node == 1 for edge in cell.edges) else (0, 1)
    inner = {n for edge in cell.edges for n in (edge.node, edge.input)} | set(cell.concat)
    nodes = (*inputs, *sorted(inner - set(inputs)))
    last = len(nodes) - len(inputs)
    columns = np.array([0.0] * len(inputs) + [i + 0.3 for i in range(1, last + 1)] + [last + 1.0])
    lines = [(nodes.index(edge.input), nodes.index(edge.node)) for edge in cell.edges]
    lines += [(nodes.index(node), len(nodes)) for node in cell.concat]
    heights, bows = _relax(columns, len(inputs), lines)
    return _Plan(cell, nodes, len(inputs), columns, tuple(lines), heights, bows)


def _relax(
    columns: np.ndarray, inputs: int, lines: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Heights of the nodes and bows of the lines: from two zigzags, improved a node at a time, what
    strains less.
    """
    inner = range(inputs, len(columns) - 1)
    reach = (len(inner) + 1) // 2
    options = {i: np.arange(-reach, reach + 0.5, 0.5) for i in inner}
    if inputs == 2:
        options |= {0: np.arange(-2, 0, 0.5), 1: np.arange(0.5, 2.5, 0.5)}
    options |= {i: np.arange(-3, 3.5, 0.5) for i in range(len(columns), len(columns) + len(lines))}
    found = []
    for first in (-1, 1):
        state = np.zeros(len(columns) + len(lines))
        state[:inputs] = (-1, 1) if inputs == 2 else 0
        state[inner] = [first * (-1) ** i for i in range(len(inner))]
        for _ in range(8):
            before = state
            for i, values in options.items():
                trials = np.tile(state, (len(values), 1))
                trials[:, i] = values
                state = trials[_strain(columns, lines, trials).argmin()]
            if (state == before).all():
                break
        found.append(state)
    best = found[_strain(columns, lines, np.stack(found)).argmin()] * LANE
    return best[: len(columns)], best[len(columns) :]


def _node_height(node: int, lines: Sequence[tuple[int, int]]) -> float:
    """Tall enough for the lines that start or end there."""
    return max(NODE, 9.0 * max(sum(line[side] == node for line in lines) for side in (0, 1)) + 8)


def _strain(
    columns: np.ndarray, lines: Sequence[tuple[int, int]], states: np.ndarray
) -> np.ndarray:
    """(k,) how hard to read each of k layouts is; states (k, nodes + lines) are heights and bows,
    in lanes.

    What counts is how far lines run close to one another or to nodes not their own, and how steep
    they are.
    """
    source, target = np.array(lines, int).reshape(-1, 2).T
    y, bows = states[:, : len(columns)], states[:, len(columns) :, None]
    grid = (np.arange(round(6 * columns[-1])) + 0.5) / 6
    span = (columns[target] - columns[source])[:, None]
    t = (grid - columns[source][:, None]) / span
    t = np.where((t > 0) & (t < 1), t, np.nan)
    rise = (y[:, target] - y[:, source])[..., None]
    curves = y[:, source, None] + rise * t**2 * (3 - 2 * t) + 3 * bows * t * (1 - t)
    a, b = np.triu_indices(len(lines), 1)
    strain = np.fmax(0, 1 - np.abs(curves[:, a] - curves[:, b]) / 0.8).sum((1, 2))
    for node in range(len(columns)):
        foreign, near = (source != node) & (target != node), np.abs(grid - columns[node]) < 0.3
        gaps = np.abs(curves[:, foreign][..., near] - y[:, node, None, None])
        clearance = (_node_height(node, lines) / 2 + 14) / LANE
        strain += 8 * np.fmax(0, 1 - gaps / clearance).sum((1, 2))
    strain += ((3 * bows**2 / np.sqrt(span) + 0.1 * rise**2) / span).sum((1, 2)) + 0.1 * (y**2).sum(
        1
    )
    return strain.round(
        6
    )  # so that the last bits of a sum, which differ between processors, decide nothing


def _boxes(plan: _Plan, pitch: float, middle: float) -> list[Box]:
    """The box of each node and of the output."""
    boxes = []
    for i, (column, y) in enumerate(zip(plan.columns, plan.heights, strict=True)):
        inner = plan.inputs <= i < len(plan.nodes)
        width, height = (NODE if inner else 1.3 * NODE), _node_height(i, plan.lines)
        x = MARGIN + 0.65 * NODE + column * pitch - width / 2
        fill = "#f2f2f2" if inner else "#e3ebf5"
        boxes.append(Box(x, middle + y - height / 2, width, height, fill, "#555555", 5))
    return boxes


def _ends(plan: _Plan, boxes: Sequence[Box], side: int) -> dict[int, float]:
    """Line -> height of its start (side 0) or end (side 1): apart from others', in the order in
    which they come.
    """

    def leaning(i: int) -> float:
        here, there = plan.lines[i][side], plan.lines[i][1 - side]
        t = min(0.5, 0.3 / abs(plan.columns[there] - plan.columns[here]))
        rise = plan.heights[there] - plan.heights[here]
        return float(rise * t**2 * (3 - 2 * t) + 3 * plan.bows[i] * t * (1 - t))

    ends = {}
    for node, box in enumerate(boxes):
        mine = sorted((i for i, line in enumerate(plan.lines) if line[side] == node), key=leaning)
        for place, i in enumerate(mine):
            ends[i] = box.y + box.height / 2 + 9.0 * (place - (len(mine) - 1) / 2)
    return ends


def _curves(plan: _Plan, boxes: Sequence[Box], colors: Mapping[str | None, str]) -> list[Curve]:
    starts, ends = _ends(plan, boxes, 0), _ends(plan, boxes, 1)
    curves = []
    for i, ((source, target), bow) in enumerate(zip(plan.lines, plan.bows.tolist(), strict=True)):
        edge = plan.cell.edges[i] if i < len(plan.cell.edges) else None
        x0, x1 = boxes[source].x + boxes[source].width, boxes[target].x - (ARROW if edge else 0)
        third = (x1 - x0) / 3
        points = (
            (x0, starts[i]),
            (x0 + third, starts[i] + bow),
            (x1 - third, ends[i] + bow),
            (x1, ends[i]),
        )
        if edge is None:
            curves.append(Curve(points, FAINT, 1.2))
            continue
        op, rule = edge.candidate.op, edge.candidate.rule
        title = f"{op}{'' if rule is None else f' : {rule}'}, {edge.input} -> {edge.node}"
        curves.append(Curve(points, colors[rule], dashed=rule is None, arrow=True, title=title))
    return curves


def _pills(
    ops: Sequence[str], boxes: Sequence[Box], curves: Sequence[Curve], may_hide: bool
) -> list[Box] | None:
    """What the labels of the edges stand on, clear of nodes and of one another; None if there is no
    room.

    Short edges choose first, having the least room. Each takes the place on its curve that hides
    the fewest others, the nearest to the middle among equals. Unless `may_hide`, it must hide none.
    """
    taken = [
        (
            b.x + (b.width - ARROW) / 2,
            b.y + b.height / 2,
            (b.width + ARROW) / 2 + 6,
            b.height / 2 + 3,
        )
        for b in boxes
    ]
    ts = np.linspace(0, 1, 161)
    samples = [curve.at(ts[np.argsort(np.abs(ts - 0.5), kind="stable")]) for curve in curves]
    pills: dict[int, Box] = {}
    for i in sorted(range(len(ops)), key=lambda i: curves[i].points[3][0] - curves[i].points[0][0]):
        half = np.array([text_width(ops[i]) / 2 + 6, PILL / 2])
        around = np.array(taken)
        clear = (np.abs(samples[i][:, None] - around[:, :2]) >= half + around[:, 2:]).any(2).all(1)
        clear &= samples[i][:, 0] - half[0] >= boxes[0].x  # none may leave the figure
        others = (
            np.stack(samples[:i] + samples[i + 1 :]) if len(curves) > 1 else np.zeros((0, 1, 2))
        )
        best: tuple[int, float, float] | None = None
        for x, y in samples[i][clear].tolist():
            hidden = int((np.abs(others - (x, y)) < half + 2).all(2).any(1).sum())
            if best is None or hidden < best[0]:
                best = hidden, x, y
            if hidden == 0:
                break
        if best is None or (best[0] and not may_hide):
            return None
        _, x, y = best
        (dx, dy), color, title = half.tolist(), curves[i].color, curves[i].title
        pills[i] = Box(x - dx, y - dy, 2 * dx, 2 * dy, PAPER, color, PILL / 2, title)
        taken.append((x, y, dx + 3, dy + 3))
    return [pills[i] for i in range(len(ops))]


def _names(plan: _Plan, boxes: Sequence[Box]) -> list[Text]:
    """What stands in the nodes: their numbers, or c with the index of the cell whose output it
    is.
    """
    texts = []
    for i, box in enumerate(boxes):
        x, y = box.x + box.width / 2, box.y + box.height / 2
        if plan.inputs <= i < len(plan.nodes):
            texts.append(Text(x, y, str(plan.nodes[i]), 12))
            continue
        index = "k" if i == len(plan.nodes) else f"k-{plan.inputs - i}"
        x -= (text_width("c", 13) + text_width(index, 9) + 1) / 2
        texts.append(Text(x, y - 1, "c", 13, "start"))
        texts.append(Text(x + text_width("c", 13) + 1, y + 4, index, 9, "start"))
    return texts


def _cell(
    plan: _Plan,
    pitch: float,
    top: float,
    title: str,
    colors: Mapping[str | None, str],
    may_hide: bool,
) -> tuple[list[Primitive], float] | None:
    """The cell below `top`, its columns `pitch` apart, and where it ends; None if that is too
    narrow for its labels.
    """
    boxes = _boxes(plan, pitch, 0.0)
    heights = [y for box in boxes for y in (box.y, box.y + box.height)]
    heights += [
        y
        for curve in _curves(plan, boxes, colors)
        for y in curve.at(np.linspace(0, 1, 50))[:, 1].tolist()
    ]
    middle = top + (32 if title else 12) - min(heights)
    boxes = _boxes(plan, pitch, middle)
    curves = _curves(plan, boxes, colors)
    ops = [edge.candidate.op for edge in plan.cell.edges]
    pills = _pills(ops, boxes, curves, may_hide)
    if pills is None:
        return None
    primitives: list[Primitive] = [Text(MARGIN, top + 8, title, 15, "start")] if title else []
    primitives += [*reversed(curves), *boxes, *_names(plan, boxes)]
    for op, pill in zip(ops, pills, strict=True):
        primitives += [pill, Text(pill.x + pill.width / 2, pill.y + PILL / 2, op)]
    return primitives, middle + max(heights) + 12


def _legend(
    colors: Mapping[str | None, str], top: float, width: float
) -> tuple[list[Primitive], float]:
    """A line and the name of each rule, in as many rows as the width asks for, and where they
    end.
    """
    primitives: list[Primitive] = []
    x, y = MARGIN, top + 8
    for rule, color in colors.items():
        name = "no weights" if rule is None else rule
        if x > MARGIN and x + 34 + text_width(name) > width - MARGIN:
            x, y = MARGIN, y + 18
        primitives.append(
            Curve(((x, y), (x + 9, y), (x + 17, y), (x + 26, y)), color, 2.2, rule is None)
        )
        primitives.append(Text(x + 34, y, name, anchor="start"))
        x += 34 + text_width(name) + 22
    return primitives, y + 8


def _figure(cells: Mapping[str, Cell], title: str, label: str) -> Drawing:
    colors = rule_colors(edge.candidate.rule for cell in cells.values() for edge in cell.edges)
    plans = {name: _plan(cell) for name, cell in cells.items()}
    pitch, done = PITCH, False
    while not done:
        primitives: list[Primitive] = (
            [Text(MARGIN, MARGIN + 8, title, 17, "start")] if title else []
        )
        top, done = MARGIN + (28 if title else 0), True
        for name, plan in plans.items():
            part = _cell(plan, pitch, top, name, colors, may_hide=pitch > 1.3 * PITCH)
            if part is None:
                pitch, done = 1.06 * pitch, False
                break
            primitives += part[0]
            top = part[1] + 16
    widths = [1.3 * NODE + plan.columns[-1] * pitch for plan in plans.values()]
    widths += [text_width(title, 17), *(text_width(name, 15) for name in cells)]
    widths += [34 + text_width(rule or "no weights") for rule in colors]
    width = math.ceil(2 * MARGIN + max(widths))
    legend, bottom = _legend(colors, top, width)
    return Drawing(width, math.ceil(bottom + MARGIN), (*primitives, *legend), label)


def draw_cell(cell: Cell, title: str = "") -> Drawing:
    """One cell, as `draw_genotype` draws it."""
    return _figure({title: cell}, "", f"{title} cell ({len(cell.edges)} edges)".strip())


def draw_genotype(genotype: Genotype, title: str = "") -> Drawing:
    """The cells, one above the other: edges labeled by operation and colored by learning rule."""
    cells = ", ".join(f"{name} ({len(cell.edges)} edges)" for name, cell in genotype.cells.items())
    return _figure(genotype.cells, title, f"{title or f'{genotype.space} genotype'}: {cells}")
