"""Direct feedback alignment: every layer's input receives the error at the model's output itself.

The error at the output is caught in the same backward pass. A hook on the model's output keeps it
in an `OutputError`, which all direct layers and operations of the model share. The gradient of the
output is the first that a backward pass computes, so it is there when a layer below asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, unknown_name
from darts_bio.private_torch import after_backward
from darts_bio.rules.base import RULES, InitialLaw
from darts_bio.rules.compilers import Uncompiled
from darts_bio.rules.feedback import FeedbackAlignment
from darts_bio.rules.functional import first_derivative_only

Positions = Literal["even", "all"]


@RULES.register("dfa")
@dataclass(frozen=True)
class DirectFeedbackAlignment(FeedbackAlignment):
    """Direct feedback alignment: dx = e B / positions, e = dLoss/dlogits (after Nokland 2016).

    On maps this is a form of ours: e (N, K) is projected by B (K, C) to the C channels of the input
    and spread evenly over its positions. `dfa(positions=all)` is Nokland's (arXiv 1609.01596):
    dx = e B with B (K, C H W), a number for each channel at each position. On vectors (N, C) both
    are the same.

    A global average pooling and a random classifier right above would send down what the first
    does, a random classifier alone what the second does. So B has the law of that classifier's
    weight, uniform on +-1/sqrt(its inputs). The error that arrives from the layers above still
    trains the weight itself.

    `positions=all` needs the size of every layer's input, which is known from a look at a forward
    pass: `convert(model, "dfa(positions=all)", inputs=...)`. Cells work at any size, so there it is
    refused.

    In cells it acts per operation: the operation's input receives e B, and within the operation (a
    few layers) the error is exact. In a model of `convert`, and outside of cells, each layer is an
    operation by itself.

    State: B, (outputs, channels of the input), a buffer; with `positions=all` (outputs, *the shape
    of a sample of the input).

    Cost: the input's gradient is a smaller product than that of bp; a step of a network of cells took
    1.08 times that of bp at batches of 16.

    When: the whole backward pass is one broadcast; it works where depth is small and fails in deep
    convolutional nets.

    Example: B for a model of 10 outputs and a layer of 64 input channels, and the error of that
    layer's input (N, 64, 8, 8). `convert(model, "dfa")` connects the layers of a model to its
    output in this way.

        >>> import torch
        >>> from darts_bio.rules import RULES
        >>> from darts_bio.rules.dfa import direct_law
        >>> law = direct_law(10, 64)
        >>> B = RULES.build("dfa").state(law, torch.Generator().manual_seed(0))["kernel"]
        >>> e = torch.rand(5, 10)
        >>> dx = (e @ B / (8 * 8)).view(5, 64, 1, 1).expand(5, 64, 8, 8)
        >>> B.shape, dx.shape, bool(B.abs().max() <= 1 / 8)
        (torch.Size([10, 64]), torch.Size([5, 64, 8, 8]), True)
    """

    positions: Positions = "even"
    direct = True
    # B is not shaped like W, so neither kernels in flat tensors nor kernels of the norm of W can be
    # formed.
    elementwise = False
    stacks = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale != "init":
            raise InputError(
                "dfa: scale: expected init, since its feedback is not shaped like a weight"
            )
        if self.positions not in get_args(Positions):
            raise unknown_name("positions of dfa", str(self.positions), get_args(Positions))

    @property
    def per_position(self) -> bool:  # type: ignore[override]
        return self.positions == "all"

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        raise AssertionError(
            "the layer sends the output's error in place of one that goes through a kernel"
        )


@RULES.register("dkp")
@dataclass(frozen=True)
class DirectKolenPollack(DirectFeedbackAlignment):
    """Direct Kolen-Pollack: dfa with a B that learns, by dB = e^T x (Webster 2021).

    B gets the gradient that a readout from the layer's input x to the outputs would get, and the
    weight decay of the weights (Webster, Choi and Ahn, Learning the Connections in Direct Feedback
    Alignment). At the input of the last layer, which is such a readout, B so gets the very steps of
    W and tends to it, and the error becomes exact. Where dfa spreads e B evenly over positions, x
    is the mean over them; with `positions=all` each position counts by itself, as published.

    In cells it acts per operation, as dfa does.

    State: that of dfa, but a parameter (not counted among the model's, not counted when our own
    training clips gradients). Beside weights that are frozen it stays as it is.

    Cost: that of dfa, and a product as small as its own; candidates of the supernet run one by one.

    When: as dfa; its authors report 67.5 % where dfa reaches 61.0 and bp 70.5, with two
    convolutions on CIFAR-10.

    Example: at the last layer B gets the gradient of W.

        >>> import torch
        >>> from darts_bio.rules import convert
        >>> model = convert(torch.nn.Sequential(torch.nn.Linear(4, 3)), "dkp")
        >>> model(torch.rand(8, 4)).square().mean().backward()
        >>> torch.allclose(model[0].feedback_kernel.grad, model[0].weight.grad)
        True
    """

    carries = "learned feedback"
    learned = ("kernel",)
    stacks = False


def direct_law(outputs: int, *sample: int) -> InitialLaw:
    """Return the law of B, (outputs, *sample): that of the weight of a linear classifier.

    `sample` is the number of channels, or the shape of a sample of the input.
    """
    return InitialLaw(torch.Size((outputs, *sample)), math.prod(sample) ** -0.5)


# A compiler would take the error of the pass that it traces for a constant.
uncompiled = Uncompiled(
    "dfa cannot be compiled whole: layers read the output's error in the backward pass; leave out "
    "fullgraph"
)


class OutputError:
    """The place where a model keeps the error at its output, for all that is direct in it.

    `value` (N, outputs) is set by a hook on the output in each backward pass, and None again at its
    end, so that no other pass can take it for its own.
    """

    def __new__(cls, *arguments: Any) -> Self:
        # Here and not in __init__, since copies and unpickled ones need it too.
        uncompiled.prepare()
        return super().__new__(cls)

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs
        self.value: Tensor | None = None

    def watch(self, output: Tensor) -> Tensor:
        """Have the error of this output (..., outputs) caught when it is computed.

        Returns the output itself.

        Raises:
            InputError: If the output has other than `outputs` values a sample.
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
        """Keep the error (N, ..., outputs) as (N, outputs): the sum over a sequence of outputs."""
        self.value = error.detach() if error.dim() == 2 else error.detach().flatten(1, -2).sum(1)
        after_backward(self._forget)

    def _forget(self) -> None:
        self.value = None


