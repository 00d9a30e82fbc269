"""The weights' optimizer and its schedule (arXiv 1806.09055, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.config import FitConfig
from darts_bio.distributed import average
from darts_bio.errors import InputError, first_line, unknown_name
from darts_bio.optimizers import SGD, load_optimizer
from darts_bio.rules import learned_feedback
from darts_bio.runtime import call
from darts_bio.training.graphs import Recorder
from darts_bio.training.schedules import learning_rate


class WeightOptimizer:
    """SGD with momentum and weight decay, or another of timm's optimizers, at the rate of
    `learning_rate`.

    The gradient is the mean over all processes. Its norm is clipped as that of the weights alone:
    feedback that is learned is scaled with them. With a recorder that records, the gradients lie
    where an update that was recorded reads them, and updates of SGD are recorded.
    """

    def __init__(self, model: nn.Module, config: FitConfig, run: Recorder | None = None) -> None:
        """Raises InputError for an optimizer that timm does not have, or that does not take these
        options, and for a schedule that there is not.
        """
        self._lr = learning_rate(config, config.epochs - 1)
        self.config, self._run = config, run or call
        feedback = learned_feedback(model)
        apart = set(map(id, feedback))
        self.weights = [parameter for parameter in model.parameters() if id(parameter) not in apart]
        self.parameters = [*self.weights, *feedback]
        recorded = run is not None and run.records
        self.optimizer = _make(self.parameters, config, recorded)
        self._kept = (
            [torch.empty_like(parameter) for parameter in self.parameters] if recorded else []
        )

    @property
    def lr(self) -> float:
        return self._lr

    def begin_epoch(self, epoch: int) -> None:
        """Sets the rate of this epoch, counted from 0."""
        self._lr = learning_rate(self.config, epoch)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self._lr)
            else:
                group["lr"] = self._lr

    def differentiate(self, losses: Iterable[Tensor]) -> None:
        """Compute the gradient of the sum of several losses, each of which is made when it is its
        turn.
        """
        if not self._kept:
            self.optimizer.zero_grad()
            for loss in losses:
                loss.backward()
            return
        # Not by backward(), which would hand gradients over to the stream that first accumulated
        # them.
        places = [i for i, parameter in enumerate(self.parameters) if parameter.requires_grad]
        sums: dict[int, Tensor] = {}
        for loss in losses:
            gradients = torch.autograd.grad(
                loss, [self.parameters[i] for i in places], allow_unused=True
            )
            for i, gradient in zip(places, gradients, strict=True):
                if gradient is not None:
                    sums[i] = sums[i] + gradient if i in sums else gradient
        # Flat, since only tensors of the same strides are copied together, and those of dimensions
        # of size 1 differ.
        pairs = [(self._kept[i], gradient) for i, gradient in sums.items()]
        flat = [(mine.view(-1), g.reshape(-1)) for mine, g in pairs if mine.is_contiguous()]
        for same in (flat, [(mine, g) for mine, g in pairs if not mine.is_contiguous()]):
            if same:
                torch._foreach_copy_([mine for mine, _ in same], [gradient for _, gradient in same])
        for i, parameter in enumerate(self.parameters):
            parameter.grad = self._kept[i] if i in sums else None

    def update(self) -> None:
        """Make one update along the gradients that the parameters hold."""
        average([p.grad for p in self.parameters if p.grad is not None])
        if self._kept and isinstance(self.optimizer, SGD):  # not timm's, whose rates are numbers
            self._run(self._update)
        else:
            self._update()

    def _update(self) -> None:
        if self.config.clip:
            norm = nn.utils.get_total_norm(
                [p.grad for p in self.weights if p.grad is not None], foreach=True
            )
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip, norm, foreach=True)
        self.optimizer.step()

    @torch.no_grad()
    def virtual_step(self, gradients: Sequence[Tensor]) -> tuple[list[Tensor], float | Tensor]:
        """What the weights would be after an SGD step along these gradients, w - lr (momentum
        buffer + gradient + decay w), and lr. Nothing is changed. The bound on the norm plays no
        part, as in the published second order.

        Raises InputError for another optimizer than SGD.
        """
        if self.config.optimizer != "sgd":
            raise InputError(
                f"--optimizer {self.config.optimizer}: second-order darts differentiates a step of "
                "SGD; use "
                "--optimizer sgd, or darts(order=1)"
            )
        after, rate = [], self.optimizer.param_groups[0]["lr"]
        for weight, gradient in zip(self.weights, gradients, strict=True):
            buffer = (
                self.optimizer.state[weight].get("momentum_buffer")
                if weight in self.optimizer.state
                else None
            )
            direction = gradient + self.config.weight_decay * weight
            if buffer is not None:
                direction = direction + self.config.momentum * buffer
            after.append(weight - rate * direction)
        return after, rate

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_optimizer(self.optimizer, state)


def _make(
    parameters: list[nn.Parameter], config: FitConfig, recorded: bool
) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        sgd = SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            foreach=not recorded,  # all parameters in a few calls, where a supernet has thousands
            fused=recorded,
        )
        if recorded:  # the rate as a tensor, which a recorded update sees change; only the fused form takes one
            for group in sgd.param_groups:
                group["lr"] = torch.tensor(config.lr, device=parameters[0].device)
        return sgd
    from timm.optim import create_optimizer_v2, list_optimizers

    names = [str(name) for name in list_optimizers()]
    if config.optimizer not in names:
        raise unknown_name("optimizer", config.optimizer, names)
    try:
        return create_optimizer_v2(
            parameters,
            config.optimizer,
            config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
    except (ImportError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"--optimizer {config.optimizer}: cannot be used ({first_line(error)})"
        ) from None
