"""DARTS, first order (Liu 2019, arXiv 1806.09055, equation 7 with xi = 0).

Edge weights are the softmax of alpha over the candidates of an edge. In each step Adam moves alpha along the gradient
of the validation loss at the present weights. The candidates are (operation, rule) pairs, so a rule's share is learnt
by the same softmax (arXiv 2507.13485).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.networks import EdgeWeights
from darts_bio.runtime import generator
from darts_bio.spaces import CandidateTable
from darts_bio.strategies.base import STRATEGIES, Bilevel, Context, Strategy, masked_softmax


@STRATEGIES.register("darts")
class Darts(Strategy):
    """Differentiable search, first order (Liu 2019)."""

    def __init__(
        self,
        context: Context,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        weight_decay: float = 1e-3,
        init: float = 1e-3,
    ) -> None:
        """`init` is the std of alpha at the start. Raises InputError for a value out of bounds."""
        for name, value in {"lr": lr, "weight_decay": weight_decay, "init": init}.items():
            if not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
                raise InputError(f"strategy darts: {name}: expected a number of at least 0, found {value!r}")
        if not (isinstance(betas, (tuple, list)) and len(betas) == 2 and all(0 <= float(b) < 1 for b in betas)):
            raise InputError(f"strategy darts: betas: expected two numbers in [0, 1), found {betas!r}")
        table, device = context.table, context.device
        self.mask = {t: table.mask(t).to(device) for t in table.rows}
        self.alpha = {t: self._initial(table, t, context.seed, init).to(device).requires_grad_() for t in table.rows}
        self.optimizer = torch.optim.Adam(
            list(self.alpha.values()), lr=lr, betas=(betas[0], betas[1]), weight_decay=weight_decay
        )

    @staticmethod
    def _initial(table: CandidateTable, cell_type: str, seed: int, init: float) -> Tensor:
        return init * torch.randn(table.shape(cell_type), generator=generator("cpu", "alpha", seed, cell_type))

    def edge_weights(self) -> EdgeWeights:
        return {t: masked_softmax(alpha, self.mask[t]) for t, alpha in self.alpha.items()}

    def step(self, bilevel: Bilevel) -> Tensor:
        with bilevel.frozen_weights():
            loss, logits = bilevel.architecture_loss(bilevel.valid_batch, self.edge_weights())
            gradients = torch.autograd.grad(loss, list(self.alpha.values()))
        for alpha, gradient in zip(self.alpha.values(), gradients, strict=True):
            alpha.grad = gradient
        self.optimizer.step()
        return logits.detach()

    @torch.no_grad()
    def final_weights(self) -> EdgeWeights:
        return self.edge_weights()

    def state_dict(self) -> dict[str, Any]:
        alpha = {t: a.detach().clone() for t, a in self.alpha.items()}
        return {"alpha": alpha, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for t, alpha in self.alpha.items():
                alpha.copy_(state["alpha"][t])
        self.optimizer.load_state_dict(state["optimizer"])

    def learning_rates(self) -> dict[str, float]:
        return {"alpha": self.optimizer.param_groups[0]["lr"]}
