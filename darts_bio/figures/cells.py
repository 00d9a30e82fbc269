"""Figures of cells: edges labeled by operation and colored by learning rule.

Cells are expected as their space validated them: every edge goes from a node to a later one. Nodes
0 and 1 are the cell's inputs, or node 0 alone where an edge leads into node 1; any number of edges
may lead into a node.

A figure is made in three steps. `_plan` puts the nodes into columns, one each, and searches for
heights and bows of the lines that keep lines apart from one another and from nodes (`_strain`).
`_place_labels` then puts the name of each operation on its line where it hides nothing. If there is
no room, `_figure` moves the columns apart and places the labels anew.

Cells of one kind that differ by their rules alone, as those of a space by depth do, are drawn once,
a *stack*: below the name of each operation that has weights a strip tells its rule in each of them.
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
from darts_bio.spaces.base import SPACES, Space
from darts_bio.spaces.genotype import Cell, Genotype

KNOWN_COLORS = {
    "bp": "#0072b2",
    "fa": "#009e73",
    "usf": "#d55e00",
    "frsf": "#cc79a7",
    "brsf": "#e69f00",
}
"""Okabe and Ito's colors, which can be told apart under every common form of color blindness."""

FURTHER_COLORS = ("#56b4e9", "#332288", "#882255", "#999933", "#117733", "#000000")
"""Colors of all other rules."""
NO_RULE = "#8c8c8c"
"""The color of candidates without weights, which have no rule."""
SEVERAL = "#444444"
"""The color of a line that stands for cells with different rules."""
STRIP = 7.0
"""Height in pixels of the strip that tells the rules of a stack's cells."""
LANE, NODE, PILL = 38.0, 30.0, 17.0
"""Heights in pixels: of the lanes that nodes lie in, of a node, of an edge's label."""
PITCH = 132.0
"""The smallest distance in pixels between columns of nodes."""
END_GAP = 9.0
"""The distance in pixels between the ends of lines at a node."""


def rule_colors(rules: Iterable[str | None]) -> dict[str | None, str]:
    """Map each rule to its color, in the order of the legend.

    The colors of known rules are fixed. The color of any other follows from its name, so that it is
    the same in all figures, unless two such rules of a figure would have the same. None stands for
    candidates without weights.

    >>> rule_colors(["usf", None, "bp"])
    {'bp': '#0072b2', 'usf': '#d55e00', None: '#8c8c8c'}
    """
    names = set(rules)
    colors: dict[str | None, str] = {
        rule: color for rule, color in KNOWN_COLORS.items() if rule in names
    }
    for rule in sorted(rule for rule in names if rule is not None and rule not in KNOWN_COLORS):
        # Python's own hash of a text differs from process to process.
        digest = hashlib.blake2b(rule.encode("utf-8", "replace"), digest_size=8).digest()
        start = int.from_bytes(digest, "big")
        candidates = [
            FURTHER_COLORS[(start + i) % len(FURTHER_COLORS)] for i in range(len(FURTHER_COLORS))
        ]
        unused = [color for color in candidates if color not in colors.values()]
        colors[rule] = (unused or candidates)[0]
    return colors | ({None: NO_RULE} if None in names else {})


Stack = Mapping[str, Cell]
"""Cells by name, from the stem to the classifier, alike but for their rules."""


def _rules(stack: Stack, edge: int) -> list[str | None]:
    """Return the rules of an edge in all cells of a stack."""
    return [cell.edges[edge].candidate.rule for cell in stack.values()]


@dataclass(frozen=True)
class _Plan:
    """The layout of a stack of cells: where nodes lie, and how far lines bow out."""

    stack: Stack
    cell: Cell
    """The first cell of the stack, whose operations all have."""
    nodes: tuple[int, ...]
    """The numbers of the nodes, inputs first, without the output."""
    inputs: int
    """How many of `nodes` are inputs of the cell."""
    columns: np.ndarray
    """The column of each node and at last of the output, counted from the inputs' column."""
    lines: tuple[tuple[int, int], ...]
    """(source, target) of each edge and then of each node of the concatenation, as places in
    `nodes`; the output follows them."""
    heights: np.ndarray
    """The height of each node and at last of the output, in pixels from the middle, downward."""
    bows: np.ndarray
    """How far the inner control points of each line lie off its ends, in pixels."""


