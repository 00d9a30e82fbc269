"""What carries a learning rule in a model, and what is done to all carriers in it.

A carrier holds its rule's feedback as buffers `feedback_*`: saved with the model, moved by `.to()`,
never optimized. Feedback that is learned is a parameter of that name.

>>> from darts_bio.rules import RULES, RuleLinear
>>> model = nn.Sequential(RuleLinear(4, 3, rule=RULES.build("fa")), nn.ReLU())
>>> [(name, carrier.rule.spec) for name, carrier in rule_carriers(model)]
[('0', 'fa')]
>>> draw_feedback(model, seed=7)
>>> first = model[0].feedback["kernel"].clone()
>>> draw_feedback(model, seed=7)  # a function of seed and name: the same again
>>> torch.equal(model[0].feedback["kernel"], first)
True
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.modes import restored
from darts_bio.private_torch import changes
from darts_bio.rules.base import InitialLaw, LearningRule
from darts_bio.rules.dfa import DirectError, OutputError, direct_law, uncompiled
from darts_bio.rules.probe import check_kernel
from darts_bio.rules.unit import UpdateUnit
from darts_bio.runtime import Caller, call, derive_seed, generator

PREFIX = "feedback_"


class RuleCarrier(nn.Module):
    """What has a rule and its feedback: a layer, an operation, or many layers taken as one.

    `exact` makes it send errors through W whatever its rule; `held`, where it is not None, is the
    kernel that stands in for the rule's (`held_feedback`).

    >>> from darts_bio.rules import RULES, RuleLinear
    >>> layer = RuleLinear(4, 3, rule=RULES.build("fa"))
    >>> isinstance(layer, RuleCarrier), [(k, tuple(v.shape)) for k, v in layer.feedback.items()]
    (True, [('kernel', (3, 4))])
    """

    def __init__(self, *args: Any, rule: LearningRule, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.carry(rule)

    def carry(self, rule: LearningRule) -> None:
        """Put this carrier under a rule; it holds no feedback yet.

        Raises InputError if the rule's kernel is another than the rule says (`rules.probe`).
        """
        check_kernel(rule)
        self.rule = rule
        self.exact = False
        self.held: Tensor | None = None
        self._feedback_names: tuple[str, ...] = ()
        self.begin_unrenewed()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self.begin_unrenewed()  # whoever renews the feedback of a model does not know its copies

    @property
    def initial_law(self) -> InitialLaw:
        """The distribution that the weight was drawn from, from which feedback is drawn too."""
        raise NotImplementedError(f"{type(self).__name__}.initial_law")

    @property
    def carried_weight(self) -> Tensor:
        """The weight whose place the rule's kernel takes."""
        raise NotImplementedError(f"{type(self).__name__}.carried_weight")

    def register_feedback(self, weight: Tensor) -> None:
        """Draw the rule's state and register it, on the device and in the dtype of `weight`.

        The draw depends on the state of PyTorch's generator for that device, which has just drawn
        the weight. That generator is not moved on, so weights are the same under every rule.
        """
        on_gpu = weight.device.type == "cuda"
        rng_state = torch.cuda.get_rng_state(weight.device) if on_gpu else torch.get_rng_state()
        seed = hashlib.blake2b(rng_state.numpy().tobytes()).hexdigest()
        state = self.rule.state(self.initial_law, generator("cpu", seed))
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
        """Draw the rule's state anew, in place, from `source`."""
        self._keep(self.rule.state(self.initial_law, source))

    @torch.no_grad()
    def renew_feedback(self, source: torch.Generator) -> None:
        """Do to the state, in place, what the rule does after a weight update."""
        self._keep(self.renewed(source))

    def renewed(self, source: torch.Generator) -> dict[str, Tensor]:
        """Return the rule's state after a weight update, with draws from `source`."""
        return self.rule.renew(self.carried_weight, self.feedback, self.initial_law, source)

    def remove_feedback(self) -> None:
        """Forget the rule's state, and the law that it was drawn from."""
        for name in [*self._buffers, *self._parameters]:
            if name.startswith(PREFIX) or name == "initial_bound":
                delattr(self, name)

    def _keep(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            getattr(self, PREFIX + name).copy_(value)

    def begin_unrenewed(self) -> None:
        """Forget who renewed the feedback, if that has to be done: nobody, for now."""
        self.is_renewed = not self.rule.renews
        """Whether somebody renews the feedback (`Renewal`), or nobody has to."""
        self._weight_changes: list[int] = []
        """How often the weight had been written to, at training passes that nobody renewed for."""

    def expect_renewal(self, weight: Tensor) -> None:
        """Warn if the feedback is to be renewed after each update of `weight`, and nobody does it.

        Called in each training pass. At the third pass with yet another weight two updates were
        made, and not one renewal.
        """
        count = changes(weight)
        if self._weight_changes and count <= self._weight_changes[-1]:  # or another tensor's
            return
        self._weight_changes.append(count)
        if len(self._weight_changes) == 3:
            self.is_renewed = True  # so that it is said once
            warnings.warn(
                f"{self.rule.spec} renews its feedback after each weight update, but weights were "
                "updated and feedback was not renewed: it learns as with fixed feedback; call "
                "darts_bio.attach(model, optimizer) before the loop, or draw_feedback(model, seed, "
                "update) after each update",
                stacklevel=2,
            )

    def transport(self, weight: Tensor) -> Tensor | None:
        """Return the kernel that carries the error down; None if no error is sent.

        It is shaped like `weight`: `weight` itself where the carrier is `exact`, else `held` if
        there is one, else what the rule answers.
        Nothing is recorded for autograd unless the rule's feedback is learned.
        """
        if self.held is not None and not self.exact:
            return self.held
        with torch.set_grad_enabled(bool(self.rule.learned) and torch.is_grad_enabled()):
            return weight if self.exact else self.kernel_of(weight)

    def kernel_of(self, weight: Tensor) -> Tensor | None:
        """Return the rule's kernel for a weight."""
        return self.rule.kernel(weight, self.feedback)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, (super().extra_repr(), f"rule={self.rule}")))


