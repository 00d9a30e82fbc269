"""Runs from beginning to end: training, stopping and resuming, records, and what a run must not be
bent by.
"""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import StopAfter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from darts_bio.config import FitConfig, RetrainConfig, SearchConfig
from darts_bio.data.batches import in_order
from darts_bio.data.datasets import ImageData, load_data
from darts_bio.errors import InputError
from darts_bio.rules import rule_carriers
from darts_bio.runs.running import Watching
from darts_bio.runs.search import SearchResult, search
from darts_bio.runs.train import TrainResult, train
from darts_bio.runtime import stop_on_signals
from darts_bio.spaces import from_json, load_genotype
from darts_bio.storage.checkpoint import FORMAT, read_checkpoint, write_checkpoint
from darts_bio.storage.run_folder import RunFolder
from darts_bio.training.meters import evaluate
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "channels": 2,
    "layers": 3,
    "batch_size": 8,
    "log_every": 3,
    "crop_padding": 1,
    "lr": 0.05,
}
SEARCH = SearchConfig(
    space="darts(nodes=1, operations=(none, skip_connect, max_pool_3x3, sep_conv_3x3))",
    strategy="darts(lr=0.05)",
    rules=("usf", "brsf"),
    epochs=2,
    **SMALL,
)
GENOTYPE = (
    "Genotype(normal=[('sep_conv_3x3_br', 0), ('dil_conv_3x3_br', 1)], normal_concat=[2],"
    "reduce=[('sep_conv_3x3_br', 0), ('max_pool_3x3', 1)], reduce_concat=[2])"
)
RETRAIN = RetrainConfig(
    genotype=GENOTYPE, epochs=2, drop_path=0.3, auxiliary=0.0, cutout=3, **SMALL
)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_data("digits", train_images=64)


def run(
    config: FitConfig, data: ImageData, out: Path, stop_after: int | None = None
) -> SearchResult | TrainResult:
    """A search or a training as the commands make it, begun or gone on with, stopped after that
    many steps.
    """
    config = replace(config, out=str(out), resume=out.exists())
    watching = Watching(tensorboard=True, listener=StopAfter(stop_after))
    if isinstance(config, SearchConfig):
        found = search(config, "run.py", data, watching)
        assert isinstance(found, SearchResult)
        return found
    assert isinstance(config, RetrainConfig)
    trained = train(config, "train.py", None, data, watching)
    assert isinstance(trained, TrainResult)
    return trained


def metrics(out: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in r.items() if k not in ("seconds", "images_per_second")} for r in records
    ]


