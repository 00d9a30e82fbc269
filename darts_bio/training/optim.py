"""The weights' optimiser and its schedule (arXiv 1806.09055, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from darts_bio.config import RunConfig


def cosine(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at progress 1 along half a cosine (arXiv 1608.03983, without restarts).

    >>> [round(cosine(0.025, 0.001, p), 4) for p in (0, 0.5, 1)]
    [0.025, 0.013, 0.001]
    """
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


class WeightOptimizer:
    """SGD with momentum and weight decay, the gradient's norm clipped; the rate follows a cosine over the epochs."""

    def __init__(self, parameters: Iterable[nn.Parameter], config: RunConfig) -> None:
        self.parameters = list(parameters)
        self.config = config
        # foreach: all parameters in a few calls, where a supernet has thousands.
        self.sgd = torch.optim.SGD(
            self.parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, foreach=True
        )

    @property
    def lr(self) -> float:
        return self.sgd.param_groups[0]["lr"]

    def begin_epoch(self, epoch: int) -> None:
        """Sets the rate of this epoch, counted from 0."""
        self.sgd.param_groups[0]["lr"] = cosine(self.config.lr, self.config.lr_min, epoch / self.config.epochs)

    def step(self, loss: torch.Tensor) -> None:
        """One update along the gradient of `loss`."""
        self.sgd.zero_grad()
        loss.backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.parameters, self.config.clip, foreach=True)
        self.sgd.step()
