"""Direct feedback alignment: every layer's input hears of the error at the model's output itself.

The output's error is caught in the same backward pass: a hook on the model's output keeps it in an
`OutputError`, which all that is direct in the model shares. The output's gradient is the first that
a backward pass computes, so it is there when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.rules.base import RULES, InitialLaw
from darts_bio.rules.compilers import Uncompiled
from darts_bio.rules.feedback import FeedbackAlignment
from darts_bio.rules.functional import first_derivative_only


@RULES.register("dfa")
@dataclass(frozen=True)
class DirectFeedbackAlignment(FeedbackAlignment):
    """Direct feedback alignment: the input's error is e B / positions, e = dLoss/dlogits (Nokland
    2016, 1609.01596).

    e (N, K) is projected by B (K, C) to the C channels of the input and spread evenly over its
    positions, which is what a global average pooling and a random classifier right above would send
    down: B has the law of that classifier, uniform on +-1/sqrt(C). The error that arrives from the
    layers above still trains the weight itself.

    In cells it acts per operation: the operation's input receives e B, within the operation (a few
    layers) the error is exact. In a model of `convert`, and outside of cells, each layer is an
    operation by itself.

    State: B, (outputs, channels of the input), a buffer. Cost: less than bp, since the input's
    gradient is a small product. When: the whole backward pass is one broadcast; works where depth
    is small, fails in deep convolutional nets.
    """

    direct = True
    # B is not shaped like W, so neither kernels in flat tensors nor those of W's norm can be
    # formed.
    elementwise = False
    stacks = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale != "init":
            raise InputError(
                "dfa: scale: expected init, since its feedback is not shaped like a weight"
            )

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        raise AssertionError(
            "the layer sends the output's error in place of one that goes through a kernel"
        )


def direct_law(outputs: int, channels: int) -> InitialLaw:
    """That of a classifier (outputs, channels)."""
    return InitialLaw(torch.Size((outputs, channels)), channels**-0.5)


# A compiler would take the error of the pass that it traces for a constant.
uncompiled = Uncompiled(
    "dfa cannot be compiled whole: layers read the output's error in the backward pass; leave out "
    "fullgraph"
)


class OutputError:
    """The error at a model's output (N, outputs), from the hook on the output until the next pass
    replaces it.
    """

    def __new__(cls, *arguments: Any) -> Self:  # of copies and unpickled ones too
        uncompiled.prepare()
        return super().__new__(cls)

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs
        self.value: Tensor | None = None

    def watch(self, output: Tensor) -> Tensor:
        """Has the output's error caught when it is computed. Raises InputError if it has other
        sizes than expected.
        """
        return uncompiled(self._watch, output)

    def _watch(self, output: Tensor) -> Tensor:
        if output.requires_grad:
            if output.dim() < 2 or output.shape[-1] != self.outputs:
                raise InputError(
                    f"dfa: expected an output of {self.outputs} values a sample, found the shape "
                    f"{tuple(output.shape)}; say so where the model is made (convert(..., "
                    "outputs=N))"
                )
            output.register_hook(self._catch)
        return output

    def _catch(self, error: Tensor) -> None:
        # Of a sequence of outputs all errors together.
        self.value = error.detach() if error.dim() == 2 else error.detach().flatten(1, -2).sum(1)


class DirectError(torch.autograd.Function):
    """y as it is, and an error for x beside it: e B spread over the positions of x, or none at all
    where B is None.

    `channel` is the dimension of x that counts its channels. y must not depend on x otherwise.
    """

    @staticmethod
    def forward(
        y: Tensor, x: Tensor, kernel: Tensor | None, source: OutputError | None, channel: int
    ) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, kernel, ctx.source, ctx.channel = inputs
        ctx.like = x.new_empty(()).expand(x.shape)
        ctx.strides = x.stride()
        ctx.save_for_backward(kernel)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        (kernel,) = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return dy, None, None, None, None
        dx = ctx.like.new_empty_strided(ctx.like.shape, ctx.strides)  # laid out in memory as x
        if kernel is None:
            dx.zero_()
        else:
            dx.copy_(projected(ctx.source, kernel, ctx.like, ctx.channel))
        return dy, dx, None, None, None


class DirectInput(torch.autograd.Function):
    """x (N, C, *positions) as it is; beside the error that comes down to it, it receives e B."""

    @staticmethod
    def forward(x: Tensor, kernel: Tensor, source: OutputError) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, kernel, ctx.source = inputs
        ctx.save_for_backward(kernel)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        (kernel,) = ctx.saved_tensors
        return dx + projected(ctx.source, kernel, dx, 1).to(dx.dtype), None, None


def projected(source: OutputError, kernel: Tensor, x: Tensor, channel: int) -> Tensor:
    """e B by the number of positions, of a shape that spreads over x."""
    e = source.value
    if e is None:
        raise InputError(
            "dfa: the error at the model's output was not seen; compute the loss from the model's "
            "output"
        )
    if e.shape[0] != x.shape[0]:
        raise InputError(
            f"dfa: expected the {e.shape[0]} samples of the output, found {x.shape[0]} at a layer; "
            "a model that "
            "regroups its samples cannot be trained by dfa there: use another rule for that layer"
        )
    shape = [1] * x.dim()
    shape[0], shape[channel] = x.shape[0], x.shape[channel]
    positions = x[0].numel() // x.shape[channel]
    return (e.to(kernel.dtype) @ kernel / positions).view(shape)
