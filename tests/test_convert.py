"""convert and audit on any model: every kind of layer against its closed form, and what is asked of
the tool.
"""

from __future__ import annotations

import copy
import threading
import time
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_rules import gradients, noise, relative_error
from torch import Tensor, nn

from darts_bio.errors import InputError
from darts_bio.rules import (
    RULES,
    RuleLayer,
    audit,
    convert,
    draw_feedback,
    revert,
    rule_layers,
    true_gradients,
)
from darts_bio.rules.layers import RULE_LAYERS

KINDS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(5, 4), (2, 3, 5)),
    "conv1d": (nn.Conv1d(4, 6, 3, 2, 1, groups=2), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), 2, 1, groups=2), (2, 4, 7, 8)),
    "conv3d": (nn.Conv3d(2, 3, 2, 1, 1), (2, 2, 4, 3, 5)),
    "transposed1d": (nn.ConvTranspose1d(4, 6, 3, 2, 1, 1, groups=2), (2, 4, 5)),
    "transposed2d": (nn.ConvTranspose2d(4, 6, (3, 2), 2, 1, 1, 2), (2, 4, 4, 5)),
    "transposed3d": (nn.ConvTranspose3d(2, 3, 2, 2), (2, 2, 2, 3, 2)),
}
FAMILY = [name for name in RULES if not (RULES.get(name).local or RULES.get(name).direct)]


class TestEveryKindOfLayer:
    @pytest.mark.parametrize("rule", FAMILY)
    @pytest.mark.parametrize("kind", KINDS)
    def test_gradients(self, kind: str, rule: str) -> None:
        """dx is the plain layer's with the kernel in the weight's place; dW and db are the plain
        layer's own.
        """
        plain, x = copy.deepcopy(KINDS[kind][0]).double(), noise(KINDS[kind][1], 1)
        layer: Any = convert(plain, rule, seed=2)
        assert type(layer) is RULE_LAYERS[type(plain)]
        expected = gradients(plain, x)
        weights = [layer.weight, layer.bias]
        y = layer(x.requires_grad_())
        assert torch.equal(y, plain(x))
        found = torch.autograd.grad(y, [x, *weights], noise(y.shape, 99))
        for a, b in zip(found[1:], expected[1:], strict=True):
            assert relative_error(a, b) <= 1e-12
        kernel = layer.transport(layer.weight).detach()
        with torch.no_grad():
            plain.weight.copy_(kernel)
        assert relative_error(found[0], gradients(plain, x)[0]) <= 1e-12
        with true_gradients(layer):
            y = layer(x)
            assert (
                relative_error(torch.autograd.grad(y, x, noise(y.shape, 99))[0], expected[0])
                <= 1e-12
            )
        without_batch = layer(x[0]) if kind != "linear" else layer(x)[0]
        assert relative_error(without_batch, layer(x)[0]) <= 1e-12

    @pytest.mark.parametrize("rule", ["fa", "kolen_pollack"])
    def test_a_transposed_convolution_of_an_asked_size(self, rule: str) -> None:
        plain = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1).double()
        layer: Any = convert(plain, rule)
        x = noise((1, 3, 4, 4), 1).requires_grad_()
        y = layer(x, output_size=[8, 8])
        assert torch.equal(y, plain(x, output_size=[8, 8]))
        assert layer.output_padding == (0, 0)
        y.sum().backward()
        assert x.grad is not None

    @pytest.mark.parametrize("kind", ["conv1d", "conv2d", "conv3d"])
    def test_local_rules_on_convolutions_of_any_dimension(self, kind: str) -> None:
        for rule in ("hebbian", "predictive"):
            layer, x = (
                convert(copy.deepcopy(KINDS[kind][0]).double(), rule),
                noise(KINDS[kind][1], 1),
            )
            _, dw, db = gradients(layer, x)
            assert dw.abs().max() > 0
            assert db.eq(0).all()

    def test_local_rules_are_refused_by_transposed_convolutions(self) -> None:
        with pytest.raises(
            InputError, match=r"convert: up: a transposed convolution cannot learn by hebbian"
        ):
            convert(nn.ModuleDict({"up": nn.ConvTranspose2d(2, 2, 2)}), "hebbian")


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(144, 5),
    )


