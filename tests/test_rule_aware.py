"""The hypergradient of rules: equal to central differences and to differentiating twice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_shared_weights import build, twins
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.networks import FoldedCell, MixedCell, SuperNet
from darts_bio.networks.reference import PooledOperation, ReferenceCell
from darts_bio.rules import RuleConv2d, draw_feedback
from darts_bio.rules.mixture import RuleMixture
from darts_bio.spaces import SPACES
from darts_bio.spaces.base import by_operation
from darts_bio.strategies import STRATEGIES, Bilevel, Context, masked_softmax
from darts_bio.strategies.rule_aware import RuleAwareState

pytestmark = pytest.mark.usefixtures("float64")

RULES_TRIED = ("fa", "usf", "brsf", "frsf", "bp", "kolen_pollack", "usf(scale=match)")


@dataclass
class Problem:
    """A supernet, two batches, alpha, and a step of SGD with momentum and weight decay."""

    net: SuperNet
    rules: tuple[str, ...]
    rate: float = 0.1
    train: tuple[Tensor, Tensor] = field(init=False)
    valid: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(5)
        self.train = (torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
        self.valid = (torch.randn(4, 3, 8, 8), torch.tensor([3, 1, 0, 4]))
        self.weights = [p for n, p in self.net.named_parameters() if "feedback_" not in n]
        self.momentum = [0.01 * torch.randn_like(w) for w in self.weights]
        table = self.net.table
        cpu = torch.device("cpu")
        self.strategy = STRATEGIES.build("rule_aware")
        context = Context(self.net.space_, table, 0, cpu, 1, 1)  # type: ignore[attr-defined]
        self.state = self.strategy.begin(context)
        for parameter in self.state.parameters.values():
            parameter.data = torch.randn(parameter.shape)

    def loss(self, batch: tuple[Tensor, Tensor], edge_weights: Any) -> tuple[Tensor, Tensor]:
        logits = self.net(batch[0], edge_weights)
        return F.cross_entropy(logits, batch[1]), logits

    def step(self, gradients: Any) -> tuple[list[Tensor], float]:
        after = [
            w.detach() - self.rate * (g + 0.9 * m + 3e-4 * w.detach())
            for w, g, m in zip(self.weights, gradients, self.momentum, strict=True)
        ]
        return after, self.rate

    def hypergradient(
        self, penalty: Any = lambda shares, alpha: torch.zeros(())
    ) -> dict[str, Tensor]:
        bilevel = Bilevel(
            self.net, self.train, self.valid, self.loss, self.loss, penalty, self.weights, self.step
        )
        gradients, _ = self.strategy.gradients(self.state, bilevel)
        return dict(zip(self.state.parameters, gradients, strict=True))

    def ahead(self) -> tuple[float, list[Tensor]]:
        """The validation loss after a step under the present shares, and its exact gradient.

        Computed by plain calls: a training gradient, a step, a loss, all undone.
        """
        edge_weights = {t: w.detach() for t, w in self.strategy.edge_weights(self.state).items()}
        with self.net.batch_statistics():
            loss, _ = self.loss(self.train, edge_weights)
            after, _ = self.step(torch.autograd.grad(loss, self.weights))
            before = [w.detach().clone() for w in self.weights]
            carriers = [m for m in self.net.modules() if hasattr(m, "exact")]
            with torch.no_grad():
                for weight, value in zip(self.weights, after, strict=True):
                    weight.copy_(value)
            for carrier in carriers:
                carrier.exact = True
            # The gains are those of the first call: what rules' parameters do to the loss at fixed
            # weights is nothing.
            loss, _ = self.loss(self.valid, edge_weights)
            v = torch.autograd.grad(loss, self.weights)
            for carrier in carriers:
                carrier.exact = False
            with torch.no_grad():
                for weight, value in zip(self.weights, before, strict=True):
                    weight.copy_(value)
        return loss.item(), list(v)


def problem(
    cell: type = MixedCell,
    space: str = "darts(nodes=1, operations=(none, max_pool_3x3, skip_connect, sep_conv_3x3))",
    rules: tuple[str, ...] = ("fa", "usf", "bp"),
    **kwargs: Any,
) -> Problem:
    net = build(cell, rules, space, **kwargs)
    draw_feedback(net, 3)
    net.space_ = SPACES.build(space)  # type: ignore[assignment]
    return Problem(net, rules)


@pytest.mark.parametrize("backbone", ["bp", "usf"])
def test_of_every_rule_share_equals_central_differences(backbone: str) -> None:
    torch.manual_seed(1)
    here = problem()
    if backbone != "bp":
        space = SPACES.build("nb201(operations=(none, nor_conv_1x1, avg_pool_3x3))")
        sizes = {"channels": 4, "layers": 3, "num_classes": 5}
        net = SuperNet(space, ("fa", "usf", "bp"), backbone_rule=backbone, shared="match", **sizes)
        draw_feedback(net, 3)
        net.space_ = space  # type: ignore[assignment]
        here = Problem(net, ("fa", "usf", "bp"))
    found = here.hypergradient()
    compared, largest = [], 0.0
    assert isinstance(here.state, RuleAwareState)
    for name, parameter in here.state.rules.items():
        t = name.removesuffix("/rule")
        for index in here.state.masks[t].nonzero().tolist():
            sides = []
            for step in (1e-6, -1e-6):
                parameter.data[tuple(index)] += step
                sides.append(here.ahead()[0])
                parameter.data[tuple(index)] -= step
            difference = (sides[0] - sides[1]) / 2e-6
            compared.append(abs(found[name][tuple(index)].item() - difference))
            largest = max(largest, abs(difference))
    assert largest > 1e-6
    assert max(compared) < 1e-5 * largest


class DifferentiableRule(torch.autograd.Function):
    """A convolution under a rule whose backward pass can be differentiated for the kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kernel: Tensor, geometry: Any) -> Tensor:
        ctx.geometry = geometry
        ctx.save_for_backward(x, weight, kernel)
        return F.conv2d(x, weight, None, *geometry)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight, kernel = ctx.saved_tensors
        dx = torch.nn.grad.conv2d_input(x.shape, kernel, dy, *ctx.geometry)
        dw = torch.nn.grad.conv2d_weight(x, weight.shape, dy, *ctx.geometry)
        return dx, dw, None, None


