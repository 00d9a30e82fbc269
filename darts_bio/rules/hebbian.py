"""Hebbian learning: a layer learns from its input and its output, and from no error at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from darts_bio.errors import check_number, unknown_name
from darts_bio.rules.base import RULES, Carries, LearningRule, Operator

Passed = Literal["none", "W"]
Form = Literal["soft", "oja"]
Rate = Literal["constant", "norm"]
Step = Literal["mean", "max"]


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

    The published procedure also bounds the steps and slows them down as a channel settles:
    `step=max` divides a layer's update by its largest entry, so that no weight moves by more than
    the learning rate, and `rate=norm` multiplies that of a channel by sqrt(abs(r - 1)), where r is
    the norm of its weights, which the rule takes to 1. Both belong to `hebbian_pretraining`, which
    does the rest of the procedure. Where a batch is passed in parts, the step of each part is
    bounded, and the gradient is the mean of these steps.

    With `form=oja` y = u instead: Oja's rule, in which each channel finds the first principal
    component of its inputs by itself (Oja 1982). With g = mean u x, of length |g|, a channel's
    update is (g - (mean u^2) W) / (|g| max(1, r)). Without the divisor, which is ours, the update
    grows with the third power of the weights, and ends in NaN where the learning rate times r^2
    times the variance of the inputs is above about 2. With it a channel's norm grows by at most the
    learning rate in a step, whatever the inputs, and what the rule comes to is the same.

    The bias stays as it is.

    State: none beside W. It learns in training mode only.

    Cost: a forward pass more in the backward pass, in place of the input's gradient.

    When: features before a readout that learns by an error, such as
    `{"fc": "bp", "*": "hebbian(rate=norm, step=max)"}`; layers below get no error through it
    (`error=W` passes it on exactly). As the only rule of a network it solves no task. Trained in the loop
    of layers that learn by an error, its features stay at or below random ones
    (benchmarks/beyond_images.py); `hebbian_pretraining` is the procedure by which they get better
    than these.

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
    rate: Rate = "constant"
    step: Step = "mean"
    stacks = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in get_args(Form):
            raise unknown_name("form of hebbian", str(self.form), get_args(Form))
        if self.rate not in get_args(Rate):
            raise unknown_name("rate of hebbian", str(self.rate), get_args(Rate))
        if self.step not in get_args(Step):
            raise unknown_name("step of hebbian", str(self.step), get_args(Step))
        check_number("hebbian: temperature", self.temperature, above=0)

    def update(self, x: Tensor, weight: Tensor, operator: Operator) -> Tensor:
        """Return -mean y (x - u W), shaped like the weight (O, ...), in steps as the options say."""
        u = operator.apply(x, weight)
        y = operator.each(self.responses, u)
        # mean y (x - u W) = mean y x - (mean y u) W, with one number (mean y u) an output channel.
        samples_and_positions = [dim for dim in range(u.dim()) if dim != operator.channel % u.dim()]
        mean_yu = (y * u).mean(samples_and_positions)  # (O,)
        decay = mean_yu.view(-1, *[1] * (weight.dim() - 1))  # (O, 1, ...), to go with the weight
        count = u.numel() // weight.shape[0]  # samples times positions
        mean_yx = operator.correlation(x, y, weight) / count
        gradient = decay * weight - mean_yx
        tiny = torch.finfo(gradient.dtype).tiny  # where nothing responds, 0 / tiny is no step
        if self.form == "oja":
            lengths = norms(mean_yx) * norms(weight).clamp_min(1)
            gradient = gradient / lengths.clamp_min(tiny)
        if self.step == "max":
            by_layer = operator.by_layer(gradient)  # (M, O, ...)
            largest = by_layer.abs().flatten(1).amax(1).clamp_min(tiny)  # (M,)
            scaled = by_layer / largest.view(-1, *[1] * weight.dim())
            gradient = scaled.view_as(weight)
        if self.rate == "norm":
            gradient = gradient * (norms(weight) - 1).abs().sqrt()
        return gradient

    def responses(self, u: Tensor, channel: int) -> Tensor:
        """Return y, shaped like u, whose dimension `channel` counts the channels of one layer."""
        if self.form == "oja":
            return u
        winner = u.argmax(channel, keepdim=True)
        shares = (self.temperature * u).softmax(channel)
        # Negate all shares, then write that of the winner back.
        return shares.neg().scatter_(channel, winner, shares.gather(channel, winner))


def norms(weight: Tensor) -> Tensor:
    """Return the norm of each output channel's weights, (O, 1, ...) for a weight (O, ...).

    >>> norms(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    tensor([[5.],
            [2.]])
    """
    return weight.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))
