"""The autograd Functions every feedback rule shares: the ordinary forward pass, and a backward pass
in which a given kernel takes the weight's place in the gradient of the input.

    dx = convT(dy; kernel),  dW = conv_w(x, dy),  db = sum of dy

One `convolution_backward` yields all three: given (dy, x, kernel) its weight gradient does not read
the kernel, so a rule costs the same kernels as backpropagation. Where PyTorch has recorded a
convolution itself, it is enough to put the kernel in the place of the weight that it saved
(`through_kernel`): no Python stands between the kernels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.rules.base import LearningRule, Operator

STRIP = 3


def first_derivative_only() -> None:
    """Refuses a backward pass that is to be differentiated again: the second derivative would
    follow the rules' errors, not what the first one depends on. (Functional transforms and
    compilers always record, so they are not asked.)
    """
    recorded_anyway = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if torch.is_grad_enabled() and not recorded_anyway:
        raise RuntimeError(
            "a rule's backward pass cannot be differentiated again (create_graph=True); use "
            "true_gradients(model) for "
            "exact second derivatives"
        )


def side_by_side(x: Tensor, copies: int) -> Tensor:
    """x (N, C, H, W) `copies` times along its channels: (N, copies * C, H, W), channels last in
    memory.
    """
    n, c, h, w = x.shape
    return (
        x.permute(0, 2, 3, 1).unsqueeze(3).expand(n, h, w, copies, c).flatten(3).permute(0, 3, 1, 2)
    )


def wide_depthwise(x: Tensor, kernel: Tensor, dilation: Sequence[int], groups: int) -> bool:
    """Whether oneDNN's fast weight gradient of a depthwise convolution, which takes windows of up
    to three columns, does not serve: a wider one falls back to a dense algorithm, ten times
    slower.
    """
    return (
        x.device.type == "cpu"
        and kernel.dim() == 4
        and kernel.shape[3] > STRIP
        and x.shape[3] >= kernel.shape[3]  # on smaller maps nothing is slow
        and groups == x.shape[1] == kernel.shape[0]
        and tuple(dilation) == (1, 1)
    )


def convolution_gradients(
    dy: Tensor,
    x: Tensor,
    kernel: Tensor,
    bias_sizes: list[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
    output_padding: Sequence[int] | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients (dx through `kernel`, dW, db) of a convolution, None where not wanted; of a
    transposed one where there is an `output_padding`.

    On a CPU the columns of a depthwise window that is `wide_depthwise` are taken three at a time.
    """

    def fused(
        x: Tensor, kernel: Tensor, padding: Sequence[int], mask: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        return torch.ops.aten.convolution_backward(
            dy,
            x,
            kernel,
            bias_sizes,
            stride,
            padding,
            dilation,
            output_padding is not None,
            output_padding or [0] * len(stride),
            groups,
            mask,
        )

    in_strips = wanted[1] and output_padding is None and wide_depthwise(x, kernel, dilation, groups)
    if not (in_strips and dy.is_contiguous(memory_format=torch.channels_last)):
        dx, dw, db = fused(x, kernel, padding, wanted)
        return dx, dw, db
    dx, _, db = fused(x, kernel, padding, (wanted[0], False, wanted[2]))
    width, strips = kernel.shape[3], []
    for left in range(0, width, STRIP):
        columns = kernel[..., left : left + STRIP].contiguous()
        beyond = width - left - columns.shape[3]
        moved = F.pad(x, (padding[1] - left, padding[1] - beyond))
        strips.append(fused(moved, columns, (padding[0], 0), (False, True, False))[1])
    return dx, torch.cat([strip for strip in strips if strip is not None], dim=3), db


def keeps_saved_tensors() -> bool:
    """Whether what a pass saves stays with PyTorch's own nodes: no compiler traces it, no
    functional transform runs it, and no hooks (of gradient checkpointing, of offloading) take what
    is saved elsewhere.
    """
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    )


