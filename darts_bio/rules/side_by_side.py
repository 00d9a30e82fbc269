"""What many equal convolutions side by side learn under a local rule, for a whole network at once.

What a local rule wants of a weight depends on the layer's input and on the weight, and on no error.
So it need not be found layer by layer while the error goes down:

    weights -> LentWeights -> stacked layers, each of which notes its input -> LocalUpdates -> logits
                  |                                                                 |
                  +----------------- the slot, a tensor that nobody reads ----------+

In the backward pass `LocalUpdates` comes first. It brings the inputs of all layers of one geometry
together, asks the rule once for each geometry, and hands what it is told to `LentWeights` as the
gradient of the slot. `LentWeights` comes last and puts that in the place of the ordinary gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.rules.base import LearningRule
from darts_bio.rules.functional import (
    Convolution,
    convolution_gradients,
    first_derivative_only,
    matrices,
    products,
    rows,
)

VECTOR = 16
"""Channels below which PyTorch's softmax on a CPU is ten times faster over a dimension that is not
the last."""

TOGETHER = 2**24
"""Entries of the inputs that are brought together, at most, where one layer alone has fewer: 64 MB
in float32."""


@dataclass(frozen=True)
class SideBySide(Convolution):
    """M equal convolutions, each of an input of its own, as a linear map of x (P*N, M*C, H, W) with
    weight (M*O, I, *window), channels last in memory (`rules.base.Operator`).

    A sample may lie there in P parts: part p of sample n is entry p*N + n.
    """

    members: int
    samples: int

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self._by_matrices(weight):
            return super().apply(x, weight, bias)
        return products(x, matrices(weight, self.members).mT)

    def transposed(self, dy: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
        return (
            products(dy, matrices(kernel, self.members))
            if self._by_matrices(kernel)
            else super().transposed(dy, x, kernel)
        )

    def correlation(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        if not self._by_matrices(weight):
            padding = self.padding
            if x.shape[3] < weight.shape[3]:  # a window wider than the map: see `wide_depthwise`
                x, padding = F.pad(x, (padding[1], padding[1], padding[0], padding[0])), (0, 0)
            geometry = (self.stride, padding, self.dilation, self.groups, (False, True, False))
            return cast(Tensor, convolution_gradients(dy, x, weight, None, *geometry)[1])
        return torch.bmm(rows(dy, self.members).mT, rows(x, self.members)).view_as(weight)

    def _by_matrices(self, weight: Tensor) -> bool:
        single_pixels = (
            weight.shape[2:] == (1, 1) and self.stride == (1, 1) and not any(self.padding)
        )
        return single_pixels and self.groups == self.members

    def each(self, function: Callable[[Tensor, int], Tensor], y: Tensor) -> Tensor:
        pixels = y.permute(0, 2, 3, 1)
        by_layer = pixels.unflatten(3, (self.members, -1))
        if by_layer.shape[4] >= VECTOR or y.device.type != "cpu":
            return function(by_layer, 4).flatten(3).permute(0, 3, 1, 2)
        few = by_layer.flatten(0, 3).t()
        return function(few, 0).t().reshape(pixels.shape).permute(0, 3, 1, 2)

    def energies(self, values: Tensor) -> Tensor:
        """(N, M)."""
        by_channel = self._by_sample(values).square().sum((0, 2))  # (N, M*C)
        return by_channel.unflatten(1, (self.members, -1)).sum(2)

    def moved(self, values: Tensor, lengths: Tensor, direction: Tensor) -> Tensor:
        n, channels = values.shape[0], values.shape[1]
        by_channel = lengths.repeat_interleave(
            channels // self.members, dim=1, output_size=channels
        ).unsqueeze(1)
        moved = torch.addcmul(self._by_sample(values), by_channel, self._by_sample(direction))
        return moved.view(n, *values.shape[2:], channels).permute(0, 3, 1, 2)

    def energy(self, y: Tensor) -> Tensor:
        by_layer = self.energies(y).sum(0)
        return by_layer.repeat_interleave(y.shape[1] // self.members, output_size=y.shape[1]).view(
            -1, 1, 1, 1
        )

    def _by_sample(self, values: Tensor) -> Tensor:
        """(P*N, M*C, H, W) as (P, N, H*W, M*C)."""
        return values.permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, (-1, self.samples))


class LentWeights(torch.autograd.Function):
    """The weights of layers as they are, each (rules * n, ...), and the slot.

    The gradient of a weight's rows under the rules of the numbers `local` comes from the slot, the
    others' are the ordinary ones.
    """

    @staticmethod
    def forward(local: tuple[int, ...], rules: int, *weights: Tensor) -> tuple[Tensor, ...]:
        size = sum(weight.numel() // rules for weight in weights) * len(local)
        return *(weight.view_as(weight) for weight in weights), weights[0].new_empty(size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.local, ctx.rules = inputs[:2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        *ordinary, slot = gradients
        runs = [
            (local, len(list(run)))
            for local, run in groupby(rule in ctx.local for rule in range(ctx.rules))
        ]
        sizes = [gradient.numel() // ctx.rules for gradient in ordinary for _ in ctx.local]
        updates = iter(slot.split(sizes))
        pieces: list[Tensor] = []
        for gradient in ordinary:
            row, flat = gradient.numel() // ctx.rules, gradient.reshape(-1)
            first = 0
            for local, count in runs:
                if local:
                    pieces += [next(updates) for _ in range(count)]
                else:
                    pieces.append(flat[first * row : (first + count) * row])
                first += count
        together = torch.cat(pieces).split([gradient.numel() for gradient in ordinary])
        return (
            None,
            None,
            *(own.view_as(gradient) for own, gradient in zip(together, ordinary, strict=True)),
        )


class Noted(NamedTuple):
    """Holds what a stacked layer of M members has seen: x (N, M*C, H, W), or (N, C, H, W) where all
    members share it, the weight that it multiplied x by, and the geometry of one member.
    """

    x: Tensor
    weight: Tensor
    members: int
    shared: bool
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def by_member(self) -> Tensor:
        """x of each member: (N, H, W, M, C)."""
        x = self.x.permute(0, 2, 3, 1)
        return (
            x.unsqueeze(3).expand(-1, -1, -1, self.members, -1)
            if self.shared
            else x.unflatten(3, (self.members, -1))
        )


class LocalUpdates(torch.autograd.Function):
    """The logits (N, K) as they are. In the backward pass the slot's gradient is what the local
    ones among the `rules` want of the layers that were `noted`; the members of a layer stand in the
    order (rule, edge).
    """

    @staticmethod
    def forward(
        logits: Tensor,
        slot: Tensor,
        rules: tuple[LearningRule | None, ...],
        geometries: Sequence[tuple[Any, ...]],
        *seen: Tensor,
    ) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        logits, slot, ctx.rules, ctx.geometries, *seen = inputs
        ctx.samples, ctx.dtype = len(logits), slot.dtype
        ctx.save_for_backward(*seen)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        seen = ctx.saved_tensors
        noted = [
            Noted(*seen[2 * i : 2 * i + 2], *geometry) for i, geometry in enumerate(ctx.geometries)
        ]
        updates = torch.cat(
            [update.flatten() for update in local_updates(ctx.rules, noted, ctx.samples)]
        )
        return error, updates.to(ctx.dtype), None, None, *[None] * len(seen)


def local_updates(
    rules: Sequence[LearningRule | None], noted: Sequence[Noted], samples: int
) -> list[Tensor]:
    """Return what each rule that is not None wants of its members of each layer, layer by layer and
    rule by rule.

    Layers of one geometry are brought together.
    """
    places: dict[Any, list[tuple[int, Tensor, Tensor]]] = {}
    count = 0
    for layer in noted:
        x, weight = layer.by_member(), layer.weight.unflatten(0, (layer.members, -1))
        edges = layer.members // len(rules)
        for rule, own_x, own_weight in zip(
            rules, x.split(edges, dim=3), weight.split(edges), strict=True
        ):
            if rule is None:
                continue
            key = (
                rule,
                layer[4:],
                own_weight.shape[1:],
                own_x.shape[:3],
                own_x.shape[4],
                own_x.dtype,
            )
            places.setdefault(key, []).append((count, own_x, own_weight))
            count += 1
    updates: dict[int, Tensor] = {}
    for (rule, (stride, padding, dilation, groups), *_), own in places.items():
        for part in _parts(own):
            numbers, inputs, weights = zip(*part, strict=True)
            x, weight = torch.cat(inputs, dim=3), torch.cat(weights)
            members = len(weight)
            operator = SideBySide(stride, padding, dilation, members * groups, members, samples)
            update = rule.update(x.flatten(3).permute(0, 3, 1, 2), weight.flatten(0, 1), operator)
            pieces = update.unflatten(0, (members, -1)).split([len(own) for own in weights])
            updates.update(zip(numbers, pieces, strict=True))
    return [updates[number] for number in range(count)]


def _parts(places: list[tuple[int, Tensor, Tensor]]) -> Iterator[list[tuple[int, Tensor, Tensor]]]:
    """Runs of places whose inputs have up to `TOGETHER` entries, or of a single one."""
    part: list[tuple[int, Tensor, Tensor]] = []
    size = 0
    for place in places:
        entries = place[1].numel()
        if part and size + entries > TOGETHER:
            yield part
            part, size = [], 0
        part.append(place)
        size += entries
    yield part
