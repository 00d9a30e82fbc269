"""The ways in which a weight stands in a product, and how a rule acts in each of them.

A *use* is one product of an input x and a weight, which is linear in both. `pass_under_rule` computes
it so that the error of x goes as the rule of a carrier says. A layer under a rule is a use itself
(`rules.layers.RuleLayer`); the classes here are those of weights that a model multiplies by with its
own code (`rules.products`).

>>> import torch
>>> from darts_bio.rules import RULES, RuleLinear
>>> layer = RuleLinear(3, 2, rule=RULES.build("fa"))
>>> x = torch.ones(1, 3, requires_grad=True)
>>> y = pass_under_rule(layer, LinearUse(layer.weight, None), x, layer.transport)
>>> y.sum().backward()
>>> torch.equal(x.grad[0], layer.feedback_kernel.sum(0))
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.rules.base import Operator
from darts_bio.rules.carriers import WeightedCarrier
from darts_bio.rules.forward_mode import convolve, project
from darts_bio.rules.functional import LocalUpdate, first_derivative_only
from darts_bio.rules.operators import Convolution, Product
from darts_bio.rules.pointwise import reads_single_pixels, sampled
from darts_bio.rules.tangents import forward_mode


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast would give a tensor; None where it leaves it as it is.

    It does so outside of its context, and with float64.
    """
    kind = x.device.type
    if kind == "meta":  # has no autocast, and raises if asked
        return None
    if not torch.is_autocast_enabled(kind) or x.dtype == torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


