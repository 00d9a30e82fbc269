"""What is shown of a run in a row of a table. This module imports no PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from statistics import fmean, stdev

from darts_bio.storage.run_summary import RunSummary


def per_cent(accuracies: Sequence[float]) -> str:
    """Return accuracies in [0, 1] in per cent: one, or the mean and deviation of several.

    >>> per_cent([0.975]), per_cent([0.96, 0.98]), per_cent([])
    ('97.50', '97.00 +- 1.41', '')
    """
    if not accuracies:
        return ""
    mean = f"{100 * fmean(accuracies):.2f}"
    return f"{mean} +- {100 * stdev(accuracies):.2f}" if len(accuracies) > 1 else mean


def _seeds(seeds: Sequence[int]) -> str:
    """Return seeds as a range, or one by one where they are none."""
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))


COLUMNS: Mapping[str, Callable[[RunSummary], str]] = {
    "kind": lambda run: run.kind,
    "data": lambda run: run.dataset,
    "strategy": lambda run: run.strategy,
    "rules": lambda run: ",".join(run.rules),
    "seed": lambda run: _seeds(run.seeds),
    "epochs": lambda run: f"{run.epoch}" + (f"/{run.epochs}" if run.epochs else ""),
    "held-out %": lambda run: per_cent(run.held_out),
    "test %": lambda run: per_cent(run.test),
    "params": lambda run: "" if run.parameters is None else f"{run.parameters:,}",
    "transport %": lambda run: "" if run.transport is None else f"{100 * run.transport:.1f}",
    "time": lambda run: "" if run.seconds is None else str(timedelta(seconds=round(run.seconds))),
    "state": lambda run: run.state,
}
"""The columns after that of the run's name, and the text of each; "" where nothing is known."""