class DirectCarrier(RuleCarrier):
    """A carrier whose rule may be direct.

    Then what it runs is cut off from its input, which receives the error at the model's output
    (`rules.dfa`). It has no feedback until it is connected to that output.
    """

    observer: Callable[[Tensor], Tensor] | None = None
    """What each input goes through before it is multiplied (`rules.observing`); usually nothing."""

    def carry(self, rule: LearningRule) -> None:
        super().carry(rule)
        self.output_error: OutputError | None = None
        self.place = "a layer"
        """What messages call it: its name in the model, once that is known."""
        self.sample_shape: tuple[int, ...] | None = None
        """The shape of a sample of the input, for a rule with feedback `per_position`."""

    @property
    def channels(self) -> int:
        """The number of channels of the input."""
        raise NotImplementedError(f"{type(self).__name__}.channels")

    @property
    def initial_law(self) -> InitialLaw:
        assert self.output_error is not None
        if not self.rule.per_position:
            return direct_law(self.output_error.outputs, self.channels)
        if self.sample_shape is None:
            raise size_unknown(self.rule)
        return direct_law(self.output_error.outputs, *self.sample_shape)

    def connect(self, source: OutputError) -> None:
        """Make `source` the error that the input receives, and draw the feedback for it."""
        self.output_error = source
        self.register_feedback(next(self.parameters()))

    def feedback_learns(self, weights_learn: bool) -> bool:
        """Return whether the feedback gets a gradient: it is learned, and so are the weights."""
        learned = (self.feedback.get(name) for name in self.rule.learned)
        return weights_learn and any(value is not None and value.requires_grad for value in learned)

    def sent_directly(self, y: Tensor, x: Tensor, channel: int, learns: bool) -> Tensor:
        """Return y so that, in the backward pass, x receives the output's error.

        y must have been computed without a gradient for x, whose dimension `channel` counts its
        channels. The feedback receives its own gradient if it `learns`. Raises InputError if the
        carrier is not connected to an output.
        """
        if self.output_error is None:
            raise InputError(
                "dfa: this layer does not know the model's output, whose error it sends down; "
                "build the model by "
                "build_network or convert"
            )
        kernel = self.feedback["kernel"]
        kernel = kernel if learns else kernel.detach()
        return uncompiled(DirectError.apply, y, x, kernel, self.output_error, channel, self.place)


def computed_weight(rule: LearningRule, name: str) -> InputError:
    """Return the error of a rule whose feedback learns, on a weight computed from others by `name`."""
    return InputError(
        f"{rule.spec} is not defined for a weight that is computed from others ({name}): its "
        "feedback learns by the weight's own gradient; use another rule there"
    )


