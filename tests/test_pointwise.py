"""Strided pointwise convolutions keep clear of oneDNN's fault (uxlfoundation/oneDNN#6035), and
compute what they did.

The oracle is PyTorch's own arithmetic in float64, which oneDNN has no part in.
"""

from __future__ import annotations

import copy
import platform
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from darts_bio.config import RetrainConfig
from darts_bio.data.datasets import load_data
from darts_bio.data.sources import InMemory
from darts_bio.networks import SuperNet, build_network
from darts_bio.networks.reference import ReferenceCell
from darts_bio.rules import RULES, RuleConv2d, convert, true_gradients
from darts_bio.rules.layers import RuleConv1d, RuleConv3d
from darts_bio.rules.pointwise import sampled, warn_of_strided_pointwise
from darts_bio.spaces import OPERATIONS, SPACES, load_genotype
from darts_bio.spaces.operations import FactorizedReduction
from darts_bio.training.retrain import Retraining

FORMATS = (torch.contiguous_format, torch.channels_last)
on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="the fault is of x86 processors"
)


class TestSampled:
    @pytest.mark.parametrize("layout", FORMATS)
    @pytest.mark.parametrize("first", [0, 1])
    @pytest.mark.parametrize(
        ("size", "stride"), [((6, 8), (2, 2)), ((5, 7), (2, 2)), ((7, 7), (1, 3))]
    )
    def test_values_gradient_and_layout(
        self,
        size: tuple[int, int],
        stride: tuple[int, int],
        first: int,
        layout: torch.memory_format,
    ) -> None:
        x = torch.randn(2, 3, *size).contiguous(memory_format=layout).requires_grad_()
        found, expected = sampled(x, stride, first), x[:, :, first :: stride[0], first :: stride[1]]
        assert torch.equal(found, expected)
        gradients = [
            torch.autograd.grad(y, x, torch.full_like(y, 2.0))[0] for y in (found, expected)
        ]
        assert torch.equal(*gradients)
        assert gradients[0].is_contiguous(memory_format=layout)

    def test_one_dimension_and_three(self) -> None:
        assert torch.equal(sampled(x := torch.randn(2, 3, 9), (4,)), x[:, :, ::4])
        channels_innermost = torch.randn(2, 9, 3).transpose(1, 2)  # (N, C, L)
        assert torch.equal(sampled(channels_innermost, (4,)), channels_innermost[:, :, ::4])
        assert torch.equal(
            sampled(x := torch.randn(2, 3, 4, 5, 6), (1, 2, 3)), x[:, :, :, ::2, ::3]
        )

    @pytest.mark.parametrize("first", [0, 1])
    def test_many_at_once(self, first: int) -> None:
        """torch.vmap, in which a tensor cannot be asked for its memory format."""
        x = torch.randn(4, 2, 6, 6, 3).permute(0, 1, 4, 2, 3)
        found = torch.vmap(lambda one: sampled(one, (2, 2), first))(x)
        assert torch.equal(found, x[..., first::2, first::2])


