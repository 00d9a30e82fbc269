"""The spaces S1 to S4 of RobustDARTS, whose operations differ by edge, and the operation noise."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from searching import CPU, search
from several import several
from test_graphs import assert_equal_after, pair
from test_graphs import search as search_on_tapes
from test_mixed import Twins
from torch import Tensor, nn

from darts_bio import draws
from darts_bio.config import RetrainConfig
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.figures.cells import draw_genotype
from darts_bio.networks import build_network
from darts_bio.networks.cells import DropPath
from darts_bio.process_group import process_group
from darts_bio.rules import RULES
from darts_bio.spaces import OPERATIONS, SPACES, Genotype, load_genotype, read_genotype
from darts_bio.spaces.operations import Noise
from darts_bio.training.engine import run_epoch
from darts_bio.training.meters import evaluate
from darts_bio.training.retrain import Retraining

NAMES = {
    "skip": "skip_connect",
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "sep3": "sep_conv_3x3",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
}
S1 = {
    "normal": "skip dil3 | skip dil5 | skip dil5 | skip sep3 | skip dil3 | max skip | skip sep3 | "
    "skip sep3 | skip dil3 | skip sep3 | max skip | skip dil3 | dil3 dil5 | dil3 dil5",
    "reduce": "max avg | max dil3 | max avg | max avg | skip dil5 | max avg | max sep3 | skip dil3 | "
    "skip dil5 | max avg | max avg | skip dil5 | skip dil5 | skip dil5",
}
"""The lists `primitives_1` of src/spaces.py in github.com/automl/RobustDARTS, edge by edge."""

EVERYWHERE = {
    "s2": ["skip_connect", "sep_conv_3x3"],
    "s3": ["none", "skip_connect", "sep_conv_3x3"],
    "s4": ["noise", "sep_conv_3x3"],
}
"""`primitives_2` to `primitives_4` there: the same on each edge."""

EDGES = [(node, source) for node in range(2, 6) for source in range(node)]
EVERY_SPACE = ("s1", "s2", "s3", "s4")
SIZES: dict[str, Any] = {"channels": 4, "layers": 3, "batch_size": 8, "crop_padding": 1}

every_space = pytest.mark.parametrize("space", EVERY_SPACE)


def published(space: str, cell_type: str) -> list[list[str]]:
    """The operations of each edge."""
    if space != "s1":
        return [EVERYWHERE[space]] * 14
    return [[NAMES[name] for name in edge.split()] for edge in S1[cell_type].split("|")]


def weighted(op: str, stride: int) -> bool:
    return "conv" in op or (op == "skip_connect" and stride == 2)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=32)


class TestCandidates:
    @every_space
    @pytest.mark.parametrize("cell_type", ["normal", "reduce"])
    def test_are_the_published_ones_each_with_each_rule(self, space: str, cell_type: str) -> None:
        table = SPACES.build(f"robust_darts(space={space})").table(("usf", "fa"))
        rows = table.rows[cell_type]
        width = max(map(len, rows))
        for (_, source), row, ops in zip(EDGES, rows, published(space, cell_type), strict=True):
            stride = 2 if cell_type == "reduce" and source < 2 else 1
            expected = [
                f"{op}:{rule}" if rule else op
                for op in ops
                for rule in (("usf", "fa") if weighted(op, stride) else ("",))
            ]
            assert [str(candidate) for candidate in row if candidate] == expected
            assert len(row) == width
            assert row[len(expected) :] == (None,) * (width - len(expected))

    @every_space
    def test_with_one_rule_no_row_is_padded(self, space: str) -> None:
        table = SPACES.build(f"robust_darts(space={space})").table(("bp",))
        assert table.mask("normal").all()
        assert table.mask("reduce").all()

    def test_by_depth_each_cell_has_those_of_its_kind(self) -> None:
        plain = SPACES.build("robust_darts(space=s1)").table(("fa",))
        space = SPACES.build("by_depth(space=robust_darts(space=s1), cells=5)")
        table = space.table(("fa",))
        assert space.cell_types == ("normal_0", "reduce_1", "normal_2", "reduce_3", "normal_4")
        for cell_type in space.cell_types:
            assert table.rows[cell_type] == plain.rows[cell_type.partition("_")[0]]
        assert plain.rows["normal"] != plain.rows["reduce"]

    @pytest.mark.parametrize("space", ["s5", "1", "(s1, s2)", "None"])
    def test_an_unknown_space(self, space: str) -> None:
        with pytest.raises(
            InputError, match=r"unknown space of robust_darts space .*known: s1, s2, s3, s4"
        ):
            SPACES.build(f"robust_darts(space={space})")


def published_parse(weights: Sequence[Sequence[float]], ops: Sequence[Sequence[str]]) -> set[Any]:
    """The function `_parse` of the published search: two edges a node, none left out."""
    gene = set()
    start = 0
    for node in range(2, 6):
        rows = list(range(start, start + node))
        best = {
            row: max((w, -k) for k, w in enumerate(weights[row]) if ops[row][k] != "none")
            for row in rows
        }
        for row in sorted(rows, key=lambda row: -best[row][0])[:2]:
            gene.add((node, row - start, ops[row][-best[row][1]]))
        start += node
    return gene


class TestDerivation:
    @every_space
    def test_is_the_published_one_under_one_rule(self, space: str) -> None:
        built = SPACES.build(f"robust_darts(space={space})")
        table, source = built.table(("bp",)), torch.Generator().manual_seed(0)
        for _ in range(50):
            weights = {
                t: torch.randn(table.shape(t), generator=source).softmax(1) for t in table.rows
            }
            for t, cell in built.derive(weights, table).items():
                found = {(e.node, e.input, e.candidate.op) for e in cell.edges}
                assert found == published_parse(weights[t].tolist(), published(space, t))

    @every_space
    def test_gives_a_genotype_that_is_valid_written_drawn_and_read(
        self, space: str, tmp_path: Path
    ) -> None:
        spec = f"robust_darts(space={space!r})"
        built = SPACES.build(spec)
        table = built.table(("usf", "brsf"))
        genotype = Genotype(
            spec, built.derive({t: torch.rand(table.shape(t)) for t in table.rows}, table)
        )
        path = tmp_path / "g.json"
        path.write_text(genotype.to_json(), encoding="utf-8")
        assert read_genotype(path) == genotype
        assert genotype.cells["normal"].edges[0].candidate.op in draw_genotype(genotype).svg()

    def test_an_operation_that_its_edge_does_not_offer_is_refused(self) -> None:
        built = SPACES.build("robust_darts(space=s1)")
        table = built.table(("usf",))
        cells = built.derive({t: torch.rand(table.shape(t)) for t in table.rows}, table)
        built.validate(Genotype("darts", cells), "g.json")
        with pytest.raises(
            InputError,
            match=r"^g.json.cells.normal.edges\[0\].op: expected skip_connect or dil_conv_3x3 from "
            r"node 0 to 2 in s1, found sep_conv_3x3",
        ):
            built.validate(load_genotype("darts_v2"), "g.json")

    def test_an_edge_into_a_node_that_the_space_has_not_is_refused(self) -> None:
        edges = [
            f"('{op}', {source})"
            for op, source in (("sep_conv_3x3", 0), ("sep_conv_3x3", 1)) * 5  # nodes 2 to 6
        ]
        entries = f"[{', '.join(edges)}]"
        text = f"Genotype({entries}, [2], {entries}, [2])"
        built = SPACES.build("robust_darts(space=s2)")
        with pytest.raises(
            InputError, match=r"edges\[8\].op: expected no edge from node 0 to 6 in"
        ):
            built.validate(load_genotype(text), "g.json")


class TestTheSupernet:
    @pytest.mark.parametrize("space", ["s1", "s2", "s3"])
    def test_batched_equals_the_reference(self, space: str) -> None:
        Twins.of(f"robust_darts(space={space})", ("usf", "fa")).equal(1e-11)

    def test_batched_equals_the_reference_with_noise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the same numbers on each edge, in whatever order they are asked for."""

        def fixed(self: Noise, x: Tensor) -> Tensor:
            shape = x[:, :, :: self.stride, :: self.stride].shape
            return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)

        monkeypatch.setattr(Noise, "forward", fixed)
        Twins.of("robust_darts(space=s4)", ("usf", "fa")).equal(1e-11)

    @pytest.mark.parametrize(
        ("space", "strategy"),
        [
            *(("s1", "darts(order=2)"), ("s1", "rule_aware"), ("s2", "eg(population=4)")),
            *(("s3", "darts(order=2)"), ("s3", "rule_aware")),
            *(("s4", "darts(order=2)"), ("s4", "rule_aware"), ("s4", "eg(population=4)")),
        ],
    )
    def test_searches_goes_on_and_gives_a_network_that_trains(
        self, space: str, strategy: str, data: ImageData
    ) -> None:
        """From its state it goes on to the same bits, the noise among them."""
        spec = f"robust_darts(space={space})"
        if strategy == "rule_aware" and space == "s1":
            spec = "by_depth(space=robust_darts(space=s1), cells=3)"
        task, other = (
            search(data, strategy, space=spec, rules=("fa", "usf"), channels=4) for _ in range(2)
        )
        run_epoch(task, 0)
        file, random = io.BytesIO(), torch.get_rng_state()  # a checkpoint holds both
        torch.save(task.state_dict(), file)
        run_epoch(task, 1)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        torch.set_rng_state(random)
        run_epoch(other, 1)
        for name, value in task.supernet.state_dict().items():
            assert torch.equal(value, other.supernet.state_dict()[name])
        genotype = task.genotype()
        task.space.validate(genotype, "derived")
        config = RetrainConfig(
            genotype="x", cutout=0, auxiliary=0.0, drop_path=0.2, epochs=1, **SIZES
        )
        training = Retraining.of_genotype(config, genotype, data, CPU)
        training.begin_epoch(0)
        assert training.step(0)["train"].totals[0].isfinite()

    def test_noise_is_drawn_anew_at_each_replay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        options = {
            "space": "darts(nodes=1, operations=(noise, sep_conv_3x3))",
            "regularizers": ("warmup(epochs=0)",),
        }
        tasks = pair(monkeypatch, lambda: search_on_tapes(**options))
        assert_equal_after(tasks, epochs=2)
        assert tasks[0].run.recorded


