"""Many equally shaped convolutions under several rules, side by side in one layer.

M = R*E members, of R rules and E edges, stand in the order (rule, edge): rule r of edge e is member
r*E + e. Their maps lie side by side along the channels, (N, M*C, H, W), channels last in memory.
How an error goes down is one kernel for all members, which `rules.shared_feedback` lends them.

A pass that computes only some members (`only`) has their maps side by side, in the same order.

Suffixes of tensors: n batch, h and w pixels, c channels of a member, m members.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from darts_bio.rules.base import InitialLaw, LearningRule
from darts_bio.rules.carriers import DirectCarrier
from darts_bio.rules.dfa import DirectInput, OutputError, direct_law, uncompiled
from darts_bio.rules.forward_mode import convolve, multiply
from darts_bio.rules.functional import FeedbackConvolution, pointwise_products
from darts_bio.rules.layers import RuleConv2d, in_autocast_dtype
from darts_bio.rules.pointwise import multiplies_pixels, reads_single_pixels, sampled
from darts_bio.rules.side_by_side import Noted


class Subset(NamedTuple):
    """Some of M members, in ascending order: their numbers, and these as a tensor on the device."""

    numbers: tuple[int, ...]
    places: Tensor


class Stacked(nn.Module):
    """A layer of M members side by side, of which a pass may compute a subset (`only`)."""

    members: int
    """M."""
    subset: Subset | None = None
    """The members that the present pass computes; None for all of them."""

    @property
    def present(self) -> int:
        """How many members the present pass computes."""
        return self.members if self.subset is None else len(self.subset.numbers)

    def of_present(self, values: Tensor) -> Tensor:
        """Select what belongs to the members present: (M*n, ...) -> (present*n, ...)."""
        if self.subset is None:
            return values
        by_member = values.unflatten(0, (self.members, -1))
        return by_member.index_select(0, self.subset.places).flatten(0, 1)


@contextlib.contextmanager
def only(layers: Sequence[Stacked], subset: Subset | None) -> Iterator[None]:
    """Have layers compute a subset of their members within the context."""
    for layer in layers:
        layer.subset = subset
    try:
        yield
    finally:
        for layer in layers:
            layer.subset = None


class StackedConv2d(Stacked):
    """M convolutions without bias side by side: (N, M*C, H, W) -> (N, M*C', H', W').

    `SharedFeedback.lend` gives it `kernel`, which the error goes through until the next one is lent
    (and W before the first); and until `settle` `lent_weight`, which stands for the weight so that
    gradients are found for all layers at once, and `noted`, what members under local rules are to
    learn from.
    """

    def __init__(
        self,
        member: RuleConv2d,
        weights: Sequence[Tensor],
        names: Sequence[str],
        rules: Sequence[LearningRule],
        common_input: bool,
    ) -> None:
        """Stack equally shaped convolutions without bias, in the order (rule, edge).

        Args:
            member: one of them, padded by numbers.
            weights: the weights of all of them.
            names: where the members stand in the reference.
            rules: the R rules, which are `batched`.
            common_input: whether all members read one (N, C, H, W), their operation's input.
        """
        super().__init__()
        assert not isinstance(member.padding, str)
        self.weight = nn.Parameter(torch.cat(list(weights)))
        self.rules = tuple(rules)
        self.bound = float(member.initial_law.bound)
        self.names, self.members = tuple(names), len(names)
        self.stride, self.padding, self.dilation = member.stride, member.padding, member.dilation
        self.common_input = common_input
        self.member_groups = int(member.groups)
        self.kernel: Tensor | None = None
        self.lent_weight: Tensor | None = None
        self.casts = True
        """Whether its products are made in autocast's dtype."""
        self.notes = False
        """Whether it is to note what it sees."""
        self.noted: Noted | None = None

    @property
    def products(self) -> bool:
        """Whether each member is a matrix for the pixels of an input of its own."""
        by_matrix = multiplies_pixels(self.weight.shape[2:], self.stride, self.padding)
        return by_matrix and self.member_groups == 1 and not self.common_input

    def forward(self, x: Tensor, spacing: int = 1) -> Tensor:
        """Convolve x, whose neighbors stood `spacing` pixels apart in the image.

        Stride, padding and dilation shrink by that factor.
        """
        m = self.present
        if self.products:
            n, _, h, w = x.shape
            return joined_products([x], [self], [m], (n, h, w))
        x, weight, kernel = in_autocast_dtype(x, *self.lent())  # type: ignore[assignment]
        assert weight is not None
        assert kernel is not None
        stride = tuple(max(1, step // spacing) for step in self.stride)
        padding = tuple(rim // spacing for rim in self.padding)
        dilation = tuple(max(1, step // spacing) for step in self.dilation)
        if reads_single_pixels(weight.shape[2:], stride, padding):
            x, stride = sampled(x, stride), (1, 1)
        self.note(x, weight, stride, padding, dilation)
        if self.common_input and self.member_groups == 1:
            # One dense convolution: members that share its input are further outputs of it.
            groups, copies = 1, 1
        else:
            groups, copies = m * self.member_groups, m if self.common_input else 1
        # Where there is no error to send, plain operations, which torch.vmap can batch.
        run = convolve if torch.is_grad_enabled() else FeedbackConvolution.forward
        return run(x, weight, None, kernel, stride, padding, dilation, groups, copies, None)

    def lent(self) -> tuple[Tensor, Tensor]:
        """Return the weight, as its gradient is to be found, and the kernel for the error.

        Both are those of the members present.
        """
        weight = self.of_present(self.weight if self.lent_weight is None else self.lent_weight)
        return weight, weight if self.kernel is None else self.of_present(self.kernel)

    def note(
        self,
        x: Tensor,
        weight: Tensor,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] = (0, 0),
        dilation: tuple[int, ...] = (1, 1),
    ) -> None:
        """Keep what members under local rules learn from, if any do, for `SharedFeedback`."""
        if self.notes:
            self.noted = Noted(
                x.detach(),
                weight.detach(),
                self.members,
                None if self.subset is None else self.subset.numbers,
                self.common_input,
                stride,
                padding,
                dilation,
                self.member_groups,
            )

    def extra_repr(self) -> str:
        return f"{self.members} members of {member_shape(self)}"


def member_shape(layer: StackedConv2d) -> tuple[int, ...]:
    """Return the shape of one member's weight."""
    return (len(layer.weight) // layer.members, *layer.weight.shape[1:])


def joined_products(
    inputs: Sequence[Tensor],
    convolutions: Sequence[StackedConv2d | None],
    members: Sequence[int],
    size: tuple[int, int, int],
) -> Tensor:
    """Write the products of several stacked pointwise convolutions side by side.

    Args:
        inputs: for each convolution of M members (N_g, M*I, H_g, W_g), of as many pixels as all
            others; where there is none, (N_g, O, H_g, W_g), which is written M times as it is.
        convolutions: stacked convolutions that are `products`, or None.
        members: the numbers M.
        size: the (N, H, W) of what is returned.

    Returns:
        (N, sum of M*O, H, W), channels last in memory.
    """
    tensors: list[list[Tensor | None]] = []
    for x, convolution in zip(inputs, convolutions, strict=True):
        lent = (None, None) if convolution is None else convolution.lent()
        tensors.append(in_autocast_dtype(x, *lent))
        if convolution is not None:
            convolution.note(*cast("tuple[Tensor, Tensor]", tensors[-1][:2]))
    by_kind = [tensor for third in zip(*tensors, strict=True) for tensor in third]
    # Where there is no error to send, plain operations, which torch.vmap can batch.
    run = multiply if torch.is_grad_enabled() else pointwise_products
    return run(size, tuple(members), *by_kind)


class StackedDirect(Stacked, DirectCarrier):
    """What the common input of M operations under one direct rule receives.

    It is the sum of the projections of the output's error e (N, K) by the feedback of all of them,
    which is held as one tensor (M*K, C).
    """

    def __init__(self, rule: LearningRule, members: int, channels: int) -> None:
        super().__init__(rule=rule)
        self.members, self._channels = members, channels
        # Without parameters, it tells device and dtype of the feedback to come.
        self.register_buffer("like", torch.empty(0), persistent=False)

    @property
    def channels(self) -> int:
        return self._channels

    @property
    def initial_law(self) -> InitialLaw:
        assert self.output_error is not None
        return direct_law(self.members * self.output_error.outputs, self.channels)

    def connect(self, source: OutputError) -> None:
        self.output_error = source
        self.register_feedback(self.get_buffer("like"))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W), which receives the projections beside the error from above."""
        if self.exact or not (torch.is_grad_enabled() and x.requires_grad):
            return x
        assert self.output_error is not None
        # e B_1 + ... + e B_M = e (B_1 + ... + B_M)
        kernels = self.of_present(self.feedback["kernel"])
        kernel_kc = kernels.unflatten(0, (self.present, -1)).sum(0)
        return uncompiled(DirectInput.apply, x, kernel_kc, self.output_error, self.place)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.members} members"
