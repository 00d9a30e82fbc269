"""Strided pointwise convolutions, computed as conv(x[:, :, ::2, ::2]) at stride 1.

A 1x1 window at stride s reads every s-th pixel and no other, so picking these pixels first gives
the same numbers. It keeps clear of a fault of oneDNN, which PyTorch's CPU convolutions run on: the
weight gradient of a strided 1x1 convolution with channels last in memory overruns its workspace
where there are fewer channels than a vector has lanes (16 with AVX-512, 8 with AVX2), and then
crashes, hangs, or is wrong in silence (uxlfoundation/oneDNN#6035, open with oneDNN 3.13). Seen with
PyTorch 2.11 and 2.15: `nn.Conv2d(8, 4, 1, stride=2)` on (16, 8, 56, 56).

Layers under learning rules and all networks of this package are kept clear of it;
`warn_of_strided_pointwise` finds the layers of other models that are not.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

MOST_LANES = 16
"""Floats in the widest vector of an x86 processor: with as many channels or more no workspace is
overrun."""


def reads_single_pixels(
    window: Sequence[int], stride: Sequence[int], padding: Sequence[int] | str
) -> bool:
    """Return whether a convolution is pointwise, strided and not padded.

    Such a one reads some of the pixels, each by itself, so `sampled` can pick them beforehand.

    >>> reads_single_pixels(window=(1, 1), stride=(2, 2), padding=(0, 0))
    True
    >>> reads_single_pixels(window=(3, 3), stride=(2, 2), padding="valid")
    False
    """
    unpadded = padding == "valid" if isinstance(padding, str) else not any(padding)
    return unpadded and all(side == 1 for side in window) and any(step > 1 for step in stride)


def multiplies_pixels(window: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> bool:
    """Return whether a convolution multiplies the channels of every pixel by a matrix.

    >>> multiplies_pixels(window=(1, 1), stride=(1, 1), padding=(0, 0))
    True
    >>> multiplies_pixels(window=(1, 1), stride=(2, 2), padding=(0, 0))
    False
    """
    return all(side == 1 for side in (*window, *stride)) and not any(padding)


def sampled(x: Tensor, stride: Sequence[int], first: int = 0) -> Tensor:
    """Return every stride-th pixel of x (N, C, *spatial), from pixel `first` of each dimension on.

    The result is laid out in memory as x is (channels last or contiguous), and so is the gradient
    of x.

    >>> import torch
    >>> sampled(torch.arange(16.0).view(1, 1, 4, 4), (2, 2)).flatten().tolist()
    [0.0, 2.0, 8.0, 10.0]
    >>> sampled(torch.arange(16.0).view(1, 1, 4, 4), (2, 2), first=1).flatten().tolist()
    [5.0, 7.0, 13.0, 15.0]
    """
    if first == 0 and len(stride) == 2:
        # The mean of one pixel is that pixel, and pooling is a single kernel in each direction.
        return F.avg_pool2d(x, 1, tuple(stride))
    pixels = [slice(first, None, step) for step in stride]
    if x.dim() == 4 and x.stride(1) == 1:
        # (N, C, H, W) in channels last lies in memory as (N, H, W, C): sliced as such, the gradient
        # with its zeros has the same layout.
        channels_last = x.permute(0, 2, 3, 1)
        return channels_last[:, pixels[0], pixels[1]].permute(0, 3, 1, 2)
    return x[(slice(None), slice(None), *pixels)]


def warn_of_strided_pointwise(model: nn.Module) -> None:
    """Warn of the first layer on a CPU, if there is one, whose weight gradient may be wrong.

    Such layers are PyTorch's own strided 1x1 convolutions of fewer than 16 input channels, and
    transposed ones of fewer than 16 output channels, on x86 (the fault of oneDNN at the top of this
    file). Whether they are hit depends on the processor and on the layout in memory.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return
    for name, layer in model.named_modules():
        if _may_overrun(layer):
            warnings.warn(
                f"{name} ({layer}): with channels last in memory, oneDNN's weight gradient of such "
                "a layer is wrong or "
                "crashes on an x86 CPU (uxlfoundation/oneDNN#6035); replace it by "
                "darts_bio.rules.RuleConv2d under bp, "
                "train on a GPU, or keep the model in PyTorch's contiguous format",
                stacklevel=2,
            )
            return


def _may_overrun(layer: nn.Module) -> bool:
    """Return whether the weight gradient of a layer may overrun oneDNN's workspace."""
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return False
    if getattr(layer, "samples_pixels", False):  # one of ours, which keeps clear of it
        return False
    # In a transposed convolution input and output have changed places.
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.out_channels
    strided = reads_single_pixels(layer.kernel_size, layer.stride, layer.padding)
    few_channels = layer.groups == 1 and channels < MOST_LANES
    return strided and few_channels and layer.weight.device.type == "cpu"