class TestNoise:
    @pytest.mark.parametrize("stride", [1, 2])
    @pytest.mark.parametrize("supernet", [False, True])
    def test_is_standard_normal_and_knows_nothing_of_x(self, stride: int, supernet: bool) -> None:
        noise = OPERATIONS.get("noise").build(3, stride, RULES.build("bp"), supernet)
        x = torch.full((64, 3, 41, 40), torch.inf).requires_grad_()
        y = noise(x)
        assert not y.requires_grad
        n = y.numel()
        # Four standard errors of the mean, the variance and the fourth moment of n draws.
        assert y.mean().abs() < 4 * n**-0.5
        assert (y.var() - 1).abs() < 4 * (2 / n) ** 0.5
        assert (y.pow(4).mean() - 3).abs() < 4 * (96 / n) ** 0.5
        flat = y.flatten(1)
        between = flat @ flat.T / flat.shape[1] - torch.eye(64)  # samples are drawn apart
        assert between.abs().max() < 0.2
        assert not torch.equal(y, noise(x))

    @pytest.mark.parametrize("processes", [2, 3])
    def test_does_not_depend_on_the_number_of_processes(
        self, processes: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x = torch.zeros(6, 2, 3, 3)
        torch.manual_seed(4)
        expected = Noise(1)(x)
        monkeypatch.setattr(draws, "world_size", lambda: processes)
        parts = []
        for rank, part in enumerate(x.chunk(processes)):
            monkeypatch.setattr(draws, "rank", lambda rank=rank: rank)
            torch.manual_seed(4)
            parts.append(Noise(1)(part))
        assert torch.equal(torch.cat(parts), expected)

    def test_of_an_evaluation_leaves_training_as_it_is(self) -> None:
        model = nn.Sequential(Noise(1), nn.Flatten())
        batches = [(torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.long))]
        torch.manual_seed(4)
        first = evaluate(model, batches, prefix="test")
        drawn = torch.rand(3)
        torch.manual_seed(4)
        assert torch.equal(torch.rand(3), drawn)
        torch.manual_seed(4)
        assert evaluate(model, batches, prefix="test") == first

    def test_has_drop_path_in_a_discrete_network(self) -> None:
        """As all that is no identity."""
        entries = "[('noise', 0), ('sep_conv_3x3', 1)]"
        genotype = load_genotype(f"Genotype({entries}, [2], {entries}, [2])")
        network = build_network(genotype, channels=4, layers=3)
        edges = [edge for cell in network.cells for edge in cell.edges]
        assert sum(isinstance(edge[0], Noise) for edge in edges) == 3
        assert all(isinstance(edge[1], DropPath) for edge in edges)


