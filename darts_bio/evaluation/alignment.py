"""How near the learning of a model is to backpropagation, layer by layer.

Each batch is passed through the model twice, with the same random draws: once under its rules and
once under `true_gradients`. Every weight that carries a rule counts as a layer, whether it is that
of a layer under a rule or has its rule beside it (attention, recurrent layers, weights that a
model's own code multiplies by). W is the weight, K the kernel that carries the error down in its
place, g a gradient.

- feedback angle and norm ratio: the angle between K and W, and |K| / |W|. Values count with their
  signs, as the error feels them.
- error angle: between the error that a layer sends down and the one that it would send if every
  rule in the model were exact, by the mean cosine over samples, which the first dimension of its
  input counts, and over products, where the weight stands in several (steps of an LSTM). At the
  lowest layers it shows what all layers above have done together.
- gradient cosine and angle: between a weight's gradient and its exact gradient, both the mean over
  all batches.
- gradient variance: over batches, divided by the squared norm of the mean, sum Var(g) / |E g|^2
  (the figure by which arXiv 2507.13485 compares rules); of the exact gradient beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.evaluation.alignment_inputs import (
    Batch,
    check_finite,
    check_loss,
    loss_of,
    read_batches,
)
from darts_bio.evaluation.moments import Moments, degrees, per_sample_cosine
from darts_bio.modes import undisturbed
from darts_bio.networks.naming import WeightName, name_weights
from darts_bio.rules import DirectOperation, learned_feedback, true_gradients
from darts_bio.rules.carriers import WeightedCarrier
from darts_bio.rules.observing import observed_inputs
from darts_bio.rules.weights import Weight, check_model, weights_in
from darts_bio.training.retrain import Retraining


@dataclass(frozen=True)
class LayerAlignment:
    """The alignment of one layer; None where there is nothing to compare (no kernel, no error sent).

    Attributes:
        name: The layer's name in the model, with the weight's own where a module has several.
        title: What it is called: its place, and the operation on its edge or PyTorch's layer.
        rule: The spec of its learning rule; within an operation under a direct rule, that rule.
        depth: Its place in the order in which layers are run, counted from 0.
        feedback_angle: Between K and W, in degrees.
        feedback_norm_ratio: |K| / |W|.
        error_angle: Between the error it sends down and the exact one, in degrees.
        gradient_cosine: Between the mean gradient of its weight and the exact one.
        gradient_variance: Of that gradient over batches, in units of its squared norm.
        exact_gradient_variance: The same of the exact gradient.
    """

    name: str
    title: WeightName
    rule: str
    depth: int
    feedback_angle: float | None
    feedback_norm_ratio: float | None
    error_angle: float | None
    gradient_cosine: float | None
    gradient_variance: float | None
    exact_gradient_variance: float | None

    @property
    def label(self) -> str:
        """The name of the layer by place, operation, rule and part."""
        return self.title.under(self.rule)

    @property
    def gradient_angle(self) -> float | None:
        """The angle of its `gradient_cosine`, in degrees."""
        return None if self.gradient_cosine is None else degrees(self.gradient_cosine)


@dataclass(frozen=True, repr=False)
class Alignment:
    """The alignment of all layers by depth, and of all weights' gradients taken as one vector.

    >>> values = (60.0, 1.1, 30.0, 0.8, 0.5, 0.4)
    >>> layer = LayerAlignment("features.0", WeightName("features.0", "Conv2d"), "fa", 0, *values)
    >>> alignment = Alignment((layer,), 0.8, 0.5, 0.4)
    >>> alignment.summary()["error_angle"]
    30.0
    >>> print(alignment)
    layer                  K to W  |K|/|W|  error  cos(g, exact)  var/|g|^2  exact var/|g|^2
    features.0, Conv2d:fa    60.0     1.10   30.0          0.800        0.5              0.4
    all weights                                            0.800        0.5              0.4
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

    def by_rule(self, angle: str) -> dict[str, float]:
        """Return the mean of an angle, in degrees, over the layers of each rule that have it.

        `angle` is a field of `LayerAlignment`. Layers count alike, whatever their size.

        >>> name, rest = WeightName("0", "Linear"), (None, 0.8, 0.5, 0.4)
        >>> layers = [LayerAlignment("0", name, "fa", 0, a, 1.0, *rest) for a in (30.0, 50.0)]
        >>> Alignment(tuple(layers), 0.8, 0.5, 0.4).by_rule("feedback_angle")
        {'fa': 40.0}
        """
        angles: dict[str, list[float]] = {}
        for layer in self.layers:
            value = getattr(layer, angle)
            if value is not None:
                angles.setdefault(layer.rule, []).append(value)
        return {rule: sum(values) / len(values) for rule, values in angles.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, for JSON, and the label and gradient angle of layers.

        `from_dict` reads them back.
        """
        content = asdict(self)
        for values, layer in zip(content["layers"], self.layers, strict=True):
            values |= {"label": layer.label, "gradient_angle": layer.gradient_angle}
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Alignment:
        """Return the alignment that `as_dict` has written; other keys are passed over.

        Raises LookupError, TypeError or ValueError for anything else.
        """
        layers = []
        for values in content["layers"]:
            known = _fields_of(LayerAlignment, values)
            title = WeightName(**_fields_of(WeightName, values["title"]))
            layers.append(LayerAlignment(**known | {"title": title}))
        return cls(**_fields_of(cls, content) | {"layers": tuple(layers)})

    def __repr__(self) -> str:
        """Return a table in plain text: a row a layer, and one of all weights."""
        head = (
            "layer",
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
                    layer.label,
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
                _text(self.gradient_cosine, "{:.3f}"),
                _text(self.gradient_variance, "{:.3g}"),
                _text(self.exact_gradient_variance, "{:.3g}"),
            )
        )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for row in rows:
            cells = [
                text.rjust(width) if column else text.ljust(width)  # words left, numbers right
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


PLAIN: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float | None": (int, float, type(None)),
}
"""The types that a value read from JSON may have, by the annotation of its field."""


def _fields_of(kind: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a dataclass' fields in plain data, by name.

    Raises LookupError for one that is missing, TypeError for one of another type.
    """
    values = {field.name: content[field.name] for field in fields(kind)}
    for field in fields(kind):
        kinds = PLAIN.get(str(field.type), (object,))
        if type(values[field.name]) not in kinds and kinds != (object,):
            raise TypeError(f"{field.name}: expected {field.type}")
    return values


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
    ...     print(layer.label, round(layer.gradient_cosine, 3) == 1)
    0, Linear:fa False
    2, Linear:fa True

    Args:
        model: A model with weights that carry rules.
        batches: Two or more of (x, labels).
        loss: Maps model(x) and labels to the loss.

    Raises:
        InputError: If there are fewer than two batches (variance has no meaning then), or no weight
            that carries a rule; or if an argument is not what it is said to be above.
        DivergedError: If the loss or a gradient is not finite, though the inputs are.
    """
    check_model(model, "alignment")
    check_loss(loss)
    carried = {weight.name: weight for weight in weights_in(model) if weight.carrier is not None}
    if not carried:
        raise InputError(
            "alignment: expected a model with layers that carry rules, found none; convert it first"
        )
    operations = _direct_operations(model)
    observed = {name: operations.get(name, weight.carrier) for name, weight in carried.items()}
    feedback = set(map(id, learned_feedback(model)))
    weights = {
        n: p for n, p in model.named_parameters() if id(p) not in feedback and p.requires_grad
    }
    if not weights:
        raise InputError(
            "alignment: expected weights that learn, found all of them frozen; call "
            "model.requires_grad_()"
        )
    cosines: dict[str, list[Tensor]] = {}  # by layer, for each batch and product (N,)
    order: list[str] = []  # names of layers, as they are run
    # As of an own loop, whatever is around it: gradients are taken, on tensors that allow it.
    with torch.inference_mode(False), torch.enable_grad(), undisturbed(model, training=True):
        ruled, exact = Moments(weights), Moments(weights)
        for where, x, labels in read_batches(batches):
            sent = []  # under the rules, then exact
            for moments, context in (
                (ruled, contextlib.nullcontext()),
                (exact, true_gradients(model)),
            ):
                # Each pass is forked from the same random state: the same dropout, drop path.
                with torch.random.fork_rng([x.device] if x.is_cuda else []), context:
                    with observed_inputs(observed) as inputs:  # type: ignore[arg-type]
                        value = loss_of(model, loss, x, labels, where)
                    gradients, errors = _gradients(value, inputs, weights)
                order = order or list(inputs)
                moments.add(gradients)
                for name, square in moments.squares.items():
                    check_finite(f"gradient of {name}", square, x, where)
                sent.append(errors)
            for place, error in sent[0].items():
                if place in sent[1]:
                    cosine = per_sample_cosine(error, sent[1][place])
                    cosines.setdefault(place[0], []).append(cosine)
    if ruled.count < 2:
        raise InputError(f"alignment: expected at least 2 batches, found {ruled.count}")
    titles = name_weights(model, carried.values())
    rules = _rules(carried, operations)
    parameters = {id(parameter): name for name, parameter in weights.items()}
    rows = []
    for depth, name in enumerate(order):
        error_angle = None
        if name in cosines:
            error_angle = degrees(torch.cat(cosines[name]).nanmean().item())
        names = _parameters_of(carried[name], parameters)
        rows.append(
            LayerAlignment(
                name,
                titles[name],
                rules[name],
                depth,
                *((None, None) if name in operations else _feedback(carried[name].carrier)),
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


Place = tuple[str, int]
"""A product by a weight: the weight's name, and the number of the product in a pass."""


def _gradients(
    value: Tensor, inputs: Mapping[str, Sequence[Tensor]], weights: Mapping[str, nn.Parameter]
) -> tuple[tuple[Tensor | None, ...], dict[Place, Tensor]]:
    """Return the gradients of weights, and the error that each product sends down to its input.

    None reaches the images, which need no gradient.
    """
    places = {
        (name, number): x
        for name, of_name in inputs.items()
        for number, x in enumerate(of_name)
        if x.requires_grad
    }
    gradients = torch.autograd.grad(value, [*places.values(), *weights.values()], allow_unused=True)
    errors = {
        place: error for place, error in zip(places, gradients, strict=False) if error is not None
    }
    return gradients[len(places) :], errors


def _direct_operations(model: nn.Module) -> dict[str, DirectOperation]:
    """Return the operations under a direct rule, by the name of their first weight.

    Such an operation sends down one error in place of that weight's.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, DirectOperation):
            first = next(weights_in(module)).name
            found[f"{name}.{first}".strip(".")] = module
    return found


def _rules(
    carried: Mapping[str, Weight], operations: Mapping[str, DirectOperation]
) -> dict[str, str]:
    """Return the spec of the rule of each weight; in an operation under a direct rule, of that."""
    direct = {id(m): op.rule.spec for op in operations.values() for m in op.modules()}
    specs = {}
    for name, weight in carried.items():
        assert weight.carrier is not None
        specs[name] = direct.get(id(weight.carrier), weight.carrier.rule.spec)
    return specs


def _parameters_of(weight: Weight, names: Mapping[int, str]) -> list[str]:
    """Return the names of the parameters that a weight is, or that it is computed from.

    Args:
        weight: The weight.
        names: The names of all parameters that learn, by identity; a tied one has one name.
    """
    owner, attribute = weight.owner, weight.attribute
    if weight.is_parameter:
        found: Iterable[nn.Parameter] = (owner._parameters[attribute],)  # type: ignore[assignment]
    else:  # by a parametrization
        found = owner.parametrizations[attribute].parameters()  # type: ignore[union-attr, index]
    return [names[id(parameter)] for parameter in found if id(parameter) in names]


def training_alignment(training: Retraining, batches: int) -> Alignment:
    """Measure a network in training, on the first `batches` of its training batches."""
    return measure_alignment(
        training.network, map(training.source.batch, range(batches)), training.loss
    )


def _feedback(carrier: WeightedCarrier | None) -> tuple[float | None, float | None]:
    """Return the angle in degrees between K and W, and |K| / |W|.

    Both are None where a layer sends down no error, or not by a kernel in the place of W, or where
    K or W is zero.
    """
    assert carrier is not None
    if carrier.rule.direct:  # the error comes from the output, not from the layer above
        return None, None
    with torch.no_grad():
        weight = carrier.carried_weight
        kernel = carrier.transport(weight)
    if kernel is None:
        return None, None
    kernel, weight = kernel.detach().double().flatten(), weight.detach().double().flatten()
    norms = kernel.norm(), weight.norm()
    if not all(norms):
        return None, None
    return degrees((kernel @ weight / (norms[0] * norms[1])).item()), (norms[0] / norms[1]).item()
