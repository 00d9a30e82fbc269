"""Gradients of depthwise convolutions on a CPU, in the forms for which oneDNN is fast.

PyTorch's CPU convolutions run on oneDNN. Its kernels for the gradients of a depthwise convolution
take windows of up to three columns (dW), maps that are not smaller than the window (dW), and
no dilation (dx and dW). Everything else is left to a dense algorithm, which takes several
times as long. Three changes of form, each exact, lead back to these kernels:

    a window of more columns           three of them at a time           `in_strips`
    a map smaller than the window      the same map with its padding     `in_strips`
    dilation d                         d * d maps of neighbors           `SpaceToBatch`

`benchmarks/depthwise.py` measures them; docs/performance.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

STRIP = 3
"""Columns of a window for which oneDNN has a fast weight gradient of depthwise convolutions."""


def slow_gradient(
    x: Tensor, kernel: Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Tell whether oneDNN is slow at the gradients of this convolution of x (N, C, H, W).

    >>> x, kernel = torch.ones(1, 8, 4, 4), torch.ones(8, 1, 3, 3)
    >>> slow_gradient(x, kernel, (1, 1), (1, 1), groups=8)
    False
    >>> slow_gradient(x, kernel, (1, 1), (2, 2), groups=8)
    True
    >>> slow_gradient(x[..., :2, :2], kernel, (1, 1), (1, 1), groups=8)
    True
    """
    if x.device.type != "cpu" or not _is_depthwise(x, kernel, groups):
        return False
    if is_dilated(stride, dilation):
        # Beyond the size of a map, most of the smaller maps would be empty.
        return dilation[0] <= min(x.shape[2:])
    return tuple(dilation) == (1, 1) and (kernel.shape[3] > STRIP or _exceeds(kernel, x))


def _is_depthwise(x: Tensor, kernel: Tensor, groups: int) -> bool:
    """Tell whether a convolution of x has a window (C, 1, h, w) for each channel."""
    return kernel.dim() == 4 and groups == x.shape[1] == kernel.shape[0]


def _exceeds(kernel: Tensor, x: Tensor) -> bool:
    """Tell whether a window is higher or wider than a map."""
    return kernel.shape[2] > x.shape[2] or kernel.shape[3] > x.shape[3]


