"""Regularizers of a search: what keeps alpha from following the noise of half-trained weights.

A regularizer adds a penalty to the loss that alpha follows, has a say in when the search stops or
when alpha begins to move, or asks for another form of alpha. Any number of them goes with any
strategy. They are registered by name in `REGULARIZERS` and given as
`--regularizers "skip_stop(most=2),entropy(weight=0.1)"`.

>>> from darts_bio.strategies import REGULARIZERS
>>> REGULARIZERS.names()[:5]
('warmup', 'factorised', 'entropy', 'skip_stop', 'eigenvalue_stop')
>>> REGULARIZERS.options("entropy")
{'weight': 0.1, 'level': 'pair'}
>>> REGULARIZERS.build("entropy(level=rule)")
Entropy(weight=0.1, level='rule')
"""

from __future__ import annotations

import math
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
        """Return the cells that would be derived now, per cell type."""

    def validation_loss(self, edge_weights: EdgeWeights) -> Tensor:
        """Return the loss on a validation batch, the same batch at each call.

        It is differentiable in the edge weights (edges, candidates), with exact gradients in place
        of the rules' own.
        """


class RegularizerState:
    """What a regularizer keeps in a search; nothing, unless a subclass says otherwise.

    >>> from darts_bio.strategies import RegularizerState
    >>> class Counter(RegularizerState):
    ...     epochs = 0
    ...     def state_dict(self):
    ...         return {"epochs": self.epochs}
    ...     def load_state_dict(self, saved):
    ...         self.epochs = saved["epochs"]
    >>> resumed = Counter()
    >>> resumed.load_state_dict({"epochs": 7})
    >>> resumed.epochs
    7
    >>> RegularizerState().state_dict()
    {}
    """

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed search needs, as tensors and plain values only."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


R = TypeVar("R", bound=RegularizerState)


class Regularizer(Generic[R]):
    """A regularizer that does nothing; subclasses override what they are about.

    Subclasses are frozen dataclasses, whose fields are their options, registered by name in
    `REGULARIZERS`. `begin` makes the state of one search, and most other methods are given that
    state.

    >>> from dataclasses import dataclass
    >>> from darts_bio.strategies import Regularizer
    >>> @dataclass(frozen=True)
    ... class Even(Regularizer):
    ...     weight: float = 0.1
    ...     def penalty(self, state, shares):
    ...         return self.weight * sum(s.square().sum((-2, -1)) for s in shares.values())
    >>> single, even = torch.eye(2), torch.full((2, 2), 0.5)  # two edges, two candidates
    >>> Even().penalty(None, {"normal": torch.stack([single, even])})
    tensor([0.2000, 0.1000])
    """

    warmup_epochs: ClassVar[int | None] = None
    """For how many epochs alpha is not moved; None if the regularizer has no say in it."""

    factorised: ClassVar[bool] = False
    """Whether alpha is to be operation times rule given the operation."""

    @property
    def where(self) -> str:
        """The words that an error message about this regularizer begins with."""
        return f"regularizer {REGULARIZERS.name_of(self)}"

    def begin(self, context: Context) -> R:
        """Make the state of a new search.

        Raises:
            InputError: If the regularizer does not go with that search.
        """
        return RegularizerState()  # type: ignore[return-value]

    def accept(self, strategy: Strategy[Any]) -> None:
        """Raise InputError if the regularizer cannot go with this strategy."""

    def penalty(self, state: R, shares: EdgeWeights) -> Tensor | float:
        """Return what is added to the loss that alpha follows, for the shares of candidates.

        Args:
            state: What `begin` made.
            shares: Each candidate's share of its edge, (..., edges, candidates) per cell type. What
                stands before the last two dimensions, such as individuals, is kept: (...).
        """
        return 0.0

    def alpha_penalty(self, state: R, alpha: Mapping[str, Tensor]) -> Tensor | float:
        """Return what is added to the loss that alpha follows, for alpha itself: a scalar.

        It is called where a strategy moves alpha along a gradient; individuals that are only
        measured have no alpha.

        Args:
            state: What `begin` made.
            alpha: The logits, (edges, candidates) per cell type.
        """
        return 0.0

    def after_epoch(self, state: R, epoch: int, search: Lookout) -> tuple[bool, dict[str, float]]:
        """Return whether the search is to stop, and numbers for the records."""
        return False, {}


