"""Supervised predictive coding: values between the blocks settle before the weights learn.

With blocks f_1 to f_L, values v_0 = x to v_{L-1} and the loss l of a sample, the energy of the
sample is (Whittington & Bogacz 2017, Neural Computation 29; Rosenbaum 2022, arXiv 2106.13082)

    E = l(f_L(v_{L-1}), y) + 1/2 sum_{k=1}^{L-1} |e_k|^2,    e_k = f_k(v_{k-1}) - v_k.

Whittington and Bogacz have half the squared distance as the loss, and all variances 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from darts_bio.errors import check_number, check_whole, unknown_name
from darts_bio.learners.base import LEARNERS, LearningMethod, Objective
from darts_bio.learners.chain import Chain, Evaluation

Mode = Literal["strict", "fixed", "exact"]


@LEARNERS.register("pc")
@dataclass(frozen=True)
class PredictiveCoding(LearningMethod):
    """Predictive coding: values v descend the energy E, then W descends E (Whittington 2017).

    The values begin at those of the forward pass. By `mode`, the errors e of the blocks are

    - `strict`: those after `steps` steps v_k <- v_k - rate dE/dv_k = v_k + rate (e_k - J^T e_{k+1}),
      with J the derivative of block k + 1 at v_k;
    - `fixed`: the same with J, and f_k(v_{k-1}), kept as in the forward pass (the fixed prediction
      assumption, Millidge 2020, arXiv 2006.04182). After as many steps as there are blocks, of
      rate 1, they are those of backpropagation (Rosenbaum 2022, arXiv 2106.13082);
    - `exact`: those of backpropagation at once, the control; `steps` and `rate` have no say.

    Then each weight gets the gradient of E, the mean over samples. E is that of each sample, so the
    result does not depend on how many share a batch; in torch2pc a sample's loss counts 1/N of its
    errors. Gradients are taken after the last step; there errors are those before it, so n of its
    steps are n - 1 here. Within a block derivatives are exact. Steps of `strict` that are too long diverge:
    lower `rate`.

    Further evaluations of a block repeat the masks of dropout, and leave the running statistics of
    batch norm alone. Batch norm in training normalizes by the batch of the present values.

    State: none.

    Cost: each step of `strict` is a forward and a backward pass: with 20 steps 16.7 times bp's on an
    MLP 784-1024-1024-10 (batch 256), `fixed` with 3 steps 1.7; 37 and 3.1 on one of 64-128-128-10.

    When: errors are local to a block and its neighbor, and no phase carries derivatives through
    the whole model; J^T still transports weights. `strict` for the method itself, `fixed` to see
    what its inference adds to backpropagation.

    Example:

        >>> import torch
        >>> from darts_bio.learners import learner
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... ).double()
        >>> x, y = torch.rand(5, 3).double(), torch.tensor([0, 1, 1, 0, 1])
        >>> loss, logits = learner(model, "pc(mode=fixed, rate=1, steps=2)").backward(x, y)
        >>> exact = torch.autograd.grad(
        ...     torch.nn.functional.cross_entropy(model(x), y), model[0].weight
        ... )
        >>> torch.allclose(model[0].weight.grad, *exact)
        True
    """

    mode: Mode = "strict"
    steps: int = 20
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise unknown_name("mode of pc", str(self.mode), get_args(Mode))
        check_whole("pc: steps", self.steps)
        check_number("pc: rate", self.rate, above=0)

    def backward(
        self, chain: Chain, state: nn.Module, x: Tensor, loss: Objective
    ) -> tuple[Tensor, Tensor]:
        evaluation = Evaluation(chain)
        inputs, outputs = evaluation.forward(x)
        value, logits = loss(outputs[-1]), outputs[-1]
        if self.mode == "strict":
            inputs, outputs = self._settled(evaluation, inputs, outputs, loss)
            energy = _energy(inputs, outputs, loss) / len(x)
            torch.autograd.backward(energy, inputs=chain.parameters)
        else:
            errors = self._errors(inputs, outputs, value)
            # What a frozen first block gives depends on nothing that is trained.
            trained = [block for block, output in enumerate(outputs) if output.requires_grad]
            torch.autograd.backward(
                [outputs[block] for block in trained],
                [errors[block] / len(x) for block in trained],
                inputs=chain.parameters,
            )
        return value, logits

    def _settled(
        self,
        evaluation: Evaluation,
        inputs: list[Tensor],
        outputs: list[Tensor],
        loss: Objective,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return values and predictions after the steps of `strict`, from those of before."""
        for _ in range(self.steps if len(inputs) > 1 else 0):
            gradients = torch.autograd.grad(_energy(inputs, outputs, loss), inputs[1:])
            moved = (v.detach() - self.rate * g for v, g in zip(inputs[1:], gradients, strict=True))
            inputs = [inputs[0], *(v.requires_grad_() for v in moved)]
            outputs = [evaluation(number, v) for number, v in enumerate(inputs)]
        return inputs, outputs

    def _errors(self, inputs: list[Tensor], outputs: list[Tensor], value: Tensor) -> list[Tensor]:
        """Return the errors e_1 to e_L of the blocks under `fixed` and `exact`."""

        def sent(block: int, error: Tensor) -> Tensor:
            """J^T e of a block: what its error asks of the value below it."""
            return torch.autograd.grad(outputs[block], inputs[block], error, retain_graph=True)[0]

        (last,) = torch.autograd.grad(value * len(inputs[0]), outputs[-1], retain_graph=True)
        below = range(len(outputs) - 1)
        if self.mode == "exact":
            errors = [last]
            for block in reversed(below):
                errors.insert(0, sent(block + 1, errors[0]))
            return errors
        errors = [*(torch.zeros_like(outputs[block]) for block in below), last]
        for _ in range(self.steps):
            # Of v <- v + rate (e - J^T e'), with e = f - v and f fixed. All blocks move at once.
            asked = [sent(block + 1, errors[block + 1]) for block in below]
            errors[:-1] = [torch.lerp(errors[block], asked[block], self.rate) for block in below]
        return errors


def _energy(inputs: list[Tensor], outputs: list[Tensor], loss: Objective) -> Tensor:
    """Return the energy of a batch, summed over its samples."""
    energy = loss(outputs[-1]) * len(inputs[0])
    for v, prediction in zip(inputs[1:], outputs[:-1], strict=True):
        energy = energy + 0.5 * (prediction - v).square().sum()
    return energy
