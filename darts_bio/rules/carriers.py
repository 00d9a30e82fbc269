"""What carries a learning rule in a model, and what is done to all carriers in it.

A carrier holds its rule's feedback as buffers `feedback_*`: saved with the model, moved by `.to()`,
never optimised; feedback that is learned is a parameter of that name.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.modes import restored
from darts_bio.rules.base import InitialLaw, LearningRule
from darts_bio.rules.dfa import DirectError, OutputError, direct_law, uncompiled
from darts_bio.runtime import Run, call, derive_seed, generator

PREFIX = "feedback_"


class RuleCarrier(nn.Module):
    """What has a rule and its feedback: a layer, an operation, or many layers of the supernet taken
    as one.

    `exact` makes the carrier answer W whatever its rule.
    """

    def __init__(self, *args: Any, rule: LearningRule, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.carry(rule)

    def carry(self, rule: LearningRule) -> None:
        self.rule = rule
        self.exact = False
        self.held: Tensor | None = None
        self._feedback_names: tuple[str, ...] = ()

    @property
    def initial_law(self) -> InitialLaw:
        """What the weight that the rule is about was drawn from."""
        raise NotImplementedError(f"{type(self).__name__}.initial_law")

    @property
    def carried_weight(self) -> Tensor:
        """The weight that the rule is about."""
        raise NotImplementedError(f"{type(self).__name__}.carried_weight")

    def hold_feedback(self, weight: Tensor) -> None:
        """Gives the carrier feedback of its own from the start, for a weight as it has just been
        drawn: a function of PyTorch's generator as it stands on that device. The generator is not
        moved on, so weights are the same under every rule.
        """
        on_gpu = weight.device.type == "cuda"
        standing = torch.cuda.get_rng_state(weight.device) if on_gpu else torch.get_rng_state()
        now = hashlib.blake2b(standing.numpy().tobytes()).hexdigest()
        state = self.rule.state(self.initial_law, generator("cpu", now))
        self._feedback_names = tuple(state)
        for name, value in state.items():
            value = value.to(device=weight.device, dtype=weight.dtype)
            if name in self.rule.learned:
                self.register_parameter(PREFIX + name, nn.Parameter(value))
            else:
                self.register_buffer(PREFIX + name, value)

    @property
    def feedback(self) -> dict[str, Tensor]:
        """The rule's state by name."""
        return {name: getattr(self, PREFIX + name) for name in self._feedback_names}

    @torch.no_grad()
    def draw_feedback(self, source: torch.Generator) -> None:
        """Draws the rule's state anew, in place, from `source`."""
        self._keep(self.rule.state(self.initial_law, source))

    @torch.no_grad()
    def renew_feedback(self, source: torch.Generator) -> None:
        """What the rule does to its state after a weight update, in place, with draws from
        `source`.
        """
        self._keep(self.renewed(source))

    def renewed(self, source: torch.Generator) -> dict[str, Tensor]:
        """The rule's state after a weight update."""
        return self.rule.renew(self.carried_weight, self.feedback, self.initial_law, source)

    def _keep(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            getattr(self, PREFIX + name).copy_(value)

    def transport(self, weight: Tensor) -> Tensor | None:
        """The kernel that carries the error down: the rule's, or the weight where the exact one is
        asked for; None if no error is sent.
        """
        if self.held is not None and not self.exact:
            return self.held
        with torch.set_grad_enabled(bool(self.rule.learned) and torch.is_grad_enabled()):
            return weight if self.exact else self.kernel_of(weight)

    def kernel_of(self, weight: Tensor) -> Tensor | None:
        """The rule's kernel for the weight that it is about."""
        return self.rule.kernel(weight, self.feedback)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), f"rule={self.rule}")))


class DirectCarrier(RuleCarrier):
    """A carrier whose rule may be direct: then what it runs is cut off from its input, which
    receives the error at the model's output. It has no feedback until it is connected to that
    output.
    """

    channel = 1
    """The dimension of the input that counts its channels."""

    def carry(self, rule: LearningRule) -> None:
        super().carry(rule)
        self.output_error: OutputError | None = None

    @property
    def channels(self) -> int:
        """Of the input."""
        raise NotImplementedError(f"{type(self).__name__}.channels")

    @property
    def initial_law(self) -> InitialLaw:
        assert self.output_error is not None
        return direct_law(self.output_error.outputs, self.channels)

    def connect(self, source: OutputError) -> None:
        """Makes `source` the error that the input receives."""
        self.output_error = source
        self.hold_feedback(next(self.parameters()))

    def sent_directly(self, y: Tensor, x: Tensor) -> Tensor:
        """y, which was computed without a gradient for x, with the output's error for x."""
        if self.output_error is None:
            raise InputError(
                "dfa: this layer does not know the model's output, whose error it sends down; "
                "build the model by "
                "build_network or convert"
            )
        return uncompiled(
            DirectError.apply, y, x, self.feedback["kernel"], self.output_error, self.channel
        )


class DirectOperation(DirectCarrier):
    """An operation that is given the output's error for its input as one: (N, channels, H, W) to
    what it gives.
    """

    def __init__(self, operation: nn.Module, channels: int, rule: LearningRule) -> None:
        super().__init__(rule=rule)
        self.operation, self._channels = operation, channels

    @property
    def channels(self) -> int:
        return self._channels

    def forward(self, x: Tensor) -> Tensor:
        if self.exact or not (torch.is_grad_enabled() and x.requires_grad):
            return self.operation(x)
        return self.sent_directly(self.operation(x.detach()), x)


