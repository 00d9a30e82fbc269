"""The two autograd Functions every feedback rule shares: the ordinary forward pass, and a backward pass in which a
given kernel takes the weight's place in the gradient of the input.

    dx = convT(dy; kernel),  dW = conv_w(x, dy),  db = sum of dy

One `convolution_backward` yields all three: given (dy, x, kernel) its weight gradient does not read the kernel, so a
rule costs the same kernels as backpropagation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class FeedbackConvolution(torch.autograd.Function):
    """Convolution of x (N, C, *spatial) with weight (C', C/groups, *window); `kernel` has the weight's shape."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernel: Tensor,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        return torch.convolution(x, weight, bias, stride, padding, dilation, False, (0,) * len(stride), groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, bias, kernel, *ctx.geometry = inputs
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.save_for_backward(x, kernel)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        wanted = ctx.needs_input_grad[:3]
        dx, dw, db = torch.ops.aten.convolution_backward(
            dy, x, kernel, ctx.bias_sizes, stride, padding, dilation, False, [0] * len(stride), groups, wanted
        )
        return dx, dw, db, None, None, None, None, None


class FeedbackLinear(torch.autograd.Function):
    """x (..., I) times weight (O, I) transposed; `kernel` has the weight's shape."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, _, kernel = inputs
        ctx.save_for_backward(x, kernel)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        wants_x, wants_w, wants_b = ctx.needs_input_grad[:3]
        rows = dy.reshape(-1, dy.shape[-1])
        dx = dy @ kernel if wants_x else None
        dw = rows.t() @ x.reshape(-1, x.shape[-1]) if wants_w else None
        db = rows.sum(0) if wants_b else None
        return dx, dw, db, None
