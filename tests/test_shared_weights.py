"""A supernet whose rules share weights: it equals a plain reference, and what alpha sees of rules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from darts_bio.errors import InputError
from darts_bio.networks import FoldedCell, MixedCell, SuperNet
from darts_bio.networks.reference import ReferenceCell
from darts_bio.rules import (
    RULES,
    LearningRule,
    RuleConv2d,
    draw_feedback,
    held_feedback,
    true_gradients,
)
from darts_bio.rules.mixture import RuleMixture
from darts_bio.spaces import OPERATIONS, SPACES
from darts_bio.spaces.operations import operation, pointwise
from darts_bio.strategies.alpha import FactorizedAlpha
from darts_bio.strategies.base import Context, masked_softmax

pytestmark = pytest.mark.usefixtures("float64")

RULES_THAT_MIX = (
    *("fa", "usf", "brsf", "frsf", "bp", "kolen_pollack", "weight_mirror", "usf(scale=match)"),
    "kolen_pollack(scale=match)",
)
SPACES_TRIED = ("darts(nodes=2)", "darts(nodes=1, layout=paper)", "nb201")


def build(
    cell: type = MixedCell,
    rules: tuple[str, ...] = RULES_THAT_MIX,
    space: str = "darts(nodes=1)",
    shared: str | None = "match",
    partial: int = 1,
) -> SuperNet:
    torch.manual_seed(1)
    sizes = {"channels": 4 * partial, "layers": 3, "num_classes": 5}
    return SuperNet(SPACES.build(space), rules, cell=cell, shared=shared, partial=partial, **sizes)  # type: ignore[arg-type]


def twins(fast: SuperNet, reference: SuperNet) -> list[tuple[Tensor, slice, Tensor]]:
    """Give the reference the weights and feedback of the batched net.

    Returns, for each learned feedback, the flat tensor of the batched net, the rows of a member in
    it, and that member's in the reference.
    """
    draw_feedback(fast, 3)
    modules = dict(reference.named_modules())
    homes = {
        id(layer): f"cells.{number}"
        for number, cell in enumerate(fast.cells)
        for layer in cell.stacked_layers()
    }
    learned = []
    with torch.no_grad():
        for mixed in fast.feedback:
            first = 0
            for layer, m in mixed.members:
                target = modules[f"{homes[id(layer)]}.{layer.names[m]}"]
                size = target.weight.numel()
                weights = layer.weight.view(len(layer.names), *target.weight.shape)
                assert torch.equal(target.weight, weights[m])
                for r, flat in enumerate(mixed.flat):
                    for name, value in flat.feedback.items():
                        theirs = target.feedback[f"{r}_{name}"]
                        rows = slice(first, first + size)
                        theirs.copy_(value[rows].view_as(theirs) if theirs.dim() else value[first])
                        if name in flat.rule.learned:
                            learned.append((value, rows, theirs))
                first += size
    return learned


def near(one: Tensor, other: Tensor) -> None:
    assert (one - other).abs().max() <= 1e-12 * other.abs().max().clamp_min(1e-300)


@pytest.mark.parametrize("scale", ["match", "init"])
@pytest.mark.parametrize("space", SPACES_TRIED)
@pytest.mark.parametrize("cell", [MixedCell, FoldedCell])
def test_equals_the_reference(cell: type, space: str, scale: str) -> None:
    fast, reference = (
        build(cell, space=space, shared=scale),
        build(ReferenceCell, space=space, shared=scale),
    )
    learned = twins(fast, reference)
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    edge_weights = {t: torch.rand(fast.table.shape(t)) for t in fast.table.rows}
    results = []
    for net in (fast, reference):
        lent = {t: w.clone().requires_grad_() for t, w in edge_weights.items()}
        logits = net(x, lent)
        F.cross_entropy(logits, labels).backward()
        shared = {n: p.grad for n, p in net.named_parameters() if n.startswith(("stem", "inputs"))}
        results.append((logits.detach(), [w.grad for w in lent.values()], shared))
    (one, of_edges, of_weights), (other, edges_of_reference, weights_of_reference) = results
    near(one, other)
    for a, b in zip(of_edges, edges_of_reference, strict=True):
        near(a, b)
    assert of_weights.keys() == weights_of_reference.keys()
    for name, gradient in of_weights.items():
        near(gradient, weights_of_reference[name])
    assert learned
    scale_of = max(theirs.grad.abs().max() for _, _, theirs in learned)
    for flat, rows, theirs in learned:
        difference = flat.grad[rows].view_as(theirs) - theirs.grad
        assert difference.abs().max() <= 1e-12 * scale_of


def test_partial_channels_equal_the_reference() -> None:
    fast, reference = build(partial=2), build(ReferenceCell, partial=2)
    twins(fast, reference)
    x = torch.randn(2, 3, 8, 8)
    edge_weights = {t: torch.rand(fast.table.shape(t)) for t in fast.table.rows}
    near(fast(x, edge_weights), reference(x, edge_weights))


def test_one_rule_in_its_own_scale_is_a_supernet_of_that_rule() -> None:
    shared, own = (build(rules=("usf",), shared=scale) for scale in ("init", None))
    assert [n for n, _ in shared.named_parameters()] == [n for n, _ in own.named_parameters()]
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    edge_weights = {t: torch.rand(own.table.shape(t)) for t in own.table.rows}
    for net in (shared, own):
        draw_feedback(net, 3)
        F.cross_entropy(net(x, edge_weights), labels).backward()
    for (name, one), other in zip(shared.named_parameters(), own.parameters(), strict=True):
        assert one.grad is not None, name
        near(one.grad, other.grad)


def test_matched_kernels_do_not_depend_on_how_long_they_were() -> None:
    short, long = build(rules=("fa", "usf")), build(rules=("fa", "usf"))
    for net in (short, long):
        draw_feedback(net, 3)
    with torch.no_grad():
        for mixed in long.feedback:
            mixed.flat[0].feedback["kernel"].mul_(1000)
    edge_weights = {t: torch.rand(short.table.shape(t)) for t in short.table.rows}
    x, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    for net in (short, long):
        F.cross_entropy(net(x, edge_weights), labels).backward()
    for one, other in zip(short.parameters(), long.parameters(), strict=True):
        near(one.grad, other.grad)


def test_alpha_sees_no_difference_between_rules_in_the_first_order() -> None:
    net = build()
    draw_feedback(net, 3)
    space, cpu = SPACES.build("darts(nodes=1)"), torch.device("cpu")
    alpha = FactorizedAlpha(Context(space, net.table, 0, cpu, 1, 1), init=0.5)
    parameters = {n: p.detach().double().requires_grad_() for n, p in alpha.parameters.items()}
    alpha.parameters = parameters
    edge_weights = {t: masked_softmax(a, alpha.masks[t]) for t, a in alpha.logits().items()}
    for weights in edge_weights.values():
        weights.retain_grad()
    logits = net(torch.randn(4, 3, 8, 8), edge_weights)
    F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])).backward()
    for t, rows in net.table.rows.items():
        gradients = edge_weights[t].grad
        for edge, row in enumerate(rows):
            by_op: dict[str, set[float]] = {}
            for column, candidate in enumerate(row):
                if candidate is not None:
                    by_op.setdefault(candidate.op, set()).add(gradients[edge, column].item())
            assert all(len(values) == 1 for values in by_op.values())  # not a bit of difference
            assert len({value for values in by_op.values() for value in values}) > 3
        operations, of_rules = (parameters[f"{t}/{kind}"].grad for kind in ("operation", "rule"))
        assert of_rules.abs().max() < 1e-14 * operations.abs().max()


def test_operations_that_no_one_weighs_share_equally() -> None:
    """A hard sample weighs most operations with zero."""
    net, reference = build(rules=("fa", "usf")), build(ReferenceCell, rules=("fa", "usf"))
    twins(net, reference)
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    edge_weights = {t: torch.zeros(net.table.shape(t)) for t in net.table.rows}
    for weights in edge_weights.values():
        weights[:, 5] = 1
    of_stem = []
    for one in (net, reference):
        F.cross_entropy(one(x, edge_weights), labels).backward()
        of_stem.append(torch.cat([p.grad.flatten() for p in one.stem.parameters()]))
    assert of_stem[0].isfinite().all()
    near(*of_stem)


def test_exact_and_held_kernels() -> None:
    net = build(rules=("fa", "usf"))
    draw_feedback(net, 3)
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    edge_weights = {t: torch.rand(net.table.shape(t)) for t in net.table.rows}
    stem = next(net.stem.parameters())

    def gradient() -> Tensor:
        return torch.autograd.grad(F.cross_entropy(net(x, edge_weights), labels), stem)[0]

    by_rules, along, losses = gradient(), torch.randn_like(stem), []
    with true_gradients(net):
        exact = gradient()
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            stem.add_(step * along)
            losses.append(F.cross_entropy(net(x, edge_weights), labels).item())
            stem.sub_(step * along)
    difference = (losses[0] - losses[1]) / 2e-6
    assert (exact * along).sum().item() == pytest.approx(difference, rel=1e-6)
    assert (by_rules * along).sum().item() != pytest.approx(difference, rel=1e-2)
    with held_feedback(net):
        near(gradient(), by_rules)


def test_the_plan_shows_rules_that_share() -> None:
    net = build(rules=("fa", "usf"), space="darts(nodes=1, operations=(none, sep_conv_3x3))")
    lines = str(net.cells[0].plan).splitlines()
    assert lines == [
        "node 0, stride 1, by edge 0 to node 2",
        "    sep_conv_3x3   stacked, joined   lane 0: fa + usf",
        "node 1, stride 1, by edge 1 to node 2",
        "    sep_conv_3x3   stacked, joined   lane 1: fa + usf",
    ]


@pytest.mark.parametrize(
    ("rule", "reason"), [("hebbian", "is local"), ("predictive", "is local"), ("dfa", "is direct")]
)
def test_rules_that_cannot_be_mixed_are_refused_with_the_reason(rule: str, reason: str) -> None:
    with pytest.raises(
        InputError, match=f"--rules {rule}.*--weights shared.*{reason}.*--weights own"
    ):
        build(rules=("usf", rule))


def test_operations_that_cannot_be_batched_are_refused() -> None:
    class Gated(torch.nn.Module):
        def __init__(self, channels: int, rule: object) -> None:
            super().__init__()
            self.conv = RuleConv2d(channels, channels, 1, bias=False, rule=rule)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) * x.sigmoid()

    @operation("gated_of_test")
    def gated(channels: int, stride: int, rule: object, supernet: bool) -> torch.nn.Module:
        return Gated(channels, rule)

    try:
        with pytest.raises(InputError, match=r"--weights shared: expected operations that can be"):
            build(space="nb201(operations=(none, gated_of_test))")
    finally:
        OPERATIONS.unregister("gated_of_test")


def test_operations_with_a_rule_of_their_own_are_refused() -> None:
    @operation("half_bp_of_test")
    def half_bp(channels: int, stride: int, rule: LearningRule, supernet: bool) -> torch.nn.Module:
        layers = [pointwise(channels, channels, each) for each in (rule, RULES.build("bp"))]
        return torch.nn.Sequential(torch.nn.ReLU(), *layers)

    try:
        expected = (
            r"all layers under the rule .* found layer edges\.0\.1\.2 of the cell cell under bp"
        )
        with pytest.raises(InputError, match=expected):
            build(space="nb201(operations=(none, half_bp_of_test))")
    finally:
        OPERATIONS.unregister("half_bp_of_test")


@pytest.mark.parametrize("shared", [None, "match"])
def test_a_checkpoint_holds_what_is_learned_drawn_and_measured_alone(shared: str | None) -> None:
    """Leave out what follows from the options (orders, masks, places): it is made anew from them."""
    net = build(shared=shared, partial=2)
    kept = set(net.state_dict()) - {name for name, _ in net.named_parameters()}
    measured = ("running_mean", "running_var", "num_batches_tracked")
    others = [name for name in kept if name.rsplit(".", 1)[1] not in measured]
    assert others
    assert all(name.rsplit(".", 1)[1].startswith("feedback_") for name in others)


def test_a_mixture_renews_what_its_rules_renew() -> None:
    net = build(rules=("fa", "brsf", "weight_mirror"))
    draw_feedback(net, 3)
    (mixed,) = net.feedback
    before = [{k: v.clone() for k, v in flat.feedback.items()} for flat in mixed.flat]
    draw_feedback(net, 3, update=1)
    changed = [
        any(not torch.equal(flat.feedback[k], v) for k, v in old.items())
        for flat, old in zip(mixed.flat, before, strict=True)
    ]
    assert changed == [False, True, True]
    mixture = RuleMixture((RULES.build("fa"), RULES.build("brsf")))
    assert mixture.renews
    assert mixture.spec == "fa + brsf"
