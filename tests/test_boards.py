"""What TensorBoard is told of a run, against numbers that are worked out otherwise."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import StopAfter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import (
    SESSION_END_INFO_TAG,
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)

import darts_bio
from darts_bio.config import SearchConfig
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.figures.drawing import Box, Text
from darts_bio.figures.grid import draw_grid
from darts_bio.figures.heat_map import KEPT, LEAST_RANGE, draw_edge_weights, scale_ends
from darts_bio.monitoring.alpha import alpha_numbers, draw_by_depth
from darts_bio.monitoring.boards import SearchBoard
from darts_bio.runs.search import SearchResult
from darts_bio.spaces import SPACES, Candidate, Cell, Edge, Genotype
from darts_bio.storage.run_folder import RunFolder
from darts_bio.training.search import Search

OPTIONS: dict[str, Any] = {
    "dataset": "digits",
    "space": "darts(nodes=1, operations=(none, skip_connect, max_pool_3x3, sep_conv_3x3))",
    "strategy": "darts(lr=0.3)",  # so that the genotype changes
    "rules": ("usf", "brsf"),
    "train_images": 64,
    "batch_size": 32,  # one step an epoch
    "channels": 2,
    "layers": 3,
    "log_every": 1,
    "device": "cpu",
    "progress": False,
}
EPOCHS = 12  # more than the pictures of a tag


def events_in(folder: Path) -> EventAccumulator:
    sizes = {"images": 0, "tensors": 0, "scalars": 0}
    return EventAccumulator(str(folder), size_guidance=sizes).Reload()


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def charts(events: EventAccumulator) -> dict[str, dict[str, list[str]]]:
    """The layout: group -> chart -> patterns."""
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    return {
        group.title: {chart.title: list(chart.multiline.tag) for chart in group.chart}
        for group in layout.category
    }


def hparams(events: EventAccumulator) -> Any:
    content = events.summary_metadata[SESSION_START_INFO_TAG].plugin_data.content
    return parse_session_start_info_plugin_data(content).hparams


def matched(events: EventAccumulator) -> None:
    """Each chart of the layout has a tag that TensorBoard, which calls `match`, finds for it."""
    tags = events.Tags()["scalars"]
    for group, of_group in charts(events).items():
        assert of_group, group
        for chart, patterns in of_group.items():
            assert any(re.match(p, tag) for p in patterns for tag in tags), chart


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert darts_bio.search(out=str(out), epochs=EPOCHS, **OPTIONS).finished
    return out


class TestASearch:
    def test_loss_and_accuracy_come_first(self, whole: Path) -> None:
        events = events_in(whole)
        matched(events)
        assert next(iter(charts(events))) == "loss and accuracy"
        tags = [tag for of_kind in ("scalars", "images") for tag in events.Tags()[of_kind]]
        first = {tag for tag in tags if tag.startswith(f"{min(t.split('/')[0] for t in tags)}/")}
        assert {tag.rpartition("_")[2] for tag in first} == {"loss", "accuracy"}

    def test_the_genotype_is_there_when_it_changes(self, whole: Path) -> None:
        events, history = events_in(whole), records(whole / "alpha.jsonl")
        digests = ["", *(record["genotype"] for record in history)]
        changes = [
            record["step"]
            for before, record in zip(digests, history, strict=False)
            if record["genotype"] != before
        ]
        assert 1 < len(changes) < EPOCHS
        assert [event.step for event in events.Tensors("genotype/text_summary")] == changes
        assert [event.step for event in events.Images("genotype/cells")] == changes
        since, expected = 0, []
        for record in history:
            since = 0 if record["step"] in changes else since + 1
            expected.append(since)
        assert [e.value for e in events.Scalars("search/epochs_since_change")] == expected

    def test_entropy_and_shares_are_those_of_the_record(self, whole: Path) -> None:
        """alpha.jsonl rounds shares to 7 decimals: sums of 6 by 3e-7, and entropies by less than
        6 * 5e-8 * (1 + |log 5e-8|) / log 4 = 4e-6.
        """
        events, last = events_in(whole), records(whole / "alpha.jsonl")[-1]
        for kind, edges in last["shares"].items():
            entropies = [
                -sum(p * math.log(p) for p in row if p) / math.log(len(row)) for row in edges
            ]
            found = events.Scalars(f"search/entropy/{kind}")[-1]
            assert found.step == last["step"]
            assert found.value == pytest.approx(sum(entropies) / len(edges), abs=1e-5)
        # none, (skip,) max_pool, then sep_conv_3x3 under both rules, by the options.
        normal = last["shares"]["normal"]
        for name, column in (("none", 0), ("skip_connect", 1), ("max_pool_3x3", 2)):
            (*_, found) = events.Scalars(f"operations/normal/{name}")
            assert found.value == pytest.approx(sum(row[column] for row in normal) / 2, abs=1e-6)
        for rule, column in (("usf", 3), ("brsf", 4)):
            (*_, found) = events.Scalars(f"rules/normal/{rule}")
            assert found.value == pytest.approx(sum(row[column] for row in normal) / 2, abs=1e-6)

    def test_no_more_pictures_than_tensorboard_keeps(self, whole: Path) -> None:
        steps = [event.step for event in events_in(whole).Images("heat_map/normal")]
        per_epoch = records(whole / "alpha.jsonl")[0]["step"]
        assert steps == [per_epoch * epoch for epoch in range(2, EPOCHS + 1, 2)]

    def test_what_the_machine_says(self, whole: Path) -> None:
        events, lines = events_in(whole), records(whole / "metrics.jsonl")
        steps = {
            kind: [line["step"] for line in lines if line["event"] == kind]
            for kind in ("record", "epoch")
        }
        speeds = events.Scalars("machine/images_per_second")
        assert [event.step for event in speeds] == steps["record"]
        assert all(event.value > 0 for event in speeds)
        hours = [event.value for event in events.Scalars("machine/hours")]
        assert hours == sorted(hours)
        assert hours[-1] == pytest.approx(lines[-1]["seconds"] / 3600, abs=1 / 3600)
        memory = events.Scalars("machine/memory_gib")
        assert [event.step for event in memory] == steps["epoch"]
        assert all(0.05 < event.value < 64 for event in memory)

    def test_hparams(self, whole: Path) -> None:
        events = events_in(whole)
        options = hparams(events)
        assert options["kind"].string_value == "search"
        assert options["rules"].string_value == "usf, brsf"
        assert options["epochs"].number_value == EPOCHS
        assert options["parameters"].number_value > 1000
        assert "device" not in options
        assert len(events.Tensors(SESSION_START_INFO_TAG)) == 1

    def test_a_resumed_one_is_told_of_alike(self, whole: Path, tmp_path: Path) -> None:
        out, options = tmp_path / "run", dict(OPTIONS, epochs=EPOCHS)
        stopped = darts_bio.search(out=str(out), listener=StopAfter(9), **options)
        assert not stopped.finished
        assert SESSION_START_INFO_TAG not in events_in(out).Tags()["tensors"]
        darts_bio.search(out=str(out), resume=True, progress=False)
        one, other = events_in(whole), events_in(out)
        assert one.Tags() == other.Tags()
        for tag in one.Tags()["scalars"]:
            pairs = [[(e.step, e.value) for e in run.Scalars(tag)] for run in (one, other)]
            if tag.startswith("machine/"):
                assert [step for step, _ in pairs[0]] == [step for step, _ in pairs[1]], tag
            else:
                assert pairs[0] == pairs[1], tag
        # Once done, its line is written anew by each resume, and is there once.
        darts_bio.search(out=str(out), resume=True, progress=False)
        for tag in (SESSION_START_INFO_TAG, SESSION_END_INFO_TAG, "genotype/text_summary"):
            steps = [e.step for e in events_in(out).Tensors(tag)]
            assert steps == [e.step for e in one.Tensors(tag)], tag

    def test_it_can_be_switched_off(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        darts_bio.search(out=str(out), epochs=1, tensorboard=False, **OPTIONS)
        assert not list(out.glob("events*"))


def test_gradient_norms(tmp_path: Path) -> None:
    options = {k: v for k, v in OPTIONS.items() if k not in ("progress", "train_images")}
    config = SearchConfig(epochs=1, out=str(tmp_path / "run"), crop_padding=1, **options)
    data: ImageData = load_data("digits", train_images=64)
    search = Search(config, data, torch.device("cpu"))
    folder = RunFolder.open("search", config, "test")
    board = SearchBoard(search, folder, lambda: draw_grid("", [], {}, (0, 1), ""))
    assert not board.gradients()["weights"]
    search.begin_epoch(0)
    search.step(0)
    for name, parameters in (
        ("weights", list(search.supernet.parameters())),
        ("alpha", list(search.strategy_state.alpha.values())),
    ):
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        found = torch.cat([g.flatten() for g in board.gradients()[name]])
        assert len(flat)
        assert found.norm().item() == pytest.approx(flat.norm().item(), rel=1e-5)


@pytest.mark.parametrize("query", [None, "cifar10"])
def test_a_search_by_queries(tmp_path: Path, query: str | None) -> None:
    options = dict(
        OPTIONS,
        space="nb201(operations=(skip_connect, nor_conv_1x1))",
    )
    options |= {"strategy": "random_search", "epochs": 1}
    if query is not None:
        cells = {cell: {query: 90.0} for cell in _all_cells()}
        (tmp_path / "table.json").write_text(json.dumps(cells))
        options |= {"table": str(tmp_path / "table.json"), "query": query, "rules": ("bp",)}
    found = darts_bio.search(out=str(tmp_path / "run"), queries=3, **options)
    assert isinstance(found, SearchResult)
    events = events_in(tmp_path / "run")
    matched(events)
    assert ("loss" in charts(events)["loss and accuracy"]) == (query is None)
    shown = events.Tensors("genotype/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert shown == f"```\n{found.genotype}\n```"
    assert len(events.Tensors(SESSION_START_INFO_TAG)) == 1


def _all_cells() -> list[str]:
    names = ("skip_connect", "nor_conv_1x1")
    cells = []
    for number in range(2**6):
        a, b, c, d, e, f = (names[number >> bit & 1] for bit in range(6))
        cells.append(f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|")
    return cells


@pytest.mark.parametrize("alignment", [0, 1])
def test_a_training(tmp_path: Path, alignment: int) -> None:
    darts_bio.train(
        "bionas_darts",
        "digits",
        out=str(tmp_path),
        channels=2,
        layers=3,
        auxiliary=0.0,
        epochs=1,
        train_images=64,
        batch_size=16,
        log_every=2,
        device="cpu",
        alignment_every=alignment,
        progress=False,
    )
    events = events_in(tmp_path)
    matched(events)
    assert ("alignment" in charts(events)) == bool(alignment)
    assert events.Tags()["images"] == ["genotype/cells"] + alignment * ["layers/angles"]
    options = hparams(events)
    assert options["kind"].string_value == "train"
    assert 0 < options["transport"].number_value <= 1


class TestNumbersOfAlpha:
    def test_closed_forms(self) -> None:
        space = SPACES.build("nb201(operations=(none, skip_connect, nor_conv_1x1))")
        table = space.table(("usf", "fa"))  # rows: none, skip_connect, nor_conv_1x1 twice
        equal, half, sure = [0.25] * 4, [0.0, 0.5, 0.5, 0.0], [0.0, 0.0, 0.0, 1.0]
        close = [0.0, 0.51, 0.49, 0.0]  # less than 1.1 times the runner-up
        rows = [equal, half, sure, sure, close, [0.1, 0.2, 0.3, 0.4]]
        genotype = Genotype("nb201", space.derive({"cell": torch.tensor(rows)}, table))
        numbers = alpha_numbers(space, table, genotype, {"cell": rows}, False)
        bits = [2.0, 1.0, 0.0, 0.0, -0.51 * math.log2(0.51) - 0.49 * math.log2(0.49)]
        bits.append(-sum(p * math.log2(p) for p in (0.1, 0.2, 0.3, 0.4)))
        assert numbers["search/entropy/cell"] == pytest.approx(sum(bits) / 2 / 6)
        assert numbers["search/decided_edges"] == 3  # both that are sure, and 0.4 against 0.3
        expected = {
            "operations/cell/none": 0.25 + 0.1,
            "operations/cell/skip_connect": 0.25 + 0.5 + 0.51 + 0.2,
            "operations/cell/nor_conv_1x1": 0.5 + 0.5 + 1 + 1 + 0.49 + 0.7,
            "rules/cell/usf": 0.25 + 0.5 + 0.49 + 0.3,
            "rules/cell/fa": 0.25 + 1 + 1 + 0.4,
        }
        for name, total in expected.items():
            assert numbers[name] == pytest.approx(total / 6), name
        assert draw_by_depth(space, table, {"cell": rows}) is None

    def test_depths_of_a_kind_are_taken_together_and_drawn_apart(self) -> None:
        space = SPACES.build("by_depth(space=darts(nodes=1, operations=(sep_conv_3x3,)), cells=4)")
        table = space.table(("usf", "fa"))
        shares = {t: [[i / 4, 1 - i / 4]] * 2 for i, t in enumerate(table.rows)}
        weights = {t: torch.tensor(rows) for t, rows in shares.items()}
        genotype = Genotype(SPACES.spec(space), space.derive(weights, table))
        numbers = alpha_numbers(space, table, genotype, shares, False)
        assert list(table.rows) == ["normal_0", "reduce_1", "reduce_2", "normal_3"]
        assert numbers["rules/normal/usf"] == pytest.approx((0 + 3 / 4) / 2)
        assert numbers["rules/reduce/fa"] == pytest.approx((3 / 4 + 2 / 4) / 2)
        figure = draw_by_depth(space, table, shares)
        assert figure is not None
        titles = [item.title for item in figure.primitives if isinstance(item, Box) and item.title]
        assert "normal_3, usf: 0.75" in titles
        assert "reduce_1, sep_conv_3x3: 1" in titles


class TestHeatMaps:
    def test_what_is_nearly_equal_looks_so(self) -> None:
        for values in ([0.0498, 0.0502], [0.2, 0.21]):
            low, high = scale_ends(values)
            assert (max(values) - min(values)) / (high - low) < 0.06
        for values in ([-0.001, 0.001], [-1.0, -1.0], [7.0]):
            low, high = scale_ends(values)
            assert high - low >= LEAST_RANGE - 1e-9
            assert low <= min(values) <= max(values) <= high

    def test_the_candidates_of_the_cell_are_framed(self) -> None:
        skip, fa, usf = Candidate("skip_connect"), Candidate("conv", "fa"), Candidate("conv", "usf")
        edges = [(2, 0), (2, 1), (3, 0)]
        rows, values = [(skip, fa, usf)] * 3, [[0.2, 0.3, 0.5]] * 3
        cell = Cell((Edge(2, 1, fa), Edge(3, 0, skip)), concat=(2, 3))
        figure = draw_edge_weights("normal", rows, edges, values, cell)
        boxes = [item for item in figure.primitives if isinstance(item, Box)]
        frames = {
            (box.x + box.width / 2, box.y + box.height / 2) for box in boxes if box.fill == KEPT
        }
        titles = {
            box.title
            for box in boxes
            if box.title and (box.x + box.width / 2, box.y + box.height / 2) in frames
        }
        assert {title.rpartition(":")[0] for title in titles} == {
            "2 <- 1, conv:fa",
            "3 <- 0, skip_connect",
        }
        texts = {item.text: item for item in figure.primitives if isinstance(item, Text)}
        assert texts["2 <- 0"].color != texts["2 <- 1"].color == texts["3 <- 0"].color
        assert "in the genotype" in texts
        unmarked = draw_edge_weights("normal", rows, edges, values)
        assert not any(isinstance(i, Box) and i.fill == KEPT for i in unmarked.primitives)

    def test_a_grid(self) -> None:
        rows = {f"layer {i}": [float(i), None, math.nan] for i in range(150)}
        figure = draw_grid("angles", ["a", "b", "c"], rows, (0.0, 90.0), "degrees")
        tiles = {i.title: i for i in figure.primitives if isinstance(i, Box) and i.title}
        assert len(tiles) == 450
        assert tiles["layer 90, a: 90"].fill == tiles["layer 149, a: 149"].fill
        assert tiles["layer 0, a: 0"].fill != tiles["layer 45, a: 45"].fill
        assert tiles["layer 3, b"].stroke != "none"
        places = {(tile.x, tile.y) for tile in tiles.values()}
        assert len(places) == 450
        assert all(0 <= x < figure.width and 0 <= y < figure.height for x, y in places)
        assert figure.image().shape == (figure.height, figure.width, 3)
