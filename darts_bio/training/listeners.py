"""Who hears of a run as it goes: the base of listeners, how far a run is, and how fast it goes."""

from __future__ import annotations

import time
from dataclasses import dataclass

from darts_bio.training.meters import Numbers


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: How many updates are done.
        steps: How many there are in all.
        epoch: The present epoch, counted from 1.
        epochs: How many there are in all.
        ended: Whether no step is left, or none is wanted (`Task.finished`).

    >>> Progress(step=20, steps=100, epoch=2, epochs=10).ends_epoch
    True
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    ended: bool = False

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