def _plan(stack: Stack) -> _Plan:
    """Lay out the cell that all cells of a stack are drawn as."""
    cell = next(iter(stack.values()))
    inputs = (0,) if any(edge.node == 1 for edge in cell.edges) else (0, 1)
    used = {n for edge in cell.edges for n in (edge.node, edge.input)} | set(cell.concat)
    nodes = (*inputs, *sorted(used - set(inputs)))
    last = len(nodes) - len(inputs)
    # The first gap is wider (1.3 columns) than the others, the last one narrower (0.7).
    columns = np.array([0.0] * len(inputs) + [i + 0.3 for i in range(1, last + 1)] + [last + 1.0])
    lines = [(nodes.index(edge.input), nodes.index(edge.node)) for edge in cell.edges]
    lines += [(nodes.index(node), len(nodes)) for node in cell.concat]
    heights, bows = _relax(columns, len(inputs), lines)
    return _Plan(stack, cell, nodes, len(inputs), columns, tuple(lines), heights, bows)


def _relax(
    columns: np.ndarray, inputs: int, lines: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Search for heights of the nodes and bows of the lines that are easy to read.

    Coordinate descent: each height and bow in turn takes that of its values, half a lane apart,
    which makes `_strain` least, until none changes (at most 8 rounds). Of two starts, both a zigzag
    of the nodes, the better end is taken.

    Args:
        columns: The column of each node, inputs first, the output last.
        inputs: How many of the nodes are inputs.
        lines: (source, target) of each line, as places in `columns`.

    Returns:
        The heights (nodes,) and the bows (lines,), in pixels.
    """
    inner = range(inputs, len(columns) - 1)
    reach = (len(inner) + 1) // 2
    # Place in the state -> the values it may take, in lanes. The state is all heights and then all
    # bows. The output, and an input that is alone, stay in the middle.
    choices = {i: np.arange(-reach, reach + 0.5, 0.5) for i in inner}
    if inputs == 2:  # input 0 stays above the middle, input 1 below
        choices |= {0: np.arange(-2, 0, 0.5), 1: np.arange(0.5, 2.5, 0.5)}
    choices |= {i: np.arange(-3, 3.5, 0.5) for i in range(len(columns), len(columns) + len(lines))}
    ends = []
    for first in (-1, 1):
        state = np.zeros(len(columns) + len(lines))
        state[:inputs] = (-1, 1) if inputs == 2 else 0
        state[inner] = [first * (-1) ** i for i in range(len(inner))]
        for _ in range(8):
            before = state
            for i, values in choices.items():
                trials = np.tile(state, (len(values), 1))
                trials[:, i] = values
                state = trials[_strain(columns, lines, trials).argmin()]
            if (state == before).all():
                break
        ends.append(state)
    best = ends[_strain(columns, lines, np.stack(ends)).argmin()] * LANE
    return best[: len(columns)], best[len(columns) :]


def _node_height(node: int, lines: Sequence[tuple[int, int]]) -> float:
    """Return the height in pixels of a node that has room for the lines that start or end there."""
    outgoing = sum(source == node for source, _ in lines)
    incoming = sum(target == node for _, target in lines)
    return max(NODE, END_GAP * max(outgoing, incoming) + 8)


def _strain(
    columns: np.ndarray, lines: Sequence[tuple[int, int]], states: np.ndarray
) -> np.ndarray:
    """Return how hard to read each of k layouts is, (k,).

    It grows with the length over which lines run close to one another or to nodes of other lines,
    with their bows and slopes, and with the distance of nodes from the middle.

    Args:
        columns: The column of each node and of the output, (nodes,).
        lines: (source, target) of each line.
        states: Heights of the nodes and then bows of the lines, in lanes, (k, nodes + lines).
    """
    source, target = np.array(lines, int).reshape(-1, 2).T
    y, bows = states[:, : len(columns)], states[:, len(columns) :, None]
    # Lines are compared at six abscissas a column. t is the place of an abscissa along a line, from
    # 0 to 1; NaN, which `fmax` below passes over, where the line does not reach.
    grid = (np.arange(round(6 * columns[-1])) + 0.5) / 6
    span = (columns[target] - columns[source])[:, None]  # (lines, 1)
    t = (grid - columns[source][:, None]) / span  # (lines, grid)
    t = np.where((t > 0) & (t < 1), t, np.nan)
    # A line is a Bezier curve whose inner control points lie at a third and two thirds of its span,
    # at the heights of its ends plus its bow: so x is linear in t.
    rise = (y[:, target] - y[:, source])[..., None]  # (k, lines, 1)
    straight = rise * t**2 * (3 - 2 * t)
    bowed = 3 * bows * t * (1 - t)
    curves = y[:, source, None] + straight + bowed  # (k, lines, grid)
    # Every pair of lines: 1 where they meet, falling to 0 at a distance of 0.8 lanes.
    a, b = np.triu_indices(len(lines), 1)
    strain = np.fmax(0, 1 - np.abs(curves[:, a] - curves[:, b]) / 0.8).sum((1, 2))
    for node in range(len(columns)):
        foreign = (source != node) & (target != node)
        near = np.abs(grid - columns[node]) < 0.3
        gaps = np.abs(curves[:, foreign][..., near] - y[:, node, None, None])
        clearance = (_node_height(node, lines) / 2 + 14) / LANE
        strain += 8 * np.fmax(0, 1 - gaps / clearance).sum((1, 2))
    steepness = ((3 * bows**2 / np.sqrt(span) + 0.1 * rise**2) / span).sum((1, 2))
    off_middle = 0.1 * (y**2).sum(1)
    strain += steepness + off_middle
    # Rounded, since the last bits of a sum differ between processors and must decide nothing.
    return strain.round(6)


def _boxes(plan: _Plan, pitch: float, middle: float) -> list[Box]:
    """Return the box of each node and at last of the output.

    `pitch` is the distance of columns and `middle` the y of height 0, in pixels.
    """
    boxes = []
    for i, (column, y) in enumerate(zip(plan.columns, plan.heights, strict=True)):
        inner = plan.inputs <= i < len(plan.nodes)
        width, height = (NODE if inner else 1.3 * NODE), _node_height(i, plan.lines)
        x = MARGIN + 0.65 * NODE + column * pitch - width / 2
        fill = "#f2f2f2" if inner else "#e3ebf5"
        boxes.append(Box(x, middle + y - height / 2, width, height, fill, "#555555", 5))
    return boxes


def _ends(plan: _Plan, boxes: Sequence[Box], side: int) -> dict[int, float]:
    """Map each line to the y of its start (side 0) or end (side 1).

    Lines of a node start or end apart from one another, in the order in which they come to lie
    beside it, so that they do not cross there.
    """

    def offset_beside_node(i: int) -> float:
        """Return how far line i has risen 0.3 columns beside the node, as in `_strain`."""
        node, other = plan.lines[i][side], plan.lines[i][1 - side]
        t = min(0.5, 0.3 / abs(plan.columns[other] - plan.columns[node]))
        rise = plan.heights[other] - plan.heights[node]
        return float(rise * t**2 * (3 - 2 * t) + 3 * plan.bows[i] * t * (1 - t))

    ends = {}
    for node, box in enumerate(boxes):
        node_lines = [i for i, line in enumerate(plan.lines) if line[side] == node]
        node_lines.sort(key=offset_beside_node)
        for place, i in enumerate(node_lines):
            ends[i] = box.y + box.height / 2 + END_GAP * (place - (len(node_lines) - 1) / 2)
    return ends


def _curves(plan: _Plan, boxes: Sequence[Box], colors: Mapping[str | None, str]) -> list[Curve]:
    """Return a curve for each line of the plan; those to the output are faint, without arrows."""
    starts, ends = _ends(plan, boxes, 0), _ends(plan, boxes, 1)
    curves = []
    for i, ((source, target), bow) in enumerate(zip(plan.lines, plan.bows.tolist(), strict=True)):
        edge = plan.cell.edges[i] if i < len(plan.cell.edges) else None
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
        rules = _rules(plan.stack, i)
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


def _node_texts(plan: _Plan, boxes: Sequence[Box]) -> list[Text]:
    """Return what stands in the nodes: their numbers, or c_k-2, c_k-1 and c_k.

    These are the outputs of the two cells before, which are the inputs, and of cell k itself.
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
    """Draw a cell below the y `top`, its columns `pitch` pixels apart.

    Returns its primitives and the y where it ends; None if the columns are too near for its labels.
    """
    # Drawn once around 0 to learn how far it reaches up and down, then at its place.
    boxes = _boxes(plan, pitch, 0.0)
    ys = [y for box in boxes for y in (box.y, box.y + box.height)]
    for curve in _curves(plan, boxes, colors):
        ys += curve.at(np.linspace(0, 1, 50))[:, 1].tolist()
    middle = top + (32 if title else 12) - min(ys)
    boxes = _boxes(plan, pitch, middle)
    curves = _curves(plan, boxes, colors)
    ops = [edge.candidate.op for edge in plan.cell.edges]
    # Whether below the name of an operation there is a strip of rules.
    strips = [len(plan.stack) > 1 and any(_rules(plan.stack, i)) for i in range(len(ops))]
    heights = [PILL + (STRIP if strip else 0) for strip in strips]
    labels = _place_labels(ops, heights, boxes, curves, may_hide)
    if labels is None:
        return None
    primitives: list[Primitive] = [Text(MARGIN, top + 8, title, 15, "start")] if title else []
    # Edges lie above the faint lines to the output, which come last in `curves`.
    primitives += [*reversed(curves), *boxes, *_node_texts(plan, boxes)]
    for i, (op, label) in enumerate(zip(ops, labels, strict=True)):
        primitives += [label, Text(label.x + label.width / 2, label.y + PILL / 2, op)]
        if strips[i]:
            primitives += _strip(plan.stack, i, label, colors)
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
        for k, (name, rule) in enumerate(zip(stack, _rules(stack, edge), strict=True))
    ]


