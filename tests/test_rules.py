"""Learning rules: each against its equation, written out here by unfolding, without the package's
own backward pass.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from darts_bio import private_torch
from darts_bio.rules import (
    RULES,
    LearningRule,
    RuleConv2d,
    RuleLinear,
    draw_feedback,
    rule_layers,
    true_gradients,
)
from darts_bio.rules.convolution import convolution_gradients
from darts_bio.rules.functional import FeedbackProducts

TOLERANCE = 1e-12

CLOSED_FORMS: dict[str, Callable[[Tensor, Mapping[str, Tensor]], Tensor]] = {
    "bp": lambda w, state: w,
    "fa": lambda w, state: state["kernel"],
    "usf": lambda w, state: state["scale"] * torch.sign(w),
    "frsf": lambda w, state: torch.abs(state["magnitude"]) * torch.sign(w),
    "brsf": lambda w, state: torch.abs(state["magnitude"]) * torch.sign(w),
    "weight_mirror": lambda w, state: state["kernel"],
}
"""The kernel K that carries the error down, rule by rule."""

EXPECTED_ANGLES = {
    "bp": 0.0,
    "fa": 90.0,
    "usf": math.degrees(math.acos(math.sqrt(3) / 2)),
    "frsf": 41.4,
    "brsf": 41.4,
    "weight_mirror": 90.0,
}

# Those that are a kernel and no more; test_rule_family.py has the others.
KERNEL_RULES = [
    name
    for name in RULES
    if not (RULES.get(name).local or RULES.get(name).direct or RULES.get(name).learned)
]
every_rule = pytest.mark.parametrize("rule", KERNEL_RULES)
every_known_rule = pytest.mark.parametrize("rule", sorted(CLOSED_FORMS))
rules_with_feedback = pytest.mark.parametrize("rule", ["fa", "usf", "frsf", "brsf"])

Layer = RuleConv2d | RuleLinear


@dataclass(frozen=True)
class Geometry:
    """A convolution and the size of its input."""

    batch: int
    c_in: int
    c_out: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias: bool
    seed: int

    def build(self, rule: str) -> RuleConv2d:
        layer = RuleConv2d(
            self.c_in,
            self.c_out,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.bias,
            rule=RULES.build(rule),
            dtype=torch.float64,
        )
        return randomise(layer, self.seed)

    def input(self) -> Tensor:
        return noise((self.batch, self.c_in, *self.size), self.seed + 1)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    groups = draw(st.integers(1, 4))
    depthwise = draw(st.booleans())
    c_in = groups * (1 if depthwise else draw(st.integers(1, 3)))
    c_out = groups * draw(st.integers(1, 2 if depthwise else 3))
    kernel, padding, dilation, spare = pair(1, 3), pair(0, 2), pair(1, 2), pair(0, 4)
    height, width = (
        max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i]) + spare[i] for i in range(2)
    )
    return Geometry(
        batch=draw(st.integers(1, 3)),
        c_in=c_in,
        c_out=c_out,
        size=(height, width),
        kernel=kernel,
        stride=pair(1, 3),
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 2**20)),
    )


PLAIN = Geometry(2, 6, 4, (7, 8), (3, 3), (2, 1), (1, 1), (1, 1), 2, True, 5)


def noise(shape: Sequence[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(
        tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def randomise(layer: Any, seed: int) -> Any:
    """Weights from a normal law, and feedback, both of `seed`."""
    with torch.no_grad():
        for i, parameter in enumerate(layer.parameters()):
            parameter.copy_(noise(parameter.shape, 1000 * seed + i))
    draw_feedback(layer, seed)
    return layer


def gradients(layer: nn.Module, x: Tensor, dy: Tensor | None = None) -> list[Tensor]:
    """The gradients of x and of each parameter for the error dy, by default noise."""
    x = x.detach().requires_grad_()
    y = layer(x)
    dy = noise(y.shape, 99, y.dtype) if dy is None else dy
    return list(torch.autograd.grad(y, [x, *layer.parameters()], dy))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected magnitude."""
    assert found.shape == expected.shape
    if not expected.numel():
        return 0.0
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()


def unruled(layer: Layer) -> nn.Module:
    """PyTorch's own layer with the same weights."""
    if isinstance(layer, RuleLinear):
        plain: nn.Module = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
    else:
        plain = nn.Conv2d(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
        )
    plain.to(layer.weight.dtype).load_state_dict(dict(layer.named_parameters()))
    return plain


def expected_kernel(layer: Layer, rule: str) -> Tensor:
    """K by its closed form; a rule that has none here (a new one) is asked itself."""
    state = {name.removeprefix("feedback_"): buffer for name, buffer in layer.named_buffers()}
    closed_form = CLOSED_FORMS.get(rule, layer.rule.kernel)
    return closed_form(layer.weight.detach(), state)


def convolution_by_hand(
    x: Tensor, weight: Tensor, kernel: Tensor, dy: Tensor, groups: int, **window: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dW, db) of y = conv(x, W) whose error goes down through `kernel`: im2col, one product a
    group, col2im.
    """
    (n, c_in), (c_out, per_group, *size) = x.shape[:2], weight.shape
    columns = F.unfold(x, size, **window).reshape(n, groups, c_in // groups * math.prod(size), -1)
    errors = dy.reshape(n, groups, c_out // groups, -1)
    kernels = kernel.reshape(groups, c_out // groups, -1)
    carried = torch.einsum("ngol,goc->ngcl", errors, kernels).reshape(n, -1, errors.shape[-1])
    dx = F.fold(carried, x.shape[2:], size, **window)
    dw = torch.einsum("ngol,ngcl->goc", errors, columns).reshape(c_out, per_group, *size)
    return dx, dw, dy.sum((0, 2, 3))


def kernel_seen(layer: Layer) -> Tensor:
    """K as the layer's input feels it: the errors are the unit vectors, one a sample."""
    outputs = layer.weight.shape[0]
    x = torch.zeros(outputs, *layer.weight.shape[1:], dtype=layer.weight.dtype, requires_grad=True)
    y = layer(x)
    dy = torch.eye(outputs, dtype=layer.weight.dtype).reshape(y.shape)
    return torch.autograd.grad(y, x, dy)[0]


