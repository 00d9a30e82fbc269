"""The gradients of a convolution whose error goes down through a kernel other than its weight.

    y = conv(x, W) + b:    dx = convT(dy, B),    dW = conv_w(x, dy),    db = sum of dy

PyTorch's `convolution_backward` gives all three. The gradient of the weight does not depend on the
weight, so handing it the rule's B in the place of W changes dx and nothing else: a learning rule
takes the time of backpropagation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP = 3
"""Columns of a window for which oneDNN has a fast weight gradient of depthwise convolutions."""


def wide_depthwise(x: Tensor, kernel: Tensor, dilation: Sequence[int], groups: int) -> bool:
    """Tell whether the weight gradient of a depthwise convolution is slow on a CPU.

    oneDNN's fast kernel takes windows of up to three columns. A wider one falls back to a dense
    algorithm, ten times slower.
    """
    is_depthwise = groups == x.shape[1] == kernel.shape[0]
    is_wide = kernel.dim() == 4 and kernel.shape[3] > STRIP
    if x.device.type != "cpu" or not (is_depthwise and is_wide):
        return False
    # On maps smaller than the window nothing is slow.
    return x.shape[3] >= kernel.shape[3] and tuple(dilation) == (1, 1)


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
    """Return the gradients (dx, dW, db) of a convolution, None for each that is not wanted.

    On a CPU, where dy is channels last in memory, dW of a window that is `wide_depthwise` is found
    for three of its columns at a time.

    Args:
        dy: the error of the output.
        x: the input; where dW is not wanted, its shape and layout are all that is read.
        kernel: what carries the error to x, shaped like the weight.
        bias_sizes: the shape of the bias, None where there is none.
        stride: as the convolution's, like padding, dilation and groups.
        padding: in numbers.
        dilation: likewise.
        groups: likewise.
        wanted: which of (dx, dW, db) to find.
        output_padding: that of a transposed convolution; None for an ordinary one.

    >>> x, weight, kernel = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 5.0)
    >>> dy = torch.ones(1, 1, 2, 2)
    >>> geometry = ((1, 1), (0, 0), (1, 1), 1)
    >>> dx, dw, _ = convolution_gradients(dy, x, kernel, None, *geometry, (True, True, False))
    >>> dx.unique().item(), dw.item()  # the kernel's 5; the sum of x * dy
    (5.0, 4.0)
    """

    def fused(
        x: Tensor, kernel: Tensor, padding: Sequence[int], mask: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        transposed, beyond = output_padding is not None, output_padding or [0] * len(stride)
        geometry = (stride, padding, dilation, transposed, beyond, groups)
        return torch.ops.aten.convolution_backward(dy, x, kernel, bias_sizes, *geometry, mask)

    in_strips = (
        wanted[1]
        and output_padding is None
        and wide_depthwise(x, kernel, dilation, groups)
        and dy.is_contiguous(memory_format=torch.channels_last)
    )
    if not in_strips:
        dx, dw, db = fused(x, kernel, padding, wanted)
        return dx, dw, db
    dx, _, db = fused(x, kernel, padding, (wanted[0], False, wanted[2]))
    width, strips = kernel.shape[3], []
    for left in range(0, width, STRIP):
        # The window's columns from `left` on see x moved to the left by so many pixels.
        columns = kernel[..., left : left + STRIP].contiguous()
        beyond = width - left - columns.shape[3]
        moved = F.pad(x, (padding[1] - left, padding[1] - beyond))
        strip = fused(moved, columns, (padding[0], 0), (False, True, False))[1]
        assert strip is not None
        strips.append(strip)
    return dx, torch.cat(strips, dim=3), db
