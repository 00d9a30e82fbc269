"""The operations that stand on the edges of cells, and the layers they are made of.

They are those of DARTS (arXiv 1806.09055), of the published genotypes that DARTS compares with
(NASNet, arXiv 1707.07012, and AmoebaNet, arXiv 1802.01548), of RobustDARTS (arXiv 1909.09656) and of
NAS-Bench-201 (arXiv 2001.00326). Each is registered as a function (channels, stride, rule,
supernet) -> Module. All map (N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride)).

In the supernet (`supernet=True`) candidates are mixed at equal scale: batch norms have no gain and
bias, which could rescale a candidate's output, and pools are followed by a batch norm. (A space may
leave that norm out: `Space.normalizes_pools`.)

>>> import torch
>>> from darts_bio.rules import RULES
>>> from darts_bio.spaces import OPERATIONS
>>> operation = OPERATIONS.get("sep_conv_3x3")
>>> layers = operation.build(8, 2, RULES.build("usf"), False)
>>> layers(torch.rand(1, 8, 15, 15)).shape
torch.Size([1, 8, 8, 8])
>>> [name for name in OPERATIONS if not OPERATIONS.get(name).carries_rule(stride=1)][:4]
['none', 'max_pool_3x3', 'avg_pool_3x3', 'skip_connect']
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.draws import DrawsForSamples
from darts_bio.errors import InputError
from darts_bio.registry import Registry
from darts_bio.rules import LearningRule, RuleConv2d
from darts_bio.rules.pointwise import sampled

Build = Callable[[int, int, LearningRule, bool], nn.Module]
"""(channels, stride, rule, supernet) -> the module of an operation."""


@dataclass(frozen=True)
class Operation:
    """An operation by name: how it is built, and where a learning rule means something for it.

    >>> skip = OPERATIONS.get("skip_connect")  # the identity, which has weights at stride 2 only
    >>> skip.carries_rule(stride=1), skip.carries_rule(stride=2)
    (False, True)
    """

    name: str

    build: Build
    """(channels, stride, rule, supernet) -> the module."""

    weighted: frozenset[int]
    """The strides at which it has weights."""

    summary: str
    """What it does, in a line for listings."""

    def carries_rule(self, stride: int) -> bool:
        """Return whether the operation has weights at this stride, for which a rule is needed."""
        return stride in self.weighted

    @property
    def is_built_in(self) -> bool:
        """Whether it is one of this package's."""
        return self.build.__module__ == __name__


OPERATIONS: Registry[Operation] = Registry("operation")


def operation(name: str, weighted: tuple[int, ...] = (1, 2)) -> Callable[[Build], Build]:
    """Register the decorated build function as the operation of that name.

    Its docstring becomes the summary in listings; `weighted` holds the strides at which the
    operation has weights.

    >>> @operation("max_pool_5x5", weighted=())
    ... def max_pool_5x5(channels, stride, rule, supernet):
    ...     '''Pool by the maximum of 5x5 windows.'''
    ...     return nn.MaxPool2d(5, stride, padding=2)
    >>> OPERATIONS.get("max_pool_5x5").summary
    'Pool by the maximum of 5x5 windows.'
    >>> OPERATIONS.unregister("max_pool_5x5")
    """

    def add(build: Build) -> Build:
        made = Operation(name, build, frozenset(weighted), build.__doc__ or "")
        OPERATIONS.register(name, made_of=build)(made)
        return build

    return add


def check_operations(operations: tuple[str, ...], space: str) -> None:
    """Check the operations that a space is to choose from.

    Raises:
        InputError: If they are not a tuple of registered names, each once, with one that connects
            (any but none) among them. The message begins with `space`.
    """
    are_names = isinstance(operations, tuple) and all(isinstance(op, str) for op in operations)
    if not are_names or not set(operations) - {"none"}:
        raise InputError(
            f"{space}: operations: expected names such as (none, skip_connect), not none alone, "
            f"found {operations!r}"
        )
    if len(set(operations)) < len(operations):
        raise InputError(f"{space}: operations: expected each once, found {', '.join(operations)}")
    for op in operations:
        OPERATIONS.get(op)  # raises InputError, with close matches, for an unknown one


def batch_norm(channels: int, supernet: bool = False) -> nn.BatchNorm2d:
    """Return a batch norm for (N, C, H, W), without gain and bias in the supernet."""
    return nn.BatchNorm2d(channels, affine=not supernet)


