"""The discrete network of a genotype, which is trained from scratch.

It has the two forms of Liu 2019, arXiv 1806.09055, section 3: CIFAR's and ImageNet's, which differ
in the stem.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from darts_bio.bounded import MOST_CELLS, MOST_EDGES
from darts_bio.errors import InputError, check_whole
from darts_bio.networks.auxiliary import AuxiliaryHead
from darts_bio.networks.backbone import CellNetwork
from darts_bio.networks.cells import DiscreteCell, DropPath
from darts_bio.networks.stems import STEMS
from darts_bio.rules import RULES, draw_feedback
from darts_bio.spaces import SPACES, Genotype, Space


class Network(CellNetwork):
    """The discrete network of a genotype: images (N, in_channels, H, W) to logits.

    Logits are (N, num_classes); in training, with an auxiliary head, `forward` returns (logits,
    auxiliary logits). `build_network` builds one and draws its feedback.

    Args:
        genotype: The cells, the space they belong to, and the rule of all other layers.
        channels: The channels of a node in the first cell.
        layers: The number of cells.
        num_classes: The number of logits.
        in_channels: The channels of the images.
        auxiliary: Whether there is an auxiliary head, after two thirds of the depth.
        stem: The name of the stem in `STEMS`.

    Raises:
        InputError: For a genotype that its space cannot have, or for sizes out of bounds.

    >>> import torch
    >>> from darts_bio.networks import Network
    >>> from darts_bio.spaces import load_genotype
    >>> genotype = load_genotype("bionas_darts")
    >>> network = Network(genotype, channels=4, layers=3, num_classes=10, auxiliary=True)
    >>> images = torch.zeros(2, 3, 32, 32)
    >>> logits, auxiliary_logits = network(images)
    >>> network.eval()(images).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        genotype: Genotype,
        *,
        channels: int = 36,
        layers: int = 20,
        num_classes: int = 10,
        in_channels: int = 3,
        auxiliary: bool = False,
        stem: str = "cifar",
    ) -> None:
        space: Space = SPACES.build(genotype.space)
        space.validate(genotype, "genotype")
        layers = check_whole("layers", layers, most=MOST_CELLS)
        edges = sum(len(genotype.cells[cell_type].edges) for cell_type in space.plan(layers))
        if edges > MOST_EDGES:
            raise InputError(
                f"network: expected at most {MOST_EDGES:,} edges in all cells together, found "
                f"{edges:,}; use fewer layers"
            )
        super().__init__(
            space,
            layers,
            lambda cell_type, c: DiscreteCell(space, cell_type, genotype.cells[cell_type], c),
            {cell_type: len(cell.concat) for cell_type, cell in genotype.cells.items()},
            channels=channels,
            num_classes=num_classes,
            in_channels=in_channels,
            backbone_rule=genotype.backbone_rule,
            supernet=False,
            stem=stem,
        )
        self.genotype = genotype
        self.form: dict[str, Any] = {
            "channels": channels,
            "layers": layers,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "auxiliary": auxiliary,
            "stem": stem,
        }
        """Arguments with which `build_network` builds the same network from the genotype."""
        # In DARTS' space that is the second reduction (Liu 2019, arXiv 1806.09055).
        self.auxiliary_layer = 2 * layers // 3
        self.auxiliary = (
            AuxiliaryHead(
                self.widths[self.auxiliary_layer],
                num_classes,
                RULES.build(genotype.backbone_rule),
                STEMS.get(stem),
            )
            if auxiliary
            else None
        )

    def set_drop_path(self, probability: float) -> None:
        """Set the probability with which every edge but identities is dropped in training.

        Raises:
            InputError: If it is not in [0, 1).
        """
        if not 0 <= probability < 1:
            raise InputError(
                f"drop path: expected a probability of at least 0 and below 1, found {probability}"
            )
        for module in self.modules():
            if isinstance(module, DropPath):
                module.probability = probability

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Map images (N, in_channels, H, W) to logits, or to (logits, auxiliary logits)."""
        auxiliary = None
        older, newer = self.stem(x.contiguous(memory_format=self.memory_format))
        for layer, (inputs, cell) in enumerate(zip(self.inputs, self.cells, strict=True)):
            older, newer = newer, cell(inputs(older, newer))
            if self.training and self.auxiliary is not None and layer == self.auxiliary_layer:
                auxiliary = self.auxiliary(newer)
        logits = self.classify(newer)
        return logits if auxiliary is None else (logits, auxiliary)


def build_network(
    genotype: Genotype,
    *,
    channels: int = 36,
    layers: int = 20,
    num_classes: int = 10,
    in_channels: int = 3,
    auxiliary: bool = False,
    stem: str = "cifar",
    seed: int = 0,
) -> Network:
    """Build the discrete network of a genotype, its feedback drawn from a seed.

    Args:
        genotype: What `load_genotype` returns.
        channels: The channels of a node in the first cell.
        layers: The number of cells.
        num_classes: The number of logits.
        in_channels: The channels of the images.
        auxiliary: Whether there is an auxiliary head, after two thirds of the depth.
        stem: cifar, or imagenet for images of about 224x224 pixels.
        seed: What feedback is drawn from. Weights are drawn from PyTorch's global generator.

    Raises:
        InputError: If it is not given a genotype, or one that cannot be built.

    >>> from darts_bio.spaces import load_genotype
    >>> network = build_network(load_genotype("darts_v2"))
    >>> sum(p.numel() for p in network.parameters())
    3349342
    """
    if not isinstance(genotype, Genotype):
        raise InputError(
            f"build_network: expected a genotype, found {genotype!r}; read one by "
            "load_genotype(...)"
        )
    network = Network(
        genotype,
        channels=channels,
        layers=layers,
        num_classes=num_classes,
        in_channels=in_channels,
        auxiliary=auxiliary,
        stem=stem,
    )
    draw_feedback(network, seed)
    return network
