"""A model that is only looked at: whatever happens to it within is forgotten."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Within it the model is in training or in evaluation mode. At the end modes, buffers (batch norm statistics,
    feedback), .grad and requires_grad are as they were. Weights are not looked after."""
    modes = {module: module.training for module in model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    weights = [(weight, weight.grad, weight.requires_grad) for weight in model.parameters()]
    model.train(training)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for weight, gradient, required in weights:
            weight.grad = gradient
            weight.requires_grad_(required)
        for module, mode in modes.items():
            module.training = mode
