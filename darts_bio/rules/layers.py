"""PyTorch's weighted layers with a learning rule.

They have the same parameters, and the same state_dict keys for them. Which way a layer is computed
is decided in `uses.pass_under_rule` and `RuleConvolution.pass_through`; `rules.functional` has a
table of all ways.

>>> from darts_bio.rules import RULES, RuleConv2d
>>> layer = RuleConv2d(3, 8, 3, rule=RULES.build("usf"))
>>> [name for name, _ in layer.named_parameters()], [name for name, _ in layer.named_buffers()]
(['weight', 'bias'], ['feedback_scale'])
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from darts_bio.errors import InputError
from darts_bio.rules.base import LearningRule, Operator
from darts_bio.rules.carriers import WeightedCarrier, computed_weight
from darts_bio.rules.depthwise import slow_gradient
from darts_bio.rules.forward_mode import convolve, project
from darts_bio.rules.functional import own_node_serves, through_kernel
from darts_bio.rules.operators import Convolution, Product
from darts_bio.rules.pointwise import reads_single_pixels, sampled
from darts_bio.rules.products import handed_out, plain, stored_property, stored_weight
from darts_bio.rules.uses import in_autocast_dtype, pass_under_rule


class RuleLayer(WeightedCarrier):
    """What all layers under a rule share.

    It comes before the layer of PyTorch, `plain`, among the bases of a class.

    >>> from darts_bio.rules import RULES, RuleLinear
    >>> isinstance(RuleLinear(4, 3, rule=RULES.build("fa")), RuleLayer)
    True
    """

    plain: ClassVar[type[nn.Module]]
    bias: Any
    channel = 1

    def __init__(self, *args: Any, rule: LearningRule, **kwargs: Any) -> None:
        super().__init__(*args, rule=rule, **kwargs)
        if not rule.direct:
            self.register_feedback(self.used_weight)

    def carry(self, rule: LearningRule) -> None:
        super().carry(rule)
        if rule.local:
            self.unit.listen(self)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if self.rule.local:  # hooks are not copied with a weight
            self.unit.listen(self)

    @property
    def carried_weight(self) -> Tensor:
        return self.used_weight

    @property
    def used_weight(self) -> Tensor:
        """The weight as the layer itself multiplies by it."""
        weight = self._parameters.get("weight")
        # None where a parametrization such as weight norm computes it.
        return plain(self.weight) if weight is None else weight

    def _handed_out(self) -> Tensor:
        """Return the weight as code that asks for it gets it.

        In the forward pass of a model's own code it takes the rule along (`rules.products`).
        """
        return handed_out(stored_weight(self, "weight"), self)

    weight: Any = stored_property("weight", _handed_out)

    def forward(self, x: Tensor) -> Tensor:
        if self.rule.learned and not (self.rule.direct or self.exact) and is_parametrized(self):
            raise computed_weight(self.rule, "a parametrization")
        return pass_under_rule(self, self, x, self.transport)

    def plain_pass(self, x: Tensor) -> Tensor:
        """Compute the layer on x as PyTorch does."""
        raise NotImplementedError(f"{type(self).__name__}.plain_pass")

    def operator(self, x: Tensor) -> tuple[Tensor, Operator]:
        """Return x as the layer's linear map takes it (padded), and that map."""
        raise NotImplementedError(f"{type(self).__name__}.operator")

    def pass_through(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Compute the layer on x, the error of which goes through `kernel`."""
        raise NotImplementedError(f"{type(self).__name__}.pass_through")


class RuleConvolution(RuleLayer):
    """What all convolutions share.

    They take all options of PyTorch's layers, and inputs with and without a batch.
    """

    stride: Any
    padding: Any
    dilation: Any
    groups: int
    padding_mode: Any
    in_channels: int
    transposed: bool
    output_padding: tuple[int, ...]

    @property
    def channels(self) -> int:
        return self.in_channels

    kernel_size: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == len(self.stride) + 1:
            return self(x.unsqueeze(0)).squeeze(0)
        return super().forward(x)

    @property
    def samples_pixels(self) -> bool:
        """Whether the layer takes its stride from the pixels (see `rules.pointwise`)."""
        return not self.transposed and reads_single_pixels(
            self.kernel_size, self.stride, self.padding
        )

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Override what `forward` of PyTorch's convolutions calls.

        Layers that take their stride from the pixels do so here.
        """
        if not self.samples_pixels:
            return super()._conv_forward(x, weight, bias)  # type: ignore[misc]
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        return convolve(sampled(x, self.stride), weight, bias, groups=self.groups)

    def unstrided(self, x: Tensor) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
        """Return x as a plain convolution takes it, and the stride and zero padding still due.

        x is sampled where the stride is taken from the pixels, and padded where the padding is not
        one of zeros given by numbers.
        """
        no_stride, no_padding = (1,) * len(self.stride), (0,) * len(self.stride)
        if self.samples_pixels:
            return sampled(x, self.stride), no_stride, no_padding
        if self.padding_mode != "zeros" or self.padding == "same":
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=mode)  # type: ignore[arg-type]
            return x, self.stride, no_padding
        return x, self.stride, no_padding if self.padding == "valid" else self.padding

    def operator(self, x: Tensor) -> tuple[Tensor, Operator]:
        x, stride, padding = self.unstrided(x)
        return x, Convolution(stride, padding, self.dilation, self.groups)

    def plain_pass(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.used_weight, self.bias)

    def _slow_by_itself(self, x: Tensor, kernel: Tensor) -> bool:
        """Tell whether PyTorch's own node is slower than `convolution_gradients` on this input."""
        if (
            self.transposed
            or x.dim() != 4
            or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            return False
        return slow_gradient(x, kernel, self.stride, self.dilation, self.groups)

    def pass_through(self, x: Tensor, kernel: Tensor) -> Tensor:
        # A kernel that is learned gets the weight's gradient, which only our own Function gives it.
        learned = kernel.requires_grad
        if own_node_serves() and not learned and not self._slow_by_itself(x, kernel):
            y = self.plain_pass(x)
            if through_kernel(y, kernel):
                return y
        x, stride, padding = self.unstrided(x)
        x, weight, bias, kernel = in_autocast_dtype(x, self.used_weight, self.bias, kernel)  # type: ignore[assignment]
        geometry = (stride, padding, self.dilation, self.groups)
        output_padding = self.output_padding if self.transposed else None
        return convolve(x, weight, bias, kernel, *geometry, 1, output_padding)


class RuleConv1d(RuleConvolution, nn.Conv1d):
    """nn.Conv1d on (N, C, L) or (C, L) under a learning rule."""

    plain = nn.Conv1d


class RuleConv2d(RuleConvolution, nn.Conv2d):
    """nn.Conv2d on (N, C, H, W) or (C, H, W) under a learning rule."""

    plain = nn.Conv2d


class RuleConv3d(RuleConvolution, nn.Conv3d):
    """nn.Conv3d on (N, C, D, H, W) or (C, D, H, W) under a learning rule."""

    plain = nn.Conv3d


class RuleTransposed(RuleConvolution):
    """What the transposed convolutions share.

    Raises InputError for a local rule: there is no one window of the input that an output channel
    answers to.
    """

    def carry(self, rule: LearningRule) -> None:
        if rule.local:
            raise InputError(
                f"a transposed convolution cannot learn by {rule.spec}: use another rule for it"
            )
        super().carry(rule)

    def plain_pass(self, x: Tensor) -> Tensor:
        convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
        geometry = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
        return convolve[len(self.stride) - 1](x, self.used_weight, self.bias, *geometry)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is None:
            return super().forward(x)
        # A layer that is asked for a size is the same but for the padding of the output.
        before = self.output_padding
        geometry = (self.stride, self.padding, self.kernel_size, len(self.stride), self.dilation)
        self.output_padding = tuple(self._output_padding(x, output_size, *geometry))  # type: ignore[operator]
        try:
            return super().forward(x)
        finally:
            self.output_padding = before


class RuleConvTranspose1d(RuleTransposed, nn.ConvTranspose1d):
    """nn.ConvTranspose1d on (N, C, L) or (C, L) under a learning rule."""

    plain = nn.ConvTranspose1d


class RuleConvTranspose2d(RuleTransposed, nn.ConvTranspose2d):
    """nn.ConvTranspose2d on (N, C, H, W) or (C, H, W) under a learning rule."""

    plain = nn.ConvTranspose2d


class RuleConvTranspose3d(RuleTransposed, nn.ConvTranspose3d):
    """nn.ConvTranspose3d on (N, C, D, H, W) or (C, D, H, W) under a learning rule."""

    plain = nn.ConvTranspose3d


class RuleLinear(RuleLayer, nn.Linear):
    """nn.Linear on (..., I) under a learning rule."""

    plain = nn.Linear
    channel = -1

    @property
    def channels(self) -> int:
        return self.in_features

    def operator(self, x: Tensor) -> tuple[Tensor, Operator]:
        return x, Product()

    def plain_pass(self, x: Tensor) -> Tensor:
        return F.linear(x, self.used_weight, self.bias)

    def pass_through(self, x: Tensor, kernel: Tensor) -> Tensor:
        return project(*in_autocast_dtype(x, self.used_weight, self.bias, kernel))


RULE_LAYERS: dict[type[nn.Module], type[RuleLayer]] = {
    layer.plain: layer
    for layer in (
        RuleLinear,
        RuleConv1d,
        RuleConv2d,
        RuleConv3d,
        RuleConvTranspose1d,
        RuleConvTranspose2d,
        RuleConvTranspose3d,
    )
}
"""PyTorch's layer -> the same with a rule."""


def rule_layers(model: nn.Module) -> Iterator[tuple[str, RuleLayer]]:
    """Return (name, layer) of every layer that carries a rule by itself, one after the other.

    >>> from darts_bio.rules import RULES
    >>> model = nn.Sequential(RuleLinear(4, 3, rule=RULES.build("fa")), nn.ReLU(), nn.Linear(3, 2))
    >>> [name for name, _ in rule_layers(model)]
    ['0']
    """
    return (
        (name, module) for name, module in model.named_modules() if isinstance(module, RuleLayer)
    )
