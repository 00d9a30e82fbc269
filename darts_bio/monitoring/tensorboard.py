"""Write TensorBoard's event files of a run, with one kind of error where the disk refuses."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from darts_bio.errors import InputError, printable
from darts_bio.storage.logs import EVENTS
from darts_bio.storage.whole_files import writing

Charts = Mapping[str, Mapping[str, Sequence[str]]]
"""Custom charts: group -> chart -> patterns, regular expressions of the tags in it."""


def clean(tag: str) -> str:
    """Return a tag with those of its characters replaced that TensorBoard does not allow.

    >>> clean("rules/normal/dfa(positions=all)")
    'rules/normal/dfa_positions_all_'
    """
    return re.sub(r"[^-/\w.]", "_", tag)


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

        try:
            with writing(self._directory):
                self._writer = SummaryWriter(str(self._directory), purge_step=purge_step)
        except UnicodeEncodeError:
            raise InputError(
                f"--out {printable(str(self._directory))}: expected a name that is text, for TensorBoard; "
                "choose another, or set LC_ALL=C.UTF-8 where the name is UTF-8"
            ) from None

    def layout(self, charts: Charts) -> None:
        """Define the custom charts of a run.

        TensorBoard merges the layouts of all runs: charts of one name should be the same in all.
        """
        chart_layout = {
            group: {name: ["Multiline", list(tags)] for name, tags in group_charts.items()}
            for group, group_charts in charts.items()
        }
        self._call("add_custom_scalars", chart_layout)

    def scalars(self, numbers: Mapping[str, float], step: int) -> None:
        """Write numbers by their tag, all of them as one event, which takes less time than many."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=clean(tag), simple_value=n) for tag, n in numbers.items()]
        if values:
            self.summary(Summary(value=values), step)

    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """Write an image of pixels (H, W, 3) uint8."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        file = io.BytesIO()
        # By the usual level 6 the figures are no smaller, and take half as long again.
        Image.fromarray(pixels).save(file, "PNG", compress_level=3)
        height, width, channels = pixels.shape
        image = Summary.Image(
            height=height,
            width=width,
            colorspace=channels,
            encoded_image_string=file.getvalue(),
        )
        self.summary(Summary(value=[Summary.Value(tag=clean(tag), image=image)]), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text in Markdown."""
        self._call("add_text", tag, text, step)

    def summary(self, summary: Any, step: int) -> None:
        """Write an event that is made already, a `Summary` of TensorBoard's."""
        with writing(self._directory):
            self._writer.file_writer.add_summary(summary, step)

    def flush(self) -> None:
        """Write all events so far to the disk."""
        self._call("flush")

    def _call(self, method: str, *args: Any, **options: Any) -> None:
        """Call a method of TensorBoard's writer; an error of the disk becomes an InputError."""
        with writing(self._directory):
            getattr(self._writer, method)(*args, **options)
