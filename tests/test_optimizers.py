"""The optimizers are PyTorch's own, without what imports its compiler."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from darts_bio.config import SearchConfig
from darts_bio.errors import InputError
from darts_bio.optimizers import SGD, Adam, BatchManhattan, Eager, load_optimizer
from darts_bio.training.optim import WeightOptimizer

OPTIONS: list[tuple[type, type, dict[str, Any]]] = [
    (SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 3e-4, "foreach": True}),
    (
        SGD,
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 3e-4, "foreach": True, "nesterov": True},
    ),
    (Adam, torch.optim.Adam, {"lr": 0.01, "betas": (0.5, 0.999), "weight_decay": 1e-3}),
]


def stepped(
    kind: type, options: dict[str, Any], steps: int, state: dict[str, Any] | None = None
) -> Any:
    """Parameters after so many steps along drawn gradients, and the optimizer's state; it may go on
    from `state`.
    """
    source = torch.Generator().manual_seed(0)
    parameters = [
        torch.randn(shape, generator=source).requires_grad_() for shape in ((3, 4), (5,), (2, 2, 2))
    ]
    optimizer = kind(parameters, **options)
    if state is not None:
        optimizer.load_state_dict(state)
    for _ in range(steps):
        optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in parameters)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=source)
        optimizer.step()
    assert torch.is_grad_enabled()
    return [parameter.detach() for parameter in parameters], optimizer.state_dict()


@pytest.mark.parametrize(
    ("own", "plain", "options"), OPTIONS, ids=lambda value: getattr(value, "__name__", "")
)
def test_steps_and_states_are_those_of_pytorch(
    own: type, plain: type, options: dict[str, Any]
) -> None:
    ours, theirs = stepped(own, options, 5), stepped(plain, options, 5)
    assert all(map(torch.equal, ours[0], theirs[0]))
    assert str(ours[1]) == str(theirs[1])
    ours, theirs = stepped(own, options, 2, theirs[1]), stepped(plain, options, 2, ours[1])
    assert all(map(torch.equal, ours[0], theirs[0]))


@pytest.mark.parametrize(
    "form", [{}, {"foreach": True}, {"foreach": False}, {"fused": True}, {"nesterov": True}]
)
def test_batch_manhattan_is_the_published_update(form: dict[str, Any]) -> None:
    """v <- m v + sign(g) + d w, w <- w - lr v, number by number; nothing is done without gradient."""
    source = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, generator=source, dtype=torch.float64) for n in (4, 3, 2)]
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    optimizer = BatchManhattan(parameters, lr=0.03, momentum=0.8, weight_decay=0.05, **form)
    expected, velocities = [w.tolist() for w in weights[:2]], [[0.0] * 4, [0.0] * 3]

    def closure() -> str:
        assert torch.is_grad_enabled()
        return "the loss"

    for _ in range(5):
        gradients = [torch.randn(n, generator=source, dtype=torch.float64) for n in (4, 3)]
        gradients[1][2] = 0.0
        for parameter, gradient in zip(parameters, gradients, strict=False):
            parameter.grad = 1e-3 * gradient
        assert optimizer.step(closure) == "the loss"
        for parameter, gradient in zip(parameters, gradients, strict=False):
            assert torch.equal(parameter.grad, 1e-3 * gradient)  # type: ignore[arg-type]
        for w, v, g in zip(expected, velocities, gradients, strict=True):
            for i in range(len(w)):
                direction = (g[i] > 0).item() - (g[i] < 0).item() + 0.05 * w[i]
                v[i] = 0.8 * v[i] + direction
                w[i] -= 0.03 * (direction + 0.8 * v[i] if "nesterov" in form else v[i])
    for parameter, numbers in zip(parameters, expected, strict=False):
        assert parameter.tolist() == pytest.approx(numbers, rel=1e-13)
    assert torch.equal(parameters[2], weights[2])


def test_hooks_hear_of_a_step_of_batch_manhattan_once() -> None:
    """PyTorch wraps the step of each class that was built; a step here makes one of its parent."""
    SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    _, optimizer = stepped_by_one(BatchManhattan)
    heard: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: heard.append("before"))
    optimizer.register_step_post_hook(lambda *_: heard.append("after"))
    optimizer.step()
    assert heard == ["before", "after"]


class Bare(torch.optim.Optimizer):
    """An optimizer whose methods have no wrapper, as a later PyTorch may have them."""

    def __init__(self, params: list[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter -= self.defaults["lr"] * parameter.grad


def test_a_method_without_a_wrapper_is_called_itself() -> None:
    class Own(Eager, Bare): ...

    (weight,), _ = stepped_by_one(Own)
    torch.testing.assert_close(weight, torch.tensor([1.5, 1.0]))


def stepped_by_one(kind: Any) -> tuple[list[Tensor], Any]:
    weight = torch.tensor([2.0, 2.0], requires_grad=True)
    optimizer = kind([weight], lr=0.5)
    weight.grad = torch.tensor([1.0, 2.0])
    optimizer.step()
    return [weight.detach()], optimizer


def test_a_step_of_a_search_needs_no_compiler() -> None:
    """Its import takes as long as that of PyTorch itself."""
    code = (
        "import sys, torch\n"
        "from darts_bio.optimizers import SGD, Adam\n"
        "w = torch.ones(2, requires_grad=True)\n"
        "for kind in (SGD, Adam):\n"
        "    optimizer = kind([w], lr=0.1)\n"
        "    w.grad = torch.ones(2)\n"
        "    optimizer.step()\n"
        "    optimizer.load_state_dict(optimizer.state_dict())\n"
        "    optimizer.zero_grad()\n"
        "assert w.grad is None\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("saved_fused", "fused"), [(False, True), (True, False)])
def test_a_state_goes_on_in_an_optimizer_of_another_form(saved_fused: bool, fused: bool) -> None:
    """As a run does that goes on with CUDA graphs, whose rate is a tensor, or without."""

    def sgd(fused: bool) -> tuple[torch.Tensor, SGD]:
        weight = torch.arange(4.0, dtype=torch.float64).requires_grad_()
        optimizer = SGD(
            [weight], lr=0.1, momentum=0.9, weight_decay=0.01, foreach=not fused, fused=fused
        )
        if fused:
            optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
        return weight, optimizer

    def step(weight: torch.Tensor, optimizer: SGD) -> None:
        weight.grad = weight.detach().cos()
        optimizer.step()

    (one, before), (other, after) = sgd(saved_fused), sgd(fused)
    for _ in range(3):
        step(one, before)
    with torch.no_grad():
        other.copy_(one)
    load_optimizer(after, copy.deepcopy(before.state_dict()))
    assert after.param_groups[0]["fused"] is fused
    assert isinstance(after.param_groups[0]["lr"], torch.Tensor) == fused
    for weight, optimizer in ((one, before), (other, after)):
        step(weight, optimizer)
    torch.testing.assert_close(one, other, rtol=1e-7, atol=0)


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("name", ["sgd", "nesterov"])
def test_a_virtual_step_is_the_one_that_pytorch_would_make(name: str, before: int) -> None:
    config = SearchConfig(optimizer=name, lr=0.1, momentum=0.8, weight_decay=0.05, clip=0.0)
    model = torch.nn.Linear(4, 3).double()
    optimizer = WeightOptimizer(model, config)
    optimizer.begin_epoch(0)

    def plain() -> tuple[list[Any], torch.optim.Optimizer]:
        weights = [p.detach().clone().requires_grad_() for p in model.parameters()]
        options = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.05}
        return weights, torch.optim.SGD(weights, nesterov=name == "nesterov", **options)

    # One for the step along g, one for that along g + 1: a step is linear in the gradient.
    twins = [plain(), plain()]
    for _ in range(before):
        gradients = [torch.randn_like(p) for p in model.parameters()]
        for parameter, g in zip(model.parameters(), gradients, strict=True):
            parameter.grad = g.clone()
        optimizer.update()
        for weights, theirs in twins:
            for weight, g in zip(weights, gradients, strict=True):
                weight.grad = g.clone()
            theirs.step()
    gradients = [torch.randn_like(p) for p in model.parameters()]
    for more, (weights, theirs) in enumerate(twins):
        for weight, g in zip(weights, gradients, strict=True):
            weight.grad = g + more
        theirs.step()

    kept = copy.deepcopy((model.state_dict(), str(optimizer.state_dict())))
    after, rate = optimizer.virtual_step(gradients)
    assert str((model.state_dict(), str(optimizer.state_dict()))) == str(kept)
    (expected, _), (along_more, _) = twins
    for mine, weight, other in zip(after, expected, along_more, strict=True):
        torch.testing.assert_close(mine, weight.detach(), rtol=1e-14, atol=1e-14)
        torch.testing.assert_close(
            (weight - other).detach(), torch.full_like(weight, float(rate)), rtol=1e-12, atol=0
        )


def test_nesterov_wants_a_momentum() -> None:
    config = SearchConfig(optimizer="nesterov", momentum=0.0)
    with pytest.raises(InputError, match="--momentum: expected more than 0 .* nesterov, found 0"):
        WeightOptimizer(torch.nn.Linear(2, 1), config)
