"""The DARTS space: its plan, edges, candidates, and the derivation of a genotype against the
published rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.rules import RULES, rule_layers
from darts_bio.spaces import OPERATIONS, SPACES, Candidate, CandidateTable, Genotype, from_json
from darts_bio.spaces.darts import DartsSpace

BIO = ("fa", "usf", "brsf", "frsf")
CONVOLUTIONS = ("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5")
EDGES = (
    *((2, 0), (2, 1)),
    *((3, 0), (3, 1), (3, 2)),
    *((4, 0), (4, 1), (4, 2), (4, 3)),
    *((5, 0), (5, 1), (5, 2), (5, 3), (5, 4)),
)
LAYOUTS_AND_RULES = list(
    product(("clean", "paper"), (BIO, ("bp",), ("usf",), ("bp", "fa", "usf"), ("fa",)))
)

every_layout_and_rules = pytest.mark.parametrize(("layout", "rules"), LAYOUTS_AND_RULES)
every_published_layout_and_rules = pytest.mark.parametrize(
    ("layout", "rules"),
    [
        pair for pair in LAYOUTS_AND_RULES if pair != ("paper", ("fa",))
    ],  # the paper pairs no skip with fa
)


def row_by_hand(layout: str, stride: int, rules: Sequence[str]) -> list[Candidate]:
    """The candidates of an edge as the papers list them: DARTS' 8 operations, the weighted ones
    once a rule.
    """
    row = [Candidate("none"), Candidate("max_pool_3x3"), Candidate("avg_pool_3x3")]
    if layout == "paper":
        row += [Candidate("skip_connect", rule) for rule in rules if rule != "fa"]
    elif stride == 2:
        row += [Candidate("skip_connect", rule) for rule in rules]
    else:
        row += [Candidate("skip_connect")]
    return row + [Candidate(op, rule) for op in CONVOLUTIONS for rule in rules]


def has_weights(op: str, stride: int) -> bool:
    further = ("nor_conv_1x1", "nor_conv_3x3", "sep_conv_7x7", "conv_7x1_1x7")
    return op in (*CONVOLUTIONS, *further) or (op == "skip_connect" and stride == 2)


class TestPlanAndEdges:
    @pytest.mark.parametrize(
        ("layers", "reductions"),
        [(3, {1, 2}), (4, {1, 2}), (5, {1, 3}), (8, {2, 5}), (14, {4, 9}), (20, {6, 13})],
    )
    def test_reductions_stand_at_a_third_and_two_thirds(
        self, layers: int, reductions: set[int]
    ) -> None:
        plan = DartsSpace().plan(layers)
        assert len(plan) == layers
        assert {
            layer for layer, cell_type in enumerate(plan) if cell_type == "reduce"
        } == reductions
        assert set(plan) == {"normal", "reduce"}

    @pytest.mark.parametrize("layers", [2, 1, 0, -3])
    def test_too_few_layers(self, layers: int) -> None:
        with pytest.raises(
            InputError, match=rf"^--layers: expected at least 3, .*found {layers}; use --layers 3"
        ):
            DartsSpace().plan(layers)

    def test_there_are_14_edges_in_the_order_of_alpha(self) -> None:
        assert DartsSpace().edges == EDGES

    @pytest.mark.parametrize("nodes", [1, 2, 6])
    def test_nodes_is_an_option(self, nodes: int) -> None:
        """A node takes the two inputs and every node before it: 2 + 3 + ... edges."""
        assert len(SPACES.build(f"darts(nodes={nodes})").edges) == nodes * (nodes + 3) // 2

    def test_only_edges_from_the_inputs_of_a_reduction_have_stride_2(self) -> None:
        space = DartsSpace()
        assert [space.stride("normal", source) for source in range(5)] == [1, 1, 1, 1, 1]
        assert [space.stride("reduce", source) for source in range(5)] == [2, 2, 1, 1, 1]

    @pytest.mark.parametrize("spec", ["darts(layout=papr)", "darts(layout=3)"])
    def test_an_unknown_layout(self, spec: str) -> None:
        with pytest.raises(
            InputError, match=r"unknown layout of the darts space .*known: clean, paper"
        ):
            SPACES.build(spec)

    @pytest.mark.parametrize("nodes", ["0", "-1", "2.0", "x", "None", "True"])
    def test_unusable_numbers_of_nodes(self, nodes: str) -> None:
        with pytest.raises(InputError, match="nodes: expected a whole number from 1 to 100"):
            SPACES.build(f"darts(nodes={nodes})")

    def test_operations_are_an_option(self) -> None:
        """A smaller space, in the order given."""
        space = SPACES.build("darts(operations=(skip_connect, sep_conv_3x3, none))")
        assert space.table(("usf",)).rows["normal"][0] == (
            Candidate("skip_connect"),
            Candidate("sep_conv_3x3", "usf"),
            Candidate("none"),
        )

    @pytest.mark.parametrize(
        ("operations", "message"),
        [
            ("()", "operations: expected names"),
            ("(none,)", "operations: expected names"),
            ("skip_connect", "operations: expected names"),
            ("3", "operations: expected names"),
            ("(skip_connect, skip_connect)", "operations: expected each once"),
            (
                "(skip_connect, sep_conv_3x)",
                "unknown operation 'sep_conv_3x': did you mean 'sep_conv_3x3'",
            ),
            ("(skip_connect, 1)", "operation"),
            ("(skip_connect, {1: 2})", "operation"),
            ("(skip_connect, (none, skip_connect))", "operation"),
        ],
    )
    def test_unusable_operations(self, operations: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            SPACES.build(f"darts(operations={operations})")


class TestTable:
    @every_published_layout_and_rules
    def test_candidates_are_those_of_the_papers(self, layout: str, rules: tuple[str, ...]) -> None:
        """In any order: what an edge offers is a set. Padding fills rows up to the longest of their
        cell type.
        """
        table = SPACES.build(f"darts(layout={layout})").table(rules)
        for cell_type in ("normal", "reduce"):
            expected = [
                row_by_hand(layout, 2 if cell_type == "reduce" and j < 2 else 1, rules)
                for _, j in EDGES
            ]
            width = max(map(len, expected))
            assert table.shape(cell_type) == (14, width)
            for row, candidates in zip(table.rows[cell_type], expected, strict=True):
                real = row[: len(candidates)]
                assert set(real) == set(candidates)
                assert len(real) == len(set(real)) == len(candidates)
                assert row[len(candidates) :] == (None,) * (width - len(candidates))

    @pytest.mark.parametrize(
        ("layout", "rules", "normal", "reduce"),
        [
            ("clean", BIO, 20, 23),
            ("paper", BIO, 22, 22),
            ("clean", ("bp",), 8, 8),
            ("paper", ("bp",), 8, 8),
            ("clean", ("usf", "frsf"), 12, 13),
            ("paper", ("usf", "frsf"), 13, 13),
        ],
    )
    def test_shapes(self, layout: str, rules: tuple[str, ...], normal: int, reduce: int) -> None:
        """The paper's edge has 22 candidates at its four rules; with one rule both layouts are
        DARTS' own 8.
        """
        table = SPACES.build(f"darts(layout={layout})").table(rules)
        assert (table.shape("normal"), table.shape("reduce")) == ((14, normal), (14, reduce))

    def test_with_one_rule_both_layouts_have_the_same_operations_in_the_order_of_darts(
        self,
    ) -> None:
        names = ["none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", *CONVOLUTIONS]
        for layout, cell_type in product(("clean", "paper"), ("normal", "reduce")):
            for row in SPACES.build(f"darts(layout={layout})").table(("bp",)).rows[cell_type]:
                assert [candidate.op for candidate in row if candidate] == names

    @every_layout_and_rules
    def test_the_mask_is_true_where_there_is_a_candidate(
        self, layout: str, rules: tuple[str, ...]
    ) -> None:
        table = SPACES.build(f"darts(layout={layout})").table(rules)
        for cell_type in ("normal", "reduce"):
            mask = table.mask(cell_type)
            assert mask.dtype == torch.bool
            assert tuple(mask.shape) == table.shape(cell_type)
            for e, row in enumerate(table.rows[cell_type]):
                assert mask[e].tolist() == [candidate is not None for candidate in row]
                width = int(mask[e].sum())
                assert mask[e, :width].all()  # what pads a row stands at its end

    def test_the_clean_mask_pads_the_edges_of_a_reduction_that_have_stride_1(self) -> None:
        mask = DartsSpace().table(BIO).mask("reduce")
        assert mask.sum(1).tolist() == [23 if source < 2 else 20 for _, source in EDGES]
        assert DartsSpace().table(BIO).mask("normal").all()

    @pytest.mark.parametrize("rules", [BIO, ("bp",), ("fa",), ("bp", "usf")])
    def test_clean_candidates_have_a_rule_exactly_where_they_have_weights(
        self, rules: tuple[str, ...]
    ) -> None:
        table = DartsSpace().table(rules)
        for cell_type in ("normal", "reduce"):
            for (_, source), row in zip(EDGES, table.rows[cell_type], strict=True):
                stride = 2 if cell_type == "reduce" and source < 2 else 1
                for candidate in row:
                    if candidate is not None:
                        assert (candidate.rule is not None) == has_weights(candidate.op, stride)


def published_derivation(
    values: Sequence[Sequence[float]], rows: Sequence[Sequence[Candidate]]
) -> list[Any]:
    """The parse function of DARTS' code, step by step: [(node, input, candidate)], two a node, the
    stronger first.
    """
    gene: list[Any] = []
    start = 0
    for node in range(2, 6):
        allowed, best = [], []
        for j in range(node):
            row, value = rows[start + j], values[start + j]
            allowed.append([k for k in range(len(row)) if row[k].op != "none"])
            # Ours, where rows differ in length: how often the uniform share of its row a candidate
            # has.
            best.append(len(row) * max(value[k] for k in allowed[j]))
        for j in sorted(range(node), key=lambda j, best=best: -best[j])[:2]:
            k_best = None
            for k in allowed[j]:
                if k_best is None or values[start + j][k] > values[start + j][k_best]:
                    k_best = k
            assert k_best is not None
            gene.append((node, j, rows[start + j][k_best]))
        start += node
    return gene


def without_idle_rules(gene: list[Any], cell_type: str) -> set[Any]:
    """A rule is only kept where the operation has weights."""
    strides = {j: 2 if cell_type == "reduce" and j < 2 else 1 for j in range(5)}
    return {
        (node, j, c if has_weights(c.op, strides[j]) else Candidate(c.op)) for node, j, c in gene
    }


def random_weights(
    table: CandidateTable, law: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """Edge weights of a table; `law` says how many of them are equal."""
    weights = {}
    for cell_type in ("normal", "reduce"):
        shape = table.shape(cell_type)
        if law == "softmax":
            logits = torch.randn(shape, generator=generator).masked_fill(
                ~table.mask(cell_type), -torch.inf
            )
            weights[cell_type] = logits.softmax(1)
        elif law == "many ties":
            weights[cell_type] = torch.rand(shape, generator=generator).mul(10).round() / 10
        elif law == "two values":
            weights[cell_type] = torch.randint(2, shape, generator=generator).double()
        elif law == "all equal":
            weights[cell_type] = torch.full(shape, 1 / shape[1], dtype=torch.float64)
        elif law == "none strongest":
            weights[cell_type] = torch.randn(shape, generator=generator)
            weights[cell_type][:, 0] = 100
        else:
            assert law == "padding strongest"
            weights[cell_type] = torch.randn(shape, generator=generator)
            weights[cell_type][~table.mask(cell_type)] = 100
    return weights


LAWS = {
    "softmax": 120,
    "many ties": 120,
    "two values": 40,
    "all equal": 1,
    "none strongest": 20,
    "padding strongest": 20,
}


class TestDerivation:
    @every_layout_and_rules
    @pytest.mark.parametrize("law", LAWS)
    def test_agrees_with_the_published_rule(
        self, layout: str, rules: tuple[str, ...], law: str
    ) -> None:
        """On some 3,200 random tables in all, with ties broken as there: the earlier edge, the
        earlier candidate.
        """
        space = SPACES.build(f"darts(layout={layout})")
        table, generator = space.table(rules), torch.Generator().manual_seed(len(law))
        rows = {
            t: [[c for c in row if c is not None] for row in table.rows[t]]
            for t in space.cell_types
        }
        for _ in range(LAWS[law]):
            weights = random_weights(table, law, generator)
            cells = space.derive(weights, table)
            assert set(cells) == {"normal", "reduce"}
            for cell_type, cell in cells.items():
                gene = published_derivation(weights[cell_type].tolist(), rows[cell_type])
                found = {(e.node, e.input, e.candidate) for e in cell.edges}
                assert found == without_idle_rules(gene, cell_type)
                assert len(cell.edges) == 8
                assert cell.concat == (2, 3, 4, 5)
                assert "none" not in {e.candidate.op for e in cell.edges}

    @pytest.mark.parametrize("layout", ["clean", "paper"])
    def test_an_edge_with_more_candidates_has_no_disadvantage(self, layout: str) -> None:
        """Before alpha has moved all edges of a node are equally strong, and so they are if each
        moves equally: in a reduction of the clean layout those from the inputs have 23 candidates,
        inner ones 20.
        """
        space = SPACES.build(f"darts(layout={layout})")
        table = space.table(BIO)
        for moved in (0.0, 0.3):
            weights = {}
            for cell_type in space.cell_types:
                mask = table.mask(cell_type)
                share = torch.ones(table.shape(cell_type), dtype=torch.float64)
                share[:, 1] += moved
                weights[cell_type] = share.masked_fill(~mask, 0) / mask.sum(1, keepdim=True)
            for cell in space.derive(weights, table).values():
                assert [(e.node, e.input) for e in cell.edges] == [
                    (n, j) for n in range(2, 6) for j in (0, 1)
                ]

    @every_layout_and_rules
    def test_what_is_derived_is_a_valid_genotype_file(
        self, layout: str, rules: tuple[str, ...]
    ) -> None:
        """Whatever wins, the genotype can be written, read and used again."""
        space = SPACES.build(f"darts(layout={layout})")
        table, generator = space.table(rules), torch.Generator().manual_seed(0)
        for law in ("softmax", "two values", "all equal"):
            for _ in range(20):
                genotype = Genotype(
                    "darts", space.derive(random_weights(table, law, generator), table)
                )
                DartsSpace().validate(genotype, "derived")
                assert from_json(genotype.to_json(), "derived") == genotype

    @pytest.mark.parametrize("layout", ["clean", "paper"])
    def test_a_candidate_without_weights_has_no_rule(self, layout: str) -> None:
        """The paper's skip:usf at stride 1 is the identity; at stride 2 it keeps its rule."""
        space = SPACES.build(f"darts(layout={layout})")
        table = space.table(BIO)
        weights = {
            t: torch.tensor(
                [
                    [
                        float(c is not None and c.op == "skip_connect" and c.rule in (None, "usf"))
                        for c in row
                    ]
                    for row in rows
                ]
            )
            for t, rows in table.rows.items()
        }
        cells = space.derive(weights, table)
        assert {e.candidate for e in cells["normal"].edges} == {Candidate("skip_connect")}
        for edge in cells["reduce"].edges:
            assert edge.candidate == Candidate("skip_connect", "usf" if edge.input < 2 else None)

    def test_weights_that_require_gradients_can_be_derived_from(self) -> None:
        """Strategies hand over what they have."""
        space = DartsSpace()
        table = space.table(("bp",))
        weights = {t: torch.rand(table.shape(t), requires_grad=True) for t in space.cell_types}
        assert space.derive(weights, table) == space.derive(
            {t: w.detach() for t, w in weights.items()}, table
        )

    @pytest.mark.parametrize("nodes", [1, 3])
    def test_other_numbers_of_nodes_are_derived_and_valid(self, nodes: int) -> None:
        space = DartsSpace(nodes=nodes)
        table = space.table(BIO)
        cells = space.derive({t: torch.rand(table.shape(t)) for t in space.cell_types}, table)
        assert all(len(cell.edges) == 2 * nodes for cell in cells.values())
        space.validate(Genotype("darts", cells), "derived")


