"""Genotype files and DARTS-style text: what they hold, what round-trips, and what is refused naming
the field.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darts_bio.errors import InputError
from darts_bio.rules import RULES
from darts_bio.spaces import (
    OPERATIONS,
    Candidate,
    Cell,
    Edge,
    Genotype,
    from_darts_text,
    from_json,
    load_genotype,
    shipped_names,
)
from darts_bio.spaces.darts import DartsSpace

Json = Any

PUBLISHED = {
    "darts_v1": (
        "sep3<-1, sep3<-0 | skip<-0, sep3<-1 | skip<-0, sep3<-1 | sep3<-0, skip<-2",
        "max<-0, max<-1 | skip<-2, max<-0 | max<-0, skip<-2 | skip<-2, avg<-0",
    ),
    "darts_v2": (
        "sep3<-0, sep3<-1 | sep3<-0, sep3<-1 | sep3<-1, skip<-0 | skip<-0, dil3<-2",
        "max<-0, max<-1 | skip<-2, max<-1 | max<-0, skip<-2 | skip<-2, max<-1",
    ),
    "pc_darts": (
        "sep3<-1, skip<-0 | sep3<-0, dil3<-1 | sep5<-0, sep3<-1 | avg<-0, dil3<-1",
        "sep5<-1, max<-0 | sep5<-1, sep5<-2 | sep3<-0, sep3<-3 | sep3<-1, sep3<-2",
    ),
    "p_darts": (
        "skip<-0, dil3<-1 | skip<-0, sep3<-1 | sep3<-1, sep3<-3 | sep3<-0, dil5<-4",
        "avg<-0, sep5<-1 | sep3<-0, dil5<-2 | max<-0, dil3<-1 | dil3<-1, dil5<-3",
    ),
    "bionas_darts": (
        "skip:frsf<-0, skip:frsf<-1 | sep3:frsf<-1, sep3:usf<-2 | sep3:usf<-0, skip:frsf<-1 | "
        "sep3:frsf<-1, max<-0",
        "max<-0, skip:usf<-1 | max<-0, max<-1 | max<-0, max<-1 | max<-0, dil5:usf<-3",
    ),
}
"""(normal, reduce) as published: nodes 2 to 5 separated by |, operation[:rule]<-input; the rule is
bp unless given."""

FULL_NAMES = {
    "sep3": "sep_conv_3x3",
    "sep5": "sep_conv_5x5",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
    "skip": "skip_connect",
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
}

SUFFIXES = {"bp": "", "usf": "_u", "brsf": "_br", "frsf": "_fr", "fa": "_fa"}

every_shipped_genotype = pytest.mark.parametrize("name", shipped_names())
every_published_genotype = pytest.mark.parametrize("name", PUBLISHED)


def carries_rule(op: str, cell_type: str, source: int) -> bool:
    return "conv" in op or (op == "skip_connect" and cell_type == "reduce" and source < 2)


def entries(name: str, cell_type: str) -> list[tuple[int, int, str, str]]:
    """(node, input, operation, rule) of a published cell."""
    found = []
    for node, pair in enumerate(PUBLISHED[name][cell_type == "reduce"].split("|"), start=2):
        for entry in pair.split(","):
            candidate, source = entry.strip().split("<-")
            op, _, rule = candidate.partition(":")
            found.append((node, int(source), FULL_NAMES[op], rule or "bp"))
    return found


def darts_text(name: str, concat: str = "[2, 3, 4, 5]") -> str:
    """A published genotype in the form in which users paste it."""
    cells = {
        t: [(op + SUFFIXES[rule], j) for _, j, op, rule in entries(name, t)]
        for t in ("normal", "reduce")
    }
    return (
        f"Genotype(normal={cells['normal']}, normal_concat={concat}, "
        f"reduce={cells['reduce']}, reduce_concat={concat})"
    )


@st.composite
def genotypes(draw: st.DrawFn) -> Genotype:
    """Valid genotypes of the DARTS space, of one to five nodes, with any provenance."""
    cells = {}
    for cell_type in ("normal", "reduce"):
        last = draw(st.integers(2, 6))
        edges = []
        for node in range(2, last + 1):
            for _ in range(2):
                source = draw(st.integers(0, node - 1))
                op = draw(st.sampled_from(OPERATIONS.names()))
                weighted = OPERATIONS.get(op).carries_rule(
                    2 if cell_type == "reduce" and source < 2 else 1
                )
                rule = draw(st.sampled_from(RULES.names())) if weighted else None
                edges.append(Edge(node, source, Candidate(op, rule)))
        nodes = st.lists(st.integers(2, last), min_size=1, unique=True)
        cells[cell_type] = Cell(tuple(draw(st.permutations(edges))), tuple(draw(nodes)))
    names = st.text(max_size=5)
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
        max_leaves=4,
    )
    provenance = draw(st.dictionaries(names, values, max_size=3))
    return Genotype("darts", cells, draw(st.sampled_from(RULES.names())), provenance)


def valid() -> Json:
    """The decoded JSON of a valid file, fresh for a test to spoil."""
    return json.loads(load_genotype("bionas_darts").to_json())


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Json], Path]:
    """Writes data, or a text as it is, to a file."""

    def write(data: Json) -> Path:
        path = tmp_path / "g.json"
        path.write_text(
            data if isinstance(data, str) else json.dumps(data),
            encoding="utf-8",
            errors="surrogatepass",
        )
        return path

    return write


class TestShipped:
    def test_the_published_genotypes_are_shipped(self) -> None:
        assert set(PUBLISHED) <= set(shipped_names())

    @every_published_genotype
    @pytest.mark.parametrize("cell_type", ["normal", "reduce"])
    def test_shipped_files_hold_the_published_facts(self, name: str, cell_type: str) -> None:
        genotype = load_genotype(name)
        assert (genotype.space, genotype.backbone_rule, set(genotype.cells)) == (
            "darts",
            "bp",
            {"normal", "reduce"},
        )
        cell = genotype.cells[cell_type]
        assert cell.concat == (2, 3, 4, 5)
        expected = [
            (node, source, op, rule if carries_rule(op, cell_type, source) else None)
            for node, source, op, rule in entries(name, cell_type)
        ]
        found = [(e.node, e.input, e.candidate.op, e.candidate.rule) for e in cell.edges]
        assert sorted(found, key=repr) == sorted(expected, key=repr)

    @every_published_genotype
    def test_they_equal_their_pasted_text(self, name: str) -> None:
        """Order of a node's edges aside, which means nothing."""
        shipped, pasted = load_genotype(name), load_genotype(darts_text(name))
        for cell_type in ("normal", "reduce"):
            assert set(pasted.cells[cell_type].edges) == set(shipped.cells[cell_type].edges)
            assert pasted.cells[cell_type].concat == shipped.cells[cell_type].concat

    @every_shipped_genotype
    def test_they_say_where_they_come_from(self, name: str) -> None:
        published, searched = {"name", "source"}, {"command", "seed", "date", "versions"}
        said = set(load_genotype(name).provenance)
        assert (published if name in PUBLISHED or "source" in said else searched) <= said

    @every_shipped_genotype
    def test_round_trip(self, name: str) -> None:
        genotype = load_genotype(name)
        again = from_json(genotype.to_json(), name)
        assert (again, again.provenance) == (genotype, genotype.provenance)
        assert again.to_json() == genotype.to_json()


