"""LearningRule: what a weighted layer y = W*x + b asks before it sends its error down.

A rule is a small immutable value. It answers two questions:

1. which state it keeps (`state`): tensors that the layer holds as buffers;
2. which kernel carries the error to the layer's input (`kernel`).

The layer's own weight and bias gradients stay the ordinary ones, so a rule changes what the layers *below* receive.
Batch norm, ReLU, pooling and additions keep their exact derivative under every rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from darts_bio.registry import Registry


@dataclass(frozen=True)
class InitialLaw:
    """The law a layer's weight is initialised from: uniform on (-bound, bound).

    PyTorch's default for convolutions and linear layers has bound = 1/sqrt(fan_in), std = 1/sqrt(3 fan_in), where
    fan_in counts the inputs of one output channel: kernel height x width x (input channels / groups).
    """

    shape: torch.Size
    bound: float | Tensor
    """A number; or, where the weights of many layers lie in one flat tensor, a tensor of that shape."""

    @property
    def std(self) -> float | Tensor:
        return self.bound / 3**0.5

    def sample(self, generator: torch.Generator) -> Tensor:
        """An independent draw, shaped like the weight, on the generator's device, in the default float type."""
        draw = torch.empty(self.shape, device=generator.device)
        if isinstance(self.bound, Tensor):
            return draw.uniform_(-1, 1, generator=generator).mul_(self.bound.to(generator.device))
        return draw.uniform_(-self.bound, self.bound, generator=generator)


class LearningRule:
    """How a weighted layer sends its error down. Subclasses are frozen dataclasses, registered by name in `RULES`."""

    transports_weights: ClassVar[bool] = False
    """Whether the error is carried by the forward weights' values (what biology is held not to do)."""

    redraws: ClassVar[bool] = False
    """Whether `state` is drawn anew after each weight update."""

    elementwise: ClassVar[bool] = False
    """Whether `kernel` treats each weight by itself, with state that is a scalar or shaped like the weight. Then the
    weights of many layers may be handed to it in one flat tensor, with a law whose bound and std are tensors of that
    shape: the supernet batches the candidates of such a rule, and runs those of another one by one."""

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        """The feedback tensors this rule keeps for one layer, by name; empty if it keeps none.

        Draws from `generator` only, and on `generator.device`, which need not be the layer's.
        """
        return {}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """The kernel, shaped like `weight`, that takes its place in the gradient of the layer's input."""
        raise NotImplementedError(f"{type(self).__name__}.kernel")


RULES: Registry[type[LearningRule]] = Registry("learning rule")
