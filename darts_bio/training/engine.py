"""The one training loop, for search and retraining alike, and the evaluation of networks.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from darts_bio.distributed import first_says, gathered, rank, world_size
from darts_bio.errors import InputError, first_line
from darts_bio.modes import in_mode
from darts_bio.private_torch import add_all
from darts_bio.runtime import StopRequest, autocast, rng_state, send, set_rng_state
from darts_bio.training.run_folder import RunFolder

Numbers = dict[str, float]
"""Measurements by name, such as {"train/loss": 2.3, "lr/weights": 0.025}."""


def never() -> bool:
    """Return False: the answer to "stop?" where nobody asks to.

    >>> never()
    False
    """
    return False


@dataclass(frozen=True)
class Sums:
    """Several numbers, each summed over the same `count` values, such as the images of a step.

    Attributes:
        names: The numbers' names.
        totals: The sums (numbers,) float64, in the order of `names`, on the device that made them.
        count: How many values were summed.

    >>> Sums(("train/loss",), torch.tensor([5.0], dtype=torch.float64), 2).count
    2
    """

    names: tuple[str, ...]
    totals: Tensor
    count: int


class Meters:
    """Running means by name, over all processes.

    Sums stay on the device until they are read, so that Python does not wait for a GPU.

    >>> meters = Meters()
    >>> for loss in (3.0, 2.0):
    ...     meters.add(Sums(("loss",), torch.tensor([loss], dtype=torch.float64), 1))
    >>> meters.read()
    {'loss': 2.5}
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        """The sums (numbers,) on the device, by the names that were added together."""
        self._begun: dict[str, float] = {}
        """Sums that were loaded, by name, until more is added to them."""
        self._counts: dict[str, int] = {}
        """How many values were summed, by name."""

    def add(self, *several: Sums) -> None:
        """Add to the sums of the same names, on a GPU by one kernel for all."""
        if not several:
            return
        for sums in several:
            if sums.names not in self._sums:
                begun = torch.tensor(
                    [self._begun.pop(name, 0.0) for name in sums.names], dtype=torch.float64
                )
                self._sums[sums.names] = send(begun, sums.totals.device)
            for name in sums.names:
                self._counts[name] = self._counts.get(name, 0) + sums.count
        add_all([self._sums[sums.names] for sums in several], [sums.totals for sums in several])

    def read(self) -> Numbers:
        """Return the means since the last `clear`. All processes have to read equally often."""
        return {name: total / count for name, (total, count) in self._totals().items()}

    def _totals(self) -> dict[str, tuple[float, int]]:
        """Return (sum, count) by name, over all processes, the same in each."""
        # In the order of the processes, so that rounding is the same in all.
        return _added(gathered(self.state_dict()))

    def clear(self) -> None:
        """Begin all means anew."""
        self._sums, self._begun, self._counts = {}, {}, {}

    def state_dict(self) -> dict[str, tuple[float, int]]:
        """Return (sum, count) by name, of this process."""
        sums_here = dict(self._begun)
        for names, sums in self._sums.items():
            sums_here |= zip(names, sums.tolist(), strict=True)
        return {name: (total, self._counts[name]) for name, total in sums_here.items()}

    def load_state_dicts(self, states: Sequence[dict[str, tuple[float, int]]]) -> None:
        """Go on from what all processes had, by their numbers.

        If there are as many now, each goes on from its own; else the first takes over all.
        """
        self.clear()
        if len(states) == world_size():
            states = [states[rank()]]
        elif rank() > 0:
            states = []
        for name, (total, count) in _added(states).items():
            self._begun[name], self._counts[name] = total, count


def _added(several: Sequence[dict[str, tuple[float, int]]]) -> dict[str, tuple[float, int]]:
    """Add up (sum, count) by name."""
    totals: dict[str, tuple[float, int]] = {}
    for each in several:
        for name, (total, count) in each.items():
            before = totals.get(name, (0.0, 0))
            totals[name] = (before[0] + total, before[1] + count)
    return totals


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
class Progress:
    """How far a run is.

    Attributes:
        step: How many updates are done.
        steps: How many there are in all.
        epoch: How many epochs are done or under way, that is, counted from 1.
        epochs: How many there are in all.

    >>> Progress(step=20, steps=100, epoch=2, epochs=10).ends_epoch
    True
    """

    step: int
    steps: int
    epoch: int
    epochs: int

    @property
    def ends_epoch(self) -> bool:
        """Whether the latest step was the last one of its epoch."""
        # step == epoch * steps_per_epoch, where steps_per_epoch is steps / epochs
        return self.step * self.epochs == self.epoch * self.steps


