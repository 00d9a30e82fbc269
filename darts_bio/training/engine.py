"""The one training loop, for search and retraining alike.

A `Task` says what a step is. The loop, `fit`, says when numbers are read, when the state is saved
and when to stop. A run that was stopped after any step and resumed equals one that was not, bit for
bit on a CPU. Nor does it matter when, or how often, it was saved: a save leaves the state as it is.
Of several processes each runs this loop, in step with the others; the first alone writes.

Numbers go one way: a step returns `Sums`, `Meters` accumulate them, and a `Listener` hears the
means.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from darts_bio.distributed import first_says, gathered, rank, world_size
from darts_bio.errors import InputError, first_line
from darts_bio.runtime import StopRequest, rng_state, set_rng_state
from darts_bio.storage.run_folder import RunFolder
from darts_bio.training.listeners import Listener, Progress
from darts_bio.training.meters import Meters, Numbers, Sums


def never() -> bool:
    """Return False: the answer to "stop?" where nobody asks to.

    >>> never()
    False
    """
    return False


class DivergedError(InputError):
    """A number that is measured, or a value of the state, is no longer finite.

    `what` is that in a clause, without advice; by default the whole message.

    >>> str(DivergedError("train/loss is nan at step 3: try a smaller --lr", "train/loss is nan"))
    'train/loss is nan at step 3: try a smaller --lr'
    """

    def __init__(self, message: str, what: str = "") -> None:
        super().__init__(message)
        self.what = what or message


class Interrupted(Exception):  # noqa: N818  (no error, as KeyboardInterrupt is none)
    """A stop was asked for during the end of an epoch.

    What the end of the epoch has computed so far is dropped; a resumed run computes it anew.
    """


class Task(Protocol):
    """What is trained: a search (`Search`) or a network (`Retraining`).

    Attributes:
        epochs: How many epochs there are.
        steps_per_epoch: How many weight updates an epoch has.
        images_per_step: How many images a step computes, over all processes.
        subject: What a checkpoint is bound to beside the configuration, in words: the data, the
            genotype that is trained.
    """

    epochs: int
    steps_per_epoch: int
    images_per_step: int
    subject: dict[str, str]

    @property
    def finished(self) -> bool:
        """Whether the task wants no further epoch, though some are left.

        The loop asks between epochs.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Set what is constant over an epoch, counted from 0.

        Called again for the same epoch when a run goes on within it.
        """

    def step(self, t: int) -> Mapping[str, Sums]:
        """Make update t of the weights, counted from 0 over all epochs.

        Return what was measured in it, by the images' split: "train", "valid".
        """

    def slow_down(self, factor: float) -> None:
        """Multiply the weights' learning rate by a factor, from the next `begin_epoch` on.

        Called for a run that has gone back after it diverged (`--rollbacks`).
        """

    def cause(self) -> str:
        """Return what made the run diverge, and how to mend it; "" where that is not known."""

    def learning_rates(self) -> Numbers:
        """Return the current learning rates, under names that begin with "lr/"."""

    @property
    def measures(self) -> bool:
        """Whether the end of an epoch may take long, so that a checkpoint is made before it."""

    def end_epoch(self, epoch: int, stop: Callable[[], bool] = never) -> Numbers:
        """Return what is measured after an epoch, counted from 0.

        Raises Interrupted if `stop` says so before that is done.
        """

    def synchronize(self) -> None:
        """Bring together what differs between processes, before it is measured or saved."""

    def statistics(self) -> list[Tensor]:
        """Return the tensors that `synchronize` changes, which the loop puts back after a save."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that the task needs to go on, as tensors and plain values.

        A tensor in it that is not finite means that the training diverged.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        numbers: The numbers of its last whole epoch.
        finished: Whether it came to its end, or to an earlier one that its task asked for; False if
            it was stopped.
        step: How many updates were made.

    >>> Outcome({"test/accuracy": 0.97}, finished=True, step=1000).numbers["test/accuracy"]
    0.97
    """

    numbers: Numbers
    finished: bool
    step: int


def fit(
    task: Task,
    folder: RunFolder,
    listener: Listener,
    stop: StopRequest,
    *,
    log_every: int,
    save_every: float = 300.0,
) -> Outcome:
    """Train a task until its last epoch, an earlier end that it asks for, or a stop request.

    Goes on from the folder's checkpoint if there is one. Saves one at the beginning, after each
    epoch, every `save_every` seconds, at a stop, and before the end of an epoch that may take long,
    which a stop interrupts.

    Args:
        task: What is trained.
        folder: Where checkpoints lie.
        listener: Who hears of the run.
        stop: Asked after each step whether to stop.
        log_every: After how many steps the means are read and told to the listener.
        save_every: After how many seconds a checkpoint is due within an epoch.

    Raises:
        InputError: The checkpoint is of other data or another genotype, or the GPU's memory does
            not suffice.
        DivergedError: A number or a weight is no longer finite.

    >>> import tempfile
    >>> from darts_bio.config import SearchConfig
    >>> class Halving:  # a task whose only weight is halved in each step
    ...     epochs, steps_per_epoch, images_per_step = 2, 3, 1
    ...     subject, finished, measures, weight = {}, False, False, 1.0
    ...     def begin_epoch(self, epoch): ...
    ...     def synchronize(self): ...
    ...     def statistics(self): return []
    ...     def learning_rates(self): return {"lr/weights": 0.5}
    ...     def step(self, t):
    ...         self.weight /= 2
    ...         return {"train": Sums(("train/loss",), torch.tensor([self.weight]).double(), 1)}
    ...     def end_epoch(self, epoch, stop): return {"test/loss": self.weight}
    ...     def state_dict(self): return {"weight": self.weight}
    ...     def load_state_dict(self, state): self.weight = state["weight"]
    >>> with tempfile.TemporaryDirectory() as place:
    ...     folder = RunFolder(Path(place), "train", SearchConfig(), "python example.py")
    ...     outcome = fit(Halving(), folder, Listener(), StopRequest(), log_every=1)
    ...     print(outcome.step, outcome.numbers["test/loss"], folder.load()["task"])
    6 0.015625 {'weight': 0.015625}
    """
    return _Loop(task, folder, listener, stop, log_every, save_every).run()


class _Loop:
    """Runs a task for `fit`, whose arguments it takes.

    Attributes:
        t: How many updates are made.
        last: The numbers of the last whole epoch.
        ended: Whether the end of that epoch is done, too.
        rollbacks: How often the run has gone back after it diverged.
        record, epoch_means: The means since the last record, and since the epoch began.
    """

    def __init__(
        self,
        task: Task,
        folder: RunFolder,
        listener: Listener,
        stop: StopRequest,
        log_every: int,
        save_every: float,
    ) -> None:
        self.task, self.folder, self.listener, self.stop = task, folder, listener, stop
        self.log_every, self.save_every = log_every, save_every
        self.steps = task.epochs * task.steps_per_epoch
        self.t, self.last, self.ended = 0, Numbers(), True
        self.rollbacks = 0
        self.record, self.epoch_means = Meters(), Meters()
        self._first_epoch = 0  # the one that this call begins in
        state = folder.load()
        if state is None:
            self.save()  # so that a run which has records has a checkpoint, too
        else:
            self._go_on(state)
            folder.cut_logs()
        self._saved_at = time.monotonic()

    def _go_on(self, state: dict[str, Any]) -> None:
        """Take over a checkpoint of `save`."""
        task, path = self.task, self.folder.checkpoint_path
        with fitting(path):
            refuse_other_subject(task.subject, state["subject"], path)
            self.t, self.last, self.ended = state["step"], state["last"], state["ended"]
            self._first_epoch = self.t // task.steps_per_epoch
            task.load_state_dict(state["task"])
            self.rollbacks = state.get("rollbacks", 0)  # not in earlier checkpoints
            if self.rollbacks:
                task.slow_down(0.5**self.rollbacks)
            self.record.load_state_dicts(state["record"])
            self.epoch_means.load_state_dicts(state["epoch_means"])
            as_many = len(state["statistics"]) == world_size()
            if as_many and world_size() > 1:
                put_back(task.statistics(), state["statistics"][rank()])
            # Last, which undoes what loading may have drawn.
            set_rng_state(state["rng"][rank() if as_many else 0])

    def run(self) -> Outcome:
        """Make what steps are left, or as many as there is no stop request before."""
        task = self.task
        self.listener.on_start(self._progress(self.t // task.steps_per_epoch + 1))
        try:
            if not self.ended:  # the run was stopped during the end of an epoch: computed anew
                epoch = self.t // task.steps_per_epoch - 1
                task.begin_epoch(epoch)
                self._end_epoch(self._progress(epoch + 1))
                self.save()
            if 0 < self.t < self.steps:
                # For a run that goes on within an epoch: else one begins at its first step.
                task.begin_epoch(self.t // task.steps_per_epoch)
            stopping = bool(self.stop)
            while self.t < self.steps and not stopping:
                epoch, position = divmod(self.t, task.steps_per_epoch)
                if position == 0 and task.finished:
                    break
                if position == 0:
                    task.begin_epoch(epoch)
                stopping = self._step(epoch)
        except Interrupted:
            return Outcome(self.last, False, self.t)
        return Outcome(self.last, self._at_end(), self.t)

    def _step(self, epoch: int) -> bool:
        """Make a step of this epoch and all that is due after it; return whether to stop.

        Raises Interrupted if it was the epoch's last and a stop is asked for in its end.
        """
        try:
            sums = self.task.step(self.t)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"the GPU's memory does not suffice for a step ({first_line(error)}); try a "
                "smaller --batch-size or fewer --channels"
            ) from None
        self.record.add(*sums.values())
        self.epoch_means.add(*sums.values())
        self.t += 1
        progress = self._progress(epoch + 1)
        self.listener.on_step(progress, self.task.images_per_step)
        if self.t % self.log_every == 0:
            means = self._finite(self.record.read())
            self.listener.on_record(progress, {**means, **self.task.learning_rates()})
            self.record.clear()
        if progress.ends_epoch:
            if self.task.measures:
                # A run that is stopped within the end goes on from here, and computes it anew.
                self.ended = False
                self.save()
            self._end_epoch(progress)
        # Several processes have to decide alike: `stop` sums over them, and the clock that counts
        # is the first one's.
        stopping = bool(self.stop)
        due = progress.ends_epoch or stopping
        if due or first_says(time.monotonic() - self._saved_at > self.save_every):
            self.save()
            self._saved_at = time.monotonic()
        return stopping

    def _end_epoch(self, progress: Progress) -> None:
        """Measure what an epoch has led to, and tell the listener.

        Raises Interrupted if a stop is asked for before that is done.
        """
        self.task.synchronize()
        measurements = self.task.end_epoch(progress.epoch - 1, lambda: bool(self.stop))
        self.last = self._finite({**self.epoch_means.read(), **measurements})
        self.ended = True
        self.epoch_means.clear()
        self.listener.on_epoch(self._progress(progress.epoch), self.last)

    def save(self) -> None:
        """Write a checkpoint, and leave the state as it is.

        Raises DivergedError, and writes none, if a value of the state is not finite.
        """
        # What is saved as the task's is that of all processes together, for whoever uses it. Each
        # process goes on with its own, as if it had not been saved, and so does a resumed run.
        task, t = self.task, self.t
        own = [tensor.clone() for tensor in task.statistics()] if world_size() > 1 else []
        task.synchronize()
        # Checked first, so that no state that has diverged replaces one that has not.
        self._finite(self.epoch_means.read())
        task_state = task.state_dict()
        if (spoilt := _not_finite(task_state)) is not None:
            raise self._diverged(f"{spoilt} is not finite")
        self.folder.save(
            {
                "subject": dict(task.subject),
                "step": t,
                "last": self.last,
                "ended": self.ended,
                "begins_epoch": self.ended and t % task.steps_per_epoch == 0,
                "rollbacks": self.rollbacks,
                "task": task_state,
                "record": gathered(self.record.state_dict()),
                "epoch_means": gathered(self.epoch_means.state_dict()),
                "statistics": gathered([tensor.cpu() for tensor in own]),
                "rng": gathered(rng_state()),
            }
        )
        if own:
            put_back(task.statistics(), own)

    def _progress(self, epoch: int) -> Progress:
        """Say how far the run is, in this epoch, counted from 1."""
        return Progress(self.t, self.steps, epoch, self.task.epochs, self._at_end())

    def _at_end(self) -> bool:
        """Return whether no step is left, or none is wanted by the task, between epochs."""
        between_epochs = self.t % self.task.steps_per_epoch == 0
        return self.t == self.steps or (between_epochs and self.task.finished)

    def _finite(self, numbers: Numbers) -> Numbers:
        """Return the numbers; raise DivergedError if one is not finite."""
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise self._diverged(f"{name} is {value}")
        return numbers

    def _diverged(self, what: str) -> DivergedError:
        """Return the error that says what diverged, and what to do about it."""
        what = f"{what} at step {self.t}"
        way = "a smaller --lr in a new --out"
        # More of what has not brought the run past an epoch would not bring it past, either.
        if not self.rollbacks or (self.t - 1) // self.task.steps_per_epoch > self._first_epoch:
            way = f"--resume --rollbacks {self.rollbacks + 3}, or {way}"
        return DivergedError(f"{what}: diverged; {self.task.cause() or way}", what)


def run_epoch(task: Task, epoch: int) -> Numbers:
    """Make all steps of an epoch, counted from 0; return what was measured at its end.

    For experiments that keep no run: nothing is recorded, saved or stopped.

    >>> class Counting:  # a task that measures how many steps it made
    ...     steps_per_epoch, made = 3, 0
    ...     def begin_epoch(self, epoch): ...
    ...     def step(self, t): self.made += 1
    ...     def end_epoch(self, epoch): return {"steps": self.made}
    >>> run_epoch(Counting(), epoch=0)
    {'steps': 3}
    """
    task.begin_epoch(epoch)
    for t in range(epoch * task.steps_per_epoch, (epoch + 1) * task.steps_per_epoch):
        task.step(t)
    return task.end_epoch(epoch)


@contextlib.contextmanager
def fitting(checkpoint: Path) -> Iterator[None]:
    """Turn errors from a checkpoint's or an export's content, within the context, into an InputError.

    For code that takes apart what a file of another version may not hold. The message names the
    file.

    >>> with fitting(Path("checkpoint.pt")):
    ...     {"step": 3}["task"]
    Traceback (most recent call last):
    darts_bio.errors.InputError: checkpoint.pt: does not fit the run that its configuration \
