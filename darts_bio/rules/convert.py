"""Any PyTorch model under learning rules: `convert`, and `audit`, which tells what learns how.

>>> import torch
>>> from darts_bio.rules import audit, convert
>>> plain = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(288, 10))
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

OPAQUE = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
"""Layers of PyTorch that keep several weights and multiply by them out of reach."""

PLAIN_TYPES = tuple(RULE_LAYERS)
PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    ruled: plain for plain, ruled in RULE_LAYERS.items()
}


def convert(
    model: nn.Module,
    rule: Choice | Mapping[str, Choice],
    *,
    seed: int = 0,
    redraw: bool = False,
    outputs: int | None = None,
) -> nn.Module:
    """A copy of the model whose convolutions (1d to 3d, also transposed) and linear layers carry
    learning rules.

    `rule` is one of

    - a rule, `"usf"` or `"hebbian(error=W)"`, for all layers;
    - several, `("usf", "fa")`: for each layer one at random, a function of `seed` and the layer's
      name alone (the control of a search for rules);
    - patterns, `{"layer4.*": "fa", "fc": None, "*": ("usf", "frsf")}`: the first that a layer's
      name matches holds; a layer that none matches, or whose rule is None, stays as it is.

    Weights are kept, and feedback has the law of the layer's present weights, uniform of their
    standard deviation. With `redraw` weights are drawn anew by PyTorch's default for the layer,
    from `seed`. Names of parameters, tied weights, hooks, device and mode are kept. What is not a
    weighted layer (norms, activations, embeddings, attention between tokens) keeps its exact
    derivative. Call `draw_feedback(model, seed, update)` after each weight update if a rule renews
    its feedback (brsf, weight_mirror).

    `outputs` is the number of values at the model's output, for rules that are direct (dfa); by
    default that of its last weighted layer.

    Raises InputError for a layer that cannot carry its rule: one with weights out of reach
    (nn.MultiheadAttention, nn.LSTM, ...), one that computes in a way of its own, or a weight that
    several layers share under a rule that learns other than by the weight's gradient; and for a
    pattern that matches no layer.
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
    # A mapping of patterns by itself says which layers stay as they are; otherwise there are none.
    patterns = dict(rule) if isinstance(rule, Mapping) else {"*": rule}
    if not any(choice is not None for choice in patterns.values()):
        raise InputError(
            f"convert: expected a rule, several, or patterns with rules, found {rule!r}"
        )
    matched: set[str] = set()
    chosen: list[tuple[str, nn.Module, LearningRule]] = []
    for name, layer in _weighted(converted):
        pattern = next((p for p in patterns if fnmatchcase(name, p)), None)
        if pattern is None:
            continue
        matched.add(pattern)
        spec = _choose(patterns[pattern], seed, name)
        if spec is None:
            continue
        member: LearningRule = RULES.build(spec)
        _refuse(name, layer)
        chosen.append((name, layer, member))
    _refuse_idle([pattern for pattern in patterns if pattern not in matched], converted)
    _refuse_ties(chosen)
    drawn: set[nn.Parameter] = set()
    for name, layer, member in chosen:
        if redraw and layer.weight not in drawn:
            drawn.add(layer.weight)  # type: ignore[arg-type]
            with torch.random.fork_rng(_gpus(layer)):
                torch.manual_seed(derive_seed("weights", seed, name))
                layer.reset_parameters()  # type: ignore[operator]
        _carry(name, layer, member, measured=not redraw)
    if any(member.direct for _, _, member in chosen):
        _connect(converted, outputs)
    draw_feedback(converted, seed)
    warn_of_strided_pointwise(converted)
    return converted


def _gpus(layer: nn.Module) -> list[torch.device]:
    device = next(layer.parameters()).device
    return [device] if device.type == "cuda" else []


