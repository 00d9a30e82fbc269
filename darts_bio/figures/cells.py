"""Figures of cells: edges labeled by operation and colored by learning rule.

Cells are expected as their space validated them: every edge goes from a node to a later one. Nodes
0 and 1 are the cell's inputs, or node 0 alone where an edge leads into node 1; any number of edges
may lead into a node.

A figure is made in three steps. `lay_out` finds places for nodes and lines (`cell_layout`).
`_place_labels` then puts the name of each operation on its line where it hides nothing. If there is
no room, `_figure` moves the columns apart and places the labels anew.

Cells of one kind that differ by their rules alone, as those of a space by depth do, are drawn once,
a *stack*: below the name of each operation that has weights a strip tells its rule in each of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from darts_bio.figures.cell_layout import (
    END_GAP,
    NODE,
    CellLayout,
    Stack,
    lay_out,
    node_height,
    rules_of,
)
from darts_bio.figures.colors import SEVERAL, rule_colors
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
from darts_bio.spaces.base import SPACES, Space
from darts_bio.spaces.genotype import Cell, Genotype

STRIP = 7.0
"""Height in pixels of the strip that tells the rules of a stack's cells."""
STRIPS = "strips: the rule in each cell, from the stem (left) to the classifier (right)"
"""What the legend says where cells differ by depth."""
PILL = 17.0
"""Height in pixels of an edge's label."""
PITCH = 132.0
"""The smallest distance in pixels between columns of nodes."""


def _boxes(layout: CellLayout, pitch: float, middle: float) -> list[Box]:
    """Return the box of each node and at last of the output.

    `pitch` is the distance of columns and `middle` the y of height 0, in pixels.
    """
    boxes = []
    for i, (column, y) in enumerate(zip(layout.columns, layout.heights, strict=True)):
        inner = layout.inputs <= i < len(layout.nodes)
        width, height = (NODE if inner else 1.3 * NODE), node_height(i, layout.lines)
        x = MARGIN + 0.65 * NODE + column * pitch - width / 2
        fill = "#f2f2f2" if inner else "#e3ebf5"
        boxes.append(Box(x, middle + y - height / 2, width, height, fill, "#555555", 5))
    return boxes


def _ends(layout: CellLayout, boxes: Sequence[Box], side: int) -> dict[int, float]:
    """Map each line to the y of its start (side 0) or end (side 1).

    Lines of a node start or end apart from one another, in the order in which they come to lie
    beside it, so that they do not cross there.
    """

    def offset_beside_node(i: int) -> float:
        """Return how far line i has risen 0.3 columns beside the node, as in `strain`."""
        node, other = layout.lines[i][side], layout.lines[i][1 - side]
        t = min(0.5, 0.3 / abs(layout.columns[other] - layout.columns[node]))
        rise = layout.heights[other] - layout.heights[node]
        return float(rise * t**2 * (3 - 2 * t) + 3 * layout.bows[i] * t * (1 - t))

    ends = {}
    for node, box in enumerate(boxes):
        node_lines = [i for i, line in enumerate(layout.lines) if line[side] == node]
        node_lines.sort(key=offset_beside_node)
        for place, i in enumerate(node_lines):
            ends[i] = box.y + box.height / 2 + END_GAP * (place - (len(node_lines) - 1) / 2)
    return ends


def _curves(
    layout: CellLayout, boxes: Sequence[Box], colors: Mapping[str | None, str]
) -> list[Curve]:
    """Return a curve for each line of the layout; those to the output are faint, without arrows."""
    starts, ends = _ends(layout, boxes, 0), _ends(layout, boxes, 1)
    curves = []
    for i, ((source, target), bow) in enumerate(
        zip(layout.lines, layout.bows.tolist(), strict=True)
    ):
        edge = layout.cell.edges[i] if i < len(layout.cell.edges) else None
        x0 = boxes[source].x + boxes[source].width
        x1 = boxes[target].x - (ARROW if edge else 0)
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
        rules = rules_of(layout.stack, i)
        rule = rules[0]
        names = ", ".join(dict.fromkeys(name for name in rules if name is not None))
        pair = f"{edge.candidate.op} : {names}" if names else edge.candidate.op
        title = f"{pair}, {edge.input} -> {edge.node}"
        color = colors[rule] if len(set(rules)) == 1 else SEVERAL
        curves.append(Curve(points, color, dashed=rule is None, arrow=True, title=title))
    return curves


