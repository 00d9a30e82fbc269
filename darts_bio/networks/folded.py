"""Pointwise convolution, batch norm and mixture in one product, for where memory binds.

With z_m = W_m u_m the statistics of z_m follow from those of u_m, var z_m = diag(W_m Cov(u_m)
W_m^T), so that

    y_e = sum over rules r of p_m BN(W_m u_m) = sum_r A_m u_m - b_e,      A_m = diag(p_m / sqrt(var z_m + eps)) W_m

is a sum of products in which no z is ever stored. The error needs no z either: with G = dL/dy_e,
K_m = Cov(G, u_m) P, s = diag(W_m K_m^T), i = 1 / sqrt(var z_m + eps) and P the number of pixels,

    dL/dp_m = <i, s>,      dL/dW_m = p_m diag(i) (K_m - diag(i^2 s) W_m Cov(u_m)),
    dL/du_m = F_m^T (G - mean G) - (W_m^T diag(i^2 s / P) F_m)^T (u_m - mean u_m),      F_m = p_m diag(i) B_m,

where the rule's kernel B_m stands for W_m in what is sent down, as in the unfolded form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from darts_bio.rules.functional import first_derivative_only, learns, matrices, rows


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, run in the precision of what it is given: it casts by itself."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        device = next(value.device.type for value in args if isinstance(value, Tensor))
        if not torch.amp.is_autocast_available(device):
            return function(*args)
        with torch.autocast(device, enabled=False):
            return function(*args)

    return run


class FoldedMixture(torch.autograd.Function):
    """u (N, M*I, H, W), weight and kernel (M*C, I, 1, 1), gains p (M,), in the order (rule, edge),
    to y (N, H, W, E, C) and, without gradient, the mean and the (biased) variance of z (M*C,), and
    the mean and the covariance of u.
    """

    @staticmethod
    @without_autocast
    def forward(
        u: Tensor, weight: Tensor, kernel: Tensor, gains: Tensor, edges: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        m = len(gains)
        n, _, h, w = u.shape
        own, matrix = rows(u, m), matrices(weight, m)  # (M, P, I), (M, C, I)
        # In float32 at least: a variance is a difference.
        exact = own if own.dtype == torch.float64 else own.float()
        mean = exact.mean(1, keepdim=True)  # (M, 1, I)
        covariance = (
            torch.bmm(exact.transpose(1, 2), exact)
            .div_(exact.shape[1])
            .baddbmm_(mean.mT, mean, alpha=-1)
        )
        variance = (torch.bmm(matrix, covariance) * matrix).sum(2).clamp_min_(0)  # (M, C)
        folded = matrix * (gains.unsqueeze(1) * (variance + eps).rsqrt()).unsqueeze(2)
        offset = torch.bmm(mean, folded.mT).unflatten(0, (-1, edges)).sum((0, 2))  # (E, C)
        y = offset.neg().to(u.dtype).expand(n, h, w, *offset.shape).contiguous()
        target, by_rule = y.flatten(0, 2).transpose(0, 1), folded.mT.to(u.dtype).split(edges)
        for inputs, products in zip(own.split(edges), by_rule, strict=True):
            target.baddbmm_(inputs, products)
        z_mean = torch.bmm(mean, matrix.mT).flatten()
        return y, z_mean, variance.flatten(), mean, covariance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        u, weight, kernel, gains, ctx.edges, ctx.eps = inputs
        _, z_mean, variance, mean, covariance = output
        ctx.mark_non_differentiable(z_mean, variance, mean, covariance)
        ctx.save_for_backward(u, weight, kernel, gains, variance, mean, covariance)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, dy: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        u, weight, kernel, gains, variance, mean, covariance = ctx.saved_tensors
        m, edges = len(gains), ctx.edges
        own, matrix, back = rows(u, m), matrices(weight, m), matrices(kernel, m)
        error = dy.reshape(-1, *dy.shape[3:]).transpose(0, 1)  # (E, P, C)
        pixels = own.shape[1]
        inverse = (variance.view(m, -1) + ctx.eps).rsqrt()  # (M, C)
        total = error.sum(1, dtype=mean.dtype).unsqueeze(1)  # (E, 1, C)
        products = [torch.bmm(error.mT, inputs) for inputs in own.split(edges)]
        cross = torch.cat(products).to(mean.dtype)  # (M, C, I)
        cross = torch.baddbmm(cross, total.mT.repeat(m // edges, 1, 1), mean, alpha=-1)
        s = (matrix * cross).sum(2)
        d_gains = (inverse * s).sum(1)
        scale = (gains.unsqueeze(1) * inverse).unsqueeze(2)
        bend = (inverse.square() * s).unsqueeze(2)
        d_weight = None
        if learns(ctx, 1, 2):
            d_weight = (scale * (cross - bend * torch.bmm(matrix, covariance))).reshape(
                weight.shape
            )
        du = None
        if ctx.needs_input_grad[0]:
            down = scale * back  # (M, C, I)
            curve = torch.bmm(matrix.mT, down * bend / pixels)  # (M, I, I)
            offset = torch.bmm(mean, curve) - torch.bmm(
                total.repeat(m // edges, 1, 1) / pixels, down
            )
            n, _, h, w = u.shape
            du = offset.squeeze(1).to(u.dtype).expand(n, h, w, m, -1).contiguous()
            target = du.flatten(0, 2).transpose(0, 1)  # (M, P, I)
            target.baddbmm_(own, curve.to(u.dtype), alpha=-1)
            for part, products in zip(
                target.split(edges), down.to(u.dtype).split(edges), strict=True
            ):
                part.baddbmm_(error, products)
            du = du.flatten(3).permute(0, 3, 1, 2)
        wants_w, wants_kernel = ctx.needs_input_grad[1:3]
        return (
            du,
            d_weight if wants_w else None,
            d_weight if wants_kernel else None,
            d_gains,
            None,
            None,
        )