class TestWhatIsConverted:
    def test_the_model_given_stays_as_it_is(self) -> None:
        plain = small()
        before = copy.deepcopy(plain.state_dict())
        model = convert(plain, "fa", redraw=True)
        assert not any(isinstance(module, RuleLayer) for module in plain.modules())
        assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
        assert [name for name, _ in model.named_parameters()] == [
            name for name, _ in plain.named_parameters()
        ]

    def test_patterns(self) -> None:
        model = convert(small(), {"0": "fa", "5": None, "*": "usf"})
        assert {name: layer.rule.spec for name, layer in rule_layers(model)} == {
            "0": "fa",
            "3": "usf",
        }

    def test_patterns_leave_what_they_do_not_match(self) -> None:
        weighted = {"0", "3", "5"}
        for matched in ({"0", "3"}, {"0", "5"}, {"3", "5"}):
            model: Any = convert(small(), {f"[{''.join(matched)}]": "frsf"})
            assert {name for name, _ in rule_layers(model)} == matched
            (left,) = weighted - matched
            assert type(model[int(left)]) is type(small()[int(left)])

    def test_a_random_assignment_is_of_the_seed_and_the_name(self) -> None:
        def chosen(seed: int, model: nn.Module) -> dict[str, str]:
            return {
                n: layer.rule.spec
                for n, layer in rule_layers(convert(model, ("usf", "fa", "bp"), seed=seed))
            }

        assert chosen(0, small()) == chosen(0, small())
        assert len({tuple(chosen(seed, small()).values()) for seed in range(12)}) > 3
        longer = nn.Sequential(*small(), nn.ReLU(), nn.Linear(5, 2))
        assert chosen(1, longer).items() >= chosen(1, small()).items()

    def test_weights_are_kept_or_drawn_by_the_seed(self) -> None:
        plain = small()
        kept, drawn, same, other = (
            convert(plain, "fa"),
            convert(plain, "fa", redraw=True, seed=1),
            convert(small(), "usf", redraw=True, seed=1),
            convert(plain, "fa", redraw=True, seed=2),
        )
        assert torch.equal(kept[0].weight, plain[0].weight)  # type: ignore[index]
        assert torch.equal(drawn[3].weight, same[3].weight)  # type: ignore[index]
        assert not torch.equal(drawn[3].weight, other[3].weight)  # type: ignore[index]
        assert not torch.equal(drawn[3].weight, plain[3].weight)  # type: ignore[index]

    @pytest.mark.parametrize("rule", ["fa", "usf", "frsf", "brsf"])
    def test_feedback_has_the_law_of_the_weights_as_they_are(self, rule: str) -> None:
        """Also where they were not initialized by PyTorch's default, and through a checkpoint."""
        plain = nn.Conv2d(64, 64, 3)
        nn.init.kaiming_normal_(plain.weight, mode="fan_out")
        model: Any = convert(plain, rule)
        std = plain.weight.std().item()
        other: Any = convert(nn.Conv2d(64, 64, 3), rule)
        other.load_state_dict(model.state_dict())
        for layer in (model, other):
            draw_feedback(layer, 3, 1)
            assert layer.transport(layer.weight).square().mean().sqrt().item() == pytest.approx(
                std, rel=0.02
            )

    @pytest.mark.parametrize("assign", [False, True])
    def test_a_model_without_numbers_takes_the_law_from_the_state_that_it_loads(
        self, assign: bool
    ) -> None:
        def made(device: str) -> Any:
            with torch.device(device):
                return nn.Sequential(nn.Linear(64, 64), nn.GRU(64, 64), nn.Linear(64, 2))

        plain = made("cpu")
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.mul_(7)
        model = convert(plain, {"2": "bp", "*": "fa"}, seed=0)
        other: Any = convert(made("meta"), {"2": "bp", "*": "fa"}, seed=0)
        if not assign:
            other.to_empty(device="cpu")
        other.load_state_dict(copy.deepcopy(model.state_dict()), assign=assign)
        draw_feedback(other, 3)
        std = plain[0].weight.std(correction=0).item()
        assert other[0].feedback["kernel"].std().item() == pytest.approx(std, rel=0.05)
        draw_feedback(model, 3)
        for key, value in model.state_dict().items():
            torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=0)
        with pytest.raises(RuntimeError, match='Unexpected key.*"0.initial_bound"'):
            convert(made("cpu"), "fa", redraw=True).load_state_dict(model.state_dict())

    def test_weights_of_zero_have_the_default_law(self) -> None:
        plain = nn.Linear(100, 10)
        nn.init.zeros_(plain.weight)
        model: Any = convert(plain, "fa")
        assert model.feedback["kernel"].abs().max().item() == pytest.approx(0.1, rel=0.02)

    def test_again_with_another_rule(self) -> None:
        model = convert(convert(convert(small(), "kolen_pollack"), "hebbian"), "fa")
        assert {key for key in model.state_dict() if "feedback" in key} == {
            f"{i}.feedback_kernel" for i in (0, 3, 5)
        }
        assert "0.initial_bound" in model.state_dict()
        assert "0.initial_bound" not in convert(model, "fa", redraw=True).state_dict()
        assert not any("feedback" in name for name, _ in model.named_parameters())

    def test_again_with_a_direct_rule(self) -> None:
        model: Any = convert(convert(small(), "dfa", seed=1), "dfa", seed=2)
        once: Any = convert(small(), "dfa", seed=2)
        x = torch.randn(2, 3, 8, 8)
        for one in (model, once):
            one(x).square().sum().backward()
        for a, b in zip(model.parameters(), once.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)

    @pytest.mark.parametrize("rule", RULES)
    def test_taken_off_again(self, rule: str) -> None:
        """Nothing of a rule is left on the layers: they learn as those that never had one."""
        plain: Any = small()
        model = convert(plain, rule, inputs=torch.ones(2, 3, 8, 8))
        model(torch.ones(2, 3, 8, 8)).sum().backward()  # so that it is a model that has learned
        model.zero_grad()
        bare: Any = revert(model)
        for one in (bare, plain):
            one(torch.ones(2, 3, 8, 8)).square().sum().backward()
        for a, b in zip(bare.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        assert [vars(m).keys() for m in bare.modules()] == [vars(m).keys() for m in plain.modules()]

    def test_hooks_device_and_mode_are_kept(self) -> None:
        plain, seen = small().eval(), []
        plain[0].register_forward_hook(lambda *_: seen.append(1))
        model = convert(plain, "fa")
        model(torch.randn(1, 3, 8, 8))
        assert seen == [1]
        assert not any(module.training for module in model.modules())


class Tied(nn.Module):
    """An encoder and a decoder of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class TestWhatIsRefused:
    def test_tied_weights(self) -> None:
        model: Any = convert(Tied(), "fa", redraw=True)
        assert model.first.weight is model.second.weight
        assert not torch.equal(model.first.feedback["kernel"], model.second.feedback["kernel"])
        model(torch.randn(2, 4)).sum().backward()
        for rule in ("kolen_pollack", "hebbian"):
            with pytest.raises(
                InputError, match=f"first and second share their weight, and {rule} is not defined"
            ):
                convert(Tied(), rule)

    def test_patterns_and_names(self) -> None:
        with pytest.raises(
            InputError,
            match=r"the pattern 'layer4\.\*' matches no layer with weights; there are 0, 3, 5",
        ):
            convert(small(), {"layer4.*": "fa"})
        with pytest.raises(
            InputError, match="the pattern '5' is never reached.*put it before them"
        ):
            convert(small(), {"*": "usf", "5": "bp"})
        for nothing in (None, {}, {"5": None}):
            with pytest.raises(
                InputError,
                match="expected a rule, several, or patterns with rules, found .*; name one, as 'usf'",
            ):
                convert(small(), nothing)
        for among in (("fa", None), {"5": [None, "usf"]}):
            with pytest.raises(
                InputError, match=r"found None among them in [(\[].*; take 'bp', which is exact"
            ):
                convert(small(), among)
        with pytest.raises(InputError, match="the model has no layer with weights"):
            convert(nn.ReLU(), "usf")
        with pytest.raises(InputError, match=r"expected a torch.nn.Module, found str"):
            convert("resnet18", "usf")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="unknown learning rule 'ufs'.*did you mean 'usf'"):
            convert(small(), "ufs")
        with pytest.raises(InputError, match="unknown learning rule 'USF': did you mean 'usf'"):
            convert(small(), "USF")
        with pytest.raises(InputError, match="expected at least one rule .*; name one, as 'usf'"):
            convert(small(), ())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, of weights without entries
            hollow = nn.Sequential(nn.Linear(3, 0), nn.Linear(0, 2))
        with pytest.raises(InputError, match=r"0 \(Linear\) cannot carry fa: it has no entries"):
            convert(hollow, "fa")
        broken = small()
        broken.kept = torch.ones(1, requires_grad=True) * 2  # type: ignore[assignment]
        locked = small()
        locked.kept = threading.Lock()  # type: ignore[assignment]
        for uncopyable in (broken, locked):
            for command in (
                lambda model: convert(model, "fa"),
                lambda model: audit(model, torch.ones(1, 3, 8, 8)),
                revert,
            ):
                with pytest.raises(
                    InputError, match="the model cannot be copied .*as it was built"
                ):
                    command(uncopyable)


class TestAudit:
    def test_counts(self) -> None:
        report = audit(convert(small(), {"0": "fa", "3": "hebbian(error=W)", "5": None}))
        assert [
            (row.name, row.kind, row.rule, row.parameters, row.transports) for row in report.rows
        ] == [
            ("0", "Conv2d", "fa", 112, False),
            ("3", "Conv2d", "hebbian(error='W')", 148, True),
            ("5", "Linear", None, 725, True),
        ]
        assert (report.parameters, report.transported, report.other) == (985, 873, 8)
        assert report.share == 873 / 985
        assert [line.split() for line in str(report).splitlines()[2:5]] == [
            ["bp", "(plain)", "1", "725", "73.6", "%", "values"],
            ["hebbian(error='W')", "1", "148", "15.0", "%", "values"],
            ["fa", "1", "112", "11.4", "%", "fixed", "feedback"],
        ]

    def test_learned_feedback_and_tied_weights_count_once(self) -> None:
        assert (
            audit(convert(small(), "kolen_pollack")).parameters == audit(small()).parameters == 985
        )
        assert audit(Tied()).parameters == 16 + 4 + 4

    def test_time_grows_as_the_layers_do(self) -> None:
        def seconds(layers: int) -> float:
            model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(layers)))
            spent = []
            for _ in range(
                3
            ):  # other work and garbage collection only ever add: the least is the layers'
                began = time.process_time()
                audit(model)
                spent.append(time.process_time() - began)
            return min(spent)

        assert seconds(2000) < 32 * seconds(125)  # 16 times the layers

    def test_of_networks(self) -> None:
        from darts_bio.networks import build_network
        from darts_bio.spaces import load_genotype

        genotype = load_genotype("darts_v1")
        exact, mixed, direct = (
            audit(build_network(g, channels=4, layers=3))
            for g in (
                genotype,
                genotype.with_rule("usf"),
                load_genotype("darts_v1").with_rule("dfa"),
            )
        )
        assert exact.share == 1
        assert mixed.share == 0
        assert 0 < direct.share < 1  # within an operation the error is exact
        assert exact.parameters + exact.other == mixed.parameters + mixed.other


def published_models() -> dict[str, Any]:
    import timm
    import torchvision

    torch.manual_seed(0)
    return {
        "resnet18": (torchvision.models.resnet18(num_classes=4), 32),
        "vit": (
            timm.create_model(
                "vit_tiny_patch16_224",
                img_size=32,
                patch_size=8,
                embed_dim=24,
                depth=2,
                num_heads=2,
                num_classes=4,
            ),
            32,
        ),
        "convnext": (
            timm.create_model(
                "convnext_atto", num_classes=4, dims=(8, 16, 24, 32), depths=(1, 1, 1, 1)
            ),
            64,
        ),
    }


@pytest.mark.parametrize("rule", RULES.names())
def test_published_models_train_a_few_steps(rule: str) -> None:
    for name, (plain, side) in published_models().items():
        model = convert(plain, rule, seed=1)
        report = audit(model)
        assert all(row.rule == rule for row in report.rows), name
        assert len(report.rows) == sum(type(m) in RULE_LAYERS for m in plain.modules())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        x, labels = torch.randn(4, 3, side, side), torch.arange(4)
        for step in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            draw_feedback(model, 1, step + 1)
        assert loss.isfinite(), name
        # Gradients, since those above a layer scale of 1e-6 vanish beside the weights.
        assert all(layer.weight.grad.abs().max() > 0 for _, layer in rule_layers(model)), name
