"""Whether a network's gradient at the image is what an attack takes it for."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.evaluation.attacks import Gradients, Victim
from darts_bio.modes import frozen, in_mode

FIGURES = ("cosine", "slope_error", "true_vanishes", "rule_vanishes")
"""The columns of `gradient_figures`."""

DISTANCE = 1e-6
"""In pixel range, along the gradient, between which slopes are taken: in float64, few kinks of ReLU
lie within it."""


def gradient_figures(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """Of each image (N, C, H, W) in [0, 1] the `FIGURES`, (N, 4) float64; the model is left as it
    was.

    - cosine: between the loss' gradient by the learning rules and the exact one; 0 where one of
      them is zero
    - slope_error: how far the exact gradient g of the margin (the label's logit less the largest
      other one) is from the slope along g that the forward pass alone shows: |slope - |g|| /
      max(|slope|, |g|), in float64; 0 if both are 0
    - true_vanishes, rule_vanishes: 1 where that gradient of the loss, in float32, has no value but zero
    """
    with in_mode(model, training=False), frozen(model):
        exact, ruled = (_of_loss(model, pixels, labels, side) for side in ("true", "rule"))
        double = copy.deepcopy(model).double()
    cosine = F.cosine_similarity(exact.double(), ruled.double(), dim=1, eps=0.0).nan_to_num()
    vanishes = [(gradient == 0).all(1).double() for gradient in (exact, ruled)]
    return torch.stack([cosine, _slope_error(double, pixels.double(), labels), *vanishes], 1)


def _of_loss(model: nn.Module, pixels: Tensor, labels: Tensor, gradients: Gradients) -> Tensor:
    """(N, C*H*W)."""
    x = pixels.detach().requires_grad_()
    loss = F.cross_entropy(Victim(model, gradients)(x), labels, reduction="sum")
    return torch.autograd.grad(loss, x)[0].flatten(1)


def _slope_error(model: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    x = pixels.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(_margin(Victim(model, "true")(x), labels).sum(), x)
    norm = gradient.flatten(1).norm(dim=1)
    step = DISTANCE / 2 * gradient / norm.clamp_min(1e-300).view(-1, 1, 1, 1)
    with torch.no_grad():
        slope = (
            _margin(model(pixels + step), labels) - _margin(model(pixels - step), labels)
        ) / DISTANCE
    return ((slope - norm).abs() / torch.maximum(slope.abs(), norm)).nan_to_num()


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.max(1).values
