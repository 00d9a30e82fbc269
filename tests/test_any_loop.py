"""Learning rules in training loops of any kind: the same training in all, with nothing to call."""

from __future__ import annotations

import contextlib
import copy
import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from several import several
from tape import TapeRecorder
from torch import Tensor, nn
from torch.amp import GradScaler

from darts_bio import BatchManhattan, attach, audit, convert, draw_feedback, true_gradients
from darts_bio.config import RetrainConfig
from darts_bio.data.datasets import load_data
from darts_bio.errors import InputError
from darts_bio.networks.supernet import SuperNet
from darts_bio.process_group import process_group
from darts_bio.rules import RULES, learned_feedback, rule_layers
from darts_bio.spaces import SPACES, load_genotype
from darts_bio.training.optim import WeightOptimizer
from darts_bio.training.retrain import Retraining

RENEWING = [name for name in RULES if RULES.get(name).renews]
LOCAL = [name for name in RULES if RULES.get(name).local]
UPDATES, IMAGES = 4, 8

X = torch.randn(UPDATES, IMAGES, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(UPDATES * IMAGES).view(UPDATES, IMAGES) % 5


def plain() -> nn.Sequential:
    """A small net without batch norm, in which a batch may be split without a difference."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(54, 12), nn.ReLU(), nn.Linear(12, 5),
    )  # fmt: skip


def ruled(rule: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return convert(plain().to(dtype), {"7": "bp", "*": rule}, seed=3)


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, **options)


def halves(
    model: nn.Module, optimizer: torch.optim.Optimizer, share: slice, *, synchronized: bool = True
) -> None:
    """A loop that passes each batch in two parts, of which a process takes its share.

    `synchronized` says whether a DistributedDataParallel averages after each part.
    """
    for x, labels in zip(X.double(), LABELS, strict=True):
        optimizer.zero_grad()
        for number in (0, 1):
            part = slice(4 * number + share.start, 4 * number + share.stop)
            alone = number == 0 and not synchronized
            with model.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
                (F.cross_entropy(model(x[part]), labels[part]) / 2).backward()
        optimizer.step()


def process(number: int, rules: list[str]) -> None:
    """Train under each rule as one of two processes, in two parts of two images each."""
    with process_group():
        for rule in rules:
            for synchronized in (True, False):
                model = ruled(rule, torch.float64)
                whole = nn.parallel.DistributedDataParallel(model)
                optimizer = sgd(whole)
                attach(whole, optimizer, seed=3)
                share = slice(2 * number, 2 * number + 2)
                halves(whole, optimizer, share, synchronized=synchronized)
                if number == 1:
                    torch.save(whole.state_dict(), f"{rule} {synchronized}")


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    after: Callable[[int], None] = lambda _: None,
) -> None:
    """The loop that every other one is compared with."""
    dtype = next(model.parameters()).dtype
    for t, (x, labels) in enumerate(zip(X.to(dtype), LABELS, strict=True)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        after(t + 1)


def by_hand(rule: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """What `draw_feedback` after each update makes of the net."""
    model = ruled(rule, dtype)
    train(model, sgd(model), lambda update: draw_feedback(model, 3, update))
    return model


ROUNDING = 1e-12
"""Of four updates in float64, whose sums are taken in another order."""


def same(one: nn.Module, other: nn.Module, tolerance: float | None = None) -> None:
    """Compare all weights and feedback, bit for bit where there is no tolerance."""
    found = {k.removeprefix("module."): v for k, v in other.state_dict().items()}
    for name, value in one.state_dict().items():
        if tolerance is None:
            assert torch.equal(value, found[name]), name
        else:
            scale = float(value.abs().max())
            assert float((value - found[name]).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("rule", RENEWING)
class TestRenewal:
    def test_is_that_of_a_loop_which_calls_it(self, rule: str) -> None:
        model = ruled(rule)
        optimizer = sgd(model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        with attach(model, optimizer, seed=3):
            train(model, optimizer, lambda _: schedule.step())
        same(by_hand(rule), model)

    def test_goes_on_after_a_checkpoint(self, rule: str, tmp_path: Path) -> None:
        model = ruled(rule)
        optimizer = sgd(model)
        attached = attach(model, optimizer, seed=3)
        states: list[Any] = []

        def keep(update: int) -> None:
            if update == 2:
                torch.save([o.state_dict() for o in (model, optimizer, attached)], tmp_path / "x")

        train(model, optimizer, keep)
        states = torch.load(tmp_path / "x", weights_only=True)
        resumed = ruled(rule)
        optimizer = sgd(resumed)
        attached = attach(resumed, optimizer, seed=3)
        for each, state in zip((resumed, optimizer, attached), states, strict=True):
            each.load_state_dict(state)
        for x, labels in zip(X[2:], LABELS[2:], strict=True):
            optimizer.zero_grad()
            F.cross_entropy(resumed(x), labels).backward()
            optimizer.step()
        same(model, resumed)

    @pytest.mark.parametrize("fused", [False, True])
    def test_leaves_out_steps_that_a_scaler_leaves_out(self, rule: str, fused: bool) -> None:
        model = ruled(rule)
        optimizer, scaler = sgd(model, fused=fused), GradScaler("cpu", init_scale=2.0**16)
        attached = attach(model, optimizer, seed=3)
        drawn: list[dict[str, Tensor]] = []
        for t, factor in enumerate((1.0, float("inf"), 1.0)):
            optimizer.zero_grad()
            loss = factor * F.cross_entropy(model(X[t]), LABELS[t])
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            drawn.append({k: v.clone() for k, v in model.state_dict().items() if "feedback" in k})
        assert attached.state_dict() == {"updates": [2]}
        assert all(torch.equal(value, drawn[1][name]) for name, value in drawn[0].items())
        assert not any(torch.equal(value, drawn[2][name]) for name, value in drawn[0].items())

    def test_of_several_optimizers_each_renews_what_it_updates(self, rule: str) -> None:
        model = ruled(rule)
        parts = [sgd(nn.ModuleList(model[:3])), sgd(nn.ModuleList(model[3:]))]  # type: ignore[index]
        attach(model, parts, seed=3)
        for x, labels in zip(X, LABELS, strict=True):
            model.zero_grad()
            F.cross_entropy(model(x), labels).backward()
            for optimizer in parts:
                optimizer.step()
        same(by_hand(rule), model)

    def test_ends_as_it_is_removed(self, rule: str) -> None:
        model = ruled(rule)
        optimizer = sgd(model)
        attached = attach(model, optimizer, seed=3)
        attached.remove()
        before = {k: v.clone() for k, v in model.state_dict().items() if "feedback" in k}
        with pytest.warns(UserWarning, match="was not renewed"):
            train(model, optimizer)
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())

    def test_forgotten_is_said_once(self, rule: str) -> None:
        model = ruled(rule)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("default")
            train(model, sgd(model))
            train(model, sgd(model))
        (warning,) = said
        assert str(warning.message).startswith(f"{rule} renews its feedback after each weight")
        assert "call darts_bio.attach(model, optimizer) before the loop" in str(warning.message)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_forgotten_for_a_copy_is_said(self, rule: str, copied: Callable[[Any], Any]) -> None:
        """Nobody renews the feedback of a copy of a model that was attached."""
        model = ruled(rule)
        optimizer = sgd(model)
        attach(model, optimizer, seed=3)
        train(model, optimizer)
        other = copied(model)
        with pytest.warns(UserWarning, match="was not renewed"):
            train(other, sgd(other))

    def test_forgotten_for_a_second_optimizer_is_said(self, rule: str) -> None:
        """As where training goes on with another one."""
        model = ruled(rule)
        first = sgd(model)
        attach(model, first, seed=3)
        train(model, first)
        with pytest.warns(UserWarning, match="was not renewed"):
            train(model, sgd(model))

    def test_passes_within_a_step(self, rule: str) -> None:
        """LBFGS changes weights between them; its step is one update, which is renewed for."""
        model = ruled(rule)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=5)
        attached = attach(model, optimizer, seed=3)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(X[0]), LABELS[0])
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        for _ in range(2):
            optimizer.step(closure)
        assert attached.state_dict() == {"updates": [2]}

    def test_attached_twice(self, rule: str) -> None:
        """As by a cell of a notebook that is run again; it would be renewed twice a step."""
        model = ruled(rule)
        optimizer = sgd(model)
        attached = attach(model, optimizer, seed=3)
        with pytest.raises(InputError, match="found one that is: feedback would be renewed twice"):
            attach(model, [sgd(model), optimizer])
        attach(model, sgd(model)).remove()
        attached.remove()
        attach(model, optimizer, seed=3)

    def test_it_says_what_it_serves(self, rule: str) -> None:
        model = ruled(rule)
        first, last = (torch.optim.SGD(model[i].parameters(), lr=0.1) for i in (0, 7))
        attached = attach(model, [first, last], seed=3)
        train(model, first)
        layers = f"3 {RULES.spec(RULES.build(rule))}, 1 bp"
        assert repr(attached) == f"Attached(layers: {layers}; updates: {UPDATES}, 0)"

    def test_nothing_is_said_where_no_update_was_made(self, rule: str) -> None:
        """Gradients alone, or updates between passes that learn nothing."""
        model = ruled(rule)
        for x, labels in zip(X, LABELS, strict=True):
            F.cross_entropy(model(x), labels).backward()
        optimizer = sgd(model.eval())
        train(model, optimizer)


def test_what_cannot_be_attached() -> None:
    model = ruled("brsf")
    with pytest.raises(
        InputError, match=r"expected a torch.optim.Optimizer, or several, found int"
    ):
        attach(model, [1])  # type: ignore[list-item]
    with pytest.raises(InputError, match="or several, found float"):
        attach(model, 0.1)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="holds none of them; make it from the converted model"):
        attach(model, sgd(ruled("brsf")))
    with pytest.raises(InputError, match="at least one optimizer"):
        attach(model, [])
    with pytest.raises(
        InputError, match="expected a model with learning rules, found a Sequential"
    ):
        attach(plain(), sgd(model))
    with pytest.raises(InputError, match=r"the state of 1 optimizer\(s\), found one of 2"):
        attach(model, sgd(model)).load_state_dict({"updates": [1, 2]})
    for wrong in ({}, None, {"updates": 3}):
        with pytest.raises(InputError, match=r"expected the state that Attached.state_dict\(\)"):
            attach(model, sgd(model)).load_state_dict(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"attach: expected a torch.nn.Module, found NoneType"):
        attach(None, sgd(model))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("processes")
    ended = several(2, process, list(RULES), place=place)
    assert [each.code for each in ended] == [0, 0], ended
    return place


@pytest.mark.parametrize("rule", RULES)
class TestTheSameTraining:
    """Every loop ends with the weights of `train`, in which `draw_feedback` is called."""

    @pytest.mark.parametrize("fused", [False, True])
    def test_under_a_scaler(self, rule: str, fused: bool) -> None:
        """Bit for bit, since the scale is a power of two."""
        model, expected = ruled(rule), ruled(rule)
        plainly = sgd(expected, fused=fused)
        train(expected, plainly, lambda update: draw_feedback(expected, 3, update))
        optimizer, scaler = sgd(model, fused=fused), GradScaler("cpu", init_scale=2.0**16)
        attach(model, optimizer, seed=3, scaler=scaler)
        for x, labels in zip(X, LABELS, strict=True):
            optimizer.zero_grad()
            scaler.scale(F.cross_entropy(model(x), labels)).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
        same(expected, model)

    @pytest.mark.parametrize("set_to_none", [True, False])
    def test_in_parts_under_a_scaler_and_clipped(self, rule: str, set_to_none: bool) -> None:
        model = ruled(rule, torch.float64)
        expected = copy.deepcopy(model)
        optimizer = sgd(expected)
        for t, (x, labels) in enumerate(zip(X.double(), LABELS, strict=True)):
            optimizer.zero_grad()
            F.cross_entropy(expected(x), labels).backward()
            clip(expected, 0.01)
            optimizer.step()
            draw_feedback(expected, 3, t + 1)
        optimizer, scaler = sgd(model), GradScaler("cpu", init_scale=2.0**16)
        attach(model, optimizer, seed=3, scaler=scaler)
        for x, labels in zip(X.double(), LABELS, strict=True):
            optimizer.zero_grad(set_to_none=set_to_none)
            for part, its_labels in zip(x.chunk(4), labels.chunk(4), strict=True):
                scaler.scale(F.cross_entropy(model(part), its_labels) / 4).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            clip(model, 0.01)
            scaler.step(optimizer)
            scaler.update()
        same(expected, model, ROUNDING)

    def test_in_parts(self, rule: str) -> None:
        model = ruled(rule, torch.float64)
        optimizer = sgd(model)
        attach(model, optimizer, seed=3)
        halves(model, optimizer, slice(0, 4))
        same(by_hand(rule, torch.float64), model, ROUNDING)

    @pytest.mark.parametrize("synchronized", [True, False])
    def test_by_two_processes(self, rule: str, synchronized: bool, of_two_processes: Path) -> None:
        found = ruled(rule, torch.float64)
        state = torch.load(of_two_processes / f"{rule} {synchronized}", weights_only=True)
        found.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})
        same(by_hand(rule, torch.float64), found, ROUNDING)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_batch_manhattan(rule: str, fused: bool) -> None:
    """Liao 2016: v <- m v + sign(g) + d w, w <- w - lr v; under a scaler, and in parts, whose
    gradient is one before its sign is taken.
    """
    model, expected = ruled(rule, torch.float64), ruled(rule, torch.float64)
    velocities = {name: torch.zeros_like(p) for name, p in expected.named_parameters()}
    for t, (x, labels) in enumerate(zip(X.double(), LABELS, strict=True)):
        expected.zero_grad()
        for part, its_labels in zip(x.chunk(2), labels.chunk(2), strict=True):
            (F.cross_entropy(expected(part), its_labels) / 2).backward()
        with torch.no_grad():
            for name, w in expected.named_parameters():
                if w.grad is not None:
                    v = velocities[name]
                    v.copy_(0.9 * v + w.grad.sign() + 0.01 * w)
                    w.sub_(1e-3 * v)
        draw_feedback(expected, 3, t + 1)
    optimizer = BatchManhattan(
        model.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.01, fused=fused
    )
    scaler = GradScaler("cpu", init_scale=2.0**16)
    attach(model, optimizer, seed=3, scaler=scaler)
    for x, labels in zip(X.double(), LABELS, strict=True):
        optimizer.zero_grad()
        for part, its_labels in zip(x.chunk(2), labels.chunk(2), strict=True):
            scaler.scale(F.cross_entropy(model(part), its_labels) / 2).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
    same(expected, model, ROUNDING)


def clip(model: nn.Module, bound: float) -> None:
    """Clip by the norm of the weights alone, as the README says it."""
    feedback = set(learned_feedback(model))
    grads = [p.grad for p in model.parameters() if p.grad is not None and p not in feedback]
    nn.utils.clip_grads_with_norm_(model.parameters(), bound, nn.utils.get_total_norm(grads))


def heard(model: nn.Module, optimizer: Any) -> list[str]:
    """Warnings of `attach`."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        attach(model, optimizer)
    return [str(warning.message) for warning in said]


def apart(model: nn.Module, **options: float) -> list[dict[str, Any]]:
    """Groups of weights and of feedback, the latter with options of its own."""
    feedback = learned_feedback(model)
    weights = [p for p in model.parameters() if not any(p is f for f in feedback)]
    return [{"params": weights}, {"params": feedback, **options}]


class TestFeedbackThatCannotLearn:
    """`attach` says so once for a model: it would train on, by feedback that does not near W."""

    @pytest.mark.parametrize("rule", [name for name in RULES if RULES.get(name).learned])
    def test_left_out_of_the_optimizer(self, rule: str) -> None:
        model = ruled(rule)
        (text,) = heard(model, torch.optim.SGD(apart(model)[0]["params"], 0.1, weight_decay=0.01))
        assert re.search(r"learned feedback \(0.feedback_\w+, and \d more\), which so stays", text)
        assert text.endswith("put darts_bio.rules.learned_feedback(model) into the weights' group")
        assert "\n" not in text

    @pytest.mark.parametrize("rule", ["kolen_pollack", "pfa"])
    @pytest.mark.parametrize("options", [{"weight_decay": 0.0}, {"lr": 0.01}, {"lr_scale": 0.5}])
    def test_in_a_group_of_other_steps(self, rule: str, options: dict[str, float]) -> None:
        model = ruled(rule)
        (text,) = heard(model, torch.optim.SGD(apart(model, **options), 0.1, weight_decay=0.01))
        rate = options.get("lr", 0.1) * options.get("lr_scale", 1.0)
        steps = f"steps of SGD(lr={rate:g}, weight_decay={options.get('weight_decay', 0.01):g})"
        assert f"{steps}, its weight of SGD(lr=0.1, weight_decay=0.01), and 2 more" in text
        assert text.endswith("put both into one group")

    def test_in_another_optimizer(self) -> None:
        model = ruled("kolen_pollack")
        weights, feedback = apart(model)
        parts = [torch.optim.AdamW([weights]), torch.optim.SGD([feedback], 1e-3, weight_decay=0.01)]
        (text,) = heard(model, parts)
        assert "SGD(lr=0.001, weight_decay=0.01), its weight of AdamW(lr=0.001" in text

    @pytest.mark.parametrize("rule", ["kolen_pollack", "pfa"])
    def test_without_weight_decay(self, rule: str) -> None:
        model = ruled(rule)
        (text,) = heard(model, torch.optim.Adam(model.parameters()))
        assert re.search(r"0.feedback_\w+, and 2 more have weight decay 0", text)
        assert text.endswith("without it the angle between them narrows and does not close")
        one = convert(plain(), {"0": rule, "*": "bp"})
        (text,) = heard(one, torch.optim.Adam(one.parameters()))
        assert re.search(r"attach: 0.feedback_\w+ has weight decay 0", text)

    @pytest.mark.parametrize("rule", RULES)
    def test_nothing_is_said_where_both_go_together(self, rule: str) -> None:
        model = ruled(rule)
        groups = [
            {"params": layer.parameters(), "lr": 0.1 / (number + 1)}
            for number, layer in enumerate(model.children())
            if any(True for _ in layer.parameters())
        ]
        optimizer = torch.optim.SGD(groups, weight_decay=0.01)
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 0.0)  # a warm-up from 0
        assert heard(model, optimizer) == []

    def test_nothing_is_said_of_what_does_not_learn(self) -> None:
        model = ruled("kolen_pollack")
        readout = model.get_submodule("7")
        assert heard(model, torch.optim.SGD(readout.parameters(), 0.1)) == []
        other = ruled("dkp")  # which takes no decay of the weight
        assert heard(other, torch.optim.SGD(other.parameters(), 0.1)) == []


