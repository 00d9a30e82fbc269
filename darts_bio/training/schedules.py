"""Schedules: how the learning rate of the weights goes from one epoch to the next. One is a
function of

    peak (the rate at the start), last (at the end), epoch (counted from 0), config (the run's options)

registered by name in `SCHEDULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from darts_bio.config import FitConfig, TrainingConfig
from darts_bio.registry import Registry

Schedule = Callable[[float, float, int, FitConfig], float]

SCHEDULES: Registry[Schedule] = Registry("schedule")


@SCHEDULES.register("cosine")
def cosine(peak: float, last: float, epoch: int, config: FitConfig) -> float:
    """Half a cosine from the peak to the last rate, without restarts (arXiv 1608.03983).

    >>> from darts_bio.config import SearchConfig
    >>> [round(cosine(0.025, 0.001, epoch, SearchConfig(epochs=50)), 4) for epoch in (0, 25, 50)]
    [0.025, 0.013, 0.001]
    """
    return last + (peak - last) * (1 + math.cos(math.pi * (epoch / config.epochs))) / 2


@SCHEDULES.register("linear")
def linear(peak: float, last: float, epoch: int, config: FitConfig) -> float:
    """A line from the peak to the last rate (arXiv 1904.12760)."""
    return last + (peak - last) * (1 - epoch / config.epochs)


@SCHEDULES.register("exponential")
def exponential(peak: float, last: float, epoch: int, config: FitConfig) -> float:
    """The peak times --lr-decay an epoch (arXiv 1806.09055); the last rate plays no part."""
    return peak * getattr(config, "lr_decay", 1.0) ** epoch


def learning_rate(config: FitConfig, epoch: int) -> float:
    """Give the rate of an epoch counted from 0: along a cosine in a search, as the options say in a
    training.

    A warm-up takes the place of the schedule's first epochs, and does not put it off. Raises
    InputError for a schedule that there is not.
    """
    if not isinstance(config, TrainingConfig):
        return cosine(config.lr, config.lr_min, epoch, config)
    schedule = SCHEDULES.get(config.schedule)
    scale = config.batch_size / config.lr_batch if config.lr_batch else 1.0
    peak, last = scale * config.lr, scale * config.lr_min
    if epoch < config.warmup:
        return peak * (epoch + 1) / config.warmup
    return schedule(peak, last, epoch, config)
