"""The rules that are more than a kernel: each against its equation, written out here as a loop, in
float64.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_rules import gradients, noise, randomise, relative_error
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.networks import Network, SuperNet, build_network
from darts_bio.rules import (
    RULES,
    DirectOperation,
    RuleConv2d,
    RuleLinear,
    convert,
    draw_feedback,
    learned_feedback,
    rule_carriers,
    true_gradients,
)
from darts_bio.runtime import generator
from darts_bio.spaces import SPACES, load_genotype

TOLERANCE = 1e-10

HEBBIAN = (
    *("hebbian", "hebbian(temperature=3.0)", "hebbian(form=oja)", "hebbian(error=W)"),
    *("hebbian(rate=norm)", "hebbian(step=max)", "hebbian(rate=norm, step=max, temperature=3.0)"),
    *("hebbian(form=oja, rate=norm)", "hebbian(form=oja, step=max)"),
)
PREDICTIVE = ("predictive", "predictive(steps=0)", "predictive(steps=1, error=W)")


def window_rows(x: Tensor, layer: RuleConv2d) -> Tensor:
    """Every window of x that the layer looks at: (samples * positions, groups, inputs of a
    channel).
    """
    size, per_group = layer.kernel_size, layer.in_channels // layer.groups
    columns = F.unfold(x, size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
    return (
        columns.reshape(len(x), layer.groups, per_group * math.prod(size), -1)
        .permute(0, 3, 1, 2)
        .flatten(0, 1)
    )


def hebbian_by_hand(windows: Tensor, weight: Tensor, rule: Any) -> Tensor:
    """The update, window by window and channel by channel. windows: (P, groups, I), weight (O,
    I).
    """
    update = torch.zeros_like(weight)
    received = torch.zeros_like(weight)
    channels, groups = weight.shape[0], windows.shape[1]
    for window in windows:
        own = [window[k * groups // channels] for k in range(channels)]
        u = [torch.dot(weight[k], own[k]).item() for k in range(channels)]
        total = sum(math.exp(rule.temperature * (value - max(u))) for value in u)
        for k in range(channels):
            y = u[k]
            if rule.form == "soft":
                y = math.exp(rule.temperature * (u[k] - max(u))) / total
                y = y if u[k] == max(u) else -y
            update[k] += y * (own[k] - u[k] * weight[k]) / len(windows)
            received[k] += y * own[k] / len(windows)
    lengths = [math.sqrt(sum(entry**2 for entry in row)) for row in weight.tolist()]
    if rule.form == "oja":
        for k in range(channels):
            update[k] /= math.sqrt(sum(entry**2 for entry in received[k].tolist()))
            update[k] /= max(1, lengths[k])
    if rule.step == "max":
        update /= max(abs(entry) for entry in update.flatten().tolist())
    if rule.rate == "norm":
        for k in range(channels):
            update[k] *= abs(lengths[k] - 1) ** 0.5
    return update


def layers(rule: str) -> list[tuple[Any, Tensor]]:
    """Layers with the shapes that could be confused, and an input for each."""
    member = RULES.build(rule)
    f64 = {"rule": member, "dtype": torch.float64}
    pairs = [
        (RuleConv2d(4, 6, (2, 3), (2, 1), (1, 0), 1, 2, **f64), noise((3, 4, 5, 6), 1)),
        (RuleConv2d(3, 5, 3, padding=2, dilation=2, bias=False, **f64), noise((2, 3, 5, 4), 2)),
        (RuleConv2d(4, 4, 3, padding=1, groups=4, **f64), noise((2, 4, 4, 5), 3)),
        (RuleLinear(5, 4, **f64), noise((2, 3, 5), 4)),
    ]
    return [(randomise(layer, 6), x) for layer, x in pairs]


def rows_and_weight(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    weight = layer.weight.detach().flatten(1)
    return (
        x.reshape(-1, 1, x.shape[-1]) if isinstance(layer, RuleLinear) else window_rows(x, layer)
    ), weight


class TestHebbian:
    @pytest.mark.parametrize("spec", HEBBIAN)
    @pytest.mark.parametrize("case", range(4))
    def test_update_is_its_equation_looped(self, spec: str, case: int) -> None:
        layer, x = layers(spec)[case]
        _, dw, *db = gradients(layer, x)
        windows, weight = rows_and_weight(layer, x)
        expected = -hebbian_by_hand(windows, weight, layer.rule).view_as(layer.weight)
        assert relative_error(dw, expected) <= TOLERANCE
        assert all(b.eq(0).all() for b in db)

    @pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
    def test_oja_finds_the_first_principal_component(self, rate: float) -> None:
        """At any rate below 1; Oja's rule as it stands diverges above 2/9, of a variance of 9."""
        axes = torch.linalg.qr(noise((5, 5), 1))[0]
        x = noise((4000, 5), 2) @ torch.diag(torch.tensor([3.0, 1.0, 0.7, 0.5, 0.2]).double())
        x = x @ axes.T
        first = torch.linalg.eigh(x.T @ x).eigenvectors[:, -1]
        layer = randomise(
            RuleLinear(5, 2, False, rule=RULES.build("hebbian(form=oja)"), dtype=torch.float64), 3
        )
        plain = layer.weight[0].detach().clone()
        optimizer = torch.optim.SGD([layer.weight], lr=rate)
        for _ in range(1000):
            optimizer.zero_grad()
            layer(x).sum().backward()
            optimizer.step()
            u = x @ plain
            plain += rate * (u.unsqueeze(1) * (x - u.unsqueeze(1) * plain)).mean(0)
        assert plain.isfinite().all() == (rate < 2 / 9)
        for row in layer.weight.detach():
            assert abs(torch.dot(row, first).item()) == pytest.approx(1, abs=1e-6)
            assert row.norm().item() == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("start", [1e-3, 0.5, 40.0])
    def test_norms_under_oja_follow_their_closed_form(self, rate: float, start: float) -> None:
        """Along a principal component r <- r + rate (1/r - r), or (1 - r^2) below 1."""
        layer = RuleLinear(3, 1, False, rule=RULES.build("hebbian(form=oja)"), dtype=torch.float64)
        layer.weight.data = torch.tensor([[start, 0.0, 0.0]], dtype=torch.float64)
        x = 1e3 * torch.tensor([[2.0, 1.0, 0], [2.0, -1, 0], [-2, 1, 0], [-2, -1, 0]]).double()
        norm = start
        for _ in range(200):
            layer.zero_grad()
            layer(x).sum().backward()
            layer.weight.data -= rate * layer.weight.grad
            norm += rate * (1 / norm - norm if norm >= 1 else 1 - norm**2)
            assert layer.weight[0].tolist() == pytest.approx([norm, 0, 0], rel=1e-9, abs=1e-12)
        assert norm == pytest.approx(1, abs=1e-6)

    def test_a_step_of_oja_is_bounded_whatever_the_input(self) -> None:
        """A sample that a channel hardly responds to, and one of zeros, in float32."""
        layer = RuleLinear(2, 1, False, rule=RULES.build("hebbian(form=oja)"))
        for x, moved in (([[1e-9, 1e6]], 1.0), ([[0.0, 0.0]], 0.0)):
            layer.weight.data = torch.tensor([[1.0, 0.0]])
            layer.zero_grad()
            layer(torch.tensor(x)).sum().backward()
            assert layer.weight.grad.norm().item() == pytest.approx(moved, rel=1e-6)

    def test_soft_channels_find_clusters(self) -> None:
        centers = F.normalize(torch.eye(3, 6).double() + 0.1)
        x = F.normalize(centers.repeat(100, 1) + 0.1 * noise((300, 6), 1))
        layer = RuleLinear(
            6, 3, False, rule=RULES.build("hebbian(temperature=8.0)"), dtype=torch.float64
        )
        with torch.no_grad():  # all respond at the start
            layer.weight.copy_(0.5 + 0.1 * noise((3, 6), 1))
        optimizer = torch.optim.SGD([layer.weight], lr=0.2)
        for _ in range(2000):
            optimizer.zero_grad()
            layer(x).sum().backward()
            optimizer.step()
        nearest = F.cosine_similarity(layer.weight.detach().unsqueeze(1), centers, dim=2).max(1)
        assert nearest.values.min() > 0.95


