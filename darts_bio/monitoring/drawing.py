"""Figures of cells and of architecture parameters, drawn here, so that they need no plotting or graph layout package.

A `Drawing` is one list of primitives in two forms: SVG text, crisp in a run's folder and in documents, and an RGB
array, for TensorBoard. Both measure text by the font that Pillow brings, so what fits in one fits in the other. The
same input gives the same bytes.

Cells are taken as their space validated them: every edge goes from a node to a later one. Nodes 0 and 1 are the
cell's inputs, node 0 alone where an edge leads into node 1; any number of edges may lead into a node.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor

from darts_bio.spaces.base import Row
from darts_bio.spaces.genotype import Candidate, Cell, Genotype

KNOWN_COLOURS = {"bp": "#0072b2", "fa": "#009e73", "usf": "#d55e00", "frsf": "#cc79a7", "brsf": "#e69f00"}
"""Okabe and Ito's colours, told apart under every common form of colour blindness."""

FURTHER_COLOURS = ("#56b4e9", "#332288", "#882255", "#999933", "#117733", "#000000")
NO_RULE = "#8c8c8c"
INK, FAINT, PAPER = "#222222", "#c4c4c4", "#ffffff"
SHADES = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")
"""Anchors of a sequential, perceptually even colour map (viridis)."""

FONTS = "Helvetica, Arial, 'Liberation Sans', sans-serif"
MARGIN = 16.0
LANE, NODE, PILL, TILE = 38.0, 30.0, 17.0, 20.0
"""Heights in pixels: of the lanes that nodes lie in, of a node, of an edge's label, of a row of the heat map."""
PITCH, ARROW, SMALL = 132.0, 8.0, 11.0
"""The least distance of columns of nodes, the length of an arrow head, the size of small text."""

LONGEST_TEXT = 80
SHARPNESS = 3
"""Images are painted this many times larger, then reduced, since Pillow's lines have hard edges."""


def rule_colours(rules: Iterable[str | None]) -> dict[str | None, str]:
    """Rule -> colour, as a legend orders them.

    The known rules' colours are fixed; any other's follows from its name, unless two of them clash.
    """
    names = set(rules)
    colours: dict[str | None, str] = {rule: colour for rule, colour in KNOWN_COLOURS.items() if rule in names}
    for rule in sorted(rule for rule in names if rule is not None and rule not in KNOWN_COLOURS):
        start = int.from_bytes(hashlib.blake2b(rule.encode("utf-8", "replace"), digest_size=8).digest(), "big")
        further = [FURTHER_COLOURS[(start + i) % len(FURTHER_COLOURS)] for i in range(len(FURTHER_COLOURS))]
        free = [colour for colour in further if colour not in colours.values()] or further
        colours[rule] = free[0]
    return colours | ({None: NO_RULE} if None in names else {})


