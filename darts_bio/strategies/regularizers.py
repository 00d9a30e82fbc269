"""Regularizers of a search: what keeps alpha from following the noise of half-trained weights.

A regularizer adds a penalty to the loss that alpha follows, changes the edge weights that the
supernet is lent, has a say in when the search stops or when alpha begins to move, or asks for
another form of alpha or of the supernet. Any number of them goes with any strategy, but where it
says so. They are registered by name in `REGULARIZERS` and given as
`--regularizers "skip_stop(most=2),entropy(weight=0.1)"`.

Here are those of a few lines; others have a file of their own.

>>> from darts_bio.strategies import REGULARIZERS
>>> REGULARIZERS.names()[:5]
('warmup', 'factorised', 'partial_channels', 'edge_normalization', 'entropy')
>>> REGULARIZERS.options("entropy")
{'weight': 0.1, 'level': 'pair'}
>>> REGULARIZERS.build("entropy(level=rule)")
Entropy(weight=0.1, level='rule')
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor, nn

from darts_bio.errors import InputError, check_number, check_whole, unknown_name
from darts_bio.networks import EdgeWeights, SuperNet
from darts_bio.registry import Registry
from darts_bio.spaces import Cell
from darts_bio.strategies.alpha import grouped_by_operation
from darts_bio.strategies.base import STRATEGIES, Context, Strategy, StrategyState, masks_of
from darts_bio.strategies.gradient import GradientStrategy


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

    normalizes_edges: ClassVar[bool] = False
    """Whether the edges into a node are to compete."""

    partial: ClassVar[int | None] = None
    """k, where 1/k of the channels are to go through the candidates; None without a say in it."""

    drops_skips: ClassVar[bool] = False
    """Whether skip connections are to be followed by dropout, of the rate `number` of its state,
    which is then a `ScheduledState`."""

    spreads: ClassVar[bool] = False
    """Whether it gives weight to candidates that had none, so that a strategy that draws one
    candidate an edge has to have all of them computed."""

    exchanges: ClassVar[bool] = False
    """Whether `perturbed` averages something over processes by itself."""

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

    def accept(self, strategy: Strategy[Any], state: StrategyState) -> None:
        """Raise InputError if the regularizer cannot go with this strategy, whose state is given."""

    def attend(self, state: R, supernet: SuperNet) -> Mapping[nn.Parameter, Tensor]:
        """Look at the supernet, once it is built and on its device.

        Returns the parameters whose gradients `compare` is to be called with, if any. The tensor of
        each is a mask that broadcasts to it: where it is True, steps leave the parameter as it is.
        `compare` may change the masks in place.
        """
        return {}

    def begin_epoch(self, state: R, epoch: int) -> None:
        """Set what a schedule changes, for an epoch counted from 0; again if a run is resumed."""

    def lent(self, state: R, weights: EdgeWeights) -> EdgeWeights:
        """Return the edge weights that the supernet is lent in place of the strategy's.

        This is so in every pass: of w, of alpha, and of individuals that are measured.

        Args:
            state: What `begin` made.
            weights: (edges, candidates) per cell type.
        """
        return weights

    def prepare(self, state: R) -> None:
        """Draw what the next `perturbed` depends on, in place."""

    def perturbed(
        self, state: R, weights: EdgeWeights, loss: Callable[[EdgeWeights], Tensor]
    ) -> EdgeWeights:
        """Return the edge weights that w is trained with, in place of those that alpha stands for.

        On a GPU it is recorded (see `Strategy.descends`).

        Args:
            state: What `begin` made.
            weights: (edges, candidates) per cell type, without a gradient.
            loss: Returns the supernet's loss on the training batch at other edge weights, a scalar.
                It is differentiable, with exact gradients in place of the rules' own, and the
                supernet is in evaluation mode.
        """
        return weights

    def compare(self, state: R, train: Sequence[Tensor], valid: Sequence[Tensor]) -> None:
        """Look at w's gradients on the training and the validation batch of a step, before w moves.

        Both are taken at the same w and edge weights, and are means over all processes. The
        supernet then takes a further pass a step. On a GPU it is recorded (see
        `Strategy.descends`).

        Args:
            state: What `begin` made.
            train: A gradient for each parameter that `attend` returned, in its order.
            valid: Likewise.
        """

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

    def decisive(
        self, state: R, weights: EdgeWeights, derive: Callable[[EdgeWeights], dict[str, Cell]]
    ) -> EdgeWeights:
        """Return the weights that the genotype is derived from, in place of the strategy's.

        Args:
            state: What `begin` made.
            weights: The final weights of the strategy, (edges, candidates) per cell type.
            derive: Returns the cells that such weights stand for.
        """
        return weights


REGULARIZERS: Registry[type[Regularizer[Any]]] = Registry("regularizer")
"""All regularizers, by the names and options that `--regularizers` takes."""


def refuse_without_gradient(regularizer: Regularizer[Any], strategy: Strategy[Any]) -> None:
    """Raise InputError if the strategy does not move alpha along a gradient."""
    if not isinstance(strategy, GradientStrategy):
        raise InputError(
            f"{regularizer.where}: expected a strategy that moves alpha along a gradient, found "
            f"{STRATEGIES.name_of(strategy)}; leave the regularizer out"
        )


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


@REGULARIZERS.register("partial_channels")
@dataclass(frozen=True)
class PartialChannels(Regularizer[RegularizerState]):
    """1/k of the channels through the candidates, the others past them (PC-DARTS, 1907.05737).

    A step takes less memory and time, and skips and pools, which move all channels alike, lose their
    head start. It brings neither the warm-up nor the edge normalization of `pc_darts`.

    >>> REGULARIZERS.build("partial_channels(k=2)").partial
    2
    """

    k: int = 4

    def __post_init__(self) -> None:
        check_whole(f"{self.where}: k", self.k)

    @property
    def partial(self) -> int:  # type: ignore[override]
        return self.k


@REGULARIZERS.register("edge_normalization")
@dataclass(frozen=True)
class EdgeNormalization(Regularizer[RegularizerState]):
    """Edges that compete: a softmax over the edges into a node (PC-DARTS, 1907.05737).

    Each edge has a beta that moves beside alpha (`strategies.edges`).

    >>> REGULARIZERS.build("edge_normalization").normalizes_edges
    True
    """

    normalizes_edges = True

    def accept(self, strategy: Strategy[Any], state: StrategyState) -> None:
        refuse_without_gradient(self, strategy.trainer)


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


class ScheduledState(RegularizerState):
    """A number that changes from epoch to epoch, as a scalar tensor that changes in place.

    Args:
        context: The search.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.masks = masks_of(context)
        """(edges, candidates) bool per cell type: True where there is a candidate."""
        self.number = torch.zeros((), device=context.device)


