"""Many equally shaped convolutions under several rules, side by side in one layer, and the feedback that they share.

M = R * E members, for R rules and E edges, stand in the order (rule, edge): rule r of edge e is member r*E + e. Their
maps lie side by side along the channels, (N, M*C, H, W), channels last in memory. How an error goes down is one kernel
for all, put together for the whole network at once by `SharedFeedback`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from darts_bio.rules.base import InitialLaw, LearningRule
from darts_bio.rules.carriers import RuleCarrier
from darts_bio.rules.functional import FeedbackConvolution, FeedbackProducts, pointwise_products
from darts_bio.rules.layers import RuleConv2d, in_autocast_dtype
from darts_bio.rules.pointwise import reads_single_pixels, sampled


class StackedConv2d(nn.Module):
    """M convolutions without bias side by side: (N, M*C, H, W) to (N, M*C', H', W').

    `shared=True` says that all take the same input, (N, C, H, W). `names` says where the members stood. The members'
    rules must be elementwise, and the same for each edge; their padding is in numbers.
    """

    def __init__(self, members: Sequence[RuleConv2d], names: Sequence[str], shared: bool) -> None:
        super().__init__()
        first = members[0]
        assert not isinstance(first.padding, str)
        self.weight = nn.Parameter(torch.cat([member.weight.detach() for member in members]))
        self.rules: tuple[LearningRule, ...] = tuple(rule for rule, _ in groupby(member.rule for member in members))
        self.bound = float(first.initial_law.bound)
        self.names = tuple(names)
        self.stride, self.padding, self.dilation = first.stride, first.padding, first.dilation
        self.shared = shared
        self.own_groups = int(first.groups)
        self.kernel: Tensor | None = None

    @property
    def products(self) -> bool:
        """Whether each member is a matrix for the pixels of an input of its own."""
        each_pixel = self.weight.shape[2:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)
        return each_pixel and self.own_groups == 1 and not self.shared

    def forward(self, x: Tensor, spread: int = 1) -> Tensor:
        """`spread` > 1 says that neighbours in x stood that many pixels apart: stride, padding and dilation shrink."""
        m = len(self.names)
        kernel = self.weight if self.kernel is None else self.kernel
        x, weight, kernel = in_autocast_dtype(x, self.weight, kernel)  # type: ignore[assignment]
        assert weight is not None
        assert kernel is not None
        # Where there is no error to send, plain operations, which torch.vmap can batch.
        trained = torch.is_grad_enabled()
        if self.products:
            return FeedbackProducts.apply(x, weight, kernel, m) if trained else pointwise_products(x, weight, m)
        stride = tuple(max(1, step // spread) for step in self.stride)
        padding = tuple(rim // spread for rim in self.padding)
        if reads_single_pixels(weight.shape[2:], stride, padding):
            x, stride = sampled(x, stride), (1, 1)
        dilation = tuple(max(1, step // spread) for step in self.dilation)
        # Members that share a dense convolution's input are further outputs of it.
        dense = self.shared and self.own_groups == 1
        groups, copies = (1, 1) if dense else (m * self.own_groups, m if self.shared else 1)
        convolve = FeedbackConvolution.apply if trained else FeedbackConvolution.forward
        return convolve(x, weight, None, kernel, stride, padding, dilation, groups, copies, None)

    def extra_repr(self) -> str:
        return f"{len(self.names)} members of {tuple(self.weight[: len(self.weight) // len(self.names)].shape)}"


class FlatFeedback(RuleCarrier):
    """One rule's feedback for all stacked layers of a network, in one flat tensor."""

    def __init__(self, layers: Sequence[StackedConv2d], rule: int, bound: Tensor) -> None:
        """Of the rule of that number; `bound` holds the bound of each weight's initialisation."""
        super().__init__(rule=layers[0].rules[rule])
        self.layers, self.number = tuple(layers), rule  # a tuple: they have their home, and their names, in the cells
        self.register_buffer("bound", bound, persistent=False)
        self.hold_feedback(layers[0].weight)

    @property
    def initial_law(self) -> InitialLaw:
        bound = self.get_buffer("bound")
        return InitialLaw(bound.shape, bound)

    @property
    def carried_weight(self) -> Tensor:
        own = [layer.weight.detach().reshape(len(layer.rules), -1)[self.number] for layer in self.layers]
        return torch.cat(own)


class SharedFeedback(nn.Module):
    """The feedback of stacked layers that have the same rules. `lend` puts their kernels together in a few operations
    for the whole network, however many layers there are."""

    def __init__(self, layers: Sequence[StackedConv2d]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        rules = layers[0].rules
        sizes = torch.tensor([layer.weight.numel() // len(rules) for layer in layers])
        bound = torch.tensor([layer.bound for layer in layers]).repeat_interleave(sizes)
        self.flat = nn.ModuleList(FlatFeedback(layers, rule, bound) for rule in range(len(rules)))

    def lend(self) -> None:
        """Gives each layer the kernel that its next pass sends the error through."""
        weights = [layer.weight.detach().reshape(len(self.flat), -1).unbind() for layer in self.layers]
        rows = []
        for carrier, own in zip(self.flat, zip(*weights, strict=True), strict=True):
            assert isinstance(carrier, FlatFeedback)
            kernel = carrier.transport(torch.cat(own))
            assert kernel is not None  # an elementwise rule has one
            rows.append(kernel.split([weight.numel() for weight in own]))
        kernels = torch.cat([piece for layer in zip(*rows, strict=True) for piece in layer])
        sizes = [layer.weight.numel() for layer in self.layers]
        for layer, kernel in zip(self.layers, kernels.split(sizes), strict=True):
            layer.kernel = kernel.view_as(layer.weight)


def share_feedback(model: nn.Module) -> nn.ModuleList:
    """A `SharedFeedback` for each set of rules among the stacked layers of a model."""
    stacked: dict[tuple[LearningRule, ...], list[StackedConv2d]] = {}
    for module in model.modules():
        if isinstance(module, StackedConv2d):
            stacked.setdefault(module.rules, []).append(module)
    return nn.ModuleList(map(SharedFeedback, stacked.values()))
