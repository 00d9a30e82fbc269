"""What a network costs: its parameters and its multiply-adds, with the counter named."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from darts_bio.modes import in_mode
from darts_bio.rules import learned_feedback


def parameters(model: nn.Module) -> int:
    """Return the number of elements of all parameters of a model.

    Feedback does not count, whether it is a buffer or learned.

    >>> from darts_bio.networks import parameters
    >>> parameters(nn.Linear(10, 5))
    55
    """
    # By identity: tensors compare by element.
    feedback = set(map(id, learned_feedback(model)))
    return sum(p.numel() for p in model.parameters() if id(p) not in feedback)


@torch.no_grad()
def multiply_adds(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Return the number of multiply-adds of convolutions and linear layers in `forward()`.

    The counter is torch.utils.flop_counter, which counts two operations a multiply-add. Batch norm,
    pooling and additions are not counted.

    Args:
        model: The model that `forward` runs. It is in evaluation mode meanwhile.
        forward: Runs the model on as many images as the number is wanted for.

    >>> from darts_bio.networks import multiply_adds
    >>> layer = nn.Conv2d(3, 8, 3, padding=1)
    >>> multiply_adds(layer, lambda: layer(torch.zeros(1, 3, 32, 32))) == 3 * 8 * 3 * 3 * 32 * 32
    True
    """
    counter = FlopCounterMode(display=False)
    with in_mode(model, training=False), counter:
        forward()
    return int(counter.get_total_flops()) // 2