def predictive_by_hand(
    x: Tensor, weight: Tensor, steps: int, to_y: Any, to_x: Any, learn: Any, seen: Any
) -> Tensor:
    """-dW of samples one by one: `to_y` is the layer, `to_x` its transpose, `learn(e, y)` their
    correlation, `seen(e)` the energy of the windows that an output reads.
    """
    update = torch.zeros_like(weight)
    for sample in x.split(1):
        y = to_y(sample)
        for _ in range(steps):
            slope = to_y(sample - to_x(y))  # minus the derivative of |e|^2 / 2 by y
            # |e - s convT(slope)|^2 is least where its derivative by s is zero.
            change = to_x(slope)
            y = y + slope * ((sample - to_x(y)) * change).sum() / change.square().sum()
        error = sample - to_x(y)
        energy = y.square().sum() + seen(error) / weight.square().sum()
        update += learn(error, y) / energy
    return -update / len(x)


class TestPredictive:
    @pytest.mark.parametrize("spec", PREDICTIVE)
    @pytest.mark.parametrize("case", range(4))
    def test_update_is_its_equation_looped(self, spec: str, case: int) -> None:
        layer, x = layers(spec)[case]
        _, dw, *db = gradients(layer, x)
        weight = layer.weight.detach()
        if isinstance(layer, RuleLinear):
            maps: Any = (
                lambda v: torch.einsum("...i,oi->...o", v, weight),
                lambda y: torch.einsum("...o,oi->...i", y, weight),
                lambda e, y: torch.einsum("...o,...i->oi", y, e),
                lambda e: e.square().sum(),
            )
        else:
            # The transpose by unfolding and folding, the correlation by products of windows.
            window = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
            by_group = weight.view(layer.groups, -1, weight[0].numel())

            def transpose(y: Tensor) -> Tensor:
                errors = y.reshape(len(y), layer.groups, -1, y[0, 0].numel())
                columns = torch.einsum("ngol,goc->ngcl", errors, by_group).flatten(1, 2)
                return F.fold(columns, x.shape[2:], *window)

            def correlate(e: Tensor, y: Tensor) -> Tensor:
                columns = F.unfold(e, *window).reshape(len(e), layer.groups, by_group.shape[2], -1)
                errors = y.reshape(len(y), layer.groups, by_group.shape[1], -1)
                return torch.einsum("ngol,ngcl->goc", errors, columns).reshape(weight.shape)

            def forward(v: Tensor) -> Tensor:
                return F.conv2d(
                    v, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
                )

            def seen(e: Tensor) -> Tensor:
                return F.unfold(e, *window).square().sum() / layer.groups

            maps = (forward, transpose, correlate, seen)
        expected = predictive_by_hand(x, weight, layer.rule.steps, *maps)
        assert relative_error(dw, expected) <= TOLERANCE
        assert all(b.eq(0).all() for b in db)

    def test_a_sum_of_squares_that_is_rounded_to_below_zero_is_none(self) -> None:
        """Winograd's convolutions, which GPUs choose, do so where a window holds nothing."""

        class Rounding:
            def __init__(self, operator: Any) -> None:
                self.operator = operator

            def __getattr__(self, name: str) -> Any:
                return getattr(self.operator, name)

            def apply(self, x: Tensor, weight: Tensor) -> Tensor:
                return self.operator.apply(x, weight) - 1e-12 * bool(weight.eq(1).all())

        rule = RULES.build("predictive(steps=0)")
        layer = RuleConv2d(2, 3, 3, rule=rule, dtype=torch.float64)
        weight, (x, operator) = layer.weight.detach(), layer.operator(noise((2, 2, 9, 9), 1))
        x[..., 4:] = 0
        update = rule.update(x, weight, Rounding(operator))
        assert relative_error(update, rule.update(x, weight, operator)) <= TOLERANCE

    def test_learning_makes_the_input_predictable(self) -> None:
        x = noise((200, 3), 1) @ noise((3, 8), 2)  # three dimensions in eight
        layer = randomise(
            RuleLinear(8, 3, False, rule=RULES.build("predictive"), dtype=torch.float64), 1
        )
        optimizer = torch.optim.SGD([layer.weight], lr=1.0)

        def unexplained() -> float:
            basis = torch.linalg.qr(layer.weight.detach().T)[0]
            return ((x - x @ basis @ basis.T).square().sum() / x.square().sum()).item()

        before = unexplained()
        for _ in range(300):
            optimizer.zero_grad()
            layer(x).sum().backward()
            optimizer.step()
        assert before > 0.2
        assert unexplained() < 0.01