def _legend(
    colors: Mapping[str | None, str], top: float, width: float
) -> tuple[list[Primitive], float]:
    """Draw the legend: a line and the name of each rule, in rows of at most `width` pixels.

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
    return primitives, y + 8


def _figure(stacks: Sequence[Stack], title: str, label: str) -> Drawing:
    """Draw stacks one above the other, with a legend; all have the same distance of columns."""
    cells = [cell for stack in stacks for cell in stack.values()]
    colors = rule_colors(edge.candidate.rule for cell in cells for edge in cell.edges)
    plans = [(_title(stack), _plan(stack)) for stack in stacks]
    # Columns move apart by 6 % until there is room for all labels. Once they are 30 % further apart
    # than at first, labels may lie over other curves: a figure should not grow too wide for that.
    pitch, done = PITCH, False
    while not done:
        primitives: list[Primitive] = []
        if title:
            primitives.append(Text(MARGIN, MARGIN + 8, title, 17, "start"))
        top, done = MARGIN + (28 if title else 0), True
        for name, plan in plans:
            drawn_cell = _cell(plan, pitch, top, name, colors, may_hide=pitch > 1.3 * PITCH)
            if drawn_cell is None:
                pitch, done = 1.06 * pitch, False
                break
            cell_primitives, bottom = drawn_cell
            primitives += cell_primitives
            top = bottom + 16
    widths = [1.3 * NODE + plan.columns[-1] * pitch for _, plan in plans]
    widths += [text_width(title, 17), *(text_width(name, 15) for name, _ in plans)]
    widths += [34 + text_width(rule or "no weights") for rule in colors]
    width = math.ceil(2 * MARGIN + max(widths))
    legend, legend_bottom = _legend(colors, top, width)
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
