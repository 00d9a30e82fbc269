"""Modules that torch.fx calls whole when timm traces a network of this package.

timm traces for `feature_cls="fx"` and in `create_feature_extractor`. Tracing runs the Python code
of `forward` once, on stand-ins for tensors, and records the calls it sees. Code that asks a tensor
for its size, or that acts on the model rather than on tensors, has to stand in a module that the
traced graph calls as one. timm gives the types that are registered here to its tracers; register
your own by `timm.models.register_notrace_module`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

from darts_bio.draws import DrawsForSamples
from darts_bio.rules.carriers import RuleCarrier
from darts_bio.rules.compilers import Uncompiled
from darts_bio.rules.dfa import OutputError
from darts_bio.spaces.operations import EvenAndOdd, Zero

for module in (RuleCarrier, DrawsForSamples, EvenAndOdd, Zero):
    register_notrace_module(module)


uncompiled = Uncompiled("feedback is renewed between passes, by draws that depend on their number")


@register_notrace_module
class RenewsFeedback(nn.Module):
    """An identity that renews a network's feedback at the start of each training pass.

    It is a module of its own, so that a traced graph renews the feedback at each pass too, and not
    once while it is traced. It does so in training mode and with gradients enabled only.
    """

    def __init__(self, renew: Callable[[], None]) -> None:
        """Make the module; `renew` is the network's own method, which its copies copy with them."""
        super().__init__()
        uncompiled.prepare()
        self._renew = renew

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            uncompiled(self._renew)
        return x


@register_notrace_module
class Watched(nn.Module):
    """An identity on a network's output (N, K) that catches its error for layers under dfa."""

    def __init__(self, source: OutputError) -> None:
        super().__init__()
        self._source = source

    def forward(self, x: Tensor) -> Tensor:
        return self._source.watch(x)
