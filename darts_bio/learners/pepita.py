"""PEPITA: a second forward pass, of the input moved by the error, takes the place of a backward one.

Dellaferrera & Kreiman 2022, arXiv 2201.11665. With h_k the activity of layer k of L in the pass of
x = h_0, h'_k that in the pass of x' = h'_0 = x + F e, and e the error at the output of the first
pass, a layer W_k descends along

    (h_k - h'_k) h'_{k-1}^T    for k < L,        e h'_{L-1}^T    for k = L.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, check_number
from darts_bio.learners.base import LEARNERS, LearningMethod, Objective
from darts_bio.learners.chain import Chain, Evaluation, flattened
from darts_bio.runtime import generator

LAYERS = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""The layers with weights that a chain for PEPITA may have."""


@LEARNERS.register("pepita")
@dataclass(frozen=True)
class Pepita(LearningMethod):
    """PEPITA: W_k += mean (h'_k - h_k) h'_{k-1}^T, h' of the input x + F e (Dellaferrera 2022).

    The error e of a sample is the derivative of its loss at the output of the last layer, under
    cross entropy softmax - target (arXiv 2201.11665). F is drawn once, uniform on +-`scale`
    sqrt(6 / inputs) as in the authors' code. The last layer learns by e, as the paper has it; their
    code takes the second pass' error there.

    A layer's activity is its output after the modules that follow it, as long as they keep its
    shape: its activation, dropout, but not its pooling. Of a convolution the product is the mean
    over positions. A bias is the weight of an input that is 1. Both passes have the same masks of
    dropout; the second one leaves the running statistics of batch norm alone.

    State: F, (inputs of a sample, outputs of the last layer), a buffer of the learner.

    Cost: 1.4 times bp's on an MLP 784-1024-1024-10 (batch 256), 3.1 on one of 64-128-128-10.

    When: nothing travels backwards: no weights are transported and no phase freezes activity.
    Published for networks of one or two hidden layers; with more it fails (Srinivasan 2023, arXiv
    2302.05440). All layers with trained parameters must be linear or convolutions.

    Example: an output layer learns by the error and the activity of the second pass.

        >>> import torch
        >>> from darts_bio.learners import learner
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(4, 2))
        >>> x, y = torch.rand(1, 3), torch.tensor([0])
        >>> teacher = learner(model, "pepita")
        >>> loss, logits = teacher.backward(x, y)
        >>> e = logits.softmax(1) - torch.tensor([[1.0, 0.0]])
        >>> moved = x + e @ teacher.state.feedback.t()
        >>> torch.allclose(model[1].weight.grad, e.t() @ model[0](moved))
        True
    """

    scale: float = 0.05
    needs_example = True

    def __post_init__(self) -> None:
        check_number("pepita: scale", self.scale, above=0)

    def state(self, chain: Chain, example: Tensor | None, seed: int) -> nn.Module:
        assert example is not None
        if not example.is_floating_point():
            raise InputError(
                "learner pepita: expected an input of real numbers, to which errors are added, "
                f"found {example.dtype}"
            )
        modules, places = flattened(chain), _places(chain)
        shapes = modules.shapes(example)
        inputs, outputs = example[0].numel(), shapes[places[-1] + 1].numel()
        draw = torch.rand(inputs, outputs, generator=generator("cpu", "pepita", seed))
        feedback = (2 * draw - 1) * (self.scale * math.sqrt(6 / inputs))
        state = nn.Module()
        # Drawn on the CPU in float32, so that it is the same on all devices.
        state.register_buffer("feedback", feedback.to(example))
        return state

    def backward(
        self, chain: Chain, state: nn.Module, x: Tensor, loss: Objective
    ) -> tuple[Tensor, Tensor]:
        modules, places = flattened(chain), _places(chain)
        evaluation = Evaluation(modules)
        first, value, error = _first_pass(evaluation, len(modules.blocks), places[-1], x, loss)
        feedback = state.get_buffer("feedback")
        if x[0].numel() != len(feedback):
            raise InputError(
                f"learner pepita: expected inputs of {len(feedback)} values a sample, as those "
                f"that its feedback was drawn for, found {tuple(x.shape[1:])}; make a learner with "
                "example=x"
            )
        moved = x + (error.flatten(1) @ feedback.t()).view_as(x)
        sources, second = _second_pass(evaluation, modules, places, moved)
        for place, last in _activities(first, places):
            layer = modules.blocks[place].module
            difference = error if place == places[-1] else first[last] - second[last]
            trained = [p for p in layer.parameters() if p.requires_grad]
            if trained:
                # Positions are counted as a mean, the output's own as the loss counts them.
                positions = 1 if place == places[-1] else _positions(layer, difference)
                torch.autograd.backward(
                    sources[place], difference / (len(x) * positions), inputs=trained
                )
        return value, first[-1]


def _places(chain: Chain) -> list[int]:
    """Return which modules of a flattened chain are layers with weights.

    Raises InputError where other modules have trained parameters, or a layer stands there twice.
    """
    modules = flattened(chain).blocks
    for block in modules:
        trained = any(parameter.requires_grad for parameter in block.module.parameters())
        if trained and not isinstance(block.module, LAYERS):
            raise InputError(
                "learner pepita: expected trained parameters in linear layers and convolutions "
                f"alone, found {block.name} ({type(block.module).__name__}); freeze it, or "
                "leave its parameters out (affine=False)"
            )
    places = [place for place, block in enumerate(modules) if isinstance(block.module, LAYERS)]
    if len({modules[place].module for place in places}) < len(places):
        raise InputError(
            "learner pepita: expected each layer once in the chain, found one twice; give each place "
            "a layer of its own"
        )
    return places


def _first_pass(
    evaluation: Evaluation,
    count: int,
    last: int,
    x: Tensor,
    loss: Objective,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return what each of `count` modules gives, the loss, and the error of the last layer.

    The error is that of each sample, whose loss the batch counts 1/N of.
    """
    outputs: list[Tensor] = []
    for number in range(count):
        with torch.set_grad_enabled(number > last):
            x = evaluation(number, x)
        if number == last:
            x = end = x.detach().requires_grad_()
        outputs.append(x.detach())
    value = loss(x)
    (error,) = torch.autograd.grad(value * len(x), end)
    return outputs, value, error


def _second_pass(
    evaluation: Evaluation, modules: Chain, places: list[int], x: Tensor
) -> tuple[dict[int, Tensor], list[Tensor]]:
    """Return the outputs of layers, which depend on their own weights alone, and all outputs.

    What follows the last layer is left out.
    """
    sources: dict[int, Tensor] = {}
    outputs: list[Tensor] = []
    for number in range(places[-1] + 1):
        layer = number in places
        with torch.set_grad_enabled(layer):
            x = evaluation(number, x)
        if layer:
            sources[number], x = x, x.detach()
        outputs.append(x)
    return sources, outputs


def _activities(outputs: list[Tensor], places: list[int]) -> list[tuple[int, int]]:
    """Return (place of a layer, place of the module that gives its activity) for all layers."""
    found = []
    for place, following in zip(places, [*places[1:], len(outputs)], strict=True):
        last = place
        while last + 1 < following and outputs[last + 1].shape == outputs[place].shape:
            last += 1
        found.append((place, last))
    return found


def _positions(layer: nn.Module, output: Tensor) -> int:
    """Return at how many positions a layer gives its output (N, ...)."""
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return output[0].numel() // int(channels)  # type: ignore[arg-type]
