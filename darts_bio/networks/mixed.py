"""The mixed operation, batched: everything that leaves a node of the supernet is computed together.

The edges that leave a node share its output x. So what has no weights (identity, pools) is computed
once, what has weights is one stacked layer for all edges and rules, and zeros are left out:

    x -+- ReLU -+- sep_conv_3x3: depthwise, pointwise, norm, ReLU, depthwise, pointwise, norm * weights, sum -+
       |        +- ... each operation, for its R rules x E edges at once ...                                  +- E edges
       +- max_pool_3x3, avg_pool_3x3, identity: each once, times E weights                                   -+

The weight of a candidate is the gain of its last batch norm. All is exact: equal to
`reference.ReferenceCell`, from which it is built, up to rounding. Candidates that cannot be stacked
(an operation made of other layers, a rule that is not `batched`) run one by one, as there.

Tensors are channels last in memory: on CPUs depthwise convolutions are several times faster so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.networks.folded import FoldedMixture
from darts_bio.networks.reference import MixedOperation, ReferenceCell
from darts_bio.rules import RULES, DirectOperation, LearningRule, RuleConv2d, rule_carriers
from darts_bio.rules.pointwise import sampled
from darts_bio.rules.stacked import StackedConv2d, StackedDirect
from darts_bio.spaces import Space
from darts_bio.spaces.base import Row
from darts_bio.spaces.operations import EvenAndOdd, Zero, even_pixels, odd_pixels

WEIGHTLESS = (nn.Identity, nn.MaxPool2d, nn.AvgPool2d)


class LaneWeights(NamedTuple):
    """The weights of L candidates on edges: `each` (L,), `factors` (L,) in the dtype of the maps,
    which so keep theirs, and `by_channel` (L*C,), every one C times.
    """

    each: Tensor
    factors: Tensor
    by_channel: Tensor


class StackedBatchNorm(nn.Module):
    """The batch norms, without gain and bias, of M members side by side; `gain` (M*C,) is lent to
    it.
    """

    def __init__(self, members: Sequence[nn.BatchNorm2d], names: Sequence[str]) -> None:
        super().__init__()
        first = members[0]
        self.names = tuple(names)
        self.track_running_stats = True
        self.eps, self.momentum = first.eps, float(first.momentum or 0)  # None is not stacked
        for statistic in ("running_mean", "running_var"):
            self.register_buffer(
                statistic, torch.cat([getattr(member, statistic) for member in members])
            )

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        if not self.track_running_stats:
            return F.batch_norm(x, None, None, gain, None, True, 0.0, self.eps)
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, variance, gain, None, self.training, self.momentum, self.eps)

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor, pixels: int) -> None:
        """Moves the running statistics towards those of a batch of so many pixels; `variance` is
        the biased one.
        """
        if not self.track_running_stats:
            return
        self.get_buffer("running_mean").lerp_(mean, self.momentum)
        self.get_buffer("running_var").lerp_(
            variance * (pixels / max(1, pixels - 1)), self.momentum
        )

    def mix(self, x: Tensor, weights: LaneWeights, edges: int) -> Tensor:
        """Normalised, times the members' weights, summed over the rules: (N, H, W, E, C)."""
        return (
            by_member(self(x, weights.by_channel), len(self.names)).unflatten(3, (-1, edges)).sum(3)
        )


def by_member(y: Tensor, members: int) -> Tensor:
    """(N, M*C, H, W) as (N, H, W, M, C)."""
    return y.permute(0, 2, 3, 1).unflatten(3, (members, -1))


