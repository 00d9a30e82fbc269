"""Passes that are replayed as CUDA graphs: what makes a new recording, and, on a GPU, that they change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stand_in.device import no_waits
from torch import Tensor, nn

from darts_bio.config import RetrainConfig, SearchConfig
from darts_bio.data.batches import Split
from darts_bio.data.datasets import ImageData
from darts_bio.errors import InputError
from darts_bio.networks import FoldedCell, MixedCell, SuperNet, build_network
from darts_bio.rules import draw_feedback, true_gradients
from darts_bio.runtime import autocast
from darts_bio.spaces import SPACES, load_genotype
from darts_bio.strategies import STRATEGIES, frozen
from darts_bio.training.graphs import Replayed
from darts_bio.training.retrain import Retraining
from darts_bio.training.search import Search

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# Given once a process, and so to whichever test comes first; `test_stand_in.py` hears it in every case.
once = pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream does not match")


def supernet(cell: type = MixedCell) -> SuperNet:
    torch.manual_seed(0)
    space = SPACES.build("darts(nodes=2)")
    net = SuperNet(space, ("fa", "usf", "brsf"), channels=4, layers=3, num_classes=5, cell=cell)
    draw_feedback(net, 1)
    return net


def edge_weights(net: SuperNet, requires_grad: bool = True) -> dict[str, Tensor]:
    source, device = torch.Generator().manual_seed(2), next(net.parameters()).device
    shapes = {t: net.table.shape(t) for t in net.table.rows}
    return {
        t: torch.rand(s, generator=source).softmax(1).to(device).requires_grad_(requires_grad)
        for t, s in shapes.items()
    }


class Recorder:
    """Stands for `torch.cuda.make_graphed_callables`: warms up as it does, and replays by running the module."""

    def __init__(self) -> None:
        self.recorded: list[tuple[bool, ...]] = []

    def __call__(self, module: nn.Module, samples: tuple[Tensor, ...], *, allow_unused_input: bool, pool: Any) -> None:
        plain = module.forward
        flags = tuple(sample.requires_grad for sample in samples)
        self.recorded.append(flags)
        for _ in range(3):
            inputs = [i for i in (*samples, *module.parameters()) if i.requires_grad]
            output = plain(*samples)
            outputs = output if isinstance(output, tuple) else (output,)
            torch.autograd.grad([o.sum() for o in outputs], inputs, allow_unused=allow_unused_input)

        def replay(*inputs: Tensor) -> Any:
            assert tuple(i.requires_grad for i in inputs) == flags
            return plain(*inputs)

        module.forward = replay  # type: ignore[method-assign]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    stand_in = Recorder()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", stand_in)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    return stand_in


def images(n: int = 64) -> ImageData:
    source = torch.Generator().manual_seed(0)
    split = Split(
        torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=source),
        torch.randint(0, 5, (n,), generator=source),
    )
    return ImageData(split, split, tuple("abcde"))


def search(device: str = "cpu", **options: Any) -> Search:
    sizes = {"space": "darts(nodes=2)", "channels": 4, "layers": 3, "batch_size": 8, "epochs": 2}
    return Search(SearchConfig(rules=("fa", "brsf"), **(sizes | options)), images(), torch.device(device))


def retraining(device: str = "cpu", **options: Any) -> Retraining:
    sizes = {"channels": 4, "layers": 3, "batch_size": 8, "epochs": 2, "auxiliary": 0.4, "drop_path": 0.5}
    config = RetrainConfig(genotype="bionas_darts", **sizes, **options)
    return Retraining.of_genotype(config, load_genotype("bionas_darts"), images(), torch.device(device))


def numbers(task: Search | Retraining, steps: int) -> list[float]:
    """The training losses of the first steps, epochs begun as the loop does."""
    losses = []
    for t in range(steps):
        if t % task.steps_per_epoch == 0:
            task.begin_epoch(t // task.steps_per_epoch)
        losses.append(task.step(t)["train/loss"][0].item())
    return losses


class TestRecordings:
    """On the CPU, with a stand-in for PyTorch's recording."""

    def test_a_search_records_each_of_its_two_passes_once(self, recorder: Recorder) -> None:
        plain, task = search(), search()
        task.passes = Replayed(task.supernet)
        assert numbers(task, 6) == numbers(plain, 6)
        assert recorder.recorded == [(False, True, True), (False, False, False)]
        expected = plain.supernet.state_dict()
        for name, value in task.supernet.state_dict().items():
            assert torch.equal(value, expected[name]), name

    def test_a_retraining_records_anew_where_drop_path_begins(self, recorder: Recorder) -> None:
        plain, task = retraining(), retraining()
        task.passes = Replayed(task.network)
        torch.manual_seed(3)
        expected = numbers(plain, 2 * plain.steps_per_epoch)
        torch.manual_seed(3)
        assert numbers(task, 2 * task.steps_per_epoch) == expected
        assert len(recorder.recorded) == 2

    def test_what_python_chooses_is_a_situation_of_its_own(self, recorder: Recorder) -> None:
        net = supernet()
        replayed, x, weights = Replayed(net), torch.randn(4, 3, 8, 8), edge_weights(net)
        replayed(x, weights)
        replayed(x + 1, weights)
        assert len(recorder.recorded) == 1
        with true_gradients(net):
            replayed(x, weights)
        with frozen(net):
            replayed(x, weights)
        with autocast(torch.device("cpu"), "bf16"):
            replayed(x, weights)
        replayed(x[:2], weights)
        net.eval()
        replayed(x, weights)
        assert len(recorder.recorded) == 6

    def test_without_gradients_nothing_is_recorded(self, recorder: Recorder) -> None:
        net = supernet()
        with torch.no_grad():
            Replayed(net)(torch.randn(4, 3, 8, 8), edge_weights(net))
        assert recorder.recorded == []

    def test_what_cannot_be_recorded_is_one_line(self, monkeypatch: pytest.MonkeyPatch, recorder: Recorder) -> None:
        def refuse(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
        net = supernet()
        with pytest.raises(InputError, match="not permitted when stream is capturing.*--no-graphs"):
            Replayed(net)(torch.randn(4, 3, 8, 8), edge_weights(net))


@pytest.fixture
def _float32() -> Iterator[None]:
    # Not by monkeypatch: these are no attributes that it could find, and take away, in the object's dictionary.
    backends = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, value in zip(backends, before, strict=True):
        backend.allow_tf32 = value


@gpu
@once
@pytest.mark.usefixtures("_float32")
class TestValuesOnGpu:
    @pytest.mark.parametrize("amp", ["none", "bf16"])
    @pytest.mark.parametrize("cell", [MixedCell, FoldedCell])
    def test_replayed_equals_plain(self, cell: type, amp: str) -> None:
        net, device = supernet(cell).cuda(), torch.device("cuda")
        replayed, weights = Replayed(net), edge_weights(net)
        bound = 1e-3 if amp == "none" else 5e-2
        for step in range(3):
            draw_feedback(net, 1, step + 1)
            x = torch.randn(8, 3, 16, 16, device=device)
            outcomes = []
            for call in (replayed, net):
                net.zero_grad()
                with autocast(device, amp):
                    logits = call(x, weights)
                loss = F.cross_entropy(logits.float(), torch.arange(8, device=device) % 5)
                alpha = torch.autograd.grad(loss, list(weights.values()), retain_graph=call is net)
                outcomes.append([logits.detach().float(), *(a.clone() for a in alpha)])
            for one, other in zip(*outcomes, strict=True):
                assert (one - other).norm() <= bound * other.norm()

    @pytest.mark.parametrize("strategy", ["darts", "darts(order=2)", "pc_darts(k=2)", "gdas", "snas", "drnas"])
    def test_a_search_equals_one_without_graphs(self, strategy: str) -> None:
        options: dict[str, Any] = {"strategy": strategy, "regularizers": ("warmup(epochs=0)",)}
        one, other = (numbers(search("cuda", graphs=graphs, **options), 4) for graphs in (True, False))
        assert one == pytest.approx(other, rel=1e-2)

    def test_individuals_measured_together_are_those_measured_alone(self) -> None:
        task = search("cuda")
        stacked = individuals(task)
        losses, _ = task._measure(stacked, 0, 1)
        task.together = 1
        assert torch.allclose(losses, task._measure(stacked, 0, 1)[0], rtol=1e-2)

    def test_a_retraining_learns_through_its_graphs(self) -> None:
        task = retraining("cuda", lr=0.05)
        losses = numbers(task, 2 * task.steps_per_epoch)
        assert all(map(torch.isfinite, torch.tensor(losses)))

    def test_drop_path_draws_anew_at_each_replay(self) -> None:
        net = build_network(load_genotype("bionas_darts"), channels=4, layers=3, num_classes=5).cuda()
        net.set_drop_path(0.5)
        replayed, x = Replayed(net), torch.randn(4, 3, 16, 16, device="cuda")
        assert not torch.equal(replayed(x), replayed(x))


def individuals(task: Search) -> dict[str, Tensor]:
    return {t: torch.rand(20, *task.table.shape(t), device="cuda").softmax(2) for t in task.table.rows}


WAITS = {
    "drnas": "the Gamma distribution checks its arguments, and waits for the answer",
    "fair_darts": "the zero-one loss selects by a boolean mask, and waits for its count",
}


@gpu
@once
class TestOnAnyDevice:
    """What does not depend on values: on a GPU, or on the stand-in for one (`test_stand_in.py` has it run there)."""

    @pytest.mark.parametrize(
        "strategy",
        [
            pytest.param(spec, marks=[pytest.mark.xfail(strict=True, reason=WAITS[spec])] if spec in WAITS else [])
            for spec in (*STRATEGIES, "darts(order=2)")
        ],
    )
    def test_an_epoch_of_a_search_does_not_wait_for_the_gpu(self, strategy: str) -> None:
        idle = {} if strategy == "random" else {"regularizers": ("warmup(epochs=0)",)}
        task = search("cuda", amp="bf16", strategy=strategy, channels=8, **idle)
        task.begin_epoch(0)
        for t in range(2):
            task.step(t)
        with no_waits():
            for t in range(2, task.steps_per_epoch):
                task.step(t)

    def test_individuals_are_measured_together(self) -> None:
        task = search("cuda")
        losses, _ = task._measure(individuals(task), 0, 1)
        assert losses.shape == (20,)
        assert task.together == 16

    def test_a_retraining_records_anew_where_drop_path_begins(self) -> None:
        task = retraining("cuda")
        numbers(task, 2 * task.steps_per_epoch)
        assert len(task.passes._recordings) == 2  # type: ignore[attr-defined]
