"""How near the learning of a model is to backpropagation, layer by layer.

- feedback angle and norm ratio: between the kernel K that carries the error down and W, |K| / |W|
  (signed values, as the error feels them);
- error angle: between the error that a layer sends down and the one that it would send if every
  rule in the model were exact, the mean over samples. At the lowest layers it shows what all layers
  above have done together;
- gradient cosine: between a weight's gradient and its exact gradient, both the mean over all
  batches;
- gradient variance: over batches, divided by the squared norm of the mean, sum Var(g) / |E g|^2 (the figure by which
  arXiv 2507.13485 compares rules); of the exact gradient beside it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.modes import undisturbed
from darts_bio.rules import RuleLayer, learned_feedback, rule_layers, true_gradients
from darts_bio.training.retrain import Retraining

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LayerAlignment:
    """One layer. Angles are in degrees; None where there is nothing to compare (no kernel, no error
    sent).
    """

    name: str
    rule: str
    depth: int
    """The place in the order in which layers are run, counted from 0."""
    feedback_angle: float | None
    feedback_norm_ratio: float | None
    error_angle: float | None
    gradient_cosine: float | None
    gradient_variance: float | None
    exact_gradient_variance: float | None


@dataclass(frozen=True)
class Alignment:
    """All layers in the order of their depth, and the gradient of all weights taken as one
    vector.
    """

    layers: tuple[LayerAlignment, ...]
    gradient_cosine: float | None
    gradient_variance: float | None
    exact_gradient_variance: float | None

    def summary(self) -> dict[str, float]:
        """A few numbers by name: the whole gradient, and the mean angles over layers."""
        numbers: dict[str, float | None] = {
            "gradient_cosine": self.gradient_cosine,
            "gradient_variance": self.gradient_variance,
            "exact_gradient_variance": self.exact_gradient_variance,
        }
        for name in ("feedback_angle", "error_angle"):
            values = [
                getattr(layer, name) for layer in self.layers if getattr(layer, name) is not None
            ]
            numbers[name] = sum(values) / len(values) if values else None
        return {name: value for name, value in numbers.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        head = (
            "layer",
            "rule",
            "K to W",
            "|K|/|W|",
            "error",
            "cos(g, exact)",
            "var/|g|^2",
            "exact var/|g|^2",
        )
        rows: list[tuple[str, ...]] = [head]
        for layer in self.layers:
            rows.append(
                (
                    layer.name,
                    layer.rule,
                    _text(layer.feedback_angle, "{:.1f}"),
                    _text(layer.feedback_norm_ratio, "{:.2f}"),
                    _text(layer.error_angle, "{:.1f}"),
                    _text(layer.gradient_cosine, "{:.3f}"),
                    _text(layer.gradient_variance, "{:.3g}"),
                    _text(layer.exact_gradient_variance, "{:.3g}"),
                )
            )
        whole = (self.gradient_cosine, self.gradient_variance, self.exact_gradient_variance)
        rows.append(
            (
                "all weights",
                "",
                "",
                "",
                "",
                _text(whole[0], "{:.3f}"),
                *(_text(v, "{:.3g}") for v in whole[1:]),
            )
        )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                [
                    text.ljust(w) if i < 2 else text.rjust(w)
                    for i, (text, w) in enumerate(zip(row, widths, strict=True))
                ]
            ).rstrip()
            for row in rows
        )


def _text(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def measure_alignment(
    model: nn.Module, batches: Iterable[Batch], loss: Callable[[Any, Tensor], Tensor]
) -> Alignment:
    """Measures a model under rules on some batches (x, labels), in training mode; `loss(model(x),
    labels)` is its loss.

    Parameters, their .grad, buffers, mode and random state are left as they were. Raises InputError
    if there are fewer than two batches (variance has no meaning then), or no layer that carries a
    rule.
    """
    layers = dict(rule_layers(model))
    if not layers:
        raise InputError(
            "alignment: expected a model with layers that carry rules, found none; convert it first"
        )
    feedback = set(map(id, learned_feedback(model)))
    weights = {
        n: p for n, p in model.named_parameters() if id(p) not in feedback and p.requires_grad
    }
    ruled, exact = _Moments(weights), _Moments(weights)
    cosines: dict[str, list[Tensor]] = {}
    order: list[str] = []
    with undisturbed(model, training=True):
        for x, labels in batches:
            sides = []
            for moments, context in (
                (ruled, contextlib.nullcontext()),
                (exact, true_gradients(model)),
            ):
                with torch.random.fork_rng([x.device] if x.is_cuda else []), context:
                    inputs, value = _pass(
                        model, layers, lambda x=x, labels=labels: loss(model(x), labels)
                    )  # type: ignore[misc]
                    order = order or list(inputs)
                    sent = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
                    found = torch.autograd.grad(
                        value, [*sent.values(), *weights.values()], allow_unused=True
                    )
                moments.add(found[len(sent) :])
                sides.append(dict(zip(sent, found, strict=False)))
            for name in sides[0]:
                one, other = sides[0][name], sides[1][name]
                if one is not None and other is not None:
                    cosines.setdefault(name, []).append(_per_sample_cosine(one, other))
    if ruled.count < 2:
        raise InputError(f"alignment: expected at least 2 batches, found {ruled.count}")
    rows = []
    for depth, name in enumerate(order):
        layer, weight = layers[name], f"{name}.weight".lstrip(".")
        angle, ratio = _feedback(layer)
        error = _degrees(torch.cat(cosines[name]).nanmean().item()) if name in cosines else None
        own = [weight] if weight in weights else []
        rows.append(
            LayerAlignment(
                name,
                layer.rule.spec,
                depth,
                angle,
                ratio,
                error,
                ruled.cosine(exact, own),
                ruled.variance(own),
                exact.variance(own),
            )
        )
    everything = list(weights)
    return Alignment(
        tuple(rows),
        ruled.cosine(exact, everything),
        ruled.variance(everything),
        exact.variance(everything),
    )


def training_alignment(training: Retraining, batches: int) -> Alignment:
    """That of a network in training, on the first `batches` of its training batches."""
    return measure_alignment(
        training.network, map(training.source.batch, range(batches)), training.loss
    )


class _Moments:
    """Sums over batches of each gradient and of its squared norm, in float64."""

    def __init__(self, weights: dict[str, nn.Parameter]) -> None:
        self.sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in weights.items()}
        self.squares = {name: 0.0 for name in weights}
        self.count = 0

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        self.count += 1
        for name, gradient in zip(self.sums, gradients, strict=True):
            if gradient is not None:
                gradient = gradient.detach().double()
                self.sums[name] += gradient
                self.squares[name] += gradient.square().sum().item()

    def _norm(self, names: Sequence[str]) -> float:
        """The squared norm of the sum."""
        return sum(self.sums[name].square().sum().item() for name in names)

    def cosine(self, other: _Moments, names: Sequence[str]) -> float | None:
        product = sum((self.sums[name] * other.sums[name]).sum().item() for name in names)
        norms = math.sqrt(self._norm(names) * other._norm(names))
        return product / norms if norms > 0 else None

    def variance(self, names: Sequence[str]) -> float | None:
        norm = self._norm(names) / self.count**2
        spread = sum(self.squares[name] for name in names) - self.count * norm
        return max(0.0, spread) / (self.count - 1) / norm if norm > 0 else None


def _pass(
    model: nn.Module, layers: dict[str, RuleLayer], forward: Callable[[], Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """The input of each layer, as a tensor that only this layer reads, in the order of the calls;
    and the loss.
    """
    inputs: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def before(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            inputs[name] = arguments[0].view_as(arguments[0])
            return (inputs[name], *arguments[1:])

        return before

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        value = forward()
    finally:
        for hook in hooks:
            hook.remove()
    return inputs, value


def _per_sample_cosine(one: Tensor, other: Tensor) -> Tensor:
    """Of each sample (N,); NaN where one of the two is zero."""
    one, other = one.detach().double().flatten(1), other.detach().double().flatten(1)
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))


def _degrees(cosine: float) -> float | None:
    return None if math.isnan(cosine) else math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def _feedback(layer: RuleLayer) -> tuple[float | None, float | None]:
    """The angle in degrees between K and W, and |K| / |W|."""
    if layer.rule.direct:
        return None, None
    with torch.no_grad():
        kernel = layer.transport(layer.weight)
    if kernel is None:
        return None, None
    kernel, weight = kernel.detach().double().flatten(), layer.weight.detach().double().flatten()
    norms = kernel.norm(), weight.norm()
    if not all(norms):
        return None, None
    return _degrees((kernel @ weight / (norms[0] * norms[1])).item()), (norms[0] / norms[1]).item()
