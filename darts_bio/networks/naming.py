"""What weights of a model are called in tables and figures: by their place, operation and rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from darts_bio.networks.network import Network
from darts_bio.rules.weights import Weight

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

PLACES = {"stem": "stem", "classifier": "classifier", "auxiliary": "auxiliary head"}
"""The parts of a `Network` beside its cells, by the names of their modules."""


@dataclass(frozen=True)
class WeightName:
    """What a weight is called, apart from its rule.

    >>> WeightName("cell 3, edge 0->2", "sep_conv_3x3", "first convolution").under("usf")
    'cell 3, edge 0->2, sep_conv_3x3:usf, first convolution'
    >>> WeightName("blocks.0.attn.qkv", "Linear").under("fa")
    'blocks.0.attn.qkv, Linear:fa'
    """

    place: str
    """Where it stands: the cell and edge of a network of cells, in other models its module."""

    operation: str
    """The operation on the edge, elsewhere PyTorch's name of its layer."""

    part: str = ""
    """Which of the operation's weights it is; empty where there is only one."""

    def under(self, rule: str) -> str:
        """Return the whole name, under a rule."""
        return ", ".join(filter(None, (self.place, f"{self.operation}:{rule}", self.part)))


def name_weights(model: nn.Module, weights: Iterable[Weight]) -> dict[str, WeightName]:
    """Return what weights of a model are called, by `Weight.name`, in their order.

    >>> from darts_bio.networks import build_network
    >>> from darts_bio.rules.weights import weights_in
    >>> from darts_bio.spaces import load_genotype
    >>> network = build_network(load_genotype("bionas_darts"), channels=4, layers=3)
    >>> names = name_weights(network, weights_in(network))
    >>> names["stem.0"].under("bp"), names["cells.0.edges.2.0.2"].under("frsf")
    ('stem, Conv2d:bp', 'cell 0, edge 1->3, sep_conv_3x3:frsf, second convolution')
    """
    found = list(weights)
    names = {weight.name: _name(model, weight) for weight in found}
    if not isinstance(model, Network):
        return names
    # Weights of one place and operation are counted, where there are several.
    sizes, seen = Counter(names.values()), Counter[WeightName]()
    for weight in found:
        name = names[weight.name]
        seen[name] += 1
        if sizes[name] > 1:
            noun = "convolution" if weight.kind.startswith("Conv") else "layer"
            number = seen[name]
            ordinal = ORDINALS[number - 1] if number <= len(ORDINALS) else f"{number}th"
            names[weight.name] = replace(name, part=f"{ordinal} {noun}")
    return names


def _name(model: nn.Module, weight: Weight) -> WeightName:
    """Return what a weight is called, with those that share its operation called alike."""
    if isinstance(model, Network):
        part, *rest = weight.path.split(".")
        if part == "cells":
            cell: Any = model.cells[int(rest[0])]
            edge = cell.genotype_edges[int(rest[2])]
            place = f"cell {rest[0]}, edge {edge.input}->{edge.node}"
            return WeightName(place, edge.candidate.op)
        if part == "inputs":  # by the cell that they are prepared for
            source = rest[1].removeprefix("prepare_")
            kind = f"{source} input" if source in ("older", "newer") else "input"
            return WeightName(f"cell {rest[0]}, {kind}", weight.kind)
        if part in PLACES:
            return WeightName(PLACES[part], weight.kind)
    return WeightName(weight.name or "(the model)", weight.kind)
