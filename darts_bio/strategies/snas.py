"""SNAS (Xie 2019, arXiv 1812.09926): edge weights drawn from a concrete distribution.

With Gumbel noise g the weights are softmax((log softmax(alpha) + g) / tau); tau falls
geometrically, so that they approach single candidates. The published search moves alpha and w by
one loss on all the data; here alpha moves by the validation half, as under every strategy, so that
strategies are compared on the same data.

With `hard=True` the strongest candidate of the sample has weight 1 and is the only one computed, as
in GDAS, and the gradient is that of the sample (straight through). Xie 2019 trains by soft samples
alone; what is left of GDAS' difference is then the temperature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from darts_bio.errors import InputError, check_number
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import STRATEGIES, Context
from darts_bio.strategies.gradient import AlphaState, GradientStrategy, GumbelState


@STRATEGIES.register("snas")
@dataclass(frozen=True)
class Snas(GradientStrategy):
    """Soft weights by Gumbel softmax, its temperature falling (Xie 2019).

    `tau` and `tau_min` are the temperature in the first and in the last epoch, and `hard` computes
    the strongest candidate of a sample alone; the other options are those of `GradientStrategy`.

    >>> from darts_bio.strategies import STRATEGIES
    >>> STRATEGIES.options("snas")["tau_min"]
    0.03
    >>> STRATEGIES.build("snas(tau=0.01)")
    Traceback (most recent call last):
        ...
    darts_bio.errors.InputError: strategy snas: tau: expected a number of at least 0.03, found 0.01
    """

    tau: float = 1.0
    tau_min: float = 0.03
    hard: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.hard, bool):
            raise InputError(f"{self.where}: hard: expected True or False, found {self.hard!r}")
        check_number(f"{self.where}: tau_min", self.tau_min, above=0)
        check_number(f"{self.where}: tau", self.tau, least=self.tau_min)
        super().__post_init__()

    def temperature(self, state: AlphaState) -> float:
        """Return the temperature of the present epoch, on its way from `tau` to `tau_min`."""
        progress = state.epoch / max(1, state.context.epochs - 1)
        return self.tau * (self.tau_min / self.tau) ** progress

    def begin(self, context: Context) -> GumbelState:
        return GumbelState(self, context)

    def prepare(self, state: AlphaState) -> None:
        assert isinstance(state, GumbelState)
        state.sample(self.temperature(state))

    def sampled_weights(self, state: AlphaState) -> EdgeWeights:
        assert isinstance(state, GumbelState)
        # Alpha stands for log softmax(alpha): the two differ by a constant per edge, which a
        # softmax does not see.
        return state.hard_sample() if self.hard else state.soft_sample()

    def drawn(self, state: AlphaState) -> Mapping[str, Sequence[int]] | None:
        assert isinstance(state, GumbelState)
        return state.strongest() if self.hard else None
