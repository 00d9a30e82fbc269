"""Regularizers of a line: one ingredient of a strategy each, for any other strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from darts_bio.errors import InputError, check_whole
from darts_bio.strategies.base import Context, Strategy, StrategyState
from darts_bio.strategies.regularizers import (
    REGULARIZERS,
    Regularizer,
    RegularizerState,
    refuse_without_gradient,
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
    `alpha.FactorizedAlpha`). The genotype has the best operation of an edge, under its best rule.

    >>> REGULARIZERS.build("factorised").factorised
    True
    """

    factorised = True

    def accept(self, strategy: Strategy[Any], state: StrategyState) -> None:
        refuse_without_gradient(self, strategy.trainer)


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
