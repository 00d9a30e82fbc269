"""The weights' optimiser and its schedule (arXiv 1806.09055, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.config import FitConfig
from darts_bio.distributed import average
from darts_bio.errors import InputError, first_line, unknown_name
from darts_bio.optimizers import SGD
from darts_bio.rules import learned_feedback
from darts_bio.training.schedules import learning_rate


class WeightOptimizer:
    """SGD with momentum and weight decay, or another of timm's optimisers, at the rate of `learning_rate`.

    The gradient is the mean over all processes. Its norm is clipped as that of the weights alone: feedback that is
    learned is scaled with them.
    """

    def __init__(self, model: nn.Module, config: FitConfig) -> None:
        """Raises InputError for an optimiser that timm does not have, or that does not take these options, and for a
        schedule that there is not."""
        learning_rate(config, config.epochs - 1)
        self.config = config
        feedback = learned_feedback(model)
        apart = set(map(id, feedback))
        self.weights = [parameter for parameter in model.parameters() if id(parameter) not in apart]
        self.parameters = [*self.weights, *feedback]
        self.optimizer = _make(self.parameters, config)

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def begin_epoch(self, epoch: int) -> None:
        """Sets the rate of this epoch, counted from 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, epoch)

    def step(self, loss: Tensor) -> None:
        """One update along the gradient of `loss`."""
        self.optimizer.zero_grad()
        loss.backward()
        self.update()

    def step_over(self, losses: Iterator[Tensor]) -> None:
        """One update along the gradient of the sum of several losses, each of which is made when it is its turn."""
        self.optimizer.zero_grad()
        for number, loss in enumerate(losses):
            loss.backward()
            if number > 0:
                continue
            # The first gradient may lie in the memory of a CUDA graph, which the next pass overwrites.
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.clone()
        self.update()

    def update(self) -> None:
        """One update along the gradients that the parameters hold."""
        average([p.grad for p in self.parameters if p.grad is not None])
        if self.config.clip:
            norm = nn.utils.get_total_norm([p.grad for p in self.weights if p.grad is not None], foreach=True)
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip, norm, foreach=True)
        self.optimizer.step()

    @torch.no_grad()
    def virtual_step(self, gradients: Sequence[Tensor]) -> tuple[list[Tensor], float]:
        """What the weights would be after an SGD step along these gradients, w - lr (momentum buffer + gradient +
        decay w), and lr. Nothing is changed. The bound on the norm plays no part, as in the published second order.

        Raises InputError for another optimiser than SGD.
        """
        if self.config.optimizer != "sgd":
            raise InputError(
                f"--optimizer {self.config.optimizer}: second-order darts differentiates a step of SGD; use "
                "--optimizer sgd, or darts(order=1)"
            )
        after = []
        for weight, gradient in zip(self.weights, gradients, strict=True):
            buffer = self.optimizer.state[weight].get("momentum_buffer") if weight in self.optimizer.state else None
            direction = gradient + self.config.weight_decay * weight
            if buffer is not None:
                direction = direction + self.config.momentum * buffer
            after.append(weight - self.lr * direction)
        return after, self.lr

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


def _make(parameters: list[nn.Parameter], config: FitConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        # foreach: all parameters in a few calls, where a supernet has thousands.
        return SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, foreach=True)
    from timm.optim import create_optimizer_v2, list_optimizers

    names = [str(name) for name in list_optimizers()]
    if config.optimizer not in names:
        raise unknown_name("optimizer", config.optimizer, names)
    try:
        return create_optimizer_v2(
            parameters, config.optimizer, config.lr, weight_decay=config.weight_decay, momentum=config.momentum
        )
    except (ImportError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"--optimizer {config.optimizer}: cannot be used ({first_line(error)})") from None
