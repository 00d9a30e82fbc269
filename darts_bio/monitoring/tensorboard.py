"""TensorBoard's event files of a run, which may lie on a disk that refuses."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor

from darts_bio.training.run_folder import writing


class TensorBoard:
    """Writes events to a run's folder between `open_events` and the end of its context. All raise
    InputError if the disk refuses.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    def __enter__(self) -> Self:
        self._excepthook = threading.excepthook
        threading.excepthook = self._thread_failed
        return self

    def _thread_failed(self, failure: Any) -> None:
        # TensorBoard's thread raises the error of a disk that refuses once more at the next call.
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

    def open_events(self, purge_step: int | None = None) -> None:
        """TensorBoard passes over what earlier files hold from `purge_step` on."""
        from torch.utils.tensorboard import SummaryWriter

        with writing(self._directory):
            self._writer = SummaryWriter(str(self._directory), purge_step=purge_step)

    def layout(self, charts: Mapping[str, Mapping[str, list[str]]]) -> None:
        """Custom scalars: group -> chart -> the tags it draws together."""
        parts = {
            group: {name: ["Multiline", tags] for name, tags in named.items()}
            for group, named in charts.items()
        }
        self._call("add_custom_scalars", parts)

    def scalar(self, tag: str, value: float, step: int) -> None:
        self._call("add_scalar", tag, value, step)

    def histogram(self, tag: str, values: Tensor, step: int) -> None:
        self._call("add_histogram", tag, values.detach().cpu(), step)

    def image(self, tag: str, pixels: np.ndarray, step: int) -> None:
        """pixels: (H, W, 3) uint8."""
        self._call("add_image", tag, pixels, step, dataformats="HWC")

    def text(self, tag: str, text: str, step: int) -> None:
        """Markdown."""
        self._call("add_text", tag, text, step)

    def flush(self) -> None:
        self._call("flush")

    def _call(self, method: str, *args: Any, **options: Any) -> None:
        with writing(self._directory):
            getattr(self._writer, method)(*args, **options)
