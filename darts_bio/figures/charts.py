"""Charts: panels of lines and marks over axes, in one style, as SVG, PNG or PDF.

A chart is data. matplotlib draws it, and is imported where that happens (0.4 s of CPU time, then
0.1 s a chart). Names are drawn as they are: no text is read as a formula. The same chart gives the
same bytes with the same version of matplotlib.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
from PIL import Image

from darts_bio.figures.drawing import FAINT, INK, MARGIN, PAPER, Point, shown, text_width
from darts_bio.figures.thinning import MOST_POINTS, extremes, thinned
from darts_bio.storage.whole_files import replacing, write_text

if importlib.util.find_spec("matplotlib") is None:  # said at the start, not after hours of a run
    raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 368.0, 236.0
"""Width and height of a panel with its title and the numbers along its axes, in pixels."""
LINE = 15.0
"""Height of a line of the legend, in pixels."""
PIXELS, POINTS = 96.0, 72.0
"""Pixels and points of an inch: a browser's pixel is 3/4 of a point."""
SHARPNESS = 2
"""PNG has so many pixels for each of a browser's, in x and in y."""
FEW = 12
"""Points of lines with as many or fewer of them are marked."""
FORMATS = ("svg", "png", "pdf")

STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": FAINT,
    "axes.formatter.use_mathtext": False,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": "medium",
    "axes.unicode_minus": False,
    # Texts are measured in the first, which comes with matplotlib, and is the widest.
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial", "sans-serif"],
    "font.size": 8.25,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "pdf.fonttype": 42,  # text stays text
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",
    "svg.hashsalt": "darts_bio",  # the same figure, the same bytes
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.color": FAINT,
    "ytick.labelcolor": INK,
}


@contextmanager
def style() -> Iterator[None]:
    """Have matplotlib draw in the style of all charts within the block."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # Viewers have glyphs that matplotlib's font lacks, as of names in Chinese.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


@dataclass(frozen=True)
class Series:
    """A line through points (x, y), marks at them, or both.

    Attributes:
        name: What the legend calls it; "" if it is not in the legend.
        points: The points. A value that is not finite interrupts the line. Of very many, some are
            left out, never the greatest or least of a stretch.
        color: Its color, "#rrggbb".
        dashed: Whether the line is dashed.
        width: The line's width in points; 0 draws marks alone.
        marker: matplotlib's name of the marks, such as "o"; "" marks no points, unless they are few.
        titles: What is said of each point when the pointer is over its mark, in SVG.
        band: Points (x, low, high) of a band around the line.
    """

    name: str
    points: Sequence[Point]
    color: str
    dashed: bool = False
    width: float = 1.5
    marker: str = ""
    titles: Sequence[str] = ()
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes.

    Attributes:
        title: What y is, with its unit.
        series: The lines.
        span: The ends of the y axis; by default they follow from the values.
        decades: Whether the y axis is logarithmic where the values are positive and the greatest is
            at least ten times the least; the title then says so.
        ticks: What is marked on the x axis; by default round numbers.
    """

    title: str
    series: Sequence[Series]
    span: tuple[float, float] | None = None
    decades: bool = False
    ticks: Sequence[float] = ()

    @property
    def logarithmic(self) -> bool:
        """Whether the y axis is logarithmic."""
        values = [y for line in self.series for _, y in line.points if math.isfinite(y)]
        return self.decades and bool(values) and 0 < 10 * min(values) <= max(values)


