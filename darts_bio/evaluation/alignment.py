"""How near the learning of a model is to backpropagation, layer by layer.

Each batch is passed through the model twice, with the same random draws: once under its rules and
once under `true_gradients`. W is a layer's weight, K the kernel that carries the error down in its
place, g a gradient.

- feedback angle and norm ratio: the angle between K and W, and |K| / |W|. Values count with their
  signs, as the error feels them.
- error angle: between the error that a layer sends down and the one that it would send if every
  rule in the model were exact, by the mean cosine over samples. At the lowest layers it shows what
  all layers above have done together.
- gradient cosine: between a weight's gradient and its exact gradient, both the mean over all
  batches.
- gradient variance: over batches, divided by the squared norm of the mean, sum Var(g) / |E g|^2
  (the figure by which arXiv 2507.13485 compares rules); of the exact gradient beside it.
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
"""Inputs and labels, as the model's loss takes them."""


@dataclass(frozen=True)
class LayerAlignment:
    """The alignment of one layer; None where there is nothing to compare (no kernel, no error sent).

    Attributes:
        name: The layer's name in the model.
        rule: The spec of its learning rule.
        depth: Its place in the order in which layers are run, counted from 0.
        feedback_angle: Between K and W, in degrees.
        feedback_norm_ratio: |K| / |W|.
        error_angle: Between the error it sends down and the exact one, in degrees.
        gradient_cosine: Between the mean gradient of its weight and the exact one.
        gradient_variance: Of that gradient over batches, in units of its squared norm.
        exact_gradient_variance: The same of the exact gradient.
    """

    name: str
    rule: str
    depth: int
    feedback_angle: float | None
    feedback_norm_ratio: float | None
    error_angle: float | None
    gradient_cosine: float | None
    gradient_variance: float | None
    exact_gradient_variance: float | None


@dataclass(frozen=True)
class Alignment:
    """The alignment of all layers by depth, and of all weights' gradients taken as one vector.

    >>> values = (60.0, 1.1, 30.0, 0.8, 0.5, 0.4)
    >>> layer = LayerAlignment("conv", "fa", 0, *values)
    >>> alignment = Alignment((layer,), 0.8, 0.5, 0.4)
    >>> alignment.summary()["error_angle"]
    30.0
    >>> print(alignment)
    layer        rule  K to W  |K|/|W|  error  cos(g, exact)  var/|g|^2  exact var/|g|^2
    conv         fa      60.0     1.10   30.0          0.800        0.5              0.4
    all weights                                        0.800        0.5              0.4
    """

    layers: tuple[LayerAlignment, ...]
    gradient_cosine: float | None
    gradient_variance: float | None
    exact_gradient_variance: float | None

    def summary(self) -> dict[str, float]:
        """Return a few numbers by name: those of all weights, and the mean angles over layers.

        Numbers that there are not are left out.
        """
        numbers: dict[str, float | None] = {
            "gradient_cosine": self.gradient_cosine,
            "gradient_variance": self.gradient_variance,
            "exact_gradient_variance": self.exact_gradient_variance,
        }
        for name in ("feedback_angle", "error_angle"):
            angles = [
                getattr(layer, name) for layer in self.layers if getattr(layer, name) is not None
            ]
            numbers[name] = sum(angles) / len(angles) if angles else None
        return {name: value for name, value in numbers.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a table in plain text: a row a layer, and one of all weights."""
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
        rows.append(
            (
                "all weights",
                "",
                "",
                "",
                "",
                _text(self.gradient_cosine, "{:.3f}"),
                _text(self.gradient_variance, "{:.3g}"),
                _text(self.exact_gradient_variance, "{:.3g}"),
            )
        )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [
                text.ljust(width) if column < 2 else text.rjust(width)  # words left, numbers right
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def _text(value: float | None, form: str) -> str:
    """Return a number in a format, or a dash where there is none."""
    return "-" if value is None else form.format(value)


def measure_alignment(
    model: nn.Module, batches: Iterable[Batch], loss: Callable[[Any, Tensor], Tensor]
) -> Alignment:
    """Measure how near the gradients of a model under rules are to the exact ones.

    The model is in training mode meanwhile. Parameters, their .grad, buffers, mode and random state
    are left as they were.

    >>> from darts_bio.rules import convert
    >>> model = convert(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), "fa")
    >>> batches = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    >>> alignment = measure_alignment(model, batches, nn.functional.cross_entropy)
    >>> for layer in alignment.layers:
    ...     print(layer.name, layer.rule, round(layer.gradient_cosine, 3) == 1)
    0 fa False
    2 fa True

    Args:
        model: A model with layers that carry rules.
        batches: Two or more of (x, labels).
        loss: Maps model(x) and labels to the loss.

    Raises:
        InputError: If there are fewer than two batches (variance has no meaning then), or no layer
            that carries a rule.
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
    ruled, exact = Moments(weights), Moments(weights)
    cosines: dict[str, list[Tensor]] = {}  # by layer, for each batch (N,)
    order: list[str] = []  # names of layers, as they are run
    with undisturbed(model, training=True):
        for x, labels in batches:
            errors_sent = []  # under the rules, then exact: by layer (N, ...)
            for moments, context in (
                (ruled, contextlib.nullcontext()),
                (exact, true_gradients(model)),
            ):
                # Each pass is forked from the same random state: the same dropout, drop path.
                with torch.random.fork_rng([x.device] if x.is_cuda else []), context:
                    inputs, value = _pass(
                        model,
                        layers,
                        lambda x=x, labels=labels: loss(model(x), labels),  # type: ignore[misc]
                    )
                    order = order or list(inputs)
                    # The error that a layer sends down is the gradient of its input. None reaches
                    # the images, which need no gradient.
                    sent = {name: tensor for name, tensor in inputs.items() if tensor.requires_grad}
                    gradients = torch.autograd.grad(
                        value, [*sent.values(), *weights.values()], allow_unused=True
                    )
                moments.add(gradients[len(sent) :])
                errors_sent.append(dict(zip(sent, gradients, strict=False)))
            for name in errors_sent[0]:
                error, exact_error = errors_sent[0][name], errors_sent[1][name]
                if error is not None and exact_error is not None:
                    cosines.setdefault(name, []).append(_per_sample_cosine(error, exact_error))
    if ruled.count < 2:
        raise InputError(f"alignment: expected at least 2 batches, found {ruled.count}")
    rows = []
    for depth, name in enumerate(order):
        layer, weight = layers[name], f"{name}.weight".lstrip(".")  # a layer may be the model
        feedback_angle, norm_ratio = _feedback(layer)
        error_angle = None
        if name in cosines:
            error_angle = _degrees(torch.cat(cosines[name]).nanmean().item())
        names = [weight] if weight in weights else []
        rows.append(
            LayerAlignment(
                name,
                layer.rule.spec,
                depth,
                feedback_angle,
                norm_ratio,
                error_angle,
                ruled.cosine(exact, names),
                ruled.variance(names),
                exact.variance(names),
            )
        )
    all_names = list(weights)
    return Alignment(
        tuple(rows),
        ruled.cosine(exact, all_names),
        ruled.variance(all_names),
        exact.variance(all_names),
    )


