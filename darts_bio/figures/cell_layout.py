"""Where the nodes and lines of a cell's figure lie.

`lay_out` puts the nodes into columns, one each, and searches for heights and bows of the lines that
keep lines apart from one another and from nodes (`strain`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from darts_bio.spaces.genotype import Cell

LANE, NODE = 38.0, 30.0
"""Heights in pixels: of the lanes that nodes lie in, and of a node."""
END_GAP = 9.0
"""The distance in pixels between the ends of lines at a node."""

Stack = Mapping[str, Cell]
"""Cells by name, from the stem to the classifier, alike but for their rules."""


def rules_of(stack: Stack, edge: int) -> list[str | None]:
    """Return the rules of an edge in all cells of a stack."""
    return [cell.edges[edge].candidate.rule for cell in stack.values()]


@dataclass(frozen=True)
class CellLayout:
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


def lay_out(stack: Stack) -> CellLayout:
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
    return CellLayout(stack, cell, nodes, len(inputs), columns, tuple(lines), heights, bows)


def _relax(
    columns: np.ndarray, inputs: int, lines: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Search for heights of the nodes and bows of the lines that are easy to read.

    Coordinate descent: each height and bow in turn takes that of its values, half a lane apart,
    which makes `strain` least, until none changes (at most 8 rounds). Of two starts, both a zigzag
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
                state = trials[strain(columns, lines, trials).argmin()]
            if (state == before).all():
                break
        ends.append(state)
    best = ends[strain(columns, lines, np.stack(ends)).argmin()] * LANE
    return best[: len(columns)], best[len(columns) :]


def node_height(node: int, lines: Sequence[tuple[int, int]]) -> float:
    """Return the height in pixels of a node that has room for the lines that start or end there."""
    outgoing = sum(source == node for source, _ in lines)
    incoming = sum(target == node for _, target in lines)
    return max(NODE, END_GAP * max(outgoing, incoming) + 8)


def strain(columns: np.ndarray, lines: Sequence[tuple[int, int]], states: np.ndarray) -> np.ndarray:
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
        clearance = (node_height(node, lines) / 2 + 14) / LANE
        strain += 8 * np.fmax(0, 1 - gaps / clearance).sum((1, 2))
    steepness = ((3 * bows**2 / np.sqrt(span) + 0.1 * rise**2) / span).sum((1, 2))
    off_middle = 0.1 * (y**2).sum(1)
    strain += steepness + off_middle
    # Rounded, since the last bits of a sum differ between processors and must decide nothing.
    return strain.round(6)
