"""Learning rules on any PyTorch model: `convert`, and `revert`, which takes them off again.

>>> from torch import nn
>>> from darts_bio.rules import audit, convert
>>> plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
>>> model = convert(plain, {"0": "fa", "*": "bp"})
>>> [(row.name, row.rule) for row in audit(model).rows]
[('0', 'fa'), ('3', 'bp')]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NoReturn

import torch
from torch import nn

from darts_bio.errors import InputError, brief, check_whole
from darts_bio.rules.base import RULES, LearningRule
from darts_bio.rules.carriers import connect_output, draw_feedback
from darts_bio.rules.dfa import WatchedOutput
from darts_bio.rules.layers import RULE_LAYERS, RuleLayer
from darts_bio.rules.looks import Look, copied, look, other_carriers, strip
from darts_bio.rules.pointwise import warn_of_strided_pointwise
from darts_bio.rules.weights import (
    SUFFIX,
    Weight,
    WeightCarrier,
    check_model,
    put_carrier,
    watch_code,
    weights_in,
)
from darts_bio.runtime import derive_seed

Choice = str | Sequence[str] | None
"""A rule's spec, several to choose from, or None for a layer that stays as it is."""

Pattern = str | type[nn.Module]
"""A pattern of names, as `layer4.*`, or a class of layers, as nn.Conv2d."""


def convert(
    model: nn.Module,
    rule: Choice | Mapping[Pattern, Choice],
    *,
    seed: int = 0,
    redraw: bool = False,
    outputs: int | None = None,
    inputs: Any = None,
) -> nn.Module:
    """Return a copy of a model whose weights carry learning rules.

    These are the weights that multiply activations: of convolutions of 1 to 3 dimensions, also
    transposed, of linear layers, of attention (nn.MultiheadAttention) and recurrent layers, and those
    that a model's own code multiplies by (F.linear, matmul, addmm, einsum, F.conv2d, ...), with or
    without a parametrization such as weight norm. What has no weights of this kind (norms,
    activations, embeddings, products of activations) keeps its exact derivative. Names of
    parameters, tied weights, hooks, device and mode are kept.

    A rule holds wherever its weight is multiplied by in the forward pass of a module that is called.
    Code that runs outside of one, or that reads `named_parameters()`, has the plain parameter;
    `audit` shows what multiplied nothing.

    Weights are kept, and feedback has the law of the layer's present weights: uniform, of their
    standard deviation. Rules that renew their feedback (brsf, weight_mirror) need `attach`, or a call
    of `draw_feedback` after each weight update.

    Args:
        model: The model, which stays as it is.
        rule: One of

            - a rule, `"usf"` or `"hebbian(error=W)"`, for all weights;
            - several, `("usf", "fa")`: for each weight one at random, a function of `seed` and its
              name alone (the control of a search for rules);
            - patterns, `{"layer4.*": "fa", nn.Conv1d: "bp", "fc": None, "*": ("usf", "frsf")}`: the
              first one that matches the layer decides, by its name or by its class. A layer that
              none matches, or whose rule is None, stays as it is.
        seed: What random choices, feedback and redrawn weights are a function of.
        redraw: Whether weights are drawn anew, by PyTorch's default for the layer.
        outputs: The number of values at the model's output, for rules that are direct (dfa); by
            default that of its last layer with weights.
        inputs: What to give the model in a look at one forward pass: a tensor, a tuple of positional
            or a dict of keyword arguments. It is needed where weights stand in modules of a model's
            own, of which nothing else tells that they multiply activations, and where no input that
            is made up fits.

    Raises:
        InputError: If a weight cannot carry its rule, with the reason; if a pattern decides about no
            weight; or if the model cannot be copied.

    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))
    >>> print(convert(model, {"0": "usf"}))
    Sequential(
      (0): RuleConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), rule=UniformSignFeedback(scale='init'))
      (1): Flatten(start_dim=1, end_dim=-1)
      (2): Linear(in_features=288, out_features=10, bias=True)
    )
    """
    check_model(model, "convert")
    converted = copied(model, "convert")
    patterns = _read_patterns(rule)
    seed = check_whole("convert: seed", seed, 0)
    outputs = None if outputs is None else check_whole("convert: outputs", outputs)
    per_position = [rule for rule in _rules_in(patterns) if rule.per_position]
    if per_position and inputs is None:
        raise InputError(
            f"convert: {per_position[0].spec} has feedback for each position, so it needs the size of "
            "what the model is given; give it a batch: convert(model, rule, inputs=x)"
        )
    weights, sight = _weights_of(converted, inputs)
    # Choose for all weights before the first one is changed: whether a pattern is used, and whether
    # layers may share a weight, depends on all of them.
    used_patterns: set[Pattern] = set()
    chosen: list[tuple[Weight, LearningRule]] = []
    for weight in weights:
        pattern = next((pattern for pattern in patterns if _matches(pattern, weight)), None)
        if pattern is None:
            continue
        used_patterns.add(pattern)
        spec = _choose(patterns[pattern], seed, weight.name)
        if spec is None:
            continue
        layer_rule: LearningRule = RULES.build(spec)
        if weight.value.is_complex() and spec != "bp":
            _refuse(weight, layer_rule, "rules are defined for real weights, and it is complex")
        if not weight.value.numel():
            _refuse(weight, layer_rule, "it has no entries")
        seen = None if sight is None else sight.weights.get(weight.path)
        if (
            seen is not None
            and seen.undefined
            and (layer_rule.carries != "values" or layer_rule.local)
        ):
            _refuse(
                weight,
                layer_rule,
                f"it stands in {', '.join(seen.undefined)}, which no rule is defined for",
            )
        if not is_layer(weight):
            if spec == "bp":
                continue  # which is what it does as it is
            _refuse_undefined(weight, layer_rule)
        chosen.append((weight, layer_rule))
    _refuse_unused([pattern for pattern in patterns if pattern not in used_patterns], weights)
    _refuse_ties(chosen, converted)
    redrawn: set[nn.Parameter] = set()
    for weight, layer_rule in chosen:
        if redraw and weight.value not in redrawn:  # once for the layers that share a weight
            redrawn.add(weight.value)  # type: ignore[arg-type]
            _redraw(weight, seed)
        seen = None if sight is None else sight.weights.get(weight.path)
        channels = weight.channels if seen is None or weight.channels else seen.channels
        sample = None if seen is None else seen.sample
        _put_rule(weight, layer_rule, channels, sample, measured=not redraw)
    if chosen:
        _accompany(converted, sight)
        watch_code(converted)
    if any(layer_rule.direct for _, layer_rule in chosen):
        _connect(converted, weights, outputs)
    draw_feedback(converted, seed)
    warn_of_strided_pointwise(converted)
    return converted


