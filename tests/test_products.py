"""Weights that a model's own code multiplies by: rules hold in every product, and audit sees it."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, rnn
from torch.utils.checkpoint import checkpoint

from darts_bio.errors import InputError
from darts_bio.rules import (
    RULES,
    InitialLaw,
    LearningRule,
    audit,
    convert,
    draw_feedback,
    learned_feedback,
    revert,
    rule_carriers,
    true_gradients,
)
from darts_bio.rules.audit import count_rules
from darts_bio.rules.products import CarriedWeight
from darts_bio.rules.weights import WeightCarrier


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Code(nn.Module):
    """A weight and a function of an activation and it."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(noise(*shape, seed=1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]] = {
    "linear": (lambda x, w: F.linear(x, w), (4, 5), (3, 5)),
    "linear with a bias": (lambda x, w: F.linear(x, w, w.new_ones(3)), (2, 4, 5), (3, 5)),
    "x @ w": (lambda x, w: x @ w, (2, 4, 5), (5, 3)),
    "x @ w.T": (lambda x, w: x @ w.T, (4, 5), (3, 5)),
    "w @ x": (lambda x, w: w @ x, (2, 5, 4), (3, 5)),
    "w @ one sample": (lambda x, w: w @ x, (5,), (3, 5)),
    "addmm": (lambda x, w: torch.addmm(x.new_ones(3), x, w), (4, 5), (5, 3)),
    "addmm, scaled": (
        lambda x, w: torch.addmm(x.new_ones(3), x, w, beta=2, alpha=0.5),
        (4, 5),
        (5, 3),
    ),
    "bmm": (lambda x, w: torch.bmm(x, w), (2, 4, 5), (2, 5, 3)),
    "inner": (lambda x, w: torch.inner(x, w), (2, 4, 5), (3, 5)),
    "linear of a weight": (lambda x, w: F.linear(w, x, w.new_ones(4)).T, (4, 5), (3, 5)),
    "linear, by names": (lambda x, w: F.linear(input=x, weight=w, bias=None), (4, 5), (3, 5)),
    "mm, by names": (lambda x, w: torch.mm(input=x, mat2=w, out=None), (4, 5), (5, 3)),
    "addmm, by names": (
        lambda x, w: torch.addmm(input=x.new_ones(3), mat1=x, mat2=w, alpha=0.5),
        (4, 5),
        (5, 3),
    ),
    "addmv, by names": (
        lambda x, w: torch.addmv(input=x.new_ones(3), mat=w, vec=x),
        (5,),
        (3, 5),
    ),
    "baddbmm, by names": (
        lambda x, w: torch.baddbmm(input=x.new_ones(3), batch1=x, batch2=w),
        (2, 4, 5),
        (2, 5, 3),
    ),
    "bmm, by names": (lambda x, w: torch.bmm(input=x, mat2=w), (2, 4, 5), (2, 5, 3)),
    "inner, by names": (lambda x, w: torch.inner(input=x, other=w), (2, 4, 5), (3, 5)),
    "matmul, by names": (lambda x, w: torch.matmul(input=x, other=w), (2, 4, 5), (5, 3)),
    "mv, by names": (lambda x, w: torch.mv(input=w, vec=x), (5,), (3, 5)),
    "conv1d, by names": (
        lambda x, w: F.conv1d(input=x, weight=w, padding=1),
        (2, 3, 7),
        (4, 3, 3),
    ),
    "real part": (lambda x, w: x @ w.real, (4, 5), (5, 3)),
    "matmul by head": (lambda x, w: x @ w, (6, 2, 4, 5), (2, 5, 3)),
    "einsum, linear": (lambda x, w: torch.einsum("nd,dhk->nhk", x, w), (4, 5), (5, 2, 3)),
    "einsum, weight first": (lambda x, w: torch.einsum("kd,nld->kln", w, x), (4, 2, 5), (3, 5)),
    "einsum, two sums": (lambda x, w: torch.einsum("nhd,ohd->no", x, w), (4, 2, 5), (3, 2, 5)),
    "einsum by head": (lambda x, w: torch.einsum("nhd,hdk->nhk", x, w), (4, 2, 5), (2, 5, 3)),
    "chunks": (lambda x, w: torch.cat([F.linear(x, c) for c in w.chunk(3)], 1), (4, 5), (6, 5)),
    "a slice": (lambda x, w: F.linear(x, w[1:3]), (4, 5), (6, 5)),
    "reshaped": (lambda x, w: F.linear(x, w.view(6, 5)), (4, 5), (2, 3, 5)),
    "permuted": (lambda x, w: F.linear(x, w.permute(1, 0)), (4, 5), (5, 3)),
    "conv1d": (lambda x, w: F.conv1d(x, w, padding=1), (2, 3, 7), (4, 3, 3)),
    "conv2d": (
        lambda x, w: F.conv2d(x, w, stride=2, padding=1, dilation=2, groups=2),
        (2, 4, 9, 8),
        (6, 2, 3, 3),
    ),
    "conv2d, one sample": (lambda x, w: F.conv2d(x, w), (4, 6, 6), (2, 4, 3, 3)),
    "conv2d, same": (lambda x, w: F.conv2d(x, w, padding="same"), (2, 3, 6, 6), (4, 3, 3, 3)),
    "conv2d, pointwise and strided": (
        lambda x, w: F.conv2d(x, w, stride=2),
        (2, 3, 6, 6),
        (4, 3, 1, 1),
    ),
    "conv3d": (lambda x, w: F.conv3d(x, w), (1, 2, 4, 4, 4), (3, 2, 2, 2, 2)),
    "conv_transpose2d": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, output_padding=1),
        (2, 4, 5, 5),
        (4, 3, 3, 3),
    ),
}
"""Products, the shape of the activation and that of the weight."""


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output, and the gradients of the input and the weight for an error drawn once."""
    x = x.clone().requires_grad_()
    y = model(x)
    dx, dw = torch.autograd.grad(y, [x, model.weight], noise(*y.shape, seed=9))  # type: ignore[list-item]
    return y.detach(), dx, dw


@pytest.mark.parametrize("form", FORMS)
class TestProducts:
    def test_the_kernel_carries_the_error(self, form: str) -> None:
        """dx is the gradient of the product with B in W's place, dW the ordinary one."""
        function, of_x, of_w = FORMS[form]
        plain, x = Code(function, *of_w), noise(*of_x)
        model: Any = convert(plain, "fa", inputs=x)
        kernel = model.weight_carrier.feedback["kernel"]
        y, dx, dw = gradients(model, x)
        plain_y, plain_dx, plain_dw = gradients(plain, x)
        moved = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(function(moved, kernel), moved, noise(*y.shape, seed=9))
        assert torch.allclose(y, plain_y, rtol=0, atol=1e-12)
        assert torch.allclose(dx, expected, rtol=0, atol=1e-12)
        assert torch.allclose(dw, plain_dw, rtol=0, atol=1e-12)
        assert not torch.allclose(dx, plain_dx, atol=1e-3)
        with true_gradients(model):
            assert torch.allclose(gradients(model, x)[1], plain_dx, rtol=0, atol=1e-12)

    def test_signs_and_learned_feedback(self, form: str) -> None:
        function, of_x, of_w = FORMS[form]
        plain, x = Code(function, *of_w), noise(*of_x)
        signs: Any = convert(plain, "usf", inputs=x)
        kernel = signs.weight_carrier.feedback["scale"] * plain.weight.detach().sign()
        y, dx, _ = gradients(signs, x)
        moved = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(function(moved, kernel), moved, noise(*y.shape, seed=9))
        assert torch.allclose(dx, expected, rtol=0, atol=1e-12)
        learned = convert(plain, "kolen_pollack", inputs=x)
        learned(x).sum().backward()
        (feedback,) = learned_feedback(learned)
        assert torch.allclose(feedback.grad, learned.weight.grad, rtol=0, atol=1e-12)  # type: ignore[arg-type]

    def test_in_a_look(self, form: str) -> None:
        function, of_x, of_w = FORMS[form]
        (row,) = audit(Code(function, *of_w), noise(*of_x)).rows
        assert row.products is not None
        assert len(row.products) == 1
        assert (row.rule, row.carries) == (None, "values")


