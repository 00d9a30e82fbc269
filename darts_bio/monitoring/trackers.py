"""Trackers of experiments, MLflow and W&B, which hear of a run what metrics.jsonl records.

A tracker numbers its runs itself. The number is kept in the run's folder, so that a run which goes
on, goes on in the tracker too. What was sent after the last checkpoint is sent again then.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from darts_bio.bounded import LARGEST_YAML, parse_json, read_text
from darts_bio.errors import InputError, first_line
from darts_bio.storage.run_folder import RunFolder
from darts_bio.storage.whole_files import write_text
from darts_bio.training.listeners import Listener, Progress
from darts_bio.training.meters import Numbers

TRACKERS_FILE = "trackers.json"
"""The file of a run's folder that holds, for each tracker, the number of the run in it."""


class Tracker(Listener):
    """The base of trackers: a listener that a run is sent to, and a context manager.

    Where a tracker fails, as without its server, the run goes on without it and says so once.

    Attributes:
        name: The name of the tracker, which is that of its package.
    """

    name: str

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._works, self._done = folder, True, False

    def __enter__(self) -> Tracker:
        self._attempt(self._begin)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._attempt(lambda: self.end(self._done))

    def on_start(self, progress: Progress) -> None:
        self._done = progress.ended

    def on_record(self, progress: Progress, numbers: Numbers) -> None:
        self._attempt(lambda: self.send(progress.step, numbers))

    def on_epoch(self, progress: Progress, numbers: Numbers) -> None:
        # Records have the same names. TensorBoard calls these so, too.
        of_epoch = {f"epoch/{name.replace('/', '_')}": value for name, value in numbers.items()}
        self._attempt(lambda: self.send(progress.step, of_epoch))
        self._done = progress.ended

    def _begin(self) -> None:
        """Begin a run of the tracker, or go on with the one that the folder names."""
        path = self._folder.path / TRACKERS_FILE
        content = parse_json(read_text(path, LARGEST_YAML), str(path)) if path.exists() else {}
        known = content if isinstance(content, dict) else {}
        before = known.get(self.name)
        number = self.begin(before if isinstance(before, str) else None)
        if number != before:
            write_text(path, json.dumps({**known, self.name: number}) + "\n")

    def _attempt(self, call: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            call()
        except Exception as error:  # whatever goes wrong elsewhere must not end a run
            self._works = False
            warnings.warn(
                f"--log {self.name}: nothing more is sent ({first_line(error)}); metrics.jsonl "
                "goes on",
                stacklevel=2,
            )

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of the run that its checkpoint is bound to."""
        return self._folder.config.identity()

    def begin(self, number: str | None) -> str:
        """Begin a run of the tracker, or go on with the one of this number; return its number."""
        raise NotImplementedError(f"{type(self).__name__}.begin")

    def send(self, step: int, numbers: Numbers) -> None:
        """Send numbers of a step."""
        raise NotImplementedError(f"{type(self).__name__}.send")

    def end(self, finished: bool) -> None:
        """End the run of the tracker; `finished` tells whether it came to its end."""
        raise NotImplementedError(f"{type(self).__name__}.end")


class MLflow(Tracker):
    """A run of MLflow, where MLFLOW_TRACKING_URI and its like say; within one that is active."""

    name = "mlflow"

    def begin(self, number: str | None) -> str:
        self._mlflow = importlib.import_module("mlflow")
        run = self._mlflow.start_run(
            run_id=number,
            run_name=self._folder.path.name,
            nested=self._mlflow.active_run() is not None,
        )
        if number is None:
            self._mlflow.log_params({name: str(value) for name, value in self.options.items()})
        return str(run.info.run_id)

    def send(self, step: int, numbers: Numbers) -> None:
        self._mlflow.log_metrics(numbers, step=step)

    def end(self, finished: bool) -> None:
        self._mlflow.end_run("FINISHED" if finished else "KILLED")


class Wandb(Tracker):
    """A run of W&B in the project darts_bio, or in that of WANDB_PROJECT."""

    name = "wandb"

    def begin(self, number: str | None) -> str:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "darts_bio"),
            name=self._folder.path.name,
            config=dict(self.options),
            id=number,
            resume="allow",
            reinit="create_new",
        )
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def send(self, step: int, numbers: Numbers) -> None:
        # The step is a number beside the others: of what is told by `log(step=...)` W&B keeps the
        # last back until a later step comes, and a run that is killed would lose it.
        self._run.log({"step": step, **numbers})

    def end(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


_TRACKERS: dict[str, type[Tracker]] = {tracker.name: tracker for tracker in (MLflow, Wandb)}


def trackers(folder: RunFolder, names: tuple[str, ...]) -> list[Tracker]:
    """Return the trackers of these names, for a run in this folder; each is to be entered.

    Raises:
        InputError: The package of one is not installed.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"--log {name}: the package {name} is not installed; pip install {name}, or leave "
                "it out"
            )
    return [_TRACKERS[name](folder) for name in names]
