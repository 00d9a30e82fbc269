"""The weights of a model that may stand in products, and the classes that hand them out.

>>> from darts_bio.rules.weights import weights_in
>>> model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "norm": nn.LayerNorm(4)})
>>> [weight.name for weight in weights_in(model)]
['attention.in_proj_weight', 'attention.out_proj']
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from darts_bio.errors import InputError
from darts_bio.modes import in_mode
from darts_bio.rules.base import LearningRule
from darts_bio.rules.carriers import PREFIX, RuleCarrier, WeightedCarrier
from darts_bio.rules.layers import RULE_LAYERS, RuleLayer
from darts_bio.rules.products import (
    enter_code,
    handed_out,
    leave_code,
    plain,
    stored_property,
    stored_weight,
)

PLAIN_TYPES = tuple(RULE_LAYERS)

LOOKED_UP = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
    nn.PReLU,
)
"""Layers whose parameters multiply no activation by a matrix."""

SUFFIX = "_carrier"
"""What the name of the carrier of a weight ends with, after the weight's own name."""


@dataclass(frozen=True)
class Weight:
    """A parameter that may stand in products, and the module that holds it.

    Where a parametrization such as weight norm computes it, it is no parameter itself.
    """

    owner: nn.Module
    attribute: str
    """Its name in the owner, such as in_proj_weight."""

    name: str
    """The owner's name in the model, with the attribute where the owner has more than one weight."""

    path: str
    """The owner's name and the attribute, as in a state_dict."""

    names: tuple[str, ...]
    """The names that a pattern may match it by: its own, its owner's, that of the module in which
    the owner is no layer by itself."""

    loose: bool
    """Whether nothing but a look at a forward pass tells that it stands in products."""

    @property
    def value(self) -> Tensor:
        """The weight as a plain tensor."""
        return read_weight(self.owner, self.attribute)

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter itself, and not computed from others."""
        return self.owner._parameters.get(self.attribute) is not None

    @property
    def kind(self) -> str:
        """The name of the owner's class, without rules and parametrizations."""
        return plain_type(type(self.owner)).__name__

    @property
    def carrier(self) -> WeightedCarrier | None:
        """What has the rule of this weight; None where there is no rule."""
        if isinstance(self.owner, RuleLayer):
            return self.owner
        return self.owner._modules.get(self.attribute + SUFFIX)  # type: ignore[return-value]

    @property
    def channels(self) -> int | None:
        """The channels of the input that it multiplies; None where its layer does not say."""
        if isinstance(self.owner, PLAIN_TYPES):
            linear = isinstance(self.owner, nn.Linear)
            return int(self.owner.in_features if linear else self.owner.in_channels)  # type: ignore[arg-type]
        return None if self.loose else int(self.value.shape[1])


def check_model(model: Any, command: str) -> None:
    """Raise InputError if something is no model whose weights can be looked at.

    >>> check_model(nn.Linear, "audit")
    Traceback (most recent call last):
    darts_bio.errors.InputError: audit: expected a torch.nn.Module, found type; build the model first
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{command}: expected a torch.nn.Module, found {type(model).__name__}; build the model "
            "first"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"{command}: expected a model in Python, found a {type(model).__name__} of TorchScript; "
            "use the model that it was made from"
        )
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise InputError(
                f"{command}: expected a model whose weights have shapes, found the lazy {name}; run "
                "a batch through the model first"
            )


def weights_in(model: nn.Module) -> Iterator[Weight]:
    """Yield the weights of a model that may stand in products, in the model's order.

    Each module comes once.
    """
    attention: str | None = None  # the last nn.MultiheadAttention: what lies in it is a part of it
    for name, module in model.named_modules():
        if isinstance(module, (parametrize.ParametrizationList, WeightCarrier)):
            continue
        inside = attention is not None and name.startswith(attention)
        if isinstance(module, nn.MultiheadAttention):
            attention = f"{name}." if name else ""
        attributes, loose = _attributes(module)
        for attribute in attributes:
            full = f"{name}.{attribute}".lstrip(".")
            outer = (attention.rstrip("."),) if inside and attention is not None else ()
            single = attribute == "weight"
            names = (name, full, *outer)
            yield Weight(module, attribute, name if single else full, full, names, loose)


def read_weight(owner: nn.Module, attribute: str) -> Tensor:
    """Return a weight of a module, as a plain tensor, without moving anything.

    Spectral norm, which computes a weight, moves its vectors whenever it does so in training mode.
    """
    parameter = owner._parameters.get(attribute)
    if parameter is not None:
        return parameter
    with in_mode(owner, training=False):
        return plain(getattr(owner, attribute))


def parameters_in(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Yield (module, names of its parameters) of all that weights may be computed from.

    That is all but norms and embeddings; where a parametrization computes a weight, its name.
    """
    for module in model.modules():
        if isinstance(module, (*LOOKED_UP, RuleCarrier, parametrize.ParametrizationList)):
            continue
        names = [name for name, value in module._parameters.items() if value is not None]
        names += [name for name in _attributes(module)[0] if name not in names]
        if names:
            yield module, tuple(names)