def linear(
    rule: str, features_in: int = 5, features_out: int = 4, bias: bool = True, seed: int = 3
) -> RuleLinear:
    layer = RuleLinear(features_in, features_out, bias, rule=RULES.build(rule), dtype=torch.float64)
    return randomise(layer, seed)


def small_model(rule: str, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two convolutions and a classifier: errors of one layer reach another's weights."""
    member = RULES.build(rule)
    model = nn.Sequential(
        RuleConv2d(3, 4, 3, padding=1, rule=member),
        nn.Tanh(),
        RuleConv2d(4, 4, 3, stride=2, groups=4, rule=member),
        nn.Tanh(),
        nn.Flatten(),
        RuleLinear(36, 5, rule=member),
    )
    return randomise(model.to(dtype), 7)


IMAGES = noise((2, 3, 8, 8), 1)


class TestEquations:
    @every_rule
    @given(geometry=geometries())
    def test_convolution(self, rule: str, geometry: Geometry) -> None:
        """dx = convT(dy; K), dW = conv_w(x, dy), db = sum dy, for any geometry."""
        layer, x = geometry.build(rule), geometry.input()
        y = layer(x)
        dy = noise(y.shape, geometry.seed + 2)
        window = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        expected = convolution_by_hand(
            x, layer.weight, expected_kernel(layer, rule), dy, layer.groups, **window
        )
        found = gradients(layer, x, dy)
        for name, a, b in zip(("dx", "dW", "db"), found, expected, strict=False):
            assert relative_error(a, b) <= TOLERANCE, name
        assert len(found) == 2 + geometry.bias

    @every_rule
    @given(
        leading=st.lists(st.integers(1, 3), max_size=3),
        sizes=st.tuples(st.integers(1, 7), st.integers(1, 7)),
        bias=st.booleans(),
        seed=st.integers(0, 2**20),
    )
    def test_linear(
        self, rule: str, leading: list[int], sizes: tuple[int, int], bias: bool, seed: int
    ) -> None:
        """dx = dy K, dW = dy^T x, db = sum dy, for inputs of one to four dimensions."""
        layer = linear(rule, *sizes, bias, seed)
        x, dy = noise((*leading, sizes[0]), seed + 1), noise((*leading, sizes[1]), seed + 2)
        expected = (
            torch.einsum("...o,oi->...i", dy, expected_kernel(layer, rule)),
            torch.einsum("no,ni->oi", dy.reshape(-1, sizes[1]), x.reshape(-1, sizes[0])),
            torch.einsum("no->o", dy.reshape(-1, sizes[1])),
        )
        found = gradients(layer, x, dy)
        for name, a, b in zip(("dx", "dW", "db"), found, expected, strict=False):
            assert relative_error(a, b) <= TOLERANCE, name
        assert len(found) == 2 + bias

    @example(
        geometry=Geometry(3, 1, 1, (1, 2), (1, 1), (2, 1), (0, 0), (1, 2), 1, bias=True, seed=0)
    )
    @given(geometry=geometries())
    def test_bp_is_plain_autograd_to_the_last_bit(self, geometry: Geometry) -> None:
        """Of a strided 1x1 convolution the same pixels are multiplied in another order."""
        layer, x = geometry.build("bp"), geometry.input()
        pairs = zip(gradients(layer, x), gradients(unruled(layer), x), strict=True)
        if layer.samples_pixels:
            assert all(relative_error(a, b) <= TOLERANCE for a, b in pairs)
        else:
            assert all(torch.equal(a, b) for a, b in pairs)

    @given(leading=st.lists(st.integers(0, 3), max_size=3), seed=st.integers(0, 2**20))
    def test_bp_linear_is_plain_autograd_to_the_last_bit(
        self, leading: list[int], seed: int
    ) -> None:
        layer, x = linear("bp", seed=seed), noise((*leading, 5), seed)
        assert all(map(torch.equal, gradients(layer, x), gradients(unruled(layer), x)))

    @every_known_rule
    @given(geometry=geometries())
    def test_every_rule_is_bp_where_its_kernel_is_the_weight(
        self, rule: str, geometry: Geometry
    ) -> None:
        layer, x = geometry.build(rule), geometry.input()
        magnitude = layer.weight.detach().abs()
        answers = {
            "kernel": layer.weight.detach().clone(),
            "scale": magnitude,
            "magnitude": magnitude,
        }
        for name in layer.feedback:
            setattr(layer, f"feedback_{name}", answers[name])
        for a, b in zip(gradients(layer, x), gradients(unruled(layer), x), strict=True):
            assert relative_error(a, b) <= TOLERANCE

    @every_known_rule
    @pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
    @pytest.mark.parametrize("padding", ["same", "valid", (1, 2), 0])
    @pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), ((1, 3), 2)])
    def test_paddings_and_padding_modes(
        self,
        rule: str,
        mode: str,
        padding: str | tuple[int, int] | int,
        kernel: int | tuple[int, int],
        dilation: int,
    ) -> None:
        """The equations hold on the padded input, and padding sends the error on by its own exact
        derivative.
        """
        layer = RuleConv2d(
            4,
            6,
            kernel,
            padding=padding,
            dilation=dilation,
            groups=2,
            padding_mode=mode,
            rule=RULES.build(rule),
            dtype=torch.float64,
        )
        randomise(layer, 4)
        x = noise((2, 4, 6, 7), 5).requires_grad_()
        if padding == "same":
            height, width = (layer.dilation[i] * (layer.kernel_size[i] - 1) // 2 for i in range(2))
        else:
            height, width = {"valid": (0, 0), 0: (0, 0)}.get(padding, padding)  # type: ignore[call-overload]
        border = (width, width, height, height)
        padded = F.pad(x, border, mode="constant" if mode == "zeros" else mode)
        y = layer(x)
        assert (
            relative_error(
                y, F.conv2d(padded, layer.weight, layer.bias, dilation=dilation, groups=2)
            )
            <= TOLERANCE
        )
        dy = noise(y.shape, 6)
        error, dw, db = convolution_by_hand(
            padded.detach(),
            layer.weight,
            expected_kernel(layer, rule),
            dy,
            2,
            dilation=layer.dilation,
        )
        (dx,) = torch.autograd.grad(padded, x, error)
        for a, b in zip(gradients(layer, x, dy), (dx, dw, db), strict=True):
            assert relative_error(a, b) <= TOLERANCE

    @every_known_rule
    @pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
    def test_same_padding_of_an_even_kernel_pads_as_pytorch_does(self, rule: str) -> None:
        layer = RuleConv2d(
            2, 3, (2, 4), padding="same", rule=RULES.build(rule), dtype=torch.float64
        )
        randomise(layer, 4)
        x = noise((2, 2, 5, 6), 5)
        plain = unruled(layer)
        assert relative_error(layer(x.requires_grad_()), plain(x)) <= TOLERANCE
        with torch.no_grad():
            plain.weight.copy_(
                expected_kernel(layer, rule)
            )  # its input gradient is now convT(dy; K)
        dx, *_ = gradients(layer, x)
        assert relative_error(dx, gradients(plain, x)[0]) <= TOLERANCE

    def test_a_rule_changes_the_errors_below_a_layer_but_never_its_own_gradients(self) -> None:
        """Through two layers: the upper one's gradients agree with bp, the lower one's do not."""
        exact, other = small_model("bp"), small_model("fa")
        expected = dict(
            zip(dict(exact.named_parameters()), gradients(exact, IMAGES)[1:], strict=True)
        )
        found = dict(zip(dict(other.named_parameters()), gradients(other, IMAGES)[1:], strict=True))
        for name in ("5.weight", "5.bias"):
            assert torch.equal(found[name], expected[name])
        for name in ("0.weight", "2.weight"):
            assert relative_error(found[name], expected[name]) > 0.1

    @every_rule
    @given(geometry=geometries())
    def test_the_forward_pass_does_not_depend_on_the_rule(
        self, rule: str, geometry: Geometry
    ) -> None:
        layer, x = geometry.build(rule), geometry.input()
        expected = F.conv2d(
            x,
            layer.weight,
            layer.bias,
            layer.stride,
            layer.padding,
            layer.dilation,
            groups=layer.groups,
        )
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x.requires_grad_()), expected)

    @every_rule
    def test_an_image_without_a_batch(self, rule: str) -> None:
        layer = RuleConv2d(2, 3, 3, rule=RULES.build(rule)).double()
        x, dy = torch.randn(2, 5, 6, dtype=torch.float64), torch.randn(3, 3, 4, dtype=torch.float64)
        x.requires_grad_()
        batched = torch.autograd.grad(
            layer(x.unsqueeze(0)), [x, *layer.parameters()], dy.unsqueeze(0)
        )
        for one, other in zip(
            torch.autograd.grad(layer(x), [x, *layer.parameters()], dy), batched, strict=True
        ):
            assert torch.equal(one, other)

    @every_rule
    def test_the_forward_pass_of_linear_does_not_depend_on_the_rule(self, rule: str) -> None:
        layer, x = linear(rule), noise((2, 3, 5), 4)
        assert torch.equal(layer(x.requires_grad_()), F.linear(x, layer.weight, layer.bias))


