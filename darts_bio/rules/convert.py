"""Learning rules on any PyTorch model: `convert`, and `audit`, which tells what learns how.

>>> from torch import nn
>>> from darts_bio.rules import audit, convert
>>> plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
>>> model = convert(plain, {"0": "fa", "*": "bp"})
>>> print(audit(model))
layer  kind    rule  parameters
-----  ------  ----  ----------
0      Conv2d  fa           224
3      Linear  bp         2,890
2,890 of 3,114 parameters (92.8 %) lie in layers that carry the error by their own weights
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from darts_bio.errors import InputError, first_line
from darts_bio.rules.base import RULES, LearningRule
from darts_bio.rules.carriers import (
    PREFIX,
    DirectOperation,
    connect_output,
    draw_feedback,
    learned_feedback,
)
from darts_bio.rules.layers import RULE_LAYERS, RuleLayer
from darts_bio.rules.pointwise import warn_of_strided_pointwise
from darts_bio.runtime import derive_seed

Choice = str | Sequence[str] | None
"""A rule's spec, several to choose from, or None for a layer that stays as it is."""

OPAQUE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
"""Layers of PyTorch that keep several weights and multiply by them out of reach."""

PLAIN_TYPES = tuple(RULE_LAYERS)
PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    ruled: plain for plain, ruled in RULE_LAYERS.items()
}
"""A layer with a rule -> PyTorch's own; the inverse of RULE_LAYERS."""


def convert(
    model: nn.Module,
    rule: Choice | Mapping[str, Choice],
    *,
    seed: int = 0,
    redraw: bool = False,
    outputs: int | None = None,
) -> nn.Module:
    """Return a copy of a model whose convolutions and linear layers carry learning rules.

    These are convolutions of 1 to 3 dimensions, also transposed, and linear layers. What has no
    weights of this kind (norms, activations, embeddings, attention between tokens) keeps its exact
    derivative. Names of parameters, tied weights, hooks, device and mode are kept.

    Weights are kept, and feedback has the law of the layer's present weights: uniform, of their
    standard deviation. Call `draw_feedback(model, seed, update)` after each weight update if a rule
    renews its feedback (brsf, weight_mirror).

    Args:
        model: The model, which stays as it is.
        rule: One of

            - a rule, `"usf"` or `"hebbian(error=W)"`, for all layers;
            - several, `("usf", "fa")`: for each layer one at random, a function of `seed` and the
              layer's name alone (the control of a search for rules);
            - patterns, `{"layer4.*": "fa", "fc": None, "*": ("usf", "frsf")}`: the first one that
              matches a layer's name decides. A layer that none matches, or whose rule is None,
              stays as it is.
        seed: What random choices, feedback and redrawn weights are a function of.
        redraw: Whether weights are drawn anew, by PyTorch's default for the layer.
        outputs: The number of values at the model's output, for rules that are direct (dfa); by
            default that of its last layer with weights.

    Raises:
        InputError: If a layer cannot carry its rule, since its weights are out of reach
            (nn.MultiheadAttention, nn.LSTM, ...), since it computes in a way of its own, or since
            it shares its weight with others under a rule that learns other than by the weight's
            gradient; or if a pattern decides about no layer.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))
    >>> print(convert(model, {"0": "usf"}))
    Sequential(
      (0): RuleConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), rule=UniformSignFeedback(scale='init'))
      (1): Flatten(start_dim=1, end_dim=-1)
      (2): Linear(in_features=288, out_features=10, bias=True)
    )
    """
    if not isinstance(model, nn.Module):
        raise InputError(
            f"convert: expected a torch.nn.Module, found {type(model).__name__}; build the model "
            "first"
        )
    try:
        converted = copy.deepcopy(model)
    except RuntimeError as error:
        raise InputError(
            f"convert: the model cannot be copied ({first_line(error)}); convert it as it was built"
        ) from None
    patterns = dict(rule) if isinstance(rule, Mapping) else {"*": rule}
    if not any(choice is not None for choice in patterns.values()):
        raise InputError(
            f"convert: expected a rule, several, or patterns with rules, found {rule!r}"
        )
    # Choose for all layers before the first one is changed: whether a pattern is used, and whether
    # layers may share a weight, depends on all of them.
    used_patterns: set[str] = set()
    chosen: list[tuple[str, nn.Module, LearningRule]] = []
    for name, layer in _weighted(converted):
        pattern = next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)
        if pattern is None:
            continue
        used_patterns.add(pattern)
        spec = _choose(patterns[pattern], seed, name)
        if spec is None:
            continue
        layer_rule: LearningRule = RULES.build(spec)
        _refuse_unsupported(name, layer)
        chosen.append((name, layer, layer_rule))
    _refuse_unused([pattern for pattern in patterns if pattern not in used_patterns], converted)
    _refuse_ties(chosen, converted)
    redrawn: set[nn.Parameter] = set()
    for name, layer, layer_rule in chosen:
        if redraw and layer.weight not in redrawn:  # once for the layers that share a weight
            redrawn.add(layer.weight)  # type: ignore[arg-type]
            with torch.random.fork_rng(_gpus(layer)):
                torch.manual_seed(derive_seed("weights", seed, name))
                layer.reset_parameters()  # type: ignore[operator]
        _put_rule(name, layer, layer_rule, measured=not redraw)
    if any(layer_rule.direct for _, _, layer_rule in chosen):
        _connect(converted, outputs)
    draw_feedback(converted, seed)
    warn_of_strided_pointwise(converted)
    return converted


