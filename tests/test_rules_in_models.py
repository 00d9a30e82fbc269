"""Rules in what models do: in-place activations, parts that are called alone, empty batches."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
import torchvision
from torch import Tensor, nn

from darts_bio import convert
from darts_bio.errors import InputError
from darts_bio.rules import RULES


def of_images() -> nn.Module:
    """Convolutions of all kinds that are computed in a way of their own, activated in place."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 5, 1, 8, 4, groups=4), nn.SiLU(inplace=True),
        nn.Conv2d(4, 4, 1, 2), nn.Hardswish(inplace=True),
        nn.Conv2d(4, 4, 9, padding=4, groups=4), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(64, 5), nn.ReLU(inplace=True), nn.Linear(5, 5),
    )  # fmt: skip


def of_tokens() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 5))


MODELS = {
    "images": (of_images, (3, 10, 10)),
    "volumes": (
        lambda: nn.Sequential(
            nn.Conv3d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(108, 5)
        ),
        (3, 5, 5, 5),
    ),
    "rows": (of_tokens, (4,)),
    "tokens": (of_tokens, (7, 4)),
}


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    torch.manual_seed(0)  # of dropout
    model(x).square().sum().backward()
    found = [x.grad, *(parameter.grad for parameter in model.parameters())]
    return [gradient for gradient in found if gradient is not None]


def out_of_place(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("rule", RULES)
class TestEveryRule:
    def test_activations_in_place_change_nothing(self, rule: str, kind: str) -> None:
        build, shape = MODELS[kind]
        model, x = convert(build(), rule), torch.randn(4, *shape)
        found, expected = gradients(model, x), gradients(out_of_place(model), x)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))

    def test_an_empty_batch_changes_nothing(self, rule: str, kind: str) -> None:
        build, shape = MODELS[kind]
        model = convert(build(), rule)
        of_x, *of_weights = gradients(model, torch.empty(0, *shape))
        assert of_x.shape == (0, *shape)
        assert len(of_weights) == len(list(model.parameters()))
        assert all(bool((gradient == 0).all()) for gradient in of_weights)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1"])
def test_dfa_in_models_of_torchvision(name: str) -> None:
    """With efficientnet_b0, alexnet and others it holds too; they take longer to build."""
    model = convert(getattr(torchvision.models, name)(num_classes=5), "dfa")
    x = torch.randn(2, 3, 64, 64)
    found, expected = gradients(model, x), gradients(out_of_place(model), x)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)
        self.checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed:
            h = torch.utils.checkpoint.checkpoint(self.features, x, use_reentrant=True)
        else:
            h = self.features(x)
        return self.head(h)


class TestDirectFeedback:
    def test_parts_that_are_called_alone_do_not_take_the_error_of_an_earlier_pass(self) -> None:
        model, x, labels = convert(Headed(), "dfa"), torch.randn(5, 4), torch.arange(5) % 3
        F.cross_entropy(model(x), labels).backward()
        features = model.get_submodule("features")
        output = model.get_submodule("head")(features(x))
        expected = (
            r"output, which (head|features\.\d) needs, was not seen in this backward pass; call the "
            "model itself, not parts of it"
        )
        with pytest.raises(InputError, match=expected):
            F.cross_entropy(output, labels).backward()
        with pytest.raises(InputError, match=expected):
            features(x).sum().backward()
        F.cross_entropy(model(x), labels).backward()  # goes on

    def test_a_graph_that_is_kept_serves_twice_and_one_that_is_recomputed_too(self) -> None:
        model, x, labels = convert(Headed(), "dfa"), torch.randn(5, 4), torch.arange(5) % 3
        x.requires_grad_()
        loss = F.cross_entropy(model(x), labels)
        first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        again = torch.autograd.grad(loss, list(model.parameters()))
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
        model.checkpointed = True
        F.cross_entropy(model(x), labels).backward()
        for one, parameter in zip(first, model.parameters(), strict=True):
            assert parameter.grad is not None
            assert torch.equal(one, parameter.grad)