class TestOperations:
    @pytest.mark.parametrize("op", OPERATIONS.names())
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("supernet", [False, True])
    def test_sizes(self, op: str, stride: int, supernet: bool) -> None:
        """(N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)), odd sizes and single pixels among
        them.
        """
        module = OPERATIONS.get(op).build(4, stride, RULES.build("usf"), supernet)
        for height, width in ((8, 8), (15, 17), (7, 4), (1, 2)):
            y = module(torch.randn(3, 4, height, width))
            assert y.shape == (3, 4, math.ceil(height / stride), math.ceil(width / stride))

    @pytest.mark.parametrize("op", OPERATIONS.names())
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("supernet", [False, True])
    def test_a_rule_is_carried_by_every_weighted_layer_or_means_nothing(
        self, op: str, stride: int, supernet: bool
    ) -> None:
        """Also by the factorised reduction of a skip at stride 2, which published code always
        trains by bp.
        """
        rule = RULES.build("frsf")
        module = OPERATIONS.get(op).build(4, stride, rule, supernet)
        weighted = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        assert weighted == [layer for _, layer in rule_layers(module)]
        assert all(layer.rule == rule for _, layer in rule_layers(module))
        assert bool(weighted) == OPERATIONS.get(op).carries_rule(stride) == has_weights(op, stride)

    @pytest.mark.parametrize("op", OPERATIONS.names())
    @pytest.mark.parametrize("stride", [1, 2])
    def test_batch_norms_have_gain_and_bias_outside_the_supernet_only(
        self, op: str, stride: int
    ) -> None:
        """In the supernet every candidate with a scale of its own ends in one, so that all are
        mixed at equal scale.
        """
        for supernet in (False, True):
            module = OPERATIONS.get(op).build(4, stride, RULES.build("bp"), supernet)
            norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
            assert all(norm.affine != supernet for norm in norms)
            # What is drawn from N(0, 1) has that scale already.
            unscaled = op in ("none", "noise") or (op, stride) == ("skip_connect", 1)
            if supernet and not unscaled:
                y = module(3 * torch.randn(16, 4, 12, 12) + 1)
                assert y.mean((0, 2, 3)).abs().max() < 1e-4
                assert (y.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-2

    @pytest.mark.parametrize("size", [(6, 6), (7, 5)])
    def test_the_factorised_reduction_reads_every_pixel(self, size: tuple[int, int]) -> None:
        """The even branch sees the pixels at (even, even), the odd one those at (odd, odd): half of
        the pixels of a row that a single convolution of stride 2 would lose.
        """
        module = OPERATIONS.get("skip_connect").build(2, 2, RULES.build("bp"), False).eval()
        x = torch.rand(1, 2, *size).add(0.5).requires_grad_()
        even, odd = (
            torch.autograd.grad(module(x)[:, c].sum(), x)[0].abs().sum((0, 1)) > 0 for c in (0, 1)
        )
        rows, columns = torch.arange(size[0])[:, None], torch.arange(size[1])[None, :]
        assert torch.equal(even, (rows % 2 == 0) & (columns % 2 == 0))
        assert torch.equal(odd, (rows % 2 == 1) & (columns % 2 == 1))

    def test_none_is_zero_and_sends_no_error(self) -> None:
        module = OPERATIONS.get("none").build(2, 2, RULES.build("bp"), True)
        x = torch.full((1, 2, 5, 5), torch.inf)
        assert torch.equal(module(x), torch.zeros(1, 2, 3, 3))
        assert not module(x.requires_grad_()).requires_grad

    def test_average_pooling_does_not_count_the_padding(self) -> None:
        module = OPERATIONS.get("avg_pool_3x3").build(1, 1, RULES.build("bp"), False)
        torch.testing.assert_close(module(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))
