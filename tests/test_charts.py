"""Charts: what they carry, read back from the SVG, and that nothing in a name is more than its text."""

from __future__ import annotations

import io
import math
import re
import statistics
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from darts_bio.figures.charts import FORMATS, Chart, Panel, Series
from darts_bio.figures.curves import draw_best, draw_curves, draw_runs, with_spread
from darts_bio.figures.thinning import MOST_POINTS, extremes
from darts_bio.reports.page import page

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = ["<script>alert(1)</script>", "$x^2$ & $y$", "_hidden", 'a"b\x1b[2J', "\\frac{", "日本"]


def texts(svg: str) -> list[str]:
    """The texts of a figure, in order."""
    return [element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def numbers_along(svg: str, color: str) -> list[list[tuple[float, float]]]:
    """The points (x, y) in points from the upper left corner of each line of a color."""
    lines = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if f"stroke: {color}" in path.get("style", "") and path.get("clip-path"):
            found = re.findall(r"([-\d.]+) ([-\d.]+)", path.get("d", ""))
            lines.append([(float(x), float(y)) for x, y in found])
    return lines


def line(name: str, values: list[float], color: str = "#0072b2", **more: object) -> Series:
    return Series(name, [(float(x), y) for x, y in enumerate(values, 1)], color, **more)  # type: ignore[arg-type]


def test_names_are_drawn_as_they_are() -> None:
    lines = [line(name, [1.0, 2.0], titles=[name, name], marker="o") for name in HOSTILE]
    chart = Chart([Panel(name, lines) for name in HOSTILE], HOSTILE[0], HOSTILE[1], HOSTILE[1])
    svg = chart.svg()
    assert "<script" not in svg
    assert "\x1b" not in svg
    expected = [name.replace("\x1b", "\ufffd") for name in HOSTILE]
    found = texts(svg)
    for name in expected:
        assert found.count(name) >= 2  # in the legend and above its panel
    assert ElementTree.fromstring(svg).get("aria-label") == HOSTILE[1]
    titles = [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}title")]
    assert titles == [name for _ in HOSTILE for name in expected for _ in range(2)]


def test_a_loss_over_decades_has_a_logarithmic_axis() -> None:
    """On it equal factors are equal lengths; a loss that does not fall tenfold has none."""
    chart = Chart([Panel("loss", [line("", [1.0, 0.1, 0.01])], decades=True)], "epoch", "")
    ((a, b, c),) = numbers_along(chart.svg(), "#0072b2")
    assert b[1] - a[1] == pytest.approx(c[1] - b[1], abs=1e-3)
    assert "loss (log scale)" in texts(chart.svg())
    assert {"0.01", "0.1", "1"} <= set(texts(chart.svg()))
    for values in ([1.0, 0.11], [1.0, 0.0], [math.nan], []):
        panel = Panel("loss", [line("", values)], decades=True)
        assert not panel.logarithmic
        assert "loss" in texts(Chart([panel], "epoch", "").svg())


def test_accuracies_are_in_per_cent_and_points_where_they_belong() -> None:
    epochs = [{"epoch": e, "train/accuracy": e / 10, "test/accuracy": 0.5} for e in range(1, 5)]
    chart = draw_curves([epochs])
    (panel,) = chart.panels
    assert panel.title == "accuracy, %"
    assert panel.series[0].points == [(1, 10), (2, 20), (3, 30), (4, 40)]
    svg = chart.svg()
    assert {"train", "test", "epoch", "accuracy, %"} <= set(texts(svg))
    (points,) = numbers_along(svg, panel.series[0].color)
    steps = np.diff(np.array(points), axis=0)
    assert steps == pytest.approx(np.tile(steps[0], (3, 1)), abs=1e-3)


def test_seeds_are_drawn_with_mean_and_spread() -> None:
    seeds = [[{"epoch": e, "test/loss": value + e} for e in (1, 2, 3)] for value in (1.0, 2.0, 4.5)]
    *each, mean = draw_runs({"a": seeds}).panels[0].series
    assert [drawn.points for drawn in each] == [
        [(e, value + e) for e in (1, 2, 3)] for value in (1.0, 2.0, 4.5)
    ]
    deviation = statistics.stdev([1.0, 2.0, 4.5])
    for (x, y), (at, low, high) in zip(mean.points, mean.band, strict=True):
        assert (y, at) == (pytest.approx(2.5 + x), x)
        assert (low, high) == (pytest.approx(y - deviation), pytest.approx(y + deviation))
    assert mean.name == "a"
    chart = draw_runs({"a": seeds, "b": seeds[:1]})
    assert "standard deviation" in " ".join(texts(chart.svg()))
    assert "standard deviation" not in " ".join(texts(draw_runs({"b": seeds[:1]}).svg()))
    assert with_spread("a", [], "#222222") == []


def test_a_line_of_a_million_points_stays_small_and_keeps_its_peaks(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=1_000_000)
    values[777_777] = 99.0
    points = list(enumerate(values.tolist()))
    kept = extremes(points)
    assert len(kept) <= MOST_POINTS
    assert {points[0], points[777_777], points[-1]} <= set(kept)
    assert min(y for _, y in kept) == values.min()
    assert kept == sorted(kept)
    holes = [(x, math.nan) for x in range(5000)]
    assert len(extremes(holes)) <= MOST_POINTS
    band = [(x, -1.0, 1.0) for x in range(100_000)]
    lines = [Series(f"{n}", points[:100_000], "#0072b2", band=band) for n in range(4)]
    (tmp_path / "curves.svg").write_text(Chart([Panel("loss", lines)] * 4, "epoch", "").svg())
    assert len(page(tmp_path, "![curves](curves.svg)")) < 1_000_000


def test_the_same_chart_gives_the_same_bytes_in_each_format() -> None:
    chart = Chart([Panel("loss", [line("a", [1.0, 2.0])])] * 2, "epoch", "a chart")
    for form in FORMATS:
        assert chart.file(form) == chart.file(form)
    assert chart.svg() == chart.svg()
    assert chart.file("pdf").startswith(b"%PDF")
    image = Image.open(io.BytesIO(chart.file("png")))
    assert chart.image().shape == (image.height, image.width, 3)


def test_a_part_of_a_page_says_nothing_of_the_rest_of_it() -> None:
    svg = Chart([Panel("loss", [line("a", [1.0, 2.0])])], "epoch", "").svg()
    assert "<style" not in svg
    assert "<?xml" not in svg
    assert "DOCTYPE" not in svg
    assert not re.search(r'<g id="', svg)
    linked = re.findall(r'(?:href="|src="|url\()(.)', svg)
    assert linked
    assert set(linked) == {"#"}  # to its own parts


@pytest.mark.parametrize("count", [0, 1, 3, 60])
def test_legends_and_panels_of_any_number_fit(count: int) -> None:
    """No text is outside, and no two texts lie over one another."""
    names = [f"a rather long name of the run with the number {n}" for n in range(count)]
    panels = [Panel(f"panel {n}", [line(name, [1, 2]) for name in names]) for n in range(count % 7)]
    svg = Chart(panels, "epoch", "", "what is drawn " * 20).svg()
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    for element in root.iter(f"{SVG}text"):
        assert 0 <= float(element.get("y", "0")) <= height
        assert 0 <= float(element.get("x", "0")) <= width
    legend = [e for e in root.iter(f"{SVG}text") if (e.text or "") in names]
    places = {(e.get("x"), e.get("y")) for e in legend}
    assert len(places) == (count if panels else 0)


def test_queries_are_marks_and_the_best_a_line() -> None:
    records = [
        {"epoch": q, "valid/accuracy": v, "best/accuracy": max(0.5, v)}
        for q, v in enumerate((0.5, 0.4, 0.75), 1)
    ]
    each, best = draw_best(records).panels[0].series
    assert (each.points, each.width) == ([(1, 50), (2, 40), (3, 75)], 0)
    assert best.points == [(1, 50), (2, 50), (3, 75)]