class TestRoundTrip:
    @given(genotypes())
    def test_random_genotypes(self, genotype: Genotype) -> None:
        DartsSpace().validate(genotype, "random")
        again = from_json(genotype.to_json(), "random")
        assert again == genotype
        assert again.provenance == genotype.provenance
        assert DartsSpace().normalize(genotype) == genotype

    @given(genotypes())
    def test_the_file_has_the_documented_fields(self, genotype: Genotype) -> None:
        data = json.loads(genotype.to_json())
        assert list(data) == ["format", "space", "backbone_rule", "cells", "provenance"]
        assert (data["format"], data["space"], data["backbone_rule"]) == (
            1,
            "darts",
            genotype.backbone_rule,
        )
        for name, cell in genotype.cells.items():
            assert data["cells"][name]["concat"] == list(cell.concat)
            found = [
                (e["node"], e["input"], e["op"], e["rule"]) for e in data["cells"][name]["edges"]
            ]
            assert found == [
                (e.node, e.input, e.candidate.op, e.candidate.rule) for e in cell.edges
            ]
            assert all(
                list(edge) == ["node", "input", "op", "rule"]
                for edge in data["cells"][name]["edges"]
            )

    def test_provenance_is_kept_but_takes_no_part_in_comparisons(self) -> None:
        genotype = load_genotype("darts_v2")
        marked = genotype.with_provenance(seed=3, command=["search", "--epochs", "1"])
        assert marked == genotype
        assert from_json(marked.to_json(), "x").provenance == {
            "seed": 3,
            "command": ["search", "--epochs", "1"],
        }

    def test_provenance_may_be_absent(self) -> None:
        data = valid()
        del data["provenance"]
        assert from_json(json.dumps(data), "x") == load_genotype("bionas_darts")

    def test_genotypes_are_immutable(self) -> None:
        genotype = load_genotype("darts_v2")
        edge = genotype.cells["normal"].edges[0]
        for owner, name in (
            (genotype, "space"),
            (genotype.cells["normal"], "concat"),
            (edge, "node"),
        ):
            with pytest.raises(AttributeError):
                setattr(owner, name, 0)


