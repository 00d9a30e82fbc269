"""Who owns alpha: how it becomes edge weights, how it is moved, which genotype it stands for.

Each strategy is a file and a frozen dataclass of options, registered in `STRATEGIES` under the name
that `--strategy` takes. `base.py` tells the life of alpha; `gradient.py` holds what the strategies
that follow a gradient have in common; `regularizers.py` and `objective.py` what is added to their
loss. `black_box.py` holds those that have no alpha and no supernet, and see accuracies alone.

>>> from darts_bio.strategies import COSTS, REGULARIZERS, STRATEGIES
>>> sorted(STRATEGIES)  # doctest: +NORMALIZE_WHITESPACE
['darts', 'darts_pt', 'drnas', 'eg', 'fair_darts', 'gdas', 'pc_darts', 'random', 'random_paths',
 'rule_aware', 'snas']
>>> STRATEGIES.build("darts(order=2, lr=6e-4)")
Darts(lr=0.0006, betas=(0.5, 0.999), weight_decay=0.001, init=0.001, order=2)
>>> STRATEGIES.options("random")
{'genotype': ''}
>>> from darts_bio.strategies import BLACK_BOX_STRATEGIES
>>> sorted(BLACK_BOX_STRATEGIES)
['local_search', 'random_search', 'regularized_evolution']
>>> sorted(REGULARIZERS)  # doctest: +NORMALIZE_WHITESPACE
['auxiliary_skip', 'beta_decay', 'edge_normalization', 'eigenvalue_stop', 'entropy', 'factorised',
 'oles', 'partial_channels', 'skip_dropout', 'skip_limit', 'skip_stop', 'smooth', 'warmup']
>>> REGULARIZERS.build("skip_stop(most=1)")
SkipStop(most=1)
>>> sorted(COSTS)
['multiply_adds', 'parameters', 'weight_transport']

A `Batch` is images and labels; `frozen` computes no gradient of a model's parameters within:

>>> import torch
>>> from darts_bio.strategies import Batch, frozen
>>> batch: Batch = (torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]))
>>> images, labels = batch
>>> model = torch.nn.Conv2d(3, 8, 3)
>>> with frozen(model):
...     print(model(images).requires_grad)
False

A `Measure` is what `Strategy.end_epoch` is lent to try P individuals at once. A search lends one
that runs the supernet; this one, made up, likes even shares:

>>> from darts_bio.strategies import Measure
>>> def like_even_shares(edge_weights, batches):
...     losses = sum(weights.square().sum((1, 2)) for weights in edge_weights.values())
...     return losses, 1 / losses
>>> measure: Measure = like_even_shares
>>> individuals = {"cell": torch.stack([torch.eye(6, 5), torch.full((6, 5), 0.2)])}
>>> losses, accuracies = measure(individuals, 4)
>>> losses
tensor([5.0000, 1.2000])
"""

# Importing a strategy's file registers it.
from darts_bio.modes import frozen
from darts_bio.strategies import auxiliary_skip as _auxiliary_skip  # noqa: F401
from darts_bio.strategies import beta_decay as _beta_decay  # noqa: F401
from darts_bio.strategies import darts as _darts  # noqa: F401
from darts_bio.strategies import darts_pt as _darts_pt  # noqa: F401
from darts_bio.strategies import drnas as _drnas  # noqa: F401
from darts_bio.strategies import eg as _eg  # noqa: F401
from darts_bio.strategies import eigenvalue_stop as _eigenvalue_stop  # noqa: F401
from darts_bio.strategies import entropy as _entropy  # noqa: F401
from darts_bio.strategies import fair_darts as _fair_darts  # noqa: F401
from darts_bio.strategies import gdas as _gdas  # noqa: F401
from darts_bio.strategies import ingredients as _ingredients  # noqa: F401
from darts_bio.strategies import oles as _oles  # noqa: F401
from darts_bio.strategies import pc_darts as _pc_darts  # noqa: F401
from darts_bio.strategies import random as _random  # noqa: F401
from darts_bio.strategies import random_paths as _random_paths  # noqa: F401
from darts_bio.strategies import rule_aware as _rule_aware  # noqa: F401
from darts_bio.strategies import skips as _skips  # noqa: F401
from darts_bio.strategies import smooth as _smooth  # noqa: F401
from darts_bio.strategies import snas as _snas  # noqa: F401
from darts_bio.strategies.base import (
    STRATEGIES,
    Batch,
    Bilevel,
    Context,
    Measure,
    Strategy,
    StrategyState,
    WeightPhase,
    detached,
    masked_softmax,
)
from darts_bio.strategies.black_box import (
    BLACK_BOX_STRATEGIES,
    BlackBoxState,
    BlackBoxStrategy,
)
from darts_bio.strategies.gradient import AlphaState, GradientStrategy
from darts_bio.strategies.objective import COSTS, Objective
from darts_bio.strategies.regularizers import REGULARIZERS, Regularizer, RegularizerState

__all__ = [
    "BLACK_BOX_STRATEGIES",
    "COSTS",
    "REGULARIZERS",
    "STRATEGIES",
    "AlphaState",
    "Batch",
    "Bilevel",
    "BlackBoxState",
    "BlackBoxStrategy",
    "Context",
    "GradientStrategy",
    "Measure",
    "Objective",
    "Regularizer",
    "RegularizerState",
    "Strategy",
    "StrategyState",
    "WeightPhase",
    "detached",
    "frozen",
    "masked_softmax",
]
