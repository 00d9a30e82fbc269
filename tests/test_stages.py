"""Searches in stages: what each edge keeps, what goes on, the papers' schedules, and that a run that
was stopped in any stage ends as one that was not.
"""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import SEARCH, StopAfter, here
from searching import context, going_on, in_short, search, verdicts
from test_choice import QUIET, TRAINING, FailAfter, same_states
from test_mixed import Twins
from test_runs import metrics
from torch import Tensor, nn

import darts_bio
from darts_bio.cli import main
from darts_bio.config import SearchConfig
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.networks import FoldedCell, MixedCell, SuperNet
from darts_bio.networks.reference import MixedOperation, ReferenceCell
from darts_bio.networks.widening import widen
from darts_bio.rules import RuleConv2d
from darts_bio.runs.options import complete
from darts_bio.runs.search import SearchResult
from darts_bio.runs.stages import _try, places_of
from darts_bio.spaces import SPACES, CandidateTable, load_genotype
from darts_bio.spaces.operations import EvenAndOdd
from darts_bio.storage.checkpoint import read_checkpoint
from darts_bio.training.engine import run_epoch as epoch
from darts_bio.training.listeners import Listener
from darts_bio.training.place import StagePlace
from darts_bio.training.search import Search
from darts_bio.training.stages import take_over

OPTIONS: dict[str, Any] = {
    "space": "darts(nodes=1, operations=(none, max_pool_3x3, skip_connect, sep_conv_3x3))",
    "rules": ("usf", "fa"),
    "strategy": "drnas(lr=0.1)",
    "channels": 4,
    "layers": 3,
    "batch_size": 8,
    "epochs": 1,
    "crop_padding": 1,
    "lr": 0.1,
    "seed": 5,
    "stages": (
        "stage(regularizers=partial_channels(k=2))",
        "stage(candidates=4, keeps_weights=True, epochs=2)",
        "stage(candidates=2, layers=4, regularizers=skip_dropout(rate=0.4))",
    ),
}
# Steps of 8 images, of 16 for w: two in the first stage, four in the second, two in the third.
KEPT = (None, 4, 2)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=32)


def run(data: ImageData, out: Path, listener: Listener | None = None, **options: Any) -> Any:
    """The whole search, begun or gone on with."""
    given: dict[str, Any] = {"resume": True} if out.exists() else OPTIONS | options
    return darts_bio.search(data, out=str(out), listener=listener, **given, **QUIET)


