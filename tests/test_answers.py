"""A strategy that answers what no search can use is refused in one line, which names it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import darts_bio
from darts_bio.errors import InputError
from darts_bio.spaces import from_nb201_text
from darts_bio.strategies import (
    BLACK_BOX_STRATEGIES,
    STRATEGIES,
    AlphaState,
    BlackBoxState,
    BlackBoxStrategy,
    GradientStrategy,
    Strategy,
)
from darts_bio.strategies.entropy import Entropy

Weights = dict[str, torch.Tensor]
penalty = Entropy.penalty
mean, gradients = GradientStrategy.mean_weights, GradientStrategy.gradients


def every(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a `mean_weights` whose tensors are changed."""
    return lambda self, state: {t: change(weights) for t, weights in mean(self, state).items()}


def raising(*_: Any) -> None:
    raise KeyError("oops")


def in_place(self: Any, state: Any, found: Any) -> None:
    for parameter, gradient in zip(state.parameters.values(), found, strict=True):
        parameter.sub_(gradient)  # without torch.no_grad


SHAPES = r"normal \(2, 12\), reduce \(2, 13\)"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no weights": (
        {"mean_weights": lambda self, state: None},
        rf"edge_weights: expected a dict of tensors, {SHAPES}, found NoneType; return one from it, "
        r"or from what it calls \(mean_weights\)",
    ),
    "a list": (
        {"sampled_weights": lambda self, state: [1]},
        r"edge_weights: expected .* found list; .* \(sampled_weights\)",
    ),
    "one type of cell": (
        {"mean_weights": lambda self, state: {"normal": mean(self, state)["normal"]}},
        r"edge_weights: .* found {'normal': \(2, 12\)}",
    ),
    "fewer candidates": (
        {"mean_weights": every(lambda w: w[:, 1:])},
        r"found {'normal': \(2, 11\)",
    ),
    "double": (
        {"mean_weights": every(torch.Tensor.double)},
        r"edge_weights: expected tensors of torch.float32, .* found torch.float64",
    ),
    "arrays": ({"mean_weights": every(lambda w: w.detach().numpy())}, "{'normal': 'ndarray'"),
    "detached": ({"mean_weights": every(torch.detach)}, "expected a loss that depends on alpha"),
    "an error": (
        {"mean_weights": raising},
        r"gradients: expected it to return, found KeyError \('oops'\) at .*test_answers.py:\d+",
    ),
    "no strengths": ({"strengths": lambda self, state: None}, "final_weights: .* found NoneType"),
    "nan at the end": (
        {"final_weights": every(lambda w: w * torch.nan)},
        "final_weights: expected numbers to compare the candidates of normal by, found nan",
    ),
    "fewer edges at the end": ({"final_weights": every(lambda w: w[1:])}, r"'normal': \(1, 12\)"),
    "no gradients": ({"gradients": lambda self, state, bilevel: None}, "expected a pair"),
    "no logits": (
        {"gradients": lambda *given: (gradients(*given)[0], None)},
        r"expected the logits \(16, classes\) as the second of a pair, found None",
    ),
    "a gradient alone": (
        {"gradients": lambda *given: gradients(*given)[0]},
        r"gradients: expected the logits \(16, classes\) as the second of a pair, found \(2, 13\)",
    ),
    "gradients of None": (
        {"gradients": lambda *given: ([None, None], gradients(*given)[1])},
        r"expected a sequence of tensors as the first of a pair, found \[None, None\]",
    ),
    "fewer gradients": (
        {"gradients": lambda *given: (gradients(*given)[0][:1], gradients(*given)[1])},
        r"tensors as state.parameters, \[\(2, 12\), \(2, 13\)\], found \[\(2, 12\)\]",
    ),
    "alpha moved elsewhere": (
        {"move": lambda self, state, gradients: [-g for g in gradients]},
        "move: expected it to change alpha in place and to return nothing, found ",
    ),
    "an error of PyTorch": ({"move": in_place}, "move: expected it to return, found RuntimeError"),
    "no state": ({"begin": lambda self, context: None}, "begin: expected a StrategyState"),
    "no numbers": ({"end_epoch": lambda *given: None}, "end_epoch: expected a dict of numbers"),
    "words": ({"end_epoch": lambda *given: {"x": "y"}}, "end_epoch: expected a dict of numbers"),
    "one column": (
        {"drawn": lambda self, state: {"normal": [0]}},
        r"drawn: expected 2 columns for normal, or None, found {'normal': \[0\]}",
    ),
    "no candidate": (
        {"drawn": lambda self, state: {"normal": [0, 99], "reduce": [0, 0]}},
        r"drawn: expected columns of candidates, from 0 to 11, found \[0, 99\]",
    ),
    "neither yes nor no": ({"descends": lambda *given: None}, "descends: expected True or False"),
    "no penalty": (
        {"own_penalty": lambda *given: None},
        "own_penalty: expected a scalar, found No",
    ),
    "a vector": (
        {"own_penalty": lambda *given: torch.ones(3)},
        r"own_penalty: expected a scalar, found \(3,\)",
    ),
    "an endless warm-up": (
        {"warmup_share": lambda *given: 2.0},
        "expected a number of at least 0 and at most 1, found 2.0",
    ),
    "no share": ({"warmup_share": lambda *given: None}, "warmup_share: expected a number"),
    "no phase": (
        {"weight_phase": lambda *given: 3},
        "weight_phase: expected a WeightPhase or None",
    ),
    "no k": ({"partial": "a half"}, "partial: expected a whole number of at least 1"),
}
"""What a strategy has in place of its own, and what a search says of it."""


