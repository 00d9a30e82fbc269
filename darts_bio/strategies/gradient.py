"""GradientStrategy: what the strategies that move alpha along a gradient have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import InputError, check_number
from darts_bio.networks import EdgeWeights
from darts_bio.runtime import generator, send
from darts_bio.strategies.alpha import Alpha, FactorisedAlpha
from darts_bio.strategies.base import Bilevel, Context, Strategy, masked_softmax, name_of


class GradientStrategy(Strategy):
    """Adam moves alpha, once a step, along the gradient of the validation loss with its penalties.

    Subclasses say how alpha becomes edge weights, and which weights it stands for.
    """

    def __init__(
        self, context: Context, *, lr: float, betas: tuple[float, float], weight_decay: float, init: float
    ) -> None:
        """`init` is the std of alpha at the start. Raises InputError for a value out of bounds."""
        where = f"strategy {name_of(self)}"
        for option, value in {"lr": lr, "weight_decay": weight_decay, "init": init}.items():
            check_number(f"{where}: {option}", value)
        if not (isinstance(betas, (tuple, list)) and len(betas) == 2 and all(0 <= float(b) < 1 for b in betas)):
            raise InputError(f"{where}: betas: expected two numbers in [0, 1), found {betas!r}")
        self.context, self.init = context, init
        self._alpha = (FactorisedAlpha if context.factorised else Alpha)(
            context.table, context.seed, init, context.device
        )
        self.masks = self._alpha.masks
        self.parameters = self._alpha.parameters | self.further_parameters()
        self.optimizer = torch.optim.Adam(
            list(self.parameters.values()), lr=lr, betas=(betas[0], betas[1]), weight_decay=weight_decay
        )
        self.draws = 0

    def further_parameters(self) -> dict[str, Tensor]:
        """What moves beside alpha."""
        return {}

    @property
    def alpha(self) -> dict[str, Tensor]:
        return self._alpha.logits()

    def mean_weights(self) -> dict[str, Tensor]:
        """The edge weights that alpha stands for, with their gradient and without chance: by default its softmax."""
        return {t: masked_softmax(logits, self.masks[t]) for t, logits in self.alpha.items()}

    def edge_weights(self) -> EdgeWeights:
        return self.mean_weights()

    def shares(self) -> EdgeWeights:
        """Each candidate's share of its edge, with its gradient: what costs and entropies are counted by."""
        return self.mean_weights()

    def own_penalty(self) -> Tensor | float:
        """What the strategy itself adds to the loss that alpha follows."""
        return 0.0

    def next_draw(self) -> torch.Generator:
        """A generator on the CPU for the next sample: a function of the seed and of how many there were before."""
        self.draws += 1
        return generator("cpu", "strategy", self.context.seed, self.draws)

    def step(self, bilevel: Bilevel) -> Tensor:
        with bilevel.frozen_weights():
            loss, logits = bilevel.architecture_loss(bilevel.valid_batch, self.edge_weights())
            total = loss + bilevel.penalty(self.shares()) + self.own_penalty()
            gradients = torch.autograd.grad(total, list(self.parameters.values()))
        self.move(gradients)
        return logits.detach()

    def move(self, gradients: Sequence[Tensor]) -> None:
        """One step of Adam along the gradients of `parameters`, in their order."""
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    @torch.no_grad()
    def final_weights(self) -> EdgeWeights:
        return self.mean_weights()

    def state_dict(self) -> dict[str, Any]:
        return {"parameters": self.values(), "optimizer": self.optimizer.state_dict(), "draws": self.draws}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.put(state["parameters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.draws = state["draws"]

    def values(self) -> dict[str, Tensor]:
        """Copies of the parameters as they are now."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def put(self, values: dict[str, Tensor]) -> None:
        """Sets the parameters, in place, to those of these names."""
        for name, parameter in self.parameters.items():
            parameter.copy_(values[name])

    def learning_rates(self) -> dict[str, float]:
        return {"alpha": self.optimizer.param_groups[0]["lr"]}


def gumbel(like: Tensor, source: torch.Generator) -> Tensor:
    """Standard Gumbel noise, shaped like `like`."""
    uniform = torch.rand(like.shape, generator=source).clamp_(1e-10, 1 - 1e-7)
    return send((-(-uniform.log()).log()).to(like.dtype), like.device)
