"""Whether a network's gradient at the image is what an attack takes it for."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.config import Gradients
from darts_bio.evaluation.victim import Victim
from darts_bio.modes import frozen, in_mode

FIGURES = ("cosine", "slope_error", "true_vanishes", "rule_vanishes")
"""The columns of `gradient_figures`."""

DISTANCE = 1e-6
"""Between the two points along the gradient that a slope is taken from, in units of a pixel's range:
few kinks of ReLU lie between them, and in float64 their difference still has enough digits."""


def gradient_figures(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Return the `FIGURES` of each image (N, C, H, W) in [0, 1], as (N, 4) float64.

    - cosine: between the loss' gradient by the learning rules and the exact one; 0 where one of
      them is zero.
    - slope_error: how far the exact gradient g of the margin (the label's logit less the largest
      other one) is from the slope along g that the forward pass alone shows:
      |slope - |g|| / max(|slope|, |g|), in float64; 0 if both are 0.
    - true_vanishes, rule_vanishes: 1 where that gradient of the loss, in float32, has no value but
      zero.

    The model is evaluated in evaluation mode and left as it was.

    >>> from darts_bio.rules import convert
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> figures = gradient_figures(
    ...     convert(model, "bp"), torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    ... )
    >>> [f"{name} {value:.2f}" for name, value in zip(FIGURES, figures.mean(0))]
    ['cosine 1.00', 'slope_error 0.00', 'true_vanishes 0.00', 'rule_vanishes 0.00']
    """
    with in_mode(model, training=False), frozen(model):
        exact, ruled = (_of_loss(model, pixels, labels, side) for side in ("true", "rule"))
        double = copy.deepcopy(model).double()  # keeps mode and frozen weights
    # Without a bound on the norms even the smallest gradient has a direction; 0 / 0 becomes 0.
    cosine = F.cosine_similarity(exact.double(), ruled.double(), dim=1, eps=0.0).nan_to_num()
    vanishes = [(gradient == 0).all(1).double() for gradient in (exact, ruled)]
    return torch.stack([cosine, _slope_error(double, pixels.double(), labels), *vanishes], 1)


def _of_loss(model: nn.Module, pixels: Tensor, labels: Tensor, gradients: Gradients) -> Tensor:
    """Return the gradient (N, C*H*W) of each image's cross entropy."""
    x = pixels.detach().requires_grad_()
    # A sum, so that each image's gradient is that of its own loss.
    loss = F.cross_entropy(Victim(model, gradients)(x), labels, reduction="sum")
    return torch.autograd.grad(loss, x)[0].flatten(1)


def _slope_error(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Return the relative difference (N,) of the margin's gradient norm from its slope."""
    x = pixels.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(_margin(Victim(model, "true")(x), labels).sum(), x)
    # Along its own direction the slope of a function is the norm of its gradient.
    norm = gradient.flatten(1).norm(dim=1)
    step = DISTANCE / 2 * gradient / norm.clamp_min(1e-300).view(-1, 1, 1, 1)
    with torch.no_grad():
        above, below = _margin(model(pixels + step), labels), _margin(model(pixels - step), labels)
        slope = (above - below) / DISTANCE
    return ((slope - norm).abs() / torch.maximum(slope.abs(), norm)).nan_to_num()  # 0 / 0 -> 0


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logit of the label less the largest other one (N,)."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.max(1).values