@REGULARIZERS.register("beta_decay")
@dataclass(frozen=True)
class BetaDecay(Regularizer[ScheduledState]):
    """A penalty on the logsumexp of alpha: beta-DARTS' decay of edge weights (Ye 2022, 2203.01665).

    The loss that alpha follows gets lambda times the mean over all edges of log sum exp(alpha). Its
    gradient is lambda times the edge weights themselves, and so keeps large ones from growing.
    lambda rises linearly over the epochs from 0 to `weight`, which is that of the published code's
    search of 100 epochs; one of 50 epochs ends with half of that there. There alpha keeps Adam's
    decay beside it. What `factorised` makes of alpha has a logsumexp of 0: the two do not go
    together.

    >>> import math
    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> decay = REGULARIZERS.build("beta_decay(weight=50)")
    >>> state = decay.begin(Context(space, table, 0, cpu, epochs=100, steps_per_epoch=5))
    >>> decay.begin_epoch(state, 2)  # lambda is 2 % of 50
    >>> penalty = decay.alpha_penalty(state, {"cell": torch.zeros(6, 5)})
    >>> round(penalty.item(), 4) == round(math.log(5), 4)
    True
    """

    weight: float = 50.0

    def __post_init__(self) -> None:
        check_number(f"{self.where}: weight", self.weight, above=0)

    def accept(self, strategy: Strategy[Any], state: StrategyState) -> None:
        refuse_without_gradient(self, strategy.trainer)
        if state.context.factorised:
            raise InputError(
                f"{self.where}: expected an alpha of logits, found one of operations times rules "
                "(factorised, or that of rule_aware), whose logsumexp is 0; leave one of both out"
            )

    def begin(self, context: Context) -> ScheduledState:
        return ScheduledState(context)

    def begin_epoch(self, state: ScheduledState, epoch: int) -> None:
        state.number.fill_(self.weight * epoch / state.context.epochs)

    def alpha_penalty(self, state: ScheduledState, alpha: Mapping[str, Tensor]) -> Tensor:
        sums = [
            logits.masked_fill(~state.masks[t], -torch.inf).logsumexp(1)
            for t, logits in alpha.items()
        ]
        return state.number * torch.cat(sums).mean()