def beginning(**members: Any) -> dict[str, Any]:
    """Return a `begin` whose state has members of its own."""
    state = type("WrongState", (AlphaState,), {"__module__": __name__, **members})
    return {"begin": lambda self, context: state(self, context)}


WRONG |= {
    "no rates": (
        beginning(learning_rates=lambda self: None),
        "learning_rates: expected a dict of numbers",
    ),
    "nothing to save": (beginning(state_dict=lambda self: None), "state_dict: expected a dict"),
    "an array to save": (
        beginning(state_dict=lambda self: {"own": [1, numpy.zeros(3)]}),
        r"state_dict: expected tensors and plain values, .* at state_dict\['own'\]\[1\], found 'ndarray'",
    ),
    "a state without the base's": (
        beginning(__init__=lambda self, *given: None),
        "begin: expected a state that knows its context, found WrongState without; begin its __init__ ",
    ),
}

WRONG_QUERIES: dict[str, tuple[dict[str, Any], str]] = {
    "no state": ({"begin": lambda self, context: None}, "begin: expected a BlackBoxState, found N"),
    "no genotype": ({"propose": lambda self, state: None}, "propose: expected a Genotype, found N"),
    "cells alone": (
        {"propose": lambda self, state: state.drawn().cells},
        "propose: expected a Genotype, found {'normal': Cell",
    ),
    "of another space": (
        {
            "propose": lambda self, state: from_nb201_text(
                "|skip_connect~0|+|none~0|none~1|+|none~0|none~1|none~2|"
            )
        },
        "propose: genotype.cells: unknown cell type 'cell'",
    ),
    "an error": (
        {"observe": raising},
        r"observe: expected it to return, found KeyError \('oops'\) at .*test_answers.py:\d+",
    ),
    "no array": (
        {"begin": lambda self, context: OddState(context)},
        r"state_dict: .* at state_dict\['own'\], found 'ndarray'",
    ),
}
"""Likewise for a black-box strategy."""


class OddState(BlackBoxState):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "own": numpy.zeros(3)}


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """Registers a strategy "wrong", of some base, with members of its own."""

    def add(base: type, members: dict[str, Any]) -> None:
        STRATEGIES.register("wrong")(
            dataclass(frozen=True)(type("Wrong", (base,), {"__module__": __name__, **members}))
        )

    yield add
    STRATEGIES.unregister("wrong")


