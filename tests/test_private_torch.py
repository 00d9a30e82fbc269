"""What PyTorch does not promise may vanish: then the same is done in a slower way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from darts_bio import private_torch


class Without:
    """PyTorch without some names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __getattr__(self, name: str) -> Any:
        if name in self.names:
            raise AttributeError(name)
        return getattr(torch, name)


def tensors(seed: int) -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=source) for shape in ((3, 2), (5,), ())]


def results() -> list[torch.Tensor]:
    targets, others = tensors(0), tensors(1)
    private_torch.copy_all(targets, others)
    private_torch.add_all(targets, tensors(2))
    return [*targets, *private_torch.norms(others), *private_torch.signs(others)]


def test_lists_of_tensors_without_foreach(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = results()
    bare = Without("_foreach_copy_", "_foreach_add_", "_foreach_norm", "_foreach_sign")
    monkeypatch.setattr(private_torch, "torch", bare)
    for one, other in zip(results(), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("private", [True, False])
def test_gamma_draws_follow_their_law(private: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean and variance are the concentration c; the mean's gradient for c is 1, since draws scale
    with c: E[dx/dc] = dE[x]/dc.
    """
    if not private:
        monkeypatch.setattr(private_torch, "torch", Without("_standard_gamma"))
    n, c = 40_000, 2.0
    concentration = torch.full((n,), c, dtype=torch.float64, requires_grad=True)
    standing = torch.get_rng_state()
    draws = private_torch.gamma_draws(concentration, torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), standing)
    again = private_torch.gamma_draws(concentration, torch.Generator().manual_seed(3))
    assert torch.equal(draws, again)
    # Five standard errors: of a mean sqrt(c/n); of a variance sqrt((2c^2 + 6c)/n).
    assert abs(draws.mean() - c) < 5 * (c / n) ** 0.5
    assert abs(draws.var() - c) < 5 * ((2 * c**2 + 6 * c) / n) ** 0.5
    (gradient,) = torch.autograd.grad(draws.mean() * n, concentration)
    assert abs(gradient.mean() - 1) < 0.05


def test_a_node_that_has_saved_no_weight_is_left_as_it_is() -> None:
    y = torch.ones(1, requires_grad=True) * 2
    assert not private_torch.replace_saved_weight(y, lambda: y)


def test_changes_are_not_counted_in_inference_mode() -> None:
    with torch.inference_mode():
        assert private_torch.changes(torch.ones(2).mul_(2)) == 0
    assert private_torch.changes(torch.ones(2).mul_(2)) == 1
