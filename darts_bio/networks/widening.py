"""A supernet that goes on with more channels through its candidates (DrNAS, arXiv 2006.10355).

Where 1/k of the channels go through the candidates, a smaller k makes every layer on the edges
wider. A layer of c channels becomes one of c' by copies of its own: those beyond c are equal to
channels drawn at random among them. What a layer copies of its inputs is decided as follows, layer
by layer (net2wider.py of the published code, github.com/xiangning-chen/DrNAS):

    convolution    its new outputs are drawn; where a convolution comes right before it, its new
                   inputs are those that this one drew, and otherwise drawn too
    batch norm     statistics follow what the convolution before it drew; behind a pool, drawn

Copies are not divided by their number, unlike in Net2Net (arXiv 1511.05641), and a depthwise
convolution behind a batch norm draws anew: the wider supernet computes something else than before,
and begins near what it has learned. In one detail this differs from the published code: the
statistics behind a factorized reduction follow its channels, whereas there those of the second half
are mistaken for others, until batches have moved them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.networks.forms import leaves
from darts_bio.networks.mixed import MixedCell, SourceBlock, place_in_reference
from darts_bio.networks.parts import SharedOperation
from darts_bio.networks.stacking import STATISTICS, StackedBatchNorm, member_place
from darts_bio.networks.supernet import SuperNet
from darts_bio.rules import RuleConv2d
from darts_bio.rules.carriers import PREFIX
from darts_bio.rules.shared_feedback import FlatFeedback, SharedFeedback
from darts_bio.rules.stacked import StackedConv2d, member_shape
from darts_bio.spaces.operations import EvenAndOdd

Beside = Mapping[Tensor, Tensor]
"""What an optimizer keeps of a parameter, of its shape, by the parameter."""


class Layer(NamedTuple):
    """A layer of one candidate: where it stands in the reference, and its tensors there, as views.

    Tensors of a convolution are (outputs, inputs, ...), those of a batch norm (channels,).
    """

    name: str
    norm: bool
    tensors: dict[str, Tensor]


@torch.no_grad()
def widen(
    wide: SuperNet,
    narrow: SuperNet,
    source: torch.Generator,
    beside: Sequence[tuple[Beside, Beside]] = (),
) -> None:
    """Give a supernet the weights and feedback of another one, in place.

    The wide one has the same cells and channels, of the candidates all or some, and 1/k of the
    channels, or more, go through them.

    Args:
        wide: The supernet that is given them.
        narrow: The supernet that they come from.
        source: A generator on the CPU, from which copies are drawn.
        beside: What optimizers keep of the parameters, of both: it is copied as parameters are.

    Raises:
        InputError: A candidate has a layer that cannot grow.

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("darts(nodes=1)")
    >>> sizes = {"channels": 8, "layers": 3, "num_classes": 10}
    >>> narrow = SuperNet(space, ("fa",), partial=4, **sizes)
    >>> wide = SuperNet(space, ("fa",), partial=2, **sizes)
    >>> widen(wide, narrow, torch.Generator().manual_seed(0))
    >>> bool((wide.stem[0].weight == narrow.stem[0].weight).all())
    True
    """
    mine, theirs = (
        _candidates(net, [pair[i] for pair in beside]) for i, net in enumerate((wide, narrow))
    )
    for cell, edge, column in sorted(mine):
        cell_type = wide.plan[cell]
        candidate = wide.table.rows[cell_type][edge][column]
        column_before = narrow.table.rows[cell_type][edge].index(candidate)
        _grow(mine[cell, edge, column], theirs[cell, edge, column_before], source)
    _copy_the_rest(wide, narrow, beside)


def _grow(layers: Sequence[Layer], before: Sequence[Layer], source: torch.Generator) -> None:
    """Set the layers of a candidate to those that they grow from, in place."""

    def drawn(count: int, count_before: int) -> Tensor:
        more = torch.randint(count_before, (count - count_before,), generator=source)
        return torch.cat([torch.arange(count_before), more])

    outputs: Tensor | None = None
    """For each output of the convolution just before, the one that it copies; None behind a norm."""
    for layer, old in zip(layers, before, strict=True):
        if layer.norm:
            size, size_before = (len(each.tensors[STATISTICS[0]]) for each in (layer, old))
            index = drawn(size, size_before) if outputs is None else outputs
            outputs = None
            for key, value in layer.tensors.items():
                value.copy_(old.tensors[key].cpu()[index])
            continue
        if "weight" not in layer.tensors:
            _copy_alike(layer, old)
            continue
        weight, weight_before = layer.tensors["weight"], old.tensors["weight"]
        (n_out, n_in), (n_out_before, n_in_before) = weight.shape[:2], weight_before.shape[:2]
        first_half, second_half = layer.name.endswith(".even"), layer.name.endswith(".odd")
        follows = n_in > 1 and not (first_half or second_half)
        inputs = outputs if outputs is not None and follows else drawn(n_in, n_in_before)
        own = drawn(n_out, n_out_before)
        for key, value in layer.tensors.items():
            if key in old.tensors:  # else an optimizer has not met it yet
                of_before = old.tensors[key].cpu()
                value.copy_(of_before[own][:, inputs] if of_before.dim() else of_before)
        if second_half and outputs is not None:  # of an `EvenAndOdd`: it stands behind the first
            own = torch.cat([outputs, n_out_before + own])
        outputs = own


def _copy_alike(layer: Layer, old: Layer) -> None:
    """Copy a layer that this module does not know. Raise InputError if it has another size."""
    for key, value in layer.tensors.items():
        if value.shape != old.tensors[key].shape:
            raise InputError(
                f"--stages: keeps_weights: expected layers that can grow, found {layer.name}, which "
                "is neither a convolution nor a batch norm; leave keeps_weights out, or have as many "
                "channels as before go through the candidates"
            )
        value.copy_(old.tensors[key])


def _candidates(net: SuperNet, beside: Sequence[Beside]) -> dict[tuple[int, int, int], list[Layer]]:
    """Return the layers of each candidate, in their order, by (cell, edge, column)."""
    feedback = _stacked_feedback(net, beside)
    found: dict[tuple[int, int, int], list[Layer]] = {}
    for number, cell in enumerate(net.cells):
        assert isinstance(cell, MixedCell)
        for layer in (*_stacked_layers(cell, beside, feedback), *_single_layers(cell, beside)):
            found.setdefault((number, *member_place(layer.name)), []).append(layer)
    return {
        place: sorted(layers, key=lambda layer: place_in_reference(layer.name))
        for place, layers in found.items()
    }


def _stacked_layers(
    cell: MixedCell,
    beside: Sequence[Beside],
    feedback: Mapping[StackedConv2d, Sequence[Mapping[str, Tensor]]],
) -> Iterator[Layer]:
    """Yield the members of the stacked layers of a cell; `feedback` is that of each member."""
    for stack in cell.modules():
        if isinstance(stack, StackedConv2d):
            whole = _with(beside, "weight", stack.weight)
            for i, name in enumerate(stack.names):
                own = {key: value.chunk(stack.members)[i] for key, value in whole.items()}
                yield Layer(name, False, {**own, **feedback[stack][i]})
        elif isinstance(stack, StackedBatchNorm):
            statistics = [stack.get_buffer(key).chunk(stack.members) for key in STATISTICS]
            for i, name in enumerate(stack.names):
                own = {key: values[i] for key, values in zip(STATISTICS, statistics, strict=True)}
                yield Layer(name, True, own)


def _single_layers(cell: MixedCell, beside: Sequence[Beside]) -> Iterator[Layer]:
    """Yield the layers of candidates that are not stacked: those that run alone, and pools."""
    candidates: list[tuple[str, nn.Module]] = []
    for block in cell.blocks:
        assert isinstance(block, SourceBlock)
        candidates += zip(block.names, block.alone, strict=True)
        for part in block.unjoined:
            if isinstance(part, SharedOperation):
                candidates += [(name, part.module) for name in part.names]
    layers: list[tuple[str, nn.Module]] = []
    for name, candidate in candidates:
        for leaf_name, leaf in leaves(candidate, name):
            halves = ("even", "odd") if isinstance(leaf, EvenAndOdd) else ()
            layers += [(f"{leaf_name}.{half}", getattr(leaf, half)) for half in halves]
            layers += [] if halves else [(leaf_name, leaf)]
    for name, layer in layers:
        tensors = dict(layer.named_buffers())
        for key, parameter in layer.named_parameters():
            tensors |= _with(beside, key, parameter)
        if isinstance(layer, nn.BatchNorm2d):
            yield Layer(name, True, {key: tensors[key] for key in STATISTICS})
        elif isinstance(layer, RuleConv2d):
            yield Layer(name, False, tensors)
        elif tensors:  # a weight that it may have means something that is not known here
            yield Layer(name, False, {f"own {key}": value for key, value in tensors.items()})


def _stacked_feedback(
    net: SuperNet, beside: Sequence[Beside]
) -> dict[StackedConv2d, list[dict[str, Tensor]]]:
    """Return the feedback of each member of the stacked layers, by name, as views."""
    found: dict[StackedConv2d, list[dict[str, Tensor]]] = {}
    for shared in net.feedback:
        assert isinstance(shared, SharedFeedback)
        for layer in shared.layers:
            found[layer] = [{} for _ in range(layer.members)]
        for carrier in shared.flat:
            assert isinstance(carrier, FlatFeedback)
            whole: dict[str, Tensor] = {}
            for name, value in carrier.feedback.items():
                whole |= _with(beside, f"{PREFIX}{name}", value)
            for name, value in whole.items():
                for layer, flat in zip(carrier.layers, carrier.by_layer(value), strict=True):
                    edges = layer.members // len(layer.rules)
                    of_members = flat.view(edges, *member_shape(layer)).unbind()
                    for e, of_member in enumerate(of_members):
                        found[layer][carrier.number * edges + e][name] = of_member
    return found


def _with(beside: Sequence[Beside], name: str, parameter: Tensor) -> dict[str, Tensor]:
    """Return a parameter, and what is kept beside it, by names that begin with its own."""
    kept = {f"{name} {i}": of[parameter] for i, of in enumerate(beside) if parameter in of}
    return {name: parameter.detach(), **kept}


def _copy_the_rest(
    wide: SuperNet, narrow: SuperNet, beside: Sequence[tuple[Beside, Beside]]
) -> None:
    """Copy what is outside the cells' edges, which is equally large in both."""
    before = dict(narrow.named_parameters()) | dict(narrow.named_buffers())
    for name, value in [*wide.named_parameters(), *wide.named_buffers()]:
        if name.startswith(("cells.", "feedback.")):
            continue
        value.copy_(before[name])
        for mine, theirs in beside:
            if before[name] in theirs:
                mine[value].copy_(theirs[before[name]])