class WatchedOutput:
    """A forward hook that has the error at a model's output caught, to be sent directly.

    Of an output of several tensors (a tuple, a dict, nested or not) it is the first one.
    """

    def __init__(self, source: OutputError) -> None:
        self.source = source

    def __call__(self, model: nn.Module, inputs: Any, output: Any) -> None:
        first = output
        while not isinstance(first, Tensor):
            first = next(iter(first.values() if isinstance(first, Mapping) else first))
        self.source.watch(first)


class DirectError(torch.autograd.Function):
    """The identity of y which, in the backward pass, gives x the error e B over its positions.

    A kernel that is learned receives e^T x, where x is the mean over positions if the kernel has a
    number a channel. y receives its own error unchanged. Where the kernel B is None, x receives zeros. `channel` is
    the dimension of x that counts its channels. y must have been computed without a gradient for x,
    or x receives that error as well.
    """

    @staticmethod
    def forward(
        y: Tensor,
        x: Tensor,
        kernel: Tensor | None,
        source: OutputError | None,
        channel: int,
        place: str,
    ) -> Tensor:
        # Not a view in PyTorch's sense, which an in-place activation behind it must not write to.
        return y.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, kernel, ctx.source, ctx.channel, ctx.place = inputs
        # Only the shape, type and layout of x are needed: one number, expanded, stands for them.
        ctx.like = x.new_empty(()).expand(x.shape)
        ctx.strides = x.stride()
        learns = kernel is not None and ctx.needs_input_grad[2]
        ctx.save_for_backward(kernel, read_input(x, kernel, ctx.channel) if learns else None)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        kernel, read = ctx.saved_tensors
        learned = None
        if read is not None:
            e = caught_error(ctx.source, len(read), ctx.place).to(kernel.dtype)
            learned = (e.t() @ read.to(kernel.dtype)).view_as(kernel)
        if not ctx.needs_input_grad[1]:  # that of x
            return dy, None, learned, None, None, None
        dx = ctx.like.new_empty_strided(ctx.like.shape, ctx.strides)  # laid out in memory as x
        if kernel is None:
            dx.zero_()
        else:
            dx.copy_(project_error(ctx.source, kernel, ctx.like, ctx.channel, ctx.place))
        return dy, dx, learned, None, None, None