class TestLayers:
    @pytest.mark.parametrize("rule", sorted(set(RULES) - {"dfa", "dkp"}))
    @pytest.mark.parametrize("bias", [False, True])
    def test_equal_to_the_strided_convolution(self, rule: str, bias: bool) -> None:
        """Forward, and exact gradients, in float64."""
        layer = RuleConv2d(
            6, 4, 1, stride=(2, 3), bias=bias, groups=2, rule=RULES.build(rule)
        ).double()
        x = torch.randn(3, 6, 7, 9, dtype=torch.double, requires_grad=True)
        weights = [
            x,
            *(p for name, p in layer.named_parameters() if not name.startswith("feedback")),
        ]
        with true_gradients(layer):
            found = layer(x)
        expected = F.conv2d(x, layer.weight, layer.bias, stride=(2, 3), groups=2)
        assert torch.allclose(found, expected, rtol=0, atol=1e-13)
        assert torch.allclose(layer(x), expected, rtol=0, atol=1e-13)
        error = torch.randn_like(expected)
        for one, other in zip(
            torch.autograd.grad(found, weights, error),
            torch.autograd.grad(expected, weights, error),
            strict=True,
        ):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("rule", sorted(RULES))
    @pytest.mark.parametrize("channels", [4, 8, 12])
    def test_gradients_without_onednn(self, rule: str, channels: int) -> None:
        """The case that overran: (16, C, 56, 56), channels last, stride 2."""
        torch.manual_seed(0)
        layers = (
            nn.Conv2d(3, channels, 1, bias=False),
            nn.Conv2d(channels, 6, 1, stride=2, bias=False),
        )
        plain = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = convert(plain, {"1": rule, "*": None}, outputs=6)
        x = torch.randn(16, 3, 56, 56).contiguous(memory_format=torch.channels_last)

        def gradients(model: nn.Module, x: Tensor) -> Tensor:
            model(x).square().sum().backward()
            return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

        # Several times: what the overrun hits changes from one pass to the next.
        expected = gradients(copy.deepcopy(model).double(), x.double())
        for _ in range(3):
            assert (gradients(copy.deepcopy(model), x) - expected).norm() < 1e-4 * expected.norm()

    @pytest.mark.parametrize(
        ("layer", "shape"),
        [(RuleConv1d(6, 4, 1, stride=3, rule=RULES.build("fa")), (2, 6, 10)),
         (RuleConv3d(6, 4, 1, stride=2, rule=RULES.build("fa")), (2, 6, 4, 5, 6))],
    )  # fmt: skip
    def test_the_feedback_carries_the_error_to_the_pixels_that_were_read(
        self, layer: RuleConv1d | RuleConv3d, shape: tuple[int, ...]
    ) -> None:
        x = torch.randn(shape, requires_grad=True)
        y = layer(x)
        error = torch.randn_like(y)
        (found,) = torch.autograd.grad(y, x, error)
        expected = torch.zeros_like(x)
        step = layer.stride[0]
        pixels = (slice(None), slice(None), *[slice(None, None, step)] * len(layer.stride))
        expected[pixels] = torch.einsum(
            "no...,oi->ni...", error, layer.feedback["kernel"].flatten(1)
        )
        assert torch.allclose(found, expected, atol=1e-6)


