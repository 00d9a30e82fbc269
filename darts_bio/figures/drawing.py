"""Drawings: a list of primitives that is written as SVG or painted as pixels.

Cells, heat maps and images are drawn so; what has axes is a chart (`charts`). SVG is crisp in a run's
folder and in documents; an RGB array is for TensorBoard. Both measure text by the font that Pillow
brings, so what fits in one fits in the other. The same input gives the same bytes.

All lengths are in pixels; x grows to the right and y downward.
"""

from __future__ import annotations

import base64
import functools
import io
import math
import re
from dataclasses import dataclass
from typing import Any, Literal, Protocol
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

INK, FAINT, PAPER = "#222222", "#c4c4c4", "#ffffff"
FONTS = "Helvetica, Arial, 'Liberation Sans', sans-serif"
MARGIN = 16.0
ARROW, SMALL = 8.0, 11.0
"""The length of an arrow head, the size of small text."""
DASH, GAP = 5, 3
"""Lengths of the dashes of a dashed line and of the gaps between them."""

LONGEST_TEXT = 80
"""Characters; longer texts are cut."""
SHARPNESS = 3
"""Images are painted this many times larger, then reduced, since Pillow's lines have hard edges."""


def _clean(text: str) -> str:
    """Return the text on one line, with the characters that XML cannot hold replaced."""
    text = re.sub(r"\s+", " ", text)
    return re.sub("[^ -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def shown(text: str, most: int = LONGEST_TEXT) -> str:
    r"""Return the text as it is drawn: cleaned and cut.

    >>> shown("a\n\x1b[2Jb"), shown("abcdef", most=5)
    ('a �[2Jb', 'ab...')
    """
    text = _clean(text)
    return text if len(text) <= most else text[: most - 3] + "..."


def _number(value: float) -> str:
    """Return a coordinate with at most two decimals."""
    return f"{round(value, 2) + 0.0:g}"  # + 0.0 makes -0.0 a 0


SCALABLE = features.check("freetype2")
"""Whether Pillow has FreeType; without it its font has one size only."""
EM = 64 if SCALABLE else 11
"""The size at which text is measured and painted, to be scaled from there."""


@functools.cache
def _font() -> Any:
    """Return Pillow's font at the size EM."""
    return ImageFont.load_default(EM) if SCALABLE else ImageFont.load_default()


def text_width(text: str, size: float = SMALL) -> float:
    """Return the width in pixels of a text as it is drawn at a font size."""
    return _font().getlength(shown(text)) * size / EM


@functools.lru_cache(maxsize=512)  # the figures of a run are painted again and again
def _mask(text: str, width: int, height: int, angle: float) -> Image.Image:
    """Return a text as white on black: painted at the size EM, scaled to this one, then turned."""
    mask = Image.new("L", (max(1, math.ceil(text_width(text, EM))), math.ceil(1.4 * EM)))
    place, anchor = ((0, EM), "ls") if SCALABLE else ((0, 0), None)  # "ls": left, baseline
    ImageDraw.Draw(mask).text(place, text, 255, _font(), anchor)
    mask = mask.resize((width, height), Image.Resampling.LANCZOS)
    return mask.rotate(angle, Image.Resampling.BICUBIC, expand=True) if angle else mask


class Primitive(Protocol):
    """A part of a drawing."""

    def svg(self) -> str:
        """Return the primitive as SVG elements."""

    def paint(self, image: Image.Image, scale: float) -> None:
        """Paint the primitive on an image that is `scale` times as large as the drawing."""


@dataclass(frozen=True)
class Box:
    """A rounded rectangle, (x, y) its upper left corner; the title appears on hovering."""

    x: float
    y: float
    width: float
    height: float
    fill: str = PAPER
    stroke: str = "none"
    radius: float = 0.0
    title: str = ""

    def svg(self) -> str:
        x, y, width, height, radius = map(
            _number, (self.x, self.y, self.width, self.height, self.radius)
        )
        rect = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" '
        rect += f'fill="{self.fill}" stroke="{self.stroke}"'
        return (
            f"{rect}><title>{escape(_clean(self.title))}</title></rect>"
            if self.title
            else f"{rect}/>"
        )

    def paint(self, image: Image.Image, scale: float) -> None:
        corners = [v * scale for v in (self.x, self.y, self.x + self.width, self.y + self.height)]
        outline = None if self.stroke == "none" else self.stroke
        ImageDraw.Draw(image).rounded_rectangle(
            corners, self.radius * scale, self.fill, outline, round(scale)
        )


@dataclass(frozen=True)
class Text:
    """One line of text.

    y is the middle of its height; x is its left end, middle or right end, as the anchor says. It is
    turned about (x, y) by `angle` degrees, counterclockwise. It lets the pointer through, to the
    title of what lies below.
    """

    x: float
    y: float
    text: str
    size: float = SMALL
    anchor: Literal["start", "middle", "end"] = "middle"
    angle: float = 0.0
    color: str = INK

    @property
    def width(self) -> float:
        """The width of the text in pixels."""
        return text_width(self.text, self.size)

    def svg(self) -> str:
        x, y = _number(self.x), _number(self.y)
        # SVG's y is the baseline, about a third of the size below the middle.
        baseline = _number(self.y + 0.35 * self.size)
        size, width = _number(self.size), _number(self.width)
        turn = f' transform="rotate({_number(-self.angle)} {x} {y})"' if self.angle else ""
        # textLength fits the viewer's font into the width that was measured by Pillow's.
        return (
            f'<text x="{x}" y="{baseline}" font-size="{size}" '
            f'text-anchor="{self.anchor}" textLength="{width}" lengthAdjust="spacingAndGlyphs" '
            f'fill="{self.color}" pointer-events="none"{turn}>{escape(shown(self.text))}</text>'
        )

    def paint(self, image: Image.Image, scale: float) -> None:
        size = self.size * scale
        width, height = math.ceil(self.width * scale) or 1, math.ceil(1.4 * size)
        mask = _mask(shown(self.text), width, height, self.angle)
        # From (x, y) to the center of the mask before the text is turned, and then after.
        across = {"start": 0.5, "middle": 0.0, "end": -0.5}[self.anchor] * width
        down = 0.05 * size
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        center_x = self.x * scale + across * cos + down * sin
        center_y = self.y * scale - across * sin + down * cos
        corner = round(center_x - mask.width / 2), round(center_y - mask.height / 2)
        image.paste(self.color, corner, mask)


Point = tuple[float, float]
"""A point (x, y)."""


@dataclass(frozen=True)
class Curve:
    """A cubic Bezier curve by its four points, with an arrow head beyond its end if `arrow` is set.

    The title appears on hovering.
    """

    points: tuple[Point, Point, Point, Point]
    color: str = INK
    width: float = 1.7
    dashed: bool = False
    arrow: bool = False
    title: str = ""

    def at(self, t: np.ndarray) -> np.ndarray:
        """Return points of the curve, (n, 2), at parameters t (n,) in [0, 1]."""
        weights = np.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], 1)
        return weights @ np.array(self.points)

    def head(self) -> list[Point]:
        """Return the corners of the arrow head: its tip, and the ends of its base."""
        # The curve ends in the direction from its third point to its last.
        (x0, y0), (x, y) = self.points[2:]
        length = math.hypot(x - x0, y - y0) or 1.0
        dx, dy = (x - x0) / length, (y - y0) / length
        return [
            (x + ARROW * dx, y + ARROW * dy),
            (x - 3.8 * dy, y + 3.8 * dx),
            (x + 3.8 * dy, y - 3.8 * dx),
        ]

    def svg(self) -> str:
        corners = [" ".join(map(_number, point)) for point in self.points]
        path = f'<path d="M{corners[0]}C{",".join(corners[1:])}" fill="none" stroke="{self.color}" '
        path += f'stroke-width="{_number(self.width)}"'
        path += f' stroke-dasharray="{DASH} {GAP}"/>' if self.dashed else "/>"
        if self.arrow:
            head = "L".join(" ".join(map(_number, point)) for point in self.head())
            path += f'<path d="M{head}Z" fill="{self.color}"/>'
        return f"<g><title>{escape(_clean(self.title))}</title>{path}</g>" if self.title else path

    def paint(self, image: Image.Image, scale: float) -> None:
        points = self.at(np.linspace(0, 1, 81))  # pieces of a few pixels: Pillow rounds each joint
        _paint_line(image, points, self.color, self.width, self.dashed, scale)
        if self.arrow:
            ImageDraw.Draw(image).polygon(
                [(x * scale, y * scale) for x, y in self.head()], self.color
            )


