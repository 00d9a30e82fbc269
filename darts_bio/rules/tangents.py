"""Forward-mode passes: how a model's output moves as its weights do, under learning rules.

A layer's backward pass under a rule is a linear map of the error dy that arrives: it gives the
input the error convT(dy; B) and the weight the gradient conv_w(x, dy). A forward-mode pass computes
the transpose of that map. Where the weight moves along v and the input along q, the output moves
along

    conv(x, v) + conv(q, B)

so that <dy, output's direction> = <convT(dy; B), q> + <conv_w(x, dy), v> for any dy. B, not W,
carries q: that is what makes it the transpose of the pass that the rule runs, and not the derivative
of the forward pass. Over a whole model, with g the gradient that the rules give the weights and
e = dloss/dlogits,

    <v, g> = <e, logits' direction>

What is this for? Rules change g, and g changes where a step of training goes. With v the gradient of
a validation loss, -rate <v, g> is what the step does to that loss, and its derivative for a layer's
kernel,

    d<v, g>/dB = conv_w(q, dy)

needs what this pass and the ordinary backward pass have at hand. So in a forward-mode pass the
gradient of a kernel is that derivative (`strategies.rule_aware` puts it to use).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

_open = False
"""Whether a `tangents` context is open. There is one at a time: PyTorch nests no levels."""


def forward_mode() -> bool:
    """Tell whether this pass is a forward-mode pass, that is, within `tangents`."""
    return _open


@contextlib.contextmanager
def tangents(weights: Sequence[Tensor], directions: Sequence[Tensor]) -> Iterator[None]:
    """Have passes within the context compute how each result moves as `weights` do.

    A gradient is taken after the context: what it needs is kept, and no direction goes up through
    the backward pass.

    Args:
        weights: Leaves, such as a model's parameters.
        directions: For each one where it moves to, of its shape.

    >>> from darts_bio.rules import RULES, RuleLinear
    >>> layer = RuleLinear(2, 1, bias=False, rule=RULES.build("fa"))
    >>> x, v = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[3.0, 4.0]])
    >>> with tangents([layer.weight], [v]):
    ...     y = layer(x)
    ...     direction = forward_ad.unpack_dual(y).tangent
    >>> direction.item()  # 1 * 3 + 2 * 4
    11.0
    """
    global _open
    with forward_ad.dual_level():  # all directions end with it
        with warnings.catch_warnings(), torch.no_grad():
            # Its first use loads code of PyTorch that PyTorch itself calls deprecated.
            warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
            for weight, direction in zip(weights, directions, strict=True):
                # The same values; what is new is the direction.
                weight.copy_(forward_ad.make_dual(weight.detach(), direction))
        _open = True
        try:
            yield
        finally:
            _open = False