def through_kernel(y: Tensor, kernel: Tensor) -> None:
    """Has the convolution that has just given y send its error down through `kernel` in place of
    its weight.

    `keeps_saved_tensors()` must hold. Autocast is respected: the kernel is cast as the weight was.
    """
    kernel = kernel.detach() if kernel.dtype == y.dtype else kernel.detach().to(y.dtype)
    version = kernel._version

    def stand_in(_: None) -> Tensor:
        if kernel._version != version:
            raise RuntimeError(
                "feedback was changed between a forward pass and its backward pass; draw it after "
                "both"
            )
        first_derivative_only()
        return kernel

    y.grad_fn._raw_saved_weight.register_hooks(_nothing, stand_in)  # type: ignore[union-attr]


def _nothing(weight: Tensor) -> None:
    """What is kept of the weight for the backward pass."""


class FeedbackConvolution(torch.autograd.Function):
    """Convolution of x (N, C, *spatial) with weight (C', C/groups, *window), or where there is an
    `output_padding` the transposed one with weight (C, C'/groups, *window); `kernel` has the
    weight's shape.

    With `copies` > 1 x is taken that many times along its channels, (N, copies * C, *spatial),
    without being kept so. A kernel that is learned itself receives the weight's gradient.
    """

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
        copies: int,
        output_padding: tuple[int, ...] | None,
    ) -> Tensor:
        x = side_by_side(x, copies) if copies > 1 else x
        transposed, beyond = output_padding is not None, output_padding or (0,) * len(stride)
        return torch.convolution(
            x, weight, bias, stride, padding, dilation, transposed, beyond, groups
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, bias, kernel, *ctx.geometry = inputs
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        # The values of x serve the weight's gradient alone; without it, only its shape and layout
        # in memory are needed.
        ctx.shape, ctx.strides = x.shape, x.stride()
        ctx.save_for_backward(x if learns(ctx, 1, 3) else None, kernel)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        x, kernel = ctx.saved_tensors
        stride, padding, dilation, groups, copies, output_padding = ctx.geometry
        if x is not None:
            x = side_by_side(x, copies) if copies > 1 else x
        elif copies > 1:
            n, c, h, w = ctx.shape
            x = dy.new_empty(n, h, w, copies * c).permute(0, 3, 1, 2)
        else:
            x = dy.new_empty_strided(ctx.shape, ctx.strides)
        wanted = (ctx.needs_input_grad[0], learns(ctx, 1, 3), ctx.needs_input_grad[2])
        geometry = (stride, padding, dilation, groups)
        dx, dw, db = convolution_gradients(
            dy, x, kernel, ctx.bias_sizes, *geometry, wanted, output_padding
        )
        if dx is not None and copies > 1:
            dx = dx.permute(0, 2, 3, 1).unflatten(3, (copies, -1)).sum(3).permute(0, 3, 1, 2)
        return (
            dx,
            dw if ctx.needs_input_grad[1] else None,
            db,
            dw if ctx.needs_input_grad[3] else None,
            *[None] * 6,
        )


def learns(ctx: Any, weight: int, kernel: int) -> bool:
    """Whether the weight's gradient is asked for: for the weight, or for a kernel that is learned
    with it.
    """
    return ctx.needs_input_grad[weight] or ctx.needs_input_grad[kernel]


class FeedbackProducts(torch.autograd.Function):
    """Pointwise convolutions of several groups of members, written side by side.

    Group g has M_g members, an input x_g (N_g, M_g*I, H_g, W_g), channels last in memory, and a
    weight and a kernel (M_g*O, I, 1, 1). Of a group without a weight the input (N_g, O, H_g, W_g)
    is written itself, M_g times. All inputs have as many pixels; `size` is the (N, H, W) of the
    output (N, sum of M_g*O, H, W).

    Batched matrix products, since oneDNN takes longer for grouped convolutions of 1x1.
    """

    @staticmethod
    def forward(
        size: tuple[int, int, int], members: tuple[int, ...], *tensors: Tensor | None
    ) -> Tensor:
        """`tensors` are the groups' inputs, then their weights, then their kernels."""
        inputs, weights, _ = _thirds(tensors)
        channels = _written_channels(inputs, weights, members)
        n, h, w = size
        y = inputs[0].new_empty(n, h, w, sum(channels))
        targets = y.view(-1, y.shape[3]).split(channels, dim=1)  # (P, M_g*O) each
        for x, weight, m, target in zip(inputs, weights, members, targets, strict=True):
            if weight is None:
                _by_member(target, m).copy_(rows(x, 1))
            else:
                _write_products(target, x, matrices(weight, m).transpose(1, 2))
        return y.permute(0, 3, 1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.members, *tensors = inputs
        xs, weights, kernels = _thirds(tensors)
        k = len(ctx.members)
        ctx.channels = _written_channels(xs, weights, ctx.members)
        ctx.shapes = [x.shape for x in xs]
        # The values of x serve the weight's gradient alone.
        learning = [learns(ctx, 2 + k + g, 2 + 2 * k + g) for g in range(k)]
        kept = [x if learned else None for x, learned in zip(xs, learning, strict=True)]
        ctx.save_for_backward(*kept, *kernels)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        k = len(ctx.members)
        inputs, kernels = ctx.saved_tensors[:k], ctx.saved_tensors[k:]
        wants_x, wants_w, wants_kernel = _thirds(ctx.needs_input_grad[2:])
        # (N, sum of M*O, H, W) -> (P, M*O) for each group
        errors = dy.permute(0, 2, 3, 1).reshape(-1, dy.shape[1]).split(ctx.channels, dim=1)
        of_x: list[Tensor | None] = [None] * k
        of_w: list[Tensor | None] = [None] * k
        for g, (error, kernel, m) in enumerate(zip(errors, kernels, ctx.members, strict=True)):
            if wants_x[g]:
                n, c, h, w = ctx.shapes[g]
                dx = dy.new_empty(n * h * w, c)
                if kernel is None:
                    torch.sum(_by_member(error, m), 0, out=dx)
                else:
                    torch.bmm(_by_member(error, m), matrices(kernel, m), out=_by_member(dx, m))
                of_x[g] = dx.view(n, h, w, c).permute(0, 3, 1, 2)
            if inputs[g] is not None:
                dw = torch.bmm(_by_member(error, m).transpose(1, 2), rows(inputs[g], m))
                of_w[g] = dw.reshape(kernel.shape)
        of_weight = [dw if wanted else None for dw, wanted in zip(of_w, wants_w, strict=True)]
        of_kernel = [dw if wanted else None for dw, wanted in zip(of_w, wants_kernel, strict=True)]
        return None, None, *of_x, *of_weight, *of_kernel


def _thirds(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    k = len(values) // 3
    return values[:k], values[k : 2 * k], values[2 * k :]


def _written_channels(
    inputs: Sequence[Tensor], weights: Sequence[Tensor | None], members: Sequence[int]
) -> list[int]:
    """Return how many channels each group has in the output."""
    return [
        m * x.shape[1] if weight is None else len(weight)
        for x, weight, m in zip(inputs, weights, members, strict=True)
    ]


def matrices(weight: Tensor, members: int) -> Tensor:
    """View (M*O, I, 1, 1) as (M, O, I)."""
    return weight.reshape(members, -1, weight.shape[1])


def rows(x: Tensor, members: int) -> Tensor:
    """Return (N, M*C, H, W) as (M, N*H*W, C), a view where channels are last in memory."""
    return _by_member(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]), members)


def _by_member(pixels: Tensor, members: int) -> Tensor:
    """View (P, M*C) as (M, P, C)."""
    return pixels.unflatten(1, (members, -1)).transpose(0, 1)


def _write_products(target: Tensor, x: Tensor, matrices: Tensor) -> None:
    """Write each member's pixels times its matrix: x (N, M*I, H, W), (M, I, O) to target (P, M*O).

    In place, and in any row length of what the target lies in: no copy is needed to reorder.
    """
    m = len(matrices)
    torch.bmm(rows(x, m), matrices, out=_by_member(target, m))


def products(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each member's pixels by its matrix: (N, M*I, H, W), (M, I, O) -> (N, M*O, H, W)."""
    (n, _, h, w), (m, _, o) = x.shape, matrices.shape
    y = x.new_empty(n, h, w, m * o)
    _write_products(y.view(-1, m * o), x, matrices)
    return y.permute(0, 3, 1, 2)


def pointwise_products(
    size: tuple[int, int, int], members: Sequence[int], *tensors: Tensor | None
) -> Tensor:
    """Compute what `FeedbackProducts` does, in operations that torch.vmap knows."""
    inputs, weights, _ = _thirds(tensors)
    written = []
    for x, weight, m in zip(inputs, weights, members, strict=True):
        if weight is None:
            y_mpo = rows(x, 1).expand(m, -1, -1)
        else:
            y_mpo = torch.bmm(rows(x, m), matrices(weight, m).transpose(1, 2))
        written.append(y_mpo.transpose(0, 1).flatten(1))  # (P, M*O)
    return torch.cat(written, dim=1).unflatten(0, size).permute(0, 3, 1, 2)


class FeedbackLinear(torch.autograd.Function):
    """x (..., I) times weight (O, I) transposed; `kernel` has the weight's shape. One that is
    learned itself receives the weight's gradient.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, kernel: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, _, kernel = inputs
        ctx.save_for_backward(x, kernel)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        x, kernel = ctx.saved_tensors
        wants_x, wants_w, wants_b, wants_kernel = ctx.needs_input_grad
        rows = dy.reshape(-1, dy.shape[-1])
        dx = dy @ kernel if wants_x else None
        dw = rows.t() @ x.reshape(-1, x.shape[-1]) if learns(ctx, 1, 3) else None
        db = rows.sum(0) if wants_b else None
        return dx, dw if wants_w else None, db, dw if wants_kernel else None


class Single:
    """Answers, for a `rules.base.Operator` that stands for one layer, what is asked about each
    layer.
    """

    channel: int

    def each(self, function: Callable[[Tensor, int], Tensor], y: Tensor) -> Tensor:
        return function(y, self.channel)

    def energies(self, values: Tensor) -> Tensor:
        return values.square().flatten(1).sum(1)

    def moved(self, values: Tensor, lengths: Tensor, direction: Tensor) -> Tensor:
        return values + lengths.view(-1, *[1] * (values.dim() - 1)) * direction

    def energy(self, y: Tensor) -> Tensor:
        return y.square().sum()


@dataclass(frozen=True)
class Convolution(Single):
    """A convolution as a linear map of x, for rules that ask for it (`rules.base.Operator`)."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    channel = 1

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        none = (0,) * len(self.stride)
        return torch.convolution(
            x, weight, bias, self.stride, self.padding, self.dilation, False, none, self.groups
        )

    def _gradients(
        self, dy: Tensor, x: Tensor, kernel: Tensor, wanted: tuple[bool, bool, bool]
    ) -> Any:
        return convolution_gradients(
            dy, x, kernel, None, self.stride, self.padding, self.dilation, self.groups, wanted
        )

    def transposed(self, dy: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
        return self._gradients(dy, x, kernel, (True, False, False))[0]

    def correlation(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        return self._gradients(dy, x, weight, (False, True, False))[1]


@dataclass(frozen=True)
class Product(Single):
    """A linear layer as a linear map of x, for rules that ask for it (`rules.base.Operator`)."""

    channel = -1

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def transposed(self, dy: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
        return dy @ kernel

    def correlation(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        return dy.reshape(-1, dy.shape[-1]).t() @ x.reshape(-1, x.shape[-1])


class LocalUpdate(torch.autograd.Function):
    """A layer whose weight gets the gradient that a local rule wants, whatever the error: zeros
    where that is None (in evaluation), as does the bias. The input gets the error through `kernel`,
    zeros where that is None.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        kernel: Tensor | None,
        operator: Operator,
        rule: LearningRule | None,
    ) -> Tensor:
        return operator.apply(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, kernel, ctx.operator, ctx.rule = inputs
        ctx.save_for_backward(x, weight, bias, kernel)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        x, weight, bias, kernel = ctx.saved_tensors
        wants_x, wants_w, wants_b = ctx.needs_input_grad[:3]
        dx = None
        if wants_x:
            dx = torch.zeros_like(x) if kernel is None else ctx.operator.transposed(dy, x, kernel)
        dw = None
        if wants_w:
            dw = (
                torch.zeros_like(weight)
                if ctx.rule is None
                else ctx.rule.update(x, weight, ctx.operator)
            )
        return dx, dw, torch.zeros_like(bias) if wants_b else None, None, None, None


for _function in (FeedbackConvolution, FeedbackLinear, FeedbackProducts, LocalUpdate):
    # PyTorch asks for this signature at each call; Python would work it out anew each time, for a
    # third of a small layer's forward time.
    _function.forward.__signature__ = inspect.signature(_function.forward)  # type: ignore[union-attr]