@pytest.mark.parametrize("rule", ["hebbian", "predictive"])
class TestLocalRules:
    def test_what_is_sent_down(self, rule: str) -> None:
        """Nothing, or with error=W what bp sends."""
        for (layer, x), (passing, _) in zip(layers(rule), layers(f"{rule}(error=W)"), strict=True):
            assert gradients(layer, x)[0].eq(0).all()
            sent = gradients(passing, x)
            with true_gradients(passing):
                exact = gradients(passing, x)
            assert relative_error(sent[0], exact[0]) <= 1e-12
            assert relative_error(sent[1], exact[1]) > 0.1

    def test_nothing_is_learnt_in_evaluation(self, rule: str) -> None:
        for layer, x in layers(rule):
            _, dw, *_ = gradients(layer.eval(), x)
            assert dw.eq(0).all()

    def test_the_error_does_not_matter(self, rule: str) -> None:
        for layer, x in layers(rule):
            first = gradients(layer, x)[1]
            assert torch.equal(first, gradients(layer, x, noise(layer(x).shape, 5))[1])

    def test_padding_modes_and_images_without_a_batch(self, rule: str) -> None:
        layer = randomise(
            RuleConv2d(
                2, 3, 3, padding=1, padding_mode="circular", rule=RULES.build(rule)
            ).double(),
            1,
        )
        x = noise((2, 5, 5), 2)
        padded = F.pad(x, (1, 1, 1, 1), mode="circular").unsqueeze(0)
        inner = RuleConv2d(2, 3, 3, rule=RULES.build(rule)).double()
        inner.load_state_dict(layer.state_dict())
        assert relative_error(gradients(layer, x)[1], gradients(inner, padded)[1]) <= 1e-12


def three_layers(rule: Any, seed: int = 3, activation: type[nn.Module] = nn.Identity) -> Any:
    torch.manual_seed(seed)
    plain = nn.Sequential(
        nn.Linear(6, 5), activation(), nn.Linear(5, 4), activation(), nn.Linear(4, 3)
    ).double()
    return convert(plain, rule, seed=seed)