def size_unknown(rule: LearningRule) -> InputError:
    """Return the error of a rule with feedback `per_position` where no size is known."""
    return InputError(
        f"{rule.spec}: its feedback has a number for each position, and cells and layers work at any "
        "size; use it through convert(model, rule, inputs=...), or leave out positions=all"
    )


class DirectOperation(DirectCarrier):
    """An operation under a direct rule.

    It is exact within, and its input (N, channels, H, W) receives the output's error.

    >>> from darts_bio.rules import RULES
    >>> operation = DirectOperation(nn.Conv2d(3, 8, 3), 3, RULES.build("dfa"))
    >>> model = nn.Sequential(operation, nn.Flatten(), nn.Linear(8, 10))
    >>> output_error = connect_output(model, outputs=10)
    >>> x = torch.randn(2, 3, 3, 3, requires_grad=True)
    >>> logits = output_error.watch(model(x))
    >>> logits.sum().backward()  # the error is 1 for each of 10 outputs: x receives e B / 9
    >>> torch.allclose(x.grad[0, :, 1, 1], operation.feedback["kernel"].sum(0) / 9)
    True
    """

    def __init__(self, operation: nn.Module, channels: int, rule: LearningRule) -> None:
        super().__init__(rule=rule)
        if rule.per_position:
            raise size_unknown(rule)
        self.operation, self._channels = operation, channels

    @property
    def channels(self) -> int:
        return self._channels

    def forward(self, x: Tensor) -> Tensor:
        if self.observer is not None:
            x = self.observer(x)
        if self.exact or not torch.is_grad_enabled():
            return self.operation(x)
        learns = self.feedback_learns(any(p.requires_grad for p in self.operation.parameters()))
        if not (x.requires_grad or learns):
            return self.operation(x)
        return self.sent_directly(self.operation(x.detach()), x, channel=1, learns=learns)


