"""CUDA graphs without a GPU: a recorder whose recordings are lists of PyTorch's calls, played back
on the CPU.

As a CUDA graph, a tape knows no Python: each call is made again with the numbers it had, from the
same tensors and to the same tensors. Making a tape computes nothing that stays: what was written to
is put back, as a GPU that only records leaves it. What a tape has made in between is spoiled once
it was played. So what a recorded step would do wrong on a GPU (a number that is frozen, a tensor
that is replaced where it should change in place, an output that is read too late) it does wrong
here as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from darts_bio.training.graphs import Call, Recorder, Trace, put


class Tape(Trace):
    """Holds the calls made within, and plays them again."""

    def __init__(self) -> None:
        super().__init__()
        self._played: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}
        self._generators = {torch.default_generator: torch.get_rng_state()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = (
            dict(zip((argument.name for argument in func._schema.arguments), args, strict=False))
            | kwargs
        )
        written = [
            value
            for argument in func._schema.arguments
            if argument.alias_info is not None
            and argument.alias_info.is_write
            and argument.name in given
            for value in tree_leaves(given[argument.name])
        ]
        if "batch_norm" in str(
            func
        ):  # its schema does not say that it writes the running statistics
            written += [value for value in args[3:5] if isinstance(value, Tensor)]
        for source in given.values():
            if isinstance(source, torch.Generator):
                self._generators.setdefault(source, source.get_state())
        for value in filter(_has_storage, written):
            place = value.untyped_storage().data_ptr()
            if place not in self._made and place not in self._before:
                whole = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())
                self._before[place] = (whole, whole.clone())
        out = super().__torch_dispatch__(func, types, args, kwargs)
        # The tensors of views and of what is written in place lie where they lay.
        aliases = any(r.alias_info is not None for r in func._schema.returns)
        outputs = [] if aliases else [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        self._made |= {x.untyped_storage().data_ptr() for x in filter(_has_storage, outputs)}
        is_view = aliases and not written
        if not is_view:
            self._played.append((func, args, kwargs, outputs))
        return out

    def put_back(self) -> None:
        for whole, value in self._before.values():
            whole.copy_(value)
        for source, state in self._generators.items():
            source.set_state(state)

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, outputs in self._played:
                out = func(*args, **kwargs)
                for mine, new in zip(
                    outputs, [x for x in tree_leaves(out) if isinstance(x, Tensor)], strict=False
                ):
                    if _has_storage(mine):
                        mine.copy_(new)
            self._leave()

    def _leave(self) -> None:
        """Spoil what the tape has made: other recordings share that memory, and may be played
        before it is read.
        """
        for *_, outputs in self._played:
            for mine in outputs:
                if mine.is_floating_point() and _has_storage(mine):
                    mine.fill_(torch.nan)


class TapeRecorder(Recorder):
    """A recorder that records on the CPU: with tapes, or, to compare with, never."""

    def __init__(self, tapes: bool) -> None:
        super().__init__(torch.device("cpu"))
        self.records, self.tapes = True, tapes
        self.recorded: list[str] = []

    def __call__(self, function: Callable[..., Any], *inputs: Tensor, situation: Any = ()) -> Any:
        if not self.tapes:
            return function(*inputs)
        return super().__call__(function, *inputs, situation=situation)

    def capture(
        self, function: Callable[..., Any], inputs: tuple[Tensor, ...], output: Any
    ) -> tuple[Tape, list[Call]]:
        self.recorded.append(function.__name__)
        with Tape() as tape:
            returned = function(*inputs)
            calls = list(tape.calls)
            put(returned, output)
        tape.put_back()
        return tape, calls


def _has_storage(tensor: Tensor) -> bool:
    """Whether values lie somewhere: forward mode has zeros that do not."""
    return not tensor._is_zerotensor()