def _gpus(layer: nn.Module) -> list[torch.device]:
    """Return the GPUs whose generators drawing the layer's weights moves: one or none."""
    device = next(layer.parameters()).device
    return [device] if device.type == "cuda" else []


def _weighted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, layer) of all that has weights which carry an error, in the model's order.

    Each layer comes once. An opaque layer comes as one, without the layers inside it: these hold
    its weights, but are never called.
    """
    opaque_prefix: str | None = None
    for name, module in model.named_modules():
        # Modules inside another one follow it directly, so the last opaque one is the only one that
        # this module may lie in.
        if opaque_prefix is not None and name.startswith(opaque_prefix):
            continue
        if isinstance(module, OPAQUE):
            opaque_prefix = name + "."
            yield name, module
        elif isinstance(module, PLAIN_TYPES):
            yield name, module


def _choose(choice: Choice, seed: int, name: str) -> str | None:
    """Return the spec for the layer of that name: of several a random one; None for no rule."""
    if choice is None or isinstance(choice, str):
        return choice
    if not choice:
        raise InputError("convert: expected at least one rule to choose from, found none")
    return choice[derive_seed("rule", seed, name) % len(choice)]


def _refuse_unsupported(name: str, layer: nn.Module) -> None:
    """Raise InputError if a layer cannot carry any rule."""
    # Exactly these classes: a subclass may have a forward pass of its own. A weight that is no
    # Parameter is computed from others (a parametrization such as weight norm).
    kind = type(layer)
    if (kind in RULE_LAYERS or kind in PLAIN) and isinstance(layer.weight, nn.Parameter):
        return
    known = ", ".join(plain.__name__ for plain in RULE_LAYERS)
    what = (
        "keeps weights out of reach"
        if isinstance(layer, OPAQUE)
        else "computes in a way of its own"
    )
    raise InputError(
        f"convert: {name or 'the model'} is a {kind.__module__}.{kind.__qualname__}, which {what}; "
        f"expected {known}. Replace it by such layers, or leave it as it is by a pattern before "
        "the others: "
        f"{{{name!r}: None, '*': ...}}"
    )


def _refuse_unused(patterns: Sequence[str], model: nn.Module) -> None:
    """Raise InputError if there are patterns that decide about no layer."""
    names = [name for name, _ in _weighted(model)]
    if patterns and not names:
        raise InputError("convert: the model has no layer with weights that could carry a rule")
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"convert: the pattern {pattern!r} is never reached, since patterns before it "
                "match all its layers; "
                "the first that matches holds, so put it before them"
            )
        raise InputError(
            f"convert: the pattern {pattern!r} matches no layer with weights; there are "
            f"{', '.join(names[:12])}" + (", ..." if len(names) > 12 else "")
        )


def _refuse_ties(chosen: Sequence[tuple[str, nn.Module, LearningRule]], model: nn.Module) -> None:
    """Raise InputError if a weight that is to learn other than by its gradient is a shared one.

    Whoever shares it, a layer without a rule or an embedding, gives it a gradient of its own.
    """
    users: dict[Any, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(name or "the model")
    for _, layer, rule in chosen:
        sharing = users[layer.weight]
        if len(sharing) > 1 and (rule.learned or rule.local):
            raise InputError(
                f"convert: {' and '.join(sharing)} share their weight, and {rule.spec} is not "
                "defined for a weight that learns in two places; use another rule there"
            )


def _put_rule(name: str, layer: nn.Module, rule: LearningRule, *, measured: bool) -> None:
    """Turn a layer into one of the same kind with a rule, in place.

    With `measured`, feedback gets the standard deviation of the present weights; otherwise it gets
    that of PyTorch's default initialization.
    """
    # The object stays and its class changes: hooks, tied weights and other references are kept.
    layer.__class__ = RULE_LAYERS.get(type(layer), type(layer))
    assert isinstance(layer, RuleLayer)
    for key in [*layer._buffers, *layer._parameters]:  # of a rule that it had before
        if key.startswith(PREFIX) or key == "initial_bound":
            delattr(layer, key)
    try:
        layer.carry(rule)
    except InputError as error:
        raise InputError(f"convert: {name}: {error}") from None
    std = layer.weight.detach().float().std(correction=0)
    if measured and std > 0:  # weights of zero say nothing about the law
        # Uniform on (-bound, bound) has the standard deviation bound / sqrt(3).
        layer.register_buffer("initial_bound", (3**0.5 * std).to(layer.weight))
    if not rule.direct:  # a direct rule has feedback once it is connected to the model's output
        layer.register_feedback(layer.weight)


def _connect(model: nn.Module, outputs: int | None) -> None:
    """Connect the layers under direct rules to the error at the model's output."""
    if outputs is None:
        *_, (_, last) = _weighted(model)
        # Linear layers have out_features, convolutions out_channels.
        outputs = int(getattr(last, "out_features", 0) or getattr(last, "out_channels", 0))
    source = connect_output(model, outputs)
    assert source is not None
    model.register_forward_hook(_Watched(source))