def same(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def same_runs(one: Path, other: Path, kind: str) -> None:
    same(
        read_checkpoint(one / "checkpoint.pt", kind), read_checkpoint(other / "checkpoint.pt", kind)
    )
    assert metrics(one) == metrics(other)
    if kind == "search":
        assert (one / "alpha.jsonl").read_bytes() == (other / "alpha.jsonl").read_bytes()
    assert load_genotype(one) == load_genotype(other)


@pytest.fixture(scope="module")
def whole_search(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "search"
    assert run(SEARCH, data, out).finished
    return out


@pytest.fixture(scope="module")
def whole_training(data: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "train"
    assert run(RETRAIN, data, out).finished
    return out


class TestResume:
    @pytest.mark.parametrize("after", range(1, 9))
    def test_a_search_stopped_after_any_step(
        self, data: ImageData, whole_search: Path, tmp_path: Path, after: int
    ) -> None:
        out = tmp_path / "run"
        stopped = run(SEARCH, data, out, stop_after=after)
        assert stopped.step == after
        assert stopped.finished == (after == 8)
        assert run(SEARCH, data, out).finished
        same_runs(out, whole_search, "search")

    def test_a_search_stopped_after_every_step(
        self, data: ImageData, whole_search: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        while not run(SEARCH, data, out, stop_after=1).finished:
            pass
        same_runs(out, whole_search, "search")

    @pytest.mark.parametrize("after", [1, 4, 5, 7])
    def test_a_retraining(
        self, data: ImageData, whole_training: Path, tmp_path: Path, after: int
    ) -> None:
        out = tmp_path / "run"
        run(RETRAIN, data, out, stop_after=after)
        assert run(RETRAIN, data, out).finished
        same_runs(out, whole_training, "train")

    def test_a_crash_loses_only_what_came_after_the_checkpoint(
        self, data: ImageData, whole_search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "run"
        step = Search.step

        def crash(self: Search, t: int) -> Any:
            if t == 7:
                raise KeyboardInterrupt
            return step(self, t)

        monkeypatch.setattr(Search, "step", crash)
        with pytest.raises(KeyboardInterrupt):
            run(SEARCH, data, out)
        assert read_checkpoint(out / "checkpoint.pt", "search")["step"] == 4
        assert metrics(out)[-1]["step"] == 6
        with (out / "metrics.jsonl").open("a") as file:
            file.write('{"event": "record", "st')
        monkeypatch.undo()
        run(SEARCH, data, out)
        same_runs(out, whole_search, "search")

    def test_a_run_that_ended_before_its_first_checkpoint_starts_again(
        self, data: ImageData, whole_search: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        RunFolder.open("search", replace(SEARCH, out=str(out)), "run.py")
        run(SEARCH, data, out)
        same_runs(out, whole_search, "search")

    def test_the_first_command_and_every_option_are_the_provenance(
        self, data: ImageData, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        run(SEARCH, data, out, stop_after=3)
        assert load_genotype(out).provenance["note"] == "that of a search which had not finished"
        search(replace(SEARCH, out=str(out), resume=True), "run.py --resume", data)
        provenance = load_genotype(out).provenance
        assert provenance["command"] == "run.py"
        assert provenance["steps"] == 8
        assert {k: provenance[k] for k in SEARCH.identity()} == SEARCH.identity()

    def test_a_finished_run_is_left_as_it_is(self, data: ImageData, whole_training: Path) -> None:
        before = (whole_training / "checkpoint.pt").read_bytes()
        records = (whole_training / "metrics.jsonl").read_bytes()
        outcome = run(RETRAIN, data, whole_training)
        assert outcome.finished
        assert outcome.epochs[-1]["test/accuracy"] == metrics(whole_training)[-1]["test/accuracy"]
        assert (whole_training / "metrics.jsonl").read_bytes() == records
        assert (whole_training / "checkpoint.pt").read_bytes() == before


class TestSeeds:
    def test_another_seed_is_another_run(
        self, data: ImageData, whole_search: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        run(replace(SEARCH, seed=1), data, out)
        assert metrics(out) != metrics(whole_search)

    def test_the_global_generator_does_not_matter(
        self, data: ImageData, whole_search: Path, tmp_path: Path
    ) -> None:
        torch.manual_seed(12345)
        torch.rand(7)
        out = tmp_path / "run"
        run(SEARCH, data, out)
        assert metrics(out) == metrics(whole_search)


class TestSearch:
    def test_one_step_moves_alpha_then_w_as_by_hand(self, data: ImageData) -> None:
        """First order: alpha along the gradient at the old w, w along the gradient at the new
        alpha.
        """
        config = replace(SEARCH, rules=("bp",), clip=0.0)
        search, mirror = Search(config, data, CPU), Search(config, data, CPU)
        search.begin_epoch(0)
        search.step(0)
        net, alpha = mirror.supernet, mirror.strategy_state.alpha
        adam = torch.optim.Adam(alpha.values(), lr=0.05, betas=(0.5, 0.999), weight_decay=1e-3)
        x, y = mirror.valid_batches.batch(0)
        loss = torch.nn.functional.cross_entropy(
            net(x, mirror.strategy.edge_weights(mirror.strategy_state)), y
        )
        loss.backward()
        adam.step()
        net.zero_grad()
        sgd = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=3e-4)
        x, y = mirror.train_batches.batch(0)
        torch.nn.functional.cross_entropy(
            net(x, mirror.strategy.edge_weights(mirror.strategy_state)), y
        ).backward()
        sgd.step()
        for cell_type in alpha:
            torch.testing.assert_close(
                search.strategy_state.alpha[cell_type], alpha[cell_type], rtol=1e-5, atol=1e-6
            )
        for one, other in zip(search.supernet.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)

    def test_arch_gradient_true_is_the_exact_one_and_rule_is_not(self, data: ImageData) -> None:
        gradients = {}
        for choice in ("rule", "true"):
            search = Search(
                replace(SEARCH, rules=("fa",), layers=4, arch_gradient=choice), data, CPU
            )
            search.step(0)
            gradients[choice] = search.strategy_state.alpha["normal"].grad
        search = Search(replace(SEARCH, rules=("fa",), layers=4), data, CPU)
        for _, carrier in rule_carriers(search.supernet):
            carrier.exact = True
        search.step(0)
        assert torch.equal(gradients["true"], search.strategy_state.alpha["normal"].grad)
        assert not torch.allclose(gradients["true"], gradients["rule"], rtol=1e-3)

    def test_the_alpha_pass_leaves_no_weight_gradient_and_thaws_the_weights(
        self, data: ImageData
    ) -> None:
        search = Search(SEARCH, data, CPU)
        seen = []
        loss = search._architecture_loss

        def watched(*args: Any) -> Any:
            seen.append(any(p.requires_grad for p in search.supernet.parameters()))
            return loss(*args)

        search._architecture_loss = watched  # type: ignore[method-assign]
        search.step(0)
        assert seen == [False]
        assert all(p.requires_grad for p in search.supernet.parameters())

    def test_weights_that_a_user_froze_stay_frozen(self, data: ImageData) -> None:
        search = Search(SEARCH, data, CPU)
        search.supernet.stem.requires_grad_(False)
        search.step(0)
        thawed = {name for name, p in search.supernet.named_parameters() if p.requires_grad}
        assert thawed == {
            name for name, _ in search.supernet.named_parameters() if not name.startswith("stem.")
        }

    def test_the_form_that_keeps_less_moves_alpha_and_weights_alike(self, data: ImageData) -> None:
        searches = [
            Search(replace(SEARCH, memory=memory), data, CPU) for memory in ("normal", "low")
        ]
        numbers = [search.step(0) for search in searches]
        one, other = searches
        assert any(type(m).__name__ == "FoldedNorm" for m in other.supernet.modules())
        losses = [sums["train"].totals[0].item() for sums in numbers]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        for cell_type, alpha in one.strategy_state.alpha.items():
            torch.testing.assert_close(
                alpha.grad, other.strategy_state.alpha[cell_type].grad, rtol=1e-2, atol=1e-5
            )
        weights = []
        for net in (one.supernet, other.supernet):
            outside = [p for name, p in net.named_parameters() if not name.startswith("cells.")]
            layers = [layer for cell in net.cells for layer in cell.stacked_layers()]
            weights.append(outside + [layer.weight for layer in layers])
            assert len(weights[-1]) == len(list(net.parameters()))
        for mine, theirs in zip(*weights, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-4)

    def test_brsf_is_drawn_once_an_update_and_the_fixed_rules_never(self, data: ImageData) -> None:
        search = Search(replace(SEARCH, rules=("brsf", "frsf")), data, CPU)
        redrawn, kept = set(), set()
        before = {name: layer.feedback for name, layer in rule_carriers(search.supernet)}
        before = {name: {k: v.clone() for k, v in f.items()} for name, f in before.items()}
        search.step(0)
        for name, layer in rule_carriers(search.supernet):
            for key, value in layer.feedback.items():
                (kept if torch.equal(value, before[name][key]) else redrawn).add(
                    type(layer.rule).__name__
                )
        assert redrawn == {"BatchRandomSignFeedback"}
        assert kept == {"FixedRandomSignFeedback"}

    def test_a_short_search_on_the_digits_learns(self, tmp_path: Path) -> None:
        everything = load_data("digits")
        config = replace(SEARCH, channels=4, batch_size=32, epochs=3, lr=0.1)
        run(config, everything, tmp_path / "run")
        epochs = [r for r in metrics(tmp_path / "run") if r["event"] == "epoch"]
        assert epochs[-1]["valid/loss"] < epochs[0]["valid/loss"] - 0.3


@pytest.fixture(scope="module")
def wholes() -> dict[str, tuple[Path, int]]:
    """Folder and steps of a run that was not stopped, by its strategy."""
    return {}


class TestStopBetweenEpochs:
    @pytest.mark.parametrize(
        "strategy",
        ["eg(population=4, samples=3, batches=1)", "darts_pt(share=0.4, batches=1)"],
        ids=["eg", "darts_pt"],
    )
    @pytest.mark.parametrize("measure", [0, 2, 3])
    def test_the_end_of_an_epoch_is_made_anew(
        self,
        strategy: str,
        measure: int,
        data: ImageData,
        wholes: dict[str, tuple[Path, int]],
        tmp_path: Path,
        tmp_path_factory: pytest.TempPathFactory,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Stopped before the measure of that number, and resumed, against a run that was not
        stopped.
        """
        config = replace(SEARCH, strategy=strategy, regularizers=("warmup(epochs=0)",))
        if strategy not in wholes:
            out = tmp_path_factory.mktemp("whole") / "run"
            wholes[strategy] = out, run(config, data, out).step
        whole, steps = wholes[strategy]
        measures, original = 0, Search.end_epoch

        def counted(self: Search, epoch: int, asked: Any) -> Any:
            def ask() -> bool:
                nonlocal measures
                measures += 1
                if measures == measure + 1:
                    signal.raise_signal(signal.SIGINT)
                return bool(asked())

            return original(self, epoch, ask)

        monkeypatch.setattr(Search, "end_epoch", counted)
        outcome = run(config, data, tmp_path / "stopped")
        assert not outcome.finished
        assert outcome.step % 4 == 0
        monkeypatch.undo()
        resumed = run(config, data, tmp_path / "stopped")
        assert (resumed.step, resumed.finished) == (steps, True)
        assert metrics(tmp_path / "stopped") == metrics(whole)
        one, other = (
            read_checkpoint(path / "checkpoint.pt", "search")
            for path in (whole, tmp_path / "stopped")
        )
        for name, value in one["task"]["supernet"].items():
            assert torch.equal(value, other["task"]["supernet"][name])
        assert load_genotype(whole) == load_genotype(tmp_path / "stopped")


class TestEvaluation:
    @pytest.fixture
    def training(self, data: ImageData) -> Retraining:
        return Retraining.of_genotype(RETRAIN, load_genotype(GENOTYPE), data, CPU)

    def test_two_evaluations_of_brsf_are_equal(self, training: Retraining) -> None:
        training.step(0)
        assert training.end_epoch(0) == training.end_epoch(0)

    def test_evaluation_does_not_change_the_training(
        self, training: Retraining, data: ImageData
    ) -> None:
        other = Retraining.of_genotype(RETRAIN, training.network.genotype, data, CPU)
        for task in (training, other):
            task.begin_epoch(1)
        state = torch.get_rng_state()
        for t in range(4):
            training.step(t)
            training.end_epoch(0)
        torch.set_rng_state(state)
        for t in range(4):
            other.step(t)
        same(training.state_dict(), other.state_dict())

    def test_accuracy_and_loss_equal_the_definition_over_uneven_batches(
        self, training: Retraining, data: ImageData
    ) -> None:
        network, test = training.network, data.test
        numbers = evaluate(network, in_order(test, 7, training.source.normalization), prefix="test")
        network.eval()
        with torch.no_grad():
            logits = network(training.source.normalization(test.images))
        loss = torch.nn.functional.cross_entropy(logits, test.labels)
        assert numbers["test/loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert numbers["test/accuracy"] == (logits.argmax(1) == test.labels).sum().item() / len(
            test
        )


class TestSchedules:
    def test_the_rate_falls_along_half_a_cosine_once_an_epoch(self, whole_training: Path) -> None:
        rates = {
            r["step"]: r["lr/weights"] for r in metrics(whole_training) if r["event"] == "record"
        }
        assert rates == {3: 0.05, 6: 0.05, 9: 0.025, 12: 0.025, 15: 0.025}

    def test_drop_path_grows_linearly_from_zero(self, data: ImageData) -> None:
        task = Retraining.of_genotype(
            replace(RETRAIN, epochs=4), load_genotype(GENOTYPE), data, CPU
        )
        seen = []
        for epoch in range(4):
            task.begin_epoch(epoch)
            seen += {m.probability for m in task.network.modules() if hasattr(m, "probability")}
        assert seen == pytest.approx([0.0, 0.075, 0.15, 0.225])

    def test_the_auxiliary_loss_is_added_with_its_weight(self) -> None:
        # Two reductions leave 8x8, the least an auxiliary head takes, of 32x32.
        images = torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8)
        split = load_data("digits").train[slice(0, 16)]
        big = ImageData(
            replace(split, images=images), replace(split, images=images), tuple("0123456789")
        )
        config = replace(
            RETRAIN, auxiliary=0.4, drop_path=0.0, clip=0.0, weight_decay=0.0, momentum=0.0
        )
        task = Retraining.of_genotype(config, load_genotype(GENOTYPE), big, CPU)
        mirror = Retraining.of_genotype(config, load_genotype(GENOTYPE), big, CPU)
        task.begin_epoch(0)
        task.step(0)
        x, y = mirror.source.batch(0)
        logits, auxiliary = mirror.network(x)
        entropy = torch.nn.functional.cross_entropy
        (entropy(logits, y) + 0.4 * entropy(auxiliary, y)).backward()
        for one, other in zip(task.network.parameters(), mirror.network.parameters(), strict=True):
            assert other.grad is not None
            torch.testing.assert_close(one, other - 0.05 * other.grad, rtol=1e-4, atol=1e-6)


class TestRecords:
    def test_records_and_epochs(self, whole_search: Path) -> None:
        kinds = [(r["event"], r["step"], r["epoch"]) for r in metrics(whole_search)]
        assert kinds == [("record", 3, 1), ("epoch", 4, 1), ("record", 6, 2), ("epoch", 8, 2)]
        for r in metrics(whole_search):
            assert {"train/loss", "train/accuracy", "valid/loss", "valid/accuracy"} <= set(r)

    def test_tensorboard_holds_the_same_numbers_and_the_pictures(self, whole_search: Path) -> None:
        events = EventAccumulator(str(whole_search), size_guidance={"images": 0})
        events.Reload()
        tags = events.Tags()
        assert {
            "train/loss",
            "valid/accuracy",
            "lr/weights",
            "lr/alpha",
            "epoch/valid_loss",
        } <= set(tags["scalars"])
        assert tags["histograms"] == []  # of all edges together they say nothing
        heat_maps = {"heat_map/normal", "heat_map/reduce"}
        assert set(tags["images"]) == heat_maps | {"genotype/cells"}
        losses = {e.step: e.value for e in events.Scalars("train/loss")}
        recorded = {
            r["step"]: r["train/loss"] for r in metrics(whole_search) if r["event"] == "record"
        }
        assert losses == pytest.approx(recorded, rel=1e-6)
        assert [e.step for e in events.Images("heat_map/normal")] == [4, 8]
        assert all(e.width > 100 and e.height > 100 for e in events.Images("genotype/cells"))

    def test_after_a_resume_tensorboard_shows_each_step_once(
        self, data: ImageData, tmp_path: Path
    ) -> None:
        out = tmp_path / "run"
        run(SEARCH, data, out, stop_after=5)
        run(SEARCH, data, out)
        events = EventAccumulator(str(out))
        events.Reload()
        assert [e.step for e in events.Scalars("train/loss")] == [3, 6]

    def test_nor_does_it_show_steps_of_a_run_that_died_before_its_first_checkpoint(
        self, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "run"
        step = Search.step

        def crash(self: Search, t: int) -> Any:
            if t == 3:
                raise KeyboardInterrupt
            return step(self, t)

        monkeypatch.setattr(Search, "step", crash)
        with pytest.raises(KeyboardInterrupt):
            run(SEARCH, data, out)
        monkeypatch.undo()
        run(SEARCH, data, out)
        events = EventAccumulator(str(out))
        events.Reload()
        assert [e.step for e in events.Scalars("train/loss")] == [3, 6]


class TestFolder:
    def test_another_run_is_never_overwritten(self, data: ImageData, whole_search: Path) -> None:
        with pytest.raises(
            InputError,
            match="exists and is not empty; choose another, or go on with it by --resume",
        ):
            RunFolder.open("search", replace(SEARCH, out=str(whole_search)), "run.py")

    def test_a_checkpoint_of_another_configuration(
        self, data: ImageData, whole_search: Path
    ) -> None:
        before = (whole_search / "checkpoint.pt").read_bytes()
        with pytest.raises(
            InputError, match=r"another configuration \(seed was 0, is 3; channels was 2, is 4\)"
        ):
            run(replace(SEARCH, channels=4, seed=3), data, whole_search)
        assert (whole_search / "checkpoint.pt").read_bytes() == before

    def test_without_a_checkpoint_the_configuration_is_held_to_as_well(
        self, tmp_path: Path
    ) -> None:
        config = replace(SEARCH, out=str(tmp_path / "run"))
        RunFolder.open("search", config, "run.py")
        with pytest.raises(
            InputError, match=r"run: a run of another configuration \(seed was 0, is 3\)"
        ):
            RunFolder.open("search", replace(config, seed=3, resume=True), "run.py")

    def test_an_option_newer_than_a_run_had_its_default_then(self) -> None:
        old = {
            name: value
            for name, value in SEARCH.identity().items()
            if name not in ("amp", "momentum")
        }
        assert SEARCH.differences(old) == []
        assert replace(SEARCH, amp="bf16").differences(old) == ["amp was none, is bf16"]

    @pytest.mark.parametrize("kept", [0, 3])
    def test_a_checkpoint_that_has_gone_is_missed(
        self, data: ImageData, tmp_path: Path, kept: int
    ) -> None:
        """Not begun anew at step 0, which would cut the records."""
        out = tmp_path / "run"
        run(SEARCH, data, out, stop_after=5)
        for name in ("checkpoint.pt", "checkpoint-before.pt"):
            (out / name).unlink()
        records = "".join((out / "metrics.jsonl").read_text().splitlines(keepends=True)[:kept])
        (out / "metrics.jsonl").write_text(records)
        told = "tells of step 4" if kept == 3 else "says that the run had begun"
        with pytest.raises(
            InputError,
            match=rf"checkpoint.pt: missing, though metrics.jsonl beside it {told}; put it",
        ):
            run(SEARCH, data, out)
        assert (out / "metrics.jsonl").read_text() == records

    def test_other_data_is_another_run(self, data: ImageData, tmp_path: Path) -> None:
        """Of equal shape, with one label moved; or fewer images."""
        out = tmp_path / "run"
        run(SEARCH, data, out, stop_after=3)
        labels = data.train.labels.clone()
        labels[0] = (labels[0] + 1) % 10
        for other in (
            replace(data, train=replace(data.train, labels=labels)),
            load_data("digits", train_images=60),
        ):
            with pytest.raises(
                InputError,
                match=r"the data set of this run has changed .*put it back, or start anew",
            ):
                run(SEARCH, other, out)

    def test_a_training_is_bound_to_its_genotype(
        self, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The weights of brsf would fit a network of frsf."""
        out = tmp_path / "run"
        brsf = load_genotype(GENOTYPE).with_rule("brsf")
        (tmp_path / "g.json").write_text(brsf.to_json())
        config = replace(RETRAIN, genotype=str(tmp_path / "g.json"))
        run(config, data, out, stop_after=2)
        (out / "genotype.json").write_text(brsf.with_rule("frsf").to_json())
        with pytest.raises(
            InputError, match=r"the genotype of this run has changed since it was stopped"
        ):
            run(config, data, out)

    def test_a_new_training_holds_its_genotype_from_the_start(self, tmp_path: Path) -> None:
        genotype = load_genotype("p_darts")
        RunFolder.open(
            "train", replace(RETRAIN, out=str(tmp_path / "run")), "train.py", genotype=genotype
        )
        assert load_genotype(tmp_path / "run") == genotype

    def test_a_checkpoint_says_what_the_network_is_and_takes(
        self, data: ImageData, whole_training: Path
    ) -> None:
        state = read_checkpoint(whole_training / "checkpoint.pt", "train")["task"]
        assert from_json(state["genotype"], "checkpoint") == load_genotype(whole_training)
        assert tuple(state["classes"]) == data.classes
        pixels = data.train.images.double() / 255
        assert state["normalisation"]["mean"].item() == pytest.approx(
            pixels.mean().item(), rel=1e-6
        )
        assert state["normalisation"]["std"].item() == pytest.approx(
            pixels.std(correction=0).item(), rel=1e-6
        )

    def test_runs_that_begin_in_the_same_second_get_folders_of_their_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
        names = [str(RunFolder.open("search", SEARCH, "run.py").path) for _ in range(3)]
        stem = "runs/search-digits-20260101-000000"
        assert names == [stem, f"{stem}-2", f"{stem}-3"]

    def test_a_checkpoint_of_another_kind(self, whole_search: Path) -> None:
        with pytest.raises(
            InputError, match="expected the checkpoint of a train run, found one of a search run"
        ):
            read_checkpoint(whole_search / "checkpoint.pt", "train")

    @pytest.mark.parametrize("damage", ["cut", "text", "empty", "stub", "flipped", "other", "bare"])
    def test_a_damaged_checkpoint(self, whole_search: Path, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "checkpoint.pt"
        whole = (whole_search / "checkpoint.pt").read_bytes()
        broken = {
            "cut": whole[: len(whole) // 2],
            "text": b"hello",
            "empty": b"",
            "stub": b"\x80\x02.",
        }
        place = whole.index(b"format")
        broken["flipped"] = whole[:place] + b"\xff" + whole[place + 1 :]
        path.write_bytes(broken.get(damage, b""))
        if damage == "other":
            write_checkpoint(path, [1, 2])  # type: ignore[arg-type]
        if damage == "bare":
            write_checkpoint(path, {"format": FORMAT, "kind": "search"})
        with pytest.raises(InputError, match="checkpoint.pt: not a") as caught:
            read_checkpoint(path, "search")
        assert "\n" not in str(caught.value)

    def test_a_checkpoint_of_other_code(self, data: ImageData, tmp_path: Path) -> None:
        """The configuration is the same, but a plug-in's layers are not, or a field is missing."""
        out = tmp_path / "run"
        run(SEARCH, data, out, stop_after=1)
        path = out / "checkpoint.pt"
        state = read_checkpoint(path, "search")
        for broken in (
            {k: v for k, v in state.items() if k != "rng"},
            {**state, "task": {"supernet": {}}},
        ):
            write_checkpoint(path, broken)
            with pytest.raises(
                InputError, match="does not fit the run that its configuration describes"
            ) as caught:
                run(SEARCH, data, out)
            assert "\n" not in str(caught.value)

    def test_a_checkpoint_that_would_run_code_is_refused(self, tmp_path: Path) -> None:
        import pickle

        class Evil:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "touched",))

        (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
        with pytest.raises(InputError, match="not a readable checkpoint"):
            read_checkpoint(tmp_path / "checkpoint.pt", "search")
        assert not (tmp_path / "touched").exists()

    def test_a_full_disk_keeps_the_checkpoint_before(
        self, data: ImageData, whole_search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "run"
        write, written = Path.write_bytes, []

        def full(path: Path, content: Any) -> int:
            written.append(path)
            if len(written) == 3:  # those of the beginning and of the first epoch are whole
                write(path, content[:1000])
                raise OSError(28, "No space left on device")
            return write(path, content)

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(
            InputError,
            match="checkpoint.pt: cannot be written .No space left on device.; make room",
        ):
            run(SEARCH, data, out)
        assert read_checkpoint(out / "checkpoint.pt", "search")["step"] == 4
        assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
        monkeypatch.undo()
        run(SEARCH, data, out)
        same_runs(out, whole_search, "search")

    def test_a_disk_that_fills_under_tensorboard_is_told_in_one_line(
        self, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its writer fails in a thread of its own, whose traceback must not reach the console."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        write, written = RecordWriter.write, []

        def full(self: RecordWriter, content: bytes) -> None:
            written.append(content)
            if len(written) > 5:
                raise OSError(28, "No space left on device")
            write(self, content)

        monkeypatch.setattr(RecordWriter, "write", full)
        with pytest.raises(
            InputError, match="run: cannot be written .No space left on device.; make room"
        ):
            run(SEARCH, data, tmp_path / "run")

    def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(
        self, data: ImageData, tmp_path: Path
    ) -> None:
        with pytest.raises(
            InputError,
            match=r"train/loss is nan at step \d: diverged; --resume --rollbacks 3, or a smaller --lr",
        ):
            run(replace(SEARCH, lr=1e30, clip=0.0), data, tmp_path / "run")
        assert read_checkpoint(tmp_path / "run" / "checkpoint.pt", "search")["step"] == 0
        with pytest.raises(InputError, match="train/loss is nan at step 2"):
            run(
                replace(SEARCH, lr=1e30, clip=0.0, log_every=50),
                data,
                tmp_path / "stopped",
                stop_after=2,
            )
        assert read_checkpoint(tmp_path / "stopped" / "checkpoint.pt", "search")["step"] == 0


class TestDivergence:
    """Nothing that is not finite reaches metrics.jsonl or a checkpoint."""

    def test_weights_that_the_last_update_before_a_checkpoint_has_spoilt(
        self, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "run"
        step = Search.step

        def spoil(self: Search, t: int) -> Any:
            sums = step(self, t)
            if t == 7:
                with torch.no_grad():
                    self.supernet.classifier.weight[0, 0] = torch.nan
            return sums

        monkeypatch.setattr(Search, "step", spoil)
        with pytest.raises(
            InputError,
            match=r"supernet.classifier.weight is not finite at step 8: diverged; ",
        ):
            run(SEARCH, data, out)
        assert read_checkpoint(out / "checkpoint.pt", "search")["step"] == 4

    def test_alpha(self, data: ImageData, tmp_path: Path) -> None:
        out = tmp_path / "run"
        with pytest.raises(InputError, match=r"diverged"):
            run(replace(SEARCH, strategy="darts(lr=1e38, weight_decay=1e38)"), data, out)
        assert read_checkpoint(out / "checkpoint.pt", "search")["step"] == 0

    def test_a_measurement_at_the_end_of_an_epoch(
        self, data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "run"
        monkeypatch.setattr(
            Retraining, "end_epoch", lambda self, epoch, stop: {"test/loss": float("inf")}
        )
        with pytest.raises(InputError, match=r"test/loss is inf at step 8"):
            run(RETRAIN, data, out)
        assert "Infinity" not in (out / "metrics.jsonl").read_text()
        assert read_checkpoint(out / "checkpoint.pt", "train")["step"] == 0


def test_a_gpu_that_is_too_small_is_told_in_one_line(
    data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Search, t: int) -> Any:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB.\nMore about it"
        )

    monkeypatch.setattr(Search, "step", full)
    with pytest.raises(
        InputError, match=r"Tried to allocate 2.00 GiB.\); try a smaller --batch-size"
    ) as caught:
        run(SEARCH, data, tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_one_request_may_arrive_twice_and_a_later_one_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`uv run` and `timeout` pass on a signal that the terminal has sent already."""
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.exit_code == 130
        now = time.monotonic()
        monkeypatch.setattr("time.monotonic", lambda: now + 1.5)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_signals_that_were_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop
            signal.raise_signal(signal.SIGTERM)
            assert stop.exit_code == 128 + signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_adaptive_numbers_are_finite_under_bf16(data: ImageData, tmp_path: Path) -> None:
    outcome = run(replace(SEARCH, amp="bf16", epochs=1), data, tmp_path / "run")
    assert outcome.finished


@pytest.mark.parametrize(
    ("channels", "given", "used"), [(16, None, 1), (20, None, 2), (16, "2", 2)]
)
def test_small_maps_are_computed_in_one_thread(
    channels: int,
    given: str | None,
    used: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But not where the user has chosen a number; whoever called has theirs back afterwards."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    seen = set()

    def count(self: Search | Retraining, t: int) -> Any:
        seen.add(torch.get_num_threads())
        raise InputError("counted")

    monkeypatch.setattr(Search, "step", count)
    monkeypatch.setattr(Retraining, "step", count)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    images = load_data("digits")
    try:
        for config in (SEARCH, RETRAIN):
            config = replace(config, batch_size=64, channels=channels)
            with pytest.raises(InputError, match="counted"):
                run(config, images, tmp_path / type(config).__name__)
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {used}
