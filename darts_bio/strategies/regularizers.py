"""Regularisers of a search: what keeps alpha from running after the weights' whims. Any number goes with any strategy.

They are registered by name in `REGULARIZERS` and given as `--regularizers "skip_stop(most=2),entropy(weight=0.1)"`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from darts_bio.errors import InputError, check_number, check_whole, unknown_name
from darts_bio.networks import EdgeWeights
from darts_bio.registry import Registry
from darts_bio.spaces import Cell
from darts_bio.strategies.alpha import grouped_by_operation
from darts_bio.strategies.base import Context, Strategy, name_of
from darts_bio.strategies.gradient import GradientStrategy


class Lookout(Protocol):
    """What a regulariser sees of a search after an epoch."""

    strategy: Strategy

    def cells(self) -> dict[str, Cell]:
        """What would be derived now."""

    def validation_loss(self, edge_weights: EdgeWeights) -> Tensor:
        """The exact loss on a validation batch, the same at each call, differentiable in the edge weights."""


class Regularizer:
    """Does nothing; subclasses, called as `(context, **options)`, override what they are about."""

    warmup_epochs: int | None = None
    """Epochs in which alpha is not moved, if the regulariser has a say in it."""

    factorised: ClassVar[bool] = False
    """Whether alpha is to be operation times rule given the operation."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def accept(self, strategy: Strategy) -> None:
        """Raises InputError if it cannot go with this strategy."""

    def penalty(self, shares: EdgeWeights) -> Tensor | float:
        """Added to the loss that alpha follows; shares (..., edges, candidates) to (...)."""
        return 0.0

    def after_epoch(self, epoch: int, search: Lookout) -> tuple[bool, dict[str, float]]:
        """Whether the search is to stop, and numbers for the records."""
        return False, {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


REGULARIZERS: Registry[Callable[..., Regularizer]] = Registry("regularizer")


@REGULARIZERS.register("warmup")
class Warmup(Regularizer):
    """Alpha stays as it is for the first epochs (in place of the strategy's own share of them)."""

    def __init__(self, context: Context, epochs: int = 15) -> None:
        super().__init__(context)
        check_whole("regularizer warmup: epochs", epochs, 0)
        if epochs >= context.epochs:
            raise InputError(
                f"regularizer warmup: epochs: expected fewer than the {context.epochs} of the search, found {epochs}; "
                f"use warmup(epochs={context.epochs - 1}) or more --epochs"
            )
        self.warmup_epochs = epochs


@REGULARIZERS.register("factorised")
class Factorised(Regularizer):
    """Alpha as operation times rule given the operation, so that many rules do not outweigh one operation."""

    factorised = True


Level = Literal["pair", "operation", "rule"]


@REGULARIZERS.register("entropy")
class Entropy(Regularizer):
    """Adds weight times the mean entropy of the edges' shares: of pairs, of operations, or of rules given these."""

    def __init__(self, context: Context, weight: float = 0.1, level: Level = "pair") -> None:
        """A positive weight drives alpha to single candidates, a negative one keeps it even."""
        super().__init__(context)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) < float("inf"):
            raise InputError(f"regularizer entropy: weight: expected a number, found {weight!r}")
        if level not in get_args(Level):
            raise unknown_name("level of the entropy regularizer", str(level), get_args(Level))
        self.weight, self.level = weight, level
        self.members = {t: grouped_by_operation(rows).to(context.device) for t, rows in context.table.rows.items()}

    def penalty(self, shares: EdgeWeights) -> Tensor:
        entropies = []
        for t, own in shares.items():
            normalised = own / own.sum(-1, keepdim=True)
            pairs = _entropy(normalised)
            operations = _entropy(torch.einsum("...ec,eco->...eo", normalised, self.members[t].to(own)))
            # H(operation, rule) = H(operation) + H(rule | operation)
            entropies.append({"pair": pairs, "operation": operations, "rule": pairs - operations}[self.level])
        return self.weight * torch.cat(entropies, dim=-1).mean(-1)


