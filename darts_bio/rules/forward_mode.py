"""The Functions of `rules.functional` in forward-mode passes (`rules.tangents`).

They are classes of their own, since compilers take no Function that has a `jvp`. A kernel's gradient
is here not what it learns by, but d<v, g>/dB, where v is the direction of the weight and g its
gradient. The formula is that of the weight's gradient, with the direction q of the input in the place
of the input.

Under autocast PyTorch gives a direction in float32 for some values in bfloat16; it is cast as the
value is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.rules.convolution import convolution_gradients
from darts_bio.rules.functional import (
    FeedbackConvolution,
    FeedbackLinear,
    FeedbackProducts,
    repeat_channels,
    thirds,
    with_signature,
)
from darts_bio.rules.members import (
    by_member,
    correlations,
    matrices,
    pixels_of,
    rows,
    split_channels,
    write_products,
)
from darts_bio.rules.tangents import forward_mode


def convolve(*arguments: Any) -> Tensor:
    """Apply `FeedbackConvolution` as this pass needs it."""
    return (MovingConvolution if forward_mode() else FeedbackConvolution).apply(*arguments)


def multiply(*arguments: Any) -> Tensor:
    """Apply `FeedbackProducts` as this pass needs it."""
    return (MovingProducts if forward_mode() else FeedbackProducts).apply(*arguments)


def project(*arguments: Any) -> Tensor:
    """Apply `FeedbackLinear` as this pass needs it."""
    return (MovingLinear if forward_mode() else FeedbackLinear).apply(*arguments)


def _direction(
    ctx: Any,
    q: Tensor | None,
    v: Tensor | None,
    v_bias: Tensor | None,
    apply: Callable[[Tensor, Tensor, Tensor | None], Tensor],
) -> Tensor:
    """Return the direction of a layer's output, and keep q for the backward pass.

    Args:
        ctx: The layer's context, whose `before` holds its input x and its kernel.
        q: The direction of x; None where it does not move.
        v: That of the weight.
        v_bias: That of the bias.
        apply: The layer as a function of an input, a weight and a bias.
    """
    (x, kernel), ctx.before = ctx.before, None
    moves = []
    if v is not None or v_bias is not None:
        moves.append(apply(x, torch.zeros_like(kernel) if v is None else v, v_bias))
    if q is not None:
        ctx.q = q.detach().to(x.dtype)
        moves.append(apply(ctx.q, kernel, None))
    return moves[0] if len(moves) == 1 else moves[0].add_(moves[1])


class MovingConvolution(FeedbackConvolution):
    """A `FeedbackConvolution` whose output moves along conv(x, v) + conv(q, kernel).

    v is the direction of the weight, q that of x.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        FeedbackConvolution.remember(ctx, inputs, learned=False)
        ctx.before, ctx.q = (inputs[0], inputs[3]), None

    @staticmethod
    @torch.no_grad()
    def jvp(ctx: Any, q: Tensor | None, v: Tensor | None, v_bias: Tensor | None, *_: Any) -> Tensor:
        def apply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return FeedbackConvolution.forward(x, weight, bias, weight, *ctx.geometry)

        return _direction(ctx, q, v, v_bias, apply)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dw, db, _, *rest = FeedbackConvolution.backward(ctx, dy)
        of_kernel = None
        if ctx.needs_input_grad[3] and ctx.q is not None:
            _, kernel = ctx.saved_tensors
            stride, padding, dilation, groups, copies, output_padding = ctx.geometry
            q = repeat_channels(ctx.q, copies) if copies > 1 else ctx.q
            geometry, only_w = (stride, padding, dilation, groups), (False, True, False)
            _, of_kernel, _ = convolution_gradients(
                dy, q, kernel, None, *geometry, only_w, output_padding
            )
        return dx, dw, db, of_kernel, *rest


class MovingProducts(FeedbackProducts):
    """`FeedbackProducts` whose output moves along W's direction v times x plus B times q."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        FeedbackProducts.remember(ctx, inputs, [False] * len(inputs[1]))
        xs, _, kernels = thirds(inputs[2:])
        ctx.before, ctx.qs = (xs, kernels), [None] * len(xs)

    @staticmethod
    @torch.no_grad()
    def jvp(ctx: Any, size: None, members: None, *moves: Tensor | None) -> Tensor:
        (xs, kernels), ctx.before = ctx.before, None
        qs, vs, _ = thirds(moves)
        ctx.qs = qs = [None if q is None else q.detach().to(xs[0].dtype) for q in qs]
        y = xs[0].new_zeros(*ctx.size, sum(ctx.channels))
        targets = split_channels(y, ctx.channels)
        for x, q, v, kernel, m, target in zip(
            xs, qs, vs, kernels, ctx.members, targets, strict=True
        ):
            if kernel is None:
                if q is not None:
                    by_member(target, m).copy_(rows(q, 1))
                continue
            if v is not None:
                write_products(target, pixels_of(x), matrices(v, m).mT)
            if q is not None:
                write_products(target, pixels_of(q), matrices(kernel, m).mT, add=True)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        k = len(ctx.members)
        gradients = FeedbackProducts.backward(ctx, dy)[: 2 + 2 * k]
        kernels: Sequence[Tensor | None] = ctx.saved_tensors[k:]
        wanted = thirds(ctx.needs_input_grad[2:])[2]
        errors = split_channels(dy.permute(0, 2, 3, 1).contiguous(), ctx.channels)
        of_kernels: list[Tensor | None] = [None] * k
        for g, (error, q, kernel, m) in enumerate(
            zip(errors, ctx.qs, kernels, ctx.members, strict=True)
        ):
            if wanted[g] and q is not None:
                assert kernel is not None
                of_kernels[g] = correlations(error, pixels_of(q), m).reshape(kernel.shape)
        return *gradients, *of_kernels


class MovingLinear(FeedbackLinear):
    """A `FeedbackLinear` whose output moves along x v^T + q kernel^T."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        FeedbackLinear.setup_context(ctx, inputs, output)
        ctx.before, ctx.q = (inputs[0], inputs[3]), None

    @staticmethod
    @torch.no_grad()
    def jvp(ctx: Any, q: Tensor | None, v: Tensor | None, v_bias: Tensor | None, *_: Any) -> Tensor:
        return _direction(ctx, q, v, v_bias, F.linear)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        *others, _ = FeedbackLinear.backward(ctx, dy)
        if not ctx.needs_input_grad[3] or ctx.q is None:
            return *others, None
        errors_po = dy.reshape(-1, dy.shape[-1])
        return *others, errors_po.t() @ ctx.q.reshape(-1, ctx.q.shape[-1])


with_signature(MovingConvolution, MovingLinear, MovingProducts)
