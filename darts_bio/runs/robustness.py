"""Measure the robustness of trained networks, from a configuration to the report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from darts_bio.config import CONFIG_FILE, RobustnessConfig
from darts_bio.data.datasets import ImageData
from darts_bio.distributed import world_size
from darts_bio.errors import InputError
from darts_bio.evaluation.attacks import torchattacks
from darts_bio.evaluation.corruptions import CORRUPTIONS
from darts_bio.evaluation.doubts import Doubt
from darts_bio.evaluation.robustness import Measurement, Plan
from darts_bio.evaluation.subjects import load_subjects
from darts_bio.monitoring.console import RobustnessConsole
from darts_bio.monitoring.robustness import RobustnessBoard
from darts_bio.process_group import process_group
from darts_bio.reports.markdown import counted
from darts_bio.reports.robustness import results, write_report
from darts_bio.runs.running import warn_of
from darts_bio.runtime import select_device, stop_on_signals
from darts_bio.storage.owner import owning
from darts_bio.storage.run_folder import RunFolder
from darts_bio.storage.status import StatusFile

SAVE_EVERY_S = 60.0
"""Seconds between two checkpoints of a measurement."""


@dataclass(frozen=True, repr=False)
class RobustnessResult:
    """The result of a measurement: its numbers, the doubts about them, and its folder.

    `numbers` holds what results.json holds. If the measurement was stopped, `numbers` is empty and
    `finished` is False; `resume=True` then continues it. `exit_code` is 0, or 128 plus the number
    of the signal that stopped it.
    """

    folder: Path
    numbers: Mapping[str, Any]
    doubts: tuple[Doubt, ...]
    finished: bool
    exit_code: int

    def __repr__(self) -> str:
        found = "stopped"
        if self.finished:
            networks = counted(len(self.numbers["networks"]), "network")
            images = counted(self.numbers["images"], "image")
            found = f"{networks}, {images}, {counted(len(self.doubts), 'doubt')}"
        return f"{type(self).__name__}({str(self.folder)!r}, {found})"


@owning()
def measure_robustness(
    config: RobustnessConfig,
    command: str,
    console: TextIO | None = None,
    tensorboard: bool = False,
    data: ImageData | None = None,
) -> RobustnessResult:
    """Attack the networks of the configuration's checkpoints, or resume doing so.

    Args:
        config: The networks and the attacks.
        command: The command or call that the run folder records.
        console: Where to show the progress; None for nowhere.
        tensorboard: Whether to write TensorBoard events.
        data: The images of the networks, if they were handed over in Python rather than named.

    Raises:
        InputError: For several processes, or input that cannot be measured.
    """
    with process_group():
        if world_size() > 1:
            raise InputError(
                f"expected one process, found {world_size()}; leave torchrun out, or measure some "
                "of the networks in each of several runs"
            )
    if config.resume == "auto":
        config = replace(
            config, resume=config.out is not None and Path(config.out, CONFIG_FILE).is_file()
        )
    plan = _plan(config)
    torchattacks()  # raises if it is not installed: before time is spent on reading the networks
    device = select_device(config.device)
    subjects, images = load_subjects(
        config.checkpoint,
        device,
        data_dir=config.data_dir,
        images=config.images,
        seed=config.seed,
        data=data,
    )
    networks = {subject.name: subject.model for subject in subjects}
    measurement = Measurement(
        networks, images, plan, batch_size=config.batch_size, seed=config.seed
    )
    folder = RunFolder.open("robustness", config, command)
    saved = _Saved(measurement, folder)
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        status = stack.enter_context(StatusFile(folder.path))
        status.begin()
        shown = None
        if console is not None:
            shown = stack.enter_context(RobustnessConsole(console, measurement))
            for remark in folder.remarks:
                shown.say(remark)
            shown.on_start(subjects)
        else:
            warn_of(folder.remarks)
        with saved:
            for job in measurement.run():
                if shown is not None:
                    shown.on_batch(job)
                if stop:
                    return RobustnessResult(folder.path, {}, (), False, stop.exit_code)
                saved.now_and_then()
        doubts, accuracy, examples, text = write_report(
            subjects, measurement, folder, saved.seconds, config.charts
        )
        if tensorboard:
            board = stack.enter_context(RobustnessBoard(folder.path))
            board.show(subjects, measurement, accuracy, examples, text)
        status.finished = True
    numbers = results(subjects, measurement, doubts)
    return RobustnessResult(folder.path, numbers, tuple(doubts), True, 0)


def _plan(config: RobustnessConfig) -> Plan:
    """Return what the options ask to be measured of each network."""
    return Plan(
        attacks=config.attacks,
        eps=config.eps,
        gradients=config.gradients,
        draws=config.draws,
        transfer=config.transfer,
        corruptions=CORRUPTIONS.names() if config.corruptions == ("all",) else config.corruptions,
    )


class _Saved:
    """A measurement in the checkpoints of its folder, from which it goes on if there are any.

    At the end of the context it is saved once more: a signal or an error loses no batch that was
    measured.
    """

    def __init__(self, measurement: Measurement, folder: RunFolder) -> None:
        self._measurement, self._folder = measurement, folder
        self._earlier_s, state = 0.0, folder.load()
        if state is not None:
            folder.cut_logs()
            measurement.load_state_dict(state["measured"])
            self._earlier_s = state["seconds"]
        self._started_at = self._saved_at = time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds that the measurement has taken, with those before it was resumed."""
        return self._earlier_s + time.monotonic() - self._started_at

    def now_and_then(self) -> None:
        """Save, if the last time is `SAVE_EVERY_S` ago."""
        if time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self._save()
            self._saved_at = time.monotonic()

    def _save(self) -> None:
        state = self._measurement.state_dict()
        self._folder.save({"measured": state, "seconds": self.seconds})

    def __enter__(self) -> _Saved:
        return self

    def __exit__(self, *error: object) -> None:
        self._save()
