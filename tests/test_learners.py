"""Global learners: what stands in `.grad` against plain versions written from the papers."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import darts_bio
from darts_bio.data.datasets import DIGITS
from darts_bio.errors import InputError
from darts_bio.evaluation.attacks import ATTACKS, perturb
from darts_bio.evaluation.learner_alignment import learner_alignment
from darts_bio.learners import LEARNERS, Evaluation, cut, learner
from darts_bio.rules import convert

NAMES = tuple(LEARNERS)


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers of these widths with an activation in between."""
    modules: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        modules += [nn.Linear(a, b), activation()]
    return nn.Sequential(*modules[:-1])


def conv_net() -> nn.Sequential:
    """For images (N, 1, 8, 8) of 5 classes; activations and pooling, no weights between layers."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.Tanh(), nn.Flatten()),
        nn.Linear(24, 5),
    )


def batch(n: int, *shape: int, classes: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(n, *shape), torch.arange(n) % classes


def gradients(model: nn.Module) -> list[Tensor]:
    found = [p.grad for p in model.parameters()]
    model.zero_grad()
    return [torch.empty(0) if g is None else g for g in found]


def exact_gradients(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable[..., Tensor] = F.cross_entropy
) -> list[Tensor]:
    return list(torch.autograd.grad(loss(model(x), y), [*model.parameters()]))


def close(found: list[Tensor], expected: list[Tensor], bound: float = 1e-10) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= bound * max(1.0, b.abs().max().item())


def one_hot_error(logits: Tensor, y: Tensor) -> Tensor:
    return logits.softmax(1) - F.one_hot(y, logits.shape[1])


@pytest.mark.usefixtures("float64")
class TestPredictiveCoding:
    @pytest.mark.parametrize("mode", ["fixed", "exact"])
    @pytest.mark.parametrize("net", ["mlp", "deep", "conv", "one"])
    def test_at_its_fixed_prediction_it_is_backpropagation(self, net: str, mode: str) -> None:
        """Rosenbaum 2022: rate 1 and as many steps as blocks. Here they may be more, too."""
        model, shape = {
            "mlp": (lambda: mlp(7, 6, 5), (7,)),
            "deep": (lambda: mlp(7, 6, 8, 6, 9, 5, activation=nn.ReLU), (7,)),
            "conv": (conv_net, (1, 8, 8)),
            "one": (lambda: mlp(7, 5), (7,)),
        }[net]
        model = model()
        x, y = batch(6, *shape)
        for steps in (len(cut(model).blocks), 9):
            loss, logits = learner(model, f"pc(mode={mode}, rate=1, steps={steps})").backward(x, y)
            close(gradients(model), exact_gradients(model, x, y))
        torch.testing.assert_close(logits, model(x))
        torch.testing.assert_close(loss, F.cross_entropy(logits, y))

    def test_fewer_steps_than_blocks_leave_the_lowest_blocks_without_error(self) -> None:
        """An error moves down by a block in each step."""
        model, (x, y) = mlp(7, 6, 6, 6, 5), batch(6, 7)
        learner(model, "pc(mode=fixed, rate=1, steps=2)").backward(x, y)
        found, exact = gradients(model), exact_gradients(model, x, y)
        close(found[2:], exact[2:])
        assert not found[0].any()

    @pytest.mark.parametrize(("steps", "rate"), [(1, 0.2), (5, 0.1), (40, 0.05)])
    def test_fixed_steps_are_the_published_iteration(self, steps: int, rate: float) -> None:
        """Rosenbaum 2022: v <- v + rate (e - J^T e'), e = v of the forward pass - v, blocks of tanh;
        the derivatives written by hand.
        """
        model, (x, y) = mlp(7, 6, 8, 5), batch(6, 7)
        learner(model, f"pc(mode=fixed, steps={steps}, rate={rate})").backward(x, y)
        W, b = [m.weight for m in model[::2]], [m.bias for m in model[::2]]
        with torch.no_grad():
            h1 = torch.tanh(x @ W[0].t() + b[0])
            h2 = torch.tanh(h1 @ W[1].t() + b[1])
            e3 = one_hot_error(h2 @ W[2].t() + b[2], y)
            v1, v2 = h1.clone(), h2.clone()
            for _ in range(steps):
                e1, e2 = h1 - v1, h2 - v2
                v1 = v1 + rate * (e1 - (e2 * (1 - h2**2)) @ W[1])
                v2 = v2 + rate * (e2 - e3 @ W[2])
            d1, d2 = (h1 - v1) * (1 - h1**2), (h2 - v2) * (1 - h2**2)
            expected = [d1.t() @ x, d1.sum(0), d2.t() @ h1, d2.sum(0), e3.t() @ h2, e3.sum(0)]
        close(gradients(model), [g / len(x) for g in expected])

    @pytest.mark.parametrize(("steps", "rate"), [(1, 0.2), (20, 0.1), (60, 0.05)])
    def test_strict_steps_descend_the_energy_of_whittington_and_bogacz(
        self, steps: int, rate: float
    ) -> None:
        """Half the squared distance as the loss; their equations for linear maps of tanh, here with
        the activation after the map: e = f(v below) - v, derivatives by hand.
        """

        def distance(output: Tensor, target: Tensor) -> Tensor:
            return 0.5 * (output - target).square().sum() / len(output)

        model, x, y = mlp(7, 6, 8, 5), torch.randn(6, 7), torch.randn(6, 5)
        spec = f"pc(steps={steps}, rate={rate})"
        loss, _ = learner(model, spec, loss=distance).backward(x, y)
        torch.testing.assert_close(loss, distance(model(x), y).detach())
        W, b = [m.weight for m in model[::2]], [m.bias for m in model[::2]]
        with torch.no_grad():
            v1 = torch.tanh(x @ W[0].t() + b[0])
            v2 = torch.tanh(v1 @ W[1].t() + b[1])

            def errors() -> tuple[Tensor, ...]:
                f1, f2 = torch.tanh(x @ W[0].t() + b[0]), torch.tanh(v1 @ W[1].t() + b[1])
                e1, e2, e3 = f1 - v1, f2 - v2, v2 @ W[2].t() + b[2] - y
                return e1, e2, e1 * (1 - f1**2), e2 * (1 - f2**2), e3

            for _ in range(steps):
                e1, e2, _, d2, e3 = errors()
                v1, v2 = v1 + rate * (e1 - d2 @ W[1]), v2 + rate * (e2 - e3 @ W[2])
            _, _, d1, d2, e3 = errors()
            expected = [d1.t() @ x, d1.sum(0), d2.t() @ v1, d2.sum(0), e3.t() @ v2, e3.sum(0)]
        close(gradients(model), [g / len(x) for g in expected])

    def test_settled_values_have_no_force_on_them(self) -> None:
        """At the minimum of a quadratic energy, in closed form: one hidden value, W2 linear, half
        the squared distance. (1 + W2^T W2) v = W1 x + W2^T y. An eigenvalue of the matrix is 1 or
        more, so 150 steps of rate 0.3 leave less than 0.7^150 = 1e-23 of what was to go.
        """
        model = nn.Sequential(nn.Linear(7, 6, bias=False), nn.Linear(6, 5, bias=False))
        x, y = torch.randn(4, 7), torch.randn(4, 5)
        learner(
            model,
            "pc(steps=150, rate=0.3)",
            loss=lambda output, target: 0.5 * (output - target).square().sum() / len(output),
        ).backward(x, y)
        W1, W2 = (m.weight.detach() for m in model)
        v = torch.linalg.solve(torch.eye(6) + W2.t() @ W2, (x @ W1.t() + y @ W2).t()).t()
        expected = [(x @ W1.t() - v).t() @ x / 4, (v @ W2.t() - y).t() @ v / 4]
        close(gradients(model), expected)

    def test_a_sample_learns_the_same_whatever_batch_it_is_in(self) -> None:
        """The gradient of a batch is the mean over its samples, also of a settled energy."""
        model, (x, y) = mlp(7, 6, 8, 5), batch(6, 7)
        teacher = learner(model, "pc(steps=30)")
        teacher.backward(x, y)
        whole = gradients(model)
        for part in range(3):  # accumulated
            teacher.backward(x[2 * part :][:2], y[2 * part :][:2])
        close([g / 3 for g in gradients(model)], whole)

    def test_shares_of_classes_are_targets_too(self) -> None:
        model, (x, y) = mlp(7, 6, 5), batch(6, 7)
        teacher = learner(model, "pc")
        teacher.backward(x, y)
        whole = gradients(model)
        teacher.backward(x, F.one_hot(y, 5).double())
        close(gradients(model), whole)

    def test_rules_inside_blocks_carry_the_error_by_their_kernels(self) -> None:
        plain = mlp(7, 6, 8, 5)
        model = convert(plain, "fa", seed=1)
        x, y = batch(6, 7)
        learner(model, "pc(mode=fixed, rate=1, steps=3)").backward(x, y)
        found = gradients(model)
        F.cross_entropy(model(x), y).backward()
        close(found, gradients(model))


@pytest.mark.usefixtures("float64")
class TestPepita:
    def test_linear_layers_learn_as_published(self) -> None:
        """Dellaferrera 2022, sample by sample, with a bias as the weight of a constant input."""
        model, (x, y) = mlp(7, 6, 8, 5, activation=nn.ReLU), batch(6, 7)
        teacher = learner(model, "pepita(scale=2)")
        loss, logits = teacher.backward(x, y)
        torch.testing.assert_close(loss, F.cross_entropy(model(x), y).detach())
        torch.testing.assert_close(logits, model(x))
        feedback = teacher.state.feedback
        layers = [torch.cat([m.weight, m.bias[:, None]], 1).detach() for m in model[::2]]
        updates = [torch.zeros_like(W) for W in layers]

        def passed(h: Tensor) -> list[Tensor]:
            activities = [h]
            for k, W in enumerate(layers):
                a = W @ torch.cat([activities[-1], torch.ones(1)])
                activities.append(a.relu() if k < 2 else a.softmax(0))
            return activities

        for n in range(6):
            h = passed(x[n])
            e = h[3] - F.one_hot(y[n], 5)
            moved = passed(x[n] + feedback @ e)
            for k, difference in enumerate((h[1] - moved[1], h[2] - moved[2], e)):
                updates[k] += torch.outer(difference, torch.cat([moved[k], torch.ones(1)])) / 6
        close(gradients(model), [part for U in updates for part in (U[:, :-1], U[:, -1])])

    def test_convolutions_learn_by_the_mean_over_positions(self) -> None:
        """The activity is that before pooling, the input that after it; window by window."""
        model = nn.Sequential(
            *(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(12, 5)),
        )
        x, y = batch(4, 2, 8, 8)
        teacher = learner(model, "pepita(scale=2)", example=x)
        teacher.backward(x, y)
        with torch.no_grad():
            e = one_hot_error(model(x), y)
            moved = x + (e @ teacher.state.feedback.t()).view(4, 2, 8, 8)
            difference = model[:2](x) - model[:2](moved)  # (4, 3, 4, 4)
            padded, kernel, bias = (
                F.pad(moved, (1, 1, 1, 1)),
                torch.zeros(3, 2, 3, 3),
                torch.zeros(3),
            )
            for n, row, column in itertools.product(range(4), repeat=3):
                window = padded[n, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
                d = difference[n, :, row, column]
                kernel += d[:, None, None, None] * window / (4 * 16)
                bias += d / (4 * 16)
            expected = [kernel, bias, e.t() @ model[:4](moved) / 4, e.mean(0)]
        close(gradients(model), expected)

    def test_a_convolution_at_the_end_learns_by_the_error_at_its_output(self) -> None:
        """Which global pooling spreads evenly over its 16 positions: their sum, not their mean."""
        model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3))
        model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten()])
        x, y = batch(4, 2, 8, 8)
        teacher = learner(model, "pepita(scale=2)", example=x)
        teacher.backward(x, y)
        with torch.no_grad():
            e = one_hot_error(model(x), y)[:, :, None, None].expand(4, 5, 4, 4) / 16
            moved = x + (e.flatten(1) @ teacher.state.feedback.t()).view_as(x)
            below = model[:2](moved)
            windows = below.unfold(2, 3, 1).unfold(3, 3, 1)  # (N, channels, 4, 4, 3, 3)
            expected = torch.einsum("norc,nircab->oiab", e, windows) / 4
        close([model[2].weight.grad, model[2].bias.grad], [expected, e.sum((0, 2, 3)) / 4])

    def test_both_passes_have_the_same_dropout(self) -> None:
        """Without feedback to speak of the passes are equal, and hidden layers learn nothing."""
        model = nn.Sequential(nn.Linear(7, 60), nn.Dropout(), nn.ReLU(), nn.Linear(60, 5))
        x, y = batch(6, 7)
        learner(model, "pepita(scale=1e-13)").backward(x, y)
        assert model[0].weight.grad.abs().max() < 1e-10
        assert model[3].weight.grad.abs().max() > 1e-3

    def test_the_feedback_is_uniform_in_the_published_range(self) -> None:
        """scale sqrt(6 / inputs): 4000 uniform draws come within a percent of both ends."""
        feedback = learner(mlp(400, 10), "pepita(scale=0.05)").state.feedback
        bound = 0.05 * (6 / 400) ** 0.5
        assert feedback.shape == (400, 10)
        assert 0.99 * bound < feedback.max() <= bound
        assert -bound <= feedback.min() < -0.99 * bound

    def test_what_it_cannot_train_ends_in_one_line(self) -> None:
        x, y = batch(4, 7)
        norm = nn.Sequential(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5))
        with pytest.raises(InputError, match=r"alone, found 1 \(BatchNorm1d\); freeze it"):
            learner(norm, "pepita")
        norm[1].requires_grad_(False)
        learner(norm, "pepita").backward(x, y)
        assert norm[1].num_batches_tracked == 1
        shared = nn.Linear(7, 7)
        with pytest.raises(InputError, match="found one twice"):
            learner(nn.Sequential(shared, nn.ReLU(), shared), "pepita")
        images, _ = batch(4, 1, 8, 8)
        with pytest.raises(InputError, match=r"give learner\(..., example=x\)"):
            learner(conv_net(), "pepita")
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), mlp(4, 5))
        teacher = learner(net, "pepita", example=images)
        with pytest.raises(InputError, match="expected inputs of 64 values a sample"):
            teacher.backward(torch.randn(4, 1, 9, 9), y)
        with pytest.raises(InputError, match="expected an input of real numbers"):
            learner(nn.Sequential(nn.Linear(7, 5)), "pepita", example=torch.zeros(1, 7).long())


@pytest.mark.usefixtures("float64")
class TestDifferenceTargetPropagation:
    def test_blocks_and_inverses_learn_as_published(self) -> None:
        """Lee 2015, algorithm 1, blocks of tanh; derivatives by hand."""
        model, (x, y) = mlp(7, 6, 8, 9, 5), batch(6, 7)
        teacher = learner(model, "dtp(rate=0.7, noise=0.4)", seed=3)
        torch.manual_seed(4)
        loss, logits = teacher.backward(x, y)
        torch.testing.assert_close(loss, F.cross_entropy(model(x), y).detach())
        torch.testing.assert_close(logits, model(x))
        found = gradients(model) + [p.grad for p in teacher.parameters()]
        W, b = [m.weight for m in model[::2]], [m.bias for m in model[::2]]
        V2, c2, V3, c3 = teacher.parameters()
        with torch.no_grad():
            h1 = torch.tanh(x @ W[0].t() + b[0])
            h2 = torch.tanh(h1 @ W[1].t() + b[1])
            h3 = torch.tanh(h2 @ W[2].t() + b[2])
            e = one_hot_error(h3 @ W[3].t() + b[3], y)  # of each sample
            t3 = h3 - 0.7 * e @ W[3]
            t2 = h2 + torch.tanh(t3 @ V3.t() + c3) - torch.tanh(h3 @ V3.t() + c3)
            t1 = h1 + torch.tanh(t2 @ V2.t() + c2) - torch.tanh(h2 @ V2.t() + c2)
            expected = []
            for below, h, t in ((x, h1, t1), (h1, h2, t2), (h2, h3, t3)):
                d = 2 * (h - t) * (1 - h**2)
                expected += [d.t() @ below, d.sum(0)]
            expected += [e.t() @ h3, e.sum(0)]
            torch.manual_seed(4)
            for h, k, V, c in ((h1, 1, V2, c2), (h2, 2, V3, c3)):
                noisy = h + 0.4 * torch.randn(h.shape)
                image = torch.tanh(noisy @ W[k].t() + b[k])
                back = torch.tanh(image @ V.t() + c)
                d = 2 * (back - noisy) * (1 - back**2)
                expected += [d.t() @ image, d.sum(0)]
        close(found, [g / len(x) for g in expected])

    def test_the_block_before_the_last_learns_by_backpropagation(self) -> None:
        """|h - t|^2 with t = h - rate dl/dh has the gradient 2 rate dl/dh; also of convolutions."""
        model, (x, y) = conv_net(), batch(6, 1, 8, 8)
        learner(model, "dtp(rate=0.1)", example=x).backward(x, y)
        found, exact = gradients(model), exact_gradients(model, x, y)
        close(found[2:4], [0.2 * g for g in exact[2:4]])
        close(found[4:], exact[4:])
        assert F.cosine_similarity(found[0].flatten(), exact[0].flatten(), 0) < 0.999

    def test_inverses_become_inverses(self) -> None:
        """That of an orthogonal map is its transpose, which their loss has as its minimum, 0."""
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 5))
        nn.init.orthogonal_(model[1].weight)
        teacher = learner(model, "dtp(noise=1)")
        optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1)
        for _ in range(200):
            optimizer.zero_grad()
            teacher.backward(*batch(64, 6))
            optimizer.step()
        weight, bias = teacher.parameters()
        close([weight.detach(), bias.detach()], [model[1].weight.t(), torch.zeros(6)], 1e-6)

    def test_inverses_start_orthogonal_and_end_in_the_range_of_the_block_below(self) -> None:
        (inverse,) = learner(mlp(7, 6, 8, 5, activation=nn.ReLU), "dtp").state
        close([inverse.linear.weight @ inverse.linear.weight.t()], [torch.eye(6)])
        assert isinstance(inverse.activation, nn.ReLU)
        one, two = learner(mlp(7, 6, 6, 6, 5), "dtp").state
        assert not torch.equal(one.linear.weight, two.linear.weight)

    def test_inverses_of_one_seed_are_not_those_of_the_next(self) -> None:
        """Not at another place either, where shapes agree."""
        drawn = [
            inverse.linear.weight
            for seed in (0, 1, 2)
            for inverse in learner(mlp(7, 6, 6, 6, 6, 5), "dtp", seed=seed).state
        ]
        assert len(drawn) == 9
        pairs = itertools.combinations(drawn, 2)
        assert not any(torch.equal(a, b) for a, b in pairs)

    def test_what_it_cannot_train_ends_in_one_line(self) -> None:
        net = nn.Sequential(*conv_net()[:2], nn.Linear(24, 7), nn.Linear(7, 5))
        with pytest.raises(InputError, match=r"dtp: expected a model that begins with a linear"):
            learner(net, "dtp")
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1))
        model.extend([nn.Flatten(), nn.Linear(4, 5)])
        teacher = learner(model, "dtp", example=torch.zeros(1, 1, 8, 8))
        with pytest.raises(InputError, match=r"found \(4, 7, 7\) and \(4,\); make a learner with"):
            teacher.backward(torch.zeros(2, 1, 9, 9), torch.tensor([0, 1]))


@pytest.mark.usefixtures("float64")
class TestChain:
    def test_blocks_begin_at_weights(self) -> None:
        norm = nn.BatchNorm2d(3)
        model = nn.Sequential(
            nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.ReLU()),
            nn.Flatten(),
            nn.Sequential(nn.Dropout(), nn.Linear(3, 2)),
        )
        assert [block.name for block in cut(model).blocks] == ["0.0 to 2.0", "2.1"]

    def test_a_module_may_stand_there_more_than_once(self) -> None:
        shared, relu, (x, y) = nn.Linear(6, 6), nn.ReLU(), batch(6, 7)
        model = nn.Sequential(nn.Linear(7, 6), relu, shared, relu, shared, relu, nn.Linear(6, 5))
        assert [b.name for b in cut(model).blocks] == ["0 to 1", "2 to 3", "4 to 5", "6"]
        learner(model, "pc(mode=fixed, rate=1, steps=4)").backward(x, y)
        close(gradients(model), exact_gradients(model, x, y))

    def test_any_model_is_cut_by_names_or_modules(self) -> None:
        class Residual(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(6, 6)

            def forward(self, x: Tensor) -> Tensor:
                return x + self.linear(x).tanh()

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.middle, self.last = nn.Linear(7, 6), Residual(), nn.Linear(6, 5)

            def forward(self, x: Tensor) -> Tensor:
                return self.last(self.middle(self.first(x)).relu())

        model, (x, y) = Net(), batch(6, 7)
        layers = ["first", nn.Sequential(model.middle, nn.ReLU()), "last"]
        learner(model, "pc(mode=fixed, rate=1, steps=3)", layers=layers).backward(x, y)
        close(gradients(model), exact_gradients(model, x, y))
        with pytest.raises(InputError, match=r"expected an nn.Sequential, found Net.*\"first\""):
            learner(model, "pc")
        with pytest.raises(InputError, match="another output of last"):
            learner(model, "pc", layers=["first", "middle", "last"]).backward(x, y)
        with pytest.raises(InputError, match="found middle.linear.weight in none"):
            learner(model, "pc", layers=["first", "last"])
        with pytest.raises(InputError, match="unknown submodule 'lost': did you mean 'last'"):
            learner(model, "pc", layers=["first", "middle", "lost"])
        with pytest.raises(InputError, match="not copies"):
            learner(model, "pc", layers=["first", copy.deepcopy(model.middle), "last"])
        with pytest.raises(InputError, match="found 'first'"):
            learner(model, "pc", layers="first")
        with pytest.raises(InputError, match="found another output"):
            learner(model, "pc", layers=["first", "middle", "last"], example=x)

    def test_a_residual_network_learns_by_stages(self) -> None:
        """With batch norm in training mode, whose statistics move once."""
        model = torchvision.models.resnet18(num_classes=5)
        other, (x, y) = copy.deepcopy(model), batch(3, 3, 32, 32)
        stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
        head = nn.Sequential(model.avgpool, nn.Flatten(), model.fc)
        layers = [stem, "layer1", "layer2", "layer3", "layer4", head]
        learner(model, "pc(mode=fixed, rate=1, steps=6)", layers=layers).backward(x, y)
        close(gradients(model), exact_gradients(other, x, y))
        for one, two in zip(model.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)
        with pytest.raises(InputError, match="expected an nn.Sequential, found ResNet; name its"):
            learner(model, "pc")
        with pytest.raises(
            InputError, match=r"block fc: cannot take an input of shape \(3, 512, 1"
        ):
            learner(model, "pc", layers=[stem, *layers[1:5], "avgpool", "fc"]).backward(x, y)

    def test_a_graph_that_is_not_a_chain_is_refused(self) -> None:
        class Branching(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(7, 7), nn.Linear(7, 7)

            def forward(self, x: Tensor) -> Tensor:
                return self.b(self.a(x)) + x

        with pytest.raises(InputError, match="a model whose paths branch"):
            learner(Branching(), "pc", layers=["a", "b"]).backward(*batch(4, 7))

    def test_a_function_that_the_blocks_leave_out_is_noticed(self) -> None:
        """Where it acts in training alone, too, and where a last layer of zeros hides it."""

        class Net(nn.Module):
            def __init__(self, hidden: Callable[[Tensor, bool], Tensor]) -> None:
                super().__init__()
                self.a, self.act, self.b = nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5)
                self.drop = nn.Dropout(0.4)
                self.hidden = hidden

            def forward(self, x: Tensor) -> Tensor:
                return self.b(self.hidden(self.act(self.a(x)), self.training))

        def dropped(v: Tensor, training: bool) -> Tensor:
            return F.dropout(v, 0.4, training)

        def doubled(v: Tensor, training: bool) -> Tensor:
            return 2 * v

        (x, y), layers = batch(6, 7), ["a", "act", "b"]
        model = Net(dropped)
        with pytest.raises(InputError, match="another output of b in training mode; .* a module"):
            learner(model, "pc", layers=layers, example=x).backward(x, y)
        learner(model.eval(), "pc", layers=layers).backward(x, y)
        model, other = Net(dropped), Net(dropped)
        other.load_state_dict(model.state_dict())
        torch.manual_seed(2)
        named = ["a", "act", "drop", "b"]
        learner(model, "pc(mode=exact)", layers=named).backward(x, y)
        torch.manual_seed(2)
        close(gradients(model), exact_gradients(other, x, y))  # one draw, the one that was to come
        model = Net(doubled)
        nn.init.zeros_(model.b.weight)
        with pytest.raises(InputError, match="found another input of b;|of b in training mode;"):
            learner(model, "pc", layers=layers).backward(x, y)
        with pytest.raises(InputError, match="found another input of b; a model whose"):
            learner(model, "pc", layers=layers, example=x[:1])

    @pytest.mark.parametrize("method", ["pc(mode=exact)", "dual_propagation"])
    def test_a_module_in_place_of_a_function_follows_the_model(self, method: str) -> None:
        """Dropout that is none of the model's modules, which model.eval() does not reach."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.act, self.b = nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 5)

            def forward(self, x: Tensor) -> Tensor:
                return self.b(F.dropout(self.act(self.a(x)), 0.4, self.training))

        model, (x, y) = Net(), batch(6, 7)
        layers = ["a", "act", nn.Dropout(0.4), "b"]
        teacher = learner(model, method, layers=layers)
        for training in (True, False, True):  # checked with the first batch alone
            model.train(training)
            torch.manual_seed(3)
            logits = teacher.backward(x, y).logits
            torch.manual_seed(3)
            torch.testing.assert_close(logits, model(x).detach())
        learner(model.eval(), method, layers=layers).backward(x, y)

    def test_hooks_of_a_sequential_model_are_no_part_of_its_chain(self) -> None:
        model, (x, y) = mlp(7, 6, 5), batch(6, 7)
        seen = []
        model.register_forward_hook(lambda module, given, output: seen.append(output))
        learner(model, "pc").backward(x, y)  # that looks, and changes nothing
        assert seen
        model.register_forward_pre_hook(lambda module, given: (2 * given[0],))
        with pytest.raises(InputError, match="found another output of 2"):
            learner(model, "pc").backward(x, y)

    @pytest.mark.parametrize("mode", ["strict", "fixed", "exact"])
    def test_dropout_and_batch_norm_act_once(self, mode: str) -> None:
        """After a step statistics, their count and the generator are those after a single forward
        pass; at the fixed prediction gradients are those of that pass, with its masks.
        """
        model = nn.Sequential(
            *(nn.Linear(7, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.4)),
            *(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 5)),
        )
        other, (x, y) = copy.deepcopy(model), batch(9, 7)
        torch.manual_seed(3)
        learner(model, f"pc(mode={mode}, rate=1, steps=4)").backward(x, y)
        after, drawn = copy.deepcopy(dict(model.named_buffers())), torch.rand(3)
        torch.manual_seed(3)
        expected = exact_gradients(other, x, y)
        torch.testing.assert_close(drawn, torch.rand(3), rtol=0, atol=0)
        for name, buffer in other.named_buffers():
            torch.testing.assert_close(after[name], buffer, rtol=0, atol=0)
        if mode != "strict":
            close(gradients(model), expected)

    def test_each_evaluation_of_a_block_repeats_its_draws(self) -> None:
        """Those of its first one; the generator stays where it is, behind all first ones."""
        chain = cut(nn.Sequential(nn.Linear(50, 50), nn.Dropout(), nn.Linear(50, 50), nn.Dropout()))
        evaluation, x = Evaluation(chain), torch.randn(4, 50)
        first = evaluation(0, x)
        second, state = evaluation(1, first), torch.get_rng_state()
        assert torch.equal(first == 0, evaluation(0, 2 * x) == 0)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(second == 0, evaluation(1, 2 * x) == 0)
        assert not torch.equal(first == 0, Evaluation(chain)(0, x) == 0)

    @pytest.mark.parametrize("spec", ["pc(mode=fixed, rate=1, steps=3)", "dtp(rate=0.5)"])
    def test_a_block_may_begin_in_place(self, spec: str) -> None:
        """Values between blocks survive it; what begins with its activation has no range below."""
        model, (x, y) = mlp(7, 6, 8, 5, activation=partial(nn.ReLU, inplace=True)), batch(6, 7)
        layers = [model[0], model[1:3], model[3:]]
        teacher = learner(model, spec, layers=layers)
        teacher.backward(x, y)
        found, exact = gradients(model), exact_gradients(model, x, y)
        close(found[2:], exact[2:])
        if spec.startswith("pc"):
            close(found[:2], exact[:2])
        else:
            (inverse,) = teacher.state
            assert inverse.activation is None


