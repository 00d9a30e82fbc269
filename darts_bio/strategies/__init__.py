"""Who owns alpha: how it becomes edge weights, how it is moved, and which genotype it stands
for.
"""

# Importing a strategy's file registers it.
from darts_bio.modes import frozen
from darts_bio.strategies import darts as _darts  # noqa: F401
from darts_bio.strategies import darts_pt as _darts_pt  # noqa: F401
from darts_bio.strategies import drnas as _drnas  # noqa: F401
from darts_bio.strategies import eg as _eg  # noqa: F401
from darts_bio.strategies import fair_darts as _fair_darts  # noqa: F401
from darts_bio.strategies import gdas as _gdas  # noqa: F401
from darts_bio.strategies import pc_darts as _pc_darts  # noqa: F401
from darts_bio.strategies import random as _random  # noqa: F401
from darts_bio.strategies import snas as _snas  # noqa: F401
from darts_bio.strategies.base import (
    STRATEGIES,
    Batch,
    Bilevel,
    Context,
    Measure,
    Strategy,
    StrategyState,
    detached,
    masked_softmax,
)
from darts_bio.strategies.gradient import AlphaState, GradientStrategy
from darts_bio.strategies.objective import COSTS, Objective
from darts_bio.strategies.regularizers import REGULARIZERS, Regularizer, RegularizerState

__all__ = [
    "COSTS",
    "REGULARIZERS",
    "STRATEGIES",
    "AlphaState",
    "Batch",
    "Bilevel",
    "Context",
    "GradientStrategy",
    "Measure",
    "Objective",
    "Regularizer",
    "RegularizerState",
    "Strategy",
    "StrategyState",
    "detached",
    "frozen",
    "masked_softmax",
]