def _weighted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of all that has weights which carry an error, in the model's order; each
    once.
    """
    outer: str | None = None
    for name, module in model.named_modules():
        # What lies in a module follows it: of those before, only the last opaque one may hold this.
        if outer is not None and name.startswith(outer):
            continue
        if isinstance(module, OPAQUE):
            outer = name + "."  # the projections in it are no layers that are called
            yield name, module
        elif isinstance(module, PLAIN_TYPES):
            yield name, module


def _choose(choice: Choice, seed: int, name: str) -> str | None:
    if choice is None or isinstance(choice, str):
        return choice
    if not choice:
        raise InputError("convert: expected at least one rule to choose from, found none")
    return choice[derive_seed("rule", seed, name) % len(choice)]


def _refuse(name: str, layer: nn.Module) -> None:
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


def _refuse_idle(patterns: Sequence[str], model: nn.Module) -> None:
    """Refuses patterns that decide about no layer."""
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


def _refuse_ties(chosen: Sequence[tuple[str, nn.Module, LearningRule]]) -> None:
    owners: dict[Any, list[tuple[str, LearningRule]]] = {}
    for name, layer, member in chosen:
        owners.setdefault(layer.weight, []).append((name, member))
    for sharing in owners.values():
        odd = [member.spec for _, member in sharing if member.learned or member.local]
        if len(sharing) > 1 and odd:
            raise InputError(
                f"convert: {' and '.join(name for name, _ in sharing)} share their weight, and "
                f"{odd[0]} is not defined "
                "for a weight that learns in two places; use another rule there"
            )


def _carry(name: str, layer: nn.Module, member: LearningRule, *, measured: bool) -> None:
    """Makes the layer one of the same kind with a rule, where it stands."""
    layer.__class__ = RULE_LAYERS.get(type(layer), type(layer))
    assert isinstance(layer, RuleLayer)
    for key in [*layer._buffers, *layer._parameters]:  # of a rule that it had before
        if key.startswith(PREFIX) or key == "initial_bound":
            delattr(layer, key)
    try:
        layer.carry(member)
    except InputError as error:
        raise InputError(f"convert: {name}: {error}") from None
    std = layer.weight.detach().float().std(correction=0)
    if measured and std > 0:  # weights of zero say nothing about the law
        layer.register_buffer("initial_bound", (3**0.5 * std).to(layer.weight))
    if not member.direct:
        layer.hold_feedback(layer.weight)


def _connect(model: nn.Module, outputs: int | None) -> None:
    if outputs is None:
        *_, (_, last) = _weighted(model)
        outputs = int(getattr(last, "out_features", 0) or getattr(last, "out_channels", 0))
    source = connect_output(model, outputs)
    assert source is not None
    model.register_forward_hook(_Watched(source))


class _Watched:
    """A forward hook: the model's output, or the first of several, is the one whose error is sent
    directly.
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
    """One weighted layer: `rule` is None where it is PyTorch's own (so backpropagation);
    `transports` says whether its own weights carry the error down.
    """

    name: str
    kind: str
    rule: str | None
    parameters: int
    transports: bool


@dataclass(frozen=True)
class Audit:
    """What `audit` found. `other` counts the parameters outside of weighted layers (norms,
    embeddings, tokens).
    """

    rows: tuple[AuditRow, ...]
    other: int

    @property
    def parameters(self) -> int:
        """Of all weighted layers; feedback is not counted."""
        return sum(row.parameters for row in self.rows)

    @property
    def transported(self) -> int:
        """Those of layers whose own weights carry the error down."""
        return sum(row.parameters for row in self.rows if row.transports)

    @property
    def share(self) -> float:
        """`transported` of `parameters`, in [0, 1]."""
        return self.transported / max(1, self.parameters)

    def __str__(self) -> str:
        head = ("layer", "kind", "rule", "parameters")
        cells = [
            (row.name, row.kind, row.rule or "bp (plain)", f"{row.parameters:,}")
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]

        def line(values: Sequence[str]) -> str:
            texts = [value.ljust(width) for value, width in zip(values, widths, strict=True)]
            return "  ".join([*texts[:-1], values[-1].rjust(widths[-1])])

        lines = [line(head), "  ".join("-" * width for width in widths), *map(line, cells)]
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
    """A table of the model's weighted layers, their rules and parameters, and the share whose
    weights are transported.

    Within an operation under a direct rule the error is exact, and what lies above its lowest layer
    is counted so.
    """
    counted = {id(parameter) for parameter in learned_feedback(model)}  # feedback is no weight

    def own(module: nn.Module) -> int:
        """Parameters that were not counted before: a tied weight counts once."""
        new = [p for p in module.parameters() if id(p) not in counted]
        counted.update(map(id, new))
        return sum(p.numel() for p in new)

    direct = {
        id(next(layer for _, layer in _weighted(operation))): operation.rule
        for operation in model.modules()
        if isinstance(operation, DirectOperation)
    }
    rows = []
    for name, layer in _weighted(model):
        member = direct.get(id(layer), layer.rule if isinstance(layer, RuleLayer) else None)
        kind = PLAIN.get(type(layer), type(layer)).__name__
        transports = member is None or member.transports_weights
        rows.append(
            AuditRow(name, kind, None if member is None else member.spec, own(layer), transports)
        )
    return Audit(tuple(rows), own(model))
