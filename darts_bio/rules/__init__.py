"""Learning rules: how a layer with weights sends its error down, and what its weights learn by.

A rule is a small immutable value, built from a spec. PyTorch's layers exist with a rule here, and
`convert` puts rules on the layers of any model.

>>> import torch
>>> from darts_bio.rules import RULES, RuleLinear
>>> RULES.build("usf(scale=match)")
UniformSignFeedback(scale='match')
>>> layer = RuleLinear(3, 1, rule=RULES.build("fa"))
>>> x = torch.ones(1, 3, requires_grad=True)
>>> layer(x).sum().backward()
>>> torch.equal(x.grad, layer.feedback_kernel)  # not the weight, which bp would send
True
"""

from darts_bio.rules import dfa as _dfa  # noqa: F401  (these register their rules)
from darts_bio.rules import feedback as _feedback  # noqa: F401
from darts_bio.rules import hebbian as _hebbian  # noqa: F401
from darts_bio.rules import predictive as _predictive  # noqa: F401
from darts_bio.rules import product_feedback as _product_feedback  # noqa: F401
from darts_bio.rules.attach import Attached, attach
from darts_bio.rules.audit import Audit, audit, count_rules
from darts_bio.rules.base import RULES, InitialLaw, LearningRule, Operator
from darts_bio.rules.carriers import (
    DirectOperation,
    Renewal,
    RuleCarrier,
    connect_output,
    draw_feedback,
    held_feedback,
    learned_feedback,
    rule_carriers,
    true_gradients,
)
from darts_bio.rules.convert import convert, revert
from darts_bio.rules.layers import RuleConv2d, RuleLayer, RuleLinear, rule_layers

__all__ = [
    "RULES",
    "Attached",
    "Audit",
    "DirectOperation",
    "InitialLaw",
    "LearningRule",
    "Operator",
    "Renewal",
    "RuleCarrier",
    "RuleConv2d",
    "RuleLayer",
    "RuleLinear",
    "attach",
    "audit",
    "connect_output",
    "convert",
    "count_rules",
    "draw_feedback",
    "held_feedback",
    "learned_feedback",
    "revert",
    "rule_carriers",
    "rule_layers",
    "true_gradients",
]
