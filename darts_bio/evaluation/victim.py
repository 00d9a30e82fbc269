"""A classifier as those who follow its gradient to the image see it, attacks above all.

Under a learning rule there are two such gradients: the exact one, and what the rule sends down to
the image in its place, which may be random.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.config import Gradients
from darts_bio.rules import rule_carriers, true_gradients
from darts_bio.runtime import generator


class Victim(nn.Module):
    """A classifier as an attack sees it: its logits, and the derivative that is asked for.

    Where no error reaches the image, as under a rule that sends none down, the gradient is zero.

    >>> from darts_bio.rules import convert
    >>> model = convert(nn.Sequential(nn.Flatten(), nn.Linear(48, 4)), "fa")
    >>> pixels = torch.rand(2, 3, 4, 4, requires_grad=True)
    >>> exact, ruled = (
    ...     torch.autograd.grad(Victim(model, side)(pixels)[:, 0].sum(), pixels)[0]
    ...     for side in ("true", "rule")
    ... )
    >>> torch.allclose(exact[0].flatten(), model[1].weight[0]), torch.allclose(ruled, exact)
    (True, False)
    """

    def __init__(
        self, model: nn.Module, gradients: Gradients, draws: int = 1, seed: int = 0
    ) -> None:
        """Wrap a classifier of pixels.

        Args:
            model: From pixels (N, C, H, W) in [0, 1] to logits.
            gradients: Which derivative the backward pass gives.
            draws: With gradients of the rule, the mean is taken over that many draws of feedback
                that is drawn anew at every weight update (brsf): expectation over transformation
                (Athalye 2018, arXiv 1707.07397).
            seed: That of these draws.
        """
        super().__init__()
        self.model, self.exact, self.seed, self.draw_number = model, gradients == "true", seed, 0
        self.draws = draws if gradients == "rule" and redraws(model) else 1

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, C, H, W) to logits (N, classes)."""
        if self.draws > 1 and torch.is_grad_enabled() and pixels.requires_grad:
            logits: Tensor = _Expected.apply(pixels, self)
        else:
            with true_gradients(self.model) if self.exact else contextlib.nullcontext():
                logits = self.model(pixels)
        # Adds nothing, but ties the logits to the pixels: attacks ask for a gradient even where no
        # error reaches the image, and autograd would raise instead of giving zero.
        return logits + 0 * pixels.flatten(1).sum(1, keepdim=True)

    def redraw(self) -> None:
        """Draw the feedback anew, of all layers whose rule does so at every weight update."""
        self.draw_number += 1
        for name, carrier in rule_carriers(self.model):
            if carrier.rule.redraws and carrier.feedback:
                device = next(iter(carrier.feedback.values())).device
                carrier.renew_feedback(
                    generator(device, "expectation", self.seed, name, self.draw_number)
                )


def redraws(model: nn.Module) -> bool:
    """Return whether any feedback of the model is drawn anew at every weight update.

    >>> from darts_bio.rules import convert
    >>> [redraws(convert(nn.Sequential(nn.Linear(4, 2)), rule)) for rule in ("fa", "brsf")]
    [False, True]
    """
    return any(carrier.rule.redraws for _, carrier in rule_carriers(model))


class _Expected(torch.autograd.Function):
    """Logits of a victim, whose derivative is the mean over `victim.draws` draws of feedback.

    The forward pass does not depend on the feedback, so one pass gives the logits for all draws.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, victim: Victim) -> Tensor:
        ctx.victim = victim
        ctx.save_for_backward(pixels)
        return victim.model(pixels)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, None]:
        (pixels,) = ctx.saved_tensors
        total = torch.zeros_like(pixels)
        for _ in range(ctx.victim.draws):
            ctx.victim.redraw()
            # A pass of its own for each draw: what a pass keeps for its derivative holds the
            # feedback of its time. Within backward gradients are off by default.
            with torch.enable_grad():
                x = pixels.detach().requires_grad_()
                (gradient,) = torch.autograd.grad(ctx.victim.model(x), x, error, allow_unused=True)
            if gradient is not None:
                total += gradient
        return total / ctx.victim.draws, None