describes ('task'); read it with the version of darts_bio, and of your plug-ins, that wrote it
    """
    try:
        yield
    except InputError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{checkpoint}: does not fit the run that its configuration describes "
            f"({first_line(error)}); read it with the version of darts_bio, and of your plug-ins, "
            "that wrote it"
        ) from None


@torch.no_grad()
def put_back(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Set tensors, in place, to the values that they had before.

    >>> mean = torch.zeros(2)
    >>> put_back([mean], [torch.ones(2)])
    >>> mean
    tensor([1., 1.])
    """
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def refuse_other_subject(here: Mapping[str, str], there: Mapping[str, str], where: Path) -> None:
    """Raise InputError if a checkpoint is bound to other data or another genotype than this run.

    Args:
        here: The `Task.subject` of this run.
        there: That of the checkpoint.
        where: The checkpoint's file.

    >>> refuse_other_subject({"data set": "digits"}, {"data set": "digits"}, Path("checkpoint.pt"))
    """
    for name, value in here.items():
        if there[name] != value:
            raise InputError(
                f"{where}: the {name} of this run has changed since it was stopped (was "
                f"{there[name]}; is {value}); put it back, or start anew in another --out"
            )


def named_tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all floating-point tensors in a state of plain values, with where they stand in it.

    >>> state = {"optimizer": [{"momentum": torch.zeros(1)}], "step": 3}
    >>> list(named_tensors(state))
    [('optimizer[0].momentum', tensor([0.]))]
    """
    if isinstance(state, Tensor) and state.is_floating_point():
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, (list, tuple)):
        for i, value in enumerate(state):
            yield from named_tensors(value, f"{name}[{i}]")


def _not_finite(state: dict[str, Any]) -> str | None:
    """Return where in `state` a tensor holds a value that is not finite; None if none does."""
    flags = {name: tensor.isfinite().all() for name, tensor in named_tensors(state)}
    by_device: dict[torch.device, list[str]] = {}
    for name, flag in flags.items():
        by_device.setdefault(flag.device, []).append(name)
    for names in by_device.values():
        # One transfer for all flags of a device, where a supernet has thousands.
        finite = torch.stack([flags[name] for name in names]).tolist()
        for name, is_finite in zip(names, finite, strict=True):
            if not is_finite:
                return name
    return None
