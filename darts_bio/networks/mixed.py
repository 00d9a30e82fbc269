"""The batched cell of the supernet: everything that leaves a node is computed together.

The edges that leave a node share its output x. So what has no weights (identity, pools) is computed
once, what has weights is one stacked layer for all edges and rules, and zeros are left out:

    x -+- ReLU -+- sep_conv_3x3: depthwise, pointwise, norm, ..., norm * weights, sum -+
       |        +- ... each operation, for its R rules x E edges at once ...            +- E edges
       +- max_pool_3x3, avg_pool_3x3, identity: each computed once, weighted E times   -+

What is computed together is planned first, as plain data (`networks.plan`); here it is computed.
Where a strategy draws one candidate an edge, a pass computes these alone (`SourceBlock.drawn`).

How an edge weight reaches a batch norm's gain:

    `Strategy.edge_weights`      makes the weights (edges, candidates); regularizers may change them
                                 (`lent`, `perturbed`); they are an argument of `SuperNet`
    `MixedCell.forward`          is handed those of its cell type; where rules share weights,
                                 `PooledRows` sums those of an operation's rules first
    `MixedCell._lane_weights`    puts them in the order of the lanes (`LaneWeights`); in a drawn pass
                                 `MixedCell.forward` gathers those of what was drawn instead, and
                                 `SourceBlock.drawn` repeats each for its channels
    a part                       hands those of its lanes to its last batch norm as the gain; no norm
                                 before that has one

The last is one norm for all joined operations (`JoinedOperations`), or one of each stacked operation
that is not joined (`StackedOperation`). In `FoldedCell` the norm is folded into a product, and the
weight is the p of `networks.folded`. All other outputs are multiplied by their weights: of what
does not end with a batch norm, of what is shared and not joined, of what runs alone.

For edges 0 and 1 that leave a node with C = 4 channels, with sep_conv_3x3 under fa and usf on both
(lanes 0 to 3 in the order (rule, edge)):

    weights (edges, candidates)          [[.1 fa, .9 usf], [.7 fa, .3 usf]]
    each (L,), by `lane_order`           [.1, .7, .9, .3]
    by_channel (L*C,)                    [.1 .1 .1 .1  .7 .7 .7 .7  .9 .9 .9 .9  .3 .3 .3 .3]
    last batch norm, with it as gain     (N, 16, H, W): fa of edge 0, fa of edge 1, usf of both
    sum over the rules                   (N, H, W, 2, 4): edge 0 = .1 fa + .9 usf, edge 1 likewise

Equal to `reference.ReferenceCell`, whose weights it draws, up to rounding. Tensors are channels last
in memory: on CPUs depthwise convolutions are several times faster so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.networks.candidates import BuiltCandidate, CandidateBuilder, row_blueprints
from darts_bio.networks.parts import (
    JoinedOperation,
    JoinedOperations,
    NodeMaps,
    SharedOperation,
    StackedOperation,
    fold,
    stacked_layers,
)
from darts_bio.networks.plan import BlockPlan, CellPlan, Part, plan_cell
from darts_bio.networks.pooled import PooledRows
from darts_bio.networks.stacking import LaneWeights, for_each_channel
from darts_bio.networks.trial import check_output
from darts_bio.private_torch import changes
from darts_bio.rules import DirectOperation, LearningRule
from darts_bio.rules.feedback import Scale
from darts_bio.rules.stacked import StackedConv2d, StackedDirect, Subset, only
from darts_bio.runtime import send
from darts_bio.spaces import Space
from darts_bio.spaces.base import Row


class SourceBlock(nn.Module):
    """All candidates on the edges that leave one node, as planned.

    `alone` holds those that run one by one; `names` says where they stand in the reference.
    """

    def __init__(
        self,
        plan: BlockPlan,
        edges: Sequence[Sequence[BuiltCandidate]],
        channels: int,
        folded: bool,
    ) -> None:
        """Build it from the candidates of `edges`, those of the plan in its order.

        `channels` is C of what candidates give. `folded` folds pointwise convolutions and the batch
        norms behind them, each for itself.
        """
        super().__init__()
        self.plan, self.channels = plan, channels
        self.lane_counts: list[int] = []
        """The numbers of lanes whose weights `forward` takes one after the other."""
        built = {part: [edges[e][column] for e, column in part.lanes] for part in plan.parts}
        candidates = {part: [each.module for each in built[part]] for part in plan.parts}
        names = {
            part: [f"edges.{plan.edges[e]}.{column}" for e, column in part.lanes]
            for part in plan.parts
        }

        def layers(part: Part) -> list[nn.Module]:
            return stacked_layers(built[part], names[part], len(edges))

        joined = [part for part in plan.parts if part.joined and not folded]
        operations = [
            JoinedOperation.shared(candidates[part], names[part])
            if part.way == "shared"
            else JoinedOperation.stacked(layers(part))
            for part in joined
        ]
        self.joined = JoinedOperations(operations, len(edges)) if joined else None
        if joined:
            self.lane_counts.append(sum(len(part.lanes) for part in joined))

        self.unjoined = nn.ModuleList()
        """Stacked and shared parts, each with a mixture of its own."""
        for part in plan.parts:
            if part in joined or part.way == "alone":
                continue
            members = len(part.lanes)
            self.unjoined.append(
                SharedOperation(candidates[part][0], names[part], len(edges))
                if part.way == "shared"
                else StackedOperation(
                    fold(layers(part)) if folded else layers(part), members, len(edges)
                )
            )
            self.lane_counts.append(members)

        alone = [part for part in plan.parts if part.way == "alone"]
        self.alone = nn.ModuleList(module for part in alone for module in candidates[part])
        self.alone_edges = [e for part in alone for e, _ in part.lanes]
        self.names = tuple(name for part in alone for name in names[part])
        self.lane_counts += [1] * len(self.alone)

        directs: dict[LearningRule, list[tuple[int, int]]] = {}
        for part in plan.parts:
            for place, module in zip(part.lanes, candidates[part], strict=True):
                if part.way == "stacked" and isinstance(module, DirectOperation):
                    directs.setdefault(module.rule, []).append(place)
        self.direct = nn.ModuleList(
            StackedDirect(rule, len(directs[rule]), channels) for rule in sorted(directs, key=str)
        )
        """For each direct rule, what sends the output's error to the node for its candidates."""
        self._direct_places = [directs[rule] for rule in sorted(directs, key=str)]
        """For each of them the (edge, column) of its members."""
        unjoined = [part for part in plan.parts if part not in joined and part.way != "alone"]
        self._places = {
            place: (number, lane)
            for number, part in enumerate([*joined, *unjoined])
            for lane, place in enumerate(part.lanes)
        }
        """For (edge, column) the number of the part, joined ones first, and the lane in it."""
        self._alone_places = [place for part in alone for place in part.lanes]

    def forward(self, x_nchw: Tensor, weights: Iterator[LaneWeights]) -> dict[int, Tensor]:
        """Map the node's output (N, C, H, W) to what each edge e brings, (N, C, H', W').

        `weights` yields those of so many lanes as `lane_counts` says.
        """
        x = x_nchw
        for carrier in self.direct:
            x = carrier(x)
        maps = NodeMaps(x)
        total: Tensor | None = None  # (N, H', W', E, C)
        for part in self.unjoined if self.joined is None else [self.joined, *self.unjoined]:
            y_nhwec = part(maps, next(weights))
            total = y_nhwec if total is None else total + y_nhwec
        sums: dict[int, Tensor] = {}
        if total is not None:
            sums = dict(enumerate(y.permute(0, 3, 1, 2) for y in total.unbind(3)))
        for number, e in enumerate(self.alone_edges):
            _add(sums, e, next(weights).factors * self._alone_on(number, x_nchw))
        return sums

    def _alone_on(self, number: int, x_nchw: Tensor) -> Tensor:
        """Run a candidate of those that run one by one.

        Raises InputError unless it keeps to what an operation is, as one of a plug-in may not: maps
        of another shape would be broadcast in the sum, as at sizes that `networks.trial` did not
        try, and others read the input, too.
        """
        module, before = self.alone[number], changes(x_nchw)
        y = module(x_nchw)
        where = f"operation at {self.names[number]} ({type(module).__name__})"
        check_output(where, y, x_nchw, self.channels, self.plan.stride)
        if changes(x_nchw) != before:
            raise InputError(
                f"{where}: expected the input to stay as it is, found it changed in place, though "
                "other candidates read it; leave out inplace=True in the operation's first layer"
            )
        return y

    def drawn(self, x_nchw: Tensor, columns: Sequence[int], weights: Tensor) -> dict[int, Tensor]:
        """Compute one candidate an edge: what `forward` returns if the others have no weight.

        Args:
            x_nchw: The node's output.
            columns: For each edge the column of its candidate, or LEFT_OUT.
            weights: (E,), the weight of each of them.
        """
        places = list(enumerate(columns))
        x = x_nchw
        for carrier, of_carrier in zip(self.direct, self._direct_places, strict=True):
            members = [number for number, place in enumerate(of_carrier) if place in places]
            if members:
                with only([cast(StackedDirect, carrier)], _subset(members, x.device)):
                    x = carrier(x)
        sums = {
            e: weights[e].to(x.dtype) * self._alone_on(number, x_nchw)
            for number, (e, column) in enumerate(self._alone_places)
            if columns[e] == column
        }
        # For each part of `_places`, by its number, the lanes that were drawn: (lane, edge).
        lanes: dict[int, list[tuple[int, int]]] = {}
        for place in places:
            if place in self._places:
                number, lane = self._places[place]
                lanes.setdefault(number, []).append((lane, place[0]))
        maps = NodeMaps(x)
        joined = 0 if self.joined is None else len(self.joined.lanes)
        for number, of_part in lanes.items():
            lane_numbers, edges = zip(*sorted(of_part), strict=True)
            subset = _subset(lane_numbers, x.device)
            each = torch.stack([weights[e] for e in edges])
            by_channel = for_each_channel(each, self.channels)
            of_lanes = LaneWeights(each, each.to(x.dtype), by_channel)
            if number < joined:
                assert self.joined is not None
                y_nhwec = self.joined.drawn(number, maps, of_lanes, subset)
            else:
                y_nhwec = self.unjoined[number - joined](maps, of_lanes, subset)
            for e, y_nhwc in zip(edges, y_nhwec.unbind(3), strict=True):
                sums[e] = y_nhwc.permute(0, 3, 1, 2)
        n, c, h, w = x.shape
        stride = self.plan.stride
        for e in range(len(columns)):
            if e not in sums:  # `none`, or nothing
                nothing = weights[e].to(x.dtype) * 0
                sums[e] = nothing.expand(n, c, -(-h // stride), -(-w // stride))
        return sums


def _subset(numbers: Sequence[int], device: torch.device) -> Subset:
    return Subset(tuple(numbers), send(torch.tensor(numbers), device))


class PartialChannels(nn.Module):
    """1/k of the channels for the candidates, the others past them (PC-DARTS, arXiv 1907.05737)."""

    def __init__(self, partial: int, row_masks: Tensor) -> None:
        """Split by k = `partial`; `row_masks` (edges, candidates) is False where a row is padded."""
        super().__init__()
        self.partial = partial
        self.register_buffer("mask", row_masks, persistent=False)

    def passing_weights(self, weights: Tensor) -> Sequence[Tensor]:
        """Sum the weights (edges, candidates) over each edge's candidates."""
        return (weights * self.get_buffer("mask")).sum(1).unbind()

    def forward(self, x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """Split x (N, C, H, W) into what the candidates see and what passes by.

        The first is (N, C/k, H, W); the second, pooled at stride 2, (N, C - C/k, H', W').
        """
        chosen, passing = x.tensor_split([x.shape[1] // self.partial], dim=1)
        if stride > 1:
            passing = F.max_pool2d(passing, stride, ceil_mode=True)
        # Channels last in memory, in words that torch.vmap knows.
        return chosen.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), passing

    def shuffled(self, mixed: Tensor, passed: Tensor) -> Tensor:
        """Put both side by side, every k-th channel from `mixed`: (N, C, H, W).

        It is linear, so a node does it once for the sum of its edges.
        """
        groups = [mixed, *passed.chunk(self.partial - 1, dim=1)]
        y_nhwck = torch.stack([group.permute(0, 2, 3, 1) for group in groups], dim=4)
        return y_nhwck.flatten(3).permute(0, 3, 1, 2)  # C/k, k -> C


class MixedCell(nn.Module):
    """A supernet's cell on its prepared inputs, batched.

    Its output is the concatenation of the space's output nodes. It equals `ReferenceCell`, and as
    that is a function of the edge weights (edges, candidates). `SharedFeedback` has to lend it kernels
    before a pass, as `SuperNet` does; without them all errors go through W.

    >>> import torch
    >>> from darts_bio.networks import SuperNet
    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("darts(nodes=1)")
    >>> net = SuperNet(space, ("fa", "usf"), channels=4, layers=3, num_classes=10)
    >>> weights = {name: torch.rand(net.table.shape(name)) for name in net.table.rows}
    >>> net(torch.randn(2, 3, 8, 8), weights).shape
    torch.Size([2, 10])
    """

    memory_format = torch.channels_last
    folded = False

    def __init__(
        self,
        space: Space,
        cell_type: str,
        rows: Sequence[Row],
        channels: int,
        partial: int = 1,
        shared: Scale | None = None,
        skip_rate: Tensor | None = None,
    ) -> None:
        super().__init__()
        builder = CandidateBuilder()
        edges = [
            [
                builder.build(blueprint)
                for blueprint in row_blueprints(
                    row,
                    channels // partial,
                    space.stride(cell_type, source),
                    shared=shared,
                    normalizes_pools=space.normalizes_pools,
                    skip_rate=skip_rate,
                )
            ]
            for row, (_, source) in zip(rows, space.edges, strict=True)
        ]
        self.pooled = None if shared is None else PooledRows(rows)
        if self.pooled is not None:
            rows = self.pooled.rows
        forms = [[candidate.form for candidate in edge] for edge in edges]
        self.plan: CellPlan = plan_cell(space, cell_type, rows, forms)
        self.outputs = space.outputs
        self.blocks = nn.ModuleList(
            SourceBlock(
                block,
                [edges[edge] for edge in block.edges],
                channels // partial,
                self.folded,
            )
            for block in self.plan.blocks
        )
        self.register_buffer("order", torch.tensor(self.plan.lane_order), persistent=False)
        self.lane_counts = [count for block in self.blocks for count in block.lane_counts]  # type: ignore[union-attr]
        self.channels = channels // partial
        masks = torch.tensor([[candidate is not None for candidate in row] for row in rows])
        self.partial = PartialChannels(partial, masks) if partial > 1 else None

    def forward(
        self, states: list[Tensor], weights: Tensor, drawn: Sequence[int] | None = None
    ) -> Tensor:
        """Map the inputs, each (N, C, H, W), by weights (edges, candidates).

        `drawn` is the column of the one candidate of each edge that is computed, or LEFT_OUT, the
        others being without weight; None computes all.
        """
        if self.pooled is not None:
            weights = self.pooled(weights)
            drawn = None if drawn is None else self.pooled.columns(drawn)
        if drawn is None:
            lanes = self._lane_weights(weights, states[0].dtype)
        nodes = dict(enumerate(states))
        mixed: dict[int, Tensor] = {}  # for each node the sum over its edges
        passed: dict[int, Tensor] = {}  # likewise, of the channels past the candidates

        def output(node: int) -> Tensor:
            if node not in nodes:
                y = mixed[node]
                nodes[node] = y if self.partial is None else self.partial.shuffled(y, passed[node])
            return nodes[node]

        if self.partial is not None:
            passing_weights = self.partial.passing_weights(weights)
        for block in self.blocks:
            assert isinstance(block, SourceBlock)
            plan = block.plan
            x = output(plan.source)
            if self.partial is not None:
                x, passing = self.partial(x, plan.stride)
                for edge, node in zip(plan.edges, plan.targets, strict=True):
                    _add(passed, node, passing_weights[edge] * passing)
            if drawn is None:
                brought = block(x, lanes)
            else:
                edges = list(plan.edges)
                columns = [drawn[edge] for edge in edges]
                # An edge that is left out has no weight at any column.
                places = [edge * weights.shape[1] + max(0, drawn[edge]) for edge in edges]
                each = weights.flatten().gather(0, send(torch.tensor(places), x.device))
                brought = block.drawn(x, columns, each)
            for e, y in brought.items():
                _add(mixed, plan.targets[e], y)
        return torch.cat([output(node) for node in self.outputs], dim=1)

    def stacked_layers(self) -> list[StackedConv2d]:
        """Return the cell's stacked convolutions in the order of their places in the reference.

        So what is drawn for them does not depend on how parts are computed.
        """
        layers = [layer for layer in self.modules() if isinstance(layer, StackedConv2d)]
        return sorted(layers, key=lambda layer: place_in_reference(layer.names[0]))

    def _lane_weights(self, weights: Tensor, dtype: torch.dtype) -> Iterator[LaneWeights]:
        """Yield the weights (edges, candidates) as the blocks take them; `dtype` is the maps'."""
        each = weights.flatten().index_select(0, self.get_buffer("order"))
        # For all of the cell at once, not in each part.
        by_channel = for_each_channel(each, self.channels)
        sizes = [count * self.channels for count in self.lane_counts]
        return map(
            LaneWeights,
            each.split(self.lane_counts),
            each.to(dtype).split(self.lane_counts),
            by_channel.split(sizes),
        )


def place_in_reference(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts names such as "edges.10.4.1" by their numbers."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in name.split(".")]


def _add(sums: dict[int, Tensor], key: int, y: Tensor) -> None:
    sums[key] = sums[key] + y if key in sums else y


class FoldedCell(MixedCell):
    """A `MixedCell` that keeps less in training (`networks.folded`).

    No output of a pointwise convolution is kept that a batch norm follows, but for those that read
    the node itself (factorized reductions).
    """

    folded = True
