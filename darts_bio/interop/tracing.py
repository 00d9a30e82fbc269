"""What torch.fx is not to look into when timm traces our networks (`feature_cls="fx"`,
`create_feature_extractor`).

Tracing runs the Python code of `forward` once, on stand-ins for tensors, and keeps the calls it
sees. Code that asks a tensor for its size, or acts on the model rather than on tensors, has to be a
module that the traced graph calls whole. timm hands the types registered here to its tracers;
register your own by `timm.models.register_notrace_module`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.models import register_notrace_module
from torch import Tensor, nn

from darts_bio.networks.cells import DropPath
from darts_bio.rules.carriers import RuleCarrier
from darts_bio.rules.compilers import Uncompiled
from darts_bio.rules.dfa import OutputError
from darts_bio.spaces.operations import EvenAndOdd, Zero

for module in (RuleCarrier, DropPath, EvenAndOdd, Zero):
    register_notrace_module(module)


uncompiled = Uncompiled("feedback is renewed between passes, by draws that depend on their number")


@register_notrace_module
class Renewal(nn.Module):
    """Renews the feedback of a network at the start of a training pass with gradients: x to x, any
    shape.

    A module of its own, so that a traced graph renews it at each pass too, and not once while it is
    traced. It follows its own mode, which is that of the graph it is part of.
    """

    def __init__(self, renew: Callable[[], None]) -> None:
        """`renew` is the network's own method, which a copy of the network copies with it."""
        super().__init__()
        uncompiled.prepare()
        self._renew = renew

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            uncompiled(self._renew)
        return x


@register_notrace_module
class Watched(nn.Module):
    """Has the error at a network's output caught, for what is under dfa: (N, K) to the same."""

    def __init__(self, source: OutputError) -> None:
        super().__init__()
        self._source = source

    def forward(self, x: Tensor) -> Tensor:
        return self._source.watch(x)