def _place_labels(
    ops: Sequence[str],
    heights: Sequence[float],
    boxes: Sequence[Box],
    curves: Sequence[Curve],
    may_hide: bool,
) -> list[Box] | None:
    """Return the box of each edge's label, clear of nodes and of one another; None without room.

    Short edges choose first, since they have the least room. Each label takes the place on its
    curve where it lies over the fewest other curves, among equals the one nearest to the middle.
    Unless `may_hide`, it must lie over none.

    Args:
        ops: The operation of each edge.
        heights: The height of each label, in pixels.
        boxes: The boxes of the nodes; the first is the leftmost.
        curves: A curve for each edge, and after them those to the output.
        may_hide: Whether a label may lie over another curve where it cannot be helped.
    """
    # Rectangles that labels keep clear of, as (center x, center y, half width, half height) with a
    # margin. Beside a node there is room for the head of an arrow, too.
    occupied = [
        (
            box.x + (box.width - ARROW) / 2,
            box.y + box.height / 2,
            (box.width + ARROW) / 2 + 6,
            box.height / 2 + 3,
        )
        for box in boxes
    ]
    # Points of each curve, (161, 2), from its middle outward.
    ts = np.linspace(0, 1, 161)
    middle_first = ts[np.argsort(np.abs(ts - 0.5), kind="stable")]
    samples = [curve.at(middle_first) for curve in curves]

    def length(i: int) -> float:
        return curves[i].points[3][0] - curves[i].points[0][0]

    labels: dict[int, Box] = {}
    for i in sorted(range(len(ops)), key=length):
        # Of the label's width and height.
        half = np.array([text_width(ops[i]) / 2 + 6, heights[i] / 2])
        obstacles = np.array(occupied)
        # Two rectangles are apart if their centers are, in x or in y, by their halves or more.
        distances = np.abs(samples[i][:, None] - obstacles[:, :2])  # (161, obstacles, 2)
        clear = (distances >= half + obstacles[:, 2:]).any(2).all(1)
        clear &= samples[i][:, 0] - half[0] >= boxes[0].x  # none may leave the figure
        others = np.zeros((0, 1, 2))
        if len(curves) > 1:
            others = np.stack(samples[:i] + samples[i + 1 :])  # (curves - 1, 161, 2)
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
        labels[i] = Box(x - dx, y - dy, 2 * dx, 2 * dy, PAPER, color, PILL / 2, title)
        occupied.append((x, y, dx + 3, dy + 3))
    return [labels[i] for i in range(len(ops))]


def _node_texts(layout: CellLayout, boxes: Sequence[Box]) -> list[Text]:
    """Return what stands in the nodes: their numbers, or c_k-2, c_k-1 and c_k.

    These are the outputs of the two cells before, which are the inputs, and of cell k itself.
    """
    texts = []
    for i, box in enumerate(boxes):
        x, y = box.x + box.width / 2, box.y + box.height / 2
        if layout.inputs <= i < len(layout.nodes):
            texts.append(Text(x, y, str(layout.nodes[i]), 12))
            continue
        index = "k" if i == len(layout.nodes) else f"k-{layout.inputs - i}"
        x -= (text_width("c", 13) + text_width(index, 9) + 1) / 2
        texts.append(Text(x, y - 1, "c", 13, "start"))
        texts.append(Text(x + text_width("c", 13) + 1, y + 4, index, 9, "start"))
    return texts


def _cell(
    layout: CellLayout,
    pitch: float,
    top: float,
    title: str,
    colors: Mapping[str | None, str],
    may_hide: bool,
) -> tuple[list[Primitive], float] | None:
    """Draw a cell below the y `top`, its columns `pitch` pixels apart.

    Returns its primitives and the y where it ends; None if the columns are too near for its labels.
    """
    # Drawn once around 0 to learn how far it reaches up and down, then at its place.
    boxes = _boxes(layout, pitch, 0.0)
    ys = [y for box in boxes for y in (box.y, box.y + box.height)]
    for curve in _curves(layout, boxes, colors):
        ys += curve.at(np.linspace(0, 1, 50))[:, 1].tolist()
    middle = top + (32 if title else 12) - min(ys)
    boxes = _boxes(layout, pitch, middle)
    curves = _curves(layout, boxes, colors)
    ops = [edge.candidate.op for edge in layout.cell.edges]
    # Whether below the name of an operation there is a strip of rules.
    strips = [len(layout.stack) > 1 and any(rules_of(layout.stack, i)) for i in range(len(ops))]
    heights = [PILL + (STRIP if strip else 0) for strip in strips]
    labels = _place_labels(ops, heights, boxes, curves, may_hide)
    if labels is None:
        return None
    primitives: list[Primitive] = [Text(MARGIN, top + 8, title, 15, "start")] if title else []
    # Edges lie above the faint lines to the output, which come last in `curves`.
    primitives += [*reversed(curves), *boxes, *_node_texts(layout, boxes)]
    for i, (op, label) in enumerate(zip(ops, labels, strict=True)):
        primitives += [label, Text(label.x + label.width / 2, label.y + PILL / 2, op)]
        if strips[i]:
            primitives += _strip(layout.stack, i, label, colors)
    return primitives, middle + max(ys) + 12


