"""Hebbian learning: a layer learns from what goes in and what comes out, and from no error at
all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from darts_bio.errors import InputError, unknown_name
from darts_bio.rules.base import RULES, LearningRule, Operator

Passed = Literal["none", "W"]
Form = Literal["soft", "oja"]


@dataclass(frozen=True)
class LocalRule(LearningRule):
    """A rule whose update does not read the error. `error` says what it passes on: `none`, or by
    `W` as bp does.
    """

    error: Passed = "none"
    local = True

    def __post_init__(self) -> None:
        if self.error not in get_args(Passed):
            raise unknown_name("error of a local rule", str(self.error), get_args(Passed))

    @property
    def transports_weights(self) -> bool:  # type: ignore[override]
        return self.error == "W"

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor | None:
        return weight if self.error == "W" else None


@RULES.register("hebbian")
@dataclass(frozen=True)
class Hebbian(LocalRule):
    """Hebbian, soft winner-take-all: W += mean y (x - u W), u = W x, y = softmax(t u), losers
    negated (Journe 2023).

    The softmax is over the layer's output channels; the channel that responds most learns towards
    the input and all others, negated, away from it (arXiv 2209.11883). The mean is over samples and
    positions; the update is handed on as a gradient, so optimiser, schedule and clipping work as
    ever. With `form=oja` y = u: Oja's rule, in which each channel finds the first principal
    component of its inputs by itself (Oja 1982). The bias stays. `t` is the option `temperature`.

    State: none beside W. Learns in training mode only. Cost: a forward pass more in the backward
    pass, in place of the input's gradient. When: features before a readout that learns by an error,
    such as `{"fc": "bp", "*": "hebbian"}`; layers below get no error through it (`error=W` passes
    it on exactly). As the only rule of a network it solves no task. At the rates of layers that
    learn by an error its features get worse than random ones that do not learn; with
    `temperature=10` and SGD they are about as good as these (benchmarks/beyond_images.py).
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
        u = operator.apply(x, weight)
        y = operator.each(self.responses, u)
        others = [dim for dim in range(u.dim()) if dim != operator.channel % u.dim()]
        decay = (y * u).mean(others).view(-1, *[1] * (weight.dim() - 1))
        return decay * weight - operator.correlation(x, y, weight) / (u.numel() // weight.shape[0])

    def responses(self, u: Tensor, channel: int) -> Tensor:
        """y, shaped like u."""
        if self.form == "oja":
            return u
        winner = u.argmax(channel, keepdim=True)
        shares = (self.temperature * u).softmax(channel)
        return shares.neg().scatter_(channel, winner, shares.gather(channel, winner))