def _clean(text: str) -> str:
    """The text on one line, without the characters that XML cannot hold."""
    text = re.sub(r"\s+", " ", text)
    return re.sub("[^ -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def _shown(text: str) -> str:
    text = _clean(text)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."


def _number(value: float) -> str:
    return f"{round(value, 2) + 0.0:g}"


SCALABLE = features.check("freetype2")
EM = 64 if SCALABLE else 11
"""The size at which text is measured and painted, to be scaled from there; without FreeType there is one only."""


@functools.cache
def _font() -> Any:
    return ImageFont.load_default(EM) if SCALABLE else ImageFont.load_default()


def _text_width(text: str, size: float = SMALL) -> float:
    return _font().getlength(_shown(text)) * size / EM


class Primitive(Protocol):
    def svg(self) -> str: ...
    def paint(self, image: Image.Image, scale: float) -> None: ...


@dataclass(frozen=True)
class Box:
    """A rounded rectangle, (x, y) its upper left corner. The title appears on hovering."""

    x: float
    y: float
    width: float
    height: float
    fill: str = PAPER
    stroke: str = "none"
    radius: float = 0.0
    title: str = ""

    def svg(self) -> str:
        x, y, width, height, radius = map(_number, (self.x, self.y, self.width, self.height, self.radius))
        rect = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" '
        rect += f'fill="{self.fill}" stroke="{self.stroke}"'
        return f"{rect}><title>{escape(_clean(self.title))}</title></rect>" if self.title else f"{rect}/>"

    def paint(self, image: Image.Image, scale: float) -> None:
        corners = [v * scale for v in (self.x, self.y, self.x + self.width, self.y + self.height)]
        outline = None if self.stroke == "none" else self.stroke
        ImageDraw.Draw(image).rounded_rectangle(corners, self.radius * scale, self.fill, outline, round(scale))


@dataclass(frozen=True)
class Text:
    """One line of text: (x, y) is the middle of its height, and across what the anchor says.

    It lets the pointer through, to the title of what lies below.
    """

    x: float
    y: float
    text: str
    size: float = SMALL
    anchor: Literal["start", "middle", "end"] = "middle"
    angle: float = 0.0
    colour: str = INK

    @property
    def width(self) -> float:
        return _text_width(self.text, self.size)

    def svg(self) -> str:
        x, y = _number(self.x), _number(self.y)
        turn = f' transform="rotate({_number(-self.angle)} {x} {y})"' if self.angle else ""
        return (
            f'<text x="{x}" y="{_number(self.y + 0.35 * self.size)}" font-size="{_number(self.size)}" '
            f'text-anchor="{self.anchor}" textLength="{_number(self.width)}" lengthAdjust="spacingAndGlyphs" '
            f'fill="{self.colour}" pointer-events="none"{turn}>{escape(_shown(self.text))}</text>'
        )

    def paint(self, image: Image.Image, scale: float) -> None:
        size = self.size * scale
        mask = Image.new("L", (max(1, math.ceil(_text_width(self.text, EM))), math.ceil(1.4 * EM)))
        place, anchor = ((0, EM), "ls") if SCALABLE else ((0, 0), None)
        ImageDraw.Draw(mask).text(place, _shown(self.text), 255, _font(), anchor)
        mask = mask.resize((math.ceil(self.width * scale) or 1, math.ceil(1.4 * size)), Image.Resampling.LANCZOS)
        across = {"start": 0.5, "middle": 0.0, "end": -0.5}[self.anchor] * mask.width
        down = 0.05 * size
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        centre = self.x * scale + across * cos + down * sin, self.y * scale - across * sin + down * cos
        mask = mask.rotate(self.angle, Image.Resampling.BICUBIC, expand=True)
        corner = round(centre[0] - mask.width / 2), round(centre[1] - mask.height / 2)
        image.paste(self.colour, corner, mask)


Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A cubic Bezier curve by its four points, with an arrow head beyond its end if `arrow`."""

    points: tuple[Point, Point, Point, Point]
    colour: str = INK
    width: float = 1.7
    dashed: bool = False
    arrow: bool = False
    title: str = ""

    def at(self, t: np.ndarray) -> np.ndarray:
        """(n, 2) points of the curve at n parameters in [0, 1]."""
        weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1)
        return weights @ np.array(self.points)

    def head(self) -> list[Point]:
        """The corners of the arrow head."""
        (x0, y0), (x, y) = self.points[2:]
        length = math.hypot(x - x0, y - y0) or 1.0
        dx, dy = (x - x0) / length, (y - y0) / length
        return [(x + ARROW * dx, y + ARROW * dy), (x - 3.8 * dy, y + 3.8 * dx), (x + 3.8 * dy, y - 3.8 * dx)]

    def svg(self) -> str:
        corners = [" ".join(map(_number, point)) for point in self.points]
        path = f'<path d="M{corners[0]}C{",".join(corners[1:])}" fill="none" stroke="{self.colour}" '
        path += f'stroke-width="{_number(self.width)}"' + (' stroke-dasharray="5 3"/>' if self.dashed else "/>")
        if self.arrow:
            head = "L".join(" ".join(map(_number, point)) for point in self.head())
            path += f'<path d="M{head}Z" fill="{self.colour}"/>'
        return f"<g><title>{escape(_clean(self.title))}</title>{path}</g>" if self.title else path

    def paint(self, image: Image.Image, scale: float) -> None:
        draw, width = ImageDraw.Draw(image), max(1, round(self.width * scale))
        points = self.at(np.linspace(0, 1, 1601)) * scale
        along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))]) / scale
        pieces = [points]
        if self.dashed:
            pieces = [points[(along >= s) & (along <= s + 5)] for s in np.arange(0, along[-1], 8)]
        for piece in pieces:
            if len(piece) > 1:
                draw.line([(x, y) for x, y in piece.tolist()], self.colour, width, "curve")
        if self.arrow:
            draw.polygon([(x * scale, y * scale) for x, y in self.head()], self.colour)


@dataclass(frozen=True)
class Drawing:
    """A figure on white ground, in pixels. The label says in words what it shows."""

    width: int
    height: int
    primitives: tuple[Primitive, ...]
    label: str = ""

    def svg(self) -> str:
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        body = "\n".join(item.svg() for item in self.primitives)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label={quoteattr(_clean(self.label))} '
            f'font-family="{FONTS}">\n<rect width="100%" height="100%" fill="{PAPER}"/>\n{body}\n</svg>\n'
        )

    def image(self, scale: float = 1.0) -> np.ndarray:
        """(H, W, 3) uint8."""
        size = round(self.width * scale), round(self.height * scale)
        image = Image.new("RGB", (size[0] * SHARPNESS, size[1] * SHARPNESS), PAPER)
        for item in self.primitives:
            item.paint(image, scale * SHARPNESS)
        return np.array(image.reduce(SHARPNESS))


@dataclass(frozen=True)
class _Plan:
    """Where a cell's nodes lie (columns count from the inputs, heights in pixels) and how far its lines bow out.

    The last column and height are the output's. `lines` has (source, target), as positions in `nodes`, for each edge
    and then for each node of the concatenation.
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


def _relax(columns: np.ndarray, inputs: int, lines: Sequence[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Heights of the nodes and bows of the lines: from two zigzags, bettered one at a time, what strains less."""
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


def _strain(columns: np.ndarray, lines: Sequence[tuple[int, int]], states: np.ndarray) -> np.ndarray:
    """(k,) how hard to read each of k layouts is; states (k, nodes + lines) are heights and bows, in lanes.

    What counts is how far lines run close to one another or to nodes not their own, and how steep they are.
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
    strain += ((3 * bows**2 / np.sqrt(span) + 0.1 * rise**2) / span).sum((1, 2)) + 0.1 * (y**2).sum(1)
    return strain.round(6)  # so that the last bits of a sum, which differ between processors, decide nothing


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
    """Line -> height of its start (side 0) or end (side 1): apart from others', in the order in which they come."""

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


def _curves(plan: _Plan, boxes: Sequence[Box], colours: Mapping[str | None, str]) -> list[Curve]:
    starts, ends = _ends(plan, boxes, 0), _ends(plan, boxes, 1)
    curves = []
    for i, ((source, target), bow) in enumerate(zip(plan.lines, plan.bows.tolist(), strict=True)):
        edge = plan.cell.edges[i] if i < len(plan.cell.edges) else None
        x0, x1 = boxes[source].x + boxes[source].width, boxes[target].x - (ARROW if edge else 0)
        third = (x1 - x0) / 3
        points = (x0, starts[i]), (x0 + third, starts[i] + bow), (x1 - third, ends[i] + bow), (x1, ends[i])
        if edge is None:
            curves.append(Curve(points, FAINT, 1.2))
            continue
        op, rule = edge.candidate.op, edge.candidate.rule
        title = f"{op}{'' if rule is None else f' : {rule}'}, {edge.input} -> {edge.node}"
        curves.append(Curve(points, colours[rule], dashed=rule is None, arrow=True, title=title))
    return curves


def _pills(ops: Sequence[str], boxes: Sequence[Box], curves: Sequence[Curve], may_hide: bool) -> list[Box] | None:
    """What the labels of the edges stand on, clear of nodes and of one another; None if there is no room.

    Short edges choose first, having the least room. Each takes the place on its curve that hides the fewest others,
    the nearest to the middle among equals. Unless `may_hide`, it must hide none.
    """
    taken = [
        (b.x + (b.width - ARROW) / 2, b.y + b.height / 2, (b.width + ARROW) / 2 + 6, b.height / 2 + 3) for b in boxes
    ]
    ts = np.linspace(0, 1, 161)
    samples = [curve.at(ts[np.argsort(np.abs(ts - 0.5), kind="stable")]) for curve in curves]
    pills: dict[int, Box] = {}
    for i in sorted(range(len(ops)), key=lambda i: curves[i].points[3][0] - curves[i].points[0][0]):
        half = np.array([_text_width(ops[i]) / 2 + 6, PILL / 2])
        around = np.array(taken)
        clear = (np.abs(samples[i][:, None] - around[:, :2]) >= half + around[:, 2:]).any(2).all(1)
        clear &= samples[i][:, 0] - half[0] >= boxes[0].x  # none may leave the figure
        others = np.stack(samples[:i] + samples[i + 1 :]) if len(curves) > 1 else np.zeros((0, 1, 2))
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
        (dx, dy), colour, title = half.tolist(), curves[i].colour, curves[i].title
        pills[i] = Box(x - dx, y - dy, 2 * dx, 2 * dy, PAPER, colour, PILL / 2, title)
        taken.append((x, y, dx + 3, dy + 3))
    return [pills[i] for i in range(len(ops))]


def _names(plan: _Plan, boxes: Sequence[Box]) -> list[Text]:
    """What stands in the nodes: their numbers, or c with the index of the cell whose output it is."""
    texts = []
    for i, box in enumerate(boxes):
        x, y = box.x + box.width / 2, box.y + box.height / 2
        if plan.inputs <= i < len(plan.nodes):
            texts.append(Text(x, y, str(plan.nodes[i]), 12))
            continue
        index = "k" if i == len(plan.nodes) else f"k-{plan.inputs - i}"
        x -= (_text_width("c", 13) + _text_width(index, 9) + 1) / 2
        texts.append(Text(x, y - 1, "c", 13, "start"))
        texts.append(Text(x + _text_width("c", 13) + 1, y + 4, index, 9, "start"))
    return texts


def _cell(
    plan: _Plan, pitch: float, top: float, title: str, colours: Mapping[str | None, str], may_hide: bool
) -> tuple[list[Primitive], float] | None:
    """The cell below `top`, its columns `pitch` apart, and where it ends; None if that is too narrow for its labels."""
    boxes = _boxes(plan, pitch, 0.0)
    heights = [y for box in boxes for y in (box.y, box.y + box.height)]
    heights += [y for curve in _curves(plan, boxes, colours) for y in curve.at(np.linspace(0, 1, 50))[:, 1].tolist()]
    middle = top + (32 if title else 12) - min(heights)
    boxes = _boxes(plan, pitch, middle)
    curves = _curves(plan, boxes, colours)
    ops = [edge.candidate.op for edge in plan.cell.edges]
    pills = _pills(ops, boxes, curves, may_hide)
    if pills is None:
        return None
    primitives: list[Primitive] = [Text(MARGIN, top + 8, title, 15, "start")] if title else []
    primitives += [*reversed(curves), *boxes, *_names(plan, boxes)]
    for op, pill in zip(ops, pills, strict=True):
        primitives += [pill, Text(pill.x + pill.width / 2, pill.y + PILL / 2, op)]
    return primitives, middle + max(heights) + 12


def _legend(colours: Mapping[str | None, str], top: float, width: float) -> tuple[list[Primitive], float]:
    """A line and the name of each rule, in as many rows as the width asks for, and where they end."""
    primitives: list[Primitive] = []
    x, y = MARGIN, top + 8
    for rule, colour in colours.items():
        name = "no weights" if rule is None else rule
        if x > MARGIN and x + 34 + _text_width(name) > width - MARGIN:
            x, y = MARGIN, y + 18
        primitives.append(Curve(((x, y), (x + 9, y), (x + 17, y), (x + 26, y)), colour, 2.2, rule is None))
        primitives.append(Text(x + 34, y, name, anchor="start"))
        x += 34 + _text_width(name) + 22
    return primitives, y + 8


def _figure(cells: Mapping[str, Cell], title: str, label: str) -> Drawing:
    colours = rule_colours(edge.candidate.rule for cell in cells.values() for edge in cell.edges)
    plans = {name: _plan(cell) for name, cell in cells.items()}
    pitch, done = PITCH, False
    while not done:
        primitives: list[Primitive] = [Text(MARGIN, MARGIN + 8, title, 17, "start")] if title else []
        top, done = MARGIN + (28 if title else 0), True
        for name, plan in plans.items():
            part = _cell(plan, pitch, top, name, colours, may_hide=pitch > 1.3 * PITCH)
            if part is None:
                pitch, done = 1.06 * pitch, False
                break
            primitives += part[0]
            top = part[1] + 16
    widths = [1.3 * NODE + plan.columns[-1] * pitch for plan in plans.values()]
    widths += [_text_width(title, 17), *(_text_width(name, 15) for name in cells)]
    widths += [34 + _text_width(rule or "no weights") for rule in colours]
    width = math.ceil(2 * MARGIN + max(widths))
    legend, bottom = _legend(colours, top, width)
    return Drawing(width, math.ceil(bottom + MARGIN), (*primitives, *legend), label)


def draw_cell(cell: Cell, title: str = "") -> Drawing:
    """One cell, as `draw_genotype` draws it."""
    return _figure({title: cell}, "", f"{title} cell ({len(cell.edges)} edges)".strip())


def draw_genotype(genotype: Genotype, title: str = "") -> Drawing:
    """The cells, one above the other: edges labelled by operation and coloured by learning rule."""
    cells = ", ".join(f"{name} ({len(cell.edges)} edges)" for name, cell in genotype.cells.items())
    return _figure(genotype.cells, title, f"{title or f'{genotype.space} genotype'}: {cells}")


def _shade(share: float) -> str:
    """The colour at `share`, from 0 to 1, of the scale."""
    place = share * (len(SHADES) - 1)
    i = min(int(place), len(SHADES) - 2)
    low, high = (np.array([int(shade[k : k + 2], 16) for k in (1, 3, 5)]) for shade in SHADES[i : i + 2])
    return "#" + "".join(f"{round(v):02x}" for v in (low + (place - i) * (high - low)).tolist())


def _spread(groups: Sequence[Any], start: float) -> list[float]:
    """Where each tile of a row starts, with a gap wherever the group changes."""
    gaps = np.cumsum([0] + [a != b for a, b in itertools.pairwise(groups)])
    return [start + TILE * i + 5.0 * float(gap) for i, gap in zip(range(len(groups)), gaps, strict=False)]


def draw_edge_weights(
    title: str, rows: Sequence[Row], edges: Sequence[tuple[int, int]], values: Tensor | Sequence[Sequence[float]]
) -> Drawing:
    """Heat map of values (edges, candidates), such as alpha or the edge weights of one cell type.

    `rows` are the table's candidates, `edges` the space's (node, input). A column holds one candidate wherever it
    stands in its row; an edge without it leaves it blank, and a value that is not finite an empty frame. A dot marks
    the first largest value of an edge.
    """
    found = list(dict.fromkeys(candidate for row in rows for candidate in row if candidate is not None))
    ops = list(dict.fromkeys(candidate.op for candidate in found))
    columns = sorted(found, key=lambda candidate: ops.index(candidate.op))
    names = [f"{node} <- {source}" for node, source in edges]
    table = [
        {candidate: value for candidate, value in zip(row, line, strict=True) if candidate is not None}
        for row, line in zip(rows, torch.as_tensor(values).detach().double().cpu().tolist(), strict=True)
    ]
    finite = [value for line in table for value in line.values() if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    left = MARGIN + max((_text_width(name) for name in names), default=0.0) + 8
    head = max((_text_width(str(c)) for c in columns), default=0.0) * math.sqrt(0.5)
    top = MARGIN + 26 + head + 12
    xs = dict(zip(columns, _spread([candidate.op for candidate in columns], left), strict=True))
    ys = _spread([node for node, _ in edges], top)
    primitives: list[Primitive] = [Text(MARGIN, MARGIN + 8, title, 15, "start")] if title else []
    primitives += [Text(x + TILE / 2, top - 6, str(c), anchor="start", angle=45) for c, x in xs.items()]
    primitives += [Text(left - 8, y + TILE / 2, name, anchor="end") for name, y in zip(names, ys, strict=True)]
    for name, y, line in zip(names, ys, table, strict=True):
        primitives += _tiles(name, y, xs, line, low, high)
    bottom = (ys[-1] if ys else top) + TILE + 14
    if finite:
        primitives += _scale(left, bottom, low, high)
    right = max([x + TILE for x in xs.values()] + [left + 320, MARGIN + _text_width(title, 15)])
    right = max([right] + [x + TILE / 2 + 8 + _text_width(str(c)) * math.sqrt(0.5) for c, x in xs.items()])
    label = f"{title}: {len(edges)} edges, {len(columns)} candidates, values from {low:.3g} to {high:.3g}"
    return Drawing(math.ceil(right + MARGIN), math.ceil(bottom + 12 + MARGIN), tuple(primitives), label)


def _dot(x: float, y: float, colour: str) -> Box:
    return Box(x - 3.5, y - 3.5, 7, 7, colour, radius=3.5)


def _tiles(
    name: str, y: float, xs: Mapping[Candidate, float], values: Mapping[Candidate, float], low: float, high: float
) -> list[Primitive]:
    """One edge's row of the heat map."""
    tiles: list[Primitive] = []
    finite = {candidate: value for candidate, value in values.items() if math.isfinite(value)}
    shares = {candidate: (value - low) / ((high - low) or 1.0) for candidate, value in finite.items()}
    for candidate, value in values.items():
        fill, stroke = (_shade(shares[candidate]), "none") if candidate in shares else (PAPER, FAINT)
        title = f"{name}, {candidate}: {value:.4g}"
        tiles.append(Box(xs[candidate], y, TILE - 1, TILE - 1, fill, stroke, title=title))
    if finite:
        largest = max(finite, key=finite.__getitem__)
        middle = (TILE - 1) / 2
        tiles.append(_dot(xs[largest] + middle, y + middle, INK if shares[largest] > 0.5 else PAPER))
    return tiles


def _scale(x: float, y: float, low: float, high: float) -> list[Primitive]:
    """The colour scale with its ends, and what the dot means."""
    least, most = f"{low:.3g}", f"{high:.3g}"
    x += _text_width(least) + 6
    strip = [Box(x + 4 * i, y, 5, 12, _shade(i / 31)) for i in range(32)]
    after = x + 134 + _text_width(most) + 24
    texts = [Text(x - 6, y + 6, least, anchor="end"), Text(x + 134, y + 6, most, anchor="start")]
    return [*strip, *texts, _dot(after, y + 6, INK), Text(after + 8, y + 6, "largest of the edge", anchor="start")]