@dataclass(frozen=True)
class Chart:
    """Panels with a legend below them.

    Attributes:
        panels: The panels, row by row.
        along: What x is in all panels, with its unit.
        label: The chart in words, for those who cannot see it.
        note: What dashes, bands and marks mean; it stands above the legend.
        keys: Further entries of the legend, series without points.
        columns: The number of panels in a row.
        width: The width of a panel in pixels.

    Example:
        >>> line = Series("train", [(1, 2.3), (2, 0.2)], "#0072b2")
        >>> chart = Chart([Panel("loss, nats", [line], decades=True)], "epoch", "loss")
        >>> chart.svg()[:4], chart.file("png")[1:4], chart.panels[0].logarithmic
        ('<svg', b'PNG', True)
    """

    panels: Sequence[Panel]
    along: str
    label: str
    note: str = ""
    keys: Sequence[Series] = ()
    columns: int = 2
    width: float = WIDTH

    def svg(self) -> str:
        """Return the chart as the text of an SVG file, which may also be part of an HTML page."""
        text = self.file("svg").decode()
        head, _, body = text.partition("</metadata>")
        size = re.search(r'width="[^"]*" height="[^"]*" viewBox="[^"]*"', head)
        assert size is not None
        # A style element in an HTML page is for the whole page; here its only rule is inherited.
        body = re.sub(
            r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL
        )
        body = re.sub(
            r'<g id="titled-(\d+)">.*?</g>\s*</g>', self._with_titles, body, flags=re.DOTALL
        )
        # Names of groups would be those of all charts of a page; nothing refers to them.
        body = re.sub(r'<g id="[^"]*"', "<g", body)
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'{size[0]} role="img" aria-label={quoteattr(shown(self.label))} '
            f'stroke-linejoin="round" stroke-linecap="butt">{body}'
        )

    def _repr_svg_(self) -> str:
        """Return what a notebook shows of the chart."""
        return self.svg()

    def image(self) -> np.ndarray:
        """Return the chart as pixels (H, W, 3) uint8."""
        return np.array(Image.open(io.BytesIO(self.file("png"))).convert("RGB"))

    def file(self, form: str) -> bytes:
        """Return the content of a file in one of `FORMATS`."""
        # Neither a date nor a version: the same chart gives the same bytes.
        undated = {
            "svg": {"Date": None},
            "png": {"Software": None},
            "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
        }
        content = io.BytesIO()
        with style():
            figure = self._figure()
            figure.savefig(content, format=form, metadata=undated[form], dpi=SHARPNESS * PIXELS)
        return content.getvalue()

    def _figure(self) -> Figure:
        """Return the chart as a figure of matplotlib."""
        from matplotlib.figure import Figure

        columns = max(1, min(self.columns, len(self.panels)))
        rows = max(1, -(-len(self.panels) // columns))  # rounded up
        width = columns * self.width
        legend = self._legend(width)
        height = rows * HEIGHT + legend.pop("height")
        figure = Figure((width / PIXELS, height / PIXELS), layout="constrained")
        numbers = itertools.count()
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for panel, own in zip(self.panels, axes, strict=False):
            self._draw(panel, own, numbers)
        for unused in axes[len(self.panels) :]:
            unused.remove()
        if legend:
            figure.legend(loc="outside lower left", alignment="left", **legend)
        return figure

    def _draw(self, panel: Panel, axes: Axes, numbers: Iterator[int]) -> None:
        """Draw a panel; `numbers` counts the series of the chart that have titles."""
        from matplotlib import ticker

        values = panel.logarithmic
        axes.set_title(shown(panel.title) + (" (log scale)" if values else ""))
        axes.set_xlabel(shown(self.along))
        for line in panel.series:
            self._draw_line(line, axes, f"titled-{next(numbers)}" if line.titles else "")
        if panel.ticks:
            axes.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
        elif all(float(x).is_integer() for line in panel.series for x, _ in line.points if x == x):
            axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        if values:
            axes.set_yscale("log")
            low, high = axes.get_ylim()
            steps = (1.0, 2.0, 5.0) if high < 1e3 * low else (1.0,)
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=steps))
            axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        if panel.span is not None:
            axes.set_ylim(*panel.span)

    def _draw_line(self, line: Series, axes: Axes, group: str) -> None:
        """Draw a line, its marks and its band; `group` names its marks in SVG."""
        points = list(line.points) if line.titles else extremes(line.points)
        if line.band:
            x, low, high = zip(*thinned(line.band, MOST_POINTS), strict=True)
            axes.fill_between(x, low, high, color=line.color, alpha=0.18, linewidth=0)
        if not points:
            return
        (drawn,) = axes.plot(
            [x for x, _ in points],
            [y if math.isfinite(y) else math.nan for _, y in points],
            **_look(line, few=len(points) <= FEW),
        )
        if group:
            drawn.set_gid(group)

    def _legend(self, width: float) -> dict[str, Any]:
        """Return the arguments of the legend and, as `height`, how many pixels it takes."""
        from matplotlib.lines import Line2D

        named = {
            (line.name, line.color, line.dashed, line.marker): line
            for line in (*(line for panel in self.panels for line in panel.series), *self.keys)
            if line.name
        }
        note = textwrap.fill(shown(self.note, most=400), int(width / 6.8)) if self.note else ""
        if not named and not note:
            return {"height": 0.0}
        # A legend without entries would not be drawn, nor its note.
        entries = list(named.values()) or [Series("", (), PAPER, width=0)]
        names = [shown(line.name) for line in entries]
        # matplotlib's font is wider than the one that is measured here.
        widest = max(1.2 * text_width(name) for name in names) + 44
        columns = max(1, min(len(names), int((width - 2 * MARGIN) // widest)))
        lines = -(-len(names) // columns) + note.count("\n") + bool(note)
        return {
            "height": lines * LINE + MARGIN,
            "handles": [Line2D([], [], **_look(line)) for line in entries],
            "labels": names,
            "ncols": columns,
            "title": note,
        }

    def _with_titles(self, group: re.Match[str]) -> str:
        """Return the SVG of marks with the title of each."""
        titled = [line.titles for panel in self.panels for line in panel.series if line.titles]
        titles = iter(titled[int(group[1])])
        return re.sub(
            r"(<use[^>]*)/>",
            lambda mark: f"{mark[1]}><title>{escape(shown(next(titles)))}</title></use>",
            group[0],
        )


def write_chart(path: Path, chart: Chart, also: Sequence[str] = ()) -> None:
    """Write a chart as SVG to a path, and beside it in other `FORMATS`.

    Raises:
        InputError: If the disk refuses.

    >>> import tempfile
    >>> chart = Chart([Panel("loss", [Series("a", [(1, 2.0), (2, 1.0)], "#222222")])], "epoch", "loss")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_chart(Path(folder, "curves.svg"), chart, ("png",))
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['curves.png', 'curves.svg']
    """
    write_text(path, chart.svg())
    for form in also:
        with replacing(path.with_suffix(f".{form}")) as temporary:
            temporary.write_bytes(chart.file(form))


def _look(line: Series, few: bool = False) -> dict[str, Any]:
    """Return matplotlib's options of a line; `few` marks its points."""
    return {
        "color": line.color,
        "linestyle": ("--" if line.dashed else "-") if line.width else "none",
        "linewidth": line.width,
        "marker": line.marker or ("." if few and line.width > 1 else "none"),
        "markeredgewidth": 0,
    }
