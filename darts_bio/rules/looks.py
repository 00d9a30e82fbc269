"""A look at one forward pass of a model: which products each of its weights stands in.

Nothing is computed where that can be avoided: without an input of the user's the model is copied
without its numbers, to PyTorch's meta device, and given an input of a shape made up for it.

>>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
>>> sight = look(model)
>>> sight.given, sight.weights["0.weight"].products
('a made input (2, 4)', ('linear',))
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from darts_bio.errors import InputError, first_line
from darts_bio.rules.carriers import RuleCarrier
from darts_bio.rules.dfa import WatchedOutput
from darts_bio.rules.layers import RuleLayer
from darts_bio.rules.products import MULTIPLYING, Standing, View, carry, plain
from darts_bio.rules.uses import Use
from darts_bio.rules.weights import (
    SUFFIX,
    Holding,
    WeightCarrier,
    hold_weights,
    parameters_in,
    unwatch_code,
)

INPUTS = (224, 64, 32, 28, 16)
"""The sides of images that are tried."""

TOKENS = 16
"""The length of a made sequence of tokens."""


@dataclass
class Seen:
    """What a look at a forward pass saw of one weight."""

    counts: dict[str, int] = field(default_factory=dict)
    """How often it stood in each product with an activation, by the name of PyTorch's function."""

    channels: int | None = None
    """The channels of the input that it multiplies, where one dimension counts them."""

    sample: tuple[int, ...] | None = None
    """The shape of a sample of that input, as it was seen first."""

    others: set[str] = field(default_factory=set)
    """Functions of it and an activation that are no products."""

    met: bool = False
    """Whether something was computed from it and another weight."""

    @property
    def undefined(self) -> tuple[str, ...]:
        """The names of the products that it stood in which no rule is defined for."""
        return tuple(sorted(name for name in self.others if name in MULTIPLYING))

    @property
    def products(self) -> tuple[str, ...]:
        """The names of the products, in the order in which they were seen first."""
        return tuple(self.counts)


@dataclass(frozen=True)
class Look:
    """What a look at one forward pass of a model saw."""

    given: str
    """What the model was given, in words."""

    weights: Mapping[str, Seen]
    """What was seen of each parameter, by its module's name and its own (`weights.Weight.path`)."""


@dataclass(frozen=True)
class _Witness(Standing):
    """A standing that notes what a weight stands in, and sends every error exactly."""

    carrier: Any = None
    seen: Seen = field(default_factory=Seen)

    @property
    def source(self) -> int:
        return id(self.seen)

    def multiply(self, x: Tensor, use: Use, form: View, name: str) -> Tensor:
        if self.reshaped:
            self.seen.others.add(name)
            return use.plain_pass(x)
        self.seen.counts[name] = self.seen.counts.get(name, 0) + 1
        if self.seen.channels is None:
            with contextlib.suppress(InputError):  # not every product has one dimension of them
                self.seen.channels = x.shape[use.channel]
                self.seen.sample = tuple(x.shape[1:])
        return use.plain_pass(x)

    def meet(self) -> None:
        self.seen.met = True

    def refuse(self, name: str) -> None:
        self.seen.others.add(name.removeprefix("torch's "))


def look(model: nn.Module, inputs: Any = None, command: str = "audit") -> Look | None:
    """Return what weights of a model stand in during one forward pass.

    The model stays as it is.

    Args:
        model: The model, with or without rules.
        inputs: What to give it: a tensor, a tuple of positional or a dict of keyword arguments. By
            default inputs of likely shapes are tried.
        command: What error messages begin with.

    Returns:
        What was seen; None if no input was given and none that was made up fits.

    Raises:
        InputError: If the model cannot run on the inputs given, or cannot be copied for that.
    """
    if inputs is not None:
        watched = _watched(copied(model, command))
        try:
            _run(watched, inputs)
        except Exception as error:
            raise InputError(
                f"{command}: the model cannot run on the inputs given ({first_line(error)}); expected "
                "a tensor, a tuple of positional or a dict of keyword arguments of its forward"
            ) from None
        return Look(f"the input {_shape(inputs)}", _seen(watched))
    for made in _made_inputs(model):
        try:
            watched = _watched(copied(model, command, _without_numbers(model)))
            with torch.random.fork_rng():
                _run(watched, made)
        except Exception:
            continue  # another shape may fit
        return Look(f"a made input {_shape(made)}", _seen(watched))
    return None


def _run(model: nn.Module, inputs: Any) -> None:
    """Run a forward pass with gradients enabled."""
    with torch.enable_grad():
        if isinstance(inputs, Mapping):
            model(**inputs)
        elif isinstance(inputs, tuple):
            model(*inputs)
        else:
            model(inputs)


def _shape(inputs: Any) -> str:
    """Return the shape of inputs in words."""
    if isinstance(inputs, Tensor):
        return str(tuple(inputs.shape))
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return (
        ", ".join(str(tuple(v.shape)) for v in values if isinstance(v, Tensor)) or "without tensors"
    )