class TestDirectFeedback:
    def test_sends_the_projected_output_error(self) -> None:
        """dx = e B / positions for layers of every kind; the weight's own gradient is of the error
        that arrives.
        """
        torch.manual_seed(0)
        plain = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(4, 4, 3, stride=2, groups=4),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(36, 5),
        ).double()
        model = convert(plain, "dfa", seed=1)
        x, labels = noise((2, 3, 8, 8), 1).requires_grad_(), torch.tensor([1, 3])
        arriving: dict[int, Tensor] = {}
        for i, layer in enumerate(model):
            layer.register_forward_hook(
                lambda _, inputs, y, i=i: arriving.update({i: y}) if y.requires_grad else None  # type: ignore[misc]
            )
        logits = model(x)
        e = (logits.detach().softmax(1) - F.one_hot(labels, 5)) / 2
        inputs = [x, arriving[1], arriving[4], arriving[0], *model.parameters()]
        found = torch.autograd.grad(F.cross_entropy(logits, labels), inputs)
        for dx, like, i, positions in zip(found, inputs, (0, 2, 5), (64, 64, 1), strict=False):
            error = (e @ model[i].feedback["kernel"] / positions)[..., *[None] * (like.dim() - 2)]
            assert relative_error(dx, error.expand(like.shape)) <= TOLERANCE
        expected = torch.nn.grad.conv2d_weight(
            x.detach(), model[0].weight.shape, found[3], padding=1
        )
        assert relative_error(found[4], expected) <= TOLERANCE

    def test_with_one_hidden_layer_is_feedback_alignment(self) -> None:
        torch.manual_seed(2)
        plain = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        direct, fa = convert(plain, "dfa"), convert(plain, "fa")
        fa[2].feedback["kernel"].copy_(direct[2].feedback["kernel"])
        assert direct[2].feedback["kernel"].shape == (3, 5)
        x, labels = noise((4, 6), 1), torch.tensor([0, 1, 2, 1])
        a, b = (
            torch.autograd.grad(F.cross_entropy(model(x), labels), list(model.parameters()))
            for model in (direct, fa)
        )
        assert all(relative_error(p, q) <= TOLERANCE for p, q in zip(a, b, strict=True))

    def test_of_a_linear_net_is_feedback_alignment_through_the_product_of_feedbacks(self) -> None:
        direct, fa = three_layers("dfa"), three_layers("fa")
        upper, lower = fa[4].feedback["kernel"], fa[2].feedback["kernel"]
        direct[4].feedback["kernel"].copy_(upper)
        direct[2].feedback["kernel"].copy_(upper @ lower)
        x, labels = noise((4, 6), 1), torch.tensor([0, 1, 2, 1])
        a, b = (
            torch.autograd.grad(F.cross_entropy(model(x), labels), list(model.parameters()))
            for model in (direct, fa)
        )
        assert all(relative_error(p, q) <= TOLERANCE for p, q in zip(a, b, strict=True))

    def test_in_cells_an_operation_is_exact_within_and_its_input_gets_the_output_error(
        self,
    ) -> None:
        genotype = load_genotype("darts_v1").with_rule("dfa")
        network: Network = build_network(
            genotype, channels=4, layers=3, num_classes=3, auxiliary=True
        ).double()
        operations = [module for module in network.modules() if isinstance(module, DirectOperation)]
        inner = [
            m for operation in operations for m in operation.modules() if isinstance(m, RuleConv2d)
        ]
        assert inner
        assert all(layer.rule == RULES.build("bp") for layer in inner)
        assert len({id(operation.output_error) for operation in operations}) == 1
        assert network.auxiliary is not None
        assert network.auxiliary.output_error is not network.output_error
        logits, auxiliary = network(noise((2, 3, 32, 32), 1))
        loss = F.cross_entropy(logits, torch.tensor([0, 2])) + F.cross_entropy(
            auxiliary, torch.tensor([0, 2])
        )
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

    def test_one_backward_pass_serves_each_pass_anew(self) -> None:
        model = three_layers("dfa", activation=nn.Tanh)
        x = noise((4, 6), 1)
        first = torch.autograd.grad(model(x).square().sum(), model[0].weight)[0]
        other = torch.autograd.grad(model(2 * x).square().sum(), model[0].weight)[0]
        again = torch.autograd.grad(model(x).square().sum(), model[0].weight)[0]
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_sequences_images_and_tokens(self) -> None:
        """Channels last in linear layers, whatever stands between; a sequence of outputs counts by
        its sum.
        """
        plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
        model = convert(plain, "dfa")
        x = noise((2, 7, 4), 1).requires_grad_()
        loss = model(x).square().sum() / 2
        e = model(x).detach().sum(1)
        (dx,) = torch.autograd.grad(loss, x)
        expected = (e @ model[0].feedback["kernel"] / 7).unsqueeze(1).expand(2, 7, 4)
        assert relative_error(dx, expected) <= TOLERANCE

    @pytest.mark.parametrize(
        "of", [RuleLinear, lambda *c, rule: DirectOperation(nn.Linear(*c), 4, rule)]
    )
    def test_no_output_needs_to_be_known_where_no_error_is_sent(self, of: Any) -> None:
        layer, x = of(4, 3, rule=RULES.build("dfa")), torch.randn(2, 4)
        weight, bias = layer.parameters()
        expected = x @ weight.t() + bias
        torch.testing.assert_close(layer(x), expected)
        with torch.no_grad():
            torch.testing.assert_close(layer(x.requires_grad_()), expected)
        with pytest.raises(InputError, match="does not know the model's output"):
            layer(x)

    def test_what_it_cannot_do_is_said(self) -> None:
        x = torch.randn(2, 4, requires_grad=True)
        with pytest.raises(InputError, match="does not know the model's output"):
            RuleLinear(4, 3, rule=RULES.build("dfa"))(x)
        plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
        with pytest.raises(InputError, match="expected an output of 7 values"):
            convert(plain, "dfa", outputs=7)(x)
        model = convert(plain, "dfa")
        with pytest.raises(InputError, match="compute the loss from the model's output"):
            model[1](model[0](x)).sum().backward()
        with pytest.raises(InputError, match="expected init"):
            RULES.build("dfa(scale=match)")

        class Regrouped(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer, self.head = nn.Linear(2, 2), nn.Linear(4, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.layer(x.view(-1, 2)).view(-1, 4))

        with pytest.raises(
            InputError, match="expected the 2 samples of the output, found 4 at layer; a"
        ):
            convert(Regrouped(), "dfa")(x).sum().backward()


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, stride=2, groups=4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(36, 5),
    ).double()


