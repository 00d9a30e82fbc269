"""The weights' optimizer and its schedule (arXiv 1806.09055, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.config import FitConfig
from darts_bio.distributed import average
from darts_bio.errors import InputError, first_line, unknown_name
from darts_bio.optimizers import SGD, BatchManhattan, load_optimizer
from darts_bio.private_torch import copy_all
from darts_bio.rules import learned_feedback, rule_layers
from darts_bio.runtime import call
from darts_bio.strategies import WeightPhase
from darts_bio.training.graphs import Recorder
from darts_bio.training.schedules import learning_rate


class WeightOptimizer:
    """The optimizer of a network's weights and learned feedback, with clipping and a schedule.

    It is SGD with momentum (Nesterov's for "nesterov") and weight decay, along the signs of the
    gradients for "batch_manhattan", or one of timm's optimizers, at the rate of
    `schedules.learning_rate`. Gradients are averaged over all processes. Their norm is clipped as
    that of the weights alone; the gradients of learned feedback are scaled by the same factor.

    With a recorder that records, gradients are kept in tensors that stay where they are, from which
    a recorded update can read them. Updates of SGD are recorded.

    Attributes:
        scale: What the schedule's rates are multiplied by, from the next `begin_epoch` on.
        weights: The network's parameters but for learned feedback.
        parameters: All that is moved: the weights, then the feedback that a rule learns.
        optimizer: The PyTorch optimizer of `parameters`.
        held: For some of `parameters` a mask that broadcasts to it, True where it stays as it is
            whatever the gradient, momentum and decay. Masks may change in place between steps.

    >>> from darts_bio.config import RetrainConfig
    >>> network = nn.Linear(2, 1)
    >>> optimizer = WeightOptimizer(network, RetrainConfig(genotype="bionas_darts"))
    >>> before = network.weight.detach().clone()
    >>> optimizer.differentiate([network(torch.ones(1, 2)).sum()])
    >>> optimizer.update()
    >>> bool((network.weight < before).all())
    True
    """

    def __init__(
        self,
        model: nn.Module,
        config: FitConfig,
        run: Recorder | None = None,
        phase: WeightPhase | None = None,
    ) -> None:
        """Build the optimizer that `config.optimizer` names.

        Args:
            model: The network.
            config: The run's options.
            run: The recorder, if there is one.
            phase: Which last part of the run has a rate of its own (`schedules.learning_rate`).

        Raises:
            InputError: timm has no optimizer of that name, it does not take these options, or there
                is no schedule of the configured name.
        """
        # Of a run that has ended and is gone on with, no epoch begins. (This raises now for an unknown
        # schedule, too.)
        self._lr = learning_rate(config, config.epochs - 1, phase)
        self.config, self._run, self._phase = config, run or call, phase
        self.scale = 1.0
        feedback = learned_feedback(model)
        feedback_ids = set(map(id, feedback))
        self.weights = [p for p in model.parameters() if id(p) not in feedback_ids]
        self.parameters = [*self.weights, *feedback]
        local = {id(layer.weight) for _, layer in rule_layers(model) if layer.rule.local}
        self._local = [i for i, p in enumerate(self.parameters) if id(p) in local]
        """Places of the weights whose gradient is a mean over losses, not a sum (`rules.unit`)."""
        recorded = run is not None and run.records
        self.optimizer = _make(self.parameters, config, recorded)
        self._kept = (
            [torch.empty_like(parameter) for parameter in self.parameters] if recorded else []
        )
        """The fixed places of the parameters' gradients; none where nothing is recorded."""
        self.held: Mapping[nn.Parameter, Tensor] = {}

    @property
    def lr(self) -> float:
        """The learning rate of the current epoch; before one begins, that of the run's last one."""
        return self._lr

    def begin_epoch(self, epoch: int) -> None:
        """Set the learning rate to that of an epoch, counted from 0."""
        self._lr = self.scale * learning_rate(self.config, epoch, self._phase)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):  # in place: a recorded update reads this tensor
                group["lr"].fill_(self._lr)
            else:
                group["lr"] = self._lr

    def restart(self) -> None:
        """Forget all that came before, such as momentum, as an optimizer that is begun anew."""
        if not isinstance(self.optimizer, SGD):
            self.optimizer.state.clear()
            return
        for state in self.optimizer.state.values():
            if state.get("momentum_buffer") is not None:
                # In place: a recorded update reads this tensor. SGD's first buffer is the gradient,
                # which is what comes of a buffer of zeros.
                state["momentum_buffer"].zero_()

    def differentiate(self, losses: Iterable[Tensor], complete: bool = False) -> None:
        """Set the parameters' `.grad` to the gradient of the sum of several losses.

        Weights under local rules, which do not read a loss, get the mean of their updates.

        Each loss is taken from the iterable only after the one before was differentiated, so that a
        generator holds one graph at a time.

        Args:
            losses: The losses, scalars.
            complete: Whether parameters on which no loss depends get a gradient of zeros, not none.
        """
        if not self._kept:
            self.optimizer.zero_grad()
            for loss in losses:
                loss.backward()
            for parameter in self.parameters:
                if complete and parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            return
        # Not by backward(), which would hand gradients over to the stream that first accumulated
        # them: within a recording they have to stay on the recording's stream.
        places = [i for i, parameter in enumerate(self.parameters) if parameter.requires_grad]
        sums: dict[int, Tensor] = {}
        count = 0
        for loss in losses:
            count += 1
            gradients = torch.autograd.grad(
                loss, [self.parameters[i] for i in places], allow_unused=True
            )
            for i, gradient in zip(places, gradients, strict=True):
                if gradient is not None:
                    sums[i] = sums[i] + gradient if i in sums else gradient
        if count > 1:
            sums |= {i: sums[i] / count for i in self._local if i in sums}
        # A foreach copy takes few kernels only for pairs of the same strides, and strides of
        # dimensions of size 1 may differ. Hence contiguous gradients are copied as flat views;
        # others (channels_last) as they are.
        flat, shaped = [], []
        for i, gradient in sums.items():
            kept = self._kept[i]
            if kept.is_contiguous():
                flat.append((kept.view(-1), gradient.reshape(-1)))
            else:
                shaped.append((kept, gradient))
        for pairs in (flat, shaped):
            if pairs:
                copy_all([kept for kept, _ in pairs], [value for _, value in pairs])
        if complete:
            for i in places:
                if i not in sums:
                    self._kept[i].zero_()
        present = places if complete else sums
        for i, parameter in enumerate(self.parameters):
            parameter.grad = self._kept[i] if i in present else None

    def update(self) -> None:
        """Average the parameters' `.grad` over all processes, clip them, and make one step."""
        self.average()
        self.step()

    def average(self) -> None:
        """Average the parameters' `.grad` over all processes."""
        average([p.grad for p in self.parameters if p.grad is not None])

    def step(self) -> None:
        """Clip the parameters' `.grad`, which are the same in all processes, and make one step."""
        # Updates of timm's optimizers are not recorded: their rates are numbers.
        if self._kept and isinstance(self.optimizer, SGD):
            self._run(self._update)
        else:
            self._update()

    def _update(self) -> None:
        """Clip the gradients and make one step: the part of an update that can be recorded."""
        before = [(p, mask, p.detach().clone()) for p, mask in self.held.items()]
        for p, mask, _ in before:
            if p.grad is not None:  # what stays has no part in the norm
                p.grad.masked_fill_(mask, 0)
        if self.config.clip:
            # `clip_grad_norm_` in its two halves: the norm of the weights, the scale for all.
            norm = nn.utils.get_total_norm(
                [p.grad for p in self.weights if p.grad is not None], foreach=True
            )
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip, norm, foreach=True)
        self.optimizer.step()
        with torch.no_grad():
            # Put back rather than left out of the step: momentum and decay move without a gradient.
            for p, mask, value in before:
                p.copy_(torch.where(mask, value, p))

    @torch.no_grad()
    def moving(self, directions: Sequence[Tensor]) -> list[Tensor]:
        """Return directions of `weights` with zeros where the weights are held."""
        if not self.held:
            return list(directions)
        return [
            d.masked_fill(self.held[w], 0) if w in self.held else d
            for w, d in zip(self.weights, directions, strict=True)
        ]

    @torch.no_grad()
    def virtual_step(self, gradients: Sequence[Tensor]) -> tuple[list[Tensor], float | Tensor]:
        """Return what an SGD step along these gradients would make of the weights, and its rate.

        With d = gradient + decay * w the step is w - lr (momentum * buffer + d), or for Nesterov's
        momentum w - lr (momentum * (momentum * buffer + d) + d); nothing is changed by it. The
        bound on the gradient's norm plays no part, as in the published second order.

        The optimizer has to be SGD.

        Args:
            gradients: A gradient for each of `weights`.
        """
        assert isinstance(self.optimizer, SGD)  # `Search` refuses others
        stepped, rate = [], self.optimizer.param_groups[0]["lr"]
        momentum, nesterov = self.config.momentum, self.config.optimizer == "nesterov"
        # Looked up with `in` first: the state is a defaultdict, and must not grow here.
        state = self.optimizer.state
        for weight, gradient in zip(self.weights, gradients, strict=True):
            buffer = state[weight].get("momentum_buffer") if weight in state else None
            decayed = gradient + self.config.weight_decay * weight
            direction = decayed if buffer is None else decayed + momentum * buffer
            if nesterov:
                direction = decayed + momentum * direction
            after = weight - rate * direction
            if weight in self.held:
                after = torch.where(self.held[weight], weight, after)
            stepped.append(after)
        return stepped, rate * (1 + momentum) if nesterov else rate

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        load_optimizer(self.optimizer, state)


