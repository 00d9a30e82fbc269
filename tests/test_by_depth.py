"""Cells by depth: a space in which each cell has its own rules equals, where they agree, the plain one."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from searching import begin, context, search
from test_rule_aware import Problem
from torch import Tensor

import darts_bio
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.figures.cells import draw_genotype
from darts_bio.figures.colors import RULE_COLORS, SEVERAL
from darts_bio.figures.drawing import Box, Curve
from darts_bio.networks import SuperNet, build_network
from darts_bio.reports.search import search_card
from darts_bio.rules import audit, draw_feedback, rule_carriers
from darts_bio.spaces import (
    SPACES,
    Candidate,
    Cell,
    Genotype,
    load_genotype,
    read_genotype,
)
from darts_bio.strategies import REGULARIZERS
from darts_bio.training.engine import run_epoch

ONE_NODE = "darts(nodes=1, operations=(none, max_pool_3x3, skip_connect, sep_conv_3x3))"
NAMES = ("fa", "usf", "bp")


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=64)


def different_rules(cells: int = 8, genotype: str = "bionas_darts") -> Genotype:
    """A genotype whose rules go round from edge to edge and from cell to cell."""
    space = SPACES.build(f"by_depth(space=darts, cells={cells})")
    adopted = space.adopt(space.of_cells.normalize(load_genotype(genotype)))
    rules = itertools.cycle(NAMES)

    def ruled(cell: Cell) -> Cell:
        edges = tuple(
            replace(e, candidate=Candidate(e.candidate.op, e.candidate.rule and next(rules)))
            for e in cell.edges
        )
        return replace(cell, edges=edges)

    return replace(adopted, cells={t: ruled(cell) for t, cell in adopted.cells.items()})


class TestThePlan:
    @pytest.mark.parametrize("layers", [3, 5, 8, 14, 20, 21])
    def test_of_as_many_cells_is_each_type_once(self, layers: int) -> None:
        space = SPACES.build(f"by_depth(cells={layers})")
        assert space.plan(layers) == space.cell_types
        kinds = tuple(space.kind(t) for t in space.cell_types)
        assert kinds == SPACES.build("darts").plan(layers)
        assert [t.rpartition("_")[2] for t in space.cell_types] == [str(i) for i in range(layers)]

    def test_of_twenty_cells_keeps_the_stages_of_eight(self) -> None:
        plan = SPACES.build("by_depth(cells=8)").plan(20)
        stages = ["normal_0"] * 3 + ["normal_1"] * 3 + ["reduce_2"]
        stages += ["normal_3"] * 3 + ["normal_4"] * 3 + ["reduce_5"]
        stages += ["normal_6"] * 3 + ["normal_7"] * 3
        assert plan == tuple(stages)

    @pytest.mark.parametrize(("inner", "cells"), [("darts", 5), ("darts", 8), ("nb201", 6)])
    @pytest.mark.parametrize("layers", [3, 6, 9, 15, 21])
    def test_takes_the_type_at_the_same_share_of_the_depth(
        self, inner: str, cells: int, layers: int
    ) -> None:
        space = SPACES.build(f"by_depth(space={inner}, cells={cells})")
        plan = space.plan(layers)
        assert tuple(map(space.kind, plan)) == SPACES.build(inner).plan(layers)
        for kind in set(map(space.kind, plan)):
            types = [t for t in space.cell_types if space.kind(t) == kind]
            used = [types.index(t) for t in plan if space.kind(t) == kind]
            for k, place in enumerate(used):
                middle = Fraction(2 * k + 1, 2 * len(used))
                # The middle of the cell lies in the stretch of depth that the type stands for.
                assert Fraction(place, len(types)) <= middle < Fraction(place + 1, len(types))
            if len(used) >= len(types):
                counts = Counter(used)
                assert set(counts) == set(range(len(types)))
                assert max(counts.values()) - min(counts.values()) <= 1

    def test_a_kind_that_the_genotype_has_not_is_refused(self) -> None:
        @SPACES.register("two_kinds")
        class TwoKinds(type(SPACES.build("darts"))):  # type: ignore[misc]
            """Its second kind stands in long networks only."""

            def plan(self, layers: int) -> tuple[str, ...]:
                return ("normal",) * 3 + ("reduce",) * (layers - 3)

        try:
            space = SPACES.build("by_depth(space=two_kinds, cells=3)")
            with pytest.raises(InputError, match="have one of type reduce"):
                space.plan(4)
        finally:
            SPACES.unregister("two_kinds")


WRONG = {
    "by_depth(cells=2)": "by_depth space: cells: expected at least 3, for two reduction cells "
    "and a normal one, found 2; use another number of cells",
    "by_depth(cells=0)": "by_depth space: cells: expected",
    "by_depth(space=nb201, cells=4)": "by_depth space: cells: expected a multiple of 3",
    "by_depth(space=drats)": "by_depth space: space: unknown space 'drats': did you mean 'darts'",
    "by_depth(space=darts(nodes=0))": "by_depth space: space: darts space: nodes: expected",
    "by_depth(space=by_depth)": "by_depth space: space: expected a space whose cells are alike",
}


@pytest.mark.parametrize("spec", WRONG)
def test_options_that_cannot_be(spec: str) -> None:
    with pytest.raises(InputError) as caught:
        SPACES.build(spec)
    assert str(caught.value).startswith(WRONG[spec])
    assert "\n" not in str(caught.value)


class TestGenotypes:
    def test_a_file_holds_the_rules_of_each_cell(self, tmp_path: Path) -> None:
        genotype = different_rules()
        path = tmp_path / "genotype.json"
        path.write_text(genotype.to_json(), encoding="utf-8")
        assert read_genotype(path) == genotype
        assert '"format": 1' in path.read_text(encoding="utf-8")
        assert genotype.identity() != different_rules(5).identity()

    def test_a_cell_that_is_missing_unknown_or_wrong_is_named(self) -> None:
        genotype = different_rules()
        space = SPACES.build(genotype.space)
        cells = dict(genotype.cells)
        broken = {
            r"g\.cells\.normal_3: missing; a genotype of the by_depth space has normal_0, ": {
                t: c for t, c in cells.items() if t != "normal_3"
            },
            r"g\.cells: unknown cell type 'normal_9'": cells | {"normal_9": cells["normal_0"]},
            r"g\.cells\.reduce_2\.edges\[\d\]\.rule: expected": cells
            | {"reduce_2": cells["normal_0"]},
        }
        for message, of_types in broken.items():
            with pytest.raises(InputError, match=f"^{message}"):
                space.validate(replace(genotype, cells=of_types), "g")

    def test_the_order_of_a_file_does_not_matter(self, tmp_path: Path) -> None:
        genotype = different_rules()
        path = tmp_path / "genotype.json"
        backwards = replace(genotype, cells=dict(reversed(genotype.cells.items())))
        path.write_text(backwards.to_json(), encoding="utf-8")
        read = read_genotype(path)
        assert read.to_json() == genotype.to_json()
        assert draw_genotype(backwards) == draw_genotype(genotype)

    def test_equal_spaces_are_equal_however_they_are_written(self) -> None:
        one = SPACES.build("by_depth(space='darts( nodes = 2 )', cells=4)")
        assert one == SPACES.build("by_depth(cells=4, space=darts(nodes=2))")

    def test_adopt_keeps_cells_and_validates(self) -> None:
        genotype = load_genotype("darts_v1")
        for spec in ("by_depth", "by_depth(space=darts, cells=20)", "darts"):
            space = SPACES.build(spec)
            adopted = space.adopt(genotype)
            space.validate(adopted, "adopted")
            assert SPACES.build(adopted.space) == space
            for cell_type, cell in adopted.cells.items():
                assert cell == genotype.cells[space.kind(cell_type)]
        assert SPACES.build("darts").adopt(genotype) == genotype


def rules_of(network: torch.nn.Module) -> list[list[str]]:
    """The rules of the layers of each cell, in their order."""
    return [
        [carrier.rule.spec for _, carrier in rule_carriers(cell)]
        for cell in network.cells  # type: ignore[union-attr]
    ]


class TestTheDiscreteNetwork:
    def test_each_cell_has_the_rules_that_the_genotype_gives_to_its_depth(self) -> None:
        genotype = different_rules(8)
        sizes: dict[str, Any] = {"channels": 4, "num_classes": 10}
        short = rules_of(build_network(genotype, layers=8, **sizes))
        per_layer = {"sep_conv_3x3": 4, "dil_conv_5x5": 2, "skip_connect": 2}  # weighted layers
        for cell, rules in zip(genotype.cells.values(), short, strict=True):
            expected = [
                edge.candidate.rule
                for edge in cell.edges
                if edge.candidate.rule is not None
                for _ in range(per_layer[edge.candidate.op])
            ]
            assert rules == expected
        assert len({tuple(rules) for rules in short}) > 4
        long = rules_of(build_network(genotype, layers=20, **sizes))
        assert long == [
            short[i]
            for i in (0,) * 3 + (1,) * 3 + (2,) + (3,) * 3 + (4,) * 3 + (5,) + (6,) * 3 + (7,) * 3
        ]

    def test_where_all_depths_agree_it_is_the_plain_network(self, float64: None) -> None:
        plain = load_genotype("bionas_darts")
        adopted = SPACES.build("by_depth(cells=3)").adopt(plain)
        results = []
        for genotype in (plain, adopted):
            torch.manual_seed(0)
            network = build_network(genotype, channels=4, layers=4, num_classes=5)
            x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
            F.cross_entropy(network(x), torch.tensor([0, 1])).backward()
            results.append({n: p.grad for n, p in network.named_parameters()})
        assert results[0].keys() == results[1].keys()
        for name, gradient in results[0].items():
            assert torch.equal(gradient, results[1][name])

    def test_audit_counts_each_depth_for_itself(self) -> None:
        genotype = SPACES.build("by_depth(cells=3)").adopt(
            load_genotype("darts_v1").with_rule("fa")
        )
        sizes: dict[str, Any] = {"channels": 4, "layers": 3, "num_classes": 10}
        cells = dict(genotype.cells)
        first = next(iter(cells))
        cells[first] = replace(genotype, cells={first: cells[first]}).with_rule("bp").cells[first]
        mixed = replace(genotype, cells=cells)
        network = build_network(mixed, **sizes)
        weights = sum(c.weight.numel() for _, c in rule_carriers(network.cells[0]))
        assert 0 < weights == audit(network).transported < audit(network).parameters


class TestTheSupernet:
    sizes: dict[str, Any] = {"channels": 4, "layers": 5, "num_classes": 5}

    @pytest.mark.parametrize("shared", [None, "match"])
    def test_where_all_depths_agree_it_is_the_plain_supernet(
        self, shared: Any, float64: None
    ) -> None:
        """Losses are equal, and the plain gradient of edge weights is the sum over depths."""
        space = SPACES.build(f"by_depth(space={ONE_NODE}, cells=5)")
        table = space.of_cells.table(NAMES)
        torch.manual_seed(2)
        plain = {t: torch.rand(table.shape(t)) for t in table.rows}
        gradients = []
        for built in (space.of_cells, space):
            torch.manual_seed(0)
            net = SuperNet(built, NAMES, shared=shared, **self.sizes)
            draw_feedback(net, 3)
            weights = {t: plain[built.kind(t)].clone().requires_grad_() for t in built.cell_types}
            x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
            loss = F.cross_entropy(net(x, weights), torch.tensor([0, 1, 2, 3]))
            of_edges = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
            of_weights = torch.autograd.grad(loss, net.classifier.weight)[0]
            gradients.append((loss, dict(zip(weights, of_edges, strict=True)), of_weights))
        (loss, of_kinds, one), (same, of_types, other) = gradients
        torch.testing.assert_close(loss, same, rtol=1e-13, atol=0)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
        for kind, gradient in of_kinds.items():
            parts = [g for t, g in of_types.items() if space.kind(t) == kind]
            assert len(parts) > 1
            assert not torch.equal(parts[0], parts[1])
            torch.testing.assert_close(sum(parts), gradient, rtol=1e-10, atol=1e-14)

    def test_a_type_without_a_cell_is_refused(self, data: ImageData) -> None:
        with pytest.raises(
            InputError, match=r"^--layers: expected a cell of each type .* normal_\d"
        ):
            search(data, space="by_depth(cells=8)", layers=5)


class TestStrategies:
    def test_the_rule_hypergradient_of_a_plain_cell_is_the_sum_over_depths(
        self, float64: None
    ) -> None:
        space = SPACES.build(f"by_depth(space={ONE_NODE}, cells=5)")
        gradients, states = [], []
        for built in (space.of_cells, space):
            torch.manual_seed(0)
            net = SuperNet(built, NAMES, shared="match", channels=4, layers=5, num_classes=5)
            draw_feedback(net, 3)
            net.space_ = built  # type: ignore[assignment]
            here = Problem(net, NAMES)
            torch.manual_seed(7)
            values: dict[str, Tensor] = {}
            for name, parameter in here.state.parameters.items():
                cell_type, _, of = name.partition("/")
                key = (
                    f"{built.kind(cell_type) if cell_type in built.cell_types else cell_type}/{of}"
                )
                parameter.data = values.setdefault(key, torch.randn(parameter.shape)).clone()
            states.append(here.state)
            gradients.append(here.hypergradient())
        plain, by_depth = gradients
        assert {n for n in by_depth if n.endswith("/operation")} == {
            n for n in plain if n.endswith("/operation")
        }
        for name, gradient in plain.items():
            kind, _, of = name.partition("/")
            if of == "operation":
                found = by_depth[name]
            else:
                found = sum(
                    by_depth[f"{t}/rule"] for t in space.cell_types if space.kind(t) == kind
                )
            scale = gradient.abs().max()
            assert (found - gradient).abs().max() < 1e-9 * scale

    def test_rule_aware_keeps_operations_alike_and_rules_apart(self) -> None:
        spec = "by_depth(space=darts(nodes=2, operations=(sep_conv_3x3, dil_conv_3x3)), cells=5)"
        strategy, state = begin("rule_aware(init=1.0)", spec, NAMES)
        space = state.context.space
        cells = space.derive(strategy.final_weights(state), state.context.table)
        operations: dict[str, set[tuple[Any, ...]]] = {}
        rules: dict[str, set[tuple[Any, ...]]] = {}
        for t, cell in cells.items():
            key = tuple((e.node, e.input, e.candidate.op) for e in cell.edges)
            operations.setdefault(space.kind(t), set()).add(key)
            rules.setdefault(space.kind(t), set()).add(tuple(e.candidate.rule for e in cell.edges))
        assert all(len(of_kind) == 1 for of_kind in operations.values())
        assert any(len(of_kind) > 1 for of_kind in rules.values())

    def test_random_keeps_operations_alike_and_rules_apart(self) -> None:
        strategy, state = begin("random", "by_depth(space=darts, cells=8)", NAMES, seed=3)
        space = state.context.space
        cells = space.derive(strategy.final_weights(state), state.context.table)
        normals = [cell for t, cell in cells.items() if space.kind(t) == "normal"]
        shapes = {tuple((e.node, e.input, e.candidate.op) for e in c.edges) for c in normals}
        assert len(shapes) == 1
        assert len({tuple(e.candidate.rule for e in c.edges) for c in normals}) > 2

    def test_random_takes_the_operations_of_a_plain_genotype_and_of_one_by_depth(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "by_depth.json"
        path.write_text(different_rules(8).to_json(), encoding="utf-8")
        for source in ("darts_v2", str(path)):
            given = load_genotype(source)
            strategy, state = begin(
                f"random(genotype={source!r})", "by_depth(space=darts, cells=8)", NAMES
            )
            space = state.context.space
            cells = space.derive(strategy.final_weights(state), state.context.table)
            for t, cell in cells.items():
                of_given = given.cells.get(t) or given.cells[space.kind(t)]
                assert Counter((e.node, e.input, e.candidate.op) for e in cell.edges) == Counter(
                    (e.node, e.input, e.candidate.op) for e in of_given.edges
                )

    def test_a_plain_search_cannot_take_the_operations_of_all_depths(self, tmp_path: Path) -> None:
        path = tmp_path / "by_depth.json"
        path.write_text(different_rules(8).to_json(), encoding="utf-8")
        with pytest.raises(InputError, match=r"unknown cell type 'normal_0'"):
            begin(f"random(genotype={str(path)!r})", "darts", NAMES)

    def test_skips_are_counted_in_the_normal_cell_that_has_most(self) -> None:
        stop = REGULARIZERS.build("skip_stop(most=4)")
        adopted = SPACES.build("by_depth(cells=4)").adopt(load_genotype("darts_v2"))
        skips = Candidate("skip_connect")
        cells = dict(adopted.cells)
        full = replace(
            cells["normal_3"],
            edges=tuple(replace(e, candidate=skips) for e in cells["normal_3"].edges),
        )

        class Lookout:
            strategy_state = begin("darts", "by_depth(cells=4)", NAMES)[1]

            def cells(self) -> dict[str, Cell]:
                return cells | {"normal_3": full}

        ends, numbers = stop.after_epoch(stop.begin(context()), 0, Lookout())
        assert ends
        assert numbers == {"regularizer/skips": float(len(full.edges))}


def test_the_command_that_trains_it_has_as_many_cells_and_fewer_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The digits' protocol trains three cells, where the genotype has five."""
    options: dict[str, Any] = {
        "space": f"by_depth(space={ONE_NODE}, cells=5)",
        "layers": 5,
        "rules": NAMES,
        "epochs": 1,
        "channels": 4,
        "train_images": 64,
        "batch_size": 16,
        "tensorboard": False,
    }
    found = darts_bio.search("digits", out=tmp_path / "found", **options)
    assert found.next_options["layers"] == 5
    quick: dict[str, Any] = {
        "epochs": 1,
        "channels": 4,
        "train_images": 64,
        "tensorboard": False,
        "progress": True,
    }
    capsys.readouterr()
    darts_bio.train(found, "digits", out=tmp_path / "as_many", layers=5, **quick)
    assert "has none of" not in "".join(capsys.readouterr())
    darts_bio.train(found, "digits", out=tmp_path / "fewer", layers=3, **quick)
    told = "".join(capsys.readouterr())
    assert "a network of 3 cells has none of normal_0, normal_4; with --layers 5 each cell" in told


