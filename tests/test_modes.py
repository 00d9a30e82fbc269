"""Changes to a model that last for a while: at the end, whatever ends it, all is as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from darts_bio.modes import frozen, in_mode, restored, undisturbed
from darts_bio.networks import SuperNet
from darts_bio.rules import convert, held_feedback, rule_carriers, true_gradients
from darts_bio.spaces import SPACES
from darts_bio.training.meters import evaluate

Change = Callable[[nn.Module], contextlib.AbstractContextManager[None]]

CHANGES: dict[str, Change] = {
    "in training": lambda model: in_mode(model, training=True),
    "in evaluation": lambda model: in_mode(model, training=False),
    "frozen": frozen,
    "undisturbed in training": lambda model: undisturbed(model, training=True),
    "undisturbed in evaluation": lambda model: undisturbed(model, training=False),
    "true gradients": true_gradients,
    "held feedback": held_feedback,
}


def small() -> nn.Module:
    """Under a rule, with a batch norm in evaluation mode and a bias that is frozen."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
    model = convert(nn.Sequential(*layers), "brsf")
    model[1].eval()  # type: ignore[index]
    model[4].bias.requires_grad_(False)  # type: ignore[index]
    return model


def switches(model: nn.Module) -> list[Any]:
    parts = [module.training for module in model.modules()]
    parts += [parameter.requires_grad for parameter in model.parameters()]
    carriers = [carrier for _, carrier in rule_carriers(model)]
    return parts + [(c.exact, None if c.held is None else c.held.tolist()) for c in carriers]


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
@pytest.mark.parametrize("fails", [False, True])
def test_every_switch_is_put_back(change: Change, fails: bool) -> None:
    model = small()
    before, state = (
        switches(model),
        {name: value.clone() for name, value in model.state_dict().items()},
    )
    with contextlib.suppress(KeyboardInterrupt), change(model):
        assert switches(model) != before
        if fails:
            raise KeyboardInterrupt
    assert switches(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_changes_can_be_nested(change: Change) -> None:
    model = small()
    before = switches(model)
    with change(model):
        within = switches(model)
        with change(model):
            assert switches(model) == within
        assert switches(model) == within
    assert switches(model) == before


def test_what_happens_to_an_undisturbed_model_is_forgotten() -> None:
    model, x = small(), torch.randn(2, 3, 4, 4)
    model(x).sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    values = [None if gradient is None else gradient.clone() for gradient in gradients]
    buffers = [buffer.clone() for buffer in model.buffers()]
    with undisturbed(model, training=True):
        model.zero_grad()
        model(x).sum().backward()
        assert not all(torch.equal(*pair) for pair in zip(model.buffers(), buffers, strict=True))
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), buffers, strict=True))
    for parameter, gradient, value in zip(model.parameters(), gradients, values, strict=True):
        assert parameter.grad is gradient
        assert value is None or torch.equal(parameter.grad, value)


def test_a_mode_is_what_the_model_makes_of_it() -> None:
    """A model of a user may keep its batch norms in evaluation mode, come what may."""

    class Kept(nn.Sequential):
        def train(self, mode: bool = True) -> Kept:
            super().train(mode)
            self[0].eval()
            return self

    model = Kept(nn.BatchNorm2d(3), nn.ReLU()).eval()
    with in_mode(model, training=True):
        assert [module.training for module in model.modules()] == [True, False, True]
    assert not any(module.training for module in model.modules())


def test_evaluation_keeps_the_mode_of_each_part() -> None:
    model = small()
    before = switches(model)
    seen: list[bool] = []
    model.register_forward_hook(lambda module, x, y: seen.append(module.training))
    evaluate(model, [(torch.randn(2, 3, 4, 4), torch.tensor([0, 4]))], prefix="test")
    assert seen == [False]
    assert switches(model) == before
    with pytest.raises(RuntimeError):
        evaluate(model, [(torch.randn(2, 7, 4, 4), torch.tensor([0, 4]))], prefix="test")
    assert switches(model) == before


class Failing(nn.Module):
    """Draws, and then gives up."""

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(3)
        raise RuntimeError("no more")


def test_an_evaluation_that_fails_leaves_generators_as_they_were() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="no more"):
        evaluate(Failing(), [(torch.zeros(2, 1), torch.zeros(2).long())], prefix="test")
    assert torch.equal(torch.get_rng_state(), before)


def test_statistics_of_a_batch_come_and_go() -> None:
    supernet = SuperNet(SPACES.build("nb201"), ["bp"], channels=4, layers=3, num_classes=5)
    norms: list[Any] = [
        module for module in supernet.modules() if hasattr(module, "track_running_stats")
    ]
    norms[1].track_running_stats = False
    with supernet.batch_statistics():
        assert not any(norm.track_running_stats for norm in norms)
    assert [norm.track_running_stats for norm in norms] == [
        number != 1 for number in range(len(norms))
    ]


def test_of_a_generator_of_tensors() -> None:
    tensors = [torch.zeros(2), torch.ones(3)]
    with restored((tensor for tensor in tensors), "grad"):
        tensors[0].grad = Tensor([1, 2])
    assert tensors[0].grad is None
