"""What the supernet and the discrete network share: the skeleton of stem, cells and classifier, and its parts.

The way of an image x (N, C, H, W) is read in `CellNetwork.run_cells`: stem, then each cell on the outputs of the two
cells before it, the size halved and the channels doubled at every reduction, then global pooling and the classifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.rules import RULES, DirectOperation, LearningRule, RuleConv2d, RuleLinear, connect_output
from darts_bio.spaces import OPERATIONS, Candidate
from darts_bio.spaces.operations import FactorizedReduction, ReLUConvBN, pointwise

STEM_MULTIPLIER = 3
"""Channels of the stem over those of a node (the published skeleton)."""


def build_candidate(candidate: Candidate, channels: int, stride: int, *, supernet: bool) -> nn.Module:
    """The operation of a candidate, (N, channels, H, W) -> (N, channels, ceil(H/stride), ceil(W/stride)).

    One that has no weights is handed bp, which it has no use for. Under a rule that is direct the operation is exact
    within, and its input receives the output's error.
    """
    operation, rule = OPERATIONS.get(candidate.op), RULES.build(candidate.rule or "bp")
    if rule.direct and operation.carries_rule(stride):
        return DirectOperation(operation.build(channels, stride, RULES.build("bp"), supernet), channels, rule)
    return operation.build(channels, stride, rule, supernet)


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


class CellNetwork(nn.Module):
    """Stem, a stack of cells, global average pooling, classifier. Subclasses say what a cell is.

    `plan` holds the cell type of each layer, `multiplier` the nodes whose outputs each cell type concatenates. Maps are
    channels last in memory (`memory_format`), in which depthwise convolutions are fastest on CPUs.
    """

    memory_format = torch.channels_last

    def __init__(
        self,
        plan: tuple[str, ...],
        make_cell: Callable[[str, int], nn.Module],
        multiplier: dict[str, int],
        *,
        channels: int,
        num_classes: int,
        in_channels: int,
        backbone_rule: str,
        supernet: bool,
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
        self.plan = plan
        stem = STEM_MULTIPLIER * channels
        self.stem = nn.Sequential(
            RuleConv2d(in_channels, stem, 3, padding=1, bias=False, rule=rule), nn.BatchNorm2d(stem)
        )
        self.inputs = nn.ModuleList()
        self.cells = nn.ModuleList()
        self.widths: list[int] = []
        c_older, c_newer, after_reduction = stem, stem, False
        for cell_type in plan:
            reduction = cell_type == "reduce"
            channels *= 2 if reduction else 1
            self.inputs.append(CellInputs(c_older, c_newer, channels, after_reduction, rule, supernet))
            self.cells.append(make_cell(cell_type, channels))
            c_older, c_newer, after_reduction = c_newer, multiplier[cell_type] * channels, reduction
            self.widths.append(c_newer)
        self.classifier = RuleLinear(c_newer, num_classes, rule=rule)
        self.output_error = connect_output(self, num_classes)

    def run_cells(self, x: Tensor, call: Callable[[nn.Module, str, list[Tensor]], Tensor]) -> Iterator[Tensor]:
        """The output of each cell in turn, for images x (N, in_channels, H, W); `call(cell, cell_type, states)` runs
        one cell on its two prepared inputs."""
        x = x.contiguous(memory_format=self.memory_format)
        older = newer = self.stem(x)
        for inputs, cell, cell_type in zip(self.inputs, self.cells, self.plan, strict=True):
            older, newer = newer, call(cell, cell_type, inputs(older, newer))
            yield newer

    def classify(self, features: Tensor) -> Tensor:
        """(N, C, h, w) to logits (N, num_classes)."""
        logits = self.classifier(features.mean((2, 3)))
        return logits if self.output_error is None else self.output_error.watch(logits)


class DropPath(nn.Module):
    """Drops the whole output of an edge for a sample with probability `probability`, scaling what is kept.

    (N, C, H, W) -> (N, C, H, W); does nothing in evaluation (Larsson 2017, arXiv 1605.07648).
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
        keep = self.get_buffer("keep")
        return x * (keep.expand(x.shape[0], 1, 1, 1).bernoulli() / keep).to(x.dtype)


class AuxiliaryHead(nn.Module):
    """A second classifier on the features after two thirds of the depth (Szegedy 2015), for training only.

    (N, C, H, W) with H, W >= 8 -> logits (N, num_classes). On 8x8 it is exactly the published head.
    """

    LEAST_SIDE = 8

    def __init__(self, channels: int, num_classes: int, rule: LearningRule) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3, count_include_pad=False),
            pointwise(channels, 128, rule),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            RuleConv2d(128, 768, 2, bias=False, rule=rule),
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.classifier = RuleLinear(768, num_classes, rule=rule)
        self.output_error = connect_output(self, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[2:]) < self.LEAST_SIDE:
            raise InputError(
                f"auxiliary head: expected features of at least {self.LEAST_SIDE}x{self.LEAST_SIDE}, found "
                f"{x.shape[2]}x{x.shape[3]}; use larger images, or no auxiliary head"
            )
        logits = self.classifier(self.features(x).mean((2, 3)))
        return logits if self.output_error is None else self.output_error.watch(logits)
