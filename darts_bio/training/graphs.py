"""Functions of tensors recorded as CUDA graphs, and replayed with no Python between the kernels.

A step of a search is thousands of small kernels, and a GPU that waits for Python to launch each of
them idles most of the time. A CUDA graph launches them all at once. So a task puts what a step
computes into functions, and runs these through a `Recorder`:

    call 1, 2    the function runs as it is, and libraries choose their kernels
    call 3       it is recorded, which computes nothing, and the recording is replayed
    call 4, ...  its inputs are copied to where the recording reads them, and it is replayed
    once more    as it is, in the first call after the first `begin_epoch` since call 3

A graph is a list of kernels with fixed arguments: addresses of memory, and numbers. Hence the rules
for a function, and for whoever calls it:

Inputs. The recording reads copies of its own, made at call 3; each replay first copies the new
inputs there. An input that at call 3 is the output of another recording is read where it lies, and
copied there should another tensor be handed in its place.

Outputs. A function that runs as it is returns new tensors. Each recording has tensors of its own for
what the function returns, allocated at call 2, outside of the graphs' memory; its last kernels copy
the results there, and every replay returns these same tensors. Their values hold until the
recording is replayed again, or whoever was handed them writes to them. Everything in between lies in
one memory pool that all recordings share, and is overwritten by the next replay of any of them, in
whatever order these come.

Random numbers. A graph advances the generators that it draws from at each replay; PyTorch has to
know which ones these are (`Recorder.generators`).

Situations. What Python looks at on purpose (whether paths are dropped) is named by the argument
`situation`. Another situation, or inputs of another shape or dtype, make a recording of their own.
None is ever thrown away or made again, so each has to stay valid.

A recording becomes invalid, and CUDA does not say so, when

- a tensor that it reads beside its inputs is replaced by another: it goes on reading the memory of
  the old one. So weights, feedback, the learning rate, drop path's probability and a strategy's
  noise change in place. The tests find this, which play recordings back on a CPU.
- Python would compute another number: Python does not run in a replay, and the number stays for
  ever what it was at call 3. Three checks find this, and end the run with an `InputError`. The
  calls to PyTorch of calls 2 and 3 are compared, with their shapes and numbers. While it is
  recorded, a function may not read a tensor on the CPU, whose values would be kept. And with the
  first `begin_epoch` after the recording, the function runs once more as it is and its calls are
  compared again, for what changes from epoch to epoch.
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
"""Whether PyTorch notices by itself which generators a graph draws from.

Where it does, registering one by hand only raises a warning."""

RUNS_BEFORE = 2
"""How often a function runs as it is before it is recorded.

