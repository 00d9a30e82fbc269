"""A strategy as a search asks it: what it answers is looked at where it enters the search.

A strategy may be a plug-in, whose mistakes would come to light far from it, or not at all: an alpha
that a wrong answer leaves where it is still ends in a genotype, and so do weights of NaN. Only types,
shapes and devices are looked at within a step, which costs no wait for a GPU and holds for
recordings; values are where the genotype is derived.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from darts_bio.errors import InputError, brief, first_line, line_in
from darts_bio.networks import EdgeWeights
from darts_bio.networks.pooled import LEFT_OUT
from darts_bio.spaces import CandidateTable
from darts_bio.strategies import (
    AlphaState,
    Bilevel,
    BlackBoxState,
    BlackBoxStrategy,
    Context,
    Measure,
    Strategy,
    StrategyState,
    WeightPhase,
)
from darts_bio.training.engine import Interrupted
from darts_bio.training.meters import Numbers

_PLAIN = (bool, int, float, str, type(None))


class Answers:
    """The answers of a strategy in one search, whose state `begin` makes.

    Methods are those of `Strategy`. Each raises InputError, in a line that names the strategy and
    the method, for an answer that a search cannot use and for what the strategy's own code raises.

    >>> from dataclasses import dataclass
    >>> from darts_bio.spaces import SPACES
    >>> from darts_bio.strategies import STRATEGIES, GradientStrategy
    >>> @STRATEGIES.register("forgetful")
    ... @dataclass(frozen=True)
    ... class Forgetful(GradientStrategy):
    ...     def mean_weights(self, state):
    ...         weights = super().mean_weights(state)
    >>> space = SPACES.build("nb201")
    >>> table, cpu = space.table(["bp"]), torch.device("cpu")
    >>> answers = Answers(Forgetful(), table)
    >>> state = answers.begin(Context(space, table, 0, cpu, epochs=1, steps_per_epoch=1))
    >>> answers.final_weights()
    Traceback (most recent call last):
    darts_bio.errors.InputError: strategy forgetful: final_weights: expected a dict of tensors, cell \
