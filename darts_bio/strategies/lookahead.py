"""One step ahead: where the next step takes w, and how the validation loss changes there.

Strategies that ask what alpha does to the weights' training use it (`darts(order=2)`,
`rule_aware`): both differentiate L_val(w'(alpha)), with w' one step of the weights' optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from darts_bio.distributed import average
from darts_bio.networks import EdgeWeights
from darts_bio.private_torch import copy_all
from darts_bio.strategies.base import Bilevel, detached


class Lookahead(NamedTuple):
    """What `look_ahead` finds; each gradient is the mean over all processes.

    Attributes:
        weights: Copies of w, where w is again.
        of_alpha: dL_val(w', alpha)/dalpha at fixed w', for each parameter of alpha.
        of_weights: v = dL_val(w', alpha)/dw', for each weight; zero where the step leaves it.
        rate: By how much w' moves along the negative training gradient.
        logits: The supernet's logits on the validation batch at w', (N, classes).
    """

    weights: list[Tensor]
    of_alpha: list[Tensor]
    of_weights: list[Tensor]
    rate: float | Tensor
    logits: Tensor


def look_ahead(
    bilevel: Bilevel,
    edge_weights: EdgeWeights,
    parameters: Sequence[Tensor],
    validation_loss: Callable[[], tuple[Tensor, Tensor]],
) -> Lookahead:
    """Step w to w' along the training loss, differentiate the validation loss there, step back.

    Args:
        bilevel: The batches, the training loss, and w.
        edge_weights: The edge weights of the training loss.
        parameters: Alpha.
        validation_loss: Returns the loss at the present w, and the logits.
    """
    weights = list(bilevel.weights)
    before = [weight.detach().clone() for weight in weights]
    loss, _ = bilevel.weight_loss(bilevel.train_batch, detached(edge_weights))
    train_gradient = averaged(torch.autograd.grad(loss, weights, allow_unused=True), weights)
    after, rate = bilevel.virtual_step(train_gradient)
    try:
        put(weights, after)
        loss, logits = validation_loss()
        both = [*parameters, *weights]
        gradients = averaged(torch.autograd.grad(loss, both, allow_unused=True), both)
    finally:
        put(weights, before)
    count = len(parameters)
    # Where w' is w whatever alpha is, the chain rule has no term.
    of_weights = bilevel.moving(gradients[count:])
    return Lookahead(before, gradients[:count], of_weights, rate, logits.detach())


def averaged(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    """Return the means of gradients over all processes, as copies.

    Args:
        gradients: This process' gradients; None for a tensor that has no part in the loss.
        like: What the gradients are of. It gives the shape of the zeros that stand for a None.
    """
    means = [
        torch.zeros_like(w) if g is None else g.clone()
        for g, w in zip(gradients, like, strict=True)
    ]
    average(means)
    return means


@torch.no_grad()
def put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Set weights in place, all in a few calls: a supernet has thousands of them."""
    copy_all(weights, values)
