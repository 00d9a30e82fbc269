"""What the supernet and the discrete network share.

That is the stem, the inputs of each cell, the cells, the head and the classifier.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from darts_bio.bounded import MOST_CELLS, MOST_WEIGHTS
from darts_bio.errors import InputError, check_whole
from darts_bio.networks.skeletons import SKELETONS, Before, Skeleton
from darts_bio.networks.stems import STEMS, Stem
from darts_bio.rules import RULES, LearningRule, RuleLinear, connect_output
from darts_bio.spaces import Space


class CellNetwork(nn.Module):
    """Stem, a stack of cells, global average pooling, classifier.

    Subclasses say what a cell is, and run the cells. The stem makes two outputs of an image,
    (older, newer). From then on each cell takes what `inputs` prepares of the outputs of the two
    before it:

        older, newer = newer, cell(inputs(older, newer))

    At every reduction the size is halved and the channels are doubled. Maps are channels last in
    memory (`memory_format`), in which depthwise convolutions are fastest on CPUs.

    Args:
        space: What says how cells follow each other, and which skeleton surrounds them.
        layers: The number of cells.
        make_cell: Builds a cell, given its type and the channels of its nodes.
        multiplier: How many nodes' outputs the cells of each type concatenate.
        channels: The channels of a node in the first cell.
        num_classes: The number of logits.
        in_channels: The channels of the images.
        backbone_rule: The spec of the learning rule of all layers outside the cells' edges.
        supernet: Whether layers are built as a search has them.
        stem: The name of the stem in `STEMS`.

    Raises:
        InputError: For odd channels, or for counts below 1.
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
                "--channels: expected an even number of at least 2, since the factorised reduction "
                "halves them, "
                f"found {channels}; use --channels {max(2, channels + channels % 2)}"
            )
        for name, value in {"num_classes": num_classes, "in_channels": in_channels}.items():
            if value < 1:
                raise InputError(f"{name}: expected at least 1, found {value}")
        layers = check_whole("layers", layers, most=MOST_CELLS)
        rule: LearningRule = RULES.build(backbone_rule)
        skeleton: Skeleton = SKELETONS.get(space.skeleton)()
        self.plan, reductions = space.plan(layers), space.reductions(layers)
        # The first convolution, one of one pixel a cell, and the classifier: less than there are.
        widths = [channels * 2 ** sum(r <= layer for r in reductions) for layer in range(layers)]
        weights = channels * in_channels + sum(c * c for c in widths) + widths[-1] * num_classes
        if weights > MOST_WEIGHTS:
            raise InputError(
                f"network: {layers} cells of {channels} channels, {in_channels} channels of the "
                f"image and {num_classes} classes take more than {MOST_WEIGHTS:,} weights; use fewer"
            )
        self.stem: Stem = STEMS.get(stem)(
            in_channels, channels, skeleton.stem_multiplier * channels, rule
        )
        self.inputs = nn.ModuleList()
        self.cells = nn.ModuleList()
        self.widths: list[int] = []
        """The channels of each cell's output."""
        # What the next cell finds before it: the channels of the two outputs, and whether the older
        # one is twice as large as the newer one.
        entry = self.stem.entry
        c_older, c_newer, halved_once = entry.c_older, entry.c_newer, entry.halved_once
        for layer, cell_type in enumerate(self.plan):
            reduces = layer in reductions
            channels *= 2 if reduces else 1
            before = Before(c_older, c_newer, halves=reduces, halved_once=halved_once)
            self.inputs.append(skeleton.inputs(before, channels, rule, supernet))
            self.cells.append(make_cell(cell_type, channels))
            c_older, c_newer, halved_once = c_newer, multiplier[cell_type] * channels, reduces
            self.widths.append(c_newer)
        self.head = skeleton.head(c_newer)
        self.classifier = RuleLinear(c_newer, num_classes, rule=rule)
        self.output_error = connect_output(self, num_classes)

    def classify(self, features: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of the last cell's output (N, C, h, w)."""
        logits = self.classifier(self.head(features).mean((2, 3)))
        # Under a direct rule, layers receive the error at the logits.
        return logits if self.output_error is None else self.output_error.watch(logits)
