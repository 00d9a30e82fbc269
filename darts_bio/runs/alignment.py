"""Measure how a trained network's learning aligns with backpropagation, and write the table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from darts_bio.config import AlignmentConfig
from darts_bio.data.datasets import ImageData
from darts_bio.evaluation.alignment import Alignment, training_alignment
from darts_bio.figures.alignment import draw_alignment
from darts_bio.runtime import select_device
from darts_bio.training.retrain import Retraining
from darts_bio.training.run_folder import write_text


@dataclass(frozen=True)
class AlignmentResult:
    """The alignment of each layer of a run, and the files that hold it.

    `numbers` is the path of alignment.json. `figure` is that of alignment.svg, None where
    matplotlib is not installed.
    """

    alignment: Alignment
    folder: Path
    numbers: Path
    figure: Path | None


def measure_alignment_of_run(
    config: AlignmentConfig, data: ImageData | None = None
) -> AlignmentResult:
    """Measure a trained network on its own training batches, and write the result beside it.

    `data` are the run's images, if they were handed over in Python rather than named. Raises
    InputError if the folder holds no training.
    """
    folder = Path(config.checkpoint)
    training = Retraining.of_run(folder, select_device(config.device), config.data_dir, data)
    try:
        alignment = training_alignment(training, config.batches)
    finally:
        training.source.close()
    numbers, figure = folder / "alignment.json", folder / "alignment.svg"
    write_text(numbers, json.dumps(alignment.as_dict(), indent=2) + "\n")
    try:
        draw_alignment(alignment, figure)
    except ImportError:
        return AlignmentResult(alignment, folder, numbers, None)
    return AlignmentResult(alignment, folder, numbers, figure)