@RULES.register("copied_weight")
@dataclass(frozen=True)
class Copied(LearningRule):
    """K = W + B with B = 0: the way of a rule, and the error of bp."""

    carries = "values"

    def state(self, law: InitialLaw, generator: torch.Generator) -> dict[str, Tensor]:
        return {"kernel": torch.zeros(law.shape)}

    def kernel(self, weight: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        return weight + state["kernel"]


RULES._members.pop("copied_weight")  # used by `put` alone, not by tests over the registry


class Packed(nn.Module):
    """A recurrent layer on sequences of different lengths."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        packed = rnn.pack_padded_sequence(x, [2, 5, 3], enforce_sorted=False)
        return rnn.pad_packed_sequence(self.layer(packed)[0])[0]


class Attention(nn.Module):
    """Self-attention, with or without one matrix for all of query, key and value."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(6, 2, **options)
        self.memory = nn.Linear(6, options.get("kdim", 6))

    def forward(self, x: Tensor) -> Tensor:
        other = self.memory(x)
        return self.layer(x, other, other, need_weights=False)[0]


class Standardized(nn.Conv2d):
    """A convolution by a standardized weight with a gain, as those of normalizer-free networks."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))
        self.register_buffer("mask", torch.ones(4, 3, 3, 3).triu())

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * (self.gain / (variance + 1e-4).sqrt())
        return F.conv2d(x, weight * self.mask, self.bias)


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter, merged with the weight or beside it."""

    def __init__(self, merged: bool) -> None:
        super().__init__()
        self.base, self.merged = nn.Linear(6, 4), merged
        self.down, self.up = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return F.linear(x, self.base.weight + 0.5 * self.up @ self.down, self.base.bias)
        return self.base(x) + x @ self.down.T @ self.up.T


class Bypassed(nn.Module):
    """A block that multiplies by its layers' weights with code of its own, as timm's beit does."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.qkv, self.out = nn.Linear(6, 18, bias=False), nn.Linear(6, 6)
        self.q_bias = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.token
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.q_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).chunk(3, -1)
        return self.out((q @ k.mT).softmax(-1) @ v)


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (Attention, (3, 2, 6)),
    "attention of other keys": (lambda: Attention(kdim=4, vdim=4), (3, 2, 6)),
    "attention, batch first": (lambda: Attention(batch_first=True, add_zero_attn=True), (3, 2, 6)),
    "LSTM": (lambda: nn.LSTM(6, 4, 2, bidirectional=True), (5, 3, 6)),
    "LSTM, projected": (lambda: nn.LSTM(6, 4, 2, proj_size=2, batch_first=True), (3, 5, 6)),
    "LSTM, packed": (lambda: Packed(nn.LSTM(6, 4, bidirectional=True)), (5, 3, 6)),
    "GRU": (lambda: nn.GRU(6, 4, 2, bias=False), (5, 3, 6)),
    "GRU, packed": (lambda: Packed(nn.GRU(6, 4)), (5, 3, 6)),
    "RNN": (lambda: nn.RNN(6, 4, nonlinearity="relu"), (5, 3, 6)),
    "LSTMCell": (lambda: nn.LSTMCell(6, 4), (3, 6)),
    "GRUCell": (lambda: nn.GRUCell(6, 4), (3, 6)),
    "RNNCell": (lambda: nn.RNNCell(6, 4), (3, 6)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 4)), (3, 6)),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), (2, 3, 6, 6)),
    "standardized": (Standardized, (2, 3, 6, 6)),
    "adapter": (lambda: Adapted(merged=False), (3, 6)),
    "merged adapter": (lambda: Adapted(merged=True), (3, 6)),
    "bypassed": (Bypassed, (2, 3, 6)),
    "encoder": (lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0), (3, 2, 6)),
}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Return a module in float64 with parameters drawn with seed 0, and an input."""
    make, shape = MODULES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().double()
    return model, noise(*shape)


def all_gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a module's output, and the gradients of its parameters and of the input."""
    x = x.clone().requires_grad_()
    model = copy.deepcopy(model)  # spectral norm moves its vectors at each pass
    output = model(x)
    while not isinstance(output, Tensor):
        output = output[0]
    output.backward(noise(*output.shape, seed=9))
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return output.detach(), {**found, "x": x.grad}


def put(model: nn.Module, rule: LearningRule, x: Tensor) -> nn.Module:
    """Return a model converted to a rule that has no name."""
    RULES._members["copied_weight"] = type(rule)
    try:
        return convert(model, "copied_weight", inputs=x)
    finally:
        del RULES._members["copied_weight"]


@pytest.mark.parametrize("name", MODULES)
class TestModules:
    def test_errors_go_through_kernels_shaped_like_the_weights(self, name: str) -> None:
        """With K = W + 0 every product takes the way of a rule, and all gradients are the plain ones."""
        plain, x = build(name)
        expected_y, expected = all_gradients(plain, x)
        y, found = all_gradients(put(plain, Copied(), x), x)
        assert torch.allclose(y, expected_y, rtol=0, atol=1e-12)
        for parameter, gradient in expected.items():
            assert torch.allclose(found[parameter], gradient, rtol=1e-10, atol=1e-12), parameter

    def test_no_weight_is_passed_by(self, name: str) -> None:
        """Kernels of zeros stop every error, except along ways that go through no weight."""
        plain, x = build(name)
        model = convert(plain, "fa", inputs=x)
        for _, carrier in rule_carriers(model):
            for value in carrier.feedback.values():
                value.zero_()
        _, found = all_gradients(model, x)
        if name not in ("encoder",):  # it has a skip connection
            assert torch.equal(found["x"], torch.zeros_like(x))
        seen = audit(model, x)
        assert not seen.unseen
        assert all(row.rule == "fa" for row in seen.rows)

    def test_exact_within_true_gradients(self, name: str) -> None:
        plain, x = build(name)
        model = convert(plain, "fa", inputs=x)
        with true_gradients(model):
            y, found = all_gradients(model, x)
        expected_y, expected = all_gradients(plain, x)
        assert torch.allclose(y, expected_y, rtol=0, atol=1e-12)
        for parameter, gradient in expected.items():
            assert torch.allclose(found[parameter], gradient, rtol=1e-10, atol=1e-12)

    def test_there_and_back(self, name: str) -> None:
        plain, x = build(name)
        model = convert(plain, "usf", inputs=x)
        back = revert(model)
        assert back.state_dict().keys() == plain.state_dict().keys()
        plain.load_state_dict(back.state_dict())
        assert [type(m) for m in back.modules()] == [type(m) for m in plain.modules()]
        assert torch.equal(all_gradients(back, x)[1]["x"], all_gradients(plain, x)[1]["x"])
        again = convert(model, "fa", inputs=x)  # converted once more: only the new rule is left
        once = convert(plain, "fa", inputs=x)
        assert again.state_dict().keys() == once.state_dict().keys()
        assert torch.equal(all_gradients(again, x)[1]["x"], all_gradients(once, x)[1]["x"])


class TestOracles:
    """Modules under fa beside their equations, each product with W's value and B's error."""

    @staticmethod
    def swapped(x: Tensor, weight: Tensor, kernel: Tensor) -> Tensor:
        """Return W x, the error of which goes through B."""
        forward = x.detach() @ weight.T
        return forward + (x @ kernel.T - (x @ kernel.T).detach())

    def test_attention(self) -> None:
        plain, x = build("attention")
        model: Any = convert(plain, {"memory": None, "*": "fa"}, inputs=x)
        layer, memory = model.layer, model.memory
        b_in = layer.in_proj_weight_carrier.feedback["kernel"]
        b_out = layer.out_proj.weight_carrier.feedback["kernel"]
        moved = x.clone().requires_grad_()
        weights, kernels = layer.in_proj_weight.detach().chunk(3), b_in.chunk(3)
        inputs = (moved, memory(moved), memory(moved))
        biases = layer.in_proj_bias.detach().chunk(3)
        q, k, v = (
            (self.swapped(of, w, b) + bias).unflatten(-1, (2, 3)).permute(1, 2, 0, 3)
            for of, w, b, bias in zip(inputs, weights, kernels, biases, strict=True)
        )
        heads = (q @ k.mT / 3**0.5).softmax(-1) @ v  # (N, heads, L, 3)
        joined = heads.permute(2, 0, 1, 3).flatten(2)
        y = self.swapped(joined, layer.out_proj.weight.detach(), b_out) + layer.out_proj.bias
        y.backward(noise(*y.shape, seed=9))
        output, found = all_gradients(model, x)
        assert torch.allclose(output, y.detach(), rtol=0, atol=1e-12)
        assert torch.allclose(found["x"], moved.grad, rtol=0, atol=1e-12)  # type: ignore[arg-type]

    def test_a_recurrent_layer(self) -> None:
        x = noise(4, 2, 3)
        plain = nn.GRU(3, 5).double()
        model: Any = convert(plain, "fa", inputs=x)
        b_ih = model.weight_ih_l0_carrier.feedback["kernel"]
        b_hh = model.weight_hh_l0_carrier.feedback["kernel"]
        moved, h, outputs = x.clone().requires_grad_(), noise(2, 5) * 0, []
        for step in moved:
            of_x = self.swapped(step, plain.weight_ih_l0.detach(), b_ih) + plain.bias_ih_l0
            of_h = self.swapped(h, plain.weight_hh_l0.detach(), b_hh) + plain.bias_hh_l0
            (r_x, z_x, n_x), (r_h, z_h, n_h) = of_x.chunk(3, 1), of_h.chunk(3, 1)
            z = torch.sigmoid(z_x + z_h)
            h = (1 - z) * torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h) + z * h
            outputs.append(h)
        y = torch.stack(outputs)
        y.backward(noise(*y.shape, seed=9))
        output, found = all_gradients(model, x)
        assert torch.allclose(output, y.detach(), rtol=0, atol=1e-12)
        assert torch.allclose(found["x"], moved.grad, rtol=0, atol=1e-12)  # type: ignore[arg-type]

    def test_direct_rules(self) -> None:
        """The input of a product receives e B over its positions, wherever the product stands."""
        x = noise(4, 5, 6)
        plain = nn.Sequential(
            Code(lambda x, w: torch.addmm(x[0, 0] * 0, x.flatten(0, 1), w).view(4, 5, 6), 6, 6)
        )
        plain.append(nn.Flatten()).append(nn.Linear(30, 3).double())
        model: Any = convert(plain, {"2": "bp", "*": "dfa"}, inputs=x)
        moved = x.clone().requires_grad_()
        with pytest.raises(InputError, match="expected the 4 samples of the output, found 20"):
            model(moved).sum().backward()
        kept: Any = convert(
            nn.Sequential(Code(lambda x, w: x @ w, 6, 6), *plain[1:]),
            {"2": "bp", "*": "dfa"},
            inputs=x,
        )
        kept(moved).sum().backward()
        kernel = kept[0].weight_carrier.feedback["kernel"]  # (3, 6)
        assert torch.allclose(moved.grad, kernel.sum(0).expand(4, 5, 6) / 5, rtol=0, atol=1e-12)  # type: ignore[arg-type]

    def test_direct_feedback_learns_beside_a_computed_weight(self) -> None:
        """Its gradient, e^T x with x the mean over positions, does not ask for the weight's."""
        x, e = noise(4, 5, 6), noise(4, 3, seed=9)
        code = Code(lambda x, w: x @ (w / w.norm(dim=0)), 6, 6)
        plain = nn.Sequential(code, nn.Flatten(), nn.Linear(30, 3).double())
        model: Any = convert(plain, {"2": "bp", "*": "dkp"}, inputs=x)
        moved = x.clone().requires_grad_()
        model(moved).backward(e)
        plain(x).backward(e)
        kernel = model[0].weight_carrier.feedback["kernel"]  # (3, 6)
        sent = (e @ kernel / 5).unsqueeze(1).expand(4, 5, 6)
        for found, expected in (
            (kernel.grad, e.T @ x.mean(1)),
            (moved.grad, sent),
            (model[0].weight.grad, code.weight.grad),
        ):
            assert torch.allclose(found, expected, rtol=0, atol=1e-12)
        with pytest.raises(InputError, match="not defined for a weight that is computed from"):
            convert(plain, {"2": "bp", "*": "kolen_pollack"}, inputs=x)(x)

    @pytest.mark.parametrize("rule", ["hebbian", "predictive(error=W)"])
    def test_local_rules_learn_as_in_a_linear_layer(self, rule: str) -> None:
        x = noise(4, 5)
        layer = convert(nn.Linear(5, 3, bias=False).double(), rule)
        code = Code(lambda x, w: x @ w.T, 3, 5)
        code.weight = nn.Parameter(layer.weight.detach().clone())  # type: ignore[operator]
        for a, b in zip(
            gradients(convert(code, rule, inputs=x), x), gradients(layer, x), strict=True
        ):
            assert torch.allclose(a, b, rtol=0, atol=1e-12)