def is_dilated(stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Tell whether `SpaceToBatch` knows a convolution: dilated alike in rows and columns, unstrided.

    >>> is_dilated(stride=(1, 1), dilation=(2, 2)), is_dilated(stride=(2, 2), dilation=(2, 2))
    (True, False)
    """
    return tuple(stride) == (1, 1) and dilation[0] == dilation[1] > 1


def in_strips(
    gradient: Callable[[Tensor, Tensor, Sequence[int]], Tensor],
    x: Tensor,
    kernel: Tensor,
    padding: Sequence[int],
) -> Tensor:
    """Return dW (C, 1, h, w), found for `STRIP` columns of the window at a time.

    Args:
        gradient: Returns dW of a convolution, given its x, a kernel of the shape of its weight, and
            its padding.
        x: The input (N, C, H, W).
        kernel: A tensor of the weight's shape (C, 1, h, w).
        padding: That of the convolution, rows and columns.
    """
    rows = padding[0] if _exceeds(kernel, x) else 0  # added to x beforehand
    width, strips = kernel.shape[3], []
    for left in range(0, width, STRIP):
        # The window's columns from `left` on see x moved to the left by so many pixels.
        columns = kernel[..., left : left + STRIP].contiguous()
        beyond = width - left - columns.shape[3]
        if max(left, beyond) - padding[1] >= x.shape[3]:  # these columns see nothing but padding
            strips.append(torch.zeros_like(columns))
            continue
        moved = F.pad(x, (padding[1] - left, padding[1] - beyond, rows, rows))
        strips.append(gradient(moved, columns, (padding[0] - rows, 0)))
    return torch.cat(strips, dim=3)


@dataclass(frozen=True)
class SpaceToBatch:
    """A dilated convolution at stride 1, as one without dilation on d * d smaller maps.

    Output pixel (i, j) reads input pixels (i + d k, j + d l), all of which have the same remainders
    by d. Pixels of the same remainders become a map of their own, and the maps further samples of
    the batch. TensorFlow computes dilated convolutions so.

    Attributes:
        d: The dilation.
        rims: Zeros that x gets at each side before it is split, rows and columns.
        padding: The padding of the smaller maps.

    >>> x, weight = torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    >>> form = SpaceToBatch.of(padding=(2, 2), dilation=(2, 2))
    >>> y = form.merge(F.conv2d(form.split(x), weight, padding=form.padding))
    >>> torch.equal(y, F.conv2d(x, weight, padding=2, dilation=2))
    True
    """

    d: int
    rims: tuple[int, int]
    padding: tuple[int, int]

    @staticmethod
    def of(padding: Sequence[int], dilation: Sequence[int]) -> SpaceToBatch:
        """Return the form of a convolution of this padding, both entries of whose dilation are d.

        A padding that is no multiple of d is given to x beforehand.
        """
        d = dilation[0]
        rows, columns = (0 if side % d else side // d for side in padding)
        return SpaceToBatch(d, (padding[0] - rows * d, padding[1] - columns * d), (rows, columns))

    def size(self, x: Tensor) -> tuple[int, int]:
        """Return the (h, w) of the maps of x: H and W with the rims, over d and rounded up.

        >>> form = SpaceToBatch.of(padding=(1, 3), dilation=(2, 2))
        >>> form.size(torch.empty(1, 1, 4, 5))  # 1 + 4 + 1 rows and 3 + 5 + 3 columns
        (3, 6)
        """
        h, w = (
            -(-(side + 2 * rim) // self.d) for side, rim in zip(x.shape[2:], self.rims, strict=True)
        )
        return h, w

    def split(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W) as its maps (N*d*d, C, h, w), channels last."""
        (rows, columns), (h, w), d = self.rims, self.size(x), self.d
        below, right = h * d - x.shape[2] - rows, w * d - x.shape[3] - columns
        if any((rows, columns, below, right)):
            x = F.pad(x, (columns, right, rows, below))
        n, c = x.shape[:2]
        x_nhdwdc = x.permute(0, 2, 3, 1).reshape(n, h, d, w, d, c)
        x_nddhwc = x_nhdwdc.permute(0, 2, 4, 1, 3, 5)
        return x_nddhwc.reshape(n * d * d, h, w, c).permute(0, 3, 1, 2)

    def merge(self, y: Tensor) -> Tensor:
        """Return maps (N*d*d, C, h, w) as (N, C, h*d, w*d), channels last."""
        d = self.d
        _, c, h, w = y.shape
        y_nddhwc = y.permute(0, 2, 3, 1).reshape(-1, d, d, h, w, c)
        y_nhdwdc = y_nddhwc.permute(0, 3, 1, 4, 2, 5)
        return y_nhdwdc.reshape(-1, h * d, w * d, c).permute(0, 3, 1, 2)

    def split_error(self, dy: Tensor, size: Sequence[int]) -> Tensor:
        """Return the error dy (N, C, H', W') of the output as that of the maps' output.

        `size` is the latter's (h', w'). Nothing depends on what h'*d and w'*d have beyond H' and W'.
        """
        below, right = size[0] * self.d - dy.shape[2], size[1] * self.d - dy.shape[3]
        dy = F.pad(dy, (0, right, 0, below)) if below or right else dy
        return SpaceToBatch(self.d, (0, 0), (0, 0)).split(dy)

    def merge_error(self, dx: Tensor, size: Sequence[int]) -> Tensor:
        """Return the error dx of the maps as that of x, whose (H, W) is `size`."""
        rows, columns = self.rims
        return self.merge(dx)[:, :, rows : rows + size[0], columns : columns + size[1]]
