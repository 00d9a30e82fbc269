"""Hebbian learning: a layer learns from its input and its output, and from no error at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from darts_bio.errors import InputError, unknown_name
from darts_bio.rules.base import RULES, Carries, LearningRule, Operator

Passed = Literal["none", "W"]
Form = Literal["soft", "oja"]


@dataclass(frozen=True)
class LocalRule(LearningRule):
    """The base of rules whose update does not read the error that arrives.

    `error` says what the layer sends down: nothing (`none`), or the exact error, as bp does (`W`).
    """

    error: Passed = "none"
    local = True

    def __post_init__(self) -> None:
        if self.error not in get_args(Passed):
            raise unknown_name("error of a local rule", str(self.error), get_args(Passed))

    @property
    def carries(self) -> Carries:  # type: ignore[override]
        return "values" if self.error == "W" else "nothing"

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor | None:
        return weight if self.error == "W" else None


@RULES.register("hebbian")
@dataclass(frozen=True)
class Hebbian(LocalRule):
    """Hebbian, winner-take-all: W += mean y (x - u W), u = W x, y = +-softmax(t u) (Journe 2023).

    The softmax is over the layer's output channels, separately at each position, which makes the
    competition a soft one. The channel that responds most learns towards the input; all others have
    their y negated and learn away from it (arXiv 2209.11883). The mean is over samples and
    positions. The update is handed on as a gradient, so optimizer, schedule and clipping work as
    ever. t is the option `temperature`.

    With `form=oja` y = u instead: Oja's rule, in which each channel finds the first principal
    component of its inputs by itself (Oja 1982). The bias stays as it is.

    State: none beside W. It learns in training mode only.

    Cost: a forward pass more in the backward pass, in place of the input's gradient.

    When: features before a readout that learns by an error, such as
    `{"fc": "bp", "*": "hebbian"}`; layers below get no error through it (`error=W` passes it on
    exactly). As the only rule of a network it solves no task. At the rates of layers that learn by
    an error its features get worse than random ones that do not learn; with `temperature=10` and
    SGD they are about as good as these (benchmarks/beyond_images.py).

    Example: Oja's rule finds the direction along which the inputs vary, whatever the loss is.

        >>> import torch
        >>> from darts_bio.rules import RULES, RuleLinear
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.randn(64, 1, generator=generator) * torch.tensor([0.6, 0.8, 0.0])
        >>> layer = RuleLinear(3, 1, bias=False, rule=RULES.build("hebbian(form=oja)"))
        >>> for _ in range(200):
        ...     layer.zero_grad()
        ...     layer(x).sum().backward()
        ...     layer.weight.data -= 0.2 * layer.weight.grad
        >>> [round(abs(entry), 2) for entry in layer.weight[0].tolist()]
        [0.6, 0.8, 0.0]
    """

    form: Form = "soft"
    temperature: float = 1.0
    stacks = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in get_args(Form):
            raise unknown_name("form of hebbian", str(self.form), get_args(Form))
        if not (isinstance(self.temperature, (int, float)) and 0 < self.temperature < float("inf")):
            raise InputError(
                f"hebbian: temperature: expected a number above 0, found {self.temperature!r}"
            )

    def update(self, x: Tensor, weight: Tensor, operator: Operator) -> Tensor:
        """Return -mean y (x - u W), shaped like the weight (O, ...)."""
        u = operator.apply(x, weight)
        y = operator.each(self.responses, u)
        # mean y (x - u W) = mean y x - (mean y u) W, with one number (mean y u) an output channel.
        samples_and_positions = [dim for dim in range(u.dim()) if dim != operator.channel % u.dim()]
        mean_yu = (y * u).mean(samples_and_positions)  # (O,)
        decay = mean_yu.view(-1, *[1] * (weight.dim() - 1))  # (O, 1, ...), to go with the weight
        count = u.numel() // weight.shape[0]  # samples times positions
        return decay * weight - operator.correlation(x, y, weight) / count

    def responses(self, u: Tensor, channel: int) -> Tensor:
        """Return y, shaped like u, whose dimension `channel` counts the channels of one layer."""
        if self.form == "oja":
            return u
        winner = u.argmax(channel, keepdim=True)
        shares = (self.temperature * u).softmax(channel)
        # Negate all shares, then write that of the winner back.
        return shares.neg().scatter_(channel, winner, shares.gather(channel, winner))