class TestWhatIsLeftAsItIs:
    def test_outside_of_a_forward_pass_weights_are_parameters(self) -> None:
        plain, x = build("bypassed")
        model: Any = convert(plain, "fa", inputs=x)
        assert type(model.qkv.weight) is nn.Parameter
        assert any(p is model.qkv.weight for p in model.parameters())
        with pytest.raises(RuntimeError):
            model(noise(2, 3, 7))  # a pass that fails
        assert type(model.qkv.weight) is nn.Parameter
        model(x).sum().backward()
        assert model.qkv.weight.grad is not None
        with torch.no_grad():
            assert torch.equal(model(x), plain(x))

    def test_tokens_and_positions_carry_no_rule(self) -> None:
        plain, x = build("bypassed")
        model = convert(plain, "fa", inputs=x)
        carriers = [name for name, _ in rule_carriers(model)]
        assert carriers == ["qkv", "out"]

    def test_copies_and_files(self) -> None:
        plain, x = build("LSTM")
        model = convert(plain, "fa", inputs=x)
        stream = io.BytesIO()
        torch.save(model, stream)
        stream.seek(0)
        loaded = torch.load(stream, weights_only=False)
        expected = all_gradients(model, x)[1]
        for other in (copy.deepcopy(model), loaded):
            for name, gradient in all_gradients(other, x)[1].items():
                assert torch.equal(gradient, expected[name])

    # PyTorch 2.11's compiler asks each tensor that it meets for its gradient.
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    def test_functional_calls_autocast_and_compilers(self) -> None:
        plain, x = build("bypassed")
        model = convert(plain.float(), "fa", inputs=x.float())
        moved = x.float().requires_grad_()
        weights = {name: value.clone() for name, value in model.named_parameters()}
        y = torch.func.functional_call(model, weights, (moved,))
        (dx,) = torch.autograd.grad(y.sum(), moved)
        (expected,) = torch.autograd.grad(model(moved).sum(), moved)
        assert torch.equal(dx, expected)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        (dx,) = torch.autograd.grad(compiled(moved).sum(), moved)
        assert torch.allclose(dx, expected, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            (dx,) = torch.autograd.grad(model(moved).sum(), moved)
        assert F.cosine_similarity(dx.flatten(), expected.flatten(), dim=0) > 0.99

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_checkpointed_code(self, reentrant: bool) -> None:
        """Code that checkpointing repeats in the backward pass multiplies under the rule again."""

        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer = nn.Linear(5, 5).double()

            def block(self, x: Tensor) -> Tensor:
                return F.linear(x.sin(), self.layer.weight).tanh()

            def forward(self, x: Tensor, whole: bool = False) -> Tensor:
                if whole:
                    return self.block(x)
                y: Tensor = checkpoint(self.block, x, use_reentrant=reentrant)
                return y

        model, x = convert(Checkpointed(), "fa"), noise(4, 5).requires_grad_()
        (expected,) = torch.autograd.grad(model(x, whole=True).sum(), x)
        model(x).sum().backward()
        assert torch.allclose(x.grad, expected, rtol=0, atol=1e-12)  # type: ignore[arg-type]

    def test_renewed_feedback(self) -> None:
        plain, x = build("GRU")
        model: Any = convert(plain, "brsf", inputs=x)
        before = model.weight_hh_l0_carrier.feedback["magnitude"].clone()
        draw_feedback(model, 0, 1)
        assert not torch.equal(model.weight_hh_l0_carrier.feedback["magnitude"], before)


class TestPatterns:
    def test_by_class_and_by_the_weights_own_name(self) -> None:
        model = nn.ModuleDict(
            {
                "lstm": nn.LSTM(3, 4),
                "conv": nn.Conv2d(2, 2, 1),
                "attention": nn.MultiheadAttention(4, 2),
            }
        )
        patterns = {nn.Conv2d: "usf", "*.weight_hh_*": "fa", "attention": None, "*": "frsf"}
        rules = {name: c.rule.spec for name, c in rule_carriers(convert(model, patterns))}
        assert rules == {
            "lstm.weight_ih_l0_carrier": "frsf",
            "lstm.weight_hh_l0_carrier": "fa",
            "conv": "usf",
        }

    def test_bp_is_never_refused(self) -> None:
        model = nn.ModuleDict({"a": nn.Bilinear(2, 3, 4), "b": nn.LSTM(2, 2), "c": nn.Linear(2, 2)})
        rules = {
            name: c.rule.spec for name, c in rule_carriers(convert(model, {"c": "fa", "*": "bp"}))
        }
        assert rules == {"c": "fa"}

    def test_what_has_no_meaning_is_refused_with_the_reason(self) -> None:
        with pytest.raises(InputError, match="odd .*Bilinear.* cannot carry fa: it multiplies two"):
            convert(nn.ModuleDict({"odd": nn.Bilinear(2, 3, 4)}), "fa")
        old = nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(2, 3)))
        with pytest.raises(
            InputError, match="a hook sets it before each pass; use torch.nn.utils.p"
        ):
            convert(old, "fa")
        normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 3)))
        with pytest.raises(
            InputError, match="kolen_pollack: its feedback learns by the weight's own"
        ):
            convert(normed, "kolen_pollack")
        gate = convert(Code(lambda x, w: x @ w.T * w.sum(1), 3, 3), "fa", inputs=noise(3, 3))
        with pytest.raises(InputError, match="fa: torch's mul is no product that this rule could"):
            gate(noise(3, 3).requires_grad_())
        heads = Code(lambda x, w: x @ w, 2, 5, 3)
        with pytest.raises(InputError, match="a local rule is not defined for the product matmul"):
            convert(heads, "hebbian", inputs=noise(6, 2, 4, 5))(noise(6, 2, 4, 5))
        with pytest.raises(InputError, match="audit: the model cannot run on the inputs given"):
            audit(nn.Linear(3, 2), noise(2, 4))


