"""The one training loop, for search and retraining alike; and evaluation.

A task says what a step is. The loop says when numbers are read, when the state is saved and when to
stop, so that a run that was stopped after any step and resumed equals one that was not, bit for bit
on a CPU. Of several processes each runs this loop, in step with the others; the first alone writes.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.distributed import first_says, gathered, rank
from darts_bio.errors import InputError, first_line
from darts_bio.modes import in_mode
from darts_bio.runtime import StopRequest, autocast, rng_state, send, set_rng_state
from darts_bio.training.run_folder import RunFolder

SAVE_EVERY_S = 300.0

Numbers = dict[str, float]


def never() -> bool:
    """Of a task that is not to be stopped."""
    return False


@dataclass(frozen=True)
class Sums:
    """Several numbers, each summed over `count` values: `totals` (numbers,) float64, in the order
    of `names`.
    """

    names: tuple[str, ...]
    totals: Tensor
    count: int


class Meters:
    """Running means by name, over all processes. Sums stay on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._begun: dict[str, float] = {}
        """Sums that were loaded, until more is added to them."""
        self._counts: dict[str, int] = {}

    def add(self, *several: Sums) -> None:
        """Add to the sums of the same names: on a GPU by one kernel."""
        for sums in several:
            if sums.names not in self._sums:
                begun = torch.tensor(
                    [self._begun.pop(name, 0.0) for name in sums.names], dtype=torch.float64
                )
                self._sums[sums.names] = send(begun, sums.totals.device)
            for name in sums.names:
                self._counts[name] = self._counts.get(name, 0) + sums.count
        torch._foreach_add_(
            [self._sums[sums.names] for sums in several], [sums.totals for sums in several]
        )

    def read(self) -> Numbers:
        """Return the means since the last `clear`. All processes have to read alike."""
        return {name: total / count for name, (total, count) in self._totals().items()}

    def _totals(self) -> dict[str, tuple[float, int]]:
        mine = dict(self._begun)
        for names, sums in self._sums.items():
            mine |= zip(names, sums.tolist(), strict=True)
        totals: dict[str, tuple[float, int]] = {}
        for own in gathered({name: (total, self._counts[name]) for name, total in mine.items()}):
            for name, (total, count) in own.items():
                before = totals.get(name, (0.0, 0))
                totals[name] = (before[0] + total, before[1] + count)
        return totals

    def clear(self) -> None:
        self._sums, self._begun, self._counts = {}, {}, {}

    def state_dict(self) -> dict[str, Any]:
        totals = self._totals()
        return {
            name: {key: value[i] for key, value in totals.items()}
            for i, name in enumerate(("sums", "counts"))
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What all processes had together becomes the first one's."""
        self.clear()
        if rank() == 0:
            self._begun, self._counts = dict(state["sums"]), dict(state["counts"])


class Interrupted(Exception):  # noqa: N818  (no error, as KeyboardInterrupt is none)
    """A stop was asked for within the end of an epoch; what that has done so far is to be
    forgotten.
    """


class Task(Protocol):
    """What is trained. `step` makes one update of the weights; `end_epoch` returns what was
    measured after an epoch.
    """

    epochs: int
    steps_per_epoch: int
    images_per_step: int
    subject: dict[str, str]
    """What a checkpoint is bound to beside the configuration, in words: the data, the genotype that
    is trained."""

    @property
    def finished(self) -> bool:
        """Whether the task wants no further epoch, though there are some left. Asked between
        epochs.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Sets what is constant over an epoch, counted from 0; called again when a run goes on
        within one.
        """

    def step(self, t: int) -> Mapping[str, Sums]:
        """Make update t, counted from 0 over all epochs. Return what was measured in it, by the
        name of the images.
        """

    def learning_rates(self) -> Numbers: ...

    @property
    def measures(self) -> bool:
        """Whether the end of an epoch may take long, so that a checkpoint is to be made before
        it.
        """

    def end_epoch(self, epoch: int, stop: Callable[[], bool] = never) -> Numbers:
        """What was measured after an epoch. Raises Interrupted if `stop` says so before it is
        done.
        """

    def synchronise(self) -> None:
        """Brings together what differs between processes, before it is measured or saved."""

    def state_dict(self) -> dict[str, Any]:
        """All that the task needs to go on. A tensor in it that is not finite means that the
        training diverged.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Progress:
    """How far a run is: `step` updates are done, `epoch` epochs are done or under way (counted from
    1).
    """

    step: int
    steps: int
    epoch: int
    epochs: int

    @property
    def ends_epoch(self) -> bool:
        return self.step * self.epochs == self.epoch * self.steps


class Listener:
    """What hears of a run: subclass it and write the methods that you want. It must not change what
    it is told of.

    >>> class Losses(Listener):
    ...     def __init__(self) -> None:
    ...         self.losses: list[float] = []
    ...     def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
    ...         self.losses.append(numbers["train/loss"])
    """

    def on_start(self, progress: Progress) -> None:
        """Hear that the run begins, or goes on: `progress.step` updates were made before."""

    def on_step(self, progress: Progress, images: int) -> None:
        """Hear of a step of `images` images."""

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        """Hear, every `log_every` steps, the means since the last record, and the learning
        rates.
        """

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        """Hear, after each epoch, the means over it and what was measured at its end."""


class Listeners(Listener):
    """Several listeners as one, which hear of everything in their order."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def on_start(self, progress: Progress) -> None:
        for listener in self.listeners:
            listener.on_start(progress)

    def on_step(self, progress: Progress, images: int) -> None:
        for listener in self.listeners:
            listener.on_step(progress, images)

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        for listener in self.listeners:
            listener.on_record(progress, numbers)

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        for listener in self.listeners:
            listener.on_epoch(progress, numbers)


class Pace:
    """How fast a run goes: seconds, steps and images since it began here."""

    def __init__(self) -> None:
        self.began, self.steps, self.images = time.monotonic(), 0, 0

    def count(self, images: int) -> None:
        """Count a step of `images` images."""
        self.steps += 1
        self.images += images

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    @property
    def images_per_second(self) -> float:
        return self.images / max(self.seconds, 1e-9)

    def seconds_left(self, steps: int) -> float:
        """Estimate the seconds that so many further steps take."""
        return self.seconds / max(1, self.steps) * steps


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the numbers of its last whole epoch, and whether it came to its end, or to
    one before that its task asked for.
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
) -> Outcome:
    """Trains until the last epoch, the task's own end or a stop request, saving after each epoch,
    every five minutes, at the stop, and before the end of an epoch that may take long, which a stop
    interrupts.

    Goes on from the folder's checkpoint if there is one. Raises InputError if that is of other data
    or another genotype, if a number or a weight is no longer finite, and if the GPU's memory does
    not suffice.
    """
    record, epoch_means = Meters(), Meters()
    t, last, ended = 0, Numbers(), True
    state = folder.load()
    if state is not None:
        with fitting(folder.checkpoint_path):
            refuse_other_subject(task.subject, state["subject"], folder.checkpoint_path)
            t, last, ended = state["step"], state["last"], state.get("ended", True)
            task.load_state_dict(state["task"])
            record.load_state_dict(state["record"])
            epoch_means.load_state_dict(state["epoch_means"])
            set_rng_state(state["rng"])

    def save(ended: bool = True) -> None:
        task.synchronise()
        # So that no state that has diverged replaces one that has not.
        _finite(epoch_means.read(), t)
        task_state = task.state_dict()
        _finite_tensors(task_state, t)
        folder.save(
            {
                "subject": dict(task.subject),
                "step": t,
                "last": last,
                "ended": ended,
                "task": task_state,
                "record": record.state_dict(),
                "epoch_means": epoch_means.state_dict(),
                "rng": rng_state(),
            }
        )

    def end_epoch(progress: Progress) -> None:
        nonlocal last
        task.synchronise()
        measured = task.end_epoch(progress.epoch - 1, lambda: bool(stop))
        last = _finite({**epoch_means.read(), **measured}, t)
        epoch_means.clear()
        listener.on_epoch(progress, last)

    if state is None:
        save()  # so that a run which has records has a checkpoint, too
    steps, saved_at = task.epochs * task.steps_per_epoch, time.monotonic()
    listener.on_start(Progress(t, steps, t // task.steps_per_epoch + 1, task.epochs))
    if not ended:  # the run was stopped within the end of an epoch, which is made anew
        epoch = t // task.steps_per_epoch - 1
        task.begin_epoch(epoch)
        try:
            end_epoch(Progress(t, steps, epoch + 1, task.epochs))
        except Interrupted:
            return Outcome(last, False, t)
        save()
    if 0 < t < steps:
        task.begin_epoch(t // task.steps_per_epoch)
    stopping = bool(stop)
    while t < steps and not stopping:
        epoch, position = divmod(t, task.steps_per_epoch)
        if position == 0 and task.finished:
            break
        if position == 0:
            task.begin_epoch(epoch)
        try:
            sums = task.step(t)
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"the GPU's memory does not suffice for a step ({first_line(error)}); try a "
                "smaller --batch-size or "
                "fewer --channels"
            ) from None
        record.add(*sums.values())
        epoch_means.add(*sums.values())
        t += 1
        progress = Progress(t, steps, epoch + 1, task.epochs)
        listener.on_step(progress, task.images_per_step)
        if t % log_every == 0:
            listener.on_record(progress, {**_finite(record.read(), t), **task.learning_rates()})
            record.clear()
        if progress.ends_epoch:
            if task.measures:
                save(ended=False)
            try:
                end_epoch(progress)
            except Interrupted:
                return Outcome(last, False, t)
        stopping = bool(stop)
        if (
            progress.ends_epoch
            or stopping
            or first_says(time.monotonic() - saved_at > SAVE_EVERY_S)
        ):
            save()
            saved_at = time.monotonic()
    return Outcome(last, t == steps or (t % task.steps_per_epoch == 0 and task.finished), t)


def run_epoch(task: Task, epoch: int) -> Numbers:
    """Make all steps of an epoch, counted from 0, and its end; return what was measured there.

    For experiments that keep no run: nothing is recorded, saved or stopped.
    """
    task.begin_epoch(epoch)
    for t in range(epoch * task.steps_per_epoch, (epoch + 1) * task.steps_per_epoch):
        task.step(t)
    return task.end_epoch(epoch)


@contextlib.contextmanager
def fitting(checkpoint: Path) -> Iterator[None]:
    """Within it a checkpoint's content that is not what is asked of it is an InputError that names
    the file.
    """
    try:
        yield
    except InputError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{checkpoint}: does not fit the run that its configuration describes "
            f"({first_line(error)}); resume with the version of darts_bio, and of your plug-ins, "
            "that wrote it"
        ) from None


def refuse_other_subject(here: Mapping[str, str], there: Mapping[str, str], where: Path) -> None:
    """Raises InputError if a checkpoint, of the file `where`, is bound to something else than there
    is here.
    """
    for name, value in here.items():
        if there[name] != value:
            raise InputError(
                f"{where}: the {name} of this run has changed since it was stopped (was "
                f"{there[name]}; is {value}); put it back, or start anew in another --out"
            )


def _diverged(what: str, t: int) -> InputError:
    return InputError(
        f"{what} at step {t}: the training diverged; try a smaller --lr or --clip. The checkpoint "
        "before, if there was "
        "one, is whole"
    )


def _finite(numbers: Numbers, t: int) -> Numbers:
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise _diverged(f"{name} is {value}", t)
    return numbers


def named_tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all floating-point tensors in a state of plain values, by where they stand in it."""
    if isinstance(state, Tensor) and state.is_floating_point():
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, (list, tuple)):
        for i, value in enumerate(state):
            yield from named_tensors(value, f"{name}[{i}]")


def _finite_tensors(state: dict[str, Any], t: int) -> None:
    """Raises InputError if a tensor anywhere in `state` holds a value that is not finite."""
    found = dict(named_tensors(state))
    names, flags = list(found), [tensor.isfinite().all() for tensor in found.values()]
    by_device: dict[torch.device, list[int]] = {}
    for i, flag in enumerate(flags):
        by_device.setdefault(flag.device, []).append(i)
    for members in by_device.values():  # one transfer a device
        finite = torch.stack([flags[i] for i in members]).tolist()
        for i, is_finite in zip(members, finite, strict=True):
            if not is_finite:
                raise _diverged(f"{names[i]} is not finite", t)


@torch.no_grad()
def loss_and_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return cross entropy and correct answers of logits (N, classes), each summed over the images:
    (2,) float64.

    labels: (N,), or the classes' shares (N, classes), the largest of which counts as the label.
    """
    logits = logits.detach().float()
    likeliest = labels if labels.dim() == 1 else labels.argmax(1)
    loss, correct = (
        F.cross_entropy(logits, labels, reduction="sum"),
        (logits.argmax(1) == likeliest).sum(),
    )
    return torch.stack([loss.double(), correct.double()])


def measured(prefix: str, loss_and_accuracy: Tensor, count: int) -> Sums:
    """Name what `loss_and_accuracy` returned for `count` images; the accuracy is in [0, 1]."""
    return Sums((f"{prefix}/loss", f"{prefix}/accuracy"), loss_and_accuracy, count)


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, prefix: str, amp: str = "none"
) -> Numbers:
    """Measure loss and accuracy in evaluation mode. Modes, feedback and random state are left as
    they were.
    """
    meters = Meters()
    with in_mode(model, training=False):
        for x, labels in batches:
            with autocast(x.device, amp):
                logits = model(x)
            meters.add(measured(prefix, loss_and_accuracy(logits, labels), len(labels)))
    return meters.read()
