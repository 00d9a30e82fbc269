"""What the supernet and the discrete network share: the skeleton of stem, cells and classifier, and its parts.

The way of an image x (N, C, H, W) is read in `CellNetwork.run_cells`: stem, then each cell on what its skeleton makes
of the outputs of the two cells before it, the size halved and the channels doubled at every reduction, then global
pooling and the classifier.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from darts_bio.distributed import rank, world_size
from darts_bio.errors import InputError
from darts_bio.registry import Registry
from darts_bio.rules import RULES, DirectOperation, LearningRule, RuleConv2d, RuleLinear, connect_output
from darts_bio.spaces import OPERATIONS, Candidate, Space
from darts_bio.spaces.operations import FactorizedReduction, ReLUConvBN, pointwise


def build_candidate(candidate: Candidate, channels: int, stride: int, *, supernet: bool) -> nn.Module:
    """The operation of a candidate, (N, channels, H, W) -> (N, channels, ceil(H/stride), ceil(W/stride)).

    One that has no weights is handed bp, which it has no use for. Under a rule that is direct the operation is exact
    within, and its input receives the output's error.
    """
    operation, rule = OPERATIONS.get(candidate.op), RULES.build(candidate.rule or "bp")
    if rule.direct and operation.carries_rule(stride):
        return DirectOperation(operation.build(channels, stride, RULES.build("bp"), supernet), channels, rule)
    return operation.build(channels, stride, rule, supernet)


@dataclass(frozen=True)
class Entry:
    """What a stem hands to the first cell: the channels of the two outputs before it, the older of which may be twice
    as large."""

    c_older: int
    c_newer: int
    halved_once: bool


class Stem(ABC, nn.Module):
    """From images (N, in_channels, H, W) to the two outputs before the first cell. `channels` are those of a node in
    the first cell, `width` those that the space's skeleton gives a stem of one convolution."""

    shrinks: ClassVar[int]
    """The side of an image over that of the newer output."""
    auxiliary_stride: ClassVar[int]
    """The stride of the auxiliary head's pooling."""
    auxiliary_norm: ClassVar[bool]
    """Whether a batch norm follows the auxiliary head's last convolution."""

    entry: Entry

    @abstractmethod
    def __init__(self, in_channels: int, channels: int, width: int, rule: LearningRule) -> None: ...

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(older, newer)."""


STEMS: Registry[type[Stem]] = Registry("stem")


@STEMS.register("cifar")
class CifarStem(Stem, nn.Sequential):
    """A 3x3 convolution and batch norm, for images of 32x32 (Liu 2019, arXiv 1806.09055, section 3.2)."""

    shrinks, auxiliary_stride, auxiliary_norm = 1, 3, True

    def __init__(self, in_channels: int, channels: int, width: int, rule: LearningRule) -> None:
        nn.Sequential.__init__(
            self, RuleConv2d(in_channels, width, 3, padding=1, bias=False, rule=rule), nn.BatchNorm2d(width)
        )
        self.entry = Entry(width, width, halved_once=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = nn.Sequential.forward(self, x)
        return x, x


@STEMS.register("imagenet")
class ImageNetStem(Stem):
    """Three 3x3 convolutions of stride 2, for images of 224x224: the newer output is 28x28, the older one 56x56 (Liu
    2019, arXiv 1806.09055, section 3.3)."""

    shrinks, auxiliary_stride, auxiliary_norm = 8, 2, False

    def __init__(self, in_channels: int, channels: int, width: int, rule: LearningRule) -> None:
        nn.Module.__init__(self)

        def halve(c_in: int, c_out: int) -> list[nn.Module]:
            return [RuleConv2d(c_in, c_out, 3, 2, 1, bias=False, rule=rule), nn.BatchNorm2d(c_out)]

        self.older = nn.Sequential(*halve(in_channels, channels // 2), nn.ReLU(), *halve(channels // 2, channels))
        self.newer = nn.Sequential(nn.ReLU(), *halve(channels, channels))
        self.entry = Entry(channels, channels, halved_once=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        older = self.older(x)
        return older, self.newer(older)


class CellInputs(nn.Module):
    """A cell's two inputs brought to its size and channels (ReLU, 1x1 convolution, batch norm).

    After a reduction the older input is twice as large, and is halved by a factorised reduction.
    """

    def __init__(
        self, c_older: int, c_newer: int, channels: int, after_reduction: bool, rule: LearningRule, supernet: bool
    ) -> None:
        super().__init__()
        older = FactorizedReduction if after_reduction else ReLUConvBN
        self.prepare_older = older(c_older, channels, rule, supernet)
        self.prepare_newer = ReLUConvBN(c_newer, channels, rule, supernet)

    def forward(self, older: Tensor, newer: Tensor) -> list[Tensor]:
        """Two (N, channels, H, W), the states 0 and 1 of the cell."""
        return [self.prepare_older(older), self.prepare_newer(newer)]


class ResidualReduction(nn.Module):
    """A basic residual block that halves the size: (N, c_in, H, W) -> (N, c_out, ceil(H/2), ceil(W/2)).

    Two times ReLU, 3x3 convolution and batch norm, beside 2x2 average pooling and a 1x1 convolution (arXiv 2001.00326).
    """

    def __init__(self, c_in: int, c_out: int, rule: LearningRule) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c, stride in ((c_in, 2), (c_out, 1)):
            layers += [nn.ReLU(), RuleConv2d(c, c_out, 3, stride, 1, bias=False, rule=rule), nn.BatchNorm2d(c_out)]
        self.residual = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), pointwise(c_in, c_out, rule))

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.residual(x)


class LastOutput(nn.Module):
    """The newer of the two outputs before a cell, as `prepare` makes it, as the cell's only input."""

    def __init__(self, prepare: nn.Module) -> None:
        super().__init__()
        self.prepare = prepare

    def forward(self, older: Tensor, newer: Tensor) -> list[Tensor]:
        return [self.prepare(newer)]