def connect_output(model: nn.Module, outputs: int) -> OutputError | None:
    """Connects all in the model that is direct, and not connected yet, to the error at an output of
    `outputs` values a sample. The caller has the output watched; None if there is nothing to
    connect.
    """
    waiting = [
        module
        for module in model.modules()
        if isinstance(module, DirectCarrier) and module.rule.direct and module.output_error is None
    ]
    source = OutputError(outputs) if waiting else None
    for carrier in waiting:
        assert source is not None
        carrier.connect(source)
    return source


def rule_carriers(model: nn.Module) -> Iterator[tuple[str, RuleCarrier]]:
    """(name, carrier) of all that has a rule: layers, operations, and the supernet's layers that
    are taken as one.
    """
    return (
        (name, module) for name, module in model.named_modules() if isinstance(module, RuleCarrier)
    )


def learned_feedback(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model that are feedback (`kolen_pollack`): optimised as the weights, but
    none of them.
    """
    return [
        value
        for _, carrier in rule_carriers(model)
        for value in carrier.feedback.values()
        if isinstance(value, nn.Parameter)
    ]


def draw_feedback(model: nn.Module, seed: int, update: int = 0) -> None:
    """Draws the feedback of a whole model as it stands after `update` weight updates.

    With update = 0 every rule draws; later only those that renew their feedback do (brsf,
    weight_mirror). Each draw depends on (seed, name, update) alone, name being where the rule's
    carrier stands in the model: not on the order of calls, and not on any global generator, which
    is left untouched. (On a GPU what is renewed is drawn there, from one generator for the whole
    model.) So a training loop calls it once after each weight update, a resumed run draws what an
    uninterrupted one would have drawn, and evaluation draws nothing.
    """
    if update > 0:
        Renewal(model, seed)(update)
        return
    for name, carrier in _with_feedback(model):
        draw_first(carrier, seed, name)


def _with_feedback(model: nn.Module) -> Iterator[tuple[str, RuleCarrier]]:
    """Yield the carriers that have feedback, as they are named in the model itself, not in what
    torch.compile or DistributedDataParallel wraps around it.
    """
    for name, carrier in rule_carriers(model):
        if carrier.feedback:
            yield name.replace("_orig_mod.", "").removeprefix("module."), carrier


class Renewal:
    """Renews the feedback of a model as `draw_feedback` does, in a loop that makes many updates:
    `renewal(update)`.

    What is drawn on a GPU is handed to `run`, which may record it (`training.graphs`): it draws
    from `generators`, and depends on nothing else that changes.
    """

    def __init__(self, model: nn.Module, seed: int) -> None:
        self._seed = seed
        carriers = [
            (name, carrier) for name, carrier in _with_feedback(model) if carrier.rule.renews
        ]
        self._there = [carrier for _, carrier in carriers if _device(carrier).type == "cuda"]
        self._here = [
            (name, carrier) for name, carrier in carriers if _device(carrier).type != "cuda"
        ]
        # One for all on a GPU: a recorded generator costs two kernels at each replay.
        self.generators = [
            torch.Generator(device) for device in dict.fromkeys(map(_device, self._there))
        ]

    def __call__(self, update: int, run: Run = call) -> None:
        """Renew all that is renewed, as it stands after `update` weight updates."""
        for name, carrier in self._here:
            carrier.renew_feedback(
                generator(_device(carrier), "feedback", self._seed, name, update)
            )
        if self._there:
            for source in self.generators:
                source.manual_seed(derive_seed("feedback", self._seed, update))
            run(self._renew)

    def _renew(self) -> None:
        sources = {source.device: source for source in self.generators}
        for carrier in self._there:
            carrier.renew_feedback(sources[_device(carrier)])


def _device(carrier: RuleCarrier) -> torch.device:
    """Return where its feedback lies."""
    return next(iter(carrier.feedback.values())).device


def draw_first(carrier: RuleCarrier, seed: int, name: str) -> None:
    """Draws the feedback of a carrier of that name before the first update; on the CPU, so that it
    is the same whatever the device.
    """
    carrier.draw_feedback(generator("cpu", "feedback", seed, name, 0))


@contextlib.contextmanager
def held_feedback(model: nn.Module) -> Iterator[None]:
    """Have rules that do not transport weights send the error within through the kernels of the
    weights as they are now, however the weights are changed meanwhile.
    """
    carriers = [
        c for _, c in rule_carriers(model) if not (c.rule.transports_weights or c.rule.direct)
    ]
    with restored(carriers, "held"):
        for carrier in carriers:
            kernel = carrier.transport(carrier.carried_weight)
            carrier.held = None if kernel is None else kernel.detach().clone()
        yield


@contextlib.contextmanager
def true_gradients(model: nn.Module) -> Iterator[None]:
    """Have every rule answer W within: the forward pass is unchanged and all gradients are exact.

    The kernel is chosen in the forward pass, so run both passes inside.
    """
    carriers = [carrier for _, carrier in rule_carriers(model)]
    with restored(carriers, "exact"):
        for carrier in carriers:
            carrier.exact = True
        yield