@pytest.fixture(scope="module")
def whole(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    result: SearchResult = run(data, tmp_path_factory.mktemp("stages") / "run")
    assert result.finished
    return result


def candidates(stage: Path) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = json.loads((stage / "candidates.json").read_text())
    return found


class TestCandidates:
    def test_the_strongest_of_each_edge_by_the_alpha_that_was_saved(
        self, whole: SearchResult
    ) -> None:
        space = SPACES.build(OPTIONS["space"])
        rows = {
            t: [[str(c) for c in row if c is not None] for row in rows]
            for t, rows in space.table(OPTIONS["rules"]).rows.items()
        }
        for number, kept in enumerate(KEPT, 1):
            stage = whole.folder / f"stage-{number}"
            if kept is not None:
                alpha = read_checkpoint(
                    whole.folder / f"stage-{number - 1}" / "checkpoint.pt", "search"
                )["task"]["strategy"]["parameters"]
                for t, of_edges in rows.items():
                    for e, row in enumerate(of_edges):
                        strongest = alpha[t][e, : len(row)].topk(kept).indices.tolist()
                        of_edges[e] = [row[column] for column in sorted(strongest)]
            found = {t: list(by_edge.values()) for t, by_edge in candidates(stage).items()}
            assert found == rows
            names = [f"{source} -> {node}" for node, source in space.edges]
            assert [list(by_edge) for by_edge in candidates(stage).values()] == [names, names]
        report = (whole.folder / "report.md").read_text()
        assert f"| normal | 0 -> 2 | {', '.join(rows['normal'][0])} |" in report
        # What it says of the genotype is what the report of the last stage says of it.
        of_stage = whole.folder / f"stage-{len(KEPT)}" / "report.md"
        assert verdicts(whole.folder / "report.md") == verdicts(of_stage) != []
        whole_head, head = in_short(whole.folder / "report.md"), in_short(of_stage)
        assert (whole_head[0], whole_head[-1]) == (head[0], head[-1])
        assert head[0].startswith("**Data:** ")
        assert head[-1].startswith("**Next:** ")
        assert going_on(whole.folder / "report.md") == going_on(of_stage) != ""
        last = of_stage.read_text()
        for heading in ("## Choices", "## Which rule where"):
            words = last.partition(f"{heading}\n")[2].partition("\n## ")[0]
            assert len(words) > 50
            assert words in report

    def test_the_genotype_is_of_what_is_left(self, whole: SearchResult) -> None:
        left = candidates(whole.folder / "stage-3")
        for t, cell in whole.genotype.cells.items():
            for edge in cell.edges:
                assert str(edge.candidate) in left[t][f"{edge.input} -> {edge.node}"]
        assert load_genotype(whole.folder) == load_genotype(whole.folder / "stage-3")
        assert whole.genotype.space == load_genotype(whole.folder / "stage-1").space

    def test_ties_and_short_rows(self) -> None:
        """Edges of stride 2 have a skip more here: their rows are longer."""
        table = SPACES.build(OPTIONS["space"]).table(OPTIONS["rules"])
        assert table.mask("reduce").sum(1).tolist() == [6, 6]
        assert table.mask("normal").sum(1).tolist() == [5, 5]
        equal = {t: table.equal_shares(t) for t in table.rows}
        kept = table.strongest(equal, 5)
        assert kept.rows["normal"] == table.rows["normal"]
        assert kept.rows["reduce"] == tuple(row[:5] for row in table.rows["reduce"])
        assert table.strongest(equal, 9) == table


class TestPublishedSchedules:
    def test_p_darts(self) -> None:
        """arXiv 1904.12760, section 4.1.2, and train_search.py."""
        config = complete(SearchConfig, {"protocol": "p_darts", "dataset": "cifar10"})
        stages = config.of_stages()
        assert [stage.candidates for stage, _ in stages] == [None, 5, 3]
        assert [options.layers for _, options in stages] == [5, 11, 17]
        assert {
            (options.epochs, options.channels, options.batch_size) for _, options in stages
        } == {(25, 16, 96)}
        assert {(options.lr, options.lr_min, options.momentum) for _, options in stages} == {
            (0.025, 0.0, 0.9)
        }
        common = ("warmup(epochs=10)", "skip_limit(most=2)")
        dropout = [(), ("skip_dropout(rate=0.4)",), ("skip_dropout(rate=0.7)",)]
        assert [options.regularizers for _, options in stages] == [common + own for own in dropout]
        places = places_of(stages)
        assert [(p.schedule, p.first_epoch, p.epochs_before) for p in places] == [
            (25, 0, 0),
            (25, 0, 25),
            (25, 0, 50),
        ]
        rules = SPACES.build(config.space).table(("bp",))
        assert {t: rules.shape(t) for t in rules.rows} == {"normal": (14, 8), "reduce": (14, 8)}

    def test_drnas(self) -> None:
        """DARTS-space/train_search.py: 25 + 25 epochs, k from 6 to 4, 7 operations to 4."""
        config = complete(SearchConfig, {"protocol": "drnas", "dataset": "cifar10"})
        (first, first_options), (second, second_options) = config.of_stages()
        assert (first.candidates, second.candidates, second.keeps_weights) == (None, 4, True)
        for options, k in ((first_options, 6), (second_options, 4)):
            assert (options.epochs, options.channels, options.layers) == (25, 36, 20)
            assert (options.batch_size, options.lr, options.lr_min) == (64, 0.1, 0.0)
            assert options.regularizers == ("warmup(epochs=10)", f"partial_channels(k={k})")
        table = SPACES.build(config.space).table(("bp",))
        assert {t: table.shape(t) for t in table.rows} == {"normal": (14, 7), "reduce": (14, 7)}

    def test_rates_and_warm_ups(self, data: ImageData) -> None:
        """Alpha stays as it is in the first epochs of each stage; the rate of w falls over all
        stages that go on with one another's weights, and begins anew with others."""
        given = OPTIONS | {"dataset": "digits", "regularizers": ("warmup(epochs=1)",), "epochs": 2}
        config = SearchConfig(**given, lr_min=0.0)
        stages = config.of_stages()
        rates, moved = [], []
        for (_, options), place in zip(stages, places_of(stages), strict=True):
            task = Search(options, data, torch.device("cpu"), place)
            for number in range(task.epochs):
                before = {t: a.detach().clone() for t, a in task.strategy_state.alpha.items()}
                epoch(task, number)
                rates.append(task.learning_rates()["lr/weights"])
                after = task.strategy_state.alpha
                moved.append(any(not torch.equal(before[t], after[t]) for t in before))
        over_both = [0.1 * (1 + math.cos(math.pi * e / 4)) / 2 for e in range(4)]
        assert rates == pytest.approx([*over_both, 0.1, 0.05])
        assert moved == [False, True] * 3

    def test_other_images_in_each_stage(self, data: ImageData) -> None:
        """The batches that a single long search would meet."""
        long = search(data, epochs=3)
        later = Search(long.config, data, long.device, StagePlace(schedule=3, epochs_before=2))
        met: list[int] = []
        for batches in (later.train_batches, later.valid_batches):
            whole = type(batches).batch

            def batch(number: int, of: Any = batches, whole: Any = whole) -> Any:
                met.append(number)
                return whole(of, number)

            batches.batch = batch  # type: ignore[method-assign]
        epoch(later, 0)
        assert set(met) == {4, 5}
        assert long.steps_per_epoch == 2


def published_wider(module: nn.Module, c_new: int, source: torch.Generator) -> None:
    """DrNAS' `wider` of an operation, in place: net2wider.py and operations.py, written out."""

    def more(old: int, new: int) -> Tensor:
        return torch.cat([torch.arange(old), torch.randint(old, (new - old,), generator=source)])

    def in_wider(conv: RuleConv2d, index: Tensor | None = None) -> None:
        index = more(conv.weight.shape[1], c_new) if index is None else index
        change(conv, lambda value: value[:, index])

    def out_wider(conv: RuleConv2d, c_out: int) -> Tensor:
        index = more(conv.weight.shape[0], c_out)
        change(conv, lambda value: value[index])
        return index

    def change(conv: RuleConv2d, of: Any) -> None:
        conv.weight = nn.Parameter(of(conv.weight.detach()))
        for name, value in conv.feedback.items():
            if value.dim():
                setattr(conv, f"feedback_{name}", of(value))

    def norm_wider(norm: nn.BatchNorm2d, index: Tensor | None = None) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        index = more(norm.num_features, c_new) if index is None else index
        norm.running_mean, norm.running_var = norm.running_mean[index], norm.running_var[index]
        norm.num_features = c_new

    if isinstance(module, nn.Identity) or not isinstance(module, nn.Sequential):
        return  # the identity and `none`
    layers = list(module)
    if isinstance(layers[0], (nn.MaxPool2d, nn.AvgPool2d)):  # MaxPoolBN, AvgPoolBN
        norm_wider(layers[1])
    elif isinstance(layers[1], EvenAndOdd):  # FactorizedReduce
        half = layers[1].even.weight.shape[0]
        indices = []
        for conv in (layers[1].even, layers[1].odd):
            in_wider(conv)
            indices.append(out_wider(conv, c_new // 2))
        norm_wider(layers[2], torch.cat([indices[0], half + indices[1]]))
    elif len(layers) == 3:  # ReLUConvBN
        in_wider(layers[1])
        norm_wider(layers[2], out_wider(layers[1], c_new))
    else:  # DilConv, and each half of SepConv: ReLU, depthwise, pointwise, norm
        for _, depthwise, pointwise, norm in zip(*[iter(layers)] * 4, strict=True):
            index = out_wider(depthwise, c_new)
            depthwise.groups = c_new
            in_wider(pointwise, index)
            norm_wider(norm, out_wider(pointwise, c_new))


class TestWidening:
    @pytest.mark.parametrize("cell", [MixedCell, FoldedCell])
    @pytest.mark.parametrize(
        ("space", "rules"),
        [
            ("darts(nodes=2)", ("bp",)),
            ("darts(nodes=2)", ("fa", "usf", "frsf")),
            ("nb201", ("fa",)),
        ],
    )
    def test_as_published(
        self, float64: None, space: str, rules: tuple[str, ...], cell: type
    ) -> None:
        """Logits, the gradients that the rules send down and the statistics of batch norms, of a
        supernet with fewer candidates and more channels through them."""
        twins = Twins.of(space, rules, cell=cell, partial=4)
        twins.equal(1e-9)  # so that statistics are not those of the beginning
        reference, built = twins.reference, SPACES.build(space)
        weights = {t: torch.rand(reference.table.shape(t)) for t in reference.table.rows}
        table = reference.table.strongest(
            {t: w * reference.table.mask(t) for t, w in weights.items()}, 3
        )
        sizes = {"channels": 8, "layers": 3, "num_classes": 5}
        wide = SuperNet(built, rules, partial=2, cell=cell, table=table, **sizes).double()
        widen(wide, twins.fast, torch.Generator().manual_seed(3))

        source = torch.Generator().manual_seed(3)
        channels, reductions = 8, built.reductions(3)
        for layer, (cell_type, of_cell) in enumerate(
            zip(reference.plan, reference.cells, strict=True)
        ):
            channels *= 2 if layer in reductions else 1
            assert isinstance(of_cell, ReferenceCell)
            for e, edge in enumerate(of_cell.edges):
                assert isinstance(edge, MixedOperation)
                columns = [
                    reference.table.rows[cell_type][e].index(candidate)
                    for candidate in table.rows[cell_type][e]
                ]
                kept = [edge[column] for column in columns]
                for candidate in kept:
                    published_wider(candidate, channels // 2, source)
                edge._modules.clear()
                edge.extend(kept)
                edge.partial = 2
        reference.table = table
        Twins(wide, reference).equal(1e-9)

    def test_the_published_sizes(self) -> None:
        """36 channels: 6 of them go through the candidates, then 9, an odd number."""
        space = SPACES.build("darts(nodes=1, operations=(skip_connect, sep_conv_3x3))")
        sizes = {"channels": 36, "layers": 3, "num_classes": 2}
        narrow, wide = (SuperNet(space, ("bp",), partial=k, **sizes) for k in (6, 4))
        widen(wide, narrow, torch.Generator().manual_seed(0))
        weights = {t: wide.table.equal_shares(t).float() for t in wide.table.rows}
        assert wide(torch.rand(2, 3, 8, 8), weights).isfinite().all()
        with pytest.raises(InputError, match="channels: expected a multiple of 5"):
            SuperNet(space, ("bp",), partial=5, **sizes)
        least = SuperNet(space, ("bp",), partial=2, channels=2, layers=3, num_classes=2)
        assert least(torch.rand(2, 3, 8, 8), weights).isfinite().all()

    @pytest.mark.parametrize(
        ("stages", "most"),
        [
            ("stage, stage(candidates=8)", 6),  # none, a pooling, two skips, two convolutions
            ("stage, stage(candidates=3), stage(candidates=4)", 3),
            ("stage, stage(candidates=3), stage, stage(candidates=4)", 3),
        ],
    )
    def test_candidates_above_what_there_is(self, stages: str, most: int, data: ImageData) -> None:
        config = SearchConfig(**OPTIONS | {"stages": stages})
        with pytest.raises(InputError, match=f"candidates: expected at most the {most} that"):
            _try(config.of_stages(), places_of(config.of_stages()), data, torch.device("cpu"))

    def test_momentum_alpha_and_adam_go_on(self, data: ImageData) -> None:
        """Where a momentum is three times its weight, it is so afterwards."""
        config = SearchConfig(**OPTIONS, regularizers=("edge_normalization",))
        (_, narrow), (_, wide), _ = config.of_stages()
        before = Search(narrow, data, torch.device("cpu"), StagePlace(schedule=3))
        epoch(before, 0)
        for parameter in before.optimizer.parameters:
            before.optimizer.optimizer.state[parameter]["momentum_buffer"] = 3 * parameter.detach()
        table = before.table.strongest(before.shares(), 4)
        after = Search(wide, data, before.device, StagePlace(3, 1, 1, table))
        take_over(after, before)
        for parameter in after.optimizer.parameters:
            momentum = after.optimizer.optimizer.state[parameter]["momentum_buffer"]
            assert torch.equal(momentum, 3 * parameter)
        mine, theirs = after.strategy_state, before.strategy_state
        assert mine.draws == theirs.draws > 0
        for name, parameter in theirs.parameters.items():
            kept = mine.parameters[name]
            states = [s.optimizer.state[p] for s, p in ((mine, kept), (theirs, parameter))]
            assert states[0]["step"] == states[1]["step"] == 2
            pairs = [(kept, parameter)]
            pairs += [(states[0][key], states[1][key]) for key in ("exp_avg", "exp_avg_sq")]
            for new, old in pairs:
                if name.endswith("/beta"):
                    assert torch.equal(new, old)
                    continue
                for e, row in enumerate(table.rows[name]):
                    expected = [
                        0.0 if c is None else old[e, before.table.rows[name][e].index(c)].item()
                        for c in row
                    ]
                    assert new[e].tolist() == expected
        epoch(after, 0)


class TestResume:
    @pytest.mark.parametrize("after", [1, 4, 7])
    def test_a_run_that_was_stopped_in_any_stage(
        self, data: ImageData, whole: SearchResult, tmp_path: Path, after: int
    ) -> None:
        stopped = run(data, tmp_path / "run", StopAfter(after))
        assert (stopped.finished, stopped.exit_code, stopped.step) == (False, 130, after)
        assert "stopped in stage" in (stopped.folder / "report.md").read_text()
        same_whole(run(data, tmp_path / "run"), whole)

    @pytest.mark.parametrize("after", [3, 8])
    def test_a_run_that_was_killed(
        self, data: ImageData, whole: SearchResult, tmp_path: Path, after: int
    ) -> None:
        with pytest.raises(RuntimeError, match="killed"):
            run(data, tmp_path / "run", FailAfter(after))
        leftover = tmp_path / "run" / "stage-3"
        leftover.mkdir(exist_ok=True)
        (leftover / ".config.yaml.partial").write_text("seed")
        same_whole(run(data, tmp_path / "run"), whole)

    def test_a_finished_run_is_left_as_it_is(self, data: ImageData, whole: SearchResult) -> None:
        before = {p: p.read_bytes() for p in whole.folder.rglob("*.pt")}
        same_whole(run(data, whole.folder), whole)
        assert {p: p.read_bytes() for p in whole.folder.rglob("*.pt")} == before

    def test_other_stages_are_refused(self, data: ImageData, whole: SearchResult) -> None:
        with pytest.raises(InputError, match="stages was .*, is "):
            darts_bio.search(
                data,
                out=str(whole.folder),
                resume=True,
                stages="stage, stage(candidates=3)",
                **QUIET,
            )

    def test_other_candidates_are_refused(self, data: ImageData, whole: SearchResult) -> None:
        """A checkpoint of a stage is bound to what stood on its edges."""
        stage = read_checkpoint(whole.folder / "stage-3" / "checkpoint.pt", "search")
        assert sorted(stage["subject"]) == ["candidates", "data set"]
        first = read_checkpoint(whole.folder / "stage-1" / "checkpoint.pt", "search")
        assert sorted(first["subject"]) == ["data set"]


def same_whole(result: SearchResult, whole: SearchResult) -> None:
    """The same in all stages, bit for bit."""
    assert result.finished
    for number in (1, 2, 3):
        stages = [r.folder / f"stage-{number}" for r in (result, whole)]
        same_states(*stages, "search")
        assert candidates(stages[0]) == candidates(stages[1])
    assert metrics(result.folder) == metrics(whole.folder)
    assert result.genotype == whole.genotype == load_genotype(result.folder)
    assert "stages=" in (result.folder / "report.md").read_text()  # the command that began it


class TestWhole:
    def test_a_stage_is_an_ordinary_search(
        self, data: ImageData, whole: SearchResult, tmp_path: Path
    ) -> None:
        """The first of those that begin anew, bit for bit."""
        two = run(data, tmp_path / "two", stages=("stage(layers=4)", "stage(candidates=3)"))
        assert two.finished
        alone = OPTIONS | {"stages": (), "layers": 4}
        darts_bio.search(data, out=str(tmp_path / "alone"), **alone, **QUIET)
        same_states(tmp_path / "alone", tmp_path / "two" / "stage-1", "search")

    def test_its_numbers(self, whole: SearchResult) -> None:
        """Those of the stages, counted through."""
        assert (whole.step, len(whole.epochs)) == (8, 4)
        assert [numbers["stage"] for numbers in whole.epochs] == [1, 2, 2, 3]
        assert [numbers["step"] for numbers in whole.epochs] == [2, 4, 6, 8]
        assert [numbers["epoch"] for numbers in whole.epochs] == [1, 2, 3, 4]
        stages = [metrics(whole.folder / f"stage-{number}") for number in (1, 2, 3)]
        losses = [r["train/loss"] for records in stages for r in records if r["event"] == "epoch"]
        loaded = darts_bio.load_run(whole.folder)
        assert [numbers["train/loss"] for numbers in loaded.epochs] == losses
        assert loaded.genotype == whole.genotype
        provenance = load_genotype(whole.folder).provenance
        assert (provenance["steps"], len(provenance["stages"])) == (8, 3)

    @pytest.mark.parametrize(
        "strategy", ["darts(order=2)", "pc_darts(k=2)", "gdas", "snas(hard=True)"]
    )
    def test_other_samplers(self, data: ImageData, tmp_path: Path, strategy: str) -> None:
        stages = ("stage", "stage(candidates=3, keeps_weights=True)", "stage(candidates=2)")
        result = run(data, tmp_path / "run", strategy=strategy, stages=stages)
        assert result.finished
        left = candidates(result.folder / "stage-3")
        assert {len(row) for rows in left.values() for row in rows.values()} == {2}

    def test_several_seeds_and_a_choice_among_them(self, data: ImageData, tmp_path: Path) -> None:
        """Stopped in the second search's second stage, and gone on with."""
        training = ", ".join(f"{name}={value}" for name, value in TRAINING.items())
        options: dict[str, Any] = OPTIONS | {
            "seeds": 2,
            "stages": ("stage", "stage(candidates=2)"),
            "choice_epochs": 1,
            "training": f"auto({training}, epochs=1)",
        }
        out = str(tmp_path / "run")
        stopped = darts_bio.search_and_train(
            data, out=out, listener=StopAfter(7), **options, **QUIET
        )
        assert not stopped.finished
        result = darts_bio.search_and_train(data, out=out, resume=True, **QUIET)
        assert result.finished
        assert result.choice is not None
        seed = result.choice.chosen.seed
        searched = result.folder / "searches" / f"seed-{seed}"
        assert result.genotype == load_genotype(searched) == load_genotype(searched / "stage-2")
        assert [len(search.epochs) for search in result.searches.seeds.values()] == [2, 2]

    def test_rules_that_share_weights(self, data: ImageData, tmp_path: Path) -> None:
        stages = ("stage", "stage(candidates=3)")
        result = run(data, tmp_path / "run", strategy="rule_aware", stages=stages)
        assert result.finished

    def test_shared_weights_of_pairs(self, float64: None) -> None:
        """Where edges keep some of the rules of an operation, batched cells equal the reference."""
        searched = context("darts(nodes=2)", ("fa", "usf", "frsf"))
        weights = {t: torch.rand(searched.table.shape(t)) for t in searched.table.rows}
        masked = {t: w * searched.table.mask(t) for t, w in weights.items()}
        table: CandidateTable = searched.table.strongest(masked, 5)
        nets = []
        for cell in (MixedCell, ReferenceCell):
            torch.manual_seed(1)
            nets.append(
                SuperNet(
                    searched.space,
                    (),
                    channels=4,
                    layers=3,
                    num_classes=5,
                    shared="match",
                    cell=cell,
                    table=table,
                )
            )
        x, of_edges = torch.randn(3, 3, 8, 8), {t: torch.rand(table.shape(t)) for t in table.rows}
        one, other = (net(x, of_edges) for net in nets)
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)

    def test_the_command(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        words = (
            "--space darts(nodes=1) --train-images 32 --epochs 1 --batch-size 8 --channels 2 --rules usf "
            "--out run --stages "
            '"stage, stage(candidates=2, regularizers=(skip_dropout(rate=0.4), skip_limit))"'
        )
        assert main(["search", *shlex.split(words)]) == 0
        said = capsys.readouterr()
        assert "stage 2 of 2: 3 cells, at most 2 candidates an edge, new weights" in said.err
        assert "genotype: run/genotype.json" in said.out
        assert "--genotype run" in said.out
        assert Path("run/cells.svg").is_file()


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("stge", "unknown stage of --stages 'stge': did you mean 'stage'"),
            ("stage(layer=3)", "'stage' has no option 'layer'"),
            ("'stage(candidates=3)'", "--stages: candidates: expected from the second stage on"),
            ("'stage(keeps_weights=True)'", "keeps_weights: expected from the second stage on"),
            ("'stage, stage(candidates=1)'", "--stages: candidates: expected a whole number of at"),
            ("'stage, stage(keeps_weights=2)'", "--stages: keeps_weights: expected True or False"),
            ("'stage, stage(layers=0)'", "--layers: expected at least 1 and below 251, found 0"),
            ("'stage(regularizers=3)'", "--stages: regularizers: expected specs such as"),
            ("'stage, stage(regularizers=skip)'", "unknown regularizer 'skip'"),
            ("'stage, stage(layers=2)'", "layers: expected at least 3"),
            ("stage --supernet x", "--stages: expected stages that train supernets of their own"),
            ("stage --strategy random", "--stages: expected a strategy whose alpha follows a"),
            ("stage --strategy eg", "--stages: expected a strategy whose alpha follows a gradient"),
            (
                "'stage, stage(keeps_weights=True, layers=4)'",
                "--stages: keeps_weights: expected the 3 layers of the stage before, found 4",
            ),
            (
                "'stage, stage(keeps_weights=True, regularizers=partial_channels(k=2))'",
                "--stages: keeps_weights: expected a k of at most 1, the one before, found 2",
            ),
            (
                "'stage, stage(keeps_weights=True)' --regularizers factorised",
                "--stages: keeps_weights: expected an alpha of logits, found one of operations",
            ),
            (
                "'stage, stage(keeps_weights=True)' --weights shared",
                "--stages: keeps_weights: expected weights of each rule's own",
            ),
            (
                "'stage, stage(keeps_weights=True)' --rules pfa,dfa",
                "--stages: keeps_weights: expected rules whose feedback has the shape of the weight",
            ),
            (
                "'stage, stage(keeps_weights=True)' --optimizer adamw",
                "--stages: keeps_weights: expected --optimizer sgd, nesterov or batch_manhattan, found adamw",
            ),
            (
                "'stage, stage(candidates=3)' --regularizers factorised "
                "--space 'by_depth(space=darts(nodes=1), cells=4)' --layers 4",
                "--stages: expected an alpha of logits in a space whose cells differ by depth",
            ),
        ],
    )
    def test_in_one_line_and_nothing_is_left_behind(
        self, words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:  # fmt: skip
        """Whichever stage it is about."""
        sizes = "--channels 2 --train-images 32 --batch-size 8 --space 'darts(nodes=1)'"
        assert message in here(SEARCH, f"{sizes} --stages {words}", tmp_path, monkeypatch, capsys)
        assert list(tmp_path.iterdir()) == []
