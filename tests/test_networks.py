"""Supernet and discrete network: published counts, cells by hand, rules in their places, and what a
new rule gets.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.networks import (
    STEMS,
    AuxiliaryHead,
    Network,
    SuperNet,
    build_network,
    multiply_adds,
    parameters,
)
from darts_bio.networks.cells import DropPath
from darts_bio.networks.reference import ReferenceCell
from darts_bio.rules import (
    RULES,
    InitialLaw,
    LearningRule,
    RuleConv2d,
    RuleLinear,
    draw_feedback,
    learned_feedback,
    rule_layers,
    true_gradients,
)
from darts_bio.spaces import (
    OPERATIONS,
    SPACES,
    Candidate,
    Cell,
    Edge,
    Genotype,
    Space,
    load_genotype,
)
from darts_bio.spaces.darts import DartsSpace

BIO = ("fa", "usf", "brsf", "frsf")
IMAGE = torch.zeros(1, 3, 32, 32)

every_rule = pytest.mark.parametrize("rule", RULES.names())
KERNEL_RULES = [name for name in RULES if not (RULES.get(name).local or RULES.get(name).direct)]
every_kernel_rule = pytest.mark.parametrize("rule", KERNEL_RULES)
"""Those under which all learn by the error that arrives, sent down through a kernel."""
every_cell_type = pytest.mark.parametrize("cell_type", ["normal", "reduce"])
every_layout = pytest.mark.parametrize("layout", ["clean", "paper"])


def with_rule(genotype: Genotype, rule: str, backbone: str | None = None) -> Genotype:
    """The same architecture, every weighted candidate under one rule."""

    def change(edge: Edge) -> Edge:
        return (
            edge
            if edge.candidate.rule is None
            else replace(edge, candidate=Candidate(edge.candidate.op, rule))
        )

    cells = {
        name: Cell(tuple(map(change, cell.edges)), cell.concat)
        for name, cell in genotype.cells.items()
    }
    return Genotype(genotype.space, cells, backbone or rule)


def uniform_weights(net: SuperNet, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Equal weights for all candidates of an edge."""
    return {
        t: net.table.mask(t) / net.table.mask(t).sum(1, keepdim=True).to(dtype)
        for t in net.table.rows
    }


def supernet(rules: tuple[str, ...], layout: str = "clean", **sizes: Any) -> SuperNet:
    sizes = {"channels": 2, "layers": 3, "num_classes": 10} | sizes
    return SuperNet(SPACES.build(f"darts(layout={layout})"), rules, **sizes)


def weights(net: nn.Module) -> list[nn.Parameter]:
    """The parameters but feedback that is learned."""
    feedback = set(map(id, learned_feedback(net)))
    return [p for p in net.parameters() if id(p) not in feedback]


class TestPublishedCounts:
    @every_layout
    def test_supernet(self, layout: str) -> None:
        """With the 8 original candidates at C=16, L=8: 1,930,618 weights, 300.26 M
        multiply-adds.
        """
        net = supernet(("bp",), layout, channels=16, layers=8)
        assert parameters(net) == 1_930_618
        assert multiply_adds(net, lambda: net(IMAGE, uniform_weights(net))) / 1e6 == pytest.approx(
            300.26, abs=0.005
        )

    def test_darts_v2(self) -> None:
        """At C=36, L=20: 3,349,342 parameters, 3,825,768 with the auxiliary head, 528.36 M
        multiply-adds.
        """
        net = build_network(load_genotype("darts_v2"), channels=36, layers=20, auxiliary=True)
        assert net.auxiliary is not None
        assert parameters(net) == 3_825_768
        assert parameters(net) - parameters(net.auxiliary) == 3_349_342
        assert multiply_adds(net, lambda: net(IMAGE)) / 1e6 == pytest.approx(528.36, abs=0.005)

    def test_darts_v2_for_imagenet(self) -> None:
        """At C=48, L=14: 4,718,752 parameters, 5,979,528 with the auxiliary head, 529.91 M
        multiply-adds.
        """
        sizes: dict[str, Any] = {
            "channels": 48,
            "layers": 14,
            "num_classes": 1000,
            "stem": "imagenet",
        }
        net = build_network(load_genotype("darts_v2"), auxiliary=True, **sizes)
        assert net.auxiliary is not None
        assert parameters(net) == 5_979_528
        assert parameters(net) - parameters(net.auxiliary) == 4_718_752
        adds = multiply_adds(net, lambda: net(torch.zeros(1, 3, 224, 224)))
        assert adds / 1e6 == pytest.approx(529.91, abs=0.005)

    def test_a_genotype_made_by_hand_is_checked(self) -> None:
        genotype = load_genotype("darts_v2")
        with pytest.raises(InputError, match="genotype.cells.reduce: missing"):
            build_network(replace(genotype, cells={"normal": genotype.cells["normal"]}))

    def test_a_name_is_no_genotype(self) -> None:
        with pytest.raises(InputError, match=r"expected a genotype, found 'darts_v2'; read one by"):
            build_network("darts_v2")  # type: ignore[arg-type]

    @pytest.mark.parametrize("option", ["num_classes", "in_channels"])
    def test_sizes_that_make_no_network(self, option: str) -> None:
        with pytest.raises(InputError, match=f"{option}: expected at least 1, found 0"):
            build_network(load_genotype("darts_v2"), **{option: 0})

    def test_the_auxiliary_head_is_optional(self) -> None:
        assert (
            parameters(build_network(load_genotype("darts_v2"), channels=36, layers=20))
            == 3_349_342
        )

    @every_rule
    def test_feedback_never_counts(self, rule: str) -> None:
        """Parameters and multiply-adds are those of bp."""
        sizes: dict[str, Any] = {"channels": 4, "layers": 5, "auxiliary": True}
        exact = build_network(with_rule(load_genotype("bionas_darts"), "bp"), **sizes)
        net = build_network(with_rule(load_genotype("bionas_darts"), rule), **sizes)
        assert parameters(net) == parameters(exact)
        assert [p.shape for p in weights(net)] == [p.shape for p in exact.parameters()]
        assert multiply_adds(net, lambda: net(IMAGE)) == multiply_adds(exact, lambda: exact(IMAGE))
        has_feedback = rule != "bp" and not RULES.get(rule).local
        assert any("feedback" in name for name in net.state_dict()) == has_feedback

    @every_rule
    @every_layout
    def test_feedback_never_counts_in_the_supernet(self, rule: str, layout: str) -> None:
        """Where the layout is the same: one rule for every weighted candidate."""
        if layout == "paper" and rule == "fa":
            layout = "clean"  # the paper pairs no skip with fa
        exact, net = (
            SuperNet(DartsSpace(layout), (r,), channels=2, layers=3, num_classes=7)
            for r in ("bp", rule)
        )  # type: ignore[arg-type]
        assert parameters(net) == parameters(exact)

    def test_candidates_under_four_rules_have_four_times_the_weights(self) -> None:
        """Of the edges; the backbone is shared."""
        one, four = supernet(("usf",)), supernet(BIO)
        backbone = parameters(one) - parameters(one.cells)
        assert parameters(four) - parameters(four.cells) == backbone
        assert parameters(four.cells) == 4 * parameters(one.cells)


