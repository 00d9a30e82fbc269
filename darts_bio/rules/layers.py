"""Convolution and linear layers that carry a learning rule, and what is done to all of them in a model.

A `RuleConv2d` or `RuleLinear` is PyTorch's own layer (same parameters, same state_dict keys for them) with a rule and
its feedback as buffers `feedback_*`: saved with the model, moved by `.to()`, never optimised.

    >>> from darts_bio.rules import RULES, RuleConv2d
    >>> layer = RuleConv2d(3, 8, 3, rule=RULES.build("usf"))
    >>> [name for name, _ in layer.named_parameters()], [name for name, _ in layer.named_buffers()]
    (['weight', 'bias'], ['feedback_scale'])
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.rules.base import InitialLaw, LearningRule
from darts_bio.rules.functional import (
    FeedbackConvolution,
    FeedbackLinear,
    keeps_saved_tensors,
    through_kernel,
    wide_depthwise,
)
from darts_bio.runtime import generator


def in_autocast_dtype(x: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    """All tensors as autocast would hand them to the layer. Autocast does not look inside a custom Function."""
    kind = x.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):  # not on "meta"
        return [x, *others]
    dtype = torch.get_autocast_dtype(kind)
    # Autocast leaves float64 alone.
    return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x, *others)]


class RuleCarrier(nn.Module):
    """What has a rule and its feedback: a layer, or many layers of the supernet taken as one.

    The feedback is held in buffers `feedback_*`. `exact` makes the carrier answer W whatever its rule.
    """

    def __init__(self, *args: Any, rule: LearningRule, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rule = rule
        self.exact = False
        self._feedback_names: tuple[str, ...] = ()

    @property
    def initial_law(self) -> InitialLaw:
        """What the weight that the rule is about was drawn from."""
        raise NotImplementedError(f"{type(self).__name__}.initial_law")

    def hold_feedback(self, weight: Tensor) -> None:
        """Gives the carrier feedback of its own from the start, for a weight as it has just been drawn: a function of
        PyTorch's generator as it stands on that device. The generator is not moved on, so weights are the same under
        every rule."""
        on_gpu = weight.device.type == "cuda"
        standing = torch.cuda.get_rng_state(weight.device) if on_gpu else torch.get_rng_state()
        now = hashlib.blake2b(standing.numpy().tobytes()).hexdigest()
        state = self.rule.state(self.initial_law, generator("cpu", now))
        self._feedback_names = tuple(state)
        for name, value in state.items():
            self.register_buffer(f"feedback_{name}", value.to(weight))

    @property
    def feedback(self) -> dict[str, Tensor]:
        """The rule's state by name."""
        return {name: getattr(self, f"feedback_{name}") for name in self._feedback_names}

    @torch.no_grad()
    def draw_feedback(self, source: torch.Generator) -> None:
        """Draws the rule's state anew, in place, from `source`."""
        for name, value in self.rule.state(self.initial_law, source).items():
            getattr(self, f"feedback_{name}").copy_(value)

    @torch.no_grad()
    def transport(self, weight: Tensor) -> Tensor:
        """The kernel that carries the error down: the rule's, or the weight where the exact one is asked for."""
        return weight if self.exact else self.rule.kernel(weight, self.feedback)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), f"rule={self.rule}")))


class RuleLayer(RuleCarrier):
    """What the two layers share. Mixed in before the layer of PyTorch that has the `weight`."""

    weight: Tensor

    def __init__(self, *args: Any, rule: LearningRule, **kwargs: Any) -> None:
        super().__init__(*args, rule=rule, **kwargs)
        self.hold_feedback(self.weight)

    @property
    def initial_law(self) -> InitialLaw:
        """PyTorch's default initialisation of this layer."""
        return InitialLaw(self.weight.shape, math.prod(self.weight.shape[1:]) ** -0.5)

    def error_kernel(self, x: Tensor) -> Tensor:
        """The kernel that will carry the error to `x`: the weight itself where no error is sent down at all."""
        if self.exact or not (torch.is_grad_enabled() and x.requires_grad):
            return self.weight
        return self.transport(self.weight)


class RuleConv2d(RuleLayer, nn.Conv2d):
    """nn.Conv2d on (N, C, H, W) or (C, H, W) whose error goes down through its rule's kernel. All of nn.Conv2d's
    options work."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            return self(x.unsqueeze(0)).squeeze(0)
        kernel = self.error_kernel(x)
        if kernel is self.weight:
            return nn.Conv2d.forward(self, x)
        if keeps_saved_tensors() and not wide_depthwise(x, kernel, self.dilation, self.groups):
            y = nn.Conv2d.forward(self, x)
            through_kernel(y, kernel)
            return y
        padding: Any = self.padding
        if self.padding_mode != "zeros" or padding == "same":
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=mode), (0, 0)
        elif padding == "valid":
            padding = (0, 0)
        x, weight, bias, kernel = in_autocast_dtype(x, self.weight, self.bias, kernel)  # type: ignore[assignment]
        geometry = (self.stride, padding, self.dilation, self.groups)
        return FeedbackConvolution.apply(x, weight, bias, kernel, *geometry, 1)


class RuleLinear(RuleLayer, nn.Linear):
    """nn.Linear on (..., I) whose error goes down through its rule's kernel."""

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.error_kernel(x)
        if kernel is self.weight:
            return nn.Linear.forward(self, x)
        return FeedbackLinear.apply(*in_autocast_dtype(x, self.weight, self.bias, kernel))


def rule_layers(model: nn.Module) -> Iterator[tuple[str, RuleLayer]]:
    """(name, layer) of every layer that carries a rule by itself."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, RuleLayer))


def rule_carriers(model: nn.Module) -> Iterator[tuple[str, RuleCarrier]]:
    """(name, carrier) of all that has a rule: these layers, and the supernet's layers that are taken as one."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, RuleCarrier))


def draw_feedback(model: nn.Module, seed: int, update: int = 0) -> None:
    """Draws the feedback of a whole model as it stands after `update` weight updates.

    With update = 0 every rule draws; later only the rules that redraw (brsf). Each draw depends on (seed, name, update)
    alone, name being where the rule's carrier stands in the model: not on the order of calls, and not on any global
    generator, which is left untouched. So a training loop calls it once after each weight update, a resumed run draws
    what an uninterrupted one would have drawn, and evaluation draws nothing.
    """
    for wrapped, carrier in rule_carriers(model):
        # As named in the model itself, not in what torch.compile or DistributedDataParallel wraps around it.
        name = wrapped.replace("_orig_mod.", "").removeprefix("module.")
        if not carrier.feedback:
            continue
        if update == 0:
            # The first draw is made on the CPU so that it is the same whatever the device.
            carrier.draw_feedback(generator("cpu", "feedback", seed, name, 0))
        elif carrier.rule.redraws:
            device = next(iter(carrier.feedback.values())).device
            carrier.draw_feedback(generator(device, "feedback", seed, name, update))


@contextlib.contextmanager
def true_gradients(model: nn.Module) -> Iterator[None]:
    """Within it every rule answers W: the forward pass is unchanged and all gradients are exact.

    The kernel is chosen in the forward pass, so run both passes inside.
    """
    carriers = [carrier for _, carrier in rule_carriers(model)]
    before = [carrier.exact for carrier in carriers]
    for carrier in carriers:
        carrier.exact = True
    try:
        yield
    finally:
        for carrier, exact in zip(carriers, before, strict=True):
            carrier.exact = exact