class TestNetworks:
    @pytest.mark.parametrize("size", [(8, 8), (7, 9)])
    @pytest.mark.parametrize("rule", ["bp", "fa"])
    def test_the_factorised_reduction_as_published(self, size: tuple[int, int], rule: str) -> None:
        """Stride 2, the second convolution on x from its second row and column on (odd sides: zeros
        behind).
        """
        module = FactorizedReduction(6, 4, RULES.build(rule), supernet=False).double()
        x = torch.randn(2, 6, *size, dtype=torch.double)
        halves, rectified = module[1], x.relu()
        moved = F.pad(rectified, (0, size[1] % 2, 0, size[0] % 2))[:, :, 1:, 1:]
        both = [
            F.conv2d(rectified, halves.even.weight, stride=2),
            F.conv2d(moved, halves.odd.weight, stride=2),
        ]
        assert torch.allclose(module(x), module[2](torch.cat(both, 1)), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("channels", [4, 8, 12])
    def test_narrow_networks_for_imagenet(self, channels: int) -> None:
        torch.manual_seed(0)
        network = build_network(
            load_genotype("bionas_darts"), channels=channels, layers=5, stem="imagenet"
        )
        x, labels = torch.randn(16, 3, 224, 224), torch.arange(16) % 10
        each_convolution_is_near(network, lambda: F.cross_entropy(network(x), labels))

    def test_partial_channels_at_the_protocols_width(self) -> None:
        """pc_darts, C=16 and k=4: eight channels on the edges of the first reduction."""
        torch.manual_seed(0)
        space = SPACES.build("darts(nodes=2)")
        supernet = SuperNet(
            space,
            ["fa", "usf"],
            channels=16,
            layers=3,
            num_classes=10,
            partial=4,
            cell=ReferenceCell,
        )
        table, x = (
            supernet.table,
            torch.randn(8, 3, 16, 16).contiguous(memory_format=torch.channels_last),
        )
        weights = {t: torch.full(table.shape(t), 1 / table.shape(t)[1]) for t in table.rows}
        each_convolution_is_near(
            supernet, lambda: F.cross_entropy(supernet(x, weights), torch.arange(8))
        )


def each_convolution_is_near(network: nn.Module, loss: Callable[[], Tensor]) -> None:
    """The weight gradient of each layer equals, up to 1e-4 of its norm, that in float64 of what
    went in and came back.

    Layer by layer, since kinks of ReLU and pooling let the rounding of a whole network grow beyond
    any bound.
    """
    seen: dict[nn.Module, list[Tensor]] = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        own = seen.setdefault(layer, [inputs[0].detach()])
        y.register_hook(lambda error: own.append(error.detach()))

    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    for layer in convolutions:
        layer.register_forward_hook(watch)
    loss().backward()
    assert len(seen) == len(convolutions)
    for layer, (x, error) in seen.items():
        assert isinstance(layer, nn.Conv2d)
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        expected = conv2d_weight(x.double(), layer.weight.shape, error.double(), *geometry)  # type: ignore[arg-type]
        assert layer.weight.grad is not None
        assert (layer.weight.grad - expected).norm() < 1e-4 * expected.norm(), layer


@on_x86
class TestWhatUsersBring:
    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1, stride=2), nn.Flatten(), nn.LazyLinear(10)
        )

    def test_a_layer_that_carries_a_rule_is_safe(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            convert(nn.Sequential(*list(self.model())[:3]), "fa")
            convert(nn.Sequential(*list(self.model())[:3]), {"1": "bp", "*": None})

    def test_one_that_is_left_as_it_was_is_warned_of(self) -> None:
        with pytest.warns(UserWarning, match=r"1 \(Conv2d\(8, 4.*oneDNN#6035.*RuleConv2d"):
            convert(nn.Sequential(*list(self.model())[:3]), {"0": "fa", "1": None})

    def test_once_for_a_model_of_many(self) -> None:
        many = nn.Sequential(*(nn.Conv2d(4, 4, 1, stride=2) for _ in range(5)))
        with pytest.warns(UserWarning, match="oneDNN#6035") as caught:
            warn_of_strided_pointwise(many)
        assert len(caught) == 1

    def test_a_plug_ins_operation_is_warned_of_before_it_trains(self) -> None:
        data, cpu = load_data("digits", train_images=32), torch.device("cpu")
        config = RetrainConfig(genotype="darts_v1", batch_size=8, cutout=0)
        with pytest.warns(UserWarning, match="oneDNN#6035"):
            Retraining(
                config, nn.Sequential(*list(self.model())[:3]), InMemory(data, config, cpu), cpu
            )

    @pytest.mark.parametrize(
        "layer",
        [
            nn.Conv2d(16, 4, 1, stride=2),
            nn.Conv2d(8, 4, 1),
            nn.Conv2d(8, 4, 3, stride=2),
            nn.Conv2d(8, 4, 1, stride=2, padding=1),
            nn.Conv2d(8, 8, 1, stride=2, groups=8),
            nn.Conv1d(8, 4, 1, stride=2),
            nn.ConvTranspose2d(4, 16, 1, stride=2, output_padding=1),
            nn.Conv2d(8, 4, 1, stride=2, device="meta"),
        ],
    )
    def test_nothing_else_is(self, layer: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warn_of_strided_pointwise(layer)

    def test_transposed_convolutions_are_by_their_outputs(self) -> None:
        with pytest.warns(UserWarning, match="oneDNN#6035"):
            convert(nn.ConvTranspose2d(32, 8, 1, stride=2, output_padding=1), "fa")


def test_operations_at_stride_2_have_no_strided_pointwise_layer_of_pytorchs() -> None:
    for name in OPERATIONS:
        if OPERATIONS.get(name).carries_rule(2):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warn_of_strided_pointwise(
                    OPERATIONS.get(name).build(4, 2, RULES.build("fa"), False)
                )
