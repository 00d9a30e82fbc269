"""The inputs that weights under rules multiply, seen from outside during passes of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from darts_bio.rules.carriers import DirectCarrier


@contextlib.contextmanager
def observed_inputs(carriers: Mapping[str, DirectCarrier]) -> Iterator[dict[str, list[Tensor]]]:
    """Yield a dict that fills with the inputs that carriers multiply within the context.

    It maps the name of a carrier to its inputs, one for each product, in the order in which they
    are computed; carriers come in the order of their first product. It does not matter whether a
    layer multiplies by its weight or the model's own code does.

    Each input is a tensor that this product alone reads. So its gradient is the error that this
    product sends down, and not the sum over all that read the same tensor.

    >>> import torch
    >>> from darts_bio.rules import RULES, RuleLinear
    >>> layer = RuleLinear(3, 2, rule=RULES.build("fa"))
    >>> x = torch.ones(1, 3, requires_grad=True)
    >>> with observed_inputs({"layer": layer}) as inputs:
    ...     y = layer(x).sum() + x.sum()
    >>> error = torch.autograd.grad(y, inputs["layer"])[0]
    >>> torch.equal(error[0], layer.feedback_kernel.sum(0))  # without what x.sum() sends
    True
    """
    inputs: dict[str, list[Tensor]] = {}

    def observer(name: str) -> Callable[[Tensor], Tensor]:
        def observe(x: Tensor) -> Tensor:
            inputs.setdefault(name, []).append(x.view_as(x))  # a node of its own in the graph
            return inputs[name][-1]

        return observe

    try:
        for name, carrier in carriers.items():
            carrier.observer = observer(name)
        yield inputs
    finally:
        for carrier in carriers.values():
            vars(carrier).pop("observer", None)