The first run lets libraries choose and load their kernels, and optimizers make their state, which
must not happen in a recording. The second is the one whose calls the recording has to repeat."""


Call = tuple[Any, ...]
"""A call to PyTorch: the operation, the shapes of its tensors, and its other arguments."""


class Recorder:
    """Runs functions of tensors, and on a GPU replays what they did as CUDA graphs.

    On a CPU, or with `graphs=False`, it calls the functions and nothing else.

    Attributes:
        records: Whether functions are recorded at all.
        generators: The generators on the GPU that functions draw from, beside PyTorch's default
            one. They are set before the first function is recorded, and seeded before a call.
        recordings: What is known of each function, by the function and what it was called with.

    >>> run = Recorder(torch.device("cpu"))
    >>> run(torch.add, torch.tensor(1), torch.tensor(2)), run.records
    (tensor(3), False)
    """

    def __init__(self, device: torch.device, *, graphs: bool = True) -> None:
        self.device = device
        self.records = graphs and device.type == "cuda"
        self.generators: Sequence[torch.Generator] = ()
        self.recordings: dict[Hashable, _Recording] = {}
        self._outputs: set[int] = set()
        """The ids of all recordings' output tensors. These live as long as the recordings."""
        self._pool: Any = None
        """The memory that all graphs share for what they compute in between."""
        self._stream: Any = None
        """The stream on which all graphs are captured."""

    def __call__(
        self, function: Callable[..., Any], *inputs: Tensor, situation: Hashable = ()
    ) -> Any:
        """Return what `function(*inputs)` returns: tensors, or tuples and dicts of such.

        Args:
            function: A function, or a method of a task. All that it reads beside its inputs has to
                be in tensors that change in place, in `situation`, or constant.
            inputs: Tensors, on this recorder's device.
            situation: What else Python looks at within the function. Each situation is recorded by
                itself.

        Raises:
            InputError: The function cannot be recorded, or would not be the same when replayed.
        """
        if not self.records:
            return function(*inputs)
        # Keyed by a method's function and its owner's id, not by the bound method itself: the
        # recordings would keep the task, and its network, alive.
        owner, body = getattr(function, "__self__", None), getattr(function, "__func__", function)
        key = (body, id(owner), situation, tuple((x.shape, x.dtype) for x in inputs))
        recording = self.recordings.setdefault(key, _Recording())
        # Calls 1 and 2, and the one after `begin_epoch` that is compared with the recording.
        if recording.runs < RUNS_BEFORE:
            return recording.run(function, inputs)
        if recording.graph is None:
            # Call 3. The output of another recording stays at its address, so it is read there.
            # Anything else gets a place of its own, to which each replay copies the input.
            recording.inputs = tuple(
                x if id(x) in self._outputs else x.detach().clone() for x in inputs
            )
            recording.graph, calls = self.capture(function, recording.inputs, recording.output)
            recording.compare(calls)
            self._outputs |= {id(x) for x in tree_leaves(recording.output) if isinstance(x, Tensor)}
        return recording.replay(inputs)

    def begin_epoch(self) -> None:
        """Have each new recording checked once, at the next call of its function.

        The function then runs as it is and its calls are compared with the recorded ones, which
        shows what Python changes only from epoch to epoch. Recordings checked before are left out.
        """
        for recording in self.recordings.values():
            if recording.graph is not None and not recording.rechecked:
                recording.runs, recording.rechecked = RUNS_BEFORE - 1, True

    def capture(
        self, function: Callable[..., Any], inputs: tuple[Tensor, ...], output: Any
    ) -> tuple[Graph, list[Call]]:
        """Record a function as a CUDA graph. Nothing is computed by that.

        Args:
            function: The function to record.
            inputs: The tensors that it is recorded with, and that each replay reads.
            output: Tensors in the structure that the function returns, which each replay fills.

        Returns:
            The graph, and the calls to PyTorch that it holds.

        Raises:
            InputError: The function does what a graph cannot hold, such as waiting for the GPU.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(self.device)
        graph = torch.cuda.CUDAGraph()
        if not REGISTERS_GENERATORS:
            for source in self.generators:
                graph.register_generator_state(source)
        try:
            # CUDA forbids some calls during a capture, by default ("global") to all threads of the
            # process. A data loader's thread may allocate page-locked memory meanwhile, which is
            # one of these and would end the capture: "thread_local" forbids them only to the
            # thread that captures.
            with (
                torch.cuda.device(self.device),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                with Trace(from_cpu=False) as trace:
                    returned = function(*inputs)
                # Part of the graph, but not of the function, whose calls alone are compared.
                put(returned, output)
        except torch.OutOfMemoryError:  # a RuntimeError as well, but not the function's fault
            raise
        except RuntimeError as error:
            raise InputError(
                f"the step cannot be recorded as a CUDA graph ({first_line(error)}); a plug-in may "
                "wait for the GPU or copy from the CPU in it. Mend it, or use --no-graphs"
            ) from None
        return graph, trace.calls


def put(returned: Any, output: Any) -> None:
    """Copy the tensors of a structure into those of another one of the same form.

    >>> output = {"loss": torch.zeros(()), "name": "train"}
    >>> put({"loss": torch.tensor(2.5), "name": "train"}, output)
    >>> output
    {'loss': tensor(2.5000), 'name': 'train'}
    """
    for target, value in zip(tree_leaves(output), tree_leaves(returned), strict=True):
        if isinstance(target, Tensor):
            target.copy_(value)


class Graph(Protocol):
    """Something that `replay` computes again, from the same memory and to the same memory."""

    def replay(self) -> None:
        """Compute again what was recorded."""


@dataclass
class _Recording:
    """What is known of a function in one situation: at first how it ran, then its graph.

    Attributes:
        runs: How often it ran as it is. Below RUNS_BEFORE it runs as it is once more; the check
            after `begin_epoch` sets it back by one.
        rechecked: Whether a run of a later epoch was compared with it, or the next run will be.
        calls: Its calls to PyTorch in the latest run that was traced.
        graph: The recording, once there is one.
        inputs: The tensors that the graph reads as the function's inputs.
        output: The tensors, in the structure of what the function returns, that the graph fills.
    """

    runs: int = 0
    rechecked: bool = False
    calls: list[Call] | None = None
    graph: Graph | None = None
    inputs: tuple[Tensor, ...] = ()
    output: Any = None

    def run(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Any:
        """Run the function as it is, and the last time before a recording or replay trace it."""
        self.runs += 1
        if self.runs < RUNS_BEFORE:
            return function(*inputs)
        with Trace() as trace:
            output = function(*inputs)
        self.compare(trace.calls)
        if self.graph is None:
            # The places of the graph's outputs. Allocated here, outside of a capture, they do not
            # lie in the memory that the graphs share.
            self.output = tree_map(
                lambda x: torch.empty_like(x) if isinstance(x, Tensor) else x, output
            )
        return output

    def replay(self, inputs: tuple[Tensor, ...]) -> Any:
        """Replay the graph on these inputs, and return its output tensors."""
        for target, value in zip(self.inputs, inputs, strict=True):
            if value is not target:
                target.copy_(value, non_blocking=True)
        assert self.graph is not None
        self.graph.replay()
        return self.output

    def compare(self, calls: list[Call]) -> None:
        """Keep the calls of a run; raise InputError unless they are those of the run before."""
        before, self.calls = self.calls, calls
        if before is None or before == calls:
            return
        pairs = itertools.zip_longest(before, calls, fillvalue=("nothing",))
        old, new = next(pair for pair in pairs if pair[0] != pair[1])
        raise InputError(
            "a recorded step would not be the same step: what Python computes changes from one to "
            f"the next ({_in_words(old)}, then {_in_words(new)}). Let the plug-in keep it in a "
            "tensor that changes in place, or use --no-graphs"
        )


def _in_words(call: Call) -> str:
    """Return a call for an error message: the operation, then its arguments, shapes as tuples."""
    return " ".join(str(tuple(value) if isinstance(value, torch.Size) else value) for value in call)


class Trace(TorchDispatchMode):
    """A context that notes all calls to PyTorch made within it, those of backward passes as well.

    Args:
        from_cpu: Whether a call may read a tensor on the CPU. If not, such a call raises
            RuntimeError.

    >>> with Trace() as trace:
    ...     _ = torch.ones(2) * 3
    >>> [_in_words(call) for call in trace.calls]
    ['aten.ones.default 2 False', 'aten.mul.Tensor (2,) 3']
    """

    def __init__(self, from_cpu: bool = True) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._from_cpu = from_cpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call: list[Any] = [func]
        for value in tree_leaves((args, kwargs or {})):
            if isinstance(value, Tensor):
                # Shapes, not values: those may differ from step to step.
                call.append(value.shape)
                if value.device.type == "cpu" and not self._from_cpu:
                    raise RuntimeError(
                        f"{func} reads a tensor on the CPU, whose values would be kept for ever"
                    )
            elif isinstance(value, (bool, int, float, str, torch.dtype)):
                # nan differs from itself, so that equal calls would not be equal.
                call.append("nan" if value != value else value)
        # Whether PyTorch calls detach depends on who else holds a tensor, not on the function.
        if func is not torch.ops.aten.detach.default:
            self.calls.append(tuple(call))
        return func(*args, **(kwargs or {}))