MEASURING = ("eg(population=4, samples=2, batches=2)", "darts_pt(batches=2)")


def measured(strategy: str) -> dict[str, Any]:
    """Weights and derived cells of an epoch of a search whose strategy measures."""
    data, space = (
        load_data("digits", train_images=64),
        "darts(nodes=1, operations=(noise, sep_conv_3x3))",
    )
    task = search(data, strategy, space=space, channels=4, epochs=1)
    torch.manual_seed(6)
    run_epoch(task, 0)
    task.synchronize()
    return {
        "weights": {n: v for n, v in task.supernet.state_dict().items() if v.is_floating_point()},
        "cells": task.genotype().to_json(),
        "next": torch.rand(2),
    }


def measured_by_several(number: int, place: Path) -> None:
    with process_group():
        for i, strategy in enumerate(MEASURING):
            torch.save(measured(strategy), place / f"{i}.{number}")


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_processes_that_share_individuals_draw_the_noise_of_one(tmp_path: Path) -> None:
    """All train w on whole batches, so under the same noise, and each individual meets the same."""
    ended = several(3, measured_by_several, tmp_path, place=tmp_path)
    assert [process.code for process in ended] == [0] * 3, ended
    for i, strategy in enumerate(MEASURING):
        expected = measured(strategy)
        for number in range(3):
            found = torch.load(tmp_path / f"{i}.{number}", weights_only=True)
            assert found["cells"] == expected["cells"]
            assert torch.equal(found["next"], expected["next"])
            for name, value in expected["weights"].items():
                # As many individuals in a pass as a process has, so float32 rounds otherwise.
                torch.testing.assert_close(found["weights"][name], value, rtol=0, atol=1e-3)


def test_individuals_meet_the_same_noise_in_one_pass_or_several() -> None:
    data = load_data("digits", train_images=64)
    space = "darts(nodes=1, operations=(noise, sep_conv_3x3))"
    task = search(data, MEASURING[0], space=space, channels=4)
    one = {t: torch.rand(1, *task.table.shape(t)) for t in task.table.rows}
    alike = {t: weights.expand(3, -1, -1) for t, weights in one.items()}
    losses = []
    for together in (1, 2, 3):
        task.individuals.together = together
        torch.manual_seed(6)
        losses.append(task.individuals.measure(alike, 0, 2)[0])
        assert task.individuals.together == together  # torch.vmap takes the operation
        drawn = torch.rand(1)
        torch.manual_seed(6)
        assert torch.equal(torch.rand(1), drawn)
    for of_three in losses:
        assert of_three.tolist() == pytest.approx([losses[0][0].item()] * 3, rel=1e-5)
    torch.manual_seed(7)
    other = task.individuals.measure(alike, 0, 2)[0][0].item()
    assert other != pytest.approx(losses[0][0].item(), rel=1e-5)
