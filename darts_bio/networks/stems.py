"""Stems: from an image to the two outputs before the first cell.

Both are those of Liu 2019, arXiv 1806.09055, sections 3.2 and 3.3.

>>> from darts_bio.networks import STEMS
>>> STEMS.names()[:2]
('cifar', 'imagenet')
>>> STEMS.get("imagenet").shrinks  # from 224x224 to 28x28 pixels
8
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
    """The two outputs that a stem hands to the first cell.

    Attributes:
        c_older: The channels of the older output.
        c_newer: The channels of the newer output.
        halved_once: Whether the older output is twice as large as the newer one.
    """

    c_older: int
    c_newer: int
    halved_once: bool


class Stem(ABC, nn.Module):
    """A module from images (N, in_channels, H, W) to the two outputs before the first cell.

    Subclasses are registered by name in `STEMS`. They set `entry` in their `__init__`.

    Args:
        in_channels: The channels of the images.
        channels: The channels of a node in the first cell.
        width: The channels that the space's skeleton gives a stem of one convolution.
        rule: The learning rule of the backbone.

    A stem of one convolution that halves the size of its input:

    >>> from torch import nn, ones
    >>> from darts_bio.networks import Stem
    >>> from darts_bio.networks.stems import Entry
    >>> from darts_bio.rules import RULES, RuleConv2d
    >>> class HalvingStem(Stem):
    ...     shrinks, auxiliary_stride, auxiliary_norm = 2, 3, True
    ...     def __init__(self, in_channels, channels, width, rule):
    ...         nn.Module.__init__(self)
    ...         self.convolution = RuleConv2d(in_channels, width, 3, 2, padding=1, rule=rule)
    ...         self.entry = Entry(width, width, halved_once=False)
    ...     def forward(self, x):
    ...         x = self.convolution(x)
    ...         return x, x
    >>> older, newer = HalvingStem(3, 16, 48, RULES.build("bp"))(ones(2, 3, 64, 64))
    >>> newer.shape
    torch.Size([2, 48, 32, 32])
    """

    shrinks: ClassVar[int]
    """The side of an image over the side of the newer output."""
    auxiliary_stride: ClassVar[int]
    """The stride of the auxiliary head's pooling."""
    auxiliary_norm: ClassVar[bool]
    """Whether a batch norm follows the auxiliary head's last convolution."""

    entry: Entry

    @abstractmethod
    def __init__(self, in_channels: int, channels: int, width: int, rule: LearningRule) -> None: ...

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (N, in_channels, H, W) to (older, newer).

        The newer output is (N, c_newer, H / shrinks, W / shrinks), where each halving rounds up;
        the older one is (N, c_older, h, w), of the same size or twice as large.
        """


STEMS: Registry[type[Stem]] = Registry("stem", base=Stem)
"""All stems, by the names that `build_network` takes."""


@STEMS.register("cifar")
class CifarStem(Stem, nn.Sequential):
    """A 3x3 convolution and batch norm, for images of 32x32 (Liu 2019, section 3.2).

    It has `width` channels, and both outputs are the same.

    >>> import torch
    >>> from darts_bio.networks import CifarStem
    >>> from darts_bio.rules import RULES
    >>> stem = CifarStem(3, 16, 48, RULES.build("bp"))
    >>> older, newer = stem(torch.zeros(2, 3, 32, 32))
    >>> newer.shape
    torch.Size([2, 48, 32, 32])
    """

    shrinks, auxiliary_stride, auxiliary_norm = 1, 3, True

    def __init__(self, in_channels: int, channels: int, width: int, rule: LearningRule) -> None:
        # Not super().__init__, which is Stem's and takes other arguments.
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
    """Three 3x3 convolutions of stride 2, for images of 224x224 (Liu 2019, section 3.3).

    The older output, after two of them, is 56x56 pixels, the newer one 28x28.

    >>> import torch
    >>> from darts_bio.networks import STEMS
    >>> from darts_bio.rules import RULES
    >>> stem = STEMS.get("imagenet")(3, 16, 48, RULES.build("bp"))
    >>> older, newer = stem(torch.zeros(2, 3, 224, 224))
    >>> older.shape, newer.shape
    (torch.Size([2, 16, 56, 56]), torch.Size([2, 16, 28, 28]))
    """

    shrinks, auxiliary_stride, auxiliary_norm = 8, 2, False

    def __init__(self, in_channels: int, channels: int, width: int, rule: LearningRule) -> None:
        nn.Module.__init__(self)  # see CifarStem

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