@pytest.mark.usefixtures("float64")
class TestDirectRandomTargetProjection:
    def test_linear_layers_learn_as_published(self) -> None:
        """Frenkel 2021, sample by sample; derivatives of tanh by hand."""
        model, (x, y) = mlp(7, 6, 8, 5), batch(6, 7)
        teacher = learner(model, "drtp(scale=2)", seed=1)
        loss, logits = teacher.backward(x, y)
        torch.testing.assert_close(loss, F.cross_entropy(model(x), y).detach())
        torch.testing.assert_close(logits, model(x))
        B = [*teacher.state.buffers()]
        assert [tuple(b.shape) for b in B] == [(5, 6), (5, 8)]
        W, b = [m.weight.detach() for m in model[::2]], [m.bias.detach() for m in model[::2]]
        expected = [torch.zeros_like(p) for p in model.parameters()]
        for n in range(6):
            h = [x[n]]
            for k in (0, 1):
                h.append(torch.tanh(W[k] @ h[k] + b[k]))
            t = F.one_hot(y[n], 5).double()
            e = (W[2] @ h[2] + b[2]).softmax(0) - t
            d = [*((B[k].t() @ t) * (1 - h[k + 1] ** 2) for k in (0, 1)), e]
            for k in range(3):
                expected[2 * k] += torch.outer(d[k], h[k]) / 6
                expected[2 * k + 1] += d[k] / 6
        close(gradients(model), expected)

    @pytest.mark.parametrize("shares", [False, True])
    def test_convolutions_receive_targets_before_pooling(self, shares: bool) -> None:
        """At each position of what the activation gives, as in the authors' code; window by
        window. Shares of classes are projected as they are.
        """
        model = nn.Sequential(
            *(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.AvgPool2d(2)),
            *(nn.Flatten(), nn.Linear(12, 5)),
        )
        x, y = batch(4, 2, 8, 8)
        t = torch.rand(4, 5).softmax(1) if shares else F.one_hot(y, 5).double()
        teacher = learner(model, "drtp", example=x)
        teacher.backward(x, t if shares else y)
        with torch.no_grad():
            z = model[0](x)  # (4, 3, 4, 4)
            sent = (t @ teacher.state.feedback_0).view(4, 3, 4, 4) * (1 - z.tanh() ** 2) / 4
            padded, kernel = F.pad(x, (1, 1, 1, 1)), torch.zeros(3, 2, 3, 3)
            for n, row, column in itertools.product(range(4), repeat=3):
                window = padded[n, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
                kernel += sent[n, :, row, column][:, None, None, None] * window
            e = (model(x).softmax(1) - t) / 4
            expected = [kernel, sent.sum((0, 2, 3)), e.t() @ model[:4](x), e.sum(0)]
        close(gradients(model), expected)

    def test_each_part_of_a_block_with_parameters_learns(self) -> None:
        """Targets arrive behind the last of them, here a norm behind the pooling."""
        model = nn.Sequential(
            *(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.ReLU()),
            *(nn.MaxPool2d(3), nn.Flatten(), nn.Linear(3, 5)),
        )
        x, y = batch(4, 1, 8, 8)
        teacher = learner(model, "drtp", example=x)
        teacher.backward(x, y)
        found = gradients(model)
        assert teacher.state.feedback_0.shape == (5, 27)
        surrogate = model[:4](x).flatten(1) @ teacher.state.feedback_0.t()
        sent = (surrogate * F.one_hot(y, 5)).sum() / 4  # whose derivative is B^T t behind the ReLU
        exact = torch.autograd.grad(sent, [*model[:3].parameters()])
        close(found[:4], list(exact))

    def test_the_feedback_is_uniform_in_the_published_range(self) -> None:
        """sqrt(6 / values), PyTorch's kaiming_uniform_ on (outputs, values): 4000 uniform draws
        come within a percent of both ends.
        """
        feedback = learner(mlp(3, 400, 10), "drtp").state.feedback_0
        bound = (6 / 400) ** 0.5
        assert 0.99 * bound < feedback.max() <= bound
        assert -bound <= feedback.min() < -0.99 * bound

    def test_other_losses_need_targets_of_the_outputs_shape(self) -> None:
        def distance(output: Tensor, target: Tensor) -> Tensor:
            return (output - target.view_as(output)).square().sum() / len(output)

        model, x = mlp(7, 6, 5), torch.randn(4, 7)
        teacher = learner(model, "drtp", loss=distance)
        targets = torch.randn(4, 5)
        teacher.backward(x, targets)
        close(gradients(model)[3:], exact_gradients(model, x, targets, distance)[3:])
        with pytest.raises(
            InputError, match=r"targets \(4, 5\), found \(4, 1, 5\).*in the shape of"
        ):
            teacher.backward(x, targets.unsqueeze(1))
        images = torch.randn(4, 1, 8, 8)
        teacher = learner(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), mlp(4, 5)),
            "drtp",
            example=images,
        )
        with pytest.raises(InputError, match=r"5 outputs and 144 values.*found 5 and 196; make"):
            teacher.backward(torch.randn(4, 1, 9, 9), torch.arange(4))


