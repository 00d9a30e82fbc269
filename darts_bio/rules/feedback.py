"""The feedback family: the ordinary weight gradient, and a kernel of the rule's choice that carries
the error down.

With dy the error that arrives and convT(dy; K) the input gradient of the same layer with kernel K
in place of W, each rule below is the K it chooses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from darts_bio.errors import InputError, unknown_name
from darts_bio.rules.base import RULES, InitialLaw, LearningRule

Scale = Literal["init", "match"]


@RULES.register("bp")
@dataclass(frozen=True)
class Backpropagation(LearningRule):
    """Backpropagation: K = W, the exact gradient (Rumelhart 1986).

    State: none. Cost: the yardstick, 1. When: the control of every experiment, and the layers that
    need not be plausible (a readout, a stem).
    """

    transports_weights = True
    elementwise = True

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return weight


@dataclass(frozen=True)
class Feedback(LearningRule):
    """What carries a kernel of its own, in one of two scales.

    `scale="init"` (the published form) leaves the kernel as it is drawn, of the scale of W's
    initialisation; with `scale="match"` its norm follows that of W, layer by layer: K |W| / |K|.
    """

    scale: Scale = "init"

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise unknown_name("scale of a rule", str(self.scale), get_args(Scale))

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        return self.scale == "init"

    def scaled(self, kernel: Tensor, weight: Tensor) -> Tensor:
        if self.scale == "init":
            return kernel
        return kernel * (weight.norm() / kernel.norm().clamp_min(torch.finfo(kernel.dtype).tiny))


@RULES.register("fa")
@dataclass(frozen=True)
class FeedbackAlignment(Feedback):
    """Feedback alignment: K = B, a fixed independent draw from W's initialisation (Lillicrap 2016).

    State: B, shaped like W, a buffer. Cost: that of bp; B is as large as W. When: the classical
    baseline without any weight transport. W slowly turns towards B (from 90 degrees at the start),
    which works in shallow nets and fails in deep convolutional ones (Bartunov 2018, arXiv
    1807.04587).
    """

    stacks = True

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"kernel": law.sample(generator)}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return self.scaled(state["kernel"], weight)


@RULES.register("usf")
@dataclass(frozen=True)
class UniformSignFeedback(Feedback):
    """Uniform sign-concordant feedback: K = s sign(W), s the std of W's initialisation (Liao 2016,
    Xiao 2018).

    State: s, a number a layer, a buffer. Cost: that of bp, and one pass over W a step. When: the
    best of the family where signs may be shared: near bp even on ImageNet (Xiao 2018, arXiv
    1811.03567). 30 degrees from W at the start. s does not follow W; `scale=match` does.
    """

    stacks = True

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"scale": torch.as_tensor(law.std)}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return self.scaled(state["scale"] * weight.sign(), weight)


@RULES.register("frsf")
@dataclass(frozen=True)
class FixedRandomSignFeedback(Feedback):
    """Fixed random-magnitude sign feedback: K = |M| sign(W), M drawn once from W's initialisation
    (Liao 2016).

    State: |M|, shaped like W, a buffer.
    Cost: that of bp, and one pass over W a step; |M| is as large as W.
    When: signs are shared and magnitudes are not. 41 degrees from W at the start.
    """

    stacks = True

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"magnitude": law.sample(generator).abs_()}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return self.scaled(state["magnitude"] * weight.sign(), weight)


@RULES.register("brsf")
@dataclass(frozen=True)
class BatchRandomSignFeedback(FixedRandomSignFeedback):
    """Batch-wise random-magnitude sign feedback: K = |M| sign(W), M redrawn once a weight update
    (Liao 2016).

    State: |M|, shaped like W, a buffer; each draw is a function of (seed, layer, update).
    Cost: that of frsf, and a draw as large as W a step.
    When: as frsf, where feedback must not be a fixed code that W can adapt to.
    """

    renews = True


@RULES.register("kolen_pollack")
@dataclass(frozen=True)
class KolenPollack(FeedbackAlignment):
    """Kolen-Pollack: K = B, and B gets the same steps and the same decay as W, so B -> W (Akrout
    2019, 1904.05391).

    B is a parameter whose gradient is dW, the gradient of W, so any optimiser moves both by the
    same step. What their difference loses is the weight decay: (1 - lr decay) a step for SGD and
    AdamW. Without weight decay B never gets closer to W. B starts as an independent draw from W's
    initialisation.

    State: B, shaped like W, a parameter (not counted among the model's, not counted when gradients
    are clipped). Cost: that of bp, and the optimiser moves twice as many tensors. When: no weight
    is ever transported, and yet the errors become exact: near bp once B has converged.
    """

    learned = ("kernel",)
    stacks = True

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        own = state["kernel"]
        # The scale is no part of what learns: B gets dW as it is.
        return own if self.scale == "init" else own + (self.scaled(own, weight) - own).detach()


@RULES.register("weight_mirror")
@dataclass(frozen=True)
class WeightMirror(FeedbackAlignment):
    """Weight mirror: B <- (1 - r) B + r E[y x^T], noise x and its response y = W x, after each
    update (Akrout 2019).

    The noise is normal, of variance 1, one window of the layer a sample, without bias; since E[y
    x^T] = W, B follows W through the layer's activity alone (arXiv 1904.05391; with one rate for
    growth and decay, so that B has the scale of W too). What the samples leave is an angle of about
    atan sqrt(fan_in r / (2 samples)).

    State: B, shaped like W, a buffer; it starts as an independent draw from W's initialisation.
    Cost: that of bp, and a product of `samples` windows with W a step.
    When: as Kolen-Pollack, without asking for weight decay or for equal steps on both sides.
    """

    rate: float = 0.05
    samples: int = 64
    renews = True
    elementwise = False
    stacks = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.rate, (int, float)) and 0 < self.rate <= 1):
            raise InputError(
                f"weight_mirror: rate: expected a number above 0 and at most 1, found {self.rate!r}"
            )
        if not (
            isinstance(self.samples, int)
            and not isinstance(self.samples, bool)
            and self.samples > 0
        ):
            raise InputError(
                "weight_mirror: samples: expected a whole number of at least 1, found "
                f"{self.samples!r}"
            )

    def renew(
        self,
        weight: Tensor,
        state: Mapping[str, Tensor],
        law: InitialLaw,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        matrix = weight.flatten(1)
        x = torch.randn(
            self.samples, matrix.shape[1], generator=generator, device=generator.device
        ).to(matrix)
        response = (x @ matrix.t()).t() @ x / self.samples
        return {"kernel": torch.lerp(state["kernel"], response.view_as(weight), self.rate)}
