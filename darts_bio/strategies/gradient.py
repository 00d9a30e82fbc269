"""What the strategies that move alpha along a gradient have in common.

`GradientStrategy` answers everything that a search asks of a strategy but how alpha becomes the
weights of an edge's candidates, for which its default is the softmax of DARTS. Where edges compete
too (PC-DARTS, or the regularizer edge_normalization), it multiplies them by each edge's share of
its node. Strategies that draw a Gumbel sample (gdas, snas) share `GumbelState` beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import InputError, brief, check_number
from darts_bio.networks import EdgeWeights
from darts_bio.optimizers import Adam, load_optimizer
from darts_bio.runtime import fill, generator
from darts_bio.strategies.alpha import Alpha, FactorizedAlpha, operation_first
from darts_bio.strategies.base import (
    Bilevel,
    Context,
    Strategy,
    StrategyState,
    masked_softmax,
    one_hot_like,
)
from darts_bio.strategies.edges import EdgeShares


class AlphaState(StrategyState):
    """Alpha, the betas of edges that compete, their Adam, and the number of samples drawn.

    Args:
        strategy: The strategy, whose `lr`, `betas`, `weight_decay` and `init` are used.
        context: The search.

    Attributes:
        parameters: All that moves, a dict of tensors by name: alpha (edges, candidates) by cell
            type, with edges that compete their betas as well; with factorised alpha those of
            operations and of rules. Gradients are in the order of its values.
        masks: (edges, candidates) bool per cell type: True where there is a candidate.
        edge_shares: Each edge's share of its node, where edges compete; None elsewhere.
        optimizer: Adam, of all parameters.
        draws: How many samples were drawn so far.

    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import AlphaState, Context, GradientStrategy
    >>> space = SPACES.build("darts")
    >>> table, cpu = space.table(["bp", "fa"]), torch.device("cpu")
    >>> context = Context(space, table, 0, cpu, epochs=10, steps_per_epoch=5)
    >>> state = AlphaState(GradientStrategy(init=0.0), context)
    >>> {cell_type: tuple(logits.shape) for cell_type, logits in state.alpha.items()}
    {'normal': (14, 12), 'reduce': (14, 13)}
    >>> state.learning_rates()
    {'alpha': 0.0003}
    """

    def __init__(self, strategy: GradientStrategy, context: Context) -> None:
        context = replace(context, factorised=context.factorised or strategy.factorised)
        super().__init__(context)
        kind = FactorizedAlpha if context.factorised else Alpha
        self._alpha = kind(context, strategy.init)
        self.masks = self._alpha.masks
        compete = context.normalizes_edges or strategy.normalizes_edges
        self.edge_shares = EdgeShares(context, strategy.init) if compete else None
        betas = {} if self.edge_shares is None else self.edge_shares.parameters
        self.parameters = self._alpha.parameters | betas
        self.optimizer = Adam(
            self._groups(strategy),
            lr=strategy.lr,
            betas=(strategy.betas[0], strategy.betas[1]),
            weight_decay=strategy.weight_decay,
            capturable=context.recorded,
            fused=context.recorded or None,  # None is PyTorch's own choice
        )
        self.draws = 0

    def _groups(self, strategy: Any) -> list[dict[str, Any]]:
        """Return the parameters as Adam takes them: in groups, with what differs between these."""
        return [{"params": list(self.parameters.values())}]

    @property
    def alpha(self) -> dict[str, Tensor]:
        return self._alpha.logits()

    def next_draw(self) -> torch.Generator:
        """Return a generator on the CPU for the next sample.

        Its seed is a function of the search's seed and of how many samples came before, so that a
        resumed search draws what the interrupted one would have drawn.
        """
        self.draws += 1
        return generator("cpu", "strategy", self.context.seed, self.draws)

    def values(self) -> dict[str, Tensor]:
        """Return copies of the parameters as they are now, by name."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Set all parameters, in place, to the values of their names."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        return {
            "parameters": self.values(),
            "optimizer": self.optimizer.state_dict(),
            "draws": self.draws,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.put(saved["parameters"])
        load_optimizer(self.optimizer, saved["optimizer"])
        self.draws = saved["draws"]

    def learning_rates(self) -> dict[str, float]:
        return {"alpha": self.optimizer.param_groups[0]["lr"]}


@dataclass(frozen=True)
class GradientStrategy(Strategy[AlphaState]):
    """A strategy whose alpha follows the gradient of the validation loss, by Adam.

    Alpha moves once a step. The loss has the penalties of the objective and the regularizers, and
    the gradient is the mean over all processes. Subclasses say how alpha becomes the weights of an
    edge's candidates: by `mean_weights`, and where there is chance in them by `sampled_weights`.

    Attributes:
        lr: Adam's learning rate.
        betas: Adam's decay rates of the first and the second moment.
        weight_decay: Adam's L2 penalty on alpha.
        init: The standard deviation of alpha at the beginning.

    A strategy of one's own, a softmax with a temperature:

    >>> from dataclasses import dataclass
    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import Context, GradientStrategy, masked_softmax
    >>> @dataclass(frozen=True)
    ... class Sharp(GradientStrategy):
    ...     temperature: float = 0.5
    ...     def mean_weights(self, state):
    ...         return {
    ...             t: masked_softmax(logits / self.temperature, state.masks[t])
    ...             for t, logits in state.alpha.items()
    ...         }
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> context = Context(space, table, 0, cpu, epochs=10, steps_per_epoch=5)
    >>> sharp = Sharp(temperature=1e-5)
    >>> weights = sharp.final_weights(sharp.begin(context))["cell"]
    >>> bool((weights.max(dim=1).values > 0.9).all())  # nearly one candidate an edge
    True
    """

    _: KW_ONLY
    lr: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 1e-3
    init: float = 1e-3

    def __post_init__(self) -> None:
        """Raise InputError for a value out of bounds."""
        for option in ("lr", "weight_decay", "init"):
            check_number(f"{self.where}: {option}", getattr(self, option))
        if not (isinstance(self.betas, (tuple, list)) and len(self.betas) == 2):
            raise InputError(
                f"{self.where}: betas: expected two numbers, as in betas=(0.5, 0.999), found "
                f"{brief(self.betas)}"
            )
        for beta in self.betas:
            check_number(f"{self.where}: betas", beta, below=1)

    def begin(self, context: Context) -> AlphaState:
        return AlphaState(self, context)

    def mean_weights(self, state: AlphaState) -> EdgeWeights:
        """Return the weights of each edge's candidates without chance: here, alpha's softmax.

        They are (edges, candidates) per cell type, with their gradient. By them costs and entropies
        are counted, and the genotype is derived, unless a subclass says otherwise.
        """
        return {t: masked_softmax(logits, state.masks[t]) for t, logits in state.alpha.items()}

    def sampled_weights(self, state: AlphaState) -> EdgeWeights:
        """Return the weights of each edge's candidates as `prepare` drew them.

        They are (edges, candidates) per cell type, with their gradient.
        """
        return self.mean_weights(state)

    def strengths(self, state: AlphaState) -> EdgeWeights:
        """Return by what the candidates of an edge are compared: (edges, candidates) per cell type.

        No gradient of it is taken. Of factorised alpha operations are compared first, by the sum of
        their pairs, and then the rules of the best one.
        """
        return self.mean_weights(state)

    def with_edge_shares(self, state: AlphaState, weights: EdgeWeights) -> EdgeWeights:
        """Multiply the weights of candidates by the share of their edge, where edges compete."""
        return weights if state.edge_shares is None else state.edge_shares.applied_to(weights)

    def edge_weights(self, state: AlphaState) -> EdgeWeights:
        return self.with_edge_shares(state, self.sampled_weights(state))

    def own_penalty(self, state: AlphaState) -> Tensor | float:
        """Return what the strategy itself adds to the loss that alpha follows, a scalar."""
        return 0.0

    def validation_loss(self, state: AlphaState, bilevel: Bilevel) -> tuple[Tensor, Tensor]:
        """Return the loss that alpha follows, with all penalties, and the logits (N, classes)."""
        loss, logits = bilevel.architecture_loss(bilevel.valid_batch, self.edge_weights(state))
        loss = loss + bilevel.penalty(self.mean_weights(state), state.alpha)
        own = self.own_penalty(state)
        if not isinstance(own, (int, float)) and not (isinstance(own, Tensor) and own.dim() == 0):
            found = tuple(own.shape) if isinstance(own, Tensor) else brief(own)
            raise InputError(f"{self.where}: own_penalty: expected a scalar, found {found}")
        return loss + own, logits

    def descends(self, state: AlphaState) -> bool:
        return True

    def gradients(self, state: AlphaState, bilevel: Bilevel) -> tuple[Sequence[Tensor], Tensor]:
        # Only alpha's gradient is wanted: with w frozen, autograd skips the weights' half of every
        # layer's backward pass.
        with bilevel.frozen_weights():
            loss, logits = self.validation_loss(state, bilevel)
            if not loss.requires_grad:
                raise InputError(
                    f"{self.where}: expected a loss that depends on alpha, found one that does "
                    "not; compute the edge weights from state.alpha, without detach or no_grad"
                )
            # Of one candidate an edge, `none` may cut off whole cells, and with them their alpha.
            gradients = torch.autograd.grad(
                loss, list(state.parameters.values()), allow_unused=True, materialize_grads=True
            )
        return gradients, logits.detach()

    def move(self, state: AlphaState, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(state.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        state.optimizer.step()

    @torch.no_grad()
    def final_weights(self, state: AlphaState) -> EdgeWeights:
        strengths = self.strengths(state)
        if state.context.factorised:
            strengths = operation_first(strengths, state.context.table)
        return self.with_edge_shares(state, strengths)


class GumbelState(AlphaState):
    """Alpha, and what a Gumbel sample of it is made with: noise and a temperature.

    `noise` is (edges, candidates) per cell type, and `temperature` a scalar; both are tensors that
    change in place, as a recorded step needs them.
    """

    def __init__(self, strategy: GradientStrategy, context: Context) -> None:
        super().__init__(strategy, context)
        sizes = [mask.numel() for mask in self.masks.values()]
        # The noise of all cell types and the temperature are views of one tensor, so that a sample
        # is one copy to a GPU.
        self._noise_and_temperature = torch.ones(sum(sizes) + 1, device=context.device)
        *noises, temperature = self._noise_and_temperature.split([*sizes, 1])
        self.noise = {
            t: noise.view_as(self.masks[t]) for t, noise in zip(self.masks, noises, strict=True)
        }
        self.temperature = temperature.squeeze(0)

    def sample(self, temperature: float) -> None:
        """Draw the noise of the next sample, and set its temperature."""
        source = self.next_draw()
        # Away from 0 and 1, whose Gumbel noise -log(-log u) is infinite.
        uniform = [
            torch.rand(mask.shape, generator=source).clamp_(1e-10, 1 - 1e-7)
            for mask in self.masks.values()
        ]
        noises = [-(-draw.log()).log() for draw in uniform]
        fill(
            self._noise_and_temperature,
            torch.cat([*(noise.flatten() for noise in noises), torch.tensor([temperature])]),
        )

    def soft_sample(self) -> dict[str, Tensor]:
        """Return softmax((alpha + noise) / temperature): (edges, candidates) per cell type."""
        return {
            t: masked_softmax((logits + self.noise[t]) / self.temperature, self.masks[t])
            for t, logits in self.alpha.items()
        }

    @torch.no_grad()
    def strongest(self) -> dict[str, list[int]]:
        """Return, for each edge of a cell type, the candidate at which the sample is largest."""
        return {t: sample.argmax(1).tolist() for t, sample in self.soft_sample().items()}

    def hard_sample(self) -> dict[str, Tensor]:
        """Return 1 for the strongest candidate of an edge and 0 for others: (edges, candidates).

        Straight through: the gradient is that of the soft sample s, whose s - s.detach() is zero.
        """
        return {
            t: one_hot_like(s, s.argmax(1)) + s - s.detach() for t, s in self.soft_sample().items()
        }
