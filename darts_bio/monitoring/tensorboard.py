"""Write TensorBoard's event files of a run, with one kind of error where the disk refuses."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor

from darts_bio.training.logs import EVENTS
from darts_bio.training.run_folder import writing


class TensorBoard:
    """A writer of TensorBoard events into a run folder.

    It writes from `open_events` to the end of its context. Every method raises InputError if the
    disk refuses.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    def __enter__(self) -> Self:
        self._excepthook = threading.excepthook
        threading.excepthook = self._thread_failed
        return self

    def _thread_failed(self, failure: Any) -> None:
        # Errors of the disk in TensorBoard's writing thread are not shown here: TensorBoard raises
        # them once more in the main thread, at the next call.
        if not issubclass(failure.exc_type, OSError):
            self._excepthook(failure)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        threading.excepthook = self._excepthook
        if self._writer is not None:
            self._call("close")

    @property
    def has_events(self) -> bool:
        """Whether the folder holds events of a run that goes on."""
        return any(self._directory.glob(EVENTS))

    def last_text(self, tag: str) -> str | None:
        """Return the last text of a tag among the events so far; None if there is none."""
        if not self.has_events:
            return None
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        sizes = {"images": 1, "histograms": 1, "scalars": 1, "tensors": 1}
        events = EventAccumulator(str(self._directory), size_guidance=sizes).Reload()
        name = f"{tag}/text_summary"
        if name not in events.Tags()["tensors"]:
            return None
        return str(events.Tensors(name)[-1].tensor_proto.string_val[0].decode())

    def open_events(self, purge_step: int | None = None) -> None:
        """Open a new event file; TensorBoard then hides earlier events from `purge_step` on."""
        from torch.utils.tensorboard import SummaryWriter

        with writing(self._directory):
            self._writer = SummaryWriter(str(self._directory), purge_step=purge_step)

    def layout(self, charts: Mapping[str, Mapping[str, list[str]]]) -> None:
        """Define custom charts: group -> chart -> the tags that it draws together."""
        chart_layout = {
            group: {name: ["Multiline", tags] for name, tags in group_charts.items()}
            for group, group_charts in charts.items()
        }
        self._call("add_custom_scalars", chart_layout)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Write a number."""
        self._call("add_scalar", tag, value, step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Write the distribution of values of any shape."""
        self._call("add_histogram", tag, values.detach().cpu(), step)

    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """Write an image of pixels (H, W, 3) uint8."""
        self._call("add_image", tag, pixels, step, dataformats="HWC")

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text in Markdown."""
        self._call("add_text", tag, text, step)

    def flush(self) -> None:
        """Write all events so far to the disk."""
        self._call("flush")

    def _call(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of TensorBoard's writer; an error of the disk becomes an InputError."""
        with writing(self._directory):
            getattr(self._writer, method)(*args, **options)