class TestDirectFeedbackAtEachPosition:
    def test_is_the_published_equation(self) -> None:
        """dx = e B, B (K, C H W), entry by entry; B is uniform on +-1/sqrt(C H W)."""
        x, labels = noise((2, 3, 8, 8), 1), torch.tensor([1, 3])
        model = convert(small_net(), "dfa(positions=all)", seed=1, inputs=x)
        sizes = {0: (3, 8, 8), 2: (4, 8, 8), 5: (36,)}
        given = x.clone().requires_grad_()
        arriving: dict[int, Tensor] = {}
        for i, layer in enumerate(model):
            layer.register_forward_hook(lambda _, inputs, y, i=i: arriving.update({i: y}))  # type: ignore[misc]
        logits = model(given)
        e = (logits.detach().softmax(1) - F.one_hot(labels, 5)) / 2
        found = torch.autograd.grad(
            F.cross_entropy(logits, labels), [given, arriving[1], arriving[4]]
        )
        for dx, (i, size) in zip(found, sizes.items(), strict=True):
            kernel = model[i].feedback["kernel"]
            assert kernel.shape == (5, *size)
            assert kernel.abs().max() <= math.prod(size) ** -0.5
            expected = torch.einsum("nk,k...->n...", e, kernel)
            assert relative_error(dx, expected) <= TOLERANCE

    def test_needs_the_size_of_the_input(self) -> None:
        spec = "dfa(positions=all)"
        with pytest.raises(InputError, match=r"needs the size of what the model is given"):
            convert(small_net(), spec)
        model = convert(small_net(), {"5": "bp", "*": spec}, inputs=noise((1, 3, 8, 8), 1))
        headless = model[:4]
        source = next(m.output_error for _, m in rule_carriers(headless) if m.rule.direct)  # type: ignore[attr-defined]
        source.outputs = 4
        total = source.watch(headless(noise((2, 3, 9, 9), 1)).mean((2, 3))).sum()
        with pytest.raises(InputError, match=r"expected samples of the shape \(4, 8, 8\)"):
            total.backward()
        genotype = load_genotype("darts_v1").with_rule(spec)
        with pytest.raises(InputError, match="cells and layers work at any size"):
            build_network(genotype, channels=4, layers=3, num_classes=3)
        space = SPACES.build("darts(nodes=1, operations=(none, sep_conv_3x3))")
        with pytest.raises(InputError, match="cells and layers work at any size"):
            SuperNet(space, (spec,), channels=4, layers=3, num_classes=3)
        with pytest.raises(InputError, match="unknown positions of dfa"):
            RULES.build("dfa(positions=some)")


class TestDirectKolenPollack:
    @pytest.mark.parametrize("spec", ["dkp", "dkp(positions=all)"])
    def test_is_its_equations(self, spec: str) -> None:
        """dx as under dfa with the same B; dB = e^T x, with x the mean over positions or all of it."""
        x, labels = noise((2, 3, 8, 8), 1), torch.tensor([1, 3])
        model = convert(small_net(), spec, seed=1, inputs=x)
        fixed = convert(small_net(), spec.replace("dkp", "dfa"), seed=1, inputs=x)
        read: dict[int, Tensor] = {}
        for i in (0, 2, 5):
            model[i].register_forward_pre_hook(lambda _, inputs, i=i: read.update({i: inputs[0]}))  # type: ignore[misc]
        for member in (model, fixed):
            F.cross_entropy(member(x), labels).backward()
        for one, other in zip(fixed.parameters(), weights_of(model), strict=True):
            assert relative_error(other.grad, one.grad) <= TOLERANCE
        e = (model(x).detach().softmax(1) - F.one_hot(labels, 5)) / 2
        for i, value in read.items():
            value = value.detach()
            if spec == "dkp" and value.dim() == 4:
                value = value.mean((2, 3))
            expected = torch.einsum("nk,n...->k...", e, value)
            assert relative_error(model[i].feedback_kernel.grad, expected) <= TOLERANCE

    def test_at_the_last_layer_becomes_backpropagation(self) -> None:
        """B - W vanishes as (1 - lr decay)^n, since both get the same gradient and decay."""
        model = three_layers("dkp", activation=nn.Tanh)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
        last = model[4]
        begun = (last.feedback_kernel - last.weight).detach()
        for step in range(100):
            optimizer.zero_grad()
            labels = torch.arange(8) % 3
            F.cross_entropy(model(noise((8, 6), step)), labels).backward()
            assert relative_error(last.feedback_kernel.grad, last.weight.grad) <= TOLERANCE
            optimizer.step()
        apart = (last.feedback_kernel - last.weight).detach()
        assert relative_error(apart, begun * 0.95**100) <= 1e-8

    def test_beside_frozen_weights_stays(self) -> None:
        model = three_layers("dkp")
        model[2].weight.requires_grad_(False)
        model(noise((4, 6), 1)).sum().backward()
        assert model[2].feedback_kernel.grad is None
        assert model[0].feedback_kernel.grad is not None
        assert model[4].feedback_kernel.grad is not None