class WeightedCarrier(DirectCarrier):
    """A carrier of one weight: a layer, or what a weight has beside it (`rules.weights`)."""

    def carry(self, rule: LearningRule) -> None:
        super().carry(rule)
        self.unit: UpdateUnit = vars(self).get("unit") or UpdateUnit()
        """What updates of a local rule are means over."""

    @property
    def initial_law(self) -> InitialLaw:
        """The law of feedback: that of a classifier at the model's output under a direct rule.

        Otherwise it is PyTorch's default initialization of the weight, or what `measure_law` has
        found.
        """
        if self.rule.direct:
            return super().initial_law
        bound = self._buffers.get("initial_bound")
        fan_in = math.prod(self.weight_shape[1:])
        return InitialLaw(self.weight_shape, fan_in**-0.5 if bound is None else bound)

    @property
    def weight_shape(self) -> torch.Size:
        """The shape of the carrier's weight."""
        return self.carried_weight.shape

    def measure_law(self, weight: Tensor) -> None:
        """Have feedback drawn with the standard deviation of a weight as it is now."""
        if weight.is_meta:  # has no numbers to measure: a state that is loaded brings the law
            self.register_buffer("initial_bound", None)
            return
        std = weight.detach().float().std(correction=0)
        if std > 0:  # weights of zero say nothing about the law
            # Uniform on (-bound, bound) has the standard deviation bound / sqrt(3).
            self.register_buffer("initial_bound", (3**0.5 * std).to(weight))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        unmeasured = self._buffers.get("initial_bound", self) is None
        if unmeasured and f"{prefix}initial_bound" in state_dict:
            like = next(iter(self.feedback.values()), torch.empty(()))
            self.initial_bound = like.new_empty(())
        super()._load_from_state_dict(state_dict, prefix, *others)

    def kernel_at(self, weight: Tensor, view: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Return `transport` for a view of the carrier's weight, or for what is computed from it.

        Args:
            weight: The weight as it stands in a product.
            view: Maps a tensor shaped like the carrier's weight to the shape of `weight`.
        """
        if self.held is not None and not self.exact:
            return view(self.held)
        with torch.set_grad_enabled(bool(self.rule.learned) and torch.is_grad_enabled()):
            if self.exact:
                return weight
            state = self.feedback
            shaped = self.weight_shape
            if any(value.dim() > 0 and value.shape != shaped for value in state.values()):
                # No part of such a state belongs to a part of the weight, only the whole kernel does.
                kernel = self.rule.kernel(self.carried_weight, state)
                return None if kernel is None else view(kernel)
            viewed = {name: view(s) if s.shape == shaped else s for name, s in state.items()}
            return self.rule.kernel(weight, viewed)


def connect_output(model: nn.Module, outputs: int) -> OutputError | None:
    """Connect all direct carriers of a model that are not connected yet to its output.

    Returns the error at an output of `outputs` values a sample, whose `watch` the caller has to
    call on the output; None if there is nothing to connect.

    >>> connect_output(nn.Linear(2, 3), outputs=3) is None
    True
    """
    waiting = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, DirectCarrier) and module.rule.direct and module.output_error is None
    ]
    source = OutputError(outputs) if waiting else None
    for name, carrier in waiting:
        assert source is not None
        carrier.connect(source)
        carrier.place = name or "the model"
    return source


def rule_carriers(model: nn.Module) -> Iterator[tuple[str, RuleCarrier]]:
    """Return (name, carrier) of all that has a rule, one after the other.

    That are layers, operations, and the supernet's stacked layers taken as one.
    """
    return (
        (name, module) for name, module in model.named_modules() if isinstance(module, RuleCarrier)
    )


def learned_feedback(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a model that are feedback (kolen_pollack).

    They are optimized as weights are, without being any.

    >>> from darts_bio.rules import RULES, RuleLinear
    >>> layer = RuleLinear(4, 3, rule=RULES.build("kolen_pollack"))
    >>> [tuple(parameter.shape) for parameter in learned_feedback(layer)]
    [(3, 4)]
    """
    return [
        value
        for _, carrier in rule_carriers(model)
        for value in carrier.feedback.values()
        if isinstance(value, nn.Parameter)
    ]


def draw_feedback(model: nn.Module, seed: int, update: int = 0) -> None:
    """Draw the feedback of a whole model, in place: at the start, or after a weight update.

    With update = 0 every rule draws, and feedback that was learned or moved is replaced; rules that
    have a phase before training (weight_mirror(phase=n)) go through it, by the present weights. With
    update = n, the number of the weight update just made, only rules that renew their feedback
    (brsf, weight_mirror) make one renewal. So a training loop calls this once after each update.

    What the numbers drawn depend on:

    - at update 0, on (seed, name) and on the law of the feedback: the weight's shape, and where
      `convert` has measured it the standard deviation that the weight had then. `name` is where the
      rule's carrier stands in the model, not in what torch.compile or DistributedDataParallel wraps
      around it. These draws are made on the CPU, wherever the model lies, and are the same on all
      devices;
    - at later updates on a CPU, on (seed, name, update) alone;
    - at later updates on a GPU, on (seed, update), and on the carriers that renew before this one:
      one generator serves all on the device. They are other numbers than on a CPU.

    So a resumed run draws what an uninterrupted one would have drawn, every process of a
    data-parallel run draws the same, and evaluation draws nothing. Global generators are neither
    read nor moved on.

    A carrier is a layer or an operation; in a supernet it is one rule of all stacked layers, whose
    share of a draw depends on these layers and their order. The feedback of weight_mirror depends
    on more than the draw, since it is moved from where it is, by the weights: one call is one move,
    not `update` moves.

    >>> from darts_bio.rules import RULES, RuleLinear
    >>> layer = RuleLinear(2, 2, rule=RULES.build("brsf"))
    >>> draw_feedback(layer, seed=1)
    >>> first = layer.feedback["magnitude"].clone()
    >>> draw_feedback(layer, seed=1, update=1)  # brsf draws anew after each update
    >>> bool((layer.feedback["magnitude"] != first).any())
    True
    """
    if update > 0:
        Renewal(model, seed)(update)
        return
    for name, carrier in _with_feedback(model):
        draw_first(carrier, seed, name)


def _with_feedback(model: nn.Module) -> Iterator[tuple[str, RuleCarrier]]:
    """Yield (name, carrier) of the carriers that have feedback.

    Names are those in the model itself, not in what torch.compile or DistributedDataParallel wraps
    around it.
    """
    for name, carrier in rule_carriers(model):
        if carrier.feedback:
            yield name.replace("_orig_mod.", "").removeprefix("module."), carrier


class Renewal:
    """Renews the feedback of a model as `draw_feedback` does, in a loop of many updates.

    What is drawn on a GPU is handed to `run`, which may record it as a CUDA graph
    (`training.graphs`): it draws from `generators`, and reads nothing else that changes but weights
    and feedback, which change in place.

    >>> from darts_bio.rules import RULES, RuleLinear
    >>> layer = RuleLinear(2, 2, rule=RULES.build("brsf"))
    >>> renewal = Renewal(layer, seed=1)
    >>> renewal(update=3)
    >>> now = layer.feedback["magnitude"].clone()
    >>> draw_feedback(layer, seed=1, update=3)
    >>> torch.equal(layer.feedback["magnitude"], now)
    True
    """

    def __init__(
        self, model: nn.Module, seed: int, only: Callable[[RuleCarrier], bool] | None = None
    ) -> None:
        """Find what has to be renewed in the model, or of that only the carriers that are asked for."""
        self._seed = seed
        self._on_gpu: list[RuleCarrier] = []
        self._on_cpu: list[tuple[str, RuleCarrier]] = []
        for name, carrier in _with_feedback(model):
            if not carrier.rule.renews or not (only is None or only(carrier)):
                continue
            carrier.is_renewed = True
            if _device(carrier).type == "cuda":
                self._on_gpu.append(carrier)
            else:
                self._on_cpu.append((name, carrier))
        # One for all carriers on a GPU: a recorded generator costs two kernels at each replay.
        devices = dict.fromkeys(_device(carrier) for carrier in self._on_gpu)
        self.generators = [torch.Generator(device) for device in devices]

    def __call__(self, update: int, run: Caller = call) -> None:
        """Renew what rules renew, as it stands after `update` weight updates."""
        for name, carrier in self._on_cpu:
            carrier.renew_feedback(
                generator(_device(carrier), "feedback", self._seed, name, update)
            )
        if self._on_gpu:
            for source in self.generators:
                source.manual_seed(derive_seed("feedback", self._seed, update))
            run(self._renew)

    def _renew(self) -> None:
        sources = {source.device: source for source in self.generators}
        for carrier in self._on_gpu:
            carrier.renew_feedback(sources[_device(carrier)])


def _device(carrier: RuleCarrier) -> torch.device:
    """Return the device that the carrier's feedback lies on."""
    return next(iter(carrier.feedback.values())).device


def draw_first(carrier: RuleCarrier, seed: int, name: str) -> None:
    """Draw the feedback of a carrier of that name before the first update.

    Renewals follow, of a rule that has some at the start (`LearningRule.phase`). All draws are made
    on the CPU, so that they are the same whatever the device.
    """
    source = generator("cpu", "feedback", seed, name, 0)
    carrier.draw_feedback(source)
    for _ in range(carrier.rule.phase):
        carrier.renew_feedback(source)


@contextlib.contextmanager
def held_feedback(model: nn.Module) -> Iterator[None]:
    """Have rules that do not transport weights keep the kernels of this moment.

    Within the context the weights may change, and the error still goes through these kernels. The
    second order of DARTS moves weights by a small step to measure a derivative; signs that flip in
    that step would spoil it.

    >>> from darts_bio.rules import RULES, RuleLinear
    >>> layer = RuleLinear(3, 1, bias=False, rule=RULES.build("usf"))
    >>> x, signs = torch.ones(1, 3, requires_grad=True), layer.weight.detach().sign()
    >>> with held_feedback(layer), torch.no_grad():
    ...     _ = layer.weight.neg_()
    ...     with torch.enable_grad():
    ...         layer(x).sum().backward()
    >>> torch.equal(x.grad.sign(), signs)  # those of before
    True
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
    """Have every rule send errors through W within the context: all gradients are exact.

    The forward pass is unchanged. The kernel is chosen in it, so run both passes inside.

    >>> from darts_bio.rules import RULES, RuleLinear
    >>> layer = RuleLinear(3, 1, rule=RULES.build("fa"))
    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> with true_gradients(layer):
    ...     layer(x).sum().backward()
    >>> torch.equal(x.grad, layer.weight)
    True
    """
    carriers = [carrier for _, carrier in rule_carriers(model)]
    with restored(carriers, "exact"):
        for carrier in carriers:
            carrier.exact = True
        yield
