"""Parameters and multiply-adds, with the counter named."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from darts_bio.modes import in_mode
from darts_bio.rules import learned_feedback


def parameters(model: nn.Module) -> int:
    """Count the elements of all parameters. Feedback does not count, be it a buffer or learned."""
    feedback = set(map(id, learned_feedback(model)))
    return sum(p.numel() for p in model.parameters() if id(p) not in feedback)


@torch.no_grad()
def multiply_adds(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Count the multiply-adds of convolutions and linear layers in `forward()`, run in evaluation
    mode.

    The counter is torch.utils.flop_counter, which counts two operations a multiply-add. Batch norm,
    pooling and additions are not counted.
    """
    counter = FlopCounterMode(display=False)
    with in_mode(model, training=False), counter:
        forward()
    return int(counter.get_total_flops()) // 2
