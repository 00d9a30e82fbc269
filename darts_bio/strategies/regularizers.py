"""Regularizers of a search: what keeps alpha from running after the weights' whims. Any number goes
with any strategy.

They are registered by name in `REGULARIZERS` and given as `--regularizers
"skip_stop(most=2),entropy(weight=0.1)"`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

from darts_bio.errors import InputError, check_number, check_whole, unknown_name
from darts_bio.networks import EdgeWeights
from darts_bio.registry import Registry
from darts_bio.spaces import Cell
from darts_bio.strategies.alpha import grouped_by_operation
from darts_bio.strategies.base import STRATEGIES, Context, Strategy, StrategyState
from darts_bio.strategies.gradient import AlphaState, GradientStrategy


class Lookout(Protocol):
    """What a regularizer sees of a search after an epoch."""

    strategy: Strategy[Any]
    strategy_state: StrategyState

    def cells(self) -> dict[str, Cell]:
        """Returns what would be derived now, per cell type."""

    def validation_loss(self, edge_weights: EdgeWeights) -> Tensor:
        """Returns the exact loss on a validation batch, the same at each call, differentiable in
        the edge weights.
        """


class RegularizerState:
    """What a regularizer keeps in a search; nothing, unless a subclass says otherwise."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed search needs, as tensors and plain values only."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Puts back what `state_dict` returned."""


R = TypeVar("R", bound=RegularizerState)


class Regularizer(Generic[R]):
    """Does nothing; subclasses override what they are about.

    Subclasses are frozen dataclasses, whose fields are their options, registered by name in
    `REGULARIZERS`. `begin` makes the state of one search, and the other methods are given that
    state.
    """

    warmup_epochs: ClassVar[int | None] = None
    """Epochs in which alpha is not moved, if the regularizer has a say in it."""

    factorised: ClassVar[bool] = False
    """Whether alpha is to be operation times rule given the operation."""

    @property
    def where(self) -> str:
        """What an error message begins with."""
        return f"regularizer {REGULARIZERS.name_of(self)}"

    def begin(self, context: Context) -> R:
        """Makes the state of a new search. Raises InputError if the regularizer does not go with
        that search.
        """
        return RegularizerState()  # type: ignore[return-value]

    def accept(self, strategy: Strategy[Any]) -> None:
        """Raises InputError if it cannot go with this strategy."""

    def penalty(self, state: R, shares: EdgeWeights) -> Tensor | float:
        """Returns what is added to the loss that alpha follows; shares (..., edges, candidates) to
        (...).
        """
        return 0.0

    def alpha_penalty(self, state: R, alpha: Mapping[str, Tensor]) -> Tensor | float:
        """Returns what is added to that loss for alpha itself, the logits (edges, candidates) per
        cell type.

        Asked where a strategy moves alpha along a gradient; individuals that are only measured have
        no alpha.
        """
        return 0.0

    def after_epoch(self, state: R, epoch: int, search: Lookout) -> tuple[bool, dict[str, float]]:
        """Returns whether the search is to stop, and numbers for the records."""
        return False, {}


REGULARIZERS: Registry[type[Regularizer[Any]]] = Registry("regularizer")


@REGULARIZERS.register("warmup")
@dataclass(frozen=True)
class Warmup(Regularizer[RegularizerState]):
    """Alpha stays as it is for the first epochs (in place of the strategy's own share of them)."""

    epochs: int = 15

    def __post_init__(self) -> None:
        check_whole(f"{self.where}: epochs", self.epochs, 0)

    @property
    def warmup_epochs(self) -> int:  # type: ignore[override]
        return self.epochs

    def begin(self, context: Context) -> RegularizerState:
        if self.epochs >= context.epochs:
            raise InputError(
                f"{self.where}: epochs: expected fewer than the {context.epochs} of the search, "
                f"found {self.epochs}; "
                f"use warmup(epochs={context.epochs - 1}) or more --epochs"
            )
        return super().begin(context)


@REGULARIZERS.register("factorised")
@dataclass(frozen=True)
class Factorised(Regularizer[RegularizerState]):
    """Alpha as operation times rule given the operation, so that many rules do not outweigh one
    operation.
    """

    factorised = True


Level = Literal["pair", "operation", "rule"]


class EntropyState(RegularizerState):
    """Which candidates are of which operation: (edges, candidates, operations) bool per cell
    type.
    """

    def __init__(self, context: Context) -> None:
        self.members = {
            t: grouped_by_operation(rows).to(context.device)
            for t, rows in context.table.rows.items()
        }


@REGULARIZERS.register("entropy")
@dataclass(frozen=True)
class Entropy(Regularizer[EntropyState]):
    """Adds weight times the mean entropy of the edges' shares: of pairs, of operations, or of rules
    given these.

    A positive weight drives alpha to single candidates, a negative one keeps it even.
    """

    weight: float = 0.1
    level: Level = "pair"

    def __post_init__(self) -> None:
        weight = self.weight
        if (
            isinstance(weight, bool)
            or not isinstance(weight, (int, float))
            or not abs(weight) < float("inf")
        ):
            raise InputError(f"{self.where}: weight: expected a number, found {weight!r}")
        if self.level not in get_args(Level):
            raise unknown_name("level of the entropy regularizer", str(self.level), get_args(Level))

    def begin(self, context: Context) -> EntropyState:
        return EntropyState(context)

    def penalty(self, state: EntropyState, shares: EdgeWeights) -> Tensor:
        entropies = []
        for t, own in shares.items():
            normalised = own / own.sum(-1, keepdim=True)
            pairs = _entropy(normalised)
            operations = _entropy(
                torch.einsum("...ec,eco->...eo", normalised, state.members[t].to(own))
            )
            # H(operation, rule) = H(operation) + H(rule | operation)
            entropies.append(
                {"pair": pairs, "operation": operations, "rule": pairs - operations}[self.level]
            )
        return self.weight * torch.cat(entropies, dim=-1).mean(-1)


def _entropy(shares: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return -torch.special.xlogy(shares, shares.clamp_min(torch.finfo(shares.dtype).tiny)).sum(-1)


@REGULARIZERS.register("skip_stop")
@dataclass(frozen=True)
class SkipStop(Regularizer[RegularizerState]):
    """Stops once the normal cell would have that many skip connections (DARTS+, Liang 2019, arXiv
    1909.06035).
    """

    most: int = 2

    def __post_init__(self) -> None:
        check_whole(f"{self.where}: most", self.most)

    def after_epoch(
        self, state: RegularizerState, epoch: int, search: Lookout
    ) -> tuple[bool, dict[str, float]]:
        cell = next(
            iter(search.cells().values())
        )  # the first type is the one that most layers have
        skips = sum(edge.candidate.op == "skip_connect" for edge in cell.edges)
        return skips >= self.most, {"regularizer/skips": float(skips)}


class EigenvalueState(RegularizerState):
    """The eigenvalues measured so far, and alpha's parameters at the last measurements."""

    def __init__(self) -> None:
        self.measured: list[float] = []
        self.snapshots: list[dict[str, Tensor]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"measured": list(self.measured), "snapshots": list(self.snapshots)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.measured, self.snapshots = list(saved["measured"]), list(saved["snapshots"])


@REGULARIZERS.register("eigenvalue_stop")
@dataclass(frozen=True)
class EigenvalueStop(Regularizer[EigenvalueState]):
    """Stops when the dominant eigenvalue of the validation loss' Hessian in alpha has grown (Zela
    2020, 1909.09656).

    It is measured every few epochs. Once its mean over a window exceeds `factor` times the mean
    `lag` measurements before, the search ends with the alpha of then.
    """

    factor: float = 1.3
    window: int = 5
    lag: int = 4
    every: int = 1

    def __post_init__(self) -> None:
        check_number(f"{self.where}: factor", self.factor, above=0)
        for option in ("window", "lag", "every"):
            check_whole(f"{self.where}: {option}", getattr(self, option))

    def begin(self, context: Context) -> EigenvalueState:
        return EigenvalueState()

    def accept(self, strategy: Strategy[Any]) -> None:
        if not isinstance(strategy, GradientStrategy):
            raise InputError(
                f"{self.where}: expected a strategy that moves alpha along a gradient, found "
                f"{STRATEGIES.name_of(strategy)}; leave the regularizer out"
            )

    def after_epoch(
        self, state: EigenvalueState, epoch: int, search: Lookout
    ) -> tuple[bool, dict[str, float]]:
        strategy, alpha = search.strategy, search.strategy_state
        assert isinstance(strategy, GradientStrategy)
        assert isinstance(alpha, AlphaState)
        if (epoch + 1) % self.every:
            return False, {}
        measured = state.measured
        measured.append(dominant_eigenvalue(strategy, alpha, search.validation_loss))
        state.snapshots = [*state.snapshots, alpha.values()][-self.lag - 1 :]
        numbers = {"regularizer/eigenvalue": measured[-1]}
        if len(measured) <= self.lag:
            return False, numbers
        now, then = (
            _mean_of_last(measured[: len(measured) - back], self.window) for back in (0, self.lag)
        )
        if now <= self.factor * then:
            return False, numbers
        alpha.put(state.snapshots[0])
        return True, numbers


def _mean_of_last(values: list[float], window: int) -> float:
    last = values[-window:]
    return sum(last) / len(last)


STEP_OF_DIFFERENCES = 1e-2


def dominant_eigenvalue(
    strategy: GradientStrategy, state: AlphaState, loss: Callable[[EdgeWeights], Tensor]
) -> float:
    """Find the largest eigenvalue of the Hessian of `loss(edge weights)` in alpha, to about 1 %.

    Its products with vectors are central differences of gradients, since rules have no second
    derivative.
    """
    parameters = list(state.parameters.values())
    before = state.values()
    sizes = [parameter.numel() for parameter in parameters]

    def gradient_at(offset: Tensor) -> Tensor:
        pieces = zip(before.items(), offset.split(sizes), strict=True)
        state.put({name: value + piece.view_as(value) for (name, value), piece in pieces})
        gradients = torch.autograd.grad(loss(strategy.mean_weights(state)), parameters)
        return torch.cat([gradient.flatten() for gradient in gradients])

    def product(unit: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(unit).to(parameters[0])
        plus, minus = (gradient_at(sign * STEP_OF_DIFFERENCES * direction) for sign in (1, -1))
        return (plus - minus).double().cpu().numpy() / (2 * STEP_OF_DIFFERENCES)

    try:
        return largest_eigenvalue(product, sum(sizes))
    finally:
        state.put(before)


def largest_eigenvalue(
    product: Callable[[np.ndarray], np.ndarray], n: int, tolerance: float = 1e-2, least: int = 12
) -> float:
    """Find the largest eigenvalue of a symmetric matrix (n, n) from its products with unit vectors
    (n,).

    Lanczos' method (1950), every vector orthogonalized against all before it: alpha has a few
    hundred entries at most. It ends where the residual is within `tolerance`, relative, but not
    before `least` products.

    >>> matrix = np.diag([1.0, 5.0, -9.0])
    >>> round(largest_eigenvalue(lambda x: matrix @ x, 3), 6)
    5.0
    """
    # A fixed start, so that a resumed search measures the same.
    start = np.random.default_rng(0).standard_normal(n)
    basis = (start / np.linalg.norm(start))[None]
    diagonal: list[float] = []
    beside: list[float] = []
    while True:
        image = product(basis[-1])
        diagonal.append(float(image @ basis[-1]))
        for _ in range(2):  # once leaves what rounding brings back
            image = image - basis.T @ (basis @ image)
        values, vectors = np.linalg.eigh(
            np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
        )
        rest = float(np.linalg.norm(image))
        converged = rest * abs(vectors[-1, -1]) <= tolerance * abs(values[-1])
        exhausted = len(basis) == n or rest <= 1e-10 * np.abs(values).max()
        if exhausted or (converged and len(basis) >= least):
            return float(values[-1])
        beside.append(rest)
        basis = np.vstack([basis, image / rest])