def _without_numbers(model: nn.Module) -> dict[int, Any]:
    """Return what stands for a model's tensors in a copy on the meta device, by their identity."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return memo


def copied(model: nn.Module, command: str, memo: dict[int, Any] | None = None) -> nn.Module:
    """Return a copy of a model; raise InputError if it cannot be copied.

    `memo` holds what stands in the copy for objects of the model, by their identity.
    """
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever the model holds says so in its own way
        raise InputError(
            f"{command}: the model cannot be copied ({first_line(error)}); use it as it was built"
        ) from None


def _watched(model: nn.Module) -> nn.Module:
    """Take the rules off a model and have its weights note what they stand in, in place."""
    stripped = strip(model)
    for owner, attributes in list(parameters_in(stripped)):
        owner.__dict__["_witnesses"] = {name: _Witness() for name in attributes}
        hold_weights(owner, attributes, _under_witness)
    return stripped


def _under_witness(owner: nn.Module, attribute: str, weight: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return weight
    return carry(plain(weight), owner.__dict__["_witnesses"][attribute])


def _seen(watched: nn.Module) -> dict[str, Seen]:
    """Return what the parameters of a watched copy have noted."""
    return {
        f"{name}.{attribute}".lstrip("."): witness.seen
        for name, module in watched.named_modules()
        for attribute, witness in module.__dict__.get("_witnesses", {}).items()
    }


def _made_inputs(model: nn.Module) -> Iterator[Any]:
    """Yield inputs without numbers that a model may take, likely ones first."""
    configuration = getattr(model, "default_cfg", None) or getattr(model, "pretrained_cfg", None)
    if isinstance(configuration, Mapping) and configuration.get("input_size"):  # timm's
        yield torch.empty(2, *configuration["input_size"], device="meta")
    dummy = getattr(model, "dummy_inputs", None)  # transformers'
    if isinstance(dummy, Mapping):
        yield {name: value.to("meta") for name, value in dummy.items()}
    first = next((m for m in model.modules() if isinstance(m, nn.Embedding) or _takes(m)), None)
    if first is None:
        return
    if isinstance(first, nn.Embedding):
        yield torch.zeros(2, TOKENS, dtype=torch.long, device="meta")
        return
    for sizes in _takes(first):
        yield tuple(torch.empty(size, device="meta") for size in sizes)


def _takes(layer: nn.Module) -> list[tuple[tuple[int, ...], ...]]:
    """Return the shapes of what a layer may take, each a tuple of shapes of arguments."""
    channels: Any = getattr(layer, "in_channels", None)
    if isinstance(layer, (nn.Conv1d, nn.ConvTranspose1d)):
        return [((2, channels, side),) for side in INPUTS]
    if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return [((2, channels, side, side),) for side in INPUTS]
    if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
        return [((2, channels, side, side, side),) for side in (32, 16)]
    if isinstance(layer, nn.Linear):
        return [((2, layer.in_features),), ((2, TOKENS, layer.in_features),)]
    if isinstance(layer, nn.MultiheadAttention):
        one = (TOKENS, 2, layer.embed_dim)
        return [(one,), (one, one, one)]
    if isinstance(layer, nn.RNNBase):
        return [((TOKENS, 2, layer.input_size),)]
    if isinstance(layer, nn.RNNCellBase):
        return [((2, layer.input_size),)]
    return []


def strip(model: nn.Module) -> nn.Module:
    """Take the rules of `convert` off a model, in place, and return it."""
    unwatch_code(model)
    for module in list(model.modules()):
        kind: Any = type(module)
        if isinstance(module, RuleLayer):
            module.remove_feedback()
            module.unit.stop()  # a copied layer listens to its weight from the start
            for name in (
                "rule",
                "exact",
                "held",
                "is_renewed",
                "unit",
                "_feedback_names",
                "_weight_changes",
                "output_error",
                "sample_shape",
                "place",
            ):
                module.__dict__.pop(name, None)
        if issubclass(kind, (RuleLayer, Holding)):
            module.__class__ = _without_rule(module)
        for name, inner in list(module._modules.items()):
            if isinstance(inner, WeightCarrier) and name.endswith(SUFFIX):
                del module._modules[name]
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, WatchedOutput):
                del module._forward_hooks[key]
    return model


def _without_rule(module: Any) -> type[nn.Module]:
    """Return the class of a module that `convert` gave another one, as it was before.

    A layer that was parametrized since, by weight norm say, stays parametrized: PyTorch has made it
    a class of its own, which is made anew upon the layer without a rule.
    """
    kind = type(module)
    if isinstance(module, RuleLayer) and parametrize.is_parametrized(module):
        members = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
        return type(f"Parametrized{kind.plain.__name__}", (kind.plain,), members)
    return kind.plain


def other_carriers(model: nn.Module) -> list[str]:
    """Return the names of what carries rules in a way that `strip` leaves: operations, cells."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, RuleCarrier) and not isinstance(module, (RuleLayer, WeightCarrier))
    ]
