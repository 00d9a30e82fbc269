"""The feedback of stacked layers whose rules share weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from darts_bio.rules.base import LearningRule
from darts_bio.rules.carriers import RuleCarrier
from darts_bio.rules.mixture import RuleMixture, mixed_kernel, with_learned
from darts_bio.rules.shared_feedback import FlatFeedback, SharedFeedback
from darts_bio.rules.stacked import StackedConv2d


class MixedFeedback(SharedFeedback):
    """The feedback of all stacked layers under one `RuleMixture`.

    Each of its R rules holds its feedback for the weights of all layers, in one flat tensor, and is
    asked once for its kernel; then one kernel for each member is mixed by the member's shares.

    `members` says whose shares `lend` is given: (layer, number of the member in the layer), in the
    order of the flat tensors.
    """

    def __init__(self, layers: Sequence[StackedConv2d]) -> None:
        super().__init__(layers)
        segments = cast(FlatFeedback, self.flat[0]).by_shape()
        self.members = [
            (layer, m) for _, same in segments for layer in same for m in range(len(layer.names))
        ]
        self._counts = [sum(len(layer.names) for layer in same) for _, same in segments]
        """How many members of each shape there are."""
        self._sizes = [sum(layer.weight.numel() for layer in same) for _, same in segments]
        """How many weights these have."""

    @property
    def mixture(self) -> RuleMixture:
        """The layers' rule."""
        (mixture,) = self.layers[0].rules
        assert isinstance(mixture, RuleMixture)
        return mixture

    def _carriers(self) -> list[RuleCarrier]:
        # All sorted alike, so that the kernels of the rules lie weight by weight.
        return [FlatFeedback(self.layers, rule, sort=True) for rule in self.mixture.rules]

    def lend(self, shares: Tensor) -> None:  # type: ignore[override]
        """Give each layer the kernel of its next pass, by the shares (members, R).

        The kernels are differentiable at the shares.
        """
        self._take_back_kernels()
        carriers = cast("list[FlatFeedback]", list(self.flat))
        flat_weights = carriers[0].carried_weight
        if all(carrier.exact for carrier in carriers):
            kernel = flat_weights
        else:
            kernel = self._mixed(carriers, flat_weights, shares)
        self._lend_kernels(carriers[0].by_layer(kernel))

    def _mixed(
        self, carriers: Sequence[RuleCarrier], flat_weights: Tensor, shares: Tensor
    ) -> Tensor:
        """Return the mixed kernels of all members, flat."""
        with torch.no_grad():
            of_rules = [cast(Tensor, carrier.transport(flat_weights)) for carrier in carriers]
            kernels = torch.stack(of_rules)  # (R, weights)
        mixed = [
            mixed_kernel(
                weights.view(count, -1),
                of_segment.reshape(len(carriers), count, -1),
                of_members,
                self.mixture.scale,
            ).flatten()
            for count, weights, of_segment, of_members in zip(
                self._counts,
                flat_weights.split(self._sizes),
                kernels.split(self._sizes, dim=1),
                shares.split(self._counts),
                strict=True,
            )
        ]
        learned = [carrier.feedback[name] for carrier in carriers for name in carrier.rule.learned]
        return with_learned(torch.cat(mixed), learned)


def share_feedback(layers: Sequence[StackedConv2d]) -> nn.ModuleList:
    """Return a `SharedFeedback` for each set of rules among the stacked layers of a network.

    Layers under a `RuleMixture` get a `MixedFeedback`. What is drawn for a layer depends on its
    place in this sequence.
    """
    by_rules: dict[tuple[LearningRule, ...], list[StackedConv2d]] = {}
    for layer in layers:
        by_rules.setdefault(layer.rules, []).append(layer)
    return nn.ModuleList(
        MixedFeedback(same) if isinstance(rules[0], RuleMixture) else SharedFeedback(same)
        for rules, same in by_rules.items()
    )
