"""Forward-mode passes: the transpose of what rules do in the backward pass, and its derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from darts_bio.rules import RULES, RuleConv2d, RuleLayer, RuleLinear, draw_feedback
from darts_bio.rules.forward_mode import convolve, multiply, project
from darts_bio.rules.layers import RuleConv1d, RuleConvTranspose2d
from darts_bio.rules.shared_feedback import CastMoving
from darts_bio.rules.tangents import forward_mode, tangents

pytestmark = pytest.mark.usefixtures("float64")

SENDING = tuple(name for name in RULES if not (RULES.build(name).local or RULES.build(name).direct))
LAYERS: dict[str, tuple[Callable[[Any], RuleLayer], tuple[int, ...]]] = {
    "linear": (lambda rule: RuleLinear(4, 3, rule=rule), (5, 4)),
    "conv1d": (lambda rule: RuleConv1d(4, 6, 3, padding=1, rule=rule), (2, 4, 7)),
    "depthwise": (
        lambda rule: RuleConv2d(4, 4, 5, stride=2, padding=4, dilation=2, groups=4, rule=rule),
        (2, 4, 9, 9),
    ),
    "wide": (lambda rule: RuleConv2d(4, 4, 7, padding=3, groups=4, rule=rule), (2, 4, 3, 3)),
    "reflecting": (
        lambda rule: RuleConv2d(4, 2, 3, padding=1, padding_mode="reflect", rule=rule),
        (2, 4, 5, 5),
    ),
    "strided pointwise": (lambda rule: RuleConv2d(4, 2, 1, stride=2, rule=rule), (2, 4, 5, 5)),
    "transposed": (
        lambda rule: RuleConvTranspose2d(4, 2, 3, stride=2, output_padding=1, rule=rule),
        (2, 4, 4, 4),
    ),
}


def adjoint(
    dy: Tensor, y_moves: Tensor, gradients: Sequence[Tensor], moves: Sequence[Tensor]
) -> bool:
    """Whether <dy, y's direction> = <gradients, directions>, to the rounding of such sums.

    Inner products of n terms are off by n eps |a| |b| at most, whatever they cancel to; n < 1000.
    """
    bound = 1e-13 * (dy.norm() * y_moves.norm()).item()
    return abs(inner([dy], [y_moves]) - inner(gradients, moves)) <= bound


def inner(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return sum((a * b).sum().item() for a, b in zip(ones, others, strict=True))


@pytest.mark.parametrize("rule", [*SENDING, "fa(scale=match)"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_s_forward_mode_pass_is_the_transpose_of_its_backward_pass(
    kind: str, rule: str
) -> None:
    make, shape = LAYERS[kind]
    layer = make(RULES.build(rule))
    leaves = [torch.randn(shape, requires_grad=True), layer.weight, layer.bias]
    moves = [torch.randn_like(leaf) for leaf in leaves]
    with tangents(leaves, moves):
        y = layer(leaves[0])
        y_moves = forward_ad.unpack_dual(y).tangent
    assert not y_moves.requires_grad  # nothing is kept to differentiate directions
    dy = torch.randn_like(y_moves)
    gradients = torch.autograd.grad(layer(leaves[0]), leaves, dy)
    assert adjoint(dy, y_moves, gradients, moves)
    # The backward pass of what was computed with directions is the ordinary one.
    for one, other in zip(torch.autograd.grad(y, leaves, dy), gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_bias_may_move_alone(kind: str) -> None:
    make, shape = LAYERS[kind]
    layer, x = make(RULES.build("fa")), torch.randn(shape, requires_grad=True)
    v = torch.randn_like(layer.bias)
    with tangents([layer.bias], [v]):
        y_moves = forward_ad.unpack_dual(layer(x)).tangent
    channels_last = y_moves if kind == "linear" else y_moves.movedim(1, -1)
    assert torch.equal(channels_last, v.expand_as(channels_last))


@pytest.mark.parametrize("copies", [1, 2])
def test_stacked_convolutions_likewise(copies: int) -> None:
    x = torch.randn(2, 6 // copies, 5, 5, requires_grad=True)
    weight = torch.randn(6, 1, 3, 3, requires_grad=True)
    kernel = torch.randn(6, 1, 3, 3)
    geometry = ((1, 1), (1, 1), (1, 1), 6, copies, None)
    moves = [torch.randn_like(x), torch.randn_like(weight)]
    with tangents([x, weight], moves):
        y = convolve(x, weight, None, kernel, *geometry)
        y_moves = forward_ad.unpack_dual(y).tangent
    dy = torch.randn_like(y_moves)
    y = convolve(x, weight, None, kernel, *geometry)
    gradients = torch.autograd.grad(y, [x, weight], dy)
    assert adjoint(dy, y_moves, gradients, moves)


@pytest.mark.parametrize("still", [(), (0,), (1,), (0, 1, 2, 3)])
def test_joined_products_likewise_whatever_moves(still: tuple[int, ...]) -> None:
    """Two groups with weights, of 2 and 1 members, and one that is written as it is."""

    def last(*shape: int) -> Tensor:
        return torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()

    inputs = [last(2, 6, 4, 4), last(2, 3, 4, 4), last(2, 5, 4, 4)]
    weights = [torch.randn(10, 3, 1, 1, requires_grad=True), torch.randn(5, 3, 1, 1)]
    weights[1].requires_grad_()
    kernels = [torch.randn(10, 3, 1, 1), torch.randn(5, 3, 1, 1), None]

    def run() -> Tensor:
        return multiply((2, 4, 4), (2, 1, 2), *inputs, *weights, None, *kernels)

    leaves = [*inputs, *weights]
    moving = [leaf for number, leaf in enumerate(leaves) if number not in still]
    moves = [torch.randn_like(leaf) for leaf in moving]
    with tangents(moving, moves):
        y_moves = forward_ad.unpack_dual(run()).tangent
    dy = torch.randn_like(y_moves)
    gradients = torch.autograd.grad(run(), moving, dy)
    assert adjoint(dy, y_moves, gradients, moves)


def chain(
    function: Callable[..., Tensor], weights: Sequence[Tensor], kernels: Sequence[Tensor], x: Tensor
) -> Tensor:
    """Three convolutions with batch norm and ReLU between them, pooling, and a square."""
    for number, (weight, kernel) in enumerate(zip(weights, kernels, strict=True)):
        if number:
            x = F.max_pool2d(F.batch_norm(x, None, None, training=True).relu(), 3, 1, 1)
        x = function(x, weight, kernel)
    return x.square().mean()


class Plain(torch.autograd.Function):
    """A convolution under a rule whose backward pass PyTorch can differentiate for the kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, kernel)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, kernel = ctx.saved_tensors
        dx = torch.nn.grad.conv2d_input(x.shape, kernel, dy, padding=1)
        return dx, torch.nn.grad.conv2d_weight(x, weight.shape, dy, padding=1), None


