"""Learning rules in training loops of any kind: the same training in all, with nothing to call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler

from darts_bio import attach, convert, draw_feedback
from darts_bio.errors import InputError
from darts_bio.rules import RULES

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


def ruled(rule: str) -> nn.Module:
    return convert(plain(), {"7": "bp", "*": rule}, seed=3)


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, **options)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    after: Callable[[int], None] = lambda _: None,
) -> None:
    """The loop that every other one is compared with."""
    for t, (x, labels) in enumerate(zip(X, LABELS, strict=True)):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        after(t + 1)


def by_hand(rule: str) -> nn.Module:
    """What `draw_feedback` after each update makes of the net."""
    model = ruled(rule)
    train(model, sgd(model), lambda update: draw_feedback(model, 3, update))
    return model


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
    with pytest.raises(InputError, match="at least one optimizer"):
        attach(model, [])
    with pytest.raises(
        InputError, match="expected a model with learning rules, found a Sequential"
    ):
        attach(plain(), sgd(model))
    with pytest.raises(InputError, match=r"the state of 1 optimizer\(s\), found one of 2"):
        attach(model, sgd(model)).load_state_dict({"updates": [1, 2]})