def revert(model: nn.Module) -> nn.Module:
    """Return a copy of a model of `convert` without rules: PyTorch's layers, and the same weights.

    Its state_dict has the names of the model's before it was converted.

    Raises:
        InputError: If it is no model, or if rules are part of its architecture, as in networks of genotypes.

    >>> plain = nn.Sequential(nn.Linear(3, 2))
    >>> revert(convert(plain, "fa"))
    Sequential(
      (0): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    check_model(model, "revert")
    others = other_carriers(model)
    if others:
        raise InputError(
            f"revert: {others[0] or 'the model'} carries a rule that convert has not put there; "
            "build the genotype's network under bp (Genotype.with_rule)"
        )
    return strip(copied(model, "revert"))


def _read_patterns(rule: Any) -> dict[Pattern, Choice]:
    """Return a rule, several, or patterns as patterns; raise InputError for anything else."""
    patterns = dict(rule) if isinstance(rule, Mapping) else {"*": rule}
    for pattern, choice in patterns.items():
        is_class = isinstance(pattern, type) and issubclass(pattern, nn.Module)
        if not (is_class or isinstance(pattern, str)):
            raise InputError(
                "convert: expected a pattern of names, as 'layer4.*', or a class of layers, as "
                f"nn.Conv2d, found {type(pattern).__name__}"
            )
        if choice == () or choice == []:
            raise InputError(
                "convert: expected at least one rule to choose from, found none; name one, as 'usf'"
            )
        of_choice = choice if isinstance(choice, (list, tuple)) else [choice]
        if choice is not None and any(spec is None for spec in of_choice):
            raise InputError(
                f"convert: expected rules to choose from, found None among them in {brief(choice)}; "
                "take 'bp', which is exact, in its place"
            )
        for spec in of_choice:
            if spec is not None and not isinstance(spec, str):
                raise InputError(
                    "convert: expected a rule as text, as 'usf', a list or tuple of these, or None, "
                    f"found {getattr(spec, 'spec', spec)!r} of type {type(spec).__name__}"
                )
    if all(choice is None for choice in patterns.values()):
        raise InputError(
            f"convert: expected a rule, several, or patterns with rules, found {brief(rule)}; name "
            "one, as 'usf', or use the model as it is"
        )
    return patterns


def _weights_of(model: nn.Module, inputs: Any) -> tuple[list[Weight], Look | None]:
    """Return the weights of a model that multiply activations, and a look where one was needed."""
    weights = list(weights_in(model))
    if inputs is None and all(is_layer(weight) for weight in weights):
        return weights, None
    sight = look(model, inputs, "convert")
    seen = {} if sight is None else sight.weights
    return [
        weight
        for weight in weights
        if not weight.loose
        or (weight.path in seen and (seen[weight.path].products or seen[weight.path].undefined))
    ], sight


def _matches(pattern: Pattern, weight: Weight) -> bool:
    """Return whether a pattern matches a weight."""
    if isinstance(pattern, type):
        return isinstance(weight.owner, pattern)
    return any(fnmatchcase(name, pattern) for name in weight.names)


def _choose(choice: Choice, seed: int, name: str) -> str | None:
    """Return the spec for the layer of that name: of several a random one; None for no rule."""
    if choice is None or isinstance(choice, str):
        return choice
    return choice[derive_seed("rule", seed, name) % len(choice)]


def is_layer(weight: Weight) -> bool:
    """Return whether a weight is that of a layer which becomes a layer under a rule.

    Exactly PyTorch's classes do: a subclass may have a forward pass of its own. A weight that is no
    parameter is computed from others.
    """
    kind = type(weight.owner)
    return (kind in RULE_LAYERS or issubclass(kind, RuleLayer)) and weight.is_parameter


def _refuse_undefined(weight: Weight, rule: LearningRule) -> None:
    """Raise InputError if a weight that is no layer's cannot carry a rule."""
    reason = None
    if isinstance(weight.owner, RuleLayer):
        reason = "it was parametrized under a rule; convert the model of before, or revert it first"
    elif isinstance(weight.owner, nn.Bilinear):
        reason = "it multiplies two activations at once, and a rule is about the error of one"
    elif not weight.is_parameter and not hasattr(weight.owner, "parametrizations"):
        reason = (
            "a hook sets it before each pass; use torch.nn.utils.parametrizations in place of "
            "torch.nn.utils.weight_norm or spectral_norm"
        )
    elif rule.learned and not rule.direct and not weight.is_parameter:
        reason = (
            "its feedback learns by the weight's own gradient, and the weight is computed from "
            "others"
        )
    elif rule.local and isinstance(weight.owner, nn.modules.conv._ConvTransposeNd):
        reason = "no one window of the input answers to an output channel of it"
    if reason is not None:
        _refuse(weight, rule, reason)


