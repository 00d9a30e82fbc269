"""GradientStrategy: what the strategies that move alpha along a gradient have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import InputError, check_number
from darts_bio.networks import EdgeWeights
from darts_bio.optimizers import Adam, load_optimizer
from darts_bio.runtime import fill, generator
from darts_bio.strategies.alpha import Alpha, FactorisedAlpha
from darts_bio.strategies.base import Bilevel, Context, Strategy, StrategyState, masked_softmax


class AlphaState(StrategyState):
    """Alpha, further parameters that move beside it, their Adam, and how many samples were
    drawn.
    """

    def __init__(
        self,
        strategy: GradientStrategy,
        context: Context,
        further: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(context)
        kind = FactorisedAlpha if context.factorised else Alpha
        self._alpha = kind(context.table, context.seed, strategy.init, context.device)
        self.masks = self._alpha.masks
        """(edges, candidates) bool per cell type: True where there is a candidate."""
        self.parameters = self._alpha.parameters | dict(further or {})
        self.optimizer = Adam(
            list(self.parameters.values()),
            lr=strategy.lr,
            betas=(strategy.betas[0], strategy.betas[1]),
            weight_decay=strategy.weight_decay,
            capturable=context.recorded,
            fused=context.recorded or None,  # None is PyTorch's own choice
        )
        self.draws = 0

    @property
    def alpha(self) -> dict[str, Tensor]:
        return self._alpha.logits()

    def next_draw(self) -> torch.Generator:
        """Returns a generator on the CPU for the next sample: a function of the seed and of how
        many came before.
        """
        self.draws += 1
        return generator("cpu", "strategy", self.context.seed, self.draws)

    def values(self) -> dict[str, Tensor]:
        """Returns copies of the parameters as they are now."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Sets the parameters, in place, to those of these names."""
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
    """Adam moves alpha, once a step, along the gradient of the validation loss with its penalties,
    which is the mean over all processes.

    Subclasses say how alpha becomes edge weights, and which weights it stands for. `init` is the
    standard deviation of alpha at the start.
    """

    _: KW_ONLY
    lr: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 1e-3
    init: float = 1e-3

    def __post_init__(self) -> None:
        """Raises InputError for a value out of bounds."""
        for option in ("lr", "weight_decay", "init"):
            check_number(f"{self.where}: {option}", getattr(self, option))
        betas = self.betas
        if not (
            isinstance(betas, (tuple, list))
            and len(betas) == 2
            and all(0 <= float(b) < 1 for b in betas)
        ):
            raise InputError(
                f"{self.where}: betas: expected two numbers in [0, 1), found {betas!r}"
            )

    def begin(self, context: Context) -> AlphaState:
        return AlphaState(self, context)

    def mean_weights(self, state: AlphaState) -> dict[str, Tensor]:
        """Returns the edge weights that alpha stands for, with their gradient and without chance:
        its softmax.
        """
        return {t: masked_softmax(logits, state.masks[t]) for t, logits in state.alpha.items()}

    def edge_weights(self, state: AlphaState) -> EdgeWeights:
        return self.mean_weights(state)

    def shares(self, state: AlphaState) -> EdgeWeights:
        """Returns each candidate's share of its edge, with its gradient: what costs and entropies
        are counted by.
        """
        return self.mean_weights(state)

    def own_penalty(self, state: AlphaState) -> Tensor | float:
        """Returns what the strategy itself adds to the loss that alpha follows."""
        return 0.0

    def validation_loss(self, state: AlphaState, bilevel: Bilevel) -> tuple[Tensor, Tensor]:
        """Returns the loss that alpha follows, with all penalties, and the validation logits (N,
        classes).
        """
        loss, logits = bilevel.architecture_loss(bilevel.valid_batch, self.edge_weights(state))
        return loss + bilevel.penalty(self.shares(state), state.alpha) + self.own_penalty(
            state
        ), logits

    def descends(self, state: AlphaState) -> bool:
        return True

    def gradients(self, state: AlphaState, bilevel: Bilevel) -> tuple[Sequence[Tensor], Tensor]:
        with bilevel.frozen_weights():
            loss, logits = self.validation_loss(state, bilevel)
            gradients = torch.autograd.grad(loss, list(state.parameters.values()))
        return gradients, logits.detach()

    def move(self, state: AlphaState, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(state.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        state.optimizer.step()

    @torch.no_grad()
    def final_weights(self, state: AlphaState) -> EdgeWeights:
        return self.mean_weights(state)


class GumbelState(AlphaState):
    """Alpha, and what its sample is made with: Gumbel noise (edges, candidates) per cell type, and
    a temperature.
    """

    def __init__(self, strategy: GradientStrategy, context: Context) -> None:
        super().__init__(strategy, context)
        sizes = [mask.numel() for mask in self.masks.values()]
        # In one tensor, which is one copy to a GPU.
        self._drawn = torch.ones(sum(sizes) + 1, device=context.device)
        *noises, temperature = self._drawn.split([*sizes, 1])
        self.noise = {
            t: noise.view_as(self.masks[t]) for t, noise in zip(self.masks, noises, strict=True)
        }
        self.temperature = temperature.squeeze(0)

    def sample(self, temperature: float) -> None:
        """Draws the noise of the next sample, and sets its temperature."""
        source = self.next_draw()
        uniform = [
            torch.rand(mask.shape, generator=source).clamp_(1e-10, 1 - 1e-7)
            for mask in self.masks.values()
        ]
        noises = [-(-draw.log()).log() for draw in uniform]
        fill(
            self._drawn,
            torch.cat([*(noise.flatten() for noise in noises), torch.tensor([temperature])]),
        )

    def soft_sample(self) -> dict[str, Tensor]:
        """Returns the sample per cell type (edges, candidates): softmax((alpha + noise) /
        temperature).
        """
        return {
            t: masked_softmax((logits + self.noise[t]) / self.temperature, self.masks[t])
            for t, logits in self.alpha.items()
        }
