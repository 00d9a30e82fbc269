"""Stems: from an image to the two outputs before the first cell (Liu 2019, arXiv 1806.09055,
sections 3.2, 3.3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from darts_bio.registry import Registry
from darts_bio.rules import LearningRule, RuleConv2d


@dataclass(frozen=True)
class Entry:
    """Channels of the two outputs that a stem hands to the first cell, and whether the older one is
    twice as large.
    """

    c_older: int
    c_newer: int
    halved_once: bool


class Stem(ABC, nn.Module):
    """A module from images (N, in_channels, H, W) to the two outputs before the first cell.
    Subclasses are registered by name in `STEMS`.

    `channels` are those of a node in the first cell, `width` those that the space's skeleton gives
    a stem of one convolution, `rule` the learning rule of the backbone.
    """

    shrinks: ClassVar[int]
    """Side of an image over that of the newer output."""
    auxiliary_stride: ClassVar[int]
    """Stride of the auxiliary head's pooling."""
    auxiliary_norm: ClassVar[bool]
    """Whether a batch norm follows the auxiliary head's last convolution."""

    entry: Entry

    @abstractmethod
    def __init__(self, in_channels: int, channels: int, width: int, rule: LearningRule) -> None: ...

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images x to (older, newer), of (N, c_older, h, w) and (N, c_newer, H / shrinks, W /
        shrinks); halves are rounded up.
        """


STEMS: Registry[type[Stem]] = Registry("stem")


@STEMS.register("cifar")
class CifarStem(Stem, nn.Sequential):
    """A 3x3 convolution and batch norm, for images of 32x32 (Liu 2019, arXiv 1806.09055, section
    3.2).
    """

    shrinks, auxiliary_stride, auxiliary_norm = 1, 3, True

    def __init__(self, in_channels: int, channels: int, width: int, rule: LearningRule) -> None:
        nn.Sequential.__init__(
            self,
            RuleConv2d(in_channels, width, 3, padding=1, bias=False, rule=rule),
            nn.BatchNorm2d(width),
        )
        self.entry = Entry(width, width, halved_once=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = nn.Sequential.forward(self, x)
        return x, x


@STEMS.register("imagenet")
class ImageNetStem(Stem):
    """Three 3x3 convolutions of stride 2, for images of 224x224: the newer output is 28x28, the
    older one 56x56 (Liu 2019, arXiv 1806.09055, section 3.3).
    """

    shrinks, auxiliary_stride, auxiliary_norm = 8, 2, False

    def __init__(self, in_channels: int, channels: int, width: int, rule: LearningRule) -> None:
        nn.Module.__init__(self)

        def halve(c_in: int, c_out: int) -> list[nn.Module]:
            return [RuleConv2d(c_in, c_out, 3, 2, 1, bias=False, rule=rule), nn.BatchNorm2d(c_out)]

        self.older = nn.Sequential(
            *halve(in_channels, channels // 2), nn.ReLU(), *halve(channels // 2, channels)
        )
        self.newer = nn.Sequential(nn.ReLU(), *halve(channels, channels))
        self.entry = Entry(channels, channels, halved_once=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        older = self.older(x)
        return older, self.newer(older)
