"""Mean, variance, cosines and angles of gradients, from sums over batches in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


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


def per_sample_cosine(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosine of each sample (N,) between two tensors (N, ...); NaN where one is zero."""
    if one.dim() == 1:  # a single sample
        one, other = one[None], other[None]
    one, other = one.detach().double().flatten(1), other.detach().double().flatten(1)
    return (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1))


def degrees(cosine: float) -> float | None:
    """Return the angle of a cosine in degrees; None for NaN.

    >>> round(degrees(0.5), 6), degrees(float("nan"))
    (60.0, None)
    """
    # Rounding may have left it a little outside of [-1, 1].
    return None if math.isnan(cosine) else math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
