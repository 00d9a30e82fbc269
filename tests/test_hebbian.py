"""Hebbian pretraining, against the published procedure written out in plain PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio import InputError, build_network, convert, hebbian_block, hebbian_pretraining
from darts_bio.rules import rule_layers
from darts_bio.runtime import generator
from darts_bio.spaces import Candidate, Cell, Edge, Genotype
from darts_bio.training.hebbian import Triangle

RULE = "hebbian(rate=norm, step=max)"


def normalized(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + 1e-5).sqrt()


def windows(x: Tensor, size: int) -> Tensor:
    """The windows of a map that is padded by reflection: (N, inputs of a channel, positions)."""
    return F.unfold(F.pad(x, (size // 2,) * 4, mode="reflect"), size)


def triangle(u: Tensor, power: float) -> Tensor:
    return (u - sum(u.unbind(1)).unsqueeze(1) / u.shape[1]).clamp_min(0) ** power


def statistics_of(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel."""
    values = x.transpose(0, 1).flatten(1)
    mean = values.sum(1) / values.shape[1]
    return mean, (values - mean.unsqueeze(1)).square().sum(1) / values.shape[1]


def maps(x: Tensor, weight: Tensor, power: float) -> Tensor:
    """A block of the published network, in training mode."""
    u = weight.flatten(1) @ windows(normalized(x, *statistics_of(x)), weight.shape[2])
    return F.max_pool2d(triangle(u.unflatten(2, x.shape[2:]), power), 4, 2, 1)


def step(x: Tensor, weight: Tensor, temperature: float, rate: float) -> Tensor:
    """The weight after a batch of the block's inputs."""
    rows = windows(normalized(x, *statistics_of(x)), weight.shape[2]).transpose(1, 2).flatten(0, 1)
    w = weight.flatten(1)
    change = torch.zeros_like(w)
    for row in rows:
        u = w @ row
        shares = (temperature * (u - u.max())).exp()
        y = -shares / shares.sum()
        y[u.argmax()] *= -1
        change += y.unsqueeze(1) * row - (y * u).unsqueeze(1) * w
    change /= change.abs().max()
    lengths = w.square().sum(1).sqrt()
    return (w + rate * ((lengths - 1).abs().sqrt()).unsqueeze(1) * change).view_as(weight)


def drawn(shape: torch.Size, radius: float, seed: int, name: str) -> Tensor:
    draws = generator("cpu", "hebbian", seed, name)
    return torch.randn(shape, generator=draws) * radius / math.sqrt(math.prod(shape[1:]))


@pytest.mark.usefixtures("float64")
def test_two_blocks_learn_as_published() -> None:
    model = nn.Sequential(
        hebbian_block(2, 5, 3, power=0.7),
        hebbian_block(5, 4, 3, temperature=0.65, power=1.4),
        nn.Flatten(),
        nn.Linear(16, 3),
        nn.BatchNorm1d(3),
    )
    readout = model[3].weight.detach().clone()
    batches = [torch.rand(3, 2, 8, 8, dtype=torch.float64) for _ in range(4)]
    first, second = (model[k].convolution.weight for k in (0, 1))
    expected = [
        drawn(first.shape, 3.0, 7, "0.convolution"),
        drawn(second.shape, 3.0, 7, "1.convolution"),
    ]
    for x in batches:
        expected[0] = step(x, expected[0], 1.0, 0.08)
    mean = torch.zeros(5)
    for x in batches:
        x = maps(x, expected[0], 0.7)
        mean = 0.9 * mean + 0.1 * statistics_of(x)[0]
        expected[1] = step(x, expected[1], 0.65, 0.02)
    found = hebbian_pretraining(model.eval(), batches, lr=(0.08, 0.02), radius=3.0, seed=7)
    for weight, wanted in zip((first, second), expected, strict=True):
        assert torch.allclose(weight, wanted, rtol=1e-9, atol=1e-9)
        assert not weight.requires_grad
    assert found == pytest.approx(
        {f"{k}.convolution": w.flatten(1).norm(dim=1).mean().item() for k, w in enumerate(expected)}
    )
    # The norm of the second block follows the maps of a first one that has learned.
    assert torch.allclose(model[1].norm.running_mean, mean, rtol=1e-9)
    assert torch.equal(model[3].weight, readout)
    assert model[3].weight.requires_grad
    assert model[4].num_batches_tracked == 0  # a pass ends at the layer that learns
    assert not any(module.training for module in model.modules())


