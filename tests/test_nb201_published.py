"""The networks of nb201 against the published definition, written out here in plain PyTorch.

It is that of github.com/D-X-Y/AutoDL-Projects (xautodl/models): OPS, ReLUConvBN, POOLING and
ResNetBasicblock of cell_operations.py, NAS201SearchCell of cell_searchs/search_cells.py,
TinyNetworkDarts of cell_searchs/search_model_darts.py, InferCell and TinyNetwork of cell_infers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.cli.parser import parse
from darts_bio.config import SearchConfig
from darts_bio.networks import FoldedCell, MixedCell, SuperNet, build_network
from darts_bio.networks.reference import ReferenceCell
from darts_bio.spaces import SPACES, from_nb201_text
from darts_bio.strategies import STRATEGIES
from darts_bio.training.schedules import learning_rate

CHANNELS, CLASSES = 4, 5
EDGES = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def relu_conv_norm(
    c_in: int, c_out: int, kernel: int, stride: int, affine: bool, track: bool
) -> nn.Sequential:
    """The published ReLUConvBN: its convolution has a bias where its norm has none."""
    convolution = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=not affine)
    norm = nn.BatchNorm2d(c_out, affine=affine, track_running_stats=track)
    return nn.Sequential(nn.ReLU(), convolution, norm)


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul(0.0)


def published_operation(name: str, channels: int, affine: bool, track: bool) -> nn.Module:
    if name == "none":
        return Nothing()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":  # preceded by a ReLUConvBN only where C_in != C_out, as nowhere here
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    kernel = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}[name]
    return relu_conv_norm(channels, channels, kernel, 1, affine, track)


class SearchCell(nn.Module):
    def __init__(self, channels: int, track: bool) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            nn.ModuleList(published_operation(op, channels, False, track) for op in OPERATIONS)
            for _ in EDGES
        )

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        nodes = [x]
        for node in (1, 2, 3):
            total: Tensor | int = 0
            for source in range(node):
                edge = EDGES.index((node, source))
                for layer, weight in zip(self.edges[edge], weights[edge], strict=True):  # type: ignore[call-overload]
                    total = total + layer(nodes[source]) * weight
            assert isinstance(total, Tensor)
            nodes.append(total)
        return nodes[-1]


class InferCell(nn.Module):
    def __init__(self, channels: int, ops: Sequence[str]) -> None:
        super().__init__()
        self.edges = nn.ModuleList(published_operation(op, channels, True, True) for op in ops)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for node in (1, 2, 3):
            terms = [self.edges[EDGES.index((node, j))](nodes[j]) for j in range(node)]
            nodes.append(torch.stack(terms).sum(0))
        return nodes[-1]


class Reduction(nn.Module):
    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.a = relu_conv_norm(c_in, 2 * c_in, 3, 2, True, True)
        self.b = relu_conv_norm(2 * c_in, 2 * c_in, 3, 1, True, True)
        self.down = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(c_in, 2 * c_in, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(x) + self.b(self.a(x))
        return out


class Published(nn.Module):
    """TinyNetwork(Darts): a cell at each size here, with a reduction before the second and third."""

    def __init__(self, cells: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS)
        )
        self.cells = nn.ModuleList(cells)
        self.reductions = nn.ModuleList([Reduction(CHANNELS), Reduction(2 * CHANNELS)])
        self.norm = nn.BatchNorm2d(4 * CHANNELS)
        self.classifier = nn.Linear(4 * CHANNELS, CLASSES)

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        x = self.cells[0](self.stem(x), *weights)
        for reduction, cell in zip(self.reductions, list(self.cells)[1:], strict=True):
            x = cell(reduction(x), *weights)
        logits: Tensor = self.classifier(F.relu(self.norm(x)).mean((2, 3)))
        return logits


Pairs = list[tuple[Tensor, Tensor]]
"""(a tensor of ours, the published one of the same place)."""


def around(ours: nn.Module, theirs: Published) -> Pairs:
    """The tensors of all but the cells, running statistics included."""
    names = {"stem.0": "stem.0", "stem.1": "stem.1", "head.0": "norm", "classifier": "classifier"}
    for i in (0, 1):
        place = f"inputs.{i + 1}.prepare"
        for layer, its in (("1", "a.1"), ("2", "a.2"), ("4", "b.1"), ("5", "b.2")):
            names[f"{place}.residual.{layer}"] = f"reductions.{i}.{its}"
        names[f"{place}.shortcut.1"] = f"reductions.{i}.down.1"
    return [
        pair
        for name, its in names.items()
        for pair in modules_together(ours.get_submodule(name), theirs.get_submodule(its))
    ]


def modules_together(ours: nn.Module, theirs: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    tensors = dict(itertools.chain(theirs.named_parameters(), theirs.named_buffers()))
    for name, tensor in itertools.chain(ours.named_parameters(), ours.named_buffers()):
        if tensor.is_floating_point() and name in tensors:
            yield tensor, tensors[name]


def in_reference(cell: nn.Module, theirs: SearchCell) -> Pairs:
    return [
        pair
        for e, edge in enumerate(theirs.edges)
        for o in (2, 3)
        for pair in modules_together(
            cell.get_submodule(f"edges.{e}.{o}.1"),
            edge[o][1],  # type: ignore[index]
        )
    ]


def in_batched(cell: nn.Module, theirs: SearchCell) -> Pairs:
    """The same where the edges that leave a node have their weights one below the other."""
    pairs: Pairs = []
    for source in (0, 1, 2):
        leaving = [e for e, (_, node) in enumerate(EDGES) if node == source]
        stacked = [
            weight
            for name, weight in cell.named_parameters()
            if name.startswith(f"blocks.{source}.")
        ]
        assert [weight.shape[2] for weight in stacked] == [1, 3]  # nothing else has weights
        for weight, o in zip(stacked, (2, 3), strict=True):
            for part, e in zip(weight.chunk(len(leaving)), leaving, strict=True):
                pairs.append((part, theirs.edges[e][o][1].weight))  # type: ignore[index, union-attr]
    return pairs


def images(size: int = 8) -> Tensor:
    return torch.randn(6, 3, size, size, dtype=torch.float64)


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("track", [True, False], ids=["statistics kept", "not kept"])
@pytest.mark.parametrize("kind", [ReferenceCell, MixedCell, FoldedCell])
def test_the_supernet(kind: type[ReferenceCell] | type[MixedCell], track: bool) -> None:
    torch.manual_seed(0)
    space = SPACES.build("nb201")
    ours = SuperNet(
        space, ("bp",), channels=CHANNELS, layers=3, num_classes=CLASSES, cell=kind
    ).double()
    theirs = Published([SearchCell(CHANNELS * 2**i, track) for i in range(3)]).double()
    of_cells = in_reference if kind is ReferenceCell else in_batched

    def together() -> Pairs:
        cells = zip(ours.cells, theirs.cells, strict=True)
        return around(ours, theirs) + [pair for cell, its in cells for pair in of_cells(cell, its)]  # type: ignore[arg-type]

    biases = [p for name, p in theirs.cells.named_parameters() if name.endswith("bias")]
    assert len(biases) == 3 * 6 * 2
    with torch.no_grad():
        for bias in biases:
            bias.normal_()
        for tensor, its in together():
            its.copy_(tensor)
    # All weights of both are among those copied, but for the biases that ours does not have.
    weights = sum(p.numel() for p in ours.parameters())
    assert weights == sum(p.numel() for p in theirs.parameters()) - sum(b.numel() for b in biases)
    copied = {its.data_ptr() for _, its in together()}
    assert {p.data_ptr() for p in theirs.parameters()} - copied == {b.data_ptr() for b in biases}

    x, labels = images(), torch.tensor([0, 1, 2, 3, 4, 0])
    alpha = torch.randn(6, 5, dtype=torch.float64)
    found = []
    for net in (ours, theirs):
        pixels, weights_of_edges = x.clone().requires_grad_(), alpha.softmax(1).requires_grad_()
        arguments = {"cell": weights_of_edges} if net is ours else weights_of_edges
        logits = net(pixels, arguments)
        F.cross_entropy(logits, labels).backward()
        found.append((logits, pixels.grad, weights_of_edges.grad))
    for mine, published in zip(*found, strict=True):
        assert_equal(mine, published)
    for bias in biases:  # the batch norm behind takes the bias out, so no error reaches it
        assert bias.grad is not None
        assert bias.grad.abs().max() < 1e-12
    compare_gradients(ours, theirs, together)


def compare_gradients(ours: nn.Module, theirs: nn.Module, together: Callable[[], Pairs]) -> None:
    """Compare all gradients, and running statistics, where they stand; weights are lost by it."""
    with torch.no_grad():
        for parameter in [*ours.parameters(), *theirs.parameters()]:
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    for mine, published in together():
        assert_equal(mine, published)


CELLS = [
    ("nor_conv_3x3", "none", "skip_connect", "none", "avg_pool_3x3", "nor_conv_1x1"),
    (
        "avg_pool_3x3",
        "nor_conv_1x1",
        "nor_conv_3x3",
        "skip_connect",
        "nor_conv_3x3",
        "avg_pool_3x3",
    ),
]


@pytest.mark.parametrize("ops", CELLS)
def test_the_network_of_a_genotype(ops: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    a, b, c, d, e, f = ops
    text = f"|{a}~0|+|{b}~0|{c}~1|+|{d}~0|{e}~1|{f}~2|"
    ours = build_network(
        from_nb201_text(text), channels=CHANNELS, layers=3, num_classes=CLASSES
    ).double()
    theirs = Published([InferCell(CHANNELS * 2**i, ops) for i in range(3)]).double()

    def together() -> Pairs:
        pairs = around(ours, theirs)
        for cell, its in zip(ours.cells, theirs.cells, strict=True):
            for edge, op in enumerate(ops):
                if op.startswith("nor_conv"):
                    layers, its_layers = cell.edges[edge][0], its.edges[edge]  # type: ignore[index, union-attr]
                    pairs += modules_together(layers, its_layers)
        return pairs

    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_(std=0.5)  # gains and biases of norms, too
        for tensor, its in together():
            its.copy_(tensor)
    copied = {its.data_ptr() for _, its in together()}
    assert {p.data_ptr() for p in theirs.parameters()} <= copied
    x, labels = images(), torch.tensor([0, 1, 2, 3, 4, 0])
    found = []
    for net in (ours, theirs):
        pixels = x.clone().requires_grad_()
        logits = net(pixels)
        F.cross_entropy(logits, labels).backward()
        with torch.no_grad():
            found.append((logits, pixels.grad, net.eval()(x)))  # the last by running statistics
    for mine, published in zip(*found, strict=True):
        assert_equal(mine, published)
    compare_gradients(ours, theirs, together)


def test_the_recipe_of_a_search() -> None:
    config = parse(SearchConfig, ["--dataset", "cifar10", "--space", "nb201"], "")
    # configs/nas-benchmark/algos/DARTS.config, and what exps/NAS-Bench-201-algos/DARTS-V1.py and
    # its script add: 5 cells at each of three sizes, 16 channels, clipping, alpha's Adam.
    published = {
        "lr": 0.025,
        "lr_min": 0.001,
        "epochs": 50,
        "optimizer": "nesterov",
        "weight_decay": 0.0005,
        "momentum": 0.9,
        "batch_size": 64,
        "channels": 16,
        "layers": 15,
        "clip": 5.0,
    }
    assert {name: getattr(config, name) for name in published} == published
    strategy = STRATEGIES.options("darts")
    assert (strategy["lr"], strategy["weight_decay"]) == (0.0003, 0.001)
    assert (strategy["betas"], strategy["init"]) == ((0.5, 0.999), 1e-3)
    rates = [learning_rate(config, epoch) for epoch in range(50)]
    assert rates == pytest.approx(
        [0.001 + 0.024 * (1 + math.cos(math.pi * epoch / 50)) / 2 for epoch in range(50)]
    )
