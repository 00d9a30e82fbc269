"""DARTS, first and second order (Liu 2019, arXiv 1806.09055, equations 6 to 8).

Edge weights are the softmax of alpha over the candidates of an edge. In each step Adam moves alpha
along the gradient of the validation loss at the present weights (order 1), or at the weights after
a step along the training loss, which depends on alpha too (order 2):

    w'(alpha) = w - lr (momentum buffer + dL_train(w, alpha)/dw + decay w)
    d L_val(w', alpha)/d alpha = dL_val/d alpha - lr d<v, dL_train(w, alpha)/dw>/d alpha,     v = dL_val(w')/dw'
    d<v, dL_train/dw>/d alpha = (dL_train(w + R v)/d alpha - dL_train(w - R v)/d alpha) / 2R,  R = 0.01 / |v|

The candidates are (operation, rule) pairs, so a rule's share is learnt by the same softmax (arXiv
2507.13485).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_bio.distributed import average
from darts_bio.errors import InputError
from darts_bio.rules import RULES, held_feedback
from darts_bio.strategies.base import STRATEGIES, Bilevel, detached
from darts_bio.strategies.gradient import AlphaState, GradientStrategy

STEP_OF_DIFFERENCES = 0.01


@STRATEGIES.register("darts")
@dataclass(frozen=True)
class Darts(GradientStrategy):
    """Differentiable search, first or second order: softmax of alpha (Liu 2019)."""

    order: int = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2) or isinstance(self.order, bool):
            raise InputError(f"{self.where}: order: expected 1 or 2, found {self.order!r}")
        super().__post_init__()

    @property
    def exchanges(self) -> bool:  # type: ignore[override]
        return self.order == 2

    def notes(self, state: AlphaState, rules: Sequence[str]) -> list[str]:
        other = [rule for rule in rules if not RULES.build(rule).transports_weights]
        if self.order == 1 or not other:
            return []
        return [
            "note: second-order darts takes the weights' step for one along the gradient of the "
            "training loss. Under "
            f"{', '.join(other)} it follows the rule's gradient instead, so the second-order term "
            "is that of another "
            "step; feedback is held fixed while the term is measured"
        ]

    def gradients(self, state: AlphaState, bilevel: Bilevel) -> tuple[Sequence[Tensor], Tensor]:
        return (
            super().gradients(state, bilevel)
            if self.order == 1
            else self.second_order_gradients(state, bilevel)
        )

    def second_order_gradients(
        self, state: AlphaState, bilevel: Bilevel
    ) -> tuple[list[Tensor], Tensor]:
        """Returns what `gradients` does, of the loss after the virtual step.

        Each gradient is the mean over all processes, so that the virtual step and v are the same in
        all.
        """
        weights, parameters = list(bilevel.weights), list(state.parameters.values())
        before = [weight.detach().clone() for weight in weights]
        loss, _ = bilevel.weight_loss(bilevel.train_batch, detached(self.edge_weights(state)))
        along = _averaged(torch.autograd.grad(loss, weights, allow_unused=True), weights)
        after, rate = bilevel.virtual_step(along)
        try:
            _put(weights, after)
            loss, logits = self.validation_loss(state, bilevel)
            found = torch.autograd.grad(loss, [*parameters, *weights], allow_unused=True)
            gradients = _averaged(found, [*parameters, *weights])
            own, v = gradients[: len(parameters)], gradients[len(parameters) :]
            size = STEP_OF_DIFFERENCES / torch.linalg.vector_norm(
                torch.stack(torch._foreach_norm(v))
            )
            _put(weights, before)
            with held_feedback(bilevel.supernet), bilevel.frozen_weights():
                sides = []
                for sign in (1, -1):
                    _put(
                        weights,
                        [
                            w + sign * size * direction
                            for w, direction in zip(before, v, strict=True)
                        ],
                    )
                    loss, _ = bilevel.weight_loss(bilevel.train_batch, self.edge_weights(state))
                    sides.append(_averaged(torch.autograd.grad(loss, parameters), parameters))
        finally:
            _put(weights, before)
        gradients = [
            g - rate * (plus - minus) / (2 * size)
            for g, plus, minus in zip(own, *sides, strict=True)
        ]
        return gradients, logits.detach()


def _averaged(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Returns the means over all processes, as copies; zeros where a weight has no part in the
    loss.
    """
    kept = [
        torch.zeros_like(w) if g is None else g.clone()
        for g, w in zip(gradients, like, strict=True)
    ]
    average(kept)
    return kept


@torch.no_grad()
def _put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    torch._foreach_copy_(list(weights), list(values))
