"""Product feedback alignment: the error goes down through a population of its own, in two steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from darts_bio.errors import check_whole
from darts_bio.rules.base import RULES, InitialLaw, LearningRule


@RULES.register("pfa")
@dataclass(frozen=True)
class ProductFeedbackAlignment(LearningRule):
    """Product feedback alignment: K = B R, B fixed, R learns by B^T dW, so B R -> W (Li 2024).

    The error dy of a layer's O outputs goes to M = `expansion` O relay neurons by B (O, M), and from
    there to the layer's input by R (M, fan_in), the window of a convolution included (arXiv
    2405.20594). R gets the gradient of its own two sides, the relays' error and the layer's input:
    dR = (dy B)^T x = B^T dW. With the weight decay of W, R tends to B^T W and the kernel to
    B B^T W. B is drawn so that the mean of B B^T is the identity, and an angle of about
    atan sqrt(1 / expansion) between the kernel and W remains: 18 degrees for the 10 relays an
    output of the paper. No neuron sends a copy of the weight that it receives: that is the weight
    symmetry which kolen_pollack still asks for.

    In a grouped convolution relays serve the windows of all groups by the same R.

    State: B, (O, M), a buffer: uniform, of variance 1/M. R, (M, *the shape of a row of W), a
    parameter (not counted among the model's, not counted when our own training clips gradients); it
    starts as an independent draw from W's initialization. Beside a W that is frozen it stays as it
    is.

    Cost: that of bp, and two products of B with an R that is `expansion` times as large as W, which
    the optimizer moves too.

    When: as Kolen-Pollack, where no synapse may mirror another one.

    Example: the relays' weights get the gradient of their own two sides.

        >>> import torch
        >>> from darts_bio.rules import RULES, RuleLinear
        >>> layer = RuleLinear(3, 2, rule=RULES.build("pfa(expansion=4)"))
        >>> x = torch.rand(8, 3, requires_grad=True)
        >>> layer(x).square().mean().backward()
        >>> B, R = layer.feedback_fixed, layer.feedback_learned
        >>> B.shape, R.shape
        (torch.Size([2, 8]), torch.Size([8, 3]))
        >>> torch.allclose(R.grad, B.t() @ layer.weight.grad)
        True
    """

    expansion: int = 10
    carries = "learned feedback"
    learned = ("learned",)
    decays_to_weight = True

    def __post_init__(self) -> None:
        check_whole("pfa: expansion", self.expansion)

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        outputs = law.shape[0]
        relays = self.expansion * outputs
        # Uniform on (-bound, bound) has the variance bound^2 / 3.
        to_relays = InitialLaw(torch.Size((outputs, relays)), bound=(3 / relays) ** 0.5)
        to_input = InitialLaw(torch.Size((relays, *law.shape[1:])), law.bound)
        return {"fixed": to_relays.sample(generator), "learned": to_input.sample(generator)}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        relays = state["learned"]
        return (state["fixed"] @ relays.flatten(1)).unflatten(1, relays.shape[1:])
