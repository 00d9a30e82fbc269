"""The operations of the cells of DARTS (arXiv 1806.09055) and NAS-Bench-201 (arXiv 2001.00326),
each as (channels, stride, rule, supernet) -> Module.

All map (N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride)). In the supernet (`supernet=True`)
batch norms have no gain and bias, and pools are followed by one, so that candidates are mixed at
equal scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.registry import Registry
from darts_bio.rules import LearningRule, RuleConv2d
from darts_bio.rules.pointwise import sampled

Build = Callable[[int, int, LearningRule, bool], nn.Module]


@dataclass(frozen=True)
class Operation:
    """A named operation. `weighted` holds the strides at which it has weights: only there a rule
    means something.
    """

    name: str
    build: Build
    weighted: frozenset[int]
    summary: str

    def carries_rule(self, stride: int) -> bool:
        return stride in self.weighted


OPERATIONS: Registry[Operation] = Registry("operation")


def operation(name: str, weighted: tuple[int, ...] = (1, 2)) -> Callable[[Build], Build]:
    """Decorator that registers a build function as an operation."""

    def add(build: Build) -> Build:
        OPERATIONS.register(name)(Operation(name, build, frozenset(weighted), build.__doc__ or ""))
        return build

    return add


def check_operations(operations: tuple[str, ...], space: str) -> None:
    """Raises InputError unless these are names of operations, each once, for a space to choose
    from.
    """
    names = isinstance(operations, tuple) and all(isinstance(op, str) for op in operations)
    if not names or not set(operations) - {"none"}:
        raise InputError(
            f"{space}: operations: expected names such as (none, skip_connect), not none alone, "
            f"found {operations!r}"
        )
    if len(set(operations)) < len(operations):
        raise InputError(f"{space}: operations: expected each once, found {', '.join(operations)}")
    for op in operations:
        OPERATIONS.get(op)


def batch_norm(channels: int, supernet: bool = False) -> nn.BatchNorm2d:
    """Batch norm over (N, C, H, W), without gain and bias in the supernet."""
    return nn.BatchNorm2d(channels, affine=not supernet)


def pointwise(c_in: int, c_out: int, rule: LearningRule) -> RuleConv2d:
    """A 1x1 convolution without bias."""
    return RuleConv2d(c_in, c_out, 1, bias=False, rule=rule)


def depthwise(
    channels: int, kernel: int, stride: int, rule: LearningRule, dilation: int = 1
) -> RuleConv2d:
    """A k x k convolution of each channel by itself, without bias, keeping the size at stride 1."""
    padding = dilation * (kernel - 1) // 2
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
    """ReLU, 1x1 convolution, batch norm: (N, c_in, H, W) -> (N, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, rule: LearningRule, supernet: bool) -> None:
        super().__init__(nn.ReLU(), pointwise(c_in, c_out, rule), batch_norm(c_out, supernet))