(6, 5), found NoneType; return one
    >>> STRATEGIES.unregister("forgetful")

    Args:
        strategy: The strategy.
        table: The candidates of the search.
    """

    def __init__(self, strategy: Strategy[Any], table: CandidateTable) -> None:
        self._strategy, self._table = strategy, table
        self.state: Any = None
        """The state of the search."""

    def begin(self, context: Context) -> StrategyState:
        state = ask(self._strategy, "begin", context)
        if not isinstance(state, StrategyState):
            raise self._wrong("begin", "a StrategyState", state)
        if "context" not in vars(state):
            raise InputError(
                f"{self._strategy.where}: begin: expected a state that knows its context, found "
                f"{type(state).__name__} without; begin its __init__ by super().__init__(context)"
            )
        self.state = state
        # A search asks for these later: then a mistake in them would have cost the time till then.
        self.learning_rates()
        self.state_dict()
        return state

    def weight_phase(self, epochs: int) -> WeightPhase | None:
        phase = ask(self._strategy, "weight_phase", epochs)
        if not (phase is None or isinstance(phase, WeightPhase)):
            raise self._wrong("weight_phase", "a WeightPhase or None", phase)
        return phase

    def notes(self, rules: Sequence[str]) -> list[str]:
        notes = ask(self._strategy, "notes", self.state, rules)
        if not isinstance(notes, (list, tuple)) or not all(isinstance(n, str) for n in notes):
            raise self._wrong("notes", "a list of lines", notes)
        return list(notes)

    def begin_epoch(self, epoch: int) -> None:
        ask(self._strategy, "begin_epoch", self.state, epoch)

    def descends(self) -> bool:
        descends = ask(self._strategy, "descends", self.state)
        if not isinstance(descends, bool):
            raise self._wrong("descends", "True or False", descends)
        return descends

    def prepare(self) -> None:
        ask(self._strategy, "prepare", self.state)

    def edge_weights(self) -> EdgeWeights:
        return self._checked("edge_weights", ask(self._strategy, "edge_weights", self.state))

    def lent(self, weights: Any, dtype: torch.dtype) -> EdgeWeights:
        """Return edge weights for a pass of a supernet of that type, whoever asked for them."""
        checked = self._checked("edge_weights", weights)
        for of_type in checked.values():
            if of_type.dtype != dtype:
                expected = f"tensors of {dtype}, the supernet's type"
                raise self._wrong("edge_weights", expected, of_type.dtype)
        return checked

    def drawn(self) -> Mapping[str, Sequence[int]] | None:
        drawn = ask(self._strategy, "drawn", self.state)
        if drawn is None:
            return None
        for cell_type, rows in self._table.rows.items():
            columns = drawn.get(cell_type) if isinstance(drawn, Mapping) else None
            if not isinstance(columns, Sequence) or len(columns) != len(rows):
                raise self._wrong("drawn", f"{len(rows)} columns for {cell_type}, or None", drawn)
            for column, row in zip(columns, rows, strict=True):
                # Of an edge that no cell has none is drawn.
                if column != LEFT_OUT and (column not in range(len(row)) or row[column] is None):
                    raise self._wrong(
                        "drawn", f"columns of candidates, from 0 to {len(row) - 1}", columns
                    )
        return drawn

    def gradients(self, bilevel: Bilevel) -> tuple[tuple[Tensor, ...], Tensor]:
        answer = ask(self._strategy, "gradients", self.state, bilevel)
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise self._wrong("gradients", "a pair (gradients, logits)", answer)
        gradients, logits = answer
        count = len(bilevel.valid_batch[1])
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != count:
            expected = f"the logits ({count}, classes) as the second of a pair"
            raise self._wrong("gradients", expected, logits)
        if not isinstance(gradients, (tuple, list)) or not all(
            isinstance(gradient, Tensor) for gradient in gradients
        ):
            raise self._wrong(
                "gradients", "a sequence of tensors as the first of a pair", gradients
            )
        if isinstance(self.state, AlphaState):
            shapes = [tuple(p.shape) for p in self.state.parameters.values()]
            found = [tuple(gradient.shape) for gradient in gradients]
            if found != shapes:
                raise self._wrong("gradients", f"tensors as state.parameters, {shapes}", found)
        return tuple(gradients), logits

    def move(self, gradients: Sequence[Tensor]) -> None:
        found = ask(self._strategy, "move", self.state, gradients)
        if found is not None:
            raise InputError(
                f"{self._strategy.where}: move: expected it to change alpha in place and to return "
                f"nothing, found {brief(found)}; write into state.parameters, as by parameter.sub_"
            )

    def end_epoch(self, epoch: int, measure: Measure) -> Numbers:
        found = ask(self._strategy, "end_epoch", self.state, epoch, measure)
        return self._numbers("end_epoch", found)

    def mean_weights(self) -> EdgeWeights:
        return self._checked("mean_weights", ask(self._strategy, "mean_weights", self.state))

    def final_weights(self) -> EdgeWeights:
        weights = ask(self._strategy, "final_weights", self.state)
        weights = self._checked("final_weights", weights)
        for cell_type, of_type in weights.items():
            # Of NaN the first would count as the strongest.
            if cell_type in self._table.rows and of_type.isnan().any():
                raise InputError(
                    f"{self._strategy.where}: final_weights: expected numbers to compare the "
                    f"candidates of {cell_type} by, found nan; mend what it computes them from"
                )
        return weights

    def _checked(self, method: str, weights: Any) -> EdgeWeights:
        """Return weights that a method gave; raise InputError unless they fit the candidates."""
        shapes = {t: self._table.shape(t) for t in self._table.rows}
        found: Any = weights
        if isinstance(weights, Mapping):
            fits = all(
                isinstance(weights.get(t), Tensor)
                and weights[t].shape == shape
                and weights[t].is_floating_point()
                for t, shape in shapes.items()
            )
            if fits:
                return dict(weights)
            found = {t: _shape(of_type) for t, of_type in weights.items()}
        asked = ", ".join(f"{t} {shape}" for t, shape in shapes.items())
        own = " or ".join(_own_sources(self._strategy, method))
        way = f"return one from it, or from what it calls ({own})" if own else "return one"
        raise InputError(
            f"{self._strategy.where}: {method}: expected a dict of tensors, {asked}, found "
            f"{brief(found) if isinstance(found, dict) else type(found).__name__}; {way}"
        )

    def learning_rates(self) -> Numbers:
        """Return the rates of alpha, which its state tells."""
        rates = ask(self._strategy, "learning_rates", of=self.state)
        return self._numbers("learning_rates", rates)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed search needs of its state."""
        return kept(self._strategy, self.state)

    def _numbers(self, method: str, found: Any) -> Numbers:
        if not isinstance(found, dict) or not all(
            isinstance(value, numbers.Real) for value in found.values()
        ):
            raise self._wrong(method, "a dict of numbers, which may be empty", found)
        return dict(found)

    def _wrong(self, method: str, expected: str, found: Any) -> InputError:
        return wrong_answer(self._strategy, method, expected, found)