def ours(x: Tensor, weight: Tensor, kernel: Tensor) -> Tensor:
    geometry = ((1, 1), (1, 1), (1, 1), 1, 1, None)
    return convolve(x, weight, None, kernel, *geometry)


class TestKernelGradient:
    def problem(self) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        shapes = [(4, 3, 3, 3), (5, 4, 3, 3), (2, 5, 3, 3)]
        weights, kernels, moves = ([torch.randn(s) for s in shapes] for _ in range(3))
        for tensor in (*weights, *kernels):
            tensor.requires_grad_()
        return weights, kernels, moves, torch.randn(4, 3, 6, 6)

    def swept(self) -> tuple[list[Tensor | None], list[Tensor]]:
        """The kernels' gradients by a sweep, and by differentiating twice."""
        weights, kernels, moves, x = self.problem()
        for weight in weights:
            weight.requires_grad_(False)
        with tangents(weights, moves):
            loss = chain(ours, weights, kernels, x)
        by_sweep = torch.autograd.grad(loss, kernels, allow_unused=True)
        for weight in weights:
            weight.requires_grad_()
        loss = chain(Plain.apply, weights, kernels, x)
        gradients = torch.autograd.grad(loss, weights, create_graph=True)
        along = sum((g * v).sum() for g, v in zip(gradients, moves, strict=True))
        twice = torch.autograd.grad(along, kernels, allow_unused=True, materialize_grads=True)
        return list(by_sweep), list(twice)

    def test_is_the_derivative_of_the_weights_gradients_along_the_directions(self) -> None:
        by_sweep, twice = self.swept()
        for one, other in zip(by_sweep[1:], twice[1:], strict=True):
            assert other.norm() > 0
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)

    def test_of_the_lowest_layer_is_zero_since_nothing_learns_from_its_error(self) -> None:
        by_sweep, twice = self.swept()
        assert not by_sweep[0].any()
        assert not twice[0].any()

    def test_of_a_linear_layer(self) -> None:
        first = torch.randn(4, 3)
        second, kernel = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4)
        kernel.requires_grad_()
        v, x, e = torch.randn(4, 3), torch.randn(5, 3), torch.randn(5, 2)
        with tangents([first], [v]):
            y = project((x @ first.t()).tanh(), second, None, kernel)
        (by_sweep, of_weight) = torch.autograd.grad(y, [kernel, second], e)
        hidden = (x @ first.t()).tanh()
        q = (1 - hidden.square()) * (x @ v.t())
        torch.testing.assert_close(by_sweep, e.t() @ q)
        torch.testing.assert_close(of_weight, e.t() @ hidden)  # as without directions


def test_a_layer_that_reads_the_input_still_sends_directions_through_its_kernel() -> None:
    """The layer below may move though nothing asks for its gradient: weights are frozen."""
    layers = nn.Sequential(
        RuleLinear(3, 4, bias=False, rule=RULES.build("bp")),
        RuleLinear(4, 2, bias=False, rule=RULES.build("fa")),
    )
    draw_feedback(layers, 0)
    layers.requires_grad_(False)
    v, x = torch.randn(4, 3), torch.randn(5, 3)
    with tangents([layers[0].weight], [v]):
        y_moves = forward_ad.unpack_dual(layers(x)).tangent
    torch.testing.assert_close(y_moves, x @ v.t() @ layers[1].feedback["kernel"].t())


def test_directions_are_cast_as_values_are() -> None:
    tensors = [torch.randn(2, 3), torch.randn(4)]
    moves = [torch.randn(2, 3), torch.randn(4)]
    with tangents(tensors, moves):
        cast = CastMoving.apply(torch.float32, *tensors)
        directions = [forward_ad.unpack_dual(value).tangent for value in cast]
    for direction, move in zip(directions, moves, strict=True):
        assert torch.equal(direction, move.float())


def test_directions_end_with_the_context_also_after_an_error() -> None:
    weight = torch.randn(2, 3)
    before = weight.clone()
    seen = []

    def fail() -> None:
        with tangents([weight], [torch.ones(2, 3)]):
            seen.append(forward_mode())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [True]
    assert not forward_mode()
    assert torch.equal(weight, before)
    with tangents([], []):
        assert forward_ad.unpack_dual(weight).tangent is None
