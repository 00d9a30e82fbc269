"""Difference target propagation: blocks get targets, which learned inverses carry down.

Lee, Zhang, Fischer & Bengio 2015, arXiv 1412.7525, algorithm 1. With blocks f_1 to f_M, values
h_k = f_k(h_{k-1}) and the loss l of a sample, targets are

    t_{M-1} = h_{M-1} - rate dl/dh_{M-1},
    t_{k-1} = h_{k-1} + g_k(t_k) - g_k(h_k)    for k = M-1 to 2.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, check_number
from darts_bio.learners.base import LEARNERS, LearningMethod, Objective
from darts_bio.learners.chain import Block, Chain, Evaluation
from darts_bio.runtime import generator


@LEARNERS.register("dtp")
@dataclass(frozen=True)
class DifferenceTargetPropagation(LearningMethod):
    """Difference target propagation: W_k descends |f_k(h_{k-1}) - t_k|^2, t by inverses (Lee 2015).

    The last block descends the loss itself, and only it sends a derivative down, to the first
    target. A target goes on down by the inverse g_k of a block, less what the inverse has wrong at
    the value itself (arXiv 1412.7525). Inverses learn beside the model by their own loss: on values
    with noise, h = h_{k-1} + `noise` N(0, 1), g_k descends |g_k(f_k(h)) - h|^2. Losses are sums over
    units and means over samples; `rate` is the length of the first target's step for each sample
    (the authors' code takes the derivative of the mean loss there, so that its step shrinks with
    the batch).

    An inverse is a linear map of all of a block's output, followed by the activation of the block
    below, as the inverse has to give values in its range; it is drawn orthogonal. Within a block
    derivatives are exact. Further evaluations of a block repeat the masks of dropout, and leave the
    running statistics of batch norm alone. The noise comes from PyTorch's default generator.

    State: the inverses of all blocks but the first and the last, parameters of the learner. Any
    optimizer moves them: `teacher.backward` fills their `.grad` as well, so give it
    `teacher.parameters()` beside those of the model, in a group of their own for another rate. The
    authors train them before the model in each epoch.

    Cost: 2.2 times bp's on an MLP 784-1024-1024-10 (batch 256), 4.3 on one of 64-128-128-10.

    When: no weights are transported but the last block's. Inverses that lag behind give targets
    that mislead: give them a higher rate, or train them for some steps first. They are dense
    matrices, so this is for small images.

    Example:

        >>> import torch
        >>> from darts_bio.learners import learner
        >>> widths = torch.nn.Linear(3, 4), torch.nn.Linear(4, 5), torch.nn.Linear(5, 2)
        >>> model = torch.nn.Sequential(widths[0], torch.nn.Tanh(), *widths[1:])
        >>> teacher = learner(model, "dtp")
        >>> optimizer = torch.optim.Adam([*model.parameters(), *teacher.parameters()])
        >>> loss, logits = teacher.backward(torch.rand(6, 3), torch.tensor([0, 1, 0, 1, 0, 1]))
        >>> optimizer.step()
        >>> [tuple(parameter.shape) for parameter in teacher.parameters()]
        [(4, 5), (4,)]
    """

    rate: float = 0.3
    noise: float = 0.3
    needs_example = True

    def __post_init__(self) -> None:
        check_number("dtp: rate", self.rate, above=0)
        check_number("dtp: noise", self.noise)

    def state(self, chain: Chain, example: Tensor | None, seed: int) -> nn.Module:
        assert example is not None
        values = chain.shapes(example)[1:]  # of h_1 to h_M
        parameters = (p for block in chain.blocks for p in block.module.parameters())
        weight = next(parameters, example)  # in whose type, and on whose device, inverses are
        inverses = []
        for k in range(1, len(chain.blocks) - 1):
            # Drawn on the CPU, so that it is the same on all devices.
            draws = generator("cpu", "inverse", seed, k)
            activation = _activation(chain.blocks[k - 1])
            inverses.append(Inverse(values[k], values[k - 1], activation, draws).to(weight))
        return nn.ModuleList(inverses)

    def backward(
        self, chain: Chain, state: nn.Module, x: Tensor, loss: Objective
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(state, nn.ModuleList)
        evaluation = Evaluation(chain)
        inputs, outputs = evaluation.forward(x)
        for k, inverse in enumerate(state, 1):
            assert isinstance(inverse, Inverse)
            inverse.check(outputs[k].shape[1:], inputs[k].shape[1:])
        value = total = loss(outputs[-1])
        for output, target in zip(outputs, self._targets(state, inputs, value), strict=False):
            total = total + (output - target).square().sum() / len(x)
        torch.autograd.backward(total, inputs=chain.parameters)
        learned = [parameter for parameter in state.parameters() if parameter.requires_grad]
        if learned:
            wrong = self._reconstruction(evaluation, state, inputs)
            torch.autograd.backward(wrong, inputs=learned)
        return value, outputs[-1]

    def _targets(
        self, inverses: nn.ModuleList, inputs: list[Tensor], value: Tensor
    ) -> list[Tensor]:
        """Return t_1 to t_{M-1}, given the inputs h_0 to h_{M-1} of the blocks and the loss."""
        if len(inputs) == 1:
            return []
        (derivative,) = torch.autograd.grad(value, inputs[-1], retain_graph=True)
        with torch.no_grad():
            targets = [inputs[-1] - self.rate * len(derivative) * derivative]
            for k in range(len(inverses), 0, -1):
                inverse, h = inverses[k - 1], inputs[k + 1]
                targets.insert(0, inputs[k] + inverse(targets[0]) - inverse(h))
        return targets

    def _reconstruction(
        self, evaluation: Evaluation, inverses: nn.ModuleList, inputs: list[Tensor]
    ) -> Tensor:
        """Return the sum over inverses of the loss that they descend."""
        total = inputs[0].new_zeros(())
        for k, inverse in enumerate(inverses, 1):
            with torch.no_grad():
                h = inputs[k] + self.noise * torch.randn_like(inputs[k])
                image = evaluation(k, h)
            total = total + (inverse(image) - h).square().sum() / len(h)
        return total


class Inverse(nn.Module):
    """A learned map back from the output of a block to its input.

    Args:
        source: The shape of a sample of the output.
        target: The shape of a sample of the input.
        activation: What follows the linear map; None for nothing.
        draws: The generator, on the CPU, that the map is drawn by, which is orthogonal.

    >>> inverse = Inverse(torch.Size([6]), torch.Size([2, 4]), nn.ReLU(), torch.Generator())
    >>> inverse(torch.ones(3, 6)).shape
    torch.Size([3, 2, 4])
    """

    def __init__(
        self,
        source: torch.Size,
        target: torch.Size,
        activation: nn.Module | None,
        draws: torch.Generator,
    ) -> None:
        super().__init__()
        self._source, self._target, self.activation = source, target, activation
        self.linear = nn.utils.skip_init(nn.Linear, source.numel(), target.numel())
        nn.init.orthogonal_(self.linear.weight, generator=draws)
        nn.init.zeros_(self.linear.bias)

    def check(self, source: torch.Size, target: torch.Size) -> None:
        """Raise InputError unless output and input of the block have the shapes it was made for."""
        if (source, target) != (self._source, self._target):
            raise InputError(
                f"learner dtp: expected values {tuple(self._target)} and {tuple(self._source)} a "
                f"sample, as its inverses were made for, found {tuple(target)} and "
                f"{tuple(source)}; make a learner with example=x"
            )

    def forward(self, h: Tensor) -> Tensor:
        """Return the input (N, *target) that it takes to give the output h (N, *source)."""
        v: Tensor = self.linear(h.flatten(1)).unflatten(1, self._target)
        return v if self.activation is None else self.activation(v)


def _activation(block: Block) -> nn.Module | None:
    """Return a copy of the last activation in a block; None if it has none after its weights."""
    for _, module in reversed(block.parts):
        if next(module.parameters(), None) is not None:
            return None
        # GLU halves its input, so the linear map of an inverse has not the shape for it.
        if type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, nn.GLU):
            return copy.deepcopy(module)
    return None
