"""The gradients of a convolution whose error goes down through a kernel other than its weight.

    y = conv(x, W) + b:    dx = convT(dy, B),    dW = conv_w(x, dy),    db = sum of dy

PyTorch's `convolution_backward` gives all three. The gradient of the weight does not depend on the
weight, so handing it the rule's B in the place of W changes dx and nothing else: a learning rule
takes the time of backpropagation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from darts_bio.private_torch import transforms_run
from darts_bio.rules.depthwise import SpaceToBatch, in_strips, is_dilated, slow_gradient


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

    On a CPU those of a depthwise convolution are found in another form where `rules.depthwise` has
    a faster one, and dy is channels last in memory.

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

    slow = output_padding is None and slow_gradient(x, kernel, stride, dilation, groups)
    # Within torch.vmap a tensor does not say how it lies in memory.
    known = slow and not transforms_run(unknown=False)
    if not known or not dy.is_contiguous(memory_format=torch.channels_last):
        dx, dw, db = fused(x, kernel, padding, wanted)
        return dx, dw, db
    if is_dilated(stride, dilation):
        form = SpaceToBatch.of(padding, dilation)
        h, w = form.size(x)
        shape_alone = x.new_empty(len(x) * form.d**2, h, w, x.shape[1]).permute(0, 3, 1, 2)
        maps = form.split(x) if wanted[1] else shape_alone
        sides = zip((h, w), form.padding, kernel.shape[2:], strict=True)
        size = [side + 2 * rim - (window - 1) for side, rim, window in sides]
        plain = (None, (1, 1), form.padding, (1, 1), groups, (*wanted[:2], False))
        dx, dw, _ = convolution_gradients(form.split_error(dy, size), maps, kernel, *plain)
        dx = None if dx is None else form.merge_error(dx, x.shape[2:])
        return dx, dw, dy.sum((0, 2, 3)) if wanted[2] else None
    dw = None
    dx, _, db = fused(x, kernel, padding, (wanted[0], False, wanted[2]))
    if wanted[1]:

        def of_weight(x: Tensor, kernel: Tensor, padding: Sequence[int]) -> Tensor:
            dw = fused(x, kernel, padding, (False, True, False))[1]
            assert dw is not None
            return dw

        dw = in_strips(of_weight, x, kernel, padding)
    return dx, dw, db
