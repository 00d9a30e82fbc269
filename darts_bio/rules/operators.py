"""Layers as linear maps of their input, for rules that ask for one (`rules.base.Operator`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.rules.convolution import convolution_gradients


class Single:
    """What an `Operator` that stands for one layer answers when asked about each layer."""

    channel: int

    def each(self, function: Callable[[Tensor, int], Tensor], y: Tensor) -> Tensor:
        return function(y, self.channel)

    def energies(self, values: Tensor) -> Tensor:
        """Return (N,)."""
        return values.square().flatten(1).sum(1)

    def moved(self, values: Tensor, lengths: Tensor, direction: Tensor) -> Tensor:
        return values + lengths.view(-1, *[1] * (values.dim() - 1)) * direction

    def by_layer(self, weight: Tensor) -> Tensor:
        """Return (1, O, ...)."""
        return weight.unsqueeze(0)

    def weight_energy(self, weight: Tensor) -> Tensor:
        """Return one number."""
        return weight.square().sum()


@dataclass(frozen=True)
class Convolution(Single):
    """A convolution of x (N, C, *spatial) with a weight (C', C/groups, *window).

    >>> import torch
    >>> operator = Convolution(stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1)
    >>> x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    >>> operator.apply(x, weight).squeeze()  # how many pixels each window sees
    tensor([[4., 6., 4.],
            [6., 9., 6.],
            [4., 6., 4.]])
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    channel = 1

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        none = (0,) * len(self.stride)
        geometry = (self.stride, self.padding, self.dilation, False, none, self.groups)
        return torch.convolution(x, weight, bias, *geometry)

    def transposed(self, dy: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
        return self._gradients(dy, x, kernel, (True, False, False))[0]

    def correlation(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        return self._gradients(dy, x, weight, (False, True, False))[1]

    def _gradients(
        self, dy: Tensor, x: Tensor, kernel: Tensor, wanted: tuple[bool, bool, bool]
    ) -> Any:
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return convolution_gradients(dy, x, kernel, None, *geometry, wanted)


@dataclass(frozen=True)
class Product(Single):
    """A linear layer, x (..., I) times a weight (O, I) transposed."""

    channel = -1

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, weight, bias)

    def transposed(self, dy: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
        return dy @ kernel

    def correlation(self, x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        # (..., O) and (..., I) -> (O, I), summed over all positions
        return dy.reshape(-1, dy.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