def test_a_search_by_depth_goes_its_whole_way(data: ImageData, tmp_path: Path) -> None:
    task = search(
        data, "rule_aware(rule_lr=0.1)", space=f"by_depth(space={ONE_NODE}, cells=3)", rules=NAMES
    )
    run_epoch(task, 0)
    genotype = task.genotype()
    assert set(genotype.cells) == {"normal_0", "reduce_1", "reduce_2"}
    path = tmp_path / "genotype.json"
    path.write_text(genotype.to_json(), encoding="utf-8")
    network = build_network(read_genotype(path), channels=4, layers=6, num_classes=10)
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 10)


class TestTheFigure:
    def test_tells_the_rule_of_each_cell_from_left_to_right(self) -> None:
        genotype = different_rules(8)
        space = SPACES.build(genotype.space)
        figure = draw_genotype(genotype)
        boxes = [p for p in figure.primitives if isinstance(p, Box) and ": " in p.title]
        expected = Counter(
            (f"{t}: {e.candidate.rule}", RULE_COLORS[e.candidate.rule])
            for t, cell in genotype.cells.items()
            for e in cell.edges
            if e.candidate.rule is not None
        )
        told = [b for b in boxes if b.title.split(":")[0] in genotype.cells]
        assert Counter((b.title, b.fill) for b in told) == expected
        labels = [p for p in figure.primitives if isinstance(p, Box) and "->" in p.title]
        assert len(labels) == sum(len(genotype.cells[t].edges) for t in ("normal_0", "reduce_2"))
        for label in labels:
            strip = [
                b
                for b in told
                if label.x <= b.x
                and b.x + b.width <= label.x + label.width
                and label.y <= b.y
                and b.y + b.height <= label.y + label.height
            ]
            if strip:
                kind = space.kind(strip[0].title.split(":")[0])
                names = [t for t in genotype.cells if space.kind(t) == kind]
                assert [b.title.split(":")[0] for b in sorted(strip, key=lambda b: b.x)] == names
        for curve in (p for p in figure.primitives if isinstance(p, Curve) and ", " in p.title):
            several = " : " in curve.title and curve.title.count(",") > 1
            assert (curve.color == SEVERAL) == several

    def test_cells_that_are_alike_in_all_but_type_are_drawn_apart(self) -> None:
        cell = load_genotype("darts_v2").cells["reduce"]
        pools = replace(
            cell,
            edges=tuple(replace(e, candidate=Candidate("max_pool_3x3")) for e in cell.edges),
        )
        figure = draw_genotype(Genotype("darts", {"normal": pools, "reduce": pools}))
        labels = [p for p in figure.primitives if isinstance(p, Box) and "->" in p.title]
        assert len(labels) == 2 * len(pools.edges)