@pytest.mark.usefixtures("float64")
class TestDualPropagation:
    @pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (0.5, 0.1), (0.0, 2.0), (0.8, 0.5)])
    def test_one_sweep_as_published(self, alpha: float, beta: float) -> None:
        """Hoier 2024, DP^T with linearized output; of Hoier 2023 where alpha is 1/2. By hand."""
        model, (x, y) = mlp(7, 6, 8, 5), batch(6, 7)
        teacher = learner(model, f"dual_propagation(alpha={alpha}, beta={beta})")
        loss, logits = teacher.backward(x, y)
        torch.testing.assert_close(loss, F.cross_entropy(model(x), y).detach())
        torch.testing.assert_close(logits, model(x).detach())
        W, b = [m.weight for m in model[::2]], [m.bias for m in model[::2]]
        with torch.no_grad():
            a1 = x @ W[0].t() + b[0]
            a2 = a1.tanh() @ W[1].t() + b[1]
            a3 = a2.tanh() @ W[2].t() + b[2]
            output = [
                a3 + share * one_hot_error(a3, y) for share in (beta * (alpha - 1), beta * alpha)
            ]
            d3 = output[0] - output[1]
            states = []
            for a, s in ((a2, d3 @ W[2]), (a1, None)):
                s = states[0][2] @ W[1] if s is None else s
                up, down = (a + (1 - alpha) * s).tanh(), (a - alpha * s).tanh()
                states.append((up, down, up - down))
            (u2, v2, d2), (u1, v1, d1) = states
            z1, z2 = alpha * u1 + (1 - alpha) * v1, alpha * u2 + (1 - alpha) * v2
            expected = [d1.t() @ x, d1.sum(0), d2.t() @ z1, d2.sum(0), d3.t() @ z2, d3.sum(0)]
        close(gradients(model), [-g / (beta * len(x)) for g in expected])

    @pytest.mark.parametrize(("alpha", "factor"), [(0.5, 4), (0.0, 2), (0.2, 2), (1.0, 2)])
    @pytest.mark.parametrize("net", ["mlp", "conv"])
    def test_it_tends_to_backpropagation(self, net: str, alpha: float, factor: int) -> None:
        """Half the beta leaves a quarter of the distance at alpha = 1/2, else half, but for terms of
        higher order: at these beta less than 2e-4 of it, over 25 seeds.
        """
        if net == "mlp":
            model, (x, y) = mlp(7, 6, 8, 5), batch(6, 7)
        else:
            model = nn.Sequential(
                *(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3), nn.SiLU()),
                *(nn.Flatten(), nn.Linear(6, 5)),
            )
            x, y = batch(6, 1, 8, 8)
        exact = torch.cat([g.flatten() for g in exact_gradients(model, x, y)])
        distances = []
        for beta in (2e-3, 1e-3):
            learner(model, f"dual_propagation(alpha={alpha}, beta={beta})").backward(x, y)
            found = torch.cat([g.flatten() for g in gradients(model)])
            distances.append(((found - exact).norm() / exact.norm()).item())
        assert distances[0] / distances[1] == pytest.approx(factor, rel=2e-3)
        assert distances[1] < (1e-6 if factor == 4 else 1e-3)

    def test_where_activations_are_linear_it_is_backpropagation(self) -> None:
        """ReLU at nudges of 1e-4, which turn no unit on or off; pooling too. The differences of the
        states lose 4 of 16 digits.
        """
        model, (x, y) = conv_net(), batch(6, 1, 8, 8)
        model[1][1] = nn.ReLU()
        learner(model, "dual_propagation(beta=1e-4)").backward(x, y)
        close(gradients(model), exact_gradients(model, x, y))

    def test_a_sample_learns_the_same_whatever_batch_it_is_in(self) -> None:
        model, (x, y) = mlp(7, 6, 8, 5), batch(6, 7)
        teacher = learner(model, "dual_propagation")
        teacher.backward(x, y)
        whole = gradients(model)
        for part in range(3):
            teacher.backward(x[2 * part :][:2], y[2 * part :][:2])
        close([g / 3 for g in gradients(model)], whole)

    def test_rules_carry_the_differences_by_their_kernels(self) -> None:
        model, (x, y) = convert(mlp(7, 6, 8, 5), "fa", seed=1), batch(6, 7)
        learner(model, "dual_propagation(beta=1e-3)").backward(x, y)
        found = gradients(model)
        F.cross_entropy(model(x), y).backward()
        close(found, gradients(model), 1e-5)

    def test_an_activation_at_the_end_has_two_states_too(self) -> None:
        model, x, target = nn.Sequential(nn.Linear(7, 5), nn.Tanh()), torch.randn(6, 7), 0.3

        def distance(output: Tensor, y: Tensor) -> Tensor:
            return 0.5 * (output - target).square().sum() / len(output)

        learner(model, "dual_propagation(beta=0.5)", loss=distance).backward(x, torch.zeros(6))
        with torch.no_grad():
            a = model[0](x)
            s = -0.5 * (a.tanh() - target)
            difference = (a + s / 2).tanh() - (a - s / 2).tanh()
        close([model[0].weight.grad], [-difference.t() @ x / (0.5 * 6)])

    def test_without_an_activation_in_sight_it_is_refused(self) -> None:
        class Hidden(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(7, 6), nn.Linear(6, 5)

            def forward(self, x: Tensor) -> Tensor:
                return self.b(self.a(x).tanh())  # type: ignore[no-any-return]

        with pytest.raises(
            InputError, match="found none among the blocks, so that it would be bac"
        ):
            learner(nn.Sequential(Hidden(), nn.Linear(5, 5)), "dual_propagation")


WRONG = [
    ("pd", {}, r"unknown learner 'pd'"),
    ("pc(step=3)", {}, r"has no option 'step'"),
    ("pc(mode=loose)", {}, "unknown mode of pc 'loose'"),
    ("pc(steps=0)", {}, "pc: steps: expected a whole number"),
    ("pc(rate=0)", {}, "pc: rate: expected a number above 0"),
    ("dtp(rate=0)", {}, "dtp: rate: expected a number above 0"),
    ("dtp(noise=-1)", {}, "dtp: noise: expected a number of at least 0"),
    ("pepita(scale=0)", {}, "pepita: scale: expected a number above 0"),
    ("drtp(scale=0)", {}, "drtp: scale: expected a number above 0"),
    ("dual_propagation(beta=0)", {}, "dual_propagation: beta: expected a number above 0"),
    (
        "dual_propagation(alpha=1.1)",
        {},
        "alpha: expected a number of at least 0 and at most 1, found 1.1",
    ),
    (3, {}, "expected the spec of a method"),
]


@pytest.mark.parametrize(("spec", "options", "message"), WRONG)
def test_wrong_options_end_in_one_line(spec: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        learner(mlp(7, 6, 5), spec, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(4, 8), torch.zeros(4, dtype=torch.long), r"block 0( to 1)?: cannot take"),
        (torch.zeros(4, 7), torch.zeros(3, dtype=torch.long), r"y: expected classes \(4,\)"),
        (torch.zeros(4, 7), torch.zeros(4), r"y: expected classes \(4,\).*found \(4,\) of torch.f"),
        (torch.zeros(4, 7), torch.zeros(4, 1).long(), r"y: expected classes.*; y.flatten\(\) has"),
        (
            torch.zeros(4, 7),
            torch.zeros(4, 5).long(),
            r"y: expected classes.*y.float\(\) for shares",
        ),
        (torch.zeros(4, 7), torch.zeros(4).bool(), r"y: expected classes.*y.long\(\) for classes"),
        (torch.zeros(4, 7), torch.full((4,), 5), r"y: expected classes 0 to 4, found 5; number"),
        (torch.zeros(4, 7), torch.full((4,), -1), r"y: expected classes 0 to 4, found -1; number"),
        (
            torch.zeros(0, 7),
            torch.zeros(0).long(),
            r"x: expected a tensor of one sample or more, found the shape \(0, 7\); leave empty",
        ),
        (
            torch.zeros(4, 7),
            [0, 1, 2, 3],
            r"y: expected a tensor of one sample or more, found list; convert it",
        ),
    ],
)
def test_wrong_batches_end_in_one_line(name: str, x: Any, y: Any, message: str) -> None:
    model = mlp(7, 6, 5)
    with pytest.raises(InputError, match=message) as caught:
        learner(model, name).backward(x, y)
    assert "\n" not in str(caught.value)
    assert all(p.grad is None for p in model.parameters())


