"""Figures: what they carry, that nothing overlaps, that both forms agree and the same input gives
the same bytes.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from darts_bio.figures import drawing
from darts_bio.figures.cells import draw_cell, draw_genotype
from darts_bio.figures.colors import NO_RULE, RULE_COLORS
from darts_bio.figures.drawing import Box, Curve, Drawing, Text
from darts_bio.figures.heat_map import draw_edge_weights
from darts_bio.spaces import Candidate, Cell, Edge, Genotype, load_genotype, shipped_names
from darts_bio.spaces.darts import DartsSpace, Layout

SVG = "{http://www.w3.org/2000/svg}"
NB201 = Cell(
    tuple(
        Edge(n, i, Candidate(f"op_{n}{i}", "bp" if i else None))
        for n in range(1, 4)
        for i in range(n)
    ),
    (3,),
)
COMPLETE = Cell(
    tuple(Edge(n, i, Candidate("sep_conv_3x3", "bp")) for n in range(2, 8) for i in range(n)),
    tuple(range(2, 8)),
)


def pills(figure: Drawing) -> list[Box]:
    return [item for item in figure.primitives if isinstance(item, Box) and item.title]


def nodes(figure: Drawing) -> list[Box]:
    return [item for item in figure.primitives if isinstance(item, Box) and not item.title]


def overlap(a: Box, b: Box) -> bool:
    across = a.x < b.x + b.width and b.x < a.x + a.width
    return across and a.y < b.y + b.height and b.y < a.y + a.height


def check_layout(figure: Drawing, edges: int) -> None:
    labels = pills(figure)
    assert len(labels) == edges
    for i, label in enumerate(labels):
        assert 0 <= label.x <= label.x + label.width <= figure.width
        assert 0 <= label.y <= label.y + label.height <= figure.height
        assert not any(overlap(label, other) for other in labels[:i] + nodes(figure))
    texts = [item for item in figure.primitives if isinstance(item, Text)]
    assert all(item.x <= figure.width and item.y <= figure.height for item in texts)


@st.composite
def random_cells(draw: st.DrawFn) -> Cell:
    """Cells of 1 to 6 nodes, with two incoming edges each (the same input twice included) or with
    all.
    """
    last = 1 + draw(st.integers(1, 6))
    complete = last <= 5 and draw(st.booleans())
    edges = []
    for node in range(2, last + 1):
        sources = (
            range(node)
            if complete
            else draw(st.lists(st.integers(0, node - 1), min_size=2, max_size=2))
        )
        for source in sources:
            op = draw(
                st.sampled_from(["skip_connect", "sep_conv_3x3", "an_operation_with_a_long_name"])
            )
            edges.append(
                Edge(node, source, Candidate(op, draw(st.sampled_from([None, "bp", "mine(a=1)"]))))
            )
    concat = draw(st.sets(st.integers(2, last), min_size=1))
    return Cell(tuple(edges), tuple(sorted(concat)))


@pytest.mark.parametrize(
    "cell",
    [
        COMPLETE,
        NB201,
        *(cell for name in shipped_names() for cell in load_genotype(name).cells.values()),
    ],
)
def test_nothing_overlaps_and_no_line_runs_behind_a_foreign_node(cell: Cell) -> None:
    figure = draw_cell(cell, "cell")
    check_layout(figure, len(cell.edges))
    for curve in (item for item in figure.primitives if isinstance(item, Curve)):
        points = curve.at(np.linspace(0, 1, 300))
        for box in nodes(figure):
            inside = (points > (box.x + 1, box.y)) & (
                points < (box.x + box.width - 1, box.y + box.height)
            )
            assert not inside.all(1).any()


@settings(max_examples=25)
@given(random_cells())
def test_labels_of_random_cells_overlap_nothing(cell: Cell) -> None:
    check_layout(draw_cell(cell), len(cell.edges))


@pytest.mark.parametrize(
    "cell", [NB201, Cell((), ()), Cell((Edge(2, 0, Candidate("op", "bp")),) * 9, (2,))]
)
def test_cells_of_other_spaces(cell: Cell) -> None:
    figure = draw_cell(cell)
    check_layout(figure, len(cell.edges))
    names = [item.text for item in figure.primitives if isinstance(item, Text)]
    assert ("k-2" in names) == (cell is not NB201)
    assert ("1" in names) == (cell is NB201)


@pytest.mark.parametrize("name", shipped_names())
def test_svg_carries_each_edge_once_in_its_rules_color(name: str) -> None:
    genotype = load_genotype(name)
    root = ET.fromstring(draw_genotype(genotype).svg())
    assert root.get("role") == "img"
    assert root.get("aria-label")
    expected: Counter[tuple[str, str, bool]] = Counter()
    for cell in genotype.cells.values():
        for edge in cell.edges:
            op, rule = edge.candidate.op, edge.candidate.rule
            title = (
                f"{op}, {edge.input} -> {edge.node}"
                if rule is None
                else f"{op} : {rule}, {edge.input} -> {edge.node}"
            )
            expected[title, NO_RULE if rule is None else RULE_COLORS[rule], rule is None] += 1
    found: Counter[tuple[str, str, bool]] = Counter()
    for group in root.iter(f"{SVG}g"):
        line, head = group.findall(f"{SVG}path")
        assert line.get("stroke") == head.get("fill")
        found[
            str(group.findtext(f"{SVG}title")),
            str(line.get("stroke")),
            "stroke-dasharray" in line.attrib,
        ] += 1
    assert found == expected
    texts = Counter(text.text for text in root.iter(f"{SVG}text"))
    operations = Counter(
        edge.candidate.op for cell in genotype.cells.values() for edge in cell.edges
    )
    assert {op: texts[op] for op in operations} == operations


def test_hostile_labels_stay_text() -> None:
    op, rule = 'a<b>&"\0]]>\n\ud800\x1b', "mine(a='</svg><script>')"
    cell = Cell((Edge(2, 0, Candidate(op, rule)), Edge(2, 1, Candidate("x" * 10_000, None))), (2,))
    figure = draw_genotype(Genotype("darts", {"<i>": cell}), title="<b>&")
    root = ET.fromstring(figure.svg().encode())
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {
        "svg",
        "rect",
        "g",
        "title",
        "path",
        "text",
    }
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert {"<b>&", "<i>", rule, 'a<b>&"�]]> ��'} <= set(texts)
    check_layout(figure, 2)
    figure.image()
    ET.fromstring(
        draw_edge_weights("<&\0", ((Candidate(op, rule),),), [(2, 0)], [[1.0]]).svg().encode()
    )


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_both_forms_have_the_same_measures(scale: float) -> None:
    figure = draw_genotype(load_genotype("bionas_darts"), title="BioNAS")
    root, image = ET.fromstring(figure.svg()), figure.image(scale)
    assert image.dtype == np.uint8
    assert image.shape == (scale * figure.height, scale * figure.width, 3)
    assert root.get("viewBox") == f"0 0 {figure.width} {figure.height}"
    assert (image[0] == 255).all()
    for label in pills(figure):
        x, y = round((label.x + 4) * scale), round((label.y + label.height / 2) * scale)
        assert image[y, x].tolist() == [255, 255, 255]  # ground of the label, left of its text
        within = image[y - 3 : y + 4, x : round((label.x + label.width - 4) * scale)]
        assert within.min() < 120


@pytest.mark.parametrize("scalable", [True, False])
def test_text_is_painted_as_wide_as_it_is_measured(
    scalable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not scalable:
        bitmap = getattr(ImageFont, "load_default_imagefont", None)
        if bitmap is None:
            pytest.skip("this Pillow hides its bitmap font")
        monkeypatch.setattr(drawing, "SCALABLE", False)
        monkeypatch.setattr(drawing, "EM", 11)
        monkeypatch.setattr(drawing, "_font", bitmap)
    for anchor, share in (("start", 0.0), ("middle", 0.5), ("end", 1.0)):
        text = Text(200, 50, "sep_conv_3x3", 22, anchor)  # type: ignore[arg-type]
        image = Image.new("RGB", (800, 200), "white")
        text.paint(image, 2)
        columns = np.flatnonzero((np.asarray(image) < 128).any((0, 2))) / 2
        left = 200 - share * text.width
        assert columns[0] == pytest.approx(left, abs=3)
        assert columns[-1] == pytest.approx(left + text.width, abs=5)


def test_the_same_input_gives_the_same_bytes() -> None:
    genotype = load_genotype("bionas_darts")
    one, two = draw_genotype(genotype), draw_genotype(genotype)
    assert one == two
    assert one.svg() == two.svg()
    assert one.image().tobytes() == two.image().tobytes()


@pytest.mark.parametrize("cell_type", ["normal", "reduce"])
@pytest.mark.parametrize("layout", ["clean", "paper"])
def test_heat_map_puts_each_value_in_its_candidates_column(layout: Layout, cell_type: str) -> None:
    space = DartsSpace(layout)
    table = space.table(["bp", "usf", "frsf"])
    rows, mask = table.rows[cell_type], table.mask(cell_type)
    values = torch.randn(table.shape(cell_type)).masked_fill(~mask, 1e9).requires_grad_()
    figure = draw_edge_weights("edge weights", rows, space.edges, values)
    texts = [item for item in figure.primitives if isinstance(item, Text)]
    xs = {item.text: item.x for item in texts if item.angle}
    ys = {item.text: item.y for item in texts if "<-" in item.text}
    assert sorted(xs) == sorted({str(candidate) for row in rows for candidate in row if candidate})
    tiles = {(round(tile.x + 10, 3), round(tile.y + 10, 3)): tile for tile in pills(figure)}
    assert len(tiles) == mask.sum()
    dots = [box for box in nodes(figure) if box.radius]
    for (node, source), row, line in zip(space.edges, rows, values.tolist(), strict=True):
        y = ys[f"{node} <- {source}"]
        present = {str(c): v for c, v in zip(row, line, strict=True) if c is not None}
        for name, x in xs.items():
            tile = tiles.get((round(x, 3), round(y, 3)))
            assert (tile is None) == (name not in present)
            if tile is not None:
                assert tile.title == f"{node} <- {source}, {name}: {present[name]:.4g}"
        (dot,) = [dot for dot in dots if abs(dot.y + dot.height / 2 - y) < 2]
        assert dot.x + dot.width / 2 == pytest.approx(
            xs[max(present, key=present.__getitem__)], abs=1
        )
    shown = [name.split(":")[0] for name in sorted(xs, key=xs.__getitem__)]
    appearing = list(dict.fromkeys(candidate.op for row in rows for candidate in row if candidate))
    assert [op for i, op in enumerate(shown) if i == 0 or op != shown[i - 1]] == appearing


def test_heat_map_shades_by_value_and_frames_what_is_not_finite() -> None:
    row = tuple(Candidate(op) for op in ("none", "skip_connect", "max_pool_3x3", "avg_pool_3x3"))
    figure = draw_edge_weights("", (row,), [(2, 0)], [[0.0, 1.0, math.nan, 0.5]])
    fills = [(box.fill, box.stroke) for box in pills(figure)]
    assert fills[:2] == [("#440154", "none"), ("#fde725", "none")]
    assert fills[2][0] == "#ffffff"
    assert fills[2][1] != "none"
    texts = {item.text for item in figure.primitives if isinstance(item, Text)}
    assert {"0", "1"} <= texts
    for values in ([[0.25] * 4], [[math.nan] * 4]):
        assert draw_edge_weights("flat", (row,), [(2, 0)], values).image().ndim == 3


def test_heat_map_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        draw_edge_weights("", ((Candidate("none"), None),), [(2, 0)], [[1.0]])