@dataclass(frozen=True)
class Before:
    """What stands before a cell: the channels of the two outputs before it, whether this cell's layer halves the size,
    and whether that of the cell before did, so that the older output is twice as large."""

    c_older: int
    c_newer: int
    halves: bool
    halved_once: bool


SKELETONS: Registry[type[Skeleton]] = Registry("skeleton")


class Skeleton(ABC):
    """What surrounds the cells: how wide the stem is, what a cell receives, what stands before the last pooling."""

    stem_multiplier: ClassVar[int]
    """Channels of the stem over those of a node."""

    @abstractmethod
    def inputs(self, before: Before, channels: int, rule: LearningRule, supernet: bool) -> nn.Module:
        """The module from the outputs of the two cells before, (older, newer), to the list of a cell's inputs."""

    @abstractmethod
    def head(self, channels: int) -> nn.Module:
        """From the last cell's output (N, channels, H, W) to what is pooled."""


@SKELETONS.register("darts")
class DartsSkeleton(Skeleton):
    """Each cell sees the two before it; the reduction is the work of a cell (Liu 2019, arXiv 1806.09055)."""

    stem_multiplier = 3

    def inputs(self, before: Before, channels: int, rule: LearningRule, supernet: bool) -> nn.Module:
        return CellInputs(before.c_older, before.c_newer, channels, before.halved_once, rule, supernet)

    def head(self, channels: int) -> nn.Module:
        return nn.Identity()


