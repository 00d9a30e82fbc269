"""Products of members side by side beside float64 loops over single members."""

from __future__ import annotations

import pytest
import torch

from darts_bio.rules.members import correlations, products, write_products

SIZES = [(1, 8, 8), (2, 8, 8), (5, 8, 8), (7, 3, 4), (9, 2, 1), (3, 12, 5), (4, 16, 16), (6, 4, 20)]
"""(members, input channels, output channels): whole groups, left-over members, single ones."""
PIXELS = 37
ULP = torch.finfo(torch.float32).eps


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("m", "i", "o"), SIZES)
@pytest.mark.parametrize("add", [False, True])
def test_each_member_is_multiplied_by_its_own_matrix(m: int, i: int, o: int, add: bool) -> None:
    """Also where input and output are some columns of wider rows."""
    wide, pixels = drawn(PIXELS, m * i + 5, seed=1), slice(2, 2 + m * i)
    target = drawn(PIXELS, m * o + 3, seed=2)
    before, matrices = target.double().clone(), drawn(m, i, o, seed=3)
    write_products(target[:, 1 : 1 + m * o], wide[:, pixels], matrices, add=add)
    for member in range(m):
        columns = slice(1 + member * o, 1 + (member + 1) * o)
        x = wide[:, pixels][:, member * i : (member + 1) * i].double()
        expected = x @ matrices[member].double()
        # A sum of n terms in float32 is off by n roundings of the sum of their magnitudes at most.
        bound = (i + 1) * ULP * (x.abs() @ matrices[member].double().abs())
        if add:
            expected = expected + before[:, columns]
            bound = bound + (i + 1) * ULP * before[:, columns].abs()
        assert ((target[:, columns].double() - expected).abs() <= bound).all()
    assert torch.equal(target[:, 0].double(), before[:, 0])
    assert torch.equal(target[:, 1 + m * o :].double(), before[:, 1 + m * o :])


@pytest.mark.parametrize(("m", "i", "o"), SIZES)
def test_correlations_are_those_of_each_member_with_itself(m: int, i: int, o: int) -> None:
    left, right = drawn(PIXELS, m * o + 2, seed=4)[:, 2:], drawn(PIXELS, m * i, seed=5)
    found = correlations(left, right, m)
    assert found.shape == (m, o, i)
    for member in range(m):
        a = left[:, member * o : (member + 1) * o].double()
        b = right[:, member * i : (member + 1) * i].double()
        bound = (PIXELS + 1) * ULP * (a.abs().T @ b.abs())
        assert ((found[member].double() - a.T @ b).abs() <= bound).all()


def test_images_are_multiplied_pixel_by_pixel() -> None:
    x = drawn(2, 6, 3, 4, seed=6).to(memory_format=torch.channels_last)
    matrices = drawn(3, 2, 2, seed=7)
    y = products(x, matrices)
    assert y.shape == (2, 6, 3, 4)
    for member in range(3):
        of_member = slice(2 * member, 2 * member + 2)
        expected = torch.einsum(
            "nihw,io->nohw", x[:, of_member].double(), matrices[member].double()
        )
        torch.testing.assert_close(y[:, of_member].double(), expected, rtol=1e-5, atol=1e-5)