class TestInitialisation:
    """The relation of feedback to a weight fresh from PyTorch's initialization."""

    @staticmethod
    def fresh(rule: str, kind: str) -> Layer:
        member = RULES.build(rule)
        layer = {
            "conv": lambda: RuleConv2d(64, 128, 3, rule=member),
            "depthwise": lambda: RuleConv2d(4096, 4096, 5, groups=4096, rule=member),
            "linear": lambda: RuleLinear(400, 300, rule=member),
        }[kind]()
        draw_feedback(layer, 3)
        return layer

    @every_known_rule
    @pytest.mark.parametrize("kind", ["conv", "linear"])
    def test_angle_between_the_kernel_and_the_weight(self, rule: str, kind: str) -> None:
        """As the error feels it: usf 30 degrees, frsf and brsf 41, fa 90."""
        layer = self.fresh(rule, kind)
        cosine = F.cosine_similarity(
            kernel_seen(layer).flatten(), layer.weight.detach().flatten(), dim=0
        )
        angle = math.degrees(math.acos(min(1.0, cosine.item())))
        assert angle == pytest.approx(EXPECTED_ANGLES[rule], abs=2 if rule != "bp" else 0.05)

    @rules_with_feedback
    @pytest.mark.parametrize(
        ("kind", "fan_in"), [("conv", 576), ("depthwise", 25), ("linear", 400)]
    )
    def test_feedback_has_the_law_of_the_initialisation(
        self, rule: str, kind: str, fan_in: int
    ) -> None:
        """Uniform on (-1/sqrt(fan_in), 1/sqrt(fan_in)), so of std 1/sqrt(3 fan_in), as the weight
        itself.
        """
        layer = self.fresh(rule, kind)
        (feedback,) = layer.feedback.values()
        bound, std = fan_in**-0.5, (3 * fan_in) ** -0.5
        assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
        if rule == "usf":
            assert feedback.item() == pytest.approx(std, rel=1e-6)
            return
        assert feedback.shape == layer.weight.shape
        assert feedback.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert feedback.abs().max() <= bound
        assert feedback.square().mean().sqrt().item() == pytest.approx(std, rel=0.02)
        assert feedback.mean().item() == pytest.approx(
            0.0 if rule == "fa" else bound / 2, abs=0.02 * bound
        )
        assert (feedback < 0).any().item() == (rule == "fa")

    @pytest.mark.parametrize("rule", ["fa", "frsf", "brsf"])
    @pytest.mark.parametrize("kind", ["conv", "linear"])
    def test_feedback_is_uncorrelated_with_the_weight(self, rule: str, kind: str) -> None:
        layer = self.fresh(rule, kind)
        (feedback,) = layer.feedback.values()
        weight = layer.weight.detach()
        for of_weight in (weight, weight.abs()):
            pair = torch.stack([feedback.flatten(), of_weight.flatten()])
            assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.02

    @rules_with_feedback
    def test_feedback_does_not_follow_the_weight(self, rule: str) -> None:
        """W -> 10 W leaves the kernel as it is; W -> -W turns it for the sign rules and not for
        fa.
        """
        layer = linear(rule).eval()  # in training brsf would ask for a renewal
        before = kernel_seen(layer)
        with torch.no_grad():
            layer.weight.mul_(10)
        assert torch.equal(kernel_seen(layer), before)
        with torch.no_grad():
            layer.weight.neg_()
        assert torch.equal(kernel_seen(layer), before if rule == "fa" else -before)

    @every_rule
    def test_a_layer_draws_its_weight_as_pytorch_does_and_leaves_the_same_generator_state(
        self, rule: str
    ) -> None:
        """So a model's weights for a given seed do not depend on its rules."""
        torch.manual_seed(4)
        plain, state = nn.Conv2d(3, 4, 3), torch.get_rng_state()
        torch.manual_seed(4)
        layer = RuleConv2d(3, 4, 3, rule=RULES.build(rule))
        assert torch.equal(layer.weight, plain.weight)
        assert torch.equal(layer.bias, plain.bias)
        assert torch.equal(torch.get_rng_state(), state)


