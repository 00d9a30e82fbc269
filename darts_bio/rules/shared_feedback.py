"""The feedback of a supernet's stacked layers: put together for the whole network at once.

A supernet has hundreds of stacked layers, each with members under R rules. Asked layer by layer,
rules would take thousands of small operations a pass. Instead the feedback of one rule in all
layers is one flat tensor (`FlatFeedback`), and `SharedFeedback` asks each rule once:

    before a pass   `lend`: weights of all layers, rule by rule -> R kernels, flat -> one for each
                    layer, its members in the order (rule, edge)
    after it        `settle`: layers give back the lent weights, and rules that are local (hebbian,
                    predictive) are told what their members have seen

For two layers under (fa, usf), whose members have 6 weights in all under each rule in the first and
4 in the second:

    weights     layer 0: [6 fa, 6 usf]    layer 1: [4 fa, 4 usf]
    flat        fa: [6 of layer 0, 4 of layer 1]    usf: likewise
    kernels     fa: B, a buffer of 10 numbers       usf: scale * sign(W), of 10 numbers
    lent        layer 0: [6 fa, 6 usf]    layer 1: [4 fa, 4 usf]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn

from darts_bio.rules.base import InitialLaw, LearningRule
from darts_bio.rules.carriers import RuleCarrier
from darts_bio.rules.side_by_side import LentWeights, LocalUpdates
from darts_bio.rules.stacked import StackedConv2d, member_shape
from darts_bio.rules.tangents import forward_mode
from darts_bio.rules.uses import autocast_dtype


class FlatFeedback(RuleCarrier):
    """One rule's feedback for all stacked layers of a network, in one flat tensor.

    An elementwise rule treats it as one long weight. For any other, layers are sorted so that
    members of one shape lie one after the other, and the rule is asked once for each shape.
    """

    def __init__(
        self,
        layers: Sequence[StackedConv2d],
        rule: LearningRule,
        number: int = 0,
        sort: bool = False,
    ) -> None:
        """Draw, and hold, the feedback of `rule` for all `layers`.

        Args:
            layers: the stacked layers.
            rule: the rule.
            number: the place of `rule` among each layer's `rules`; it holds the feedback of the
                members that are under it.
            sort: whether to sort layers by the shape of their members whatever the rule.
        """
        super().__init__(rule=rule)
        # A tuple, not a ModuleList: the layers stay registered, and named, in their cells only.
        self.layers, self.number = tuple(layers), number
        self.order = list(range(len(layers)))
        if sort or not rule.elementwise:
            self.order.sort(key=lambda number: member_shape(layers[number]))
        in_order = [layers[number] for number in self.order]
        self.sizes = [layer.weight.numel() // len(layer.rules) for layer in in_order]
        bounds = torch.tensor([layer.bound for layer in in_order])
        bound_of_each_weight = bounds.repeat_interleave(torch.tensor(self.sizes))
        self.register_buffer("bound", bound_of_each_weight, persistent=False)
        self.register_feedback(layers[0].weight)

    @property
    def initial_law(self) -> InitialLaw:
        bound = self.get_buffer("bound")
        return InitialLaw(bound.shape, bound)

    @property
    def carried_weight(self) -> Tensor:
        rows = [
            layer.weight.detach().reshape(len(layer.rules), -1)[self.number]
            for layer in self.layers
        ]
        return torch.cat([rows[number] for number in self.order])

    def kernel_of(self, weight: Tensor) -> Tensor | None:
        if self.rule.elementwise or self.rule.local:
            return super().kernel_of(weight)

        def named_kernel(
            weight: Tensor, state: dict[str, Tensor], _: InitialLaw
        ) -> dict[str, Tensor]:
            kernel = self.rule.kernel(weight, state)
            assert kernel is not None  # only local rules send nothing
            return {"kernel": kernel}

        return self._shape_by_shape(named_kernel, weight)["kernel"]

    def renewed(self, source: torch.Generator) -> dict[str, Tensor]:
        if self.rule.elementwise or self.rule.redraws:
            return super().renewed(source)

        def state_after(
            weight: Tensor, state: dict[str, Tensor], law: InitialLaw
        ) -> dict[str, Tensor]:
            return self.rule.renew(weight, state, law, source)

        return self._shape_by_shape(state_after, self.carried_weight)

    def by_shape(self) -> list[tuple[tuple[int, ...], list[StackedConv2d]]]:
        """Return the layers as they are ordered, grouped by the shape of a member's weight."""
        in_order = [self.layers[number] for number in self.order]
        return [(shape, list(group)) for shape, group in groupby(in_order, key=member_shape)]

    def _shape_by_shape(
        self,
        function: Callable[[Tensor, dict[str, Tensor], InitialLaw], dict[str, Tensor]],
        weight: Tensor,
    ) -> dict[str, Tensor]:
        """Return what `function` returns for each member, flat for all members, by name.

        It is called with a member's weight, state and law, for all members of a shape at once.
        """
        results: dict[str, list[Tensor]] = {}
        first = 0
        for shape, layers in self.by_shape():
            past = first + sum(layer.weight.numel() // len(layer.rules) for layer in layers)
            # Flat -> (members, *shape); state that is one number is common to all members.
            weights = weight[first:past].view(-1, *shape)
            state = {
                name: value[first:past].view(-1, *shape) if value.dim() else value
                for name, value in self.feedback.items()
            }
            along = {name: 0 if value.dim() else None for name, value in state.items()}
            law = InitialLaw(torch.Size(shape), layers[0].bound)
            for_all = torch.vmap(function, in_dims=(0, along, None), randomness="different")
            for name, value in for_all(weights, state, law).items():
                results.setdefault(name, []).append(value.reshape(-1))
            first = past
        return {name: torch.cat(values) for name, values in results.items()}

    def kernels(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the kernel of each layer, flat, from its flat weights under this rule."""
        kernel = self.transport(torch.cat([weights[number] for number in self.order]))
        if kernel is None:  # no error is sent
            kernel = weights[0].new_zeros(()).expand(sum(self.sizes))
        return self.by_layer(kernel)

    def by_layer(self, flat: Tensor) -> list[Tensor]:
        """Split a tensor that is ordered as the feedback is: the piece of each layer, flat."""
        of_layer = dict(zip(self.order, flat.split(self.sizes), strict=True))
        return [of_layer[number] for number in range(len(self.layers))]


class ExactWithin(RuleCarrier):
    """A direct rule in all stacked layers of a network.

    Within an operation the error is exact: the kernel is W. It is zero in the layer that reads the
    operation's input, whose error comes from `StackedDirect`.
    """

    def __init__(self, layers: Sequence[StackedConv2d], rule: LearningRule) -> None:
        super().__init__(rule=rule)
        self.layers = tuple(layers)

    def kernels(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return the kernels as `FlatFeedback.kernels` does."""
        zeros = weights[0].new_zeros(())
        return [
            zeros.expand(weight.shape) if layer.common_input and not self.exact else weight
            for layer, weight in zip(self.layers, weights, strict=True)
        ]


class CastTogether(torch.autograd.Function):
    """Tensors of any shapes in another dtype, as views of one; gradients come back in the old one.

    >>> weights = [torch.ones(2, 3, requires_grad=True), torch.ones(4, requires_grad=True)]
    >>> lent = CastTogether.apply(torch.bfloat16, *weights)
    >>> [(tuple(value.shape), value.dtype) for value in lent]
    [((2, 3), torch.bfloat16), ((4,), torch.bfloat16)]
    """

    @staticmethod
    def forward(dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(dtype)
        pieces = flat.split([tensor.numel() for tensor in tensors])
        return tuple(piece.view_as(tensor) for tensor, piece in zip(tensors, pieces, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients]).to(ctx.dtype)
        pieces = flat.split([gradient.numel() for gradient in gradients])
        views = [piece.view_as(old) for old, piece in zip(gradients, pieces, strict=True)]
        return None, *views


class CastMoving(CastTogether):
    """`CastTogether` in a forward-mode pass: directions are cast as values are."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        CastTogether.setup_context(ctx, inputs, output)
        ctx.target = inputs[0]

    @staticmethod
    def jvp(ctx: Any, dtype: None, *directions: Tensor) -> tuple[Tensor, ...]:
        return CastTogether.forward(ctx.target, *directions)


class SharedFeedback(nn.Module):
    """The feedback of all stacked layers that have the same rules."""

    def __init__(self, layers: Sequence[StackedConv2d]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.flat = nn.ModuleList(self._carriers())
        """For each rule what carries it."""
        self.local: tuple[LearningRule | None, ...] = ()
        """In a pass: for each rule itself, if it is local and learns; else None."""
        self.slot: Tensor | None = None
        """In a pass: what the updates of local rules arrive through (`rules.side_by_side`)."""

    def _carriers(self) -> list[RuleCarrier]:
        """Make what carries each rule."""
        return [
            ExactWithin(self.layers, rule)
            if rule.direct
            else FlatFeedback(self.layers, rule, number)
            for number, rule in enumerate(self.layers[0].rules)
        ]

    def lend(self) -> None:
        """Give each layer the weight and the kernel of its next pass."""
        self._take_back_kernels()
        rules = len(self.flat)
        weights = [layer.weight.detach().reshape(rules, -1).unbind() for layer in self.layers]
        by_rule = list(zip(*weights, strict=True))  # [layer][rule] -> [rule][layer]
        kernels_by_rule = []
        for carrier, flat_weights in zip(self.flat, by_rule, strict=True):
            assert isinstance(carrier, (FlatFeedback, ExactWithin))
            kernels_by_rule.append(carrier.kernels(flat_weights))
        by_layer = zip(*kernels_by_rule, strict=True)  # [rule][layer] -> [layer][rule]
        self._lend_kernels([kernel for layer in by_layer for kernel in layer])

    def _take_back_kernels(self) -> None:
        """Take back the kernels of the pass before.

        A kernel that is learned holds the node by which autograd reaches its parameter, and the
        node is bound to the stream that it was made on: a recording has a stream of its own, and
        has to make the node anew.
        """
        for layer in self.layers:
            layer.kernel = None

    def _lend_kernels(self, pieces: Sequence[Tensor]) -> None:
        """Give each layer its kernel, of pieces in the order (layer, rule), and its weight."""
        kernels = torch.cat(list(pieces))
        sizes = [layer.weight.numel() for layer in self.layers]
        for layer, kernel in zip(self.layers, kernels.split(sizes), strict=True):
            layer.kernel = kernel.view_as(layer.weight)
        self._lend_weights()
        self._cast(kernels)

    def _lend_weights(self) -> None:
        """Route weights through `LentWeights`, so that local rules supply their gradients.

        Nothing is done where no rule is local or no weight is trained.
        """
        carriers = cast(list[RuleCarrier], list(self.flat))
        self.local = tuple(c.rule if c.rule.local and not c.exact else None for c in carriers)
        local_numbers = tuple(n for n, rule in enumerate(self.local) if rule is not None)
        weights = [layer.weight for layer in self.layers]
        trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
        if not (local_numbers and trained):
            return
        *lent, self.slot = LentWeights.apply(local_numbers, len(self.flat), *weights)
        for layer, weight in zip(self.layers, lent, strict=True):
            layer.lent_weight, layer.notes = weight, self.training

    def _cast(self, kernels: Tensor) -> None:
        """Under autocast, lend what each layer would cast by itself: cast in a few operations."""
        casting, dtype = [layer for layer in self.layers if layer.casts], autocast_dtype(kernels)
        if not casting or dtype is None:
            return
        if torch.is_grad_enabled():
            cast_together = CastMoving if forward_mode() else CastTogether
            lent = cast_together.apply(dtype, *(layer.lent()[0] for layer in casting))
            for layer, weight in zip(casting, lent, strict=True):
                layer.lent_weight = weight
        sizes = [layer.weight.numel() for layer in self.layers]
        for layer, kernel in zip(self.layers, kernels.to(dtype).split(sizes), strict=True):
            if layer.casts:
                layer.kernel = kernel.view_as(layer.weight)

    def settle(self, logits: Tensor) -> Tensor:
        """Take back the lent weights; kernels stay until the next `lend` replaces them.

        Returns the logits (N, K), in whose backward pass local rules are asked.
        """
        slot, noted = self.slot, [layer.noted for layer in self.layers]
        self.slot = None
        for layer in self.layers:
            layer.lent_weight, layer.notes, layer.noted = None, False, None
        if slot is None or not any(noted):  # in evaluation nothing is learned
            return logits
        # A `Noted` begins with two tensors, which autograd has to see; the rest is its geometry.
        tensors = [tensor for seen in noted if seen is not None for tensor in seen[:2]]
        rules = len(self.flat)
        geometries = [
            layer.weight.numel() // rules if seen is None else seen[2:]
            for layer, seen in zip(self.layers, noted, strict=True)
        ]
        return LocalUpdates.apply(logits, slot, self.local, geometries, *tensors)