class Listener:
    """The base of classes that hear of a run: subclass it and write the methods that you want.

    A listener must not change what it is told of.

    >>> class Losses(Listener):
    ...     def __init__(self) -> None:
    ...         self.losses: list[float] = []
    ...     def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
    ...         self.losses.append(numbers["train/loss"])
    >>> listener = Losses()
    >>> listener.on_epoch(Progress(step=10, steps=10, epoch=1, epochs=1), {"train/loss": 2.5})
    >>> listener.losses
    [2.5]
    """

    def on_start(self, progress: Progress) -> None:
        """Hear that the run begins, or goes on: `progress.step` updates were made before."""

    def on_step(self, progress: Progress, images: int) -> None:
        """Hear of a step of `images` images."""

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        """Hear the means since the last record, and the learning rates: every `log_every` steps."""

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        """Hear, after each epoch, the means over it and what was measured at its end."""


class Listeners(Listener):
    """Several listeners as one; each hears of everything, in their order.

    >>> class Printer(Listener):
    ...     def on_step(self, progress: Progress, images: int) -> None:
    ...         print(f"step {progress.step} of {progress.steps}")
    >>> Listeners(Printer(), Printer()).on_step(Progress(1, 10, 1, 1), images=64)
    step 1 of 10
    step 1 of 10
    """

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
    """How fast a run goes: seconds, steps and images since this object was made.

    >>> pace = Pace()
    >>> pace.count(images=64)
    >>> pace.steps, pace.images, pace.images_per_second > 0
    (1, 64, True)
    """

    def __init__(self) -> None:
        self.began, self.steps, self.images = time.monotonic(), 0, 0

    def count(self, images: int) -> None:
        """Count a step of `images` images."""
        self.steps += 1
        self.images += images

    @property
    def seconds(self) -> float:
        """The seconds since the beginning."""
        return time.monotonic() - self.began

    @property
    def images_per_second(self) -> float:
        """The mean rate since the beginning."""
        return self.images / max(self.seconds, 1e-9)

    def seconds_left(self, steps: int) -> float:
        """Estimate the seconds that this many further steps take."""
        return self.seconds / max(1, self.steps) * steps


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
    # How often the run has gone back after it diverged.
    rollbacks = 0
    # Means since the last record, and since the epoch began.
    record, epoch_means = Meters(), Meters()
    # t: the updates made. last: the numbers of the last whole epoch. ended: whether the end of that
    # epoch is done, too.
    t, last, ended = 0, Numbers(), True
    state = folder.load()
    first_epoch = 0  # the one that this call begins in
    if state is not None:
        with fitting(folder.checkpoint_path):
            refuse_other_subject(task.subject, state["subject"], folder.checkpoint_path)
            t, last, ended = state["step"], state["last"], state["ended"]
            first_epoch = t // task.steps_per_epoch
            task.load_state_dict(state["task"])
            rollbacks = state.get("rollbacks", 0)  # not in earlier checkpoints
            if rollbacks:
                task.slow_down(0.5**rollbacks)
            record.load_state_dicts(state["record"])
            epoch_means.load_state_dicts(state["epoch_means"])
            as_many = len(state["statistics"]) == world_size()
            if as_many and world_size() > 1:
                put_back(task.statistics(), state["statistics"][rank()])
            # Last, which undoes what loading may have drawn.
            set_rng_state(state["rng"][rank() if as_many else 0])

    def diverged(what: str) -> DivergedError:
        what = f"{what} at step {t}"
        way = "a smaller --lr in a new --out"
        # More of what has not brought the run past an epoch would not bring it past, either.
        if not rollbacks or (t - 1) // task.steps_per_epoch > first_epoch:
            way = f"--resume --rollbacks {rollbacks + 3}, or {way}"
        return DivergedError(f"{what}: diverged; {way}", what)

    def finite(numbers: Numbers) -> Numbers:
        for name, value in numbers.items():
            if not math.isfinite(value):
                raise diverged(f"{name} is {value}")
        return numbers

    def save(ended: bool = True) -> None:
        # What is saved as the task's is that of all processes together, for whoever uses it. Each
        # process goes on with its own, as if it had not been saved, and so does a resumed run.
        own = [tensor.clone() for tensor in task.statistics()] if world_size() > 1 else []
        task.synchronize()
        # Checked first, so that no state that has diverged replaces one that has not.
        finite(epoch_means.read())
        task_state = task.state_dict()
        if (spoilt := _not_finite(task_state)) is not None:
            raise diverged(f"{spoilt} is not finite")
        folder.save(
            {
                "subject": dict(task.subject),
                "step": t,
                "last": last,
                "ended": ended,
                "begins_epoch": ended and t % task.steps_per_epoch == 0,
                "rollbacks": rollbacks,
                "task": task_state,
                "record": gathered(record.state_dict()),
                "epoch_means": gathered(epoch_means.state_dict()),
                "statistics": gathered([tensor.cpu() for tensor in own]),
                "rng": gathered(rng_state()),
            }
        )
        if own:
            put_back(task.statistics(), own)

    def end_epoch(progress: Progress) -> None:
        nonlocal last
        task.synchronize()
        measurements = task.end_epoch(progress.epoch - 1, lambda: bool(stop))
        last = finite({**epoch_means.read(), **measurements})
        epoch_means.clear()
        listener.on_epoch(progress, last)

    if state is None:
        save()  # so that a run which has records has a checkpoint, too
    else:
        folder.cut_logs()
    steps, saved_at = task.epochs * task.steps_per_epoch, time.monotonic()
    listener.on_start(Progress(t, steps, t // task.steps_per_epoch + 1, task.epochs))
    if not ended:  # the run was stopped during the end of an epoch, which is computed anew
        epoch = t // task.steps_per_epoch - 1
        task.begin_epoch(epoch)
        try:
            end_epoch(Progress(t, steps, epoch + 1, task.epochs))
        except Interrupted:
            return Outcome(last, False, t)
        save()
    if 0 < t < steps:
        # For a run that goes on within an epoch: the loop begins one only at its first step.
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
                "smaller --batch-size or fewer --channels"
            ) from None
        record.add(*sums.values())
        epoch_means.add(*sums.values())
        t += 1
        progress = Progress(t, steps, epoch + 1, task.epochs)
        listener.on_step(progress, task.images_per_step)
        if t % log_every == 0:
            listener.on_record(progress, {**finite(record.read()), **task.learning_rates()})
            record.clear()
        if progress.ends_epoch:
            if task.measures:
                # A run that is stopped within the end goes on from here, and computes it anew.
                save(ended=False)
            try:
                end_epoch(progress)
            except Interrupted:
                return Outcome(last, False, t)
        # Several processes have to decide alike: `stop` sums over them, and the clock that counts
        # is the first one's.
        stopping = bool(stop)
        if progress.ends_epoch or stopping or first_says(time.monotonic() - saved_at > save_every):
            save()
            saved_at = time.monotonic()
    between_epochs = t % task.steps_per_epoch == 0
    return Outcome(last, t == steps or (between_epochs and task.finished), t)


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
    """Turn errors from a checkpoint's content, within the context, into an InputError.

    For code that takes apart what a checkpoint of another version may not hold. The message names
    the file.

    >>> with fitting(Path("checkpoint.pt")):
    ...     {"step": 3}["task"]
    Traceback (most recent call last):
    darts_bio.errors.InputError: checkpoint.pt: does not fit the run that its configuration \
describes ('task'); resume with the version of darts_bio, and of your plug-ins, that wrote it
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


@torch.no_grad()
def loss_and_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return a batch's cross entropy and number of correct answers, summed over images.

    Args:
        logits: Logits (N, classes).
        labels: Labels (N,), or the classes' shares (N, classes), the largest of which counts as the
            label.

    Returns:
        Both sums, (2,) float64, on the device of the logits.

    >>> loss_and_accuracy(torch.zeros(4, 2), torch.tensor([0, 0, 0, 1]))
    tensor([2.7726, 3.0000], dtype=torch.float64)
    """
    logits = logits.detach().float()
    likeliest = labels if labels.dim() == 1 else labels.argmax(1)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    correct = (logits.argmax(1) == likeliest).sum()
    return torch.stack([loss.double(), correct.double()])


def measured(prefix: str, loss_and_accuracy: Tensor, count: int) -> Sums:
    """Name what `loss_and_accuracy` returned for `count` images.

    Read as means, the loss is per image and the accuracy a fraction in [0, 1].

    >>> measured("train", torch.tensor([2.7726, 3.0]), 4).names
    ('train/loss', 'train/accuracy')
    """
    return Sums((f"{prefix}/loss", f"{prefix}/accuracy"), loss_and_accuracy, count)


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], *, prefix: str, amp: str = "none"
) -> Numbers:
    """Return a model's mean loss and accuracy on batches, in evaluation mode, over all processes.

    Modes, feedback and the states of generators are left as they were.

    Args:
        model: A network from images to logits (N, classes).
        batches: Images (N, C, H, W) and labels (N,), of this process.
        prefix: What the numbers' names begin with, such as "test".
        amp: The precision of the passes, "none" or "bf16".

    >>> batches = [(torch.eye(2), torch.tensor([0, 1]))]
    >>> evaluate(nn.Identity(), batches, prefix="test")["test/accuracy"]
    1.0
    """
    meters = Meters()
    before = rng_state()  # a network may draw in evaluation too: the operation `noise` does
    with in_mode(model, training=False):
        for x, labels in batches:
            with autocast(x.device, amp):
                logits = model(x)
            meters.add(measured(prefix, loss_and_accuracy(logits, labels), len(labels)))
    set_rng_state(before)
    return meters.read()