class TestKolenPollack:
    def test_clipping_by_the_readme_is_that_of_the_weights(self) -> None:
        """The last layers' gradients do not depend on the rule: there the factor shows."""
        models = [ruled(rule, torch.float64) for rule in ("fa", "kolen_pollack")]
        models[1].load_state_dict(models[0].state_dict())  # the same feedback
        for model in models:
            F.cross_entropy(model(X[0].double()), LABELS[0]).backward()
            clip(model, 0.01)
        for name, parameter in models[0].named_parameters():
            assert parameter.grad is not None
            own = models[1].get_parameter(name).grad
            assert own is not None
            assert torch.allclose(own, parameter.grad, rtol=1e-10, atol=0)
        total = nn.utils.get_total_norm([p.grad for p in models[0].parameters()])  # type: ignore[misc]
        assert float(total) == pytest.approx(0.01, rel=1e-4)

    @pytest.mark.parametrize("scale", ["init", "match"])
    def test_feedback_of_a_frozen_weight_is_frozen(self, scale: str) -> None:
        model = ruled(f"kolen_pollack(scale={scale})")
        frozen = model.get_submodule("2")
        frozen.get_parameter("weight").requires_grad_(requires_grad=False)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        train(model, sgd(model))
        moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        assert moved.isdisjoint({"2.weight", "2.feedback_kernel"})
        assert {"0.weight", "0.feedback_kernel", "2.bias", "5.feedback_kernel"} <= moved

    @pytest.mark.parametrize("rule", ["kolen_pollack", *LOCAL])
    def test_ties_with_an_embedding_and_with_a_layer_without_a_rule(self, rule: str) -> None:
        for other in (nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)):
            tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 7, bias=False), other)
            tied[1].weight = other.weight
            with pytest.raises(InputError, match=rf"1 and 2 share their weight, and {rule} is not"):
                convert(tied, {"1": rule})
            convert(tied, {"0": rule})
            convert(tied, {"1": "fa"})