def _attributes(module: nn.Module) -> tuple[list[str], bool]:
    """Return the names of a module's weights, and whether they are loose (see `Weight`)."""
    parameters = [n for n, p in module._parameters.items() if p is not None]
    if isinstance(module, (*PLAIN_TYPES, nn.Bilinear)):
        return ["weight"], False
    if isinstance(module, nn.MultiheadAttention):
        return [n for n in parameters if n.endswith("proj_weight")], False
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return [n for n in parameters if n.startswith("weight")], False
    if isinstance(module, LOOKED_UP):
        return [], False
    names = [
        name
        for name in parameters
        if module._parameters[name].dim() >= 2 and not name.startswith(PREFIX)  # type: ignore[union-attr]
    ]
    return names, True


class WeightCarrier(WeightedCarrier):
    """The rule and the feedback of one weight of a module that is no layer under a rule itself.

    It is a module of the owner, named like the weight with `SUFFIX`, so that feedback is saved and
    moved with the model. It multiplies nothing itself: the owner's code does (`rules.products`).
    """

    def __init__(
        self, owner: nn.Module, attribute: str, rule: LearningRule, channels: int | None
    ) -> None:
        super().__init__(rule=rule)
        # In a tuple, which keeps PyTorch from taking the owner for a module of this one.
        self._owner, self._attribute = (owner,), attribute
        self._shape, self._channels = self.carried_weight.shape, channels

    @property
    def carried_weight(self) -> Tensor:
        return read_weight(self._owner[0], self._attribute)

    @property
    def weight_shape(self) -> torch.Size:
        return self._shape  # without computing a weight that is parametrized

    @property
    def channels(self) -> int:
        assert self._channels is not None  # a direct rule without them was refused
        return self._channels

    def connect(self, source: Any) -> None:
        self.output_error = source
        self.register_feedback(self.carried_weight)


Holder = Callable[[nn.Module, str, Tensor], Tensor]
"""Maps a module, the name of a weight of it and the weight to what its code is given."""


def under_its_carrier(owner: nn.Module, attribute: str, weight: Tensor) -> Tensor:
    """Return a weight as a model's code gets it: under the rule of its carrier, if it has one."""
    carrier = owner._modules.get(attribute + SUFFIX)
    return weight if carrier is None else handed_out(weight, carrier)  # type: ignore[arg-type]


class Holding:
    """Marks the classes that `holding` makes."""

    plain: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class has no name to be found by: make it anew where the module is loaded.
        kind: Any = type(self)
        reduced: Any = super().__reduce_ex__(protocol)
        return _rebuild, (kind.plain, kind.attributes, kind.hold), reduced[2]


def _rebuild(kind: Any, attributes: tuple[str, ...], hold: Holder) -> nn.Module:
    made: Any = holding(kind, attributes, hold)
    return made.__new__(made)