def in_autocast_dtype(x: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    """Return all tensors as autocast would hand them to the layer.

    Autocast does not look inside a custom Function.
    """
    tensors: list[Tensor | None] = []
    for tensor in (x, *others):
        dtype = None if tensor is None else autocast_dtype(tensor)
        tensors.append(tensor if tensor is None or dtype is None else tensor.to(dtype))
    return tensors


class Use(Protocol):
    """One product of an input and a weight, with a bias or none."""

    @property
    def channel(self) -> int:
        """The dimension of the input that counts its channels."""

    @property
    def used_weight(self) -> Tensor:
        """The weight as it stands in the product."""

    @property
    def bias(self) -> Any:
        """The bias, or None."""

    def plain_pass(self, x: Tensor) -> Tensor:
        """Compute the product as PyTorch does."""

    def operator(self, x: Tensor) -> tuple[Tensor, Operator]:
        """Return x as the linear map takes it (padded), and that map, for local rules."""

    def pass_through(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Compute the product, the error of x going through `kernel`, shaped like the weight."""


def pass_under_rule(
    carrier: WeightedCarrier, use: Use, x: Tensor, kernel_of: Callable[[Tensor], Tensor | None]
) -> Tensor:
    """Compute a product so that the error of its input goes as the carrier's rule says.

    Args:
        carrier: What has the rule.
        use: The product.
        x: Its input.
        kernel_of: Maps the weight, as it stands in the product, to what carries the error in its
            place: the weight itself under bp, None where no error is sent.
    """
    rule = carrier.rule
    if carrier.observer is not None:
        x = carrier.observer(x)
    if carrier.exact or not torch.is_grad_enabled():
        return use.plain_pass(x)
    weight = use.used_weight
    if rule.direct:
        learns = carrier.feedback_learns(weight.requires_grad)
        if x.requires_grad or learns:
            return carrier.sent_directly(use.plain_pass(x.detach()), x, use.channel, learns)
    compiling = torch.compiler.is_compiling()
    if rule.local:
        if not compiling:
            carrier.unit.listen(carrier)  # the weight may be another one since
        kernel = kernel_of(weight) if x.requires_grad else None
        x, operator = use.operator(x)
        x, weight, bias, kernel = in_autocast_dtype(x, weight, use.bias, kernel)  # type: ignore[assignment]
        kernel = None if kernel is None else kernel.detach()
        learning_rule = rule if carrier.training else None
        return LocalUpdate.apply(x, weight, bias, kernel, operator, learning_rule)
    if not compiling and carrier.training and not carrier.is_renewed:
        carrier.expect_renewal(weight)
    # Feedback that is learned learns in the lowest layer too.
    learns = carrier.feedback_learns(weight.requires_grad)
    moving = forward_mode()
    asked = x.requires_grad or learns or moving
    kernel = kernel_of(weight) if asked else weight
    if kernel is weight:
        if not moving:
            return use.plain_pass(x)
        kernel = kernel.detach()  # as a kernel it gets no gradient
    assert kernel is not None  # only local rules send nothing
    if rule.learned and not learns:
        kernel = kernel.detach()
    return use.pass_through(x, kernel)


@dataclass(frozen=True)
class LinearUse:
    """x (..., I) times a weight (O, I) transposed, plus a bias (O,)."""

    used_weight: Tensor
    bias: Tensor | None
    channel = -1

    def plain_pass(self, x: Tensor) -> Tensor:
        return F.linear(x, self.used_weight, self.bias)

    def operator(self, x: Tensor) -> tuple[Tensor, Operator]:
        return x, Product()

    def pass_through(self, x: Tensor, kernel: Tensor) -> Tensor:
        return project(*in_autocast_dtype(x, self.used_weight, self.bias, kernel))


@dataclass(frozen=True)
class ConvolutionUse:
    """A convolution of x (N, C, *spatial) with a weight (C', C/groups, *window), padded by zeros.

    Where there is an `output_padding` it is a transposed one, with a weight (C, C'/groups, *window).
    """

    used_weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...] | None = None
    channel = 1

    def unstrided(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return x and the stride that is still due (`rules.pointwise`)."""
        window = self.used_weight.shape[2:]
        if self.output_padding is None and reads_single_pixels(window, self.stride, self.padding):
            return sampled(x, self.stride), (1,) * len(self.stride)
        return x, self.stride

    def plain_pass(self, x: Tensor) -> Tensor:
        x, stride = self.unstrided(x)
        transposed = self.output_padding is not None
        beyond = self.output_padding or (0,) * len(stride)
        geometry = (stride, self.padding, self.dilation, transposed, beyond, self.groups)
        convolve: Any = torch.convolution
        return convolve(*in_autocast_dtype(x, self.used_weight, self.bias), *geometry)

    def operator(self, x: Tensor) -> tuple[Tensor, Operator]:
        if self.output_padding is not None:
            raise InputError(
                "a local rule is not defined for a transposed convolution: use another rule there"
            )
        x, stride = self.unstrided(x)
        return x, Convolution(stride, self.padding, self.dilation, self.groups)

    def pass_through(self, x: Tensor, kernel: Tensor) -> Tensor:
        x, stride = self.unstrided(x)
        x, weight, bias, kernel = in_autocast_dtype(x, self.used_weight, self.bias, kernel)  # type: ignore[assignment]
        geometry = (stride, self.padding, self.dilation, self.groups)
        return convolve(x, weight, bias, kernel, *geometry, 1, self.output_padding)


@dataclass(frozen=True)
class BilinearUse:
    """Any other function of an input and a weight that is linear in both, such as torch.bmm."""

    used_weight: Tensor
    function: Callable[[Tensor, Tensor], Tensor]
    name: str
    bias = None

    @property
    def channel(self) -> int:
        raise InputError(
            f"dfa: {self.name} has no one dimension that counts channels; use another rule there"
        )

    def plain_pass(self, x: Tensor) -> Tensor:
        return self.function(x, self.used_weight)

    def operator(self, x: Tensor) -> tuple[Tensor, Operator]:
        raise InputError(
            f"a local rule is not defined for the product {self.name}, in which each sample or head "
            "has a weight of its own; use another rule there"
        )

    def pass_through(self, x: Tensor, kernel: Tensor) -> Tensor:
        if forward_mode():
            raise InputError(f"a forward-mode pass cannot run through {self.name} under a rule")
        x, weight, kernel = in_autocast_dtype(x, self.used_weight, kernel)  # type: ignore[assignment]
        return FeedbackBilinear.apply(x, weight, kernel, self.function)


class FeedbackBilinear(torch.autograd.Function):
    """A function linear in x and in a weight, the error of x going through `kernel`.

    A kernel that is learned receives the weight's gradient. The backward pass runs the function
    anew, once for each gradient.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, kernel: Tensor, function: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        return function(x, weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, kernel, ctx.function = inputs
        ctx.save_for_backward(x, weight, kernel)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        x, weight, kernel = (tensor.detach() for tensor in ctx.saved_tensors)
        wants_x, wants_w, wants_kernel, _ = ctx.needs_input_grad
        with torch.enable_grad():
            dx = _derivative(lambda x: ctx.function(x, kernel), x, dy) if wants_x else None
            learns = wants_w or wants_kernel
            dw = _derivative(lambda w: ctx.function(x, w), weight, dy) if learns else None
        return dx, dw if wants_w else None, dw if wants_kernel else None, None


def _derivative(function: Callable[[Tensor], Tensor], at: Tensor, dy: Tensor) -> Tensor:
    """Return the gradient of <dy, function(at)>."""
    at = at.requires_grad_()
    return torch.autograd.grad(function(at), at, dy)[0]


def each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Return a number for each dimension.

    >>> each(2, 3), each((1, 2), 2)
    ((2, 2, 2), (1, 2))
    """
    if isinstance(value, int):
        return (value,) * dimensions
    numbers = tuple(value)
    return numbers * dimensions if len(numbers) == 1 else numbers