def differentiable(net: SuperNet) -> None:
    """Have a reference's mixed layers compute by kernels that depend on the edge weights."""

    def pooled(operation: PooledOperation, x: Tensor, weights: Tensor, drawn: None) -> Tensor:
        total = 0
        for pool, module in zip(operation.pools, operation, strict=True):
            of_rules = weights[list(pool.columns)]
            gain = of_rules.sum()
            for layer in module.modules():
                if isinstance(layer, RuleConv2d):
                    layer.shares = of_rules / gain
            total = total + gain.detach() * module(x)
        return total

    def convolve(layer: RuleConv2d, x: Tensor) -> Tensor:
        mixture, weight = layer.rule, layer.weight.detach()
        assert isinstance(mixture, RuleMixture)
        kernel = 0
        for share, rule, state in zip(
            layer.shares, mixture.rules, mixture.states(layer.feedback), strict=True
        ):
            of_rule = rule.kernel(weight, state).detach()
            if mixture.scale == "match":
                of_rule = of_rule * weight.norm() / of_rule.norm()
            kernel = kernel + share * of_rule
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        return DifferentiableRule.apply(x, layer.weight, kernel, geometry)

    for module in net.modules():
        if isinstance(module, PooledOperation):
            module.forward = pooled.__get__(module)  # type: ignore[method-assign]
        if isinstance(module, RuleConv2d) and isinstance(module.rule, RuleMixture):
            module.forward = convolve.__get__(module)  # type: ignore[method-assign]