class TestAudit:
    def test_rows_and_json(self) -> None:
        plain, x = build("bypassed")
        model = convert(plain, {"qkv": "usf", "*": "kolen_pollack"}, inputs=x)
        found = audit(model, x)
        assert [(row.name, row.rule, row.carries, row.products) for row in found.rows] == [
            ("qkv", "usf", "signs", ("linear",)),
            ("out", "kolen_pollack", "learned feedback", ("linear",)),
        ]
        assert found.carried["signs"] == 108
        assert found.carried["values"] == 0
        assert "signs" in str(found)
        assert "12 more parameters" in str(found)
        content = json.loads(found.to_json())
        assert content["carried"]["learned feedback"] == 42
        assert content["weights"][0]["products"] == ["linear"]

    def test_weights_that_are_not_used(self) -> None:
        class Idle(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 2)

            def forward(self, x: Tensor) -> Tensor:
                return self.used(x)

        found = audit(convert(Idle(), "fa"))
        assert found.unseen == ["idle"]
        assert "1 weights multiplied nothing: idle" in str(found)
        assert found.table().splitlines()[-1].split()[-1] == "nothing"

    def test_weights_behind_an_embedding_and_a_norm(self) -> None:
        model = nn.Sequential(
            nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)
        )
        found = audit(model, torch.zeros(2, 5, dtype=torch.long))
        assert found.unseen == []
        assert {row.name: row.products for row in found.rows} == {
            "2": ("linear",),
            "4": ("linear",),
        }

    def test_a_model_that_no_made_input_fits(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(3, 2))

            def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
                return x @ self.weight * scale

        assert audit(Two()).given is None
        assert "give audit(model, inputs=...) one" in str(audit(Two()))
        given = {"x": torch.ones(1, 3), "scale": torch.ones(())}
        assert audit(Two(), given).rows[0].products == ("matmul",)
        assert isinstance(convert(Two(), "fa", inputs=given).weight_carrier, WeightCarrier)
        with pytest.raises(InputError, match="no layer with weights that could carry a rule"):
            convert(Two(), "fa")

    @pytest.mark.parametrize("side", [224, 64, 32, 28, 16])
    def test_images_of_the_usual_sizes_are_tried(self, side: int) -> None:
        """Those of ImageNet, its smaller versions, CIFAR, MNIST and ImageNet16."""
        strided = nn.Conv2d(3, 1, 4, stride=4)
        model = nn.Sequential(strided, nn.Flatten(), nn.Linear((side // 4) ** 2, 2))
        assert audit(model).given == f"a made input (2, 3, {side}, {side})"

    def test_nothing_is_changed_by_a_look(self) -> None:
        plain, x = build("spectral norm")
        before = {name: value.clone() for name, value in plain.state_dict().items()}
        state = torch.get_rng_state()
        audit(plain)
        audit(plain, x)
        assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
        assert torch.equal(torch.get_rng_state(), state)
        assert not isinstance(plain.weight, CarriedWeight)


class TestAfterwards:
    """What users do to a model once it is converted."""

    def test_pruned_weights(self) -> None:
        """dx = dy B of the masked kernel's own feedback, dW = 0 where the mask is 0."""
        x = noise(4, 5)
        for layer in (
            convert(nn.Sequential(nn.Linear(5, 3).double()), "fa")[0],  # type: ignore[index]
            convert(Code(lambda x, w: x @ w.T, 3, 5), "fa", inputs=x),
        ):
            carrier: Any = layer if hasattr(layer, "feedback") else layer.weight_carrier
            kernel = carrier.feedback["kernel"]
            prune.random_unstructured(layer, "weight", 0.5)
            moved = x.clone().requires_grad_()
            y = layer(moved)
            y.backward(noise(4, 3, seed=9))
            assert torch.allclose(y - getattr(layer, "bias", 0), x @ layer.weight.T)
            assert torch.allclose(moved.grad, noise(4, 3, seed=9) @ kernel, rtol=0, atol=1e-12)  # type: ignore[arg-type]
            assert torch.equal(layer.weight_orig.grad == 0, layer.weight_mask == 0)
            prune.remove(layer, "weight")
            assert type(layer.weight) is nn.Parameter
        with pytest.warns(FutureWarning, match="weight_norm"):
            hooked: Any = torch.nn.utils.weight_norm(convert(nn.Linear(5, 3).double(), "fa"))
        moved = x.clone().requires_grad_()
        hooked(moved).backward(noise(4, 3, seed=9))
        expected = noise(4, 3, seed=9) @ hooked.feedback["kernel"]
        assert torch.allclose(moved.grad, expected, rtol=0, atol=1e-12)  # type: ignore[arg-type]

    @pytest.mark.parametrize("rule", ["fa", "usf", "hebbian", "dfa", "kolen_pollack"])
    def test_weight_norm_upon_a_layer_under_a_rule(self, rule: str) -> None:
        """The rule holds for the weight that is computed, with its present values; the rule can be
        seen, and taken off, and the weights stay normed.
        """
        plain = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        model, x = convert(plain, {"0": rule, "2": "bp"}, outputs=3), noise(6, 5)
        before: Any = copy.deepcopy(model)
        for net in (model, plain):
            parametrizations.weight_norm(net[0])  # type: ignore[index]
        if rule == "kolen_pollack":
            with pytest.raises(
                InputError, match=r"computed from others \(a parametrization\): its"
            ):
                model(x)
            with true_gradients(model):
                model(x).sum().backward()
            return
        assert audit(model, x).rows[0].rule == rule
        assert audit(model, x).rows[0].products == ("linear",)
        assert count_rules(model).rows[0].kind == "Linear"
        moved, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
        model(moved).backward(noise(6, 3, seed=9))
        before(expected).backward(noise(6, 3, seed=9))
        assert torch.allclose(moved.grad, expected.grad, rtol=0, atol=1e-12)  # type: ignore[arg-type]
        # The norm g and the direction v of W = g v / |v| by the chain rule, from dW.
        own = model.get_submodule("0.parametrizations.weight")
        g, v, dW = own.original0, own.original1, before[0].weight.grad
        unit = v / v.norm(dim=1, keepdim=True)
        along = (dW * unit).sum(1, keepdim=True)
        assert torch.allclose(g.grad, along, rtol=0, atol=1e-12)
        across = (dW - along * unit) * g / v.norm(dim=1, keepdim=True)
        assert torch.allclose(v.grad, across, rtol=0, atol=1e-12)
        bare = revert(model)
        assert list(bare.state_dict()) == list(plain.state_dict())
        assert torch.equal(bare(x), model(x))
        with pytest.raises(InputError, match="was parametrized under a rule; convert the model of"):
            convert(model, "usf", inputs=x)

    def test_replicas_of_data_parallel(self) -> None:
        """A replica's weights are tensors that nn.DataParallel computes from the parameters."""
        x = noise(4, 5)
        for model in (
            convert(nn.Linear(5, 5, bias=False).double(), "fa"),
            convert(Code(lambda x, w: x @ w, 5, 5), "fa", inputs=x),
        ):
            replica = model._replicate_for_data_parallel()  # type: ignore[operator]
            replica.weight, replica.bias = model.weight * 1, None
            moved, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
            replica(moved).sum().backward()
            model(expected).sum().backward()
            assert torch.equal(moved.grad, expected.grad)  # type: ignore[arg-type]

    @pytest.mark.parametrize("nested", [False, True])
    def test_a_pass_that_is_interrupted(self, nested: bool) -> None:
        """PyTorch calls no hook behind it. Afterwards a weight is the parameter outside of passes,
        and stands under its rule within them, also in the one that catches the interruption.
        """
        interrupts = False

        def function(x: Tensor, weight: Tensor) -> Tensor:
            if interrupts:
                raise KeyboardInterrupt
            return x @ weight

        class Outer(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner, self.own = Code(function, 5, 5), nn.Parameter(noise(5, 5))

            def forward(self, x: Tensor) -> Tensor:
                try:
                    x = self.inner(x)
                except KeyboardInterrupt:
                    assert nested
                assert isinstance(self.own, CarriedWeight)
                return x @ self.own

        x = noise(4, 5).requires_grad_()
        model: Any = convert(Outer(), "fa", inputs=noise(4, 5))
        interrupts = True
        if nested:
            model(x)
        else:
            with pytest.raises(KeyboardInterrupt):
                model.inner(x)
        assert type(model.own) is nn.Parameter
        assert type(model.inner.weight) is nn.Parameter
        interrupts = False
        model(x).sum().backward()
        kernels = [c.feedback["kernel"] for c in (model.inner.weight_carrier, model.own_carrier)]
        assert torch.allclose(x.grad, torch.ones(4, 5).double() @ kernels[1].T @ kernels[0].T)  # type: ignore[arg-type]
        assert type(model.own) is nn.Parameter


class TestRefusals:
    """What is wrong ends in one line that says how to mend it."""

    @pytest.mark.parametrize("command", [audit, revert, lambda model: convert(model, "fa")])
    def test_what_is_no_model(self, command: Callable[[Any], Any]) -> None:
        for wrong in (None, nn.Linear, torch.relu, [nn.Linear(2, 2)], torch.ones(2)):
            with pytest.raises(InputError, match=r"expected a torch.nn.Module, found .*build"):
                command(wrong)
        with pytest.raises(InputError, match=r"found the lazy 0.weight; run a batch through"):
            command(nn.Sequential(nn.LazyLinear(3)))

    @pytest.mark.parametrize(
        "wrong", [3, {"*": 3}, (1, 2), {"fa"}, RULES.build("fa"), b"fa", {"*": {"a": "fa"}}]
    )
    def test_what_is_no_rule(self, wrong: Any) -> None:
        with pytest.raises(InputError, match=r"expected a rule as text, as 'usf', .*found"):
            convert(nn.Linear(2, 2), wrong)

    def test_what_is_no_pattern_and_no_number(self) -> None:
        for wrong in (3, nn.Linear(2, 2), int):
            with pytest.raises(InputError, match="expected a pattern of names, as 'layer4"):
                convert(nn.Linear(2, 2), {wrong: "fa"})  # type: ignore[dict-item]
        for outputs in ("a", True, 0):
            with pytest.raises(InputError, match="outputs: expected a whole number of at least 1"):
                convert(nn.Linear(2, 2), "dfa", outputs=outputs)  # type: ignore[arg-type]
        with pytest.raises(
            InputError, match="seed: expected a whole number of at least 0, found 'x"
        ):
            convert(nn.Linear(2, 2), "fa", seed="x")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="convert: the model cannot run on the inputs given"):
            convert(nn.Linear(2, 2), "fa", inputs=torch.ones(2, 3))

    def test_complex_weights(self) -> None:
        with pytest.raises(InputError, match="rules are defined for real weights"):
            convert(nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)), "fa")

    def test_products_without_a_rule(self) -> None:
        """They are refused and listed, not left at the exact error without a word."""
        for name, function in {
            "tensordot": lambda x, w: torch.tensordot(x, w, dims=1),
            "einsum": lambda x, w: torch.einsum("ni,ij,jk->nk", x, w, w),
            "linear": lambda x, w: F.linear(x, w.repeat(2, 1)),
        }.items():
            model = nn.Sequential(nn.Linear(5, 5).double(), Code(function, 5, 5))
            with pytest.raises(InputError, match=f"1 .Code. cannot carry fa: it stands in {name}"):
                convert(model, "fa", inputs=noise(4, 5))
            assert audit(model, noise(4, 5)).rows[1].products == (name,)
            some = convert(model, {"1": None, "*": "fa"}, inputs=noise(4, 5))
            assert [name for name, _ in rule_carriers(some)] == ["0"]
