"""The autograd Functions of layers under learning rules, and which way a layer is computed.

Every Function does the layer's ordinary forward pass. In the backward pass a kernel B takes the
place of the weight W in the gradient of the input (`rules.convolution`); `LocalUpdate` replaces the
gradient of the weight too.

A convolution under a rule is computed in one of these ways. Of each half of the table the first
that fits is taken:

    where      when                                  way, and why
    --------   -----------------------------------   ---------------------------------------------
    layer      grad mode is off, or                  PyTorch's own layer
               `true_gradients` is at work
    layer      the rule is direct (dfa), and x       PyTorch's own layer, cut off from x, which
               needs an error                        receives the output's error (`rules.dfa`)
    layer      the rule is local (hebbian,           `LocalUpdate`: the weight learns from x, not
               predictive)                           from the error
    layer      B is W (bp)                           PyTorch's own layer
    layer      x needs no error, no B is being       PyTorch's own layer: its error is not computed
               learned
    layer      B is being learned (not frozen)       `FeedbackConvolution`: B gets a gradient
    layer      depthwise, on a CPU, of a kind that   `FeedbackConvolution`: it finds the gradients
               oneDNN is slow at                     in another form (`rules.depthwise`)
    layer      a compiler or torch.func runs it, or  `FeedbackConvolution`: what PyTorch's node has
               hooks take saved tensors              saved is out of reach
    layer      PyTorch lacks the hook                `FeedbackConvolution`: likewise
    layer      any other                             `through_kernel`: PyTorch's own node reads B
                                                     where it had saved W, by a small hook
    stacked    pointwise of members' own inputs,     `networks.folded.FoldedMixture`: both and the
               before a batch norm, in `FoldedCell`  mixture as one product
               in training mode
    stacked    grad mode is off                      plain operations, which torch.vmap can batch
    stacked    pointwise, of members' own inputs     `FeedbackProducts`: batched matrix products
    stacked    dense, members share the input        `FeedbackConvolution`, members being further
                                                     output channels of one convolution
    stacked    any other                             `FeedbackConvolution`, members being groups;
                                                     an input that they share is repeated for them

"stacked" stands for `rules.stacked.StackedConv2d`: the candidates of a supernet that are computed
side by side. "layer" is every other layer: those of discrete networks and of `convert`, and of a
supernet the stem, the cells' inputs, the classifier, and candidates that cannot be stacked. Stacked
layers go these ways under all rules, bp as well: local rules replace the weight's gradient
afterwards (`rules.side_by_side`), direct ones are `shared_feedback.ExactWithin` and
`rules.stacked.StackedDirect`. In a forward-mode pass (`rules.tangents`) all layers whose error goes
through a kernel, bp as well, take the Functions of `rules.forward_mode`; layers under local and
direct rules cannot run in one. In all of them a strided pointwise convolution is handed the pixels
that it reads (`rules.pointwise`).

A weight that a model's code multiplies by itself (`rules.products`) goes the ways of "layer", and never
by PyTorch's own node. A linear layer under a rule goes the ways of "layer" too, but always by `FeedbackLinear` where a
convolution has a choice of `FeedbackConvolution` and `through_kernel`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.private_torch import (
    changes,
    hooks_run,
    replace_saved_weight,
    transforms_run,
)
from darts_bio.rules.base import LearningRule, Operator
from darts_bio.rules.convolution import convolution_gradients
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


def first_derivative_only() -> None:
    """Raise RuntimeError in a backward pass that is recorded itself, to be differentiated again.

    The second derivative would follow the errors that the rules send, and not what the first one
    depends on. Functional transforms and compilers always record, so they are let pass.
    """
    recorded_anyway = torch.compiler.is_compiling() or transforms_run(unknown=False)
    if torch.is_grad_enabled() and not recorded_anyway:
        raise RuntimeError(
            "a rule's backward pass cannot be differentiated again (create_graph=True); use "
            "true_gradients(model) for exact second derivatives, and of a supernet "
            "SuperNet(..., cell=ReferenceCell)"
        )


def own_node_serves() -> bool:
    """Tell whether PyTorch's own node can send an error through a kernel in this pass.

    What the pass saves has to stay with the node. It does not where a compiler traces the pass,
    where a functional transform runs it, and where hooks of gradient checkpointing or offloading
    take what is saved elsewhere. In a forward-mode pass it stays, but the node would send
    directions through W.
    """
    elsewhere = torch.compiler.is_compiling() or transforms_run(unknown=True) or hooks_run()
    return not (elsewhere or forward_mode())


def through_kernel(y: Tensor, kernel: Tensor) -> bool:
    """Have the convolution that has just given y send its error down through `kernel`.

    `own_node_serves()` must hold. Autocast is respected: the kernel is cast as the weight was.
    Returns False, and does nothing, where this version of PyTorch does not allow it.
    """
    kernel = kernel.detach() if kernel.dtype == y.dtype else kernel.detach().to(y.dtype)
    changes_before = changes(kernel)

    def stand_in() -> Tensor:
        if changes(kernel) != changes_before:
            raise RuntimeError(
                "feedback was changed between a forward pass and its backward pass; draw it after "
                "both"
            )
        first_derivative_only()
        return kernel

    return replace_saved_weight(y, stand_in)


def repeat_channels(x: Tensor, copies: int) -> Tensor:
    """Repeat x (N, C, H, W) along its channels: (N, copies * C, H, W), channels last in memory."""
    n, c, h, w = x.shape
    x_nhwc = x.permute(0, 2, 3, 1)
    repeated = x_nhwc.unsqueeze(3).expand(n, h, w, copies, c)
    return repeated.flatten(3).permute(0, 3, 1, 2)  # copies, C -> copies * C


class FeedbackConvolution(torch.autograd.Function):
    """A convolution, the error of whose input goes through `kernel`.

    x is (N, C, *spatial), the weight and the kernel (C', C/groups, *window); or, where there is an
    `output_padding`, the convolution is a transposed one and they are (C, C'/groups, *window). With
    `copies` > 1 x is repeated along its channels, (N, copies * C, *spatial), and kept only once.

    A kernel that is learned receives the weight's gradient.
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
        x = repeat_channels(x, copies) if copies > 1 else x
        transposed, beyond = output_padding is not None, output_padding or (0,) * len(stride)
        return torch.convolution(
            x, weight, bias, stride, padding, dilation, transposed, beyond, groups
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        FeedbackConvolution.remember(ctx, inputs, learned=ctx.needs_input_grad[3])

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], learned: bool) -> None:
        """Keep what the backward pass needs; `learned` says whether the kernel learns in it."""
        x, _, bias, kernel, *ctx.geometry = inputs
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.learned, ctx.learns = learned, learned or ctx.needs_input_grad[1]
        # The values of x serve the weight's gradient alone; without it, only its shape and layout
        # in memory are needed.
        ctx.shape, ctx.strides = x.shape, x.stride()
        ctx.save_for_backward(x if ctx.learns else None, kernel)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        x, kernel = ctx.saved_tensors
        stride, padding, dilation, groups, copies, output_padding = ctx.geometry
        if x is not None:
            x = repeat_channels(x, copies) if copies > 1 else x
        elif copies > 1:
            n, c, h, w = ctx.shape
            x = dy.new_empty(n, h, w, copies * c).permute(0, 3, 1, 2)
        else:
            x = dy.new_empty_strided(ctx.shape, ctx.strides)
        wanted = (ctx.needs_input_grad[0], ctx.learns, ctx.needs_input_grad[2])
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
            dw if ctx.learned else None,
            *[None] * 6,
        )


