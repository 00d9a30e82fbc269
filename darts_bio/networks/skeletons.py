"""Skeletons: how wide a space's stem is, what each of its cells receives, what stands before the
last pooling.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from darts_bio.registry import Registry
from darts_bio.rules import LearningRule, RuleConv2d
from darts_bio.spaces.operations import FactorizedReduction, ReLUConvBN, pointwise


class CellInputs(nn.Module):
    """Both outputs before a cell, brought to its size and channels (ReLU, 1x1 convolution, batch
    norm).

    After a reduction the older one is twice as large, and is halved by a factorized reduction.
    """

    def __init__(
        self,
        c_older: int,
        c_newer: int,
        channels: int,
        after_reduction: bool,
        rule: LearningRule,
        supernet: bool,
    ) -> None:
        super().__init__()
        older = FactorizedReduction if after_reduction else ReLUConvBN
        self.prepare_older = older(c_older, channels, rule, supernet)
        self.prepare_newer = ReLUConvBN(c_newer, channels, rule, supernet)

    def forward(self, older: Tensor, newer: Tensor) -> list[Tensor]:
        """Map (N, c_older, H, W), or twice as large, and (N, c_newer, H, W) to the cell's states 0
        and 1, both (N, channels, H, W).
        """
        return [self.prepare_older(older), self.prepare_newer(newer)]


class ResidualReduction(nn.Module):
    """A basic residual block that halves the size: (N, c_in, H, W) -> (N, c_out, ceil(H/2),
    ceil(W/2)).

    Two times ReLU, 3x3 convolution and batch norm, beside 2x2 average pooling and a 1x1 convolution
    (Dong 2020, arXiv 2001.00326, section 2.1).
    """

    def __init__(self, c_in: int, c_out: int, rule: LearningRule) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c, stride in ((c_in, 2), (c_out, 1)):
            layers += [
                nn.ReLU(),
                RuleConv2d(c, c_out, 3, stride, 1, bias=False, rule=rule),
                nn.BatchNorm2d(c_out),
            ]
        self.residual = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), pointwise(c_in, c_out, rule))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class LastOutput(nn.Module):
    """The newer of the two outputs before a cell, through `prepare`, as the cell's only input."""

    def __init__(self, prepare: nn.Module) -> None:
        super().__init__()
        self.prepare = prepare

    def forward(self, older: Tensor, newer: Tensor) -> list[Tensor]:
        return [self.prepare(newer)]


@dataclass(frozen=True)
class Before:
    """What a skeleton is told of a cell's place: the channels of the two outputs before it, whether
    this cell's layer halves the size, and whether the layer before did, so that the older output is
    twice as large.
    """

    c_older: int
    c_newer: int
    halves: bool
    halved_once: bool


SKELETONS: Registry[type[Skeleton]] = Registry("skeleton")


class Skeleton(ABC):
    """What surrounds the cells of a space. Subclasses are registered by name in `SKELETONS`."""

    stem_multiplier: ClassVar[int]
    """Channels of the stem over those of a node."""

    @abstractmethod
    def inputs(
        self, before: Before, channels: int, rule: LearningRule, supernet: bool
    ) -> nn.Module:
        """Build the module from the two outputs before a cell, (older, newer), to the list of the
        cell's inputs, each (N, channels, H, W).
        """

    @abstractmethod
    def head(self, channels: int) -> nn.Module:
        """Build the module from the last cell's output (N, channels, H, W) to what is pooled, of
        the same shape.
        """


@SKELETONS.register("darts")
class DartsSkeleton(Skeleton):
    """Each cell sees the two before it; a cell of its own reduces (Liu 2019, arXiv 1806.09055,
    section 2.1).
    """

    stem_multiplier = 3

    def inputs(
        self, before: Before, channels: int, rule: LearningRule, supernet: bool
    ) -> nn.Module:
        return CellInputs(
            before.c_older, before.c_newer, channels, before.halved_once, rule, supernet
        )

    def head(self, channels: int) -> nn.Module:
        return nn.Identity()


@SKELETONS.register("residual")
class ResidualSkeleton(Skeleton):
    """Each cell sees the one before it, through a residual block where the size is halved (Dong
    2020, arXiv 2001.00326, section 2.1).
    """

    stem_multiplier = 1

    def inputs(
        self, before: Before, channels: int, rule: LearningRule, supernet: bool
    ) -> nn.Module:
        prepare = (
            ResidualReduction(before.c_newer, channels, rule) if before.halves else nn.Identity()
        )
        return LastOutput(prepare)

    def head(self, channels: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
