"""Pixels of many equal layers side by side, and their products with a matrix each.

M members of C channels lie in the rows of a matrix (P, M*C): a row for each pixel, member after
member. The products of all members are one batched product of views of it, (M, P, C) by (M, C, O).

On a CPU such a product is slow in float32 where C and O are below the 16 floats of a vector: of
eight members of 8 channels it takes 2.4 times as long as it could over 4,096 pixels, and 5.5 times
over 65,536 (AMD EPYC with AVX-512, PyTorch 2.15). So members are taken together until they
fill a vector. Of two members with matrices A and B the rows hold 2C channels, and are multiplied by

    A 0
    0 B

which reads and writes the same memory, as (M/2, P, 2C). Zeros add nothing to finite sums, so each
member gets its own product; an infinite value of one makes those taken together with it NaN. The
correlations of two such members, what the gradient of their matrices is, are the two diagonal blocks
of one of 2C by 2O.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

VECTOR = 16
"""Floats in the widest vector of an x86 processor."""


def matrices(weight: Tensor, members: int) -> Tensor:
    """View (M*O, I, 1, 1) as (M, O, I)."""
    return weight.reshape(members, -1, weight.shape[1])


def rows(x: Tensor, members: int) -> Tensor:
    """Return (N, M*C, H, W) as (M, N*H*W, C), a view where channels are last in memory."""
    return by_member(pixels_of(x), members)


def pixels_of(x: Tensor) -> Tensor:
    """Return (N, M*C, H, W) as (N*H*W, M*C), a view where channels are last in memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def split_channels(y_nhwc: Tensor, channels: Sequence[int]) -> tuple[Tensor, ...]:
    """View (N, H, W, sum of all C) as a (P, C) for each group."""
    return y_nhwc.view(-1, y_nhwc.shape[3]).split(list(channels), dim=1)


def by_member(pixels: Tensor, members: int) -> Tensor:
    """View (P, M*C) as (M, P, C)."""
    return pixels.unflatten(1, (members, -1)).transpose(0, 1)


def write_products(target: Tensor, pixels: Tensor, matrices: Tensor, add: bool = False) -> None:
    """Write each member's pixels times its matrix, or add it to what is there.

    Args:
        target: (P, M*O), written in place, in whatever row length it lies in memory.
        pixels: (P, M*I).
        matrices: (M, I, O).
        add: Whether the product is added.

    >>> target = torch.empty(1, 2)
    >>> write_products(target, torch.tensor([[2.0, 3.0]]), torch.tensor([[[5.0]], [[7.0]]]))
    >>> target
    tensor([[10., 21.]])
    """
    m, i, o = matrices.shape
    first = 0
    for count, together in _runs(m, max(i, o), target):
        blocks = matrices[first : first + count * together]
        blocks = _block_diagonal(blocks, together)
        of_run = slice(first, first + count * together)
        factor = _members(pixels, m, of_run, count)
        out = _members(target, m, of_run, count)
        if add:
            torch.baddbmm(out, factor, blocks, out=out)
        else:
            torch.bmm(factor, blocks, out=out)
        first += count * together


def products(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each member's pixels by its matrix: (N, M*I, H, W), (M, I, O) -> (N, M*O, H, W)."""
    (n, _, h, w), (m, _, o) = x.shape, matrices.shape
    y = x.new_empty(n, h, w, m * o)
    write_products(y.view(-1, m * o), pixels_of(x), matrices)
    return y.permute(0, 3, 1, 2)


def correlations(left: Tensor, right: Tensor, members: int) -> Tensor:
    """Return the sum over pixels of left times right, for each member: (P, M*O), (P, M*I) -> (M, O, I).

    >>> pixels = torch.tensor([[1.0, 2.0], [3.0, 4.0]])  # two members of one channel
    >>> correlations(pixels, pixels, members=2).flatten().tolist()
    [10.0, 20.0]
    """
    o, i = left.shape[1] // members, right.shape[1] // members
    found, first = [], 0
    for count, together in _runs(members, max(i, o), left):
        of_run = slice(first, first + count * together)
        products = torch.bmm(
            _members(left, members, of_run, count).mT, _members(right, members, of_run, count)
        )
        if together > 1:
            # (G, K*O, K*I) -> (G, K, O, K, I), of which the blocks of each member with itself: (G, O, I, K)
            own = products.view(count, together, o, together, i).diagonal(dim1=1, dim2=3)
            products = own.permute(0, 3, 1, 2).reshape(-1, o, i)
        found.append(products)
        first += count * together
    return found[0] if len(found) == 1 else torch.cat(found)


def _runs(members: int, channels: int, like: Tensor) -> list[tuple[int, int]]:
    """Return how members are taken together: runs of (groups, members in a group), in their order.

    >>> _runs(5, 8, torch.ones(1)), _runs(5, 16, torch.ones(1))
    ([(2, 2), (1, 1)], [(5, 1)])
    """
    together = 1
    if like.device.type == "cpu" and like.dtype == torch.float32:
        together = max(1, min(VECTOR // channels, members))
    groups, left = divmod(members, together)
    return [(groups, together), *([(left, 1)] if left else [])]


def _members(pixels: Tensor, members: int, of_run: slice, groups: int) -> Tensor:
    """View the pixels (P, M*C) of a run of members as its groups: (G, P, K*C)."""
    channels = pixels.shape[1] // members
    return by_member(pixels[:, of_run.start * channels : of_run.stop * channels], groups)


def _block_diagonal(matrices: Tensor, together: int) -> Tensor:
    """Return matrices (G*K, I, O) as (G, K*I, K*O) with zeros between members."""
    if together == 1:
        return matrices
    i, o = matrices.shape[1:]
    blocks = matrices.new_zeros(len(matrices) // together, together, i, together, o)
    # The diagonal is (G, I, O, K).
    blocks.diagonal(dim1=1, dim2=3).copy_(matrices.unflatten(0, (-1, together)).permute(0, 2, 3, 1))
    return blocks.flatten(3).flatten(1, 2)
