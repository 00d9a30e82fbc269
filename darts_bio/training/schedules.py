"""Schedules: how the learning rate of the weights goes from one epoch to the next.

A schedule is a function, registered by name in `SCHEDULES`, of four arguments: the rate at the
start (`peak`), the rate at the end (`last`), the epoch, counted from 0, and the run's options
(`config`). It returns the rate of that epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from darts_bio.config import FitConfig, TrainingConfig
from darts_bio.registry import Registry
from darts_bio.strategies import WeightPhase

Schedule = Callable[[float, float, int, TrainingConfig], float]
"""Maps (peak, last, epoch, config) to the learning rate of an epoch."""

SCHEDULES: Registry[Schedule] = Registry("schedule")
"""The schedules that `--schedule` knows."""


@SCHEDULES.register("cosine")
def cosine(peak: float, last: float, epoch: int, config: FitConfig) -> float:
    """Follow half a cosine from the peak to the last rate, without restarts (arXiv 1608.03983).

    >>> from darts_bio.config import SearchConfig
    >>> [round(cosine(0.025, 0.001, epoch, SearchConfig(epochs=50)), 4) for epoch in (0, 25, 50)]
    [0.025, 0.013, 0.001]
    """
    return _half_cosine(peak, last, epoch / config.epochs)


def _half_cosine(peak: float, last: float, progress: float) -> float:
    """Return the rate at a progress from 0, where it is the peak, to 1, where it is the last one."""
    return last + (peak - last) * (1 + math.cos(math.pi * progress)) / 2


@SCHEDULES.register("linear")
def linear(peak: float, last: float, epoch: int, config: FitConfig) -> float:
    """Follow a line from the peak to the last rate (arXiv 1904.12760).

    >>> from darts_bio.config import SearchConfig
    >>> [round(linear(0.5, 0.0, epoch, SearchConfig(epochs=50)), 4) for epoch in (0, 25, 50)]
    [0.5, 0.25, 0.0]
    """
    return last + (peak - last) * (1 - epoch / config.epochs)


@SCHEDULES.register("exponential")
def exponential(peak: float, last: float, epoch: int, config: TrainingConfig) -> float:
    """Multiply the peak by --lr-decay in each epoch; the last rate is unused (arXiv 1806.09055).

    >>> from darts_bio.config import RetrainConfig
    >>> config = RetrainConfig(genotype="bionas_darts", lr_decay=0.5)
    >>> [exponential(0.1, 0.0, epoch, config) for epoch in (0, 1, 2)]
    [0.1, 0.05, 0.025]
    """
    return peak * config.lr_decay**epoch


def learning_rate(config: FitConfig, epoch: int, phase: WeightPhase | None = None) -> float:
    """Return the learning rate of an epoch, counted from 0.

    A search always follows a cosine, or two where its strategy tunes w in a phase of its own: one
    until that begins, and one from `scale` times the first rate, which never rises. A training
    follows `--schedule`, its rates scaled to the batch size if `--lr-batch` says for which batch
    they are meant. A warm-up replaces the schedule's first epochs and does not put the schedule off.

    Raises:
        InputError: There is no schedule of that name.

    >>> from darts_bio.config import RetrainConfig
    >>> config = RetrainConfig(genotype="bionas_darts", lr=0.1, epochs=4, lr_min=0.0, warmup=2)
    >>> [round(learning_rate(config, epoch), 4) for epoch in range(4)]
    [0.05, 0.1, 0.05, 0.0146]

    Half a search at 0.4 and half at a tenth of it:

    >>> from darts_bio.config import SearchConfig
    >>> config, phase = SearchConfig(lr=0.4, lr_min=0.0, epochs=4), WeightPhase(2, 2, scale=0.1)
    >>> [round(learning_rate(config, epoch, phase), 4) for epoch in range(4)]
    [0.4, 0.2, 0.04, 0.02]
    """
    if phase is not None:
        if epoch < phase.first:
            return _half_cosine(config.lr, config.lr_min, epoch / phase.first)
        peak = phase.scale * config.lr
        return _half_cosine(peak, min(peak, config.lr_min), (epoch - phase.first) / phase.epochs)
    if not isinstance(config, TrainingConfig):
        return cosine(config.lr, config.lr_min, epoch, config)
    schedule = SCHEDULES.get(config.schedule)
    scale = config.batch_size / config.lr_batch if config.lr_batch else 1.0
    peak, last = scale * config.lr, scale * config.lr_min
    if epoch < config.warmup:
        return peak * (epoch + 1) / config.warmup
    return schedule(peak, last, epoch, config)