class FoldedNorm(nn.Module):
    """A stacked pointwise convolution and its batch norm, in training as one product that keeps
    nothing between them (`networks.folded`).
    """

    def __init__(self, convolution: StackedConv2d, norm: StackedBatchNorm) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, norm
        convolution.casts = (
            False  # a variance is a difference: the product that has it is made in float32
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, M*I, H, W) to (N, M*C, H, W)."""
        if not self.training:
            return self.norm(self.convolution(x))
        members = len(self.norm.names)
        gains = torch.ones(members, dtype=self.convolution.weight.dtype, device=x.device)
        return self._folded(x, gains, members).flatten(3).permute(0, 3, 1, 2)

    def mix(self, x: Tensor, weights: LaneWeights, edges: int) -> Tensor:
        """Convolved, then as `StackedBatchNorm.mix`."""
        if not self.training:
            return self.norm.mix(self.convolution(x), weights, edges)
        return self._folded(x, weights.each, edges)

    def _folded(self, x: Tensor, gains: Tensor, outputs: int) -> Tensor:
        weight, kernel = self.convolution.lent()
        self.convolution.note(x, weight.to(x.dtype))
        y, mean, variance, *_ = FoldedMixture.apply(
            x, weight, kernel, gains, outputs, self.norm.eps
        )
        self.norm.follow(mean, variance, x.shape[0] * x.shape[2] * x.shape[3])
        return y


class StackedEvenAndOdd(nn.Module):
    """`EvenAndOdd` of M members on the same input: (N, C, H, W) to (N, M*C', H', W')."""

    def __init__(
        self, members: Sequence[EvenAndOdd], names: Sequence[str], rules: Sequence[LearningRule]
    ) -> None:
        super().__init__()
        self.even, self.odd = (
            StackedConv2d(
                [getattr(m, half) for m in members],
                [f"{name}.{half}" for name in names],
                rules,
                shared=True,
            )
            for half in ("even", "odd")
        )
        self.members = len(members)

    def forward(self, x: Tensor) -> Tensor:
        halves = [
            by_member(y, self.members) for y in (self.even(even_pixels(x)), self.odd(odd_pixels(x)))
        ]
        return torch.cat(halves, dim=4).flatten(3).permute(0, 3, 1, 2)


def _leaves(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of a module that is layers in a row."""
    if isinstance(module, DirectOperation) and all(
        c.rule == RULES.build("bp") for _, c in rule_carriers(module.operation)
    ):
        yield from _leaves(module.operation, f"{name}.operation")
    elif isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        for child, layer in module.named_children():
            yield from _leaves(layer, f"{name}.{child}")
    else:
        yield name, module


def _plain_norm(layer: nn.Module) -> bool:
    """Whether it is a batch norm as operations have it in the supernet."""
    return (
        type(layer) is nn.BatchNorm2d
        and not layer.affine
        and layer.track_running_stats
        and layer.momentum is not None
    )


def _rules(
    layers: Sequence[nn.Module], direct: Sequence[LearningRule | None]
) -> list[LearningRule]:
    """The rules of layers, some in operations that are under a direct rule themselves."""
    return [
        cast(RuleConv2d, layer).rule if outer is None else outer
        for layer, outer in zip(layers, direct, strict=True)
    ]


def _stackable(layers: Sequence[nn.Module], direct: Sequence[LearningRule | None]) -> bool:
    """Whether they are convolutions that can stand side by side, in the order (rule, edge)."""
    for layer in layers:
        if (
            type(layer) is not RuleConv2d
            or layer.rule.direct
            or layer.bias is not None
            or layer.padding_mode != "zeros"
            or isinstance(layer.padding, str)
        ):
            return False
    rules = _rules(layers, direct)
    shapes = {(c.weight.shape, c.stride, c.padding, c.dilation, c.groups) for c in layers}
    runs = {len(list(run)) for _, run in groupby(rules)}
    return all(rule.batched for rule in rules) and len(shapes) == len(runs) == 1


def _stack_layer(
    layers: Sequence[nn.Module],
    names: Sequence[str],
    direct: Sequence[LearningRule | None],
    shared: bool,
) -> nn.Module | None:
    """Layers of the same place in M members as one; None if that cannot be. `direct`: the rules of
    members that are direct as a whole. `shared`: they have one common input.
    """
    kinds = {type(layer) for layer in layers}
    if kinds == {nn.ReLU}:
        return nn.ReLU()
    if all(map(_plain_norm, layers)):
        return StackedBatchNorm(layers, names)  # type: ignore[arg-type]
    if _stackable(layers, direct):
        return StackedConv2d(layers, names, _rules(layers, direct), shared)  # type: ignore[arg-type]
    if kinds == {EvenAndOdd} and shared:
        halves = list(zip(*(layer.children() for layer in layers), strict=True))
        if all(_stackable(half, direct) for half in halves):
            return StackedEvenAndOdd(layers, names, _rules(halves[0], direct))  # type: ignore[arg-type]
    return None


class StackedOperation(nn.Module):
    """One operation under R rules on the E edges that leave a node: x (N, C, H, W) and weights
    (R*E,) to (N, H', W', E, C), summed over the rules.
    """

    def __init__(self, layers: Sequence[nn.Module], members: int, edges: int) -> None:
        super().__init__()
        # The ReLU that stands first is the source's.
        self.rectified = isinstance(layers[0], nn.ReLU)
        self.layers = nn.ModuleList(layers[1:] if self.rectified else layers)
        self.members, self.edges = members, edges
        self.spread, self.strided = _spread(
            [layer for layer in layers if isinstance(layer, StackedConv2d)]
        )

    @classmethod
    def of(
        cls, modules: Sequence[nn.Module], names: Sequence[str], edges: int, folded: bool
    ) -> StackedOperation | None:
        """Of its members in the order (rule, edge); None if they cannot be stacked."""
        members = [list(_leaves(module, name)) for module, name in zip(modules, names, strict=True)]
        direct = [
            module.rule if isinstance(module, DirectOperation) else None for module in modules
        ]
        if len({len(leaves) for leaves in members}) > 1:
            return None
        layers: list[nn.Module] = []
        shared = True
        for place in zip(*members, strict=True):
            layer = _stack_layer(
                [leaf for _, leaf in place], [name for name, _ in place], direct, shared
            )
            if layer is None or (shared and isinstance(layer, StackedBatchNorm)):
                return None
            shared = shared and isinstance(layer, nn.ReLU)
            before = layers[-1] if layers else None
            if isinstance(layer, nn.ReLU):  # a norm's output is kept by nobody
                layer.inplace = isinstance(before, (StackedBatchNorm, FoldedNorm))
            if (
                folded
                and isinstance(before, StackedConv2d)
                and before.products
                and isinstance(layer, StackedBatchNorm)
            ):
                layer = FoldedNorm(layers.pop(), layer)  # type: ignore[arg-type]
            layers.append(layer)
        return None if shared else cls(layers, len(modules), edges)

    def forward(self, x: Tensor, rectified: Tensor, weights: LaneWeights) -> Tensor:
        """`rectified` is ReLU(x)."""
        y = rectified if self.rectified else x
        spread, parts = self.spread, 1
        if spread > 1 and self.strided:
            y = sampled(y, (spread, spread))  # no other pixel is read
        elif spread > 1 and y.shape[2] % spread == 0 and y.shape[3] % spread == 0:
            y, parts = take_apart(y, spread), spread
        else:
            spread = 1
        for layer in self.layers[:-1]:
            y = layer(y, spread) if isinstance(layer, StackedConv2d) else layer(y)
        last = self.layers[-1]
        if isinstance(last, (StackedBatchNorm, FoldedNorm)):
            return put_together(last.mix(y, weights, self.edges), parts)
        y = last(y, spread) if isinstance(last, StackedConv2d) else last(y)
        by_rule = by_member(y, self.members).unflatten(3, (-1, self.edges))
        return put_together((by_rule * weights.factors.view(-1, self.edges, 1)).sum(3), parts)


def _spread(convolutions: Sequence[StackedConv2d]) -> tuple[int, bool]:
    """The distance d > 1 between the pixels that an operation brings together, and whether it reads
    only every d-th; (1, False) if it brings neighbours together.

    Where all windows are dilated by d, pixels d apart form d*d maps that never meet: each is
    convolved without dilation, for which libraries have their fast kernels.
    """
    windows = [c for c in convolutions if c.weight.shape[2:] != (1, 1)]
    steps = {value for c in windows for value in c.dilation}
    strides = {value for c in convolutions for value in c.stride}
    if len(steps) != 1 or any(value % max(steps) for c in windows for value in c.padding):
        return 1, False
    (d,) = steps
    if strides == {1}:
        return d, False
    first_only = (
        len(windows) == 1 and convolutions[0] is windows[0] and set(windows[0].stride) == {d}
    )
    return (d, True) if first_only else (1, False)


def take_apart(x: Tensor, d: int) -> Tensor:
    """(N, C, H, W) to (d*d*N, C, H/d, W/d): pixels d apart as maps of their own."""
    parts = x.unflatten(3, (-1, d)).unflatten(2, (-1, d))  # N, C, H/d, d, W/d, d
    return parts.permute(3, 5, 0, 2, 4, 1).flatten(0, 2).permute(0, 3, 1, 2)


def put_together(y: Tensor, d: int) -> Tensor:
    """(d*d*N, H/d, W/d, E, C) to (N, H, W, E, C): the inverse of `take_apart`, channels last."""
    if d == 1:
        return y
    return y.unflatten(0, (d, d, -1)).permute(2, 3, 0, 4, 1, 5, 6).flatten(3, 4).flatten(1, 2)


class SharedOperation(nn.Module):
    """An operation without weights, computed once for the E edges that leave a node: x (N, C, H, W)
    and the weights of its K candidates an edge (K*E,) to (N, H', W', E, C).
    """

    def __init__(self, module: nn.Module, names: Sequence[str], edges: int) -> None:
        super().__init__()
        self.module, self.names, self.edges = module, tuple(names), edges

    @classmethod
    def of(
        cls, modules: Sequence[nn.Module], names: Sequence[str], edges: int
    ) -> SharedOperation | None:
        """Of equal members; None unless they consist of layers without weights that are known."""
        leaves = [leaf for module in modules for _, leaf in _leaves(module, "")]
        known = all(type(leaf) in WEIGHTLESS or _plain_norm(leaf) for leaf in leaves)
        return cls(modules[0], names, edges) if known else None

    def forward(self, x: Tensor, rectified: Tensor, weights: LaneWeights) -> Tensor:
        y = self.module(x).permute(0, 2, 3, 1)
        by_candidate = weights.factors.view(-1, self.edges)
        shares = by_candidate[0] if len(by_candidate) == 1 else by_candidate.sum(0)
        return y.unsqueeze(3) * shares.unsqueeze(1)


class SourceBlock(nn.Module):
    """All candidates on the edges that leave one node: x (N, C, H, W) to what each edge brings, by
    its number.

    `lanes` lists the (edge, candidate) pairs in the order in which `forward` is handed their
    weights; `names` says where those that run one by one stood in the reference.
    """

    def __init__(
        self, row: Row, edges: Sequence[MixedOperation], names: Sequence[str], folded: bool
    ) -> None:
        super().__init__()
        self.edges = len(edges)
        self.batched, self.single = nn.ModuleList(), nn.ModuleList()
        self.lanes: list[tuple[int, int]] = []
        self.counts: list[int] = []
        alone: list[tuple[int, int]] = []
        columns: dict[str, list[int]] = {}
        zeros = [
            all(isinstance(edge[column], Zero) for edge in edges) for column in range(len(edges[0]))
        ]
        for column, candidate in enumerate(row):
            if candidate is not None and (not zeros[column] or all(zeros)):
                columns.setdefault(candidate.op, []).append(column)
        direct: list[DirectOperation] = []
        for own in columns.values():
            part, taken = _batch(edges, names, own, folded)
            if part is not None:
                self.batched.append(part)
                lanes = [(e, column) for column in taken for e in range(len(edges))]
                self.lanes += lanes
                self.counts.append(len(lanes))
                candidates = [edges[e][column] for e, column in lanes]
                direct += [
                    candidate for candidate in candidates if isinstance(candidate, DirectOperation)
                ]
            alone += [
                (e, column) for column in own if column not in taken for e in range(len(edges))
            ]
        self.alone = tuple(e for e, _ in alone)
        self.single.extend(edges[e][column] for e, column in alone)
        self.names = tuple(f"{names[e]}.{column}" for e, column in alone)
        self.lanes += alone
        self.counts += [1] * len(alone)
        self.direct = nn.ModuleList(
            StackedDirect(rule, len(list(own)), direct[0].channels)
            for rule, own in groupby(sorted((operation.rule for operation in direct), key=str))
        )
        """One for each direct rule that stacked candidates are under."""

    def forward(self, x: Tensor, weights: Sequence[LaneWeights]) -> dict[int, Tensor]:
        """`weights`: those of the lanes, split by `counts` into the block's parts. Each edge brings
        (N, C, H', W').
        """
        plain = x
        for carrier in self.direct:
            x = carrier(x)
        rectified = x.relu()
        total: Tensor | None = None
        for part, own in zip(self.batched, weights, strict=False):
            y = part(x, rectified, own)
            total = y if total is None else total + y
        brought = (
            dict(enumerate(y.permute(0, 3, 1, 2) for y in total.unbind(3)))
            if total is not None
            else {}
        )
        for e, module, weight in zip(
            self.alone, self.single, weights[len(self.batched) :], strict=True
        ):
            y = weight.factors * module(plain)
            brought[e] = brought[e] + y if e in brought else y
        return brought


Part = StackedOperation | SharedOperation


def _batch(
    edges: Sequence[MixedOperation], names: Sequence[str], columns: list[int], folded: bool
) -> tuple[Part | None, list[int]]:
    """One operation's candidates, those in `columns` of each edge, as one module; and the columns
    that it takes.
    """

    def members(columns: Sequence[int]) -> tuple[list[nn.Module], list[str]]:
        places = [
            (edge[column], f"{name}.{column}")
            for column in columns
            for edge, name in zip(edges, names, strict=True)
        ]
        return [module for module, _ in places], [name for _, name in places]

    shared = SharedOperation.of(*members(columns), len(edges))
    if shared is not None:
        return shared, columns
    taken = [
        column
        for column in columns
        if StackedOperation.of(*members([column]), len(edges), folded) is not None
    ]
    stacked = StackedOperation.of(*members(taken), len(edges), folded) if taken else None
    return stacked, taken if stacked is not None else []


class PartialChannels(nn.Module):
    """1/k of the channels for the candidates, the others for the way past them (PC-DARTS, arXiv
    1907.05737).
    """

    def __init__(self, partial: int, row_masks: Tensor) -> None:
        super().__init__()
        self.partial = partial
        self.register_buffer("mask", row_masks, persistent=False)

    def passing_weights(self, weights: Tensor) -> Sequence[Tensor]:
        """Per edge the sum over its candidates."""
        return (weights * self.get_buffer("mask")).sum(1).unbind()

    def forward(self, x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) to what the candidates see (N, C/k, H, W) and what passes by (N, C - C/k,
        H', W').
        """
        chosen, passing = x.tensor_split([x.shape[1] // self.partial], dim=1)
        if stride > 1:
            passing = F.max_pool2d(passing, stride, ceil_mode=True)
        # Channels last in memory, in words that torch.vmap knows.
        return chosen.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), passing

    def shuffled(self, mixed: Tensor, passed: Tensor) -> Tensor:
        """Both side by side, every k-th channel from `mixed`: (N, C, H, W). It is linear, so a node
        does it once for the sum of its edges.
        """
        groups = [mixed, *passed.chunk(self.partial - 1, dim=1)]
        return (
            torch.stack([group.permute(0, 2, 3, 1) for group in groups], dim=4)
            .flatten(3)
            .permute(0, 3, 1, 2)
        )


class MixedCell(nn.Module):
    """A supernet's cell on its prepared inputs; the output is the concatenation of the space's
    output nodes. Equal to `ReferenceCell`, and as it a function of the edge weights (edges,
    candidates).

    Its stacked layers need the kernels that `SharedFeedback` lends before a pass.
    """

    memory_format = torch.channels_last
    folded = False

    def __init__(
        self, space: Space, cell_type: str, rows: Sequence[Row], channels: int, partial: int = 1
    ) -> None:
        super().__init__()
        plain = ReferenceCell(space, cell_type, rows, channels, partial)
        self.outputs = space.outputs
        leaving: dict[tuple[int, Row], list[int]] = {}
        for index, (_, source) in enumerate(space.edges):
            leaving.setdefault((source, rows[index]), []).append(index)
        self.blocks = nn.ModuleList()
        self.wiring: list[tuple[int, int, tuple[tuple[int, int], ...]]] = []
        """Per block its source, its stride, and per edge the node that it leads to and its row of
        the weights."""
        order: list[int] = []
        self.counts: list[int] = []
        for (source, row), indices in sorted(leaving.items(), key=lambda item: item[0][0]):
            edges = [edge for index, edge in enumerate(plain.edges) if index in indices]
            names = [f"edges.{index}" for index in indices]
            block = SourceBlock(row, edges, names, self.folded)  # type: ignore[arg-type]
            self.blocks.append(block)
            self.counts += block.counts
            targets = tuple((space.edges[index][0], index) for index in indices)
            self.wiring.append((source, space.stride(cell_type, source), targets))
            order += [indices[e] * len(row) + column for e, column in block.lanes]
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.channels = channels // partial
        masks = torch.tensor([[candidate is not None for candidate in row] for row in rows])
        self.partial = PartialChannels(partial, masks) if partial > 1 else None

    def forward(self, states: list[Tensor], weights: Tensor) -> Tensor:
        """states: the inputs (N, C, H, W); weights: (edges, candidates)."""
        lanes = self._lane_weights(weights, states[0].dtype)
        nodes = dict(enumerate(states))
        brought: dict[int, Tensor] = {}
        passed: dict[int, Tensor] = {}

        def output(node: int) -> Tensor:
            if node not in nodes:
                y = brought[node]
                nodes[node] = y if self.partial is None else self.partial.shuffled(y, passed[node])
            return nodes[node]

        if self.partial is not None:
            passing_weights = self.partial.passing_weights(weights)
        for block, (source, stride, targets) in zip(self.blocks, self.wiring, strict=True):
            assert isinstance(block, SourceBlock)
            x = output(source)
            if self.partial is not None:
                x, passing = self.partial(x, stride)
                for node, index in targets:
                    _add(passed, node, passing_weights[index] * passing)
            own = [next(lanes) for _ in block.counts]
            for e, y in block(x, own).items():
                _add(brought, targets[e][0], y)
        return torch.cat([output(node) for node in self.outputs], dim=1)

    def _lane_weights(self, weights: Tensor, dtype: torch.dtype) -> Iterator[LaneWeights]:
        """The weights (edges, candidates) in the order in which the parts of the blocks are handed
        theirs; the maps are of that dtype.
        """
        each = weights.flatten().index_select(0, self.get_buffer("order"))
        # A batch norm wants its gain by channel and contiguous: for all of the cell at once, not in
        # each part.
        by_channel = each.unsqueeze(1).expand(-1, self.channels).reshape(-1)
        sizes = [count * self.channels for count in self.counts]
        return map(
            LaneWeights,
            each.split(self.counts),
            each.to(dtype).split(self.counts),
            by_channel.split(sizes),
        )


def _add(sums: dict[int, Tensor], node: int, y: Tensor) -> None:
    sums[node] = sums[node] + y if node in sums else y


class FoldedCell(MixedCell):
    """A `MixedCell` that keeps less: no output of a pointwise convolution (`networks.folded`)."""

    folded = True
