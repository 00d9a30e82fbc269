"""Steps that are replayed as CUDA graphs: that this changes nothing, and that what would is
told.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tape import TapeRecorder
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData
from darts_bio.errors import InputError
from darts_bio.networks import build_network
from darts_bio.rules import RULES
from darts_bio.spaces import load_genotype
from darts_bio.training import retrain as retrain_module
from darts_bio.training import search as search_module
from darts_bio.training.graphs import Recorder, Trace
from darts_bio.training.optim import WeightOptimizer
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def images(n: int, side: int) -> ImageData:
    source = torch.Generator().manual_seed(0)
    split = Split(
        torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=source),
        torch.randint(0, 5, (n,), generator=source),
    )
    return ImageData(split, split, tuple("abcde"))


def search(device: str = "cpu", **options: Any) -> Search:
    """Four steps an epoch: two as they are, the recording, a replay."""
    sizes: dict[str, Any] = {"space": "darts(nodes=1)", "rules": ("fa", "brsf")}
    sizes |= {"channels": 4, "layers": 3, "batch_size": 8, "epochs": 2}
    return Search(SearchConfig(**(sizes | options)), images(64, 16), torch.device(device))


GENOTYPE = (
    "Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0)], normal_concat=[2], "
    "reduce=[('max_pool_3x3', 0), ('dil_conv_5x5_fa', 1)], reduce_concat=[2])"
)
"""Its cells are the smallest that have weights at both strides, an identity and a pooling."""


def retraining(device: str = "cpu", rule: str = "", **options: Any) -> Retraining:
    """As many, of images that an auxiliary head takes."""
    sizes = {
        "channels": 4,
        "layers": 3,
        "batch_size": 8,
        "epochs": 2,
        "auxiliary": 0.4,
        "drop_path": 0.5,
    }
    config = RetrainConfig(genotype=GENOTYPE, **(sizes | options))
    genotype = load_genotype(GENOTYPE)
    genotype = genotype.with_rule(rule) if rule else genotype
    return Retraining.of_genotype(config, genotype, images(32, 32), torch.device(device))


def numbers(task: Search | Retraining, steps: int) -> list[float]:
    """The training losses of the first steps, epochs begun as the loop does."""
    losses = []
    for t in range(steps):
        if t % task.steps_per_epoch == 0:
            task.begin_epoch(t // task.steps_per_epoch)
        losses.append(task.step(t)["train"].totals[0].item())
    return losses


STRATEGIES = ["darts", "darts(order=2)", "rule_aware", "pc_darts(k=2)", "gdas", "snas", "drnas"]
STRATEGIES += ["fair_darts"]
FEW = "darts(nodes=1, operations=(none, skip_connect, avg_pool_3x3, sep_conv_3x3))"


def pair(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]) -> list[Any]:
    """The same task twice: recorded on tapes, and run as it is."""
    tasks = []
    for tapes in (True, False):
        for module in (search_module, retrain_module):
            monkeypatch.setattr(
                module, "Recorder", lambda device, graphs, tapes=tapes: TapeRecorder(tapes)
            )
        torch.manual_seed(5)
        tasks.append(make())
    return tasks


def assert_equal_after(tasks: list[Any], epochs: int = 3, rounding: float = 0.0) -> None:
    """All that is measured, and all that is saved, is the same: bit for bit, or but for rounding."""
    outcomes = []
    for task in tasks:
        torch.manual_seed(3)  # drop path draws from the default generator
        losses = numbers(task, epochs * task.steps_per_epoch)
        outcomes.append(
            (losses, [x for x in tree_leaves(task.state_dict()) if isinstance(x, Tensor)])
        )
    (losses, state), (expected, expected_state) = outcomes
    assert losses == pytest.approx(expected, rel=rounding, abs=0)
    for one, other in zip(state, expected_state, strict=True):
        if rounding:
            torch.testing.assert_close(one, other, rtol=rounding, atol=rounding)
        else:
            assert torch.equal(one, other)


class TestOnTapes:
    """On the CPU, with recordings that know as little of Python as a GPU's (`tape.py`)."""

    @pytest.mark.parametrize(
        "strategy", [*STRATEGIES, "darts_pt(share=0.34, batches=1)", "eg(population=4)"]
    )
    def test_a_search(self, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
        options = {
            "space": "darts(nodes=1)" if strategy == "darts" else FEW,  # all operations once
            "strategy": strategy,
            "regularizers": ("warmup(epochs=0)",),
            "cutout": 4,
            "epochs": 3,
        }
        tasks = pair(monkeypatch, lambda: search(**options))
        # While its calls are watched, PyTorch's forward mode writes nothing in place and rounds
        # otherwise.
        assert_equal_after(tasks, epochs=2, rounding=1e-3 if strategy == "rule_aware" else 0.0)
        recorded = {"_from_draws", "_weight_gradients", "_update"}
        if strategy == "gdas":  # each of its passes computes other candidates
            recorded -= {"_weight_gradients"}
            assert not {"_weight_gradients", "_alpha_gradients"} & set(tasks[0].run.recorded)
        if strategy == "darts(order=2)":  # in one process, though it would exchange with others
            recorded |= {"_alpha_gradients"}
        assert set(tasks[0].run.recorded) >= recorded

    @pytest.mark.parametrize(
        "options",
        [
            {
                "objective": ("parameters(weight=0.1)",),
                "regularizers": ("entropy", "factorised", "warmup(epochs=1)"),
            },
            {"objective": ("weight_transport(share=0.1)",), "rules": ("fa", "bp")},
            {
                "space": f"by_depth(space={FEW}, cells=3)",
                "regularizers": ("factorised", "warmup(epochs=0)"),
            },
            {
                "strategy": "snas",
                "regularizers": (
                    "partial_channels(k=2)",
                    "edge_normalization",
                    "auxiliary_skip",
                    "beta_decay",
                    "smooth(kind=adversarial, steps=2)",
                    "warmup(epochs=0)",
                ),
            },
            {"memory": "low"},
            {"amp": "bf16", "arch_gradient": "true"},
            {"optimizer": "adamw"},
        ],
    )
    def test_a_search_with_options(
        self, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
    ) -> None:
        few = {"space": FEW, "regularizers": ("warmup(epochs=0)",), "epochs": 3}
        tasks = pair(monkeypatch, lambda: search(**(few | options)))
        # What is recorded when alpha first moves is checked in the epoch after it.
        assert_equal_after(tasks, epochs=tasks[0].warmup_epochs + 2)

    @pytest.mark.parametrize("rule", list(RULES))
    def test_a_retraining(self, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
        tasks = pair(monkeypatch, lambda: retraining(rule=rule, epochs=3))
        assert_equal_after(tasks)
        # Drop path begins with the second epoch, which is another situation.
        assert tasks[0].run.recorded.count("_gradients") == 2

    @pytest.mark.parametrize(
        "options",
        [
            {"accumulate": 2, "ema": 0.9},
            {"optimizer": "nesterov", "warmup": 1},
            {"optimizer": "batch_manhattan", "lr": 1e-3, "warmup": 1},
            {"optimizer": "adamw", "warmup": 1},  # timm's, whose rate is a number
            {"adversarial": "pgd(steps=2, step=8)"},
            {"adversarial": "trades(steps=2, step=8)"},
            {"mixup": 0.2},
            {"amp": "bf16"},
        ],
    )
    def test_a_retraining_with_options(
        self, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
    ) -> None:
        assert_equal_after(pair(monkeypatch, lambda: retraining(epochs=3, **options)))

    def test_a_search_goes_on_where_it_was_saved(self, monkeypatch: pytest.MonkeyPatch) -> None:
        task, other = (
            pair(monkeypatch, lambda: search(strategy="gdas", regularizers=(), epochs=3))[0]
            for _ in "ab"
        )
        numbers(task, 5)
        saved = copy.deepcopy(task.state_dict())
        other.load_state_dict(saved)
        for t in range(5, 8):
            for each in (task, other):
                if t % each.steps_per_epoch == 0 or t == 5:
                    each.begin_epoch(t // each.steps_per_epoch)
                each.step(t)
        for one, another in zip(
            tree_leaves(task.state_dict()), tree_leaves(other.state_dict()), strict=True
        ):
            assert not isinstance(one, Tensor) or torch.equal(one, another)


class TestRecorder:
    def test_inputs_of_other_shapes_and_situations_are_recorded_anew(self) -> None:
        run, x = TapeRecorder(tapes=True), torch.arange(4.0)
        for _ in range(4):
            assert torch.equal(run(torch.square, x), x**2)
            assert torch.equal(run(torch.square, x[:2]), x[:2] ** 2)
            assert torch.equal(run(torch.square, x, situation="another"), x**2)
            x = x + 1
        assert run.recorded == ["square"] * 3

    def test_an_output_is_read_where_it_lies(self) -> None:
        run = TapeRecorder(tapes=True)
        for number in range(5):
            y = run(torch.square, torch.full((2,), float(number)))
            assert run(torch.neg, y).tolist() == [-float(number**2)] * 2
        assert run(torch.neg, torch.ones(2)).tolist() == [-1.0, -1.0]

    def test_tensors_that_are_handed_over_are_left_alone(self) -> None:
        """A recording reads its inputs in a place of its own, where a replay puts the next ones."""
        run = TapeRecorder(tapes=True)
        inputs = [torch.full((2,), float(number)) for number in range(6)]
        for x in inputs:
            run(torch.square, x)
        assert run.recorded == ["square"]
        assert [x.tolist() for x in inputs] == [[float(number)] * 2 for number in range(6)]

    def test_a_recorded_update_follows_the_schedule(self) -> None:
        """By a gradient of ones each weight moves by the rate of the epoch: 0.4, 0.3, 0.2, 0.1."""
        run, layer = TapeRecorder(tapes=True), nn.Linear(3, 1, bias=False)
        config = RetrainConfig(
            genotype="x",
            epochs=4,
            lr=0.4,
            lr_min=0.0,
            schedule="linear",
            momentum=0.0,
            weight_decay=0.0,
            clip=0.0,
        )
        optimizer = WeightOptimizer(layer, config, run)
        for epoch, rate in enumerate((0.4, 0.3, 0.2, 0.1)):
            optimizer.begin_epoch(epoch)
            run.begin_epoch()
            for _ in range(3):
                before = layer.weight.detach().clone()
                optimizer.differentiate([layer.weight.sum()])
                optimizer.update()
                assert (before - layer.weight).flatten().tolist() == pytest.approx([rate] * 3)
        assert run.recorded == ["_update"]

    def test_a_number_that_changes_from_step_to_step_is_told(self) -> None:
        run, steps = TapeRecorder(tapes=True), iter(range(9))

        def scaled(x: Tensor) -> Tensor:
            return x * next(steps)

        run(scaled, torch.ones(2))
        run(scaled, torch.ones(2))
        with pytest.raises(
            InputError,
            match=r"aten.mul.Tensor \(2,\) 1, then aten.mul.Tensor \(2,\) 2.*--no-graphs",
        ):
            run(scaled, torch.ones(2))

    def test_a_number_that_changes_from_epoch_to_epoch_is_told(self) -> None:
        run, epoch = TapeRecorder(tapes=True), 1

        def scaled(x: Tensor) -> Tensor:
            return x * epoch

        for _ in range(4):
            run(scaled, torch.ones(2))
        epoch = 2
        assert run(scaled, torch.ones(2)).tolist() == [1, 1]  # frozen, as on a GPU
        run.begin_epoch()
        with pytest.raises(InputError, match="changes from one to the next"):
            run(scaled, torch.ones(2))

    def test_each_recording_is_checked_once_at_the_first_epoch_after_it(self) -> None:
        run, runs = TapeRecorder(tapes=True), []

        def noted(x: Tensor) -> Tensor:
            runs.append(len(x))
            return x + 1

        for epoch in range(4):
            run.begin_epoch()
            for _ in range(4):
                run(noted, torch.ones(2))
                if epoch > 0:
                    run(noted, torch.ones(3))
        # Twice as it is, once recorded, once checked: and the other one an epoch later.
        assert (runs.count(2), runs.count(3)) == (4, 4)

    def test_what_is_recorded_keeps_nothing_alive_but_its_tensors(self) -> None:
        class Task:
            def doubled(self, x: Tensor) -> Tensor:
                return 2 * x

        run, task = TapeRecorder(tapes=True), Task()
        for _ in range(4):
            run(task.doubled, torch.ones(2))
        gone = weakref.ref(task)
        del task
        assert gone() is None

    def test_a_network_in_channels_last(self) -> None:
        net = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        optimizer = WeightOptimizer(
            net, RetrainConfig(genotype="x", clip=0.0), TapeRecorder(tapes=True)
        )
        loss = net(torch.randn(2, 3, 8, 8)).square().sum()
        expected = torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)
        optimizer.differentiate([loss])
        assert all(
            torch.equal(p.grad, g)
            for p, g in zip(net.parameters(), expected, strict=True)
            if p.grad is not None
        )
        assert net.weight.grad is not None
        assert net.weight.grad.stride() == net.weight.stride()

    def test_a_tensor_on_the_cpu_is_told(self) -> None:
        with (
            pytest.raises(RuntimeError, match=r"aten.mul.Tensor reads a tensor on the CPU"),
            Trace(from_cpu=False),
        ):
            torch.ones(2, device="meta") * torch.ones(2)

    def test_what_cannot_be_recorded_is_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        for name in ("graph", "graph_pool_handle", "Stream", "CUDAGraph", "device"):
            monkeypatch.setattr(torch.cuda, name, lambda *args, **kwargs: contextlib.nullcontext())
        with pytest.raises(InputError, match="not permitted when stream is capturing.*--no-graphs"):
            Recorder(torch.device("cuda")).capture(refuse, (), None)


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Within it whatever waits for the GPU raises RuntimeError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode is called a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@gpu
class TestOnGpu:
    """What needs a GPU's numbers. What it does (launches, waits, errors) is tested without one:
    `test_stand_in.py`.
    """

    @pytest.fixture(autouse=True)
    def _float32(self) -> Iterator[None]:
        # Without monkeypatch: one of both answers for an attribute that it does not hold, and from
        # which pytest would delete it at the end.
        backends: Any = (torch.backends.cudnn, torch.backends.cuda.matmul)
        before = [backend.allow_tf32 for backend in backends]
        for backend in backends:
            backend.allow_tf32 = False
        yield
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed

    @pytest.mark.parametrize("amp", ["none", "bf16"])
    @pytest.mark.parametrize("memory", ["normal", "low"])
    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_a_search_equals_one_without_graphs(self, strategy: str, memory: str, amp: str) -> None:
        options = {
            "strategy": strategy,
            "regularizers": ("warmup(epochs=0)",),
            "memory": memory,
            "amp": amp,
        }
        one, other = (
            numbers(search("cuda", graphs=graphs, **options), 6) for graphs in (True, False)
        )
        assert one == pytest.approx(other, rel=1e-2 if amp == "none" else 5e-2)

    @pytest.mark.parametrize("rule", list(RULES))
    def test_a_retraining_equals_one_without_graphs(self, rule: str) -> None:
        one, other = (
            numbers(retraining("cuda", rule, graphs=graphs, drop_path=0.0), 6)
            for graphs in (True, False)
        )
        assert one == pytest.approx(other, rel=1e-2)

    # gdas waits for what it has drawn, of which alone its passes compute.
    @pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "gdas"])
    def test_a_step_of_a_search_does_not_wait_for_the_gpu(self, strategy: str) -> None:
        task = search(
            "cuda", amp="bf16", strategy=strategy, regularizers=("warmup(epochs=0)",), batch_size=4
        )
        task.begin_epoch(0)
        for t in range(task.steps_per_epoch):
            with no_waiting() if t > 3 else contextlib.nullcontext():
                task.step(t)

    def test_individuals_are_measured_together(self) -> None:
        task = search("cuda")
        stacked = {
            t: torch.rand(20, *task.table.shape(t), device="cuda").softmax(2)
            for t in task.table.rows
        }
        losses, _ = task.individuals.measure(stacked, 0, 1)
        assert task.individuals.together == 16
        task.individuals.together = 1
        assert torch.allclose(losses, task.individuals.measure(stacked, 0, 1)[0], rtol=1e-2)

    def test_drop_path_draws_anew_at_each_replay(self) -> None:
        net = build_network(
            load_genotype("bionas_darts"), channels=4, layers=3, num_classes=5
        ).cuda()
        net.set_drop_path(0.5)
        run, x = Recorder(torch.device("cuda")), torch.randn(4, 3, 16, 16, device="cuda")

        def pixels(x: Tensor) -> Tensor:
            return net(x).detach()

        outputs = [run(pixels, x).clone() for _ in range(5)]
        assert not torch.equal(outputs[3], outputs[4])