class TestLoad:
    def test_by_file_and_by_run_folder(self, write: Callable[[Json], Path]) -> None:
        path = write(load_genotype("p_darts").to_json())
        assert load_genotype(path) == load_genotype(str(path)) == load_genotype("p_darts")
        path.rename(path.parent / "genotype.json")
        assert load_genotype(path.parent) == load_genotype("p_darts")

    def test_a_run_folder_without_genotype(self, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"no genotype\.json in this folder; it is no run folder"
        ):
            load_genotype(tmp_path)
        (tmp_path / "config.yaml").write_text("epochs: 1\n")
        with pytest.raises(InputError, match=r"in this folder; has its search ended an epoch\?"):
            load_genotype(tmp_path)

    def test_a_typo_in_a_shipped_name(self) -> None:
        with pytest.raises(
            InputError, match=r"unknown genotype 'darts_v22': did you mean 'darts_v2'"
        ):
            load_genotype("darts_v22")

    @pytest.mark.parametrize(
        "source", ["", " ", "x" * 5000, "a\x00b", "a/b/c.json", "normal=[('skip_connect', 0)]" * 20]
    )
    def test_sources_that_are_nothing(self, source: str) -> None:
        with pytest.raises(InputError):
            load_genotype(source)

    @pytest.mark.parametrize(
        "content", [b"\xff\xfe\x00", b"\x80abc", b"", b"\x89PNG\r\n", b"\xef\xbb\xbf{}"]
    )
    def test_files_that_are_no_text(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "g.json"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"g\.json"):
            load_genotype(path)

    def test_a_pickle_is_not_executed(self, tmp_path: Path) -> None:
        """A file is only ever read as JSON."""
        path, marker = tmp_path / "g.json", tmp_path / "executed"
        path.write_bytes(
            b"cpathlib\nPath.touch\n(cpathlib\nPath\n(V" + str(marker).encode() + b"\ntRtR."
        )
        with pytest.raises(InputError, match="not a JSON file"):
            load_genotype(path)
        assert not marker.exists()


def spoil(
    *keys: str | int | slice, value: Json = None, delete: bool = False
) -> Callable[[Json], None]:
    """A change of one place of a decoded file."""

    def change(data: Json) -> None:
        for key in keys[:-1]:
            data = data[key]
        if delete:
            del data[keys[-1]]
        else:
            data[keys[-1]] = value

    return change


NORMAL, REDUCE = ("cells", "normal"), ("cells", "reduce")
POOL, CONV, REDUCED_SKIP, SKIP = (
    (*NORMAL, "edges", 7),
    (*NORMAL, "edges", 2),
    (*REDUCE, "edges", 1),
    (*NORMAL, "edges", 0),
)