class Raises(nn.Module):
    """A block, or a loss, whose own code raises."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, *_: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error", [KeyError("scale"), AttributeError("no scale"), ValueError("scale")]
)
def test_what_a_block_or_a_loss_raises_ends_in_one_line(error: Exception) -> None:
    for model, loss, message in (
        (nn.Sequential(nn.Linear(7, 5), Raises(error)), None, r"block 0 to 1: cannot take an .*\("),
        (
            mlp(7, 6, 5),
            Raises(error),
            r"learner: y: the loss cannot take an output of \(4, 5\) .*\(",
        ),
    ):
        with pytest.raises(InputError, match=f"{message}.*scale.*; give ") as caught:
            learner(model, "pc", loss=loss).backward(*batch(4, 7))
        assert caught.value.__cause__ is error


def test_a_lack_of_memory_is_no_mistake_in_a_model_or_a_loss() -> None:
    full = Raises(torch.OutOfMemoryError("full"))
    for model, loss in ((nn.Sequential(nn.Linear(7, 5), full), None), (mlp(7, 6, 5), full)):
        with pytest.raises(torch.OutOfMemoryError):
            learner(model, "pc", loss=loss).backward(*batch(4, 7))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_models_end_in_one_line(name: str) -> None:
    x, y = batch(4, 7)
    with pytest.raises(InputError, match="expected a model with weights"):
        learner(nn.Sequential(nn.ReLU()), name)
    with pytest.raises(InputError, match=r"expected a scalar that depends on the model's output"):
        learner(mlp(7, 6, 5), name, loss=lambda output, target: output).backward(x, y)
    with pytest.raises(InputError, match=r"learner: expected parameters that require a gradient"):
        learner(mlp(7, 6, 5).requires_grad_(False), name).backward(x, y)
    for rule in ("dfa", "hebbian"):
        with pytest.raises(InputError, match=f"found 0 under {rule}; leave such layers at bp"):
            learner(convert(mlp(7, 6, 5), rule, seed=0, **outputs(rule)), name)


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_learn_ends_in_one_line(name: str) -> None:
    lazy = nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(5))
    for model, options, message in (
        (None, {}, "learner: expected a torch.nn.Module, found NoneType"),
        (lazy, {}, "found the lazy 0.weight; run"),
        (mlp(7, 6, 5), {"loss": "mse"}, "loss: expected a function of the output .* found 'mse'"),
        (mlp(7, 6, 5), {"example": [1.0]}, "example: expected a tensor of .* found list"),
        (mlp(7, 6, 5), {"example": torch.zeros(0, 7)}, r"example: .* found the shape \(0, 7\)"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            learner(model, name, **options)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
    teacher, (x, y) = learner(mlp(7, 6, 5), name), batch(4, 7)
    with (
        torch.inference_mode(),
        pytest.raises(InputError, match=r"a step outside of torch.inference_mode"),
    ):
        teacher.backward(x, y)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_that_is_replaced_later_is_noticed(name: str) -> None:
    """Its parameters would get no gradient, and so not learn, without a word."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
    teacher = learner(model, name)
    teacher.backward(x, y)
    model[0].weight.requires_grad_(False)  # what is frozen meanwhile does not matter
    teacher.backward(x, y)
    model[2] = nn.Linear(3, 2)
    with pytest.raises(
        InputError, match=r"as they were when it was made, found 2.weight new; call"
    ):
        teacher.backward(x, y)


