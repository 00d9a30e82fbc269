"""Layers that stand for M equal layers of candidates, side by side along the channels.

Names of tensors end in their dimensions:

    n batch    h, w pixels    p = n*h*w pixels of the batch    c channels of one candidate
    e edges that leave the node    r rules    m = r*e members, in the order (rule, edge)

A map of all members, x_nMhw, has (N, M*C, H, W), and lies in memory channels last, so that a pixel's
channels of all members are neighbors: (N, H, W, M, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.networks.folded import FoldedMixture
from darts_bio.rules import LearningRule
from darts_bio.rules.functional import first_derivative_only
from darts_bio.rules.stacked import Stacked, StackedConv2d
from darts_bio.rules.tangents import forward_mode
from darts_bio.spaces.operations import EvenAndOdd, even_pixels, odd_pixels


class LaneWeights(NamedTuple):
    """The edge weights of L lanes, in the three forms in which they are used.

    `by_channel` is (L*C,), each weight C times: the gain of a batch norm. `each` is (L,), the gains
    of a `FoldedMixture`. `factors` (L,) multiplies outputs without such a norm; it has the dtype of
    the maps, so that the product keeps it.
    """

    each: Tensor
    factors: Tensor
    by_channel: Tensor


STATISTICS = ("running_mean", "running_var")


def for_each_channel(each: Tensor, channels: int) -> Tensor:
    """Return the weights (L,) of lanes as a gain, (L*C,).

    It is contiguous, since the kernels of batch norms take it for that; an expanded tensor, which
    one lane alone would have, they misread.
    """
    return each.unsqueeze(1).repeat(1, channels).flatten()


class StackedBatchNorm(Stacked):
    """The batch norms of M members, without gain and bias of their own."""

    def __init__(
        self, members: Sequence[nn.BatchNorm2d | StackedBatchNorm], names: Sequence[str]
    ) -> None:
        """Stack `members`, some of which may stand for several.

        `names` says where the batch norms stand in the reference.
        """
        super().__init__()
        first = members[0]
        self.names, self.members = tuple(names), len(names)
        self.track_running_stats = True
        self.eps: float = first.eps
        self.momentum: float = float(first.momentum or 0)  # None is not stacked
        for statistic in STATISTICS:
            values = [getattr(member, statistic) for member in members]
            self.register_buffer(statistic, torch.cat(values))

    def forward(
        self, x_nMhw: Tensor, gain: Tensor | None = None, members: slice = slice(None)
    ) -> Tensor:
        """Normalize (N, M*C, H, W), times `gain` (M*C,) if there is one.

        `members` says which of them these are, where they are not all.
        """
        if not self.track_running_stats:
            if forward_mode():
                return NormWithDirections.apply(x_nMhw, gain, self.eps)[0]
            return F.batch_norm(x_nMhw, None, None, gain, None, True, 0.0, self.eps)
        # Views, so that the statistics of these members follow in place; of a subset, copies.
        mean, variance = (
            self.get_buffer(statistic).unflatten(0, (self.members, -1))[members].flatten()
            for statistic in STATISTICS
        )
        mean, variance = self.of_present(mean), self.of_present(variance)
        y_nMhw = F.batch_norm(
            x_nMhw, mean, variance, gain, None, self.training, self.momentum, self.eps
        )
        if self.subset is not None and self.training:
            self._keep(mean, variance)
        return y_nMhw

    @torch.no_grad()
    def follow(self, mean: Tensor, variance: Tensor, pixels: int) -> None:
        """Move the running statistics towards a batch's mean and biased variance, each (M*C,).

        The batch has `pixels` pixels.
        """
        if not self.track_running_stats:
            return
        unbiased = variance * (pixels / max(1, pixels - 1))
        if self.subset is None:
            self.get_buffer("running_mean").lerp_(mean, self.momentum)
            self.get_buffer("running_var").lerp_(unbiased, self.momentum)
            return
        of_present = [self.of_present(self.get_buffer(statistic)) for statistic in STATISTICS]
        self._keep(
            *(
                old.lerp(new, self.momentum)
                for old, new in zip(of_present, (mean, unbiased), strict=True)
            )
        )

    def _keep(self, mean: Tensor, variance: Tensor) -> None:
        """Set the running statistics of the members present."""
        assert self.subset is not None
        for statistic, values in zip(STATISTICS, (mean, variance), strict=True):
            by_member = self.get_buffer(statistic).view(self.members, -1)
            by_member.index_copy_(0, self.subset.places, values.view(self.present, -1))

    def mix(self, x_nMhw: Tensor, weights: LaneWeights, edges: int) -> Tensor:
        """Normalize, weight and sum over the rules: (N, M*C, H, W) -> (N, H, W, E, C).

        A member's edge weight costs nothing here: it is the gain of its batch norm.
        """
        y_nhwmc = by_member(self(x_nMhw, weights.by_channel), self.present)
        return y_nhwmc.unflatten(3, (-1, edges)).sum(3, dtype=x_nMhw.dtype)  # M -> R, E


def member_place(name: str) -> tuple[int, int]:
    """Return (edge, number of the candidate on it) of a member, from its name in the reference.

    >>> member_place("edges.3.1.4")
    (3, 1)
    """
    _, edge, candidate, *_ = name.split(".")
    return int(edge), int(candidate)


def by_member(y_nMhw: Tensor, members: int) -> Tensor:
    """View (N, M*C, H, W) as (N, H, W, M, C)."""
    return y_nMhw.permute(0, 2, 3, 1).unflatten(3, (members, -1))


class NormWithDirections(torch.autograd.Function):
    """Batch norm by a batch's own statistics, for forward-mode passes.

    For each channel, with P pixels, the normalized xhat, gain g and i = 1 / sqrt(variance + eps),
    the output moves with the input by the matrix

        J = g i (I - 1 1^T / P - xhat xhat^T / P)

    It is symmetric, so PyTorch's backward pass gives the direction of the output as well as the
    error of the input: J q in one kernel, where PyTorch's own forward mode takes a dozen passes
    over the maps. The gain is a constant.
    """

    @staticmethod
    def forward(x: Tensor, gain: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normalized x (N, C, H, W), and mean and i, both (C,)."""
        return torch.native_batch_norm(x, gain, None, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, gain, ctx.eps = inputs
        _, mean, inverse = output
        ctx.mark_non_differentiable(mean, inverse)
        ctx.save_for_backward(x, gain, mean, inverse)
        ctx.save_for_forward(x, gain, mean, inverse)

    @staticmethod
    @torch.no_grad()
    def jvp(ctx: Any, q: Tensor, *_: None) -> tuple[Tensor, None, None]:
        return NormWithDirections._times_jacobian(ctx, q), None, None

    @staticmethod
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, None, None]:
        first_derivative_only()
        return NormWithDirections._times_jacobian(ctx, dy), None, None

    @staticmethod
    def _times_jacobian(ctx: Any, moves: Tensor) -> Tensor:
        x, gain, mean, inverse = ctx.saved_tensors
        only_x = (True, False, False)
        return torch.ops.aten.native_batch_norm_backward(
            moves, x, gain, None, None, mean, inverse, True, ctx.eps, only_x
        )[0]