BAD_FILES = {
    "wrong format number": (spoil("format", value=2), "g.json.format: expected 1, found 2"),
    "format as text": (spoil("format", value="1"), "g.json.format: expected an integer, found '1'"),
    "format as float": (
        spoil("format", value=1.0),
        "g.json.format: expected an integer, found 1.0",
    ),
    "format as bool": (
        spoil("format", value=True),
        "g.json.format: expected an integer, found True",
    ),
    "format missing": (spoil("format", delete=True), "g.json: the field 'format' is missing"),
    "space missing": (spoil("space", delete=True), "g.json: the field 'space' is missing"),
    "unknown space": (
        spoil("space", value="dart"),
        "g.json.space: unknown space 'dart': did you mean 'darts'",
    ),
    "space as list": (
        spoil("space", value=["darts"]),
        "g.json.space: expected text, found ['darts']",
    ),
    "backbone missing": (
        spoil("backbone_rule", delete=True),
        "g.json: the field 'backbone_rule' is missing",
    ),
    "backbone null": (
        spoil("backbone_rule", value=None),
        "g.json.backbone_rule: expected text, found None",
    ),
    "backbone unknown": (
        spoil("backbone_rule", value="bpp"),
        "g.json.backbone_rule: unknown learning rule 'bpp': did you mean 'bp'",
    ),
    "unknown field": (
        spoil("cell", value={}),
        "g.json: unknown field 'cell': did you mean 'cells'",
    ),
    "provenance as list": (
        spoil("provenance", value=[]),
        "g.json.provenance: expected an object, found []",
    ),
    "provenance null": (
        spoil("provenance", value=None),
        "g.json.provenance: expected an object, found None",
    ),
    "cells missing": (spoil("cells", delete=True), "g.json: the field 'cells' is missing"),
    "cells as list": (spoil("cells", value=[]), "g.json.cells: expected an object, found []"),
    "cell missing": (spoil(*REDUCE, delete=True), "g.json.cells.reduce: missing"),
    "unknown cell": (
        spoil("cells", "reduction", value={"edges": [], "concat": [2]}),
        "g.json.cells: unknown cell type 'reduction': did you mean 'reduce'",
    ),
    "cell as text": (
        spoil(*NORMAL, value="x"),
        "g.json.cells.normal: expected an object with edges, concat, found 'x'",
    ),
    "edges missing": (
        spoil(*NORMAL, "edges", delete=True),
        "g.json.cells.normal: the field 'edges' is missing",
    ),
    "edges as object": (
        spoil(*NORMAL, "edges", value={}),
        "g.json.cells.normal.edges: expected a list, found {}",
    ),
    "no edges": (
        spoil(*NORMAL, "edges", value=[]),
        "g.json.cells.normal.edges: expected 2 edges into node 2, found 0",
    ),
    "unknown field of a cell": (
        spoil(*NORMAL, "edge", value=1),
        "g.json.cells.normal: unknown field 'edge'",
    ),
    "edge as list": (
        spoil(*CONV, value=[3, 1]),
        "g.json.cells.normal.edges[2]: expected an object with node",
    ),
    "edge missing": (
        spoil(*CONV, delete=True),
        "g.json.cells.normal.edges: expected 2 edges into node 3, found 1",
    ),
    "node without edges": (
        spoil(*CONV[:-1], slice(2, 4), delete=True),
        "g.json.cells.normal.edges: expected 2 edges into node 3, found 0",
    ),
    "node missing": (
        spoil(*CONV, "node", delete=True),
        "g.json.cells.normal.edges[2]: the field 'node' is missing",
    ),
    "node as text": (
        spoil(*CONV, "node", value="3"),
        "g.json.cells.normal.edges[2].node: expected an integer, found '3'",
    ),
    "node as bool": (
        spoil(*CONV, "node", value=True),
        "g.json.cells.normal.edges[2].node: expected an integer, found True",
    ),
    "node as float": (
        spoil(*CONV, "node", value=3.0),
        "g.json.cells.normal.edges[2].node: expected an integer, found 3.0",
    ),
    "huge node": (
        spoil(*CONV, "node", value=10**18),
        "g.json.cells.normal.edges: expected 2 edges into node 3, found 1",
    ),
    "an input as node": (
        spoil(
            *NORMAL,
            "edges",
            slice(8, 8),
            value=[{"node": 1, "input": 0, "op": "max_pool_3x3", "rule": None}],
        ),
        "g.json.cells.normal.edges[8].node: expected 2 or more (0 and 1 are inputs), found 1",
    ),
    "input missing": (
        spoil(*CONV, "input", delete=True),
        "g.json.cells.normal.edges[2]: the field 'input' is missing",
    ),
    "input null": (
        spoil(*CONV, "input", value=None),
        "g.json.cells.normal.edges[2].input: expected an integer, found None",
    ),
    "input as bool": (
        spoil(*CONV, "input", value=False),
        "g.json.cells.normal.edges[2].input: expected an integer, found False",
    ),
    "input is the node": (
        spoil(*CONV, "input", value=3),
        "g.json.cells.normal.edges[2].input: expected a node before 3, found 3",
    ),
    "input after the node": (
        spoil(*CONV, "input", value=5),
        "g.json.cells.normal.edges[2].input: expected a node before 3, found 5",
    ),
    "negative input": (
        spoil(*CONV, "input", value=-1),
        "g.json.cells.normal.edges[2].input: expected a node before 3, found -1",
    ),
    "op missing": (
        spoil(*CONV, "op", delete=True),
        "g.json.cells.normal.edges[2]: the field 'op' is missing",
    ),
    "op as number": (
        spoil(*CONV, "op", value=3),
        "g.json.cells.normal.edges[2].op: expected text, found 3",
    ),
    "unknown op": (
        spoil(*CONV, "op", value="sep_conv_3x"),
        "g.json.cells.normal.edges[2].op: unknown operation 'sep_conv_3x': did you mean "
        "'sep_conv_3x3'",
    ),
    "op with a suffix": (
        spoil(*CONV, "op", value="sep_conv_3x3_u"),
        "g.json.cells.normal.edges[2].op: unknown operation 'sep_conv_3x3_u': did you mean "
        "'sep_conv_3x3'",
    ),
    "rule missing": (
        spoil(*CONV, "rule", delete=True),
        "g.json.cells.normal.edges[2]: the field 'rule' is missing",
    ),
    "rule as number": (
        spoil(*CONV, "rule", value=1),
        "g.json.cells.normal.edges[2].rule: expected the name of a rule or null, found 1",
    ),
    "unknown rule": (
        spoil(*CONV, "rule", value="frs"),
        "g.json.cells.normal.edges[2].rule: unknown learning rule 'frs': did you mean 'frsf'",
    ),
    "rule that is code": (
        spoil(*CONV, "rule", value="__import__('os').getcwd()"),
        "g.json.cells.normal.edges[2].rule: expected 'name' or 'name(option=value, ...)'",
    ),
    "rule with an option that it does not have": (
        spoil(*CONV, "rule", value="usf(gain=2)"),
        "g.json.cells.normal.edges[2].rule: learning rule 'usf' has no option 'gain'",
    ),
    "rule on a pool": (
        spoil(*POOL, "rule", value="usf"),
        "g.json.cells.normal.edges[7].rule: expected null, since max_pool_3x3 has no weights here, "
        "found 'usf'",
    ),
    "rule on an identity": (
        spoil(*SKIP, "rule", value="usf"),
        "g.json.cells.normal.edges[0].rule: expected null, since skip_connect has no weights here, "
        "found 'usf'",
    ),
    "null rule on a conv": (
        spoil(*CONV, "rule", value=None),
        "g.json.cells.normal.edges[2].rule: expected the name of a rule for sep_conv_3x3, found "
        "null",
    ),
    "null rule on a skip of stride 2": (
        spoil(*REDUCED_SKIP, "rule", value=None),
        "g.json.cells.reduce.edges[1].rule: expected the name of a rule for skip_connect, found "
        "null",
    ),
    "unknown field of an edge": (
        spoil(*CONV, "stride", value=2),
        "g.json.cells.normal.edges[2]: unknown field 'stride'",
    ),
    "concat missing": (
        spoil(*NORMAL, "concat", delete=True),
        "g.json.cells.normal: the field 'concat' is missing",
    ),
    "concat as number": (
        spoil(*NORMAL, "concat", value=4),
        "g.json.cells.normal.concat: expected a list, found 4",
    ),
    "concat of text": (
        spoil(*NORMAL, "concat", value=["2"]),
        "g.json.cells.normal.concat: expected node numbers",
    ),
    "concat of bools": (
        spoil(*NORMAL, "concat", value=[True]),
        "g.json.cells.normal.concat: expected node numbers",
    ),
    "empty concat": (
        spoil(*NORMAL, "concat", value=[]),
        "g.json.cells.normal.concat: expected distinct nodes",
    ),
    "duplicate concat": (
        spoil(*NORMAL, "concat", value=[2, 3, 3]),
        "g.json.cells.normal.concat: expected distinct nodes, at least one, found [2, 3, 3]",
    ),
    "concat of an input": (
        spoil(*NORMAL, "concat", value=[1, 2]),
        "g.json.cells.normal.concat: expected nodes 2 to 5, found 1",
    ),
    "concat of a node that is not there": (
        spoil(*NORMAL, "concat", value=[2, 6]),
        "g.json.cells.normal.concat: expected nodes 2 to 5, found 6",
    ),
}