def weights_of(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of a model that are no feedback."""
    feedback = set(map(id, learned_feedback(model)))
    return [p for p in model.parameters() if id(p) not in feedback]


class TestKolenPollack:
    def test_feedback_receives_the_weights_gradient(self) -> None:
        for layer, x in layers("kolen_pollack") + layers("kolen_pollack(scale=match)"):
            x = x.requires_grad_()
            y = layer(x)
            y.backward(noise(y.shape, 9))
            plain = type(layer).plain.forward
            assert torch.equal(layer.feedback_kernel.grad, layer.weight.grad)
            assert layer.feedback_kernel.grad is not layer.weight.grad
            with torch.no_grad():
                weight = layer.weight.clone()
                layer.weight.copy_(layer.transport(layer.weight))
            probe = x.detach().requires_grad_()
            (dx,) = torch.autograd.grad(plain(layer, probe), probe, noise(y.shape, 9))
            assert relative_error(x.grad, dx) <= 1e-12
            with torch.no_grad():
                layer.weight.copy_(weight)

    @pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "lion"])
    def test_feedback_converges_to_the_weight_under_any_optimizer(self, optimizer: str) -> None:
        """On a small task: from 90 degrees to less than 5."""
        from timm.optim import create_optimizer_v2

        torch.manual_seed(0)
        model = convert(
            nn.Sequential(
                nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3)
            ),
            "kolen_pollack",
        )
        lr, decay = {
            "sgd": (0.1, 0.02),
            "adam": (1e-2, 0.02),
            "adamw": (1e-2, 0.5),
            "lion": (1e-3, 3.0),
        }[optimizer]
        steps = create_optimizer_v2(model.parameters(), optimizer, lr, weight_decay=decay)
        x = torch.randn(64, 10)
        labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

        def angles() -> list[float]:
            return [
                math.degrees(
                    math.acos(min(1.0, F.cosine_similarity(b.flatten(), w.flatten(), dim=0).item()))
                )
                for w, b in ((model[i].weight, model[i].feedback_kernel) for i in (2, 4))
            ]

        assert min(angles()) > 60
        for _ in range(1500):
            steps.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            steps.step()
        assert max(angles()) < 5
        assert loss.item() < 0.9

    def test_is_neither_counted_nor_clipped_with_the_weights(self) -> None:
        from darts_bio.config import RetrainConfig
        from darts_bio.networks import parameters
        from darts_bio.training.optim import WeightOptimizer

        model, exact = three_layers("kolen_pollack"), three_layers("bp")
        assert parameters(model) == parameters(exact)
        assert sum(p.numel() for p in learned_feedback(model)) == 6 * 5 + 5 * 4 + 4 * 3
        config = RetrainConfig(genotype="x", clip=0.1, lr=1.0, momentum=0.0, weight_decay=0.0)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer = WeightOptimizer(model, config)
        optimizer.differentiate([model(noise((4, 6), 1)).square().sum()])
        optimizer.update()
        moved = {id(p): p.detach() - b for p, b in zip(model.parameters(), before, strict=True)}
        norm = torch.stack([moved[id(p)].norm() for p in optimizer.weights]).norm()
        assert norm.item() == pytest.approx(0.1, rel=1e-4)
        for layer in (model[0], model[2], model[4]):
            assert torch.allclose(moved[id(layer.weight)], moved[id(layer.feedback_kernel)])


class TestProductFeedback:
    @pytest.mark.parametrize("case", range(4))
    def test_is_its_equations_looped(self, case: int) -> None:
        """The error of x as two products, relay by relay, and dR from the relays' error and x."""
        layer, x = layers("pfa(expansion=3)")[case]
        fixed, learned = layer.feedback["fixed"], layer.feedback["learned"].detach()
        outputs = len(layer.weight)
        assert fixed.shape == (outputs, 3 * outputs)
        assert learned.shape == (3 * outputs, *layer.weight.shape[1:])
        x = x.requires_grad_()
        y = layer(x)
        dy = noise(y.shape, 9)
        y.backward(dy)
        dx, dr = torch.zeros_like(x), []
        for m in range(3 * outputs):
            # What relay m receives of each output, sent on through its row of R.
            if isinstance(layer, RuleLinear):
                relayed = dy @ fixed[:, m]
                dx += relayed.unsqueeze(-1) * learned[m]
                dr.append(torch.einsum("...,...i->i", relayed, x.detach()))
                continue
            window = (layer.stride, layer.padding, layer.dilation, layer.groups)
            rows = fixed[:, m].view(-1, 1, 1, 1) * learned[m]
            dx += torch.nn.grad.conv2d_input(x.shape, rows, dy, *window)
            relayed = dy * fixed[:, m].view(-1, 1, 1)
            of_rows = torch.nn.grad.conv2d_weight(x.detach(), rows.shape, relayed, *window)
            dr.append(of_rows.sum(0))
        assert relative_error(x.grad, dx) <= TOLERANCE
        assert relative_error(layer.feedback_learned.grad, torch.stack(dr)) <= TOLERANCE
        with true_gradients(layer):
            (dw,) = torch.autograd.grad(layer(x.detach()), layer.weight, dy)
        assert relative_error(layer.weight.grad, dw) <= TOLERANCE

    @pytest.mark.parametrize("expansion", [1, 10])
    def test_turns_to_the_weight_but_for_what_relays_mix(self, expansion: int) -> None:
        """R has the steps and the decay of W, so R - B^T W vanishes as (1 - lr decay)^n."""
        torch.manual_seed(1)
        layer = RuleLinear(30, 20, rule=RULES.build(f"pfa(expansion={expansion})")).double()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=0.5)

        def apart() -> Tensor:
            fixed, learned = layer.feedback["fixed"], layer.feedback["learned"]
            return (learned - fixed.t() @ layer.weight).detach()

        begun = apart()
        for step in range(200):
            optimizer.zero_grad()
            layer(noise((16, 30), step)).backward(noise((16, 20), 1000 + step))
            optimizer.step()
        assert relative_error(apart(), begun * (1 - 0.05) ** 200) <= 1e-8
        kernel = layer.transport(layer.weight).detach()
        cosine = F.cosine_similarity(kernel.flatten(), layer.weight.flatten(), dim=0).item()
        # B B^T is the identity and entries of variance 1/M beside it; of 20 x 30 weights.
        assert math.tan(math.acos(cosine)) == pytest.approx(math.sqrt(1 / expansion), rel=0.15)

    def test_where_a_weight_stands_in_parts(self) -> None:
        """The projections of attention are views of one weight, and of one kernel of all."""
        torch.manual_seed(0)
        attention = nn.MultiheadAttention(6, 2, batch_first=True).double()
        x = noise((2, 5, 6), 1)
        model = convert(attention, {"in_proj_weight": "pfa", "*": "bp"}, seed=2)
        fixed_kernel = convert(attention, {"in_proj_weight": "fa", "*": "bp"}, seed=2)
        carriers = [dict(rule_carriers(m))["in_proj_weight_carrier"] for m in (model, fixed_kernel)]
        kernel = carriers[0].kernel_of(attention.in_proj_weight)
        assert kernel is not None
        carriers[1].feedback["kernel"].copy_(kernel.detach())
        found = []
        for member in (model, fixed_kernel):
            given = x.clone().requires_grad_()
            member(given, given, given)[0].square().sum().backward()
            found.append(given.grad)
        assert found[0] is not None
        assert relative_error(found[0], found[1]) <= TOLERANCE
        dw = model.in_proj_weight.grad
        fixed, learned = (carriers[0].feedback[name] for name in ("fixed", "learned"))
        assert relative_error(learned.grad, fixed.t() @ dw) <= TOLERANCE