class _Watched:
    """A forward hook that has the error at the model's output caught, to be sent directly.

    Of an output of several tensors (a tuple, a dict, nested or not) it is the first one.
    """

    def __init__(self, source: Any) -> None:
        self.source = source

    def __call__(self, model: nn.Module, inputs: Any, output: Any) -> None:
        first = output
        while not isinstance(first, torch.Tensor):
            first = next(iter(first.values() if isinstance(first, Mapping) else first))
        self.source.watch(first)


@dataclass(frozen=True)
class AuditRow:
    """A layer with weights, as a row of an `Audit`."""

    name: str
    """Its name in the model."""

    kind: str
    """PyTorch's name of the layer, such as Conv2d."""

    rule: str | None
    """The spec of its rule; None where it is PyTorch's own layer, which means backpropagation."""

    parameters: int
    """Its parameters, without those that an earlier row counts (tied weights) and feedback."""

    transports: bool
    """Whether its own weights carry the error down."""


@dataclass(frozen=True)
class Audit:
    """The weighted layers of a model and their rules, as `audit` returns them.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))
    >>> result = audit(convert(model, {"0": "usf"}))
    >>> [(row.name, row.rule, row.transports) for row in result.rows]
    [('0', 'usf', False), ('2', None, True)]
    >>> result.transported, result.parameters, f"{100 * result.share:.1f} %"
    (2890, 3114, '92.8 %')
    """

    rows: tuple[AuditRow, ...]
    """The layers, in the model's order."""

    other: int
    """The number of parameters outside of weighted layers (norms, embeddings, tokens)."""

    @property
    def parameters(self) -> int:
        """The number of parameters of all weighted layers; feedback is not counted."""
        return sum(row.parameters for row in self.rows)

    @property
    def transported(self) -> int:
        """The number of parameters of layers whose own weights carry the error down."""
        return sum(row.parameters for row in self.rows if row.transports)

    @property
    def share(self) -> float:
        """The fraction `transported` / `parameters`, in [0, 1]; 0 without weighted layers."""
        return self.transported / max(1, self.parameters)

    def __str__(self) -> str:
        header = ("layer", "kind", "rule", "parameters")
        table = [
            (row.name, row.kind, row.rule or "bp (plain)", f"{row.parameters:,}")
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(header, *table, strict=True)]

        def line(values: Sequence[str]) -> str:
            texts = [value.ljust(width) for value, width in zip(values, widths, strict=True)]
            texts[-1] = values[-1].rjust(widths[-1])  # numbers stand to the right
            return "  ".join(texts)

        lines = [line(header), "  ".join("-" * width for width in widths), *map(line, table)]
        lines.append(
            f"{self.transported:,} of {self.parameters:,} parameters ({100 * self.share:.1f} %) "
            "lie in layers that "
            "carry the error by their own weights"
        )
        if self.other:
            lines.append(
                f"{self.other:,} more parameters, of norms, embeddings and the like, are in no "
                "layer of the table"
            )
        return "\n".join(lines)


def audit(model: nn.Module) -> Audit:
    """Return which layers of a model learn by which rule, and how many parameters they have.

    Printed, the result is a table of the layers, with the share of parameters whose weights are
    transported (that is, carry the error down themselves) below it. Within an operation under a
    direct rule the error is exact, so only its lowest layer is counted as under that rule.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))
    >>> print(audit(convert(model, {"0": "usf"})))
    layer  kind    rule        parameters
    -----  ------  ----------  ----------
    0      Conv2d  usf                224
    2      Linear  bp (plain)       2,890
    2,890 of 3,114 parameters (92.8 %) lie in layers that carry the error by their own weights
    """
    counted = {id(parameter) for parameter in learned_feedback(model)}  # feedback is no weight

    def count_new(module: nn.Module) -> int:
        """Return the size of the parameters not counted before: a tied weight counts once."""
        new = [parameter for parameter in module.parameters() if id(parameter) not in counted]
        counted.update(map(id, new))
        return sum(parameter.numel() for parameter in new)

    # The rules of operations under a direct rule, by the identity of their lowest layer.
    direct_rules: dict[int, LearningRule] = {}
    for operation in model.modules():
        if isinstance(operation, DirectOperation):
            _, lowest = next(_weighted(operation))
            direct_rules[id(lowest)] = operation.rule
    rows = []
    for name, layer in _weighted(model):
        layer_rule = layer.rule if isinstance(layer, RuleLayer) else None
        rule = direct_rules.get(id(layer), layer_rule)
        rows.append(
            AuditRow(
                name=name,
                kind=PLAIN.get(type(layer), type(layer)).__name__,
                rule=None if rule is None else rule.spec,
                parameters=count_new(layer),
                transports=rule is None or rule.transports_weights,
            )
        )
    return Audit(tuple(rows), other=count_new(model))  # what no row has counted
