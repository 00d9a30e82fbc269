"""A stop before alpha's minimum becomes too sharp (Zela 2020, arXiv 1909.09656).

The dominant eigenvalue of the Hessian of the validation loss in alpha grows before the architectures
that are derived get worse. `eigenvalue_stop` measures it after epochs and ends the search when it
has grown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from darts_bio.errors import check_number, check_whole
from darts_bio.networks import EdgeWeights
from darts_bio.strategies.base import Context, Strategy, StrategyState
from darts_bio.strategies.gradient import AlphaState, GradientStrategy
from darts_bio.strategies.regularizers import (
    REGULARIZERS,
    Lookout,
    Regularizer,
    RegularizerState,
    refuse_without_gradient,
)


class EigenvalueState(RegularizerState):
    """The eigenvalues measured so far, and alpha's parameters at the last measurements.

    `snapshots` holds the last `EigenvalueStop.back` + 1 of them, the oldest first.
    """

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
    """A stop when the dominant eigenvalue of alpha's Hessian has grown (Zela 2020, 1909.09656).

    The Hessian is that of the validation loss in alpha. A mean of its largest eigenvalue is taken
    over a window of measurements, at first over all there are, from half a window on; it stands
    for the middle of the window. Once it exceeds `factor` times the mean `lag` measurements before,
    the search ends with the alpha for which that earlier mean stands. So the alpha it goes back to
    is `lag` measurements and half a window old, and never older than epoch `start`.

    Attributes:
        factor: By how much the mean has to grow.
        window: Over how many measurements a mean is taken, at most.
        lag: How many measurements lie between the two means.
        every: How many epochs lie between two measurements.
        start: The first epoch, counted from 0, whose alpha may be gone back to.

    >>> REGULARIZERS.build("eigenvalue_stop(every=5)")
    EigenvalueStop(factor=1.3, window=5, lag=4, every=5, start=10)
    """

    factor: float = 1.3
    window: int = 5
    lag: int = 4
    every: int = 1
    start: int = 10

    def __post_init__(self) -> None:
        check_number(f"{self.where}: factor", self.factor, above=0)
        for option in ("window", "lag", "every"):
            check_whole(f"{self.where}: {option}", getattr(self, option))
        check_whole(f"{self.where}: start", self.start, least=0)

    @property
    def back(self) -> int:
        """How many measurements ago the alpha was that a stop goes back to."""
        return self.window // 2 + self.lag

    def begin(self, context: Context) -> EigenvalueState:
        return EigenvalueState()

    def accept(self, strategy: Strategy[Any], state: StrategyState) -> None:
        refuse_without_gradient(self, strategy)

    def after_epoch(
        self, state: EigenvalueState, epoch: int, search: Lookout
    ) -> tuple[bool, dict[str, float]]:
        strategy, alpha = search.strategy, search.strategy_state
        assert isinstance(strategy, GradientStrategy)
        assert isinstance(alpha, AlphaState)
        if epoch % self.every:
            return False, {}
        measured = state.measured
        measured.append(dominant_eigenvalue(strategy, alpha, search.validation_loss))
        state.snapshots = [*state.snapshots, alpha.values()][-self.back - 1 :]
        numbers = {"regularizer/eigenvalue": measured[-1]}
        half_a_window = math.ceil(self.window / 2)
        if len(measured) < half_a_window + self.lag or epoch - self.every * self.back < self.start:
            return False, numbers
        present = _mean_of_last(measured, self.window)
        earlier = _mean_of_last(measured[: -self.lag], self.window)
        if present <= self.factor * earlier:
            return False, numbers
        alpha.put(state.snapshots[0])
        return True, numbers


def _mean_of_last(values: list[float], window: int) -> float:
    """Return the mean of the last `window` values, or of all if there are fewer."""
    last = values[-window:]
    return sum(last) / len(last)


STEP_OF_DIFFERENCES = 1e-2
"""How far a central difference goes to either side of alpha, in the norm of all its logits."""


def dominant_eigenvalue(
    strategy: GradientStrategy, state: AlphaState, loss: Callable[[EdgeWeights], Tensor]
) -> float:
    """Return the largest eigenvalue of the Hessian of a loss in alpha, to about 1 %.

    Products of the Hessian with vectors are central differences of gradients, since rules have no
    second derivative. When it returns or raises, alpha is as it was.

    Args:
        strategy: What turns alpha into edge weights.
        state: Its state, which holds alpha.
        loss: A function of edge weights (edges, candidates) per cell type.
    """
    parameters = list(state.parameters.values())
    before = state.values()
    sizes = [parameter.numel() for parameter in parameters]

    def gradient_at(offset: Tensor) -> Tensor:
        # (all logits,) -> the shape of each parameter, and back.
        offsets = zip(before.items(), offset.split(sizes), strict=True)
        state.put({name: value + piece.view_as(value) for (name, value), piece in offsets})
        weights = strategy.with_edge_shares(state, strategy.mean_weights(state))
        gradients = torch.autograd.grad(loss(weights), parameters)
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
    """Return the largest eigenvalue of a symmetric matrix, given its products with vectors.

    This is the method of Lanczos (1950): an orthonormal basis is built from products with the
    matrix, in which the matrix is tridiagonal, and the eigenvalues of that small matrix approach
    those of the large one from the ends of the spectrum inwards. Every basis vector is
    orthogonalized against all before it, which is affordable: alpha has a few hundred entries.

    Args:
        product: Maps a unit vector (n,) to its product with the matrix (n, n).
        n: The size of the matrix.
        tolerance: The residual, relative to the eigenvalue, at which it ends.
        least: The number of products before which it does not end for that reason.

    >>> matrix = np.diag([1.0, 5.0, -9.0])
    >>> round(largest_eigenvalue(lambda x: matrix @ x, 3), 6)
    5.0
    """
    # A fixed start, so that a resumed search measures the same.
    start = np.random.default_rng(0).standard_normal(n)
    basis = (start / np.linalg.norm(start))[None]
    # The tridiagonal matrix: its diagonal, and what stands above and below it.
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    while True:
        image = product(basis[-1])
        diagonal.append(float(image @ basis[-1]))
        for _ in range(2):  # once leaves what rounding brings back
            image = image - basis.T @ (basis @ image)
        values, vectors = np.linalg.eigh(
            np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
        )
        norm = float(np.linalg.norm(image))
        # The residual of the last, largest Ritz pair: the norm of the new direction times the last
        # entry of its eigenvector.
        residual = norm * abs(vectors[-1, -1])
        converged = residual <= tolerance * abs(values[-1])
        # The basis spans everything that products with the matrix reach from the start.
        exhausted = len(basis) == n or norm <= 1e-10 * np.abs(values).max()
        if exhausted or (converged and len(basis) >= least):
            return float(values[-1])
        off_diagonal.append(norm)
        basis = np.vstack([basis, image / norm])
