"""Gradients of depthwise convolutions on a CPU, in the forms for which oneDNN is fast.

PyTorch's CPU convolutions run on oneDNN. Its kernels for the gradients of a depthwise convolution
take windows of up to three columns (dW), maps that are not smaller than the window (dW), and
neighboring pixels (dx and dW). Everything else is left to a dense algorithm, which takes several
times as long. Three changes of form, each exact, lead back to these kernels:

    a window of more columns           three of them at a time           `in_strips`
    a map smaller than the window      the same map with its padding     `in_strips`
    pixels that are d apart            d * d maps of neighboring ones    `TakenApart`

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
    if are_apart(stride, dilation):
        return True
    return tuple(dilation) == (1, 1) and (kernel.shape[3] > STRIP or _exceeds(kernel, x))


def _is_depthwise(x: Tensor, kernel: Tensor, groups: int) -> bool:
    """Tell whether a convolution of x has a window (C, 1, h, w) for each channel."""
    return kernel.dim() == 4 and groups == x.shape[1] == kernel.shape[0]


def _exceeds(kernel: Tensor, x: Tensor) -> bool:
    """Tell whether a window is higher or wider than a map."""
    return kernel.shape[2] > x.shape[2] or kernel.shape[3] > x.shape[3]


def are_apart(stride: Sequence[int], dilation: Sequence[int]) -> bool:
    """Tell whether `TakenApart` knows a convolution: dilated, alike in rows and columns, unstrided.

    >>> are_apart(stride=(1, 1), dilation=(2, 2)), are_apart(stride=(2, 2), dilation=(2, 2))
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
class TakenApart:
    """A convolution whose pixels are d apart, as one of neighboring pixels on d * d smaller maps.

    Output pixel (i, j) reads input pixels (i + d k, j + d l), all of which have the same remainders
    by d. Pixels of the same remainders become a map of their own, and the maps are further samples
    of the batch. The stride is 1.

    Attributes:
        d: How far apart the pixels are.
        rims: Zeros that x gets at each side before it is taken apart, rows and columns.
        padding: The padding of the smaller maps.

    >>> x, weight = torch.arange(16.0).view(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    >>> apart = TakenApart.of((2, 2), (2, 2))
    >>> y = apart.together(F.conv2d(apart.maps(x), weight, padding=apart.padding))
    >>> torch.equal(y, F.conv2d(x, weight, padding=2, dilation=2))
    True
    """

    d: int
    rims: tuple[int, int]
    padding: tuple[int, int]

    @staticmethod
    def of(padding: Sequence[int], dilation: Sequence[int]) -> TakenApart:
        """Return the form of a convolution of this padding, both entries of whose dilation are d.

        A padding that is no multiple of d is given to x beforehand.
        """
        d = dilation[0]
        rows, columns = (0 if side % d else side // d for side in padding)
        return TakenApart(d, (padding[0] - rows * d, padding[1] - columns * d), (rows, columns))

    def maps(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W) as (N*d*d, C, h, w), channels last.

        h and w are H and W, with the rims, divided by d and rounded up.
        """
        (rows, columns), d = self.rims, self.d
        missing = [-(side + 2 * rim) % d for side, rim in zip(x.shape[2:], self.rims, strict=True)]
        if any((rows, columns, *missing)):
            x = F.pad(x, (columns, columns + missing[1], rows, rows + missing[0]))
        n, c, h, w = x.shape
        x_nhdwdc = x.permute(0, 2, 3, 1).reshape(n, h // d, d, w // d, d, c)
        x_nddhwc = x_nhdwdc.permute(0, 2, 4, 1, 3, 5)
        return x_nddhwc.reshape(n * d * d, h // d, w // d, c).permute(0, 3, 1, 2)

    def together(self, y: Tensor) -> Tensor:
        """Return maps (N*d*d, C, h, w) as (N, C, h*d, w*d), channels last."""
        d = self.d
        _, c, h, w = y.shape
        y_nddhwc = y.permute(0, 2, 3, 1).reshape(-1, d, d, h, w, c)
        y_nhdwdc = y_nddhwc.permute(0, 3, 1, 4, 2, 5)
        return y_nhdwdc.reshape(-1, h * d, w * d, c).permute(0, 3, 1, 2)

    def errors(self, dy: Tensor, size: Sequence[int]) -> Tensor:
        """Return the error dy (N, C, H', W') of the output as that of the maps' output.

        `size` is the latter's (h', w'). Where h'*d exceeds H', nothing depends on what is beyond.
        """
        rows, columns = (
            side * self.d - there for side, there in zip(size, dy.shape[2:], strict=True)
        )
        return TakenApart(self.d, (0, 0), (0, 0)).maps(F.pad(dy, (0, columns, 0, rows)))

    def error_of_input(self, dx: Tensor, size: Sequence[int]) -> Tensor:
        """Return the error of the maps as that of x, whose (H, W) is `size`."""
        rows, columns = self.rims
        whole = self.together(dx)
        return whole[:, :, rows : rows + size[0], columns : columns + size[1]]
