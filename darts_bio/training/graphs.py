"""Functions of tensors as CUDA graphs: run twice, then recorded, then replayed with no Python
between the kernels.

A step of a search is thousands of small kernels, and a GPU that waits for Python to launch each of
them idles most of the time. So a task puts what a step computes into functions, and runs them
through a `Recorder`:

    call 1, 2    the function runs as it is: steps like any other, in which libraries choose their kernels
    call 3       it is recorded (which computes nothing), and the recording is replayed
    call 4, ...  its inputs are copied to where the recording reads them, and it is replayed

What a recording cannot see is Python. Whatever differs from step to step must be an input, or a
tensor that changes in place: weights, feedback, the learning rate, drop path's probability, a
strategy's noise. A number that Python computes anew in each step would stay for ever what it was in
call 3. What calls 2 and 3 ask of PyTorch is therefore compared: where a number or a shape differs,
or a tensor is read from the CPU, the run ends with the reason. With the first epoch that begins
after a function was recorded it runs as it is once more and is compared again, for what Python
changes from epoch to epoch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from darts_bio.errors import InputError, first_line

REGISTERS_GENERATORS = TorchVersion(torch.__version__) >= "2.14"
"""Whether PyTorch notices by itself which generators a recording draws from; asked to, it then only
warns."""

RUNS_BEFORE = 2
"""Runs of a function before it is recorded."""


Call = tuple[Any, ...]
"""An operation of PyTorch, the shapes of its tensors, and its other arguments."""


class Recorder:
    """Runs functions of tensors; on a GPU, if `graphs` says so, it replays what they did.

    Recordings share the memory in between. What a function returns lies outside of that, since
    recordings may be replayed in another order than they were made: it is good until the same
    function runs again. `generators` are those on the GPU that functions draw from, beside
    PyTorch's default one: seed them before a call.
    """

    def __init__(self, device: torch.device, *, graphs: bool = True) -> None:
        self.device = device
        self.records = graphs and device.type == "cuda"
        self.generators: Sequence[torch.Generator] = ()
        self.recordings: dict[Hashable, _Recording] = {}
        self._outputs: set[int] = set()
        """The outputs of recordings, which these keep."""
        self._pool: Any = None
        self._stream: Any = None

    def __call__(
        self, function: Callable[..., Any], *inputs: Tensor, situation: Hashable = ()
    ) -> Any:
        """Return what `function(*inputs)` returns: tensors, in tuples and dicts if there are
        several.

        `situation` holds what else Python looks at in it; another one makes a recording of its own,
        as do inputs of other shapes. Raises InputError if the function cannot be recorded, or would
        not be the same when replayed.
        """
        if not self.records:
            return function(*inputs)
        # Not the bound method itself: the recordings would keep the task, and its network, alive.
        owner, body = getattr(function, "__self__", None), getattr(function, "__func__", function)
        key = (body, id(owner), situation, tuple((x.shape, x.dtype) for x in inputs))
        recording = self.recordings.setdefault(key, _Recording())
        if recording.runs < RUNS_BEFORE:
            return recording.run(function, inputs)
        if recording.graph is None:
            # What another recording gives lies where it lay, so it is read there; anything else is
            # copied.
            recording.inputs = tuple(
                x if id(x) in self._outputs else x.detach().clone() for x in inputs
            )
            recording.graph, calls = self.capture(function, recording.inputs, recording.output)
            recording.compare(calls)
            self._outputs |= {id(x) for x in tree_leaves(recording.output) if isinstance(x, Tensor)}
        return recording.replay(inputs)

    def begin_epoch(self) -> None:
        """Have each function that was recorded since the last call run as it is once more, the next
        time, and compared.

        What Python changes only from epoch to epoch shows then.
        """
        for recording in self.recordings.values():
            if recording.graph is not None and not recording.checked:
                recording.runs, recording.checked = RUNS_BEFORE - 1, True

    def capture(
        self, function: Callable[..., Any], inputs: tuple[Tensor, ...], output: Any
    ) -> tuple[Graph, list[Call]]:
        """Record the function on these inputs, what it returns copied to `output`. Return the
        recording, and the calls that it holds.

        Raises InputError if that cannot be.
        """
        if self._pool is None:
            self._pool, self._stream = (
                torch.cuda.graph_pool_handle(),
                torch.cuda.Stream(self.device),
            )
        graph = torch.cuda.CUDAGraph()
        if not REGISTERS_GENERATORS:
            for source in self.generators:
                graph.register_generator_state(source)
        try:
            # A loader's thread may pin memory meanwhile, which only the capturing thread must not
            # do.
            with (
                torch.cuda.device(self.device),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                with Trace(from_cpu=False) as trace:
                    returned = function(*inputs)
                put(returned, output)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise InputError(
                f"the step cannot be recorded as a CUDA graph ({first_line(error)}); a plug-in may "
                "wait for the GPU or "
                "copy from the CPU in it. Mend it, or use --no-graphs"
            ) from None
        return graph, trace.calls


def put(returned: Any, output: Any) -> None:
    """Copy the tensors of a structure to those of another one of the same form."""
    for mine, value in zip(tree_leaves(output), tree_leaves(returned), strict=True):
        if isinstance(mine, Tensor):
            mine.copy_(value)


class Graph(Protocol):
    """A recording: `replay` computes again what was recorded, from and to the same memory."""

    def replay(self) -> None: ...


@dataclass
class _Recording:
    """A function's recording, and before there is one, how often it ran, the calls to PyTorch that
    it made, and where its output is to lie. `checked` says that it was, or is about to be, compared
    with a run of a later epoch.
    """

    runs: int = 0
    checked: bool = False
    calls: list[Call] | None = None
    graph: Graph | None = None
    inputs: tuple[Tensor, ...] = ()
    output: Any = None

    def run(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
        """Run the function as it is. The last time before the recording its calls are noted."""
        self.runs += 1
        if self.runs < RUNS_BEFORE:
            return function(*inputs)
        with Trace() as trace:
            output = function(*inputs)
        self.compare(trace.calls)
        if self.graph is None:
            self.output = tree_map(
                lambda x: torch.empty_like(x) if isinstance(x, Tensor) else x, output
            )
        return output

    def replay(self, inputs: tuple[Tensor, ...]) -> Any:
        for mine, given in zip(self.inputs, inputs, strict=True):
            if given is not mine:
                mine.copy_(given, non_blocking=True)
        assert self.graph is not None
        self.graph.replay()
        return self.output

    def compare(self, calls: list[Call]) -> None:
        """Raise InputError if the calls are not those of the run before."""
        before, self.calls = self.calls, calls
        if before is None or before == calls:
            return
        pairs = itertools.zip_longest(before, calls, fillvalue=("nothing",))
        then, now = next(pair for pair in pairs if pair[0] != pair[1])
        raise InputError(
            "a recorded step would not be the same step: what Python computes changes from one to "
            "the next "
            f"({_in_words(then)}, then {_in_words(now)}). Let the plug-in keep it in a tensor that "
            "changes in place, "
            "or use --no-graphs"
        )


def _in_words(call: Call) -> str:
    return " ".join(str(tuple(value) if isinstance(value, torch.Size) else value) for value in call)


class Trace(TorchDispatchMode):
    """Notes the calls to PyTorch. Raises RuntimeError for one that reads a tensor on the CPU,
    unless `from_cpu`.
    """

    def __init__(self, from_cpu: bool = True) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._from_cpu = from_cpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call: list[Any] = [func]
        for value in tree_leaves((args, kwargs or {})):
            if isinstance(value, Tensor):
                call.append(value.shape)
                if value.device.type == "cpu" and not self._from_cpu:
                    raise RuntimeError(
                        f"{func} reads a tensor on the CPU, whose values would be kept for ever"
                    )
            elif isinstance(value, (bool, int, float, str, torch.dtype)):
                call.append(value if value == value else "nan")
        if (
            func is not torch.ops.aten.detach.default
        ):  # PyTorch calls it or not, by who else holds a tensor
            self.calls.append(tuple(call))
        return func(*args, **(kwargs or {}))