class TestMultiplyAdds:
    def test_by_hand(self) -> None:
        """9 taps x 3/1 inputs x 8 outputs x 5x5 positions, a depthwise layer, and a linear one."""
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Flatten(),
            nn.Linear(72, 5),
        )
        assert multiply_adds(net, lambda: net(torch.zeros(2, 3, 7, 7))) == 2 * (
            27 * 8 * 25 + 9 * 8 * 9 + 72 * 5
        )

    @pytest.mark.parametrize("training", [True, False])
    def test_nothing_of_the_model_changes(self, training: bool) -> None:
        """Neither mode, nor batch norm's statistics, nor gradients, nor the generator."""
        net = supernet(("usf",)).train(training)
        state, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
        multiply_adds(net, lambda: net(IMAGE, uniform_weights(net)))
        assert {m.training for m in net.modules()} == {training}
        assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
        assert torch.equal(torch.get_rng_state(), rng)
        assert torch.is_grad_enabled()

    def test_the_mode_of_each_part_is_kept(self) -> None:
        """A frozen batch norm stays in evaluation mode while the rest is in training."""
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4).eval())
        multiply_adds(net, lambda: net(IMAGE))
        assert [m.training for m in net.modules()] == [True, True, False]

    def test_the_mode_is_kept_after_an_exception(self) -> None:
        net = nn.Sequential(nn.Conv2d(3, 4, 3))
        with pytest.raises(RuntimeError):
            multiply_adds(net, lambda: net(torch.zeros(1, 5, 8, 8)))
        assert net.training


def random_states(n: int = 3, channels: int = 4, size: tuple[int, int] = (6, 5)) -> list[Tensor]:
    return [torch.randn(n, channels, *size, dtype=torch.float64) for _ in range(2)]


