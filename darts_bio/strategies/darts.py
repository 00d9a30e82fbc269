"""DARTS, first and second order (Liu 2019, arXiv 1806.09055, equations 3 to 8).

Edge weights are the softmax of alpha over the candidates of an edge. The candidates are (operation,
rule) pairs, so the share of a rule is learned by the same softmax as that of an operation (arXiv
2507.13485).

What is wanted is the alpha whose *trained* weights do best on the validation half (equations 3, 4):

    min over alpha of L_val(w*(alpha), alpha),    w*(alpha) = argmin over w of L_train(w, alpha)

Training to the end for each alpha is out of reach, so w*(alpha) is approximated in each step:

- First order (`order=1`): by the present weights. Alpha follows dL_val(w, alpha)/dalpha.

- Second order (`order=2`): by one step of the weights' optimizer (equation 6), here SGD with
  momentum and weight decay, whose learning rate is xi:

      w'(alpha) = w - xi (momentum * buffer + dL_train(w, alpha)/dw + decay * w)

  w' depends on alpha too, so the chain rule adds a term (equation 7). With
  v = dL_val(w', alpha)/dw':

      d L_val(w'(alpha), alpha) / dalpha
          = dL_val(w', alpha)/dalpha - xi d<v, dL_train(w, alpha)/dw>/dalpha

  The last term is a product of v with the matrix of mixed second derivatives. It is taken by a
  central difference of two first derivatives (equation 8), since rules have no second derivative:

      d<v, dL_train(w, alpha)/dw>/dalpha
          = (dL_train(w + epsilon v, alpha)/dalpha - dL_train(w - epsilon v, alpha)/dalpha)
            / (2 epsilon)

  with epsilon = 0.01 / |v|. Four passes in place of one, and a copy of w.

The term assumes that w steps along the true gradient of L_train. Under a rule such as feedback
alignment it does not (`Darts.notes` says so to the user), and the term differentiates a step not taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.private_torch import norms
from darts_bio.rules import RULES, held_feedback
from darts_bio.strategies.base import STRATEGIES, Bilevel
from darts_bio.strategies.gradient import AlphaState, GradientStrategy
from darts_bio.strategies.lookahead import averaged, look_ahead, put

STEP_OF_DIFFERENCES = 0.01
"""The norm of epsilon v: how far the central difference goes to either side of w."""


@STRATEGIES.register("darts")
@dataclass(frozen=True)
class Darts(GradientStrategy):
    """Differentiable search, first or second order: softmax of alpha (Liu 2019).

    `order` is 1 or 2; the other options are Adam's and the standard deviation of alpha at the
    beginning (see `GradientStrategy`).

    >>> from darts_bio.strategies import STRATEGIES
    >>> STRATEGIES.options("darts")
    {'order': 1, 'lr': 0.0003, 'betas': (0.5, 0.999), 'weight_decay': 0.001, 'init': 0.001}
    >>> STRATEGIES.build("darts(order=2, lr=6e-4)").lr
    0.0006
    >>> STRATEGIES.build("darts(order=3)")
    Traceback (most recent call last):
        ...
    darts_bio.errors.InputError: strategy darts: order: expected 1 or 2, found 3
    """

    order: int = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2) or isinstance(self.order, bool):
            raise InputError(f"{self.where}: order: expected 1 or 2, found {self.order!r}")
        super().__post_init__()

    @property
    def exchanges(self) -> bool:  # type: ignore[override]
        return self.order == 2

    @property
    def looks_ahead(self) -> bool:  # type: ignore[override]
        return self.order == 2

    def notes(self, state: AlphaState, rules: Sequence[str]) -> list[str]:
        inexact = [rule for rule in rules if not RULES.build(rule).transports_weights]
        if self.order == 1 or not inexact:
            return []
        return [
            "note: second-order darts takes the weights' step for one along the gradient of the "
            "training loss. Under "
            f"{', '.join(inexact)} it follows the rule's gradient instead, so the second-order "
            "term is that of another "
            "step; feedback is held fixed while the term is measured"
        ]

    def gradients(self, state: AlphaState, bilevel: Bilevel) -> tuple[Sequence[Tensor], Tensor]:
        if self.order == 1:
            return super().gradients(state, bilevel)
        return self.second_order_gradients(state, bilevel)

    def second_order_gradients(
        self, state: AlphaState, bilevel: Bilevel
    ) -> tuple[list[Tensor], Tensor]:
        """Return what `gradients` does, of the loss after the virtual step (equations 6 to 8).

        Each gradient is the mean over all processes, so that the virtual step and v are the same in
        all. When it returns or raises, w is as it was.
        """
        weights, parameters = list(bilevel.weights), list(state.parameters.values())
        # 1. The virtual step from w to w' (equation 6), in which alpha's part is left to step 2. At
        #    w' one backward pass gives both the first term of equation 7,
        #    dL_val(w', alpha)/dalpha, and v = dL_val(w', alpha)/dw'.
        ahead = look_ahead(
            bilevel,
            self.edge_weights(state),
            parameters,
            lambda: self.validation_loss(state, bilevel),
        )
        # 2. dL_train/dalpha at w + epsilon v and at w - epsilon v (equation 8). Feedback is that of
        #    w on both sides: a rule that sends down sign(W) would jump where epsilon v flips a
        #    sign, and the difference would be divided by epsilon.
        v = ahead.of_weights
        epsilon = STEP_OF_DIFFERENCES / torch.linalg.vector_norm(torch.stack(list(norms(v))))
        sides = []
        try:
            with held_feedback(bilevel.supernet), bilevel.frozen_weights():
                for sign in (1, -1):
                    shift = sign * epsilon
                    put(weights, [w + shift * d for w, d in zip(ahead.weights, v, strict=True)])
                    loss, _ = bilevel.weight_loss(bilevel.train_batch, self.edge_weights(state))
                    sides.append(averaged(torch.autograd.grad(loss, parameters), parameters))
        finally:
            put(weights, ahead.weights)

        # 3. Equation 7.
        plus, minus = sides
        second_order = [
            g - ahead.rate * (p - m) / (2 * epsilon)
            for g, p, m in zip(ahead.of_alpha, plus, minus, strict=True)
        ]
        return second_order, ahead.logits
