"""How a weighted layer sends its error down, and updates itself."""

from darts_bio.rules import feedback as _feedback  # noqa: F401  (registers the family)
from darts_bio.rules.base import RULES, InitialLaw, LearningRule
from darts_bio.rules.layers import (
    RuleCarrier,
    RuleConv2d,
    RuleLayer,
    RuleLinear,
    draw_feedback,
    rule_carriers,
    rule_layers,
    true_gradients,
)

__all__ = [
    "RULES",
    "InitialLaw",
    "LearningRule",
    "RuleCarrier",
    "RuleConv2d",
    "RuleLayer",
    "RuleLinear",
    "draw_feedback",
    "rule_carriers",
    "rule_layers",
    "true_gradients",
]