def search(out: Path, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return darts_bio.search(
            *("digits",),
            **{
                **{"strategy": "wrong", "space": "darts(nodes=1)", "rules": ("bp", "fa")},
                **{"layers": 3, "channels": 2, "train_images": 64, "batch_size": 16, "epochs": 1},
                **{"out": str(out), "progress": False, "tensorboard": False, **options},
            },
        )


@pytest.mark.parametrize("name", WRONG)
def test_an_answer_that_no_search_can_use(
    name: str, register: Callable[..., None], tmp_path: Path
) -> None:
    members, message = WRONG[name]
    register(GradientStrategy, members)
    with pytest.raises(InputError, match=f"^strategy wrong.*{message}") as caught:
        search(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", WRONG_QUERIES)
def test_an_answer_that_no_black_box_search_can_use(name: str, tmp_path: Path) -> None:
    members, message = WRONG_QUERIES[name]
    own = {"propose": lambda self, state: state.drawn(), "__module__": __name__, **members}
    own = {"begin": lambda self, context: BlackBoxState(context), **own}
    wrong = dataclass(frozen=True)(type("Wrong", (BlackBoxStrategy,), own))
    BLACK_BOX_STRATEGIES.register("wrong")(wrong)
    try:
        with pytest.raises(InputError, match=f"^strategy wrong.*{message}") as caught:
            search(tmp_path / "run", queries=2)
        assert "\n" not in str(caught.value)
    finally:
        BLACK_BOX_STRATEGIES.unregister("wrong")


def of_nan_from_step_3(self: Any, state: Any) -> Weights:
    moved = state.optimizer.state_dict()["state"]
    spoilt = moved and moved[0]["step"] >= 3
    return {
        t: weights * torch.nan if spoilt else weights for t, weights in mean(self, state).items()
    }


def of_a_log(self: Any, state: Any) -> Weights:
    """Weights that are nan where an alpha falls below zero."""
    return {t: logits.log() for t, logits in state.alpha.items()}


@pytest.mark.parametrize("own", [of_nan_from_step_3, of_a_log])
@pytest.mark.parametrize("log_every", [1, 50])
def test_edge_weights_that_become_nan_are_told_to_be_the_strategys(
    own: Any, log_every: int, register: Callable[..., None], tmp_path: Path
) -> None:
    """Also long after, when the loss, alpha and w are nan, too."""
    register(GradientStrategy, {"mean_weights": own})
    with pytest.raises(
        InputError,
        match=r"/loss is nan at step \d+: diverged; strategy wrong: edge_weights: expected finite .*"
        "; mend what it computes them from",
    ):
        search(tmp_path / "run", batch_size=4, log_every=log_every)


@pytest.mark.parametrize("strategy", ["wrong", "darts(order=2)", "random_paths"])
def test_a_learning_rate_that_is_too_large_is_not_put_down_to_the_strategy(
    strategy: str, register: Callable[..., None], tmp_path: Path
) -> None:
    register(GradientStrategy, {})
    with pytest.raises(
        InputError, match=r"at step \d+: diverged; --resume --rollbacks 3"
    ) as caught:
        search(tmp_path / "run", strategy=strategy, batch_size=4, lr=1e30, clip=0.0, log_every=50)
    assert "strategy" not in str(caught.value)


def test_nor_is_a_penalty_that_spoils_alpha(
    register: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Entropy, "penalty", lambda *given: penalty(*given) * torch.nan)
    register(GradientStrategy, {})
    with pytest.raises(InputError, match=r"at step \d+: diverged; --resume --rollbacks 3"):
        search(tmp_path / "run", batch_size=4, regularizers=("entropy",))


def test_a_method_that_is_missing(register: Callable[..., None], tmp_path: Path) -> None:
    register(Strategy, {})
    with pytest.raises(InputError, match="no begin, edge_weights, final_weights; write what is"):
        search(tmp_path / "a")
    STRATEGIES.unregister("wrong")
    own = {name: getattr(GradientStrategy, name) for name in ("begin", "edge_weights")}
    own |= {"mean_weights": mean, "sampled_weights": mean, "lr": 0.1, "betas": (0.5, 0.9)}
    own |= {"final_weights": mean, "with_edge_shares": lambda self, state, weights: weights}
    own |= {"weight_decay": 0.0, "init": 0.0, "descends": lambda self, state: True}
    register(Strategy, own)
    with pytest.raises(InputError, match="strategy wrong: expected a method gradients, found none"):
        search(tmp_path / "b")


def test_the_error_of_a_plugin_keeps_its_traceback(
    register: Callable[..., None], tmp_path: Path
) -> None:
    register(GradientStrategy, {"prepare": raising})
    with pytest.raises(InputError, match=r"prepare: .*KeyError \('oops'\)") as caught:
        search(tmp_path / "run")
    assert isinstance(caught.value.__cause__, KeyError)
