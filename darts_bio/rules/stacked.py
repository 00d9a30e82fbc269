"""Many equally shaped convolutions under several rules, side by side in one layer, and the feedback
that they share.

M = R * E members, for R rules and E edges, stand in the order (rule, edge): rule r of edge e is
member r*E + e. Their maps lie side by side along the channels, (N, M*C, H, W), channels last in
memory. How an error goes down is one kernel for all, put together for the whole network at once by
`SharedFeedback`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn

from darts_bio.rules.base import InitialLaw, LearningRule
from darts_bio.rules.carriers import DirectCarrier, RuleCarrier
from darts_bio.rules.dfa import DirectInput, OutputError, direct_law, uncompiled
from darts_bio.rules.functional import FeedbackConvolution, FeedbackProducts, pointwise_products
from darts_bio.rules.layers import RuleConv2d, autocast_dtype, in_autocast_dtype
from darts_bio.rules.pointwise import reads_single_pixels, sampled
from darts_bio.rules.side_by_side import LentWeights, LocalUpdates, Noted


class StackedConv2d(nn.Module):
    """M convolutions without bias side by side: (N, M*C, H, W) to (N, M*C', H', W').

    `shared=True` says that all take the same input, (N, C, H, W): that of their operation. `names`
    says where the members stood, and `rules` which rule each is under. These must be batched, and
    the same for each edge; the padding is in numbers.
    """

    def __init__(
        self,
        members: Sequence[RuleConv2d],
        names: Sequence[str],
        rules: Sequence[LearningRule],
        shared: bool,
    ) -> None:
        super().__init__()
        first = members[0]
        assert not isinstance(first.padding, str)
        self.weight = nn.Parameter(torch.cat([member.weight.detach() for member in members]))
        self.rules: tuple[LearningRule, ...] = tuple(rules)
        self.bound = float(first.initial_law.bound)
        self.names = tuple(names)
        self.stride, self.padding, self.dilation = first.stride, first.padding, first.dilation
        self.shared = shared
        self.own_groups = int(first.groups)
        self.kernel: Tensor | None = None
        self.lent_weight: Tensor | None = None
        self.casts = True
        """Whether its products are made in autocast's dtype."""
        self.notes = False
        self.noted: Noted | None = None

    @property
    def products(self) -> bool:
        """Whether each member is a matrix for the pixels of an input of its own."""
        each_pixel = (
            self.weight.shape[2:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)
        )
        return each_pixel and self.own_groups == 1 and not self.shared

    def forward(self, x: Tensor, spread: int = 1) -> Tensor:
        """`spread` > 1 says that neighbours in x stood that many pixels apart: stride, padding and
        dilation shrink.
        """
        if self.products:
            n, _, h, w = x.shape
            return joined_products([x], [self], [len(self.names)], (n, h, w))
        m = len(self.names)
        x, weight, kernel = in_autocast_dtype(x, *self.lent())  # type: ignore[assignment]
        assert weight is not None
        assert kernel is not None
        stride = tuple(max(1, step // spread) for step in self.stride)
        padding = tuple(rim // spread for rim in self.padding)
        if reads_single_pixels(weight.shape[2:], stride, padding):
            x, stride = sampled(x, stride), (1, 1)
        dilation = tuple(max(1, step // spread) for step in self.dilation)
        self.note(x, weight, stride, padding, dilation)
        # Members that share a dense convolution's input are further outputs of it.
        dense = self.shared and self.own_groups == 1
        groups, copies = (1, 1) if dense else (m * self.own_groups, m if self.shared else 1)
        # Where there is no error to send, plain operations, which torch.vmap can batch.
        convolve = (
            FeedbackConvolution.apply if torch.is_grad_enabled() else FeedbackConvolution.forward
        )
        return convolve(x, weight, None, kernel, stride, padding, dilation, groups, copies, None)

    def lent(self) -> tuple[Tensor, Tensor]:
        """The weight, as its gradient is to be found, and the kernel that the error goes
        through.
        """
        weight = self.weight if self.lent_weight is None else self.lent_weight
        return weight, weight if self.kernel is None else self.kernel

    def note(
        self,
        x: Tensor,
        weight: Tensor,
        stride: tuple[int, ...] = (1, 1),
        padding: tuple[int, ...] = (0, 0),
        dilation: tuple[int, ...] = (1, 1),
    ) -> None:
        """Keeps what members under local rules learn from, until `SharedFeedback` takes it."""
        if self.notes:
            geometry = (len(self.names), self.shared, stride, padding, dilation, self.own_groups)
            self.noted = Noted(x.detach(), weight.detach(), *geometry)

    def extra_repr(self) -> str:
        return f"{len(self.names)} members of {tuple(self.weight[: len(self.weight) // len(self.names)].shape)}"


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
    multiply = FeedbackProducts.apply if torch.is_grad_enabled() else pointwise_products
    return multiply(size, tuple(members), *by_kind)


class FlatFeedback(RuleCarrier):
    """One rule's feedback for all stacked layers of a network, in one flat tensor.

    Where the rule is not elementwise, members of one shape lie there one after the other, so that
    the rule can be asked once for all of them.
    """

    def __init__(self, layers: Sequence[StackedConv2d], rule: int) -> None:
        """Begin with the feedback of the rule of that number, in `layers[0].rules`."""
        super().__init__(rule=layers[0].rules[rule])
        self.layers, self.number = (
            tuple(layers),
            rule,
        )  # a tuple: they have their home, and their names, in the cells
        self.order = list(range(len(layers)))
        if not self.rule.elementwise:
            self.order.sort(key=lambda number: member_shape(layers[number]))
        in_order = [layers[number] for number in self.order]
        self.sizes = [layer.weight.numel() // len(layer.rules) for layer in in_order]
        bounds = torch.tensor([layer.bound for layer in in_order])
        self.register_buffer(
            "bound", bounds.repeat_interleave(torch.tensor(self.sizes)), persistent=False
        )
        self.hold_feedback(layers[0].weight)

    @property
    def initial_law(self) -> InitialLaw:
        bound = self.get_buffer("bound")
        return InitialLaw(bound.shape, bound)

    @property
    def carried_weight(self) -> Tensor:
        own = [
            layer.weight.detach().reshape(len(layer.rules), -1)[self.number]
            for layer in self.layers
        ]
        return torch.cat([own[number] for number in self.order])

    def kernel_of(self, weight: Tensor) -> Tensor | None:
        if self.rule.elementwise or self.rule.local:
            return super().kernel_of(weight)

        def kernel(weight: Tensor, state: dict[str, Tensor], law: InitialLaw) -> dict[str, Tensor]:
            found = self.rule.kernel(weight, state)
            assert found is not None  # only local rules send nothing
            return {"kernel": found}

        return self._shape_by_shape(kernel, weight)["kernel"]

    def renewed(self, source: torch.Generator) -> dict[str, Tensor]:
        if self.rule.elementwise or self.rule.redraws:
            return super().renewed(source)

        def state_after(
            weight: Tensor, state: dict[str, Tensor], law: InitialLaw
        ) -> dict[str, Tensor]:
            return self.rule.renew(weight, state, law, source)

        return self._shape_by_shape(state_after, self.carried_weight)

    def _shape_by_shape(
        self,
        function: Callable[[Tensor, dict[str, Tensor], InitialLaw], dict[str, Tensor]],
        weight: Tensor,
    ) -> dict[str, Tensor]:
        """What `function` finds for the weight, the state and the law of a member: that of all
        members, flat, by name.
        """
        found: dict[str, list[Tensor]] = {}
        first = 0
        in_order = [self.layers[number] for number in self.order]
        for shape, layers in groupby(in_order, key=member_shape):
            own = list(layers)
            past = first + sum(layer.weight.numel() // len(layer.rules) for layer in own)
            state = {
                name: value[first:past].view(-1, *shape) if value.dim() else value
                for name, value in self.feedback.items()
            }
            along = {name: 0 if value.dim() else None for name, value in state.items()}
            law = InitialLaw(torch.Size(shape), own[0].bound)
            of_all = torch.vmap(function, in_dims=(0, along, None), randomness="different")
            for name, value in of_all(weight[first:past].view(-1, *shape), state, law).items():
                found.setdefault(name, []).append(value.reshape(-1))
            first = past
        return {name: torch.cat(values) for name, values in found.items()}

    def kernels(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """The kernels of the layers, from the flat weights of the rule's members in them."""
        kernel = self.transport(torch.cat([weights[number] for number in self.order]))
        if kernel is None:  # no error is sent
            kernel = weights[0].new_zeros(()).expand(sum(self.sizes))
        in_order = dict(zip(self.order, kernel.split(self.sizes), strict=True))
        return [in_order[number] for number in range(len(weights))]


class ExactWithin(RuleCarrier):
    """A direct rule in all stacked layers of a network: within an operation the error is exact, and
    it does not leave through the layer that reads the operation's input (`StackedDirect`).
    """

    def __init__(self, layers: Sequence[StackedConv2d], rule: int) -> None:
        super().__init__(rule=layers[0].rules[rule])
        self.layers = tuple(layers)

    def kernels(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """As those of `FlatFeedback`."""
        zeros = weights[0].new_zeros(())
        return [
            zeros.expand(weight.shape) if layer.shared and not self.exact else weight
            for layer, weight in zip(self.layers, weights, strict=True)
        ]


class StackedDirect(DirectCarrier):
    """What the input of M operations under one direct rule receives: the projections of the
    output's error by the feedback of all of them, (M * outputs, channels).
    """

    def __init__(self, rule: LearningRule, members: int, channels: int) -> None:
        super().__init__(rule=rule)
        self.members, self._channels = members, channels
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
        self.hold_feedback(self.get_buffer("like"))

    def forward(self, x: Tensor) -> Tensor:
        """x, which receives that beside what comes down to it."""
        if self.exact or not (torch.is_grad_enabled() and x.requires_grad):
            return x
        assert self.output_error is not None
        kernel = self.feedback["kernel"].unflatten(0, (self.members, -1)).sum(0)
        return uncompiled(DirectInput.apply, x, kernel, self.output_error)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.members} members"


def member_shape(layer: StackedConv2d) -> tuple[int, ...]:
    """The shape of one member's weight."""
    return (len(layer.weight) // len(layer.names), *layer.weight.shape[1:])


class CastTogether(torch.autograd.Function):
    """Tensors of any shapes in another dtype, as views of one; their gradients come back in the
    dtypes of before.
    """

    @staticmethod
    def forward(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(dtype)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return tuple(part.view(tensor.shape) for tensor, part in zip(tensors, parts, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).to(ctx.dtype)
        parts = flat.split([gradient.numel() for gradient in gradients])
        return None, *(
            part.view(gradient.shape) for gradient, part in zip(gradients, parts, strict=True)
        )


class SharedFeedback(nn.Module):
    """The feedback of stacked layers that have the same rules. `lend` puts their kernels together
    in a few operations for the whole network, however many layers there are, and `settle` has them
    learn by the rules that are local.
    """

    def __init__(self, layers: Sequence[StackedConv2d]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.flat = nn.ModuleList(
            (ExactWithin if rule.direct else FlatFeedback)(layers, number)
            for number, rule in enumerate(layers[0].rules)
        )
        self.local: tuple[LearningRule | None, ...] = ()
        self.slot: Tensor | None = None

    def lend(self) -> None:
        """Gives each layer the weight and the kernel of its next pass."""
        weights = [
            layer.weight.detach().reshape(len(self.flat), -1).unbind() for layer in self.layers
        ]
        rows = []
        for carrier, own in zip(self.flat, zip(*weights, strict=True), strict=True):
            assert isinstance(carrier, (FlatFeedback, ExactWithin))
            rows.append(carrier.kernels(own))
        kernels = torch.cat([piece for layer in zip(*rows, strict=True) for piece in layer])
        sizes = [layer.weight.numel() for layer in self.layers]
        for layer, kernel in zip(self.layers, kernels.split(sizes), strict=True):
            layer.kernel = kernel.view_as(layer.weight)
        self._lend_weights()
        self._cast(kernels)

    def _lend_weights(self) -> None:
        """Has the weights' rows under local rules learn by these, if they learn at all."""
        carriers = cast(list[RuleCarrier], list(self.flat))
        self.local = tuple(c.rule if c.rule.local and not c.exact else None for c in carriers)
        numbers = tuple(number for number, rule in enumerate(self.local) if rule is not None)
        own = [layer.weight for layer in self.layers]
        if not (
            numbers and torch.is_grad_enabled() and any(weight.requires_grad for weight in own)
        ):
            return
        *lent, self.slot = LentWeights.apply(numbers, len(self.flat), *own)
        for layer, weight in zip(self.layers, lent, strict=True):
            layer.lent_weight, layer.notes = weight, self.training

    def _cast(self, kernels: Tensor) -> None:
        """Under autocast, lends what layers would each cast by themselves: cast together, in a few
        kernels.
        """
        layers, dtype = [layer for layer in self.layers if layer.casts], autocast_dtype(kernels)
        if not layers or dtype is None:
            return
        if torch.is_grad_enabled():
            lent = CastTogether.apply(dtype, *(layer.lent()[0] for layer in layers))
            for layer, weight in zip(layers, lent, strict=True):
                layer.lent_weight = weight
        sizes = [layer.weight.numel() for layer in self.layers]
        for layer, kernel in zip(self.layers, kernels.to(dtype).split(sizes), strict=True):
            if layer.casts:
                layer.kernel = kernel.view_as(layer.weight)

    def settle(self, logits: Tensor) -> Tensor:
        """The logits of the pass that `lend` was called for, in whose backward pass local rules are
        asked.
        """
        slot, noted = self.slot, [layer.noted for layer in self.layers if layer.noted is not None]
        self.slot = None
        for layer in self.layers:
            layer.lent_weight, layer.notes, layer.noted = None, False, None
        if slot is None or not noted:  # in evaluation nothing is learned
            return logits
        seen = [tensor for layer in noted for tensor in layer[:2]]
        return LocalUpdates.apply(logits, slot, self.local, [layer[2:] for layer in noted], *seen)


def share_feedback(model: nn.Module) -> nn.ModuleList:
    """A `SharedFeedback` for each set of rules among the stacked layers of a model."""
    stacked: dict[tuple[LearningRule, ...], list[StackedConv2d]] = {}
    for module in model.modules():
        if isinstance(module, StackedConv2d):
            stacked.setdefault(module.rules, []).append(module)
    return nn.ModuleList(map(SharedFeedback, stacked.values()))
