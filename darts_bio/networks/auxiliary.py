"""The auxiliary classifier that is trained beside the network's own.

It is that of Szegedy 2015, arXiv 1409.4842, in the form that DARTS gives it.
"""

from __future__ import annotations

from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.networks.stems import CifarStem, Stem
from darts_bio.rules import LearningRule, RuleConv2d, RuleLinear, connect_output
from darts_bio.spaces.operations import pointwise


class AuxiliaryHead(nn.Module):
    """A second classifier, on the features after two thirds of the depth, for training only.

    It maps features (N, channels, H, W), with H and W of at least `least_side`, to logits (N,
    num_classes). It is exactly the published head where H and W are 8 behind CIFAR's stem, and 7
    behind ImageNet's, whose head pools at stride 2 and has one batch norm.

    Args:
        channels: The channels of the features.
        num_classes: The number of logits.
        rule: The learning rule of its layers.
        stem: The stem of the network, which says what form of the head is meant.

    >>> import torch
    >>> from darts_bio.networks import AuxiliaryHead, CifarStem
    >>> from darts_bio.rules import RULES
    >>> head = AuxiliaryHead(16, 10, RULES.build("bp"))
    >>> head(torch.zeros(2, 16, 8, 8)).shape
    torch.Size([2, 10])
    >>> head.least_side, AuxiliaryHead.least_image_behind(CifarStem)
    (8, 29)
    """

    def __init__(
        self, channels: int, num_classes: int, rule: LearningRule, stem: type[Stem] = CifarStem
    ) -> None:
        super().__init__()
        self.least_side = self.least_side_behind(stem)
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=stem.auxiliary_stride, count_include_pad=False),
            pointwise(channels, 128, rule),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            RuleConv2d(128, 768, 2, bias=False, rule=rule),
            *([nn.BatchNorm2d(768)] if stem.auxiliary_norm else []),
            nn.ReLU(),
        )
        self.classifier = RuleLinear(768, num_classes, rule=rule)
        self.output_error = connect_output(self, num_classes)

    @staticmethod
    def least_side_behind(stem: type[Stem]) -> int:
        """Return the least height and width of the features, in pixels.

        Pooled, they have to hold a 2x2 convolution.
        """
        # Two windows of 5x5, one stride apart.
        return 5 + stem.auxiliary_stride

    @classmethod
    def least_image_behind(cls, stem: type[Stem]) -> int:
        """Return the least height and width of the images, in pixels.

        The stem and two reductions lie before the head, and each halving rounds up.
        """
        # All halvings together divide by 4 * shrinks and round up: the least number of pixels that
        # ends as least_side is one more than what still ends as least_side - 1.
        return 4 * stem.shrinks * (cls.least_side_behind(stem) - 1) + 1

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to logits (N, num_classes).

        Raises:
            InputError: If H or W is smaller than `least_side`.
        """
        if min(x.shape[2:]) < self.least_side:
            raise InputError(
                "auxiliary head: expected features of at least "
                f"{self.least_side}x{self.least_side}, found "
                f"{x.shape[2]}x{x.shape[3]}; use larger images, or no auxiliary head"
            )
        logits = self.classifier(self.features(x).mean((2, 3)))
        return logits if self.output_error is None else self.output_error.watch(logits)
