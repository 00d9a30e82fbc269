"""Who owns alpha: how it becomes edge weights, how it is moved, and which genotype it stands for."""

from darts_bio.strategies import darts as _darts  # noqa: F401  (registers the strategy)
from darts_bio.strategies.base import STRATEGIES, Batch, Bilevel, Context, Strategy, frozen

__all__ = ["STRATEGIES", "Batch", "Bilevel", "Context", "Strategy", "frozen"]
