"""Direct random target projection: hidden layers learn by the labels, which are there beforehand.

Frenkel, Lefebvre & Bol 2021, arXiv 1909.01311. With layers z_k = W_k h_{k-1}, h_k = f(z_k) for k = 1
to L and the target t of a sample (one for its class, zero for the others), W_k descends along

    (B_k^T t f'(z_k)) h_{k-1}^T    for k < L,        dl/dz_L h_{L-1}^T    for k = L.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, check_number
from darts_bio.learners.base import LEARNERS, LearningMethod, Objective
from darts_bio.learners.chain import Chain, Evaluation, flattened
from darts_bio.runtime import generator


@LEARNERS.register("drtp")
@dataclass(frozen=True)
class DirectRandomTargetProjection(LearningMethod):
    """Direct random target projection: hidden h_k receive B_k^T t for their error (Frenkel 2021).

    The targets t are the classes one-hot, shares of classes, or what else has the shape of the
    output. The B_k are drawn once, uniform on +-`scale` sqrt(6 / values of h_k) as in the authors'
    code (arXiv 1909.01311). The last block learns by the loss itself.

    A block's activity h_k is its output behind its last parameters, and behind the modules after
    them as long as they keep its shape: norm, activation, dropout, but not pooling. Within a block
    derivatives are exact. The gradient is a mean over samples; that of the authors' hidden layers
    is a sum.

    State: B_1 to B_{L-1}, (outputs, values of h_k), buffers of the learner.

    Cost: 0.9 times bp's on an MLP 784-1024-1024-10 (batch 256), since no error passes between
    blocks; 2.2 on one of 64-128-128-10, where Python's share is large.

    When: no weights are transported, no layer waits for others, and no error at all reaches hidden
    layers: these go on being moved along fixed directions of their classes when nothing is wrong any
    more, so bounded activations (tanh) suit it. Published for networks of few layers; the authors'
    command for CIFAR-10 freezes the convolutions.

    Example:

        >>> import torch
        >>> from darts_bio.learners import learner
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
        ... )
        >>> x, y = torch.rand(1, 3), torch.tensor([1])
        >>> teacher = learner(model, "drtp")
        >>> loss, logits = teacher.backward(x, y)
        >>> sent = teacher.state.feedback_0[1] * (1 - model[:2](x) ** 2)  # the row of class 1
        >>> torch.allclose(model[0].weight.grad, sent.t() @ x)
        True
    """

    scale: float = 1.0
    needs_example = True

    def __post_init__(self) -> None:
        check_number("drtp: scale", self.scale, above=0)

    def state(self, chain: Chain, example: Tensor | None, seed: int) -> nn.Module:
        assert example is not None
        shapes = flattened(chain).shapes(example)[1:]
        outputs, state = shapes[-1].numel(), nn.Module()
        parameters = (p for block in chain.blocks for p in block.module.parameters())
        like = next(parameters, example)
        for k, place in enumerate(_activities(chain, shapes)):
            values = shapes[place].numel()
            draw = torch.rand(outputs, values, generator=generator("cpu", "drtp", seed, k))
            feedback = (2 * draw - 1) * (self.scale * math.sqrt(6 / values))
            # Drawn on the CPU in float32, so that it is the same on all devices.
            state.register_buffer(f"feedback_{k}", feedback.to(like))
        return state

    def backward(
        self, chain: Chain, state: nn.Module, x: Tensor, loss: Objective
    ) -> tuple[Tensor, Tensor]:
        outputs = _outputs(chain, x)
        value, logits = loss(outputs[-1]), outputs[-1]
        targets = loss.targets(logits).reshape(len(x), -1) / len(x)
        learning, sent = [value], [torch.ones_like(value)]
        places = _activities(chain, [output.shape[1:] for output in outputs])
        for place, feedback in zip(places, state.buffers(), strict=True):
            activity, expected = outputs[place], (targets.shape[1], outputs[place][0].numel())
            if feedback.shape != expected:
                raise InputError(
                    f"learner drtp: expected {feedback.shape[0]} outputs and {feedback.shape[1]} "
                    "values of an activity a sample, as its feedback was drawn for, found "
                    f"{expected[0]} and {expected[1]}; make a learner with example=x"
                )
            if activity.requires_grad:  # what a frozen block gives depends on nothing trained
                learning.append(activity)
                sent.append((targets.to(feedback) @ feedback).view_as(activity).to(activity))
        torch.autograd.backward(learning, sent, inputs=chain.parameters)
        return value, logits


def _outputs(chain: Chain, x: Tensor) -> list[Tensor]:
    """Return what each module of a flattened chain gives, by its own block's parameters alone."""
    evaluation = Evaluation(flattened(chain))
    outputs: list[Tensor] = []
    for k, block in enumerate(chain.blocks):
        if k > 0:  # a loss is asked to depend on what it is given, also behind a frozen block
            x = x.detach().requires_grad_()
        for _ in block.parts:
            x = evaluation(len(outputs), x)
            outputs.append(x)
    return outputs


def _activities(chain: Chain, shapes: Sequence[torch.Size]) -> list[int]:
    """Return which modules of a flattened chain give the activities of all blocks but the last.

    `shapes` are those of a sample of what each module gives.
    """
    places, end = [], 0
    for block in chain.blocks[:-1]:
        start, end = end, end + len(block.parts)
        weighted = (p for p in range(start, end) if _has_parameters(block.parts[p - start][1]))
        place = max(weighted, default=end - 1)
        while place + 1 < end and shapes[place + 1] == shapes[place]:
            place += 1
        places.append(place)
    return places


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