class TestWeightMirror:
    def test_turns_to_the_weight_by_its_activity_alone(self) -> None:
        """From 90 degrees to far below 45, and near the angle that its samples leave; the scale
        follows as well.
        """
        layer = randomise(
            RuleConv2d(16, 8, 3, rule=RULES.build("weight_mirror"), dtype=torch.float64), 1
        )
        for update in range(1, 200):
            draw_feedback(layer, 0, update)
        weight, mirror = layer.weight.detach().flatten(), layer.feedback["kernel"].flatten()
        angle = math.degrees(math.acos(F.cosine_similarity(weight, mirror, dim=0).item()))
        left = math.degrees(math.atan(math.sqrt(144 * 0.05 / (2 * 64))))
        assert angle == pytest.approx(left, rel=0.2)
        assert angle < 45
        assert (mirror @ weight / weight.square().sum()).item() == pytest.approx(1, abs=0.05)

    @pytest.mark.parametrize("fan_in", [40, 1152])
    def test_the_angle_that_remains_does_not_grow_with_the_layer(self, fan_in: int) -> None:
        """It follows from the samples: 64, or a quarter of fan_in, whatever the width.

        The rest of the start, 0.95^120, is 0.2 % of B. What the angle's cosine is measured from has
        8 fan_in entries, so it spreads by less than 10 % of the angle.
        """
        rule = RULES.build("weight_mirror")
        layer = randomise(RuleLinear(fan_in, 8, rule=rule, dtype=torch.float64), 1)
        for update in range(1, 121):
            draw_feedback(layer, 0, update)
        weight, mirror = layer.weight.detach().flatten(), layer.feedback["kernel"].flatten()
        angle = math.acos(F.cosine_similarity(weight, mirror, dim=0).item())
        samples = max(64, fan_in // 4)
        # Stationary variance r / (2 - r) of one renewal's, which is fan_in + 1 over the samples.
        left = math.sqrt(0.05 / 1.95 * (fan_in + 1) / samples)
        assert math.tan(angle) == pytest.approx(left, rel=0.1)

    def test_the_phase_before_training_follows_its_closed_form(self) -> None:
        """The mean of B after n renewals is (1 - r)^n B_0 + (1 - (1 - r)^n) W for white noise."""
        spec, n, r = "weight_mirror(phase=30, samples=4000)", 30, 0.05
        model = convert(nn.Sequential(nn.Linear(6, 5, dtype=torch.float64)), spec, seed=4)
        begun = convert(
            nn.Sequential(model[0].plain(6, 5, dtype=torch.float64)), "weight_mirror", seed=4
        )
        with torch.no_grad():
            begun[0].weight.copy_(model[0].weight)
        begun[0].initial_bound.copy_(model[0].initial_bound)
        draw_feedback(begun, 4)
        start, weight = begun[0].feedback["kernel"], model[0].weight.detach()
        kept = (1 - r) ** n
        expected = kept * start + (1 - kept) * weight
        # Each entry of r sum (1 - r)^k C_k W^T has a standard deviation below
        # sqrt(r / 2) |row| sqrt(2 / samples); five of them.
        bound = 5 * math.sqrt(r / 2 * 2 / 4000) * weight.norm(dim=1).max()
        found = model[0].feedback["kernel"]
        assert (found - expected).abs().max() <= bound
        assert (start - expected).abs().max() > 10 * bound

    def test_a_phase_is_that_many_renewals(self) -> None:
        """Bit for bit, by one source of draws, in a layer and in a supernet."""
        layer = RuleLinear(6, 5, rule=RULES.build("weight_mirror(phase=3, samples=7)"))
        draw_feedback(layer, 9)
        found = layer.feedback["kernel"].clone()
        source = generator("cpu", "feedback", 9, "", 0)
        layer.draw_feedback(source)
        first = layer.feedback["kernel"].clone()
        for _ in range(3):
            layer.renew_feedback(source)
        assert torch.equal(layer.feedback["kernel"], found)
        assert not torch.equal(found, first)
        space = SPACES.build("darts(nodes=1, operations=(none, sep_conv_3x3))")
        net = SuperNet(space, ("weight_mirror(phase=80)",), channels=4, layers=3, num_classes=3)
        draw_feedback(net, 0)
        angles = [
            F.cosine_similarity(carrier.carried_weight, carrier.feedback["kernel"], dim=0).item()
            for _, carrier in rule_carriers(net)
            if carrier.rule.renews and carrier.feedback["kernel"].dim() == 1
        ]
        assert angles
        assert min(angles) > 0.9

    def test_renewal_is_its_equation(self) -> None:
        layer = randomise(
            RuleLinear(
                4, 3, rule=RULES.build("weight_mirror(rate=0.2, samples=7)"), dtype=torch.float64
            ),
            1,
        )
        before, weight = layer.feedback["kernel"].clone(), layer.weight.detach()
        draws = torch.randn(7, 4, generator=torch.Generator().manual_seed(5)).double()
        layer.renew_feedback(torch.Generator().manual_seed(5))
        grown = sum(torch.outer(weight @ x, x) for x in draws) / 7
        assert relative_error(layer.feedback["kernel"], 0.8 * before + 0.2 * grown) <= TOLERANCE


class TestScale:
    @pytest.mark.parametrize(
        "rule", ["fa", "usf", "frsf", "brsf", "kolen_pollack", "weight_mirror"]
    )
    def test_match_follows_the_norm_of_the_weight_and_init_does_not(self, rule: str) -> None:
        for layer, _ in layers(f"{rule}(scale=match)"):
            with torch.no_grad():
                for factor in (1.0, 10.0):
                    layer.weight.mul_(factor)
                    assert layer.transport(layer.weight).norm().item() == pytest.approx(
                        layer.weight.norm().item()
                    )
            own = RULES.build(rule).kernel(layer.weight, layer.feedback)
            cosine = F.cosine_similarity(
                own.flatten(), layer.transport(layer.weight).flatten(), dim=0
            )
            assert cosine.item() == pytest.approx(1)

    @pytest.mark.parametrize("rule", ["usf", "frsf", "brsf", "kolen_pollack"])
    def test_match_of_a_kernel_of_zeros_is_zeros(self, rule: str) -> None:
        """Not 0/0: as W and with it the kernel vanish, so does K |W| / |K|."""
        for layer, x in layers(f"{rule}(scale=match)"):
            with torch.no_grad():
                layer.weight.zero_()
                if rule == "kolen_pollack":
                    layer.feedback["kernel"].zero_()
            assert gradients(layer, x)[0].eq(0).all()

    def test_a_scale_that_there_is_not(self) -> None:
        with pytest.raises(InputError, match="unknown scale of a rule 'norm'"):
            RULES.build("fa(scale=norm)")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hebbian(form=hard)", "unknown form of hebbian"),
        ("hebbian(rate=length)", "unknown rate of hebbian"),
        ("hebbian(step=sum)", "unknown step of hebbian"),
        ("hebbian(temperature=0)", "temperature: expected a number above 0"),
        ("hebbian(error=B)", "unknown error of a local rule"),
        ("predictive(steps=-1)", "steps: expected a whole number"),
        ("weight_mirror(rate=0)", "rate: expected a number above 0"),
        ("weight_mirror(samples=0)", "samples: expected a whole number"),
        ("pfa(expansion=0)", "expansion: expected a whole number"),
        ("weight_mirror(phase=-1)", "phase: expected a whole number"),
    ],
)
def test_options_out_of_bounds(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RULES.build(spec)


def test_a_rule_knows_how_it_is_written() -> None:
    for spec in (
        "bp",
        "fa",
        "usf(scale='match')",
        "hebbian(error='W', form='oja')",
        "weight_mirror(rate=0.2)",
    ):
        assert RULES.build(spec).spec == spec


def test_every_rule_is_a_candidate_of_the_supernet() -> None:
    """All at once in one net, batched where that can be, with exact gradients when asked for."""
    space = SPACES.build("darts(nodes=1, operations=(skip_connect, sep_conv_3x3))")
    net = SuperNet(space, RULES.names(), channels=2, layers=3, num_classes=3).double()
    draw_feedback(net, 0)
    weights = {
        t: torch.full(net.table.shape(t), 0.1, dtype=torch.float64, requires_grad=True)
        for t in net.table.rows
    }
    x, labels = noise((4, 3, 8, 8), 1), torch.tensor([0, 1, 2, 1])
    F.cross_entropy(net(x, weights), labels).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    ruled = {t: w.grad.clone() for t, w in weights.items()}
    h = 1e-6
    with true_gradients(net):
        for w in weights.values():
            w.grad = None
        F.cross_entropy(net(x, weights), labels).backward()
        direction = {t: noise(w.shape, 7) for t, w in weights.items()}
        slope = sum((w.grad * direction[t]).sum().item() for t, w in weights.items())
        with torch.no_grad():
            plus, minus = (
                F.cross_entropy(
                    net(x, {t: w + s * h * direction[t] for t, w in weights.items()}), labels
                ).item()
                for s in (1, -1)
            )
    assert slope == pytest.approx((plus - minus) / (2 * h), rel=1e-5)
    assert any(relative_error(ruled[t], w.grad) > 1e-3 for t, w in weights.items())
