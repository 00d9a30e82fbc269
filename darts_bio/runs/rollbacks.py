"""Runs that have diverged and gone back to a checkpoint are made anew from there (`--rollbacks`)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TypeVar

from darts_bio.config import FitConfig
from darts_bio.storage.run_folder import RunFolder

C = TypeVar("C", bound=FitConfig)
R = TypeVar("R")


class WentBack(Exception):  # noqa: N818  (no error, as KeyboardInterrupt is none)
    """A run has diverged and has gone back to a checkpoint, from which `going_back` goes on."""


Run = Callable[[C, Callable[[], RunFolder], int], R]
"""Makes the run of a configuration: `run(config, open_folder, number)` (see `each_seed`)."""


def going_back(run: Run[C, R]) -> Run[C, R]:
    """Return a function that makes a run, and makes it anew each time that it has gone back.

    Made anew it is built from nothing, and goes on as a run that is resumed.
    """

    def made_to_the_end(config: C, open_folder: Callable[[], RunFolder], number: int) -> R:
        opened = functools.cache(open_folder)
        while True:
            with contextlib.suppress(WentBack):
                return run(config, opened, number)

    return made_to_the_end