@functools.cache
def holding(
    kind: type[nn.Module], attributes: tuple[str, ...], hold: Holder = under_its_carrier
) -> type[nn.Module]:
    """Return a subclass of a module's class that hands weights out by `hold`.

    Args:
        kind: The module's class.
        attributes: The names of the weights.
        hold: What its code, and everyone else, gets in place of a weight.
    """
    members: dict[str, Any] = {name: _property(kind, name, hold) for name in attributes}
    if issubclass(kind, nn.RNNBase):
        members["_flat_weights"] = property(_flat_weights, _keep_flat_weights)
    members |= {"plain": kind, "attributes": attributes, "hold": staticmethod(hold)}
    members |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (Holding, kind), members)


def _property(kind: type[nn.Module], name: str, hold: Holder) -> property:
    """Return a property that reads a weight as the class does, and hands it out by `hold`."""
    inherited = getattr(kind, name, None)
    if isinstance(inherited, property):  # of a parametrization
        compute = inherited.fget
        assert compute is not None
        return property(lambda owner: hold(owner, name, compute(owner)), inherited.fset)
    return stored_property(name, lambda owner: hold(owner, name, stored_weight(owner, name)))


def _flat_weights(owner: Any) -> list[Tensor | None]:
    """Return the weights that a recurrent layer hands to PyTorch, under their rules."""
    return [getattr(owner, name, None) for name in owner._flat_weights_names]


def _keep_flat_weights(owner: Any, weights: list[Tensor | None]) -> None:
    """Ignore the list that a recurrent layer keeps: it is made anew at each call."""


def plain_type(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class of a module without a rule, without `holding`, without parametrization.

    >>> plain_type(nn.Linear).__name__
    'Linear'
    """
    if issubclass(kind, Holding):
        kind = kind.plain
    if issubclass(kind, RuleLayer):
        return kind.plain
    if kind.__name__.startswith("Parametrized") and len(kind.__bases__) == 1:
        return kind.__bases__[0]
    return kind


def hold_weights(
    owner: nn.Module, attributes: tuple[str, ...], hold: Holder = under_its_carrier
) -> None:
    """Have a module's weights handed out by `hold`, in place."""
    kind: Any = type(owner)
    owner.__class__ = holding(kind, attributes, hold)


def put_carrier(
    owner: nn.Module, attribute: str, rule: LearningRule, channels: int | None
) -> WeightCarrier:
    """Put a weight of a module under a rule, in place, and return its carrier.

    It has no feedback yet. `channels` are those of the input that the weight multiplies, for rules
    that are direct.
    """
    carrier = WeightCarrier(owner, attribute, rule, channels)
    carrier.train(owner.training)
    held: tuple[str, ...] = ()
    if isinstance(owner, Holding):  # more of its weights carry rules
        kind: Any = type(owner)
        held, owner.__class__ = kind.attributes, kind.plain
    hold_weights(owner, tuple(dict.fromkeys((*held, attribute))))
    owner.add_module(attribute + SUFFIX, carrier)
    return carrier


def watch_code(model: nn.Module) -> None:
    """Have weights stand under their rules in the code of all modules that have some, in place.

    PyTorch's own containers multiply by no weight of theirs.
    """
    for module in model.modules():
        if isinstance(module, (RuleCarrier, nn.ModuleList, nn.ModuleDict)):
            continue
        if type(module) is nn.Sequential or _is_watched(module):
            continue
        if any(isinstance(inner, RuleCarrier) for inner in module.modules()):
            module.register_forward_pre_hook(enter_code)
            module.register_forward_hook(leave_code, always_call=True)


def _is_watched(module: nn.Module) -> bool:
    return enter_code in module._forward_pre_hooks.values()


def unwatch_code(model: nn.Module) -> None:
    """Undo `watch_code`."""
    for module in model.modules():
        for hooks, hook in (
            (module._forward_pre_hooks, enter_code),
            (module._forward_hooks, leave_code),
        ):
            for key in [key for key, value in hooks.items() if value is hook]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)
