"""How near the gradients of a global learner are to backpropagation, layer by layer.

What `alignment` measures of learning rules, as far as it has a meaning here: a learner sends no
error through a kernel in the place of W, so there are no angles of feedback and of errors.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from darts_bio.errors import InputError
from darts_bio.evaluation.alignment import Alignment, LayerAlignment
from darts_bio.evaluation.alignment_inputs import Batch, read_batches
from darts_bio.evaluation.moments import Moments
from darts_bio.learners import Learner
from darts_bio.modes import restored, undisturbed
from darts_bio.networks.naming import WeightName
from darts_bio.rules import true_gradients


def learner_alignment(model: nn.Module, teacher: Learner, batches: Iterable[Batch]) -> Alignment:
    """Measure how near what a learner leaves in `.grad` is to the exact gradient.

    Learner and backpropagation see the same batches, with the same masks of dropout. The model is
    in training mode meanwhile. Parameters, their .grad, buffers, mode and random state are left as
    they were.

    Args:
        model: The model that the learner was made for.
        teacher: The learner.
        batches: Two or more of (x, y), as the learner's `backward` takes them.

    Raises:
        InputError: There are fewer than two batches, or the learner is that of another model.

    >>> from darts_bio.learners import learner
    >>> model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    >>> batches = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    >>> alignment = learner_alignment(model, learner(model, "pepita"), batches)
    >>> for layer in alignment.layers:
    ...     print(layer.name, layer.rule, round(layer.gradient_cosine, 2) == 1)
    0 pepita False
    2 pepita True
    """
    parameters = teacher.chain.parameters
    names = {parameter: name for name, parameter in model.named_parameters()}
    if not all(parameter in names for parameter in parameters):
        raise InputError(
            "alignment: expected the model that the learner was made for, found another one; pass "
            "both as they are trained"
        )
    weights = {names[parameter]: parameter for parameter in parameters}
    found, exact = Moments(weights), Moments(weights)
    with undisturbed(model, training=True), restored(teacher.parameters(), "grad"):
        for _, x, y in read_batches(batches):
            devices = [x.device] if x.is_cuda else []
            with torch.random.fork_rng(devices):
                for parameter in (*parameters, *teacher.parameters()):
                    parameter.grad = None
                teacher.backward(x, y)
                found.add([parameter.grad for parameter in parameters])
            with torch.random.fork_rng(devices), true_gradients(model), torch.enable_grad():
                value = teacher.loss(teacher.chain(x), y)
                exact.add(torch.autograd.grad(value, parameters, allow_unused=True))
    if found.count < 2:
        raise InputError(f"alignment: expected at least 2 batches, found {found.count}")
    layers = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    rows = tuple(
        LayerAlignment(
            name,
            WeightName(name, type(model.get_submodule(name)).__name__),
            teacher.spec,
            depth,
            feedback_angle=None,
            feedback_norm_ratio=None,
            error_angle=None,
            gradient_cosine=found.cosine(exact, [f"{name}.weight"]),
            gradient_variance=found.variance([f"{name}.weight"]),
            exact_gradient_variance=exact.variance([f"{name}.weight"]),
        )
        for depth, name in enumerate(layers)
    )
    whole = list(weights)
    return Alignment(rows, found.cosine(exact, whole), found.variance(whole), exact.variance(whole))