def _refuse(weight: Weight, rule: LearningRule, reason: str) -> NoReturn:
    raise InputError(
        f"convert: {weight.name or 'the model'} ({weight.kind}) cannot carry {rule.spec}: "
        f"{reason}. Leave it as it is by a pattern before the others: "
        f"{{{weight.name!r}: None, '*': ...}}"
    )


def _refuse_unused(patterns: Sequence[Pattern], weights: Sequence[Weight]) -> None:
    """Raise InputError if there are patterns that decide about no weight."""
    names = [weight.name for weight in weights]
    if patterns and not names:
        raise InputError("convert: the model has no layer with weights that could carry a rule")
    for pattern in patterns:
        shown = pattern.__name__ if isinstance(pattern, type) else repr(pattern)
        if any(_matches(pattern, weight) for weight in weights):
            raise InputError(
                f"convert: the pattern {shown} is never reached, since patterns before it "
                "match all its layers; "
                "the first that matches holds, so put it before them"
            )
        raise InputError(
            f"convert: the pattern {shown} matches no layer with weights; there are "
            f"{', '.join(names[:12])}" + (", ..." if len(names) > 12 else "")
        )


def _refuse_ties(chosen: Sequence[tuple[Weight, LearningRule]], model: nn.Module) -> None:
    """Raise InputError if a weight that is to learn other than by its gradient is a shared one.

    Whoever shares it, a layer without a rule or an embedding, gives it a gradient of its own.
    """
    users: dict[Any, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(parameter, []).append(name or "the model")
    for weight, rule in chosen:
        sharing = users[weight.value] if weight.is_parameter else []
        if len(sharing) > 1 and (rule.learned or rule.local):
            raise InputError(
                f"convert: {' and '.join(sharing)} share their weight, and {rule.spec} is not "
                "defined for a weight that learns in two places; use another rule there"
            )


def _redraw(weight: Weight, seed: int) -> None:
    """Draw a layer's weights anew, by PyTorch's default for it."""
    owner = weight.owner
    reset = getattr(owner, "reset_parameters", None) or getattr(owner, "_reset_parameters", None)
    if reset is None:
        raise InputError(
            f"convert: {weight.name} ({weight.kind}) has no reset_parameters to draw its weights "
            "anew by; leave out redraw"
        )
    device = next(owner.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed("weights", seed, weight.name))
        reset()


def _rules_in(patterns: Mapping[Pattern, Choice]) -> list[LearningRule]:
    """Return all rules that patterns may choose."""
    specs: list[str] = []
    for choice in patterns.values():
        specs += [choice] if isinstance(choice, str) else list(choice or ())
    return [RULES.build(spec) for spec in specs]


def _put_rule(
    weight: Weight,
    rule: LearningRule,
    channels: int | None,
    sample: tuple[int, ...] | None,
    *,
    measured: bool,
) -> None:
    """Put a weight under a rule, in place.

    `channels` and the shape of a `sample` are those of the input that it multiplies, if known. With
    `measured`, feedback gets the standard deviation of the present weights; otherwise it gets that
    of PyTorch's default initialization.
    """
    if rule.direct and channels is None:
        raise InputError(
            f"convert: {weight.name} ({weight.kind}) cannot carry {rule.spec}: nothing tells the "
            "number of channels of the input that it multiplies; use another rule for it"
        )
    owner = weight.owner
    if is_layer(weight):
        # The object stays and its class changes: hooks, tied weights and other references are kept.
        owner.__class__ = RULE_LAYERS.get(type(owner), type(owner))
        assert isinstance(owner, RuleLayer)
        owner.remove_feedback()  # of a rule that it had before
        try:
            owner.carry(rule)
        except InputError as error:
            raise InputError(f"convert: {weight.name}: {error}") from None
        carrier: RuleLayer | WeightCarrier = owner
    else:
        carrier = put_carrier(owner, weight.attribute, rule, channels)
    if rule.per_position:
        if sample is None:
            raise InputError(
                f"convert: {weight.name} cannot carry {rule.spec}: it multiplied nothing in a forward "
                "pass of the inputs given; leave it as it is by a pattern: "
                f"{{{weight.name!r}: None, '*': ...}}"
            )
        carrier.sample_shape = sample
    if measured:
        carrier.measure_law(weight.value)
    if not rule.direct:  # a direct rule has feedback once it is connected to the model's output
        carrier.register_feedback(weight.value)


def _accompany(model: nn.Module, sight: Look | None) -> None:
    """Put the parameters that weights are computed with under bp, in place.

    So they are known for parameters, and not taken for activations.
    """
    if sight is None:
        return
    bp: LearningRule = RULES.build("bp")
    for path, seen in sight.weights.items():
        name, _, attribute = path.rpartition(".")
        owner = model.get_submodule(name)
        if (
            seen.met
            and attribute + SUFFIX not in owner._modules
            and not isinstance(owner, RuleLayer)
        ):
            put_carrier(owner, attribute, bp, None)


def _connect(model: nn.Module, weights: Sequence[Weight], outputs: int | None) -> None:
    """Connect the layers under direct rules to the error at the model's output."""
    if outputs is None:
        last = weights[-1].owner
        # Linear layers have out_features, convolutions out_channels.
        outputs = int(getattr(last, "out_features", 0) or getattr(last, "out_channels", 0))
        if not outputs:
            raise InputError(
                f"convert: dfa needs the number of values at the model's output, which "
                f"{weights[-1].name} does not tell; say outputs=N"
            )
    source = connect_output(model, outputs)
    assert source is not None
    model.register_forward_hook(WatchedOutput(source))
