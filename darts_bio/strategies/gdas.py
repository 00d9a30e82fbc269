"""GDAS (Dong 2019, arXiv 1910.04465): one candidate an edge, drawn anew at each pass.

With Gumbel noise g the candidate drawn is the largest of alpha + g. Its weight is 1 and all others'
0, with the gradient of softmax((alpha + g) / tau); tau falls linearly over the epochs.

Only what is drawn is computed. So alpha learns from the drawn candidate's weight alone (of the
gradient dL/dw that softmax sends on, the other entries are 0), and its batch norms alone follow the
batch. The authors' code adds the other weights, which are 0, to the edge's output as scalars, and
with them a gradient of the output's error summed over all of its entries, whatever those candidates
compute; here, as in the paper's text, there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from darts_bio.errors import check_number
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import STRATEGIES, Context
from darts_bio.strategies.gradient import AlphaState, GradientStrategy, GumbelState


@STRATEGIES.register("gdas")
@dataclass(frozen=True)
class Gdas(GradientStrategy):
    """One candidate an edge by hard Gumbel softmax, straight-through gradient (Dong 2019).

    `tau` and `tau_min` are the temperature in the first and in the last epoch; the other options
    are those of `GradientStrategy`.

    >>> from darts_bio.strategies import STRATEGIES
    >>> gdas = STRATEGIES.build("gdas(tau_min=1)")
    >>> gdas.tau, gdas.tau_min
    (10.0, 1.0)

    A sample has one candidate on each of the six edges of a cell:

    >>> import torch
    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import Context
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> state = gdas.begin(Context(space, table, 0, cpu, epochs=10, steps_per_epoch=5))
    >>> gdas.prepare(state)
    >>> (gdas.edge_weights(state)["cell"] > 0.5).sum(dim=1).tolist()
    [1, 1, 1, 1, 1, 1]
    """

    tau: float = 10.0
    tau_min: float = 0.1

    def __post_init__(self) -> None:
        check_number(f"{self.where}: tau_min", self.tau_min, above=0)
        check_number(f"{self.where}: tau", self.tau, least=self.tau_min)
        super().__post_init__()

    def temperature(self, state: AlphaState) -> float:
        """Return the temperature of the present epoch, on its way from `tau` to `tau_min`."""
        return self.tau + (self.tau_min - self.tau) * state.epoch / max(1, state.context.epochs - 1)

    def begin(self, context: Context) -> GumbelState:
        return GumbelState(self, context)

    def prepare(self, state: AlphaState) -> None:
        assert isinstance(state, GumbelState)
        state.sample(self.temperature(state))

    def drawn(self, state: AlphaState) -> Mapping[str, Sequence[int]]:
        assert isinstance(state, GumbelState)
        return state.strongest()

    def sampled_weights(self, state: AlphaState) -> EdgeWeights:
        assert isinstance(state, GumbelState)
        return state.hard_sample()