@SKELETONS.register("residual")
class ResidualSkeleton(Skeleton):
    """Each cell sees the one before it, or a residual block that reduces (NAS-Bench-201, arXiv 2001.00326)."""

    stem_multiplier = 1

    def inputs(self, before: Before, channels: int, rule: LearningRule, supernet: bool) -> nn.Module:
        prepare = ResidualReduction(before.c_newer, channels, rule) if before.halves else nn.Identity()
        return LastOutput(prepare)

    def head(self, channels: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


class CellNetwork(nn.Module):
    """Stem, a stack of cells, global average pooling, classifier. Subclasses say what a cell is.

    `multiplier` holds how many nodes' outputs each cell type concatenates. Maps are channels last in memory
    (`memory_format`), in which depthwise convolutions are fastest on CPUs.
    """

    memory_format = torch.channels_last

    def __init__(
        self,
        space: Space,
        layers: int,
        make_cell: Callable[[str, int], nn.Module],
        multiplier: dict[str, int],
        *,
        channels: int,
        num_classes: int,
        in_channels: int,
        backbone_rule: str,
        supernet: bool,
        stem: str = "cifar",
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise InputError(
                f"channels: expected an even number of at least 2, since the factorised reduction halves them, "
                f"found {channels}; use --channels {max(2, channels + channels % 2)}"
            )
        for name, value in {"num_classes": num_classes, "in_channels": in_channels}.items():
            if value < 1:
                raise InputError(f"{name}: expected at least 1, found {value}")
        rule: LearningRule = RULES.build(backbone_rule)
        skeleton: Skeleton = SKELETONS.get(space.skeleton)()
        self.plan, reductions = space.plan(layers), space.reductions(layers)
        self.stem: Stem = STEMS.get(stem)(in_channels, channels, skeleton.stem_multiplier * channels, rule)
        self.inputs = nn.ModuleList()
        self.cells = nn.ModuleList()
        self.widths: list[int] = []
        entry = self.stem.entry
        c_older, c_newer, after_reduction = entry.c_older, entry.c_newer, entry.halved_once
        for layer, cell_type in enumerate(self.plan):
            reduces = layer in reductions
            channels *= 2 if reduces else 1
            before = Before(c_older, c_newer, halves=reduces, halved_once=after_reduction)
            self.inputs.append(skeleton.inputs(before, channels, rule, supernet))
            self.cells.append(make_cell(cell_type, channels))
            c_older, c_newer, after_reduction = c_newer, multiplier[cell_type] * channels, reduces
            self.widths.append(c_newer)
        self.head = skeleton.head(c_newer)
        self.classifier = RuleLinear(c_newer, num_classes, rule=rule)
        self.output_error = connect_output(self, num_classes)

    def run_cells(self, x: Tensor, call: Callable[[nn.Module, str, list[Tensor]], Tensor]) -> Iterator[Tensor]:
        """The output of each cell in turn, for images x (N, in_channels, H, W); `call(cell, cell_type, states)` runs
        one cell on its prepared inputs."""
        yield from self.cells_after(*self.run_stem(x), call)

    def run_stem(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The two outputs before the first cell, (older, newer)."""
        older, newer = self.stem(x.contiguous(memory_format=self.memory_format))
        return older, newer

    def cells_after(
        self, older: Tensor, newer: Tensor, call: Callable[[nn.Module, str, list[Tensor]], Tensor]
    ) -> Iterator[Tensor]:
        """The output of each cell in turn, from those of the stem."""
        for inputs, cell, cell_type in zip(self.inputs, self.cells, self.plan, strict=True):

            def layer(
                older: Tensor, newer: Tensor, i: nn.Module = inputs, c: nn.Module = cell, t: str = cell_type
            ) -> Tensor:
                return call(c, t, i(older, newer))

            older, newer = newer, self.run_layer(layer, older, newer)
            yield newer

    def run_layer(self, layer: Callable[[Tensor, Tensor], Tensor], older: Tensor, newer: Tensor) -> Tensor:
        """One layer, a cell on its inputs. A subclass may run it in another way."""
        return layer(older, newer)

    def classify(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to logits (N, num_classes)."""
        logits = self.classifier(self.head(features).mean((2, 3)))
        return logits if self.output_error is None else self.output_error.watch(logits)


class DropPath(nn.Module):
    """Drops the whole output of an edge for a sample with probability `probability`, scaling what is kept.

    (N, C, H, W) -> (N, C, H, W); does nothing in evaluation (Larsson 2017, arXiv 1605.07648). Of several processes each
    draws for the samples of all and takes its own part, so that the draws do not depend on how many there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._probability = 0.0
        # A tensor, so that a pass that was recorded as a CUDA graph sees it change.
        self.register_buffer("keep", torch.ones(()), persistent=False)

    @property
    def probability(self) -> float:
        return self._probability

    @probability.setter
    def probability(self, value: float) -> None:
        self._probability = value
        self.get_buffer("keep").fill_(1 - value)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep, n = self.get_buffer("keep"), x.shape[0]
        kept = keep.expand(n * world_size(), 1, 1, 1).bernoulli()[n * rank() :][:n]
        return x * (kept / keep).to(x.dtype)


class AuxiliaryHead(nn.Module):
    """A second classifier on the features after two thirds of the depth (Szegedy 2015), for training only.

    (N, C, H, W) with H, W of at least `least_side` -> logits (N, num_classes). It is exactly the published head where H
    and W are 8 behind CIFAR's stem, 7 behind ImageNet's, whose head pools at stride 2 and has one batch norm.
    """

    def __init__(self, channels: int, num_classes: int, rule: LearningRule, stem: type[Stem] = CifarStem) -> None:
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
        """The least height and width of the features: pooled, they have to hold a 2x2 convolution."""
        return 5 + stem.auxiliary_stride

    @classmethod
    def least_image_behind(cls, stem: type[Stem]) -> int:
        """That of the images: the stem and two reductions lie before the head, and each halving rounds up."""
        return 4 * stem.shrinks * (cls.least_side_behind(stem) - 1) + 1

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.least_side:
            raise InputError(
                f"auxiliary head: expected features of at least {self.least_side}x{self.least_side}, found "
                f"{x.shape[2]}x{x.shape[3]}; use larger images, or no auxiliary head"
            )
        logits = self.classifier(self.features(x).mean((2, 3)))
        return logits if self.output_error is None else self.output_error.watch(logits)
