"""Where trained weights come from: the command, the machine and the accuracy that a run recorded."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from darts_bio.errors import first_line, one_line
from darts_bio.storage.logs import METRICS_FILE, MOST_STEPS, read_metrics
from darts_bio.storage.status import STATUS_FILE, read_status


@dataclass(frozen=True)
class Provenance:
    """What the records of a training tell of its weights; nobody has typed it.

    Attributes:
        command: The command or call that began the training; "" if unknown.
        machine: The processor or GPU, the day and the versions; "" if the run did not record it.
        accuracy: The accuracy on the test images, in [0, 1], that the run logged for these weights;
            None if it was not measured at their step, since the run was stopped within an epoch.
        images: The number of test images; 0 if it is unknown, or there is no accuracy.

    >>> made = Provenance(accuracy=0.975, images=359)
    >>> f"{made.right} of {made.images} images right"
    '350 of 359 images right'
    """

    command: str = ""
    machine: str = ""
    accuracy: float | None = None
    images: int = 0

    @property
    def right(self) -> int | None:
        """The number of test images that are classified correctly; None if it is unknown."""
        accuracy = share(self.accuracy)
        return round(accuracy * self.images) if accuracy is not None and self.images else None


def share(value: float | None) -> float | None:
    """Return a share as a float; None for what is no number in [0, 1].

    >>> share(1), share(1.5), share(float("nan")), share(None)
    (1.0, None, None, None)
    """
    return float(value) if value is not None and 0 <= value <= 1 else None


def provenance_of_run(folder: Path, step: int, command: str, *, averaged: bool) -> Provenance:
    """Return what the files of a run folder tell of its weights after `step` updates.

    Args:
        folder: The run folder; what is missing in it is unknown. If a file of it is damaged, all but
            the command is unknown, and a warning says so: the weights are whole without it.
        step: The updates that the weights have had.
        command: The command that the checkpoint names.
        averaged: Whether they are the averaged weights of a run with `--ema`.

    >>> provenance_of_run(Path("runs/none"), 3, "darts-bio train", averaged=False).accuracy is None
    True
    """
    tag = "test_averaged/accuracy" if averaged else "test/accuracy"
    try:
        records = read_metrics(folder, step)
        status: dict[str, Any] = read_status(folder) or {}
    except (OSError, ValueError) as error:
        warnings.warn(
            one_line(
                f"{folder}: the accuracy of its weights and the machine are unknown, since "
                f"{METRICS_FILE} or {STATUS_FILE} cannot be read ({first_line(error)}); put back the "
                "file that the run wrote"
            ),
            stacklevel=2,
        )
        return Provenance(command)
    found = [
        record[tag]
        for record in records
        if record["event"] == "epoch" and record["step"] == step and tag in record
    ]
    accuracy = share(found[-1]) if found else None
    images, machine = status.get("images"), status.get("machine")
    return Provenance(
        command,
        machine if isinstance(machine, str) else "",
        accuracy,
        images if accuracy is not None and _is_count(images) else 0,
    )


def _is_count(value: Any) -> TypeGuard[int]:
    """Tell whether a value of a file is a number of images."""
    return type(value) is int and 0 < value < MOST_STEPS
