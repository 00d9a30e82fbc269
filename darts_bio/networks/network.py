"""The discrete network of a genotype, in CIFAR's form and ImageNet's (Liu 2019, arXiv 1806.09055, section 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.networks.cells import STEMS, AuxiliaryHead, CellNetwork, DropPath, build_candidate
from darts_bio.rules import RULES, draw_feedback
from darts_bio.spaces import SPACES, Cell, Genotype, Space


class DiscreteCell(nn.Module):
    """The kept edges of a cell; identities are never dropped by drop path."""

    def __init__(self, space: Space, cell_type: str, cell: Cell, channels: int) -> None:
        super().__init__()
        self.wiring = sorted(((edge.node, edge.input) for edge in cell.edges), key=lambda edge: edge[0])
        self.concat = cell.concat
        self.edges = nn.ModuleList()
        for edge in sorted(cell.edges, key=lambda edge: edge.node):
            stride = space.stride(cell_type, edge.input)
            op = build_candidate(edge.candidate, channels, stride, supernet=False)
            self.edges.append(op if isinstance(op, nn.Identity) else nn.Sequential(op, DropPath()))

    def forward(self, states: list[Tensor]) -> Tensor:
        """states: the prepared inputs (N, C, H, W)."""
        sums: dict[int, Tensor] = dict(enumerate(states))
        for (node, source), edge in zip(self.wiring, self.edges, strict=True):
            out = edge(sums[source])
            sums[node] = sums[node] + out if node in sums else out
        return torch.cat([sums[node] for node in self.concat], dim=1)


class Network(CellNetwork):
    """The discrete network: images (N, in_channels, H, W) to logits (N, num_classes).

    In training, with an auxiliary head, `forward` gives (logits, auxiliary logits).
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
        """What `build_network` makes the same network of, beside the genotype."""
        self.auxiliary_layer = 2 * layers // 3
        self.auxiliary = (
            AuxiliaryHead(
                self.widths[self.auxiliary_layer], num_classes, RULES.build(genotype.backbone_rule), STEMS.get(stem)
            )
            if auxiliary
            else None
        )

    def set_drop_path(self, probability: float) -> None:
        """Sets the probability, in [0, 1), with which every edge but identities is dropped in training."""
        if not 0 <= probability < 1:
            raise InputError(f"drop path: expected a probability of at least 0 and below 1, found {probability}")
        for module in self.modules():
            if isinstance(module, DropPath):
                module.probability = probability

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        auxiliary = None
        for layer, features in enumerate(self.run_cells(x, lambda cell, _, states: cell(states))):
            if self.training and self.auxiliary is not None and layer == self.auxiliary_layer:
                auxiliary = self.auxiliary(features)
        logits = self.classify(features)
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
    """The discrete network of a genotype, its feedback drawn from `seed`. Weights follow PyTorch's global generator.
    `stem` is cifar, or imagenet for images of 224x224 and thereabouts.

    >>> from darts_bio.spaces import load_genotype
    >>> network = build_network(load_genotype("darts_v2"))
    >>> sum(p.numel() for p in network.parameters())
    3349342
    """
    if not isinstance(genotype, Genotype):
        raise InputError(f"build_network: expected a genotype, found {genotype!r}; read one by load_genotype(...)")
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
