"""Dual propagation: each neuron has two states, whose mean is its activity and whose difference its error.

Hoier, Staudt & Zach 2023, arXiv 2302.01228; Hoier & Zach 2024, arXiv 2402.08573, whose variant DP^T
is the one here: at alpha = 1/2 both papers' methods are the same. With maps A_k (linear in the papers),
elementwise activations f_k, the loss l of a sample, and z_k = alpha z+_k + (1 - alpha) z-_k,

    z+_k = f_k(A_k(z_{k-1}) + (1 - alpha) s_k),    z-_k = f_k(A_k(z_{k-1}) - alpha s_k),
    s_k = J_{k+1}^T (z+_{k+1} - z-_{k+1}) with J the derivative of A_{k+1},    s_L = -beta dl/dz_L.

Weights of A_k descend -<z+_k - z-_k, A_k(z_{k-1})> / beta, with the states held fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, check_number
from darts_bio.learners.base import LEARNERS, LearningMethod, Objective
from darts_bio.learners.chain import Chain, Evaluation, flattened

ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Sigmoid, nn.Tanh, nn.LogSigmoid, nn.Softplus, nn.Softsign),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish),
)
"""The modules that act on each number for itself, without parameters or chance."""


@LEARNERS.register("dual_propagation")
@dataclass(frozen=True)
class DualPropagation(LearningMethod):
    """Dual propagation: W_k += (z+_k - z-_k) z_{k-1}^T / beta of two nudged states z (Hoier 2023).

    After a forward pass one sweep from the output down nudges the two states of each layer apart,
    by what the layer above asks for: z+ = f(a + s / 2), z- = f(a - s / 2), with a = A z of the forward
    pass and s the difference above sent through A^T (arXiv 2302.01228; other shares than half of s
    by `alpha`: DP^T of arXiv 2402.08573, which is stable for each). The output is nudged by -`beta`
    times the derivative of a sample's loss at the prediction. A weight learns by the difference of
    its neurons' states and the nudged mean of its input's.

    So the difference quotient of an activation takes the place of its derivative, and as `beta` goes
    to 0 the gradient goes to that of backpropagation: with beta squared at alpha = 1/2, with beta at
    others, where activations are smooth. In float32 a small beta costs digits, of the difference.
    The authors' default is beta = 1; more sweeps, which they try too, are left out.

    What lies between two activations that are modules of their own is one map A, whose derivative
    at the forward pass is exact: norms, pooling, a residual block whole. Further evaluations of a
    module repeat the masks of dropout, and leave the running statistics of batch norm alone.

    State: none.

    Cost: 1.5 times bp's on an MLP 784-1024-1024-10 (batch 256), 5.0 on one of 64-128-128-10.

    When: error and activity travel in one phase and neurons compute no derivatives; A^T still
    transports weights, unless a rule of the layer (fa, kolen_pollack) stands in for them.

    Example: a hidden layer of one unit, by hand.

        >>> import torch
        >>> from darts_bio.learners import learner
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 1, bias=False), torch.nn.Tanh(), torch.nn.Linear(1, 1, bias=False)
        ... )
        >>> x, y = torch.rand(1, 3), torch.rand(1, 1)
        >>> def distance(output, target):
        ...     return 0.5 * (output - target).square().sum() / len(output)
        >>> teacher = learner(model, "dual_propagation(beta=0.5)", loss=distance)
        >>> loss, output = teacher.backward(x, y)
        >>> a, w = x @ model[0].weight.t(), model[2].weight
        >>> s = -0.5 * (output - y) @ w
        >>> difference = torch.tanh(a + s / 2) - torch.tanh(a - s / 2)
        >>> torch.allclose(model[0].weight.grad, -difference.t() @ x / 0.5)
        True
    """

    alpha: float = 0.5
    beta: float = 1.0

    def __post_init__(self) -> None:
        check_number("dual_propagation: alpha", self.alpha, most=1)
        check_number("dual_propagation: beta", self.beta, above=0)

    def state(self, chain: Chain, example: Tensor | None, seed: int) -> nn.Module:
        _stages(flattened(chain))  # says at once what it cannot train
        return nn.Module()

    def backward(
        self, chain: Chain, state: nn.Module, x: Tensor, loss: Objective
    ) -> tuple[Tensor, Tensor]:
        modules, parameters = flattened(chain), chain.parameters
        stages, evaluation = _stages(modules), Evaluation(modules)
        inputs, maps = [x.detach()], []
        for stage in stages:
            maps.append(_run(evaluation, stage.map, inputs[-1]))
            with torch.no_grad():
                output = _run(evaluation, stage.activation, maps[-1])
            inputs.append(output.detach().requires_grad_())
        logits = inputs.pop()
        value = loss(logits)
        (derivative,) = torch.autograd.grad(value * len(x), logits)
        asked, above = -self.beta * derivative, torch.empty(0)
        for number in range(len(stages) - 1, -1, -1):
            with torch.no_grad():
                nudged = (maps[number] + share * asked for share in (1 - self.alpha, -self.alpha))
                up, down = (_run(evaluation, stages[number].activation, a) for a in nudged)
                mean, difference = self.alpha * up + (1 - self.alpha) * down, up - down
            if number < len(stages) - 1:
                self._teach(_run(evaluation, stages[number + 1].map, mean), above, parameters)
            if number > 0:
                (asked,) = torch.autograd.grad(maps[number], inputs[number], difference)
            above = difference
        self._teach(maps[0], above, parameters)
        return value, logits.detach()

    def _teach(self, output: Tensor, difference: Tensor, parameters: list[nn.Parameter]) -> None:
        """Add to `.grad` what the difference of the states asks of the map that gave `output`."""
        if output.requires_grad and parameters:
            asked = -difference / (self.beta * len(output))
            torch.autograd.backward(output, asked, inputs=parameters)


class Stage(NamedTuple):
    """The numbers of modules of a chain that make a map, and of the activation behind it, if any."""

    map: list[int]
    activation: list[int]


def _stages(modules: Chain) -> list[Stage]:
    """Return the maps of a flattened chain with their activations.

    Raises InputError where there is no activation, whose states there could be two of.
    """
    stages, begun = [], list[int]()
    for number, block in enumerate(modules.blocks):
        if type(block.module) in ACTIVATIONS:
            stages.append(Stage(begun, [number]))
            begun = []
        else:
            begun.append(number)
    if not stages:
        raise InputError(
            "learner dual_propagation: expected activations that are modules of their own, as "
            "nn.ReLU(), found none among the blocks, so that it would be backpropagation; cut the "
            "model so that they are: layers=[..., model.act, ...]"
        )
    return [*stages, Stage(begun, [])] if begun else stages


def _run(evaluation: Evaluation, numbers: list[int], v: Tensor) -> Tensor:
    """Return what the modules of these numbers give for v (N, ...), one after the other."""
    for number in numbers:
        v = evaluation(number, v)
    return v