class TestBadFiles:
    @pytest.mark.parametrize("case", BAD_FILES)
    def test_the_field_is_named(self, case: str, write: Callable[[Json], Path]) -> None:
        change, expected = BAD_FILES[case]
        data = valid()
        change(data)
        with pytest.raises(InputError) as caught:
            load_genotype(write(data))
        assert str(caught.value).startswith(expected)

    @pytest.mark.parametrize("text", ["[]", "1", "null", '"darts_v2"', "true", "NaN"])
    def test_json_that_is_no_object(self, text: str, write: Callable[[Json], Path]) -> None:
        with pytest.raises(InputError, match=r"^g\.json: expected an object with format, space"):
            load_genotype(write(text))

    @pytest.mark.parametrize("cut", [1, 10, 100, 700, -3])
    def test_a_file_cut_short_names_line_and_column(
        self, cut: int, write: Callable[[Json], Path]
    ) -> None:
        with pytest.raises(
            InputError,
            match=r"^g\.json: not a JSON file \(line \d+, column \d+: .*restore the file",
        ):
            load_genotype(write(load_genotype("darts_v1").to_json()[:cut]))

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param("[" * 100_000, id="open brackets"),
            pytest.param("[" * 100_000 + "]" * 100_000, id="deep list"),
            pytest.param('{"a":' * 100_000 + "1" + "}" * 100_000, id="deep object"),
            pytest.param('{"format": ' + "1" * 5000 + "}", id="more digits than Python reads"),
        ],
    )
    def test_hostile_json(self, text: str, write: Callable[[Json], Path]) -> None:
        """What Python's JSON reader refuses with other errors than its own."""
        with pytest.raises(InputError, match=r"^g\.json"):
            load_genotype(write(text))

    @pytest.mark.parametrize(
        "rule",
        [
            pytest.param("-" * 100_000 + "1", id="unary"),
            pytest.param("a" + ".b" * 50_000, id="attributes"),
        ],
    )
    def test_a_hostile_rule(self, rule: str, write: Callable[[Json], Path]) -> None:
        data = valid()
        spoil(*CONV, "rule", value=rule)(data)
        with pytest.raises(InputError, match=r"^g\.json\.cells\.normal\.edges\[2\]\.rule"):
            load_genotype(write(data))

    def test_a_field_given_twice_is_refused(self, write: Callable[[Json], Path]) -> None:
        """Which of the two holds would be anyone's guess."""
        text = (
            load_genotype("darts_v2")
            .to_json()
            .replace('"space"', '"space": "darts",\n  "space"', 1)
        )
        with pytest.raises(InputError, match="space"):
            load_genotype(write(text))

    def test_messages_do_not_quote_long_values_in_full(self, write: Callable[[Json], Path]) -> None:
        data = valid()
        spoil(*NORMAL, value="x" * 10_000)(data)
        with pytest.raises(InputError) as caught:
            load_genotype(write(data))
        assert len(str(caught.value)) < 300


