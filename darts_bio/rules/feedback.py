"""The feedback family: the ordinary weight gradient, and a kernel of the rule's choice that carries the error down.

With dy the error that arrives and convT(dy; K) the input gradient of the same layer with kernel K in place of W,
each rule below is the K it chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_bio.rules.base import RULES, InitialLaw, LearningRule


@RULES.register("bp")
@dataclass(frozen=True)
class Backpropagation(LearningRule):
    """Backpropagation: K = W, the exact gradient (Rumelhart 1986)."""

    transports_weights = True
    elementwise = True

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return weight


@RULES.register("fa")
@dataclass(frozen=True)
class FeedbackAlignment(LearningRule):
    """Feedback alignment: K = B, a fixed independent draw from W's initialisation (Lillicrap 2016)."""

    elementwise = True

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"kernel": law.sample(generator)}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return state["kernel"]


@RULES.register("usf")
@dataclass(frozen=True)
class UniformSignFeedback(LearningRule):
    """Uniform sign-concordant feedback: K = s sign(W), s the std of W's initialisation (Liao 2016, Xiao 2018)."""

    elementwise = True

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"scale": torch.as_tensor(law.std)}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return state["scale"] * weight.sign()


@RULES.register("frsf")
@dataclass(frozen=True)
class FixedRandomSignFeedback(LearningRule):
    """Fixed random-magnitude sign feedback: K = |M| sign(W), M drawn once from W's initialisation (Liao 2016)."""

    elementwise = True

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"magnitude": law.sample(generator).abs_()}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return state["magnitude"] * weight.sign()


@RULES.register("brsf")
@dataclass(frozen=True)
class BatchRandomSignFeedback(FixedRandomSignFeedback):
    """Batch-wise random-magnitude sign feedback: K = |M| sign(W), M redrawn once a weight update (Liao 2016)."""

    redraws = True