def kept(
    strategy: Strategy[Any] | BlackBoxStrategy[Any], state: StrategyState | BlackBoxState
) -> dict[str, Any]:
    """Return the `state_dict` of a strategy's state.

    Raises InputError for what a checkpoint would not give back: anything but tensors and plain
    values.
    """
    saved = ask(strategy, "state_dict", of=state)
    if not isinstance(saved, dict):
        raise wrong_answer(strategy, "state_dict", "a dict", saved)
    for place, value in _odd_values(saved, "state_dict"):
        expected = f"tensors and plain values, as a checkpoint holds them, at {place}"
        raise wrong_answer(strategy, "state_dict", expected, type(value).__name__)
    return saved


def _odd_values(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of all that is neither a tensor nor plain."""
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _odd_values(inner, f"{place}[{key!r}]")
    elif type(value) not in _PLAIN and not isinstance(value, Tensor):
        yield place, value


def wrong_answer(
    strategy: Strategy[Any] | BlackBoxStrategy[Any], method: str, expected: str, found: Any
) -> InputError:
    """Return the error for an answer that is not what was expected."""
    shown = tuple(found.shape) if isinstance(found, Tensor) else brief(found)
    return InputError(
        f"{strategy.where}: {method}: expected {expected}, found {shown}; return that"
    )


def ask(
    strategy: Strategy[Any] | BlackBoxStrategy[Any], method: str, *arguments: Any, of: Any = None
) -> Any:
    """Return what a method of a strategy, or `of` its state, returns.

    Raises InputError, with the place, for an exception of a plug-in's own code. A stop that was
    asked for, a lack of memory and an error of this package stay what they are.
    """
    call: Callable[..., Any] = getattr(strategy if of is None else of, method)
    try:
        return call(*arguments)
    except (InputError, Interrupted, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        own = {cls.__module__ for cls in type(strategy).__mro__ if not _ours(cls)}
        place = line_in(own, error)
        if place is None and isinstance(error, NotImplementedError):
            raise InputError(
                f"{strategy.where}: expected a method {method}, found none; write it"
            ) from None
        # What a recording does not allow is the recorder's to explain.
        recorded = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if place is None or recorded:
            raise
        raise InputError(
            f"{strategy.where}: {method}: expected it to return, found {type(error).__name__} "
            f"({first_line(error)}) at {place}; mend it there"
        ) from error


def _ours(cls: type) -> bool:
    """Return whether a class is of this package, or of Python."""
    return cls.__module__.partition(".")[0] in ("darts_bio", "abc", "builtins", "typing")


def _own_sources(strategy: Strategy[Any], method: str) -> list[str]:
    """Return which of the methods that a gradient strategy's weights come from are a plug-in's."""
    sources = ("mean_weights", "sampled_weights", "strengths")
    return [
        name
        for name in sources
        if name != method
        and any(name in vars(cls) and not _ours(cls) for cls in type(strategy).__mro__)
    ]


def _shape(value: Any) -> Any:
    """Return the shape of a tensor, with its type where it holds no real numbers; or a type."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return tuple(value.shape) if value.is_floating_point() else f"{value.dtype}"