NEARLY_NOTHING = 1e-12
"""The weight of an edge's skip connections below which the auxiliary ones have equal shares."""

Decay = Literal["linear", "cosine"]
"""How a weight falls from its first value to 0 over the epochs."""


class AuxiliarySkipState(ScheduledState):
    """The weight of the auxiliary skips, and which candidates are skip connections.

    `skips` is (edges, candidates) bool per cell type.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.skips = {
            t: torch.tensor(
                [[c is not None and c.op == "skip_connect" for c in row] for row in rows],
                device=context.device,
            )
            for t, rows in context.table.rows.items()
        }


@REGULARIZERS.register("auxiliary_skip")
@dataclass(frozen=True)
class AuxiliarySkip(Regularizer[AuxiliarySkipState]):
    """A skip connection beside the candidates, fading out (DARTS-, Chu 2021, arXiv 2009.01027).

    A skip helps to train the network whatever it is worth in the architecture, and is chosen for
    that. So each edge that has a skip connection among its candidates gets another one, outside the
    competition, whose weight falls over the epochs from `weight` to 0, linearly (`linear`) or by
    half a cosine (`cosine`).

    At stride 1 that is the identity. At stride 2 a skip connection has weights, which the auxiliary
    one shares with the candidates (under several rules, by their shares), where the published code
    has further ones.

    >>> from darts_bio.spaces import SPACES
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> skip = REGULARIZERS.build("auxiliary_skip")
    >>> state = skip.begin(Context(space, table, 0, cpu, epochs=50, steps_per_epoch=5))
    >>> skip.begin_epoch(state, 10)
    >>> skip.lent(state, {"cell": torch.full((6, 5), 0.2)})["cell"][0]
    tensor([0.2000, 1.0000, 0.2000, 0.2000, 0.2000])
    """

    spreads = True

    weight: float = 1.0
    decay: Decay = "linear"

    def __post_init__(self) -> None:
        check_number(f"{self.where}: weight", self.weight, above=0)
        if self.decay not in get_args(Decay):
            raise unknown_name("decay of the auxiliary skip", str(self.decay), get_args(Decay))

    def begin(self, context: Context) -> AuxiliarySkipState:
        state = AuxiliarySkipState(context)
        if not any(bool(skips.any()) for skips in state.skips.values()):
            raise InputError(
                f"{self.where}: expected skip_connect among the operations of the space, found "
                "none; leave the regularizer out, or use another --space"
            )
        return state

    def begin_epoch(self, state: AuxiliarySkipState, epoch: int) -> None:
        progress = epoch / state.context.epochs
        falls = {"linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}
        state.number.fill_(self.weight * falls[self.decay])

    def lent(self, state: AuxiliarySkipState, weights: EdgeWeights) -> EdgeWeights:
        lent = {}
        for t, of_type in weights.items():
            skips = state.skips[t].to(of_type)
            total = (of_type * skips).sum(-1, keepdim=True)
            # Of less, as cold samples have it, the gradient of a share would overflow.
            some = total > NEARLY_NOTHING
            equal = skips / skips.sum(-1, keepdim=True).clamp_min(1)
            of_skips = torch.where(some, of_type * skips / torch.where(some, total, 1), equal)
            lent[t] = of_type + state.number.to(of_type) * of_skips
        return lent


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

    def accept(self, strategy: Strategy[Any], state: StrategyState) -> None:
        # (Of a strategy that trains nothing, any regularizer is refused by the search.)
        if not (state.alpha or strategy.finished):
            raise InputError(
                f"{self.where}: expected a strategy whose genotype takes shape epoch by epoch, found "
                f"{STRATEGIES.name_of(strategy)}; leave the regularizer out"
            )

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