@pytest.mark.parametrize("name", NAMES)
def test_a_learner_is_converted_beside_its_model(name: str) -> None:
    """As to a device: here to float64, in which it does what one does that began there."""
    model, (x, y) = mlp(7, 6, 8, 5), batch(4, 7)
    teacher = learner(model, name)
    model.double()
    if teacher.state_dict():
        with pytest.raises(InputError, match=r"in torch.float64 on cpu.*teacher.to\('cpu', torch"):
            teacher.backward(x.double(), y)
        teacher.to("cpu", torch.float64)
    torch.manual_seed(1)
    teacher.backward(x.double(), y)
    assert all(p.grad is not None and p.grad.dtype == torch.float64 for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_an_output_may_be_one_number_a_sample(name: str) -> None:
    """As of a regression whose last dimension is gone: the same as with it."""
    found = []
    for flat in (True, False):
        torch.manual_seed(4)
        model, (x, _) = mlp(7, 6, 8, 1), batch(4, 7)
        if flat:
            model.append(nn.Flatten(0))
        y = torch.linspace(-1, 1, 4).to(x) if flat else torch.linspace(-1, 1, 4).to(x)[:, None]
        torch.manual_seed(5)
        learner(model, name, loss=F.mse_loss).backward(x, y)
        found.append(gradients(model))
    close(*found)


def outputs(rule: str) -> dict[str, int]:
    return {"outputs": 5} if rule == "dfa" else {}


@pytest.mark.parametrize("name", NAMES)
class TestEveryLearner:
    def test_a_named_block_may_be_without_weights(self, name: str) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5))
        x, y = batch(6, 2, 4)
        learner(model, name, layers=["0", "1", "2", "3"], example=x).backward(x, y)
        assert [g.shape for g in gradients(model)] == [p.shape for p in model.parameters()]

    def test_the_model_is_left_alone(self, name: str) -> None:
        """No hooks, no new keys; attacks see the model that they would see without a learner."""
        model, (x, y) = conv_net(), batch(4, 1, 8, 8)
        before = copy.deepcopy(model.state_dict())
        learner(model, name, example=x).backward(x, y)
        assert list(model.state_dict()) == list(before)
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        attack = ATTACKS.build("fgsm") if has_torchattacks() else None
        if attack is not None:
            plain = conv_net()
            plain.load_state_dict(before)
            pixels = x.sigmoid()
            changed = [perturb(attack, net, pixels, y, eps=8 / 255) for net in (model, plain)]
            assert torch.equal(*changed)

    def test_gradients_accumulate_and_end_in_any_optimizer(self, name: str) -> None:
        model, (x, y) = mlp(7, 6, 8, 5), batch(6, 7)
        for seed in (1, 1):
            torch.manual_seed(seed)
            teacher = learner(model, name)
            teacher.backward(x, y)
        twice = gradients(model)
        torch.manual_seed(1)
        teacher.backward(x, y)
        close(twice, [2 * p.grad for p in model.parameters()], 1e-6)
        assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1) > 0
        for optimizer in (torch.optim.SGD, torch.optim.AdamW):
            optimizer(model.parameters(), lr=0.1).step()

    def test_statistics_move_once_a_step(self, name: str) -> None:
        """However often a block is evaluated: as by one forward pass with the same dropout."""
        model = nn.Sequential(
            *(nn.Linear(7, 6), nn.Dropout(0.4), nn.BatchNorm1d(6, affine=False), nn.ReLU()),
            *(nn.Linear(6, 8), nn.Dropout(0.4), nn.BatchNorm1d(8, affine=False), nn.ReLU()),
            nn.Linear(8, 5),
        )
        other, (x, y) = copy.deepcopy(model), batch(9, 7)
        for net, run in ((model, learner(model, name).backward), (other, lambda x, y: other(x))):
            torch.manual_seed(3)
            run(x, y)
            assert net[2].num_batches_tracked == net[6].num_batches_tracked == 1
        for one, two in zip(model.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=0)

    def test_frozen_parameters_get_nothing(self, name: str) -> None:
        model, (x, y) = mlp(7, 6, 8, 5), batch(6, 7)
        model[0].requires_grad_(False)
        for spec in (name, "pc(mode=fixed)"):
            learner(model, spec).backward(x, y)
            assert [g.numel() for g in gradients(model)] == [0, 0, 48, 8, 40, 5]

    def test_state_is_drawn_by_the_seed_and_goes_through_a_checkpoint(self, name: str) -> None:
        """A learner that loads another's state does what that one does."""
        model, (x, y) = mlp(7, 6, 8, 5), batch(6, 7)
        found = []
        saved = learner(model, name, seed=1)
        loaded = learner(model, name, seed=2)
        loaded.load_state_dict(pickle.loads(pickle.dumps(saved.state_dict())))
        for teacher in (saved, loaded, learner(model, name, seed=1)):
            torch.manual_seed(0)
            teacher.backward(x, y)
            found.append(gradients(model))
        close(found[1], found[0], 0)
        close(found[2], found[0], 0)
        if saved.state_dict():
            torch.manual_seed(0)
            learner(model, name, seed=2).backward(x, y)
            assert not torch.equal(model[0].weight.grad, found[0][0])

    def test_alignment_asks_for_batches(self, name: str) -> None:
        model, (x, y) = mlp(7, 6, 5), batch(6, 7)
        for batches, message in (
            ((x, y), r"batch 1: expected \(x, labels\), found Tensor; hand over several"),
            ([(x,)], r"batch 1: expected \(x, labels\), found tuple of 1;"),
            (3, r"expected batches \(x, labels\), found int;"),
            ([(x.numpy(), y)], "batch 1: x: expected a tensor, found ndarray"),
        ):
            with pytest.raises(InputError, match=message):
                learner_alignment(model, learner(model, name), batches)  # type: ignore[arg-type]

    def test_alignment_compares_it_with_backpropagation(self, name: str) -> None:
        """By a direct comparison of two batches' mean gradients; nothing is disturbed."""
        model = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Dropout(), nn.Linear(6, 5))
        teacher = learner(model, name)
        batches = [batch(6, 7), batch(6, 7)]
        torch.manual_seed(5)
        measured = learner_alignment(model, teacher, batches)
        drawn = torch.rand(2)
        assert all(p.grad is None for p in (*model.parameters(), *teacher.parameters()))
        sums = []
        for run in ("learner", "exact"):
            for x, y in batches:  # each batch from the same random state, as it is measured
                torch.manual_seed(5)
                if run == "learner":
                    teacher.backward(x, y)
                else:
                    F.cross_entropy(model(x), y).backward()
            sums.append(gradients(model))
        torch.manual_seed(5)
        assert torch.equal(drawn, torch.rand(2))
        assert [layer.name for layer in measured.layers] == ["0", "3"]
        for layer, place in zip(measured.layers, (0, 2), strict=True):
            a, b = (total[place].flatten() for total in sums)
            assert layer.gradient_cosine == pytest.approx(F.cosine_similarity(a, b, 0).item(), 1e-4)
        whole = [torch.cat([g.flatten() for g in total]) for total in sums]
        expected = F.cosine_similarity(*whole, 0).item()
        assert measured.summary()["gradient_cosine"] == pytest.approx(expected, 1e-4)
        with pytest.raises(InputError, match="expected at least 2 batches, found 1"):
            learner_alignment(model, teacher, batches[:1])
        with pytest.raises(InputError, match="found another one"):
            learner_alignment(mlp(7, 5), teacher, batches)

    def test_the_digits_are_learned(self, name: str) -> None:
        assert digits_error(name, seed=0) < BOUNDS[name]