def training_alignment(training: Retraining, batches: int) -> Alignment:
    """Measure a network in training, on the first `batches` of its training batches."""
    return measure_alignment(
        training.network, map(training.source.batch, range(batches)), training.loss
    )


class Moments:
    """Sums over batches of each gradient and of its squared norm, in float64.

    Mean and variance follow from these; the gradients themselves need not be kept. Methods take the
    names of weights, whose gradients count as one vector.
    """

    def __init__(self, weights: dict[str, nn.Parameter]) -> None:
        self.sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in weights.items()}
        self.squares = {name: 0.0 for name in weights}
        self.count = 0

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Count in the gradients of a batch, in the order of the weights; None is zero."""
        self.count += 1
        for name, gradient in zip(self.sums, gradients, strict=True):
            if gradient is not None:
                gradient = gradient.detach().double()
                self.sums[name] += gradient
                self.squares[name] += gradient.square().sum().item()

    def _squared_norm(self, names: Sequence[str]) -> float:
        """Return the squared norm of the sum of gradients."""
        return sum(self.sums[name].square().sum().item() for name in names)

    def cosine(self, other: Moments, names: Sequence[str]) -> float | None:
        """Return the cosine between the mean gradients of two; None if one of them is zero."""
        product = sum((self.sums[name] * other.sums[name]).sum().item() for name in names)
        norms = math.sqrt(self._squared_norm(names) * other._squared_norm(names))
        return product / norms if norms > 0 else None

    def variance(self, names: Sequence[str]) -> float | None:
        """Return sum Var(g) / |E g|^2 over batches, unbiased; None if the mean is zero."""
        mean_squared_norm = self._squared_norm(names) / self.count**2  # |E g|^2
        # The sum of |g - E g|^2 over n batches is the sum of |g|^2, less n |E g|^2.
        deviations = sum(self.squares[name] for name in names) - self.count * mean_squared_norm
        if not mean_squared_norm > 0:  # nor for NaN
            return None
        return max(0.0, deviations) / (self.count - 1) / mean_squared_norm


def _pass(
    model: nn.Module, layers: dict[str, RuleLayer], forward: Callable[[], Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the input of each layer, in the order of the calls, and what `forward` returns.

    Each input is a tensor that this layer alone reads, so its gradient is the error that this layer
    sends down, and not the sum over all layers that read the same tensor.
    """
    inputs: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def before(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            inputs[name] = arguments[0].view_as(arguments[0])  # a node of its own in the graph
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
    """Return the cosine of each sample (N,) between two tensors (N, ...); NaN where one is zero."""
    one, other = one.detach().double().flatten(1), other.detach().double().flatten(1)
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))


def _degrees(cosine: float) -> float | None:
    """Return the angle of a cosine in degrees; None for NaN."""
    # Rounding may have left it a little outside of [-1, 1].
    return None if math.isnan(cosine) else math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


def _feedback(layer: RuleLayer) -> tuple[float | None, float | None]:
    """Return the angle in degrees between K and W, and |K| / |W|.

    Both are None where a layer sends down no error, or not by a kernel in the place of W, or where
    K or W is zero.
    """
    if layer.rule.direct:  # the error comes from the output, not from the layer above
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
