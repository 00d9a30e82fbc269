"""What many equal convolutions side by side learn under a local rule, for a whole network at once.

What a local rule wants of a weight depends on the layer's input and on the weight, and on no error.
So it need not be found layer by layer while the error goes down:

    weights -> LentWeights -> stacked layers, each of which notes its input -> LocalUpdates -> logits
                  |                                                                 |
                  +----------------- the slot, a tensor that nobody reads ----------+

In the backward pass `LocalUpdates` comes first. It brings the inputs of all layers of one geometry
together, asks the rule once for each geometry, and hands what it is told to `LentWeights` as the
gradient of the slot. `LentWeights` comes last and puts that in the place of the ordinary gradients.
The slot's values are never read: its gradient, one entry for each weight under a local rule, is the
way that updates take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from darts_bio.rules.base import LearningRule
from darts_bio.rules.convolution import convolution_gradients
from darts_bio.rules.functional import first_derivative_only
from darts_bio.rules.members import VECTOR, correlations, matrices, pixels_of, products
from darts_bio.rules.operators import Convolution
from darts_bio.rules.pointwise import multiplies_pixels

TOGETHER = 2**24
"""The most input entries that are brought together for one call of a rule, 64 MB in float32; a
larger layer is handled alone."""


@dataclass(frozen=True)
class SideBySide(Convolution):
    """M equal convolutions, each of an input of its own, as one `rules.base.Operator`.

    x is (P*N, M*C, H, W), channels last in memory, and the weight (M*O, I, *window). A sample may
    lie there in P maps, as those that were taken apart do: map p of sample n is entry p*N + n.
    Suffixes of tensors: p maps of a sample, n samples, s = h*w pixels, m members, c their channels.
    """

    members: int
    samples: int

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self._by_matrices(weight):
            return super().apply(x, weight, bias)
        return products(x, matrices(weight, self.members).mT)

    def transposed(self, dy: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
        if not self._by_matrices(kernel):
            return super().transposed(dy, x, kernel)
        return products(dy, matrices(kernel, self.members))

    def correlation(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        if self._by_matrices(weight):
            return correlations(pixels_of(dy), pixels_of(x), self.members).reshape(weight.shape)
        geometry = (self.stride, self.padding, self.dilation, self.groups, (False, True, False))
        return cast(Tensor, convolution_gradients(dy, x, weight, None, *geometry)[1])

    def _by_matrices(self, weight: Tensor) -> bool:
        """Tell whether each member multiplies the pixels of its input by a matrix."""
        by_matrix = multiplies_pixels(weight.shape[2:], self.stride, self.padding)
        return by_matrix and self.groups == self.members

    def each(self, function: Callable[[Tensor, int], Tensor], y: Tensor) -> Tensor:
        pixels = y.permute(0, 2, 3, 1)  # (P*N, H, W, M*C)
        by_member = pixels.unflatten(3, (self.members, -1))
        if by_member.shape[4] >= VECTOR or y.device.type != "cpu":
            return function(by_member, 4).flatten(3).permute(0, 3, 1, 2)
        # PyTorch's softmax over fewer is ten times faster over a dimension that is not the last.
        few_channels_first = by_member.flatten(0, 3).t()  # (C, all pixels of all members)
        transformed = function(few_channels_first, 0)
        return transformed.t().reshape(pixels.shape).permute(0, 3, 1, 2)

    def energies(self, values: Tensor) -> Tensor:
        """Return (N, M)."""
        by_channel = self._by_sample(values).square().sum((0, 2))  # (N, M*C)
        return by_channel.unflatten(1, (self.members, -1)).sum(2)

    def moved(self, values: Tensor, lengths: Tensor, direction: Tensor) -> Tensor:
        n, channels = values.shape[0], values.shape[1]
        of_channels = lengths.repeat_interleave(
            channels // self.members, dim=1, output_size=channels
        )  # (N, M) -> (N, M*C)
        lengths = of_channels.unsqueeze(1)  # (N, 1, M*C): spreads over maps and pixels
        moved = torch.addcmul(self._by_sample(values), lengths, self._by_sample(direction))
        return moved.view(n, *values.shape[2:], channels).permute(0, 3, 1, 2)

    def by_layer(self, weight: Tensor) -> Tensor:
        return weight.unflatten(0, (self.members, -1))

    def weight_energy(self, weight: Tensor) -> Tensor:
        """Return (M,)."""
        return self.by_layer(weight).square().flatten(1).sum(1)

    def _by_sample(self, values: Tensor) -> Tensor:
        """Return (P*N, M*C, H, W) as (P, N, S, M*C)."""
        return values.permute(0, 2, 3, 1).flatten(1, 2).unflatten(0, (-1, self.samples))


class LentWeights(torch.autograd.Function):
    """The weights of layers as they are, each (R*n, ...) for R rules, and the slot.

    In the backward pass a weight's rows under the rules of the numbers `local` get their gradient
    from the slot, and all others the ordinary one.
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
        # Rules of one kind that are neighbors are handled together: (is local, how many).
        is_local = [rule in ctx.local for rule in range(ctx.rules)]
        runs = [(local, len(list(run))) for local, run in groupby(is_local)]
        sizes = [gradient.numel() // ctx.rules for gradient in ordinary for _ in ctx.local]
        updates = iter(slot.split(sizes))
        pieces: list[Tensor] = []
        for gradient in ordinary:
            flat = gradient.reshape(-1)
            size = gradient.numel() // ctx.rules  # of one rule
            first = 0
            for local, count in runs:
                if local:
                    pieces += [next(updates) for _ in range(count)]
                else:
                    pieces.append(flat[first * size : (first + count) * size])
                first += count
        merged = torch.cat(pieces).split([gradient.numel() for gradient in ordinary])
        views = [flat.view_as(gradient) for flat, gradient in zip(merged, ordinary, strict=True)]
        return None, None, *views


class Noted(NamedTuple):
    """What a stacked layer of M members has seen, and the geometry of one member.

    x is (N, M*C, H, W), or (N, C, H, W) where all members share it; `weight` (M*O, I, *window) is
    what it was multiplied by. Of a pass that computed a subset of the members (`stacked.only`) both
    hold these alone, and `present` their numbers.
    """

    x: Tensor
    weight: Tensor
    members: int
    present: tuple[int, ...] | None
    common_input: bool
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def by_member(self) -> Tensor:
        """Return x of each member present: (N, H, W, M, C)."""
        x, count = self.x.permute(0, 2, 3, 1), len(self.numbers)
        if self.common_input:
            return x.unsqueeze(3).expand(-1, -1, -1, count, -1)
        return x.unflatten(3, (count, -1))

    @property
    def numbers(self) -> Sequence[int]:
        """The numbers of the members present."""
        return range(self.members) if self.present is None else self.present


class LocalUpdates(torch.autograd.Function):
    """The logits (N, K) as they are, and in the backward pass a gradient for the slot.

    It is what the local ones among the `rules` want of the layers, given by their `geometries` and
    by the tensors `seen`, x and weight of each. The geometry of a layer that was not computed is
    the number of its weights under one rule, and it has seen nothing. The members of a layer stand
    in the order (rule, edge); a rule is None where it is not local or does not learn.
    """

    @staticmethod
    def forward(
        logits: Tensor,
        slot: Tensor,
        rules: tuple[LearningRule | None, ...],
        geometries: Sequence[tuple[Any, ...] | int],
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
        seen = iter(ctx.saved_tensors)
        layers = [
            geometry if isinstance(geometry, int) else Noted(next(seen), next(seen), *geometry)
            for geometry in ctx.geometries
        ]
        noted = [layer for layer in layers if isinstance(layer, Noted)]
        updates = iter(local_updates(ctx.rules, noted, ctx.samples))
        pieces = [
            error.new_zeros(layer) if isinstance(layer, int) else next(updates).flatten()
            for layer in layers
            for rule in ctx.rules
            if rule is not None
        ]
        flat = torch.cat([piece.to(ctx.dtype) for piece in pieces])
        return error, flat, None, None, *[None] * len(ctx.saved_tensors)


class _Members(NamedTuple):
    """The members of one layer under one rule, in the order in which updates are returned."""

    number: int
    edges: Sequence[int]  # those of the members present
    x: Tensor  # (N, H, W, edges, C)
    weight: Tensor  # (edges, O, I, *window)


def local_updates(
    rules: Sequence[LearningRule | None], noted: Sequence[Noted], samples: int
) -> list[Tensor]:
    """Return what local rules want of their members, layer by layer and rule by rule.

    Each rule is asked once for all layers of one geometry, or a few times if they are large. What it
    wants of a member that is not present is zero.

    Args:
        rules: the rules of every layer, None for those that are not asked.
        noted: what the layers have seen.
        samples: the number of images in the batch.
    """
    alike: dict[Any, list[_Members]] = {}
    updates: dict[int, Tensor] = {}
    count = 0
    for layer in noted:
        edges = layer.members // len(rules)  # of each rule
        present = [
            [member % edges for member in layer.numbers if member // edges == rule]
            for rule in range(len(rules))
        ]
        counts = list(map(len, present))
        inputs = layer.by_member().split(counts, dim=3)
        weights = layer.weight.unflatten(0, (sum(counts), -1)).split(counts)
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        for rule, of_rule, x, weight in zip(rules, present, inputs, weights, strict=True):
            if rule is None:
                continue
            if of_rule:
                shapes = (weight.shape[1:], x.shape[:3], x.shape[4], x.dtype)
                group = alike.setdefault((rule, geometry, shapes), [])
                group.append(_Members(count, of_rule, x, weight))
            if len(of_rule) < edges:  # zero for the members that are not present
                updates[count] = weight.new_zeros(edges, *weight.shape[1:])
            count += 1
    for (rule, (stride, padding, dilation, groups), _), group in alike.items():
        for run in _runs(group):
            x_nhwmc = torch.cat([each.x for each in run], dim=3)
            weight_moi = torch.cat([each.weight for each in run])
            m = len(weight_moi)
            operator = SideBySide(stride, padding, dilation, m * groups, m, samples)
            x_nMhw = x_nhwmc.flatten(3).permute(0, 3, 1, 2)  # M, C -> M*C
            update = rule.update(x_nMhw, weight_moi.flatten(0, 1), operator)
            pieces = update.unflatten(0, (m, -1)).split([len(each.weight) for each in run])
            for each, piece in zip(run, pieces, strict=True):
                if each.number in updates:
                    updates[each.number][list(each.edges)] = piece
                else:
                    updates[each.number] = piece
    return [updates[number] for number in range(count)]


def _runs(members: Sequence[_Members]) -> Iterator[list[_Members]]:
    """Yield runs whose inputs have up to `TOGETHER` entries in all, or a single one with more."""
    run: list[_Members] = []
    size = 0
    for each in members:
        entries = each.x.numel()
        if run and size + entries > TOGETHER:
            yield run
            run, size = [], 0
        run.append(each)
        size += entries
    yield run