def _strip(
    stack: Stack, edge: int, label: Box, colors: Mapping[str | None, str]
) -> list[Primitive]:
    """Draw the rule of an edge in each cell of a stack, side by side at the label's lower end."""
    left, width = label.x + PILL / 2, (label.width - PILL) / len(stack)
    return [
        Box(
            left + k * width,
            label.y + PILL - 2,
            width - 1,
            STRIP - 1,
            colors[rule],
            title=f"{name}: {rule}",
        )
        for k, (name, rule) in enumerate(zip(stack, rules_of(stack, edge), strict=True))
    ]


def draw_legend(
    colors: Mapping[str | None, str], top: float, width: float, strips: bool = False
) -> tuple[list[Primitive], float]:
    """Draw the legend: a line and the name of each rule, in rows of at most `width` pixels.

    Where there are `strips`, a last row says how they are read.

    Returns the primitives and the y where the legend ends.
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
    if strips:
        y += 18
        primitives.append(Text(MARGIN, y, STRIPS, anchor="start"))
    return primitives, y + 8


def _figure(stacks: Sequence[Stack], title: str, label: str) -> Drawing:
    """Draw stacks one above the other, with a legend; all have the same distance of columns."""
    cells = [cell for stack in stacks for cell in stack.values()]
    colors = rule_colors(edge.candidate.rule for cell in cells for edge in cell.edges)
    layouts = [(_title(stack), lay_out(stack)) for stack in stacks]
    # Columns move apart by 6 % until there is room for all labels. Once they are 30 % further apart
    # than at first, labels may lie over other curves: a figure should not grow too wide for that.
    pitch, done = PITCH, False
    while not done:
        primitives: list[Primitive] = []
        if title:
            primitives.append(Text(MARGIN, MARGIN + 8, title, 17, "start"))
        top, done = MARGIN + (28 if title else 0), True
        for name, layout in layouts:
            drawn_cell = _cell(layout, pitch, top, name, colors, may_hide=pitch > 1.3 * PITCH)
            if drawn_cell is None:
                pitch, done = 1.06 * pitch, False
                break
            cell_primitives, bottom = drawn_cell
            primitives += cell_primitives
            top = bottom + 16
    widths = [1.3 * NODE + layout.columns[-1] * pitch for _, layout in layouts]
    widths += [text_width(title, 17), *(text_width(name, 15) for name, _ in layouts)]
    widths += [34 + text_width(rule or "no weights") for rule in colors]
    strips = any(len(stack) > 1 for stack in stacks)
    widths += [text_width(STRIPS)] if strips else []
    width = math.ceil(2 * MARGIN + max(widths))
    legend, legend_bottom = draw_legend(colors, top, width, strips)
    return Drawing(width, math.ceil(legend_bottom + MARGIN), (*primitives, *legend), label)


def _title(stack: Stack) -> str:
    """Return what stands above a stack: the names of its cells, in the order of the strips."""
    return ", ".join(stack)


def _stacks(genotype: Genotype) -> list[Stack]:
    """Return the cells of a genotype, those of one kind that differ by rules alone together."""
    space: Space = SPACES.build(genotype.space)
    stacks: dict[object, dict[str, Cell]] = {}
    in_order = [t for t in space.cell_types if t in genotype.cells]
    others = [t for t in genotype.cells if t not in in_order]
    for cell_type in [*in_order, *others]:
        cell = genotype.cells[cell_type]
        operations = tuple((edge.node, edge.input, edge.candidate.op) for edge in cell.edges)
        kind = space.kind(cell_type)
        stacks.setdefault((kind, operations, cell.concat), {})[cell_type] = cell
    return list(stacks.values())


def draw_cell(cell: Cell, title: str = "") -> Drawing:
    """Draw one cell, as `draw_genotype` does.

    >>> from darts_bio.spaces import load_genotype
    >>> figure = draw_cell(load_genotype("darts_v2").cells["normal"], "normal")
    >>> figure.label
    'normal cell (8 edges)'
    """
    return _figure([{title: cell}], "", f"{title} cell ({len(cell.edges)} edges)".strip())


def draw_genotype(genotype: Genotype, title: str = "") -> Drawing:
    """Draw the cells of a genotype one above the other, colored by learning rule.

    Edges without a rule are dashed; nodes whose outputs are concatenated lead to the output by
    faint lines. Cells that differ by their rules alone are drawn once: strips tell the rules, from
    the first cell to the last, and a line is dark where they differ.

    >>> from darts_bio.spaces import load_genotype
    >>> figure = draw_genotype(load_genotype("bionas_darts"))
    >>> figure.label
    'darts genotype: normal (8 edges), reduce (8 edges)'
    >>> figure.svg()[:4], figure.image().shape[2]
    ('<svg', 3)
    """
    stacks = _stacks(genotype)
    cells = ", ".join(
        f"{name} ({len(cell.edges)} edges)" for stack in stacks for name, cell in stack.items()
    )
    return _figure(stacks, title, f"{title or f'{genotype.space} genotype'}: {cells}")