class EvenAndOdd(nn.Module):
    """Two 1x1 convolutions side by side, on the pixels of even rows and columns and on those of odd
    ones.

    The published form writes stride 2, the second convolution on x moved by one pixel: the same
    numbers.

    (N, c_in, H, W) -> (N, c_out, ceil(H/2), ceil(W/2)); c_out is even.
    """

    def __init__(self, c_in: int, c_out: int, rule: LearningRule) -> None:
        super().__init__()
        self.even = pointwise(c_in, c_out // 2, rule)
        self.odd = pointwise(c_in, c_out // 2, rule)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.even(even_pixels(x)), self.odd(odd_pixels(x))], dim=1)


def even_pixels(x: Tensor) -> Tensor:
    """Take rows and columns 0, 2, 4, ... of x (N, C, H, W): (N, C, ceil(H/2), ceil(W/2))."""
    return sampled(x, (2, 2))


def odd_pixels(x: Tensor) -> Tensor:
    """Take rows and columns 1, 3, 5, ... of x (N, C, H, W), as many as of the even ones: zeros
    follow an odd side.
    """
    if x.shape[2] % 2 or x.shape[3] % 2:
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return sampled(x, (2, 2), first=1)


class FactorizedReduction(nn.Sequential):
    """ReLU, halving without losing pixels, batch norm: (N, c_in, H, W) -> (N, c_out, ceil(H/2),
    ceil(W/2)).
    """

    def __init__(self, c_in: int, c_out: int, rule: LearningRule, supernet: bool) -> None:
        super().__init__(nn.ReLU(), EvenAndOdd(c_in, c_out, rule), batch_norm(c_out, supernet))


class Zero(nn.Module):
    """Zeros in the shape of the output."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, :, :: self.stride, :: self.stride])


def _pool(pool: nn.Module, channels: int, supernet: bool) -> nn.Module:
    return nn.Sequential(pool, batch_norm(channels, supernet)) if supernet else pool


def _separable(
    channels: int, kernel: int, stride: int, rule: LearningRule, supernet: bool
) -> nn.Module:
    layers: list[nn.Module] = []
    for s in (stride, 1):
        layers += [nn.ReLU(), depthwise(channels, kernel, s, rule)]
        layers += [pointwise(channels, channels, rule), batch_norm(channels, supernet)]
    return nn.Sequential(*layers)


def _dilated(
    channels: int, kernel: int, stride: int, rule: LearningRule, supernet: bool
) -> nn.Module:
    return nn.Sequential(
        nn.ReLU(),
        depthwise(channels, kernel, stride, rule, dilation=2),
        pointwise(channels, channels, rule),
        batch_norm(channels, supernet),
    )


@operation("none", weighted=())
def none(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """No connection: zeros."""
    return Zero(stride)


@operation("max_pool_3x3", weighted=())
def max_pool_3x3(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """3x3 max pooling."""
    return _pool(nn.MaxPool2d(3, stride, padding=1), channels, supernet)


@operation("avg_pool_3x3", weighted=())
def avg_pool_3x3(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """3x3 average pooling that does not count the padding."""
    return _pool(nn.AvgPool2d(3, stride, padding=1, count_include_pad=False), channels, supernet)


@operation("skip_connect", weighted=(2,))
def skip_connect(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """The identity at stride 1; the factorised reduction, which carries a rule, at stride 2."""
    return nn.Identity() if stride == 1 else FactorizedReduction(channels, channels, rule, supernet)


@operation("sep_conv_3x3")
def sep_conv_3x3(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """(ReLU, 3x3 depthwise, pointwise, batch norm) twice."""
    return _separable(channels, 3, stride, rule, supernet)


@operation("sep_conv_5x5")
def sep_conv_5x5(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """(ReLU, 5x5 depthwise, pointwise, batch norm) twice."""
    return _separable(channels, 5, stride, rule, supernet)


@operation("dil_conv_3x3")
def dil_conv_3x3(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """ReLU, 3x3 depthwise of dilation 2, pointwise, batch norm."""
    return _dilated(channels, 3, stride, rule, supernet)


@operation("dil_conv_5x5")
def dil_conv_5x5(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """ReLU, 5x5 depthwise of dilation 2, pointwise, batch norm."""
    return _dilated(channels, 5, stride, rule, supernet)


def _convolution(
    channels: int, kernel: int, stride: int, rule: LearningRule, supernet: bool
) -> nn.Module:
    convolution = RuleConv2d(channels, channels, kernel, stride, kernel // 2, bias=False, rule=rule)
    return nn.Sequential(nn.ReLU(), convolution, batch_norm(channels, supernet))


@operation("nor_conv_1x1")
def nor_conv_1x1(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """ReLU, 1x1 convolution, batch norm (arXiv 2001.00326)."""
    return _convolution(channels, 1, stride, rule, supernet)


@operation("nor_conv_3x3")
def nor_conv_3x3(channels: int, stride: int, rule: LearningRule, supernet: bool) -> nn.Module:
    """ReLU, 3x3 convolution, batch norm (arXiv 2001.00326)."""
    return _convolution(channels, 3, stride, rule, supernet)