@pytest.mark.parametrize(
    "strategy", ["darts(init=1.0)", "rule_aware(init=1.0)", "eg(population=4)"]
)
def test_the_report_of_a_search_tells_how_sure_it_is(data: ImageData, strategy: str) -> None:
    """The shares of operations and rules, computed anew from what alpha stands for."""
    task = search(data, strategy, space="darts(nodes=2)", rules=NAMES)
    if strategy.startswith("eg"):
        run_epoch(task, 0)
    genotype = task.genotype()
    folder: Any = SimpleNamespace(command="python search/run.py")
    text = search_card(task, folder, genotype, [], True, None, [], None)
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.partition("## How sure it is")[2].partition("\n## ")[0].split("\n")
        if line.startswith(("| normal |", "| reduce |"))
    ]
    edges = [(t, e) for t, cell in genotype.cells.items() for e in cell.edges]
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (t, f"{e.input} -> {e.node}", e.candidate.op) for t, e in edges
    ]
    lent = task.strategy.edge_weights(task.strategy_state)
    for (t, edge), (_, _, op, share, equal, rule, rules) in zip(edges, rows, strict=True):
        assert rule == (edge.candidate.rule or "-")
        number = task.space.edges.index((edge.node, edge.input))
        of_edge: dict[str | None, float] = {}
        for candidate, weight in zip(task.table.rows[t][number], lent[t][number], strict=True):
            if candidate is not None and candidate.op == op:
                of_edge[candidate.rule] = float(weight.detach())
        total = sum(of_edge.values())
        row = [c for c in task.table.rows[t][number] if c is not None]
        operations = {c.op for c in row}
        factorized = strategy.startswith("rule_aware")
        parts = 1 / len(operations) if factorized else sum(c.op == op for c in row) / len(row)
        assert equal == f"{parts:.3f}"
        if not strategy.startswith("eg"):  # its final weights are those of its best individual
            assert share == f"{total:.3f}"
        told = dict(part.rsplit(" ", 1) for part in rules.split(", ")) if rules != "-" else {}
        assert set(told) == {rule for rule in of_edge if rule is not None}
        if told and not strategy.startswith("eg"):
            assert told == {rule: f"{weight / total:.2f}" for rule, weight in of_edge.items()}
            assert list(told.values()) == sorted(told.values(), reverse=True)


def test_the_report_tells_what_a_bound_is_spent_on(data: ImageData) -> None:
    task = search(
        data, space="darts(nodes=2)", rules=("fa", "bp"), objective=("weight_transport(share=0.3)",)
    )
    genotype = task.genotype()
    folder: Any = SimpleNamespace(command="")
    text = search_card(task, folder, genotype, [], True, None, [], None)
    cells = build_network(genotype, channels=8, layers=3, num_classes=10).cells
    report = audit(cells)
    share = report.transported / report.parameters
    assert (
        f"weight_transport: {share:.3f} of the parameters of the cells' layers, where 0.3 is"
        in text
    )
    assert "a network of 3 cells, as searched" in text