def read_input(x: Tensor, kernel: Tensor, channel: int) -> Tensor:
    """Return what a kernel reads of the layer's input x: (N, numbers of the kernel a row)."""
    if kernel.dim() > 2:
        return x.detach().flatten(1)
    positions = [d for d in range(1, x.dim()) if d != channel % x.dim()]
    return x.detach().mean(positions) if positions else x.detach()


class DirectInput(torch.autograd.Function):
    """The identity of x (N, C, *positions) that adds e B to the error that comes down to x."""

    @staticmethod
    def forward(x: Tensor, kernel: Tensor, source: OutputError, place: str) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, kernel, ctx.source, ctx.place = inputs
        ctx.save_for_backward(kernel)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        (kernel,) = ctx.saved_tensors
        sent = project_error(ctx.source, kernel, dx, 1, ctx.place)
        return dx + sent.to(dx.dtype), None, None, None


def project_error(
    source: OutputError, kernel: Tensor, x: Tensor, channel: int, place: str
) -> Tensor:
    """Return e B / positions, shaped to broadcast with x.

    Args:
        source: The error e at the model's output, (N, outputs).
        kernel: B, (outputs, channels of x), or (outputs, *the shape of a sample of x), which is
            not divided by the positions.
        x: A tensor of the layer's input's shape, whose values are not read.
        channel: The dimension of x that counts its channels.
        place: The name of the layer, for messages.

    Raises:
        InputError: If no error was caught, if it is of another number of samples than x, or if the
            kernel is for samples of another shape.
    """
    e = caught_error(source, x.shape[0], place).to(kernel.dtype)
    if kernel.dim() > 2:
        if kernel.shape[1:] != x.shape[1:]:
            raise InputError(
                f"dfa(positions=all): expected samples of the shape {tuple(kernel.shape[1:])} at "
                f"{place}, found {tuple(x.shape[1:])}; its feedback is for the size that convert was "
                "given: convert for this size (inputs=...), or use dfa"
            )
        return (e @ kernel.flatten(1)).view(x.shape)
    shape = [1] * x.dim()
    shape[0], shape[channel] = x.shape[0], x.shape[channel]  # such as (N, C, 1, 1)
    positions = math.prod(x.shape[1:]) // x.shape[channel]
    return (e @ kernel / positions).view(shape)


def caught_error(source: OutputError, samples: int, place: str) -> Tensor:
    """Return the error (N, outputs) at the model's output, for a layer that has seen N `samples`.

    `place` is the name of the layer.

    Raises InputError if none was caught, or one of another number of samples.
    """
    e = source.value
    if e is None:
        raise InputError(
            f"dfa: the error at the model's output, which {place} needs, was not seen in this "
            "backward pass; call the model itself, not parts of it, and compute the loss from the "
            "model's output"
        )
    if e.shape[0] != samples:
        raise InputError(
            f"dfa: expected the {e.shape[0]} samples of the output, found {samples} at "
            f"{place}; a model that regroups its samples cannot be trained by dfa there: use another "
            "rule for that layer"
        )
    return e
