"""Skeletons: what surrounds the cells of a space.

A skeleton says how wide the stem is, what each cell receives of the outputs before it, and what
stands before the last pooling.
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
    """Both outputs before a cell, brought to its size and channels.

    That is done by ReLU, 1x1 convolution and batch norm. After a reduction the older output is
    twice as large, and a factorized reduction halves it.
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
        kind = FactorizedReduction if after_reduction else ReLUConvBN
        self.prepare_older = kind(c_older, channels, rule, supernet)
        self.prepare_newer = ReLUConvBN(c_newer, channels, rule, supernet)

    def forward(self, older: Tensor, newer: Tensor) -> list[Tensor]:
        """Return the cell's states 0 and 1, both (N, channels, H, W).

        Args:
            older: (N, c_older, H, W), or twice as large after a reduction.
            newer: (N, c_newer, H, W).
        """
        return [self.prepare_older(older), self.prepare_newer(newer)]


class ResidualReduction(nn.Module):
    """A basic residual block that halves the size (Dong 2020, arXiv 2001.00326, section 2.1).

    It maps (N, c_in, H, W) to (N, c_out, ceil(H/2), ceil(W/2)): two times ReLU, 3x3 convolution and
    batch norm, beside 2x2 average pooling and a 1x1 convolution.
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
    """The newer of the two outputs before a cell, prepared, as the cell's only input.

    `prepare` is the module that it goes through.
    """

    def __init__(self, prepare: nn.Module) -> None:
        super().__init__()
        self.prepare = prepare

    def forward(self, older: Tensor, newer: Tensor) -> list[Tensor]:
        return [self.prepare(newer)]


@dataclass(frozen=True)
class Before:
    """What a skeleton is told of a cell's place.

    Attributes:
        c_older: The channels of the older of the two outputs before it.
        c_newer: The channels of the newer one.
        halves: Whether this cell's layer halves the size.
        halved_once: Whether the layer before did, so that the older output is twice as large.
    """

    c_older: int
    c_newer: int
    halves: bool
    halved_once: bool


class Skeleton(ABC):
    """What surrounds the cells of a space.

    Subclasses are registered by name in `SKELETONS`.
    """

    stem_multiplier: ClassVar[int]
    """How many times as many channels as a node of the first cell the stem has."""

    @abstractmethod
    def inputs(
        self, before: Before, channels: int, rule: LearningRule, supernet: bool
    ) -> nn.Module:
        """Build the module that prepares the inputs of a cell.

        It maps the two outputs before the cell, (older, newer), to the list of the cell's inputs,
        each (N, channels, H, W).
        """

    @abstractmethod
    def head(self, channels: int) -> nn.Module:
        """Build the module from the last cell's output (N, channels, H, W) to what is pooled.

        The shape stays the same.
        """


SKELETONS: Registry[type[Skeleton]] = Registry("skeleton", base=Skeleton)
"""All skeletons, by the names that `Space.skeleton` holds."""


@SKELETONS.register("darts")
class DartsSkeleton(Skeleton):
    """The skeleton of DARTS (Liu 2019, arXiv 1806.09055, section 2.1).

    Each cell sees the outputs of the two before it. The size is halved by cells of a type of their
    own.
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
    """The skeleton of NAS-Bench-201 (Dong 2020, arXiv 2001.00326, section 2.1).

    Each cell sees the output of the one before it. The size is halved by residual blocks between
    cells.
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
