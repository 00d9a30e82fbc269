"""What a search searches with: its strategy and regularizers, and what they ask of it together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from darts_bio.config import SearchConfig
from darts_bio.errors import InputError, check_number, check_whole
from darts_bio.rules import RULES
from darts_bio.strategies import REGULARIZERS, STRATEGIES, Regularizer, Strategy
from darts_bio.training.answers import ask


@dataclass(frozen=True)
class Method:
    """A strategy and the regularizers beside it.

    Attributes:
        strategy: Moves alpha.
        regularizers: Each has a say in that, in their order.
        shares_weights: Whether the rules of an operation share weights.
        partial: k, where 1/k of the channels goes through the candidates (see `SuperNet`).
        warmup_epochs: For how many epochs alpha stays as it is.

    >>> method = Method.of(SearchConfig(strategy="pc_darts", regularizers=("warmup(epochs=3)",)))
    >>> method.partial, method.warmup_epochs, method.shares_weights
    (4, 3, False)
    """

    strategy: Strategy[Any]
    regularizers: tuple[Regularizer[Any], ...]
    shares_weights: bool
    partial: int
    warmup_epochs: int

    @classmethod
    def of(cls, config: SearchConfig) -> Method:
        """Return what the options of a search name.

        Raises:
            InputError: A name is unknown, or options do not go together.
        """
        for rule in (*config.rules, config.backbone_rule):
            RULES.build(rule)  # an unknown rule is an error now, not once the supernet is built
        strategy: Strategy[Any] = STRATEGIES.build(config.strategy)
        shares_weights = strategy.shares_weights or config.weights == "shared"
        _refuse_contradictions(config, strategy, shares_weights)
        regularizers = tuple(REGULARIZERS.build(spec) for spec in config.regularizers)
        _refuse_repetitions(regularizers)
        warmups = [r.warmup_epochs for r in regularizers if r.warmup_epochs is not None]
        share = ask(strategy, "warmup_share", config.epochs)
        check_number(f"{strategy.where}: warmup_share", share, most=1)
        check_whole(f"{strategy.where}: partial", strategy.partial)
        return cls(
            strategy,
            regularizers,
            shares_weights,
            _partial(config, strategy, regularizers),
            warmups[0] if warmups else round(share * config.epochs),
        )


def refuse_unused(config: SearchConfig, strategy: Strategy[Any]) -> None:
    """Raise InputError for options that have no say with a strategy that trains nothing."""
    if not strategy.finished:
        return
    for option in ("regularizers", "objective", "supernet"):
        if getattr(config, option):
            raise InputError(
                f"--{option}: has no say with --strategy {config.strategy}, which trains "
                "nothing; leave it out"
            )


def _refuse_contradictions(
    config: SearchConfig, strategy: Strategy[Any], shares_weights: bool
) -> None:
    """Raise InputError for options that do not go with the strategy."""
    if strategy.looks_ahead and config.optimizer not in ("sgd", "nesterov"):
        raise InputError(
            f"--optimizer: expected sgd or nesterov for --strategy {config.strategy}, which "
            f"differentiates a step of it, found {config.optimizer}; leave it out"
        )
    if strategy.shares_weights and config.weights == "own":
        raise InputError(
            f"--weights: expected shared for --strategy {config.strategy}, which measures "
            "rules on the same weights, found own; leave it out"
        )
    backbone = RULES.build(config.backbone_rule)
    if strategy.shares_weights and (backbone.local or backbone.direct):
        raise InputError(
            f"--backbone-rule: expected a rule whose kernel carries the error, for --strategy "
            f"{config.strategy}, which differentiates a step of training through all layers, "
            f"found {config.backbone_rule}; use bp or a rule of the feedback family"
        )
    if config.kernel_scale != "match" and not shares_weights:
        raise InputError(
            f"--kernel-scale {config.kernel_scale}: kernels are mixed where rules share "
            "weights, and these have weights of their own; add --weights shared, or leave it out"
        )


def _refuse_repetitions(regularizers: tuple[Regularizer[Any], ...]) -> None:
    """Raise InputError for a regularizer that is named twice."""
    names = [REGULARIZERS.name_of(regularizer) for regularizer in regularizers]
    for name in names:
        # Entropies of different levels are different penalties.
        if names.count(name) > 1 and name != "entropy":
            raise InputError(
                f"--regularizers: expected one {name}, found {names.count(name)}; leave out all "
                "but one"
            )


def _partial(
    config: SearchConfig, strategy: Strategy[Any], regularizers: tuple[Regularizer[Any], ...]
) -> int:
    """Return k, by a regularizer or by the strategy.

    Raises InputError if both say so.
    """
    asked = [r.partial for r in regularizers if r.partial is not None]
    if asked and strategy.partial > 1:
        raise InputError(
            f"--regularizers partial_channels: --strategy {config.strategy} has a k of its "
            f"own, {strategy.partial}; leave the regularizer out"
        )
    return asked[0] if asked else strategy.partial
