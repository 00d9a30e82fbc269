"""LearningRule: what a layer y = W*x + b with weights asks its rule, backward and when it learns.

A rule is a small immutable value. It answers three questions:

1. which state it keeps (`state`, `renew`): tensors that the layer holds as buffers, or as
   parameters (`learned`);
2. what the layer's input receives as its error (`kernel`; for a rule that is `direct`, the error at
   the model's output);
3. which gradient the weight gets, if not the ordinary one (`update`, for a rule that is `local`).

Batch norm, ReLU, pooling and additions keep their exact derivative under every rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor

from darts_bio.errors import unknown_name
from darts_bio.registry import Registry

Carries = Literal["values", "signs", "learned feedback", "fixed feedback", "nothing"]
"""What carries an error down: the values of the forward weights (weight transport), their signs,
feedback that learns, feedback that is drawn; or no error is sent."""


@dataclass(frozen=True)
class InitialLaw:
    """The law that a layer's weight is initialized from: uniform on (-bound, bound).

    PyTorch's default for convolutions and linear layers has bound = 1/sqrt(fan_in) and so
    std = 1/sqrt(3 fan_in), where fan_in counts the inputs of one output channel: kernel height x
    width x (input channels / groups).

    >>> law = InitialLaw(torch.Size((64, 3, 3, 3)), bound=27**-0.5)
    >>> draw = law.sample(torch.Generator().manual_seed(0))
    >>> print(f"{tuple(draw.shape)}: std {law.std:.2f} by the law, {draw.std():.2f} of a draw")
    (64, 3, 3, 3): std 0.11 by the law, 0.11 of a draw
    """

    shape: torch.Size
    """The shape of the weight."""

    bound: float | Tensor
    """A number. Where the weights of many layers lie in one flat tensor, a tensor of that shape."""

    @property
    def std(self) -> float | Tensor:
        """The standard deviation of the law."""
        return self.bound / 3**0.5

    def sample(self, generator: torch.Generator) -> Tensor:
        """Return an independent draw, shaped like the weight.

        It lies on the generator's device and has PyTorch's default float type.
        """
        draw = torch.empty(self.shape, device=generator.device)
        if isinstance(self.bound, Tensor):
            return draw.uniform_(-1, 1, generator=generator).mul_(self.bound.to(generator.device))
        return draw.uniform_(-self.bound, self.bound, generator=generator)


class Operator(Protocol):
    """A layer as a linear map of its batched input x, for the `update` of local rules.

    In the supernet an operator may stand for M equal layers side by side. x and y then hold the
    channels, and the weight the output channels, of one layer after the other. A rule need not know
    this for the maps themselves, for sums over samples or positions, and for what it does to each
    entry by itself. Whatever brings the channels of one layer together (a softmax, a norm) has to
    go through `each`, `energies`, `moved`, `by_layer` and `weight_energy`.

    >>> from darts_bio.rules import RULES, RuleConv2d
    >>> layer = RuleConv2d(3, 8, 5, rule=RULES.build("hebbian"))
    >>> x, operator = layer.operator(torch.rand(2, 3, 16, 16))
    >>> y = operator.apply(x, layer.weight)
    >>> y.shape, operator.channel
    (torch.Size([2, 8, 12, 12]), 1)
    >>> operator.transposed(y, x, layer.weight).shape == x.shape
    True
    >>> operator.correlation(x, y, layer.weight).shape == layer.weight.shape
    True
    """

    @property
    def channel(self) -> int:
        """The dimension of y that counts its channels: 1 for convolutions, -1 for linear layers."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return y = W*x + b."""

    def transposed(self, dy: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
        """Return convT(dy; kernel), shaped like x: the gradient of x under that kernel."""

    def correlation(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        """Return conv_w(x, dy), shaped like the weight: the ordinary weight gradient."""

    def each(self, function: Callable[[Tensor, int], Tensor], y: Tensor) -> Tensor:
        """Return `function(y, channel)` of each layer's y by itself, put together as y is.

        `channel` is the dimension that counts the layer's channels in what the function is given;
        it must return a tensor of the same shape.
        """

    def energies(self, values: Tensor) -> Tensor:
        """Return the sum of squares over each sample of each layer; values are as x or as y."""

    def moved(self, values: Tensor, lengths: Tensor, direction: Tensor) -> Tensor:
        """Return values + lengths * direction, a length for each sample of each layer.

        `lengths` has the shape that `energies` returns.
        """

    def by_layer(self, weight: Tensor) -> Tensor:
        """Return what is shaped like the weight, a layer after the other: (M, O, ...)."""

    def weight_energy(self, weight: Tensor) -> Tensor:
        """Return the sum of squares of each layer's weight, to go with what `energies` returns."""


class LearningRule:
    """How a layer with weights sends its error down and learns.

    Subclasses are frozen dataclasses whose fields are the options of the rule. Registered by
    `@RULES.register("name")` they can be named in specs, `name(option=value)`; layers take them
    unregistered too:

    >>> from darts_bio.rules import RuleLinear
    >>> @dataclass(frozen=True)
    ... class Half(LearningRule):
    ...     share: float = 0.5
    ...     carries = "values"
    ...
    ...     def kernel(self, weight, state):
    ...         return self.share * weight
    >>> layer = RuleLinear(3, 2, rule=Half())
    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> layer(x).sum().backward()
    >>> torch.allclose(x.grad, layer.weight.sum(0) / 2)
    True
    """

    carries: ClassVar[Carries] = "fixed feedback"
    """What carries the error down, as `audit` reports it. A kernel that depends on the weight has to
    say so."""

    learned: ClassVar[tuple[str, ...]] = ()
    """The names of the state that is a parameter: it receives the weight's own gradient, so any
    optimizer moves both by the same step."""

    decays_to_weight: ClassVar[bool] = False
    """Whether what is learned comes to stand for the weight, since it takes the weight's steps and
    what both began with decays. `attach` warns where an optimizer does not do that to both."""

    renews: ClassVar[bool] = False
    """Whether `renew` is called after each weight update."""

    phase: ClassVar[int] = 0
    """How often `renew` is called for feedback that was just drawn, before the first weight update.
    `draw_feedback` does it, with the model's weights as they are then."""

    elementwise: ClassVar[bool] = False
    """Whether each entry of `kernel` depends on the same entry of the weight and of the state alone
    (state that is a scalar or shaped like the weight). Then the weights of many layers may be
    handed to it in one flat tensor, with a law whose bound and std are tensors of that shape: this
    is how the supernet batches the candidates of such a rule."""

    stacks: ClassVar[bool] = False
    """Whether the supernet may treat M layers of one shape at once under a rule that is not
    elementwise. True promises that

    - `kernel` and `renew` run under torch.vmap over weights and state (M, *shape), with one law and
      one generator for all; state is a scalar or shaped like the weight, and drawn entry by entry;
    - under a `local` rule, `update` works with an operator that stands for M layers, and `kernel`
      returns W or None;
    - under a `direct` rule, the state `kernel` drawn for M times as many outputs is that of M
      layers, one below the other.

    A subclass that overrides `state`, `renew`, `kernel` or `update` does not inherit the promise:
    it has to set `stacks` itself, or its candidates are run one by one."""

    local: ClassVar[bool] = False
    """Whether the weight's gradient is `update` instead of the ordinary one, in a unit of its own.
    The bias then has no gradient and stays as it is."""

    direct: ClassVar[bool] = False
    """Whether the layer's input receives the error at the model's output, projected by the state
    `kernel`."""

    per_position: ClassVar[bool] = False
    """Whether that `kernel` of a rule that is direct has a number for each position of the input,
    (outputs, *the shape of a sample); otherwise it has one for each channel."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if isinstance(vars(cls).get("transports_weights"), bool):
            raise TypeError(f"{cls.__name__}: set `carries` in place of `transports_weights`")
        carries = vars(cls).get("carries")
        if isinstance(carries, str) and carries not in get_args(Carries):
            raise unknown_name(f"value of {cls.__name__}.carries", carries, get_args(Carries))
        # The promise of `stacks` is about these methods: overriding one withdraws it.
        overrides = not vars(cls).keys().isdisjoint(("state", "renew", "kernel", "update"))
        if overrides and "stacks" not in vars(cls):
            cls.stacks = False

    @property
    def transports_weights(self) -> bool:
        """Whether the values of the forward weights carry the error, which biology may not do."""
        return self.carries == "values"

    @property
    def batched(self) -> bool:
        """Whether the supernet computes the candidates of this rule together."""
        return self.elementwise or self.stacks

    @property
    def redraws(self) -> bool:
        """Whether each weight update replaces the feedback by a new draw, whatever it was before.

        So for brsf; not for weight_mirror, which moves the feedback it has.
        """
        return self.renews and type(self).renew is LearningRule.renew

    @property
    def spec(self) -> str:
        """The rule as options and files write it: its name, and the options not at their defaults.

        >>> from darts_bio.rules import RULES
        >>> RULES.build("hebbian(temperature=10, error=none)").spec
        'hebbian(temperature=10)'
        """
        return RULES.spec(self)

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the feedback tensors that this rule keeps for one layer, by name.

        An implementation draws from `generator` only, and on `generator.device`, which need not be
        the layer's.
        """
        return {}

    def renew(
        self,
        weight: Tensor,
        state: Mapping[str, Tensor],
        law: InitialLaw,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the state after a weight update, for a rule that `renews`.

        By default it is drawn anew. Draws are made as in `state`.
        """
        return self.state(law, generator)

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor | None:
        """Return what takes the weight's place in the gradient of the layer's input.

        It has the shape of the weight. None means that no error is sent down.
        """
        raise NotImplementedError(f"{type(self).__name__}.kernel")

    def update(self, x: Tensor, weight: Tensor, operator: Operator) -> Tensor:
        """Return what a `local` rule wants in place of the weight's gradient.

        It is a function of the layer's input and its weight alone, with the sign of a gradient: an
        optimizer subtracts it. Called in training mode only, with at least one sample.

        The unit of an update is the mean over samples, however the loss is scaled and a batch is
        split: an implementation returns the mean over the samples of x. Where several parts of
        equal size are passed before the weight moves, the gradient is the mean over them
        (`rules.unit`), as it is over processes whose gradients are averaged. A supernet's stacked
        layers and weights that are computed from others have no such unit: gradients of parts add
        up there, and a loop of your own has to divide them. Under a GradScaler it
        is multiplied by the scale that `unscale_` will divide by; the scaler has to be handed to
        `attach`. A layer that is called twice in a pass gets the sum over calls, as a weight gets
        under every rule.

        Args:
            x: The input as the layer's linear map takes it, already padded.
            weight: The layer's weight.
            operator: The linear map; in the supernet, of several layers side by side.
        """
        raise NotImplementedError(f"{type(self).__name__}.update")


GLOBAL_LEARNERS = ("pc", "dual_propagation", "pepita", "dtp", "drtp")
"""The names of `darts_bio.learners`, which builds upon rules and is not imported here."""

RULES: Registry[type[LearningRule]] = Registry(
    "learning rule",
    base=LearningRule,
    elsewhere={
        name: f'it is a global learner, of a whole model: darts_bio.learner(model, "{name}"); see '
        "docs/learners.md"
        for name in GLOBAL_LEARNERS
    },
)