@pytest.mark.parametrize("scale", ["match", "init"])
@pytest.mark.parametrize("cell", [MixedCell, FoldedCell])
@pytest.mark.parametrize("space", ["darts(nodes=2)", "darts(nodes=1, layout=paper)", "nb201"])
def test_equals_differentiating_the_reference_twice(cell: type, space: str, scale: str) -> None:
    """All rule shares at once, in all operations of the spaces."""
    fast = problem(cell, space, RULES_TRIED, shared=scale)
    reference = problem(ReferenceCell, space, RULES_TRIED, shared=scale)
    twins(fast.net, reference.net)
    found = fast.hypergradient()
    _, v = fast.ahead()
    names_of_fast = [n for n, _ in fast.net.named_parameters() if "feedback_" not in n]
    by_name = dict(zip(names_of_fast, v, strict=True))

    differentiable(reference.net)
    edge_weights = fast.strategy.edge_weights(fast.state)
    loss, _ = reference.loss(fast.train, edge_weights)
    names = [n for n, _ in reference.net.named_parameters() if "feedback_" not in n]
    weights = [reference.net.get_parameter(n) for n in names]
    gradients = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
    directions = members_of(fast.net, by_name)
    along = sum(
        (g * directions[n]).sum() for n, g in zip(names, gradients, strict=True) if g is not None
    )
    rules = list(fast.state.rules.values())
    twice = torch.autograd.grad(along, rules)
    for (name, _), expected in zip(fast.state.rules.items(), twice, strict=True):
        assert expected.norm() > 0
        difference = found[name] + fast.rate * expected
        assert difference.abs().max() < 1e-9 * (fast.rate * expected).abs().max()


def members_of(net: SuperNet, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values of a batched net's parameters, under the names of the reference."""
    named: dict[str, Tensor] = {}
    modules = dict(net.named_modules())
    for name, value in values.items():
        layer = modules[name.rpartition(".")[0]]
        if hasattr(layer, "names"):
            cell = ".".join(name.split(".")[:2])
            for m, member in enumerate(layer.names):
                named[f"{cell}.{member}.weight"] = value.unflatten(0, (len(layer.names), -1))[m]
        else:
            named[name] = value
    return named


def test_a_step_leaves_no_trace() -> None:
    here = problem()
    before = {n: v.clone() for n, v in here.net.state_dict().items()}
    here.hypergradient()
    for name, value in here.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.requires_grad for p in here.weights)


def test_penalties_reach_rules_and_operations() -> None:
    here = problem()
    without = here.hypergradient()

    def penalty(shares: Any, alpha: Any) -> Tensor:
        return sum(s[:, 3].sum() for s in shares.values())

    with_penalty = here.hypergradient(penalty)
    parameters = list(here.state.parameters.values())
    shares = here.strategy.edge_weights(here.state)
    expected = torch.autograd.grad(penalty(shares, None), parameters)
    for name, of_penalty in zip(here.state.parameters, expected, strict=True):
        torch.testing.assert_close(with_penalty[name] - without[name], of_penalty)


def test_weights_of_each_rule_s_own_are_refused() -> None:
    here = problem(shared=None)
    with pytest.raises(InputError, match=r"strategy rule_aware: .*--weights shared"):
        here.hypergradient()


def test_the_best_operation_and_its_best_rule_are_derived() -> None:
    """Two rules of middling share do not lose an operation to one of less weight."""
    here = problem()
    t = "normal"
    row = here.net.table.rows[t][0]
    columns = {pool.op: pool.columns for pool in by_operation(row)}
    wanted = torch.full((2, len(row)), -9.0)
    wanted[:, list(columns["sep_conv_3x3"])] = torch.tensor([0.20, 0.21, 0.19]).log()
    wanted[:, list(columns["max_pool_3x3"])] = torch.tensor([0.40]).log()
    pairs = masked_softmax(wanted, here.state.masks[t])

    class Fixed(type(here.strategy)):  # type: ignore[misc]
        def mean_weights(self, state: Any) -> dict[str, Tensor]:
            return {"normal": pairs, "reduce": pairs.new_ones(here.net.table.shape("reduce"))}

    weights = Fixed().final_weights(here.state)
    cell = here.net.space_.derive(weights, here.net.table)["normal"]  # type: ignore[attr-defined]
    assert {str(edge.candidate) for edge in cell.edges} == {"sep_conv_3x3:usf"}
    score = weights["normal"][0].max() * here.state.masks[t][0].sum()
    assert score.item() == pytest.approx(0.6 * len(columns), rel=1e-3)


def test_rules_move_by_a_rate_of_their_own_without_decay() -> None:
    here = problem()
    operations, rules = here.state.optimizer.param_groups
    assert (operations["lr"], rules["lr"]) == (here.strategy.lr, here.strategy.rule_lr)
    assert (operations["weight_decay"], rules["weight_decay"]) == (1e-3, 0.0)
    assert here.state.learning_rates() == {"alpha": 3e-4, "rules": 3e-3}