def pointwise(c_in: int, c_out: int, rule: LearningRule) -> RuleConv2d:
    """Return a 1x1 convolution without bias: (N, c_in, H, W) -> (N, c_out, H, W)."""
    return RuleConv2d(c_in, c_out, 1, bias=False, rule=rule)


def depthwise(
    channels: int, kernel: int, stride: int, rule: LearningRule, dilation: int = 1
) -> RuleConv2d:
    """Return a convolution of each channel by itself, with `kernel` x `kernel` windows, no bias.

    For an odd kernel it maps (N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride)).
    """
    padding = dilation * (kernel - 1) // 2  # half of the window's extent
    return RuleConv2d(
        channels,
        channels,
        kernel,
        stride,
        padding,
        dilation,
        groups=channels,
        bias=False,
        rule=rule,
    )


class ReLUConvBN(nn.Sequential):
    """A ReLU, a 1x1 convolution and a batch norm: (N, c_in, H, W) -> (N, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, rule: LearningRule, supernet: bool) -> None:
        super().__init__(nn.ReLU(), pointwise(c_in, c_out, rule), batch_norm(c_out, supernet))


class EvenAndOdd(nn.Module):
    """Two 1x1 convolutions, on the pixels of even rows and columns and on those of odd ones.

    Each gives half of the output's channels: (N, c_in, H, W) -> (N, c_out, ceil(H/2), ceil(W/2)),
    with c_out even. The published form has two convolutions of stride 2, the second one on x moved
    by one pixel. The numbers are the same, and convolutions of stride 1 keep clear of a fault of
    oneDNN (`rules.pointwise`).
    """

    def __init__(self, c_in: int, c_out: int, rule: LearningRule) -> None:
        super().__init__()
        self.even = pointwise(c_in, c_out // 2, rule)
        self.odd = pointwise(c_in, c_out // 2, rule)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.even(even_pixels(x)), self.odd(odd_pixels(x))], dim=1)


def even_pixels(x: Tensor) -> Tensor:
    """Return rows and columns 0, 2, 4, ... of x (N, C, H, W): (N, C, ceil(H/2), ceil(W/2))."""
    return sampled(x, (2, 2))


def odd_pixels(x: Tensor) -> Tensor:
    """Return rows and columns 1, 3, 5, ... of x (N, C, H, W): (N, C, ceil(H/2), ceil(W/2)).

    They are as many as of `even_pixels`: where a side is odd, the last row or column is zeros.
    """
    if x.shape[2] % 2 or x.shape[3] % 2:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return sampled(x, (2, 2), first=1)


class FactorizedReduction(nn.Sequential):
    """A ReLU, two 1x1 convolutions that halve height and width, and a batch norm.

    (N, c_in, H, W) -> (N, c_out, ceil(H/2), ceil(W/2)), c_out even. A single 1x1 convolution of
    stride 2 would read a quarter of the pixels; two of them, one pixel apart, read half.
    """

    def __init__(self, c_in: int, c_out: int, rule: LearningRule, supernet: bool) -> None:
        super().__init__(nn.ReLU(), EvenAndOdd(c_in, c_out, rule), batch_norm(c_out, supernet))


class Zero(nn.Module):
    """Zeros of the output's shape, (N, C, ceil(H/stride), ceil(W/stride)), that pass no error on."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


class Noise(DrawsForSamples):
    """N(0, 1) of the output's shape, (N, C, ceil(H/stride), ceil(W/stride)), that passes no error on.

    It is drawn anew in each pass, in evaluation too, from PyTorch's default generator, whose state
    checkpoints hold and CUDA graphs advance.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        n, *shape = x[:, :, :: self.stride, :: self.stride].shape
        return self.drawn(n, lambda k: torch.randn(k, *shape, dtype=x.dtype, device=x.device))


def _pool(pool: nn.Module, channels: int, supernet: bool) -> nn.Module:
    """Return the pool, followed by a batch norm in the supernet."""
    return nn.Sequential(pool, batch_norm(channels, supernet)) if supernet else pool


def _separable(
    channels: int, kernel: int, stride: int, rule: LearningRule, supernet: bool
) -> nn.Module:
    """Return (ReLU, depthwise, 1x1 convolution, batch norm) twice, the first with the stride."""
    layers: list[nn.Module] = []
    for depthwise_stride in (stride, 1):
        layers += [nn.ReLU(), depthwise(channels, kernel, depthwise_stride, rule)]
        layers += [pointwise(channels, channels, rule), batch_norm(channels, supernet)]
    return nn.Sequential(*layers)


def _dilated(
    channels: int, kernel: int, stride: int, rule: LearningRule, supernet: bool
) -> nn.Module:
    """Return a ReLU, a depthwise convolution of dilation 2, a 1x1 convolution and a batch norm."""
    return nn.Sequential(
        nn.ReLU(),
        depthwise(channels, kernel, stride, rule, dilation=2),
        pointwise(channels, channels, rule),
        batch_norm(channels, supernet),
    )


@operation("none", weighted=())
def none(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Cut the connection: the output is zeros."""
    return Zero(stride)


