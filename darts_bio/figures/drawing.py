"""Drawings: one list of primitives in two forms, so that figures need no plotting package.

SVG text is crisp in a run's folder and in documents; an RGB array is for TensorBoard. Both measure
text by the font that Pillow brings, so what fits in one fits in the other. The same input gives the
same bytes.
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
"""Of a dashed line."""

LONGEST_TEXT = 80
SHARPNESS = 3
"""Images are painted this many times larger, then reduced, since Pillow's lines have hard edges."""


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
"""The size at which text is measured and painted, to be scaled from there; without FreeType there
is one only."""


@functools.cache
def _font() -> Any:
    return ImageFont.load_default(EM) if SCALABLE else ImageFont.load_default()


def text_width(text: str, size: float = SMALL) -> float:
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
    """One line of text: (x, y) is the middle of its height, and across what the anchor says.

    It lets the pointer through, to the title of what lies below.
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
        return text_width(self.text, self.size)

    def svg(self) -> str:
        x, y = _number(self.x), _number(self.y)
        turn = f' transform="rotate({_number(-self.angle)} {x} {y})"' if self.angle else ""
        return (
            f'<text x="{x}" y="{_number(self.y + 0.35 * self.size)}" font-size="{_number(self.size)}" '
            f'text-anchor="{self.anchor}" textLength="{_number(self.width)}" lengthAdjust="spacingAndGlyphs" '
            f'fill="{self.color}" pointer-events="none"{turn}>{escape(_shown(self.text))}</text>'
        )

    def paint(self, image: Image.Image, scale: float) -> None:
        size = self.size * scale
        mask = Image.new("L", (max(1, math.ceil(text_width(self.text, EM))), math.ceil(1.4 * EM)))
        place, anchor = ((0, EM), "ls") if SCALABLE else ((0, 0), None)
        ImageDraw.Draw(mask).text(place, _shown(self.text), 255, _font(), anchor)
        mask = mask.resize(
            (math.ceil(self.width * scale) or 1, math.ceil(1.4 * size)), Image.Resampling.LANCZOS
        )
        across = {"start": 0.5, "middle": 0.0, "end": -0.5}[self.anchor] * mask.width
        down = 0.05 * size
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        centre = (
            self.x * scale + across * cos + down * sin,
            self.y * scale - across * sin + down * cos,
        )
        mask = mask.rotate(self.angle, Image.Resampling.BICUBIC, expand=True)
        corner = round(centre[0] - mask.width / 2), round(centre[1] - mask.height / 2)
        image.paste(self.color, corner, mask)


Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A cubic Bezier curve by its four points, with an arrow head beyond its end if `arrow`."""

    points: tuple[Point, Point, Point, Point]
    color: str = INK
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
        return [
            (x + ARROW * dx, y + ARROW * dy),
            (x - 3.8 * dy, y + 3.8 * dx),
            (x + 3.8 * dy, y - 3.8 * dx),
        ]

    def svg(self) -> str:
        corners = [" ".join(map(_number, point)) for point in self.points]
        path = f'<path d="M{corners[0]}C{",".join(corners[1:])}" fill="none" stroke="{self.color}" '
        path += f'stroke-width="{_number(self.width)}"' + (
            f' stroke-dasharray="{DASH} {GAP}"/>' if self.dashed else "/>"
        )
        if self.arrow:
            head = "L".join(" ".join(map(_number, point)) for point in self.head())
            path += f'<path d="M{head}Z" fill="{self.color}"/>'
        return f"<g><title>{escape(_clean(self.title))}</title>{path}</g>" if self.title else path

    def paint(self, image: Image.Image, scale: float) -> None:
        _paint_line(
            image, self.at(np.linspace(0, 1, 1601)), self.color, self.width, self.dashed, scale
        )
        if self.arrow:
            ImageDraw.Draw(image).polygon(
                [(x * scale, y * scale) for x, y in self.head()], self.color
            )


def _paint_line(
    image: Image.Image, points: np.ndarray, color: str, width: float, dashed: bool, scale: float
) -> None:
    """points: (n, 2)."""
    draw, pieces = ImageDraw.Draw(image), [points]
    if dashed:
        along = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
        dense = np.linspace(0, along[-1], max(2, round(4 * along[-1])))
        points = np.stack([np.interp(dense, along, points[:, i]) for i in (0, 1)], 1)
        pieces = [
            points[(dense >= s) & (dense <= s + DASH)] for s in np.arange(0, along[-1], DASH + GAP)
        ]
    for piece in pieces:
        if len(piece) > 1:
            draw.line(
                [(x, y) for x, y in (piece * scale).tolist()],
                color,
                max(1, round(width * scale)),
                "curve",
            )


@dataclass(frozen=True)
class Line:
    """A line through points."""

    points: tuple[Point, ...]
    color: str = INK
    width: float = 1.2
    dashed: bool = False

    def svg(self) -> str:
        points = " ".join(f"{_number(x)},{_number(y)}" for x, y in self.points)
        dashes = f' stroke-dasharray="{DASH} {GAP}"' if self.dashed else ""
        return (
            f'<polyline points="{points}" fill="none" stroke="{self.color}" stroke-width="{_number(self.width)}"'
            f"{dashes}/>"
        )

    def paint(self, image: Image.Image, scale: float) -> None:
        _paint_line(image, np.array(self.points), self.color, self.width, self.dashed, scale)


@dataclass(frozen=True)
class Picture:
    """An image, (x, y) its upper left corner; pixels (H, W, 3) uint8, each shown as a square."""

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
    """A figure on white ground, in pixels. The label says in words what it shows."""

    width: int
    height: int
    primitives: tuple[Primitive, ...]
    label: str = ""

    def svg(self) -> str:
        size = (
            f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        )
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