def test_the_triangle_subtracts_the_mean_over_channels() -> None:
    u = torch.randn(2, 5, 3, 4)
    assert torch.allclose(Triangle(1.4)(u), triangle(u, 1.4))


def network_of_cells(rule: str) -> nn.Module:
    edges = tuple(
        Edge(2, source, Candidate(operation, rule))
        for source, operation in enumerate(("sep_conv_3x3", "dil_conv_3x3"))
    )
    cells = {kind: Cell(edges, (2,)) for kind in ("normal", "reduce")}
    genotype = Genotype("darts(nodes=1)", cells)
    torch.manual_seed(0)  # for the layers under bp
    return build_network(genotype, channels=4, layers=3, num_classes=3)


class TestAnyModel:
    def test_all_layers_of_cells_learn(self) -> None:
        """And as the seed says; the rest can be trained by an error afterwards."""
        images = torch.rand(16, 3, 8, 8)
        found = []
        for seed in (1, 1, 2):
            model = network_of_cells(RULE)
            norms = hebbian_pretraining(model, images, radius=3.0, batch_size=8, seed=seed)
            layers = dict(rule_layers(model))
            assert set(norms) == {n for n, layer in layers.items() if layer.rule.spec != "bp"}
            assert not any(layers[name].weight.requires_grad for name in norms)
            for name in norms:
                weight = layers[name].weight
                start = drawn(weight.shape, 3.0, seed, name)
                # Two steps of at most 0.08 times the root of how far norms are from 1.
                longest, furthest = start.flatten(1).norm(dim=1).max().item(), 0.0
                for _ in range(2):
                    step_size = 0.08 * max(1, longest) ** 0.5
                    longest += step_size * weight[0].numel() ** 0.5
                    furthest += step_size
                assert 0 < (weight - start).abs().max() < 1.001 * furthest
            found.append([layers[name].weight for name in norms])
        assert all(map(torch.equal, found[0], found[1]))
        assert not any(map(torch.equal, found[0], found[2]))
        F.cross_entropy(model(images), torch.arange(16) % 3).backward()

    def test_a_converted_model_in_the_order_of_its_calls(self) -> None:
        class Backwards(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.late, self.early, self.unused = (nn.Linear(6, 6) for _ in range(3))

            def forward(self, x: Tensor) -> Tensor:
                return self.late(self.early(x).relu())

        batches = [(torch.randn(4, 6), "a label") for _ in range(3)]
        with pytest.raises(InputError, match="found no call of unused; leave what it does not"):
            hebbian_pretraining(convert(Backwards(), RULE), batches)
        model = convert(Backwards(), {"unused": "bp", "*": RULE})
        assert list(hebbian_pretraining(model, batches)) == ["early", "late"]
        assert model.unused.weight.requires_grad

    def test_what_cannot_be_taught_is_refused(self) -> None:
        images = torch.rand(4, 6)
        plain = nn.Sequential(nn.Linear(6, 6))
        attention = convert(nn.MultiheadAttention(4, 2), RULE)
        for model, given, options, message in (
            (attention, images, {}, "proj.*weight is no convolution or linear layer"),
            (plain, images, {}, "no layer under hebbian"),
            (convert(plain, "hebbian"), images, {}, "0 learns by hebbian, whose steps have no"),
            (convert(plain, RULE), images.byte(), {}, "of a floating type"),
            (convert(plain, RULE), [], {}, "at least one batch"),
            (convert(plain, RULE), iter([images]), {}, "hand over a list or a DataLoader"),
            (convert(plain, RULE), images, {"lr": (0.1, 0.1)}, "one for each of 0; found 2"),
            (convert(plain, RULE), images, {"radius": 0}, "radius: expected a number above 0"),
            (convert(plain, RULE), images, {"epochs": 0}, "epochs: expected a whole number"),
        ):
            with pytest.raises(InputError, match=message):
                hebbian_pretraining(model, given, **options)
        with pytest.raises(InputError, match="expected an odd kernel_size, found 4"):
            hebbian_block(3, 8, 4)