def _make(
    parameters: list[nn.Parameter], config: FitConfig, recorded: bool
) -> torch.optim.Optimizer:
    """Build the optimizer that `config.optimizer` names; `recorded` if a graph makes its updates.

    Raises InputError if timm has none of that name, or if it does not take these options.
    """
    nesterov = config.optimizer == "nesterov"
    if nesterov and config.momentum == 0:
        raise InputError(
            "--momentum: expected more than 0 for --optimizer nesterov, found 0; use --optimizer sgd"
        )
    if nesterov or config.optimizer in ("sgd", "batch_manhattan"):
        kind = BatchManhattan if config.optimizer == "batch_manhattan" else SGD
        sgd = kind(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=nesterov,
            foreach=not recorded,  # all parameters in a few calls, where a supernet has thousands
            fused=recorded,
        )
        if recorded:
            # A recorded update sees a rate change only if it is a tensor, which only the fused
            # implementation takes.
            for group in sgd.param_groups:
                group["lr"] = torch.tensor(config.lr, device=parameters[0].device)
        return sgd
    from timm.optim import create_optimizer_v2, list_optimizers

    names = [str(name) for name in list_optimizers()]
    if config.optimizer not in names:
        raise unknown_name("optimizer", config.optimizer, ["batch_manhattan", "nesterov", *names])
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
