"""A search that sees learning rules: by what a rule's step does to the validation loss.

The output of a supernet does not depend on learning rules. They act through training only: a rule
changes the gradient g that the weights follow, and so where the next step takes them. So alpha's
first-order gradient, at fixed weights, says nothing of a rule; where rules share weights it is
exactly the same for all of them.

Here the rules of an operation do share its weights, and their kernels are mixed with shares p
(`rules.mixture`). A step of training goes to w'(p) = w - rate g(w, p), and the shares follow

    d L_val(w'(p)) / dp = -rate d<v, g(p)>/dp,      v = dL_val(w')/dw'

with v the exact gradient, whatever the rules. A layer l has the kernel B_l = sum over r of
p_lr B_lr, and with q_l the direction of its input in a forward-mode pass along v, and e_l the error
that arrives at its output (both through the rules' kernels, see `rules.tangents`),

    d<v, g>/dp_lr = <B_lr, conv_w(q_l, e_l)>

for all rules at once. So the gradient of any number of rules costs one pass in which each layer
computes a second map, q, and one more weight gradient. It is exact for one step. Two zeros in it
are worth knowing:

- Of the lowest layer that learns the input does not move, q = 0: nothing learns from the error that
  its rule sends down. In a supernet that is the stem's, which is under `--backbone-rule`; all edges
  lie above it.
- sign(W) has no derivative for W. It does not need one: only p is differentiated, at fixed w.

Operations move as in DARTS, by dL_val/dalpha at w'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import InputError, check_number
from darts_bio.rules import true_gradients
from darts_bio.rules.tangents import tangents
from darts_bio.strategies.base import STRATEGIES, Bilevel, Context
from darts_bio.strategies.gradient import AlphaState, GradientStrategy
from darts_bio.strategies.lookahead import look_ahead


class RuleAwareState(AlphaState):
    """Alpha of operations and of rules given the operation; rules have a rate of their own."""

    def _groups(self, strategy: RuleAware) -> list[dict[str, Any]]:
        # No decay for rules: their gradient has the learning rate of w in it, and would be lost
        # beside that of an L2 penalty.
        rules = {"lr": strategy.rule_lr, "weight_decay": 0.0}
        operations = [p for name, p in self.parameters.items() if name not in self.rules]
        return [{"params": operations}, {"params": list(self.rules.values()), **rules}]

    @property
    def rules(self) -> dict[str, Tensor]:
        """The parameters of rules given the operation, by name."""
        return {name: p for name, p in self.parameters.items() if name.endswith("/rule")}

    def learning_rates(self) -> dict[str, float]:
        operations, rules = (group["lr"] for group in self.optimizer.param_groups)
        return {"alpha": operations, "rules": rules}


@STRATEGIES.register("rule_aware")
@dataclass(frozen=True)
class RuleAware(GradientStrategy):
    """Rules by what their step does to the validation loss, operations as in DARTS.

    It needs a supernet whose rules share weights (`--weights shared`, which it brings). `rule_lr`
    is Adam's learning rate for the rules' parameters; the other options are those of operations
    (see `GradientStrategy`).

    >>> from darts_bio.strategies import STRATEGIES
    >>> STRATEGIES.build("rule_aware(rule_lr=0.01)").rule_lr
    0.01
    """

    rule_lr: float = 3e-3

    factorised = True
    exchanges = True
    looks_ahead = True
    shares_weights = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(f"{self.where}: rule_lr", self.rule_lr)

    def begin(self, context: Context) -> AlphaState:
        return RuleAwareState(self, context)

    def notes(self, state: AlphaState, rules: Sequence[str]) -> list[str]:
        if len(rules) > 1:
            return []
        return ["note: there is one learning rule, so rule_aware has none to choose"]

    def gradients(self, state: AlphaState, bilevel: Bilevel) -> tuple[Sequence[Tensor], Tensor]:
        assert isinstance(state, RuleAwareState)
        supernet = bilevel.supernet
        if not supernet.shares_weights:
            raise InputError(
                f"{self.where}: expected a supernet whose rules share weights, found weights of "
                "each rule's own; use --weights shared"
            )

        def validation_loss() -> tuple[Tensor, Tensor]:
            with true_gradients(supernet):
                return self.validation_loss(state, bilevel)

        with supernet.batch_statistics():
            parameters = list(state.parameters.values())
            ahead = look_ahead(bilevel, self.edge_weights(state), parameters, validation_loss)
            with bilevel.frozen_weights():
                with tangents(bilevel.weights, ahead.of_weights):
                    loss, _ = bilevel.weight_loss(bilevel.train_batch, self.edge_weights(state))
                sweep = torch.autograd.grad(loss, list(state.rules.values()))
        through_step = dict(zip(state.rules, sweep, strict=True))
        gradients = [
            of_alpha - ahead.rate * through_step[name] if name in through_step else of_alpha
            for name, of_alpha in zip(state.parameters, ahead.of_alpha, strict=True)
        ]
        return gradients, ahead.logits