def _entropy(shares: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return -torch.special.xlogy(shares, shares.clamp_min(torch.finfo(shares.dtype).tiny)).sum(-1)


@REGULARIZERS.register("skip_stop")
class SkipStop(Regularizer):
    """Stops once the normal cell would have that many skip connections (DARTS+, Liang 2019, arXiv 1909.06035)."""

    def __init__(self, context: Context, most: int = 2) -> None:
        super().__init__(context)
        check_whole("regularizer skip_stop: most", most)
        self.most = most

    def after_epoch(self, epoch: int, search: Lookout) -> tuple[bool, dict[str, float]]:
        cell = next(iter(search.cells().values()))  # the first type is the one that most layers have
        skips = sum(edge.candidate.op == "skip_connect" for edge in cell.edges)
        return skips >= self.most, {"regularizer/skips": float(skips)}


@REGULARIZERS.register("eigenvalue_stop")
class EigenvalueStop(Regularizer):
    """Stops when the dominant eigenvalue of the validation loss' Hessian in alpha has grown (Zela 2020, 1909.09656).

    It is measured every few epochs. Once its mean over a window exceeds `factor` times the mean `lag` measurements
    before, the search ends with the alpha of then.
    """

    def __init__(self, context: Context, factor: float = 1.3, window: int = 5, lag: int = 4, every: int = 1) -> None:
        super().__init__(context)
        check_number("regularizer eigenvalue_stop: factor", factor, above=0)
        for name, value in {"window": window, "lag": lag, "every": every}.items():
            check_whole(f"regularizer eigenvalue_stop: {name}", value)
        self.factor, self.window, self.lag, self.every = factor, window, lag, every
        self.measured: list[float] = []
        self.snapshots: list[dict[str, Tensor]] = []

    def accept(self, strategy: Strategy) -> None:
        if not isinstance(strategy, GradientStrategy):
            raise InputError(
                "regularizer eigenvalue_stop: expected a strategy that moves alpha along a gradient, found "
                f"{name_of(strategy)}; leave the regularizer out"
            )

    def after_epoch(self, epoch: int, search: Lookout) -> tuple[bool, dict[str, float]]:
        strategy = search.strategy
        assert isinstance(strategy, GradientStrategy)
        if (epoch + 1) % self.every:
            return False, {}
        self.measured.append(dominant_eigenvalue(strategy, search.validation_loss))
        self.snapshots = [*self.snapshots, strategy.values()][-self.lag - 1 :]
        numbers = {"regularizer/eigenvalue": self.measured[-1]}
        if len(self.measured) <= self.lag:
            return False, numbers
        now, then = (_mean_of_last(self.measured[: len(self.measured) - back], self.window) for back in (0, self.lag))
        if now <= self.factor * then:
            return False, numbers
        strategy.put(self.snapshots[0])
        return True, numbers

    def state_dict(self) -> dict[str, Any]:
        return {"measured": list(self.measured), "snapshots": list(self.snapshots)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measured, self.snapshots = list(state["measured"]), list(state["snapshots"])


def _mean_of_last(values: list[float], window: int) -> float:
    last = values[-window:]
    return sum(last) / len(last)


STEP_OF_DIFFERENCES = 1e-2


def dominant_eigenvalue(strategy: GradientStrategy, loss: Callable[[EdgeWeights], Tensor]) -> float:
    """Find the largest eigenvalue of the Hessian of `loss(edge weights)` in alpha, to about 1 %.

    Its products with vectors are central differences of gradients, since rules have no second derivative.
    """
    parameters = list(strategy.parameters.values())
    before = strategy.values()
    sizes = [parameter.numel() for parameter in parameters]

    def gradient_at(offset: Tensor) -> Tensor:
        pieces = zip(before.items(), offset.split(sizes), strict=True)
        strategy.put({name: value + piece.view_as(value) for (name, value), piece in pieces})
        gradients = torch.autograd.grad(loss(strategy.mean_weights()), parameters)
        return torch.cat([gradient.flatten() for gradient in gradients])

    def product(unit: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(unit).to(parameters[0])
        plus, minus = (gradient_at(sign * STEP_OF_DIFFERENCES * direction) for sign in (1, -1))
        return (plus - minus).double().cpu().numpy() / (2 * STEP_OF_DIFFERENCES)

    try:
        return largest_eigenvalue(product, sum(sizes))
    finally:
        strategy.put(before)


def largest_eigenvalue(
    product: Callable[[np.ndarray], np.ndarray], n: int, tolerance: float = 1e-2, least: int = 12
) -> float:
    """Find the largest eigenvalue of a symmetric matrix (n, n) from its products with unit vectors (n,).

    Lanczos' method (1950), every vector orthogonalized against all before it: alpha has a few hundred entries at most.
    It ends where the residual is within `tolerance`, relative, but not before `least` products.

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
        values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
        rest = float(np.linalg.norm(image))
        converged = rest * abs(vectors[-1, -1]) <= tolerance * abs(values[-1])
        exhausted = len(basis) == n or rest <= 1e-10 * np.abs(values).max()
        if exhausted or (converged and len(basis) >= least):
            return float(values[-1])
        beside.append(rest)
        basis = np.vstack([basis, image / rest])