def updates_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What local rules want of their weights, by a pass of a fresh copy."""
    model = copy.deepcopy(model)
    model(x).sum().backward()
    return [layer.weight.grad for _, layer in rule_layers(model) if layer.rule.local]  # type: ignore[misc]


@pytest.mark.parametrize("rule", LOCAL)
class TestUnitOfAnUpdate:
    def test_the_rule_is_a_mean_over_samples(self, rule: str) -> None:
        """Which is what makes the unit one: of the whole net, whose layers pass on what they see."""
        model, x = ruled(rule, torch.float64), X[0].double()
        one_by_one = [updates_of(model, sample) for sample in x.split(1)]
        for whole, *parts in zip(updates_of(model, x), *one_by_one, strict=True):
            assert torch.allclose(whole, torch.stack(parts).mean(0), rtol=1e-11, atol=1e-14)

    @pytest.mark.parametrize(
        "again",
        [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: convert(m, {"0": "fa"})],
    )
    def test_a_copy_has_its_own(self, rule: str, again: Callable[[nn.Module], nn.Module]) -> None:
        model = again(ruled(rule, torch.float64))
        expected = updates_of(model, X[0].double())
        for part in X[0].double().chunk(4):
            (3 * model(part).sum()).backward()
        found = [layer.weight.grad for _, layer in rule_layers(model) if layer.rule.local]
        assert len(found) >= 2
        for one, other in zip(found, expected, strict=True):
            assert one is not None
            assert torch.allclose(one, other, rtol=1e-11, atol=1e-14)

    def test_a_gradient_that_is_asked_for_is_no_part_of_the_mean(self, rule: str) -> None:
        model, x = ruled(rule, torch.float64), X[0].double()
        first = model.get_submodule("0").get_parameter("weight")
        (expected, *_) = updates_of(model, x)
        for part in x.chunk(2):
            (asked,) = torch.autograd.grad(model(x).sum(), [first])
            assert torch.equal(asked, expected)
            model(part).sum().backward()
        assert first.grad is not None
        assert torch.allclose(first.grad, expected, rtol=1e-11, atol=1e-14)

    def test_exact_gradients_add_up_as_ever(self, rule: str) -> None:
        model, reference = ruled(rule, torch.float64), plain().double()
        for part in X[0].double().chunk(2):
            reference(part).sum().backward()
            with true_gradients(model):
                model(part).sum().backward()
        for layer, own in zip(model.parameters(), reference.parameters(), strict=True):
            assert layer.grad is not None
            assert own.grad is not None
            assert torch.allclose(layer.grad, own.grad, rtol=1e-11, atol=1e-12)

    @pytest.mark.parametrize("records", [False, True])
    def test_our_own_engine_takes_the_mean_too(self, rule: str, records: bool) -> None:
        model, x = ruled(rule, torch.float64), X[0].double()
        expected = updates_of(model, x)
        run = TapeRecorder(tapes=False)
        run.records = records
        optimizer = WeightOptimizer(
            model, RetrainConfig(genotype="x", lr=0.0, weight_decay=0.0), run
        )
        for _ in range(2):  # the second time with the gradients of the first in place
            optimizer.differentiate(model(part).sum() / 4 for part in x.chunk(4))
            found = [layer.weight.grad for _, layer in rule_layers(model) if layer.rule.local]
            for one, other in zip(found, expected, strict=True):
                assert one is not None
                assert torch.allclose(one, other, rtol=1e-11, atol=1e-14)


def retrained(rule: str, accumulate: int) -> dict[str, Tensor]:
    """The weights after three steps of our own engine, in as many parts or processes as there are."""
    config = RetrainConfig(
        genotype="x", epochs=1, channels=4, layers=3, batch_size=16, lr=0.05, cutout=0, auxiliary=0.0,
        drop_path=0.0, crop_padding=0, flip=False, accumulate=accumulate, clip=0.0,
    )  # fmt: skip
    genotype = load_genotype("darts_v2").with_rule(rule)
    data = load_data("digits", train_images=48)
    task = Retraining.of_genotype(config, genotype, data, torch.device("cpu"))
    task.begin_epoch(0)
    for t in range(3):
        task.step(t)
    return {name: value.detach() for name, value in task.network.named_parameters()}


def retraining_process(number: int, rule: str) -> None:
    with process_group():
        weights = retrained(rule, 1)
    if number == 1:
        torch.save(weights, "weights")


@pytest.mark.parametrize("rule", LOCAL)
def test_the_engine_in_two_parts_is_two_processes(rule: str, tmp_path: Path) -> None:
    """Batch norm sees the same halves in both. They were up to 46 % apart where parts added up."""
    ended = several(2, retraining_process, rule, place=tmp_path)
    assert [each.code for each in ended] == [0, 0], ended
    found = torch.load(tmp_path / "weights", weights_only=True)
    for name, weight in retrained(rule, 2).items():
        assert torch.allclose(weight, found[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("rule", LOCAL)
def test_a_scaler_that_was_not_handed_over(rule: str, fused: bool) -> None:
    model = ruled(rule)
    optimizer, scaler = sgd(model, fused=fused), GradScaler("cpu", init_scale=2.0**16)
    attach(model, optimizer)
    scaler.scale(model(X[0]).sum()).backward()  # type: ignore[no-untyped-call]
    with pytest.raises(InputError, match="a local rule was divided by 65536, as a GradScaler does"):
        scaler.step(optimizer)


@pytest.mark.parametrize("scale", [1.0, 2.0**16])
@pytest.mark.parametrize("rule", LOCAL)
def test_a_scaler_where_nothing_is_attached(rule: str, scale: float) -> None:
    """Is said once, in the pass after the first update; parts of a batch and no scale are fine."""
    model = ruled(rule)
    optimizer, scaler = sgd(model), GradScaler("cpu", init_scale=scale)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for x, labels in zip(X, LABELS, strict=True):
            optimizer.zero_grad()
            for part, its_labels in zip(x.chunk(2), labels.chunk(2), strict=True):
                scaler.scale(F.cross_entropy(model(part), its_labels)).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
    texts = [str(warning.message) for warning in said]
    assert len(texts) == (scale > 1)
    assert all(t.startswith(f"{rule}: its update was divided by 65536, as a Grad") for t in texts)


def test_a_readout_under_a_local_rule_is_said() -> None:
    """It sees no labels. Layers below may be under such rules, and the readout itself under others."""
    model = convert(plain(), "hebbian")
    with pytest.warns(
        UserWarning, match=r'7, the last weight, learns by hebbian.*{"7": "bp", "\*"'
    ):
        attach(model, sgd(model))
    x = torch.zeros(1, 3, 8, 8)
    said = "7, the last weight, learns by hebbian, which sees no labels"
    assert said in str(audit(model, x))
    for rules in ({"7": "bp", "*": "hebbian"}, "fa"):
        other = convert(plain(), rules)
        attach(other, sgd(other))
        assert "labels" not in str(audit(other, x))


def test_what_a_scaler_cannot_be() -> None:
    model = ruled("hebbian")
    with pytest.raises(InputError, match="scaler: expected a torch.amp.GradScaler, found str"):
        attach(model, sgd(model), scaler="x")  # type: ignore[arg-type]
    space = SPACES.build("darts(nodes=1, operations=(none, sep_conv_3x3))")
    supernet = SuperNet(space, ["fa", "hebbian"], channels=2, layers=3, num_classes=5)
    with pytest.raises(InputError, match="learns many layers at once by hebbian, which does not"):
        attach(supernet, sgd(supernet), scaler=GradScaler("cpu"))