BOUNDS = {"pc": 0.167, "pepita": 0.702, "dtp": 0.270, "drtp": 0.570, "dual_propagation": 0.189}
"""Test errors of `digits_error`: mean + 5 standard deviations over seeds 1 to 10 (0.107 and 0.012
for pc, 0.353 and 0.070 for pepita, 0.255 and 0.063 for drtp, 0.119 and 0.014 for
dual_propagation), for dtp mean + 3.8 of them (0.160 and 0.029); an untrained model errs on 0.9.
"""


def digits_error(name: str, seed: int, epochs: int = 3) -> float:
    """Test error of an MLP after some epochs of Adam, on 359 of the digits."""
    with np.load(DIGITS, allow_pickle=False) as file:
        images = torch.tensor(file["images"], dtype=torch.float32).flatten(1) / 16
        labels = torch.tensor(file["labels"], dtype=torch.int64)
    torch.manual_seed(seed)
    model = mlp(64, 32, 32, 10)
    teacher = learner(model, name, seed=seed)
    rate = 2e-2 if name == "drtp" else 3e-3  # its hidden layers move by targets, not by errors
    optimizer = torch.optim.Adam([*model.parameters(), *teacher.parameters()], lr=rate)
    order = torch.randperm(len(images))
    test, train = order[:359], order[359:]
    for _ in range(epochs):
        for part in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            teacher.backward(images[part], labels[part])
            optimizer.step()
    with torch.no_grad():
        return (model(images[test]).argmax(1) != labels[test]).double().mean().item()


def has_torchattacks() -> bool:
    try:
        import torchattacks  # noqa: F401
    except ImportError:
        return False
    return True


def test_it_is_public_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from darts_bio.cli import main

    assert darts_bio.learner is learner
    assert main(["list"]) == 0
    listed = capsys.readouterr().out.partition("global learners")[2]
    assert all(f"\n  {name} " in listed for name in NAMES)
