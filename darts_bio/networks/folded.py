"""Pointwise convolution, batch norm and mixture in one product, for where memory binds.

A member m multiplies its maps u_m by W_m, z_m = W_m u_m, and its batch norm needs the mean and the
variance of z_m. These follow from those of u_m, since var z_m = diag(W_m Cov(u_m) W_m^T). So
output e, which sums its members over the rules r with weights p_m,

    y_e = sum_r p_m BN(z_m) = sum_r A_m u_m - b_e,      A_m = diag(p_m i_m) W_m,
    i_m = 1 / sqrt(var z_m + eps),                      b_e = sum_r A_m mean(u_m),

is a sum of products in which no z is ever stored.

The error needs no z either. With the error G = dL/dy_e, P pixels, K_m = P Cov(G, u_m) and
s_m = diag(W_m K_m^T), the derivatives through mean and variance come out as

    dL/dp_m = <i_m, s_m>
    dL/dW_m = p_m diag(i_m) (K_m - diag(i_m^2 s_m) W_m Cov(u_m))
    dL/du_m = F_m^T (G - mean G) - (W_m^T diag(i_m^2 s_m / P) F_m)^T (u_m - mean u_m)

where F_m = p_m diag(i_m) B_m: the rule's kernel B_m stands for W_m in what is sent down, as it does
where convolution and batch norm are computed one after the other.

Suffixes of tensors: m members, i their input channels, c their output channels, p pixels, e
outputs (a mixture of one operation on one edge each); in a row of members, m = r*e with r rules.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from darts_bio.rules.functional import first_derivative_only
from darts_bio.rules.members import matrices, rows


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs `function` in the precision of what it is given."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        device = next(value.device.type for value in args if isinstance(value, Tensor))
        if not torch.amp.is_autocast_available(device):
            return function(*args)
        with torch.autocast(device, enabled=False):
            return function(*args)

    return run


class FoldedMixture(torch.autograd.Function):
    """The mixture y of members that end with a pointwise convolution and a batch norm.

    Maps u (N, M*I, H, W), weight and kernel (M*C, I, 1, 1) and gains p (M,), in the order (rule,
    output), to y (N, H, W, E, C). Returns beside it, without gradient, the mean and the biased
    variance of z, (M*C,), and the mean (M, 1, I) and the covariance (M, I, I) of u.
    """

    @staticmethod
    @without_autocast
    def forward(
        u: Tensor, weight: Tensor, kernel: Tensor, gains: Tensor, outputs: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        m = len(gains)
        n, _, h, w = u.shape
        u_mpi, weight_mci = rows(u, m), matrices(weight, m)
        mean_m1i, cov_mii = _moments(u_mpi)
        # diag(W Cov W^T), without the rest of the product
        variance_mc = (torch.bmm(weight_mci, cov_mii) * weight_mci).sum(2).clamp_min_(0)
        scale_mc = gains.unsqueeze(1) * (variance_mc + eps).rsqrt()
        folded_mci = weight_mci * scale_mc.unsqueeze(2)  # A
        offset_m1c = torch.bmm(mean_m1i, folded_mci.mT)
        offset_re1c = offset_m1c.unflatten(0, (-1, outputs))  # M -> R, E
        offset_ec = offset_re1c.sum((0, 2))  # b, summed over the rules
        y = offset_ec.neg().to(u.dtype).expand(n, h, w, *offset_ec.shape).contiguous()
        y_epc = y.flatten(0, 2).transpose(0, 1)
        folded_mic = folded_mci.mT.to(u.dtype)
        # Rule by rule, E members at once: y += A u
        for u_epi, folded_eic in zip(u_mpi.split(outputs), folded_mic.split(outputs), strict=True):
            y_epc.baddbmm_(u_epi, folded_eic)
        z_mean = torch.bmm(mean_m1i, weight_mci.mT).flatten()
        return y, z_mean, variance_mc.flatten(), mean_m1i, cov_mii

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        u, weight, kernel, gains, ctx.outputs, ctx.eps = inputs
        _, z_mean, variance, mean, covariance = output
        ctx.mark_non_differentiable(z_mean, variance, mean, covariance)
        ctx.save_for_backward(u, weight, kernel, gains, variance, mean, covariance)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, dy: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        first_derivative_only()
        u, weight, kernel, gains, variance, mean_m1i, cov_mii = ctx.saved_tensors
        m, outputs = len(gains), ctx.outputs
        rules = m // outputs
        u_mpi, weight_mci, kernel_mci = rows(u, m), matrices(weight, m), matrices(kernel, m)
        pixels = u_mpi.shape[1]
        error_epc = dy.reshape(-1, *dy.shape[3:]).transpose(0, 1)  # G: (N, H, W, E, C) -> (E, P, C)

        # K = sum over pixels of G u^T, less that of the means
        total_e1c = error_epc.sum(1, dtype=mean_m1i.dtype).unsqueeze(1)
        total_m1c = total_e1c.repeat(rules, 1, 1)  # each rule of an output gets its error
        products = [torch.bmm(error_epc.mT, u_epi) for u_epi in u_mpi.split(outputs)]
        cross_mci = torch.cat(products).to(mean_m1i.dtype)
        cross_mci = torch.baddbmm(cross_mci, total_m1c.mT, mean_m1i, alpha=-1)

        inverse_mc = (variance.view(m, -1) + ctx.eps).rsqrt()  # i
        s_mc = (weight_mci * cross_mci).sum(2)
        d_gains = (inverse_mc * s_mc).sum(1)
        scale_mc1 = (gains.unsqueeze(1) * inverse_mc).unsqueeze(2)
        bend_mc1 = (inverse_mc.square() * s_mc).unsqueeze(2)  # i^2 s: what the variance answers for

        d_weight = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            through_variance_mci = bend_mc1 * torch.bmm(weight_mci, cov_mii)
            d_weight = (scale_mc1 * (cross_mci - through_variance_mci)).reshape(weight.shape)

        du = None
        if ctx.needs_input_grad[0]:
            down_mci = scale_mc1 * kernel_mci  # F
            curve_mii = torch.bmm(weight_mci.mT, down_mci * bend_mc1 / pixels)
            # What does not depend on the pixel comes first: -F^T mean G + curve^T mean u
            constant_m1i = torch.bmm(mean_m1i, curve_mii) - torch.bmm(total_m1c / pixels, down_mci)
            n, _, h, w = u.shape
            du = constant_m1i.squeeze(1).to(u.dtype).expand(n, h, w, m, -1).contiguous()
            du_mpi = du.flatten(0, 2).transpose(0, 1)
            du_mpi.baddbmm_(u_mpi, curve_mii.to(u.dtype), alpha=-1)
            by_rule = zip(du_mpi.split(outputs), down_mci.to(u.dtype).split(outputs), strict=True)
            for du_epi, down_eci in by_rule:
                du_epi.baddbmm_(error_epc, down_eci)
            du = du.flatten(3).permute(0, 3, 1, 2)  # (N, H, W, M, I) -> (N, M*I, H, W)

        wants_weight, wants_kernel = ctx.needs_input_grad[1:3]
        of_weight = d_weight if wants_weight else None
        return du, of_weight, d_weight if wants_kernel else None, d_gains, None, None


def _moments(u_mpi: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (M, 1, I) and the covariance (M, I, I) over pixels.

    In float32 at least: a covariance is a difference of large numbers.
    """
    exact_mpi = u_mpi if u_mpi.dtype == torch.float64 else u_mpi.float()
    mean_m1i = exact_mpi.mean(1, keepdim=True)
    cov_mii = torch.bmm(exact_mpi.transpose(1, 2), exact_mpi).div_(exact_mpi.shape[1])
    return mean_m1i, cov_mii.baddbmm_(mean_m1i.mT, mean_m1i, alpha=-1)