class TestReferenceCell:
    @every_cell_type
    @every_layout
    def test_one_hot_weights_give_the_discrete_cell(self, cell_type: str, layout: str) -> None:
        """The output is the sum of the candidates chosen, by hand, whichever they are."""
        space: Space = SPACES.build(f"darts(layout={layout})")
        table = space.table(BIO)
        cell = ReferenceCell(space, cell_type, table.rows[cell_type], 4).double()
        mask, states = table.mask(cell_type), random_states()
        for _ in range(5):
            chosen = mask.float().multinomial(1)
            weights = torch.zeros(mask.shape, dtype=torch.float64).scatter_(1, chosen, 1.0)
            outputs = list(states)
            for node in range(2, 6):
                incoming = [e for e, (target, _) in enumerate(space.edges) if target == node]
                outputs.append(
                    torch.stack(
                        [
                            cell.edges[e][chosen[e].item()](outputs[space.edges[e][1]])
                            for e in incoming
                        ]
                    ).sum(0)
                )
            expected = torch.cat(outputs[2:], dim=1)
            torch.testing.assert_close(
                cell(list(states), weights), expected, rtol=1e-10, atol=1e-10
            )

    @every_cell_type
    def test_any_weights_give_the_weighted_sum_over_candidates_and_edges(
        self, cell_type: str
    ) -> None:
        space = DartsSpace()
        table = space.table(("usf", "fa"))
        cell = ReferenceCell(space, cell_type, table.rows[cell_type], 4).double()
        weights, states = torch.randn(table.shape(cell_type), dtype=torch.float64), random_states()
        outputs = list(states)
        for node in range(2, 6):
            total = torch.zeros(())
            for e, (target, source) in enumerate(space.edges):
                if target == node:
                    for k, candidate in enumerate(cell.edges[e]):
                        total = total + weights[e, k] * candidate(outputs[source])
            outputs.append(total)
        torch.testing.assert_close(
            cell(list(states), weights), torch.cat(outputs[2:], 1), rtol=1e-9, atol=1e-9
        )

    def test_the_weights_of_padding_mean_nothing(self) -> None:
        """They may hold anything, and get no gradient."""
        space = DartsSpace()
        table = space.table(BIO)
        cell = ReferenceCell(space, "reduce", table.rows["reduce"], 4).double()
        padding, states = ~table.mask("reduce"), random_states()
        assert padding.any()
        weights = torch.rand(table.shape("reduce"), dtype=torch.float64)
        expected = cell(list(states), weights)
        weights = weights.masked_fill(padding, torch.nan).requires_grad_()
        found = cell(list(states), weights)
        assert torch.equal(found, expected)
        (gradient,) = torch.autograd.grad(found.square().sum(), weights)
        assert not gradient[padding].any()
        assert gradient[~padding].count_nonzero() >= 0.9 * (~padding).sum()

    @every_cell_type
    def test_candidates_stand_in_the_order_of_the_table(self, cell_type: str) -> None:
        """Column k of the edge weights is candidate k of the row: its operation, at its stride,
        under its rule.
        """
        space = DartsSpace()
        table = space.table(BIO)
        cell = ReferenceCell(space, cell_type, table.rows[cell_type], 4)
        x = torch.randn(2, 4, 8, 8)
        for (_, source), row, edge in zip(
            space.edges, table.rows[cell_type], cell.edges, strict=True
        ):
            stride = 2 if cell_type == "reduce" and source < 2 else 1
            candidates = [c for c in row if c is not None]
            assert len(edge) == len(candidates)
            for candidate, module in zip(candidates, edge, strict=True):
                twin = OPERATIONS.get(candidate.op).build(
                    4, stride, RULES.build(candidate.rule or "bp"), True
                )
                assert str(module) == str(twin)
                assert {layer.rule for _, layer in rule_layers(module)} <= {
                    RULES.build(candidate.rule or "bp")
                }
                assert module(x).shape[2:] == (8 // stride, 8 // stride)


class TestDiscreteNetwork:
    @pytest.mark.parametrize("name", ["darts_v1", "bionas_darts", "p_darts"])
    def test_a_cell_sums_the_edges_of_its_genotype(self, name: str) -> None:
        """By hand, on the edges' own modules."""
        genotype = load_genotype(name)
        net = build_network(genotype, channels=4, layers=3).double().eval()
        for cell, cell_type in zip(net.cells, net.plan, strict=True):
            states = random_states(channels=8 if cell_type == "reduce" else 4)
            if cell is net.cells[2]:
                states = random_states(channels=16)
            outputs = dict(enumerate(states))
            edges = sorted(
                zip(genotype.cells[cell_type].edges, cell.edges, strict=True),
                key=lambda pair: pair[0].node,
            )
            for edge, module in edges:
                outputs[edge.node] = outputs.get(edge.node, 0) + module(outputs[edge.input])
            expected = torch.cat([outputs[node] for node in (2, 3, 4, 5)], 1)
            torch.testing.assert_close(cell(list(states)), expected, rtol=1e-12, atol=1e-12)

    def test_the_order_of_edges_in_a_file_and_the_nodes_of_the_output(self) -> None:
        """Edges may stand in any order; the output concatenates exactly the nodes asked for, in
        that order.
        """
        skip = Candidate("skip_connect")
        edges = (
            Edge(3, 2, skip),
            Edge(2, 0, skip),
            Edge(3, 0, skip),
            Edge(2, 1, Candidate("max_pool_3x3")),
        )
        normal = Cell(edges, (3, 2))
        genotype = Genotype(
            "darts", {"normal": normal, "reduce": load_genotype("darts_v1").cells["reduce"]}
        )
        net = build_network(genotype, channels=4, layers=3).double()
        older, newer = random_states()
        node_2 = older + F.max_pool2d(newer, 3, 1, 1)
        torch.testing.assert_close(
            net.cells[0]([older, newer]), torch.cat([node_2 + older, node_2], 1)
        )
        assert net(torch.randn(2, 3, 8, 8, dtype=torch.float64)).shape == (2, 10)

    def test_rules_stand_where_the_genotype_says(self) -> None:
        """Each edge's on its own layers, the backbone's everywhere else: stem, inputs, classifier,
        auxiliary head.
        """
        genotype = replace(load_genotype("bionas_darts"), backbone_rule="brsf")
        net = build_network(genotype, channels=4, layers=4, auxiliary=True)
        found: dict[str, list[str]] = {"edges": [], "backbone": []}
        for name, layer in rule_layers(net):
            found["edges" if name.startswith("cells.") else "backbone"].append(
                RULES.name_of(layer.rule)
            )
        assert set(found["backbone"]) == {"brsf"}
        normal, reduce = (
            ["usf"] * 8 + ["frsf"] * 8,
            ["usf"] * 4,
        )  # 4 layers a sep_conv, 2 a dil_conv or a reduction
        assert sorted(found["edges"]) == sorted(2 * (normal + reduce))
        for cell, cell_type in zip(net.cells, net.plan, strict=True):
            for edge, module in zip(genotype.cells[cell_type].edges, cell.edges, strict=True):
                assert {RULES.name_of(layer.rule) for _, layer in rule_layers(module)} == (
                    {edge.candidate.rule} - {None}
                )

    def test_every_weighted_layer_carries_a_rule(self) -> None:
        for net in (
            build_network(load_genotype("p_darts"), channels=4, layers=4, auxiliary=True),
            supernet(BIO),
        ):
            weighted = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
            assert weighted == [layer for _, layer in rule_layers(net)]


class TestSizes:
    @pytest.mark.parametrize(("in_channels", "num_classes"), [(1, 2), (3, 11)])
    def test_any_image_size(self, in_channels: int, num_classes: int) -> None:
        """Odd sizes too, in training and in evaluation, of any number of channels and classes."""
        sizes = {"channels": 2, "layers": 3, "num_classes": num_classes, "in_channels": in_channels}
        net, one_shot = (
            build_network(load_genotype("bionas_darts"), **sizes),
            supernet(("usf",), **sizes),
        )
        for size, training in (
            ((15, 17), True),
            ((8, 8), True),
            ((5, 32), False),
            ((4, 7), True),
            ((1, 1), False),
        ):
            x = torch.randn(3, in_channels, *size)
            assert net.train(training)(x).shape == (3, num_classes)
            assert one_shot.train(training)(x, uniform_weights(one_shot)).shape == (3, num_classes)

    def test_size_halves_and_channels_double_at_each_reduction(self) -> None:
        net = build_network(load_genotype("darts_v2"), channels=4, layers=6)
        outputs: list[Tensor] = []
        for cell in net.cells:
            cell.register_forward_hook(lambda cell, states, y: outputs.append(y))
        net(torch.randn(2, 3, 17, 32))
        expected = [(16, 17, 32)] * 2 + [(32, 9, 16)] * 2 + [(64, 5, 8)] * 2
        assert [tuple(y.shape[1:]) for y in outputs] == expected

    @pytest.mark.parametrize(
        ("size", "halved"), [((64, 64), (8, 8)), ((33, 47), (5, 6)), ((1, 9), (1, 2))]
    )
    def test_the_stem_of_imagenet_halves_three_times(
        self, size: tuple[int, int], halved: tuple[int, int]
    ) -> None:
        """Each halving rounds up; the older output, of twice the size, is reduced before the first
        cell.
        """
        net = build_network(
            load_genotype("bionas_darts"), channels=4, layers=3, num_classes=7, stem="imagenet"
        ).eval()
        x = torch.randn(2, 3, *size)
        older, newer = net.stem(x)
        assert newer.shape == (2, 4, *halved)
        assert older.shape[2:] == tuple(-(-side // 4) for side in size)
        assert net(x).shape == (2, 7)

    @pytest.mark.parametrize(
        "name",
        ["darts_v2", "|nor_conv_3x3:fa~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|none~2|"],
    )
    def test_every_space_takes_every_stem(self, name: str) -> None:
        for stem in STEMS:
            net = build_network(load_genotype(name), channels=4, layers=6, stem=stem)
            net(torch.randn(2, 3, 40, 40)).square().sum().backward()
            assert all(p.grad is not None for p in net.stem.parameters())

    def test_the_stem_of_imagenet_by_hand(self) -> None:
        """conv-BN-ReLU-conv-BN, then ReLU-conv-BN, all convolutions 3x3 at stride 2, to C/2, C and
        C channels.
        """
        net = build_network(
            load_genotype("darts_v2"), channels=4, layers=3, stem="imagenet"
        ).double()
        first, second, third = (m.weight for m in net.stem.modules() if isinstance(m, RuleConv2d))
        assert [w.shape[0] for w in (first, second, third)] == [2, 4, 4]
        x = torch.randn(2, 3, 20, 20, dtype=torch.float64)

        def halved(x: Tensor, weight: Tensor) -> Tensor:
            return F.batch_norm(F.conv2d(x, weight, None, 2, 1), None, None, training=True)

        older = halved(halved(x, first).relu(), second)
        torch.testing.assert_close(net.stem(x), (older, halved(older.relu(), third)))

    @pytest.mark.parametrize("channels", [-2, 0, 1, 3, 35])
    def test_channels_must_be_even(self, channels: int) -> None:
        for build in (
            lambda: build_network(load_genotype("darts_v2"), channels=channels),
            lambda: supernet(("bp",), channels=channels),
        ):
            with pytest.raises(
                InputError,
                match=f"channels: expected an even number of at least 2, .*found {channels}",
            ):
                build()

    @pytest.mark.parametrize("layers", [0, 1, 2])
    def test_layers_must_hold_two_reductions(self, layers: int) -> None:
        for build in (
            lambda: build_network(load_genotype("darts_v2"), channels=4, layers=layers),
            lambda: supernet(("bp",), layers=layers),
        ):
            expected = "expected (at least 3|a whole number from 1 to 250),"
            with pytest.raises(InputError, match=f"layers: {expected} .*found {layers}"):
                build()

    @pytest.mark.parametrize("names", [("ufs",), ("bp", "usf(x=1)"), ("bp(",)])
    def test_unknown_rules(self, names: tuple[str, ...]) -> None:
        with pytest.raises(InputError, match=r"learning rule|expected 'name'"):
            supernet(names)
        with pytest.raises(InputError, match=r"learning rule|expected 'name'"):
            supernet(("bp",), backbone_rule=names[-1])  # type: ignore[arg-type]


class TestSeeds:
    def test_the_same_seed_gives_the_same_network(self) -> None:
        """Weights from the global generator, feedback from the seed given."""

        def build(weights: int, feedback: int) -> dict[str, Tensor]:
            torch.manual_seed(weights)
            return build_network(
                load_genotype("bionas_darts"), channels=4, layers=3, seed=feedback
            ).state_dict()

        first, again, other_feedback, other_weights = (
            build(1, 1),
            build(1, 1),
            build(1, 2),
            build(2, 1),
        )
        random_feedback = [name for name in first if name.endswith("feedback_magnitude")]
        weights = [
            name for name in first if name.endswith("conv.weight") or name == "stem.0.weight"
        ]
        assert random_feedback
        assert weights
        assert list(first) == list(again)
        assert all(torch.equal(first[name], again[name]) for name in first)
        for name in random_feedback:
            assert not torch.equal(first[name], other_feedback[name])
            assert torch.equal(first[name], other_weights[name])
        for name in weights:
            assert torch.equal(first[name], other_feedback[name])
            assert not torch.equal(first[name], other_weights[name])

    @every_rule
    def test_initial_weights_and_outputs_do_not_depend_on_rules(self, rule: str) -> None:
        """So that rules are compared from the same start."""
        x = torch.randn(2, 3, 8, 8)

        def build(name: str) -> Network:
            torch.manual_seed(3)
            return build_network(with_rule(load_genotype("darts_v2"), name), channels=4, layers=3)

        exact, net = build("bp"), build(rule)
        assert all(map(torch.equal, weights(net), exact.parameters()))
        torch.testing.assert_close(net(x), exact(x))

    def test_layers_of_a_network_have_feedback_of_their_own(self) -> None:
        net = build_network(with_rule(load_genotype("darts_v2"), "fa"), channels=4, layers=4)
        kernels = [b for name, b in net.named_buffers() if name.endswith("feedback_kernel")]
        assert len({tuple(k.flatten().tolist()) for k in kernels}) == len(kernels) > 50

    def test_a_checkpoint_of_a_network_round_trips(self, tmp_path: Path) -> None:
        net = build_network(load_genotype("bionas_darts"), channels=4, layers=3, seed=1)
        other = build_network(load_genotype("bionas_darts"), channels=4, layers=3, seed=2)
        torch.save(net.state_dict(), tmp_path / "net.pt")
        other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
        x = torch.randn(4, 3, 8, 8)
        for model in (net, other):
            model(x).square().sum().backward()
        assert all(
            torch.equal(a.grad, b.grad)
            for a, b in zip(net.parameters(), other.parameters(), strict=True)
        )


class TestDropPath:
    @pytest.mark.parametrize("probability", [0.1, 0.5, 0.8])
    def test_keeps_the_expectation_and_drops_whole_samples(self, probability: float) -> None:
        drop = DropPath().train()
        drop.probability = probability
        y = drop(torch.ones(20_000, 2, 1, 2))
        first = y[:, :1, :1, :1]
        assert torch.equal(y, first.expand_as(y))
        assert y.unique().tolist() == pytest.approx([0, 1 / (1 - probability)])
        spread = math.sqrt(probability / (1 - probability) / len(y))
        assert y.mean().item() == pytest.approx(1, abs=4 * spread)

    def test_keeps_the_expectation_of_the_error(self) -> None:
        """A dropped path sends no error down; a kept one sends the scaled error."""
        drop = DropPath().train()
        drop.probability = 0.25
        x = torch.randn(50, 2, 3, 3, requires_grad=True)
        y = drop(x)
        (dx,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(dx * x, y)

    def test_does_nothing_in_evaluation_or_at_zero(self) -> None:
        drop, x = DropPath(), torch.randn(5, 2, 3, 3)
        assert torch.equal(drop.train()(x), x)
        drop.probability = 0.9
        assert torch.equal(drop.eval()(x), x)
        assert not torch.equal(drop.train()(x), x)

    def test_identities_are_never_dropped_and_all_else_is(self) -> None:
        """Also skips at stride 2, which are no identities."""
        text = "[('skip_connect', 0), ('max_pool_3x3', 1)]"
        genotype = load_genotype(
            f"Genotype(normal={text}, normal_concat=[2], reduce={text}, reduce_concat=[2])"
        )
        net = build_network(genotype, channels=4, layers=3)
        net.set_drop_path(1 - 1e-9)
        older, newer = (s.float() for s in random_states())
        assert torch.equal(net.cells[0]([older, newer]), older)
        older, newer = (s.float() for s in random_states(channels=8))
        assert not net.cells[1]([older, newer]).any()
        net.eval()
        assert torch.equal(
            net.cells[0]([older[:, :4], newer[:, :4]]),
            older[:, :4] + F.max_pool2d(newer[:, :4], 3, 1, 1),
        )

    def test_set_drop_path_reaches_every_edge_but_identities(self) -> None:
        genotype = load_genotype("darts_v1")
        net = build_network(genotype, channels=4, layers=5)
        net.set_drop_path(0.3)
        drops = [m.probability for m in net.modules() if isinstance(m, DropPath)]
        identities = {
            t: sum(e.candidate == Candidate("skip_connect") for e in c.edges)
            for t, c in genotype.cells.items()
        }
        assert drops == [0.3] * sum(8 - identities[cell_type] for cell_type in net.plan)


class TestAuxiliaryHead:
    def test_only_in_training(self) -> None:
        x = torch.randn(2, 3, 32, 32)
        net = build_network(
            load_genotype("darts_v2"), channels=2, layers=3, num_classes=7, auxiliary=True
        )
        logits, auxiliary = net.train()(x)
        assert logits.shape == auxiliary.shape == (2, 7)
        assert not torch.equal(logits, auxiliary)
        assert net.eval()(x).shape == (2, 7)
        assert build_network(load_genotype("darts_v2"), channels=2, layers=3).train()(x).shape == (
            2,
            10,
        )

    def test_it_does_not_change_the_logits(self) -> None:
        net = build_network(load_genotype("darts_v2"), channels=2, layers=3, auxiliary=True)
        x = torch.randn(2, 3, 32, 32)
        logits, _ = net(x)
        net.auxiliary = None
        assert torch.equal(net(x), logits)

    @pytest.mark.parametrize(("layers", "last"), [(5, 3), (6, 4), (8, 5)])
    def test_it_stands_behind_two_thirds_of_the_depth(self, layers: int, last: int) -> None:
        """Its error reaches the cells up to there and none above."""
        net = build_network(load_genotype("p_darts"), channels=2, layers=layers, auxiliary=True)
        _, auxiliary = net(torch.randn(2, 3, 32, 32))
        auxiliary.sum().backward()
        reached = [any(p.grad is not None for p in cell.parameters()) for cell in net.cells]
        assert reached == [layer <= last for layer in range(layers)]
        assert net.classifier.weight.grad is None

    def test_on_8x8_it_is_the_published_head(self) -> None:
        """ReLU, 5x5 average pooling of stride 3, 1x1 to 128, BN, ReLU, 2x2 to 768, BN, ReLU,
        linear.
        """
        head = AuxiliaryHead(6, 10, RULES.build("bp")).double()
        x = random_states(channels=6, size=(8, 8))[0]
        weights = [p for p in head.parameters() if p.dim() > 1]
        assert [tuple(w.shape) for w in weights] == [(128, 6, 1, 1), (768, 128, 2, 2), (10, 768)]
        y = F.conv2d(F.avg_pool2d(F.relu(x), 5, 3, 0, count_include_pad=False), weights[0])
        y = F.conv2d(F.relu(F.batch_norm(y, None, None, training=True)), weights[1])
        y = F.relu(F.batch_norm(y, None, None, training=True)).flatten(1)
        torch.testing.assert_close(head(x), F.linear(y, weights[2], head.classifier.bias))
        assert parameters(head) == 128 * 6 + 2 * 128 + 768 * 128 * 4 + 2 * 768 + 7690

    def test_on_7x7_behind_the_stem_of_imagenet_it_is_the_published_head(self) -> None:
        """ReLU, 5x5 average pooling of stride 2, 1x1 to 128, BN, ReLU, 2x2 to 768, ReLU, linear."""
        head = AuxiliaryHead(6, 10, RULES.build("bp"), STEMS.get("imagenet")).double()
        x = random_states(channels=6, size=(7, 7))[0]
        weights = [p for p in head.parameters() if p.dim() > 1]
        y = F.conv2d(F.avg_pool2d(F.relu(x), 5, 2, 0, count_include_pad=False), weights[0])
        y = F.relu(
            F.conv2d(F.relu(F.batch_norm(y, None, None, training=True)), weights[1])
        ).flatten(1)
        torch.testing.assert_close(head(x), F.linear(y, weights[2], head.classifier.bias))
        with pytest.raises(
            InputError, match=r"auxiliary head: expected features of at least 7x7, found 6x7"
        ):
            head(x[:, :, 1:])

    @pytest.mark.parametrize("stem", STEMS)
    def test_the_least_image_is_the_least_that_the_network_takes(self, stem: str) -> None:
        """With both reductions before the head."""
        net = build_network(
            load_genotype("darts_v2"), channels=2, layers=3, auxiliary=True, stem=stem
        )
        side = AuxiliaryHead.least_image_behind(STEMS.get(stem))
        assert len(net(torch.randn(2, 3, side, side))) == 2
        with pytest.raises(InputError, match="auxiliary head: expected features"):
            net(torch.randn(2, 3, side - 1, side))

    def test_images_that_are_too_small(self) -> None:
        net = build_network(load_genotype("darts_v2"), channels=2, layers=3, auxiliary=True)
        with pytest.raises(
            InputError, match=r"auxiliary head: expected features of at least 8x8, found 4x5"
        ):
            net(torch.randn(2, 3, 15, 17))
        assert net.eval()(torch.randn(2, 3, 15, 17)).shape == (2, 10)


class StraightThrough(nn.Module):
    """A ruled layer as plain autograd: its value is W's, its derivative in x is that of the kernel
    K.
    """

    def __init__(self, layer: RuleConv2d | RuleLinear) -> None:
        super().__init__()
        self.layer = layer

    def linear_map(self, x: Tensor, weight: Tensor) -> Tensor:
        layer = self.layer
        if isinstance(layer, RuleLinear):
            return F.linear(x, weight)
        return F.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.layer.rule.kernel(self.layer.weight.detach(), self.layer.feedback)
        y = self.linear_map(x.detach(), self.layer.weight)
        through_kernel = self.linear_map(x, kernel)
        y = y + (through_kernel - through_kernel.detach())
        if self.layer.bias is None:
            return y
        return y + self.layer.bias.reshape(-1, *[1] * (x.dim() - 2))


def straight_through(module: nn.Module) -> nn.Module:
    """A copy of the module, sharing its tensors, with every ruled layer made plain."""
    if isinstance(module, RuleConv2d | RuleLinear):
        return StraightThrough(module)
    twin = copy.copy(module)
    twin._modules = {
        name: child and straight_through(child) for name, child in module._modules.items()
    }
    return twin


class TestOnlyWeightedLayersFollowTheRule:
    """Batch norm, ReLU, pooling, padding and additions keep their true derivative: the gradients of
    a network are those of plain autograd once each weighted layer, and nothing else, is given the
    derivative of its kernel.
    """

    @every_kernel_rule
    @pytest.mark.parametrize("op", OPERATIONS.names())
    @pytest.mark.parametrize("stride", [1, 2])
    def test_operations(self, rule: str, op: str, stride: int) -> None:
        for supernet, training in product((True, False), repeat=2):
            module = (
                OPERATIONS.get(op)
                .build(4, stride, RULES.build(rule), supernet)
                .double()
                .train(training)
            )
            draw_feedback(module, 3)
            x = torch.randn(3, 4, 7, 6, dtype=torch.float64, requires_grad=True)
            twin = straight_through(module)
            torch.manual_seed(1)
            expected = twin(x)
            torch.manual_seed(1)  # noise is drawn
            found = module(x)
            torch.testing.assert_close(found, expected)
            if op in ("none", "noise"):
                assert not found.requires_grad
                continue
            dy = torch.randn_like(found)
            inputs = [x, *module.parameters()]
            for a, b in zip(
                torch.autograd.grad(found, inputs, dy),
                torch.autograd.grad(expected, inputs, dy),
                strict=True,
            ):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)

    @every_kernel_rule
    def test_networks(self, rule: str) -> None:
        """With every part of it under the rule."""
        for genotype in (load_genotype("bionas_darts"), load_genotype("p_darts")):
            net = build_network(
                with_rule(genotype, rule), channels=2, layers=3, auxiliary=True
            ).double()
            x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
            loss, expected = (
                sum(y.square().sum() for y in model(x)) for model in (net, straight_through(net))
            )
            inputs = list(net.parameters())
            for a, b in zip(
                torch.autograd.grad(loss, inputs),
                torch.autograd.grad(expected, inputs),
                strict=True,
            ):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)

    def test_true_gradients_of_a_network_are_those_of_bp(self) -> None:
        net = build_network(load_genotype("bionas_darts"), channels=2, layers=3).double()
        exact = build_network(
            with_rule(load_genotype("bionas_darts"), "bp"), channels=2, layers=3
        ).double()
        exact.load_state_dict(dict(net.named_parameters()), strict=False)
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
        inputs = {net: [x, *net.parameters()], exact: [x, *exact.parameters()]}
        expected = torch.autograd.grad(exact(x).square().sum(), inputs[exact])
        ruled = torch.autograd.grad(net(x).square().sum(), inputs[net])
        with true_gradients(net):
            found = torch.autograd.grad(net(x).square().sum(), inputs[net])
        assert all(map(torch.equal, found, expected))
        assert not torch.allclose(ruled[0], expected[0], rtol=0.1)


class TestAlphaGradients:
    @staticmethod
    def equalise(net: SuperNet) -> None:
        """Gives all candidates of an edge that share an operation the weights of the first of
        them.
        """
        for cell, cell_type in zip(net.cells, net.plan, strict=True):
            for row, edge in zip(net.table.rows[cell_type], cell.edges, strict=True):
                first: dict[str, nn.Module] = {}
                for candidate, module in zip([c for c in row if c is not None], edge, strict=True):
                    source = first.setdefault(candidate.op, module)
                    module.load_state_dict(dict(source.named_parameters()), strict=False)

    @every_layout
    def test_candidates_that_differ_in_their_rule_alone_get_equal_gradients(
        self, layout: str
    ) -> None:
        """A rule changes the error that a layer sends down, and so what the layers below it get;
        never what its own edge weight gets.
        """
        net = supernet(BIO, layout, cell=ReferenceCell).double()
        draw_feedback(net, 0)
        self.equalise(net)
        weights = {t: w.requires_grad_() for t, w in uniform_weights(net, torch.float64).items()}
        loss = F.cross_entropy(
            net(torch.randn(4, 3, 9, 9, dtype=torch.float64), weights), torch.arange(4)
        )
        gradients = dict(
            zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True)
        )
        compared = 0
        for cell_type, gradient in gradients.items():
            for row, values in zip(net.table.rows[cell_type], gradient, strict=True):
                of_op: dict[str, list[Tensor]] = {}
                for candidate, value in zip(row, values, strict=True):
                    if candidate is not None:
                        of_op.setdefault(candidate.op, []).append(value)
                for same in of_op.values():
                    torch.testing.assert_close(
                        torch.stack(same), same[0].expand(len(same)), rtol=1e-10, atol=1e-14
                    )
                    compared += len(same) - 1
        assert compared >= 2 * 14 * 4 * 3
        with true_gradients(net):
            loss = F.cross_entropy(
                net(torch.randn(4, 3, 9, 9, dtype=torch.float64), weights), torch.arange(4)
            )
            exact = torch.autograd.grad(loss, list(weights.values()))
        assert not torch.allclose(gradients["normal"], exact[0], rtol=0.01)

    def test_the_supernet_is_a_function_of_its_edge_weights(self) -> None:
        """Alpha's gradient under bp agrees with finite differences; alpha is no part of the
        network.
        """
        net = supernet(("bp",)).double().eval()
        assert not any("alpha" in name for name in net.state_dict())
        x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
        weights = {t: w.requires_grad_() for t, w in uniform_weights(net, torch.float64).items()}
        gradients = torch.autograd.grad(net(x, weights).square().sum(), list(weights.values()))
        directions = {t: torch.randn_like(w) for t, w in weights.items()}
        slope = sum(
            (g * v).sum() for g, v in zip(gradients, directions.values(), strict=True)
        ).item()
        with torch.no_grad():
            plus, minus = (
                net(x, {t: w + sign * 1e-6 * directions[t] for t, w in weights.items()})
                .square()
                .sum()
                .item()
                for sign in (1, -1)
            )
        assert slope == pytest.approx((plus - minus) / 2e-6, rel=1e-5)


@pytest.fixture
def new_rule() -> Iterator[str]:
    """A rule as a user would add it: one class, registered by name; gone after the test."""

    @RULES.register("noisy_test_rule")
    @dataclass(frozen=True)
    class NoisyTestRule(LearningRule):
        """K = gain W + R / 10, R redrawn once a weight update."""

        gain: float = 1.0
        carries = "values"
        renews = True

        def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
            return {"noise": law.sample(generator) / 10}

        def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
            return self.gain * weight + state["noise"]

    yield "noisy_test_rule"
    RULES.unregister("noisy_test_rule")


def train(model: nn.Module, forward: Any, steps: int = 8, lr: float = 0.02) -> list[float]:
    """The losses of a few SGD steps, feedback redrawn after each."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=lr), []
    for step in range(steps):
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        losses.append(loss.item())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        draw_feedback(model, 0, step + 1)
    return losses


class TestANewRule:
    """Conformance: one registered class is all that a rule needs."""

    @pytest.mark.parametrize("op", OPERATIONS.names())
    @pytest.mark.parametrize("stride", [1, 2])
    def test_is_trainable_in_every_operation(self, new_rule: str, op: str, stride: int) -> None:
        """Below a weighted candidate, the error is the new rule's; the candidate learns."""
        torch.manual_seed(1)
        rule = RULES.build(f"{new_rule}(gain=2)")
        module = nn.Sequential(nn.Conv2d(4, 4, 1), OPERATIONS.get(op).build(4, stride, rule, False))
        draw_feedback(module, 0)
        assert all(layer.rule == rule for _, layer in rule_layers(module))
        assert bool(list(rule_layers(module))) == OPERATIONS.get(op).carries_rule(stride)
        if op in ("none", "noise"):
            return
        x = torch.randn(8, 4, 8, 8)
        target = torch.randn_like(module(x))
        before = {name: p.detach().clone() for name, p in module.named_parameters()}
        losses = train(module, lambda: F.mse_loss(module(x), target))
        assert losses[-1] < losses[0]
        assert all(not torch.equal(p, before[name]) for name, p in module.named_parameters())

    def test_is_searched_over(self, new_rule: str) -> None:
        rules = ("bp", new_rule, f"{new_rule}(gain=0.5)")
        net = supernet(rules)
        draw_feedback(net, 0)
        assert net.table.shape("normal") == (14, 4 + 4 * 3)
        x, y = torch.randn(6, 3, 8, 8), torch.arange(6)
        weights = uniform_weights(net)
        losses = train(net, lambda: F.cross_entropy(net(x, weights), y), steps=4, lr=0.05)
        assert losses[-1] < losses[0]
        cells = DartsSpace().derive(
            {t: torch.rand(net.table.shape(t)) for t in net.table.rows}, net.table
        )
        assert {e.candidate.rule for c in cells.values() for e in c.edges} <= {None, *rules}

    def test_is_read_from_a_genotype_file_with_its_options(
        self, new_rule: str, tmp_path: Path
    ) -> None:
        genotype = with_rule(
            load_genotype("bionas_darts"), f"{new_rule}(gain=0.5)", backbone=new_rule
        )
        path = tmp_path / "g.json"
        path.write_text(genotype.to_json())
        assert load_genotype(path) == genotype
        net = build_network(load_genotype(path), channels=2, layers=3)
        assert {
            layer.rule.gain for name, layer in rule_layers(net) if name.startswith("cells.")
        } == {0.5}  # type: ignore[attr-defined]
        assert {
            layer.rule.gain for name, layer in rule_layers(net) if not name.startswith("cells.")
        } == {1.0}  # type: ignore[attr-defined]
        assert any(name.endswith("feedback_noise") for name in net.state_dict())
        x, y = torch.randn(6, 3, 8, 8), torch.arange(6)
        losses = train(net, lambda: F.cross_entropy(net(x), y), steps=4)
        assert losses[-1] < losses[0]

    def test_is_unknown_again_afterwards(self, tmp_path: Path) -> None:
        """A genotype that names a rule of a plug-in says so where the plug-in is not loaded."""
        data = json.loads(load_genotype("darts_v2").to_json())
        data["backbone_rule"] = "noisy_test_rule"
        path = tmp_path / "g.json"
        path.write_text(json.dumps(data))
        with pytest.raises(
            InputError, match=r"g\.json\.backbone_rule: unknown learning rule 'noisy_test_rule'"
        ):
            load_genotype(path)
