"""LearningRule: what a weighted layer y = W*x + b asks before it sends its error down and before it
learns.

A rule is a small immutable value. It answers three questions:

1. which state it keeps (`state`, `renew`): tensors that the layer holds as buffers, or as
   parameters (`learned`);
2. what the layer's input receives as its error (`kernel`, or the output's error for a rule that is
   `direct`);
3. which gradient the weight gets, if not the ordinary one (`update`, for a rule that is `local`).

Batch norm, ReLU, pooling and additions keep their exact derivative under every rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from darts_bio.registry import Registry


@dataclass(frozen=True)
class InitialLaw:
    """The law a layer's weight is initialised from: uniform on (-bound, bound).

    PyTorch's default for convolutions and linear layers has bound = 1/sqrt(fan_in), std = 1/sqrt(3
    fan_in), where fan_in counts the inputs of one output channel: kernel height x width x (input
    channels / groups).
    """

    shape: torch.Size
    bound: float | Tensor
    """A number; or, where the weights of many layers lie in one flat tensor, a tensor of that
    shape."""

    @property
    def std(self) -> float | Tensor:
        return self.bound / 3**0.5

    def sample(self, generator: torch.Generator) -> Tensor:
        """An independent draw, shaped like the weight, on the generator's device, in the default
        float type.
        """
        draw = torch.empty(self.shape, device=generator.device)
        if isinstance(self.bound, Tensor):
            return draw.uniform_(-1, 1, generator=generator).mul_(self.bound.to(generator.device))
        return draw.uniform_(-self.bound, self.bound, generator=generator)


class Operator(Protocol):
    """A layer as a linear map of x, and the maps that belong to it. x and y are batched.

    In the supernet it may stand for M equal layers side by side: x and y hold their channels and
    the weight their output channels one layer after the other. The maps, sums over samples or
    positions, and what is done to each entry need not know; what brings the channels of a layer
    together is asked for here.
    """

    @property
    def channel(self) -> int:
        """The dimension of y that counts its channels: 1 for convolutions, -1 for linear layers."""

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """y = W*x + b."""

    def transposed(self, dy: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
        """convT(dy; K), shaped like x."""

    def correlation(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        """conv_w(x, dy), shaped like the weight: the ordinary weight gradient."""

    def each(self, function: Callable[[Tensor, int], Tensor], y: Tensor) -> Tensor:
        """`function(y, channel)`, shaped like its y, of each layer's y by itself; `channel` is the
        dimension that counts that layer's channels.
        """

    def energies(self, values: Tensor) -> Tensor:
        """The sum of the squares of values, shaped like x or y, over each sample of each layer."""

    def moved(self, values: Tensor, lengths: Tensor, direction: Tensor) -> Tensor:
        """values + lengths * direction, with a length for each sample of each layer, as `energies`
        has them.
        """

    def energy(self, y: Tensor) -> Tensor:
        """The sum of the squares of y over each layer, of a shape that spreads over its weight."""


class LearningRule:
    """How a weighted layer sends its error down and learns. Subclasses are frozen dataclasses,
    registered by name in `RULES`.
    """

    transports_weights: ClassVar[bool] = False
    """Whether the error is carried by the forward weights' values (what biology is held not to
    do)."""

    learned: ClassVar[tuple[str, ...]] = ()
    """The state that is a parameter: it receives the weight's own gradient, so any optimiser moves
    both alike."""

    renews: ClassVar[bool] = False
    """Whether `renew` is called after each weight update."""

    elementwise: ClassVar[bool] = False
    """Whether `kernel` treats each weight by itself, with state that is a scalar or shaped like the
    weight. Then the weights of many layers may be handed to it in one flat tensor, with a law whose
    bound and std are tensors of that shape: the supernet batches the candidates of such a rule."""

    stacks: ClassVar[bool] = False
    """Whether the supernet may treat M layers of one shape at once under a rule that is not
    elementwise:

    - `kernel` and `renew` are run under torch.vmap over weights and state (M, *shape), the law and
      the generator being common to all; state is a scalar or shaped like the weight, and drawn
      entry by entry;
    - under a `local` rule, `update` is handed an operator that stands for M layers, and `kernel` is
      W or None;
    - under a `direct` rule, the state `kernel` of M times as many outputs is that of M layers, one
      below the other.

    A subclass that overrides one of these methods has to say it anew: candidates of a rule that
    says nothing are run one by one."""

    local: ClassVar[bool] = False
    """Whether the weight's gradient is `update`, not the ordinary one. The bias then stays as it
    is."""

    direct: ClassVar[bool] = False
    """Whether the layer's input receives the error at the model's output, projected by the state
    `kernel`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "stacks" not in vars(cls) and not vars(cls).keys().isdisjoint(
            ("state", "renew", "kernel", "update")
        ):
            cls.stacks = False

    @property
    def batched(self) -> bool:
        """Whether the supernet computes the candidates of this rule together."""
        return self.elementwise or self.stacks

    @property
    def redraws(self) -> bool:
        """Whether the feedback after a weight update is a new draw, whatever it was before."""
        return self.renews and type(self).renew is LearningRule.renew

    @property
    def spec(self) -> str:
        """The rule as it is written in options and files: its registered name, and what options
        differ from default.
        """
        return RULES.spec(self)

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        """The feedback tensors this rule keeps for one layer, by name; empty if it keeps none.

        Draws from `generator` only, and on `generator.device`, which need not be the layer's.
        """
        return {}

    def renew(
        self,
        weight: Tensor,
        state: Mapping[str, Tensor],
        law: InitialLaw,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """The state after a weight update, for a rule that `renews`. Draws as `state` does."""
        return self.state(law, generator)

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor | None:
        """The kernel, shaped like `weight`, that takes its place in the gradient of the layer's
        input; None if no error is sent down.
        """
        raise NotImplementedError(f"{type(self).__name__}.kernel")

    def update(self, x: Tensor, weight: Tensor, operator: Operator) -> Tensor:
        """What a `local` rule wants in place of the weight's gradient, to be descended: from the
        layer's input x and its weight alone. Called in training mode only.
        """
        raise NotImplementedError(f"{type(self).__name__}.update")


RULES: Registry[type[LearningRule]] = Registry("learning rule")