VALID_TEXT = load_genotype("bionas_darts").to_json()

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-1, 7)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["bp", "usf", "usf()", "darts", *OPERATIONS.names()]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(data: Json, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to every value of a decoded file."""
    inner = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


PLACES = [place for place in places(json.loads(VALID_TEXT)) if place]


class TestFuzz:
    """Whatever a file holds, reading it succeeds or raises InputError; and what succeeds is a
    usable genotype.
    """

    @staticmethod
    def check(text: str) -> None:
        try:
            genotype = from_json(text, "fuzz")
            if genotype.space == "darts":
                DartsSpace().validate(genotype, "fuzz")
        except InputError:
            return
        for cell in genotype.cells.values():
            for edge in cell.edges:
                assert edge.candidate.op in OPERATIONS
                if edge.candidate.rule is not None:
                    RULES.build(edge.candidate.rule)
        assert from_json(genotype.to_json(), "again") == genotype

    @settings(max_examples=300)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, len(VALID_TEXT)),
                st.integers(0, 30),
                st.text(max_size=4) | st.text('{}[]",:0123456789.eE-truefalsn\\u \n', max_size=4),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def test_text_with_pieces_replaced(self, changes: list[tuple[int, int, str]]) -> None:
        text = VALID_TEXT
        for start, length, piece in changes:
            text = text[:start] + piece + text[start + length :]
        self.check(text)

    @settings(max_examples=300)
    @given(st.lists(st.tuples(st.sampled_from(PLACES), JSON_VALUES), min_size=1, max_size=2))
    def test_data_with_values_replaced(
        self, changes: list[tuple[tuple[str | int, ...], Json]]
    ) -> None:
        data = json.loads(VALID_TEXT)
        for place, value in changes:
            try:
                spoil(*place, value=copy.deepcopy(value))(data)
            except (KeyError, IndexError, TypeError):
                continue  # an earlier change took this place away
        self.check(json.dumps(data))

    @given(st.sampled_from(PLACES), st.sampled_from(PLACES))
    def test_data_with_values_deleted_and_moved(
        self, deleted: tuple[str | int, ...], moved: tuple[str | int, ...]
    ) -> None:
        data = json.loads(VALID_TEXT)
        value: Json = data
        for key in moved:
            value = value[key]
        spoil(*deleted, value=copy.deepcopy(value))(data)
        self.check(json.dumps(data))
        data = json.loads(VALID_TEXT)
        spoil(*deleted, delete=True)(data)
        self.check(json.dumps(data))

    @settings(max_examples=200)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 600),
                st.integers(0, 20),
                st.text("()[]{}'\",=*:.+- 0123rangelistNon_\n", max_size=6),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def test_darts_text_with_pieces_replaced(self, changes: list[tuple[int, int, str]]) -> None:
        text = darts_text("darts_v1", "range(2, 6)")
        for start, length, piece in changes:
            text = text[:start] + piece + text[start + length :]
        try:
            genotype = from_darts_text(text)
        except InputError:
            return
        assert from_json(genotype.to_json(), "again") == genotype


def one_node(op: str = "('skip_connect', 0)", concat: str = "[2]") -> str:
    pair = f"[{op}, ('skip_connect', 1)]"
    return f"Genotype(normal={pair}, normal_concat={concat}, reduce={pair}, reduce_concat=[2])"


PAIR = "[('skip_connect', 0), ('skip_connect', 1)]"

BAD_TEXTS = {
    "unknown suffix": (
        one_node("('sep_conv_3x3_x', 0)"),
        ".normal[0].op: unknown operation 'sep_conv_3x3_x'",
    ),
    "typo": (
        one_node("('sepconv_3x3', 0)"),
        ".normal[0].op: unknown operation 'sepconv_3x3': did you mean",
    ),
    "input as text": (
        one_node("('skip_connect', '0')"),
        ".normal[0]: expected ('operation', input), found",
    ),
    "input as bool": (
        one_node("('skip_connect', True)"),
        ".normal[0]: expected ('operation', input), found",
    ),
    "triple": (
        one_node("('skip_connect', 0, 1)"),
        ".normal[0]: expected ('operation', input), found",
    ),
    "no pair": (one_node("'skip_connect'"), ".normal[0]: expected ('operation', input), found"),
    "input too late": (
        one_node("('skip_connect', 2)"),
        ".cells.normal.edges[0].input: expected a node before 2, found 2",
    ),
    "negative input": (
        one_node("('skip_connect', -1)"),
        ".cells.normal.edges[0].input: expected a node before 2",
    ),
    "odd number of entries": (
        one_node("('none', 0), ('none', 0)"),
        ".cells.normal.edges: expected 2 edges into node 3",
    ),
    "concat of text": (
        one_node(concat="['2']"),
        ".normal_concat: expected node numbers, found ['2']",
    ),
    "concat twice": (one_node(concat="[2, 2]"), ".cells.normal.concat: expected distinct nodes"),
    "concat too late": (
        one_node(concat="[3]"),
        ".cells.normal.concat: expected nodes 2 to 2, found 3",
    ),
    "concat empty": (
        one_node(concat="[]"),
        ".cells.normal.concat: expected distinct nodes, at least one",
    ),
    "concat by name": (
        one_node(concat="x"),
        ".normal_concat: expected a list or range(a, b), found x",
    ),
    "concat as integer": (one_node(concat="5"), ".normal_concat: expected"),
    "concat as None": (one_node(concat="None"), ".normal_concat: expected"),
    "concat as float": (one_node(concat="2.5"), ".normal_concat: expected"),
    "concat as bytes": (one_node(concat="b'\\x02'"), ".normal_concat: expected"),
    "concat as set": (one_node(concat="{2}"), ".normal_concat: expected"),
    "list of an integer": (one_node(concat="list(5)"), ".normal_concat: expected"),
    "tuple of None": (one_node(concat="tuple(None)"), ".normal_concat: expected"),
    "range of step 0": (one_node(concat="range(0, 5, 0)"), ".normal_concat: expected"),
    "range of text": (one_node(concat="range('a')"), ".normal_concat: expected"),
    "range of nothing": (one_node(concat="range()"), ".normal_concat: expected"),
    "unknown field": (
        one_node().replace("reduce=", "reduction="),
        ": unknown field 'reduction': did you mean 'reduce'",
    ),
    "missing field": (
        one_node().replace(", reduce_concat=[2]", ""),
        ": the field 'reduce_concat' is missing",
    ),
    "cell as integer": (one_node().replace(PAIR, "7"), ".normal: expected"),
    "cell as None": (one_node().replace(PAIR, "None"), ".normal: expected"),
    "cell as set, which has no order": (
        one_node().replace(PAIR, "{('skip_connect', 0), ('skip_connect', 1)}"),
        ".normal: expected",
    ),
    "cut short": ("Genotype(", ": expected Genotype(normal=[...], ...), found unreadable text"),
    "empty": ("Genotype()", ": the field 'normal' is missing"),
    "starred": ("Genotype(*x, [], [], [])", ".normal: expected a list or range(a, b), found *x"),
    "double-starred": ("Genotype(**x)", ": unknown field '**'"),
    "five arguments": (f"Genotype({PAIR}, [2], {PAIR}, [2], [2])", ": expected"),
    "attribute": ("x.Genotype()", ": expected one Genotype(normal=[...], ...), found"),
    "called twice": ("Genotype()()", ": expected one Genotype(normal=[...], ...), found"),
    "two statements": (
        "Genotype(); Genotype()",
        ": expected one Genotype(normal=[...], ...), found",
    ),
    "import": ("import os\nGenotype()", ": expected one Genotype(normal=[...], ...), found"),
}


class TestDartsText:
    @pytest.mark.parametrize(
        "concat",
        [
            "range(2, 6)",
            "list(range(2, 6))",
            "tuple(range(2, 6))",
            "[2, 3, 4, 5]",
            "(2, 3, 4, 5)",
            "range(2, 6, 1)",
        ],
    )
    @pytest.mark.parametrize("prefix", ["", "DARTS_V2 = ", "  genotype: Genotype = ", "\n\n"])
    def test_forms_in_which_it_is_pasted(self, concat: str, prefix: str) -> None:
        genotype = load_genotype(prefix + darts_text("darts_v2", concat) + "\n")
        assert genotype.cells["normal"].concat == genotype.cells["reduce"].concat == (2, 3, 4, 5)
        assert set(genotype.cells["normal"].edges) == set(
            load_genotype("darts_v2").cells["normal"].edges
        )

    def test_the_layout_of_published_files(self) -> None:
        """Over many lines, with lists of lists, and positional."""
        text = """
        BIODARTS = Genotype(
            [["sep_conv_3x3_fr", 1],
             ["skip_connect_f", 0]],   # a comment
            [2],
            [("skip_connect_b", 0), ("max_pool_3x3", 1),],
            range(2, 3),
        )
        """
        cells = load_genotype(text).cells
        assert [str(e.candidate) for e in cells["normal"].edges] == [
            "sep_conv_3x3:frsf",
            "skip_connect",
        ]
        assert [str(e.candidate) for e in cells["reduce"].edges] == [
            "skip_connect:brsf",
            "max_pool_3x3",
        ]

    @pytest.mark.parametrize(
        ("suffix", "rule"),
        [("", "bp"), ("_u", "usf"), ("_br", "brsf"), ("_fr", "frsf"), ("_fa", "fa")],
    )
    @pytest.mark.parametrize("op", ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"])
    def test_suffixes_of_convolutions(self, suffix: str, rule: str, op: str) -> None:
        genotype = load_genotype(one_node(f"('{op}{suffix}', 0)"))
        assert genotype.cells["normal"].edges[0].candidate == Candidate(op, rule)

    @pytest.mark.parametrize(
        ("suffix", "rule"),
        [
            ("_u", "usf"),
            ("_f", "frsf"),
            ("_b", "brsf"),
            ("_fr", "frsf"),
            ("_br", "brsf"),
            ("", "bp"),
        ],
    )
    def test_suffixes_of_skips(self, suffix: str, rule: str) -> None:
        """Kept at stride 2, where the skip has weights, and dropped at stride 1."""
        genotype = load_genotype(one_node(f"('skip_connect{suffix}', 0)"))
        assert genotype.cells["normal"].edges[0].candidate == Candidate("skip_connect")
        assert genotype.cells["reduce"].edges[0].candidate == Candidate("skip_connect", rule)

    def test_nodes_are_counted_in_pairs_from_2(self) -> None:
        edges = from_darts_text(darts_text("pc_darts")).cells["reduce"].edges
        assert [edge.node for edge in edges] == [2, 2, 3, 3, 4, 4, 5, 5]

    @pytest.mark.parametrize("case", BAD_TEXTS)
    def test_the_faulty_field_is_named(self, case: str) -> None:
        text, expected = BAD_TEXTS[case]
        with pytest.raises(InputError, match=f"^DARTS text{re.escape(expected)}"):
            load_genotype(text)

    def test_a_field_given_twice_is_refused(self) -> None:
        text = one_node().replace(
            "Genotype(", "Genotype([('max_pool_3x3', 0), ('max_pool_3x3', 1)], "
        )
        with pytest.raises(InputError, match="normal"):
            load_genotype(text)

    @pytest.mark.parametrize(
        "template",
        [
            "Genotype(normal=open({path!r}, 'w'))",
            "Genotype(normal=__import__('pathlib').Path({path!r}).touch())",
            "Genotype(normal=[open({path!r}, 'w') for _ in range(2)])",
            "Genotype(normal=[], normal_concat=list(open({path!r}, 'w')), reduce=[], "
            "reduce_concat=[])",
            "Genotype(normal=[], normal_concat=range(open({path!r}, 'w')), reduce=[], "
            "reduce_concat=[])",
            "Genotype(normal=[(f\"{{open({path!r}, 'w')}}\", 0)])",
            "Genotype(normal=(lambda: open({path!r}, 'w'))())",
            "Genotype(normal=().__class__.__base__.__subclasses__(), normal_concat=open({path!r}, "
            "'w'))",
            "Genotype(**{{'normal': open({path!r}, 'w')}})",
            "Genotype(*[open({path!r}, 'w')])",
            "Genotype(normal=(y := open({path!r}, 'w')))",
            "open({path!r}, 'w').Genotype()",
            "open({path!r}, 'w'); Genotype()",
            "x[open({path!r}, 'w')] = Genotype()",
            "@open({path!r}, 'w')\ndef Genotype(): pass",
        ],
    )
    def test_nothing_is_executed(self, template: str, tmp_path: Path) -> None:
        path = tmp_path / "executed"
        with pytest.raises(InputError):
            load_genotype(template.format(path=str(path)))
        assert not path.exists()

    @pytest.mark.parametrize(
        "concat",
        [
            pytest.param("range(2, 10**10)", id="power"),
            pytest.param("range(2, 10000000000)", id="huge range"),
            pytest.param("list(range(2, 10000000000))", id="huge list"),
            pytest.param("tuple(list(range(99999999999999999999999)))", id="beyond 64 bits"),
            pytest.param("[" * 150 + "]" * 150, id="brackets"),
            pytest.param("[" * 50_000, id="open brackets"),
            pytest.param("-" * 900 + "1", id="deep"),
            pytest.param("-" * 100_000 + "1", id="too deep for the parser"),
            pytest.param("1" + " + 1" * 900, id="long sum"),
            pytest.param("a" + ".b" * 900, id="attributes"),
            pytest.param("range(2, " + "-" * 900 + "1)", id="deep in a range"),
            pytest.param("[" + "9" * 5000 + "]", id="more digits than Python reads"),
            pytest.param("[0x" + "f" * 5000 + "]", id="more digits than Python prints"),
            pytest.param("'\\ud800'", id="surrogate"),
            pytest.param("{[]: 1}", id="unhashable"),
        ],
    )
    def test_costly_text_is_refused(self, concat: str) -> None:
        """At once, without building what it describes."""
        with pytest.raises(InputError):
            load_genotype(one_node(concat=concat))

    def test_a_huge_input_is_refused(self) -> None:
        with pytest.raises(InputError):
            load_genotype(one_node(f"('skip_connect', 0x{'f' * 5000})"))