REGULARIZERS: Registry[type[Regularizer[Any]]] = Registry("regularizer")
"""All regularizers, by the names and options that `--regularizers` takes."""


@REGULARIZERS.register("warmup")
@dataclass(frozen=True)
class Warmup(Regularizer[RegularizerState]):
    """A warm-up: alpha stays as it is for that many epochs, in place of the strategy's own share.

    >>> REGULARIZERS.build("warmup(epochs=3)").warmup_epochs
    3
    """

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
    """Alpha as operation times rule given the operation: many rules do not outweigh an operation.

    Without it each of the R rules of a convolution has the same share at the beginning as an
    operation that has no weights, so that convolutions have R times its share (see
    `alpha.FactorizedAlpha`).

    >>> REGULARIZERS.build("factorised").factorised
    True
    """

    factorised = True


Level = Literal["pair", "operation", "rule"]
"""What an entropy is of: (operation, rule) pairs, operations, or rules given the operation."""


class EntropyState(RegularizerState):
    """Which candidates are of which operation.

    `members` is (edges, candidates, operations) bool per cell type.
    """

    def __init__(self, context: Context) -> None:
        self.members = {
            t: grouped_by_operation(rows).to(context.device)
            for t, rows in context.table.rows.items()
        }


@REGULARIZERS.register("entropy")
@dataclass(frozen=True)
class Entropy(Regularizer[EntropyState]):
    """A penalty of weight times the mean entropy of edges: of pairs, operations, or rules in these.

    A positive weight drives alpha to single candidates, a negative one keeps it even. `level` says
    what the entropy, in nats, is of: pair, operation or rule.

    >>> import math
    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201")  # under two rules 7 candidates, of 5 operations
    >>> table, cpu = space.table(["bp", "fa"]), torch.device("cpu")
    >>> entropy = REGULARIZERS.build("entropy(weight=1, level=pair)")
    >>> state = entropy.begin(Context(space, table, 0, cpu, epochs=10, steps_per_epoch=5))
    >>> penalty = entropy.penalty(state, {"cell": torch.full((6, 7), 1 / 7)})
    >>> round(penalty.item(), 4) == round(math.log(7), 4)
    True
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
        for t, weights in shares.items():
            pair_shares = weights / weights.sum(-1, keepdim=True)
            # Summed over the candidates of each operation:
            # (..., edges, candidates) -> (..., edges, operations)
            operation_shares = torch.einsum(
                "...ec,eco->...eo", pair_shares, state.members[t].to(weights)
            )
            pairs, operations = _entropy(pair_shares), _entropy(operation_shares)
            # H(operation, rule) = H(operation) + H(rule | operation)
            of_level = {"pair": pairs, "operation": operations, "rule": pairs - operations}
            entropies.append(of_level[self.level])
        return self.weight * torch.cat(entropies, dim=-1).mean(-1)


def _entropy(shares: Tensor) -> Tensor:
    """Return the entropy, in nats, of shares along the last dimension: (..., n) -> (...)."""
    # The bound keeps the gradient finite where a share is zero.
    return -torch.special.xlogy(shares, shares.clamp_min(torch.finfo(shares.dtype).tiny)).sum(-1)


@REGULARIZERS.register("skip_stop")
@dataclass(frozen=True)
class SkipStop(Regularizer[RegularizerState]):
    """A stop once the normal cell has too many skip connections (DARTS+, Liang 2019, 1909.06035).

    The cell is the one that would be derived after the epoch, `most` the number at which it stops.

    >>> REGULARIZERS.build("skip_stop(most=3)")
    SkipStop(most=3)
    """

    most: int = 2

    def __post_init__(self) -> None:
        check_whole(f"{self.where}: most", self.most)

    def after_epoch(
        self, state: RegularizerState, epoch: int, search: Lookout
    ) -> tuple[bool, dict[str, float]]:
        cells, kind = search.cells(), search.strategy_state.context.space.kind
        # The first kind of cells is the one that most layers have: normal in DARTS' space.
        first = kind(next(iter(cells)))
        skips = max(
            sum(edge.candidate.op == "skip_connect" for edge in cell.edges)
            for cell_type, cell in cells.items()
            if kind(cell_type) == first
        )
        return skips >= self.most, {"regularizer/skips": float(skips)}


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