class TestExecution:
    @every_rule
    @pytest.mark.parametrize("groups", [1, 2, 6])
    def test_channels_last_changes_nothing(self, rule: str, groups: int) -> None:
        layer = randomise(
            RuleConv2d(6, 6, 3, 2, 1, groups=groups, rule=RULES.build(rule)).double(), 5
        )
        x = noise((2, 6, 7, 8), 1)
        expected = [layer(x), *gradients(layer, x)]
        layer.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
        assert not x.is_contiguous()
        for a, b in zip([layer(x), *gradients(layer, x)], expected, strict=True):
            assert relative_error(a, b) <= TOLERANCE

    @every_rule
    @pytest.mark.parametrize("kind", ["conv", "depthwise", "padded", "linear"])
    def test_bf16_autocast_is_that_of_the_plain_layer(self, rule: str, kind: str) -> None:
        """Output and weight gradients to the last bit; the error sent down is bf16's dy through a
        bf16 kernel.
        """
        member = RULES.build(rule)
        layer: Layer = {
            "conv": lambda: RuleConv2d(4, 6, 3, 2, 1, rule=member),
            "depthwise": lambda: RuleConv2d(4, 4, 3, padding=1, groups=4, rule=member),
            "padded": lambda: RuleConv2d(4, 6, 3, padding=1, padding_mode="circular", rule=member),
            "linear": lambda: RuleLinear(8, 6, rule=member),
        }[kind]()
        randomise(layer, 5)
        x = noise((3, 4, 8, 8), 1, torch.float32)
        plain = unruled(layer)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x.requires_grad_()).dtype == torch.bfloat16
            assert torch.equal(layer(x), plain(x))
            dx, dw, db = gradients(layer, x)
            _, expected_dw, expected_db = gradients(plain, x)
            with torch.no_grad():
                plain.weight.copy_(expected_kernel(layer, rule))
        with torch.autocast(
            "cpu", dtype=torch.bfloat16
        ):  # a new one: autocast keeps casts of weights
            expected_dx = gradients(plain, x)[0]
        assert [g.dtype for g in (dx, dw, db)] == [torch.float32] * 3
        assert torch.equal(dw, expected_dw)
        assert torch.equal(db, expected_db)
        torch.testing.assert_close(dx, expected_dx, rtol=0.01, atol=0.01)

    @pytest.mark.parametrize("rule", [*KERNEL_RULES, "kolen_pollack"])
    @pytest.mark.parametrize("kind", ["conv", "depthwise", "linear"])
    def test_bf16_weight_gradients_where_autocast_has_ended(self, rule: str, kind: str) -> None:
        """As trainings do it: the loss within autocast, the backward pass after it. What is kept in
        between is in bf16, or the products would be of two dtypes.
        """
        layer: Layer = {
            "conv": lambda: RuleConv2d(4, 6, 3, 2, 1, rule=RULES.build(rule)),
            "depthwise": lambda: RuleConv2d(4, 4, 3, 1, 1, groups=4, rule=RULES.build(rule)),
            "linear": lambda: RuleLinear(8, 6, rule=RULES.build(rule)),
        }[kind]()
        randomise(layer, 5)
        x = noise((3, 4, 8, 8), 1, torch.float32).requires_grad_()
        found = []
        for exact in (contextlib.nullcontext(), true_gradients(layer)):  # the layer's, PyTorch's
            with exact, torch.autocast("cpu", dtype=torch.bfloat16):
                loss = layer(x).float().square().sum()
            found.append(torch.autograd.grad(loss, [layer.weight, layer.bias, x]))
        (dw, db, dx), (expected_dw, expected_db, _) = found
        assert torch.equal(dw, expected_dw)
        assert torch.equal(db, expected_db)
        assert dx.dtype == torch.float32
        assert dx.isfinite().all()

    @every_rule
    @pytest.mark.parametrize("kind", ["conv", "linear"])
    def test_autocast_leaves_float64_alone_as_pytorch_does(self, rule: str, kind: str) -> None:
        layer: Layer = PLAIN.build(rule) if kind == "conv" else linear(rule)
        x = PLAIN.input() if kind == "conv" else noise((3, 5), 1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert unruled(layer)(x).dtype == torch.float64
            assert layer(x.requires_grad_()).dtype == torch.float64

    @every_rule
    @pytest.mark.parametrize("kind", ["conv", "linear"])
    def test_compiles_without_a_graph_break(self, rule: str, kind: str) -> None:
        layer: Layer = PLAIN.build(rule) if kind == "conv" else linear(rule)
        x = PLAIN.input() if kind == "conv" else noise((3, 5), 1)
        torch.compiler.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        for a, b in zip(gradients(compiled, x), gradients(layer, x), strict=True):
            assert relative_error(a, b) <= TOLERANCE

    def test_a_compiled_layer_follows_its_weights_and_a_redraw(self) -> None:
        """Sign and feedback are read anew in every call; nothing of them is frozen into the
        graph.
        """
        layer = PLAIN.build("brsf")
        torch.compiler.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        before = gradients(compiled, PLAIN.input())[0]
        with torch.no_grad():
            layer.weight.neg_()
        assert relative_error(gradients(compiled, PLAIN.input())[0], -before) <= TOLERANCE
        draw_feedback(layer, 5, update=1)
        found = gradients(compiled, PLAIN.input())[0]
        assert relative_error(found, -before) > 0.1
        assert relative_error(found, gradients(layer, PLAIN.input())[0]) <= TOLERANCE


@rules_with_feedback
class TestBothWaysToSendAnErrorDown:
    """PyTorch's own node with the kernel in the weight's place, and the package's Function where
    that cannot be.
    """

    def test_are_equal_to_the_last_bit(self, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
        layer, x = PLAIN.build(rule), PLAIN.input()
        assert type(layer(x.requires_grad_()).grad_fn).__name__ == "ConvolutionBackward0"
        found = gradients(layer, x)
        monkeypatch.setattr("darts_bio.rules.layers.own_node_serves", lambda: False)
        assert type(layer(x.requires_grad_()).grad_fn).__name__ == "FeedbackConvolutionBackward"
        assert all(map(torch.equal, found, gradients(layer, x)))

    def test_without_what_pytorch_does_not_promise(
        self, rule: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A version of PyTorch in which the private names are gone gives the same gradients."""
        layer, x = PLAIN.build(rule), PLAIN.input()
        expected = gradients(layer, x)
        monkeypatch.setattr(
            "darts_bio.rules.functional.replace_saved_weight", lambda y, stand_in: False
        )
        assert all(map(torch.equal, expected, gradients(layer, x)))
        monkeypatch.undo()
        bare = SimpleNamespace(_C=SimpleNamespace(_autograd=SimpleNamespace()))
        monkeypatch.setattr(private_torch, "torch", bare)
        assert private_torch.hooks_run()
        assert [private_torch.transforms_run(unknown) for unknown in (True, False)] == [True, False]
        assert type(layer(x.requires_grad_()).grad_fn).__name__ == "FeedbackConvolutionBackward"
        assert all(map(torch.equal, expected, gradients(layer, x)))

    def test_under_gradient_checkpointing_and_functional_transforms(self, rule: str) -> None:
        model = small_model(rule)
        expected = gradients(model, IMAGES)
        checkpointed = gradients(Checkpointed(model), IMAGES)
        assert all(map(torch.equal, checkpointed, expected))
        weights = dict(model.named_parameters())

        def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            y = torch.func.functional_call(model, weights, (x,))
            return (y * noise(y.shape, 99)).sum()

        by_name, dx = torch.func.grad(loss, argnums=(0, 1))(weights, IMAGES)
        for a, b in zip([dx, *by_name.values()], expected, strict=True):
            assert relative_error(a, b) <= TOLERANCE

    def test_what_cannot_be_right_is_refused(self, rule: str) -> None:
        layer, x = PLAIN.build(rule), PLAIN.input().requires_grad_()
        with pytest.raises(
            RuntimeError, match=r"cannot be differentiated again.*use true_gradients"
        ):
            torch.autograd.grad(layer(x).sum(), x, create_graph=True)
        with true_gradients(layer):
            torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        if rule == "fa":  # the others' kernel is a tensor of its own
            y = layer(x)
            draw_feedback(layer, 9)
            with pytest.raises(
                RuntimeError,
                match="feedback was changed between a forward pass and its backward pass",
            ):
                y.sum().backward()


class Checkpointed(nn.Module):
    """A model that is run again in the backward pass instead of keeping what it needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(self.model, x, use_reentrant=False)


class BackwardCalls(TorchDispatchMode):
    """Notes which outputs each convolution_backward is asked for, and counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[list[bool]] = []
        self.products = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution_backward.default:
            self.masks.append(list(args[10]))
        self.products += func is torch.ops.aten.mm.default
        return func(*args, **(kwargs or {}))


class CountingRule(LearningRule):
    """K = 2 W, and how often it was asked."""

    carries = "values"

    def __init__(self) -> None:
        self.calls = 0

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        self.calls += 1
        return 2 * weight


class TestOnlyWhatIsAskedFor:
    @every_rule
    @pytest.mark.parametrize(
        ("wants_x", "wants_w", "wants_b"),
        [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)],
    )
    def test_convolution(self, rule: str, wants_x: int, wants_w: int, wants_b: int) -> None:
        """One call yields all the gradients, and none that nobody asked for."""
        layer, x = PLAIN.build(rule), PLAIN.input().requires_grad_(bool(wants_x))
        layer.weight.requires_grad_(bool(wants_w))
        layer.bias.requires_grad_(bool(wants_b))
        y = layer(x)
        with BackwardCalls() as calls:
            y.backward(noise(y.shape, 1))
        assert calls.masks == [[bool(wants_x), bool(wants_w), bool(wants_b)]]
        found = [t.grad is not None for t in (x, layer.weight, layer.bias)]
        assert found == [bool(wants_x), bool(wants_w), bool(wants_b)]

    @every_rule
    @pytest.mark.parametrize(("wants_x", "wants_w"), [(1, 1), (1, 0), (0, 1), (0, 0)])
    def test_linear(self, rule: str, wants_x: int, wants_w: int) -> None:
        """A matrix product for each gradient asked for, and no other."""
        layer, x = linear(rule), noise((3, 5), 1).requires_grad_(bool(wants_x))
        layer.weight.requires_grad_(bool(wants_w))
        y = layer(x)
        with BackwardCalls() as calls:
            y.backward(noise(y.shape, 1))
        assert calls.products == wants_x + wants_w
        assert [t.grad is not None for t in (x, layer.weight, layer.bias)] == [
            bool(wants_x),
            bool(wants_w),
            True,
        ]

    @every_rule
    def test_no_weight_gradient_of_weights_that_are_frozen(self, rule: str) -> None:
        """As in the alpha pass of a search."""
        layer, x = PLAIN.build(rule).requires_grad_(False), PLAIN.input().requires_grad_()
        y = layer(x)
        with BackwardCalls() as calls:
            torch.autograd.grad(y, x, noise(y.shape, 1))
        assert calls.masks == [[True, False, False]]

    @pytest.mark.parametrize("kind", ["conv", "linear"])
    def test_the_kernel_is_not_formed_where_no_error_is_sent_down(self, kind: str) -> None:
        rule = CountingRule()
        layer = RuleConv2d(2, 3, 3, rule=rule) if kind == "conv" else RuleLinear(5, 3, rule=rule)
        rule.calls = 0  # it was asked as the layer was put under it, once and for all
        x = torch.randn(2, 2, 5, 5)
        layer(x).sum().backward()
        with torch.no_grad():
            layer(x.requires_grad_())
        with true_gradients(layer):
            layer(x).sum().backward()
        assert rule.calls == 0
        layer(x).sum().backward()
        assert rule.calls == 1


class TestTrueGradients:
    @every_rule
    def test_they_are_exact_within_and_the_rules_own_after(self, rule: str) -> None:
        model, exact = small_model(rule), small_model("bp")
        before, output = gradients(model, IMAGES), model(IMAGES)
        with true_gradients(model):
            assert torch.equal(model(IMAGES), output)
            assert all(map(torch.equal, gradients(model, IMAGES), gradients(exact, IMAGES)))
        assert all(map(torch.equal, gradients(model, IMAGES), before))
        if not RULES.get(rule).transports_weights:
            assert relative_error(before[0], gradients(exact, IMAGES)[0]) > 0.01

    @every_known_rule
    def test_they_agree_with_finite_differences(self, rule: str) -> None:
        """Independently of autograd: (f(x + hv) - f(x - hv)) / 2h = <df/dx, v>."""
        model, v, h = small_model(rule), noise(IMAGES.shape, 2), 1e-5
        dy = noise((2, 5), 99)
        with true_gradients(model):
            slope = (gradients(model, IMAGES)[0] * v).sum().item()
        plus, minus = ((model(IMAGES + sign * h * v) * dy).sum().item() for sign in (1, -1))
        assert slope == pytest.approx((plus - minus) / (2 * h), rel=1e-6)

    @every_rule
    def test_the_rules_come_back_after_an_exception(self, rule: str) -> None:
        model = small_model(rule)
        before = gradients(model, IMAGES)
        with pytest.raises(KeyboardInterrupt), true_gradients(model):
            raise KeyboardInterrupt
        assert all(map(torch.equal, gradients(model, IMAGES), before))

    def test_nested_uses_end_with_the_outermost(self) -> None:
        model = small_model("fa")
        ruled = gradients(model, IMAGES)[0]
        with true_gradients(model):
            exact = gradients(model, IMAGES)[0]
            with true_gradients(model[2]):
                pass
            assert torch.equal(gradients(model, IMAGES)[0], exact)
        assert torch.equal(gradients(model, IMAGES)[0], ruled)
        assert not torch.equal(ruled, exact)

    def test_a_part_of_a_model_can_be_exact_alone(self) -> None:
        model, exact = small_model("fa"), small_model("bp")
        with true_gradients(nn.ModuleList(model[2:])):
            found = gradients(model, IMAGES)
        expected = gradients(exact, IMAGES)
        assert all(map(torch.equal, found[1:], expected[1:]))
        assert not torch.equal(found[0], expected[0])


class TestState:
    @every_rule
    def test_feedback_is_no_parameter(self, rule: str) -> None:
        layer = PLAIN.build(rule)
        assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
        assert not any(buffer.requires_grad for buffer in layer.buffers())
        feedback = set(layer.state_dict()) - {"weight", "bias"}
        assert feedback == {f"feedback_{name}" for name in layer.feedback}
        assert bool(feedback) == (rule != "bp")

    @every_rule
    def test_the_state_dict_round_trips_through_a_file(self, rule: str) -> None:
        """A model drawn from another seed and then loaded sends down the same errors."""
        model, other = small_model(rule), randomise(small_model(rule), 8)
        assert not torch.equal(gradients(model, IMAGES)[0], gradients(other, IMAGES)[0])
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert all(map(torch.equal, gradients(model, IMAGES), gradients(other, IMAGES)))

    @every_rule
    def test_a_checkpoint_without_feedback_is_refused(self, rule: str) -> None:
        model = small_model(rule)
        weights = dict(model.named_parameters())
        if rule == "bp":
            model.load_state_dict(weights)
        else:
            with pytest.raises(RuntimeError, match="feedback_"):
                model.load_state_dict(weights)

    @every_rule
    def test_a_deep_copy_is_equal_and_independent(self, rule: str) -> None:
        model = small_model(rule)
        before = gradients(model, IMAGES)
        twin = copy.deepcopy(model)
        assert all(map(torch.equal, gradients(twin, IMAGES), before))
        randomise(twin, 12)
        assert all(map(torch.equal, gradients(model, IMAGES), before))

    @rules_with_feedback
    def test_feedback_moves_with_the_model(self, rule: str) -> None:
        model = small_model(rule).to(torch.bfloat16)
        assert {b.dtype for b in model.buffers()} == {torch.bfloat16}
        model.to("meta")
        assert {b.device.type for b in model.buffers()} == {"meta"}

    @every_rule
    def test_rules_are_immutable_values(self, rule: str) -> None:
        member = RULES.build(rule)
        assert member == RULES.build(rule)
        assert hash(member) == hash(RULES.build(rule))
        with pytest.raises(AttributeError):
            member.anything = 1

    def test_the_layer_shows_its_rule(self) -> None:
        assert "FixedRandomSignFeedback" in repr(PLAIN.build("frsf"))


def feedback_of(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{n}.{k}": v.clone() for n, layer in rule_layers(model) for k, v in layer.feedback.items()
    }


def named(*names: str, rule: str = "brsf") -> nn.ModuleDict:
    return nn.ModuleDict({name: RuleConv2d(3, 4, 3, rule=RULES.build(rule)) for name in names})


class TestDrawFeedback:
    @pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel], ids=["compile", "parallel"])
    def test_what_is_wrapped_around_a_model_changes_nothing(self, wrap: Any) -> None:
        """torch.compile and the parallel wrappers put their own names before those of the
        layers.
        """
        bare, wrapped = (
            nn.Sequential(RuleConv2d(2, 3, 3, rule=RULES.build("fa"))) for _ in range(2)
        )
        draw_feedback(bare, 5)
        draw_feedback(wrap(wrapped), 5)
        assert torch.equal(bare[0].feedback["kernel"], wrapped[0].feedback["kernel"])  # type: ignore[operator]

    @pytest.mark.parametrize("rule", ["fa", "frsf", "brsf"])
    def test_depends_on_seed_layer_name_and_update_alone(self, rule: str) -> None:
        """Not on other layers, their order, earlier draws, the weights, or the global generator."""
        model, other = named("stem", "cell", rule=rule), named("extra", "cell", "stem", rule=rule)
        draw_feedback(other, 1)
        torch.manual_seed(77)
        randomise(other, 5)
        for update in (0, 4):
            draw_feedback(model, 9, update)
            draw_feedback(other, 9, update)
        first, second = feedback_of(model), feedback_of(other)
        assert first
        assert all(torch.equal(second[name], value) for name, value in first.items())

    @every_rule
    def test_leaves_all_global_generators_alone(self, rule: str) -> None:
        model = small_model(rule)
        before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
        for update in range(3):
            draw_feedback(model, 1, update)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (random.getstate(), repr(np.random.get_state())) == before[1:]

    @every_rule
    def test_only_rules_that_redraw_are_drawn_after_an_update(self, rule: str) -> None:
        model = small_model(rule)
        draw_feedback(model, 3)
        before = feedback_of(model)
        draw_feedback(model, 3, update=1)
        changed = [
            not torch.equal(value, before[name]) for name, value in feedback_of(model).items()
        ]
        assert changed == [RULES.get(rule).renews] * len(before)
        assert RULES.get(rule).renews == (rule in ("brsf", "weight_mirror"))

    def test_draws_differ_by_update_layer_and_seed(self) -> None:
        draws = []
        for seed in (0, 1):
            for update in range(4):
                model = named("a", "b")
                draw_feedback(model, seed, update)
                draws += list(feedback_of(model).values())
        distinct = {tuple(draw.flatten().tolist()) for draw in draws}
        assert len(distinct) == len(draws) == 16

    def test_a_resumed_run_draws_what_an_uninterrupted_one_draws(self) -> None:
        through, resumed = named("a", "b"), named("a", "b")
        for update in range(6):
            draw_feedback(through, 2, update)
        draw_feedback(resumed, 2, 5)
        assert all(map(torch.equal, feedback_of(through).values(), feedback_of(resumed).values()))

    @rules_with_feedback
    def test_neither_training_nor_evaluation_draws(self, rule: str) -> None:
        model = small_model(rule)
        before = feedback_of(model)
        for mode in (True, False):
            model.train(mode)
            gradients(model, IMAGES)
        assert all(torch.equal(value, before[name]) for name, value in feedback_of(model).items())

    @rules_with_feedback
    def test_feedback_is_drawn_in_place(self, rule: str) -> None:
        """So compiled graphs and averaged models keep hold of the same tensors."""
        model = small_model(rule)
        before = [b.data_ptr() for b in model.buffers()]
        draw_feedback(model, 8)
        assert [b.data_ptr() for b in model.buffers()] == before


class TestKernelsOfTheLibrary:
    @pytest.mark.parametrize(
        ("window", "side", "strips"), [(5, 8, True), (3, 8, False), (3, 3, False), (3, 2, True)]
    )
    def test_wide_and_narrow_depthwise_layers_on_a_cpu_find_their_gradient_in_strips(
        self, window: int, side: int, strips: bool
    ) -> None:
        """PyTorch's own node, which is faster otherwise, is ten times slower for these."""
        sizes = {"padding": window // 2, "groups": 8}
        layer = RuleConv2d(8, 8, window, rule=RULES.build("fa"), **sizes)
        x = torch.randn(2, 8, side, side, requires_grad=True)
        y = layer(x.contiguous(memory_format=torch.channels_last))
        assert (y.grad_fn.name() == "FeedbackConvolutionBackward") == strips
        # Where channels are not last in memory, nothing else is faster than PyTorch's own node.
        assert layer(x).grad_fn.name() == "ConvolutionBackward0"

    @pytest.mark.parametrize("rule", ["bp", "fa", "kolen_pollack"])
    @pytest.mark.parametrize("mode", ["zeros", "circular"])
    @pytest.mark.parametrize(
        ("side", "window", "padding", "dilation"),
        [
            ((8, 8), (3, 3), (2, 2), 2),
            ((7, 10), (5, 3), (4, 2), 2),
            ((9, 9), (3, 3), (3, 3), 3),
            ((8, 5), (3, 2), (1, 3), 2),
            ((6, 6), (3, 3), (0, 0), 2),
            ((2, 2), (3, 3), (2, 2), 2),
        ],
    )
    def test_dilated_depthwise_layers_split_space_into_the_batch(
        self,
        side: tuple[int, int],
        window: tuple[int, int],
        padding: tuple[int, int],
        dilation: int,
        mode: str,
        rule: str,
    ) -> None:
        """They are those of the dilated convolution, in float64."""
        if mode == "circular" and max(padding) > min(side):
            return
        layer = RuleConv2d(
            6,
            6,
            window,
            padding=padding,
            dilation=dilation,
            groups=6,
            padding_mode=mode,
            rule=RULES.build(rule),
        ).double()
        x = torch.randn(3, 6, *side, dtype=torch.float64, requires_grad=True)
        y = layer(x.contiguous(memory_format=torch.channels_last))
        dy = torch.randn_like(y).contiguous(memory_format=torch.channels_last)
        parameters = [layer.weight, layer.bias]
        dx, dw, db = torch.autograd.grad(y, [x, *parameters], dy)
        assert (y.grad_fn.name() == "FeedbackConvolutionBackward") == (rule != "bp")

        def plain(weight: Tensor) -> Tensor:
            rims = (padding[1], padding[1], padding[0], padding[0])
            padded = F.pad(x, rims, mode="constant" if mode == "zeros" else mode)
            return F.conv2d(padded, weight, layer.bias, dilation=dilation, groups=6)

        carried = layer.weight if rule == "bp" else layer.feedback["kernel"]
        expected = (
            torch.autograd.grad(plain(carried), x, dy)[0],
            *torch.autograd.grad(plain(layer.weight), parameters, dy),
        )
        for one, other in zip((dx, dw, db), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("trained", [False, True])
    def test_products_keep_their_inputs_for_weights_that_are_trained(self, trained: bool) -> None:
        """In alpha's pass, where weights are frozen, they would be most of what is kept."""
        inputs = [torch.randn(1, 4, 2, 2, requires_grad=True) for _ in range(2)]
        weights = [torch.randn(3, 4, 1, 1), torch.randn(3, 4, 1, 1)]
        weights[1].requires_grad_(trained)
        y = FeedbackProducts.apply((1, 2, 2), (1, 1), *inputs, *weights, *weights[:1] * 2)
        kept = y.grad_fn.saved_tensors[:2]
        assert [x is not None for x in kept] == [False, trained]

    @pytest.mark.parametrize("window", [(3, 3), (5, 5), (3, 7), (1, 4)])
    @pytest.mark.parametrize("stride", [1, 2])
    def test_wide_depthwise_windows_in_strips(self, window: tuple[int, int], stride: int) -> None:
        """Channels last on a CPU, the weight gradient is put together from strips of columns: as
        exact as in one.
        """
        for side in ((9, 8), (9, 2), (2, 9), (4, 4), (2, 2), (1, 1)):  # also below the window
            self.in_strips(side, window, stride)

    @pytest.mark.parametrize("wanted", [(True, False), (False, True), (True, True)])
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("samples", [0, 3])
    @pytest.mark.parametrize(
        ("dilation", "padding"), [(1, (2, 2)), (2, (4, 4)), (2, (3, 0)), (3, (4, 6)), (9, (18, 18))]
    )
    def test_every_form_gives_what_is_wanted(
        self,
        dilation: int,
        padding: tuple[int, int],
        samples: int,
        bias: bool,
        wanted: tuple[bool, bool],
    ) -> None:
        """Also at a dilation beyond the map, which is left as it is."""
        layout = {"memory_format": torch.channels_last}
        x = torch.randn(samples, 4, 9, 14, dtype=torch.float64).contiguous(**layout)
        kernel = torch.randn(4, 1, 5, 5 if dilation < 9 else 3, dtype=torch.float64)
        kernel = kernel if dilation < 3 else kernel[:, :, :3, :3].contiguous()
        geometry = ((1, 1), padding, (dilation, dilation))
        y = torch.convolution(x, kernel, None, *geometry, False, (0, 0), 4)
        dy = torch.randn_like(y).contiguous(**layout)
        mask = (*wanted, bias)
        found = convolution_gradients(dy, x, kernel, [4] if bias else None, *geometry, 4, mask)
        exact = torch.ops.aten.convolution_backward(
            dy, x, kernel, [4] if bias else None, *geometry, False, [0, 0], 4, mask
        )
        for one, other, there in zip(found, exact, mask, strict=True):
            assert (one is not None) == there
            if there:
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)

    @staticmethod
    def in_strips(side: tuple[int, int], window: tuple[int, int], stride: int) -> None:
        x = torch.randn(3, 16, *side).contiguous(memory_format=torch.channels_last)
        kernel = torch.randn(16, 1, *window)
        padding = (window[0] // 2, window[1] // 2)
        geometry = ((stride, stride), padding, (1, 1), 16)
        dy = torch.randn_like(torch.convolution(x, kernel, None, *geometry[:3], False, (0, 0), 16))
        dy = dy.contiguous(memory_format=torch.channels_last)
        found = convolution_gradients(dy, x, kernel, None, *geometry, (True, True, False))
        exact = torch.ops.aten.convolution_backward(
            dy.double(),
            x.double(),
            kernel.double(),
            None,
            *geometry[:3],
            False,
            [0, 0],
            16,
            (True, True, False),
        )
        for one, other in zip(found[:2], exact[:2], strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)

    @every_rule
    def test_shapes_alone_on_the_meta_device(self, rule: str) -> None:
        with torch.device("meta"):
            layer = RuleConv2d(3, 4, 3, rule=RULES.build(rule))
            x = torch.randn(2, 3, 8, 8, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad is not None
        assert x.grad.shape == x.shape