@operation("max_pool_3x3", weighted=())
def max_pool_3x3(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Pool by the maximum of 3x3 windows."""
    return _pool(nn.MaxPool2d(3, stride, padding=1), channels, supernet)


@operation("avg_pool_3x3", weighted=())
def avg_pool_3x3(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Pool by the mean of 3x3 windows, which does not count the padding."""
    return _pool(nn.AvgPool2d(3, stride, padding=1, count_include_pad=False), channels, supernet)


@operation("skip_connect", weighted=(2,))
def skip_connect(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Pass x on at stride 1; apply the factorized reduction, which carries a rule, at stride 2."""
    return nn.Identity() if stride == 1 else FactorizedReduction(channels, channels, rule, supernet)


@operation("sep_conv_3x3")
def sep_conv_3x3(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Apply twice: ReLU, 3x3 depthwise convolution, 1x1 convolution, batch norm."""
    return _separable(channels, 3, stride, rule, supernet)


@operation("sep_conv_5x5")
def sep_conv_5x5(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Apply twice: ReLU, 5x5 depthwise convolution, 1x1 convolution, batch norm."""
    return _separable(channels, 5, stride, rule, supernet)


@operation("sep_conv_7x7")
def sep_conv_7x7(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Apply twice: ReLU, 7x7 depthwise convolution, 1x1 convolution, batch norm."""
    return _separable(channels, 7, stride, rule, supernet)


@operation("conv_7x1_1x7")
def conv_7x1_1x7(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Apply ReLU, 1x7 convolution, 7x1 convolution, batch norm."""
    # Along its width x is read at the stride by the first, along its height by the second.
    along_width = RuleConv2d(channels, channels, (1, 7), (1, stride), (0, 3), bias=False, rule=rule)
    along_height = RuleConv2d(
        channels, channels, (7, 1), (stride, 1), (3, 0), bias=False, rule=rule
    )
    return nn.Sequential(nn.ReLU(), along_width, along_height, batch_norm(channels, supernet))


@operation("dil_conv_3x3")
def dil_conv_3x3(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Apply ReLU, 3x3 depthwise convolution of dilation 2, 1x1 convolution, batch norm."""
    return _dilated(channels, 3, stride, rule, supernet)


@operation("dil_conv_5x5")
def dil_conv_5x5(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Apply ReLU, 5x5 depthwise convolution of dilation 2, 1x1 convolution, batch norm."""
    return _dilated(channels, 5, stride, rule, supernet)


def _convolution(
    channels: int, kernel: int, stride: int, rule: LearningRule, supernet: bool
) -> nn.Module:
    """Return a ReLU, a convolution without bias and a batch norm."""
    convolution = RuleConv2d(channels, channels, kernel, stride, kernel // 2, bias=False, rule=rule)
    return nn.Sequential(nn.ReLU(), convolution, batch_norm(channels, supernet))


@operation("nor_conv_1x1")
def nor_conv_1x1(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Apply ReLU, 1x1 convolution, batch norm (arXiv 2001.00326)."""
    return _convolution(channels, 1, stride, rule, supernet)


@operation("nor_conv_3x3")
def nor_conv_3x3(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Apply ReLU, 3x3 convolution, batch norm (arXiv 2001.00326)."""
    return _convolution(channels, 3, stride, rule, supernet)


@operation("noise", weighted=())
def noise(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """Replace x by noise, N(0, 1) (arXiv 1909.09656)."""
    return Noise(stride)
