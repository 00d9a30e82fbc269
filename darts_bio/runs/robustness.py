"""A measurement of robustness, from its configuration to the report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from darts_bio.config import CONFIG_FILE, RobustnessConfig
from darts_bio.data.datasets import ImageData
from darts_bio.distributed import process_group, world_size
from darts_bio.errors import InputError
from darts_bio.evaluation.attacks import torchattacks
from darts_bio.evaluation.corruptions import CORRUPTIONS
from darts_bio.evaluation.doubts import Doubt
from darts_bio.evaluation.robustness import Measurement, Plan
from darts_bio.evaluation.subjects import load_subjects
from darts_bio.monitoring.boards import RobustnessBoard
from darts_bio.monitoring.console import RobustnessConsole
from darts_bio.reports.robustness import results, write_report
from darts_bio.runtime import select_device, stop_on_signals
from darts_bio.training.run_folder import RunFolder

SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class RobustnessResult:
    """What a measurement left: all numbers as results.json has them, the doubts about them, and the
    run folder.

    `numbers` is empty, and `finished` False, if it was stopped; it then goes on by `resume=True`.
    """

    folder: Path
    numbers: Mapping[str, Any]
    doubts: tuple[Doubt, ...]
    finished: bool
    exit_code: int


def measure_robustness(
    config: RobustnessConfig,
    command: str,
    console: TextIO | None = None,
    tensorboard: bool = False,
    data: ImageData | None = None,
) -> RobustnessResult:
    """Attack the networks of the configuration's checkpoints, or go on with that.

    `command` is what the run is stamped with; `data` are the networks' images, where they were
    handed over. Raises InputError for bad input.
    """
    with process_group():
        if world_size() > 1:
            raise InputError(
                f"expected one process, found {world_size()}; leave torchrun out, or measure some "
                "of the networks in "
                "each of several runs"
            )
    if config.resume == "auto":
        config = replace(
            config, resume=config.out is not None and Path(config.out, CONFIG_FILE).is_file()
        )
    plan = Plan(
        attacks=config.attacks,
        eps=config.eps,
        gradients=config.gradients,  # type: ignore[arg-type]
        draws=config.draws,
        transfer=config.transfer,
        corruptions=CORRUPTIONS.names() if config.corruptions == ("all",) else config.corruptions,
    )
    torchattacks()  # before the networks are read: it may not be installed
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
    measured = Measurement(networks, images, plan, batch_size=config.batch_size, seed=config.seed)
    folder = RunFolder.open("robustness", config, command)
    earlier, state = 0.0, folder.load()
    if state is not None:
        measured.load_state_dict(state["measured"])
        earlier = state["seconds"]
    began = saved = time.monotonic()

    def save() -> None:
        folder.save(
            {"measured": measured.state_dict(), "seconds": earlier + time.monotonic() - began}
        )

    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(stop_on_signals())
        shown = (
            None if console is None else stack.enter_context(RobustnessConsole(console, measured))
        )
        if shown is not None:
            shown.on_start(subjects)
        try:
            for job in measured.run():
                if shown is not None:
                    shown.on_batch(job)
                if stop:
                    return RobustnessResult(folder.path, {}, (), False, stop.exit_code)
                if time.monotonic() - saved > SAVE_EVERY_S:
                    save()
                    saved = time.monotonic()
        finally:  # whatever ends it, what was found is kept
            save()
        seconds = earlier + time.monotonic() - began
        doubts, accuracy, examples, text = write_report(subjects, measured, folder, seconds)
        if tensorboard:
            stack.enter_context(RobustnessBoard(folder.path)).show(
                subjects, measured, accuracy, examples, text
            )
    return RobustnessResult(
        folder.path, results(subjects, measured, doubts), tuple(doubts), True, 0
    )
