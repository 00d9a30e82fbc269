"""What a candidate's module is made of, as plain data that can be compared.

Candidates whose forms differ in nothing but their rules can be computed side by side
(`networks.plan`).

>>> from darts_bio.networks import build_candidate
>>> from darts_bio.spaces import Candidate
>>> module = build_candidate(Candidate("dil_conv_3x3", "fa"), channels=4, stride=1, supernet=True)
>>> [layer.kind for layer in candidate_form(module)]
['relu', 'convolution', 'convolution', 'norm']
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from darts_bio.rules import RULES, DirectOperation, LearningRule, RuleConv2d, rule_carriers
from darts_bio.rules.pointwise import multiplies_pixels
from darts_bio.spaces.operations import EvenAndOdd, Zero

WEIGHTLESS = (nn.Identity, nn.MaxPool2d, nn.AvgPool2d)


class Geometry(NamedTuple):
    """What convolutions have to agree in to stand side by side."""

    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class LayerForm:
    """One layer of a candidate.

    `kind` is "relu", "norm", "convolution", "even and odd" (`EvenAndOdd`), "weightless" (identity
    and pools), "zero", or "other": what only its author knows. `geometry` holds sizes,
    strides and the like; `rules` the rule of each of its convolutions.
    """

    kind: str
    geometry: tuple[Any, ...] = ()
    rules: tuple[LearningRule, ...] = ()

    @property
    def dilation(self) -> tuple[int, ...]:
        """That of a convolution, by dimension."""
        return self.geometry[0].dilation

    @property
    def is_product(self) -> bool:
        """Whether it is a convolution that multiplies the channels of each pixel by a matrix."""
        if self.kind != "convolution":
            return False
        (geometry,) = self.geometry
        by_matrix = multiplies_pixels(geometry.weight[2:], geometry.stride, geometry.padding)
        return by_matrix and geometry.groups == 1


Form = tuple[LayerForm, ...]
"""The layers of a candidate, from its input to its output."""


def candidate_form(candidate: nn.Module) -> Form:
    """Return the form of a module that was built for the supernet.

    A candidate that is more than its layers is a single one of kind "other".

    The layers of an operation under a direct rule are exact themselves; they count as being under
    that rule, since the supernet has to keep their errors from leaving it.
    """
    if not _is_plain(candidate):
        return (LayerForm("other", (repr(candidate),)),)
    direct = candidate.rule if isinstance(candidate, DirectOperation) else None
    return tuple(_layer_form(layer, direct) for _, layer in leaves(candidate))


def leaves(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, layer) of a module that is layers in a row; of any other, the module itself."""
    if isinstance(module, DirectOperation) and _is_exact(module.operation):
        yield from leaves(module.operation, f"{name}.operation")
    elif isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        # Not named_children, which leaves out a ReLU that stands there a second time.
        for child, layer in zip(module._modules, module, strict=True):
            yield from leaves(layer, f"{name}.{child}")
    else:
        yield name, module


def without_rules(form: Form) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """Return all of a form but its rules: equal for candidates that can stand side by side."""
    return tuple((layer.kind, layer.geometry) for layer in form)


def _is_plain(candidate: nn.Module) -> bool:
    """Tell whether a candidate is no more than its layers, one after the other.

    Layers that take its place would have neither its hooks nor its frozen weights, and where two of
    its layers share what they hold, they would not.
    """
    parameters = [value for _, value in candidate.named_parameters(remove_duplicate=False)]
    held = [*parameters, *(value for _, value in candidate.named_buffers(remove_duplicate=False))]
    hooked = any(
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in candidate.modules()
    )
    learns = all(parameter.requires_grad for parameter in parameters)
    return learns and not hooked and len(set(map(id, held))) == len(held)


def _is_exact(operation: nn.Module) -> bool:
    exact = RULES.build("bp")
    return all(carrier.rule == exact for _, carrier in rule_carriers(operation))


def _layer_form(layer: nn.Module, direct: LearningRule | None) -> LayerForm:
    if type(layer) is nn.ReLU:
        return LayerForm("relu")
    if type(layer) is nn.BatchNorm2d and _is_plain_norm(layer):
        return LayerForm("norm", (layer.num_features, layer.eps, layer.momentum))
    if type(layer) is RuleConv2d and _is_plain_convolution(layer):
        return LayerForm("convolution", (_geometry(layer),), (direct or layer.rule,))
    if type(layer) is EvenAndOdd and all(map(_is_plain_convolution, (layer.even, layer.odd))):
        halves = (layer.even, layer.odd)
        geometry = tuple(_geometry(half) for half in halves)
        return LayerForm("even and odd", geometry, tuple(direct or half.rule for half in halves))
    if type(layer) in WEIGHTLESS:
        return LayerForm("weightless", (repr(layer),))
    if type(layer) is Zero:
        return LayerForm("zero", (layer.stride,))
    return LayerForm("other", (repr(layer),))


def _is_plain_norm(norm: nn.BatchNorm2d) -> bool:
    """Tell whether a batch norm is as operations have it in the supernet."""
    return not norm.affine and norm.track_running_stats and norm.momentum is not None


def _is_plain_convolution(convolution: RuleConv2d) -> bool:
    """Tell whether a convolution can stand beside others; a direct rule of its own forbids it."""
    plain_padding = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
    return plain_padding and convolution.bias is None and not convolution.rule.direct


def _geometry(convolution: RuleConv2d) -> Geometry:
    assert not isinstance(convolution.padding, str)
    return Geometry(
        tuple(convolution.weight.shape),
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
    )