def _paint_line(
    image: Image.Image, points: np.ndarray, color: str, width: float, dashed: bool, scale: float
) -> None:
    """Paint a line through points (n, 2) on an image that is `scale` times as large."""
    draw, pieces = ImageDraw.Draw(image), [points]
    if dashed:
        # Pillow draws no dashes: the line is sampled four times a pixel, by its length from the
        # start, and cut into pieces.
        lengths = np.hypot(*np.diff(points, axis=0).T)
        along = np.concatenate([[0.0], np.cumsum(lengths)])
        dense = np.linspace(0, along[-1], max(2, round(4 * along[-1])))
        points = np.stack([np.interp(dense, along, points[:, i]) for i in (0, 1)], 1)
        starts = np.arange(0, along[-1], DASH + GAP)
        pieces = [points[(dense >= start) & (dense <= start + DASH)] for start in starts]
    thickness = max(1, round(width * scale))
    for piece in pieces:
        if len(piece) > 1:
            if dashed:  # dashes are short, and nearly straight
                piece = piece[[0, len(piece) // 2, -1]]
            corners = [(x, y) for x, y in (piece * scale).tolist()]
            draw.line(corners, color, thickness, "curve")


@dataclass(frozen=True)
class Picture:
    """An image of pixels (H, W, 3) uint8, shown as squares; (x, y) is its upper left corner."""

    x: float
    y: float
    width: float
    height: float
    pixels: np.ndarray

    def svg(self) -> str:
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, "PNG")
        x, y, width, height = map(_number, (self.x, self.y, self.width, self.height))
        return (
            f'<image x="{x}" y="{y}" width="{width}" height="{height}" image-rendering="pixelated" '
            f'href="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"/>'
        )

    def paint(self, image: Image.Image, scale: float) -> None:
        size = round(self.width * scale), round(self.height * scale)
        image.paste(
            Image.fromarray(self.pixels).resize(size, Image.Resampling.NEAREST),
            (round(self.x * scale), round(self.y * scale)),
        )


@dataclass(frozen=True)
class Drawing:
    """A figure on a white ground; the label says in words what it shows.

    >>> square = Box(10, 10, 20, 20, fill="#0072b2")
    >>> figure = Drawing(40, 40, (square, Text(20, 20, "a")), "a square")
    >>> figure.image(scale=2).shape
    (80, 80, 3)
    """

    width: int
    height: int
    primitives: tuple[Primitive, ...]
    label: str = ""

    def svg(self) -> str:
        """Return the figure as the text of an SVG file."""
        size = (
            f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        )
        body = "\n".join(item.svg() for item in self.primitives)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
            f'aria-label={quoteattr(_clean(self.label))} font-family="{FONTS}">\n'
            f'<rect width="100%" height="100%" fill="{PAPER}"/>\n{body}\n</svg>\n'
        )

    def _repr_svg_(self) -> str:
        """Return what a notebook shows of a cell that ends in the figure."""
        return self.svg()

    def image(self, scale: float = 1.0) -> np.ndarray:
        """Return the figure as pixels (H, W, 3) uint8, `scale` times its size."""
        size = round(self.width * scale), round(self.height * scale)
        image = Image.new("RGB", (size[0] * SHARPNESS, size[1] * SHARPNESS), PAPER)
        for item in self.primitives:
            item.paint(image, scale * SHARPNESS)
        return np.array(image.reduce(SHARPNESS))