class FoldedNorm(nn.Module):
    """A stacked pointwise convolution and its batch norm as one product (`networks.folded`).

    In training it keeps nothing between the two; in evaluation, and in a forward-mode pass, they run
    one after the other.
    """

    def __init__(self, convolution: StackedConv2d, norm: StackedBatchNorm) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, norm
        # A variance is a difference of large numbers: the product that yields it is in float32.
        convolution.casts = False

    def forward(self, x_nMhw: Tensor) -> Tensor:
        """Convolve and normalize: (N, M*I, H, W) -> (N, M*C, H, W)."""
        if not self._folds:
            return self.norm(self.convolution(x_nMhw))
        members = self.norm.present
        ones_m = torch.ones(members, dtype=self.convolution.weight.dtype, device=x_nMhw.device)
        y_nhwmc = self._folded(x_nMhw, ones_m, members)
        return y_nhwmc.flatten(3).permute(0, 3, 1, 2)

    def mix(self, x_nMhw: Tensor, weights: LaneWeights, edges: int) -> Tensor:
        """Convolve, then do as `StackedBatchNorm.mix`: (N, M*I, H, W) -> (N, H, W, E, C)."""
        if not self._folds:
            return self.norm.mix(self.convolution(x_nMhw), weights, edges)
        return self._folded(x_nMhw, weights.each, edges)

    @property
    def _folds(self) -> bool:
        return self.training and not forward_mode()

    def _folded(self, x_nMhw: Tensor, gains_m: Tensor, outputs: int) -> Tensor:
        """Return (N, H, W, outputs, C), summed over members that share an output."""
        weight, kernel = self.convolution.lent()
        self.convolution.note(x_nMhw, weight.to(x_nMhw.dtype))
        y, mean, variance, *_ = FoldedMixture.apply(
            x_nMhw, weight, kernel, gains_m, outputs, self.norm.eps
        )
        self.norm.follow(mean, variance, x_nMhw.shape[0] * x_nMhw.shape[2] * x_nMhw.shape[3])
        return y


class StackedEvenAndOdd(nn.Module):
    """`EvenAndOdd` of M members on one input: (N, C, H, W) -> (N, M*C', H', W')."""

    def __init__(
        self,
        member: EvenAndOdd,
        weights: tuple[Sequence[Tensor], Sequence[Tensor]],
        names: Sequence[str],
        rules: tuple[Sequence[LearningRule], Sequence[LearningRule]],
    ) -> None:
        """Stack layers of which `member` is one.

        `weights` and `rules` hold, for the even and the odd convolution, the weights of the members
        and the rules of their columns.
        """
        super().__init__()
        self.even, self.odd = (
            StackedConv2d(
                getattr(member, half),
                of_members,
                [f"{name}.{half}" for name in names],
                of_half,
                common_input=True,
            )
            for half, of_members, of_half in zip(("even", "odd"), weights, rules, strict=True)
        )

    def forward(self, x_nchw: Tensor) -> Tensor:
        """Put each member's two halves next to each other."""
        even_nhwmc = by_member(self.even(even_pixels(x_nchw)), self.even.present)
        odd_nhwmc = by_member(self.odd(odd_pixels(x_nchw)), self.odd.present)
        y_nhwmc = torch.cat([even_nhwmc, odd_nhwmc], dim=4)
        return y_nhwmc.flatten(3).permute(0, 3, 1, 2)
