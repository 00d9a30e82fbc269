"""The NAS-Bench-201 space: counts, parameters worked out by hand, text form, derivation, bad
input.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from darts_bio.errors import InputError
from darts_bio.networks import build_network, parameters
from darts_bio.spaces import (
    SPACES,
    Genotype,
    Nb201Table,
    from_json,
    from_nb201_text,
    load_genotype,
    to_nb201_text,
)
from darts_bio.spaces.nb201 import PUBLISHED_OPERATIONS

FULL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
MIXED = "|nor_conv_3x3:fa~0|+|none~0|skip_connect~1|+|none~0|avg_pool_3x3~1|nor_conv_1x1:usf~2|"


def text_of(ops: tuple[str, ...]) -> str:
    a, b, c, d, e, f = ops
    return f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"


def by_hand(ops: tuple[str, ...], classes: int = 10) -> int:
    """Stem, two residual blocks, last norm, classifier, and five cells at each of 16, 32 and 64
    channels.
    """
    total = 3 * 16 * 9 + 2 * 16 + 2 * 64 + 64 * classes + classes
    for c in (16, 32):
        total += (9 * c * 2 * c + 2 * 2 * c) + (9 * 2 * c * 2 * c + 2 * 2 * c) + c * 2 * c
    for c in (16, 32, 64):
        weights = {"nor_conv_1x1": c * c + 2 * c, "nor_conv_3x3": 9 * c * c + 2 * c}
        total += 5 * sum(weights.get(op, 0) for op in ops)
    return total


def test_15625_cells_each_derived_from_its_own_one_hot_weights() -> None:
    space = SPACES.build("nb201")
    table = space.table(("bp",))
    assert table.shape("cell") == (6, 5)
    found = set()
    for choice in itertools.product(range(5), repeat=6):
        weights = torch.nn.functional.one_hot(torch.tensor(choice), 5).double()
        found.add(
            to_nb201_text(Genotype("nb201", space.derive({"cell": weights}, table)), rules=False)
        )
    assert len(found) == 15625


def test_parameters_of_20_cells_are_those_worked_out_by_hand() -> None:
    draw = torch.Generator().manual_seed(0)
    chosen = [
        tuple(PUBLISHED_OPERATIONS[i] for i in row)
        for row in torch.randint(5, (18, 6), generator=draw).tolist()
    ]
    chosen += [("nor_conv_3x3",) * 6, ("none",) * 6]
    for ops in chosen:
        network = build_network(load_genotype(text_of(ops)), channels=16, layers=15)
        assert parameters(network) == by_hand(ops), ops
    # As the benchmark prints them: 1.531546 and 0.073306 million.
    assert [by_hand(ops) for ops in chosen[-2:]] == [1_531_546, 73_306]


def test_a_cell_is_the_sum_that_its_text_says() -> None:
    torch.manual_seed(0)
    network = build_network(from_nb201_text(MIXED), channels=4, layers=3).double().eval()
    cell = network.cells[0]
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    ops = dict(zip(cell.wiring, cell.edges, strict=True))
    node1 = ops[1, 0](x)
    node2 = node1  # none <- 0, skip <- 1
    pooled = torch.nn.functional.avg_pool2d(node1, 3, 1, 1, count_include_pad=False)
    assert torch.allclose(cell([x]), pooled + ops[3, 2](node2), rtol=1e-12)


class TestText:
    @pytest.mark.parametrize("text", [FULL.replace("3x3", "3x3:bp"), MIXED])
    def test_is_read_and_written(self, text: str) -> None:
        genotype = from_nb201_text(text)
        assert to_nb201_text(genotype) == text
        assert to_nb201_text(genotype, rules=False) == re.sub(r":\w+", "", text)
        assert from_json(genotype.to_json(), "x") == genotype == load_genotype(f" {text}\n")

    def test_entries_may_stand_in_any_order(self) -> None:
        assert from_nb201_text(
            MIXED.replace("none~0|skip_connect~1", "skip_connect~1|none~0")
        ) == from_nb201_text(MIXED)

    def test_groups_may_stand_on_lines_of_their_own(self) -> None:
        lines = MIXED.replace("+", "\n  + ") + "\n"
        assert from_nb201_text(lines) == from_nb201_text(MIXED)

    def test_rules_with_options(self) -> None:
        text = MIXED.replace("usf", "usf(scale='match')")
        assert to_nb201_text(from_nb201_text(text)) == text

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("|nor_conv_3x3~0|", "a group for each of 3 nodes, found 1"),
            (FULL.replace("|+", "+", 1), "1 entries between bars for node 1"),
            (
                FULL.replace("3x3~0|nor_conv_3x3~1|+", "3x3~0|+"),
                "2 entries between bars for node 2",
            ),
            (
                FULL.replace("nor_conv_3x3~2", "nor_conv_3x4~2"),
                "node 3.op: unknown operation 'nor_conv_3x4'",
            ),
            (
                FULL.replace("nor_conv_3x3~2", "nor_conv_3x3:ufs~2"),
                "node 3.rule: unknown learning rule 'ufs'",
            ),
            (FULL.replace("nor_conv_3x3~2", "nor_conv_3x3"), "expected an entry such as"),
            (f"|x|+{FULL.partition('+')[2]}", "node 1: expected an entry such as nor_conv_3x3~0"),
            (FULL.replace("nor_conv_3x3~2", "nor_conv_3x3~1"), "one edge from each of the nodes"),
            (
                MIXED.replace("skip_connect~1", "skip_connect:fa~1"),
                "skip_connect has no weights here",
            ),
        ],
    )
    def test_that_is_bad(self, text: str, message: str) -> None:
        with pytest.raises(InputError, match=re.escape(message)):
            load_genotype(text)


def test_derivation_takes_the_strongest_of_each_edge_and_the_earlier_of_equals() -> None:
    space = SPACES.build("nb201")
    table = space.table(("fa", "usf"))
    row = table.rows["cell"][0]
    draw = torch.Generator().manual_seed(1)
    for _ in range(2000):
        weights = torch.randint(4, (6, len(row)), generator=draw).double()  # many ties
        expected = []
        for values in weights.tolist():
            best = 0
            for i, value in enumerate(values):
                if value > values[best]:
                    best = i
            expected.append(row[best])
        cell = space.derive({"cell": weights}, table)["cell"]
        assert [edge.candidate for edge in cell.edges] == expected
        space.validate(Genotype("nb201", {"cell": cell}), "x")


class TestBadInput:
    @pytest.mark.parametrize("layers", [1, 4, 8])
    def test_layers(self, layers: int) -> None:
        with pytest.raises(InputError, match="expected a multiple of 3"):
            build_network(from_nb201_text(FULL), channels=4, layers=layers)

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ('"cell":', '"normal":', "unknown cell type 'normal'"),
            ('{"node": 1, "input": 0', '{"node": 2, "input": 0', "one edge from each"),
            ('"concat": [3]', '"concat": [2]', "the last node, found [2]"),
            (
                '"op": "skip_connect", "rule": null',
                '"op": "skip_connect", "rule": "fa"',
                "expected null",
            ),
            (
                '"op": "nor_conv_3x3", "rule": "fa"',
                '"op": "nor_conv_3x3", "rule": null',
                "expected the name of a rule",
            ),
        ],
    )
    def test_genotype_files(self, old: str, new: str, message: str) -> None:
        text = from_nb201_text(MIXED).to_json()
        assert old in text
        with pytest.raises(InputError, match=re.escape(message)):
            SPACES.build("nb201").validate(from_json(text.replace(old, new), "mine"), "mine")

    def test_no_cell_at_all(self) -> None:
        with pytest.raises(InputError, match="missing"):
            SPACES.build("nb201").validate(Genotype("nb201", {}), "mine")

    @pytest.mark.parametrize(
        "spec", ["nb201(operations=(none,))", "nb201(operations=3)", "nb201(operations=(a, b))"]
    )
    def test_options(self, spec: str) -> None:
        with pytest.raises(InputError, match="operation"):
            SPACES.build(spec)


class TestTable:
    def write(self, path: Path, text: str) -> Path:
        path.write_text(text, encoding="utf-8")
        return path

    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            (
                "a.json",
                json.dumps({FULL: {"cifar10": 93.5, "cifar100": 70}}),
                {"cifar10": 93.5, "cifar100": 70.0},
            ),
            ("a.json", json.dumps({FULL: 93.5}), {"accuracy": 93.5}),
            ("a.CSV", f"arch,cifar10\n{FULL},93.5\n", {"cifar10": 93.5}),
            ("a.json", json.dumps({FULL.replace("3x3", "1x1"): 1}), None),
        ],
    )
    def test_accuracy_of_the_operations_whatever_their_rules(
        self, tmp_path: Path, name: str, text: str, expected: Any
    ) -> None:
        table = Nb201Table(self.write(tmp_path / name, text))
        assert table.accuracies(load_genotype(FULL)) == expected
        assert table.accuracies(load_genotype(FULL).with_rule("fa")) == expected
        with pytest.raises(InputError, match="expected a genotype of the space nb201, found darts"):
            table.accuracies(load_genotype("darts_v2"))

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.json", "{", "not a JSON file"),
            ("a.json", "[1]", "expected an object of cells"),
            ("a.json", json.dumps({"a": 1}), "expected cells such as |none~0|"),
            (
                "a.json",
                json.dumps({FULL: "good"}),
                "expected an accuracy in per cent, found 'good'",
            ),
            (
                "a.json",
                json.dumps({FULL: {"cifar10": 101}}),
                "expected an accuracy in per cent, found '101'",
            ),
            ("a.csv", "arch,cifar10\n", "expected a header"),
            ("a.csv", f"arch,cifar10\n{FULL},1,2\n", "line 2: expected 2 entries, found 3"),
            ("a.csv", f"arch,cifar10\n{FULL},x\n", "line 2: expected an accuracy"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        with pytest.raises(InputError, match=re.escape(message)):
            Nb201Table(self.write(tmp_path / name, text))

    def test_a_pickle_is_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "NAS-Bench-201.pth").write_bytes(b"\x80\x02}q\x00.")
        with pytest.raises(
            InputError, match="cannot be read as text .*expected a JSON or CSV file"
        ):
            Nb201Table(tmp_path / "NAS-Bench-201.pth")
        with pytest.raises(InputError, match="cannot be read as text"):
            Nb201Table(tmp_path / "nowhere.json")