class FeedbackProducts(torch.autograd.Function):
    """Pointwise convolutions of several groups of members, written side by side.

    Group g has M_g members, an input x_g (N_g, M_g*I, H_g, W_g), channels last in memory, and a
    weight and a kernel (M_g*O, I, 1, 1). Of a group without a weight the input (N_g, O, H_g, W_g)
    is written itself, M_g times. All inputs have as many pixels; `size` is the (N, H, W) of the
    output (N, sum of M_g*O, H, W).

    Batched matrix products (`rules.members`), since oneDNN takes longer for grouped convolutions of
    1x1. A kernel that is learned receives the weight's gradient.
    """

    @staticmethod
    def forward(
        size: tuple[int, int, int], members: tuple[int, ...], *tensors: Tensor | None
    ) -> Tensor:
        """`tensors` are the groups' inputs, then their weights, then their kernels."""
        inputs, weights, _ = thirds(tensors)
        channels = _written_channels(inputs, weights, members)
        n, h, w = size
        y = inputs[0].new_empty(n, h, w, sum(channels))
        for x, weight, m, target in zip(
            inputs, weights, members, split_channels(y, channels), strict=True
        ):
            if weight is None:
                by_member(target, m).copy_(rows(x, 1))
            else:
                write_products(target, pixels_of(x), matrices(weight, m).mT)
        return y.permute(0, 3, 1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        FeedbackProducts.remember(ctx, inputs, thirds(ctx.needs_input_grad[2:])[2])

    @staticmethod
    def remember(ctx: Any, inputs: tuple[Any, ...], learned: Sequence[bool]) -> None:
        """Keep what the backward pass needs; `learned` says which kernels learn in it."""
        ctx.size, ctx.members, *tensors = inputs
        xs, weights, kernels = thirds(tensors)
        ctx.channels = _written_channels(xs, weights, ctx.members)
        ctx.shapes = [x.shape for x in xs]
        ctx.learned = learned
        # The values of x serve the weight's gradient alone.
        wants_w = thirds(ctx.needs_input_grad[2:])[1]
        learns = [w or kernel for w, kernel in zip(wants_w, learned, strict=True)]
        kept = [x if learning else None for x, learning in zip(xs, learns, strict=True)]
        ctx.save_for_backward(*kept, *kernels)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        k = len(ctx.members)
        inputs, kernels = ctx.saved_tensors[:k], ctx.saved_tensors[k:]
        wants_x, wants_w, _ = thirds(ctx.needs_input_grad[2:])
        # (N, sum of M*O, H, W) -> (P, M*O) for each group
        errors = dy.permute(0, 2, 3, 1).reshape(-1, dy.shape[1]).split(ctx.channels, dim=1)
        of_x: list[Tensor | None] = [None] * k
        of_w: list[Tensor | None] = [None] * k
        for g, (error, kernel, m) in enumerate(zip(errors, kernels, ctx.members, strict=True)):
            if wants_x[g]:
                n, c, h, w = ctx.shapes[g]
                dx = dy.new_empty(n * h * w, c)
                if kernel is None:
                    torch.sum(by_member(error, m), 0, out=dx)
                else:
                    write_products(dx, error, matrices(kernel, m))
                of_x[g] = dx.view(n, h, w, c).permute(0, 3, 1, 2)
            if inputs[g] is not None:
                of_w[g] = correlations(error, pixels_of(inputs[g]), m).reshape(kernel.shape)
        of_weight = [dw if wanted else None for dw, wanted in zip(of_w, wants_w, strict=True)]
        of_kernel = [dw if wanted else None for dw, wanted in zip(of_w, ctx.learned, strict=True)]
        return None, None, *of_x, *of_weight, *of_kernel


def thirds(values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Divide what belongs to inputs, weights and kernels of k groups: values hold 3 * k."""
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


def pointwise_products(
    size: tuple[int, int, int], members: Sequence[int], *tensors: Tensor | None
) -> Tensor:
    """Compute what `FeedbackProducts` does, in operations that torch.vmap knows."""
    inputs, weights, _ = thirds(tensors)
    written = []
    for x, weight, m in zip(inputs, weights, members, strict=True):
        if weight is None:
            y_mpo = rows(x, 1).expand(m, -1, -1)
        else:
            y_mpo = torch.bmm(rows(x, m), matrices(weight, m).transpose(1, 2))
        written.append(y_mpo.transpose(0, 1).flatten(1))  # (P, M*O)
    return torch.cat(written, dim=1).unflatten(0, size).permute(0, 3, 1, 2)


class FeedbackLinear(torch.autograd.Function):
    """x (..., I) times a weight (O, I) transposed, the error of x going through `kernel` (O, I).

    A kernel that is learned receives the weight's gradient.
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
        errors_po = dy.reshape(-1, dy.shape[-1])
        dx = dy @ kernel if wants_x else None
        dw = errors_po.t() @ x.reshape(-1, x.shape[-1]) if wants_w or wants_kernel else None
        db = errors_po.sum(0) if wants_b else None
        return dx, dw if wants_w else None, db, dw if wants_kernel else None


class LocalUpdate(torch.autograd.Function):
    """A layer whose weight gets what a local rule wants of it, whatever the error is.

    Where there is no rule (in evaluation) or no sample the weight gets zeros, as the bias always does. The input
    gets the error through `kernel`, and zeros where there is none.
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
            asked = ctx.rule is not None and x.numel() > 0
            dw = ctx.rule.update(x, weight, ctx.operator) if asked else torch.zeros_like(weight)
        db = torch.zeros_like(bias) if wants_b else None
        return dx, dw, db, None, None, None


def with_signature(*functions: type[torch.autograd.Function]) -> None:
    """Give each function's `forward` the signature that PyTorch asks for at each call.

    Python would work it out anew each time, for a third of a small layer's forward time.
    """
    for function in functions:
        function.forward.__signature__ = inspect.signature(function.forward)  # type: ignore[attr-defined]


with_signature(FeedbackConvolution, FeedbackLinear, FeedbackProducts, LocalUpdate)
